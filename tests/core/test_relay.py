"""Whom a site asks for the batches of an origin that it has no link with, and what it does with the answer."""

import pytest
from msgspec.structs import replace

from syncagent.core import clock, limits, stamp
from syncagent.core.batch import BatchHeader
from syncagent.core.inbox import Inbox
from syncagent.core.outbox import Group, Outbox
from syncagent.core.wire import Relay, Want
from syncagent.errors import ProtocolError
from tests.core.batches import batch, cut_id, position

ME, HUB, OTHER, FAR = 1, 2, 3, 4
WALL = stamp.from_seconds(1_700_000_000)
LATER = limits.RELAY_AFTER
Box = Inbox[str]


@pytest.fixture
def inbox() -> Box:
    """FAR has no link, and has had none for long enough; the hub has most of it."""
    box = Box(ME, (HUB, OTHER, FAR))
    box.loaded({FAR: position(FAR, 5)})
    box.linked(HUB)
    box.linked(OTHER)
    box.told(HUB, {FAR: 9})
    box.told(OTHER, {FAR: 8})
    assert [want.relay for _, want in box.wants(0.0, WALL)] == [{}, {}], "a link that was lost may come back"
    return box


def relay(inbox: Box, now: float = LATER) -> dict[int, dict[int, Relay]]:
    return {node: want.relay for node, want in inbox.wants(now, WALL) if want.relay}


def bundle(
    far: BatchHeader, upto: int = 3, after: int = 0
) -> tuple[BatchHeader, str, list[tuple[BatchHeader, str]]]:
    """What the hub sends: its own batch, which had all of FAR up to where the other one goes."""
    own = replace(batch(HUB, after, upto, {FAR: far.upto}), relayed=(FAR,))
    return own, "own", [(far, "far")]


def test_whoever_has_most_of_it_is_asked(inbox: Box) -> None:
    assert relay(inbox) == {HUB: {FAR: Relay(5)}}
    assert inbox.waiting(LATER, WALL)[FAR].reason == "relayed"
    assert relay(inbox) == {}, "asked already"


def test_without_a_link_one_wakes_when_it_is_time_to_ask_others(inbox: Box) -> None:
    assert inbox.wake_in(0.5, WALL) == LATER - 0.5


def test_another_relay_is_asked_when_the_first_has_no_more(inbox: Box) -> None:
    relay(inbox)
    inbox.told(OTHER, {FAR: 10})
    assert relay(inbox) == {}, "the hub has some of it still"
    assert inbox.arrived(*bundle(batch(FAR, 5, 9)))
    entry = inbox.pick(LATER, WALL)
    assert entry
    assert inbox.applied(entry) == []
    assert relay(inbox) == {OTHER: {FAR: Relay(9)}}


def test_another_relay_is_asked_when_the_first_goes_away_or_is_unable(inbox: Box) -> None:
    relay(inbox)
    own = replace(batch(HUB, 0, 3, {FAR: 9}), unable=(FAR,))
    assert inbox.arrived(own, "own")
    assert relay(inbox) == {OTHER: {FAR: Relay(5, needs=9)}}, "and the hub's batch waits for it"
    inbox.unlinked(OTHER)
    assert relay(inbox) == {}
    inbox.unlinked(HUB)
    inbox.linked(HUB)
    assert relay(inbox) == {HUB: {FAR: Relay(5, needs=9)}}, "over a new link it is tried again"


def test_a_relay_that_was_unable_is_asked_again_from_a_later_cut_on(inbox: Box) -> None:
    inbox.unlinked(OTHER)
    assert relay(inbox) == {HUB: {FAR: Relay(5)}}
    assert inbox.arrived(replace(batch(HUB, 0, 1), unable=(FAR,)), "own")
    assert relay(inbox) == {}
    inbox.loaded({FAR: position(FAR, 6)})
    assert relay(inbox) == {HUB: {FAR: Relay(6)}}


