"""Cuts: one REPEATABLE READ transaction that folds the log and reads the changed rows out.

Invariant: bytes are handed out only after the commit of the cut that names them was flushed to disk.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, Self
from uuid import UUID

import asyncpg
import msgspec

from syncagent.core.arrival import START, Position
from syncagent.core.batch import BESIDE, BatchHeader, CutContext, Stream, Table
from syncagent.core.outbox import Group
from syncagent.core.ports import Spool, SpoolFactory
from syncagent.core.store import Cut, Shipment
from syncagent.errors import Contended, SyncagentError
from syncagent.storage import staging
from syncagent.storage.borders import border

_BEGIN = """begin isolation level repeatable read;
set local plan_cache_mode = force_generic_plan;
lock table syncagent.merge_lock in exclusive mode"""
"""Plans that are kept, until the fold knows how much there is: those of a small cut took most of its time."""
_LOCKS = "coalesce(syncagent._lock_statement(), '')"
_NOTHING = 21
"""Length of a binary COPY of no rows: signature, flags, extension, trailer."""
_context = msgspec.json.Decoder(dict[int, int])


class _Fold(NamedTuple):
    """What a cut has folded. `newest`: the largest clock of it; `frontier`: the cut's context; `epoch`: of the schema."""

    number: int
    id: UUID
    rows: int
    newest: int
    frontier: dict[int, int]
    epoch: int

    @classmethod
    def of(cls, made: asyncpg.Record) -> Self:
        frontier = _context.decode(made["frontier"])
        return cls(made["number"], made["id"], made["rows"], made["newest"], frontier, made["schema_epoch"])


class _Stream:
    """COPY output on its way into a spool; a COPY without rows leaves no trace.

    An error of the spool is kept until the COPY is over: raised inside, it would cost the session.
    """

    def __init__(self, spool: Spool, index: int) -> None:
        self._spool, self._index = spool, index
        self._held: list[bytes] | None = []
        self._failure: SyncagentError | None = None
        self.size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        if self._failure is not None:
            return
        if self._held is not None:
            self._held.append(data)
            if self.size <= _NOTHING:
                return
            data, self._held = b"".join(self._held), None
        try:
            await self._spool.write(self._index, data)
        except SyncagentError as error:
            self._failure = error

    def end(self) -> None:
        if self._failure is not None:
            raise self._failure


