"""What every loop shares: the decisions of the core, the time, and the bells they wake each other by.

Invariant: a ring is never lost: one that comes while its loop works wakes the next wait at once.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from syncagent.core.inbox import Inbox
from syncagent.core.membership import Peer
from syncagent.core.outbox import Outbox
from syncagent.core.ports import Observer, Spool, Unobserved


class Clock(Protocol):
    """The edge where time is read."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wall(self) -> int:
        """The wall clock in 1/4096 ms, as stamps have it."""

    def chance(self) -> float:
        """A number in [0, 1), for jitter."""


class Bell:
    """Wakes one loop."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float | None) -> bool:
        """Until rung, or until the seconds have passed; says which."""
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


@dataclass(frozen=True)
class Bells:
    """One per loop: wants to send, cuts to make, batches to apply, news to tell, requests to serve."""

    asks: Bell = field(default_factory=Bell)
    cuts: Bell = field(default_factory=Bell)
    applies: Bell = field(default_factory=Bell)
    news: Bell = field(default_factory=Bell)
    requests: Bell = field(default_factory=Bell)

    def ring(self) -> None:
        """Something changed that every loop may care about."""
        for bell in (self.asks, self.cuts, self.applies, self.news):
            bell.ring()


@dataclass
class Roster:
    """The other sites, as the catalog of now has them. `witness`: this one votes, and holds no rows."""

    peers: tuple[Peer, ...] = ()
    epoch: int = 0
    witness: bool = False

    @property
    def origins(self) -> tuple[Peer, ...]:
        """Those that this site exchanges rows with."""
        return () if self.witness else tuple(peer for peer in self.peers if not peer.witness)

    def is_origin(self, node: int) -> bool:
        return any(peer.node == node for peer in self.origins)

    def name(self, node: int) -> str:
        return next((peer.name for peer in self.peers if peer.node == node), "this site")


@dataclass(frozen=True)
class Desk:
    """The site's decisions while it is connected to its database: every service works at this one desk."""

    me: int
    inbox: Inbox[Spool]
    outbox: Outbox
    clock: Clock
    roster: Roster = field(default_factory=Roster)
    bells: Bells = field(default_factory=Bells)
    observer: Observer = field(default_factory=Unobserved)
