"""The Merkle forest of a site: keeps its leaves true, and answers what a comparison asks.

Invariant: whoever computes leaves or reads them holds the tables from before its snapshot; each step is one short
transaction, whose end can be missed without harm.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from syncagent.core.store import Due
from syncagent.storage.borders import border

_ROWS = 50_000
_KEYS = 5_000
"""About so much is sealed, or computed anew, in one transaction."""


class PostgresForest:
    """The Forest of the services, on a session of its own. `merging` excludes merges while the horizon moves."""

    def __init__(self, session: asyncpg.Connection, merging: asyncio.Lock) -> None:
        self._session, self._merging = session, merging
        self._turn = asyncio.Lock()

    async def advance(self, horizon: int) -> None:
        async with self._merging, self._talking(), self._session.transaction():
            await self._session.execute("lock table syncagent.merge_lock in exclusive mode")
            await self._session.fetchval("select syncagent._forest_advance($1)", horizon)

    async def due(self) -> list[Due]:
        async with self._talking():
            rows = await self._session.fetch("select * from syncagent._forest_due()")
        return [
            Due(row["relation"], row["marked"], row["unsealed"])
            for row in rows
            if row["marked"] or row["unsealed"]
        ]

    async def seal(self, relation: int) -> int | None:
        return await self._step("select syncagent._forest_seal($1, $2)", relation, _ROWS)

    async def reseal(self, relation: int) -> int | None:
        return await self._step("select syncagent._forest_reseal($1, $2)", relation, _KEYS)

    async def _step(self, query: str, relation: int, size: int) -> int | None:
        async with self._talking():
            lock = await self._session.fetchval("select syncagent._lock_statement($1)", relation)
            if lock is None:
                return None
            async with self._session.transaction(isolation="repeatable_read"):
                await self._session.execute(lock)
                done: int | None = await self._session.fetchval(query, relation, size)
                return done

    @asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        """The session serves one caller at a time."""
        async with self._turn:
            with border():
                yield
