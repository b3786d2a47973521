"""The arithmetic of the forest: sums that add up, and every key in exactly one place."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import pairwise
from uuid import UUID

import pytest
import xxhash
from hypothesis import find, given
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from syncagent.core import forest, stamp
from syncagent.core.forest import END, NOTHING, PREFIX_WIDTH, WIDTHS, Digest, Span

lanes = st.integers(-(2**63), 2**63 - 1)
rows = st.lists(st.builds(Digest, st.just(1), lanes, lanes), max_size=12)
widths = st.sampled_from([*WIDTHS.values(), PREFIX_WIDTH])
keys = st.builds(
    stamp.pack,
    st.integers(0, stamp.MAX_HLC),
    st.integers(0, stamp.MAX_NODE),
    st.integers(0, stamp.MAX_TAIL),
) | st.uuids().filter(lambda key: not stamp.is_timed(key))
FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)
FIRST_TIMED, LAST_TIMED = (
    stamp.pack(0, 0, 0),
    stamp.pack(stamp.MAX_HLC, stamp.MAX_NODE, stamp.MAX_TAIL),
)

# ---- digests


@given(rows, st.data())
def test_the_whole_is_the_sum_of_any_parts(one: list[Digest], data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, 3), min_size=len(one), max_size=len(one)))
    parts = [
        forest.total(d for d, place in zip(one, places, strict=True) if place == part) for part in range(4)
    ]
    whole = forest.total(one)
    assert forest.total(parts) == whole
    assert whole.rows == len(one)


Sums = Callable[[Iterable[Digest]], Digest]


def xored(digests: Iterable[Digest]) -> Digest:
    """What a released tool of this field did."""
    found = NOTHING
    for digest in digests:
        found = Digest(found.rows + 1, found.lane_0 ^ digest.lane_0, found.lane_1 ^ digest.lane_1)
    return found


def distinct(digests: Iterable[Digest]) -> Digest:
    """Each change is noted once."""
    return forest.total({digest.lane_0: digest for digest in digests}.values())


def unwrapped_lane(digests: Iterable[Digest]) -> Digest:
    """A lane that stops at its end in place of starting anew."""
    rows = list(digests)
    return Digest(len(rows), min(sum(digest.lane_0 for digest in rows), 2**63 - 1), 0)


ROWS = [
    Digest(1, *(forest.wrapped(xxhash.xxh3_64_intdigest(bytes([n]), seed=lane)) for lane in (1, 2)))
    for n in range(4)
]
"""Four rows, and their fingerprints."""


def confused(sums: Sums) -> tuple[list[int], list[int]]:
    """Two tables that such digests take for each other; which rows are in them, and how often."""
    table = st.lists(st.integers(0, len(ROWS) - 1), max_size=4).map(sorted)
    return find(
        st.tuples(table, table),
        lambda two: two[0] != two[1] and sums(ROWS[n] for n in two[0]) == sums(ROWS[n] for n in two[1]),
    )


def test_digests_that_are_no_sums_are_caught() -> None:
    one, other = confused(xored)
    assert len(one) == len(other)  # counted, and still two pairs look alike
    assert len(confused(distinct)) == 2
    confused(unwrapped_lane)
    with pytest.raises(NoSuchExample):
        confused(forest.total)


def test_the_root_tells_tables_apart() -> None:
    one, other = Digest(1, 2, 3), Digest(4, 5, 6)
    roots = {
        forest.root([("a", one), ("b", other)]),
        forest.root([("a", other), ("b", one)]),
        forest.root([("a", one), ("c", other)]),
        forest.root([("a", one)]),
        forest.root([]),
    }
    assert len(roots) == 5
    assert forest.root([("b", other), ("a", one)]) in roots


# ---- keys and positions


@given(keys, keys)
def test_every_key_lies_between_the_bounds_of_its_position(key: UUID, other: UUID) -> None:
    timed, place = stamp.is_timed(key), forest.position(key)
    assert 0 <= place < END
    assert forest.first_key(place, timed=timed) <= key <= forest.last_key(place, timed=timed)
    if stamp.is_timed(other) == timed and key < other:
        assert place <= forest.position(other)
    if place:
        assert forest.last_key(place - 1, timed=timed) < key


def test_the_first_and_the_last_keys_have_a_place() -> None:
    assert [forest.position(key) for key in (FIRST, FIRST_TIMED)] == [0, 0]
    assert [forest.position(key) for key in (LAST, LAST_TIMED)] == [END - 1, END - 1]
    assert forest.last_key(END - 1, timed=False) == LAST


@given(keys, widths, st.data())
def test_slices_nest(key: UUID, width: int, data: st.DataObject) -> None:
    place = forest.position(key)
    depth = data.draw(st.integers(0, forest.deepest(width)))
    above = data.draw(st.integers(0, depth))
    bucket, number = forest.slice_of(place, width, depth)
    assert forest.slice_of(place, width, above) == (bucket, number >> depth - above)
    span = forest.slice_span(0, True, width, bucket, depth, number)
    assert span.low <= place < span.high
    assert 0 <= number < 1 << depth


@given(st.integers(0, END - 1), st.integers(1, END), st.integers(1, 70))
def test_parts_of_a_span_hold_each_position_once(low: int, width: int, count: int) -> None:
    span = Span(0, True, low, low + width)
    parts = list(span.parts(count))
    assert (parts[0].low, parts[-1].high) == (span.low, span.high)
    assert all(one.high == other.low for one, other in pairwise(parts))
    assert all(part.width > 0 for part in parts)


# ---- trees of different depth

leaves = st.dictionaries(st.integers(0, 63), st.builds(Digest, st.integers(1, 3), lanes, lanes), max_size=20)


@given(leaves, st.integers(0, 6), st.integers(0, 6))
def test_equal_rows_are_equal_whatever_the_depth(fine: dict[int, Digest], one: int, other: int) -> None:
    common = max(one, other)
    here = forest.coarser(forest.coarser(fine, one), common - one)
    there = forest.coarser(forest.coarser(fine, other), common - other)
    assert here == there
    assert forest.total(here.values()) == forest.total(fine.values())


@given(leaves, st.integers(0, 63), st.integers(0, 6))
def test_one_row_more_differs_where_it_is(fine: dict[int, Digest], place: int, halvings: int) -> None:
    more = {**fine, place: fine.get(place, NOTHING).plus(Digest(1, 0, 0))}
    assert forest.differing(forest.coarser(fine, halvings), forest.coarser(more, halvings)) == [
        place >> halvings
    ]


# ---- the calendar

SECONDS = forest.SECOND


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(9998, 12, 31)),  # noqa: DTZ001
    st.sampled_from(["year", "month", "day"]),
)
def test_periods_are_those_of_the_calendar(moment: datetime, level: str) -> None:
    moment = moment.replace(tzinfo=UTC)
    low, high = forest.period(level, int(moment.timestamp()) * SECONDS)
    begin = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    begin = begin.replace(
        month=1 if level == "year" else moment.month, day=moment.day if level == "day" else 1
    )
    assert low == int(begin.timestamp()) * SECONDS
    following = datetime.fromtimestamp(high // SECONDS, UTC)
    assert forest.period(level, high)[0] == high
    assert {"year": following.year, "month": following.month, "day": following.day}[level] != {
        "year": moment.year,
        "month": moment.month,
        "day": moment.day,
    }[level]


@given(st.integers(0, END - 1), st.sampled_from(["year", "month", "day"]))
def test_periods_hold_what_they_are_the_period_of(place: int, level: str) -> None:
    low, high = forest.period(level, place)
    assert low <= place < high
    assert forest.period(level, low) == forest.period(level, high - 1) == (low, high)
    assert low % WIDTHS["day"] == high % WIDTHS["day"] == 0
