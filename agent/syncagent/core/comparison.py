"""Two sites compare their forests: what one asks, and what two answers to the same question say.

Whoever compares asks itself the same questions as its peer, each of a snapshot of its own, and hands both answers to
`Comparison`, which says what to ask next. First each states where it stands. What cannot be equal is left out at both: buckets
that one of them has not sealed, those with a leaf to be computed anew, and those sealed at a frontier that the other one has not
reached. Of what is left, equal sites have equal roots; where they differ, tables, years, months, days, buckets, slices and
rows lead to the difference.

Invariant: nothing that is merely on its way is compared. A bucket that is compared holds, at both sites, the merge of the same
writes: all of them are covered by the frontier it was sealed at, and that by the other site's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from syncagent.core import forest, frontier, stamp
from syncagent.core.batch import Table
from syncagent.core.forest import END, NOTHING, Bucket, Digest, Span
from syncagent.core.questions import (
    Answer,
    Count,
    Grove,
    Leaves,
    Listed,
    Question,
    Root,
    Row,
    Rows,
    Sliced,
    Standing,
    Summed,
    Sums,
)
from syncagent.errors import ProtocolError

SPANS = 128
"""Most spans of one question."""
LISTED = 4096
"""Most rows of one question, at each site."""
PIECES = 64
"""A span with more rows is cut into so many."""
FEW = 4
"""Most spans of one question about rows."""
SLICES = 5
"""Halvings of a bucket asked for at a time."""
DIFFERENCES = 1000
"""Rows that differ, after which it is enough."""

# ---- what is compared


@dataclass(frozen=True)
class Scope:
    """What two sites compare: tables, numbered anew, up to where each is sealed at both, and without which buckets."""

    tables: tuple[Table, ...]
    sealed: tuple[tuple[int, int], ...]
    whole: bool
    left_out: frozenset[Span] = frozenset()
    buckets: tuple[Bucket, ...] = ()
    """The widths of theirs; an hour where it is not said."""

    def spans(self) -> list[Span]:
        """What buckets hold: the two parts of every table."""
        return [
            Span(number, timed, 0, sealed[timed])
            for number, sealed in enumerate(self.sealed)
            for timed in (False, True)
            if sealed[timed]
        ]

    def beyond(self) -> list[Span]:
        """What no bucket holds yet, if that is to be compared."""
        return [
            Span(number, timed, sealed[timed], END)
            for number, sealed in enumerate(self.sealed)
            for timed in (False, True)
            if self.whole and sealed[timed] < END
        ]

    def width(self, span: Span) -> int:
        """Of the buckets that a span is made of, or lies in."""
        return forest.width(self.buckets[span.table] if self.buckets else "hour", span.timed)

    def bucket(self, span: Span) -> int:
        """The bucket in which a span lies, or begins."""
        return span.low // self.width(span)

    def place(self, found: "Difference") -> Span:
        """Where a row of a table that is compared is, and who shares its position."""
        at = forest.position(found.key)
        return Span(self.tables.index(found.table), stamp.is_timed(found.key), at, at + 1)

    def holds(self, table: Table, key: UUID) -> bool:
        """Whether the row of this key was compared."""
        if table not in self.tables:
            return False
        number, timed, at = self.tables.index(table), stamp.is_timed(key), forest.position(key)
        if at >= self.sealed[number][timed]:
            return self.whole
        return not any(
            span.table == number and span.timed == timed and span.low <= at < span.high
            for span in self.left_out
        )

    def without(self, groves: Iterable[Grove], left_out: Iterable[Span]) -> "Scope":
        """Also without these buckets, or whole parts of tables, of somebody who numbers tables in his own way."""
        numbers = {table: number for number, table in enumerate(self.tables)}
        theirs = [numbers.get(grove.table) for grove in groves]
        found, sealed = set(self.left_out), [list(part) for part in self.sealed]
        for span in left_out:
            if not 0 <= span.table < len(theirs):
                raise ProtocolError("a bucket of a table that was not named")
            if (number := theirs[span.table]) is None:
                continue
            if span.width >= END:
                sealed[number][span.timed] = 0
            else:
                found.add(Span(number, span.timed, span.low, span.high))
        return replace(self, sealed=tuple((low, high) for low, high in sealed), left_out=frozenset(found))


def scope(here: Standing, there: Standing, *, whole: bool) -> Scope:
    """The same at both sites, whichever is `here`. Both are complete."""
    mine = {grove: here.reach(number) for number, grove in enumerate(here.groves or ())}
    theirs = {grove: there.reach(number) for number, grove in enumerate(there.groves or ())}
    common = sorted(mine.keys() & theirs.keys())
    sealed = tuple(
        (min(mine[grove][0], theirs[grove][0]), min(mine[grove][1], theirs[grove][1])) for grove in common
    )
    still = here.quiet and there.quiet
    equal = frontier.covers(here.frontier, there.filled) and frontier.covers(there.frontier, here.filled)
    buckets = tuple(grove.bucket for grove in common)
    return Scope(tuple(grove.table for grove in common), sealed, whole and still and equal, buckets=buckets)


def unlike(here: Standing, there: Standing) -> dict[Table, str]:
    """Tables that cannot be compared, and why."""
    mine = {grove.table: grove for grove in here.groves or ()}
    theirs = {grove.table: grove for grove in there.groves or ()}
    found = dict.fromkeys(mine.keys() - theirs.keys(), "is not attached there")
    found |= dict.fromkeys(theirs.keys() - mine.keys(), "is not attached here")
    return (
        found
        | {
            table: "has other columns there, or other types"
            for table in mine.keys() & theirs.keys()
            if mine[table].shape != theirs[table].shape
        }
        | {
            table: "has buckets of another width there: detach it at one site, and attach it as it is at the other"
            for table in mine.keys() & theirs.keys()
            if mine[table].bucket != theirs[table].bucket
        }
    )


Content = tuple[int, int] | None
"""The fingerprint of a row; None: it is not there."""


@dataclass(frozen=True)
class Difference:
    """A row that differs: what is wrong with it, and who has which version and content; no stamp is an implicit one."""

    table: Table
    key: UUID
    shown: str
    what: str
    here: UUID | None
    there: UUID | None
    content_here: Content = None
    content_there: Content = None


@dataclass
class Outcome:
    """What a comparison found. `tables`: how many rows of each were compared, here. `spans` are too full at one instant to be
    listed; `stale` are leaves that differ though their rows do not; `more` says that it stopped early. `unconfirmed` are rows that
    differed at the last look only."""

    scope: Scope
    here: Standing
    there: Standing
    tables: dict[Table, int]
    root: bytes = b""
    differences: list[Difference] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    stale: list[Span] = field(default_factory=list)
    more: bool = False
    unconfirmed: frozenset[tuple[Table, UUID]] = frozenset()

    @property
    def equal(self) -> bool:
        return not (self.differences or self.spans or self.stale)

    def suspects(self) -> Sequence[Difference]:
        """The rows that are all there is to be looked at once more; none: too many, or not only rows."""
        few = len(self.differences) <= SPANS and not (self.spans or self.stale or self.more)
        return self.differences if few else ()

    def confirmed(self, before: "Outcome") -> "Outcome":
        """What was found a second time."""
        then = {(found.table, found.key) for found in before.differences}
        now = {(found.table, found.key): found for found in self.differences}
        return replace(
            self,
            tables={table: max(rows, self.tables.get(table, 0)) for table, rows in before.tables.items()},
            differences=[found for name, found in now.items() if name in then],
            stale=[span for span in self.stale if span in before.stale],
            unconfirmed=frozenset(now.keys() - then),
        )


@dataclass(frozen=True)
class _Work:
    """Spans that are known to differ, and the level at which they are to be looked at next."""

    level: str
    spans: tuple[Span, ...]
    depth: int = 0


_BELOW = {"table": "year", "year": "month", "month": "day", "day": "bucket", "bucket": "leaf"}
LEVELS = tuple(_BELOW)
"""Of `Sums`."""
_DOWN = (*LEVELS, "leaf", "count", "rows", "suspects")


class Comparison:
    """Drives one comparison: `first` and `heard` say what to ask next, `None` once `outcome` is complete."""

    def __init__(
        self,
        here: Standing,
        there: Standing,
        agreed: Scope,
        sums: Sequence[Digest],
        turn: float = 0.0,
        suspects: Iterable[Difference] = (),
    ) -> None:
        """`agreed` has what both leave out; `sums` are those of its tables here. `turn`, in [0, 1), is where it begins: so
        that rows which nobody can mend do not hide all others, if there are many. `suspects` are looked at before anything
        else; if one of them differs, that is enough."""
        rows = {table: digest.rows for table, digest in zip(agreed.tables, sums, strict=True)}
        self.outcome = Outcome(agreed, here, there, rows)
        self._scope, self._turn = agreed, turn
        self._work: list[_Work] = []
        self._beyond = agreed.beyond()
        self._suspects = [one for one in suspects if agreed.holds(one.table, one.key)]
        self._asked: _Work | None = None

    def first(self, mine: Root, theirs: Root) -> Question | None:
        """The roots are there."""
        self.outcome.root = mine.root
        if mine.root != theirs.root:
            self._push(_Work("table", tuple(self._scope.spans())))
        self._push(_Work("count", tuple(self._beyond)))
        if self._work:
            self._push(
                _Work("suspects", tuple(sorted({self._scope.place(one) for one in self._suspects}))), FEW
            )
        return self._next()

    def heard(self, mine: Answer, theirs: Answer) -> Question | None:
        """Two answers to what was asked last."""
        work = self._asked
        assert work is not None
        if _length(theirs) != len(work.spans):
            raise ProtocolError("an answer of another length than the question")
        match mine, theirs:
            case Summed(), Summed() if work.level == "count":
                self._counted(work, mine.sums, theirs.sums)
            case Summed(), Summed():
                self._summed(work, mine.sums, theirs.sums)
            case Sliced(), Sliced():
                self._sliced(work, mine.slices, theirs.slices)
            case Listed(), Listed():
                self._listed(work, mine.rows, theirs.rows)
            case _:
                raise ProtocolError("an answer to another question", detail=type(theirs).__name__)
        return self._next()

    # ---- what to ask

    def _push(self, work: _Work, most: int = SPANS) -> None:
        """Depth first, in pieces that one question can bear: so what waits stays small."""
        begin = int(self._turn * 97 ** _DOWN.index(work.level) % 1 * len(work.spans))
        spans = work.spans[begin:] + work.spans[:begin]
        pieces = [spans[n : n + most] for n in range(0, len(spans), most)]
        self._work += [_Work(work.level, piece, work.depth) for piece in reversed(pieces)]

    def _next(self) -> Question | None:
        if len(self.outcome.differences) >= DIFFERENCES:
            self.outcome.more = bool(self._work)
            self._work = []
        if not self._work:
            return None
        work = self._asked = self._work.pop()
        match work.level:
            case "leaf":
                return Leaves(work.depth + SLICES, work.spans)
            case "count":
                return Count(work.spans)
            case "rows" | "suspects":
                return Rows(work.spans)
            case level:
                return Sums(level, work.spans)

    # ---- what was heard

    def _summed(
        self, work: _Work, mine: tuple[dict[int, Digest], ...], theirs: tuple[dict[int, Digest], ...]
    ) -> None:
        timed: list[Span] = []
        timeless: list[Span] = []
        for span, here, there in zip(work.spans, mine, theirs, strict=True):
            for start in forest.differing(here, there):
                part = self._part(span, work.level, start)
                (timed if span.timed else timeless).append(part)
        # a first byte is a bucket: above it there is only the table
        self._push(_Work(_BELOW[work.level], tuple(timed)))
        self._push(_Work("leaf" if work.level == "bucket" else "bucket", tuple(timeless)))

    def _part(self, span: Span, level: str, start: int) -> Span:
        if not span.low <= start < span.high:
            raise ProtocolError("a sum of what was not asked for")
        if level == "table":
            return span
        if level == "bucket":
            width = self._scope.width(span)
            start -= start % width
            return Span(span.table, span.timed, start, start + width)
        low, high = forest.period(level, start)
        return Span(span.table, span.timed, max(low, span.low), min(high, span.high))

    def _sliced(
        self,
        work: _Work,
        mine: tuple[tuple[int, dict[int, Digest]] | None, ...],
        theirs: tuple[tuple[int, dict[int, Digest]] | None, ...],
    ) -> None:
        deeper: list[Span] = []
        small: list[Span] = []
        large: list[Span] = []
        for span, here, there in zip(work.spans, mine, theirs, strict=True):
            depths = [answer[0] for answer in (here, there) if answer is not None]
            if not depths:
                continue
            depth = min(depths)
            slices = [
                {} if answer is None else forest.coarser(answer[1], answer[0] - depth)
                for answer in (here, there)
            ]
            width = self._scope.width(span)
            if depth < work.depth or max(depths) > min(work.depth + SLICES, forest.deepest(width)):
                raise ProtocolError("leaves of another depth than was asked for", detail=str(depth))
            for number in forest.differing(*slices):
                part = forest.slice_span(span.table, span.timed, width, span.low // width, depth, number)
                if not span.low <= part.low < part.high <= span.high:
                    raise ProtocolError("a leaf of a bucket that was not asked for")
                if depth == work.depth + SLICES:
                    deeper.append(part)
                elif max(found.get(number, NOTHING).rows for found in slices) > LISTED // 4:
                    large.append(part)
                else:
                    small.append(part)
        self._push(_Work("leaf", tuple(deeper), work.depth + SLICES))
        self._pieces(large)
        self._rows(small)

    def _pieces(self, spans: Iterable[Span]) -> None:
        self._push(_Work("count", tuple(part for span in spans for part in span.parts(PIECES))))

    def _rows(self, spans: Iterable[Span]) -> None:
        """Few at a time: it is not known here how many rows they hold, but not more than a quarter of what one may list."""
        self._push(_Work("rows", tuple(spans)), FEW)

    def _counted(
        self, work: _Work, mine: tuple[dict[int, Digest], ...], theirs: tuple[dict[int, Digest], ...]
    ) -> None:
        for span, here, there in zip(work.spans, mine, theirs, strict=True):
            one, other = forest.total(here.values()), forest.total(there.values())
            if span in self._beyond:
                self.outcome.tables[self._scope.tables[span.table]] += one.rows
            if one != other and max(one.rows, other.rows) <= LISTED // 4:
                self._rows([span])
            elif one != other and span.width > 1:
                self._pieces([span])
            elif one != other:
                self.outcome.spans.append(span)  # more rows at one instant than can be listed

    def _listed(
        self, work: _Work, mine: tuple[tuple[Row, ...], ...], theirs: tuple[tuple[Row, ...], ...]
    ) -> None:
        suspected = {(one.table, one.key) for one in self._suspects}
        for span, one, other in zip(work.spans, mine, theirs, strict=True):
            here, there = {row.key: row for row in one}, {row.key: row for row in other}
            found = list(_differences(self._scope.tables[span.table], here, there))
            if work.level == "suspects":  # others may have the same position
                found = [one for one in found if (one.table, one.key) in suspected]
            elif not found:
                self.outcome.stale.append(span)
            self.outcome.differences += found
        if work.level == "suspects" and self.outcome.differences:
            self._work = [other for other in self._work if other.level == "suspects"]


def _length(answer: Answer) -> int:
    match answer:
        case Summed(sums):
            return len(sums)
        case Sliced(slices):
            return len(slices)
        case Listed(rows):
            return len(rows)
        case _:
            return -1


def _differences(table: Table, here: Mapping[UUID, Row], there: Mapping[UUID, Row]) -> Iterable[Difference]:
    for key in sorted(here.keys() | there.keys()):
        mine, theirs = here.get(key), there.get(key)
        if mine is None or theirs is None:
            row = mine or theirs
            assert row is not None
            what = "missing here" if mine is None else "missing there"
        elif mine.content != theirs.content:
            row, what = mine, "different"
        else:
            continue
        yield Difference(
            table,
            key,
            row.shown or str(key),
            what,
            mine.stamp if mine else None,
            theirs.stamp if theirs else None,
            mine.content if mine else None,
            theirs.content if theirs else None,
        )
