"""Are tables of several databases equal? Plain SQL over every column, computed without syncagent.

Per table: the number of rows, and the sum over all rows of a 64-bit hash of the row's text, so the order of the
rows does not matter and a row counts as often as it is there. Columns are taken by their names; settings that shape
text are pinned; one snapshot serves all tables of a database.
Invariant: equal contents give equal checksums; a table or column that one site lacks is a difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

PINNED = {"timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "postgres", "extra_float_digits": "1"}
PINNED |= {"bytea_output": "hex"}
SHOWN = 3
"""Differing rows per table and site."""


@dataclass(frozen=True)
class Checksum:
    rows: int
    sum: int
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.sum % 2**64:016x}"


def checksums(dsn: str, tables: Sequence[str]) -> dict[str, Checksum]:
    """Checksum of every table; names as in SQL, with their schema."""
    with psycopg.connect(dsn) as connection:
        _snapshot(connection)
        return {table: _checksum(connection, table) for table in tables}


def unequal(sums: Sequence[Mapping[str, Checksum]]) -> list[str]:
    """Tables that are not the same everywhere."""
    names = sorted(set().union(*sums))
    return [name for name in names if len({at_site.get(name) for at_site in sums}) > 1]


def differences(dsns: Mapping[str, str], table: str) -> list[str]:
    """For a person: some rows that one site has and another lacks."""
    rows = {}
    for site, dsn in dsns.items():
        with psycopg.connect(dsn) as connection:
            _snapshot(connection)
            query = sql.SQL("select {} from {} as t").format(
                _row(_columns(connection, table)), _relation(table)
            )
            rows[site] = {text for (text,) in connection.execute(query)}
    common = set.intersection(*rows.values())
    return [f"  {site}: {text}" for site, has in rows.items() for text in sorted(has - common)[:SHOWN]]


def _snapshot(connection: psycopg.Connection) -> None:
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    for setting, value in PINNED.items():
        connection.execute("select set_config(%s, %s, true)", (setting, value))


def _checksum(connection: psycopg.Connection, table: str) -> Checksum:
    columns = _columns(connection, table)
    query = sql.SQL(
        "select count(*), coalesce(sum(('x' || left(md5({}), 16))::bit(64)::bigint::numeric), 0) from {} as t"
    ).format(_row(columns), _relation(table))
    rows, total = connection.execute(query).fetchall()[0]
    return Checksum(rows, int(total), columns)


def _columns(connection: psycopg.Connection, table: str) -> tuple[str, ...]:
    return tuple(
        name
        for (name,) in connection.execute(
            "select attname::text from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
            " order by 1",
            (table,),
        )
    )


def _row(columns: Sequence[str]) -> sql.Composed:
    names = sql.SQL(", ").join(sql.Identifier("t", column) for column in columns)
    return sql.SQL("row({})::text").format(names)


def _relation(table: str) -> sql.SQL:
    """A name that came from a catalogue, quoted where it must be."""
    return sql.SQL(table)
