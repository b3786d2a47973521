"""When an origin makes a cut, and which ranges it reads out for whom."""

from uuid import UUID

import pytest

from syncagent.core import limits
from syncagent.core.outbox import Group, Outbox, Plan
from syncagent.core.wire import Want
from tests.core.batches import cut_id

ME, A, B, C = 1, 2, 3, 4
LAST = 10
MARK, OTHER = UUID(int=1), UUID(int=2)
LATER = 100.0


def mine(cut: int) -> UUID:
    return cut_id(ME, cut)


def loaded(frontier: dict[int, int] | None = None, *, floor: int = 0) -> Outbox:
    """Ten cuts were made; the last one told all of `frontier`."""
    box = Outbox(ME)
    known = {ME: LAST, **(frontier or {})}
    box.loaded(LAST, mine(LAST), known, known, floor, 0.0)
    return box


@pytest.fixture
def box() -> Outbox:
    return loaded()


def want(box: Outbox, peer: int, after: int = LAST, *, plain: bool = True, needs: int = 0) -> str | None:
    """The code of the refusal, if it is one."""
    known = mine(after) if 0 < after <= box.last else None
    refused = box.asked(peer, Want(after, known, plain, needs), known)
    return refused.code if refused else None


def plan(box: Outbox, now: float = LATER, *, pending: bool = False) -> Plan:
    made = box.plan(now, pending)
    assert made is not None
    return made


def cut(
    box: Outbox,
    now: float = LATER,
    *,
    pending: bool = False,
    frontier: dict[int, int] | None = None,
    made: Plan | None = None,
) -> tuple[Group, ...]:
    """What was planned, done: the groups that still want it."""
    made, number = made or plan(box, now, pending=pending), box.last + 1
    return box.cut_made(made, number, mine(number), {ME: number, **(frontier or {})}, not pending, now)


# ---- refusals


@pytest.mark.parametrize(
    ("asked", "here", "code"),
    [
        pytest.param(Want(0, None, True), None, None, id="from the beginning"),
        pytest.param(Want(LAST, mine(LAST), True), mine(LAST), None, id="the last one"),
        pytest.param(Want(LAST + 1, mine(LAST + 1), True), None, "unknown-cut", id="never made"),
        pytest.param(Want(4, cut_id(9, 4), True), mine(4), "unknown-cut", id="made differently"),
        pytest.param(Want(4, None, True), mine(4), "unknown-cut", id="without its id"),
        pytest.param(Want(4, mine(4), True), None, "log-cut", id="forgotten"),
    ],
)
def test_a_want_is_refused_if_it_cannot_be_served(
    box: Outbox, asked: Want, here: UUID | None, code: str | None
) -> None:
    refused = box.asked(A, asked, here)
    assert (refused and refused.code) == code
    assert refused is None or refused.hint
    groups = plan(box, pending=True).groups if code is None else ()
    assert bool(groups) == (code is None)


def test_what_follows_the_floor_of_the_log_can_be_had() -> None:
    box = loaded(floor=4)
    assert [want(box, A, after) for after in (0, 3, 4, 5)] == ["log-cut", "log-cut", None, None]


def test_a_refused_want_replaces_the_one_before(box: Outbox) -> None:
    want(box, A)
    want(box, A, LAST + 5)
    assert cut(box, pending=True) == ()


# ---- groups


def test_peers_at_the_same_position_share_one_batch(box: Outbox) -> None:
    want(box, C)
    want(box, A)
    want(box, B, 4)
    assert cut(box, pending=True) == (Group(4, True, (B,)), Group(LAST, True, (A, C)))
    assert box.plan(LATER * 2, False) is None


def test_exact_rows_are_a_batch_of_their_own(box: Outbox) -> None:
    want(box, A)
    want(box, B, plain=False)
    assert cut(box, pending=True) == (Group(LAST, False, (B,)), Group(LAST, True, (A,)))


