"""Steps of schema changes on real tables: what is planned, what is done, and what rows from before a step become."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from syncagent.core import schema as schemas
from syncagent.core.schema import Abort, Advance, Close, Open, Schema
from syncagent.errors import DatabaseError, RefusedError, UsageError
from syncagent.storage.commands import connected
from syncagent.storage.schema import doing, planning
from syncagent.storage.schema.planning import Plan
from syncagent.storage.schema.versions import Asked
from tests.sql.conftest import Pair, Sites
from tests.support import schema_page
from tests.support.databases import Database
from tests.support.dumps import dumped
from tests.support.lab import Laboratory, Site, exchange, key, same, ship
from tests.support.postgres import Servers

SCHEMA = """
    create table item (id uuid primary key, value int, note text, x numeric(6, 2) default 1);
    create table part (id uuid primary key, item uuid, name varchar(20));
    create function twice(n int) returns int language sql immutable as 'select n * 2';
    create view notes as select id, note from item;
    create type color as enum ('red', 'green');
"""


class Fleet:
    """Sites whose catalog is the core's, without agents: who does which step when is said by the test."""

    def __init__(self, *sites: Site, role: str | None = None) -> None:
        self.sites, self.schema, self.role = sites, Schema(), role
        self._members = {site.node: f"site{site.node}" for site in sites}
        self._at = {site.node: (0, 0) for site in sites}

    def planned(self, text: str, stride: int | None = None, asked: Asked | None = None) -> Plan:
        with connected(self.sites[0].dsn) as connection:
            return planning.plan(
                connection,
                text,
                "change.sql",
                role=self.role,
                stride=stride,
                bucket="hour",
                patience=5,
                asked=asked,
            )

    async def open(self, text: str, asked: Asked | None = None) -> schemas.Change:
        found = await asyncio.to_thread(self.planned, text, None, asked)
        assert not found.refusals, found.refusals
        change = planning.change_of(found, at=0, site="site1", role=self.role, path="public", auto=True)
        self.tell(Open(change))
        return change

    def tell(self, command: schemas.SchemaCommand) -> None:
        result = schemas.apply(self.schema, command, self._members)
        assert result.refused is None, result.refused
        self.schema = result.schema

    def let_go(self) -> bool:
        """The next step, if there is one."""
        change = self.schema.open
        assert change is not None
        if not change.ahead:
            self.tell(Close(change.id))
            return False
        self.tell(Advance(change.id, len(change.track)))
        return True

    def take_back(self) -> None:
        assert self.schema.open is not None
        self.tell(Abort(self.schema.open.id))

    def at(self, site: Site) -> tuple[int, int]:
        """Its epoch, and the oldest whose batches it can read."""
        return self._at[site.node]

    def lead(self) -> None:
        """As the site that leads, when all can be reached and have said how far they are."""
        for node, (epoch, _) in self._at.items():
            self.tell(schemas.Reached(node, epoch))
        if (command := schemas.due(self.schema, self._members, frozenset(self._members))) is not None:
            self.tell(command)

    async def follow(self, *sites: Site, most: int = 1000) -> None:
        """These sites do what was let go: all of it, or so many steps."""
        for site in sites:
            at, floor = self._at[site.node]
            for _ in range(most):
                if (move := schemas.next_move(self.schema, at)) is None:
                    break
                floor = schemas.floor_after(move, floor)
                with connected(site.dsn) as connection:
                    await asyncio.to_thread(doing.do, connection, move, floor, lambda _: None)
                at = move.upto
                self._at[site.node] = at, floor

    async def carry(self, text: str, asked: Asked | None = None) -> None:
        """A whole change, everywhere."""
        await self.open(text, asked)
        while self.let_go():
            await self.follow(*self.sites)


Made = Callable[[], Awaitable[Fleet]]


