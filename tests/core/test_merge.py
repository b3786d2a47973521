"""The rules for one key: who wins, what was a conflict, what may travel and be kept without metadata."""

from dataclasses import replace
from functools import reduce
from itertools import permutations
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import merge, stamp
from syncagent.core.merge import Dot, Folded, Incoming, Local, Version, Window
from syncagent.core.stamp import ZERO


def at(hlc: int, node: int = 1) -> UUID:
    return stamp.pack(hlc, node, 0)


KEY = at(100)
ODD = UUID("00000000-0000-4000-8000-000000000001")
NOTHING = Local(alive=False)


def local(version: Incoming) -> Local:
    """What a site holds that took this version."""
    implicit = not version.deleted and merge.is_implicit(KEY, version.stamp)
    entry = None if implicit else Version(version.stamp, version.dot, version.deleted)
    return Local(not version.deleted, entry, content=version.content)


def meet(key: UUID, held: Local, incoming: Incoming) -> tuple[Local, bool]:
    """The site afterwards, and whether it saw a conflict. Nobody had seen anything."""
    merged = merge.merge(key, held, incoming, 9, {}, lambda dot: {})
    if merged.action != "take":
        return replace(held, entry=merged.entry), merged.conflict
    return Local(not incoming.deleted, merged.entry, content=incoming.content), merged.conflict


# One stamp, one content; only an implicit stamp says nothing of who wrote it, nor what.
def written(hlc: int, node: int, deleted: bool) -> Incoming:
    content = None if deleted else f"{hlc}.{node}".encode()
    return Incoming(at(hlc, node), Dot(node, hlc), deleted, content)


stamped = st.builds(written, st.integers(101, 110), st.integers(1, 3), st.just(False)).map(
    lambda v: replace(v, deleted=v.stamp.int % 3 == 0, content=None if v.stamp.int % 3 == 0 else v.content)
)
implicit = st.builds(
    Incoming,
    st.just(KEY),
    st.builds(Dot, st.integers(1, 3), st.just(1)),
    st.just(False),
    st.sampled_from([b"a", b"b", b""]),
)
versions = stamped | implicit


# ---- who wins


@given(versions, versions)
def test_two_sites_that_exchange_versions_hold_the_same(one: Incoming, two: Incoming) -> None:
    here, seen_here = meet(KEY, local(one), two)
    there, seen_there = meet(KEY, local(two), one)
    assert (here.alive, here.content, merge.local_stamp(KEY, here)) == (
        there.alive,
        there.content,
        merge.local_stamp(KEY, there),
    )
    if one.stamp == two.stamp or KEY not in (one.stamp, two.stamp):  # else implicit: in everybody's past
        assert seen_here == seen_there


@given(st.lists(versions, min_size=1, max_size=4))
def test_the_order_of_arrival_decides_nothing(some: list[Incoming]) -> None:
    ends = {
        (end.alive, end.content, merge.local_stamp(KEY, end))
        for order in permutations(some)
        for end in [reduce(lambda held, incoming: meet(KEY, held, incoming)[0], order, NOTHING)]
    }
    assert len(ends) == 1


@given(versions)
def test_the_same_version_again_changes_nothing(version: Incoming) -> None:
    held = local(version)
    merged = merge.merge(KEY, held, version, 9, {}, lambda dot: {})
    assert (merged.action, merged.entry, merged.conflict) == ("keep", held.entry, False)


@given(versions, versions, st.none() | st.integers(90, 120))
def test_a_stamp_is_never_lowered(one: Incoming, two: Incoming, logged: int | None) -> None:
    held = replace(local(one), logged=at(logged, 9) if logged else None)
    merged = merge.merge(KEY, held, two, 9, {}, lambda dot: {})
    after = Local(
        not two.deleted if merged.action == "take" else held.alive, merged.entry, held.logged, two.content
    )
    before, now = merge.local_stamp(KEY, held), merge.local_stamp(KEY, after)
    assert before is not None
    assert now is not None
    assert now >= max(before, two.stamp)


