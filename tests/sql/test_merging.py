"""`merge`: what two sites write at once in one column is joined."""

import sys
from collections.abc import Callable, Sequence

import asyncpg
import pytest

from tests.sql.conftest import Pair, Sites
from tests.sql.merge_schedule import SCHEMA, MergeRun
from tests.support.lab import Change, Laboratory, Site, cross, exchange, key, quiet, same, ship

ITEM = """create table item (id uuid primary key, n int not null, tags text[] not null default '{}', note text, top int, log text not null default '',
        bag jsonb not null default '[]', price numeric(10, 2) not null default 0);
    comment on table item is 'merge {"n": "counter", "price": "counter", "tags": "set", "bag": "set", "top": "max", "log": "append"}'"""


async def stocked(*sites: Site) -> None:
    await sites[0].do(
        f"insert into item (id, n, tags, note, top) values ('{key(1)}', 1, '{{red,blue}}', 'old', 5)"
    )
    await exchange(*sites)


async def test_the_last_piece_is_sold_twice(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    for site in (a, b):
        await site.do("update item set n = n - 1")
    await cross(a, b)
    for site in (a, b):
        assert await site.one("select n from item") == -1
        assert await site.conflicts() == []
    await same("item", a, b)
    await quiet(a, b)
    for site in (a, b):
        await site.compact()
        assert await site.versions("item") == {}


async def test_a_counter_adds_what_each_site_added(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    await stocked(a, b, c)
    await a.do("update item set n = n + 10, price = 2.5", "update item set n = n * 2")  # 22
    await b.do("update item set n = 100, price = price - 0.05")
    await c.do("update item set n = n - 3, note = 'new'")
    await quiet(a, b, c)
    for site in (a, b, c):
        assert await site.rows("select n, price::text, note from item") == [(22 + 99 - 3, "2.45", "new")]
    await same("item", a, b, c)


async def test_what_was_added_to_a_life_that_is_over_is_not_in_the_new_one(sites: Sites, pair: Pair) -> None:
    """Also by a clock that is ahead of the new life's, and seen by no cut before that came."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await b.clock_ahead(5)
    await b.do("update item set n = n + 5, tags = tags || '{over}'::text[]")
    await a.do("delete from item", f"insert into item (id, n, tags) values ('{key(1)}', 2, '{{red}}')")
    await ship(a, b)
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select n, tags from item") == [(2, ["red"])]


async def test_all_statements_of_a_transaction_count(sites: Sites, pair: Pair) -> None:
    """They have one stamp."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.together(
        "update item set n = n + 10, tags = tags || '{green}'::text[], log = log || 'x'",
        "update item set n = n + 5, tags = array_remove(tags, 'red'), log = log || 'y'",
        "update item set n = n + 1, tags = array_remove(tags || '{pink}'::text[], 'green')",
    )
    batch = await b.batch(a)
    await a.apply(batch)
    await b.do("update item set n = n + 100, tags = tags || '{black}'::text[], log = log || 'z'")
    await a.apply(await b.batch(a))  # meets what no cut of a has
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select n, tags from item") == [(117, ["black", "blue", "pink"])]
        assert await site.one("select log from item") in ("xyz", "zxy")


async def test_a_stretch_goes_on_that_others_have_dropped(sites: Sites, pair: Pair) -> None:
    """What is added to one entry, and forgotten elsewhere, is not added twice."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    await stocked(a, b, c)
    await a.do("update item set n = n + 10")
    await ship(a, b)
    await ship(a, c)
    await ship(c, b)
    await b.compact()  # it knows that everybody has it; a does not
    assert await b.versions("item") == {}
    assert await a.versions("item") != {}
    await a.do("update item set n = n + 5")
    await b.do("update item set n = n + 100")
    await ship(a, b)
    assert await b.one("select n from item") == 116
    await quiet(a, b, c)
    for site in (a, b, c):
        assert await site.one("select n from item") == 116


async def test_what_a_batch_met_before_a_cut_is_of_that_cut(sites: Sites, pair: Pair) -> None:
    """Written, met by a batch, and written again before the cut: the stretch, and the member, begin with that cut."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set n = n + 1, tags = tags || '{x}'::text[]")
    await b.do("update item set n = n + 10, tags = tags || '{y}'::text[]")
    await ship(b, a)
    await a.do("update item set n = n + 2, tags = tags || '{z}'::text[]")
    await ship(a, b)
    await a.do("update item set n = n + 4, tags = tags || '{v}'::text[]")
    await b.do("update item set n = n + 100, tags = array_remove(tags, 'x')")
    await cross(a, b)
    for site in (a, b):
        assert await site.rows("select n, tags from item") == [(118, ["blue", "red", "v", "y", "z"])]


