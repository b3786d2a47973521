"""Rows that break a constraint here: they wait, alone, and are not forgotten."""

import dataclasses

import asyncpg
import pytest
from msgspec.structs import replace

from syncagent.errors import DatabaseError
from tests.sql.conftest import Pair, Sites
from tests.support.lab import Site, exchange, key, same, ship

SCHEMA = """
    create domain positive as int check (value > 0);
    create table item (id uuid primary key, value int, note text, x positive)
"""
LOCAL = {
    "check": (
        "alter table item add constraint small check (value < 25 or note is not null)",
        "alter table item drop constraint small",
        "23514",
    ),
    "not null": (
        "alter table item alter note set not null",
        "alter table item alter note drop not null",
        "23502",
    ),
    "unique": ("create unique index only_one on item (value)", "drop index only_one", "23505"),
    "expression": (
        "create unique index only_one on item ((value / 10)) where note is null",
        "drop index only_one",
        "23505",
    ),
    "exclusion": (
        "alter table item add constraint apart exclude using btree (value with =)",
        "alter table item drop constraint apart",
        "23P01",
    ),
    "domain": (
        "alter domain positive add constraint small check (value < 10) not valid",
        "alter domain positive drop constraint small",
        "23514",
    ),
}
"""What only the receiver has: how it comes, how it goes, and its error."""
REPORT = """update syncagent.replicated set policies = '{"only_one": "report", "apart": "report", "item_value_key": "report", "item_x_key": "report"}'"""
"""Else one of the two rows would yield: tests/sql/test_unique.py."""


async def values(site: Site) -> list[int | None]:
    return [row[0] for row in await site.rows("select value from item order by id")]


@pytest.mark.parametrize("constraint", LOCAL)
async def test_only_the_offending_rows_are_parked(sites: Sites, pair: Pair, constraint: str) -> None:
    a, b = await sites(SCHEMA, *pair)
    comes, goes, state = LOCAL[constraint]
    await b.do(
        REPORT,
        comes,
        f"insert into item values ('{key(0)}', 25, {'null' if constraint == 'expression' else repr('b')}, 1)",
    )
    await a.do(
        f"insert into item select ('{key(9)[:-2]}' || n + 9)::uuid, n, 'a', 5 from generate_series(1, 20) n",
        f"insert into item values ('{key(2)}', 25, null, 25)",
    )

    applied = await ship(a, b)

    assert applied.parked == 1
    assert [(row["value"], error) for row, error in await b.parked()] == [(25, state)]
    assert len(await b.table("item")) == 21

    await b.do(goes)
    assert await b.store.replica.retry_parked() == 0
    await exchange(a, b)
    assert len(await same("item", a, b)) == 22


UNIQUE = "create table item (id uuid primary key, value int unique, note text)"


async def collide(a: Site, b: Site) -> None:
    """A's row of key 1 is parked at B, where key 2 has its value."""
    await b.do(REPORT)
    await b.do(f"insert into item values ('{key(2)}', 7, 'b')")
    await a.do(f"insert into item values ('{key(1)}', 7, 'a'), ('{key(3)}', 3, 'a')")
    await ship(a, b)
    assert [row[0]["value"] for row in await b.parked()] == [7]
    assert await values(b) == [7, 3]


