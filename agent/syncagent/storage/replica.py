"""Merges: COPY the bytes of a batch in, then let SQL decide, in one transaction with the frontier.

Invariant: what a merge wrote and the frontier that says so commit together or not at all. The commit is
asynchronous: a crash takes both back, and the origin keeps its cuts until a later cut of this site,
which is flushed, has said that they are here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from syncagent.core import limits
from syncagent.core.batch import BESIDE, BatchHeader, Stream, Table, states
from syncagent.core.ports import Spool
from syncagent.core.store import Applied
from syncagent.errors import ConstraintBroken, Contended, Inexact
from syncagent.storage import staging
from syncagent.storage.borders import border
from syncagent.storage.session import within

_WAIT_MS = 300
"""How long a merge waits, holding nothing, for one row that others hold; who waits for a row is waited for: far less than deadlock_timeout."""
_ROWS_FIRST = 2
"""Refusals after which a merge waits for a refused row first."""
_TABLES_FIRST = 4
"""Refusals after which it waits for the table, now and then: rows that many write in turn are never all free at once."""
_CALM = 8
"""Batches in a row that find all their rows of a table free, until it is not waited for any more."""
_LONGEST_MS = 2500
"""How long for the table, at most: above deadlock_timeout, so that writers who wait for each other come to an end meanwhile."""
_PUT_OFF = 8
"""Refusals after which a row that collides with one that others hold waits, parked, and the rest of its batch goes on."""
_encoder = msgspec.json.Encoder()
Row = tuple[int, str]
"""The number of a table, and a key."""


class PostgresReplica:
    """The Replica of the services. `merging` excludes cuts and compaction while a merge runs."""

    def __init__(self, session: asyncpg.Connection, merging: asyncio.Lock) -> None:
        self._session, self._merging = session, merging
        self._held: Row | None = None
        """The row for which the last merge was refused, if no batch has it: it yields, follows or goes."""
        self._crowded: dict[int, int] = {}
        """Tables that had to be waited for, and how many batches whose rows are all free end that."""
        self.pid: int = session.get_server_pid()

    async def apply(self, header: BatchHeader, spool: Spool, *, attempt: int) -> Applied:
        with border():
            staged = await self._stage(header, spool)

        async def merge(careful: bool, held: Row | None) -> Applied:
            async with AsyncExitStack() as turn, self._session.transaction():
                alone = False
                if held is not None:
                    await self._take(held, late=attempt >= _PUT_OFF)
                else:
                    alone = await self._take_refused(staged, attempt, turn)
                if not alone:
                    await turn.enter_async_context(self._merging)
                return await self._merge(staged, attempt=attempt, careful=careful, settle=True)

        return await self._carefully(merge)

    async def apply_knot(self, parts: Sequence[tuple[BatchHeader, Spool]], *, attempt: int) -> Applied:
        """The staging tables serve one part after the other, so all happens inside the transaction."""

        seen = states([header for header, _ in parts])

        async def merge(careful: bool, held: Row | None) -> Applied:
            total = Applied(0, 0, 0)
            async with AsyncExitStack() as turn, self._session.transaction():
                alone = False
                if held is not None:
                    await self._take(held, late=attempt >= _PUT_OFF)
                first = parts if attempt > 0 else parts[:1] if self._crowded else ()
                for number, part in enumerate(first if held is None else ()):
                    alone |= await self._take_refused(
                        await self._stage(*part), attempt, turn if number == 0 else None
                    )
                if not alone:
                    await turn.enter_async_context(self._alone())
                for header, _ in parts:  # what was written at once is told apart by all their contexts
                    await self._session.fetchval(
                        "select syncagent._foretell($1, $2::text::jsonb, $3)", *_contexts(header)
                    )
                for number, (header, spool) in enumerate(parts):
                    staged = await self._stage(header, spool)
                    await self._session.fetchval(
                        "select syncagent._tie($1, $2::text::jsonb)",
                        number + 1,
                        _encoder.encode(seen[number]).decode(),
                    )
                    total += await self._merge(staged, attempt=attempt, careful=careful, settle=False)
                await self._session.execute(  # now all of it is there
                    "select syncagent._bring_together(), syncagent._log_yielded(), syncagent._try_held()"
                )
            return total

        return await self._carefully(merge)

    async def _carefully(self, merge: Callable[[bool, Row | None], Awaitable[Applied]]) -> Applied:
        """Parking takes subtransactions and looks row by row: only if a constraint was broken."""
        held, self._held = self._held, None
        try:
            try:
                with border():
                    return await merge(False, held)
            except ConstraintBroken:
                with border():
                    return await merge(True, held)
        except Contended as error:
            self._held = error.row
            raise

    async def retry_parked(self, *, alone: bool = True) -> int:
        session = self._session
        with border():
            for group in await session.fetch("select * from syncagent._parked_groups()"):
                await self._retry(group["relation"], group["node"], group["keys"])
                for key in group["stuck"] if alone else ():
                    await self._retry(group["relation"], group["node"], [key])
            return int(await session.fetchval("select count(*) from syncagent.parked_row"))

    async def _retry(self, relation: int, node: int, keys: list[UUID]) -> None:
        """A row that somebody holds keeps nobody else's from being tried; if it is none of these, it is waited for, once."""
        held: Row | None = None
        for _ in range(2):
            try:
                with border():
                    async with AsyncExitStack() as turn, self._session.transaction():
                        if held is not None:
                            await self._take(held, late=True)
                            await self._put_off()
                        await turn.enter_async_context(self._alone())
                        await self._session.fetchval(
                            "select syncagent._retry($1, $2, $3)", relation, node, keys
                        )
            except Contended as error:
                if (held := error.row) is None:
                    return
            else:
                return

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """No cut and no compaction meanwhile; left when the transaction has ended."""
        async with self._merging:
            await self._session.execute("lock table syncagent.merge_lock in exclusive mode")
            yield

    async def _stage(self, header: BatchHeader, spool: Spool) -> "_Staged":
        """Fill the staging tables with the exact streams; plain ones wait until it is known where they may go."""
        session = self._session
        plain: list[_Source] = []
        relations: set[int] = set()
        found = await session.fetch(
            "select s.schema_epoch, t.* from syncagent.local_site s left join syncagent._stage_all($1::text::jsonb)"
            " with ordinality as t on true order by t.ordinality",
            _streams(header),
        )
        targets = iter(found)
        for index, stream in enumerate(header.streams):
            if stream.form == "conflicts":
                await staging.fill(session, "stage_conflicts", None, spool.read(index), stream.rows)
                continue
            source = _Source(next(targets), index, stream, spool)
            if stream.form in BESIDE:
                await source.stage_beside(session)
                continue
            relations.add(source.relation)
            if stream.form == "plain":
                plain.append(source)
            else:
                await source.stage(session)
        return _Staged(header, sorted(relations), plain, found[0]["schema_epoch"])

    async def _take_refused(self, staged: "_Staged", attempt: int, turn: AsyncExitStack | None) -> bool:
        """Wait for a row that others hold, or for its table, in this turn, if this transaction holds nothing yet. Whether it is alone then."""
        if turn is not None and (tables := await self._to_wait_for(staged.relations, attempt)):
            await self._take_tables(tables, turn)
            return True
        if attempt >= _ROWS_FIRST:
            await self._wait("select syncagent._await_refused($1, $2)", staged.relations)
        return False

    async def _to_wait_for(self, relations: list[int], attempt: int) -> list[int]:
        """Tables in front of which this try waits. To try a crowded one without would stop, amid their transactions, all who write there."""
        crowded = [relation for relation in relations if relation in self._crowded]
        found = crowded
        if crowded and attempt == 0:
            found = await self._session.fetchval("select array(select syncagent._not_free($1))", crowded)
            for relation in set(crowded).difference(found):
                self._crowded[relation] -= 1
            self._crowded = {relation: left for relation, left in self._crowded.items() if left}
        elif not crowded and attempt >= _TABLES_FIRST and attempt.bit_count() == 1:
            found = await self._session.fetchval(
                "select array(select syncagent._in_turn($1, $2))", relations, _LONGEST_MS
            )
        return found

    async def _take_tables(self, relations: list[int], turn: AsyncExitStack) -> None:
        """Who writes there is kept out for a merge, and not for a cut as well: that one is over first."""
        await turn.enter_async_context(self._alone())
        for relation in relations:
            self._crowded.pop(relation, None)  # in vain, it is not tried again at once
        found = await self._wait(
            "select array(select syncagent._lock_tables($1, $2))", relations, milliseconds=_LONGEST_MS
        )
        self._crowded.update(dict.fromkeys(found, _CALM))

    async def _take(self, held: Row, *, late: bool) -> None:
        """The same for one that no batch has; `late`: or do without it, for what needs it can be put off."""
        try:
            async with self._session.transaction():
                await self._wait("select syncagent._await_row($1, $2::text::uuid, $3)", *held)
        except asyncpg.LockNotAvailableError:
            if not late:
                raise

    async def _put_off(self) -> None:
        """What collides with a row that others hold waits, parked."""
        await self._session.execute("set local syncagent.put_off = 'on'")

    async def _wait(self, query: str, *arguments: object, milliseconds: int = _WAIT_MS) -> Any:
        found = await self._session.fetchval(query, *arguments, milliseconds)
        await self._session.execute(f"set local lock_timeout = {int(limits.LOCK_TIMEOUT * 1000)}")
        return found

    async def _merge(self, staged: "_Staged", *, attempt: int, careful: bool, settle: bool) -> Applied:
        session, header = self._session, staged.header
        direct = [source for source in staged.plain if source.whole] if attempt == 0 and not careful else []
        begun = await session.fetchrow(
            "select recorded, copied from syncagent._apply_begin($1, $2::text::jsonb, $3, $4, $5, $6, $7, $8)",
            *_contexts(header),
            header.after,
            header.rows,
            staged.epoch,
            [source.relation for source in direct],
            [source.lowest for source in direct],
        )
        assert begun is not None
        record = begun["recorded"]
        direct = [source for source, may in zip(direct, begun["copied"], strict=True) if may]
        if attempt >= _PUT_OFF:
            await self._put_off()
        if header.contexts[0].cut <= header.after:
            await session.fetchval("select syncagent._skip($1, $2)", staged.relations, header.after)
        if record and staged.plain and not any(stream.form == "keys" for stream in header.streams):
            raise Inexact("the keys of plain rows, which may have to be handed on, did not come with them")
        copied = 0
        for source in staged.plain:
            if source in direct:
                copied += await source.copy(session)
            else:
                await source.stage(session)
        result = await session.fetchrow(
            "select m.*, syncagent._apply_end($2, $3, $8, $9, $10, $11, $7)"
            " from syncagent._merge($1, $2, $3, $4, $5, $6, $7) as m",
            staged.relations,
            header.origin,
            header.after,
            attempt > 0 or careful,
            careful,
            settle,
            record,
            header.upto,
            header.upto_id,
            header.newest,
            header.needed,
        )
        assert result is not None
        if result["functions"]:
            await within(session, header.rows, "select syncagent._make_staged($1)", result["functions"])
        return Applied(result["taken"] + copied, result["conflicts"], result["parked"])


