"""Batches as their headers describe them, for tests of what is decided by headers alone."""

from uuid import UUID

from syncagent.core.arrival import Position
from syncagent.core.batch import BatchHeader, CutContext, Form, Stream, Table

ITEM = Table("public", "item")


def cut_id(node: int, cut: int) -> UUID:
    return UUID(int=node << 64 | cut)


def position(node: int, cut: int) -> Position:
    return Position(cut, cut_id(node, cut) if cut else None)


def batch(
    origin: int,
    after: int,
    upto: int,
    seen: dict[int, int] | None = None,
    *,
    form: Form = "plain",
    newest: int = 0,
    size: int = 100,
) -> BatchHeader:
    """A batch whose origin had applied `seen` at its last cut, and nothing before."""
    contexts = {cut: {origin: cut} for cut in range(after + 1, upto + 1)}
    contexts[upto] |= seen or {}
    return header(origin, after, upto, contexts, 1, form=form, newest=newest, size=size)


def header(
    origin: int,
    after: int,
    upto: int,
    contexts: dict[int, dict[int, int]],
    rows: int,
    *,
    form: Form = "plain",
    newest: int = 0,
    size: int = 100,
) -> BatchHeader:
    return BatchHeader(
        origin=origin,
        after=after,
        upto=upto,
        upto_id=cut_id(origin, upto),
        contexts=tuple(CutContext(cut, context) for cut, context in contexts.items()),
        newest=newest,
        streams=(Stream(ITEM, form, ("id",), rows, size),) if rows else (),
    )
