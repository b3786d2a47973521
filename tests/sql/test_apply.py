"""Merges: who wins, what they wait for, and that the application does not notice them."""

import asyncio
import time
from contextlib import suppress

import asyncpg
import pytest

from syncagent.core.store import Applied
from syncagent.errors import Contended, SyncagentError
from syncagent.storage.replica import PostgresReplica
from syncagent.storage.session import working
from tests.sql.conftest import Pair, Sites
from tests.support.lab import ITEM, Site, exchange, key, same, ship, timeless
from tests.support.waiting import eventually

K = key(1)
UNIQUE = "create table item (id uuid primary key, value int unique, note text)"


async def values(site: Site) -> list[int | None]:
    return [row[0] for row in await site.rows("select value from item order by id")]


async def noticed(*sites: Site) -> list[str]:
    """Kinds of the conflicts that somebody has recorded."""
    query = "select id, kind from syncagent.conflict_record"
    return sorted(kind for _, kind in {row for site in sites for row in await site.rows(query)})


# ---- who wins


async def test_winners_are_chosen_per_row_in_one_batch(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(*(f"insert into item values ('{key(n)}', 0)" for n in range(4)))
    await exchange(a, b)

    await a.do(f"update item set value = 1 where id = '{key(0)}'", f"delete from item where id = '{key(1)}'")
    await b.do("update item set value = 2")
    await a.clock_ahead(5)
    await a.do(f"update item set value = 1 where id = '{key(2)}'", f"delete from item where id = '{key(3)}'")
    await exchange(a, b)

    assert await values(a) == await values(b) == [2, 2, 1]
    assert await a.versions("item") == await b.versions("item")
    assert await noticed(a, b) == ["delete/update", "update/delete", "update/update", "update/update"]


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_clock_an_hour_off(sites: Sites, pair: Pair, seconds: int) -> None:
    # The order of writes that saw one another is right whatever the clocks say.
    a, b = await sites(ITEM, *pair)
    await (a if seconds > 0 else b).clock_ahead(3600)
    await a.do(f"insert into item values ('{K}', 0)")
    for number in range(1, 5):
        await exchange(a, b)
        await (a, b)[number % 2].do(f"update item set value = {number}")
    await exchange(a, b)
    await b.do("delete from item")
    await exchange(a, b)
    await a.do(f"insert into item values ('{K}', 9)")
    await exchange(a, b)

    assert await same("item", a, b) == [f"({K},9,)"]
    assert await a.conflicts() == await b.conflicts() == []


async def test_double_delete(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0)")
    await exchange(a, b)

    await a.do("delete from item")
    await b.do("delete from item")
    await exchange(a, b)

    assert await same("item", a, b) == []
    assert await a.conflicts() == []
    assert (await a.versions("item")).keys() == (await b.versions("item")).keys()


async def test_delete_of_what_is_not_there(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0); delete from item")

    await exchange(a, b)

    assert await same("item", a, b) == []
    assert [row[3] for row in (await b.versions("item")).values()] == [True]


async def test_one_key_inserted_twice(sites: Sites, pair: Pair) -> None:
    # Equal stamps: the larger content wins, at both.
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 7), ('{key(2)}', 1), ('{key(3)}', 3)")
    await b.do(f"insert into item values ('{K}', 5), ('{key(2)}', 2), ('{key(3)}', 3)")
    await a.cut()
    await b.cut()

    await exchange(a, b)

    assert await values(a) == await values(b) == [7, 2, 3]
    assert await noticed(a, b) == ["insert/insert"] * 2


async def test_insert_that_the_writer_of_a_newer_version_had_not_seen(sites: Sites, pair: Pair) -> None:
    # Implicit at A, and stamped at B: A takes B's before its own has left, so nobody else ever sees A's.
    a, b = await sites(ITEM, *pair)
    await b.do(f"insert into item values ('{K}', 1)")
    await b.cut()
    await b.do("update item set value = 2")
    await a.do(f"insert into item values ('{K}', 3), ('{key(2)}', 4)")
    await a.cut()
    await ship(b, a)

    await exchange(a, b)
    await b.do("update item set value = 5")  # by one who has seen all of it
    await exchange(a, b)

    assert await values(a) == await values(b) == [5, 5]
    assert await noticed(a, b) == ["update/update"]
    (images,) = await a.rows(
        "select winning_image ->> 'value', losing_image ->> 'value' from syncagent.conflict_record"
    )
    assert images == ("2", "3")