def test_another_relay_is_asked_while_what_the_first_has_sent_waits(inbox: Box) -> None:
    """For a batch of the other one, which waits for more of FAR than the hub has."""
    relay(inbox)
    far = batch(FAR, 5, 9)
    own = replace(batch(HUB, 0, 3, {FAR: 9, OTHER: 1}), relayed=(FAR,))
    assert inbox.arrived(own, "own", [(far, "far")])
    inbox.wants(LATER, WALL)
    assert inbox.arrived(batch(OTHER, 0, 1, {FAR: 10}), "other")
    assert inbox.pick(LATER, WALL) is None
    assert relay(inbox)[OTHER] == {FAR: Relay(5, needs=10)}


def test_what_a_former_relay_has_sent_counts(inbox: Box) -> None:
    relay(inbox)
    own = replace(batch(HUB, 0, 3, {FAR: 9, OTHER: 1}), relayed=(FAR,))
    assert inbox.arrived(own, "own", [(batch(FAR, 5, 9), "far")])
    inbox.unlinked(HUB)
    inbox.wants(LATER, WALL)
    assert inbox.relay(FAR) == OTHER
    assert inbox.arrived(batch(OTHER, 0, 1, {FAR: 9}), "other")
    assert inbox.pick(LATER, WALL) is None
    assert [entry.payload for entry in inbox.pick_knot(LATER, WALL)] == ["own", "other"]


def test_what_others_had_before_a_clock_went_ahead_comes_from_them(inbox: Box) -> None:
    """FAR's next batch begins before its clock went ahead; others have built on that part already."""
    inbox.linked(FAR)
    inbox.wants(0.0, WALL)
    newest = WALL + clock.MAX_SKEW + stamp.from_seconds(3600.0)
    assert inbox.arrived(batch(FAR, 5, 10, newest=newest), "ahead")
    assert inbox.arrived(batch(HUB, 0, 1, {FAR: 9}), "builds on it")
    assert relay(inbox, 0.0) == {}
    assert inbox.wake_in(0.0, WALL) == pytest.approx(limits.RELAY_AFTER)
    assert inbox.pick(0.0, WALL) is None
    assert inbox.pick_knot(0.0, WALL) == []
    waiting = inbox.waiting(0.0, WALL)
    assert waiting[FAR].text == f"held: the clock of node {FAR} is 3605.0 s ahead of ours"
    assert waiting[HUB].text == f"waits for cut 9 of node {FAR}"

    assert relay(inbox) == {HUB: {FAR: Relay(5, needs=9)}}
    assert inbox.arrived(*bundle(batch(FAR, 5, 9), after=1))
    for entry in inbox.pick_knot(LATER, WALL):
        inbox.applied(entry)
    assert inbox.frontier == {HUB: 3, FAR: 9}
    assert inbox.pick(LATER, WALL) is None

    caught_up = WALL + stamp.from_seconds(3600.0)
    ahead = inbox.pick(LATER, caught_up)
    assert ahead
    assert [(header.after, header.upto) for header, _ in inbox.batches([ahead])] == [(9, 10)]
    assert inbox.wants(LATER, caught_up)
    assert inbox.relay(FAR) is None


def test_what_others_lack_is_asked_for_on_their_behalf(inbox: Box) -> None:
    """Nobody here waits for it: it says nothing that is not known."""
    inbox.linked(FAR)
    assert {node: want.needs for node, want in inbox.wants(LATER, WALL)} == {FAR: 0}
    assert {node: want.needs for node, want in inbox.wants(LATER, WALL, {FAR: 9})} == {FAR: 9}
    assert inbox.wants(LATER, WALL, {FAR: 9}) == []
    inbox.unlinked(FAR)
    assert inbox.wants(LATER, WALL, {FAR: 9}) == []
    assert inbox.wants(LATER + limits.RELAY_AFTER, WALL, {FAR: 9}) == [
        (HUB, Want(0, None, plain=True, relay={FAR: Relay(5, needs=9)}))
    ]


def test_last_words_that_are_held_are_no_time_to_forget(inbox: Box) -> None:
    relay(inbox)
    assert inbox.arrived(*bundle(batch(FAR, 5, 9)))
    assert not inbox.holds_last_words
    inbox.removed(FAR)
    assert inbox.holds_last_words
    entry = inbox.pick(LATER, WALL)
    assert entry
    inbox.applied(entry)
    assert not inbox.holds_last_words


