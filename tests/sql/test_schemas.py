"""Schemas as real applications have them: what stands around the rows does not keep them from travelling."""

import asyncio

import asyncpg

from tests.sql.conftest import Pair, Sites
from tests.support.lab import ITEM, exchange, key, same

# ---- types that need something from elsewhere


async def test_types_of_extensions(sites: Sites, pair: Pair) -> None:
    schema = """create schema kinds; create extension hstore schema kinds; create extension citext schema kinds;
        create extension ltree schema kinds;
        create table item (id uuid primary key, h kinds.hstore, c kinds.citext unique, l kinds.ltree[], a kinds.hstore[])"""
    a, b = await sites(schema, *pair)
    await a.do(
        "set search_path = public, kinds",
        f"""insert into item values ('{key(1)}', 'a=>1, "b c"=>null, d=>""', 'Größe', '{{a.b,c}}', array['x=>y'::hstore, null])""",
        f"insert into item values ('{key(2)}')",
    )
    await exchange(a, b)
    assert len(await same("item", a, b)) == 2

    await b.do(f"update item set c = 'GRÖSSE' where id = '{key(1)}'")
    await exchange(a, b)
    await a.do(
        f"update item set c = null where id = '{key(1)}'",
        f"update item set c = 'GRÖSSE' where id = '{key(2)}'",
    )
    await exchange(a, b)
    await same("item", a, b)
    # equal to the type, not to its text
    await a.do(f"insert into item (id, c) values ('{key(3)}', 'Same')")
    await b.do(f"insert into item (id, c) values ('{key(4)}', 'sAME')")
    await exchange(a, b)
    assert await a.rows(
        "select c::text from item where id = any ($1::uuid[]) order by id", [key(3), key(4)]
    ) == [
        ("Same",),
        (None,),
    ]
    await same("item", a, b)


CHECKED = """create schema rules;
    create function rules.limit_of(text) returns int immutable language sql as 'select length($1) * 10';
    create function rules.fits(n int) returns boolean immutable language plpgsql as
        'begin if n > rules.limit_of(''abc'') then raise exception ''% is too much'', n; end if; return true; end';
    create operator rules.<<< (leftarg = int, rightarg = int, function = int4lt);
    create domain rules.small as int check (rules.fits(value)) check (value operator(rules.<<<) 1000);
    create table item (id uuid primary key, n rules.small, many rules.small[], note text check (length(note) < rules.limit_of('ab')))"""


async def test_domain_whose_check_calls_functions_and_operators(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CHECKED, *pair)
    await a.do(f"insert into item values ('{key(1)}', 30, '{{1,null,2}}', 'fine')")
    await exchange(a, b)
    await b.do("update item set n = 29, many = '{}'")
    await exchange(a, b)
    assert await same("item", a, b) == [f"({key(1)},29,{{}},fine)"]


async def test_a_check_that_raises_or_misses_what_it_calls_parks_its_row(sites: Sites, pair: Pair) -> None:
    # One row's trouble is not the batch's, whatever way its CHECK says no.
    a, b = await sites(CHECKED, *pair)
    await b.do(
        "create or replace function rules.limit_of(text) returns int immutable language sql as 'select 1'"
    )
    await a.do(
        f"insert into item (id, n) values ('{key(1)}', 1)",
        f"insert into item (id, n) values ('{key(2)}', 30)",
        f"insert into item (id, note) values ('{key(3)}', 'long')",
    )
    await exchange(a, b)
    assert sorted(state for _, state in await b.parked()) == ["23514", "P0001"]
    assert await b.rows("select n from item") == [(1,)]

    await b.do(
        "create or replace function rules.fits(n int) returns boolean immutable language plpgsql as"
        " 'begin return nowhere(n); end'"
    )
    await b.store.replica.retry_parked()
    assert sorted(state for _, state in await b.parked()) == ["42883", "42883"]
    await b.do(
        "create or replace function rules.fits(n int) returns boolean immutable language sql as 'select true'",
        "create or replace function rules.limit_of(text) returns int immutable language sql as 'select 30'",
    )
    await b.store.replica.retry_parked()
    await exchange(a, b)
    assert await b.parked() == []
    assert len(await same("item", a, b)) == 3


# ---- keys


async def test_primary_key_that_includes_other_columns(sites: Sites, pair: Pair) -> None:
    a, b = await sites(
        "create table item (id uuid, value int, note text, primary key (id) include (value, note))", *pair
    )
    assert await a.rows("select key_columns, derived from syncagent.replicated") == [(["id"], False)]
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await b.do("update item set value = 2")
    await exchange(a, b)
    assert await same("item", a, b) == [f"({key(1)},2,)"]


