"""A laboratory of sites: databases with the SQL side, driven by hand, one step at a time.

The agent's own storage classes make the cuts and the merges; what is left out is everything around
them: services, links, time. So a test says exactly what happens in which order, and between what.
Databases are copies of a template that is installed once per server and schema.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import psycopg
from psycopg.sql import Composed

from syncagent import resources
from syncagent.core.batch import BatchHeader
from syncagent.core.membership import Peer
from syncagent.core.outbox import Group
from syncagent.core.store import Applied, Cut, Shipment
from syncagent.embedded import Server
from syncagent.errors import Contended, Inexact
from syncagent.storage.store import PostgresStore, opened
from tests.support.databases import copying
from tests.support.waiting import eventually

T = TypeVar("T")
Row = tuple[Any, ...]
Change = tuple[str, str, str]
"""One mutation of the SQL side: file, what stands there once, what stands there instead."""

ITEM = "create table item (id uuid primary key, value int, note text)"
"""The schema of tests that need no special one."""


def key(number: int) -> str:
    """A key that was made long ago."""
    return f"01900000-0000-7000-8000-{number:012x}"


def timeless(number: int) -> str:
    """A key that does not say when it was made."""
    return f"00000000-0000-4000-8000-{number:012x}"


_ATTACH_ALL = """
    select syncagent._attach(c.oid::regclass, true, false, p_strategy => coalesce(split_part(d.text, ' ', 1), 'lww'),
        p_merges => coalesce(nullif(substr(d.text, strpos(d.text || ' ', ' ')), '')::jsonb, '{}'))
    from pg_class c cross join lateral (select obj_description(c.oid, 'pg_class')) as d (text) join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and not c.relispartition and n.nspname not in ('pg_catalog', 'information_schema', 'syncagent') and n.nspname !~ '^pg_'
    order by n.nspname, c.relname
"""

_LOOKS = """
    select md5(string_agg(x, ',' order by x)) from (
        select (c.oid, c.relname, c.relnatts, c.relrowsecurity, c.relforcerowsecurity, c.relowner, c.relreplident, c.relacl,
                c.reloptions)::text from pg_class c
        where c.oid >= 16384 and c.relpersistence <> 't'
        union all
        select (a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attidentity, a.atthasdef, a.attstorage,
                a.attcompression, a.attacl, a.attoptions)::text
        from pg_attribute a join pg_class c on c.oid = a.attrelid where a.attrelid >= 16384 and c.relpersistence <> 't'
        union all
        select (i.inhrelid, i.inhparent)::text from pg_inherits i
        union all
        select (i.indexrelid, i.indisclustered, i.indisreplident, i.indisvalid)::text from pg_index i where i.indexrelid >= 16384
        union all
        select (p.oid, md5(p.prosrc))::text from pg_proc p where p.oid >= 16384
        union all
        select (t.oid, t.tgenabled)::text from pg_trigger t where not t.tgisinternal
        union all
        select (k.oid, k.conname)::text from pg_constraint k where k.oid >= 16384 and k.conrelid <> 0
        union all
        select (d.objoid, d.objsubid, d.description)::text from pg_description d where d.objoid >= 16384
    ) as t (x)
"""
_EMPTY = """
    set session_replication_role = replica;
    do $$ declare r record; begin
        for r in select c.oid::regclass as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind = 'r' and c.relpersistence = 'p' and c.oid >= 16384 and n.nspname <> 'information_schema'
            and c.oid <> all ('{syncagent.replicated,syncagent.shape}'::regclass[])
        loop execute format('delete from %s', r.name); end loop;
    end $$;
    update syncagent.replicated set collected = '00000000-0000-0000-0000-000000000000', policies = '{}', bucket = 'hour';
    select setval('syncagent.hlc', 1);
