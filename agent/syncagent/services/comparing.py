"""One side of a comparison: what this site says of its forest, to a peer or to itself.

Invariant: all answers of a side are of one snapshot, and of what both sides have agreed to compare.
"""

from collections.abc import Mapping, Sequence

from syncagent.core import comparison, forest
from syncagent.core.batch import Table
from syncagent.core.comparison import LEVELS, LISTED, PIECES, SPANS, Scope
from syncagent.core.forest import END, Digest, Span
from syncagent.core.questions import (
    Answer,
    Count,
    Leaves,
    Listed,
    Question,
    Root,
    Rows,
    Settle,
    Sliced,
    Standing,
    Summed,
    Sums,
)
from syncagent.core.store import View
from syncagent.errors import ProtocolError


class Side:
    """`standing` and `sums` are this site's; `scope` is what both compare."""

    def __init__(self, view: View, standing: Standing) -> None:
        self._view, self.standing = view, standing
        self.scope: Scope | None = None
        self.sums: list[Digest] = []

    @classmethod
    async def of(cls, view: View, tables: Sequence[Table] | None) -> "Side":
        return cls(view, await view.standing(tables))

    async def left_out(self, frontier: Mapping[int, int]) -> tuple[Span, ...]:
        """What cannot be compared with a site at this frontier."""
        return await self._view.left_out(frontier, self.standing.groves or ())

    async def settle(
        self, there: Standing, mine: Sequence[Span], theirs: Sequence[Span], *, whole: bool
    ) -> Root:
        """Agree on what is compared, and its root here."""
        agreed = comparison.scope(self.standing, there, whole=whole)
        agreed = agreed.without(self.standing.groves or (), mine).without(there.groves or (), theirs)
        self.scope = agreed
        self._view.number(agreed.tables)
        sums = [forest.NOTHING for _ in agreed.tables]
        spans = agreed.spans()
        for span, found in zip(
            spans, await self._view.sums("table", spans, agreed.left_out) if spans else (), strict=True
        ):
            sums[span.table] = sums[span.table].plus(forest.total(found.values()))
        self.sums = sums
        return Root(forest.root((str(table), sums[number]) for number, table in enumerate(agreed.tables)))

    def over(self, root: Root, asked: Settle) -> Root:
        """The root here; said to be the end, if it is that of whoever asks, and nothing else is to be compared."""
        beyond = self.scope is None or self.scope.beyond()
        return Root(root.root, over=not beyond and root.root == asked.root)

    async def answer(self, question: Question) -> Answer:
        """Of the forest as it was. Raises ProtocolError for what nobody may ask."""
        agreed = self.scope
        if agreed is None:
            raise ProtocolError("a comparison that has not agreed on what is compared")
        match question:
            case Sums(level, spans) if level in LEVELS:
                self._check(spans)
                return Summed(await self._view.sums(level, spans, agreed.left_out))
            case Leaves(depth, spans) if 0 <= depth <= forest.DEEPEST + comparison.SLICES:
                self._check(spans)
                return Sliced(await self._view.leaves(depth, spans))
            case Count(spans):
                self._check(spans)
                return Summed(await self._view.count(spans))
            case Rows(spans):
                self._check(spans)
                return Listed(await self._view.rows(spans, LISTED))
            case _:
                raise ProtocolError("a question out of turn", detail=type(question).__name__)

    def _check(self, spans: Sequence[Span]) -> None:
        tables = len(self.scope.tables) if self.scope is not None else 0
        if len(spans) > SPANS * PIECES:
            raise ProtocolError("too many questions at once", detail=f"{len(spans)} spans")
        for span in spans:
            if not (0 <= span.table < tables and 0 <= span.low < span.high <= END):
                raise ProtocolError("a question about what is not compared", detail=str(span))
