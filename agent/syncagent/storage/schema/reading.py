"""SQL as a person writes it, read by PostgreSQL's own grammar: statements with their lines.

Invariant: nothing is decided here, and nothing is looked up; what does not parse is one error that shows where.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import postgast
from postgast import pg_query_pb2 as grammar
from psycopg import sql

from syncagent.errors import UsageError


@dataclass(frozen=True)
class Statement:
    """One statement: the line it begins at, its text, the kind of its node and the node. `notes` are what comments before it say: a
    line `-- down: EXPRESSION` is the note `down`. `role`: as whom it is tried, if not as the change says."""

    line: int
    text: str
    kind: str
    node: Any
    notes: Mapping[str, str] = field(default_factory=dict)
    role: str | None = None


_NOTE = re.compile(r"(?m)^\s*--\s*(up|down|new):\s*(\S.*?)\s*$")


def statements(text: str, name: str) -> list[Statement]:
    """UsageError where the text is no SQL."""
    try:
        parsed = postgast.parse(text)
    except postgast.PgQueryError as error:
        line = text[: max(0, error.cursorpos - 1)].count("\n") + 1
        raise UsageError(
            f"{name}, line {line}: {error.message}", hint=f"there: {text.splitlines()[line - 1].strip()}"
        ) from None
    data, before = text.encode(), 0
    found = []
    for raw in parsed.stmts:
        end = raw.stmt_location + (raw.stmt_len or len(data) - raw.stmt_location)
        piece = data[before:end].decode().lstrip("; \t\n\r")
        comments = _COMMENTS.match(piece)
        begins = end - len(piece.encode()) + len(comments[0].encode()) if comments else end
        kind = raw.stmt.WhichOneof("node")
        found.append(
            Statement(
                data[:begins].count(b"\n") + 1,
                data[begins:end].decode().strip(),
                kind,
                getattr(raw.stmt, kind),
                dict(_NOTE.findall(piece[: len(comments[0])] if comments else "")),
            )
        )
        before = end
    return found


_COMMENTS = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*", re.DOTALL)
"""What may stand before a statement."""


def written(kind: str, node: Any) -> str:
    """A node as SQL."""
    return str(postgast.deparse(whole(kind, node)))


def whole(kind: str, node: Any) -> "postgast.ParseResult":
    """A node as a parsed text of its own."""
    result = postgast.ParseResult()
    raw = result.stmts.add()
    getattr(raw.stmt, kind).CopyFrom(node)
    return result


def expression(node: Any) -> str:
    """An expression as SQL."""
    select = grammar.SelectStmt()
    select.target_list.add().res_target.val.CopyFrom(node)
    return written("select_stmt", select).removeprefix("SELECT ")


def parsed_expression(text: str) -> Any:
    """UsageError where it is none."""
    (statement,) = statements(f"select {text}", "the expression")
    return statement.node.target_list[0].res_target.val


_BOUND = re.compile(r"%(?:\(\w+\))?s(?:::\w+)?|%%")


def unbound(statement: str) -> str:
    """A statement of a driver with null in the place of every parameter."""
    return _BOUND.sub(lambda found: "%" if found[0] == "%%" else "null", statement)


def index_elsewhere(text: str, schema: str, name: str) -> tuple[str, str]:
    """The table of CREATE INDEX as SQL, and the statement for a table that nobody writes."""
    (statement,) = statements(text, "an index")
    node = statement.node
    table = sql.Identifier(
        *(part for part in (node.relation.schemaname, node.relation.relname) if part)
    ).as_string()
    node.relation.schemaname, node.relation.relname, node.concurrent = schema, name, False
    return table, written("index_stmt", node)


def calls(node: Any) -> set[str]:
    """The names of functions that an expression calls, as far as they are written; `current_timestamp` and its kin as themselves."""
    found = set()
    for _, part in postgast.walk(node):
        kind = type(part).DESCRIPTOR.name
        if kind == "FuncCall":
            found.add(part.funcname[-1].string.sval)
        elif kind == "SQLValueFunction":
            found.add("current_timestamp")
    return found


def columns(node: Any) -> set[str] | None:
    """The names of columns that an expression reads; None: all of the row."""
    found = set()
    for _, part in postgast.walk(node):
        if type(part).DESCRIPTOR.name == "ColumnRef":
            last = part.fields[-1]
            if last.WhichOneof("node") != "string":
                return None
            found.add(last.string.sval)
    return found


def strings(node: Any) -> set[str]:
    """Text constants in an expression."""
    return {
        part.sval.sval.strip().lower()
        for _, part in postgast.walk(node)
        if type(part).DESCRIPTOR.name == "A_Const" and part.WhichOneof("val") == "sval"
    }


def alteration(command: Any) -> str:
    """What a part of ALTER TABLE does: AddColumn, ..."""
    return str(grammar.AlterTableType.Name(command.subtype)).removeprefix("AT_")


def constraint_kind(constraint: Any) -> str:
    """CHECK, UNIQUE, PRIMARY, FOREIGN, DEFAULT, ..."""
    return str(grammar.ConstrType.Name(constraint.contype)).removeprefix("CONSTR_")


def object_kind(number: int) -> str:
    """TABLE, COLUMN, ..."""
    return str(grammar.ObjectType.Name(number)).removeprefix("OBJECT_")