def test_what_is_relayed_is_applied_with_its_relays_own(inbox: Box) -> None:
    relay(inbox)
    assert inbox.arrived(*bundle(batch(FAR, 5, 9)))
    entry = inbox.pick(LATER, WALL)
    assert entry
    assert [(header.origin, payload) for header, payload in inbox.batches([entry])] == [
        (FAR, "far"),
        (HUB, "own"),
    ]
    inbox.applied(entry)
    assert inbox.frontier == {HUB: 3, FAR: 9}


def test_what_came_over_a_new_link_meanwhile_is_left_out(inbox: Box) -> None:
    relay(inbox)
    inbox.linked(FAR)
    inbox.wants(LATER, WALL)
    assert inbox.arrived(batch(FAR, 5, 7), "direct")
    assert inbox.arrived(*bundle(batch(FAR, 5, 9)))
    first = inbox.pick(LATER, WALL)
    assert first
    assert first.payload == "direct"
    inbox.applied(first)
    second = inbox.pick(LATER, WALL)
    assert second
    assert [(header.after, header.upto) for header, _ in inbox.batches([second])] == [(7, 9), (0, 3)]
    inbox.applied(second)
    assert inbox.frontier[FAR] == 9


def test_what_a_relay_overtakes_is_given_back(inbox: Box) -> None:
    relay(inbox)
    inbox.linked(FAR)
    inbox.wants(LATER, WALL)
    assert inbox.arrived(*bundle(batch(FAR, 5, 9)))
    assert inbox.arrived(batch(FAR, 5, 7, {OTHER: 1}), "direct")  # it waits for another one
    entry = inbox.pick(LATER, WALL)
    assert entry
    assert inbox.applied(entry) == ["direct"]
    assert {node: want.after for node, want in inbox.wants(LATER, WALL)}[FAR] == 9


def test_a_bundle_with_a_hole_is_not_kept(inbox: Box) -> None:
    relay(inbox)
    own, payload, _ = bundle(batch(FAR, 5, 9))
    with pytest.raises(ProtocolError, match="did not come"):
        inbox.arrived(own, payload)
    assert not inbox.arrived(*bundle(batch(FAR, 6, 9)))


def test_a_paused_origin_is_not_asked_for(inbox: Box) -> None:
    inbox.pause(FAR)
    assert relay(inbox) == {}
    inbox.removed(FAR)
    assert relay(inbox) == {HUB: {FAR: Relay(5)}}, "nobody could resume it any more"


def outbox() -> Outbox:
    box = Outbox(ME)
    box.loaded(10, cut_id(ME, 10), {ME: 10, FAR: 5}, {ME: 10, FAR: 5}, 0, 0.0)
    return box


def test_a_relay_serves_who_lacks_what_says_something() -> None:
    box = outbox()
    box.asked(HUB, Want(10, cut_id(ME, 10), plain=True, relay={FAR: Relay(5)}), cut_id(ME, 10))
    assert box.plan(100.0, pending=False) is None
    box.learned(FAR, 6, rows=0, needed=5)
    assert box.plan(100.0, pending=False) is None, "made for somebody else who lagged"
    box.learned(FAR, 7, rows=0, needed=7)
    plan = box.plan(100.0, pending=False)
    assert plan
    assert plan.cause == "behind"
    assert plan.groups == (Group(10, True, (HUB,)), Group(5, True, (HUB,), FAR))
    made = box.cut_made(plan, 11, cut_id(ME, 11), {ME: 11, FAR: 7}, True, 100.0)
    assert made == plan.groups
    assert box.needed == 10, "the cut itself says nothing new"


def test_a_relay_knows_what_it_is_asked_for_and_lacks() -> None:
    box = outbox()
    assert box.lacked == {}
    box.asked(HUB, Want(10, cut_id(ME, 10), plain=True, relay={FAR: Relay(5, needs=6)}), cut_id(ME, 10))
    assert box.lacked == {FAR: 6}
    box.learned(FAR, 6, rows=0, needed=5)
    assert box.lacked == {}


def test_a_relay_serves_who_waits_for_a_cut_that_says_nothing() -> None:
    box = outbox()
    box.learned(FAR, 6, rows=0, needed=5)
    box.asked(HUB, Want(10, cut_id(ME, 10), plain=True, relay={FAR: Relay(5, needs=6)}), cut_id(ME, 10))
    assert box.plan(100.0, pending=False)
