"""Columns of the old and of the new shape that are written together, so that two versions of the application work side by side.

`-- up:` says what a new column is for a row that the old version writes, `-- down:` what an old one is for a row that the new version
writes. A trigger keeps them in step, rows that are there are filled, and with the old shape the trigger goes.

Invariant: what a version has written stays, until somebody writes what it is computed from; both computed from the row alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import postgast
from msgspec.structs import replace
from psycopg import sql

from syncagent.core.batch import Table
from syncagent.core.schema import Fill, Filling, Step
from syncagent.storage.schema import reading
from syncagent.storage.schema.looking import BRIEF, ROWS, Against, Known, Look, checked

_MAX_NAME = 63
FEW = "rows, some at a time, none that others hold"


@dataclass(frozen=True)
class Way:
    """A column and its value as SQL over the row; `of` are the columns that it is computed from."""

    column: str
    value: str
    of: tuple[str, ...]


@dataclass
class Pairs:
    """Of one table. `required` are new columns that must be given, `last` what is done when the old shape goes, `columns` those
    that get another name then."""

    table: Known
    keys: str
    ups: list[Way] = field(default_factory=list)
    downs: list[Way] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    columns: list[tuple[Table, str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    at: tuple[int, int] | None = None
    """Line and place of the first statement that asks for them."""


def of(look: Look, table: Known) -> Pairs:
    """Those of a table in this change."""
    look.refuse_by_column(table)
    return look.pairs.setdefault(table.oid, Pairs(table, look.keys(table)))


def up(look: Look, table: Known, column: str, value: str, *, required: bool) -> None:
    """The new column, which is there by now, gets this value where the old version writes."""
    pairs = of(look, table)
    pairs.ups.append(_way(look, table, column, value))
    if required:
        pairs.required.append(column)


def down(look: Look, table: Known, column: str, value: str) -> None:
    """The old column, which is still there, gets this value where the new version writes."""
    of(look, table).downs.append(_way(look, table, column, value))


def _way(look: Look, table: Known, column: str, value: str) -> Way:
    parsed = reading.parsed_expression(value)
    names = look.columns(table)
    found = reading.columns(parsed)
    used = names if found is None else [name for name in names if name in found]
    look.refuse_renamed(table, column, *used)
    if volatile := look.volatile(reading.calls(parsed)):
        raise Against(
            f"{value} calls {volatile[0]}: every site would compute another value",
            "an expression of the row alone",
        )
    look.run(f"select {value} from {table.sql} limit 1")
    return Way(column, value, tuple(used))


def add_column(look: Look, table: Known, text: str) -> list[Step]:
    """`add column` after `-- up:`. Whatever the statement says beside type and NOT NULL would be in the way."""
    parsed = postgast.parse(text)
    column = getattr(parsed.stmts[0].stmt.alter_table_stmt.cmds[0].alter_table_cmd, "def").column_def
    kinds = [reading.constraint_kind(constraint.constraint) for constraint in column.constraints]
    if odd := set(kinds) - {"NULL", "NOTNULL"}:
        raise Against(
            f"a column that gets its value from the row comes with {' and '.join(sorted(odd))}",
            "the column with its type, and NOT NULL; the rest in a change after",
        )
    name, value = column.colname, look.notes["up"]
    del column.constraints[:]
    text = postgast.deparse(parsed)
    look.run(text)
    up(look, table, name, value, required="NOTNULL" in kinds)
    of(look, table).said.append(name)
    return [added(table, name, text)]


def added(table: Known, name: str, text: str) -> Step:
    """The column, empty."""
    return Step(
        phase="expand",
        what=f"add column {name} to {table.sql}",
        locks=BRIEF,
        statements=(text,),
        undo=(f"alter table {table.sql} drop column if exists {_name(name)}",),
        fills=(Fill(table.table, name, None),),
    )


def drop_column(look: Look, table: Known, name: str, text: str) -> list[Step]:
    """`drop column` after `-- down:`; it goes with the trigger."""
    down(look, table, name, look.notes["down"])
    pairs = of(look, table)
    pairs.last.append(text)
    pairs.said.append(name)
    look.run(text)
    return []


# ---- the steps


def steps(look: Look, pairs: Pairs) -> list[Step]:
    """What is done beside the statements, in the order of the phases; tried in the database."""
    table, version = pairs.table, look.version
    what = f"{', '.join(pairs.said)} of {table.sql}"
    function = _name(table.table.schema, f"both_{table.table.name}"[:_MAX_NAME])
    names = [_name(f"both_{table.table.name}"[: _MAX_NAME - 4] + suffix) for suffix in ("", "_new")]
    without = (
        *(f"drop trigger if exists {name} on {table.sql}" for name in names),
        f"drop function if exists {function}()",
    )
    both = (
        _function(function, pairs, look.path()),
        *_triggers(table, function, names, version),
    )
    look.run(both[0])  # the table may have another name by now
    fillings = [Filling(table.table, way.column, way.value) for way in pairs.ups]
    return [
        Step(
            phase="write-dual",
            what=f"{what}: whoever writes one writes both",
            locks=ROWS,
            statements=both,
            undo=without,
        ),
        *_fills(f"{what}: rows that are there", fillings, strict=False),
        *_fills(f"{what}: rows that came meanwhile", fillings, strict=True),
        *(step for column in pairs.required for step in _required(pairs, column)),
        Step(
            phase="contract",
            what=f"{what}: the old shape goes",
            locks=BRIEF,
            statements=(*without, *pairs.last),
            strict=True,
            columns=tuple(pairs.columns),
        ),
    ]


def _fills(what: str, fillings: Iterable[Filling], *, strict: bool) -> list[Step]:
    return [
        Step(phase="backfill", what=what, locks=FEW, manner="fill", filling=filling, strict=strict)
        for filling in fillings
    ]


def _required(pairs: Pairs, column: str) -> list[Step]:
    """NOT NULL, once every row has its value at every site: what arrives has it, too, for older batches are read no more."""
    table, check = pairs.table, _name(f"{column}_given"[:_MAX_NAME])
    alter, what = f"alter table {table.sql}", f"NOT NULL of {column} of {table.sql}"
    found = checked(
        table,
        what,
        f"select {pairs.keys} from {table.sql} where {_name(column)} is null",
        f"{alter} add constraint {check} check ({_name(column)} is not null) not valid",
        check,
    )
    return [
        *(replace(step, phase="backfill", everybody=False) for step in found),
        Step(
            phase="read-new",
            what=f"{what}: set",
            locks=BRIEF,
            statements=(
                f"{alter} alter column {_name(column)} set not null",
                f"{alter} drop constraint if exists {check}",
            ),
            undo=(f"{alter} alter column {_name(column)} drop not null",),
        ),
    ]


# ---- the trigger


def _triggers(table: Known, function: str, names: Sequence[str], version: str | None) -> list[str]:
    """The search path tells which version writes: it is looked at where the writer's is still in force."""
    head = "create trigger {} before insert or update on {} for each row {}execute function {}({})"
    if version is None:
        return [head.format(names[0], table.sql, "", function, "'old'")]
    written = f"({_text(version)} = any (current_schemas(false)))"
    return [
        head.format(names[0], table.sql, f"when (not {written}) ", function, "'old'"),
        head.format(names[1], table.sql, f"when {written} ", function, "'new'"),
    ]


