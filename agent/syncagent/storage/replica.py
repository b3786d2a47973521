"""Merges: COPY the bytes of a batch in, then let SQL decide, in one transaction with the frontier.

Invariant: what a merge wrote and the frontier that says so commit together or not at all. The commit is
asynchronous: a crash takes both back, and the origin keeps its cuts until a later cut of this site,
which is flushed, has said that they are here.
"""

import asyncio

import asyncpg
import msgspec

from syncagent.core import limits
from syncagent.core.batch import BatchHeader, Stream
from syncagent.errors import ConstraintBroken, Contended
from syncagent.services.ports import Spool
from syncagent.services.store import Applied
from syncagent.storage.borders import border

_LARGE = 1000
"""Staged rows from which on the planner is told how many there are."""
_WAIT_MS = 300
"""How long a merge waits, holding nothing, for one row that others hold."""
_ROWS_FIRST = 2
"""Refusals after which a merge waits for a refused row first."""
_encoder = msgspec.json.Encoder()


class PostgresReplica:
    """The Replica of the services. `merging` excludes cuts and compaction while a merge runs."""

    def __init__(self, session: asyncpg.Connection, merging: asyncio.Lock) -> None:
        self._session, self._merging = session, merging
        self.pid: int = session.get_server_pid()

    async def apply(self, header: BatchHeader, spool: Spool, *, attempt: int) -> Applied:
        with border():
            plain = await self._stage(header, spool)
        try:
            with border():
                return await self._merge(header, plain, attempt=attempt, careful=False)
        except ConstraintBroken:
            with border():
                return await self._merge(header, plain, attempt=attempt, careful=True)

    async def retry_parked(self) -> int:
        session = self._session
        with border():
            async with self._merging, session.transaction():
                await session.execute("lock table syncagent.merge_lock in exclusive mode")
                await session.fetchval("select syncagent._retry_parked()")
                return int(await session.fetchval("select count(*) from syncagent.parked_row"))

    async def _stage(self, header: BatchHeader, spool: Spool) -> list["_Source"]:
        """Fill the staging tables with the exact streams; plain ones wait until it is known where they may go."""
        session = self._session
        plain: list[_Source] = []
        fresh: set[int] = set()
        for index, stream in enumerate(header.streams):
            target = await session.fetchrow(
                "select * from syncagent._stage($1, $2, $3, $4, $5)",
                stream.table.schema,
                stream.table.name,
                stream.form,
                list(stream.columns),
                not any(stream.table == earlier.table for earlier in header.streams[:index]),
            )
            assert target is not None
            fresh.add(target["relation"])
            source = _Source(target, index, stream, spool)
            if stream.form == "plain":
                plain.append(source)
            else:
                await source.stage(session)
        self._relations = sorted(fresh)
        return plain

    async def _merge(
        self, header: BatchHeader, plain: list["_Source"], *, attempt: int, careful: bool
    ) -> Applied:
        session = self._session
        contexts = _encoder.encode(header.contexts).decode()
        transaction = session.transaction()
        await transaction.start()
        try:
            if attempt >= _ROWS_FIRST:
                await session.fetchval("select syncagent._await_refused($1, $2)", self._relations, _WAIT_MS)
                await session.execute(f"set local lock_timeout = {int(limits.LOCK_TIMEOUT * 1000)}")
            async with self._merging:
                await session.execute("lock table syncagent.merge_lock in exclusive mode")
                await session.fetchval(
                    "select syncagent._apply_begin($1, $2, $3::text::jsonb, $4)",
                    header.origin,
                    header.after,
                    contexts,
                    header.newest,
                )
                copied = 0
                for source in plain:
                    if attempt == 0 and not careful and await source.may_copy(session):
                        copied += await source.copy(session)
                    else:
                        await source.stage(session)
                result = await session.fetchrow(
                    "select sum(taken)::bigint as taken, sum(conflicts)::bigint as conflicts, sum(parked)::bigint as parked"
                    " from syncagent._merge($1, $2, $3)",
                    self._relations,
                    header.origin,
                    careful,
                )
                await session.fetchval(
                    "select syncagent._apply_end($1, $2, $3, $4)",
                    header.origin,
                    header.after,
                    header.upto,
                    header.upto_id,
                )
                await transaction.commit()
        except BaseException:
            await transaction.rollback()
            raise
        assert result is not None
        return Applied(result["taken"] + copied, result["conflicts"], result["parked"])


class _Source:
    """One stream and where it may go: into the staging table, or straight into the table."""

    def __init__(self, target: asyncpg.Record, index: int, stream: Stream, spool: Spool) -> None:
        self.relation: int = target["relation"]
        self._target, self._index, self._stream, self._spool = target, index, stream, spool

    async def stage(self, session: asyncpg.Connection) -> None:
        await session.copy_to_table(
            self._target["stage"],
            source=self._spool.read(self._index),
            columns=self._target["stage_columns"],
            format="binary",
        )
        if self._stream.rows > _LARGE:
            await session.execute(f"analyze pg_temp.{self._target['stage']}")

    async def may_copy(self, session: asyncpg.Connection) -> bool:
        """Whether nothing is unsettled here that the rows could meet."""
        return bool(await session.fetchval("select syncagent._may_copy($1)", self.relation))

    async def copy(self, session: asyncpg.Connection) -> int:
        await session.copy_to_table(
            self._target["table_name"],
            schema_name=self._target["schema_name"],
            source=self._spool.read(self._index),
            columns=list(self._stream.columns),
            format="binary",
        )
        if not await self.may_copy(session):
            raise Contended("the table was written while rows were copied into it")
        return self._stream.rows
