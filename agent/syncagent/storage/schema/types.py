"""The type of a column changes: a second column beside it, written together, filled, read, and then the only one.

While both are there, a version of the application that knows the old column and one that knows the new one work side by side.
"""

from typing import Any

import postgast
from psycopg import sql

from syncagent.core.schema import Step
from syncagent.storage.schema import pairs, reading
from syncagent.storage.schema.looking import Against, Known, Look

_MAX_NAME = 63


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
    required = look.column(table, column)["required"]
    text = f"alter table {table.sql} add column {_name(new)} {wanted}"
    look.run(text)
    pairs.up(look, table, new, up, required=required)
    pairs.down(look, table, column, down)
    both = pairs.of(look, table)
    both.said.append(column)
    last = [f"alter table {table.sql} drop column {_name(column)}"]
    if "new" not in notes:
        last.append(f"alter table {table.sql} rename column {_name(new)} to {_name(column)}")
        both.columns.append((table.table, new, column))
        look.rename(table, column)
    for statement in last:
        look.run(statement)
    both.last += last
    what = f"type of {column} of {table.sql}: {new} is the one to read"
    return [pairs.added(table, new, text), Step(phase="read-new", what=what, locks="none of a table")]


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
    ):
        if what:
            raise Against(
                f"{what} of the old column would not be there for the new one",
                "drop it first, in a change before; and make it for the new column, in a change after",
            )


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string()