async def test_insert_that_has_lost_is_not_met_again(sites: Sites, pair: Pair) -> None:
    # B's content is larger: what lives at A is B's insert, and C's update has seen that, though none of A's cuts.
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1)")
    await a.cut()
    await b.do(f"insert into item values ('{K}', 2)")
    await ship(b, a)
    await ship(b, c)
    await c.do("update item set value = 3")

    await exchange(a, b, c)

    assert await values(a) == await values(b) == await values(c) == [3]
    assert await noticed(a, b, c) == ["insert/insert"]


async def test_row_written_between_judge_and_write(sites: Sites, pair: Pair) -> None:
    # Nothing is locked while the batch is judged: whoever comes in between is found afterwards.
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0), ('{key(2)}', 0)")
    await exchange(a, b)
    await a.do("update item set value = 1")
    batch = await a.batch(b)
    await b.do(
        "create function interfere() returns trigger language plpgsql as $$ begin"
        " perform pg_advisory_xact_lock(7); return null; end $$",
        "create trigger interfere before insert on syncagent.conflict_record for each statement execute function interfere()",
        "alter table syncagent.conflict_record enable always trigger interfere",
        f"update item set value = 2 where id = '{key(2)}'",  # a conflict, so the judge comes by the lock
    )
    gate = await b.holding("select pg_advisory_xact_lock(7)")
    await b.store.replica._session.execute("set lock_timeout = '10s'")
    merging = asyncio.ensure_future(b.apply(batch))
    await blocked(b)
    await b.do(f"update item set value = 3 where id = '{K}'")
    await gate.execute("commit")

    (refused,) = await asyncio.gather(merging, return_exceptions=True)
    assert isinstance(refused, Contended)
    assert "was written while it was merged" in refused.message
    await b.do("drop function interfere cascade")
    await exchange(a, b)

    assert await values(a) == await values(b)
    assert await noticed(a, b) == ["update/update"] * 2


async def test_rows_of_a_transaction_win_together(sites: Sites, pair: Pair) -> None:
    # Its stamp is its last clock, over all tables; B's writes come between its first and its last.
    a, b = await sites(f"{ITEM}; create table other (id uuid primary key, value int)", *pair)
    await a.do(f"insert into item values ('{K}', 0)", f"insert into other values ('{K}', 0)")
    await exchange(a, b)

    held = await a.holding("update item set value = 1")
    await b.do("update item set value = 2", "update other set value = 2")
    await held.execute("update other set value = 1; commit")
    await exchange(a, b)

    assert await values(b) == [1]
    assert await b.one("select value from other") == 1
    await same("item", a, b)


async def test_unfolded_insert_that_wins_keeps_its_stamp(sites: Sites, pair: Pair) -> None:
    # The fold would find it implicit, below the version it has just won against.
    a, b = await sites(ITEM, *pair)
    await b.do(f"insert into item values ('{K}', 2)")
    await b.cut()
    await b.do("update item set value = 3")
    await a.clock_ahead(5)
    await a.do(f"insert into item values ('{K}', 1)")

    await ship(b, a)
    assert await values(a) == [1]
    await exchange(a, b)

    assert await values(a) == await values(b) == [1]


async def test_batch_applied_once(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 1)")
    batch = await a.batch(b)
    await b.apply(batch)
    await b.do("update item set value = 2")

    with pytest.raises(
        SyncagentError, match="the frontier of node 1 is at cut 1, the batch starts after cut 0"
    ):
        await b.apply(batch)

    assert await values(b) == [2]


async def test_conflict_keeps_both_images(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0, 'was')")
    await exchange(a, b)
    await a.do("update item set value = 1")
    await b.do("delete from item")
    one, other = await a.batch(b), await b.batch(a)
    await b.apply(one)
    await a.apply(other)

    for site in (a, b):  # both have met the pair, and write the same
        assert await site.rows(
            "select key_text, winning_node, losing_node, winning_image, losing_image ->> 'value' from syncagent.conflict_record"
        ) == [(K, 2, 1, None, "1")]
    query = "select id, kind, winning_stamp, losing_stamp from syncagent.conflict_record"
    assert await a.rows(query) == await b.rows(query)


