"""Whether a table here is what the donor's is, so that its rows can be copied into it."""

import asyncpg

from syncagent.core.copying import Column, CopiedTable, Node
from syncagent.errors import RefusedError


async def check_table(session: asyncpg.Connection, table: CopiedTable) -> bool:
    """Refuse a table that is not what the donor's is; whether it has to be compared: it is attached, or holds rows."""
    name = await session.fetchval(
        "select to_regclass(format('%I.%I', $1::text, $2::text))::text", table.table.schema, table.table.name
    )
    if name is None:
        raise RefusedError(
            f"there is no table {table.table} here", hint="make it first, as it is at the donor"
        )
    here = {
        Column(row["name"], row["type"])
        for row in await session.fetch(
            "select name::text as name, type from syncagent._copied_columns($1::text::regclass)", name
        )
    }
    if here != set(table.columns):
        raise RefusedError(
            f"table {table.table} has other columns here than at the donor",
            detail=f"only here: {_listed(here - set(table.columns))}; only there: {_listed(set(table.columns) - here)}",
            hint="make it as it is at the donor",
        )
    nodes = {
        Node(row["schema"], row["name"])
        for row in await session.fetch(
            "select n.nspname as schema, c.relname as name from syncagent._nodes($1::text::regclass) as x (node)"
            " join pg_class c on c.oid = x.node and c.relkind = 'r' join pg_namespace n on n.oid = c.relnamespace",
            name,
        )
    }
    if missing := {part.node for part in table.ranges if part.node} - nodes:
        raise RefusedError(
            f"table {table.table} has other partitions here than at the donor",
            detail=f"missing: {', '.join(sorted(map(str, missing)))}",
            hint="make them as they are at the donor",
        )
    return bool(
        await session.fetchval(
            f"select exists (select from syncagent.replicated where relation = $1::text::regclass) or exists (select from {name})",
            name,
        )
    )


def _listed(columns: set[Column]) -> str:
    return ", ".join(sorted(f"{column.name} {column.type}" for column in columns)) or "none"
