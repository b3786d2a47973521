"""Lets a site lapse that was away for too long, so that no disk fills because of it.

Invariant: it is the cluster that decides; until it has, everything is kept, and `trouble` says what stands in the way.
"""

import asyncio
from uuid import uuid4

from syncagent.core import lapse
from syncagent.core.catalog import Lapse
from syncagent.core.lapse import Bounds
from syncagent.core.store import Keeper
from syncagent.errors import Contended, SyncagentError, Unreachable
from syncagent.services.elections import Elections
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Desk

_LOOK = 5.0
_SECONDS = 10.0


class Lapsing:
    """See the module's docstring."""

    def __init__(
        self, desk: Desk, keeper: Keeper, exchange: Exchange, elections: Elections, bounds: Bounds
    ) -> None:
        self._desk, self._keeper, self._exchange = desk, keeper, exchange
        self._elections, self._bounds = elections, bounds
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        names = [site.name for site in self._elections.catalog.lapsed]
        told = [
            f"site {name} was away for too long, and has lapsed: `syncagent rejoin` there, or `syncagent remove {name}`"
            for name in names
        ]
        return "; ".join([*told, *([self._trouble] if self._trouble else [])]) or None

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            if self._desk.roster.witness or not self._elections.is_member:
                continue
            try:
                await self._look()
            except Unreachable:
                raise
            except Contended:
                continue
            except SyncagentError as error:
                self._trouble = f"a site that was away for too long cannot lapse: {error.line}"
            else:
                self._trouble = None

    async def _look(self) -> None:
        behind, kept = await self._keeper.behind()
        reached = {peer.node for peer in self._desk.roster.peers if self._exchange.way(peer.node) is not None}
        overdue = lapse.overdue(behind, reached, kept, self._bounds)
        if overdue is not None and overdue.node in self._elections.catalog.sites:
            await self._elections.submit(Lapse(overdue.node), uuid4(), seconds=_SECONDS)