async def test_batches_that_wait_for_each_other_are_applied_together(sites: Sites, pair: Pair) -> None:
    # C was away; A and B have seen each other's cuts, so the one batch each has for C needs the other.
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1)")
    await ship(a, b)
    await b.do(f"insert into item values ('{key(2)}', 1)", "update item set value = 2")
    await ship(b, a)
    await a.do("update item set value = 3")
    await ship(a, b)
    first, second = await a.batch(c), await b.batch(c)
    assert not await c.ready(first.header)
    assert not await c.ready(second.header)

    await c.store.replica.apply_knot([(first.header, first.spool), (second.header, second.spool)], attempt=0)

    assert await values(c) == [3, 3]
    assert await c.conflicts() == []


# ---- values that pass between rows of one batch


@pytest.mark.parametrize("constraint", ["unique", "unique deferrable", "check (value > 0) unique"])
async def test_swapped_positions(sites: Sites, pair: Pair, constraint: str) -> None:
    a, b = await sites(f"create table item (id uuid primary key, value int {constraint}, note text)", *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2), ('{key(3)}', 3)")
    await exchange(a, b)

    await a.do(
        "update item set value = value + 10",
        f"update item set value = 2 where id = '{key(1)}'",
        f"update item set value = 3 where id = '{key(2)}'",
        f"update item set value = 1 where id = '{key(3)}'",
    )
    await exchange(a, b)

    assert await values(b) == [2, 3, 1]
    assert await b.parked() == []


async def test_name_freed_and_taken(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)

    await a.do(
        f"delete from item where id = '{key(1)}'",
        f"insert into item values ('{key(3)}', 1)",
        f"update item set value = 9 where id = '{key(2)}'",
        f"insert into item values ('{key(4)}', 2)",
    )
    await exchange(a, b)

    assert await values(b) == [9, 1, 2]
    assert await b.parked() == []


async def test_ranges_swapped_under_an_exclusion_constraint(sites: Sites, pair: Pair) -> None:
    schema = "create table item (id uuid primary key, during int4range, spot point, exclude using gist (during with &&))"
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', '[1,5)', '(1,1)'), ('{key(2)}', '[5,9)', '(2,2)')")
    await exchange(a, b)

    await a.do(
        f"delete from item where id = '{key(1)}'",
        f"update item set during = '[1,5)', spot = '(3,3)' where id = '{key(2)}'",
        f"insert into item values ('{key(1)}', '[5,9)', '(4,4)')",
    )
    await exchange(a, b)

    await same("item", a, b)
    assert await b.parked() == []


async def test_points_under_an_exclusion_constraint(sites: Sites, pair: Pair) -> None:
    # A type without an equality of its own.
    schema = "create table item (id uuid primary key, area box, exclude using gist (area with &&))"
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', '(1,1),(0,0)'), ('{key(2)}', '(3,3),(2,2)')")
    await exchange(a, b)

    await a.do(
        "delete from item",
        f"insert into item values ('{key(1)}', '(3,3),(2,2)'), ('{key(2)}', '(1,1),(0,0)')",
    )
    await exchange(a, b)

    await same("item", a, b)
    assert await b.parked() == []


# ---- locks


async def test_locked_row_refuses_the_batch_at_once(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0)")
    await exchange(a, b)
    held = await b.holding("update item set value = 2")
    await a.do("update item set value = 1")
    batch = await a.batch(b)

    started = time.monotonic()
    with pytest.raises(Contended):
        await b.apply(batch)
    assert time.monotonic() - started < 1

    await held.execute("commit")
    assert (await b.apply(batch)).conflicts == 1