@pytest.mark.parametrize("alive", [True, False])
def test_an_unfolded_write_that_wins_leaves_a_trace(alive: bool) -> None:
    """Else the fold could take it for an implicit row, and its stamp would be lower than the one it won by."""
    merged = merge.merge(KEY, Local(alive, None, at(300)), written(200, 2, False), 9, {}, lambda dot: {})
    assert (merged.action, merged.entry) == ("trace", Version(at(300), Dot(9, None), not alive))


def test_an_unfolded_write_below_its_entry_leaves_none() -> None:
    entry = Version(at(400), Dot(3, 5), False)
    merged = merge.merge(KEY, Local(True, entry, at(300)), written(350, 2, False), 9, {3: 5}, lambda dot: {})
    assert (merged.action, merged.entry) == ("keep", entry)


def test_an_implicit_version_that_wins_needs_no_entry() -> None:
    tombstone = Version(at(50), Dot(3, 1), True)
    merged = merge.merge(
        KEY, Local(False, tombstone), Incoming(KEY, Dot(2, 7), False, b"x"), 9, {3: 1}, lambda dot: {}
    )
    assert (merged.action, merged.entry, merged.conflict) == ("take", None, False)


def test_an_insert_of_ours_that_the_writer_had_not_seen_is_a_conflict() -> None:
    born = Local(True, None, content=b"a", born=(Dot(9, 5),))
    incoming = written(200, 2, False)
    unseen = merge.merge(KEY, born, incoming, 9, {9: 4}, lambda dot: {})
    assert (unseen.action, unseen.conflict, unseen.unborn) == ("take", True, True)
    seen = merge.merge(KEY, born, incoming, 9, {9: 5}, lambda dot: {})
    assert (seen.action, seen.conflict, seen.unborn) == ("take", False, False)


def test_one_key_inserted_twice_is_a_conflict_unless_it_is_the_same_row() -> None:
    held, row = Local(True, content=b"b"), Incoming(KEY, Dot(2, 1), False, b"a")
    seen = {9: 99}
    assert merge.merge(KEY, held, row, 9, seen, lambda dot: {}).conflict
    assert merge.merge(KEY, held, row, 9, seen, lambda dot: {}).action == "keep"
    assert merge.merge(KEY, held, replace(row, content=b"c"), 9, seen, lambda dot: {}).action == "take"
    assert not merge.merge(KEY, held, replace(row, content=b"b"), 9, seen, lambda dot: {}).conflict


# ---- was it a conflict? Ours is cut 4 of node 3; cut 7 of node 2 comes in.

OURS = Version(at(200), Dot(3, 4), False)
THEIRS = Incoming(at(300), Dot(2, 7), False, b"theirs")


@pytest.mark.parametrize(
    ("held", "their_context", "our_context", "conflict"),
    [
        pytest.param(Local(True, OURS), {3: 4}, {}, False, id="they had seen ours"),
        pytest.param(Local(True, OURS), {3: 3}, {2: 7}, False, id="ours had seen theirs"),
        pytest.param(Local(True, OURS), {3: 3}, {2: 6}, True, id="neither had seen the other"),
        pytest.param(Local(True, OURS), {3: 3}, None, True, id="what ours had seen is forgotten"),
        pytest.param(Local(True), {}, {}, False, id="implicit: in everybody's past"),
        pytest.param(NOTHING, {}, {}, False, id="nothing here"),
        pytest.param(Local(True, None, at(250)), {3: 99}, {}, True, id="not cut yet: seen by nobody"),
        pytest.param(Local(True, OURS, at(250)), {3: 4}, {2: 9}, True, id="seen, and written over since"),
        pytest.param(Local(True, OURS, at(150)), {3: 4}, {}, False, id="an older unfolded write is not held"),
        pytest.param(
            Local(True, replace(OURS, dot=Dot(9, None))), {9: 99}, {}, True, id="a trace is not cut either"
        ),
    ],
)
@pytest.mark.parametrize("hlc", [190, 300], ids=["it loses", "it wins"])
def test_concurrent(
    held: Local,
    their_context: dict[int, int],
    our_context: dict[int, int] | None,
    conflict: bool,
    hlc: int,
) -> None:
    incoming = replace(THEIRS, stamp=at(hlc, 2))
    assert merge.merge(KEY, held, incoming, 9, their_context, lambda dot: our_context).conflict == conflict


# ---- fold