def test_a_cut_that_failed_has_consumed_nothing(box: Outbox) -> None:
    want(box, A)
    box.marked(MARK)
    assert plan(box, pending=True) == plan(box, pending=True)


def test_who_left_or_asked_anew_during_the_cut_is_not_sent_to(box: Outbox) -> None:
    for peer in (A, B, C):
        want(box, peer)
    made = plan(box, pending=True)
    box.unlinked(A)
    want(box, B, plain=False)
    assert cut(box, pending=True, made=made) == (Group(LAST, True, (C,)),)
    assert plan(box, LATER * 2).groups == (Group(LAST, False, (B,)),)


def test_a_want_said_twice_is_answered_once(box: Outbox) -> None:
    want(box, A)
    cut(box, pending=True)
    want(box, A)
    assert box.plan(LATER * 2, False) is None
    box.sent(A)
    want(box, A)  # now it must have been lost
    assert plan(box, LATER * 2).groups == (Group(LAST, True, (A,)),)


# ---- when


def test_a_cut_needs_somebody_who_wants_it_and_something_to_say(box: Outbox) -> None:
    assert box.plan(LATER, False) is None
    assert box.wake_in(LATER, False) is None
    want(box, A)
    assert box.plan(LATER, False) is None
    assert plan(box, pending=True).cause == "pending"


def test_writes_that_come_together_share_a_cut(box: Outbox) -> None:
    want(box, A)
    cut(box, 50.0, pending=True)
    want(box, A, LAST + 1)
    assert box.plan(50.0, True) is None
    assert box.wake_in(50.0, True) == pytest.approx(limits.CUT_INTERVAL)
    assert plan(box, 50.0 + limits.CUT_INTERVAL, pending=True).groups == (Group(LAST + 1, True, (A,)),)


def test_cuts_that_take_long_leave_time_in_between_and_one_alone_does_not(box: Outbox) -> None:
    def wait(now: float, took: float) -> float | None:
        """For the cut after one that took so long."""
        want(box, A, box.last)
        number = box.last + 1
        box.cut_made(plan(box, now, pending=True), number, mine(number), {ME: number}, False, now, took)
        want(box, A, number)
        return box.wake_in(now, True)

    waits = [wait(LATER + at, took) for at, took in enumerate((0.001, 0.04, 0.04, 0.001))]
    short, long = limits.CUT_INTERVAL, limits.CUT_REST * 0.04
    assert waits == [pytest.approx(seconds) for seconds in (short, short, long, short)]


def test_without_anybody_who_asks_the_log_is_still_kept_short(box: Outbox) -> None:
    now, waits = 0.0, []
    while now < 3600:
        wait = box.wake_in(now, True)
        assert wait is not None
        now += wait
        waits.append(wait)
        assert plan(box, now, pending=True)[:3] == ("idle", (), ())
        cut(box, now, pending=True)
    assert (waits[0], waits[15], waits[-1]) == pytest.approx((1, 1, limits.IDLE_CUT_MOST))
    assert waits == pytest.approx(sorted(waits))
    assert len(waits) < 300
    want(box, A)
    cut(box, now + 1, pending=True)
    assert box.wake_in(now + 1, True) == pytest.approx(limits.IDLE_CUT_INTERVAL)


def test_who_comes_back_right_after_a_long_cut_that_nobody_asked_for_does_not_wait(box: Outbox) -> None:
    for now in (LATER, LATER + 60):
        made, number = plan(box, now, pending=True), box.last + 1
        assert made.cause == "idle"
        box.cut_made(made, number, mine(number), {ME: number}, False, now, 0.1)
    want(box, A)
    assert box.wake_in(LATER + 60, False) == pytest.approx(limits.CUT_INTERVAL)


def test_who_is_behind_is_served_without_new_writes(box: Outbox) -> None:
    want(box, A, LAST - 1)
    assert plan(box)[:3] == ("behind", (Group(LAST - 1, True, (A,)),), ())