async def test_third_attempt_waits_for_the_row_holding_nothing(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(*(f"insert into item values ('{key(n)}', 0)" for n in (1, 2)))
    await exchange(a, b)
    held = await b.holding(f"update item set value = 2 where id = '{key(2)}'")
    await a.do("update item set value = 1")
    batch = await a.batch(b)

    merging = asyncio.create_task(b.apply(batch, attempt=2))
    await blocked(b)
    await b.do(
        f"update item set note = 'free' where id = '{key(1)}'"
    )  # nothing is held that anybody else wants
    await held.execute("commit")

    await merging
    await exchange(a, b)
    assert len(await same("item", a, b)) == 2


async def blocked(site: Site) -> None:
    """Wait until the merge waits for a lock."""
    query = "select cardinality(pg_blocking_pids($1)) > 0"
    await eventually(lambda: site.one(query, site.store.replica.pid), "the merge waits")


async def test_hot_row_does_not_hold_the_stream_back(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0)")
    await exchange(a, b)
    stop = asyncio.Event()

    async def write() -> int:
        session, number = await b.session(), 0
        while not stop.is_set():
            await session.execute("begin; update item set value = value + 1; select pg_sleep(0.001); commit")
            number += 1
        return number

    writers = [asyncio.create_task(write()) for _ in range(4)]
    slowest = 0.0
    for number in range(10):
        await a.do(f"update item set note = '{number}'")
        batch, started, attempt = await a.batch(b), time.monotonic(), 0
        while True:
            with suppress(Contended):
                await b.apply(batch, attempt=attempt)
                break
            attempt += 1
        slowest = max(slowest, time.monotonic() - started)
    stop.set()

    assert sum(await asyncio.gather(*writers)) > 0
    assert slowest < 5


async def test_rows_that_many_write_in_turn(sites: Sites, pair: Pair) -> None:
    """Some of them are always held, so they are never free all at once; nobody who writes them fails."""
    rows, writers = 24, 6
    a, b = await sites(ITEM, *pair)
    await a.do(*(f"insert into item values ('{key(n)}', 0)" for n in range(rows)))
    await exchange(a, b)
    stop, errors = asyncio.Event(), 0

    async def write(first: int) -> int:
        session, number = await b.session(), 0
        while not stop.is_set():
            number += 1
            one, two = sorted((first + number * k) % rows for k in (5, 7))
            await session.execute(
                f"begin; update item set value = value + 1 where id = '{key(one)}'; select pg_sleep(0.004);"
                f" update item set value = value + 1 where id = '{key(two)}'; select pg_sleep(0.004); commit"
            )
        return number

    tasks = [asyncio.create_task(write(first * 4)) for first in range(writers)]
    for number in range(4):
        await a.do(f"update item set note = '{number}'")
        batch = await a.batch(b)
        for attempt in range(9):
            with suppress(Contended):
                await b.apply(batch, attempt=attempt)
                break
        else:
            errors += 1
    stop.set()

    assert sum(await asyncio.gather(*tasks)) > 0
    assert not errors
    await exchange(a, b)
    await same("item", a, b)


async def refused(sites: Sites, pair: Pair) -> tuple[Site, Site, asyncpg.Connection, "asyncio.Task[Applied]"]:
    """At b somebody holds the first of two rows, and a merge of both, refused before, looks whether it comes free."""
    a, b = await sites(ITEM, *pair)
    await a.do(*(f"insert into item values ('{key(n)}', 0)" for n in range(2)))
    await exchange(a, b)
    await a.do("update item set note = 'a'")
    batch = await a.batch(b)
    held = await b.holding(f"update item set value = 1 where id = '{key(0)}'")
    merging = asyncio.create_task(b.apply(batch, attempt=4))
    await waits(b, "PgSleep")
    return a, b, held, merging


async def waits(site: Site, what: str) -> None:
    """Until the session that merges waits for this."""
    waiting = "select coalesce(bool_or(wait_event = $2), false) from pg_stat_activity where pid = $1"
    await eventually(lambda: site.one(waiting, site.store.replica.pid, what), f"the merge waits: {what}")


async def test_a_row_that_does_not_come_free_keeps_nobody_from_its_table(sites: Sites, pair: Pair) -> None:
    _, b, held, merging = await refused(sites, pair)
    other = await b.session(lock_timeout="50ms")

    await other.execute(f"update item set value = value + 1 where id = '{key(1)}'")
    await blocked(b)
    while not merging.done():
        await other.execute(f"update item set value = value + 1 where id = '{key(1)}'")
    with pytest.raises(Contended):
        await merging
    await held.execute("commit")


async def test_a_crowded_table_is_waited_for_before_a_row_is_taken(sites: Sites, pair: Pair) -> None:
    """Who holds a row of it and wants the next gets it at once, and then the merge goes on: in its first try."""
    a, b, held, merging = await refused(sites, pair)
    await held.execute("commit")
    await merging

    await a.do("update item set note = 'b'")
    batch = await a.batch(b)
    held = await b.holding(f"update item set value = 2 where id = '{key(1)}'")
    merging = asyncio.create_task(b.apply(batch))
    await waits(b, "relation")
    await held.execute(f"set lock_timeout = '1ms'; update item set value = 2 where id = '{key(0)}'; commit")
    await merging
    await exchange(a, b)
    await same("item", a, b)


async def test_unique_entry_of_an_open_transaction(sites: Sites, pair: Pair) -> None:
    # The merge holds rows and needs the entry; the application holds the entry and then wants a row.
    a, b = await sites(UNIQUE, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await a.do(
        f"update item set note = 'a' where id = '{key(1)}'", f"insert into item values ('{key(2)}', 2)"
    )
    batch = await a.batch(b)
    held = await b.holding(f"insert into item values ('{key(3)}', 2)")

    merging = asyncio.create_task(b.apply(batch))
    await held.execute(f"update item set note = 'b' where id = '{key(1)}'")
    with pytest.raises(Contended):
        await merging
    await held.execute("commit")

    await b.apply(batch, attempt=1)
    assert await b.rows("select value from item order by id") == [
        (1,),
        (2,),
        (None,),
    ]  # the larger key yields


def deadlocks(site: Site) -> int:
    """How many the log of the site's server tells of."""
    return site.server.log.read_bytes().count(b"deadlock detected")


async def test_application_is_never_the_victim(sites: Sites, pair: Pair) -> None:
    # Writers take rows in every order, and parents of foreign keys, while batches for the same rows come in.
    schema = f"{UNIQUE}; create table part (id uuid primary key, item uuid references item)"
    a, b = await sites(schema, *pair)
    await a.do(*(f"insert into item values ('{key(n)}', {n})" for n in range(8)))
    await exchange(a, b)
    for site in (a, b):
        await site.do(f"alter database {site.name} set deadlock_timeout = '100ms'")
    before = [deadlocks(site) for site in (a, b)]
    stop = asyncio.Event()

    async def write(site: Site, seed: int) -> int:
        session, number = await site.session(), 0
        while not stop.is_set():
            number += 1
            one, two = sorted(((number * seed) % 8, (number * seed + seed) % 8))
            await session.execute(
                f"begin; update item set note = '{number}' where id = '{key(one)}';"
                f" insert into part values (syncagent.uuid7(), '{key(one)}');"
                f" update item set value = {100 * seed + number * 1000} where id = '{key(two)}'; commit"
            )
        return number

    writers = [asyncio.create_task(write(site, seed)) for site in (a, b) for seed in (1, 3, 5)]
    ending = asyncio.create_task(asyncio.wait(writers, return_when=asyncio.FIRST_EXCEPTION))
    for number in range(30):
        for origin, receiver in ((a, b), (b, a)):
            with suppress(Contended):
                await ship(origin, receiver, attempt=number % 4)
        assert not ending.done(), [task.exception() for task in writers if task.done()]
    stop.set()

    assert min(await asyncio.gather(*writers)) > 0
    await ending
    assert [deadlocks(site) for site in (a, b)] == before
    await exchange(a, b)
    await same("part", a, b)
    await same("item", a, b)


async def test_row_inserted_while_the_merge_runs(sites: Sites, pair: Pair) -> None:
    # It was not there to be locked; its entry in the index is what the merge meets.
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{timeless(1)}', 1)")
    batch = await a.batch(b)
    held = await b.holding(f"insert into item values ('{timeless(1)}', 2)")

    with pytest.raises(Contended):
        await b.apply(batch)
    await held.execute("commit")
    await b.apply(batch)
    await exchange(a, b)

    assert await values(a) == await values(b) == [2]
    assert await noticed(a, b) == ["update/update"]


# ---- two agents


async def test_second_agent_cannot_come_between(sites: Sites, pair: Pair) -> None:
    # A merge of another agent while a cut reads, and a cut while a merge is open.
    a, b = await sites(ITEM, *pair)
    await b.do(f"insert into item values ('{key(2)}', 2)")
    await a.do(f"insert into item values ('{K}', 1)")
    batch = await b.batch(a)
    second = PostgresReplica(await working(a.dsn, "second", replica=True), asyncio.Lock())

    async def intrude() -> None:
        with pytest.raises(Contended):
            await second.apply(batch.header, batch.spool, attempt=0)

    cut = await a.cut(b, during=intrude)
    assert cut is not None
    merging = await a.holding("lock table syncagent.merge_lock in exclusive mode")
    with pytest.raises(Contended):
        await a.cut(b)
    await merging.execute("commit")

    await second.apply(batch.header, batch.spool, attempt=0)
    with pytest.raises(SyncagentError, match="the frontier of node 2 is at cut 1"):
        await a.apply(batch)
    await second._session.close()


async def test_frontier_moved_by_another_agent(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    await a.do(
        "insert into syncagent.context values (2, 5, '{}')", "insert into syncagent.frontier values (2, 4)"
    )

    with pytest.raises(asyncpg.PostgresError, match="the frontier of node 2 moved meanwhile"):
        await a.do("select syncagent._apply_end(2, 3, 5, gen_random_uuid(), 0, 0, true)")
