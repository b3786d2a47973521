"""Applications at work: threads that insert, change and delete, and remember what was acknowledged.

Each writer has rows of its own, which nobody else touches, so that it knows how they must look at the end,
at every site, whatever was killed meanwhile; and it changes rows that all share, where conflicts are made.
A writer whose commit got no answer looks at its site which way it went.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg import Connection, OperationalError
from psycopg.errors import DeadlockDetected, SerializationFailure

from tests.support.cluster import Site
from tests.support.waiting import until

SHARED = 40
"""Rows of each table that everybody changes."""
Row = tuple[Any, ...]
Table = dict[Any, Row]
Change = tuple[str, Any, Row | None]

_WRITE: dict[str, tuple[LiteralString, LiteralString, LiteralString]] = {
    "customer": (
        "insert into customer (id, name, credit, note) values (%s, %s, %s, %s)",
        "update customer set name = %s, credit = %s, note = %s where id = %s",
        "delete from customer where id = %s",
    ),
    "item": (
        "insert into item (id, name, stock) values (%s, %s, %s)",
        "update item set name = %s, stock = %s where id = %s",
        "delete from item where id = %s",
    ),
    "line": (
        "insert into line (customer, position, quantity, text) values (%s, %s, %s, %s)",
        "update line set quantity = %s, text = %s where customer = %s and position = %s",
        "delete from line where customer = %s and position = %s",
    ),
}
_READ: dict[str, LiteralString] = {
    "customer": "select id, name, credit::int, note from customer where id = any (%s)",
    "item": "select id, name, stock from item where id = any (%s)",
    "line": "select customer, position, quantity, text from line where customer = any (%s)",
}


def share(site: Site) -> None:
    """Rows that every writer may change."""
    site.execute(
        "insert into customer select syncagent.uuid7(), 'shared', 100, null from generate_series(1, %s)",
        (SHARED,),
    )
    site.execute("insert into item select i, 'shared', 100 from generate_series(1, %s) i", (SHARED,))
    site.execute(
        "insert into line select '00000000-0000-4000-8000-000000000000', i, 1, 'shared' from generate_series(1, %s) i",
        (SHARED,),
    )


class Writer(threading.Thread):
    """One application thread at one site."""

    def __init__(
        self,
        site: Site,
        number: int,
        seed: int,
        *,
        isolation: str = "read committed",
        shared: bool = True,
        rest: float = 0.0,
    ) -> None:
        """`rest`: seconds between two transactions, where the load is to be there and not to fill the machine."""
        super().__init__(name=f"writer {number} at {site.name}")
        self.site, self.number, self.isolation, self.shared, self.rest = site, number, isolation, shared, rest
        self.random = random.Random(f"{seed} {site.name} {number}")
        self.rows: dict[str, Table] = {table: {} for table in _WRITE}
        """What this writer's own rows must be."""
        self.gone: set[tuple[str, Any]] = set()
        """Own rows that were deleted, and stay so."""
        self.committed = self.lost = self.in_doubt = 0
        """Transactions acknowledged; ended by a server that went away; of these, at their commit."""
        self.story: list[str] = []
        """How each transaction ended, and what it changed."""
        self.refused: list[str] = []
        """Serialization failures and deadlocks: errors that an application gets from other people."""
        self.failure: BaseException | None = None
        self._enough = threading.Event()
        self._serial = 0
        self._shared_customers: list[Any] = []

    def halt(self) -> None:
        self._enough.set()

    def run(self) -> None:
        try:
            while not self._enough.is_set():
                self._session()
        except BaseException as problem:  # noqa: BLE001 - reported by the thread that joins us
            self.failure = problem

    # ---- transactions

    def _session(self) -> None:
        """Work until the server goes away, or it is enough."""
        try:
            with self.site.connect(self.isolation) as connection:
                if not self._shared_customers:
                    rows = connection.execute("select id from customer where name like 'shared%'").fetchall()
                    self._shared_customers = sorted(row[0] for row in rows)
                while not self._enough.wait(self.rest):
                    self.transaction(connection)
        except OperationalError:
            self._enough.wait(0.05)

    def transaction(self, connection: "Connection[Any]") -> None:
        changes = [self._choose(connection) for _ in range(self.random.choice((1, 1, 1, 2, 5)))]
        changes = list({(table, key): (table, key, row) for table, key, row in changes}.values())
        others = (
            sorted(self.random.sample(range(SHARED), self.random.choice((0, 0, 1, 2)))) if self.shared else []
        )
        committing = False
        try:
            for table, key, row in changes:
                self._write(connection, table, key, row)
            for place in others:
                self._change_shared(connection, place)
            committing = True
            connection.commit()
        except (SerializationFailure, DeadlockDetected) as refusal:
            self._tell(refusal, changes)
            connection.rollback()
            self.refused.append(str(refusal))
        except OperationalError as problem:
            self.lost += 1
            self._tell(problem, changes)
            if committing:
                self.in_doubt += 1
                self._look(changes)
            raise
        else:
            self._tell("done", changes)
            self.committed += 1
            self._remember(changes)

    def _choose(self, connection: "Connection[Any]") -> Change:
        table = self.random.choice(list(_WRITE))
        mine, what = self.rows[table], self.random.random()
        if not mine or what < 0.5:
            return table, self._new_key(table, connection), self._new_row(table)
        key = self.random.choice(list(mine))
        return (table, key, None) if what < 0.6 else (table, key, self._new_row(table))

    def _new_key(self, table: str, connection: "Connection[Any]") -> Any:
        self._serial += 1
        if table == "item":
            return (self.site.node * 1000 + self.number) * 1_000_000 + self._serial
        found = connection.execute("select syncagent.uuid7()").fetchall()[0][0]
        return found if table == "customer" else (found, self._serial)

    def _new_row(self, table: str) -> Row:
        text, number = f"{self.name} {self._serial}", self.random.randrange(10_000)
        return {"customer": (text, number, None), "item": (text, number), "line": (number, text)}[table]

    def _write(self, connection: "Connection[Any]", table: str, key: Any, row: Row | None) -> None:
        insert, update, delete = _WRITE[table]
        keys = key if isinstance(key, tuple) else (key,)
        if row is None:
            done = connection.execute(delete, keys)
        elif key in self.rows[table]:
            done = connection.execute(update, (*row, *keys))
        else:
            done = connection.execute(insert, (*keys, *row))
        assert done.rowcount == 1, f"{table} {key} is not as it was left; {self.told(key)}"

    def _change_shared(self, connection: "Connection[Any]", place: int) -> None:
        what = self.random.random()
        text = f"shared by {self.name} {self._serial}"
        if what < 0.4:
            connection.execute(
                "update customer set credit = credit + 1, note = %s where id = %s",
                (text, self._shared_customers[place % len(self._shared_customers)]),
            )
        elif what < 0.6:
            connection.execute("update item set stock = stock + 1, name = %s where id = %s", (text, place))
        elif what < 0.7:
            connection.execute("delete from item where id = %s", (place,))
        elif what < 0.85:
            connection.execute(
                "insert into item values (%s, %s, 1) on conflict (id) do update set name = excluded.name",
                (place, text),
            )
        else:
            connection.execute(
                "update line set text = %s where position = %s and text like 'shared%%'", (text, place)
            )

    # ---- what must be

    def _remember(self, changes: Sequence[Change]) -> None:
        for table, key, row in changes:
            if row is None:
                del self.rows[table][key]
                self.gone.add((table, key))
            else:
                self.rows[table][key] = row

    def _look(self, changes: Sequence[Change]) -> None:
        """The commit got no answer: either all of it is there, or nothing. The server may be killed while we look."""
        seen = until(lambda: self._found(changes), f"{self.site} answers")
        self._tell(f"found: {seen}", changes)
        assert all(seen) or not any(seen), f"{self.name}: half of a transaction: {changes} {seen}"
        if all(seen):
            self._remember(changes)

    def _found(self, changes: Sequence[Change]) -> list[bool]:
        """Of each change whether it is there; nothing while the server is away."""
        try:
            return [self.read(self.site, table, [key]).get(key) == row for table, key, row in changes]
        except OperationalError:
            return []

    @staticmethod
    def read(site: Site, table: str, keys: Sequence[Any]) -> Table:
        """Rows of a table at a site, by key."""
        wide = table == "line"
        found = site.execute(_READ[table], ([key[0] if wide else key for key in keys],))
        return {(row[:2] if wide else row[0]): row[2 if wide else 1 :] for row in found}

    def missing(self, site: Site) -> list[str]:
        """How this writer's rows at a site differ from what was acknowledged."""
        wrong = []
        for table, rows in self.rows.items():
            gone = [key for name, key in self.gone if name == table]
            found = self.read(site, table, [*rows, *gone])
            wrong += [
                f"{table} {key}: {found.get(key)} is not {row}; {self.told(key)}"
                for key, row in rows.items()
                if found.get(key) != row
            ]
            wrong += [f"{table} {key} lives again; {self.told(key)}" for key in gone if key in found]
        return wrong

    def _tell(self, how: object, changes: Sequence[Change]) -> None:
        self.story.append(f"{datetime.now(UTC):%T.%f} {how}: {changes}")

    def told(self, key: Any) -> str:
        """What this writer has done with a row."""
        lines = [line for line in self.story if str(key) in line or repr(key) in line]
        return "\n  ".join([f"{self.name} says:", *lines])