DOT = Dot(1, 8)
BORN = Window(["insert"], at(200), alive=True)


@pytest.mark.parametrize(
    ("key", "window", "mark", "outcome"),
    [
        pytest.param(KEY, BORN, ZERO, "implicit", id="inserted"),
        pytest.param(KEY, replace(BORN, ops=["insert", "update"]), ZERO, "implicit", id="and updated"),
        pytest.param(KEY, replace(BORN, ops=["update"]), ZERO, "stamped", id="updated"),
        pytest.param(KEY, replace(BORN, ops=["delete", "insert"]), ZERO, "stamped", id="deleted, inserted"),
        pytest.param(KEY, replace(BORN, ops=["insert", "delete"]), ZERO, "stamped", id="order: nested"),
        pytest.param(at(201), BORN, ZERO, "stamped", id="ahead: the key is above the stamp"),
        pytest.param(ODD, BORN, ZERO, "stamped", id="odd: the key has no time"),
        pytest.param(KEY, BORN, at(150), "stamped", id="mark: a tombstone above it was forgotten"),
        pytest.param(KEY, BORN, KEY, "stamped", id="mark: of this very stamp"),
        pytest.param(KEY, BORN, at(99), "implicit", id="mark: below it"),
        pytest.param(KEY, Window(["delete"], at(200), alive=False), ZERO, "stamped", id="deleted"),
        pytest.param(KEY, Window(["insert", "delete"], at(200), alive=False), ZERO, "stamped", id="and gone"),
        pytest.param(KEY, Window(["update"], at(200), alive=False), ZERO, "lost", id="gone, undeleted"),
    ],
)
def test_fold_without_an_entry(key: UUID, window: Window, mark: UUID, outcome: str) -> None:
    written = Version(window.stamp, DOT, not window.alive)
    entry = written if outcome == "stamped" else None
    assert merge.fold(key, window, DOT, mark) == Folded(outcome, entry, conflict=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "alive", "outcome"),
    [
        pytest.param(Version(at(150), Dot(2, 3), False), True, "stamped", id="ours is newer"),
        pytest.param(Version(at(150), Dot(2, 3), True), True, "stamped", id="newer than the tombstone"),
        pytest.param(Version(at(200), Dot(1, None), False), True, "stamped", id="the trace gets its dot"),
        pytest.param(Version(at(250), Dot(2, 3), False), True, "replaced", id="theirs is newer"),
        pytest.param(Version(at(250), Dot(2, 3), True), False, "replaced", id="deleted by a newer one"),
        pytest.param(Version(at(250), Dot(2, 3), True), True, "settle", id="alive under a newer tombstone"),
    ],
)
def test_fold_over_an_entry(entry: Version, alive: bool, outcome: str) -> None:
    window = Window(["insert" if alive else "delete"], at(200), alive, entry)
    folded = merge.fold(KEY, window, DOT, ZERO)
    assert folded.outcome == outcome
    assert folded.shipped == (outcome == "stamped")
    assert folded.entry == (Version(at(200), DOT, not alive) if folded.shipped else entry)
    assert not folded.conflict


def test_an_insert_and_a_tombstone_that_could_not_see_each_other_are_a_conflict() -> None:
    tombstone = Version(at(250), Dot(2, 3), True)
    window = replace(BORN, entry=tombstone, unseen_tombstone=True)
    assert merge.fold(KEY, window, DOT, ZERO).conflict
    assert not merge.fold(KEY, replace(window, entry=replace(tombstone, deleted=False)), DOT, ZERO).conflict


clocks = st.integers(90, 110)
entries = st.none() | st.builds(
    Version, st.builds(at, clocks), st.builds(Dot, st.integers(1, 3), st.integers(1, 9)), st.booleans()
)
windows = st.builds(
    Window,
    st.lists(st.sampled_from(["insert", "update", "delete"]), min_size=1, max_size=3),
    st.builds(at, clocks),
    st.booleans(),
    entries,
)


