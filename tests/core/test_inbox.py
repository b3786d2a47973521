"""What a receiver asks for, and which batch it applies next."""

import pytest
from msgspec.structs import replace

from syncagent.core import clock, limits, stamp
from syncagent.core.arrival import Entry
from syncagent.core.batch import BatchHeader
from syncagent.core.inbox import Inbox
from syncagent.core.wire import Want
from syncagent.errors import ProtocolError
from tests.core.batches import batch, cut_id, header, position

ME, A, B, C = 1, 2, 3, 4
WALL = stamp.from_seconds(1_700_000_000)
Box = Inbox[str]


@pytest.fixture
def inbox() -> Box:
    """Linked with three origins, nothing applied yet, everything asked for."""
    box = Box(ME, (A, B, C))
    box.loaded({})
    for node in (A, B, C):
        box.linked(node)
    assert asked(box) == dict.fromkeys((A, B, C), (0, None))
    return box


def asked(box: Box, now: float = 0.0) -> dict[int, tuple[int, object]]:
    return {node: (want.after, want.after_id) for node, want in box.wants(now, WALL)}


def arrive(box: Box, *headers: BatchHeader) -> None:
    """They arrive as answers to wants, named by their order."""
    for each in headers:
        box.wants(0.0, WALL)
        assert box.arrived(each, f"{each.origin}:{each.after}-{each.upto}")


def pick(box: Box, now: float = 0.0, wall: int = WALL) -> Entry[str]:
    entry = box.pick(now, wall)
    assert entry is not None
    return entry


def apply(box: Box, now: float = 0.0, wall: int = WALL) -> str:
    entry = pick(box, now, wall)
    box.applied(entry)
    return entry.payload


def reason(box: Box, node: int, now: float = 0.0, wall: int = WALL) -> str:
    return box.waiting(now, wall)[node].reason


# ---- asking


def test_nothing_is_asked_before_the_database_was_read_or_without_a_link() -> None:
    box = Box(ME, (A, B))
    box.linked(A)
    assert box.wants(0.0, WALL) == []
    box.loaded({A: position(A, 7), B: position(B, 3)})
    assert asked(box) == {A: (7, cut_id(A, 7))}
    assert reason(box, B) == "unlinked"


def test_a_want_is_repeated_only_when_it_seems_lost(inbox: Box) -> None:
    inbox.receiving(A, 10.0)
    assert inbox.wants(limits.ASK_AGAIN - 0.1, WALL) == []
    assert asked(inbox, limits.ASK_AGAIN) == {B: (0, None), C: (0, None)}
    assert asked(inbox, limits.ASK_AGAIN + 10.0) == {A: (0, None)}


def test_one_batch_is_applied_while_the_next_one_travels(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 2))
    assert asked(inbox) == {A: (2, cut_id(A, 2))}
    assert inbox.arrived(batch(A, 2, 3), "second")
    assert inbox.wants(0.0, WALL) == []  # the window is full
    apply(inbox)
    assert asked(inbox) == {A: (3, cut_id(A, 3))}


def test_a_refusal_is_respected_until_its_time_or_a_new_link(inbox: Box) -> None:
    inbox.refused(A, "gone", 30.0)
    assert inbox.wants(29.0, WALL) == []
    assert inbox.waiting(29.0, WALL)[A].text == "gone"
    assert inbox.wake_in(29.0, WALL) == pytest.approx(1.0)
    assert asked(inbox, 30.0) == {A: (0, None)}
    inbox.refused(A, "gone", 90.0)
    inbox.linked(A)
    assert asked(inbox, 31.0) == {A: (0, None)}


def test_a_new_link_is_asked_at_once_and_what_had_arrived_is_kept(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1))
    inbox.wants(0.0, WALL)
    inbox.unlinked(A)
    assert not inbox.arrived(batch(A, 1, 2), "late")  # asked over the old link
    assert inbox.wants(0.0, WALL) == []
    assert apply(inbox) == "2:0-1"
    inbox.linked(A)
    assert asked(inbox) == {A: (1, cut_id(A, 1))}


def test_a_link_that_takes_the_place_of_another_is_asked_anew(inbox: Box) -> None:
    inbox.linked(A)
    assert asked(inbox) == {A: (0, None)}