"""


_templates = count(1)
"""Of all laboratories: their servers are the same."""


class Memory:
    """A spool in memory. `during` runs once, while the first bytes are read: between fold and commit."""

    took = 0.0

    def __init__(self, during: Callable[[], Awaitable[None]] | None = None) -> None:
        self._streams: dict[int, bytearray] = {}
        self._during = during

    async def write(self, stream: int, data: bytes) -> None:
        during, self._during = self._during, None
        if during is not None:
            await during()
        self._streams.setdefault(stream, bytearray()).extend(data)

    async def seal(self) -> None:
        pass

    async def read(self, stream: int) -> AsyncIterator[bytes]:
        yield bytes(self._streams[stream])

    async def frames(self) -> AsyncIterator[bytes]:
        for data in self._streams.values():
            yield bytes(data)

    def sizes(self) -> list[int]:
        return [len(data) for data in self._streams.values()]

    async def close(self) -> None:
        pass


class Site:
    """One database with its agent's sessions (`store`) and one session of the application (`app`)."""

    def __init__(
        self, node: int, server: Server, dsn: str, store: PostgresStore, app: asyncpg.Connection
    ) -> None:
        self.node, self.server, self.dsn, self.store, self.app = node, server, dsn, store, app
        self._stack = AsyncExitStack()

    # ---- the application

    async def do(self, *statements: str) -> None:
        """Each is a transaction of its own."""
        for statement in statements:
            await self.app.execute(statement)

    async def together(self, *statements: str) -> None:
        """All in one transaction."""
        async with self.app.transaction():
            await self.do(*statements)

    async def rows(self, query: str, *arguments: object) -> list[Row]:
        return [tuple(row) for row in await self.app.fetch(query, *arguments)]

    async def one(self, query: str, *arguments: object) -> Any:
        return await self.app.fetchval(query, *arguments)

    async def session(self, role: str = "postgres", **settings: str) -> asyncpg.Connection:
        """One more session of the application."""
        dsn = self.dsn if role == "postgres" else self.server.dsn(self.name, role)
        session = await asyncpg.connect(dsn, statement_cache_size=0, server_settings=settings)
        self._stack.push_async_callback(session.close, timeout=2)
        return session

    @property
    def name(self) -> str:
        return str(psycopg.conninfo.conninfo_to_dict(self.dsn)["dbname"])

    async def holding(self, *statements: str, isolation: str = "read committed") -> asyncpg.Connection:
        """A session whose transaction has run these statements and is open."""
        session = await self.session()
        await session.execute(f"begin isolation level {isolation}")
        for statement in statements:
            await session.execute(statement)
        return session

    async def table(self, name: str) -> list[str]:
        """All rows of a table, as text."""
        return [row[0] for row in await self.rows(f"select (t.*)::text from {name} t order by 1")]

    # ---- the agent

    async def frontier(self) -> dict[int, int]:
        return dict(await self.rows("select node, cut from syncagent.frontier"))

    async def cut(
        self,
        *peers: "Site",
        plain: bool = True,
        force: bool = True,
        during: Callable[[], Awaitable[None]] | None = None,
    ) -> Cut | None:
        """A cut, with a shipment for each peer, in their order, from where each stands."""
        groups = [Group((await peer.frontier()).get(self.node, 0), plain, (peer.node,)) for peer in peers]
        return await self.store.origin.cut(groups, force=force, spools=lambda _: Memory(during))

    async def cut_groups(self, groups: Sequence[Group]) -> Cut:
        """A cut with exactly these ranges."""
        cut = await self.store.origin.cut(groups, force=True, spools=lambda _: Memory(None))
        assert cut is not None
        return cut

    async def batch(self, peer: "Site", *, plain: bool = True) -> Shipment:
        """A cut made for one peer."""
        cut = await self.cut(peer, plain=plain)
        assert cut is not None
        return cut.shipments[0]

    async def apply(self, shipment: Shipment, *, attempt: int = 0) -> Applied:
        return await self.store.replica.apply(shipment.header, shipment.spool, attempt=attempt)

    async def ready(self, header: BatchHeader, beside: Mapping[int, int] | None = None) -> bool:
        """Causal delivery: everything the batch's origin had seen is here, or comes with it."""
        here = await self.frontier() | dict(beside or {})
        return all(
            here.get(node, 0) >= cut
            for node, cut in header.context.items()
            if node not in (header.origin, self.node)
        )

    async def compact(self) -> int:
        return await self.store.keeper.compact(always=True)

    async def versions(self, table: str) -> dict[UUID, Row]:
        """The version table: key -> stamp, node, cut, deleted."""
        number = await self.one("select id from syncagent.replicated where table_name = $1", table)
        found = await self.rows(f"select key, stamp, node, cut, deleted from syncagent.version_{number}")
        return {row[0]: row[1:] for row in found}

    async def conflicts(self) -> list[str]:
        """Kinds of the conflicts that this site has noticed itself."""
        noticed = (
            "select c.kind from syncagent.conflict_record c join syncagent.conflict_step s on s.conflict = c.id"
            " where s.what = 'noticed' and s.node = $1 order by c.kind"
        )
        return [row[0] for row in await self.rows(noticed, self.node)]

    async def parked(self) -> list[Row]:
        """Image and error of each parked row."""
        found = await self.rows("select shown::text, sqlstate from syncagent.parked_row order by key")
        return [(json.loads(shown), state) for shown, state in found]

    async def clock_ahead(self, seconds: float) -> None:
        """Set this site's clock so far ahead of the wall."""
        await self.do(f"select setval('syncagent.hlc', syncagent._wall() + {int(seconds * 4096000)})")

    async def close(self) -> None:
        await self._stack.aclose()


