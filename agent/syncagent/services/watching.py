"""DDL that somebody types by hand at this site is noticed within seconds.

Invariant: it only looks, and not while a step of a schema change is done here; what costs the database long is looked at less often.
"""

import asyncio
from collections.abc import Callable

from syncagent.core.store import Typed, Watch
from syncagent.errors import SyncagentError, Unreachable
from syncagent.services.evolving import Evolving
from syncagent.services.lifecycle import Desk

_EVERY, _MOST = 3.0, 15.0
"""Seconds between two looks, at least and at most."""
_SHARE = 20
"""The pause after a look is so many times as long as it took."""


class Watching:
    """`on_typed` is told what was found, once."""

    def __init__(self, desk: Desk, watch: Watch, evolving: Evolving, *, refuse: bool) -> None:
        self._desk, self._watch, self._evolving, self._refuse = desk, watch, evolving, refuse
        self._told: set[Typed] = set()
        self.on_typed: Callable[[Typed], None] = lambda _: None

    async def run(self) -> None:
        """For ever."""
        await self._begin()
        while True:
            began = self._desk.clock.now()
            if not self._evolving.is_behind:
                await self._look()
            await asyncio.sleep(min(max(_EVERY, _SHARE * (self._desk.clock.now() - began)), _MOST))

    async def _begin(self) -> None:
        try:
            await self._watch.begin(refuse=self._refuse)
        except Unreachable:
            raise
        except SyncagentError:
            return  # `doctor` says that nobody sees it as it is typed; it is found all the same

    async def _look(self) -> None:
        try:
            found = await self._watch.look()
        except Unreachable:
            raise
        except SyncagentError:
            return  # somebody types just now: the next time
        for typed in found:
            if typed not in self._told:
                self.on_typed(typed)
        self._told = set(found)