def test_a_cut_that_said_nothing_new_is_no_reason_for_another(box: Outbox) -> None:
    want(box, A, LAST - 1)
    want(box, B)
    cut(box)
    want(box, A, LAST + 1)
    box.unlinked(B)
    want(box, B)  # lacks the cut that was made for A alone
    assert box.plan(LATER * 2, False) is None
    want(box, B, needs=LAST + 1)  # but batches of others wait for it there
    made = plan(box, LATER * 2)
    assert made[:3] == ("behind", (Group(LAST, True, (B,)), Group(LAST + 1, True, (A,))), ())


def test_a_cut_that_is_not_made_yet_is_not_behind(box: Outbox) -> None:
    want(box, A, needs=LAST + 5)
    assert box.plan(LATER, False) is None


# ---- knowledge


def test_what_was_applied_is_told_once_a_second_at_most(box: Outbox) -> None:
    want(box, A)
    box.learned(B, 3, rows=1, needed=3)
    assert box.wake_in(0.0, False) == pytest.approx(limits.KNOWLEDGE_INTERVAL)
    assert plan(box, 1.0).cause == "knowledge"
    cut(box, 1.0, frontier={B: 3})
    want(box, A, LAST + 1)
    assert box.plan(LATER, False) is None
    box.learned(B, 4, rows=1, needed=4)
    assert box.plan(1.5, False) is None
    assert plan(box, 2.0).cause == "knowledge"


def test_a_batch_without_rows_is_no_news(box: Outbox) -> None:
    want(box, A)
    box.learned(B, 3, rows=0, needed=3)
    assert box.plan(LATER, False) is None


def test_what_a_cut_of_rows_has_told_needs_no_other(box: Outbox) -> None:
    want(box, A)
    box.learned(B, 3, rows=1, needed=3)
    cut(box, pending=True, frontier={B: 3})
    want(box, A, LAST + 1)
    assert box.plan(LATER * 2, False) is None


def test_what_a_cut_has_told_before_it_was_known_here_reaches_everybody(box: Outbox) -> None:
    """The merge commits, a cut made for one peer tells it, and only then it is heard that the merge is done."""
    want(box, B, after=LAST - 1)
    cut(box, frontier={C: 3})
    assert box.needed == LAST + 1, "whoever is sent it hands it on"
    box.learned(C, 3, rows=1, needed=3)
    want(box, C)
    assert plan(box, 2 * LATER).groups == (Group(LAST, True, (C,)),)


def test_knowledge_is_not_lost_on_who_was_away(box: Outbox) -> None:
    want(box, A)
    box.learned(B, 3, rows=1, needed=3)
    cut(box, frontier={B: 3})
    want(box, C)
    assert plan(box, LATER * 2).groups == (Group(LAST, True, (C,)),)


def test_after_a_restart_what_was_applied_since_the_last_cut_is_news() -> None:
    box = Outbox(ME)
    box.loaded(LAST, mine(LAST), {ME: LAST, B: 2}, {ME: LAST, B: 3}, 0, 0.0)
    want(box, A)
    assert plan(box).cause == "knowledge"
    box = loaded({B: 3})
    want(box, A)
    assert box.plan(LATER, False) is None


# ---- marks


def test_a_mark_is_cut_at_once_and_answered_once(box: Outbox) -> None:
    box.marked(MARK)
    made = plan(box, 0.0)
    assert made[:3] == ("mark", (), (MARK,))
    box.marked(OTHER)  # while that cut is made: it may not see what this one asks for
    cut(box, 0.0, made=made)
    assert plan(box, 0.0).marks == (OTHER,)
    cut(box, 0.0)
    assert box.plan(LATER, False) is None


def test_a_marked_cut_reaches_everybody_though_it_is_empty(box: Outbox) -> None:
    box.marked(MARK)
    cut(box)
    want(box, A)
    assert plan(box, LATER * 2).cause == "behind"
