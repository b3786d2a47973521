"""Fresh databases, made in milliseconds and dropped when the test is over."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg
from psycopg import sql

from syncagent.embedded import Server

_numbers = count(1)


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
        """Run one statement (or, without parameters, several) in its own connection; its rows."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), parameters)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []


@contextmanager
def fresh_database(server: Server, template: str = "template1") -> Iterator[Database]:
    """A copy of `template`, which nobody may be connected to."""
    name = f"t{next(_numbers)}"
    server.execute(
        sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
    )
    try:
        yield Database(server, name)
    finally:
        server.start()  # the test may have stopped it
        server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