async def test_key_that_is_a_foreign_key(sites: Sites, pair: Pair) -> None:
    """Joined-table inheritance, as Django and SQLAlchemy make it."""
    schema = """create table page (id int primary key, title text);
        create table blog (page_id int primary key references page on delete cascade, body text);
        create table post (blog_id int primary key references blog on delete cascade on update cascade, day date)"""
    a, b = await sites(schema, *pair)
    await a.do("insert into page values (1, 'a'), (2, 'b')", "insert into blog values (1, 'x'), (2, 'y')")
    await a.do("insert into post values (1, '2024-01-01'), (2, '2024-01-02')")
    await exchange(a, b)
    await b.do("update post set day = '2025-01-01'; update page set title = title || '!'")
    await exchange(a, b)
    await a.do("delete from page where id = 1")
    await exchange(a, b)
    for table in ("page", "blog", "post"):
        assert len(await same(table, a, b)) == 1


async def test_foreign_keys_that_are_deferrable_cyclic_and_to_itself(sites: Sites, pair: Pair) -> None:
    schema = """create table team (id uuid primary key, lead uuid not null);
        create table person (id uuid primary key, team uuid not null references team deferrable initially deferred,
            boss uuid references person on delete set null);
        alter table team add foreign key (lead) references person deferrable initially deferred"""
    a, b = await sites(schema, *pair)
    await a.do(
        f"begin; insert into team values ('{key(1)}', '{key(2)}'); insert into person values ('{key(2)}', '{key(1)}', null),"
        f" ('{key(3)}', '{key(1)}', '{key(4)}'), ('{key(4)}', '{key(1)}', '{key(3)}'); commit"
    )
    await exchange(a, b)
    await b.do(f"delete from person where id = '{key(4)}'")
    await exchange(a, b)
    assert await same("person", a, b) == [f"({key(2)},{key(1)},)", f"({key(3)},{key(1)},)"]
    await a.do("begin; delete from person; delete from team; commit")
    await exchange(a, b)
    assert await same("team", a, b) == await same("person", a, b) == []


# ---- what the application has around its tables


async def test_triggers_of_the_application_do_not_fire_while_applying(sites: Sites, pair: Pair) -> None:
    """Those that raise, rewrite, delete, hide the row, or use names that only their own session knows."""
    schema = f"""{ITEM};
        create table audit (id uuid primary key default syncagent.uuid7(), what text);
        create function rewrite() returns trigger language plpgsql as 'begin new.value := new.value + 1; return new; end';
        create function note() returns trigger language plpgsql as 'begin insert into audit (what) values (tg_op); return null; end';
        create function forbid() returns trigger language plpgsql as
            'begin if current_setting(''app.strict'', true) = ''on'' then raise exception ''no''; end if; return coalesce(new, old); end';
        create trigger a before insert or update on item for each row execute function rewrite();
        create trigger b after insert or update or delete on item for each statement execute function note();
        create trigger c before insert or update or delete on item for each row execute function forbid()"""
    a, b = await sites(schema, *pair)
    await b.do(f"alter database {b.name} set app.strict = on")
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)", "update item set note = 'x'")
    await a.do(f"delete from item where id = '{key(2)}'")
    await exchange(a, b)
    assert await same("item", a, b) == [f"({key(1)},3,x)"]
    assert len(await same("audit", a, b)) == 3
    await b.do(f"alter database {b.name} reset app.strict")


async def test_row_level_security(sites: Sites, pair: Pair) -> None:
    """What a role may not see of a statement's rows is logged all the same, and applied."""
    schema = f"""{ITEM}; alter table item enable row level security; alter table item force row level security;
        create policy own on item using (note = current_user) with check (true)"""
    a, b = await sites(schema, *pair)
    a.server.create_role("tenant")
    await a.do("grant select, insert, update, delete on item to tenant")
    tenant = await a.session("tenant")
    await tenant.execute(f"insert into item values ('{key(1)}', 1, 'tenant'), ('{key(2)}', 2, 'somebody')")
    await exchange(a, b)
    await tenant.execute(
        "update item set value = value * 10; update item set note = 'gone'; delete from item"
    )
    await exchange(a, b)
    assert await same("item", a, b) == [f"({key(1)},10,gone)", f"({key(2)},2,somebody)"]
    await a.do("revoke all on item from tenant")


async def test_locks_queues_and_notifications(sites: Sites, pair: Pair) -> None:
    """A queue emptied by workers with SKIP LOCKED, under advisory locks, with LISTEN and NOTIFY."""
    a, b = await sites(ITEM, *pair)
    await a.do(*(f"insert into item values ('{key(n)}', {n})" for n in range(1, 21)))
    heard: list[str] = []
    listener = await a.session()
    await listener.add_listener("done", lambda *said: heard.append(said[3]))
    workers = [await a.session() for _ in range(3)]

    async def work(worker: asyncpg.Connection) -> None:
        while await worker.fetchval(
            "with mine as (select id from item where note is null order by id limit 1 for update skip locked),"
            " taken as (update item set note = 'done' from mine where item.id = mine.id returning item.id)"
            " select pg_notify('done', id::text) is not null and pg_try_advisory_xact_lock_shared(7) from taken"
        ):
            pass

    await asyncio.gather(*(work(worker) for worker in workers))
    await exchange(a, b)
    assert len(await same("item", a, b)) == 20
    assert await b.rows("select distinct note from item") == [("done",)]
    async with asyncio.timeout(10):
        while len(heard) < 20:
            await listener.execute("select")
