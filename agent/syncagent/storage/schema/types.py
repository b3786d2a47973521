"""The type of a column changes: a second column beside it, written together, filled, read, and then the only one.

While both are there, a version of the application that knows the old column and one that knows the new one work side by side.
"""

from typing import Any

import postgast
from psycopg import sql

from syncagent.core.schema import Fill, Filling, Step
from syncagent.storage.schema import reading
from syncagent.storage.schema.looking import BRIEF, ROWS, Against, Known, Look

_MAX_NAME = 63
FEW = "rows, some at a time, none that others hold"


def change(look: Look, table: Known, command: Any) -> list[Step]:
    """The five phases. What else hangs on the old column is not carried over, so there may be nothing."""
    column = command.name
    definition = getattr(command, "def").column_def
    up = reading.expression(definition.raw_default) if definition.HasField("raw_default") else None
    wanted = _type(definition)
    up = up or f"{_name(column)}::{wanted}"
    notes = look.notes
    down = notes.get("down")
    if down is None:
        raise Against(
            "every row would be written anew, under the table's lock; filled beside the old column, both are written for a while,"
            " and the way back is not said",
            f"a line before the statement: -- down: {_name(column)}_new::{look.column(table, column)['type']}",
        )
    new = notes.get("new", f"{column}_new")[:_MAX_NAME]
    _refuse_what_hangs_on_it(look, table, column)
    for expression in (up, down):
        parsed = reading.parsed_expression(expression)
        if volatile := look.volatile(reading.calls(parsed)):
            raise Against(
                f"{expression} calls {volatile[0]}: every site would compute another value",
                "an expression of the row alone",
            )
    steps = _steps(table, column, new, wanted, up, down, keeps="new" in notes)
    for step in steps:
        if step.phase == "read-new":
            look.connection.execute(f"select {up}, {down} from {table.sql} limit 1".encode())
        for statement in step.statements:
            look.connection.execute(statement.encode())
    return steps


def _type(definition: Any) -> str:
    """The type of a column as SQL."""
    cast = postgast.parse("select null::text")
    node = cast.stmts[0].stmt.select_stmt.target_list[0].res_target.val.type_cast.type_name
    node.CopyFrom(definition.type_name)
    return str(postgast.deparse(cast)).removeprefix("SELECT NULL::")


def _refuse_what_hangs_on_it(look: Look, table: Known, column: str) -> None:
    found = look.column(table, column)
    if found["generated"] or found["identity"]:
        raise Against(f"{column} is computed by the server", "drop it, and add the new one")
    indexed = look.one(
        "select string_agg(distinct i.indexrelid::regclass::text, ', ') from pg_index i join pg_attribute a on a.attrelid = i.indrelid"
        " and a.attnum = any (i.indkey) where i.indrelid = %s::bigint::oid and a.attname = %s",
        table.oid,
        column,
    )
    constrained = look.one(
        "select string_agg(c.conname, ', ') from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)"
        " where c.conrelid = %s::bigint::oid and a.attname = %s and c.contype <> 'n'",
        table.oid,
        column,
    )
    for what in (
        indexed,
        constrained,
        "its default" if found["preset"] else None,
        "NOT NULL" if found["required"] else None,
    ):
        if what:
            raise Against(
                f"{what} of the old column would not be there for the new one",
                "drop it first, in a change before; and make it for the new column, in a change after",
            )


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string()


def _steps(table: Known, old: str, new: str, wanted: str, up: str, down: str, *, keeps: bool) -> list[Step]:
    alter, what = f"alter table {table.sql}", f"type of {old} of {table.sql}"
    trigger = _name(f"both_{table.table.name}_{old}"[:_MAX_NAME])
    function = _name(table.table.schema, f"both_{table.table.name}_{old}"[:_MAX_NAME])
    filling = Filling(table.table, new, up)
    without = (f"drop trigger if exists {trigger} on {table.sql}", f"drop function if exists {function}()")
    contract = [*without, f"{alter} drop column {_name(old)}"]
    if not keeps:
        contract.append(f"{alter} rename column {_name(new)} to {_name(old)}")
    return [
        Step(
            phase="expand",
            what=f"{what}: column {new} beside it",
            locks=BRIEF,
            statements=(f"{alter} add column {_name(new)} {wanted}",),
            undo=(f"{alter} drop column if exists {_name(new)}",),
            fills=(Fill(table.table, new, None),),
        ),
        Step(
            phase="write-dual",
            what=f"{what}: whoever writes one writes both",
            locks=ROWS,
            statements=(
                _function(function, old, new, up, down),
                f"create trigger {trigger} before insert or update on {table.sql} for each row execute function {function}()",
            ),
            undo=without,
        ),
        Step(
            phase="backfill", what=f"{what}: rows that are there", locks=FEW, manner="fill", filling=filling
        ),
        Step(
            phase="backfill",
            what=f"{what}: rows that came meanwhile",
            locks=FEW,
            manner="fill",
            filling=filling,
            strict=True,
        ),
        Step(phase="read-new", what=f"{what}: {new} is the one to read", locks="none of a table"),
        Step(
            phase="contract",
            what=f"{what}: {old} is dropped" + ("" if keeps else f", and {new} is {old}"),
            locks=BRIEF,
            statements=tuple(contract),
            strict=True,
            columns=() if keeps else ((table.table, new, old),),
        ),
    ]


def _function(name: str, old: str, new: str, up: str, down: str) -> str:
    """Which of the two was written: the other one follows. Written both, both stay."""
    a, b = _name(old), _name(new)
    of_row = "select {} from (select new.*) as r"
    return (
        f"create function {name}() returns trigger language plpgsql as $both$\n"
        f"begin\n"
        f"    if tg_op = 'INSERT' then\n"
        f"        if new.{b} is null then new.{b} := ({of_row.format(up)}); elsif new.{a} is null then new.{a} := ({of_row.format(down)}); end if;\n"
        f"    elsif new.{b} is distinct from old.{b} then\n"
        f"        if new.{a} is not distinct from old.{a} then new.{a} := ({of_row.format(down)}); end if;\n"
        f"    else\n"
        f"        new.{b} := ({of_row.format(up)});\n"
        f"    end if;\n"
        f"    return new;\n"
        f"end $both$"
    )
