"""What the tills of the shop do, and what they have in their books.

Invariant: what a till has committed is in its books, and nothing else is.
"""

import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field

import psycopg

from ..workers import Worker

PRODUCTS = ("teapot", "kettle", "cup", "sieve", "tray")
STOCK = 5
"""Of each product, before the first is sold."""
GUESTS = tuple(f"guest{number}@example.org" for number in range(12))
"""They come in at any site, and are registered there unless somebody knows them."""


@dataclass
class Books:
    """Of one till, or of all."""

    sales: dict[uuid.UUID, str] = field(default_factory=dict)
    """Whose each is, by the address."""
    added: Counter[str] = field(default_factory=Counter)
    """To the stock, by product; sales are taken away."""
    put: set[str] = field(default_factory=set)
    """Into the cart."""
    taken: set[str] = field(default_factory=set)
    """Out of it again."""
    registered: int = 0
    writes: int = 0

    def __add__(self, other: "Books") -> "Books":
        added = Counter(self.added)
        added.update(other.added)
        return Books(
            self.sales | other.sales, added, self.put | other.put, self.taken | other.taken,
            self.registered + other.registered, self.writes + other.writes,
        )  # fmt: skip


class Till(Worker):
    """`cart` is one that is open at every till: the family shops with three phones."""

    def __init__(self, dsn: str, site: str, cart: uuid.UUID, seed: int, failed: threading.Event) -> None:
        super().__init__(dsn, f"till of {site}", f"{seed} {site}", failed)
        self.books = Books()
        self._site, self._cart = site, cart

    def work(self, connection: psycopg.Connection) -> None:
        dice = self.chance.random()
        if dice < 0.6:
            with connection.transaction():
                self._sell(connection)
        elif dice < 0.65:
            self._receive(connection)
        elif dice < 0.9:
            self._put(connection)
        else:
            self._take(connection)
        self.books.writes += 1

    def _sell(self, connection: psycopg.Connection) -> None:
        address, product = self.chance.choice(GUESTS), self.chance.choice(PRODUCTS)
        quantity = self.chance.choice((1, 1, 1, 2))
        customer, registered = _customer(connection, address, self._site)
        connection.execute("update product set stock = stock - %s where name = %s", (quantity, product))
        rows = connection.execute(
            "insert into sale (id, customer, product, quantity)"
            " select syncagent.uuid7(), %s, id, %s from product where name = %s returning id",
            (customer, quantity, product),
        ).fetchall()
        self.books.sales[rows[0][0]] = address
        self.books.added[product] -= quantity
        self.books.registered += registered

    def _receive(self, connection: psycopg.Connection) -> None:
        product = self.chance.choice(PRODUCTS)
        connection.execute("update product set stock = stock + 15 where name = %s", (product,))
        self.books.added[product] += 15

    def _put(self, connection: psycopg.Connection) -> None:
        item = f"{self.chance.choice(PRODUCTS)} {self._site} {len(self.books.put)}"
        connection.execute("update cart set items = items || %s::text where id = %s", (item, self._cart))
        self.books.put.add(item)

    def _take(self, connection: psycopg.Connection) -> None:
        """Whoever put it in."""
        (items,) = connection.execute("select items from cart where id = %s", (self._cart,)).fetchall()[0]
        if items:
            item = self.chance.choice(sorted(items))
            connection.execute(
                "update cart set items = array_remove(items, %s) where id = %s", (item, self._cart)
            )
            self.books.taken.add(item)


def _customer(connection: psycopg.Connection, address: str, site: str) -> tuple[uuid.UUID, int]:
    """The customer with this address, who stays until the sale is written; registered if nobody knows one."""
    while True:
        made = connection.execute(
            "insert into customer (id, email, name) values (syncagent.uuid7(), %s, %s) on conflict (email) do nothing",
            (address, f"met in {site}"),
        ).rowcount
        rows = connection.execute(
            "select id from customer where email = %s for key share", (address,)
        ).fetchall()
        if rows:
            return rows[0][0], made
