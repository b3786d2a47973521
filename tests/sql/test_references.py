"""A row is deleted at one site while another one writes a row that refers to it: the deleted row comes back."""

import pytest

from syncagent.core.outbox import Group
from syncagent.errors import Contended
from tests.sql.conftest import Pair, Sites
from tests.support.lab import Site, cross, exchange, insisting, key, quiet, same, ship

SHOP = """create table customer (id uuid primary key, name text);
    create table sale (id uuid primary key, customer uuid references customer on delete cascade, note text)"""


async def names(site: Site) -> list[str]:
    return [row[0] for row in await site.rows("select name from customer order by id")]


async def orphans(site: Site) -> int:
    return int(
        await site.one(
            "select count(*) from sale s where customer is not null and not exists (select from customer c where c.id = s.customer)"
        )
    )


async def stocked(*sites: Site) -> None:
    first = sites[0]
    await first.do(f"insert into customer values ('{key(1)}', 'Ann'), ('{key(2)}', 'Bob')")
    await first.do(
        f"insert into sale values ('{key(11)}', '{key(1)}', 'old'), ('{key(12)}', '{key(2)}', 'old')"
    )
    await exchange(*sites)


async def test_a_deleted_parent_comes_back_with_the_new_child_alone(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    await a.do("delete from customer")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new')")
    await cross(a, b)
    for site in (a, b):
        assert await names(site) == ["Ann"]
        assert await site.rows("select note from sale") == [("new",)]
    await same("customer", a, b)
    found = await b.rows(
        "select kind, constraint_name, strategy, key, winner, loser, winning_image ->> 'name' from syncagent.conflict"
    )
    assert ("foreign key", "sale_customer_fkey", "restore-parent", key(1), "site2", "site1", "Ann") in found
    await a.compact()
    await b.compact()
    assert await a.versions("customer") == {}


async def test_a_cascade_brings_nothing_back(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(SHOP, *pair, pair[0])
    await stocked(a, b, c)
    await a.do("delete from customer")
    await quiet(a, b, c)
    assert await names(c) == []
    assert [row for site in (b, c) for row in await site.conflicts()] == []


async def test_a_child_that_is_given_a_parent_that_goes(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    await a.do(f"delete from customer where id = '{key(1)}'")
    await b.do(f"update sale set customer = '{key(1)}' where id = '{key(12)}'")
    await cross(a, b)
    assert await names(a) == await names(b) == ["Ann", "Bob"]
    assert await orphans(a) == await orphans(b) == 0


async def test_three_sites_and_a_relay(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(SHOP, *pair, pair[0])
    await stocked(a, b, c)
    await a.do("delete from customer")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new')")
    await ship(a, c)  # c hears of the delete first
    await quiet(a, b, c)
    for site in (a, b, c):
        assert await names(site) == ["Ann"]
        assert await orphans(site) == 0
    await same("customer", a, b, c)


SLIPS = """create table customer (id uuid primary key, name text);
    create table sale (id uuid primary key, customer uuid references customer on delete cascade, slip text unique)"""


async def slips(*sites: Site) -> None:
    """Two customers; the first has gone at the first site, where the other one has a sale with a slip that the last site gives a sale of hers."""
    a, *_, last = sites
    await a.do(f"insert into customer values ('{key(1)}', 'Ann'), ('{key(2)}', 'Bob')")
    await exchange(*sites)
    await a.do(
        f"delete from customer where id = '{key(1)}'",
        f"insert into sale values ('{key(10)}', '{key(2)}', 's')",
    )
    await last.do(f"insert into sale values ('{key(11)}', '{key(1)}', 's')")


async def test_a_row_whose_parent_is_not_here_is_not_written_for_a_collision_s_sake(
    sites: Sites, pair: Pair
) -> None:
    """It would win against the delete of who wrote it, and nobody has the parent any more."""
    a, b = await sites(SLIPS, *pair)
    await slips(a, b)
    batch = await b.batch(a)
    await b.do("delete from sale")
    await a.apply(batch)
    assert [(row["id"], state) for row, state in await a.parked()] == [(key(11), "23503")]
    await quiet(a, b)
    for site in (a, b):
        assert await names(site) == ["Bob"]
        assert await site.parked() == []
    assert await same("sale", a, b) == [f"({key(10)},{key(2)},s)"]


async def test_a_row_that_waits_for_its_parent_comes_with_it(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SLIPS, *pair)
    await slips(a, b)
    await ship(b, a)
    assert len(await a.parked()) == 1
    await ship(a, b)
    await ship(b, a)
    assert await a.parked() == []
    assert await names(a) == ["Ann", "Bob"]
    assert await a.rows("select slip from sale order by id") == [("s",), (None,)]
    await quiet(a, b)
    await same("sale", a, b)


async def test_who_comes_before_its_parent_in_one_batch_yields_with_it(sites: Sites, pair: Pair) -> None:
    """The tables are merged in the order in which they were attached, and this one's parents come after it."""
    a, b = await sites(SLIPS.replace("sale", "bill"), *pair)
    await a.do(
        f"insert into customer values ('{key(1)}', 'Ann')",
        f"insert into bill values ('{key(10)}', '{key(1)}', 's')",
    )
    await b.do(
        f"insert into customer values ('{key(2)}', 'Bob')",
        f"insert into bill values ('{key(11)}', '{key(2)}', 's')",
    )
    await ship(b, a)
    assert await a.parked() == []
    assert await a.rows("select slip from bill order by id") == [("s",), (None,)]


async def test_a_knot_brings_a_parent_and_who_waits_for_it(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(SLIPS, *pair, pair[0])
    await slips(a, c, b)
    await ship(b, a)
    assert len(await a.parked()) == 1
    await ship(a, b)  # who has the sale brings the customer back
    await ship(a, c)
    await ship(b, c)
    stands = await a.frontier()
    cut = await c.cut_groups(
        [
            Group(stands.get(b.node, 0), True, (a.node,), b.node),
            Group(stands.get(c.node, 0), True, (a.node,)),
        ]
    )
    await a.store.replica.apply_knot([(s.header, s.spool) for s in cut.shipments], attempt=0)
    assert await a.parked() == []
    assert await names(a) == ["Ann", "Bob"]
    await quiet(a, b, c)
    await same("sale", a, b, c)


CHAIN = """create table region (id uuid primary key, name text);
    create table customer (id uuid primary key, name text, region uuid references region on delete cascade, boss uuid references customer on delete cascade);
    create table sale (id uuid primary key, customer uuid references customer on delete cascade)"""


@pytest.mark.parametrize("order", [CHAIN, CHAIN.replace("region", "zone")])
async def test_parents_of_parents_come_back(sites: Sites, pair: Pair, order: str) -> None:
    """The tables are merged in one order, or in the other."""
    a, b = await sites(order, *pair)
    region = "zone" if "zone" in order else "region"
    await a.do(
        f"insert into {region} values ('{key(1)}', 'north')",
        f"insert into customer values ('{key(2)}', 'boss', '{key(1)}', null), ('{key(3)}', 'Ann', '{key(1)}', '{key(2)}')",
    )
    await exchange(a, b)
    await a.do(f"delete from {region}")
    await b.do(f"insert into sale values ('{key(4)}', '{key(3)}')")
    await cross(a, b)
    for site in (a, b):
        assert await names(site) == ["boss", "Ann"]
        assert await site.rows(f"select name from {region}") == [("north",)]
    await same("customer", a, b)


async def test_keys_of_other_kinds(sites: Sites, pair: Pair) -> None:
    schema = """create table p (a int, b text, twice int generated always as (a * 2) stored, v text, primary key (a, b));
        create table c (id uuid primary key, x int, y text, foreign key (x, y) references p (a, b))"""
    a, b = await sites(schema, *pair)
    await a.do("insert into p values (1, 'it''s', default, 'v')")
    await exchange(a, b)
    await a.do("delete from p")
    await b.do(f"insert into c values ('{key(1)}', 1, 'it''s')")
    await cross(a, b)
    assert await same("p", a, b) == ["(1,it's,2,v)"]


async def test_reported_only(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    for site in (a, b):
        await site.do("""update syncagent.replicated set policies = '{"sale_customer_fkey": "report"}'""")
    await a.do("delete from customer")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new')")
    await cross(a, b)
    assert await names(a) == await names(b) == []
    assert await orphans(a) == await orphans(b) == 1
    (found,) = await b.rows(
        "select key, winning_image, losing_image ->> 'name' from syncagent.conflict where kind = 'foreign key'"
    )
    assert found == (key(1), None, "Ann")
    await b.rows("select syncagent.resolve(id, 'loser') from syncagent.conflict where kind = 'foreign key'")
    await quiet(a, b)
    assert await names(a) == await names(b) == ["Ann"]


async def test_rows_of_one_site_hold_nobodys_parent(sites: Sites, pair: Pair) -> None:
    a, b = await sites("create table customer (id uuid primary key, name text)", *pair)
    await a.do(f"insert into customer values ('{key(1)}', 'Ann')")
    await exchange(a, b)
    await b.do(
        "create table session (id uuid primary key, customer uuid references customer on delete cascade)",
        f"insert into session values ('{key(2)}', '{key(1)}')",
    )
    await a.do("delete from customer")
    await quiet(a, b)
    assert await names(a) == await names(b) == []


async def test_a_parent_that_a_constraint_refuses_by_now_is_missed_and_told(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    await b.do("alter table customer add check (name <> 'Ann') not valid")
    await a.do("delete from customer")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new')")
    await cross(a, b)
    assert await names(b) == []
    assert "foreign key" in await b.conflicts()


async def test_a_parent_with_a_deferrable_constraint(sites: Sites, pair: Pair) -> None:
    schema = SHOP.replace("name text)", "name text unique deferrable initially deferred)", 1)
    a, b = await sites(schema, *pair)
    await stocked(a, b)
    await a.do("delete from customer")
    await b.do(
        f"insert into sale values ('{key(21)}', '{key(1)}', 'new'), ('{key(22)}', '{key(2)}', 'new')",
        "alter table customer disable trigger all",
    )
    await b.do("alter table customer enable trigger all")
    await cross(a, b)
    assert await names(a) == await names(b) == ["Ann", "Bob"]


async def test_one_parent_that_is_refused_keeps_no_other_from_coming_back(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    await b.do("alter table customer add check (name <> 'Ann') not valid")
    await a.do("delete from customer")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new'), ('{key(22)}', '{key(2)}', 'new')")
    await cross(a, b)
    assert await names(b) == ["Bob"]


async def test_a_stale_child_whose_newer_version_is_parked_holds_nobody(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    await b.do("alter table sale add check (note <> 'moved')")
    await a.do(f"update sale set customer = '{key(2)}', note = 'moved' where id = '{key(11)}'")
    await ship(a, b)
    assert len(await b.parked()) == 1
    await a.do(f"delete from customer where id = '{key(1)}'")
    await ship(a, b)
    assert await names(b) == ["Bob"]


async def test_two_sites_that_restore_one_parent_are_no_conflict(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(SHOP, *pair, pair[0])
    await stocked(a, b, c)
    await a.do("delete from customer")
    for number, site in ((21, b), (22, c)):
        await site.do(f"insert into sale values ('{key(number)}', '{key(1)}', 'new')")
    batches = [(await a.batch(b), b), (await a.batch(c), c)]
    for batch, site in batches:
        await site.apply(batch)
    await quiet(a, b, c)
    for site in (a, b, c):
        assert "update/update" not in await site.conflicts()
        assert await names(site) == ["Ann"]


async def test_a_key_that_looks_like_sql(sites: Sites, pair: Pair) -> None:
    a, b = await sites("create table t (k text, n int, v text, primary key (k, n))", *pair)
    evil = "(select p_key::x'')) (select (p_key:: ' || 1 || '"
    await a.rows("insert into t values ($1, 1, 'v')", evil)
    await exchange(a, b)
    await a.do("update t set v = 'a'")
    await b.do("update t set v = 'b'")
    await cross(a, b)
    (lost,) = await a.rows("select id, losing_image ->> 'v' from syncagent.conflict")
    await a.rows("select syncagent.resolve($1, 'loser')", lost[0])
    assert await a.rows("select k, v from t") == [(evil, lost[1])]
    await a.rows("select syncagent.undo($1)", lost[0])
    await quiet(a, b)
    await same("t", a, b)


async def cascading(*sites: Site, constraint: str = "sale_customer_fkey", table: str = "sale") -> None:
    for site in sites:
        await site.rows(
            "update syncagent.replicated set policies = policies || jsonb_build_object($1::text, 'cascade') where table_name = $2",
            constraint,
            table,
        )


async def test_orphans_go_where_that_is_chosen(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(SHOP, *pair, pair[0])
    await stocked(a, b, c)
    await cascading(a, b, c)
    await a.do(f"delete from customer where id = '{key(1)}'")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new'), ('{key(22)}', '{key(2)}', 'new')")
    await ship(b, c)
    await quiet(a, b, c)
    assert await names(a) == ["Bob"]
    assert [row.split(",")[2] for row in await same("sale", a, b, c)] == ["old)", "new)"]
    found = await b.rows(
        "select kind, constraint_name, strategy, key, other_key, winner, winning_image, losing_image ->> 'note' from syncagent.conflict"
    )
    assert ("foreign key", "sale_customer_fkey", "cascade", key(21), key(1), "site2", None, "new") in found


async def test_what_refers_to_an_orphan_goes_with_it(sites: Sites, pair: Pair) -> None:
    schema = """create table customer (id uuid primary key, name text, boss uuid references customer);
        create table sale (id uuid primary key, customer uuid references customer);
        create table line (sale uuid references sale, number int, primary key (sale, number));
        create table note (id uuid primary key, sale uuid references sale on delete set null)"""
    a, b = await sites(schema, *pair)
    await cascading(a, b)
    await cascading(a, b, constraint="customer_boss_fkey", table="customer")
    await a.do(f"insert into customer values ('{key(1)}', 'Ann')")
    await exchange(a, b)
    await a.do("delete from customer")
    await b.do(
        f"insert into customer values ('{key(2)}', 'Bob', '{key(1)}'), ('{key(3)}', 'Cyd', '{key(2)}')",
        f"insert into sale values ('{key(11)}', '{key(3)}')",
        f"insert into line values ('{key(11)}', 1), ('{key(11)}', 2)",
        f"insert into note values ('{key(12)}', '{key(11)}')",
    )
    await cross(a, b)
    for table, left in (("customer", []), ("sale", []), ("line", []), ("note", [f"({key(12)},)"])):
        assert await same(table, a, b) == left
    told = await b.rows(
        "select table_name, count(*) from syncagent.conflict where strategy = 'cascade' group by 1 order by 1"
    )
    assert told == [("public.customer", 2), ("public.line", 2), ("public.sale", 1)]


async def test_who_comes_back_for_one_keeps_the_others(sites: Sites, pair: Pair) -> None:
    schema = SHOP + "; create table letter (id uuid primary key, customer uuid references customer)"
    a, b = await sites(schema, *pair)
    await stocked(a, b)
    await cascading(a, b)
    await a.do(f"delete from customer where id = '{key(1)}'")
    await b.do(
        f"insert into sale values ('{key(21)}', '{key(1)}', 'new')",
        f"insert into letter values ('{key(31)}', '{key(1)}')",
    )
    await cross(a, b)
    assert await names(a) == ["Ann", "Bob"]
    assert len(await same("sale", a, b)) == 2


async def test_an_orphan_that_somebody_writes_is_waited_for(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SHOP, *pair)
    await stocked(a, b)
    await cascading(a, b)
    await a.do(f"delete from customer where id = '{key(1)}'")
    await b.do(f"insert into sale values ('{key(21)}', '{key(1)}', 'new')")
    batch, held = await a.batch(b), await b.holding(f"update sale set note = 'newer' where id = '{key(21)}'")
    with pytest.raises(Contended):
        await b.apply(batch)

    await insisting(b, batch, lambda: held.execute("commit"))
    await quiet(a, b)
    assert len(await same("sale", a, b)) == 1
    assert ("newer",) in await b.rows("select losing_image ->> 'note' from syncagent.conflict")
