"""Raft's log and the catalog in PostgreSQL: what was saved is what is loaded, and members never go back."""

import random
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace

from syncagent.core import catalog as catalogs
from syncagent.core.catalog import Catalog, Invitation, Invite, Site
from syncagent.core.raft.machine import Ready
from syncagent.core.raft.messages import Entry, HardState, Membership, Snapshot, founded
from syncagent.core.raft.storage import Memory
from syncagent.storage import registry
from syncagent.storage.registry import PostgresRegistry
from tests.support.databases import Database

FIRST = Site(
    node=1,
    name="berlin",
    site=UUID(int=1),
    incarnation=UUID(int=2),
    address="berlin:1",
    sha256=("a",),
    state="member",
)
SECOND = replace(FIRST, node=2, name="tokyo", sha256=("b",), site=UUID(int=3), state="joining", admitted=9)
ALONE = catalogs.founded(FIRST, UUID(int=9))
BOTH = replace(ALONE, sites={1: FIRST, 2: SECOND}, next_node=3, epoch=9)


@pytest.fixture
async def session(database: Database) -> AsyncIterator[asyncpg.Connection]:
    from tests.support.lab import installation

    for text in installation(()):
        database.execute(text)
    database.execute(
        "insert into syncagent.local_site (site, name, node, incarnation, tail)"
        " values (gen_random_uuid(), 'berlin', 1, gen_random_uuid(), 0)"
    )
    connection = await asyncpg.connect(database.dsn)
    yield connection
    await connection.close()


def begin(database: Database, make: Callable[..., None], *arguments: object) -> None:
    from syncagent.storage.commands import connected

    with connected(database.dsn) as connection:
        make(connection, *arguments)


def ready(
    hard_state: HardState | None = None, snapshot: Snapshot | None = None, entries: tuple[Entry, ...] = ()
) -> Ready:
    return Ready(hard_state, snapshot, entries, (), (), ())


def held(memory: Memory, since: int) -> object:
    """Everything a machine can ask of it, from an entry on."""
    entries = memory.entries(since, 1 << 30) if since <= memory.last() else []
    terms = [memory.term(index) for index in range(since - 1, memory.last() + 2)]
    return memory.hard_state(), memory.snapshot(), memory.last(), terms, entries


async def test_what_was_saved_is_loaded(database: Database, session: asyncpg.Connection, seed: int) -> None:
    """Any sequence of what a Ready asks for, against the twin in memory; a new agent reads it after each."""
    rng = random.Random(seed)
    members = Membership((1,))
    begin(database, registry.found, ALONE, members)
    here, twin = PostgresRegistry(session), Memory(founded(members, catalogs.encode(ALONE)))
    await here.load()
    term, applied = 1, 1
    for _ in range(60):
        match rng.choice(("append", "append", "overwrite", "vote", "apply", "compact", "restore")):
            case "append":
                at = twin.last() + 1
                new = tuple(Entry(at + n, term, rng.randbytes(9)) for n in range(rng.randint(1, 30)))
                await here.save(ready(entries=new))
                twin.append(new)
            case "overwrite" if twin.last() > applied:
                term += 1
                new = (Entry(rng.randint(applied + 1, twin.last()), term, b"new"),)
                await here.save(ready(HardState(term, 1), entries=new))
                twin.save(HardState(term, 1))
                twin.append(new)
            case "vote":
                term += 1
                await here.save(ready(HardState(term, rng.choice((0, 2)))))
                twin.save(here.memory.hard_state())
            case "apply" if twin.last() > applied:
                applied = rng.randint(applied + 1, twin.last())
                await here.applied(applied, ALONE, members)
            case "compact" if applied > twin.snapshot().index:
                snapshot = Snapshot(applied, twin.term(applied) or 0, members, catalogs.encode(ALONE))
                await here.compact(snapshot)
                twin.compact(snapshot, registry._KEEP)
            case "restore" if rng.random() < 0.3:
                applied = twin.last() + rng.randint(1, 5)
                snapshot = Snapshot(applied, term, members, catalogs.encode(ALONE))
                await here.save(ready(snapshot=snapshot))
                twin.restore(snapshot)
        again = PostgresRegistry(session)
        assert await again.load() == (ALONE, applied)
        assert held(here.memory, twin.first()) == held(twin, twin.first())
        first = again.memory.first()  # of what a snapshot covers, the first entry only says what stood before
        assert twin.first() <= first <= min(twin.first() + 1, twin.snapshot().index + 1)
        assert held(again.memory, first) == held(twin, first)


async def test_a_site_that_joins_never_goes_back(database: Database, session: asyncpg.Connection) -> None:
    """The log comes from its beginning: what it was admitted with counts until that is reached, restarts included."""
    begin(database, registry.follow, BOTH)
    here = PostgresRegistry(session)
    state, applied = await here.load()
    assert here.current(applied, state) == BOTH

    async def members() -> list[int]:
        return [row["node"] for row in await session.fetch("select node from syncagent.member order by node")]

    await here.save(ready(snapshot=founded(Membership((1,)), catalogs.encode(ALONE))))
    assert here.current(1, ALONE) == BOTH
    assert await members() == [1, 2]
    here = PostgresRegistry(session)
    assert await here.load() == (ALONE, 1)
    assert here.current(1, ALONE) == BOTH

    other = catalogs.apply(ALONE, 5, Invite(Invitation(UUID(int=7), b"", 99), 0))[0]
    await here.applied(5, other, Membership((1,)))
    assert await members() == [1, 2]
    await here.applied(9, BOTH, Membership((1,), (2,)))
    assert here.current(9, BOTH) is BOTH
    later: Catalog = replace(ALONE, epoch=10)
    await here.applied(10, later, Membership((1,)))
    assert here.current(10, later) == later
    assert await members() == [1]
    assert await session.fetchval("select told is null from syncagent.raft_state")
