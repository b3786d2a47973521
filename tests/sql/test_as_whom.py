"""As whom a schema change's statements run: an ordinary role, which may do what it may do with its tables, and nothing with what is ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import psycopg

from tests.sql.conftest import Pair, Sites
from tests.sql.test_schema_changes import Fleet
from tests.sql.test_typed import SCHEMA, adopt, finish, look, planned
from tests.support.lab import Site, key

OWN = """
    create function own() returns int language plpgsql immutable as
        $$ begin if current_user <> 'keeper' then raise exception 'computed as %', current_user; end if; return 5; end $$
"""
CHANGE = """
    alter table item add column size int default own();
    alter table item add constraint positive check (value > 0 and own() = 5);
    create index item_value on item (value);
    -- down: code_new::varchar(20)
    alter table item alter column code type int using code::int + own();
    create table visit (id uuid primary key, at timestamptz default now());
    drop table part;
"""


@contextlib.asynccontextmanager
async def kept(kept_sites: Sequence[Site]) -> AsyncIterator[None]:
    """The tables are a role's that is no superuser."""
    for site in kept_sites:
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            site.server.create_role("keeper")
        await site.do(
            OWN,
            *(f"alter table {table} owner to keeper" for table in ("item", "part")),
            "grant create on schema public to keeper",
            "grant create on database " + site.name + " to keeper",
        )
    try:
        yield
    finally:
        for site in kept_sites:
            await site.do("reassign owned by keeper to postgres", "drop owned by keeper")


async def test_a_change_is_carried_as_the_role_that_owns_the_tables(
    sites: Sites, pair: Pair, runs: Callable[[int, int], int]
) -> None:
    """Tried, looked at, built beside writes, filled, dropped; and with `--soak` taken back before."""
    (a,) = await sites(SCHEMA, pair[0])
    async with kept((a,)):
        fleet = Fleet(a, role="keeper")
        await a.do(f"insert into item values ('{key(1)}', 1, null, '12')")
        if runs(0, 1):
            await fleet.open(CHANGE)
            while fleet.schema.open and not fleet.schema.open.ahead[0].contracts:
                fleet.let_go()
                await fleet.follow(a)
            fleet.take_back()
            while fleet.let_go():
                await fleet.follow(a)
            assert await a.one("select to_regclass('visit')") is None
        await fleet.carry(CHANGE)
        assert await a.table("item") == ["(01900000-0000-7000-8000-000000000001,1,,1.00,5,17)"]
        assert (
            await a.one("select pg_get_userbyid(relowner) from pg_class where relname = 'visit'") == "keeper"
        )
        assert await asyncio.to_thread(look, a) == []


async def test_what_was_typed_is_computed_as_the_owner_of_the_table(sites: Sites, pair: Pair) -> None:
    """Not as the agent, which may be a superuser: whoever owns a table writes what its default calls."""
    a, b = await sites(SCHEMA, *pair)
    async with kept((a, b)):
        fleet = Fleet(a, b)
        keeper = await a.session("keeper")
        await keeper.execute(
            "alter table item add column size int default own(), add constraint small check (value < own() * 9)"
        )
        assert (await asyncio.to_thread(planned, a)).refusals == ()
        await adopt(fleet, a)
        await finish(fleet)
        await b.do(f"set role keeper; insert into item (id, value) values ('{key(1)}', 1); reset role")
        assert await b.rows("select size from item") == [(5,)]
        for site in (a, b):
            assert await asyncio.to_thread(look, site) == []
