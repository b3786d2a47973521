"""Are two databases equal? Plain SQL over every column of the five tables, the same on any PostgreSQL.

Per table: the number of rows, and the sum over all rows of a 64-bit hash of the row's text, so the order of
the rows does not matter and a row counts as often as it is there. The text is that of the columns in the
order of the model; settings that shape it (time zone, date style, digits of floats) are pinned. One snapshot
serves all tables.
Invariant: equal contents give equal checksums, on every server version and in every locale.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Engine, Table, text

from .models import Base

PINNED = {"timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "postgres", "extra_float_digits": "1"}
PINNED |= {"bytea_output": "hex"}


@dataclass(frozen=True)
class Checksum:
    rows: int
    sum: int

    def __str__(self) -> str:
        return f"{self.sum % 2**64:016x}"


def checksums(engine: Engine) -> dict[str, Checksum]:
    """Checksum of every table, by its full name."""
    with _snapshot(engine) as connection:
        return {name: _checksum(connection, table) for name, table in _tables().items()}


def row_hashes(engine: Engine, name: str) -> dict[UUID, str]:
    """Key and hash of every row of one table: where two sites differ."""
    with _snapshot(engine) as connection:
        query = text(f"select id, {_hash(_tables()[name])} as hash from {name} as t")
        return {row.id: row.hash for row in connection.execute(query)}


def row_text(engine: Engine, name: str, key: UUID) -> str | None:
    """One row as the checksum sees it."""
    with _snapshot(engine) as connection:
        query = text(f"select {_row(_tables()[name])} from {name} as t where id = :key")
        found: str | None = connection.scalar(query, {"key": key})
        return found


def _snapshot(engine: Engine) -> Connection:
    connection = engine.connect().execution_options(isolation_level="REPEATABLE READ")
    for setting, value in PINNED.items():
        connection.execute(
            text("select set_config(:setting, :value, true)"), {"setting": setting, "value": value}
        )
    return connection


def _checksum(connection: Connection, table: Table) -> Checksum:
    number = f"('x' || left({_hash(table)}, 16))::bit(64)::bigint"
    query = text(f"select count(*), coalesce(sum({number}::numeric), 0) from {table.fullname} as t")
    rows, total = connection.execute(query).one()
    return Checksum(rows, int(total))


def _hash(table: Table) -> str:
    return f"md5({_row(table)})"


def _row(table: Table) -> str:
    return f"row({', '.join(f't.{column.name}' for column in table.columns)})::text"


def _tables() -> dict[str, Table]:
    return {table.fullname: table for table in Base.metadata.sorted_tables}