# ---- between sites


async def patiently(act: Callable[[], Awaitable[T]]) -> T:
    """As an agent does: what meets a lock, autovacuum's for instance, is tried again."""
    for _ in range(100):
        try:
            return await act()
        except Contended:
            await asyncio.sleep(0.02)
    return await act()


async def ship(origin: Site, receiver: Site, *, attempt: int = 0) -> Applied:
    """A cut at the origin, applied at the receiver; in the exact form if the plain one does not do."""
    shipment = await origin.batch(receiver)
    try:
        return await receiver.apply(shipment, attempt=attempt)
    except Inexact:
        return await receiver.apply(await origin.batch(receiver, plain=False), attempt=attempt)


async def insisting(site: Site, shipment: Shipment, during: Callable[[], Awaitable[object]]) -> None:
    """A merge that was refused is tried again until it is done; `during`: once it waits for a row, and has written nothing yet."""
    waits = (
        "select cardinality(pg_blocking_pids($1)) > 0 and not exists (select from pg_locks l join syncagent.replicated r on r.relation = l.relation"
        " where l.pid = $1 and l.mode = 'RowExclusiveLock')"
    )
    merging = asyncio.create_task(patiently(lambda: site.apply(shipment, attempt=1)))
    try:
        await eventually(lambda: site.one(waits, site.store.replica.pid), "the merge waits")
        await during()
    finally:
        await merging


async def exchange(*sites: Site, rounds: int = 12, plain: bool = True) -> None:
    """Ship from everywhere to everywhere, until a whole round has said nothing new. (What waits for each other cannot be asked
    for in the exact form later: a test that may come to that has it from the beginning.)"""
    for _ in range(rounds):
        early: dict[int, list[Shipment]] = {site.node: [] for site in sites}
        quiet = [await _spread(origin, sites, early, plain) for origin in sites]
        tangled = [site for site in sites if early[site.node]]
        for site in tangled:
            await _untie(site, early[site.node])
        if all(quiet) and not tangled and not [s for s in sites if await s.store.origin.pending()]:
            return
    raise AssertionError("the sites never come to rest")


async def _spread(origin: Site, sites: Sequence[Site], early: dict[int, list[Shipment]], plain: bool) -> bool:
    """One cut for all others; whether it told them nothing. What cannot be applied yet goes to `early`."""
    others = [site for site in sites if site is not origin]
    cut = await patiently(lambda: origin.cut(*others, plain=plain))
    assert cut is not None
    for receiver, shipment in zip(others, cut.shipments, strict=True):
        if not await receiver.ready(shipment.header):
            early[receiver.node].append(shipment)
            continue
        try:
            await patiently(partial(receiver.apply, shipment))
        except Inexact:
            exact = await patiently(partial(origin.batch, receiver, plain=False))
            await patiently(partial(receiver.apply, exact))
    return all(shipment.header.rows == 0 for shipment in cut.shipments)


async def _untie(site: Site, early: list[Shipment]) -> None:
    """Apply what has become ready meanwhile, and together what waits only for each other."""
    for shipment in list(early):
        if await site.ready(shipment.header):
            early.remove(shipment)
            await patiently(partial(site.apply, shipment))
    heads = {shipment.header.origin: shipment.header.upto for shipment in early}
    if early and all([await site.ready(shipment.header, heads) for shipment in early]):
        parts = [(shipment.header, shipment.spool) for shipment in early]
        await patiently(lambda: site.store.replica.apply_knot(parts, attempt=0))
        await site.store.replica.retry_parked()  # as an agent does after each batch


async def quiet(*sites: Site) -> None:
    """Until nobody has anything to ship. What sites do about collisions is done at the second round, if not at the first."""
    for _ in range(3):
        await exchange(*sites, plain=False)
    assert not any([await site.one("select syncagent._pending()") for site in sites])


async def cross(a: Site, b: Site) -> None:
    """Each meets what the other wrote before it knows what the other makes of it."""
    there, here = await a.batch(b), await b.batch(a)
    await b.apply(there)
    await a.apply(here)
    await quiet(a, b)


async def same(table: str, *sites: Site) -> list[str]:
    """The rows of a table, which are the same at all sites."""
    first, *others = [await site.table(table) for site in sites]
    for other in others:
        assert other == first, f"{table} differs"
    return first


# ---- the laboratory


