"""Two versions of an application at once, each through its schema of views: what one writes the other reads, at every site."""

import asyncio

import pytest

from syncagent.core.batch import Table
from syncagent.core.schema import Shown, Version
from syncagent.errors import RefusedError, UsageError
from syncagent.storage import blueprint as blueprints
from syncagent.storage.commands import connected
from syncagent.storage.schema import versions
from syncagent.storage.schema.versions import Asked
from tests.sql.conftest import Pair, Sites
from tests.sql.test_schema_changes import Fleet
from tests.support.databases import Database
from tests.support.dumps import dumped
from tests.support.lab import Row, Site, exchange, key, same

SCHEMA = """
    create table person (id uuid primary key, name text not null, born text, city text default 'Berlin', note text, code varchar(10));
    create table visit (id uuid primary key, person uuid references person on delete cascade, days int not null default 1 check (days > 0));
    create unique index on person (code);
    comment on table person is 'lww';
    comment on column person.note is 'free text';
    grant select, insert, delete, update (name, note) on person to pg_monitor with grant option;
    grant select on visit to public;
"""
CHANGE = """
    -- up: split_part(name, ' ', 1)
    alter table person add column first text not null;
    -- up: split_part(name, ' ', 2)
    alter table person add column last text not null;
    -- down: first || ' ' || last
    alter table person drop column name;
    -- down: born_new::text
    alter table person alter column born type int using born::int;
    alter table person drop column city;
    alter table person add column vip boolean not null default false;
    alter table person rename column note to remark;
    alter table visit rename to stay;
"""
TWO = Asked("app_v1", "app_v2")
OLD = "name, born, city, note"
NEW = "first, last, born, remark, vip"


async def at(site: Site, version: str, *statements: str) -> list[Row]:
    """What a version of the application does there; the answer of its last statement."""
    await site.do(f"set search_path = {version}, public")
    try:
        found: list[Row] = []
        for statement in statements:
            found = await site.rows(statement)
        return found
    finally:
        await site.do("reset search_path")


async def let_go_until(fleet: Fleet, what: str) -> None:
    """All sites do the steps before the first whose words begin so."""
    change = fleet.schema.open
    assert change is not None
    while not change.ahead[0].what.startswith(what):
        assert fleet.let_go()
        await fleet.follow(*fleet.sites)
        change = fleet.schema.open
        assert change is not None


