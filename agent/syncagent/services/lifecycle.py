"""What every loop shares: the time, and a bell to be woken by.

Invariant: a ring is never lost: one that comes while its loop works wakes the next wait at once.
"""

import asyncio
from typing import Protocol


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
