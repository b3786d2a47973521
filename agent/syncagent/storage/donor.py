"""The donor's side of the copy of the rows: its frontier, its ranges, and what else a joiner must know.

Invariant: every range is read in one short transaction of its own, which ends before its bytes leave; nothing here
waits for a network, and nothing of the application waits for it longer than for any other reader.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from math import ceil
from uuid import UUID

import asyncpg
import msgspec

from syncagent.core import copying, limits
from syncagent.core.batch import Table
from syncagent.core.copying import (
    At,
    Column,
    CopiedTable,
    CopyPlan,
    EndHead,
    Held,
    Node,
    Range,
    RangeAsked,
    RangeHead,
    SequenceAt,
)
from syncagent.core.ports import Spool, SpoolFactory
from syncagent.errors import Contended, CopyDiffers, RefusedError
from syncagent.storage import staging
from syncagent.storage.borders import border
from syncagent.storage.session import connect

_POLL = 0.02
_LOOK = 0.5
_QUIET = limits.COPY_BUSY / 20
_LOCK_MS = 300
"""One try for a table's lock, below deadlock_timeout: who queues behind us is not kept."""
_context = msgspec.json.Decoder(dict[int, int])
_merges = msgspec.json.Decoder(dict[str, str])
_CONTEXTS = "select c.node, c.cut, c.context, c.newest from syncagent.context c"
_RECORDS = (
    "select r.schema_name, r.table_name, k.node, k.cut, k.implicit, k.keys"
    " from syncagent.cut_keys k join syncagent.replicated r on r.id = k.relation"
)
_CONFLICTS = "select * from syncagent.conflict_record"
_ALIASES = (
    "select r.schema_name, r.table_name, a.loser, a.winner, a.node, a.cut"
    " from syncagent.alias a join syncagent.replicated r on r.id = a.relation where a.cut is not null"
)
_STEPS = "select * from syncagent.conflict_step"
_REACH = "select coalesce(jsonb_object_agg(f.node, f.cut), '{}')::text from syncagent.frontier f"


