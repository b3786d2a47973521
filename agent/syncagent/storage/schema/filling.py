"""Rows that are there get their value in a new column: paced, in portions, and not as writes.

Invariant: what is put there is a function of the row, the same at every site; stamps stay, nothing is captured, no lock is waited
for. Interrupted, it goes on with what is left.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from psycopg import sql

from syncagent.core.schema import Filling
from syncagent.storage.commands import Connection

_PAGES = 128
"""Pages of a portion."""
_REST = 4.0
"""Times as long as a portion took, until the next one: a fifth of a processor at each site (`bench schema`)."""
_LONGEST_REST = 0.5
_TRIES = 200
"""How often rows that others hold are tried again before somebody is told."""

OnPortion = Callable[[str], None]


def fill(
    connection: Connection,
    filling: Filling,
    tell: OnPortion,
    asked: Callable[[], AbstractContextManager[None]],
) -> int:
    """With the role and the search path of the change, which `asked` gives, until no row is left; returns how many rows it has filled. They may be held for a while: then they are tried again."""
    connection.execute("set session_replication_role = replica")
    try:
        filled = 0
        for _ in range(_TRIES):
            for schema, name in _leaves(connection, filling):
                with asked():
                    filled += _pass(connection, filling, schema, name, tell)
            with asked():
                left = _is_left(connection, filling)
            if not left:
                break
            time.sleep(_LONGEST_REST)
        return filled
    finally:
        if not connection.closed:
            connection.execute("reset session_replication_role")


def _leaves(connection: Connection, filling: Filling) -> list[tuple[str, str]]:
    rows = connection.execute(
        "select s.nspname::text as schema, c.relname::text as name from syncagent._nodes(%s::regclass) as n (node)"
        " join pg_class c on c.oid = n.node and c.relkind = 'r' join pg_namespace s on s.oid = c.relnamespace order by c.oid",
        (_name(filling).as_string(),),
    ).fetchall()
    return [(row["schema"], row["name"]) for row in rows]


def _name(filling: Filling) -> sql.Identifier:
    return sql.Identifier(filling.table.schema, filling.table.name)


def _pass(connection: Connection, filling: Filling, schema: str, name: str, tell: OnPortion) -> int:
    """From the first page to the one that is the last when it comes there: what is written goes to the end."""
    leaf, value = sql.Identifier(schema, name), sql.SQL(filling.value)
    portion = sql.SQL(
        "with picked as (select t.ctid as tid from only {leaf} t where t.ctid >= %s::tid and t.ctid < %s::tid"
        " and t.{column} is null and ({value}) is not null for no key update skip locked)"
        " update only {leaf} t set {column} = {value} from picked p where t.ctid = p.tid"
    ).format(leaf=leaf, column=sql.Identifier(filling.column), value=value)
    at, filled, began = 0, 0, time.monotonic()
    while at < (pages := _pages(connection, leaf)):
        started = time.monotonic()
        filled += connection.execute(portion, (f"({at},0)", f"({at + _PAGES},0)")).rowcount
        at += _PAGES
        took = time.monotonic() - started
        if at < pages:
            left = (pages - at) * (time.monotonic() - began) / at
            tell(
                f"{schema}.{name}: {min(at, pages) * 100 // pages} percent of its pages, {filled} rows, about {left:.0f} s left"
            )
            time.sleep(min(took * _REST, _LONGEST_REST))
    return filled


def _pages(connection: Connection, leaf: sql.Identifier) -> int:
    row = connection.execute(
        "select pg_relation_size(%s::regclass) / current_setting('block_size')::bigint as pages",
        (leaf.as_string(),),
    ).fetchone()
    assert row is not None
    return int(row["pages"])


def _is_left(connection: Connection, filling: Filling) -> bool:
    query = sql.SQL(
        "select from {table} t where t.{column} is null and ({value}) is not null limit 1"
    ).format(
        table=_name(filling),
        column=sql.Identifier(filling.column),
        value=sql.SQL(filling.value),
    )
    return connection.execute(query).rowcount > 0