def _streams(header: BatchHeader) -> str:
    """What is to be staged, as `_stage_all` wants it: a table's place is made anew by its first stream."""
    seen = set[Table]()
    streams = []
    for stream in header.streams:
        if stream.form == "conflicts":
            continue
        fresh = stream.form not in BESIDE and stream.table not in seen
        if fresh:
            seen.add(stream.table)
        streams.append(
            {
                "schema": stream.table.schema,
                "name": stream.table.name,
                "form": stream.form,
                "columns": stream.columns,
                "fresh": fresh,
            }
        )
    return _encoder.encode(streams).decode()


def _contexts(header: BatchHeader) -> tuple[int, str, int]:
    return header.origin, _encoder.encode(header.contexts).decode(), header.newest


@dataclass(frozen=True)
class _Staged:
    """A batch whose exact rows are in the staging tables of `relations`, made at this epoch of the schema."""

    header: BatchHeader
    relations: list[int]
    plain: list["_Source"]
    epoch: int


class _Source:
    """One stream and where it may go: into the staging table, or straight into the table."""

    def __init__(self, target: asyncpg.Record, index: int, stream: Stream, spool: Spool) -> None:
        self.relation: int = target["relation"]
        self.whole: bool = target["whole"]
        """No column is lacking."""
        self.lowest = stream.lowest
        self._target, self._index, self._stream, self._spool = target, index, stream, spool

    async def stage(self, session: asyncpg.Connection) -> None:
        await staging.fill(
            session,
            self._target["stage"],
            self._target["stage_columns"],
            self._spool.read(self._index),
            self._stream.rows,
        )

    async def stage_beside(self, session: asyncpg.Connection) -> None:
        stage = self._target["stage"]
        await session.copy_to_table(
            stage,
            source=self._spool.read(self._index),
            columns=self._target["stage_columns"],
            format="binary",
        )
        await session.execute(
            f"update pg_temp.{stage} set relation = $1 where relation is null", self.relation
        )

    async def copy(self, session: asyncpg.Connection) -> int:
        await session.copy_to_table(
            self._target["table_name"],
            schema_name=self._target["schema_name"],
            source=self._spool.read(self._index),
            columns=list(self._stream.columns),
            format="binary",
        )
        if not await session.fetchval("select syncagent._may_copy($1, $2)", self.relation, self.lowest):
            raise Contended("the table was written while rows were copied into it")
        return self._stream.rows
