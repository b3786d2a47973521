"""What a leader knows of one site's log, and what it may send there.

It exists to bound what is under way: one question at a time until it is known where the logs agree, then a
window of appends ahead of the answers, and nothing at all behind a snapshot.

Invariants: match < next; only what was acknowledged in this term counts as match; a window that is full, or
a question without an answer, is opened again by a sign of life.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Progress:
    """Of one site. `owed`: an append is due even if it carries nothing."""

    next: int
    window: int
    match: int = 0
    state: Literal["probe", "replicate", "snapshot"] = "probe"
    active: bool = True  # heard of since the last look at the quorum; whoever is new gets the time to answer
    owed: bool = True
    told: int = 0  # the commit index as last sent
    inflight: deque[int] = field(default_factory=deque)  # the last index of each append without an answer
    pending: int = 0  # index of the snapshot
    waited: int = 0  # ticks since it was sent

    def probe(self) -> None:
        """Find out where the logs agree."""
        self.next = max(self.match, self.pending) + 1
        self._become("probe")
        self.owed = True

    def replicate(self) -> None:
        self.next = self.match + 1
        self._become("replicate")
        self.owed = False

    def snapshot(self, index: int) -> None:
        self._become("snapshot")
        self.pending, self.next, self.told, self.owed = index, index + 1, index, False

    def _become(self, state: Literal["probe", "replicate", "snapshot"]) -> None:
        self.state, self.pending, self.waited = state, 0, 0
        self.told = min(self.told, self.next - 1)
        self.inflight.clear()

    @property
    def full(self) -> bool:
        return len(self.inflight) >= self.window

    def due(self, last: int, committed: int) -> bool:
        """Is an append to be sent now, to a log that should become ours, which ends at `last`?"""
        if self.state == "replicate":
            news = committed > self.told and self.told < self.next - 1
            return self.owed or news or (self.next <= last and not self.full)
        return self.state == "probe" and self.owed

    @property
    def takes_entries(self) -> bool:
        return self.state == "probe" or not self.full

    def sent(self, upto: int, committed: int) -> None:
        """An append with entries up to `upto`, or none if that is not beyond what was sent before."""
        self.owed, self.told = False, committed
        if self.state == "replicate" and upto >= self.next:
            self.inflight.append(upto)
            self.next = upto + 1

    def acknowledged(self, index: int) -> bool:
        """Its log agrees with ours up to `index`. Is this news?"""
        while self.inflight and self.inflight[0] <= index:
            self.inflight.popleft()
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True

    def rejected(self, index: int, hint: int) -> bool:
        """Its log does not agree at `index`, at most up to `hint`. False: nothing follows from it.

        What it had acknowledged it must have: an old answer, or else a site that has forgotten and is not
        asked again in a hurry.
        """
        if index <= self.match or self.state == "snapshot":
            return False
        if self.state == "replicate":
            self.probe()
            return True
        if index != self.next - 1:
            return False
        self.next = max(min(index, hint + 1), self.match + 1)
        self.told = min(self.told, self.next - 1)
        self.owed = True
        return True

    def alive(self, last: int) -> None:
        """It answered a heartbeat: whatever it lacks may have been lost on the way."""
        self.active = True
        if self.state == "probe" or (self.state == "replicate" and self.match < last):
            self.owed = True
