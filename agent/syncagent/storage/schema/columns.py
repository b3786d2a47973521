"""ALTER TABLE, part by part: how each becomes steps that every site can do while all of them write."""

from collections.abc import Callable
from typing import Any

import postgast
from psycopg import sql

from syncagent.core.schema import Fill, Step
from syncagent.storage.schema import pairs, reading, types
from syncagent.storage.schema.looking import BRIEF, ROWS, SHARED, Against, Known, Look, checked, found_twice

_SMALL = 16 * 1024 * 1024
"""Bytes up to which a table may be written anew under its lock."""

Part = Callable[[Look, Known, Any, str], list[Step]]
"""A part of ALTER TABLE, with its text as a statement of its own; tries it in the database."""


def parts(look: Look, node: Any) -> list[Step]:
    """The steps of one ALTER TABLE."""
    table = look.known(node.relation)
    if len(node.cmds) > 1 and look.notes.keys() & {"up", "down", "new"}:
        raise Against(
            "the line before it speaks of one column, and the statement of several", "a statement for each"
        )
    steps = []
    for command in node.cmds:
        single = type(node)()
        single.CopyFrom(node)
        del single.cmds[:]
        single.cmds.add().CopyFrom(command)
        text = reading.written("alter_table_stmt", single)
        kind = reading.alteration(command.alter_table_cmd)
        if table.new and kind in _AS_IT_IS:
            look.run(text)
            steps.append(
                Step(phase="expand", what=f"alter {table.sql}, which is new", locks=BRIEF, statements=(text,))
            )
        elif kind in _PARTS:
            steps += _PARTS[kind](look, table, command.alter_table_cmd, text)
        else:
            raise Against(
                f"ALTER TABLE ... {kind} is not carried to all sites",
                "do it at each site by hand, if rows look the same before and after",
            )
    return steps


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string()


