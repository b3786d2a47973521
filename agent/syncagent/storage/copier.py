"""The joiner's side of the copy: rows go straight into its tables, range by range, and a record of each range with them.

Invariant: a range is here with its record, or neither is; a table is copied into only while nothing but ranges of this
copy has written it, so it has no triggers, and the rows just written are compared with what the donor has read before
they commit. The commits are asynchronous: a crash takes back whole ranges, the last step is flushed.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import msgspec

from syncagent.core import copying
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
    RangeHead,
)
from syncagent.core.ports import Spool
from syncagent.core.store import Differing, Put, Unfinished
from syncagent.errors import CopyDiffers, RefusedError
from syncagent.storage import history, reconciler
from syncagent.storage.borders import border
from syncagent.storage.fitting import check_table
from syncagent.storage.session import working

_AHEAD = 1024
"""Pages that others may have made ready before a transaction began, and that it then filled."""
_PARKED = [
    "relation",
    "key",
    "stamp",
    "node",
    "cut",
    "image",
    "registers",
    "shown",
    "sqlstate",
    "reason",
    "since",
]
_WAIT_MS = 5000
"""Nobody else uses the tables of a site that joins; whoever looks at one is waited for."""
_context = msgspec.json.Decoder(dict[int, int])
_merges = msgspec.json.Decoder(dict[str, str])
_frontier = msgspec.json.Decoder(dict[int, At])
_encoder = msgspec.json.Encoder()


class PostgresCopier:
    """The Copier of the services; sessions are opened as callers need them, and kept for the next."""

    def __init__(self, dsn: str, node: int) -> None:
        self._dsn, self._node = dsn, node
        self._idle: list[asyncpg.Connection] = []

    async def close(self) -> None:
        while self._idle:
            with border():
                await self._idle.pop().close(timeout=2)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection]:
        session = None
        while session is None or session.is_closed():
            session = self._idle.pop() if self._idle else await self._open()
        try:
            with border():
                yield session
        except BaseException:
            session.terminate()  # what it was in the middle of is nobody's concern any more
            raise
        self._idle.append(session)

    async def _open(self) -> asyncpg.Connection:
        session = await working(self._dsn, "join", replica=True)
        with border():
            await session.execute(f"set lock_timeout = {_WAIT_MS}; set max_parallel_workers_per_gather = 0")
        return session

    # ---- what there is to do

    async def unfinished(self) -> Unfinished | None:
        async with self._session() as session:
            return await self._unfinished(session)

    async def _unfinished(self, session: asyncpg.Connection) -> Unfinished | None:
        state = await session.fetchrow(
            "select donor, taken::text as taken, frontier::text as frontier, pg_catalog.current_setting('server_encoding') as encoding,"
            " (select s.node_before from syncagent.local_site s) as before from syncagent.copy_state"
        )
        if state is None:
            return None
        tables, waiting, rows, done = [], [], 0, 0
        for row in await session.fetch(
            "select id, schema_name, table_name, key_columns::text[] as keys, derived, stride, bucket, strategy, merges::text as merges, columns::text[] as columns"
            " from syncagent.copied_table order by id"
        ):
            table, ranges = Table(row["schema_name"], row["table_name"]), []
            for part in await session.fetch(
                "select number, node_schema, node_name, low, high, estimate, rows from syncagent.copied_range"
                " where relation = $1 order by number",
                row["id"],
            ):
                node = Node(part["node_schema"], part["node_name"]) if part["node_name"] else None
                low, high = (None if part[edge] is None else tuple(part[edge]) for edge in ("low", "high"))
                ranges.append(Range(table, part["number"], node, low, high, part["estimate"]))
                if part["rows"] is None:
                    waiting.append(ranges[-1])
                else:
                    rows, done = rows + part["rows"], done + 1
            columns = tuple(Column(name, "") for name in row["columns"])
            estimate = sum(part.estimate for part in ranges)
            tables.append(
                CopiedTable(
                    table,
                    tuple(row["keys"]),
                    row["derived"],
                    row["stride"],
                    columns,
                    estimate,
                    0,
                    tuple(ranges),
                    row["bucket"],
                    row["strategy"],
                    tuple(sorted(_merges.decode(row["merges"]).items())),
                )
            )
        plan = CopyPlan(
            state["donor"],
            state["encoding"],
            state["taken"],
            _frontier.decode(state["frontier"]),
            tuple(tables),
        )
        waiting.sort(key=lambda part: part.node is not None)
        return Unfinished(plan, tuple(waiting), rows, done, state["before"])

    # ---- taking a plan over

    async def begin(self, plan: CopyPlan) -> Unfinished:
        async with self._session() as session, session.transaction():
            begun = await self._unfinished(session)
            if begun is not None:
                raise RefusedError(
                    f"a copy from node {begun.plan.donor} was begun here and is not complete",
                    hint="go on with it, or give it up first",
                )
            encoding = await session.fetchval("select pg_catalog.current_setting('server_encoding')")
            if encoding != plan.encoding:
                raise RefusedError(
                    f"this database has the encoding {encoding}, the donor's has {plan.encoding}",
                    hint=f"create database ... encoding '{plan.encoding}' template template0",
                )
            filled = [await check_table(session, table) for table in plan.tables]
            await session.execute(
                "insert into syncagent.copy_state (donor, taken, frontier) values ($1, $2::text::pg_snapshot, $3::text::jsonb)",
                plan.donor,
                plan.taken,
                _encoder.encode(plan.frontier).decode(),
            )
            for number, table in enumerate(plan.tables, 1):
                await _enter(session, number, table, filled=filled[number - 1])
            unfinished = await self._unfinished(session)
        assert unfinished is not None
        return unfinished

    # ---- one range

    async def held(self, part: Range) -> Held | None:
        async with self._session() as session:
            relation = await _attached(session, part.table)
            return None if relation is None else await reconciler.held(session, relation, part)

    async def own(self, table: Table, told: At) -> int | None:
        async with self._session() as session:
            relation = await _attached(session, table)
            if relation is None:
                return None
            own: int = await session.fetchval(
                "select syncagent._own($1, $2, $3)", relation, told.cut, told.newest
            )
            return own

    async def differing(self, part: Range, head: RangeHead, spool: Spool, told: At) -> Differing:
        async with self._session() as session:
            relation = await _attached(session, part.table)
            assert relation is not None
            await session.fetchval("select syncagent._own($1, $2, $3)", relation, told.cut, told.newest)
            await reconciler.stage(session, relation, part, head, spool)
            return await reconciler.differing(session, relation, part)

    async def put(self, part: Range, head: RangeHead, spool: Spool) -> Put:
        put = Put(head.rows)
        async with self._session() as session, session.transaction():
            found = await session.fetchrow(
                "select c.id, c.columns::text[] as columns, r.rows,"
                " (select x.id from syncagent.replicated x where c.filled and x.schema_name = c.schema_name and x.table_name = c.table_name) as filled,"
                " (select s.donor from syncagent.copy_state s) as donor"
                " from syncagent.copied_table c join syncagent.copied_range r on r.relation = c.id and r.number = $3"
                " where c.schema_name = $1 and c.table_name = $2 for update of r",
                part.table.schema,
                part.table.name,
                part.number,
            )
            if found is None or found["rows"] is not None:
                raise RefusedError(
                    f"{part} is not wanted here (any more)", hint="is another join at work here?"
                )
            if sorted(found["columns"]) != sorted(head.columns):
                raise RefusedError(
                    f"table {part.table} has other columns at the donor than when the copy began",
                    detail=f"then: {', '.join(found['columns'])}; now: {', '.join(head.columns)}",
                    hint="start the copy anew",
                )
            if found["filled"] is not None:
                put = await reconciler.reconcile(session, found["filled"], part, head, spool, found["donor"])
            elif part.node is not None and head.rows:
                await self._rows(session, part, part.node, head, spool)
            if head.versions and found["filled"] is None:
                await session.copy_to_table(
                    f"copied_version_{found['id']}",
                    schema_name="syncagent",
                    source=spool.read(copying.VERSIONS),
                    columns=list(head.entries),
                    format="binary",
                )
            if head.parked:
                await self._parked(session, found, part, head, spool)
            await session.execute(
                "update syncagent.copied_range set rows = $3, lane_0 = $4, lane_1 = $5, versions = $6,"
                " snapshot = $7::text::pg_snapshot, done_at = clock_timestamp() where relation = $1 and number = $2",
                found["id"],
                part.number,
                head.rows,
                *head.lanes,
                head.versions,
                head.snapshot,
            )
        return put

    async def _rows(
        self, session: asyncpg.Connection, part: Range, node: Node, head: RangeHead, spool: Spool
    ) -> None:
        name = await session.fetchval("select format('%I.%I', $1::text, $2::text)", node.schema, node.name)
        before = await session.fetchval(
            "select pg_relation_size($1::text::regclass) / pg_catalog.current_setting('block_size')::bigint",
            name,
        )
        await session.copy_to_table(
            node.name,
            schema_name=node.schema,
            source=spool.read(copying.ROWS),
            columns=list(head.columns),
            format="binary",
        )
        sums = await _sums(session, name, head, max(before - _AHEAD, 0))
        if sums["rows"] != head.rows:
            sums = await _sums(session, name, head, 0)
        if sums["rows"] != head.rows:
            raise CopyDiffers(f"{part}: {sums['rows']} rows are here, the donor has read {head.rows}")
        if (sums["lane_0"], sums["lane_1"]) != head.lanes:
            raise CopyDiffers(
                f"{part}: {head.rows} rows are here, as at the donor, but they are not the same",
                detail=f"fingerprint here {sums['lane_0']}, {sums['lane_1']}; there {head.lanes[0]}, {head.lanes[1]}",
                hint="do types and settings of this server write the values otherwise? is a disk or memory damaged?",
            )

    async def _parked(
        self, session: asyncpg.Connection, found: asyncpg.Record, part: Range, head: RangeHead, spool: Spool
    ) -> None:
        if list(found["columns"]) != list(
            head.columns
        ):  # an image is a row as text, in the order of the columns
            raise RefusedError(
                f"table {part.table} has parked rows at the donor, and its columns in another order here",
                hint="settle them there first: `syncagent parked list`",
            )
        await session.execute(
            "create temp table if not exists parked_stage (like syncagent.copied_parked) on commit delete rows"
        )
        await session.copy_to_table(
            "parked_stage", source=spool.read(copying.PARKED), columns=_PARKED, format="binary"
        )
        await session.execute(
            f"insert into syncagent.copied_parked ({', '.join(_PARKED)}) select {', '.join(['$1::int', *_PARKED[1:]])} from pg_temp.parked_stage",
            found["id"],
        )

    # ---- the end

    async def conclude(self, head: EndHead, spool: Spool) -> dict[int, int]:
        async with self._session() as session:
            await session.execute("set synchronous_commit = on")
            async with session.transaction():
                return await self._conclude(session, head, spool)

    async def _conclude(self, session: asyncpg.Connection, head: EndHead, spool: Spool) -> dict[int, int]:
        begun = await self._unfinished(session)
        if begun is None:
            raise RefusedError("no copy was begun here", hint="copy the rows first")
        if begun.ranges:
            raise RefusedError(f"the copy lacks {len(begun.ranges)} ranges, the first is {begun.ranges[0]}")
        await session.execute("lock table syncagent.merge_lock in exclusive mode")
        await session.fetchval("select syncagent._lift($1)", head.clock)
        marks = dict(head.collected)
        for number, table in enumerate(begun.plan.tables, 1):
            relation = await _attach(session, table)
            await session.fetchval("select syncagent._copied_entries($1, $2)", number, relation)
            await session.execute(f"drop table syncagent.copied_version_{number}")
            await session.execute(
                "update syncagent.replicated set collected = greatest(collected, $2) where id = $1",
                relation,
                marks.get(table.table, UUID(int=0)),
            )
            for sequence in head.sequences:
                if sequence.table == table.table:
                    await session.fetchval(
                        "select syncagent._copied_sequence($1, $2::text::name, $3, $4)",
                        relation,
                        sequence.column,
                        sequence.last,
                        sequence.called,
                    )
        for node, at in begun.plan.frontier.items():
            await session.execute(
                "insert into syncagent.frontier (node, cut, cut_id, context, newest, needed) values ($1, $2, $3, $4::text::jsonb, $5, $6)"
                " on conflict (node) do update set cut = excluded.cut, cut_id = excluded.cut_id, context = excluded.context,"
                " newest = excluded.newest, needed = excluded.needed",
                node,
                at.cut,
                at.id,
                _encoder.encode({str(other): cut for other, cut in at.context.items()}).decode(),
                at.newest,
                at.cut if at.needed is None else at.needed,
            )
        await history.take(session, head, spool)
        await session.fetchval("select syncagent._bring_back()")
        await session.execute(
            "delete from syncagent.copy_state; delete from syncagent.copied_table; delete from syncagent.copied_range;"
            " delete from syncagent.copied_parked"
        )
        await session.execute(
            "update syncagent.local_site set copied = true, node_before = null, seen_before = null,"
            " compacted = syncagent._greatest(compacted, $1::text::jsonb), collected = syncagent._greatest(collected, $2::text::jsonb),"
            " schema_epoch = $3, schema_floor = $3",
            *(msgspec.json.encode(cuts).decode() for cuts in (head.compacted, head.forgotten)),
            head.schema,
        )
        return {node: at.cut for node, at in begun.plan.frontier.items()}

    # ---- giving up

    async def forget(self) -> None:
        async with self._session() as session, session.transaction():
            begun = await self._unfinished(session)
            for number, table in enumerate(begun.plan.tables if begun else (), 1):
                name = await session.fetchval(
                    "select to_regclass(format('%I.%I', $1::text, $2::text))::text",
                    table.table.schema,
                    table.table.name,
                )
                filled = await session.fetchval(
                    "select filled from syncagent.copied_table where id = $1", number
                )
                if name is not None and filled:
                    await session.fetchval("select syncagent._detach($1::text::regclass)", name)
                elif name is not None:
                    await session.execute(f"truncate {name}")
                await session.execute(f"drop table syncagent.copied_version_{number}")
            await session.execute(
                "delete from syncagent.copy_state; delete from syncagent.copied_table; delete from syncagent.copied_range;"
                " delete from syncagent.copied_parked; delete from syncagent.dropped_row"
            )


async def _attached(session: asyncpg.Connection, table: Table) -> int | None:
    """The number of a table that is attached here."""
    relation: int | None = await session.fetchval(
        "select r.id from syncagent.replicated r join pg_class c on c.oid = r.relation"
        " where r.schema_name = $1 and r.table_name = $2",
        table.schema,
        table.name,
    )
    return relation


async def _sums(session: asyncpg.Connection, name: str, head: RangeHead, first: int) -> asyncpg.Record:
    """Count and lanes of what this transaction has put into a table, from a page on."""
    return await session.fetchrow(
        "select * from syncagent._copied_sums($1::text::regclass, $2::text[]::name[], $3)",
        name,
        list(head.columns),
        first,
    )


async def _enter(session: asyncpg.Connection, number: int, table: CopiedTable, *, filled: bool) -> None:
    if filled:
        await _attach(session, table)
    await session.execute(
        "insert into syncagent.copied_table (id, schema_name, table_name, key_columns, derived, stride, columns, filled, bucket, strategy, merges)"
        " values ($1, $2::text, $3::text, $4::text[]::name[], $5, $6, $7::text[]::name[], $8, $9, $10, $11::text::jsonb)",
        number,
        table.table.schema,
        table.table.name,
        list(table.key_columns),
        table.derived,
        table.stride,
        table.names,
        filled,
        table.bucket,
        table.strategy,
        msgspec.json.encode(dict(table.merges)).decode(),
    )
    await session.executemany(
        "insert into syncagent.copied_range (relation, number, node_schema, node_name, low, high, estimate)"
        " values ($1, $2, $3::text, $4::text, $5, $6, $7)",
        [
            (
                number,
                part.number,
                part.node.schema if part.node else None,
                part.node.name if part.node else None,
                part.low,
                part.high,
                part.estimate,
            )
            for part in table.ranges
        ],
    )
    await session.fetchval("select syncagent._copied_stage($1)", number)


async def _attach(session: asyncpg.Connection, table: CopiedTable) -> int:
    """Attach a table whose rows every site has, if that was not done yet."""
    name = await session.fetchval(
        "select format('%I.%I', $1::text, $2::text)", table.table.schema, table.table.name
    )
    merges = msgspec.json.encode(dict(table.merges)).decode()
    row = await session.fetchrow(
        "select id, (strategy, merges) = ($2, $3::text::jsonb) as alike from syncagent.replicated where relation = $1::text::regclass",
        name,
        table.strategy,
        merges,
    )
    if row is not None and not row["alike"]:
        raise RefusedError(
            f"table {table.table} is merged in another way here than at the donor: its strategy was changed since",
            hint="set the site back to a newer backup; or `syncagent remove` it at a member, and let it join anew",
        )
    known = None if row is None else row["id"]
    if known is None:
        keys = await session.fetchval("select (syncagent._key($1::text::regclass)).names::text[]", name)
        if tuple(keys or ()) != table.key_columns:
            raise RefusedError(
                f"table {table.table} has not the primary key it has at the donor",
                detail=f"here: {', '.join(keys or ['none'])}; there: {', '.join(table.key_columns)}",
                hint="make the primary keys before the copy is concluded",
            )
        known = await session.fetchval(
            "select syncagent._attach($1::text::regclass, $2, false, $3, $4, p_strategy => $5, p_merges => $6::text::jsonb)",
            name,
            table.derived,
            table.stride,
            table.bucket,
            table.strategy,
            merges,
        )
    return int(known)
