"""`lww-column`: what two sites write at once in two columns of a row stays, at every site."""

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import asyncpg
import pytest

from syncagent.embedded import Server
from tests.sql.column_schedule import SCHEMA, Run
from tests.sql.conftest import Pair, Sites
from tests.support.lab import Change, Laboratory, Site, cross, exchange, key, quiet, same, ship

ITEM = """create table item (id uuid primary key, name text, price int, note text);
    comment on table item is 'lww-column'"""


async def items(site: Site) -> list[tuple[object, ...]]:
    return await site.rows("select name, price, note from item order by id")


async def stocked(*sites: Site) -> None:
    await sites[0].do(
        f"insert into item values ('{key(1)}', 'nut', 1, 'old'), ('{key(2)}', 'bolt', 2, 'old')"
    )
    await exchange(*sites)


async def at_odds(a: Site, b: Site) -> None:
    """Both have written the price, and each another column."""
    await stocked(a, b)
    await a.do(f"update item set price = 10, note = 'a' where id = '{key(1)}'")
    await b.clock_ahead(1)
    await b.do(f"update item set price = 20, name = 'nail' where id = '{key(1)}'")
    await cross(a, b)


async def test_two_columns_of_a_row_written_at_once(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do(f"update item set price = 10 where id = '{key(1)}'")
    await b.do(f"update item set note = 'new' where id = '{key(1)}'")
    await cross(a, b)
    for site in (a, b):
        assert await items(site) == [("nut", 10, "new"), ("bolt", 2, "old")]
        assert await site.conflicts() == []
    await same("item", a, b)
    await quiet(a, b)
    for site in (a, b):
        await site.compact()
        assert await site.versions("item") == {}


async def test_one_column_written_at_once(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await at_odds(a, b)
    for site in (a, b):
        assert await items(site) == [("nail", 20, "a"), ("bolt", 2, "old")]
    told = "select kind, strategy, winner, loser, losing_image ->> 'price', winning_image ->> 'price' from syncagent.conflict"
    assert (
        await a.rows(told)
        == await b.rows(told)
        == [("update/update", "lww-column", "site2", "site1", "10", "20")]
    )


async def test_who_takes_a_side_of_a_column_leaves_what_was_written_to_others(
    sites: Sites, pair: Pair
) -> None:
    """By the same two at the same time, and since then; a column that was written since is nobody's to take back."""
    a, b = await sites(ITEM, *pair)
    await at_odds(a, b)
    await quiet(a, b)
    conflict = await a.one("select id from syncagent.conflict where columns = '{price}'")
    assert conflict == await b.one("select id from syncagent.conflict where columns = '{price}'")
    await b.do(f"update item set note = 'later' where id = '{key(1)}'")
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    await quiet(a, b)
    assert (await items(a))[0] == (await items(b))[0] == ("nail", 10, "later")
    await a.do(f"update item set name = 'spike' where id = '{key(1)}'")
    await b.rows("select syncagent.undo($1)", conflict)
    await quiet(a, b)
    assert (await items(a))[0] == (await items(b))[0] == ("spike", 20, "later")
    await a.do(f"update item set price = 30 where id = '{key(1)}'")
    with pytest.raises(asyncpg.PostgresError, match="was written since"):
        await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    assert (await items(a))[0] == ("spike", 30, "later")
    await a.do("update syncagent.conflict_record set columns = '{gone}'")
    with pytest.raises(asyncpg.PostgresError, match="there is nothing to choose: gone of"):
        await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    assert (await items(a))[0] == ("spike", 30, "later")


async def test_one_value_written_at_once_is_no_conflict(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    for site in (a, b):
        await site.do(f"update item set price = 10 where id = '{key(1)}'")
    await cross(a, b)
    assert await a.conflicts() == await b.conflicts() == []


async def test_a_column_that_is_set_to_what_it_is_was_not_written(sites: Sites, pair: Pair) -> None:
    """As object-relational mappers do, which send every column."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do("update item set price = price + 10")
    await b.clock_ahead(1)
    await b.do(
        f"update item set name = 'nut', price = 1, note = 'new' where id = '{key(1)}'",
        f"update item set name = 'bolt', price = 2, note = 'old' where id = '{key(2)}'",
    )
    assert await b.one("select sum(cardinality(keys)) from syncagent.log") == 1
    await cross(a, b)
    for site in (a, b):
        assert await items(site) == [("nut", 11, "new"), ("bolt", 12, "old")]
        assert await site.conflicts() == []


async def test_a_delete_ends_a_row_whatever_is_written_later(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do(f"delete from item where id = '{key(1)}'")
    await b.clock_ahead(1)
    await b.do(f"update item set price = 10 where id = '{key(1)}'")
    await cross(a, b)
    for site in (a, b):
        assert await items(site) == [("bolt", 2, "old")]
        assert await site.rows("select kind, winner, losing_image ->> 'price' from syncagent.conflict") == [
            ("delete/update", "site1", "10")
        ]


async def test_a_newer_life_wins_whole(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do(
        f"delete from item where id = '{key(1)}'",
        f"insert into item values ('{key(1)}', 'screw', 7, 'again')",
    )
    await b.clock_ahead(1)
    await b.do(f"update item set price = 10 where id = '{key(1)}'")
    await cross(a, b)
    for site in (a, b):
        assert await items(site) == [("screw", 7, "again"), ("bolt", 2, "old")]
        assert await site.rows("select kind, losing_image ->> 'price' from syncagent.conflict") == [
            ("update/update", "10")
        ]
    for site in (a, b):
        await site.compact()
        assert await site.versions("item") == {}
    await b.do(f"update item set price = 8 where id = '{key(1)}'")
    await a.do(f"update item set note = 'still' where id = '{key(1)}'")
    await cross(a, b)
    assert await items(a) == await items(b) == [("screw", 8, "still"), ("bolt", 2, "old")]


async def test_a_write_that_no_cut_has_meets_a_batch(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await a.do(f"update item set price = 10, name = 'nail' where id = '{key(1)}'")
    batch = await a.batch(b)
    await b.clock_ahead(1)
    await b.do(
        f"update item set price = 20 where id = '{key(1)}'",
        f"update item set note = 'new' where id = '{key(1)}'",
    )
    await b.apply(batch)
    assert await items(b) == [("nail", 20, "new"), ("bolt", 2, "old")]
    await quiet(a, b)
    assert await items(a) == [("nail", 20, "new"), ("bolt", 2, "old")]
    assert await b.conflicts() == ["update/update"]


async def test_who_has_all_columns_hands_them_on(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    await stocked(a, b, c)
    await a.do(f"update item set price = 10 where id = '{key(1)}'")
    await ship(a, b)
    await b.do(f"update item set note = 'new' where id = '{key(1)}'")
    await c.do(f"update item set name = 'nail' where id = '{key(1)}'")
    await quiet(c, b, a)
    for site in (a, b, c):
        assert await items(site) == [("nail", 10, "new"), ("bolt", 2, "old")]
        assert await site.conflicts() == []


async def test_what_is_known_of_a_row_goes_together(sites: Sites, pair: Pair) -> None:
    """The newest write of a row may be everywhere while an older one, of another column, is not."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    await stocked(a, b, c)
    await a.do(f"update item set price = 10 where id = '{key(1)}'")
    await b.clock_ahead(1)
    await b.do(f"update item set note = 'new' where id = '{key(1)}'")
    for origin, others in ((b, (a, c)), (c, (a, b))) * 2:  # all but what a wrote
        cut = await origin.cut(*others)
        assert cut is not None
        for receiver, shipment in zip(others, cut.shipments, strict=True):
            await receiver.apply(shipment)
    await a.cut()
    await a.compact()
    assert len(await a.versions("item")) == 1
    await quiet(a, b, c)
    for site in (a, b, c):
        assert await items(site) == [("nut", 10, "new"), ("bolt", 2, "old")]


async def test_columns_without_an_equality(sites: Sites, pair: Pair) -> None:
    schema = "create table item (id uuid primary key, a json, b point, c circle, d box, e numeric); comment on table item is 'lww-column'"
    a, b = await sites(schema, *pair)
    await a.do(f"insert into item values ('{key(1)}', '{{}}', '(1,1)', '<(1,1),1>', '((0,0),(1,1))', 1.0)")
    await exchange(a, b)
    await a.do("update item set a = '{ }', d = '((0,0),(0.5,2))'")  # of one area
    await b.do("update item set b = '(2,2)', c = '<(0,0),1>', e = 1.00")
    await cross(a, b)
    await same("item", a, b)
    assert await a.rows("select a::text, b::text, c::text, d::text, e::text from item") == [
        ("{ }", "(2,2)", "<(0,0),1>", "(0.5,2),(0,0)", "1.00")
    ]


PARTED = """create table item (a int, b text, price int, "Note q" text, primary key (a, b)) partition by range (a);
    create table item_low (price int, b text not null, "Note q" text, a int not null);
    alter table item attach partition item_low for values from (0) to (10);
    create table item_high partition of item for values from (10) to (20);
    comment on table item is 'lww-column'"""


async def test_odd_keys_and_partitions(sites: Sites, pair: Pair) -> None:
    a, b = await sites(PARTED, *pair)
    await a.do("insert into item select n, 'x', n, 'old' from generate_series(1, 19) n")
    await exchange(a, b)
    await a.do(
        "update item set price = -1 where a = 5",
        "update item_high set price = -2",
        "update item set a = 15, b = 'moved' where a = 6",
    )
    await b.do("update item_low set \"Note q\" = 'new'", "update item set \"Note q\" = 'new' where a = 12")
    await cross(a, b)
    await same("item", a, b)
    assert await a.rows("select * from item where a in (5, 12) or b = 'moved' order by a, b") == [
        (5, "x", -1, "new"), (12, "x", -2, "new"), (15, "moved", 6, "old")]  # fmt: skip


async def test_a_bulk_update(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(
        "insert into item select syncagent.uuid7(), 'n' || n, n, 'old' from generate_series(1, 11000) n"
    )
    await exchange(a, b)
    await a.do("update item set price = -price")
    await b.do(
        "update item set note = 'new' where price % 2 = 0",
        "update item set name = 'odd', note = 'odd' where price % 2 = 1",
    )
    await cross(a, b)
    await same("item", a, b)
    assert await a.rows("select name = 'odd', note, count(*), max(price) from item group by 1, 2 order by 1") == [
        (False, "new", 5500, -2), (True, "odd", 5500, -1)]  # fmt: skip
    assert await a.conflicts() == []


async def test_a_row_that_no_site_can_hold_waits_for_whoever_mends_it(sites: Sites, pair: Pair) -> None:
    """Each column was right where it was written; together they are not."""
    schema = ITEM.replace("note text", "note text, check (price < 15 or note <> 'cheap')")
    a, b = await sites(schema, *pair)
    await stocked(a, b)
    await a.do(f"update item set price = 20 where id = '{key(1)}'")
    await b.do(f"update item set note = 'cheap' where id = '{key(1)}'")
    await cross(a, b)
    assert await a.parked() == await b.parked() != []
    await a.do(f"update item set name = 'nail' where id = '{key(1)}'")
    await quiet(a, b)
    assert [row["name"] for row, _ in await b.parked()] == ["nail"]
    await b.do(f"update item set note = 'dear' where id = '{key(1)}'")
    for _ in range(2):
        await quiet(a, b)
        for site in (a, b):
            await site.store.replica.retry_parked()
    assert await a.parked() == await b.parked() == []
    assert await items(a) == await items(b) == [("nail", 20, "dear"), ("bolt", 2, "old")]


async def test_a_value_that_a_row_yields_leaves_its_other_columns(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM.replace("name text", "name text unique"), *pair)
    await stocked(a, b)
    await a.do(f"update item set name = 'nail' where id = '{key(1)}'")
    await b.do(f"update item set name = 'nail' where id = '{key(2)}'")
    batch = await b.batch(a)
    await b.do(f"update item set price = 5 where id = '{key(2)}'")
    await a.do(f"update item set note = 'new' where id = '{key(2)}'")
    await a.apply(batch)
    await quiet(a, b)
    assert await items(a) == await items(b) == [("nail", 1, "old"), (None, 5, "new")]


async def test_what_was_written_in_a_life_that_is_over_is_not_of_the_new_one(
    sites: Sites, pair: Pair
) -> None:
    """Also by a clock that is ahead of the new life's, and seen by no cut before that came."""
    a, b = await sites(ITEM, *pair)
    await stocked(a, b)
    await b.clock_ahead(5)
    await b.do(f"update item set note = 'over' where id = '{key(1)}'")
    await a.do(
        f"delete from item where id = '{key(1)}'",
        f"insert into item values ('{key(1)}', 'nail', 1, 'old')",
    )
    await ship(a, b)
    await a.do(f"update item set note = 'new' where id = '{key(1)}'")
    await quiet(a, b)
    for site in (a, b):
        assert await items(site) == [("nail", 1, "new"), ("bolt", 2, "old")]
    assert await b.rows("select losing_image ->> 'note' from syncagent.conflict_record") == [("over",)]


async def test_every_site_that_lost_to_a_delete_is_told(sites: Sites, pair: Pair) -> None:
    """One met the delete before it had the other's write, so its image is not all that was lost."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    await stocked(a, b, c)
    await c.do(f"delete from item where id = '{key(1)}'")
    await c.cut(force=True)
    await a.clock_ahead(5)
    await a.do(f"update item set note = 'of a' where id = '{key(1)}'")
    await b.do(f"update item set price = 20 where id = '{key(1)}'")
    await ship(a, c)
    await ship(a, b)  # has both
    await ship(c, b)
    await quiet(a, b, c)
    for site in (a, b, c):
        assert await items(site) == [("bolt", 2, "old")]
    lost = "select distinct losing_image ->> 'note', losing_image ->> 'price' from syncagent.conflict_record"
    for site in (a, b, c):
        assert ("of a", "20") in [tuple(row) for row in await site.rows(lost)]


async def test_one_key_inserted_twice(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 'nut', 1, 'a')")
    await b.do(f"insert into item values ('{key(1)}', 'nut', 2, 'b')")
    await cross(a, b)
    assert await items(a) == await items(b) == [("nut", 2, "b")]
    assert "insert/insert" in await a.conflicts() + await b.conflicts()


async def schedule(laboratory: Laboratory, pair: Pair, seed: int, changes: Sequence[Change] = ()) -> None:
    async with laboratory.sites(SCHEMA, *pair, pair[seed % 2], changes=changes) as sites:
        run = Run(seed, sites)
        try:
            await run.run(70)
        except BaseException:
            sys.stdout.write("\n".join(run.trace) + f"\nSEED={seed}\n")
            raise


@pytest.mark.soak
async def test_random_schedules(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    for number in range(seed, seed + runs(3, 200)):
        await schedule(laboratory, pair, number)


@pytest.mark.parametrize(
    ("registers", "stable", "expected"),
    [
        ({}, {}, True),
        ({"": ["s", 1, 5], 'a "b': ["s", 2, 3]}, {"1": 5, "2": 9}, True),
        ({"": ["s", 1, 5], "a": ["s", 2, 10]}, {"1": 5, "2": 9}, False),
        ({"a": ["s", 1, None]}, {"1": 5}, False),
        ({"a": ["s", 3, 1]}, {"1": 5}, False),
        ({"a": ["s", 1, 1]}, {}, False),
        ({"a": {"1": ["s", 1]}}, {"1": 5}, False),
        ({"a": ["s", 1]}, {"1": 5}, False),
        ({"a": "s"}, {"1": 5}, False),
    ],
)
async def test_what_is_not_known_to_be_everywhere_is_not_stable(
    sites: Sites, pair: Pair, registers: dict[str, object], stable: dict[str, int], expected: bool
) -> None:
    (a,) = await sites(ITEM, pair[0])
    unstable = await a.one(
        "select jsonb_path_exists($1::text::jsonb, syncagent._unstable($2::text::jsonb))",
        json.dumps(registers),
        json.dumps(stable),
    )
    assert unstable is not expected


async def test_the_registers_of_a_write_are_of_all_its_columns(sites: Sites, pair: Pair) -> None:
    """Also where a name looks like a value."""
    (a,) = await sites(ITEM, pair[0])
    stamp = "01900000-0000-7000-8000-000000000001"
    names = [
        "n",
        "",
        f': "{stamp}"',
        "ends with: ",
        f'"{stamp}',
        "back\\slash",
        *(f"column {n}" for n in range(100)),
    ]
    made = (
        'select syncagent._registers_of($1::text::"char", $2::text[]::name[], $3::text::uuid, 7, $4::bigint)'
    )
    assert json.loads(await a.one(made, "U", names, stamp, 5)) == {name: [stamp, 7, 5] for name in names}
    assert json.loads(await a.one(made, "U", ["n"], stamp, None)) == {"n": [stamp, 7, None]}
    assert json.loads(await a.one(made, "I", None, stamp, 5)) == {"": [stamp, 7, 5]}
    assert await a.one(made, "D", ["n"], stamp, 5) is None


COLUMNS = "52_columns.sql"
RULES: dict[str, tuple[Change, Callable[[Sites, Pair], Awaitable[None]]]] = {
    "what is known of a row goes together": (
        (
            "30_capture.sql",
            "'all_stable', ' and not jsonb_path_exists(v.registers, (select syncagent._unstable(p_stable)))'",
            "'all_stable', ''",
        ),
        test_what_is_known_of_a_row_goes_together,
    ),
    "a column is that of the larger stamp": (
        (
            "30_capture.sql",
            "and coalesce((e.value ->> 0)::uuid > (m.mine -> e.key ->> 0)::uuid, true))'",
            ")'",
        ),
        test_a_write_that_no_cut_has_meets_a_batch,
    ),
    "a write that no cut has is known": (
        (COLUMNS, "left join unfolded u on u.key = s._key", "left join unfolded u on false"),
        test_a_write_that_no_cut_has_meets_a_batch,
    ),
    "a delete ends a life": (
        (
            COLUMNS,
            "when l.my_end then 'mine'\n",
            "when l.my_end then case when l.my_stamp >= l.their_stamp then 'mine' else 'theirs' end\n",
        ),
        test_a_delete_ends_a_row_whatever_is_written_later,
    ),
    "a newer life wins": (
        (
            COLUMNS,
            "case when l.my_life >= l.their_life then 'mine'",
            "case when l.my_stamp >= l.their_stamp then 'mine'",
        ),
        test_a_newer_life_wins_whole,
    ),
    "what was written of a life that is over is nothing": (
        (COLUMNS, "if v_over <> '{}' then", "if false then"),
        test_what_was_written_in_a_life_that_is_over_is_not_of_the_new_one,
    ),
    "each site that lost to a delete is told": (
        (COLUMNS, "distinct on (p.key, p.loser) p.key", "distinct on (p.key) p.key"),
        test_every_site_that_lost_to_a_delete_is_told,
    ),
    "a column that is set to what it was is not written": (
        ("30_capture.sql", "case when row(o.%1$I)::record *<> row(t.%1$I)::record then %1$L end", "%1$L"),
        test_a_column_that_is_set_to_what_it_is_was_not_written,
    ),
    "a row that yields writes one column": (
        (
            "53_constraints.sql",
            "case when v_table.strategy <> 'lww' then array[r.column_name] end",
            "null",
        ),
        test_a_value_that_a_row_yields_leaves_its_other_columns,
    ),
    "a row that waits is merged on": (
        (
            "30_capture.sql",
            "when m.waits and %2$L <> all (m.above) then m.q%1$s else m.t%1$s end",
            "else m.t%1$s end",
        ),
        test_a_row_that_no_site_can_hold_waits_for_whoever_mends_it,
    ),
}


@pytest.mark.parametrize("rule", RULES)
async def test_a_rule_left_out_is_noticed(laboratory: Laboratory, pair: Pair, rule: str) -> None:
    change, test = RULES[rule]
    async with AsyncExitStack() as stack:

        async def broken(schema: str, *servers: Server) -> list[Site]:
            return await stack.enter_async_context(laboratory.sites(schema, *servers, changes=(change,)))

        with pytest.raises(AssertionError):
            await test(broken, (pair[0], pair[0]))