def _add_column(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    column = getattr(command, "def").column_def
    name = column.colname
    if "up" in look.notes:
        return pairs.add_column(look, table, text)
    for constraint in column.constraints:
        kind = reading.constraint_kind(constraint.constraint)
        if kind == "GENERATED" and look.bytes(table) > _SMALL:
            raise Against(
                "a generated column writes the whole table anew under its lock",
                "a plain column, and a trigger that computes it",
            )
        if kind == "IDENTITY":
            raise Against("every site would number the rows that are there differently", "a uuid column")
        if kind in ("UNIQUE", "PRIMARY", "FOREIGN", "CHECK"):
            raise Against(
                f"a column that comes with {kind} would be checked at each site before all have it",
                "add the column, then the constraint in a statement of its own: alter table ... add constraint",
            )
    if any(part.string.sval.endswith("serial") for part in column.type_name.names):
        raise Against("every site would number the rows that are there differently", "a uuid column")
    _refuse_volatile(look, column, name)
    look.run(text)
    made = look.column(table, name)
    preset = made["preset"] or made["of_domain"]
    value = None
    if preset is not None and not made["generated"]:
        with look.as_asked():
            shown = look.one(f"select quote_literal(({preset})::{made['type']})")
        value = None if shown is None else f"{shown}::{made['base']}"
    if made["required"] and value is None and not made["generated"]:
        raise Against(
            "rows that are there would have no value",
            "not null default ..., or a line before the statement that says what it is for them: -- up: EXPRESSION",
        )
    fills = () if made["generated"] else (Fill(table.table, name, value),)
    undo = f"alter table {table.sql} drop column if exists {_name(name)}"
    return [
        Step(
            phase="expand",
            what=f"add column {name} to {table.sql}",
            locks=BRIEF,
            statements=(text,),
            undo=(undo,),
            fills=fills,
        )
    ]


_OF_NOW = {"now", "today", "tomorrow", "yesterday"}


def _refuse_volatile(look: Look, column: Any, name: str) -> None:
    for constraint in column.constraints:
        if reading.constraint_kind(constraint.constraint) == "DEFAULT":
            volatile = look.volatile(reading.calls(constraint)) or sorted(
                _OF_NOW & reading.strings(constraint)
            )
            if volatile:
                raise Against(
                    f"the default calls {volatile[0]}: every site would give the rows that are there another value",
                    f"add column {name} without a default, then: alter table ... alter column {name} set default ...",
                )


def _default(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    look.refuse_renamed(table, command.name)
    before = look.column(table, command.name)["preset"]
    look.run(text)
    alter = f"alter table {table.sql} alter column {_name(command.name)}"
    undo = f"{alter} set default {before}" if before is not None else f"{alter} drop default"
    return [
        Step(
            phase="expand",
            what=f"default of {command.name} of {table.sql}",
            locks=BRIEF,
            statements=(text,),
            undo=(undo,),
        )
    ]


def _not_null(look: Look, table: Known, command: Any, _text: str) -> list[Step]:
    """A CHECK first, which can be validated while rows are written; the server then takes it for proof."""
    look.refuse_renamed(table, command.name)
    if look.column(table, command.name)["required"]:
        raise Against(f"column {command.name} is NOT NULL already", "leave it out")
    column, check = _name(command.name), _name(f"{command.name}_given"[:63])
    alter = f"alter table {table.sql}"
    lacking = f"select {look.keys(table)} from {table.sql} where {column} is null"
    drop = f"{alter} drop constraint if exists {check}"
    what = f"NOT NULL of {command.name} of {table.sql}"
    return [
        *checked(
            table,
            what,
            lacking,
            f"{alter} add constraint {check} check ({column} is not null) not valid",
            check,
        ),
        Step(
            phase="read-new",
            what=f"{what}: set",
            locks=BRIEF,
            statements=(f"{alter} alter column {column} set not null", drop),
            undo=(f"{alter} alter column {column} drop not null",),
        ),
    ]


def _drop_not_null(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    look.run(text)
    undo = f"alter table {table.sql} alter column {_name(command.name)} set not null"
    return [
        Step(
            phase="expand",
            what=f"{command.name} of {table.sql} may be null",
            locks=BRIEF,
            statements=(text,),
            undo=(undo,),
        )
    ]


def _add_constraint(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    constraint = getattr(command, "def").constraint
    kind = reading.constraint_kind(constraint)
    if not constraint.conname:
        raise Against(
            "the constraint has no name, and would get one at each site by itself", "add constraint NAME ..."
        )
    if kind == "UNIQUE":
        return _unique(look, table, constraint)
    if kind not in ("CHECK", "FOREIGN"):
        raise Against(
            f"a constraint of kind {kind} is not carried to all sites", "add it at each site by hand"
        )
    constraint.skip_validation, constraint.initially_valid = True, False
    node = postgast.parse(text)
    target = getattr(node.stmts[0].stmt.alter_table_stmt.cmds[0].alter_table_cmd, "def").constraint
    target.CopyFrom(constraint)
    added = postgast.deparse(node)
    look.run(added)
    name, broken = constraint.conname, _breaking(look, table, constraint.conname)
    locks = BRIEF if kind == "CHECK" else f"{ROWS}, of both tables"
    return list(checked(table, f"constraint {name} of {table.sql}", broken, added, _name(name), locks))


def _breaking(look: Look, table: Known, name: str) -> str:
    """The query for rows that break a CHECK or a foreign key that was added."""
    return str(
        look.one(
            """
            select case c.contype
                when 'c' then format('select %%s from %%s where not coalesce((%%s), true)', k.list, c.conrelid::regclass, pg_get_expr(c.conbin, c.conrelid))
                else format('select %%s from %%s t where row(%%s) is not null and not exists (select from %%s p where %%s)',
                            k.list, c.conrelid::regclass, f.mine, c.confrelid::regclass, f.same) end
            from pg_constraint c
            cross join lateral (select string_agg(quote_ident(n), ', ') as list from syncagent._key(c.conrelid) as x cross join unnest(x.names) as n) as k
            cross join lateral (
                select string_agg(format('t.%%I', a.attname), ', ' order by u.o) as mine,
                       string_agg(format('p.%%I = t.%%I', b.attname, a.attname), ' and ' order by u.o) as same
                from unnest(c.conkey, c.confkey) with ordinality as u (mine, theirs, o)
                join pg_attribute a on a.attrelid = c.conrelid and a.attnum = u.mine
                join pg_attribute b on b.attrelid = c.confrelid and b.attnum = u.theirs) as f
            where c.conrelid = %s::bigint::oid and c.conname = %s
            """,
            table.oid,
            name,
        )
    )


def _unique(look: Look, table: Known, constraint: Any) -> list[Step]:
    if table.partitioned:
        raise Against(
            "an index of a partitioned table cannot be made beside writes", "add it at each site by hand"
        )
    if not constraint.keys:
        raise Against("the constraint names an index", "add constraint NAME unique (COLUMN, ...)")
    columns = [key.string.sval for key in constraint.keys]
    look.refuse_renamed(table, *columns)
    for column in columns:
        look.column(table, column)
    listed, name = ", ".join(map(_name, columns)), _name(constraint.conname)
    index = _name(table.table.schema, constraint.conname)
    what = f"constraint {constraint.conname} of {table.sql}"
    drop = f"alter table {table.sql} drop constraint if exists {name}"
    return [
        found_twice(table, columns, what),
        Step(
            phase="write-dual",
            what=f"{what}: its index",
            locks=SHARED,
            statements=(f"create unique index concurrently {name} on {table.sql} ({listed})",),
            undo=(f"drop index concurrently if exists {index}",),
            manner="alone",
            index=index,
            everybody=True,
        ),
        Step(
            phase="read-new",
            what=f"{what}: made of its index",
            locks=BRIEF,
            statements=(f"alter table {table.sql} add constraint {name} unique using index {name}",),
            undo=(drop,),
        ),
    ]


def _drop_column(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    found = look.column(table, command.name)
    look.refuse_by_column(table)
    if look.is_key(table, command.name):
        raise Against(
            f"{command.name} is of the primary key of {table.sql}", "another table, and the rows copied"
        )
    if "down" in look.notes:
        return pairs.drop_column(look, table, command.name, text)
    if look.version and found["required"] and found["preset"] is None and not found["identity"]:
        raise Against(
            f"{command.name} is NOT NULL, and rows of the new version would have none while the old one is there",
            "a line before the statement that says what it is for them: -- down: EXPRESSION",
        )
    look.run(text)
    return [
        Step(
            phase="contract",
            what=f"drop column {command.name} of {table.sql}",
            locks=BRIEF,
            statements=(text,),
            strict=True,
        )
    ]


def _drop_constraint(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    row = look.connection.execute(
        "select contype::text as kind, pg_get_constraintdef(oid) as made from pg_constraint where conrelid = %s::bigint::oid and conname = %s",
        (table.oid, command.name),
    ).fetchone()
    if row is None:
        raise Against(f"{table.sql} has no constraint {command.name}", "see its constraints with \\d in psql")
    if row["kind"] == "p":
        raise Against("rows are told apart by the primary key", "another table, and the rows copied")
    look.run(text)
    undo = f"alter table {table.sql} add constraint {_name(command.name)} {row['made']}"
    return [
        Step(
            phase="expand",
            what=f"drop constraint {command.name} of {table.sql}",
            locks=BRIEF,
            statements=(text,),
            undo=(undo,),
        )
    ]


def _type(look: Look, table: Known, command: Any, text: str) -> list[Step]:
    """At once where no row is written anew: varchar(20) to text, numeric(8, 2) to numeric(12, 2). Else beside the old one."""
    before = look.column(table, command.name)
    look.refuse_by_column(table)
    if look.is_key(table, command.name):
        raise Against("the type of a key column stays", "another table, and the rows copied")
    if getattr(command, "def").column_def.HasField("raw_default"):
        return types.change(look, table, command)
    copy = "create temp table syncagent_tried (like {} including all) on commit drop"
    look.connection.execute(sql.SQL(copy).format(sql.Identifier(table.table.schema, table.table.name)))
    node = look.one("select relfilenode from pg_class where oid = 'pg_temp.syncagent_tried'::regclass")
    tried = postgast.parse(text)
    relation = tried.stmts[0].stmt.alter_table_stmt.relation
    relation.schemaname, relation.relname = "pg_temp", "syncagent_tried"
    look.connection.execute(postgast.deparse(tried).encode())
    same = node == look.one(
        "select relfilenode from pg_class where oid = 'pg_temp.syncagent_tried'::regclass"
    )
    look.connection.execute("drop table pg_temp.syncagent_tried")
    if not same:
        return types.change(look, table, command)
    look.run(text)
    undo = f"alter table {table.sql} alter column {_name(command.name)} type {before['type']}"
    what = f"type of {command.name} of {table.sql}"
    return [
        Step(
            phase="expand", what=what, locks=BRIEF, statements=(text,), undo=(undo,), strict=True, aside=True
        )
    ]


_AS_IT_IS = {
    "AddColumn",
    "ColumnDefault",
    "SetNotNull",
    "DropNotNull",
    "AddConstraint",
    "DropConstraint",
    "DropColumn",
    "AlterColumnType",
}
_PARTS: dict[str, Part] = {
    "AddColumn": _add_column,
    "ColumnDefault": _default,
    "SetNotNull": _not_null,
    "DropNotNull": _drop_not_null,
    "AddConstraint": _add_constraint,
    "DropConstraint": _drop_constraint,
    "DropColumn": _drop_column,
    "AlterColumnType": _type,
}
