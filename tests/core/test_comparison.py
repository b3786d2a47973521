"""Two sites find exactly the rows that differ, however their forests look."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import comparison, forest, questions, stamp, wire
from syncagent.core.batch import Table
from syncagent.core.comparison import Comparison, Difference, Outcome
from syncagent.core.forest import END, WIDTHS, Bucket, Digest, Span
from syncagent.core.questions import (
    Answer,
    Begin,
    Begun,
    Grove,
    Leaves,
    Listed,
    Question,
    Row,
    Rows,
    Settle,
    Sliced,
    Standing,
    Summed,
    Sums,
)
from syncagent.errors import ProtocolError
from syncagent.services.comparing import Side

HOUR = WIDTHS["hour"]
NOW = 490_000
"""The bucket that is not sealed yet."""
Held = dict[UUID, int]
TABLES = (Table("public", "one"), Table("public", "two"))


@dataclass
class Memory:
    """A View of rows in memory: a dumb twin of the one in SQL."""

    tables: dict[Table, Held]
    depth: int
    built: int = NOW * HOUR
    bucket: Bucket = "hour"
    frontier: dict[int, int] = field(default_factory=lambda: {1: 5, 2: 5})
    doubtful: tuple[tuple[Table, UUID], ...] = ()
    numbered: list[Table] = field(default_factory=list)
    read: int = 0

    async def standing(self, tables: Sequence[Table] | None) -> Standing:
        groves = {
            Grove(table, "shape", self.bucket): (END, self.built)
            for table in self.tables
            if tables is None or table in tables
        }
        return questions.standing((1, 2), self.frontier, True, groves)

    async def left_out(self, _: Mapping[int, int], groves: Sequence[Grove]) -> tuple[Span, ...]:
        numbers = {grove.table: number for number, grove in enumerate(groves)}
        return tuple({self._bucket(numbers[table], key) for table, key in self.doubtful if table in numbers})

    def number(self, tables: Sequence[Table]) -> None:
        self.numbered = list(tables)

    def _in(self, span: Span) -> dict[UUID, Digest]:
        return {
            key: Digest(
                1, *(forest.wrapped(xxhash.xxh3_64_intdigest(key.bytes, lane + value)) for lane in (0, 9))
            )
            for key, value in self.tables[self.numbered[span.table]].items()
            if stamp.is_timed(key) == span.timed and span.low <= forest.position(key) < span.high
        }

    def _bucket(self, table: int, key: UUID) -> Span:
        width = forest.width(self.bucket, stamp.is_timed(key))
        low = forest.position(key) // width * width
        return Span(table, stamp.is_timed(key), low, low + width)

    async def sums(
        self, level: str, spans: Sequence[Span], left_out: Iterable[Span]
    ) -> tuple[dict[int, Digest], ...]:
        gone = set(left_out)
        found = []
        for span in spans:
            sums: dict[int, Digest] = {}
            for key, digest in self._in(span).items():
                bucket = self._bucket(span.table, key)
                if bucket in gone:
                    continue
                start = span.low if level == "table" else bucket.low
                if level in ("year", "month", "day") and span.timed:
                    start, _ = forest.period(level, bucket.low)
                sums[start] = sums.get(start, forest.NOTHING).plus(digest)
            found.append(sums)
        return tuple(found)

    async def leaves(
        self, depth: int, spans: Sequence[Span]
    ) -> tuple[tuple[int, dict[int, Digest]] | None, ...]:
        found: list[tuple[int, dict[int, Digest]] | None] = []
        for span in spans:
            deep = min(depth, self.depth)
            leaves: dict[int, Digest] = {}
            for key, digest in self._in(span).items():
                _, number = forest.slice_of(forest.position(key), forest.width(self.bucket, span.timed), deep)
                leaves[number] = leaves.get(number, forest.NOTHING).plus(digest)
            found.append((deep, leaves) if leaves else None)
        return tuple(found)

    async def count(self, spans: Sequence[Span]) -> tuple[dict[int, Digest], ...]:
        return tuple({span.low: forest.total(self._in(span).values())} for span in spans)

    async def rows(self, spans: Sequence[Span], most: int) -> tuple[tuple[Row, ...], ...]:
        found = tuple(
            tuple(Row(key, str(key), None, d.lane_0, d.lane_1) for key, d in self._in(span).items())
            for span in spans
        )
        self.read += sum(len(rows) for rows in found)
        assert self.read <= 10 * most
        return found


def sent(question: Question) -> Question:
    """As it comes out of the wire."""
    message = wire.decode(wire.encode(wire.Compare(UUID(int=1), question)))
    assert isinstance(message, wire.Compare)
    assert message.question is not None
    return message.question


def returned(answer: Answer) -> Answer:
    message = wire.decode(wire.encode(wire.Compared(UUID(int=1), answer)))
    assert isinstance(message, wire.Compared)
    assert message.answer is not None
    return message.answer


async def converse(
    here: Memory,
    there: Memory,
    *,
    whole: bool = True,
    turn: float = 0.0,
    suspects: Sequence[Difference] = (),
) -> Outcome:
    mine, theirs = await Side.of(here, None), await Side.of(there, None)
    out_here = await mine.left_out(theirs.standing.frontier)
    out_there = await theirs.left_out(mine.standing.frontier)
    root = await mine.settle(theirs.standing, out_here, out_there, whole=whole)
    other = await theirs.settle(mine.standing, out_there, out_here, whole=whole)
    assert mine.scope == theirs.scope
    assert mine.scope is not None
    machine = Comparison(mine.standing, theirs.standing, mine.scope, mine.sums, turn, suspects)
    question = machine.first(root, other)
    asked = 0
    while question is not None:
        asked += 1
        assert asked < 200
        question = machine.heard(await mine.answer(question), returned(await theirs.answer(sent(question))))
    return machine.outcome


def compare(here: Memory, there: Memory, **how: Any) -> Outcome:
    return asyncio.run(converse(here, there, **how))


timed = st.builds(
    stamp.pack,
    st.one_of(
        st.integers(0, stamp.MAX_HLC),
        st.integers(480_000 * HOUR, 480_002 * HOUR),
        st.integers(NOW * HOUR - 2, NOW * HOUR + 2),
        st.sampled_from([0, stamp.MAX_HLC, 480_001 * HOUR, 480_001 * HOUR - 1]),
    ),
    st.integers(0, 3),
    st.integers(0, 3),
)
keys = (
    timed
    | st.uuids().filter(lambda key: not stamp.is_timed(key))
    | st.sampled_from([UUID(int=0), UUID(int=2**128 - 1)])
)
held = st.dictionaries(keys, st.integers(1, 5), max_size=30)
depths = st.integers(0, 19)


@given(
    held,
    held,
    held,
    depths,
    depths,
    st.sampled_from([NOW * HOUR, (NOW - 9_999) * HOUR, END]),
    st.sampled_from(list(WIDTHS)),
)
def test_exactly_the_rows_that_differ(
    common: Held, one: Held, other: Held, deep: int, flat: int, built: int, bucket: Bucket
) -> None:
    here, there = {**common, **one}, {**common, **other}
    first, deep, flat = NOW * HOUR, *(min(depth, forest.deepest(WIDTHS[bucket])) for depth in (deep, flat))
    first, built = (upto if upto == END else upto - upto % WIDTHS[bucket] for upto in (first, built))
    outcome = compare(
        Memory({TABLES[0]: here, TABLES[1]: common}, deep, built=first, bucket=bucket),
        Memory({TABLES[0]: there, TABLES[1]: common}, flat, built=built, bucket=bucket),
    )
    expected = {key for key in here.keys() | there.keys() if here.get(key) != there.get(key)}
    assert {found.key for found in outcome.differences} == expected
    assert {found.what for found in outcome.differences if found.key not in there} <= {"missing there"}
    assert {found.what for found in outcome.differences if found.key not in here} <= {"missing here"}
    assert all(found.table == TABLES[0] for found in outcome.differences)
    assert outcome.equal == (here == there)
    assert outcome.tables == {TABLES[0]: len(here), TABLES[1]: len(common)} or not outcome.equal
    assert not outcome.stale


def test_buckets_of_another_width_are_not_compared() -> None:
    one, other = {stamp.pack(480_000 * HOUR, 1, 1): 1}, {stamp.pack(480_000 * HOUR, 1, 2): 1}
    outcome = compare(Memory({TABLES[0]: one}, 3), Memory({TABLES[0]: other}, 3, bucket="day"), whole=False)
    assert outcome.scope.tables == ()
    assert "another width" in comparison.unlike(outcome.here, outcome.there)[TABLES[0]]


@given(held, held, st.data())
def test_what_either_side_leaves_out_is_not_compared(common: Held, one: Held, data: st.DataObject) -> None:
    here = Memory({TABLES[0]: {**common, **one}}, 3)
    there = Memory({TABLES[0]: common}, 5)
    new = [(TABLES[0], key) for key in one if common.get(key) != one[key]]
    sides = data.draw(st.lists(st.booleans(), min_size=len(new), max_size=len(new)))
    here.doubtful = tuple(each for each, mine in zip(new, sides, strict=True) if mine)
    there.doubtful = tuple(each for each, mine in zip(new, sides, strict=True) if not mine)
    assert compare(here, there, whole=False).equal


def test_trees_compared_at_different_depths_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {stamp.pack(480_000 * HOUR + n * HOUR // 20, 1, n): 1 for n in range(20)}
    here, there = Memory({TABLES[0]: rows}, 2), Memory({TABLES[0]: dict(list(rows.items())[1:])}, 5)
    assert len(compare(here, there).differences) == 1
    monkeypatch.setattr(forest, "coarser", lambda leaves, _: dict(leaves))
    with pytest.raises(ProtocolError):
        compare(here, there)


def test_rows_on_their_way_are_differences_if_nothing_is_left_out() -> None:
    key = stamp.pack(480_000 * HOUR, 1, 1)
    assert not compare(Memory({TABLES[0]: {key: 1}}, 0), Memory({TABLES[0]: {}}, 0), whole=False).equal


def test_what_is_not_sealed_is_compared_only_between_still_sites() -> None:
    key = stamp.pack((NOW + 1) * HOUR, 1, 1)
    here, there = Memory({TABLES[0]: {key: 1}}, 0), Memory({TABLES[0]: {}}, 0)
    assert [found.key for found in compare(here, there).differences] == [key]
    assert compare(here, there, whole=False).equal
    there.frontier = {1: 5, 2: 6}
    outcome = compare(here, there)
    assert outcome.equal
    assert not outcome.scope.whole


def test_only_tables_that_are_the_same_at_both_sites_are_compared() -> None:
    here, there = Memory({TABLES[0]: {}, TABLES[1]: {UUID(int=5): 1}}, 0), Memory({TABLES[0]: {}}, 0)
    outcome = compare(here, there)
    assert outcome.equal
    assert comparison.unlike(outcome.here, outcome.there) == {TABLES[1]: "is not attached there"}
    there.tables = {Table("a", "first"): {}, TABLES[1]: {UUID(int=5): 2}, TABLES[0]: {}}
    assert [(found.table, found.key) for found in compare(here, there).differences] == [
        (TABLES[1], UUID(int=5))
    ]


def test_few_rows_are_read_for_few_differences() -> None:
    chance = random.Random(1)
    rows = {stamp.pack(480_000 * HOUR + chance.randrange(100 * HOUR), 1, n): 1 for n in range(4000)}
    other = dict(rows)
    for key in chance.sample(sorted(rows), 5):
        del other[key]
    here, there = Memory({TABLES[0]: rows}, 2), Memory({TABLES[0]: other}, 4)
    assert len(compare(here, there).differences) == 5
    assert here.read < 200


def test_a_second_look_at_a_few_rows_reads_those() -> None:
    chance = random.Random(2)
    rows = {stamp.pack(480_000 * HOUR + chance.randrange(100 * HOUR), 1, n): 1 for n in range(4000)}
    gone = chance.sample(sorted(rows), 6)
    first = compare(
        Memory({TABLES[0]: rows}, 2), Memory({TABLES[0]: dict(rows.items() - [(key, 1) for key in gone])}, 4)
    )
    here, there = (
        Memory({TABLES[0]: rows}, 2),
        Memory({TABLES[0]: dict(rows.items() - [(key, 1) for key in gone[1:]])}, 4),
    )
    again = compare(here, there, suspects=first.suspects())
    assert {found.key for found in again.differences} == set(gone[1:])
    assert not again.stale
    assert here.read == 6


@given(held, held, held, st.data())
def test_if_none_of_those_rows_differs_any_more_all_are_looked_at(
    common: Held, one: Held, other: Held, data: st.DataObject
) -> None:
    here, there = Memory({TABLES[0]: {**common, **one}}, 3), Memory({TABLES[0]: {**common, **other}}, 5)
    plain = compare(here, there)
    equal = sorted(common.keys() - {found.key for found in plain.differences})
    suspects = [Difference(TABLES[0], key, "", "different", None, None) for key in equal[:9]]
    assert compare(here, there, suspects=suspects).differences == plain.differences
    picked = data.draw(st.lists(st.sampled_from(plain.differences), max_size=5)) if plain.differences else []
    found = {one.key for one in compare(here, there, suspects=[*suspects, *picked]).differences}
    assert found == {one.key for one in picked or plain.differences}


def test_rows_at_one_instant_are_told_apart_by_their_number_alone() -> None:
    rows = {stamp.pack(480_000 * HOUR, 1, n): 1 for n in range(comparison.LISTED)}
    outcome = compare(Memory({TABLES[0]: rows}, 0), Memory({TABLES[0]: {}}, 0))
    assert [(span.low, span.width) for span in outcome.spans] == [(480_000 * HOUR, 1)]
    assert not outcome.equal


def test_it_is_enough_after_so_many() -> None:
    rows = {stamp.pack(480_000 * HOUR + n * HOUR // 9, 1, n): 1 for n in range(2000)}
    outcome = compare(Memory({TABLES[0]: rows}, 0), Memory({TABLES[0]: {}}, 0))
    assert outcome.more
    assert comparison.DIFFERENCES <= len(outcome.differences) < 1500


def test_many_rows_that_differ_hide_no_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "DIFFERENCES", 50)
    rows = {stamp.pack(480_000 * HOUR + n * HOUR // 3, 1, n): 1 for n in range(300)}
    found, chance = set[UUID](), random.Random(3)
    for _ in range(40):
        here, there = Memory({TABLES[0]: rows}, 0), Memory({TABLES[0]: {}}, 0)
        found |= {row.key for row in compare(here, there, turn=chance.random()).differences}
    assert found == rows.keys()


def test_equal_sites_with_many_tables_say_little() -> None:
    tables: dict[Table, Held] = {
        Table("public", f"a_table_with_a_name_{n}"): {UUID(int=n): n} for n in range(100)
    }
    side = asyncio.run(Side.of(Memory(tables, 0), None))
    begin = Begin(side.standing.listed(None), None, whole=False)
    begun = Begun(side.standing.known_to(begin.standing), ())
    root = asyncio.run(side.settle(side.standing, (), (), whole=False))
    settle = Settle(None, (), root.root)
    over = side.over(root, settle)
    assert over.over, "nobody has to say that it is the end"
    messages: list[wire.Message] = [wire.Compare(UUID(int=1), said) for said in (begin, settle)]
    messages += [wire.Compared(UUID(int=1), said) for said in (begun, over)]
    assert sum(len(wire.encode(message)) for message in messages) < 820, "with what TLS adds to four: 1 kB"


def test_it_is_not_over_while_something_is_to_be_asked() -> None:
    side = asyncio.run(Side.of(Memory({TABLES[0]: {UUID(int=1): 1}}, 0), None))
    root = asyncio.run(side.settle(side.standing, (), (), whole=False))
    assert not side.over(root, Settle(None, ())).over, (
        "an older site does not say its root, and says the end itself"
    )
    assert not side.over(root, Settle(None, (), bytes(16))).over
    root = asyncio.run(side.settle(side.standing, (), (), whole=True))
    assert not side.over(root, Settle(None, (), root.root)).over, "the newest rows are in no root"


# ---- a peer that sends what it must not

SPAN = Span(0, True, 0, NOW * HOUR)
LIES: dict[str, tuple[type[Question], Callable[[Answer], Answer]]] = {
    "a year that was not asked for": (Sums, lambda _: Summed(({END + 1: Digest(1, 1, 1)},) * 2)),
    "too few answers": (Sums, lambda _: Summed(())),
    "too many answers": (Sums, lambda _: Summed(({},) * 5)),
    "another kind of answer": (Sums, lambda _: Listed(((),) * 2)),
    "a tree that is too deep": (Leaves, lambda _: Sliced(((60, {1: Digest(1, 1, 1)}),))),
    "leaves beyond the bucket": (Leaves, lambda _: Sliced(((0, {99: Digest(1, 1, 1)}),))),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie: str) -> None:
    kind, told = LIES[lie]

    async def lied() -> None:
        key = stamp.pack(480_000 * HOUR, 1, 1)
        here, there = Memory({TABLES[0]: {key: 1}}, 0), Memory({TABLES[0]: {}}, 0)
        mine, theirs = await Side.of(here, None), await Side.of(there, None)
        root = await mine.settle(theirs.standing, (), (), whole=False)
        other = await theirs.settle(mine.standing, (), (), whole=False)
        assert mine.scope is not None
        machine = Comparison(mine.standing, theirs.standing, mine.scope, mine.sums)
        question = machine.first(root, other)
        while question is not None:
            answer = await theirs.answer(question)
            answer = told(answer) if isinstance(question, kind) else answer
            question = machine.heard(await mine.answer(question), answer)

    with pytest.raises(ProtocolError):
        asyncio.run(lied())


QUESTIONS: dict[str, Question] = {
    "a level that there is not": Sums("second", (SPAN,)),
    "a table that is not compared": Sums("year", (msgspec.structs.replace(SPAN, table=7),)),
    "a span beyond the end": Rows((msgspec.structs.replace(SPAN, high=END + 1),)),
    "an empty span": Rows((msgspec.structs.replace(SPAN, low=9, high=9),)),
    "too much at once": Sums("year", (SPAN,) * 100_000),
    "a depth that there is not": Leaves(99, (SPAN,)),
    "the beginning again": Settle(None, ()),
}


@pytest.mark.parametrize("what", QUESTIONS)
def test_questions_nobody_may_ask_are_refused(what: str) -> None:
    async def ask() -> None:
        side = await Side.of(Memory({TABLES[0]: {}}, 0), None)
        with pytest.raises(ProtocolError):
            await side.answer(Sums("year", (SPAN,)))  # before it is agreed what is compared
        await side.settle(side.standing, (), (), whole=False)
        with pytest.raises(ProtocolError):
            await side.answer(QUESTIONS[what])

    asyncio.run(ask())
