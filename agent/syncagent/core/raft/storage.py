"""Where the log is read from, and the part of every storage that is kept in memory.

It exists because the machine reads its log in the middle of a step, and cannot wait. The control plane's
log is small: a durable storage writes first, then does here what it wrote, and reads from here.

Invariant: entries follow each other without a gap, and the first one follows the snapshot or lies before
its end; what a snapshot covers may be kept, for peers that lag by little.
"""

from collections.abc import Sequence
from typing import Protocol

from syncagent.core.raft.messages import Entry, HardState, Snapshot


class Storage(Protocol):
    """What is durable. The machine only reads; whoever drives it writes what a Ready says."""

    def hard_state(self) -> HardState: ...

    def snapshot(self) -> Snapshot:
        """The newest one. It covers all that `first` says is gone."""
        ...

    def first(self) -> int:
        """Index of the first entry; `last() + 1` if there is none."""
        ...

    def last(self) -> int: ...

    def term(self, index: int) -> int | None:
        """None: not here. Known for the entry before the first one, too."""
        ...

    def entries(self, low: int, size: int) -> list[Entry]:
        """From `low`, which is here, on: at least one, then no more than `size` bytes."""
        ...


class Memory:
    """A Storage, and how it changes."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._hard_state = HardState()
        self._snapshot = snapshot or Snapshot()
        self._before = self._snapshot.index, self._snapshot.term  # of the entry before the first one
        self._entries: list[Entry] = []

    def reload(self, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """What a durable storage holds, at its start. If the first entry is one that the snapshot covers, it
        only says what stands before the others."""
        self._hard_state = hard_state
        if entries and entries[0].index <= self._snapshot.index:
            self._before = entries[0].index, entries[0].term
            entries = entries[1:]
        self._entries = list(entries)

    # ---- what a Storage is asked

    def hard_state(self) -> HardState:
        return self._hard_state

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def first(self) -> int:
        return self._before[0] + 1

    def last(self) -> int:
        return self._before[0] + len(self._entries)

    def term(self, index: int) -> int | None:
        before, term = self._before
        if index == before:
            return term
        return self._entries[index - before - 1].term if before < index <= self.last() else None

    def entries(self, low: int, size: int) -> list[Entry]:
        return bounded(self._entries, low - self.first(), size)

    def standing(self) -> tuple[int, int, int, int]:
        """Term and vote, and term and index of the last entry."""
        return self._hard_state.term, self._hard_state.vote, self.term(self.last()) or 0, self.last()

    # ---- what a Ready asks for, in this order or in one transaction

    def save(self, hard_state: HardState) -> None:
        self._hard_state = hard_state

    def restore(self, snapshot: Snapshot) -> None:
        """Replaces everything."""
        self._snapshot = snapshot
        self._before = snapshot.index, snapshot.term
        self._entries = []

    def append(self, entries: Sequence[Entry]) -> None:
        """Replaces what was here from the first of them on."""
        if entries:
            at = entries[0].index - self.first()
            assert 0 <= at <= len(self._entries), "no gap, and nothing that a snapshot covers"
            self._entries[at:] = entries

    # ---- compaction

    def compact(self, snapshot: Snapshot, keep: int) -> None:
        """A snapshot of what was applied here. Of what it covers, the last `keep` entries stay."""
        if snapshot.index <= self._snapshot.index:
            return
        self._snapshot = snapshot
        before = snapshot.index - keep
        if before > self._before[0]:
            term = self.term(before)
            assert term is not None, "what is applied was here"
            self._entries = self._entries[before - self._before[0] :]
            self._before = before, term


def bounded(entries: Sequence[Entry], start: int, size: int) -> list[Entry]:
    """From `start` on: at least one, then no more than `size` bytes."""
    taken: list[Entry] = []
    for at in range(start, len(entries)):
        size -= entries[at].size
        if taken and size < 0:
            break
        taken.append(entries[at])
    return taken
