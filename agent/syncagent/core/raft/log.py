"""A site's log: what its storage holds, and what is still to be written there.

It exists so that the machine sees one log, whatever of it is durable yet.

Invariants: applied <= committed <= last; what is committed is never replaced; `stable` counts what the storage
holds of this very log, so nothing is acknowledged to oneself that a crash could take back.
"""

from collections.abc import Sequence

from syncagent.core.raft.members import Memberships
from syncagent.core.raft.messages import Entry, Membership, Snapshot
from syncagent.core.raft.storage import Storage, bounded
from syncagent.errors import ProtocolError


class Log:
    """`applied`: up to where the application had applied when it was last stopped."""

    def __init__(self, storage: Storage, applied: int) -> None:
        self._storage = storage
        snapshot = storage.snapshot()
        self.applied = self.committed = max(applied, snapshot.index)
        self._unstable: list[Entry] = []
        self._offset = storage.last() + 1  # index of the first unstable entry
        self.snapshot: Snapshot | None = None  # received, and still to be written
        self.memberships = Memberships(snapshot.index, snapshot.membership)
        index = snapshot.index + 1
        while index <= storage.last():
            for entry in storage.entries(index, 1 << 20):
                self._note(entry)
                index = entry.index + 1

    # ---- what is here

    @property
    def first(self) -> int:
        return self.snapshot.index + 1 if self.snapshot else self._storage.first()

    @property
    def last(self) -> int:
        return self._offset + len(self._unstable) - 1

    @property
    def stable(self) -> int:
        """The last entry that is durable. A snapshot on its way counts: nobody asks before it is."""
        return self._offset - 1

    @property
    def last_term(self) -> int:
        return self.term(self.last) or 0

    def term(self, index: int) -> int | None:
        """None: not here, or not any more."""
        if index >= self._offset:
            return self._unstable[index - self._offset].term if index <= self.last else None
        if self.snapshot is not None:
            return self.snapshot.term if index == self.snapshot.index else None
        return self._storage.term(index)

    def entries(self, low: int, size: int) -> list[Entry]:
        """From `low` on: at least one if there is any, then no more than `size` bytes."""
        if low > self.last:
            return []
        if low >= self._offset:
            return bounded(self._unstable, low - self._offset, size)
        # The storage may still hold more: an end that was replaced, and is not overwritten yet.
        held = [entry for entry in self._storage.entries(low, size) if entry.index < self._offset]
        return bounded(held + self._unstable, 0, size) if held[-1].index == self._offset - 1 else held

    def newest_snapshot(self) -> Snapshot:
        return self._storage.snapshot()

    @property
    def membership(self) -> Membership:
        return self.memberships.newest

    def is_complete(self, index: int, term: int) -> bool:
        """Does a log that ends with this entry have all that this one may have committed?"""
        return (term, index) >= (self.last_term, self.last)

    def agreement(self, index: int, term: int) -> tuple[int, int]:
        """Up to where this log and another, whose entry at `index` is of `term`, can agree at most.

        Terms never fall along a log, so where this one's is larger the other has something else. The term
        of the answer is zero where it is not known any more.
        """
        index = min(index, self.last)
        while (here := self.term(index)) is not None and here > term:
            index -= 1
        return index, here or 0

    # ---- what arrives

    def extend(self, entries: Sequence[Entry]) -> None:
        """Entries that follow `last`."""
        for entry in entries:
            self._unstable.append(entry)
            self._note(entry)

    def accept(self, index: int, term: int, entries: Sequence[Entry]) -> int | None:
        """Entries that a leader has after `index`. Returns the last index at which the logs agree then; None: they
        do not even at `index`.

        What is here already stays, also beyond the last of them: messages overtake each other.
        """
        if self.term(index) != term:
            return None
        fresh = next((at for at, entry in enumerate(entries) if self.term(entry.index) != entry.term), None)
        if fresh is not None:
            self._cut(entries[fresh].index)
            self.extend(entries[fresh:])
        return index + len(entries)

    def _cut(self, index: int) -> None:
        """Lose what is here from `index` on."""
        if index <= self.committed:
            raise ProtocolError(
                "a leader would replace what is committed here",
                detail=f"entry {index}, and all up to {self.committed} is committed",
                hint="a voter has lost what it had acknowledged; find the site that was restored",
            )
        del self._unstable[max(0, index - self._offset) :]
        self._offset = min(self._offset, index)
        self.memberships.cut(index)

    def _note(self, entry: Entry) -> None:
        if entry.membership is not None:
            self.memberships.add(entry.index, entry.membership)

    def restore(self, snapshot: Snapshot) -> None:
        """Start over from here; what the log held is of no use."""
        self.snapshot = snapshot
        self._unstable, self._offset = [], snapshot.index + 1
        self.committed = snapshot.index
        self.memberships = Memberships(snapshot.index, snapshot.membership)

    # ---- progress

    def commit(self, index: int) -> None:
        """Never back, never beyond what is here."""
        self.committed = max(self.committed, min(index, self.last))

    def unstable(self) -> tuple[Entry, ...]:
        return tuple(self._unstable)

    def committed_entries(self, size: int) -> tuple[Entry, ...]:
        """The next ones to apply."""
        low = max(self.applied, self.snapshot.index if self.snapshot else 0) + 1
        return tuple(entry for entry in self.entries(low, size) if entry.index <= self.committed)

    def persisted(self, entries: Sequence[Entry], snapshot: Snapshot | None) -> None:
        """They are durable. What has changed since they were handed out is not."""
        if snapshot is not None and snapshot is self.snapshot:
            self.snapshot = None
        if self.snapshot is None and entries and entries[-1].index >= self._offset:
            last = entries[-1]
            if self.term(last.index) == last.term:
                del self._unstable[: last.index - self._offset + 1]
                self._offset = last.index + 1

    def applied_to(self, index: int) -> None:
        self.applied = max(self.applied, index)
        self.memberships.settle(self.applied)
