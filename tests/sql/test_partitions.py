"""Partitioned tables: whatever way a row comes into one, moves in it or leaves it."""

from datetime import date

import asyncpg
import pytest

from tests.sql.conftest import Pair, Sites
from tests.support.lab import Site, exchange, key, same, ship

BY_RANGE = """create table event (day date, n int, note text, primary key (day, n)) partition by range (day);
    create table early (note text, gone int, n int not null, day date not null);
    alter table early drop gone;
    alter table event attach partition early for values from ('2024-01-01') to ('2024-02-01');
    create table middle partition of event for values from ('2024-02-01') to ('2024-03-01') partition by list (n);
    create table middle_one partition of middle for values in (1);
    create table middle_rest partition of middle default;
    create table late partition of event default"""
"""A leaf whose columns are in another order, a partition that is partitioned, a default."""

BY_KEY = """create table item (id uuid primary key, value int, note text) partition by hash (id);
    create table item_0 partition of item for values with (modulus 2, remainder 0);
    create table item_1 partition of item for values with (modulus 2, remainder 1)"""


async def where(site: Site) -> list[str]:
    """Which row lies in which leaf."""
    return [
        row[0] for row in await site.rows("select (tableoid::regclass, e.*)::text from event e order by 1")
    ]


async def test_writes_to_the_root_and_to_every_partition(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await a.do(
        "insert into event values ('2024-01-05', 1, 'root'), ('2024-02-05', 1, 'root'), ('2025-01-01', 1, 'root')",
        "insert into early (day, n, note) values ('2024-01-06', 1, 'leaf')",
        "insert into middle values ('2024-02-06', 2, 'between')",
        "insert into middle_one values ('2024-02-07', 1, 'leaf')",
        "insert into late values ('2025-01-02', 2, 'leaf')",
    )
    await a.app.copy_records_to_table(
        "event", records=[(date(2024, 1, 7), 3, "copied"), (date(2024, 2, 8), 3, "copied")]
    )
    await a.app.copy_records_to_table("middle_rest", records=[(date(2024, 2, 9), 3, "copied")])
    await exchange(a, b)
    assert await where(a) == await where(b)
    assert len(await where(b)) == 10

    await b.do(
        "update event set note = 'changed' where n = 1",
        "update middle set note = 'between' where day = '2024-02-06'",
        "update late set note = 'leaf' where n = 2",
        "delete from early where day = '2024-01-06'",
        "delete from event where day = '2024-02-07'",
    )
    await exchange(a, b)
    assert await where(a) == await where(b)
    assert len(await where(a)) == 8
    assert await a.conflicts() == await b.conflicts() == []


async def test_rows_that_move_between_partitions(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await a.do("insert into event select '2024-01-01'::date + n, n from generate_series(1, 90) n")
    await exchange(a, b)

    await a.do(
        "update event set day = day + 31 where day < '2024-01-11'",  # the key changes with the place
        "update middle set n = case n when 1 then 1000 else n end where n < 50",  # from one leaf below to another
    )
    await b.do(
        "update event set day = '2024-01-15', n = 7000 where n = 80",
        "update late set day = day + 100 where n = 70",
    )
    await exchange(a, b)

    assert await where(a) == await where(b)
    assert len(await where(a)) == 90
    assert await a.conflicts() == await b.conflicts() == []


async def test_places_are_swapped(sites: Sites, pair: Pair) -> None:
    """Two rows take each other's key: neither key is gone."""
    schema = BY_RANGE.replace("primary key (day, n)", "primary key (day, n) deferrable")
    a, b = await sites(schema, *pair)
    await a.do("insert into event values ('2024-01-05', 1, 'one'), ('2024-02-05', 1, 'two')")
    await exchange(a, b)

    await a.do(
        "update event set day = case day when '2024-01-05' then '2024-02-05'::date else '2024-01-05' end"
    )
    await exchange(a, b)

    assert await where(a) == await where(b)
    assert await b.rows("select note from event order by day") == [("two",), ("one",)]


async def test_one_uuid_is_the_partition_key(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_KEY, *pair)
    await a.do("insert into item select syncagent.uuid7(), n from generate_series(1, 3000) n")
    assert (await ship(a, b)).taken == 3000
    await a.do("update item set value = -value where value < 100", "delete from item_0 where value > 2900")
    await b.do("update item_1 set note = 'b' where value > 2800")
    await exchange(a, b)
    await same("item", a, b)
    assert await a.rows("select count(*) from item_0") == await b.rows("select count(*) from item_0")

    # one key, inserted at both sites: rows of two leaves have one place inside them
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2), ('{key(3)}', 3)")
    await b.do(f"insert into item values ('{key(1)}', 10), ('{key(2)}', 20), ('{key(3)}', 30)")
    first, second = await a.batch(b), await b.batch(a)
    await b.apply(first)
    await a.apply(second)
    await exchange(a, b)
    await same("item", a, b)
    assert await a.conflicts() == await b.conflicts() == ["insert/insert"] * 3


async def test_conflicts_and_tombstones(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await a.do("insert into event values ('2024-01-05', 1), ('2024-02-05', 1), ('2025-01-01', 1)")
    await exchange(a, b)
    await a.do("update event set note = 'a'", "delete from event where day = '2025-01-01'")
    await b.do("update early set note = 'b'", "update event set note = 'c' where day = '2025-01-01'")
    await exchange(a, b)
    assert await where(a) == await where(b)
    assert {*await a.conflicts(), *await b.conflicts()} == {"update/update", "update/delete"}
    await a.compact()
    await b.compact()
    await exchange(a, b)
    assert await where(a) == await where(b)


async def test_truncate_of_root_and_leaf_is_refused(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await a.do("insert into event values ('2024-01-05', 1), ('2024-02-05', 1)")
    for name in ("event", "middle_one", "middle", "early"):
        with pytest.raises(asyncpg.PostgresError, match="TRUNCATE would not reach the other sites"):
            await a.do(f"truncate {name}")
    await a.do("select syncagent.truncate('middle')")
    await exchange(a, b)
    assert await where(b) == ["(early,2024-01-05,1,)"]


async def test_every_kind_of_write_to_the_root(sites: Sites, pair: Pair) -> None:
    schema = f"""{BY_RANGE};
        create table visit (day date, n int, id uuid primary key,
            foreign key (day, n) references event on update cascade on delete cascade);
        create table stay (like event, primary key (day, n),
            foreign key (day, n) references event on update cascade on delete cascade) partition by range (day);
        create table stay_all partition of stay default"""
    a, b = await sites(schema, *pair)
    await a.do("insert into event select '2024-01-01'::date + n, 1 from generate_series(1, 60) n")
    await a.do(
        "insert into visit select day, n, syncagent.uuid7() from event",
        "insert into stay select day, n from event",
    )
    await exchange(a, b)
    writes = [
        "insert into event values ('2024-01-02', 1, 'x'), ('2024-06-01', 1, 'x') on conflict (day, n) do update set note = excluded.note",
        "delete from event where day = '2024-01-04'",
        "with gone as (delete from event where day = '2024-01-05' returning *) update event set note = 'cte' from gone where event.day = '2024-02-10'",
        "begin; savepoint s; insert into event values ('2024-01-30', 9); rollback to s; insert into early (day, n) values ('2024-01-30', 8); commit",
    ]
    if a.server.binaries.major >= 15:
        writes.append(
            "merge into event e using (values ('2024-01-06'::date), ('2024-02-06'), ('2024-07-01')) v (d) on e.day = v.d"
            " when matched and d = '2024-01-06' then delete when matched then update set day = '2024-08-01'"
            " when not matched then insert values (d, 7)"
        )
    await a.do(*writes)
    await exchange(a, b)
    assert await where(a) == await where(b)
    await same("visit", a, b)
    await same("stay", a, b)
    assert len(await b.table("stay")) < 59


async def test_a_row_without_a_partition_here_waits_for_it(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await b.do("alter table event detach partition late")
    await a.do("insert into event values ('2024-01-05', 1), ('2025-01-01', 1)")
    await exchange(a, b)
    assert [state for _, state in await b.parked()] == ["23514"]
    await b.do("create table other partition of event default")
    await b.store.replica.retry_parked()
    await exchange(a, b)
    assert await b.parked() == []
    assert len(await where(b)) == 2


async def test_a_detached_partition_is_a_table_of_its_own(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await a.do("insert into event values ('2024-01-05', 1), ('2025-01-01', 1)")
    await exchange(a, b)
    await a.do(
        "alter table event detach partition early",
        "update early set note = 'x'",
        "delete from early",
        "truncate early",
    )
    await exchange(a, b)
    assert len(await where(b)) == 2


# ---- partitions that come and go


async def test_a_new_partition_is_covered_with_the_rows_it_has(sites: Sites, pair: Pair) -> None:
    a, b = await sites(BY_RANGE, *pair)
    await a.do("insert into event values ('2024-01-05', 1)")
    await exchange(a, b)
    for site in (a, b):
        await site.do(
            "create table march partition of event for values from ('2024-03-01') to ('2024-04-01')",
            "create table middle_two partition of middle for values in (2)",
        )
    # through the root at once; straight into the leaf, or there before it was one, when the agent has looked
    await a.do("insert into event values ('2024-03-05', 1, 'root')")
    await exchange(a, b)
    await a.do(
        "insert into march values ('2024-03-06', 1, 'leaf')",
        "create table april (like event including all)",
        "insert into april values ('2024-04-06', 1, 'brought')",
        "alter table event attach partition april for values from ('2024-04-01') to ('2024-05-01')",
    )
    before = await a.versions("event")

    assert await a.store.keeper.cover() == 3
    assert await a.store.keeper.cover() == 0
    await exchange(a, b)

    await same("event", a, b)
    assert len(await where(b)) == 4
    after = await a.versions("event")
    assert {key: after[key] for key in before} == before  # what was known is not written anew
    assert await b.store.keeper.cover() == 2
    await b.do("update march set note = 'there'", "update event set day = day + 31 where note = 'brought'")
    await exchange(a, b)
    await same("event", a, b)
    assert await a.one("select count(*) from march where note = 'there'") == 2
    assert await a.conflicts() == await b.conflicts() == []


async def test_a_partition_that_moves_to_another_table_is_watched_there(sites: Sites, pair: Pair) -> None:
    """What it leaves does not take the triggers that its new root has given it."""
    schema = (
        "create table other (day date, n int, note text, primary key (day, n)) partition by range (day); "
        + BY_RANGE
    )
    (a,) = await sites(schema, pair[0])
    await a.do("create table march partition of event for values from ('2024-03-01') to ('2024-04-01')")
    assert await a.store.keeper.cover() == 1

    await a.do(
        "begin; alter table event detach partition march;"
        " alter table other attach partition march for values from ('2024-03-01') to ('2024-04-01'); commit"
    )
    await a.store.keeper.cover()

    assert await a.store.keeper.cover() == 0
    await a.do("insert into march values ('2024-03-06', 1, 'leaf')")
    found = await a.rows(
        "select r.table_name::text from syncagent.log l join syncagent.replicated r on r.id = l.relation"
    )
    assert found == [("other",)]


async def test_a_partition_leaves_comes_back_and_goes_elsewhere(sites: Sites, pair: Pair) -> None:
    schema = (
        BY_RANGE
        + "; create table archive (day date, n int, note text, primary key (day, n)) partition by range (day)"
    )
    a, b = await sites(schema, *pair)
    await a.do("insert into event values ('2024-01-05', 1)")
    await exchange(a, b)
    await a.do("alter table event detach partition early")
    assert await a.store.keeper.cover() == 1
    assert (
        await a.one(
            "select count(*) from pg_trigger where tgrelid = 'early'::regclass and tgname ~ '^syncagent'"
        )
        == 0
    )
    await a.do("update early set note = 'apart'")
    await a.do("alter table event attach partition early for values from ('2024-01-01') to ('2024-02-01')")
    assert await a.store.keeper.cover() == 1
    await exchange(a, b)
    assert await b.rows("select note from event") == [("apart",)]

    await a.do(
        "alter table event detach partition early",
        "alter table archive attach partition early for values from ('2024-01-01') to ('2024-02-01')",
    )
    await b.do("create table archive_all partition of archive default")
    assert await a.store.keeper.cover() == 2
    await a.do("update early set note = 'kept'")
    await exchange(a, b)
    assert await b.rows("select note from archive") == [("kept",)]
    await a.do("select syncagent._detach('archive')", "select syncagent._detach('event')")
    assert await a.one("select count(*) from pg_trigger where tgname ~ '^syncagent'") == 0
