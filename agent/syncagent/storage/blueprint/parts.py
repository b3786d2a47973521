"""What a blueprint is made of, and how it travels: MessagePack of these structs.

Invariant: all SQL in it was written by the donor's server, names quoted there; nothing is put together here
but the roles of a step, each of which the donor quoted too.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import msgspec
from psycopg.pq import TransactionStatus

from syncagent.storage.commands import Connection


class Name(NamedTuple):
    """Schema and name of a table, without quotes."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Role(NamedTuple):
    """Of whom a step speaks; PUBLIC and the role that builds have no name, for they are everywhere."""

    name: str
    quoted: str


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One statement. It is not run if `done` finds a row, or if none of its roles is there."""

    sql: str
    what: str
    """What it makes, in words."""
    root: Name | None = None
    """The attached table that it is for; None: for all."""
    done: str = ""
    roles: tuple[Role, ...] = ()
    """If there are any, the statement is `sql`, those of them that exist, and `tail`."""
    tail: str = ""
    since: int = 0
    """The major version that can do this first; `until` is the last one. 0: any."""
    until: int = 0
    feature: str = ""
    """What that version is needed for."""
    optional: bool = False
    """Left out, with a note, where it cannot be done: rows are the same without it."""
    loose: str = ""
    """The same for rows that break it: as the donor has them."""


class Column(msgspec.Struct, frozen=True, omit_defaults=True):
    """What must be equal for rows to be copied."""

    name: str
    type: str
    not_null: bool = False
    collation: str = ""
    """Where it is not that of the type."""
    generated: str = ""


class Table(msgspec.Struct, frozen=True):
    """An attached table; its partitions are the donor's own affair."""

    name: Name
    columns: tuple[Column, ...]
    key: tuple[str, ...]


class Type(msgspec.Struct, frozen=True):
    """A type of the application. `shape` is what must be equal: labels, attributes, the type below."""

    name: str
    quoted: str
    shape: tuple[str, ...]


class Function(msgspec.Struct, frozen=True):
    """To know another one of the same name."""

    name: str
    quoted: str
    digest: str


class Extension(msgspec.Struct, frozen=True):
    """`wanted` only by the text of a function: its lack is no obstacle."""

    name: str
    schema: str
    version: str
    wanted: bool = False


class Need(msgspec.Struct, frozen=True):
    """An object that is not brought along, in the form of pg_get_object_address."""

    what: str
    type: str
    names: tuple[str, ...]
    arguments: tuple[str, ...]


class Blueprint(msgspec.Struct, frozen=True):
    """Tables as the donor has them. Steps can be run again: what is there already is passed over."""

    version: int
    """The donor's, as server_version_num."""
    tables: tuple[Table, ...]
    types: tuple[Type, ...]
    functions: tuple[Function, ...]
    extensions: tuple[Extension, ...]
    needs: tuple[Need, ...]
    before: tuple[Step, ...]
    """Before rows come: types, functions, sequences, tables without constraints and indexes."""
    keys: tuple[Step, ...]
    """Primary keys, by which rows are copied and found."""
    after: tuple[Step, ...]
    """Everything else."""
    notes: tuple[str, ...]
    """What was left out at the donor, and why."""

    def only(self, names: Collection[Name]) -> Self:
        """The blueprint of some of the tables, and of all that they may share with others."""

        def chosen(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            return tuple(step for step in steps if step.root is None or step.root in names)

        return msgspec.structs.replace(
            self,
            tables=tuple(table for table in self.tables if table.name in names),
            before=chosen(self.before),
            keys=chosen(self.keys),
            after=chosen(self.after),
        )


@contextmanager
def pinned(connection: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """These settings for a while. In a transaction that fails it is the rollback that takes them back."""
    names = list(settings)
    rows = connection.execute(
        "select n.name, current_setting(n.name) as value from unnest(%s::text[]) as n (name)", (names,)
    )
    before = {row["name"]: row["value"] for row in rows}
    _set(connection, settings)
    try:
        yield
    finally:
        if connection.info.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
            _set(connection, before)


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    connection.execute(
        "select set_config(s.name, s.value, false) from unnest(%s::text[], %s::text[]) as s (name, value)",
        (list(settings), list(settings.values())),
    )