async def test_rows_from_before_a_step_get_what_all_rows_got(sites: Sites, pair: Pair) -> None:
    """Whatever a site has put into the new column, a newer version that knows nothing of it comes to the constant, everywhere."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do(f"insert into item select k::uuid, 1 from unnest('{{{key(1)},{key(2)}}}'::text[]) as k")
    await exchange(a, b)
    await fleet.open(
        "alter table item add column size int default 7, add column tag text, add column part text default '50%'"
    )
    fleet.let_go()
    await fleet.follow(a)
    await a.do(
        f"update item set size = 5, tag = 'mine' where id = '{key(1)}'",
        "alter table item alter column size set default 9",
    )
    await b.do(
        f"update item set note = 'later' where id = '{key(1)}'",
        f"insert into item values ('{key(3)}', 3)",
        "insert into item values (syncagent.uuid7(), 4)",
    )
    shipped = await b.batch(a)
    assert shipped.header.schema == 0
    await a.apply(shipped)
    assert await a.rows("select size, tag, note from item where value in (1, 3, 4) order by value, note") == [
        (7, None, "later"),
        (7, None, None),
        (7, None, None),
        (7, None, None),
    ]
    await fleet.follow(b)
    await exchange(a, b)
    await same("item", a, b)
    await a.do("insert into item (id) values (syncagent.uuid7())")
    assert (await a.batch(b)).header.schema == 1


async def test_by_column_what_was_put_into_the_new_column_stays(sites: Sites, pair: Pair) -> None:
    """A row of before that is newer says nothing of a column it did not have; a row that is new there has the constant."""
    a, b = await sites(SCHEMA, *pair)
    for site in (a, b):
        await site.do(
            "select syncagent._detach('item')",
            "select syncagent._attach('item', false, false, p_strategy => 'lww-column')",
        )
    fleet = Fleet(a, b)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await fleet.open("alter table item add column size int default 7")
    fleet.let_go()
    await fleet.follow(a)
    await a.do(f"update item set size = 5 where id = '{key(1)}'")
    await b.do(
        f"update item set note = 'later' where id = '{key(1)}'", f"insert into item values ('{key(2)}', 2)"
    )
    await ship(b, a)
    assert await a.rows("select value, size, note from item order by value") == [
        (1, 5, "later"),
        (2, 7, None),
    ]
    await fleet.follow(b)
    await exchange(a, b)
    assert len(await same("item", a, b)) == 2
    found = await asyncio.to_thread(
        fleet.planned, "alter table item rename column note to remark; alter table item drop column x"
    )
    assert ["by column" in refusal.reason for refusal in found.refusals] == [True, True]


async def test_a_column_that_is_added_sends_no_row_again(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do("insert into item select syncagent.uuid7(), n from generate_series(1, 50) as n")
    await exchange(a, b)
    await fleet.carry("alter table item add column size int not null default 7")
    for one, other in ((a, b), (b, a)):
        assert (await one.batch(other)).header.rows == 0
    assert len(await same("item", a, b)) == 50


async def test_a_site_that_missed_a_column_is_sent_no_row_again(sites: Sites, pair: Pair) -> None:
    """It was away when the others got it, and when they wrote: it gets what was written then, once, and nothing else."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do("insert into item select syncagent.uuid7(), n from generate_series(1, 50) as n")
    await exchange(a, b)
    await fleet.open("alter table item add column size int not null default 7")
    fleet.let_go()
    await fleet.follow(a)
    assert (await a.batch(b)).header.rows == 0
    await a.do("update item set size = 8 where value = 1")
    assert (await a.batch(b)).header.rows == 1
    await fleet.follow(b)
    shipped = await a.batch(b)
    assert shipped.header.rows == 1
    await b.apply(shipped)
    for one, other in ((a, b), (b, a)):
        assert (await one.batch(other)).header.rows == 0
    assert len(await same("item", a, b)) == 50