async def test_both_versions_write_at_all_sites(sites: Sites, pair: Pair) -> None:
    """Split, retyped, renamed, dropped, added: whoever writes, both see it; and no site differs, in rows or in what pg_dump says."""
    a, b = await sites(SCHEMA, pair[1], pair[1])
    fleet = Fleet(a, b)
    await a.do(f"insert into person values ('{key(1)}', 'Ada Lovelace', '1815', 'London', 'counts', 'a')")
    await exchange(a, b)
    await fleet.open(CHANGE, TWO)
    fleet.let_go()
    await fleet.follow(a)
    await at(a, "app_v1", f"insert into person (id, name) values ('{key(2)}', 'Alan Turing')")
    await b.do(f"update person set born = '1816' where id = '{key(1)}'")
    await let_go_until(fleet, "who still uses")
    await exchange(a, b)
    two = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname ~ '^app_' and c.relkind = 'v'"
    assert await a.one(two) == await b.one(two) == 4

    for site, other in ((a, b), (b, a)):
        n = site.node
        assert await at(
            site,
            "app_v1",
            f"insert into person (id, name, born) values ('{key(10 * n)}', 'Grace Hopper', '1906') returning {OLD}",
        ) == [("Grace Hopper", "1906", "Berlin", None)]
        assert await at(
            site,
            "app_v2",
            f"insert into person (id, first, last, born) values ('{key(10 * n + 1)}', 'Mary', 'Shaw', 1943) returning {NEW}",
        ) == [("Mary", "Shaw", 1943, None, False)]
        await exchange(site, other)
        assert await at(other, "app_v2", f"select {NEW} from person where id = '{key(10 * n)}'") == [
            ("Grace", "Hopper", 1906, None, False)
        ]
        assert await at(other, "app_v1", f"select {OLD} from person where id = '{key(10 * n + 1)}'") == [
            ("Mary Shaw", "1943", "Berlin", None)
        ]
        # changed by the version that did not write it
        await at(
            other,
            "app_v2",
            f"update person set last = 'Murray', remark = 'new' where id = '{key(10 * n)}'",
            f"insert into stay (id, person) values ('{key(100 * n)}', '{key(10 * n)}')",
        )
        assert await at(
            other,
            "app_v1",
            f"update person set name = 'Mary Ann', born = '1944' where id = '{key(10 * n + 1)}' returning {OLD}",
        ) == [("Mary Ann", "1944", "Berlin", None)]
        await exchange(site, other)
        assert await at(site, "app_v1", f"select {OLD} from person where id = '{key(10 * n)}'") == [
            ("Grace Murray", "1906", "Berlin", "new")
        ]
        assert await at(site, "app_v2", f"select {NEW} from person where id = '{key(10 * n + 1)}'") == [
            ("Mary", "Ann", 1944, None, False)
        ]
        assert await at(site, "app_v1", f"select days from visit where person = '{key(10 * n)}'") == [(1,)]

    # on conflict, by a column that has another name; what the new version says stays when the old one writes something else
    await at(
        a,
        "app_v2",
        f"insert into person (id, first, last, code, remark) values ('{key(5)}', 'Jo', 'van Dyke', 'x', 'one')",
    )
    await at(a, "app_v1", f"update person set note = 'two' where id = '{key(5)}'")
    assert await at(
        a,
        "app_v2",
        f"insert into person (id, first, last, code, remark) values ('{key(6)}', 'Jo', 'B', 'x', 'three')"
        " on conflict (code) do update set remark = person.remark || excluded.remark returning last, remark",
    ) == [("van Dyke", "twothree")]
    with pytest.raises(Exception, match="violates check constraint"):
        await at(b, "app_v2", f"insert into stay values ('{key(7)}', null, 0)")
    with pytest.raises(Exception, match="null value in column"):
        await at(b, "app_v2", f"insert into person (id, last) values ('{key(7)}', 'B')")
    await at(b, "app_v2", f"delete from person where id = '{key(20)}'")
    assert await at(b, "app_v1", f"select count(*) from visit where person = '{key(20)}'") == [(0,)]
    assert await b.one("select count(*) from syncagent.replicated") == 2, "views are captured by nobody"

    while fleet.let_go():
        await fleet.follow(a, b)
    await exchange(a, b)
    assert len(await same("person", a, b)) == 6
    await same("stay", a, b)
    assert await at(b, "app_v2", "select first, last, remark from person where code = 'x'") == [
        ("Jo", "van Dyke", "twothree")
    ]
    here, there = (dumped(Database(site.server, site.name)) for site in (a, b))
    assert here == there
    assert await a.rows("select name::text from syncagent.app_version") == [("app_v2",)]
    assert await a.rows("select proname from pg_proc where proname ~ '^both_'") == []
    assert await a.one("select string_agg(column_name, ' ' order by ordinal_position) from information_schema.columns"
                       " where (table_schema, table_name) = ('public', 'person')") == "id remark code first last born vip"  # fmt: skip