# ---- what arrives


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(batch(A, 0, 2), id="twice"),
        pytest.param(batch(A, 1, 3), id="overlapping"),
        pytest.param(batch(A, 3, 4), id="beyond a gap"),
        pytest.param(batch(9, 0, 1), id="of a stranger"),
    ],
)
def test_only_what_continues_the_chain_is_kept(inbox: Box, again: BatchHeader) -> None:
    arrive(inbox, batch(A, 0, 2))
    inbox.wants(0.0, WALL)
    assert not inbox.arrived(again, "again")
    assert inbox.arrived(batch(A, 2, 3), "next")


def test_what_was_not_asked_for_is_not_kept(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 2))
    assert not inbox.arrived(batch(A, 2, 3), "unasked")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(header(A, 0, 2, {2: {}}, 1), id="a cut without its context"),
        pytest.param(header(A, 0, 2, {2: {}, 1: {}}, 1), id="in the wrong order"),
        pytest.param(header(A, 0, 1, {1: {}, 2: {}}, 1), id="one too many"),
        pytest.param(header(A, 1, 1, {}, 1), id="no cut at all"),
    ],
)
def test_a_batch_that_does_not_describe_itself_is_an_error(inbox: Box, broken: BatchHeader) -> None:
    with pytest.raises(ProtocolError, match="node 2 sent a batch") as error:
        inbox.arrived(broken, "broken")
    assert error.value.hint


def test_plain_rows_that_met_metadata_are_asked_for_again_in_exact_form(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1), batch(A, 1, 2))
    assert inbox.inexact(pick(inbox)) == ["2:0-1", "2:1-2"]
    assert inbox.wants(0.0, WALL) == [(A, Want(after=0, after_id=None, plain=False))]
    assert not inbox.arrived(batch(A, 0, 1, form="plain"), "sent before we asked")
    assert inbox.arrived(batch(A, 0, 2, form="exact"), "exact")
    apply(inbox)
    assert inbox.wants(0.0, WALL) == [(A, Want(after=2, after_id=cut_id(A, 2), plain=True))]


# ---- what is applied


def test_the_oldest_first_over_all_origins_one_at_a_time(inbox: Box) -> None:
    arrive(inbox, batch(B, 0, 1), batch(A, 0, 1), batch(B, 1, 2))
    first = pick(inbox)
    assert inbox.pick(0.0, WALL) is None
    assert inbox.pick_knot(0.0, WALL) == []
    assert reason(inbox, B) == "applying"
    inbox.applied(first)
    assert [first.payload, apply(inbox), apply(inbox)] == ["3:0-1", "2:0-1", "3:1-2"]
    assert inbox.frontier == {A: 1, B: 2}


def test_a_batch_waits_for_all_that_its_origin_had_seen(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 2, ME: 99}), batch(B, 0, 1))
    assert inbox.waiting(0.0, WALL)[A].text == "waits for cut 2 of node 3"
    assert apply(inbox) == "3:0-1"
    assert inbox.pick(0.0, WALL) is None
    arrive(inbox, batch(B, 1, 2))
    assert [apply(inbox), apply(inbox)] == ["3:1-2", "2:0-1"]


def test_a_batch_from_a_clock_ahead_is_held_until_time_has_caught_up(inbox: Box) -> None:
    newest = WALL + clock.MAX_SKEW + stamp.from_seconds(1.5)
    arrive(inbox, batch(A, 0, 1, newest=newest), batch(A, 1, 2), batch(B, 0, 1))
    assert apply(inbox) == "3:0-1"
    assert inbox.pick(0.0, WALL) is None
    assert inbox.waiting(0.0, WALL)[A].text == "held: the clock of node 2 is 6.5 s ahead of ours"
    wake = inbox.wake_in(0.0, WALL)
    assert wake == pytest.approx(1.5)
    assert apply(inbox, 1.5, WALL + stamp.from_seconds(1.5)) == "2:0-1"


def test_what_a_site_has_taken_back_is_never_applied(inbox: Box) -> None:
    newest = WALL + clock.MAX_SKEW + stamp.from_seconds(3.0)
    arrive(inbox, batch(A, 0, 1, newest=newest), batch(B, 0, 1, newest=newest))
    assert inbox.removed(B) == [], "one that is gone, and has taken nothing back: its last words"
    assert inbox.removed(A, void=True) == ["2:0-1"]
    later = WALL + stamp.from_seconds(3.0)
    assert apply(inbox, 3.0, later) == "3:0-1"
    assert inbox.pick(3.0, later) is None


