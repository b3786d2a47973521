"""DDL that somebody types by hand at one site: what is found, what is refused, what rows do meanwhile, and how all sites come to it."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from syncagent.core import schema as schemas
from syncagent.core.schema import Open
from syncagent.errors import DatabaseError, RefusedError
from syncagent.storage import blueprint as blueprints
from syncagent.storage import drift
from syncagent.storage.commands import connected
from syncagent.storage.schema import adopting, planning, typed, versions
from syncagent.storage.schema.planning import Plan
from syncagent.storage.schema.versions import Asked
from tests.sql.conftest import Pair, Sites
from tests.sql.test_schema_changes import Fleet
from tests.support.databases import Database
from tests.support.dumps import dumped
from tests.support.lab import Site, exchange, key, same, ship
from tests.support.postgres import Servers
from tests.support.waiting import eventually

SCHEMA = """
    create table item (id uuid primary key, value int, note text, code varchar(20), x numeric(6, 2) default 1,
                       constraint known check (value < 1000));
    create index item_note on item (note);
    create table part (id uuid primary key, item uuid, name varchar(20));
"""


def look(site: Site) -> list[str]:
    """As the agent looks; what there is then."""
    with connected(site.dsn) as connection:
        typed.note(connection)
        return [f"{one['table_name']}: {one['what']}" for one in typed.listed(connection)]


def join(site: Site) -> None:
    """What a site that is to give its copy is asked first."""
    with connected(site.dsn) as connection:
        blueprints.refuse_typed(connection)


def planned(site: Site, *tables: str) -> Plan:
    with connected(site.dsn) as connection:
        typed.note(connection)
        found = adopting.begin(adopting.parts(connection, tables))
        return adopting.plan(connection, found, "typed here", patience=5)


async def adopt(fleet: Fleet, site: Site) -> schemas.Change:
    """Opens the change that carries what was typed at the site."""
    found = await asyncio.to_thread(planned, site)
    assert not found.refusals, found.refusals
    change = planning.change_of(found, at=0, site="site1", role=None, path="public", auto=True)
    fleet.tell(Open(change))
    for one in fleet.sites:
        await one.do(
            f"insert into syncagent.schema_record values (0, '{change.id}', '', 'open', null, '', now(), 0, 0, 0, '{{}}', '')"
            " on conflict (place) do update set state = 'open'"
        )
    return change


async def finish(fleet: Fleet) -> None:
    """Let go what is left of a change, and close it."""
    while fleet.let_go():
        await fleet.follow(*fleet.sites)
    for one in fleet.sites:
        await one.do("update syncagent.schema_record set state = 'done'")


def restore(site: Site, database: Database) -> Database:
    """What pg_dump says of a site, in another database."""
    tool = site.server.binaries.tool
    script = subprocess.run(
        [tool("pg_dump"), "--dbname", site.dsn], check=True, capture_output=True, text=True
    ).stdout
    psql: list[str | Path] = [
        tool("psql"),
        "--quiet",
        "--no-psqlrc",
        "--set",
        "ON_ERROR_STOP=1",
        "--dbname",
        database.dsn,
    ]
    subprocess.run(psql, input=script, check=True, capture_output=True, text=True)
    return database


async def conflicts(site: Site) -> list[Any]:
    return [
        (json.loads(image),) for (image,) in await site.rows("select losing_image from syncagent.conflict")
    ]


async def test_a_column_that_one_site_has_is_adopted_with_what_is_in_it(sites: Sites, pair: Pair) -> None:
    """Rows flow meanwhile, without it; then all sites have it, and what was put into it here, and a newer row wins whole."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do("insert into item (id, value) select syncagent.uuid7(), n from generate_series(1, 20) as n")
    await exchange(a, b)
    await a.do("alter table item add column size int default 7", "update item set size = 5 where value = 1")
    await b.do(
        "update item set note = 'of b' where value = 2",
        "insert into item (id, value) values (syncagent.uuid7(), 21)",
    )
    await exchange(a, b)
    await ship(b, a)
    assert await a.rows("select size, note from item where value in (1, 2, 21) order by value") == [
        (5, None), (7, "of b"), (7, None),
    ]  # fmt: skip
    assert await asyncio.to_thread(look, a) == ["public.item: column size was added: integer default 7"]
    assert await asyncio.to_thread(look, b) == []
    await b.do("update item set note = 'later' where value = 1")
    await adopt(fleet, a)
    await finish(fleet)
    assert [await asyncio.to_thread(look, one) for one in (a, b)] == [[], []]
    assert await b.one("select count(*) from item where size = 7") == 21
    await exchange(a, b)
    await same("item", a, b)
    assert await b.rows("select size from item where value = 1") == [(5,)]
    assert (await a.batch(b)).header.rows == 0
    assert [image["note"] for (image,) in await conflicts(b)] == ["later"], "what yields is kept"
    assert dumped(
        Database(a.server, a.name), max((a.server, b.server), key=lambda s: s.binaries.major)
    ) == dumped(Database(b.server, b.name), max((a.server, b.server), key=lambda s: s.binaries.major))


