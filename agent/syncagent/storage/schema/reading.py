"""SQL as a person writes it, read by PostgreSQL's own grammar: statements with their lines.

Invariant: nothing is decided here, and nothing is looked up; what does not parse is one error that shows where.
"""

from dataclasses import dataclass
from typing import Any

import postgast
from postgast import pg_query_pb2 as grammar

from syncagent.errors import UsageError


@dataclass(frozen=True)
class Statement:
    """One statement: the line it begins at, its text, the kind of its node and the node."""

    line: int
    text: str
    kind: str
    node: Any


def statements(text: str, name: str) -> list[Statement]:
    """UsageError where the text is no SQL."""
    try:
        parsed = postgast.parse(text)
    except postgast.PgQueryError as error:
        line = text[: max(0, error.cursorpos - 1)].count("\n") + 1
        raise UsageError(
            f"{name}, line {line}: {error.message}", hint=f"there: {text.splitlines()[line - 1].strip()}"
        ) from None
    data = text.encode()
    found = []
    for raw in parsed.stmts:
        start, length = raw.stmt_location, raw.stmt_len or len(data) - raw.stmt_location
        piece = data[start : start + length].decode()
        bare = _without_comments(piece)
        line = data[:start].count(b"\n") + 1 + piece[: piece.find(bare[:1]) if bare else 0].count("\n")
        kind = raw.stmt.WhichOneof("node")
        found.append(Statement(line + _skipped(piece), bare, kind, getattr(raw.stmt, kind)))
    return found


def _skipped(piece: str) -> int:
    """Lines of comments before the first word, beyond blank ones."""
    count, lines = 0, piece.lstrip().splitlines()
    while count < len(lines) and (lines[count].lstrip().startswith("--") or not lines[count].strip()):
        count += 1
    return count


def _without_comments(piece: str) -> str:
    lines = piece.lstrip().splitlines()
    return "\n".join(lines[_skipped(piece) :]).strip()


def written(kind: str, node: Any) -> str:
    """A node as SQL."""
    return str(postgast.deparse(whole(kind, node)))


def whole(kind: str, node: Any) -> "postgast.ParseResult":
    """A node as a parsed text of its own."""
    result = postgast.ParseResult()
    raw = result.stmts.add()
    getattr(raw.stmt, kind).CopyFrom(node)
    return result


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