async def test_rights_comments_and_row_security_are_the_tables(sites: Sites, pair: Pair) -> None:
    """A column that has another name keeps who may write it; a policy holds through the view, or there is none."""
    policy = "create policy mine on person to pg_monitor using (city = 'Bonn'); alter table person enable row level security"
    newest = max(pair, key=lambda server: server.binaries.major)
    a, b = await sites(SCHEMA, newest, newest)
    fleet = Fleet(a, b)
    for site in (a, b):
        await site.do(
            policy,
            f"insert into person (id, name, city) values ('{key(1)}', 'A B', 'Bonn'), ('{key(2)}', 'C D', 'Rom')",
        )
    await fleet.carry("alter table person rename column note to remark", TWO)
    assert await a.one("select obj_description('app_v2.person'::regclass)") == "lww"
    assert await a.one("select col_description('app_v2.person'::regclass, 5)") == "free text"
    may = "select has_table_privilege('pg_monitor', 'app_v2.person', {0!r}), has_column_privilege('pg_monitor', 'app_v2.person', {1!r}, 'update')"
    assert await a.rows(may.format("select", "remark")) == [(True, True)]
    assert await a.rows(may.format("update", "born")) == [(False, False)]
    assert await b.one("select has_table_privilege('public', 'app_v2.visit', 'select')")
    session = await a.session()
    await session.execute("set role pg_monitor; set search_path = app_v2")
    assert [tuple(row) for row in await session.fetch("select name from person")] == [("A B",)]
    await session.execute("reset role")
    here, there = (dumped(Database(site.server, site.name)) for site in (a, b))
    assert here == there

    # nobody has granted anything: the owner may all the same
    a.server.create_role("warden")
    for site in (a, b):
        await site.do(
            "create schema kept authorization warden",
            "create table kept.own (id uuid primary key)",
            "alter table kept.own owner to warden",
            f"grant create on database {site.name} to warden",
        )
    own = Version("kept_v1", "kept", (Shown("own", Table("kept", "own"), (("id", "id"),)),))
    with connected(a.dsn) as connection, connection.transaction(force_rollback=True):
        versions.make(connection, own, None)
        may = "select has_schema_privilege('warden', 'kept_v1', 'usage') and has_table_privilege('warden', 'kept_v1.own', 'insert') as may"
        assert connection.execute(may).fetchall() == [{"may": True}]
    # whoever is to drop it some day owns it, also at a site that joins
    with connected(a.dsn) as donor, connected(b.dsn) as newcomer:
        versions.make(donor, own, "warden")
        assert blueprints.build_after(newcomer, blueprints.take(donor, [("kept", "own")])) == []
        owners = "select relowner::regrole::text, nspowner::regrole::text from pg_class c join pg_namespace n on n.oid = relnamespace where nspname = 'kept_v1'"
        assert newcomer.execute(owners).fetchall() == [{"relowner": "warden", "nspowner": "warden"}]
        assert newcomer.execute("select from syncagent.app_version where name = 'kept_v1'").rowcount == 1
    for site in (a, b):
        await site.do(
            "drop owned by warden cascade", "delete from syncagent.app_version where name = 'kept_v1'"
        )
    await a.do("drop role warden")

    # a server that knows no such views is not given any, and what has lost it is found
    with connected(a.dsn) as connection:
        taken = blueprints.take(connection, [("public", "person"), ("public", "visit")])
        assert {step.what: step.optional for step in taken.after if step.feature == "security_invoker"} == {
            f"rights of whoever uses app_v2.{table}": table == "visit" for table in ("person", "visit")
        }
        assert list(versions.findings(connection)) == []
        connection.execute("alter view app_v2.person reset (security_invoker)")
        (found,) = versions.findings(connection)
        assert (found.severity, "shows all rows of person" in found.what) == ("error", True)
        connection.execute(str(found.mend).encode())
        assert list(versions.findings(connection)) == []