async def test_a_session_goes_on_with_tables_that_have_changed(sites: Sites, pair: Pair) -> None:
    """Work tables of the agent's sessions are older than the column; what is staged meanwhile is staged again."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await fleet.carry("alter table item add column size int; alter table item drop column x")
    await b.do(f"update item set size = 3 where id = '{key(1)}'", f"insert into item values ('{key(2)}', 2)")
    await exchange(a, b)
    assert await same("item", a, b)


async def test_parked_rows_are_in_the_new_shape(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await b.do("alter table item add constraint small check (value < 10)")
    await a.do(f"insert into item values ('{key(1)}', 20, 'a, \"b\"')")
    await ship(a, b)
    await fleet.carry(
        "alter table item add column size int default 7; alter table item rename column note to remark"
    )
    assert [image for image, _ in await b.parked()] == [
        {"id": key(1), "value": 20, "remark": 'a, "b"', "x": 1.00, "size": 7}
    ]
    await b.do("alter table item drop constraint small")
    assert await b.store.replica.retry_parked() == 0
    assert await same("item", a, b)


async def test_what_is_contracted_is_not_read_from_before(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await fleet.open("alter table item drop column x")
    fleet.let_go()
    await fleet.follow(a)
    assert fleet.at(a) == (1, 1)
    await b.do(f"insert into item values ('{key(1)}', 1, 'gone')")
    with pytest.raises(DatabaseError, match="other columns"):
        await ship(b, a)
    await fleet.follow(b)
    await exchange(a, b)
    assert await same("item", a, b)


async def test_a_table_is_made_and_attached_and_dropped(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await fleet.carry(
        "create table visit (id uuid primary key, at int); create index visit_at on visit (at); drop table part;"
        " create table seat (row_number int, place int, primary key (row_number, place))"
    )
    await a.do("insert into visit values (syncagent.uuid7(), 1)", "insert into seat values (1, 2)")
    await exchange(a, b)
    assert await same("visit", a, b)
    assert await same("seat", a, b)
    assert await b.rows("select table_name::text, agreed from syncagent.replicated order by 1") == [
        ("item", False),
        ("seat", True),
        ("visit", True),
    ]


async def test_names_change(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await fleet.carry('alter table item rename column id to "the key"; alter table item rename to thing')
    await b.do("update thing set value = 2")
    await exchange(a, b)
    assert await same("thing", a, b)


async def test_a_type_changes_while_old_and_new_versions_write(sites: Sites, pair: Pair) -> None:
    """An old version of the application at one site, a new one at the other, rows on their way, all filled alike."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await a.do(
        "insert into part (id, name) select syncagent.uuid7(), n::text from generate_series(1, 300) as n"
    )
    await exchange(a, b)
    await fleet.open("-- down: name_new::text\nalter table part alter column name type int using name::int")
    fleet.let_go()
    await fleet.follow(a, b)
    assert fleet.let_go()
    await fleet.follow(a)
    await b.do("update part set name = '1000' where name = '1'")
    await exchange(a, b)
    await fleet.follow(b)
    await a.do(
        "update part set name = '2000' where name = '2'",
        "insert into part (id, name) values (syncagent.uuid7(), '3000')",
    )
    await b.do(
        "update part set name_new = 4000 where name = '4'",
        "insert into part (id, name_new) values (syncagent.uuid7(), 5000)",
    )
    assert fleet.let_go()
    await fleet.follow(a)
    assert await a.one("select count(*) from part where name_new is null") == 0
    early = await b.batch(a)
    await a.apply(early)
    await exchange(a, b)
    await fleet.follow(b)
    for one, other in ((a, b), (b, a)):
        assert (await one.batch(other)).header.rows == 0, "filling is no write"
    while fleet.let_go():
        await fleet.follow(a, b)
    await exchange(a, b)
    rows = await same("part", a, b)
    assert len(rows) == 302
    assert await b.rows("select name from part where name > 300 order by 1") == [
        (1000,),
        (2000,),
        (3000,),
        (4000,),
        (5000,),
    ]
    assert await a.one("select count(*) from pg_proc where proname ~ '^both_'") == 0


CONSTRAINTS = {
    "not null": (
        "alter table item alter column note set not null",
        "update item set note = '' where note is null",
    ),
    "check": (
        "alter table item add constraint positive check (value > 0)",
        "update item set value = 1 where value < 1",
    ),
    "unique": (
        "alter table item add constraint one unique (value)",
        "update item set value = 5 where note is null",
    ),
    "foreign key": (
        "alter table part add constraint of_item foreign key (item) references item (id)",
        "update part set item = null",
    ),
}


@pytest.mark.parametrize("kind", CONSTRAINTS)
async def test_a_constraint_holds_everywhere_or_says_which_rows_stand_against_it(
    sites: Sites, pair: Pair, kind: str
) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet, (text, mend) = Fleet(a, b), CONSTRAINTS[kind]
    await b.do(
        f"insert into item values ('{key(1)}', 0, null), ('{key(2)}', 0, 'x')",
        f"insert into part values ('{key(3)}', '{key(9)}')",
    )
    await fleet.open(text)
    fleet.let_go()
    await fleet.follow(a)
    with pytest.raises(RefusedError, match="rows stand against it"):
        await fleet.follow(b)
    await b.do(mend)
    while fleet.let_go():
        await fleet.follow(a, b)
    await exchange(a, b)
    newest = max(pair, key=lambda server: server.binaries.major)
    here, there = (dumped(Database(site.server, site.name), newest) for site in (a, b))
    assert all(
        "Type: VIEW" in entry for entry in here ^ there
    )  # each version writes a view's query in its own way
    await same("item", a, b)
    for site in (a, b):
        assert await site.rows("select * from pg_constraint where not convalidated") == []