async def test_parked_row_heals_when_the_value_is_free(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    await collide(a, b)

    await b.do("update item set value = 8 where note = 'b'")
    assert await b.store.replica.retry_parked() == 0
    await exchange(a, b)

    assert len(await same("item", a, b)) == 3
    await b.compact()
    assert await b.versions("item") == {}  # it was implicit, and is again


async def test_parked_row_heals_by_the_next_batch(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    await collide(a, b)

    await a.do(f"update item set value = 9 where id = '{key(1)}'")
    await exchange(a, b)

    assert await b.parked() == await a.parked() == []
    assert len(await same("item", a, b)) == 3


async def test_parked_row_is_deleted_at_its_origin(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    await collide(a, b)

    await a.do(f"delete from item where id = '{key(1)}'")
    await exchange(a, b)

    assert await b.parked() == []
    assert len(await same("item", a, b)) == 2


async def test_parked_update_keeps_the_row_as_it_was(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    await b.do(REPORT)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await b.do(f"insert into item values ('{key(2)}', 7)")
    await a.do("update item set value = 7")

    await ship(a, b)
    assert await values(b) == [1, 7]
    await b.do(f"delete from item where id = '{key(2)}'")
    await b.store.replica.retry_parked()
    await exchange(a, b)

    assert await values(a) == await values(b) == [7]


async def test_superseded_parked_row_leaves_a_conflict(sites: Sites, pair: Pair) -> None:
    # The application writes the row that it still sees; the parked version never shows.
    a, b = await sites(UNIQUE, *pair)
    await b.do(REPORT)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await b.do(f"insert into item values ('{key(2)}', 7)")
    await a.do("update item set value = 7")
    await ship(a, b)

    await b.do(f"update item set value = 5 where id = '{key(1)}'")
    assert await b.store.replica.retry_parked() == 0
    await exchange(a, b)

    assert await values(a) == await values(b) == [5, 7]
    assert await b.rows(
        "select kind, winning_image ->> 'value', losing_image ->> 'value' from syncagent.conflict_record"
    ) == [("parked", "5", "7")]


async def test_parked_row_superseded_by_an_older_batch(sites: Sites, pair: Pair) -> None:
    # What comes in loses against the local write that superseded the parked row: that row is not forgotten.
    a, b, c = await sites(UNIQUE, *pair, pair[0])
    await b.do(REPORT)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b, c)
    await c.do(f"update item set value = 3 where id = '{key(1)}'")
    await b.do(f"insert into item values ('{key(2)}', 7)")
    await a.do("update item set value = 7")
    await ship(a, b)
    await b.do(f"update item set value = 5 where id = '{key(1)}'")

    await ship(c, b)
    await b.store.replica.retry_parked()

    lost = await b.rows("select kind, losing_image ->> 'value' from syncagent.conflict_record order by 2")
    assert ("parked", "7") in lost
    assert ("update/update", "3") in lost


async def test_parked_work_does_not_poison_what_comes_next(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    settings = "select name, setting from pg_settings order by name"
    session = b.store.replica._session
    before = await session.fetch(settings)
    await collide(a, b)

    await a.do(
        f"insert into item values ('{key(4)}', 4)", f"update item set note = 'x' where id = '{key(3)}'"
    )
    applied = await ship(a, b)
    await b.store.replica.retry_parked()

    assert (applied.taken, applied.parked) == (2, 0)
    assert len(await b.parked()) == 1
    assert await session.fetch(settings) == before
    assert not session.is_in_transaction()


async def test_two_parked_rows_that_free_each_other(sites: Sites, pair: Pair) -> None:
    a, b = await sites(UNIQUE, *pair)
    await b.do(REPORT)
    await b.do(f"insert into item values ('{key(8)}', 1), ('{key(9)}', 2)")
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")
    await ship(a, b)
    assert len(await b.parked()) == 2
    await a.do(f"update item set value = value + 10 where id = '{key(1)}'")
    await ship(a, b)
    assert len(await b.parked()) == 1

    await b.do(f"delete from item where id in ('{key(8)}', '{key(9)}')")
    assert await b.store.replica.retry_parked() == 0
    await exchange(a, b)

    assert await values(a) == await values(b) == [11, 2]


async def test_columns_named_like_our_aliases_are_parked_whole(sites: Sites, pair: Pair) -> None:
    schema = "create table item (id uuid primary key, x int unique, t text, s int[], key text, d jsonb)"
    a, b = await sites(schema, *pair)
    await b.do(REPORT)
    await b.do(f"insert into item values ('{key(2)}', 7)")
    await a.do(f"""insert into item values ('{key(1)}', 7, 'a, "b"', '{{1,null}}', '', '{{"k": [1]}}')""")
    await ship(a, b)

    await b.do("update item set x = 8")
    assert await b.store.replica.retry_parked() == 0
    await exchange(a, b)

    await same("item", a, b)


async def test_a_batch_with_a_row_twice_is_refused_and_not_for_ever(sites: Sites, pair: Pair) -> None:
    """No origin makes one. There is no row to park, and nothing may hang."""
    a, b = await sites(SCHEMA, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await ship(a, b)
    await a.do(f"delete from item where id = '{key(1)}'")
    batch = await a.batch(b, plain=False)
    for data in [data async for data in batch.spool.read(0)]:
        await batch.spool.write(1, data)
    twice = replace(batch.header, streams=batch.header.streams * 2)
    with pytest.raises(DatabaseError, match="no row of it is at fault"):
        await b.apply(dataclasses.replace(batch, header=twice))
    assert await values(b) == [1]
    await b.apply(await a.batch(b, plain=False))
    assert await values(b) == []


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("key_of", ["id uuid primary key", "id text", "id text, part int"])
async def test_a_parked_version_is_given_up_everywhere(
    sites: Sites, pair: Pair, was_there: bool, key_of: str
) -> None:
    columns = (
        key_of.replace(" primary key", "")
        .replace("uuid", "")
        .replace("text", "")
        .replace("int", "")
        .split(",")
    )
    names = ", ".join(name.strip() for name in columns)
    a, b = await sites(
        f"create table item ({key_of.replace(' primary key', '')}, value int, primary key ({names}))", *pair
    )
    one = f"'{key(1)}'" if len(columns) == 1 else f"'{key(1)}', 7"
    await b.do("alter table item add constraint small check (value < 10)")
    if was_there:
        await a.do(f"insert into item values ({one}, 1)")
        await exchange(a, b)
        await a.do("update item set value = 20")
    else:
        await a.do(f"insert into item values ({one}, 20)")
    assert (await ship(a, b)).parked == 1
    (text,) = (await b.rows("select key from syncagent.parked"))[0]
    (conflict,) = (await b.rows("select syncagent.drop_parked('item', $1)", text))[0]
    with pytest.raises(asyncpg.PostgresError, match="is not parked"):
        await b.rows("select syncagent.drop_parked('item', $1)", text)
    await exchange(a, b)
    assert await b.parked() == []
    assert await values(a) == await values(b) == ([1] if was_there else [])
    kept = await b.rows("select id, kind, winner, loser, losing_image ->> 'value' from syncagent.conflict")
    assert kept == [(conflict, "parked", "site2", "site1", "20")]