@given(st.builds(at, clocks) | st.just(ODD), windows, st.builds(at, clocks) | st.just(ZERO))
def test_what_a_fold_leaves_can_be_told_from_what_was_there_before(
    key: UUID, window: Window, mark: UUID
) -> None:
    folded = merge.fold(key, window, DOT, mark)
    if window.entry:
        assert folded.entry
        assert folded.entry.stamp >= window.entry.stamp
    if folded.shipped:
        travels = folded.entry.stamp if folded.entry else stamp.implicit(key)
        assert travels <= window.stamp, "the next write's clock is above it"
        assert folded.entry or travels > mark, "nothing that was forgotten is newer"
        assert folded.entry or "delete" not in window.ops, "who held the older row will replace it"


# ---- ship


@pytest.mark.parametrize(
    ("folded", "alive", "entry", "dot"),
    [
        pytest.param(5, True, None, Dot(1, 5), id="implicit"),
        pytest.param(4, True, None, None, id="implicit, sent before"),
        pytest.param(5, False, None, None, id="neither row nor version"),
        pytest.param(5, True, Version(at(1), Dot(1, 7), False), Dot(1, 7), id="ours, by its own dot"),
        pytest.param(5, False, Version(at(1), Dot(1, 7), True), Dot(1, 7), id="our delete"),
        pytest.param(5, True, Version(at(1), Dot(1, 4), False), None, id="ours, sent before"),
        pytest.param(5, True, Version(at(1), Dot(2, 7), False), None, id="replaced by another origin's"),
        pytest.param(5, True, Version(at(1), Dot(1, None), False), None, id="not cut"),
        pytest.param(5, False, Version(at(1), Dot(1, 7), False), None, id="lost"),
        pytest.param(
            5, True, Version(at(1), Dot(1, 7), True), Dot(1, 7), id="a tombstone under which a row lives"
        ),
    ],
)
def test_what_travels_in_a_batch_after_cut_4(
    folded: int, alive: bool, entry: Version | None, dot: Dot | None
) -> None:
    assert merge.shipped(folded, alive, entry, origin=1, after=4) == dot


# ---- settle and compact

TOMBSTONE = Version(at(200), Dot(2, 5), True)


def test_settling_is_asked_of_what_is_stored_alone() -> None:
    assert merge.needs_settling(Local(True, TOMBSTONE))
    assert not merge.needs_settling(Local(False, TOMBSTONE))
    assert not merge.needs_settling(Local(True, replace(TOMBSTONE, deleted=False)))
    assert not merge.needs_settling(Local(True, TOMBSTONE, at(300)))
    assert not merge.needs_settling(Local(True))


@pytest.mark.parametrize(
    ("held", "stable", "old", "may"),
    [
        pytest.param(Local(True, replace(TOMBSTONE, deleted=False)), {2: 5}, False, True, id="stable row"),
        pytest.param(Local(True, replace(TOMBSTONE, deleted=False)), {2: 5}, True, True, id="row, old ones"),
        pytest.param(Local(False, TOMBSTONE), {2: 5}, False, True, id="stable tombstone"),
        pytest.param(Local(False, TOMBSTONE), {2: 4}, False, False, id="not stable"),
        pytest.param(Local(False, TOMBSTONE), {}, False, False, id="nothing is known"),
        pytest.param(Local(False, TOMBSTONE), {2: 5}, True, False, id="horizon: an insert may be open"),
        pytest.param(Local(True, TOMBSTONE), {2: 5}, False, False, id="alive under its tombstone"),
        pytest.param(Local(False, TOMBSTONE, at(300)), {2: 5}, False, False, id="uncut: a write is unfolded"),
        pytest.param(Local(True, Version(at(200), Dot(1, None), False)), {1: 99}, False, False, id="a trace"),
        pytest.param(Local(True, Version(at(99), Dot(2, 5), False)), {2: 5}, False, False, id="ahead"),
        pytest.param(Local(True), {2: 5}, False, False, id="no entry"),
    ],
)
def test_compaction(held: Local, stable: dict[int, int], old: bool, may: bool) -> None:
    assert merge.may_drop(KEY, held, stable, old) == may


def test_a_key_without_a_time_is_compacted_to_zero() -> None:
    row = Local(True, Version(at(1), Dot(2, 5), False))
    assert merge.may_drop(ODD, row, {2: 5}, old_transactions=False)
    assert merge.local_stamp(ODD, replace(row, entry=None)) == ZERO