@pytest.mark.soak(only="many steps")
async def test_all_that_can_be_carried_is_and_ends_equal(sites: Sites, pair: Pair) -> None:
    """Whatever was typed, also where another site has typed the same meanwhile; rows that could not flow do again."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do("insert into item (id, value) select syncagent.uuid7(), n from generate_series(1, 20) as n")
    await exchange(a, b)
    await a.do(
        "alter table item drop column x",
        "update item set code = 'kept' where value = 1",
        "alter table item rename column note to remark",
        "alter table item alter column code type varchar(40), alter column code set default 'none'",
        "alter table item alter column value set not null",
        "alter table item add column size int not null default 3, add column half numeric generated always as (value / 2.0) stored",
        "alter table item drop constraint known, add constraint one unique (value), add constraint small check (size < 100)",
        "drop index item_note",
        "create index item_size on item (size)",
        "alter table part rename to piece",
    )
    await b.do(
        "alter table item add column size int not null default 3", "update item set size = 4 where value = 2"
    )
    with pytest.raises(DatabaseError, match="does not exist"):
        await ship(a, b)
    assert [step.step.phase for step in (await asyncio.to_thread(planned, a)).steps][:2] == ["contract"] * 2
    await adopt(fleet, a)
    await finish(fleet)
    await exchange(a, b)
    assert await b.one("select code from item where value = 1") == "kept", "rows flow again"
    await adopt(fleet, a)
    await finish(fleet)
    assert [await asyncio.to_thread(look, one) for one in (a, b)] == [[], []]
    await exchange(a, b)
    assert len(await same("item", a, b)) == 20
    assert await a.rows("select value, size, code from item where value < 3 order by value") == [
        (1, 3, "kept"),
        (2, 4, None),
    ]
    newest = max((a.server, b.server), key=lambda server: server.binaries.major)
    assert dumped(Database(a.server, a.name), newest) == dumped(Database(b.server, b.name), newest)
    for one in (a, b):
        with connected(one.dsn) as connection:
            assert drift.drift(connection, by_hand=True) == []


@pytest.mark.soak(only="many steps")
async def test_taken_back_it_stays_where_it_was_typed(sites: Sites, pair: Pair) -> None:
    """What one site had before the change it has after its end, with what is in it; no other site has it, and rows flow."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do("insert into item (id, value) select syncagent.uuid7(), n from generate_series(1, 20) as n")
    await exchange(a, b)
    await a.do(
        "alter table item add column size int, add constraint one unique (value)",
        "update item set size = value",
    )
    before = await asyncio.to_thread(look, a)
    await adopt(fleet, a)
    while fleet.schema.open and fleet.schema.open.ahead:
        fleet.let_go()
        await fleet.follow(a, b)
    assert await asyncio.to_thread(look, a) == [], "it is the change's now"
    await exchange(a, b)
    assert await b.one("select sum(size) from item") == 210
    fleet.take_back()
    await finish(fleet)
    assert (await asyncio.to_thread(look, a), await asyncio.to_thread(look, b)) == (before, [])
    assert await a.one("select sum(size) from item") == 210
    await a.do("update item set size = 0, note = 'after' where value = 3")
    await b.do("update item set note = 'of b' where value = 4")
    await exchange(a, b)
    for one in (a, b):
        assert await one.rows("select value from item where note is not null order by 1") == [(3,), (4,)]
    columns = "select columns::text[] from syncagent.replicated where table_name = 'item'"
    assert await a.one(columns) == await b.one(columns)