async def test_a_count_that_its_type_cannot_hold_wraps_around(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set n = 2000000000, price = 99999999.99")
    await b.do("update item set n = 2000000000, price = 0.02")
    await cross(a, b)
    assert await same("item", a, b)
    assert await a.parked() == await b.parked() == []
    await a.do("update item set n = n + 2000000000, price = price + 10000000")
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select n, price::text from item") == [
            (3999999999 - 2**32 + 2000000000, "-89999999.98")
        ]


async def test_a_member_that_was_removed_stays_removed_unless_it_was_added_at_once(
    sites: Sites, pair: Pair
) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set tags = array_remove(tags, 'red'), bag = '[{\"a\": 1}, 2]'")
    await b.do("update item set tags = tags || '{green}'::text[], bag = '[2, 10]'")
    await cross(a, b)
    for site in (a, b):
        assert await site.rows("select tags, bag::text from item") == [
            (["blue", "green"], '[2, 10, {"a": 1}]')
        ]
    await a.do("update item set tags = array_remove(tags, 'blue')")
    await b.do(
        "update item set tags = array_remove(tags, 'blue')", "update item set tags = tags || '{blue}'::text[]"
    )
    await cross(a, b)
    for site in (a, b):
        assert await site.one("select tags from item") == ["blue", "green"]
        assert await site.conflicts() == []
        await site.compact()
        assert await site.versions("item") == {}


