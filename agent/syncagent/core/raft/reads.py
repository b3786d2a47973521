"""Reads that a leader has taken, until a majority has said that it still is the leader.

It exists because a leader may be the last to learn that it has been replaced.

Invariant: a read is confirmed only by answers to heartbeats sent after it was taken. No clock is trusted.
"""

from collections import deque
from typing import NamedTuple
from uuid import UUID

from syncagent.core.raft import quorum


class Read(NamedTuple):
    """`upto` was committed when the read was taken."""

    request: UUID
    sender: int
    upto: int = 0


class Reads:
    """Of one leadership."""

    def __init__(self) -> None:
        self._waiting: deque[Read] = deque()
        self._confirmed = 0
        self._heard: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def taken(self) -> int:
        """How many so far. A heartbeat carries it, its answer brings it back."""
        return self._confirmed + len(self._waiting)

    def take(self, read: Read) -> None:
        self._waiting.append(read)

    def heard(self, node: int, taken: int) -> None:
        self._heard[node] = max(taken, self._heard.get(node, 0))

    def confirmed(self, voters: tuple[int, ...], me: int) -> list[Read]:
        """Those that are, since the last time."""
        upto = quorum.agreed(voters, self._heard | {me: self.taken})
        done = [self._waiting.popleft() for _ in range(upto - self._confirmed)]
        self._confirmed += len(done)
        return done