def _function(name: str, pairs: Pairs, path: str) -> str:
    """Who writes a row that is new is told by the search path, or by a new column that is given; of one that is changed it is told
    by what has changed. What is written by hand on both sides stays."""
    insert = [f"            {_from_row(way)}" for way in pairs.downs]
    given = " or ".join(f"new.{_name(way.column)} is not null" for way in pairs.ups) or "false"
    lines = [
        f"create function {name}() returns trigger language plpgsql set search_path = {path} as $both$",
        "#variable_conflict use_column",
        "declare",
        "    v_given record := new;",
        "    v_new   boolean := tg_argv[0] = 'new';",
        "begin",
        "    if tg_op = 'INSERT' then",
        "        if v_new then",
        *(insert or ["            null;"]),
        "        else",
        f"            v_new := {given};",
        *(f"            if new.{_name(w.column)} is null then {_from_row(w)} end if;" for w in pairs.ups),
        *(
            f"            if v_new and new.{_name(w.column)} is null then {_from_row(w)} end if;"
            for w in pairs.downs
        ),
        "        end if;",
        "    else",
        *_changes(pairs.ups, {w.column for w in pairs.downs}, "not v_new"),
        *_changes(pairs.downs, {w.column for w in pairs.ups}, "v_new"),
        "    end if;",
        "    return new;",
        "end $both$",
    ]
    return "\n".join(lines)


def _changes(ways: Sequence[Way], other: set[str], by: str) -> list[str]:
    """Of a row that is changed: a column follows what the other shape alone has; and what both have, where the other one writes."""
    lines = []
    for way in ways:
        own = [name for name in way.of if name in other]
        shared = [name for name in way.of if name not in other and name != way.column]
        reasons = [_differ(own)] if own else []
        reasons += [f"{by} and {_differ(shared)}"] if shared else []
        if reasons:
            lines.append(
                f"        if not {_differ([way.column])} and ({' or '.join(reasons)}) then {_from_row(way)} end if;"
            )
    return lines


def _differ(names: Sequence[str]) -> str:
    """By their bytes: not every type has an equality."""
    given, before = (", ".join(f"{row}.{_name(name)}" for name in names) for row in ("v_given", "old"))
    return f"row({given})::record *<> row({before})::record"


def _from_row(way: Way) -> str:
    return f"new.{_name(way.column)} := (select {way.value} from (select new.*) as r);"


def _name(*parts: str) -> str:
    return sql.Identifier(*parts).as_string()


def _text(value: str) -> str:
    return sql.Literal(value).as_string()
