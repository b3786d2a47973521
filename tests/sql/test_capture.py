"""What the log says of the application's writes, whatever way they were made."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from syncagent.errors import Contended
from tests.sql.conftest import Pair, Sites
from tests.support.lab import ITEM, Site, exchange, key, same, ship, timeless


async def entries(site: Site) -> list[str]:
    """Operations logged and not yet folded, in the order of their clocks, with the number of keys."""
    return [
        f"{op}{keys}"
        for op, keys in await site.rows(
            "select op::text, cardinality(keys) from syncagent.log, syncagent._last_cut() c"
            " where xid >= c.xmax or xid = any (c.xip) order by hlc"
        )
    ]


# ---- order


async def test_log_order_is_not_commit_order(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    held = await a.holding(f"insert into item values ('{key(0)}', 0)")
    for number in range(1, 20):
        await a.do(f"insert into item values ('{key(number)}', {number})")

    first = await ship(a, b)
    await held.execute("commit")
    second = await ship(a, b)

    assert (first.taken, second.taken) == (
        19,
        1,
    )  # none waited for the held one, which is neither lost nor twice
    assert len(await same("item", a, b)) == 20


async def test_savepoint_rolled_back(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    held = await a.holding(
        f"insert into item values ('{key(1)}', 1)",
        "savepoint s",
        f"update item set value = 2; insert into item values ('{key(2)}', 2)",
        "rollback to s",
        f"insert into item values ('{key(3)}', 3)",
    )
    await held.execute("commit")

    await exchange(a, b)

    assert [row[0] for row in await b.rows("select value from item order by id")] == [1, 3]


# ---- statements that fire others


async def test_after_row_trigger_deletes_the_row_it_fired_for(sites: Sites, pair: Pair) -> None:
    # The outer statement is logged last, and says insert or update.
    schema = f"""{ITEM};
        create function reap() returns trigger language plpgsql as
            'begin delete from item where id = new.id; return null; end';
        create trigger reap after insert or update on item for each row when (new.note = 'reap') execute function reap()"""
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)

    await a.do(
        f"update item set note = 'reap' where id = '{key(1)}'",
        f"insert into item values ('{key(3)}', 3, 'reap')",
    )
    await exchange(a, b)

    assert len(await same("item", a, b)) == 1


async def test_common_table_expression_deletes_and_inserts_again(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 5)")
    await exchange(a, b)

    await a.do("with old as (delete from item returning id) insert into item select id, 2 from old")
    await exchange(a, b)

    assert await b.one("select value from item") == 2


async def test_after_delete_trigger_inserts_again(sites: Sites, pair: Pair) -> None:
    # The insert is logged first, as if the row were new.
    schema = f"""{ITEM};
        create function reborn() returns trigger language plpgsql as
            'begin insert into item values (old.id, old.value - 1); return null; end';
        create trigger reborn after delete on item for each row execute function reborn()"""
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', 5)")
    await exchange(a, b)

    await a.do("delete from item")
    await exchange(a, b)

    assert await b.one("select value from item") == 4
    await same("item", a, b)


async def test_before_trigger_hides_the_write(sites: Sites, pair: Pair) -> None:
    schema = f"""{ITEM};
        create function keep() returns trigger language plpgsql as 'begin return null; end';
        create trigger keep before update on item for each row execute function keep()"""
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)

    await a.do("update item set value = 2")

    assert await entries(a) == []


# ---- keys that change


REWRITTEN = """
    create function other_key() returns trigger language plpgsql as
        $$ begin new.id := overlay(new.id::text placing '9' from 36); return new; end $$;
    create trigger other_key before update on item for each row execute function other_key()"""


async def moves(a: Site, b: Site) -> None:
    """A key that no statement names: the row is under the new one everywhere, and nowhere under the old one."""
    await a.do("update item set value = value + 10 where value = 2")
    await exchange(a, b)
    found = await b.rows("select id, value from item order by value")
    assert found == [(UUID(key(1)), 1), (UUID(key(9)), 12)]
    await same("item", a, b)


async def test_key_that_a_trigger_sets_is_deleted_and_inserted(sites: Sites, pair: Pair) -> None:
    a, b = await sites(f"{ITEM}; {REWRITTEN}", *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)

    await moves(a, b)


async def test_trigger_that_sets_keys_may_come_later(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)
    assert await a.store.keeper.cover() == 0

    await a.do(REWRITTEN)
    assert await a.store.keeper.cover() == 1
    assert await a.store.keeper.cover() == 0
    assert await entries(a) == []  # what it holds is known
    await moves(a, b)


async def test_what_was_known_stays_known_when_such_a_trigger_comes(sites: Sites, pair: Pair) -> None:
    """Also where capture was harmed meanwhile: `doctor` mends that, and nobody stamps all rows anew."""
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await exchange(a, b)

    await a.do(REWRITTEN, "drop trigger syncagent_insert on item")
    assert await a.store.keeper.cover() == 1

    assert await entries(a) == []
    assert await a.store.keeper.cover() == 0


async def test_a_table_that_is_held_keeps_no_other_from_being_covered(sites: Sites, pair: Pair) -> None:
    schema = f"{ITEM}; create table other (like item including all)"
    (a,) = await sites(schema, pair[0])
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await a.do(
        REWRITTEN.replace("on item", "on other"),
        "create trigger other_key before update on item for each row execute function other_key()",
    )
    held = await a.holding("update item set value = 3")

    with pytest.raises(Contended):
        await a.store.keeper.cover()

    assert await a.rows("select node::text from syncagent._strays()") == [("item",)]
    await held.execute("commit")
    assert await a.store.keeper.cover() == 1


async def test_key_that_a_cascade_sets_is_deleted_and_inserted(sites: Sites, pair: Pair) -> None:
    schema = """
        create table word (spelled text primary key);
        create table place (spelled text references word on update cascade, number int, primary key (spelled, number))"""
    a, b = await sites(schema, *pair)
    await a.do("insert into word values ('a'), ('b')", "insert into place values ('a', 1), ('b', 2)")
    await exchange(a, b)

    await a.do("update word set spelled = 'c' where spelled = 'a'")
    await exchange(a, b)

    assert await b.rows("select * from place order by 1") == [("b", 2), ("c", 1)]
    await same("word", a, b)
    await same("place", a, b)


# ---- kinds of writes


async def test_every_kind_of_write_reaches_the_other_site(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.app.copy_records_to_table("item", records=[(key(n), n, "copy") for n in range(1, 9)])
    await exchange(a, b)
    writes = [
        f"insert into item values ('{key(1)}', 10), ('{key(20)}', 20) on conflict (id) do update set value = excluded.value",
        f"insert into item values ('{key(2)}', 0) on conflict do nothing",
        f"update item set id = '{key(30)}' where id = '{key(3)}'",
        (
            f"with gone as (delete from item where id = '{key(4)}' returning *) update item set note = gone.note || '!'"
            f" from gone where item.id = '{key(5)}'"
        ),
        f"update only item set value = 60 where id = '{key(6)}' returning *",
    ]
    if a.server.binaries.major >= 15:
        writes.append(
            f"merge into item using (values ('{key(7)}'::uuid), ('{key(8)}'), ('{key(70)}')) v (k) on id = k"
            f" when matched and k = '{key(7)}' then delete when matched then update set value = 80"
            " when not matched then insert values (k, 70)"
        )

    await a.do(*writes)
    await exchange(a, b)

    await same("item", a, b)


async def test_prepared_transaction(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    prepared = await a.holding(f"insert into item values ('{key(1)}', 1)")
    await prepared.execute("prepare transaction 'one'")
    await a.do(f"insert into item values ('{key(2)}', 2)")

    await exchange(a, b)
    assert [row[0] for row in await b.rows("select value from item")] == [2]
    await a.do("commit prepared 'one'")
    await exchange(a, b)

    assert len(await same("item", a, b)) == 2


async def test_statement_of_no_rows_leaves_no_entry(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])

    await a.do(
        "update item set value = 1", "delete from item", "insert into item select from generate_series(1, 0)"
    )

    assert await entries(a) == []
    assert not await a.store.origin.pending()


async def test_statement_of_many_rows_is_logged_in_chunks(sites: Sites, pair: Pair) -> None:
    a, b = await sites(f"{ITEM}; create table odd (n int primary key)", *pair)

    await a.do(
        "insert into item select syncagent.uuid7(), n from generate_series(1, 20001) n",
        "insert into odd select generate_series(1, 10001)",
    )

    assert sorted(await entries(a)) == ["I1", "I1", "I10000", "I10000", "I10000"]
    await exchange(a, b)
    assert len(await same("item", a, b)) == 20_001
    assert len(await same("odd", a, b)) == 10_001


async def test_truncate_is_refused(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)

    with pytest.raises(asyncpg.PostgresError, match="TRUNCATE would not reach the other sites") as refusal:
        await a.do("truncate item")
    assert refusal.value.hint == "select syncagent.truncate('public.item')"
    await a.do(refusal.value.hint)
    await exchange(a, b)

    assert await same("item", a, b) == []


# ---- who writes


async def test_role_without_rights_on_our_schema(sites: Sites, pair: Pair) -> None:
    schema = f"""{ITEM};
        create view few as select id, value from item where value < 10;
        create view door as select id, value from item where false;
        create rule through as on insert to door do instead insert into item values (new.id, new.value);
        create function add(k uuid, v int) returns void language sql security definer
            begin atomic insert into item values (k, v); end"""
    a, b = await sites(schema, *pair)
    a.server.create_role("clerk")
    await a.do("grant select, insert, update, delete on item, few, door to clerk")
    clerk = await a.session("clerk")

    for write in (
        f"insert into item values ('{key(1)}', 1)",
        f"insert into few values ('{key(2)}', 2)",
        "update few set value = value + 1",
        f"insert into door values ('{key(3)}', 3)",
        f"select add('{key(4)}', 4)",
        f"delete from item where id = '{key(1)}'",
    ):
        await clerk.execute(write)

    await exchange(a, b)
    assert [row[0] for row in await b.rows("select value from item order by id")] == [3, 3, 4]
    for forbidden in (
        "select from syncagent.log",
        "select syncagent._tick()",
        "select from syncagent.version_1",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await clerk.execute(forbidden)
    await a.do("revoke all on item, few, door from clerk")


async def test_search_path_of_the_application_is_not_ours(sites: Sites, pair: Pair) -> None:
    # Somebody's own functions of our names are not called, and a missing search path does no harm.
    a, b = await sites(ITEM, *pair)
    evil = await a.session(search_path="evil")
    await evil.execute(
        "create schema evil; create function evil.pg_current_xact_id() returns xid8 language sql as $$ select '3'::xid8 $$"
    )

    await evil.execute(f"insert into public.item values ('{key(1)}', 1)")
    await exchange(a, b)

    assert await same("item", a, b) == [f"({key(1)},1,)"]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_no_serialization_failure_because_of_us(sites: Sites, pair: Pair, isolation: str) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item select ('{timeless(0)}'::text::uuid), 0")
    await a.do(*(f"insert into item values ('{key(n)}', {n})" for n in range(1, 5)))
    await exchange(a, b)
    # given a row that will win here, a transaction that has looked at everything and written, and one that only wrote
    await a.do(
        f"update item set value = 33 where id = '{key(3)}'",
        f"update item set value = 40 where id = '{key(4)}'",
    )
    await b.clock_ahead(5)
    await b.do(f"update item set value = 30 where id = '{key(3)}'")
    one = await b.holding(
        "select * from item", f"update item set value = 10 where id = '{key(1)}'", isolation=isolation
    )
    two = await b.holding(f"insert into item values ('{key(6)}', 6)", isolation=isolation)
    # when the agent cuts, merges a row that nobody here touches and one that loses, and compacts
    await b.cut()
    await ship(a, b)
    await b.compact()
    # then they go on, also with the row that the merge has locked, and commit
    await one.execute(
        f"update item set value = 31 where id = '{key(3)}'; insert into item values ('{key(5)}', 5); commit"
    )
    await two.execute(f"insert into item values ('{key(7)}', 7); commit")
    await exchange(a, b)
    assert [row[0] for row in await a.rows("select value from item order by id")] == [
        0,
        10,
        2,
        31,
        40,
        5,
        6,
        7,
    ]


# ---- the clock


async def test_cancelled_statement_leaves_no_clock_lock(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    await a.do("select setval('syncagent.hlc', 1)")  # so that the next writer must raise the clock
    holder = await a.session()
    await holder.execute("select pg_advisory_lock(1937337955, 1)")
    writer = await a.holding("savepoint s", "set local statement_timeout = 50")

    with pytest.raises(asyncpg.QueryCanceledError):
        await writer.execute(f"insert into item values ('{key(1)}', 1)")
    await writer.execute("rollback to s")
    await holder.execute("select pg_advisory_unlock_all()")
    await writer.execute(f"insert into item values ('{key(1)}', 1)")  # raises the clock, and stays open

    async with asyncio.timeout(5):
        await a.do("select setval('syncagent.hlc', 1)", f"insert into item values ('{key(2)}', 2)")
    assert (
        await a.rows(
            "select from pg_locks where locktype = 'advisory' and classid = 1937337955 and objid = 1"
        )
        == []
    )


async def test_stamp_of_an_update_is_below_the_time_in_its_own_key(sites: Sites, pair: Pair) -> None:
    # The key was made by a clock that is ahead of ours.
    a, b = await sites(ITEM, *pair)
    ahead = await a.one("select syncagent.uuid7_floor(now() + interval '1 hour')")
    await a.do(f"insert into item values ('{ahead}', 1)")
    await exchange(a, b)

    await a.do("update item set value = 2")
    await exchange(a, b)
    await b.do("update item set value = value + 1")
    await exchange(a, b)

    assert await same("item", a, b) == [f"({ahead},3,)"]
    assert await a.conflicts() == await b.conflicts() == []
    await a.compact()
    assert len(await a.versions("item")) == 1  # its implicit stamp would be larger than what comes next