def test_what_is_taken_back_while_it_is_applied_is_not_tried_again(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1), batch(A, 1, 2))
    entry = pick(inbox)
    assert inbox.removed(A, void=True) == ["2:1-2"]
    assert inbox.deferred(entry, "a row is locked", 5.0) == ["2:0-1"]
    assert inbox.pick(5.0, WALL) is None


def test_a_deferred_batch_comes_again_and_holds_up_nobody_else(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1), batch(B, 0, 1))
    inbox.deferred(pick(inbox), "a row is locked", 5.0)
    assert inbox.attempts(A) == 1
    assert apply(inbox) == "3:0-1"
    assert inbox.pick(4.9, WALL) is None
    assert inbox.waiting(4.9, WALL)[A].text == "a row is locked"
    assert inbox.wake_in(4.9, WALL) == pytest.approx(0.1)
    assert apply(inbox, 5.0) == "2:0-1"
    assert inbox.attempts(A) == 0


def test_a_paused_origin_is_neither_asked_nor_applied(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1))
    inbox.pause(A)
    assert inbox.pick(0.0, WALL) is None
    assert inbox.wants(0.0, WALL) == []
    assert reason(inbox, A) == "paused"
    inbox.pause(A, False)
    assert asked(inbox) == {A: (1, cut_id(A, 1))}
    assert apply(inbox) == "2:0-1"


# ---- knots


def knot(box: Box, now: float = 0.0, wall: int = WALL) -> list[str]:
    assert box.pick(now, wall) is None
    entries = box.pick_knot(now, wall)
    for entry in entries:
        box.applied(entry)
    return [entry.payload for entry in entries]


def test_batches_that_wait_for_each_other_are_applied_together(inbox: Box) -> None:
    arrive(inbox, batch(B, 0, 3, {A: 2}), batch(A, 0, 2, {B: 3}), batch(C, 0, 1, {A: 3}))
    assert knot(inbox) == ["3:0-3", "2:0-2"]
    assert inbox.frontier == {A: 2, B: 3}
    assert reason(inbox, C) == "causal"


def test_a_knot_may_go_round_and_take_several_batches_of_one_origin(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 2, {B: 1}), batch(B, 0, 1, {C: 4}), batch(C, 0, 2), batch(C, 2, 4, {A: 1}))
    assert apply(inbox) == "4:0-2"
    assert knot(inbox) == ["2:0-2", "3:0-1", "4:2-4"]


def test_a_knot_takes_no_more_than_it_must(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 1}), batch(B, 0, 1, {A: 1}), batch(B, 1, 2))
    assert knot(inbox) == ["2:0-1", "3:0-1"]
    assert apply(inbox) == "3:1-2"


def test_the_smallest_knot_first(inbox: Box) -> None:
    arrive(inbox, batch(C, 0, 1, {A: 1, B: 1}), batch(A, 0, 1, {B: 1}), batch(B, 0, 1, {A: 1}))
    assert knot(inbox) == ["2:0-1", "3:0-1"]
    assert apply(inbox) == "4:0-1"


def test_what_a_knot_lacks_is_asked_for_beyond_the_window(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 3}), batch(B, 0, 1, {A: 1}), batch(B, 1, 2))
    assert knot(inbox) == []
    assert inbox.wants(0.0, WALL) == [(B, Want(after=2, after_id=cut_id(B, 2), plain=True, needs=3))]
    assert inbox.arrived(batch(B, 2, 3), "3:2-3")
    assert knot(inbox) == ["2:0-1", "3:0-1", "3:1-2", "3:2-3"]


def test_an_origin_is_asked_again_once_others_wait_for_it(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 2}))
    wants = dict(inbox.wants(0.0, WALL))
    assert wants[B] == Want(after=0, after_id=None, plain=True, needs=2)
    assert inbox.wants(0.0, WALL) == []


def test_a_knot_grows_by_small_batches_within_its_limits(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 99}))
    for cut in range(1, limits.KNOT_WINDOW):
        assert asked(inbox)[A] == (cut, cut_id(A, cut))
        assert inbox.arrived(batch(A, cut, cut + 1), "more")
    assert A not in asked(inbox)


def test_a_knot_that_is_closed_asks_for_nothing_more(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 1}), batch(A, 1, 2), batch(B, 0, 1, {A: 1}), batch(B, 1, 2))
    assert asked(inbox).keys().isdisjoint({A, B})


