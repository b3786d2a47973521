"""What an office does all day: it sells, ships, reprices, and corrects what the others did, on the same rows.

Invariants: who locks several rows locks them in key order; rows that others refer to are never deleted, and
a draft is its own office's until it is paid, so no cascade meets a foreign write. A transaction is counted
when it is committed; one that PostgreSQL refuses for reasons of concurrency is tried again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from decimal import Decimal
from uuid import UUID

import psycopg
from psycopg import errors

from syncagent.demo import shop

Connection = psycopg.AsyncConnection
Task = Callable[[Connection], Awaitable[None]]

_CLERKS = 2
_RECENT = 200
"""Purchases that are still talked about."""
_OWN = 0.8
"""How often an office looks after a purchase of its own, rather than of another one."""
_BUSY = 12
"""Products that everybody wants."""
_VOUCHERS_PER_OFFICE = 1_000_000


class Office:
    """Clerks at one site; each commits at most `pace` transactions a second."""

    def __init__(self, dsn: str, number: int, city: str, seed: int, pace: float) -> None:
        self.committed = 0
        self.again = 0
        self.number, self.city = number, city
        self._dsn, self._pace = dsn, pace
        self._random = random.Random(f"{seed}/{number}")
        self._closing = asyncio.Event()
        self._products: list[UUID] = []
        self._customers: list[UUID] = []
        self._drafts: list[UUID] = []
        self._vouchers = number * _VOUCHERS_PER_OFFICE
        self._tasks: dict[Task, int] = {
            self._sell: 40,
            self._send: 14,
            self._reprice: 6,
            self._restock: 6,
            self._move: 8,
            self._register: 4,
            self._correct: 6,
            self._draft: 4,
            self._tear_up: 3,
            self._issue: 3,
            self._redeem: 4,
            self._expire: 2,
        }

    async def work(self) -> None:
        """Until closed."""
        async with await Connection.connect(self._dsn, application_name=f"shop {self.city}") as connection:
            await self._look_around(connection)
        async with asyncio.TaskGroup() as group:
            for _ in range(_CLERKS):
                group.create_task(self._clerk())

    def close(self) -> None:
        """Every clerk ends the transaction it is in."""
        self._closing.set()

    async def _clerk(self) -> None:
        async with await Connection.connect(self._dsn, application_name=f"shop {self.city}") as connection:
            while not self._closing.is_set():
                await self._once(connection)
                try:
                    async with asyncio.timeout(self._random.uniform(0, 2 / self._pace)):
                        await self._closing.wait()
                except TimeoutError:
                    continue

    async def _once(self, connection: Connection) -> None:
        (task,) = self._random.choices(list(self._tasks), list(self._tasks.values()))
        try:
            async with connection.transaction():
                await task(connection)
        except (errors.SerializationFailure, errors.DeadlockDetected):
            self.again += 1
        else:
            self.committed += 1

    async def _look_around(self, connection: Connection) -> None:
        """What there is to sell, and to whom."""
        found = await connection.execute(
            "select id from shop.product where sku <> %s order by sku", (shop.STAR,)
        )
        self._products = [row[0] async for row in found]
        found = await connection.execute("select id from shop.customer order by id")
        self._customers = [row[0] async for row in found]

    # ---- what they choose

    def _product(self) -> UUID:
        few = self._random.random() < 0.15
        return self._random.choice(self._products[:_BUSY] if few else self._products)

    def _customer(self) -> UUID:
        return self._random.choice(self._customers)

    async def _recent(self, connection: Connection, status: str) -> UUID | None:
        """A purchase of late; now and then one of another office."""
        own = self._random.random() < _OWN
        found = await connection.execute(
            "select id from (select id, status, office from shop.purchase order by id desc limit %s) as p"
            " where status = %s and (office = %s) = %s order by id offset %s limit 1",
            (_RECENT, status, self.number, own, self._random.randrange(_RECENT // 8)),
        )
        row = await found.fetchone()
        return row[0] if row else None

    # ---- what they do

    async def _sell(self, connection: Connection) -> None:
        """A purchase with its lines, goods off the shelf, money into the till."""
        purchase = await self._write_down(connection, "paid")
        await connection.execute(
            "with l as (select p.id, l.quantity from shop.purchase_line l join shop.product p on p.id = l.product_id"
            " where l.purchase_id = %s order by p.id for no key update of p)"
            " update shop.product p set stock = stock - l.quantity, changed_by = %s from l where p.id = l.id",
            (purchase, self.city),
        )
        await connection.execute(
            "update shop.office set sales = sales + 1, last_sale = clock_timestamp(), takings = takings +"
            " (select sum(quantity * price) from shop.purchase_line where purchase_id = %s) where number = %s",
            (purchase, self.number),
        )

    async def _write_down(self, connection: Connection, status: str) -> UUID:
        purchase = shop.key()
        await connection.execute(
            "insert into shop.purchase (id, customer_id, office, status) values (%s, %s, %s, %s)",
            (purchase, self._customer(), self.number, status),
        )
        products = sorted({self._product() for _ in range(self._random.randint(1, 4))})
        await connection.execute(
            "insert into shop.purchase_line select %s, u.n, p.id, u.quantity, p.price"
            " from unnest(%s::uuid[], %s::int[]) with ordinality as u (id, quantity, n)"
            " join shop.product p on p.id = u.id",
            (purchase, products, [self._random.randint(1, 3) for _ in products]),
        )
        return purchase

    async def _draft(self, connection: Connection) -> None:
        self._drafts.append(await self._write_down(connection, "draft"))

    async def _tear_up(self, connection: Connection) -> None:
        """A draft that nobody wants any more; its lines go with it."""
        if self._drafts:
            await connection.execute("delete from shop.purchase where id = %s", (self._drafts.pop(),))

    async def _send(self, connection: Connection) -> None:
        """Whoever has time sends what is paid, whoever sold it."""
        await connection.execute(
            "update shop.purchase set status = 'sent', note = %s where id = %s and status = 'paid'",
            (f"sent from {self.city}", await self._recent(connection, "paid")),
        )

    async def _correct(self, connection: Connection) -> None:
        """One piece more or less, in a purchase of late."""
        await connection.execute(
            "update shop.purchase_line set quantity = %s where purchase_id = %s and line = 1",
            (self._random.randint(1, 5), await self._recent(connection, "sent")),
        )

    async def _reprice(self, connection: Connection) -> None:
        factor = Decimal(self._random.choice(("0.95", "1.05")))
        await connection.execute(
            "update shop.product set price = greatest(round(price * %s, 2), 1), changed_by = %s where id = %s",
            (factor, self.city, self._product()),
        )

    async def _restock(self, connection: Connection) -> None:
        await connection.execute(
            "update shop.product set stock = stock + 40, changed_by = %s where id = %s",
            (self.city, self._product()),
        )

    async def _move(self, connection: Connection) -> None:
        """A customer moves, and tells the nearest office."""
        await connection.execute(
            "update shop.customer set address = %s, points = points + 1, changed_by = %s where id = %s",
            (shop.address(self._random), self.city, self._customer()),
        )

    async def _register(self, connection: Connection) -> None:
        await connection.execute(
            "insert into shop.customer (id, name, address, changed_by) values (%s, %s, %s, %s)",
            (shop.key(), shop.name(self._random), shop.address(self._random), self.city),
        )

    async def _issue(self, connection: Connection) -> None:
        self._vouchers += 1
        await connection.execute(
            "insert into shop.voucher (number, amount) values (%s, %s)",
            (self._vouchers, self._random.choice((10, 20, 50))),
        )

    async def _redeem(self, connection: Connection) -> None:
        await connection.execute(
            "update shop.voucher set redeemed_by = %s, redeemed_at = now()"
            " where number = %s and redeemed_by is null",
            (self.city, self._random.randint(1, 300)),
        )

    async def _expire(self, connection: Connection) -> None:
        await connection.execute(
            "delete from shop.voucher where number = %s", (self._random.randint(1, 300),)
        )
