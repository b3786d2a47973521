"""Repair: the listing of some rows that a peer asks for, and what is taken of a peer's listing.

Invariant: a listing is read in one snapshot; what is taken of one is taken in one transaction, under the lock that
merges take, by the rules of sql/59_repair.sql.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import msgspec

from syncagent.core.batch import BatchHeader, CutContext, Stream, Table
from syncagent.core.comparison import Difference
from syncagent.core.ports import Spool, SpoolFactory
from syncagent.core.repair import Cause
from syncagent.core.store import Repaired, Taken
from syncagent.errors import Contended, Unreachable
from syncagent.storage import staging
from syncagent.storage.borders import border
from syncagent.storage.session import connect, working

_ROWS, _ENTRIES = 0, 1
"""The streams of a listing."""
_LOCK_MS = 300
_context = msgspec.json.Decoder(dict[int, int])


class PostgresRepairs:
    """The Repairs of the services, in sessions of their own. `merging` excludes merges, cuts and compaction."""

    def __init__(self, dsn: str, node: int, merging: asyncio.Lock) -> None:
        self._dsn, self._node, self._merging = dsn, node, merging

    async def listing(
        self, request: UUID, table: Table, keys: Sequence[UUID], spools: SpoolFactory
    ) -> tuple[BatchHeader, Spool]:
        spool = spools(f"listing of {table}")
        try:
            async with self._session(replica=False) as session:
                lock = await session.fetchval(
                    "select syncagent._lock_statement(r.id) from syncagent.replicated r where r.schema_name = $1 and r.table_name = $2",
                    table.schema,
                    table.name,
                )
                async with session.transaction(isolation="repeatable_read", readonly=True):
                    if lock is not None:
                        await session.execute(lock)
                    found = await session.fetchrow(
                        "select columns, entries, frontier::text as frontier, needed::text as needed, rows, versions from syncagent._listing($1, $2, $3)",
                        table.schema,
                        table.name,
                        list(keys),
                    )
                    assert found is not None
                    rows = await staging.read_out(session, found["rows"], spool, _ROWS)
                    entries = await staging.read_out(session, found["versions"], spool, _ENTRIES)
            await spool.seal()
        except BaseException:
            await spool.close()
            raise
        sizes = spool.sizes()
        streams = (
            Stream(table, "plain", tuple(found["columns"]), rows, sizes[_ROWS]),
            Stream(table, "entries", tuple(found["entries"]), entries, sizes[_ENTRIES]),
        )
        contexts = (
            CutContext(0, _context.decode(found["needed"])),
            CutContext(0, _context.decode(found["frontier"])),
        )
        return BatchHeader(self._node, 0, 0, request, contexts, 0, streams, listing=request), spool

    async def take(
        self,
        header: BatchHeader,
        spool: Spool,
        wrong: Sequence[Difference],
        cause: Cause,
        *,
        dry: bool,
    ) -> Taken:
        async with self._session(replica=True) as session, self._merging:
            turn = session.transaction()
            await turn.start()
            try:
                await session.execute("lock table syncagent.merge_lock in exclusive mode")
                relation = await self._stage(session, header, spool)
                done = await session.fetchrow(
                    "select * from syncagent._repair($1, $2, $3::text::jsonb, $4::text::jsonb, $5, $6, $7, $8)",
                    relation,
                    header.origin,
                    msgspec.json.encode(header.context).decode(),
                    msgspec.json.encode(header.contexts[0].frontier).decode(),
                    [found.key for found in wrong],
                    [found.content_here and found.content_here[0] for found in wrong],
                    [found.content_here and found.content_here[1] for found in wrong],
                    cause,
                )
                assert done is not None
                taken = Taken(await self._recorded(session, header.streams[_ROWS].table), done["parked"])
            except BaseException:
                await turn.rollback()
                raise
            await (turn.rollback() if dry else turn.commit())
        return taken

    async def _stage(self, session: asyncpg.Connection, header: BatchHeader, spool: Spool) -> int:
        rows, entries = header.streams
        target = await session.fetchrow(
            "select * from syncagent._stage($1, $2, 'plain', $3, true)",
            rows.table.schema,
            rows.table.name,
            list(rows.columns),
        )
        assert target is not None
        relation: int = target["relation"]
        await staging.fill(session, target["stage"], target["stage_columns"], spool.read(_ROWS), rows.rows)
        await session.execute(
            f"create temp table listed on commit drop as select v.*, false as rest from syncagent.version_{relation} v with no data"
        )
        await session.copy_to_table(
            "listed", source=spool.read(_ENTRIES), columns=list(entries.columns), format="binary"
        )
        return relation

    async def _recorded(self, session: asyncpg.Connection, table: Table) -> list[Repaired]:
        rows: Sequence[Mapping[str, str]] = await session.fetch(
            "select key_text, cause, image_before::text as before, image_after::text as after"
            " from syncagent.repair_record where made_at >= now() order by key"
        )
        return [Repaired(table, row["key_text"], row["cause"], row["before"], row["after"]) for row in rows]

    @asynccontextmanager
    async def _session(self, *, replica: bool) -> AsyncIterator[asyncpg.Connection]:
        try:
            session = await (
                working(self._dsn, "repair", replica=True) if replica else connect(self._dsn, "repair")
            )
        except Unreachable as error:  # the server may have none to spare; whoever needs it most will tell
            raise Contended("no connection to repair with", detail=error.line) from error
        try:
            with border():
                if not replica:
                    await session.execute(f"set lock_timeout = {_LOCK_MS}")
                yield session
        finally:
            session.terminate()