async def test_other_changes_leave_it_out_or_wait_for_it(sites: Sites, pair: Pair) -> None:
    """A change of the same table does not let the column of one site travel; a table that lacks a column cannot follow, until it has it."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(b, a)
    await a.do("alter table item add column size int default 7")
    await fleet.carry("alter table item add column tag text; create index item_value on item (value)")
    assert await asyncio.to_thread(look, a) == ["public.item: column size was added: integer default 7"]
    await a.do("insert into item (id, size, tag) values (syncagent.uuid7(), 5, 'of a')")
    await exchange(a, b)
    assert await b.rows("select tag from item") == [("of a",)]

    await a.do("alter table part drop column name")
    await fleet.open("alter table part add column late int")
    fleet.let_go()
    with pytest.raises(RefusedError, match="was changed by hand here"):
        await fleet.follow(a)
    await a.do("alter table part add column name varchar(20)")
    await fleet.follow(a, b)
    await b.do("insert into part (id, name, late) values (syncagent.uuid7(), 'n', 1)")
    await exchange(a, b)
    await same("part", a, b)
    assert len(await asyncio.to_thread(look, a)) == 1


async def test_what_cannot_be_carried_says_how_to_take_it_back(sites: Sites, pair: Pair) -> None:
    a, _ = await sites(SCHEMA, *pair)
    await a.do(
        "alter table item alter column note type uuid using null",
        "alter table item add column at timestamptz default clock_timestamp()",
        "alter table item drop constraint known, add constraint known check (value < 9)",
        "alter table part drop constraint part_pkey",
    )
    refused = 0
    while await asyncio.to_thread(look, a):
        found = await asyncio.to_thread(planned, a)
        assert not found.steps
        for refusal in found.refusals:
            back = refusal.form.removeprefix("take it back: ").partition("; then, ")[0]
            await a.do(*back.split("; "))
            refused += 1
    assert refused == 4
    await a.do(
        "create table other (id int)", "create temp table item (id int)", "alter table pg_temp.item add x int"
    )
    assert await asyncio.to_thread(look, a) == []


async def test_versions_of_the_application_beside_what_was_typed(
    sites: Sites, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere their views are taken along; what they show is not dropped before them; and one whose schema somebody has dropped goes, too."""
    monkeypatch.setattr(versions, "_LOOKS", 1)
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await fleet.carry("alter table part add column late int", Asked("app_v1", "app_v2"))
    await a.do("drop schema app_v1, app_v2 cascade", "alter table item alter column code type varchar(40)")
    await adopt(fleet, a)
    await finish(fleet)
    length = "select format_type(atttypid, atttypmod) from pg_attribute where attrelid = 'app_v1.item'::regclass and attname = 'code'"
    assert await b.one(length) == "character varying(40)"

    await a.do("alter table item drop column x", "drop table part")
    refused = await asyncio.to_thread(planned, a)
    assert (len(refused.refusals), refused.steps) == (2, ())
    for name in ("app_v1", "app_v2"):
        assert all(f"syncagent schema drop-version {name}" in one.form for one in refused.refusals)
        fleet.tell(
            Open(
                planning.change_of(
                    planning.of_drop(name), at=0, site="site1", role=None, path="public", auto=True
                )
            )
        )
        while fleet.let_go():
            await fleet.follow(a, b)
    await adopt(fleet, a)
    await finish(fleet)
    assert await b.one("select to_regclass('part')") is None
    await b.do(f"insert into item (id, value) values ('{key(1)}', 1)")
    await exchange(a, b)
    assert len(await same("item", a, b)) == 1


async def test_by_column_only_what_was_put_into_it_is_written(sites: Sites, pair: Pair) -> None:
    """What others write meanwhile is joined: the row goes on living."""
    schema = 'create table item (id uuid primary key, value int not null, note text); comment on table item is \'merge {"value": "counter"}\''
    a, b = await sites(schema, *pair)
    fleet = Fleet(a, b)
    await a.do(f"insert into item values ('{key(1)}', 10)")
    await exchange(a, b)
    await a.do("alter table item add column size int", "update item set size = 5")
    await exchange(a, b)
    await b.do("update item set value = value + 3, note = 'of b'")
    await adopt(fleet, a)
    await finish(fleet)
    await exchange(a, b)
    await same("item", a, b)
    assert await a.rows("select value, note, size from item") == [(13, "of b", 5)]