class _Kind:
    """Databases of one server, schema and mutation of the SQL side."""

    def __init__(self, server: Server, template: str) -> None:
        self.server, self.template = server, template
        self.looks = self._ask(template, _LOOKS)
        self._idle: list[str] = []
        self._numbers = count(1)

    def take(self) -> str:
        if self._idle:
            return self._idle.pop()
        name = f"{self.template}_{next(self._numbers)}"
        self._ask("postgres", copying(self.server, name, self.template))
        return name

    def give_back(self, name: str) -> None:
        """Kept if the test left the schema as it was."""
        self.server.start()  # the test may have stopped it
        if self._ask(name, _LOOKS) == self.looks:
            self._ask(name, _EMPTY)
            self._idle.append(name)
        else:
            self._ask("postgres", f"drop database {name} with (force)")

    def _ask(self, database: str, statement: str | Composed) -> Any:
        with psycopg.connect(self.server.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode() if isinstance(statement, str) else statement)
            return cursor.fetchall() if cursor.description else None


class Laboratory:
    """Makes sites, and what they are copied from."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, str, tuple[Change, ...]], _Kind] = {}
        self._bare: dict[tuple[int, tuple[Change, ...]], str] = {}

    def _kind(self, server: Server, schema: str, changes: Sequence[Change]) -> _Kind:
        key = id(server), schema, tuple(changes)
        if key not in self._kinds:
            name = self._database(server, self.installed(server, changes))
            with psycopg.connect(server.dsn(name), autocommit=True) as connection:
                connection.execute("set client_min_messages = warning")
                for statement in (schema, _ATTACH_ALL):
                    connection.execute(statement.encode())
            self._kinds[key] = _Kind(server, name)
        return self._kinds[key]

    def installed(self, server: Server, changes: Sequence[Change]) -> str:
        """A database with the SQL side and nothing else."""
        key = id(server), tuple(changes)
        if key not in self._bare:
            self._bare[key] = self._database(server, "template1")
            with psycopg.connect(server.dsn(self._bare[key]), autocommit=True) as connection:
                connection.execute("set client_min_messages = warning")
                for statement in installation(changes):
                    connection.execute(statement.encode())
        return self._bare[key]

    def _database(self, server: Server, template: str) -> str:
        name = f"lab{next(_templates)}"
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(copying(server, name, template))
        return name

    @asynccontextmanager
    async def sites(
        self, schema: str, *servers: Server, changes: Sequence[Change] = ()
    ) -> AsyncIterator[list[Site]]:
        """One site on each of these servers, all tables of the schema attached; nodes 1, 2, 3, ..."""
        async with AsyncExitStack() as stack:
            peers = [Peer(f"site{node}", node, None, "") for node in range(1, len(servers) + 1)]
            yield [
                await self._site(stack, self._kind(server, schema, changes), peer, peers)
                for server, peer in zip(servers, peers, strict=True)
            ]

    async def _site(self, stack: AsyncExitStack, kind: _Kind, me: Peer, peers: Sequence[Peer]) -> Site:
        name = kind.take()
        stack.callback(kind.give_back, name)
        dsn = kind.server.dsn(name)
        app = await asyncpg.connect(dsn, statement_cache_size=0)
        stack.push_async_callback(app.close, timeout=2)
        identity = await app.fetchrow(
            "insert into syncagent.local_site (site, name, node, incarnation, tail)"
            " values (gen_random_uuid(), $1, $2::int, gen_random_uuid(), syncagent._tail($2, 12345 + $2))"
            " returning site, incarnation",
            me.name,
            me.node,
        )
        await app.executemany(
            "insert into syncagent.member (node, name) values ($1, $2)",
            [(peer.node, peer.name) for peer in peers],
        )
        await app.executemany(
            "insert into syncagent.peer_state (node) values ($1)",
            [(peer.node,) for peer in peers if peer is not me],
        )
        store = await stack.enter_async_context(
            opened(
                dsn,
                site=identity["site"],
                node=me.node,
                incarnation=identity["incarnation"],
                name=me.name,
            )
        )
        site = Site(me.node, kind.server, dsn, store, app)
        stack.push_async_callback(site.close)
        return site


def installation(changes: Sequence[Change]) -> list[str]:
    """The files of sql/, with mutations; each must find what it changes exactly once."""
    files: Mapping[str, str] = {
        path.name: path.read_text(encoding="utf-8") for path in sorted(resources.sql().glob("*.sql"))
    }
    texts = dict(files)
    for name, before, after in changes:
        assert texts[name].count(before) == 1, f"{name} holds {texts[name].count(before)} times: {before}"
        texts[name] = texts[name].replace(before, after)
    return list(texts.values())
