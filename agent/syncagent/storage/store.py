"""The site's database as the services see it: six sessions, opened and closed together, and one more once sites are compared.

Invariant: a store that was opened belongs to this agent alone until it is closed; when one session is
lost all are given up, so that nothing half-connected goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from uuid import UUID

import asyncpg

from syncagent.storage.borders import border
from syncagent.storage.forest import PostgresForest
from syncagent.storage.keeper import PostgresKeeper
from syncagent.storage.origin import PostgresOrigin
from syncagent.storage.registry import PostgresRegistry
from syncagent.storage.repairs import PostgresRepairs
from syncagent.storage.replica import PostgresReplica
from syncagent.storage.session import connect, pooled, working


class PostgresStore:
    """The parts of an open store."""

    def __init__(
        self,
        origin: PostgresOrigin,
        replica: PostgresReplica,
        keeper: PostgresKeeper,
        registry: PostgresRegistry,
        forest: PostgresForest,
        repairs: PostgresRepairs,
    ) -> None:
        self.origin, self.replica, self.keeper = origin, replica, keeper
        self.registry, self.forest, self.repairs = registry, forest, repairs


@asynccontextmanager
async def opened(
    dsn: str, *, site: UUID, node: int, incarnation: UUID, name: str, joining: bool = False
) -> AsyncIterator[PostgresStore]:
    """Connect, claim the site, prepare sessions. Raises Unreachable, RefusedError, LacksPrivilege, DatabaseError."""
    sessions: list[asyncpg.Connection] = []

    async def session(purpose: str, replica: bool | None) -> asyncpg.Connection:
        connecting = connect(dsn, purpose) if replica is None else working(dsn, purpose, replica=replica)
        sessions.append(await connecting)
        return sessions[-1]

    try:
        merging = asyncio.Lock()
        applying = await session("apply", True)
        replica = PostgresReplica(applying, merging)
        keeping = await session("keep", None)
        with border():
            await keeping.execute("set lock_timeout = 200")
        keeper = PostgresKeeper(keeping, merging, node, replica.pid)
        await keeper.claim()
        await keeper.enter(site, incarnation, name, joining=joining)
        origin = PostgresOrigin(await session("cut", False), await session("poll", None), merging, node)
        agreeing = await session("agree", None)
        with border():
            await agreeing.execute("set synchronous_commit = on")
        sealing = await session("forest", None)
        with border():
            await sealing.execute("set lock_timeout = 200; set synchronous_commit = off")
        await _refuse_shared(sessions)
        repairs = PostgresRepairs(dsn, node, merging)
        with closing(PostgresForest(dsn, sealing, merging)) as forest:
            yield PostgresStore(origin, replica, keeper, PostgresRegistry(agreeing), forest, repairs)
    finally:
        with border():
            await asyncio.gather(*(session.close(timeout=2) for session in sessions))


async def _refuse_shared(sessions: Sequence[asyncpg.Connection]) -> None:
    """Raise unless each session is one of the server's own."""
    with border():
        pids = [await session.fetchval("select pg_backend_pid()") for session in sessions]
    if len(set(pids)) < len(pids):
        raise pooled("several of the agent's sessions are one at the server")
