"""The site's own certificates: the one in use, and one that is to replace it.

Invariant: what the files say and what handshakes show change together; a renewal that was interrupted is still
there after a restart.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from syncagent.transport.tls import Credentials


class Keyring:
    """See `core.ports.Keyring`. `on_turn` is awaited with the pair that is in use from then on."""

    def __init__(self, home: Path, name: str) -> None:
        """Blocks."""
        self._home, self._name = home, name
        self.current = Credentials.provide(home, name)
        self._next = Credentials.coming(home)
        self.on_turn: Callable[[Credentials], Awaitable[None]] | None = None

    @property
    def sha256(self) -> tuple[str, ...]:
        return (self.current.sha256, *((self._next.sha256,) if self._next else ()))

    @property
    def until(self) -> float:
        return self.current.until.timestamp()

    async def prepare(self) -> None:
        self._next = await asyncio.to_thread(Credentials.prepare, self._home, self._name)

    async def turn(self) -> None:
        self.current, self._next = await asyncio.to_thread(Credentials.turn, self._home), None
        if self.on_turn is not None:
            await self.on_turn(self.current)
