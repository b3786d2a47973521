"""What the verbs that look read: the views and functions of `sql/60_inspect.sql`, nothing beneath them.

Invariant: a person with psql and a reader's rights sees the same.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from syncagent.errors import RefusedError, UsageError
from syncagent.storage import tables as named
from syncagent.storage.commands import Connection

Row = dict[str, Any]


def status(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.status order by not is_self, node").fetchall()


def sites(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.site order by not is_self, node").fetchall()


def tables(connection: Connection) -> list[Row]:
    return connection.execute("select * from syncagent.replicated_table order by table_name").fetchall()


CONFLICT_COLUMNS = [
    "id",
    "noticed_at",
    "table_name",
    "key",
    "kind",
    "strategy",
    "winner",
    "loser",
    "winning_time",
    "losing_time",
    "winning_image",
    "losing_image",
    "columns",
    "constraint_name",
    "other_key",
    "yielded",
    "open",
    "resolved_at",
    "resolved_by",
    "resolved_site",
    "noticed_by",
    "failure",
]
"""Of the view, in an order for people."""


@dataclass(frozen=True)
class Wanted:
    """Which conflicts: None does not choose."""

    table: str | None = None
    key: str | None = None
    kind: str | None = None
    site: str | None = None
    since: timedelta | None = None
    open: bool | None = None


def conflicts(connection: Connection, wanted: Wanted, limit: int | None) -> tuple[list[Row], int]:
    """The newest of the conflicts that are wanted, and how many there are in all."""
    chosen = {
        "table": "table_name = %(table)s",
        "key": "key = %(key)s",
        "kind": "kind = %(kind)s",
        "site": "(%(site)s in (winner, loser) or %(site)s = any (noticed_by))",
        "since": "noticed_at >= now() - %(since)s",
        "open": "open = %(open)s",
    }
    parameters = {name: getattr(wanted, name) for name in chosen} | {"limit": limit}
    if wanted.table is not None:
        parameters["table"] = _title(connection, wanted.table)
    conditions = " and ".join(chosen[name] for name in chosen if parameters[name] is not None)
    where = f" where {conditions}" if conditions else ""
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


def resolve(connection: Connection, name: str, take: str | None, value: Row | None) -> Row:
    """Settle a conflict: take a version, or give columns values. The conflict as it is then."""
    found = conflict(connection, name)
    if value is not None:
        connection.execute("select syncagent.resolve_with(%s, %s)", (found["id"], Jsonb(value)))
    else:
        connection.execute("select syncagent.resolve(%s, %s)", (found["id"], take))
    return conflict(connection, str(found["id"]))


def undo(connection: Connection, name: str) -> Row:
    """Take a resolution back. The conflict as it is then."""
    found = conflict(connection, name)
    connection.execute("select syncagent.undo(%s)", (found["id"],))
    return conflict(connection, str(found["id"]))


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


def drop_parked(connection: Connection, table: str, key: str) -> Row:
    """Give a parked version up; the conflict that keeps it."""
    parked_row(connection, table, key)
    done = connection.execute(
        "select syncagent.drop_parked(%s::bigint::oid::regclass, %s) as id",
        (named.resolve(connection, table), key),
    ).fetchone()
    assert done is not None
    return conflict(connection, str(done["id"]))


def why(connection: Connection, table: str, key: str) -> list[Row]:
    return connection.execute(
        "select * from syncagent.why(%s::bigint::oid::regclass, %s)", (named.resolve(connection, table), key)
    ).fetchall()


def forest(connection: Connection, table: str, level: str) -> list[Row]:
    """The sealed buckets of a table by that level, oldest first; keys without a time at the end."""
    return connection.execute(
        "select * from syncagent.forest_of(%s::bigint::oid::regclass, %s)",
        (named.resolve(connection, table), level),
    ).fetchall()


def finest(connection: Connection, table: str) -> str:
    """The width of the buckets of an attached table."""
    row = connection.execute(
        "select bucket from syncagent.replicated_table where table_name = %s", (_title(connection, table),)
    ).fetchone()
    return str(row["bucket"]) if row else "hour"


def constraints(connection: Connection, table: str) -> list[Row]:
    return connection.execute(
        "select * from syncagent.constraints_of(%s::bigint::oid::regclass)",
        (named.resolve(connection, table),),
    ).fetchall()


def _title(connection: Connection, table: str) -> str:
    """A table's name as the views spell it."""
    row = connection.execute(
        "select format('%%I.%%I', n.nspname, c.relname) as name"
        " from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = %s::bigint::oid",
        (named.resolve(connection, table),),
    ).fetchone()
    assert row is not None
    return str(row["name"])
