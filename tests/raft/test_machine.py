"""What the machine refuses, and what travels."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from syncagent.core import limits
from syncagent.core.raft import messages
from syncagent.core.raft.leader import Options
from syncagent.core.raft.machine import Machine
from syncagent.core.raft.messages import (
    Append,
    Appended,
    AskRead,
    Change,
    Entry,
    Handover,
    HardState,
    Heard,
    Heartbeat,
    Install,
    MayRead,
    Membership,
    Message,
    Propose,
    RequestVote,
    Snapshot,
    Vote,
    founded,
)
from syncagent.core.raft.storage import Memory
from syncagent.errors import ProtocolError, RefusedError, Undecided

ENDS: dict[str, Any] = {"to": 1, "sender": 2, "term": 3}
SOME = UUID(int=5)
EVERY = [
    RequestVote(**ENDS, index=4, log_term=2, pre=True),
    Vote(**ENDS, granted=True),
    Append(
        **ENDS,
        index=1,
        log_term=1,
        entries=(Entry(2, 3, b"x", Membership((1, 2), (3,))), Entry(3, 3)),
        commit=1,
    ),
    Appended(**ENDS, index=7, rejected=True, hint=3, hint_term=2),
    Install(**ENDS, snapshot=Snapshot(9, 3, Membership((1,)), b"all")),
    Heartbeat(**ENDS, commit=2, read=1),
    Heard(**ENDS, read=1),
    Propose(**ENDS, data=b"x", change=Change("voter", 3)),
    AskRead(**ENDS, request=SOME),
    MayRead(**ENDS, request=SOME, index=4),
    Handover(**ENDS),
]


class Rig:
    """Site 1 of three, and a disk that never waits."""

    def __init__(self, voters: tuple[int, ...] = (1, 2, 3), options: Options | None = None) -> None:
        self.disk = Memory(founded(Membership(voters)))
        self.machine = Machine(1, self.disk, lambda _: 0, options=options or Options())

    def work(self) -> list[Message]:
        sent: list[Message] = []
        while ready := self.machine.ready():
            self.disk.save(ready.hard_state or self.disk.hard_state())
            self.disk.append(ready.entries)
            sent += ready.messages
            self.machine.advance(ready)
        return sent

    def lead(self) -> None:
        self.machine.campaign()
        self.machine.step(Vote(to=1, sender=2, term=2, granted=True, pre=True))
        self.machine.step(Vote(to=1, sender=2, term=2, granted=True))
        self.work()
        assert self.machine.role == "leader"


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_messages_travel(message: Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa4Nope"])
def test_what_is_no_message_is_one_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        messages.decode(data)


@pytest.mark.parametrize("ends", [(2, 3), (1, 1), (1, 0)])
def test_messages_that_went_astray(ends: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="astray"):
        Rig().machine.step(Handover(to=ends[0], sender=ends[1], term=1))


def test_two_leaders_of_one_term_are_reported() -> None:
    rig = Rig()
    rig.lead()
    with pytest.raises(ProtocolError, match="both lead in term 2"):
        rig.machine.step(Heartbeat(to=1, sender=3, term=2, commit=0))


def test_what_was_never_sent_is_not_acknowledged() -> None:
    rig = Rig()
    rig.lead()
    with pytest.raises(ProtocolError, match="never sent"):
        rig.machine.step(Appended(to=1, sender=2, term=2, index=99))


def test_entries_follow_each_other() -> None:
    with pytest.raises(ProtocolError, match="follow"):
        Rig().machine.step(
            Append(to=1, sender=2, term=2, index=1, log_term=1, entries=(Entry(3, 2),), commit=1)
        )


def test_a_leader_takes_no_more_than_it_can_commit() -> None:
    rig = Rig(options=replace(Options(), uncommitted=3))
    rig.lead()
    rig.machine.propose(b"a")
    rig.machine.propose(b"b")
    with pytest.raises(Undecided, match="wait to be committed"):
        rig.machine.propose(b"c")
    for number in range(3):
        rig.machine.read(UUID(int=number))
    with pytest.raises(Undecided, match="wait to be confirmed"):
        rig.machine.read(UUID(int=9))


def test_an_entry_fits_into_a_message() -> None:
    rig = Rig((1,))
    rig.machine.campaign()
    rig.machine.propose(bytes(limits.RAFT_APPEND))
    with pytest.raises(RefusedError, match="too much"):
        rig.machine.propose(bytes(limits.RAFT_APPEND + 1))


def test_what_is_passed_on_and_cannot_be_taken_is_dropped() -> None:
    """Whoever sent it has a limit to its patience; the leader must not fail for it."""
    rig = Rig()
    rig.machine.step(Propose(to=1, sender=2, term=0, data=b"x"))  # it does not lead
    rig.lead()
    last = rig.machine.log.last
    rig.machine.step(Propose(to=1, sender=2, term=0, data=b"x", change=Change("voter", 9)))
    assert rig.machine.log.last == last


def test_who_has_voted_does_not_vote_for_another_after_a_restart() -> None:
    rig = Rig()
    ask = RequestVote(to=1, sender=2, term=5, index=1, log_term=1)
    rig.machine.step(ask)
    ready = rig.machine.ready()
    assert ready is not None
    assert ready.hard_state == HardState(5, 2)
    assert ready.messages == (Vote(to=2, sender=1, term=5, granted=True),)
    rig.disk.save(ready.hard_state)
    again = Machine(1, rig.disk, lambda _: 0)
    again.step(RequestVote(to=1, sender=3, term=5, index=9, log_term=4))
    again.step(ask)
    answers = again.ready()
    assert answers is not None
    assert [(m.to, m.granted) for m in answers.messages if isinstance(m, Vote)] == [(3, False), (2, True)]


def test_readys_are_done_one_at_a_time() -> None:
    rig = Rig((1,))
    rig.machine.campaign()
    ready = rig.machine.ready()
    assert ready is not None
    with pytest.raises(AssertionError):
        rig.machine.ready()
    rig.machine.propose(b"meanwhile")
    rig.disk.append(ready.entries)
    rig.machine.advance(ready)
    following = rig.machine.ready()
    assert following is not None
    assert [entry.data for entry in following.entries] == [b"meanwhile"]
    assert [entry.index for entry in following.committed] == [2]


@pytest.mark.parametrize("chance", [0, limits.RAFT_ELECTION - 1])
def test_nobody_campaigns_before_the_shortest_time_or_after_the_longest(chance: int) -> None:
    machine = Machine(1, Memory(founded(Membership((1, 2)))), lambda _: chance)
    for _ in range(limits.RAFT_ELECTION + chance - 1):
        machine.tick()
    quiet = machine.role
    machine.tick()
    assert (quiet, machine.role) == ("follower", "precandidate")


def test_a_follower_sleeps_until_it_campaigns() -> None:
    rig = Rig()
    for left in range(rig.machine.calm, 1, -1):
        assert rig.machine.calm == left
        rig.machine.tick()
        assert rig.work() == []
    rig.machine.tick()
    assert [message.to for message in rig.work() if isinstance(message, RequestVote)] == [2, 3]


def test_a_leader_sleeps_until_it_is_to_be_heard() -> None:
    rig = Rig()
    rig.lead()
    beats = slept = 0
    for _ in range(4 * limits.RAFT_ELECTION):
        calm = rig.machine.calm
        for _ in range(calm - 1):
            rig.machine.tick()
            assert rig.work() == []
        rig.machine.tick()
        beats += sum(isinstance(message, Heartbeat) for message in rig.work())
        slept += calm
        rig.machine.step(Heard(to=1, sender=2, term=2, read=0))
        rig.work()
    assert beats == 2 * (slept // limits.RAFT_HEARTBEAT)


def test_a_leader_that_hears_nobody_ends_when_it_is_due() -> None:
    rig = Rig()
    rig.lead()
    ticks = 0
    while rig.machine.role == "leader":
        calm = rig.machine.calm
        for _ in range(calm - 1):
            rig.machine.tick()
            assert rig.machine.role == "leader"
        rig.machine.tick()
        rig.work()
        ticks += calm
    assert ticks == 2 * limits.RAFT_ELECTION  # the votes were heard in the first of them