async def test_what_was_done_is_taken_back(sites: Sites, pair: Pair) -> None:
    """One site had done all of it, the other one nothing yet."""
    told = "comment on column item.note is 'free text'; grant select on item to public; grant select on part to pg_monitor"
    a, b = await sites(f"{SCHEMA};{told}", *pair)
    fleet = Fleet(a, b)
    before = dumped(Database(a.server, a.name))
    await fleet.open(
        """
        create table visit (id uuid primary key); create type mood as enum ('good');
        alter table item add column size int default 7, add column mood mood, alter column x set default 2, add constraint positive check (value > 0);
        create index item_value on item (value);
        create or replace function twice(n int) returns int language sql immutable as 'select n + n';
        create or replace view notes as select id, note, value from item;
        create view values as select value from item;
        alter table part alter column name type varchar(40);
        comment on column item.note is 'what else'; comment on type color is 'of what';
        grant select, insert, update (note) on item to public; revoke execute on function twice(int) from public;
        grant select on part to pg_monitor with grant option;
        """
    )
    while fleet.schema.open and fleet.schema.open.ahead:
        fleet.let_go()
    await fleet.follow(a)
    assert dumped(Database(a.server, a.name)) - before
    await a.do(f"insert into item (id, value, size) values ('{key(1)}', 1, 1)")
    fleet.take_back()
    while fleet.let_go():
        await fleet.follow(a)
    assert dumped(Database(a.server, a.name)) == before
    await fleet.follow(b)
    assert fleet.at(a) == fleet.at(b)
    await b.do(f"insert into item (id, value) values ('{key(2)}', 1)")
    await exchange(a, b)
    assert len(await same("item", a, b)) == 2


async def test_a_step_that_fails_changes_nothing(sites: Sites, pair: Pair) -> None:
    """An index that could not be made is not left half made; a table that one site has keeps the others."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await b.do(
        "create table visit (id uuid primary key, own text)",
        "insert into visit values (syncagent.uuid7(), 'mine')",
    )
    await fleet.open("alter table item add column size int; create table visit (id uuid primary key)")
    fleet.let_go()
    await fleet.follow(a)
    with pytest.raises(DatabaseError, match='"visit" already exists'):
        await fleet.follow(b)
    assert await b.rows(
        "select schema_epoch, (select count(*) from pg_attribute where attrelid = 'item'::regclass and attname = 'size') from syncagent.local_site"
    ) == [(0, 0)]
    fleet.take_back()
    while fleet.let_go():
        await fleet.follow(a, b)
    assert await b.one("select own from visit") == "mine"
    assert await a.one("select to_regclass('visit')") is None
    assert await b.one("select schema_epoch from syncagent.local_site") == 2


async def test_a_step_is_done_once(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(SCHEMA, pair[0])
    fleet = Fleet(a)
    await fleet.open("alter table item add column size int")
    fleet.let_go()
    await fleet.follow(a)
    fleet._at[a.node] = (0, 0)
    with pytest.raises(DatabaseError):
        await fleet.follow(a)
    change = fleet.schema.changes[0]
    again = replace(change.track[0], statements=())
    with connected(a.dsn) as connection, pytest.raises(DatabaseError, match=r"moved under"):
        doing.do(connection, schemas.Move(1, again, change), 0, lambda _: None)


REFUSED = {
    "alter table item add column at timestamptz default now()": "another value",
    "alter table item add column at date default 'today'": "another value",
    "alter table item add column k uuid default gen_random_uuid()": "another value",
    "alter table item add column n int not null": "no value",
    "alter table item add column n int unique": "before all have it",
    "alter table item add column n bigserial": "number the rows",
    "alter table item alter column value type bigint": "written anew",
    "alter table item drop column id": "primary key",
    "alter table item drop constraint item_pkey": "primary key",
    "alter table item add check (value > 0)": "no name",
    "alter table other add column n int": "there is no table",
    "alter table alone add column n int": "is not attached",
    "alter table notes add column n int": "no table",
    "alter table item set unlogged": "not carried",
    "update item set value = 1": "about rows",
    "begin": "transaction of its own",
    "create table t (a int)": "no primary key",
    "create table t (a bigserial primary key)": "same",
    "create temp table t (a uuid primary key)": "for a session",
    "drop table item cascade": "CASCADE",
    "vacuum item": "not carried",
    "alter table item add column value int": "already exists",
    "create view v as select nothing from item": "does not exist",
}


async def test_what_cannot_be_carried_is_refused_with_a_form_that_can(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(SCHEMA, pair[1])
    await a.do("create table alone (id int)")
    before = dumped(Database(a.server, a.name))
    fleet = Fleet(a)
    found = await asyncio.to_thread(fleet.planned, "\n\n".join(f"{text};" for text in REFUSED))
    told = {refusal.text: refusal for refusal in found.refusals}
    assert not found.steps
    for number, (text, reason) in enumerate(REFUSED.items()):
        assert reason in told[text].reason, (text, told[text].reason)
        assert told[text].line == 1 + 2 * number
        assert told[text].form
    assert dumped(Database(a.server, a.name)) == before
    with pytest.raises(UsageError, match=r"change.sql, line 3: syntax error at or near \"tabel\""):
        await asyncio.to_thread(fleet.planned, "select 1;\n\nalter tabel x;")


async def test_the_page_says_what_is_planned(laboratory: Laboratory, servers: Servers) -> None:
    page = schema_page.PAGE.read_text()
    assert await schema_page.perform(page, laboratory, servers) == page, (
        "if that is meant: python -m tests.support.schema_page"
    )