async def test_a_set_that_is_written_at_one_site_is_what_was_written(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set tags = '{z,a,a,NULL}'", "update item set note = 'other'")
    await b.do("update item set n = 7")
    await cross(a, b)
    for site in (a, b):
        assert await site.one("select tags::text from item") == "{z,a,a,NULL}"


async def test_largest_and_what_is_appended(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set top = 9, log = 'a'")
    await b.clock_ahead(1)
    await b.do("update item set top = 7, log = 'b'")
    await cross(a, b)
    for site in (a, b):
        assert await site.rows("select top, log from item") == [(9, "ab")]
    await b.do("update item set top = 3, log = log || 'c'")  # it had read both
    await a.do("update item set log = log || 'd'")
    await cross(a, b)
    for site in (a, b):
        assert await site.one("select top from item") == 3
        assert sorted(await site.one("select log from item")) == ["a", "b", "c", "d"]
    await same("item", a, b)


async def test_what_begins_alike_is_appended_as_often_as_it_was(sites: Sites, pair: Pair) -> None:
    """Each wrote twice before it heard of the others, and what it wrote comes in parts."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    await stocked(a, b, c)
    for site in (a, b):
        await site.do("update item set log = log || 'in;'")
    await ship(a, c)
    await ship(b, c)
    await c.do("update item set log = log || 'in;c;'")
    for site, text in ((a, "a"), (b, "b")):
        await site.do(f"update item set log = log || '{text};'")
    await ship(c, a)
    await quiet(a, b, c)
    assert len(await same("item", a, b, c)) == 1
    assert sorted((await a.one("select log from item")).split(";")) == ["", "a", "b", "c", "in", "in", "in"]
    await b.do("update item set log = 'new;'")
    await a.do("update item set log = log || 'in;'")
    await quiet(a, b, c)
    assert len(await same("item", a, b, c)) == 1
    assert sorted((await a.one("select log from item")).split(";")) == ["", "in", "new"]
    for site in (a, b, c):
        await site.compact()
        assert await site.versions("item") == {}


async def test_two_who_append_twice(sites: Sites, pair: Pair) -> None:
    """The second time each has read what it wrote the first time, and the other has not."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    for site, text in ((a, "a"), (b, "b")):
        await site.do("update item set log = log || 'in;'", f"update item set log = log || '{text};'")
    await cross(a, b)
    await same("item", a, b)
    assert sorted((await a.one("select log from item")).split(";")) == ["", "a", "b", "in", "in"]


async def test_what_is_appended_to_a_row_that_waits(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM.replace("n int not null", "n int not null check (n >= 0)"), *pair)
    await stocked(a, b)
    for site in (a, b):
        await site.do(f"update item set n = n - 1, log = log || 'sold at {site.node};'")
    await cross(a, b)
    assert len(await a.parked()) == len(await b.parked()) == 1
    await a.do("update item set n = n + 3, log = log || 'bought;'")
    for _ in range(2):
        await quiet(a, b)
        for site in (a, b):
            await site.store.replica.retry_parked()
    assert await a.parked() == await b.parked() == []
    for site in (a, b):
        log = await site.one("select log from item")
        assert sorted(log.split(";")) == ["", "bought", "sold at 1", "sold at 2"]
        assert log.endswith("bought;")


async def test_writes_that_no_cut_has_meet_a_batch(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set n = n + 10, tags = tags || '{a}'::text[], log = 'a'")
    batch = await a.batch(b)
    await b.do("update item set n = n + 100", "update item set tags = '{red}', log = 'b'")
    await b.apply(batch)
    await b.do("update item set n = n + 1000, tags = array_remove(tags, 'a')")
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select n, tags, log from item") == [(1111, ["red"], "ab")]


async def test_a_delete_ends_a_row_whatever_is_added(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("delete from item")
    await b.do("update item set n = n + 10")
    await cross(a, b)
    for site in (a, b):
        assert await site.table("item") == []
        assert await site.rows("select kind, strategy, losing_image ->> 'n' from syncagent.conflict") == [
            ("delete/update", "merge", "11")
        ]


async def test_a_count_waits_and_goes_on(sites: Sites, pair: Pair) -> None:
    """A constraint refuses what both sold together, until there is more."""
    a, b = await sites(ITEM.replace("n int not null", "n int not null check (n >= 0)"), *pair)
    await stocked(a, b)
    for site in (a, b):
        await site.do("update item set n = n - 1")
    await cross(a, b)
    assert [row["n"] for row, _ in await a.parked()] == [row["n"] for row, _ in await b.parked()] == [-1]
    await a.do("update item set n = n + 3")
    for _ in range(2):
        await quiet(a, b)
        for site in (a, b):
            await site.store.replica.retry_parked()
    assert await a.parked() == await b.parked() == []
    assert await a.one("select n from item") == await b.one("select n from item") == 2


async def parted(a: Site, b: Site) -> None:
    """Two values of one column."""
    await stocked(a, b)
    await a.do("update item set note = 'a', n = n + 1")
    await b.clock_ahead(1)
    await b.do("update item set note = 'b'")
    await cross(a, b)


async def test_what_was_written_at_once_is_kept_until_somebody_has_read_it(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await parted(a, b)
    told = f"select column_name, site, value, context from syncagent.siblings('item', '{key(1)}')"
    found = await a.rows(told)
    assert found == await b.rows(told)
    assert [row[:3] for row in found] == [("note", "site2", "b"), ("note", "site1", "a")]
    assert await a.rows("select kind, winner, losing_image ->> 'note', open from syncagent.conflict") == [
        ("update/update", "site2", "a", True)
    ]
    for site in (a, b):
        await site.compact()
        assert len(await site.versions("item")) == 1
    await a.do(
        f"select syncagent.resolve_siblings('item', '{key(1)}', '{{\"note\": \"b\"}}', '{found[0][3]}')"
    )
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select note, n from item") == [("b", 2)]
        assert await site.rows(told) == []
        assert await site.one("select count(*) from syncagent.conflict where open") == 0
        await site.compact()
        assert await site.versions("item") == {}


async def test_siblings_are_settled_as_they_were_read_or_not_at_all(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await parted(a, b)
    context = await a.one(f"select context from syncagent.siblings('item', '{key(1)}')")
    settle = f"select syncagent.resolve_siblings('item', '{key(1)}', '{{}}', '{context}')"
    with pytest.raises(asyncpg.PostgresError, match="no siblings of n"):
        await a.do(settle.replace("{}", '{"n": 5}'))
    with pytest.raises(asyncpg.PostgresError, match="no object of columns"):
        await a.do(settle)
    await a.do("create role settler")
    try:
        await a.do("select syncagent.grant_reader('settler')")
        with pytest.raises(asyncpg.PostgresError, match="may not update table"):
            await a.do("set session authorization settler; " + settle.replace("{}", '{"note": "c"}'))
    finally:
        await a.do("reset session authorization", "drop owned by settler", "drop role settler")
    assert len(await a.rows(f"select from syncagent.siblings('item', '{key(1)}')")) == 2
    await b.do("update item set note = 'read'")
    with pytest.raises(asyncpg.PostgresError, match="it is settled"):
        await b.do(settle.replace("{}", '{"note": "c"}'))
    await a.do("update item set note = 'read, too'")
    await cross(a, b)
    with pytest.raises(asyncpg.PostgresError, match="others by now"):
        await a.do(settle.replace("{}", '{"note": "c"}'))
    assert await a.one("select note from item") == await b.one("select note from item")


async def test_who_takes_a_side_leaves_what_was_appended(sites: Sites, pair: Pair) -> None:
    """And the largest, though the sides had others of those, too; also where both wrote one value."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set note = 'a', log = 'x', top = 9")
    await b.clock_ahead(1)
    await b.do("update item set note = 'b', log = 'y', top = 7")
    await cross(a, b)
    await b.do("select syncagent.resolve(id, 'loser') from syncagent.conflict")
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select note, log, top from item") == [("a", "xy", 9)]
        assert await site.one("select count(*) from syncagent.conflict where open") == 0
    for site, token in ((a, "1"), (b, "2")):
        await site.do(f"update item set note = 'alike', log = log || '{token}'")
    await cross(a, b)
    await a.do("select syncagent.resolve(id, 'loser') from syncagent.conflict where open")
    await quiet(a, b)
    for site in (a, b):
        assert await site.one("select count(*) from syncagent.conflict where open") == 0
        assert await site.one("select note from item") == "alike"
        assert sorted(await site.one("select log from item")) == ["1", "2", "x", "y"]


async def test_siblings_that_were_settled_by_a_write_are_not_brought_back(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await parted(a, b)
    await quiet(a, b)
    conflict = await a.one("select id from syncagent.conflict where columns = '{note}'")
    await b.do("update item set note = 'read'")
    await quiet(a, b)
    for take in ("resolve($1, 'loser')", "resolve($1, 'winner')", """resolve_with($1, '{"note": "x"}')"""):
        with pytest.raises(asyncpg.PostgresError, match=r"is settled: row .* was written since"):
            await a.rows(f"select syncagent.{take}", conflict)
    await quiet(a, b)
    assert await a.one("select note from item") == await b.one("select note from item") == "read"


async def test_conflicts_of_a_table_that_is_merged_no_more(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await parted(a, b)
    assert await a.one("select count(*) from syncagent.conflict where open") == 1
    await a.do("select syncagent._detach('item')", "select syncagent._attach('item', true, false)")
    assert await a.rows("select strategy, open from syncagent.conflict") == [("merge", False)]


async def test_who_settles_what_is_not_his(sites: Sites, pair: Pair) -> None:
    """Neither rows of other tables, nor columns that have no siblings."""
    a, b = await sites(ITEM + "; create table secret (id uuid primary key, word text)", *pair)
    await a.do(f"insert into secret values ('{key(2)}', 'swordfish')")
    await parted(a, b)
    await a.do("create role reader_of_one")
    try:
        await a.do(
            "select syncagent.grant_reader('reader_of_one')", "grant select, update on item to reader_of_one"
        )
        await a.do("set session authorization reader_of_one")
        write = f'[{{"schema": "public", "table": "secret", "key": "{key(2)}"}}]'
        with pytest.raises(asyncpg.PostgresError, match=r"may not select table public\.secret"):
            await a.do(f"select syncagent._resolution(id, '{write}', false) from syncagent.conflict")
        with pytest.raises(asyncpg.PostgresError, match=r"may not select table public\.secret"):
            await a.do(f"select syncagent._resolve(id, '{write}') from syncagent.conflict")
        for table, row, column, error in (
            ("item", 1, "n", "n of public.item has no siblings"),
            ("item", 1, "id", "id of public.item has no siblings"),
            ("item", 1, "price; drop", "has no siblings"),
            ("item", 7, "note", "there is no row"),
        ):
            with pytest.raises(asyncpg.PostgresError, match=error):
                await a.do(f"select syncagent._settled_columns('{table}', '{key(row)}', array['{column}'])")
        await a.do(
            "reset session authorization",
            "grant update on secret to reader_of_one",
            "set session authorization reader_of_one",
        )
        with pytest.raises(asyncpg.PostgresError, match=r"the strategy of table public\.secret is lww"):
            await a.do(f"select syncagent._settled_columns('secret', '{key(2)}', '{{word}}')")
    finally:
        await a.do("reset session authorization", "drop owned by reader_of_one", "drop role reader_of_one")
    assert not await a.store.origin.pending()


async def test_what_is_no_number_is_not_counted(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do("set session_replication_role = replica")
    await a.do(f"insert into item (id, n, price) values ('{key(2)}', 2, 'NaN')")  # nobody asked
    await a.do("reset session_replication_role")
    await stocked(a, b)
    for statement in (
        "update item set price = 'NaN' where n = 1",
        f"insert into item (id, n, price) values ('{key(3)}', 3, 'NaN')",
    ):
        with pytest.raises(asyncpg.PostgresError, match="price cannot be NaN: it is a counter"):
            await a.do(statement)
    await a.do("update item set note = 'none' where n = 2")
    await quiet(a, b)
    assert await b.rows("select price::text, note from item where n = 2") == [("NaN", "none")]
    await a.do("update item set price = 5 where n = 2")
    await b.do("update item set price = 2 where n = 2")
    await cross(a, b)
    assert await same("item", a, b)
    assert await a.one("select price::text from item where n = 2") == "7.00"
    await a.do("update item set note = 'gone', price = price + 1 where n = 2", "delete from item where n = 2")
    await quiet(a, b)
    assert len(await same("item", a, b)) == 1


async def test_who_takes_a_side_leaves_what_was_added(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await parted(a, b)
    await b.do("select syncagent.resolve(id, 'loser') from syncagent.conflict")
    await quiet(a, b)
    for site in (a, b):
        assert await site.rows("select note, n from item") == [("a", 2)]
        assert await site.one("select count(*) from syncagent.conflict where open") == 0


PARTED = """create table item (a int, b text, "Note q" text, n bigint not null, primary key (a, b)) partition by range (a);
    create table item_low (n bigint not null, b text not null, "Note q" text, a int not null);
    alter table item attach partition item_low for values from (0) to (10);
    create table item_high partition of item for values from (10) to (20);
    comment on table item is 'merge {"n": "counter", "Note q": "max"}'"""


async def test_odd_keys_and_partitions(sites: Sites, pair: Pair) -> None:
    a, b = await sites(PARTED, *pair)
    await a.do("insert into item select g, 'x', 'old', g from generate_series(1, 19) g")
    await exchange(a, b)
    await a.do("update item set n = n + 1", "update item_high set \"Note q\" = 'zebra'")
    await b.do("update item_low set n = n + 10", "update item set n = n - 5, \"Note q\" = 'ape' where a = 12")
    await cross(a, b)
    await same("item", a, b)
    assert await a.rows('select n, "Note q" from item where a in (5, 12, 15) order by a') == [
        (16, "old"),
        (8, "zebra"),
        (16, "zebra"),
    ]


async def test_a_bulk_update(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do("insert into item (id, n, top) select syncagent.uuid7(), g, g from generate_series(1, 1500) g")
    await exchange(a, b)
    for site, tag in ((a, "x"), (b, "y")):
        await site.do(f"update item set n = n - 1, tags = tags || '{{{tag}}}'::text[]")
    await cross(a, b)
    await same("item", a, b)
    assert await a.rows("select sum(n - top), count(distinct tags), max(tags) from item") == [
        (-3000, 1, ["x", "y"])
    ]


async def schedule(laboratory: Laboratory, pair: Pair, seed: int, changes: Sequence[Change] = ()) -> None:
    schema = (
        SCHEMA.replace('"max"', '"function:pg_catalog.int4larger"') if seed % 2 and not changes else SCHEMA
    )
    async with laboratory.sites(schema, *pair, pair[seed % 2], changes=changes) as sites:
        run = MergeRun(seed, sites)
        try:
            await run.run(70)
        except BaseException:
            sys.stdout.write("\n".join(run.trace) + f"\nSEED={seed}\n")
            raise


@pytest.mark.soak
async def test_random_schedules(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    for number in range(seed, seed + runs(2, 200)):
        await schedule(laboratory, pair, number)