class PostgresDonor:
    """`nudge` asks for a cut of this site soon; without an agent somebody else must make it."""

    def __init__(
        self,
        dsn: str,
        node: int,
        spools: SpoolFactory,
        nudge: Callable[[], None],
        *,
        range_rows: int = limits.COPY_RANGE_ROWS,
    ) -> None:
        self._dsn, self._node, self._spools, self._nudge = dsn, node, spools, nudge
        self._range_rows = range_rows
        self._free = asyncio.Semaphore(limits.COPY_SESSIONS)
        self._turn = asyncio.Lock()
        self._rests_until = 0.0
        self._looked, self._seen, self._rate = 0.0, 0, 0.0
        """When it was last looked at what is written here, up to which cut, and how many rows a second that were."""

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._free:
            session = await connect(self._dsn, "copy")
            try:
                with border():
                    await session.execute(
                        f"set lock_timeout = {_LOCK_MS}; set max_parallel_workers_per_gather = 0"
                    )
                    yield session
            finally:
                with border():
                    await session.close(timeout=2)

    # ---- the plan

    async def plan(self, joiner: int, *, look: bool) -> CopyPlan:
        """`look`: for one that only compares, and need not be able to join."""
        async with self._session() as session:
            async with session.transaction(isolation="repeatable_read", readonly=True):
                if not look:
                    await self._check_joiner(session, joiner)
                taken, encoding = await session.fetchrow(
                    "select pg_current_snapshot()::text, pg_catalog.current_setting('server_encoding')"
                )
                frontier = {
                    row["node"]: At(
                        row["cut"],
                        row["cut_id"],
                        _context.decode(row["context"]),
                        row["newest"],
                        row["needed"],
                    )
                    for row in await session.fetch(
                        "select node, cut, cut_id, context::text as context, newest, needed from syncagent.frontier"
                    )
                }
            tables = await session.fetch(
                "select r.id, r.relation::oid::bigint as oid, r.schema_name, r.table_name, r.key_columns::text[] as keys, r.derived, r.bucket, r.strategy, r.merges::text as merges,"
                " (select min(s.every) from syncagent.stride s where s.relation = r.id) as stride"
                " from syncagent.replicated r join pg_class c on c.oid = r.relation order by r.id"
            )
            copied = tuple([await self._table(session, row) for row in tables])
        return CopyPlan(self._node, encoding, taken, frontier, copied)

    async def _check_joiner(self, session: asyncpg.Connection, joiner: int) -> None:
        said = await session.fetchrow(
            "select exists (select from syncagent.member m where m.node = $1) as listed,"
            " exists (select from syncagent.frontier f where f.node = $1 and f.cut > 0) as wrote",
            joiner,
        )
        assert said is not None
        if not said["listed"]:
            raise RefusedError(
                f"node {joiner} is not a member here yet, so what it needs would not be kept",
                hint="let it become a member first: `syncagent join` does",
            )
        if said["wrote"]:
            raise RefusedError(
                f"node {joiner} has written rows before: a copy would bring it back without what it had seen",
                hint="a site that returns takes a new node number: `syncagent rejoin`",
            )

    async def _table(self, session: asyncpg.Connection, row: asyncpg.Record) -> CopiedTable:
        table = Table(row["schema_name"], row["table_name"])
        columns = await session.fetch(
            "select name::text as name, type from syncagent._copied_columns($1::bigint::oid::regclass)",
            row["oid"],
        )
        nodes = await session.fetch(
            "select node_schema, node_name, node::oid::bigint as oid, rows, bytes, scattered from syncagent._copy_nodes($1)",
            row["id"],
        )
        ranges = [Range(table, 0, None, None, None, 0)]
        for node in nodes:
            bounds = await self._bounds(session, row["keys"], node)
            edges = [None, *bounds, None]
            share = node["rows"] // (len(bounds) + 1)
            for low, high in pairwise(edges):
                place = Node(node["node_schema"], node["node_name"])
                ranges.append(Range(table, len(ranges), place, low, high, share))
        return CopiedTable(
            table,
            tuple(row["keys"]),
            row["derived"],
            row["stride"],
            tuple(Column(column["name"], column["type"]) for column in columns),
            sum(node["rows"] for node in nodes),
            sum(node["bytes"] for node in nodes),
            tuple(ranges),
            row["bucket"],
            row["strategy"],
            tuple(sorted(_merges.decode(row["merges"]).items())),
        )

    async def _bounds(
        self, session: asyncpg.Connection, keys: list[str], node: asyncpg.Record
    ) -> list[tuple[str, ...]]:
        larger = limits.COPY_SCATTERED if node["scattered"] else 1
        wanted = max(
            ceil(node["rows"] / (self._range_rows * larger)),
            ceil(node["bytes"] / (limits.COPY_RANGE_SIZE * larger)),
        )
        if wanted < 2:
            return []
        found = await session.fetch(
            "select b from syncagent._copy_bounds($1::bigint::oid::regclass, $2::text[]::name[], $3) as b",
            node["oid"],
            keys,
            wanted,
        )
        return [tuple(row["b"]) for row in found]

    # ---- a range

    async def _wait_for_cut(self, session: asyncpg.Connection, taken: str) -> None:
        """Until cuts hold all that was committed at a snapshot."""
        nudged = False
        try:
            async with asyncio.timeout(limits.COPY_CUT_PATIENCE):
                while not await session.fetchval("select syncagent._all_cut($1::text::pg_snapshot)", taken):
                    if not nudged:
                        self._nudge()
                        nudged = True
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise Contended(
                "the donor has made no cut since the copy began",
                hint="is its agent running? `syncagent status` there says what a cut waits for",
            ) from None

    async def rows(self, asked: RangeAsked) -> tuple[RangeHead, Spool]:
        """Read a range into a spool: the rows, their version entries, parked rows."""
        part = asked.range
        async with self._session() as session:
            await self._wait_for_cut(session, asked.taken)
            spool = self._spools(f"copy of {part}")
            try:
                async with (
                    self._courtesy(session),
                    session.transaction(isolation="repeatable_read", readonly=True),
                ):
                    head = await self._read(session, asked, spool)
                await spool.seal()
            except BaseException:
                await spool.close()
                raise
        return head, spool

    @asynccontextmanager
    async def _courtesy(self, session: asyncpg.Connection) -> AsyncIterator[None]:
        """Side by side while nobody writes here; else one after the other, with rests."""
        clock = asyncio.get_running_loop()
        rate = await self._written(session, clock.time())
        if rate < _QUIET:
            yield
            return
        async with self._turn:
            await asyncio.sleep(max(0.0, self._rests_until - clock.time()))
            began = clock.time()
            yield
            self._rests_until = clock.time() + copying.rest(clock.time() - began, rate)

    async def _written(self, session: asyncpg.Connection, now: float) -> float:
        """Rows a second that the application writes, of late: those of cuts, which are asked for."""
        if (passed := now - self._looked) > _LOOK:
            first, self._looked = not self._looked, now
            last, rows = await session.fetchrow(
                "select coalesce(max(c.number), 0), coalesce(sum(c.rows) filter (where c.number > $1), 0)::bigint from syncagent.cut c",
                self._seen,
            )
            self._rate = rows / passed if self._seen else 0.0
            self._seen = last
            if not first:
                self._nudge()
        return self._rate

    async def _read(self, session: asyncpg.Connection, asked: RangeAsked, spool: Spool) -> RangeHead:
        part = asked.range
        if part.node is not None:  # before the snapshot: a table rewritten after it would read as empty
            locked = await session.fetchval(
                "select format('lock table only %I.%I in access share mode', $1::text, $2::text)",
                part.node.schema,
                part.node.name,
            )
            await session.execute(locked)
        found = await session.fetchrow(
            "select r.id, r.columns::text[] as columns, syncagent._entry_columns(r) as entries, q.*,"
            " pg_current_snapshot()::text as snapshot"
            " from syncagent.replicated r join pg_class c on c.oid = r.relation"
            " cross join lateral syncagent._copy_queries(r.id, to_regclass(quote_ident($3::text) || '.' || quote_ident($4::text)), $5, $6, $7) as q"
            " where r.schema_name = $1 and r.table_name = $2 and ($3::text is null or to_regclass(quote_ident($3::text) || '.' || quote_ident($4::text)) is not null)",
            part.table.schema,
            part.table.name,
            part.node.schema if part.node else None,
            part.node.name if part.node else None,
            part.low,
            part.high,
            asked.before,
        )
        if found is None:
            raise RefusedError(
                f"table {part.node or part.table} is not attached at the donor any more",
                hint="start the copy anew: what was copied of it is of no use",
            )
        rows, lanes, same = 0, (0, 0), False
        if part.node is not None:
            sums = await session.fetchrow(found["sums"])
            assert sums is not None
            rows, lanes = sums["rows"], (sums["lane_0"], sums["lane_1"])
            same = asked.held == Held(rows, lanes)
            if not same and await staging.read_out(session, found["rows"], spool, copying.ROWS) != rows:
                raise CopyDiffers(f"{part}: two readings in one snapshot of the donor differ")
        versions = await staging.read_out(session, found["versions"], spool, copying.VERSIONS)
        parked = await staging.read_out(session, found["parked"], spool, copying.PARKED)
        return RangeHead(
            tuple(found["columns"]),
            tuple(found["entries"]),
            rows,
            lanes,
            versions,
            parked,
            found["snapshot"],
            same,
            found["lapsed"],
        )

    # ---- the end

    async def end(self, joiner: int, taken: str) -> tuple[EndHead, Spool]:
        async with self._session() as session:
            await self._check_joiner(session, joiner)
            now = await session.fetchval("select pg_current_snapshot()::text")
            await self._wait_for_cut(session, now)
            spool = self._spools("the end of a copy")
            try:
                async with session.transaction(isolation="repeatable_read", readonly=True):
                    head = await self._read_end(session, spool)
                await spool.seal()
            except BaseException:
                await spool.close()
                raise
        return head, spool

    async def _read_end(self, session: asyncpg.Connection, spool: Spool) -> EndHead:
        reach = _context.decode(await session.fetchval(_REACH))
        collected = await session.fetch("select schema_name, table_name, collected from syncagent.replicated")
        sequences = await session.fetch(
            "select schema_name, table_name, column_name::text as column_name, last_value, is_called from syncagent._copy_sequences()"
        )
        contexts = await staging.read_out(session, _CONTEXTS, spool, copying.CONTEXTS)
        conflicts = await staging.read_out(session, _CONFLICTS, spool, copying.CONFLICTS)
        records = await staging.read_out(session, _RECORDS, spool, copying.RECORDS)
        aliases = await staging.read_out(session, _ALIASES, spool, copying.ALIASES)
        steps = await staging.read_out(session, _STEPS, spool, copying.STEPS)
        clock = await session.fetchval("select last_value from syncagent.hlc")
        gone = await session.fetchrow(
            "select compacted::text as compacted, collected::text as forgotten, schema_epoch from syncagent.local_site"
        )
        assert gone is not None
        return EndHead(
            reach,
            clock,
            tuple((Table(r["schema_name"], r["table_name"]), UUID(str(r["collected"]))) for r in collected),
            tuple(
                SequenceAt(
                    Table(r["schema_name"], r["table_name"]),
                    r["column_name"],
                    r["last_value"],
                    r["is_called"],
                )
                for r in sequences
            ),
            contexts,
            conflicts,
            records,
            _context.decode(gone["compacted"]),
            _context.decode(gone["forgotten"]),
            gone["schema_epoch"],
            aliases,
            steps,
        )
