"""The log and the part of its storage in memory, beside a plain list of all entries there ever were."""

import random
from collections.abc import Callable

import pytest

from syncagent.core.raft.log import Log
from syncagent.core.raft.messages import Entry, Membership, Snapshot, founded
from syncagent.core.raft.storage import Memory
from syncagent.errors import ProtocolError


class Twin:
    """A log, its storage, and what they must look like."""

    def __init__(self, rnd: random.Random) -> None:
        self.rnd, self.disk = rnd, Memory(founded(Membership((1, 2, 3))))
        self.log = Log(self.disk, 1)
        self.all: list[Entry] = [Entry(0, 0), Entry(1, 1, b"", Membership((1, 2, 3)))]
        self.written = list(self.all)
        self.term = 1

    def leader_appends(self) -> None:
        """From somewhere on in its own log: what is committed here, then what it likes."""
        rnd = self.rnd
        start = rnd.randint(self.log.committed, len(self.all) - 1)
        kept = rnd.randint(start, len(self.all) - 1)
        self.term += rnd.choice((0, 0, 1)) if kept == len(self.all) - 1 else 1
        sent = self.all[start + 1 : kept + 1]
        for _ in range(rnd.randint(0, 3)):
            membership = Membership((1, 2, rnd.randint(3, 9))) if rnd.random() < 0.3 else None
            sent.append(Entry(start + 1 + len(sent), self.term, bytes(rnd.randint(0, 9)), membership))
        last = self.log.accept(start, self.all[start].term, sent)
        assert last == start + len(sent)
        if len(sent) > kept - start:
            self.all[kept + 1 :] = sent[kept - start :]

    def another_leader_appends(self) -> None:
        """Its log differs at the place it begins from."""
        at = self.rnd.randint(1, len(self.all) + 2)
        term = (self.all[at].term if at < len(self.all) else self.term) + 1
        assert self.log.accept(at, term, [Entry(at + 1, term)]) is None
        agreed, agreed_term = self.log.agreement(at, term - 1)
        assert agreed_term in (0, self.all[agreed].term)

    def commit(self) -> None:
        self.log.commit(self.rnd.randint(0, len(self.all) + 1))

    def write(self) -> None:
        entries, snapshot = self.log.unstable(), self.log.snapshot
        committed = self.log.committed_entries(100)
        if snapshot is not None:
            self.disk.restore(snapshot)
        self.disk.append(entries)
        self.written = list(self.all)
        if self.rnd.random() < 0.3:  # meanwhile
            self.leader_appends()
        self.log.persisted(entries, snapshot)
        assert list(committed) == self.all[self.log.applied + 1 :][: len(committed)]
        if committed:
            self.log.applied_to(committed[-1].index)

    def compact(self) -> None:
        index = self.log.applied
        membership = self.log.memberships.at(index)
        self.disk.compact(Snapshot(index, self.all[index].term, membership), self.rnd.randint(0, 3))

    def restart(self) -> None:
        """What was not written is gone."""
        self.all = list(self.written)
        self.term += 1
        self.log = Log(self.disk, self.log.applied)

    def check(self) -> None:
        log, rnd = self.log, self.rnd
        assert log.last == len(self.all) - 1
        assert log.applied <= log.committed <= log.last
        terms = [log.term(index) for index in range(log.first - 1, log.last + 2)]
        assert terms == [entry.term for entry in self.all[log.first - 1 :]] + [None]
        assert log.first < 2 or log.term(log.first - 2) is None
        low, size = rnd.randint(log.first, log.last + 1), rnd.choice((1, 150, 1000))
        entries = log.entries(low, size)
        assert entries == self.all[low:][: len(entries)]
        assert bool(entries) == (low <= log.last)
        told = [entry.membership for entry in self.all if entry.membership]
        assert log.membership == told[-1]


@pytest.mark.soak
def test_it_is_the_list(seed: int, runs: Callable[[int, int], int]) -> None:
    for number in range(seed, seed + runs(60, 5000)):
        rnd = random.Random(number)
        twin = Twin(rnd)
        for _ in range(60):
            does = (twin.leader_appends, twin.another_leader_appends, twin.commit, twin.write, twin.write)
            rnd.choice((*does, twin.compact, twin.restart))()
            twin.check()


def test_what_is_committed_is_not_replaced() -> None:
    log = Log(Memory(founded(Membership((1,)))), 1)
    log.accept(1, 1, [Entry(2, 2), Entry(3, 2)])
    log.commit(2)
    log.accept(2, 2, [Entry(3, 3)])
    with pytest.raises(ProtocolError, match="committed"):
        log.accept(1, 1, [Entry(2, 4)])


def test_a_gap_is_not_written() -> None:
    disk = Memory(founded(Membership((1,))))
    with pytest.raises(AssertionError):
        disk.append([Entry(3, 1)])


def test_a_snapshot_starts_the_log_over() -> None:
    disk = Memory(founded(Membership((1,))))
    log = Log(disk, 1)
    log.accept(1, 1, [Entry(2, 2), Entry(3, 2)])
    written = log.unstable()
    snapshot = Snapshot(9, 4, Membership((1, 2)), b"all")
    log.restore(snapshot)
    log.persisted(written, None)  # it was on its way; it says nothing about what follows the snapshot
    log.accept(9, 4, [Entry(10, 4)])
    assert (log.first, log.last, log.committed, log.stable) == (10, 10, 9, 9)
    assert log.unstable() == (Entry(10, 4),)
    assert log.membership == Membership((1, 2))
    disk.restore(snapshot)
    disk.append(log.unstable())
    log.persisted(log.unstable(), snapshot)
    assert (log.snapshot, log.stable, log.term(9), log.term(3)) == (None, 10, 4, None)