async def test_a_version_is_dropped_when_nobody_uses_it(sites: Sites, pair: Pair) -> None:
    """Who has it in a transaction, in a search path, or in a view, is named; and the change can still be taken back."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    before = dumped(Database(b.server, b.name))
    await fleet.open("alter table person rename column note to remark", TWO)
    await let_go_until(fleet, "who still uses")
    fleet.let_go()
    await fleet.follow(a)
    holder = await b.holding("set local search_path = app_v1", "select * from person")
    await b.do(
        f"alter database {b.name} set search_path = app_v1, public",
        "create function f() returns int language sql set search_path = app_v1 as 'select 1'",
        "create view v as select name from app_v1.person",
    )
    with pytest.raises(RefusedError) as refused:
        await fleet.follow(b)
    told = str(refused.value)
    for who in (
        "has used person in its transaction",
        "has it in its search_path, by alter database",
        "f() has it",
        "view public.v reads person",
    ):
        assert who in told, told
    await holder.execute("rollback")
    await b.do(f"alter database {b.name} reset search_path", "drop function f()", "drop view v")
    fleet.take_back()
    while fleet.let_go():
        await fleet.follow(a, b)
    assert dumped(Database(b.server, b.name)) == before
    assert await a.rows("select nspname from pg_namespace where nspname ~ '^app_'") == []


async def test_versions_follow_each_other(sites: Sites, pair: Pair) -> None:
    """What only adds leaves both; a type that changes in place takes the views along; what drops takes the old ones; by hand goes the last."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await fleet.carry("alter table person add column size int", Asked())
    await fleet.carry(
        "alter table person alter column code type varchar(20), alter column code set default 'c'", Asked()
    )
    names = "select string_agg(name, ' ' order by name) from syncagent.app_version"
    assert await a.one(names) == await b.one(names) == "public_v1 public_v2 public_v3"
    length = "select format_type(atttypid, atttypmod) from pg_attribute where attrelid = 'public_v1.person'::regclass and attname = 'code'"
    assert await b.one(length) == "character varying(20)"
    assert await b.one("select obj_description('public_v1.person'::regclass)") == "lww"
    assert await b.one("select has_table_privilege('pg_monitor', 'public_v1.person', 'select')")
    await at(a, "public_v1", f"insert into person (id, name) values ('{key(1)}', 'A B')")
    await exchange(a, b)
    assert await at(b, "public_v3", "select code, size from person") == [("c", None)]
    found = await asyncio.to_thread(fleet.planned, "alter table person drop column city")
    assert "drop-version public_v3" in found.refusals[0].form
    with pytest.raises(RefusedError, match="version public_v3 already"):
        await asyncio.to_thread(fleet.planned, "drop table visit", None, Asked(None, "public_v3"))
    await fleet.carry("alter table person drop column city; drop table visit", Asked(None, "last"))
    assert await a.one(names) == await b.one(names) == "last"
    newest = max(pair, key=lambda server: server.binaries.major)
    here, there = (dumped(Database(site.server, site.name), newest) for site in (a, b))
    assert all(
        "Type: VIEW" in entry for entry in here ^ there
    )  # each version writes a view's query in its own way


REFUSED = {
    "alter table person drop column name": "NOT NULL",
    "-- up: random()::text\nalter table person add column x text": "random",
    "-- up: nothing\nalter table person add column x text": "does not exist",
    "-- up: name\nalter table person add column x text default 'a'": "DEFAULT",
    "-- up: name\nalter table person add column x text, add column y text": "one column",
    "alter table person rename column note to remark": "",
    "-- up: remark\nalter table person add column x text": "another meaning",
}


async def test_what_two_versions_cannot_both_live_with_is_refused(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(SCHEMA, pair[0])
    found = await asyncio.to_thread(Fleet(a).planned, ";\n".join(REFUSED), None, TWO)
    reasons = [reason for reason in REFUSED.values() if reason]
    assert [reason in refusal.reason for reason, refusal in zip(reasons, found.refusals, strict=True)] == [
        True
    ] * len(reasons), found.refusals
    assert all(refusal.form for refusal in found.refusals)


def test_names_of_versions() -> None:
    assert versions.asked(None, None) is None
    assert versions.asked("auto", None) == Asked()
    assert versions.asked(None, "app_v13") == Asked(None, "app_v13")
    assert versions.asked("app_v12:app_v13", None) == Asked("app_v12", "app_v13")
    for text, new in (
        ("app_v12", None),
        ("a:a", None),
        ("a:", None),
        ("a:pg_b", None),
        ("a:b", "c"),
        (None, "x" * 64),
    ):
        with pytest.raises(UsageError) as refused:
            versions.asked(text, new)
        assert refused.value.hint
