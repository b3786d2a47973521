"""What keeps metadata small, and what speaks with people through the database.

Invariant: nothing here decides about rows; losing any call of it loses time, never data.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from syncagent import __version__
from syncagent.core.arrival import Position
from syncagent.core.identity import Place
from syncagent.core.lapse import Behind
from syncagent.core.store import Loaded, PeerState, Request
from syncagent.errors import Contended, RefusedError, SyncagentError, Unreachable
from syncagent.storage.borders import border
from syncagent.storage.session import within

AGENT_LOCK = (1937337955, 2)
"""Advisory lock of the one agent of a site; whoever wants to know whether it runs looks for it."""
_SLOTS = 16
_CHUNK = 20_000
_COVER_MS = 200
"""One try to lock a new partition, below deadlock_timeout: who queues behind is not kept."""
_context = msgspec.json.Decoder(dict[int, int])
_encoder = msgspec.json.Encoder()


class PostgresKeeper:
    """The Keeper of the services, on a session of its own that also holds the agent's lock."""

    def __init__(
        self, session: asyncpg.Connection, merging: asyncio.Lock, node: int, applier_pid: int
    ) -> None:
        self._session, self._merging, self._node, self._applier = session, merging, node, applier_pid
        self._turn = asyncio.Lock()
        self._compacted: str | None = None

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[asyncpg.Connection]:
        """The session, which serves one caller at a time."""
        async with self._turn:
            with border():
                yield self._session

    async def on_request(self, ring: Callable[[], None]) -> None:
        """`ring` is called whenever a person has asked something."""
        async with self.talking():
            await self._session.add_listener("syncagent_request", lambda *_: ring())

    async def claim(self) -> None:
        """Be the only agent of this site for as long as the session lives."""
        async with self.talking():
            if not await self._session.fetchval("select pg_try_advisory_lock($1, $2)", *AGENT_LOCK):
                raise RefusedError(
                    "another agent runs for this site",
                    detail="it holds the agent's advisory lock in this database",
                    hint="stop it first: there is one agent per site",
                )

    async def enter(self, site: UUID, incarnation: UUID, name: str, *, joining: bool) -> None:
        """Check that database and home belong together; `joining`: the agent is there only until the site has joined."""
        async with self.talking():
            here = await self._session.fetchrow(
                "select site, node, incarnation, name, joining from syncagent.local_site"
            )
            if here is None or (here["site"], here["node"], here["incarnation"]) != (
                site,
                self._node,
                incarnation,
            ):
                raise RefusedError(
                    f"this database does not belong to the home of site {name}",
                    detail=f"the database says {here['name']}, node {here['node']}"
                    if here
                    else "the database has no site",
                    hint="check --home and dsn; if the database was restored from before its last `syncagent rejoin`: that again",
                )
            if here["joining"] and not joining:
                raise RefusedError(
                    f"site {name} has not joined to the end",
                    hint="run the same `syncagent join`, or `rejoin`, again; it goes on where it was",
                )
            await self._session.execute(
                "insert into syncagent.agent_state (version, started_at) values ($1, $2) on conflict (only_row)"
                " do update set version = excluded.version, started_at = excluded.started_at, waiting = null, trouble = null",
                __version__,
                datetime.now(UTC),
            )

    async def place(self) -> Place:
        """Which database this is."""
        async with self.talking():
            row = await self._session.fetchrow(
                "select s.system_identifier as system, d.oid::bigint as database,"
                " ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline"
                " from pg_control_system() s cross join pg_database d where d.datname = current_database()"
            )
        assert row is not None
        return Place(row["system"], row["database"], row["timeline"])

    async def load(self) -> Loaded:
        async with self.talking():
            positions = {
                row["node"]: Position(row["cut"], row["cut_id"])
                for row in await self._session.fetch("select node, cut, cut_id from syncagent.frontier")
            }
            context = await self._session.fetchval(
                "select context::text from syncagent.frontier where node = $1", self._node
            )
            floor = await self._session.fetchval("select trimmed from syncagent.local_site")
            parked = await self._session.fetchval("select count(*) from syncagent.parked_row")
        mine = positions.get(self._node, Position(0, None))
        return Loaded(
            mine.cut, mine.id, _context.decode(context) if context else {}, positions, floor, parked
        )

    async def cover(self) -> int:
        async with self.talking():
            strays = await self._session.fetch(
                "select relation, node::oid::bigint as node from syncagent._strays()"
            )
        trouble: SyncagentError | None = None
        for stray in strays:  # one that is held, or not ours to arm, keeps no other
            try:
                async with self._merging, self.talking(), self._session.transaction():
                    await self._session.execute("lock table syncagent.merge_lock in exclusive mode")
                    await self._session.execute(f"set local lock_timeout = {_COVER_MS}")
                    await self._session.fetchval(
                        "select syncagent._cover($1, $2::bigint::oid::regclass)",
                        stray["relation"],
                        stray["node"],
                    )
            except Unreachable:
                raise
            except SyncagentError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        return len(strays)

    async def compact(self, *, always: bool) -> int:
        async with self.talking():
            stable = await self._session.fetchval(
                "select string_agg(s::text, ' ' order by s.node) from syncagent._stable() s"
            )
        if stable == self._compacted and not always:
            return 0
        await self._make_again(always=always)
        dropped = 0
        while True:
            async with self._merging, self.talking(), self._session.transaction():
                await self._session.execute("lock table syncagent.merge_lock in exclusive mode")
                count = int(await self._session.fetchval("select syncagent._compact($1)", _CHUNK))
            dropped += count
            if count < _CHUNK:
                self._compacted = stable
                return dropped

    async def _make_again(self, *, always: bool) -> None:
        """What functions of the application make of siblings; `always`: also where they have failed."""
        async with self.talking():
            relations = await self._session.fetchval("select syncagent._with_functions()")
        for relation in relations:
            async with self._merging, self.talking(), self._session.transaction():
                await self._session.execute("lock table syncagent.merge_lock in exclusive mode")
                await self._session.execute("set local session_replication_role = replica")  # it is no write
                await within(self._session, 0, "select syncagent._make_again($1, $2)", relation, always)

    async def trim(self) -> int:
        for slot in range(_SLOTS):
            try:
                async with self._merging, self.talking():
                    await self._session.fetchval("select syncagent._trim($1)", slot)
            except Contended:
                continue  # somebody who wrote there has not ended: next time
        async with self.talking():
            return int(
                await self._session.fetchval(
                    "select count(*) from pg_inherits where inhparent = 'syncagent.log'::regclass and pg_relation_size(inhrelid) > 0"
                )
            )

    async def forget_conflicts(self, seconds: float) -> int:
        gone = 0
        while True:
            async with self.talking():
                count = int(
                    await self._session.fetchval(
                        "select syncagent._forget_conflicts(make_interval(secs => $1), $2)", seconds, _CHUNK
                    )
                )
            gone += count
            if count < _CHUNK:
                return gone

    async def behind(self) -> tuple[list[Behind], int]:
        async with self.talking():
            rows = await self._session.fetch(
                "select l.receiver_node, l.seconds from syncagent.lag l join syncagent.member m on m.node = l.receiver_node"
                " where l.origin_node = $1 and l.seconds > 0 and m.state = 'member'",
                self._node,
            )
            kept: int = await self._session.fetchval("select syncagent._kept_bytes()")
        return [Behind(row["receiver_node"], row["seconds"]) for row in rows], kept

    async def requests(self) -> list[Request]:
        async with self.talking():
            rows = await self._session.fetch(
                "select id, verb, arguments::text as arguments from syncagent.request where answered_at is null order by asked_at"
            )
        return [Request(row["id"], row["verb"], msgspec.json.decode(row["arguments"])) for row in rows]

    async def answer(self, request: UUID, answer: dict[str, Any]) -> None:
        async with self.talking():
            await self._session.execute(
                "update syncagent.request set answer = $2::text::jsonb, answered_at = clock_timestamp() where id = $1",
                request,
                _encoder.encode(answer)
                .decode()
                .replace(r"\u0000", r"\ufffd"),  # a peer's words; jsonb takes no NUL
            )
            await self._session.execute(
                "delete from syncagent.request where answered_at < clock_timestamp() - interval '1 hour'"
            )

    async def say(self, request: UUID, progress: str) -> None:
        async with self.talking():
            await self._session.execute(
                "update syncagent.request set progress = $2 where id = $1", request, progress
            )

    async def report(
        self, peers: Sequence[PeerState], waiting: str | None, trouble: str | None, leader: int | None
    ) -> None:
        async with self.talking():
            for peer in peers:
                await self._session.execute(
                    "update syncagent.peer_state set linked = $2, frontier = $3::text::jsonb, parked = $4, rtt = $5,"
                    " clock_offset = $6, waiting = $7, trouble = $8, via = $9, changed_at = clock_timestamp() where node = $1",
                    peer.node,
                    peer.linked,
                    _encoder.encode({str(node): cut for node, cut in peer.frontier.items()}).decode(),
                    peer.parked,
                    None if peer.rtt is None else timedelta(seconds=peer.rtt),
                    None if peer.clock_offset is None else timedelta(seconds=peer.clock_offset),
                    peer.waiting,
                    peer.trouble,
                    peer.via,
                )
            await self._session.execute(
                "update syncagent.agent_state set waiting = $1, trouble = $2, leader = $3",
                waiting,
                trouble,
                leader,
            )

    async def paused(self) -> set[int]:
        async with self.talking():
            rows = await self._session.fetch("select node from syncagent.peer_state where paused")
        return {row["node"] for row in rows}

    async def set_paused(self, nodes: Sequence[int], paused: bool) -> None:
        async with self.talking():
            await self._session.execute(
                "update syncagent.peer_state set paused = $2 where node = any ($1::int[])",
                list(nodes),
                paused,
            )

    async def blockers(self) -> str | None:
        async with self.talking():
            row = await self._session.fetchrow(
                "select string_agg(format('pid %s (%s)', a.pid, coalesce(nullif(a.application_name, ''), a.usename)), ', ') as who"
                " from pg_stat_activity a where a.pid = any (pg_blocking_pids($1))",
                self._applier,
            )
        return None if row is None else row["who"]
