"""The Merkle forest of a site: keeps its leaves true, and answers what a comparison asks.

Invariant: whoever computes leaves or reads them holds the tables from before its snapshot; each step is one short
transaction, whose end can be missed without harm.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import groupby

import asyncpg
import msgspec

from syncagent.core import forest, limits, questions
from syncagent.core.batch import Table
from syncagent.core.comparison import Outcome
from syncagent.core.forest import Bucket, Digest, Span
from syncagent.core.questions import Grove, Row, Standing
from syncagent.core.store import Due
from syncagent.errors import Contended, ProtocolError, Unreachable
from syncagent.storage.borders import border
from syncagent.storage.session import connect

_ROWS = 50_000
_KEYS = 5_000
"""About so much is sealed, or computed anew, in one transaction."""
_PERIOD = timedelta(seconds=limits.SCRUB_PERIOD)
_frontier = msgspec.json.Decoder(dict[int, int])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


class PostgresForest:
    """The Forest of the services, on a session of its own. `merging` excludes merges while the horizon moves."""

    def __init__(self, dsn: str, session: asyncpg.Connection, merging: asyncio.Lock) -> None:
        self._dsn, self._session, self._merging = dsn, session, merging
        self._turn = asyncio.Lock()
        self._viewing: asyncpg.Connection | None = None
        """The session of the last view: to log in takes more of a processor than most comparisons."""

    def close(self) -> None:
        if self._viewing is not None:
            self._viewing.terminate()

    async def advance(self, horizon: int) -> None:
        async with self._talking():
            await self._session.fetchval("select syncagent._forest_tidy()")
            behind = await self._session.fetchval("select syncagent._forest_behind($1)", horizon)
        if behind:  # this session's turn first: a step that is under way must not hold up merges
            async with self._talking(), self._merging, self._session.transaction():
                await self._session.execute("lock table syncagent.merge_lock in exclusive mode")
                await self._session.fetchval("select syncagent._forest_advance($1)", horizon)

    async def fell(self, tables: Sequence[Table] | None) -> None:
        async with self._talking():
            await self._session.fetchval(
                "select syncagent._forest_fell($1, $2)",
                None if tables is None else [table.schema for table in tables],
                None if tables is None else [table.name for table in tables],
            )

    async def due(self) -> list[Due]:
        async with self._talking():
            rows = await self._session.fetch("select * from syncagent._forest_due($1)", _PERIOD)
        every = [Due(row["relation"], row["marked"], row["unsealed"], row["unscrubbed"]) for row in rows]
        return [due for due in every if due.marked or due.unsealed or due.unscrubbed]

    async def seal(self, relation: int) -> int | None:
        return await self._step("select syncagent._forest_seal($1, $2)", relation, _ROWS)

    async def reseal(self, relation: int) -> int | None:
        return await self._step("select syncagent._forest_reseal($1, $2)", relation, _KEYS)

    async def scrub(self, relation: int) -> int | None:
        return await self._step("select syncagent._forest_scrub($1, $2, $3)", relation, _ROWS, _PERIOD)

    async def anew(self, spans: Sequence[tuple[Table, bool, int]]) -> None:
        for (table, timed), those in groupby(sorted(spans), key=lambda span: span[:2]):
            async with self._talking():
                relation = await self._session.fetchval(
                    "select r.id from syncagent.replicated r where r.schema_name = $1 and r.table_name = $2",
                    table.schema,
                    table.name,
                )
            if relation is not None:
                numbers = [number for _, _, number in those]
                await self._step("select syncagent._forest_anew($1, $2, $3)", relation, timed, numbers)

    async def _step(self, query: str, relation: int, *parameters: object) -> int | None:
        async with self._talking():
            lock = await self._session.fetchval("select syncagent._lock_statement($1)", relation)
            if lock is None:
                return None
            async with self._session.transaction(isolation="repeatable_read"):
                await self._session.execute(lock)
                done: int | None = await self._session.fetchval(query, relation, *parameters)
                return done

    async def prove(self, node: int, outcome: Outcome, found: Mapping[str, object]) -> None:
        agreed = outcome.scope
        before = (
            None if agreed.whole else min((sealed[1] for sealed in agreed.sealed if sealed[1]), default=0)
        )
        async with self._talking():
            await self._session.fetchval(
                "select syncagent._prove($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10::text::jsonb, $11::text::jsonb)",
                node,
                outcome.equal,
                agreed.whole and not agreed.left_out,
                len(agreed.tables),
                sum(outcome.tables.values()),
                len(agreed.left_out),
                before,
                outcome.root.hex(),
                _json({str(n): cut for n, cut in outcome.here.frontier.items()}),
                _json({str(n): cut for n, cut in outcome.there.frontier.items()}),
                _json(found),
            )

    @asynccontextmanager
    async def view(self) -> AsyncIterator["PostgresView"]:
        session, self._viewing = self._viewing, None
        if session is None or session.is_closed():
            session = await self._viewer()
        try:
            with border():
                lock = await session.fetchval("select syncagent._lock_statement()")
                async with session.transaction(isolation="repeatable_read", readonly=True):
                    if lock is not None:
                        await session.execute(lock)
                    yield PostgresView(session)
        except BaseException:
            session.terminate()
            raise
        if self._viewing is None:
            self._viewing = session
        else:
            session.terminate()

    async def _viewer(self) -> asyncpg.Connection:
        try:
            session = await connect(self._dsn, "verify")
            with border():
                await session.execute("set lock_timeout = 1000")
        except Unreachable as error:
            # the server may have no connection to spare; whoever needs it most will tell
            raise Contended("no connection to compare with", detail=error.line) from error
        return session

    @asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        """The session serves one caller at a time."""
        async with self._turn:
            with border():
                yield


class PostgresView:
    """The View of the services: a session in one transaction, until it is left."""

    def __init__(self, session: asyncpg.Connection) -> None:
        self._session = session
        self._relations: dict[Table, int] = {}
        self._buckets: dict[Table, Bucket] = {}
        self._tables: list[Table] = []

    async def standing(self, tables: Sequence[Table] | None) -> Standing:
        with border():
            known, quiet, frontier, needed = await self._session.fetchrow(
                "select syncagent._known_answers(), not syncagent._pending(),"
                " (select coalesce(jsonb_object_agg(node, cut), '{}')::text from syncagent.frontier),"
                " (select coalesce(jsonb_object_agg(node, needed), '{}')::text from syncagent.frontier)"
            )
            rows = await self._session.fetch("select * from syncagent._forest_standing()")
        groves = {}
        for row in rows:
            table = Table(row["schema_name"], row["table_name"])
            if tables is None or table in tables:
                self._relations[table] = row["relation"]
                self._buckets[table] = row["bucket"]
                groves[Grove(table, row["shape"], row["bucket"])] = (row["prefix"], row["built"])
        return questions.standing(
            tuple(known), _frontier.decode(frontier), quiet, groves, _frontier.decode(needed)
        )

    async def left_out(self, frontier: Mapping[int, int], groves: Sequence[Grove]) -> tuple[Span, ...]:
        numbers = {self._relations[grove.table]: number for number, grove in enumerate(groves)}
        with border():
            rows = await self._session.fetch(
                "select * from syncagent._forest_left_out($1::text::jsonb) where relation = any ($2::int[])",
                _json({str(node): cut for node, cut in frontier.items()}),
                list(numbers),
            )
        spans = []
        for relation, timed, number in rows:
            width = forest.width(groves[numbers[relation]].bucket, timed)
            low, high = (0, forest.END) if number is None else (number * width, (number + 1) * width)
            spans.append(Span(numbers[relation], timed, low, high))
        return tuple(sorted(spans))

    def number(self, tables: Sequence[Table]) -> None:
        self._tables = list(tables)

    async def sums(
        self, level: str, spans: Sequence[Span], left_out: Iterable[Span]
    ) -> tuple[dict[int, Digest], ...]:
        found: list[dict[int, Digest]] = [{} for _ in spans]
        without = list(left_out)
        relations, timed, _, _ = self._columns(without)
        numbers = [
            span.low // forest.width(self._buckets[self._tables[span.table]], span.timed) for span in without
        ]
        with border():
            rows = await self._session.fetch(
                "select * from syncagent._forest_sums($1, $2, $3, $4, $5, $6, $7, $8)",
                level,
                *self._columns(spans),
                relations,
                timed,
                numbers,
            )
        for n, start, *digest in rows:
            found[n - 1][start] = Digest(*digest)
        return tuple(found)

    async def leaves(
        self, depth: int, spans: Sequence[Span]
    ) -> tuple[tuple[int, dict[int, Digest]] | None, ...]:
        found: list[tuple[int, dict[int, Digest]] | None] = [None for _ in spans]
        with border():
            rows = await self._session.fetch(
                "select * from syncagent._forest_leaves($1, $2, $3, $4, $5)", depth, *self._columns(spans)
            )
        for n, deep, number, *digest in rows:
            answer = found[n - 1]
            if answer is None:
                answer = found[n - 1] = (deep, {})
            answer[1][number] = Digest(*digest)
        return tuple(found)

    async def count(self, spans: Sequence[Span]) -> tuple[dict[int, Digest], ...]:
        found: list[dict[int, Digest]] = [{} for _ in spans]
        for relation, places, columns in self._by_table(spans):
            with border():
                rows = await self._session.fetch(
                    "select * from syncagent._forest_count($1, $2, $3, $4)", relation, *columns
                )
            for n, *digest in rows:
                found[places[n - 1]][spans[places[n - 1]].low] = Digest(*digest)
        return tuple(found)

    async def rows(self, spans: Sequence[Span], most: int) -> tuple[tuple[Row, ...], ...]:
        found: list[list[Row]] = [[] for _ in spans]
        for relation, places, columns in self._by_table(spans):
            with border():
                rows = await self._session.fetch(
                    "select * from syncagent._forest_list($1, $2, $3, $4, $5)", relation, *columns, most + 1
                )
            if len(rows) > most:
                raise ProtocolError(f"more than {most} rows were asked for at once")
            for n, key, shown, stamp, *lanes in rows:
                found[places[n - 1]].append(Row(key, shown, stamp, *lanes))
        return tuple(tuple(rows) for rows in found)

    def _columns(self, spans: Sequence[Span]) -> tuple[list[int], list[bool], list[int], list[int]]:
        return (
            [self._relations[self._tables[span.table]] for span in spans],
            [span.timed for span in spans],
            [span.low for span in spans],
            [span.high for span in spans],
        )

    def _by_table(
        self, spans: Sequence[Span]
    ) -> Iterable[tuple[int, list[int], tuple[list[bool], list[int], list[int]]]]:
        """Relation, places of its spans in the question, and their parts and bounds, in order."""
        places = sorted(range(len(spans)), key=lambda place: spans[place])
        for table, those in groupby(places, key=lambda place: spans[place].table):
            own = list(those)
            columns = (
                [spans[n].timed for n in own],
                [spans[n].low for n in own],
                [spans[n].high for n in own],
            )
            yield self._relations[self._tables[table]], own, columns
