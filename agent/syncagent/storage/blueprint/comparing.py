"""A blueprint against what is there: which tables are missing, which differ, and what this server cannot have."""

from collections.abc import Iterator

import psycopg

from syncagent.storage.blueprint.parts import Blueprint, Column, Name, Table, pinned
from syncagent.storage.blueprint.taking import PLAIN, facts_of, shapes_of
from syncagent.storage.commands import Connection, border

_THERE = """
    select u.number::integer, c.oid::bigint, c.relkind::text as kind
    from unnest(%s::text[], %s::text[]) with ordinality as u (schema, name, number)
    join pg_namespace n on n.nspname = u.schema join pg_class c on c.relnamespace = n.oid and c.relname = u.name
"""
_DIGEST = """
    select md5(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)) as digest, to_jsonb(p) ->> 'prosqlbody' is not null as parsed
    from pg_proc p where p.oid = to_regprocedure(%s)
"""
_AVAILABLE = """
    select a.name, x.extname is not null as installed, n.nspname as schema
    from pg_available_extensions a left join pg_extension x on x.extname = a.name left join pg_namespace n on n.oid = x.extnamespace
    union select x.extname, true, n.nspname from pg_extension x join pg_namespace n on n.oid = x.extnamespace
"""


def missing(connection: Connection, blueprint: Blueprint) -> list[Name]:
    """The tables of the blueprint that are not here."""
    with border():
        there = _there(connection, blueprint)
    return [table.name for table in blueprint.tables if table.name not in there]


def differences(connection: Connection, blueprint: Blueprint) -> list[str]:
    """What of the tables and types that are here is not as at the donor, so that rows could not be copied."""
    with border(), connection.transaction(), pinned(connection, PLAIN):
        there = _there(connection, blueprint)
        return [
            *_types(connection, blueprint),
            *(
                sentence
                for table in blueprint.tables
                if table.name in there
                for sentence in _table(connection, table, *there[table.name])
            ),
        ]


def obstacles(connection: Connection, blueprint: Blueprint) -> list[str]:
    """Why the tables cannot be made here: versions, extensions, and what must be made first."""
    major = connection.info.server_version // 10000
    with border(), connection.transaction(), pinned(connection, PLAIN):
        return [
            *_extensions(connection, blueprint),
            *(
                f"{need.what} is needed, and is not brought along: make it here first"
                for need in blueprint.needs
                if not _found(connection, need.type, need.names, need.arguments)
            ),
            *dict.fromkeys(
                f"{step.what} needs {step.feature}: PostgreSQL {step.since} can, this server is {major}"
                for step in (*blueprint.before, *blueprint.keys, *blueprint.after)
                if step.since > major and not step.optional
            ),
        ]


def other_functions(connection: Connection, blueprint: Blueprint) -> list[str]:
    """Functions that are here already, with another text: they are kept."""
    notes = []
    same_major = connection.info.server_version // 10000 == blueprint.version // 10000
    with border(), connection.transaction(), pinned(connection, PLAIN):
        for function in blueprint.functions:
            row = connection.execute(_DIGEST, (function.quoted,)).fetchone()
            # of a body that was parsed each version may write the text in its own way
            if row and row["digest"] != function.digest and (same_major or not row["parsed"]):
                notes.append(f"function {function.name} is here already, with another text, and is kept")
    return notes


def _there(connection: Connection, blueprint: Blueprint) -> dict[Name, tuple[int, str]]:
    names = [table.name for table in blueprint.tables]
    rows = connection.execute(_THERE, ([name.schema for name in names], [name.name for name in names]))
    return {names[row["number"] - 1]: (row["oid"], row["kind"]) for row in rows}


def _table(connection: Connection, table: Table, oid: int, kind: str) -> Iterator[str]:
    if kind not in ("r", "p"):
        yield f"{table.name} is here already, and is not a table"
        return
    columns, key = facts_of(connection, oid)
    here = {column.name: column for column in columns}
    there = {column.name: column for column in table.columns}
    for name, column in there.items():
        if name not in here:
            yield f"{table.name} has no column {name} here"
        else:
            yield from _column(f"column {name} of {table.name}", here[name], column)
    for name in here:
        if name not in there:
            yield f"{table.name} has a column {name} here, and none at the donor"
    if key != table.key:
        yield f"the primary key of {table.name} is ({', '.join(key)}) here, and ({', '.join(table.key)}) at the donor"


def _column(what: str, here: Column, there: Column) -> Iterator[str]:
    if here.type != there.type:
        yield f"{what} is {here.type} here, and {there.type} at the donor"
    if here.not_null != there.not_null:
        must, may = "must be given", "may be null"
        yield f"{what} {must if here.not_null else may} here, and {must if there.not_null else may} at the donor"
    if here.collation != there.collation:
        default = "that of its type"
        yield f"the collation of {what} is {here.collation or default} here, and {there.collation or default} at the donor"
    if here.generated != there.generated:
        yield f"{what} is {here.generated or 'not'} generated here, and {there.generated or 'not'} generated at the donor"


def _types(connection: Connection, blueprint: Blueprint) -> Iterator[str]:
    for type_ in blueprint.types:
        row = connection.execute("select to_regtype(%s)::oid::bigint as oid", (type_.quoted,)).fetchone()
        if row is None or row["oid"] is None:
            continue
        (here,) = shapes_of(connection, [row["oid"]]).values()
        if here.shape != type_.shape:
            yield f"type {type_.name} is ({', '.join(here.shape)}) here, and ({', '.join(type_.shape)}) at the donor"


def _extensions(connection: Connection, blueprint: Blueprint) -> Iterator[str]:
    rows = connection.execute(_AVAILABLE).fetchall()
    known = {row["name"]: row for row in rows}
    for extension in blueprint.extensions:
        found = known.get(extension.name)
        if found is None and not extension.wanted:
            yield f"extension {extension.name} is needed, and not available on this server: install its package"
        elif found and found["installed"] and found["schema"] != extension.schema:
            yield (
                f"extension {extension.name} is in schema {found['schema']} here, and in {extension.schema} at the donor:"
                f" move it with ALTER EXTENSION ... SET SCHEMA, or make it anew"
            )


def _found(connection: Connection, kind: str, names: tuple[str, ...], arguments: tuple[str, ...]) -> bool:
    try:
        with connection.transaction():
            connection.execute(
                "select pg_get_object_address(%s, %s::text[], %s::text[])",
                (kind, list(names), list(arguments)),
            )
    except psycopg.Error as error:
        if (error.sqlstate or "").startswith(("42", "3F")):
            return False
        raise
    return True
