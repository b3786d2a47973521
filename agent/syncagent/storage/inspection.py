"""What the verbs that look read: the views and functions of `sql/60_inspect.sql`, nothing beneath them.

Invariant: a person with psql and a reader's rights sees the same.
"""

from typing import Any
from uuid import UUID

from syncagent.errors import RefusedError, UsageError
from syncagent.storage.commands import Connection
from syncagent.storage.tables import resolve

Row = dict[str, Any]


def status(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.status order by not is_self, node").fetchall()


def sites(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.site order by not is_self, node").fetchall()


def tables(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.replicated_table order by table_name").fetchall()


def conflicts(
    connection: Connection, table: str | None, kind: str | None, limit: int | None
) -> tuple[list[Row], int]:
    """The newest conflicts, and how many there are in all."""
    where = " where table_name = coalesce(%(table)s, table_name) and kind = coalesce(%(kind)s, kind)"
    parameters = {"table": None if table is None else _title(connection, table), "kind": kind, "limit": limit}
    count = connection.execute(
        f"select count(*) as count from syncagent.conflict{where}".encode(), parameters
    ).fetchone()
    assert count is not None
    rows = connection.execute(
        f"select * from syncagent.conflict{where} order by noticed_at desc, id limit %(limit)s".encode(),
        parameters,
    ).fetchall()
    return rows, count["count"]


def conflict(connection: Connection, name: str) -> Row:
    """The conflict of an id, or of the beginning of one."""
    if len(name) < 4 or set(name.lower()) - set("0123456789abcdef-"):
        raise UsageError(
            f"{name!r} is not the id of a conflict", hint="`syncagent conflicts list` shows them"
        )
    found = connection.execute(
        "select * from syncagent.conflict where id between %s and %s order by id limit 2",
        (UUID(_filled(name, "0")), UUID(_filled(name, "f"))),
    ).fetchall()
    if not found:
        raise RefusedError(f"there is no conflict {name}", hint="`syncagent conflicts list` shows them")
    if len(found) > 1:
        raise UsageError(f"more than one conflict begins with {name}", hint="write more of its id")
    return found[0]


def _filled(beginning: str, digit: str) -> str:
    return beginning.replace("-", "")[:32].ljust(32, digit)


def parked(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.parked order by since, table_name, key").fetchall()


def parked_row(connection: Connection, table: str, key: str) -> Row:
    row = connection.execute(
        "select p.* from syncagent.parked p where p.table_name = %s and p.key = %s",
        (_title(connection, table), key),
    ).fetchone()
    if row is None:
        raise RefusedError(
            f"row {key} of {table} is not parked", hint="`syncagent parked list` shows those that are"
        )
    return row


def why(connection: Connection, table: str, key: str) -> list[Row]:
    return connection.execute(
        "select * from syncagent.why(%s::bigint::oid::regclass, %s)", (resolve(connection, table), key)
    ).fetchall()


def forest(connection: Connection, table: str, level: str) -> list[Row]:
    """The sealed buckets of a table by that level, oldest first; keys without a time at the end."""
    return connection.execute(
        "select * from syncagent.forest_of(%s::bigint::oid::regclass, %s)",
        (resolve(connection, table), level),
    ).fetchall()


def finest(connection: Connection, table: str) -> str:
    """The width of the buckets of an attached table."""
    row = connection.execute(
        "select bucket from syncagent.replicated_table where table_name = %s", (_title(connection, table),)
    ).fetchone()
    return str(row["bucket"]) if row else "hour"


def _title(connection: Connection, table: str) -> str:
    """A table's name as the views spell it."""
    row = connection.execute(
        "select format('%%I.%%I', n.nspname, c.relname) as name"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s::bigint::oid",
        (resolve(connection, table),),
    ).fetchone()
    assert row is not None
    return str(row["name"])