async def test_only_what_the_step_has_made_is_agreed(sites: Sites, pair: Pair) -> None:
    """Not what somebody types in another table meanwhile, nor an index whose name begins alike; but the words in which others name it."""
    (a,) = await sites(SCHEMA, pair[0])
    fleet = Fleet(a)
    await fleet.carry("alter table part add constraint of_item foreign key (item) references item (id)")
    await a.do("create index item_v on item (value)")
    assert len(await asyncio.to_thread(look, a)) == 1
    await fleet.carry("create index item_value on item (value)")
    assert await a.rows("select name from syncagent.typed_change") == [("item_v",)]
    await fleet.carry("drop index item_note; alter table item rename to thing")
    assert [what.partition(" was")[0] for what in await asyncio.to_thread(look, a)] == [
        "public.thing: index item_v"
    ]
    await a.do("alter table part add column mine int", "select syncagent._shape_follow(null)")
    assert len(await asyncio.to_thread(look, a)) == 2


async def test_an_index_that_is_there_is_the_one_that_was_asked_for(sites: Sites, pair: Pair) -> None:
    """Else the step says so; and one that is made again after a crash is found, also where it is made by taking a step back."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await b.do("create index item_value on item (note) where value > 3")
    await fleet.open("create index item_value on item (value, lower(note)); drop index item_note")
    fleet.let_go()
    await fleet.follow(a)
    with pytest.raises(RefusedError, match=r"another one: CREATE INDEX item_value .*\(note\)"):
        await fleet.follow(b)
    await b.do("drop index item_value", "create index item_value on item (value, lower(note))")
    await fleet.follow(b)
    fleet.let_go()
    await fleet.follow(a, b)
    fleet.take_back()
    await b.do("create index item_note on item (note)")
    await finish(fleet)
    assert [await asyncio.to_thread(look, one) for one in (a, b)] == [[], []]
    indexes = "select string_agg(indexname, ' ' order by indexname) from pg_indexes where tablename = 'item'"
    assert await a.one(indexes) == await b.one(indexes) == "item_note item_pkey"


async def test_an_index_that_is_being_made_is_not_there_yet(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(SCHEMA, pair[0])
    holder = await a.holding(f"insert into item (id) values ('{key(1)}')")
    maker = await a.session()
    making = asyncio.create_task(maker.execute("create index concurrently item_value on item (value)"))
    await eventually(
        lambda: a.one("select exists (select from pg_index where not indisvalid)"), "it is begun"
    )
    assert await asyncio.to_thread(look, a) == []
    await holder.execute("rollback")
    await making
    assert len(await asyncio.to_thread(look, a)) == 1


async def test_a_site_does_not_join_at_one_with_other_rules(sites: Sites, pair: Pair) -> None:
    """What is asked of rows there must be asked of them everywhere. An index that only reads is a site's own."""
    (a,) = await sites(SCHEMA, pair[0])
    await a.do("create index other on item (value)", "drop index item_note")
    await asyncio.to_thread(join, a)
    for typed_there, back in (
        ("alter table item add constraint small check (value < 9)", "alter table item drop constraint small"),
        ("create unique index one on item (value)", "drop index one"),
        ("alter table item drop constraint known", "select"),
    ):
        await a.do(typed_there)
        with pytest.raises(RefusedError, match="by hand at the site that is to give its copy"):
            await asyncio.to_thread(join, a)
        await a.do(back)