class PostgresOrigin:
    """The Origin of the services. `merging` excludes merges and compaction while a cut is made."""

    def __init__(
        self, session: asyncpg.Connection, poll: asyncpg.Connection, merging: asyncio.Lock, node: int
    ) -> None:
        self._session, self._merging, self._node = session, merging, node
        self._poll, self._polling = poll, asyncio.Lock()
        self._locks: str | None = None
        """The statement that locks the attached tables, as the last cut has left it."""
        self._small = False
        """Whether the transaction still plans for few keys, as a fold of few has left it."""

    async def pending(self) -> bool:
        return bool(await self._ask("select syncagent._pending()"))

    async def cut_id(self, number: int) -> UUID | None:
        cut_id: UUID | None = await self._ask("select id from syncagent.cut where number = $1", number)
        return cut_id

    async def _ask(self, query: str, *arguments: object) -> Any:
        """One value, on the session for questions."""
        async with self._polling:
            with border():
                return await self._poll.fetchval(query, *arguments)

    async def cut(self, groups: Sequence[Group], *, force: bool, spools: SpoolFactory) -> Cut | None:
        shipments: list[Shipment] = []
        try:
            async with self._merging:
                with border():
                    cut, settle = await self._cut(groups, force, spools, shipments)
                    if settle:
                        await self._settle()
        except BaseException:
            for shipment in shipments:
                await shipment.spool.close()
            raise
        return cut

    async def _settle(self) -> None:
        try:
            with border():
                await self._session.fetchval("select syncagent._settle()")
        except Contended:
            return  # the row is being written: that settles it, or the next cut does

    async def _cut(
        self, groups: Sequence[Group], force: bool, spools: SpoolFactory, shipments: list[Shipment]
    ) -> tuple[Cut | None, bool]:
        session = self._session
        try:
            made = await self._folded(force)
            if made is None:
                await session.execute("rollback")
                return None, bool(await session.fetchval("select exists (select from syncagent.settling)"))
            fold = _Fold.of(made)
            self._small = fold.rows <= staging.LARGE
            unable = [group for group in groups if not await self._read(group, fold, spools, shipments)]
        except BaseException:
            await session.execute("rollback")
            raise
        await session.execute("commit")
        empty = fold.rows == 0 and not made["told"]
        cut = Cut(fold.number, fold.id, fold.frontier, fold.rows, empty, tuple(shipments), tuple(unable))
        return cut, bool(made["settle"])

    async def _folded(self, force: bool) -> asyncpg.Record | None:
        """Begin, lock, then fold: a table that is rewritten after the snapshot would read as empty.

        Which tables are to be locked is known from the cut before, and asked again in the snapshot itself.
        """
        while True:
            known = self._locks is not None
            locks = self._locks if known else await self._ask(f"select {_LOCKS}")
            self._locks = None
            try:
                await self._session.execute(f"{_BEGIN}; {locks}")
            except (asyncpg.SyntaxOrAccessError, asyncpg.InvalidSchemaNameError):
                if not known:
                    raise
                await self._session.execute("rollback")  # one of them was renamed, or is gone
                continue
            made = await self._session.fetchrow(
                f"select f.*, f.context::text as frontier, s.schema_epoch, {_LOCKS} as locks"
                " from syncagent._fold($1) f cross join syncagent.local_site s",
                force,
            )
            self._locks = locks if made is None else made["locks"]
            if self._locks == locks:
                return made
            await self._session.execute("rollback")

    async def _read(self, group: Group, fold: _Fold, spools: SpoolFactory, shipments: list[Shipment]) -> bool:
        """Read the range of one group into a spool, table by table, untouched. False: it is not whole here."""
        session = self._session
        origin = self._node if group.origin is None else group.origin
        upto, upto_id = await self._position(origin, fold)
        if upto <= group.after or upto_id is None:
            return True
        contexts, newest = await self._contexts(origin, group.after, upto, fold)
        if group.origin is not None and len(contexts) < upto - group.after:
            return False
        spool = spools(f"{origin}:{group.after}-{upto}")
        try:
            streams: list[Stream] = []
            for part in await session.fetch(
                "select * from syncagent._shipment($1, $2, $3, $4)", origin, group.after, upto, group.plain
            ):
                self._small = self._small and part["keys"] <= staging.LARGE
                if not self._small:
                    await session.fetchval(
                        "select syncagent._plan_for($1::text::regclass, $2)", part["relation"], part["keys"]
                    )
                output = _Stream(spool, len(streams))
                status = await session.copy_from_query(part["query"], output=output.write, format="binary")
                output.end()
                if rows := int(status.split()[1]):
                    table = Table(part["schema_name"], part["table_name"])
                    columns = () if part["form"] in BESIDE else tuple(part["columns"])
                    streams.append(Stream(table, part["form"], columns, rows, output.size, part["lowest"]))
            await spool.seal()
        except BaseException:
            await spool.close()
            raise
        header = BatchHeader(
            origin=origin,
            after=group.after,
            upto=upto,
            upto_id=upto_id,
            contexts=contexts,
            newest=newest,
            streams=tuple(streams),
            schema=fold.epoch,
        )
        shipments.append(Shipment(group, header, spool))
        return True

    async def _position(self, origin: int, fold: _Fold) -> Position:
        """The last cut of an origin that is here."""
        if origin == self._node:
            return Position(fold.number, fold.id)
        row = await self._session.fetchrow(
            "select cut, cut_id from syncagent.frontier where node = $1", origin
        )
        return START if row is None else Position(row["cut"], row["cut_id"])

    async def _contexts(
        self, origin: int, after: int, upto: int, fold: _Fold
    ) -> tuple[tuple[CutContext, ...], int]:
        """Those of a range of cuts, and the largest clock of what was written up to then."""
        if origin == self._node and after == fold.number - 1:
            return (CutContext(fold.number, fold.frontier),), fold.newest
        rows = await self._session.fetch(
            "select cut, context::text as context, newest from syncagent._contexts($1, $2, $3)",
            origin,
            after,
            upto,
        )
        contexts = tuple(CutContext(row["cut"], _context.decode(row["context"])) for row in rows)
        return contexts, max((row["newest"] for row in rows), default=0)
