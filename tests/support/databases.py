"""Fresh databases, made in milliseconds and dropped when the test is over.

A login costs a hundred times what a look does, and tests look all the time: each thread keeps one session a
database, which forgets everything between two statements.
"""

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg
from psycopg import pq, sql

from syncagent.embedded import Server

_numbers = count(1)
_kept: dict[tuple[str, int], psycopg.Connection] = {}
"""By dsn and thread."""


def copying(server: Server, name: str, template: str) -> sql.Composed:
    """Make a database from another one; copied as files, which is half the work, where the server knows how."""
    return sql.SQL("create database {} template {} {}").format(
        sql.Identifier(name),
        sql.Identifier(template),
        sql.SQL("strategy file_copy" if server.binaries.major >= 15 else ""),
    )


@dataclass(frozen=True)
class Database:
    """One database of a running server."""

    server: Server
    name: str

    @property
    def dsn(self) -> str:
        """Of the superuser."""
        return self.server.dsn(self.name)

    def dsn_of(self, role: str) -> str:
        """Of a role made by `server.create_role`."""
        return self.server.dsn(self.name, role)

    def connect(self, *, autocommit: bool = True, role: str | None = None) -> psycopg.Connection:
        """A connection; use it in a `with`."""
        return psycopg.connect(self.dsn_of(role) if role else self.dsn, autocommit=autocommit)

    def execute(self, statement: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        """Run one statement (or, without parameters, several) in a session of its own; its rows."""
        with self._session() as session:
            cursor = session.execute(statement.encode(), parameters)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def agent(self) -> Iterator[psycopg.Connection]:
        """What the database sees of a running agent; let go at the end, for a session that is closed ends a while later."""
        with self.connect() as session:
            session.execute("select pg_advisory_lock(1937337955, 2)")
            yield session
            session.execute("select pg_advisory_unlock_all()")

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection]:
        """This thread's, or a new one if the server has ended it; it is kept if all went well."""
        name = self.dsn, threading.get_ident()
        session = _kept.pop(name, None)
        if session is not None and not _alive(session):
            session.close()
            session = None
        session = session or self.connect()
        session.prepare_threshold = None  # "discard all" forgets what was prepared, too
        try:
            yield session
            if session.info.transaction_status == pq.TransactionStatus.IDLE:
                session.execute("discard all")
                _kept[name] = session
        finally:
            if name not in _kept:
                session.close()

    def leave(self) -> None:
        """No session stays here: it can be copied, or dropped."""
        for name in [name for name in list(_kept) if name[0] == self.dsn]:
            _kept.pop(name).close()


def _alive(session: psycopg.Connection) -> bool:
    """Whether the server has said nothing unasked, such as that it has ended the session."""
    return not session.closed and not select.select([session.fileno()], [], [], 0)[0]


@contextmanager
def fresh_database(server: Server, template: str = "template1") -> Iterator[Database]:
    """A copy of `template`, which nobody may be connected to."""
    name = f"t{next(_numbers)}"
    Database(server, template).leave()
    server.execute(copying(server, name, template))
    database = Database(server, name)
    try:
        yield database
    finally:
        database.leave()
        server.start()  # the test may have stopped it
        server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
