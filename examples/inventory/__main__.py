"""`python -m examples.inventory`: three sites of a shop sell, are cut off, and sell on.

Invariant: the exit code is 0 only if every site has the same rows, every sale that a till has made, a stock that is what came in
without what was sold, a cart with what was put in and not taken out, and one customer for each address, with all the sales.
"""

import argparse
import sys
import threading
import time
import uuid
from pathlib import Path

import psycopg

from syncagent.embedded import find_binaries

from ..compare import checksums, unequal
from ..runner import phase, play, show
from ..sites import CHECK_SECONDS, Site, SiteError
from .tills import PRODUCTS, STOCK, Books, Till

HERE = Path(__file__).parent
TABLES = ("product", "customer", "cart", "sale")
CONVERGE_SECONDS = 120


class Shop:
    """Three sites with their tills."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.sites = [Site(i, folder, find_binaries(options.postgres), "shop") for i in range(1, 4)]
        self._seed = options.seed
        self._tills: list[Till] = []
        self._failed = threading.Event()

    def start(self) -> None:
        first, *others = self.sites
        for site in self.sites:
            site.start()
        with psycopg.connect(first.dsn, autocommit=True) as connection:
            connection.execute((HERE / "schema.sql").read_bytes())
        first.found()
        first.attach("customer", "--on-unique", "customer_email_key=merge")
        first.attach("product", "--strategy", "merge", "--merge", "stock=counter")
        first.attach("cart", "--strategy", "merge", "--merge", "items=set")
        first.attach("sale")
        for site in others:
            site.join(first)

    def open(self) -> None:
        """A stock, a cart, and a till at each site."""
        with psycopg.connect(self.sites[0].dsn, autocommit=True) as connection:
            for product in PRODUCTS:
                connection.execute("insert into product values (syncagent.uuid7(), %s, %s)", (product, STOCK))
            (cart,) = connection.execute(
                "with c as (insert into customer values (syncagent.uuid7(), 'family@example.org', 'the family') returning id)"
                " insert into cart (id, customer) select syncagent.uuid7(), c.id from c returning id"
            ).fetchall()[0]
        self.settle()
        self._tills = [Till(site.dsn, site.name, cart, self._seed, self._failed) for site in self.sites]
        for till in self._tills:
            till.start()

    def sell(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._failed.wait(min(CHECK_SECONDS, seconds))
            self.check()

    def close(self) -> Books:
        """The tills; what they have in their books."""
        for till in self._tills:
            till.leave()
        self.check()
        return sum((till.books for till in self._tills), Books())

    def settle(self) -> None:
        self.sites[0].wait_converged(CONVERGE_SECONDS, self.check)

    def check(self) -> None:
        """Raise if a till or an agent has ended by itself."""
        for till in self._tills:
            if till.error:
                raise SiteError(till.error)
        for site in self.sites:
            site.check()

    def stop(self) -> None:
        for till in self._tills:
            till.leave()
        for site in self.sites:
            site.stop()


def verdict(shop: Shop, books: Books) -> str:
    """Raises SiteError if sites differ, or are not what the books say."""
    sums = [checksums(site.dsn, TABLES) for site in shop.sites]
    if differing := unequal(sums):
        raise SiteError(f"tables differ: {', '.join(differing)}")
    with psycopg.connect(shop.sites[-1].dsn) as connection:
        sales: dict[uuid.UUID, str] = dict(
            connection.execute(
                "select s.id, c.email from sale s join customer c on c.id = s.customer"
            ).fetchall()
        )
        stock: dict[str, int] = dict(connection.execute("select name, stock from product").fetchall())
        ((items,),) = connection.execute("select items from cart").fetchall()
        customers = [email for (email,) in connection.execute("select email from customer")]
    if sales != books.sales:
        wrong = {key for key in sales | books.sales if sales.get(key) != books.sales.get(key)}
        raise SiteError(f"{len(wrong)} sales are lost, or somebody else's")
    expected = {product: STOCK + books.added[product] for product in PRODUCTS}
    if stock != expected:
        raise SiteError(f"the stock is {stock}, the books say {expected}")
    if sorted(items) != sorted(books.put - books.taken):
        raise SiteError(
            f"in the cart is {sorted(set(items) ^ (books.put - books.taken))} too much, or missing"
        )
    twice = books.registered - (len(customers) - 1)
    return (
        f"{len(TABLES)} tables equal on {len(shop.sites)} sites, {len(sales)} sales, {len(items)} items in the cart,"
        f" {len(customers)} customers of {books.registered + 1} that were registered ({twice} became one with another),"
        f" stock {', '.join(f'{name} {stock[name]}' for name in PRODUCTS)}, {books.writes} writes"
    )


def story(shop: Shop, options: argparse.Namespace) -> str:
    shop.start()
    phase("the tills are opened")
    shop.open()
    shop.sell(options.seconds)
    for site in shop.sites[1:]:
        phase(f"{site.name} is cut off; its till goes on")
        site.halt()
    shop.sell(options.seconds)
    for site in shop.sites[1:]:
        phase(f"{site.name} is back")
        site.run()
    shop.sell(options.seconds)
    books = shop.close()
    phase("the tills are closed; waiting, and comparing")
    shop.settle()
    show("What was decided meanwhile:", shop.sites[0].told("conflicts", "list", "--limit", "5"))
    return verdict(shop, books)


if __name__ == "__main__":
    sys.exit(play("inventory", "Three sites of a shop sell, are cut off, and sell on.", Shop, story))