async def test_the_event_trigger_sees_who_typed_what(sites: Sites, pair: Pair, servers: Servers) -> None:
    """Role, statement and time; or it refuses; and nothing that goes wrong in it stops an application."""
    a, _ = await sites(SCHEMA, *pair)
    a.server.create_role("typist")
    await a.do("alter table item owner to typist", "grant create on schema public to typist")
    typist = await a.session("typist")
    assert not await typist.fetchval("select has_function_privilege('syncagent.watch_ddl()', 'execute')")
    await a.do("create role plain login", "grant execute on function syncagent.watch_ddl() to plain")
    await a.do("set role plain")
    assert await a.one("select syncagent.watch_ddl()") is False
    await a.do("reset role")
    assert await a.one("select syncagent.watch_ddl()") is True
    assert await a.one("select syncagent.watch_ddl()") is True, "again"

    await typist.execute(
        "alter table item add column size int; create temp table mine (id int); drop table mine"
    )
    await typist.execute("create index item_size on item (size) ;")
    await typist.execute("alter table item set (fillfactor = 90)")
    assert await a.rows("select table_name, what, role, statement from syncagent.typed_change") == [
        ("public.item", "column size was added: integer", "typist", None),
        ("public.item", "index item_size was added: CREATE INDEX item_size ON public.item USING btree (size)", "typist",
         "create index item_size on item (size) ;"),
    ], "of a script nothing is kept: whatever else is in it is not ours"  # fmt: skip
    await typist.execute("drop index item_size; alter table item drop column size")
    assert await a.rows("select * from syncagent.typed_change") == []

    await a.do("insert into syncagent.typed_rule (refuse) values (true)")
    for statement in (
        "alter table item add column size int",
        "alter table item rename column note to remark",
        "drop table item cascade",
        "drop index item_note",
        "create index on item (value)",
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await typist.execute(statement)
        assert refused.value.sqlstate == "SA005"
        assert "syncagent schema apply" in str(refused.value.hint)
    for statement in (
        "create index concurrently item_value on item (value)",
        "drop index concurrently item_note",
    ):
        with pytest.raises(asyncpg.PostgresError, match=r"was (added|dropped)") as refused:
            await typist.execute(statement)
        assert "which is not valid, and how to drop it" in str(refused.value.hint)
    assert sorted(await asyncio.to_thread(look, a)) == [
        "public.item: index item_note is not valid any more",
        "public.item: index item_value was added: CREATE INDEX item_value ON public.item USING btree (value), which is not valid",
    ], "what the server leaves is shown"
    for back in [refusal.form for refusal in (await asyncio.to_thread(planned, a)).refusals]:
        await a.do(
            "set syncagent.step = on",
            *back.removeprefix("take it back: ").split("; "),
            "reset syncagent.step",
        )
    assert await asyncio.to_thread(look, a) == []
    await typist.execute("create table own (id int); alter table own add column x int; drop table own")
    await typist.execute("alter table item set (fillfactor = 80); comment on table item is 'as ever'")
    await Fleet(a).carry("alter table item add column size int; create index item_size on item (size)")

    await a.do("alter table syncagent.typed_record rename to broken")
    await typist.execute("alter table item add column goes int")
    await a.do("alter table syncagent.broken rename to typed_record")
    assert await asyncio.to_thread(look, a) == ["public.item: column goes was added: integer"]
    await typist.execute("alter table item drop column goes"), "what is taken back is not refused"
    assert await asyncio.to_thread(look, a) == []
    await a.do("drop owned by plain", "drop role plain")
    with connected(a.dsn) as connection, connection.transaction(force_rollback=True):
        connection.execute("drop schema syncagent cascade")
        assert connection.execute("select from pg_event_trigger").rowcount == 0
    await a.do("drop event trigger syncagent_ddl", "drop event trigger syncagent_drop")


@pytest.mark.soak(only="a database more")
async def test_a_dump_brings_back_what_was_agreed_and_what_was_typed(
    sites: Sites, pair: Pair, make_database: Callable[..., Database]
) -> None:
    """Columns have other places in a restored database; that is nothing that somebody has typed."""
    a, _ = await sites(SCHEMA, *pair)
    await Fleet(a).carry("alter table item drop column value")
    await a.do("select syncagent.watch_ddl()", "alter table item add column size int")
    restored = await asyncio.to_thread(restore, a, make_database(a.server))
    what = "select what from syncagent.typed_change"
    assert restored.execute(what) == [("column size was added: integer",)]
    restored.execute("alter table item drop column size, alter column code set default 'x'")
    assert restored.execute(what) == [
        (
            "column code is character varying(20) default 'x'::character varying, and was character varying(20)",
        )
    ]
    await a.do("drop event trigger syncagent_ddl", "drop event trigger syncagent_drop")