def test_a_knot_of_large_batches_does_not_grow(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 99}), batch(A, 1, 2, size=limits.KNOT_SIZE))
    assert A not in asked(inbox)
    arrive(inbox, batch(B, 0, 99, {A: 3}))
    assert asked(inbox)[A] == (2, cut_id(A, 2))  # but what it lacks it must have


def test_a_knot_waits_while_one_of_its_batches_is_paused(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 1}), batch(B, 0, 1, {A: 1}))
    inbox.pause(B)
    assert knot(inbox) == []
    inbox.pause(B, False)
    assert knot(inbox) == ["2:0-1", "3:0-1"]


def test_a_deferred_knot_comes_again(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 1}), batch(B, 0, 1, {A: 1}))
    for entry in inbox.pick_knot(0.0, WALL):
        inbox.deferred(entry, "a row is locked", 5.0)
    assert knot(inbox, 4.9) == []
    assert inbox.wake_in(4.9, WALL) == pytest.approx(0.1)
    assert knot(inbox, 5.0) == ["2:0-1", "3:0-1"]


def test_plain_rows_in_a_knot_are_asked_for_again_in_exact_form(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1, {B: 2}), batch(B, 0, 1, {A: 1}), batch(B, 1, 2))
    dropped = [payload for entry in inbox.pick_knot(0.0, WALL) for payload in inbox.inexact(entry)]
    assert sorted(dropped) == ["2:0-1", "3:0-1", "3:1-2"]
    assert {node: want.plain for node, want in inbox.wants(0.0, WALL)} == {A: False, B: False}


def test_a_knot_with_a_clock_ahead_is_held_until_time_has_caught_up(inbox: Box) -> None:
    newest = WALL + clock.MAX_SKEW + stamp.from_seconds(3.0)
    arrive(inbox, batch(A, 0, 1, {B: 2}), batch(B, 0, 1, {A: 1}), batch(B, 1, 2, newest=newest))
    assert knot(inbox) == []
    assert inbox.wake_in(0.0, WALL) == pytest.approx(3.0)
    assert knot(inbox, 3.0, WALL + stamp.from_seconds(3.0)) == ["2:0-1", "3:0-1", "3:1-2"]


# ---- the database


def test_a_commit_whose_fate_was_unknown_is_read_from_the_database(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1), batch(A, 1, 2))
    pick(inbox)
    assert inbox.loaded({A: position(A, 1)}) == ["2:0-1"]  # it was committed
    assert pick(inbox).payload == "2:1-2"
    assert inbox.loaded({A: position(A, 1)}) == []  # it was not
    assert apply(inbox) == "2:1-2"


def test_a_database_that_was_put_back_asks_from_there(inbox: Box) -> None:
    arrive(inbox, batch(A, 0, 1), batch(A, 1, 2))
    apply(inbox)
    inbox.wants(0.0, WALL)
    assert inbox.loaded({}) == ["2:1-2"]
    assert asked(inbox) == {A: (0, None)}
    assert not inbox.arrived(batch(A, 2, 3), "asked for before")


# ---- the schema


def test_what_is_newer_waits_for_the_step_and_what_is_too_old_is_asked_for_again(inbox: Box) -> None:
    arrive(inbox, replace(batch(A, 0, 1), schema=2), replace(batch(B, 0, 1), schema=1))
    inbox.reshaped(1, 0)
    assert apply(inbox) == f"{B}:0-1"
    assert inbox.pick(0.0, WALL) is None
    assert reason(inbox, A) == "schema"
    assert inbox.reshaped(2, 1) == []
    assert apply(inbox) == f"{A}:0-1"
    arrive(inbox, replace(batch(A, 1, 2), schema=2))
    assert inbox.reshaped(4, 3) == [f"{A}:1-2"]
    assert asked(inbox)[A] == (1, cut_id(A, 1))
    inbox.arrived(replace(batch(A, 1, 2), schema=4), "applied while the schema changes")
    entry = pick(inbox)
    assert inbox.reshaped(6, 5) == []
    assert inbox.deferred(entry, "it has other columns", 0.0) == ["applied while the schema changes"]
    assert asked(inbox)[A] == (1, cut_id(A, 1))
    assert inbox.is_outgrown(replace(batch(A, 1, 2), schema=4))
    assert not inbox.is_outgrown(replace(batch(A, 1, 2), schema=5))