@contextmanager
def load(
    sites: Sequence[Site],
    seed: int,
    *,
    writers: int = 2,
    first: int = 0,
    kind: type[Writer] = Writer,
    **options: Any,
) -> Iterator[list[Writer]]:
    """Writers at every site for as long as the block runs, numbered from `first` on; raises what went wrong in one."""
    numbers = range(first, first + writers)
    threads = [kind(site, number, seed, **options) for site in sites for number in numbers]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.halt()
        for thread in threads:
            thread.join()
    for thread in threads:
        if thread.failure:
            raise thread.failure


def committed(threads: Sequence[Writer], more: int, seconds: float = 60.0) -> None:
    """Wait until so many more transactions were acknowledged, over all writers."""
    goal = sum(thread.committed for thread in threads) + more

    def enough() -> bool:
        for thread in threads:
            if thread.failure:
                raise thread.failure
        return sum(thread.committed for thread in threads) >= goal

    until(enough, f"{more} more transactions", seconds)


def verify(threads: Sequence[Writer], sites: Sequence[Site]) -> None:
    """Every acknowledged change is at every site, once, and nobody was refused one."""
    refused = [(thread.name, thread.refused) for thread in threads if thread.refused]
    assert not refused, refused
    wrong = [f"at {site}: {line}" for site in sites for thread in threads for line in thread.missing(site)]
    assert not wrong, f"{len(wrong)} rows differ from what was acknowledged:\n" + "\n".join(wrong[:20])
