"""What the desks do, in three versions of the application: each knows the columns of its day, and no others.

Invariant: what a desk has committed is in its books, and nothing else is; an error of the database ends it, and the run.
"""

import threading
import uuid
from dataclasses import dataclass, field

import psycopg

from ..workers import Worker

NAMES = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Barbara Liskov", "Edsger Dijkstra", "Mary Shaw")


@dataclass(frozen=True)
class Version:
    """One release. `tickets` are the columns that it writes in a new ticket, beside key and person."""

    name: str
    email: bool
    tickets: dict[str, str]
    change: tuple[str, ...]
    """What it does to a ticket, as SQL."""


CLOSE = "update ticket set state = 'closed', minutes = minutes + 7 where id = %(ticket)s"
V1 = Version(
    "v1",
    False,
    {"title": "'it smokes'", "minutes": "0"},
    (CLOSE, "update ticket set title = 'it burns' where id = %(ticket)s"),
)
V2 = Version(
    "v2",
    True,
    {
        "title": "'it smokes'",
        "minutes": "1",
        "priority": "2",
        "team": "(select id from team order by random() limit 1)",
    },
    (CLOSE, "update ticket set priority = 1 + (priority + 2) %% 5 where id = %(ticket)s"),
)
V3 = Version(
    "v3",
    True,
    {"subject": "'it smokes'", "priority": "2", "minutes": "0.25"},
    (
        CLOSE,
        "update ticket set subject = 'it burns' where id = %(ticket)s",
        "update ticket set minutes = minutes + 0.5 where id = %(ticket)s",
    ),
)


@dataclass
class Books:
    """Tickets that a desk has made, and those that it has deleted."""

    made: set[uuid.UUID] = field(default_factory=set)
    deleted: set[uuid.UUID] = field(default_factory=set)
    writes: int = 0


class Desk(Worker):
    """One desk at one site, with one version, until it is closed."""

    def __init__(self, dsn: str, version: Version, seed: str, failed: threading.Event) -> None:
        super().__init__(dsn, f"{version.name} {seed}", seed, failed)
        self.books = Books()
        self._version = version

    def work(self, connection: psycopg.Connection) -> None:
        mine = self.books.made - self.books.deleted
        dice = self.chance.random()
        if dice < 0.5 or not mine:
            self.books.made.add(self._open(connection))
        elif dice < 0.95:
            # Whoever's it is: the newest ones are changed by every desk.
            found = connection.execute("select id from ticket order by id desc limit 20").fetchall()
            change = self.chance.choice(self._version.change)
            connection.execute(change.encode(), {"ticket": self.chance.choice(found)[0] if found else None})
        else:
            ticket = self.chance.choice(sorted(mine))
            connection.execute("delete from ticket where id = %s", (ticket,))
            self.books.deleted.add(ticket)
        self.books.writes += 1

    def _open(self, connection: psycopg.Connection) -> uuid.UUID:
        name = self.chance.choice(NAMES)
        columns, values = ", ".join(self._version.tickets), ", ".join(self._version.tickets.values())
        email = f"'{name.split()[0].lower()}@example.org'" if self._version.email else "null"
        row = connection.execute(
            f"with p as (insert into person (id, name, email) values (syncagent.uuid7(), %s, {email}) returning id)"
            f" insert into ticket (id, person, {columns}) select syncagent.uuid7(), p.id, {values} from p returning id".encode(),
            (name,),
        ).fetchone()
        assert row is not None
        key: uuid.UUID = row[0]
        return key
