"""Two rows, written at two sites, with one value of a unique or exclusion constraint: both live, one yields its value."""

import json
import random
from collections.abc import Callable
from uuid import UUID

import asyncpg
import pytest

from syncagent.core.outbox import Group
from syncagent.errors import Contended, Inexact
from tests.sql.conftest import Pair, Sites
from tests.support.lab import Laboratory, Row, Site, cross, exchange, key, quiet, same, ship, timeless

CUSTOMER = "create table customer (id uuid primary key, email text unique, name text)"


def insert(number: int, email: str | None, name: str = "x") -> str:
    return (
        f"insert into customer values ('{key(number)}', {'null' if email is None else repr(email)}, {name!r})"
    )


async def emails(site: Site) -> list[str | None]:
    return [row[0] for row in await site.rows("select email from customer order by id")]


async def collisions(site: Site) -> list[Row]:
    return await site.rows(
        "select kind, constraint_name, key, other_key, winner, loser, winning_image ->> 'name', losing_image ->> 'name'"
        " from syncagent.conflict where kind in ('unique', 'exclusion') order by noticed_at"
    )


async def test_the_larger_key_yields_at_both_sites(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(1, "ann@x", "of a"), insert(3, "cyd@x"))
    await b.do(insert(2, "ann@x", "of b"))

    there, here = await a.batch(b), await b.batch(a)
    assert (await b.apply(there)).conflicts == 1
    assert (await a.apply(here)).conflicts == 1

    for site in (a, b):  # each on its own, before either knows of what the other did
        assert await emails(site) == ["ann@x", None, "cyd@x"]
        assert await site.parked() == []
        assert await collisions(site) == [
            ("unique", "customer_email_key", key(2), key(1), "site1", "site2", "of a", "of b")
        ]
    await quiet(a, b)
    assert len(await same("customer", a, b)) == 3
    await a.compact()
    assert await a.versions("customer") == {}


async def test_a_third_site_learns_it_from_them(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(CUSTOMER, *pair, pair[0])
    await a.do(insert(1, "ann@x"))
    await b.do(insert(2, "ann@x"))
    await ship(b, a)
    await ship(a, c)  # it has b's row from b alone
    await ship(b, c)
    await quiet(a, b, c)
    assert await emails(c) == ["ann@x", None]
    await same("customer", a, b, c)


async def test_a_chain_of_three(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(CUSTOMER, *pair, pair[0])
    for number, site in ((3, a), (2, b), (1, c)):
        await site.do(insert(number, "ann@x"))
    batches = [await a.batch(b), await b.batch(c), await c.batch(a)]
    for batch, site in zip(batches, (b, c, a), strict=True):
        await site.apply(batch)
    await quiet(a, b, c)
    assert await emails(a) == ["ann@x", None, None]
    await same("customer", a, b, c)


async def test_a_local_row_yields_to_one_that_comes(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await b.do(insert(5, "ann@x", "of b"))
    await b.cut()
    await a.do(insert(1, "ann@x", "of a"))
    applied = await ship(a, b)
    assert (applied.taken, applied.parked) == (1, 0)
    assert await b.rows("select key_text from syncagent.conflict_record") == [(key(5),)]
    await quiet(a, b)
    assert await emails(a) == await emails(b) == ["ann@x", None]


async def test_values_handed_over_are_no_collision(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(CUSTOMER, *pair, pair[0])
    await a.do(insert(1, "ann@x"), insert(2, None))
    await exchange(a, b, c)
    await a.do(
        "update customer set email = null; update customer set email = 'ann@x' where id::text like '%2'"
    )
    await ship(a, b)
    await quiet(a, b, c)
    assert await emails(c) == [None, "ann@x"]
    assert [row for site in (a, b, c) for row in await collisions(site)] == []


async def test_values_handed_over_inside_a_knot_are_no_collision(sites: Sites, pair: Pair) -> None:
    # A's row gives the value up, B has seen that, and takes it; D has it all from C, in one transaction, B's part first.
    b, a, c, d = await sites(CUSTOMER, *pair, *pair)
    await a.do(insert(1, "ann@x"))
    await exchange(a, b, c, d)
    await a.do("update customer set email = null")
    await exchange(a, b, c)
    await b.do(insert(2, "ann@x"))
    await exchange(a, b, c)
    stands = await d.frontier()
    cut = await c.cut_groups(
        [Group(stands.get(origin.node, 0), True, (d.node,), origin.node) for origin in (b, a)]
        + [Group(stands.get(c.node, 0), True, (d.node,))]
    )
    parts = [(shipment.header, shipment.spool) for shipment in cut.shipments]
    assert [header.origin for header, _ in parts] == [b.node, a.node, c.node]
    await d.store.replica.apply_knot(parts, attempt=0)
    assert await d.store.replica.retry_parked() == 0
    assert await emails(d) == [None, "ann@x"]
    assert await collisions(d) == []
    assert not await d.one("select syncagent._pending()")


async def test_where_null_is_refused_the_text_gets_a_mark(sites: Sites, pair: Pair) -> None:
    schema = "create table customer (id uuid primary key, email varchar(40) not null unique, name text)"
    a, b = await sites(schema, *pair)
    mail = "a.very.long.name.of.somebody@example.org"
    assert len(mail) == 40
    await a.do(insert(1, mail))
    await b.do(insert(2, mail))
    await exchange(a, b)
    await quiet(a, b)
    first, second = await emails(a)
    assert first == mail
    assert second is not None
    assert second == mail[:27] + "~" + await a.one("select left(md5($1::text), 12)", key(2))
    await same("customer", a, b)


async def test_only_a_null_collision_when_nulls_are_not_distinct(sites: Sites, pair: Pair) -> None:
    newest = max(pair, key=lambda server: server.binaries.major)  # 14 does not know them
    schema = "create table customer (id uuid primary key, email text unique nulls not distinct, name text)"
    a, b = await sites(schema, newest, newest)
    await a.do(insert(1, None))
    await b.do(insert(2, None))
    await exchange(a, b)
    await quiet(a, b)
    first, second = await emails(a)
    assert (first, (second or "")[:1]) == (None, "~")
    await same("customer", a, b)


SCHEMAS = {
    "several columns": (
        "create table t (id uuid primary key, shop int not null, number text, unique (shop, number))",
        ("1, 'x'", "1, 'x'"),
        ["1,x", "1,"],
    ),
    "partial": (
        "create table t (id uuid primary key, name text, gone boolean not null); create unique index on t (name) where not gone",
        ("'x', false", "'x', false"),
        ["x,f", ",f"],
    ),
    "expression": (
        "create table t (id uuid primary key, name text not null); create unique index on t (lower(name))",
        ("'Ann'", "'ANN'"),
        ["Ann", "ANN~"],
    ),
    "deferrable": (
        "create table t (id uuid primary key, place int unique deferrable initially deferred)",
        ("1", "1"),
        ["1", ""],
    ),
    "exclusion": (
        "create table t (id uuid primary key, during int4range, exclude using gist (during with &&))",
        ("'[1,5)'", "'[4,9)'"),
        ["[1,5)", ""],
    ),
    "deferrable exclusion": (
        "create table t (id uuid primary key, during int4range, exclude using gist (during with &&) deferrable)",
        ("'[1,5)'", "'[4,9)'"),
        ["[1,5)", ""],
    ),
    "odd names": (
        'create table t (id uuid primary key, "e1" int, "x y" text, _key int); create unique index "it\'s" on t ("x y")',
        ("1, 'v', 1", "2, 'v', 2"),
        ["1,v,1", "2,,2"],
    ),
    "domain": (
        "create domain mail as varchar(30) check (value ~ '@'); create table t (id uuid primary key, m mail unique not null)",
        ("'a@x'", "'a@x'"),
        ["a@x", "a@x~"],
    ),
    "partitioned": (
        """create table t (id uuid, region int, mail text, primary key (id, region), unique (region, mail)) partition by list (region);
           create table t_1 partition of t for values in (1); create table t_2 partition of t for values in (2)""",
        ("1, 'x'", "1, 'x'"),
        ["1,x", "1,"],
    ),
}


@pytest.mark.parametrize("kind", SCHEMAS)
async def test_every_kind_of_constraint(sites: Sites, pair: Pair, kind: str) -> None:
    schema, (one, other), expected = SCHEMAS[kind]
    a, b = await sites(schema, *pair)
    await a.do(f"insert into t values ('{key(1)}', {one})")
    await b.do(f"insert into t values ('{key(2)}', {other})")
    there, here = await a.batch(b), await b.batch(a)
    await b.apply(there)
    await a.apply(here)
    for site in (a, b):
        found = [row.strip("()").replace('"', "").partition(",")[2] for row in await site.table("t")]
        yields = kind != "partitioned" or await site.one(
            "select syncagent._name_uuid(row($1::uuid, 1)::text) < syncagent._name_uuid(row($2::uuid, 1)::text)",
            key(1),
            key(2),
        )
        wanted = expected if yields else expected[::-1]
        assert [f.partition("~")[0] + "~" * ("~" in f) for f in found] == wanted
        assert await site.parked() == []
    await quiet(a, b)
    await same("t", a, b)


async def test_two_constraints_of_one_row(sites: Sites, pair: Pair) -> None:
    schema = "create table customer (id uuid primary key, email text unique, name text unique)"
    a, b = await sites(schema, *pair)
    await a.do(insert(1, "ann@x", "Ann"), insert(3, "bob@x", "Bob"))
    await b.do(insert(2, "ann@x", "Bob"), insert(4, "cyd@x", "Ann"))
    there, here = await a.batch(b), await b.batch(a)
    await b.apply(there)
    await a.apply(here)
    await quiet(a, b)
    rows = await same("customer", a, b)
    assert [row.split(",", 1)[1] for row in rows] == ["ann@x,Ann)", ",Bob)", "bob@x,)", "cyd@x,)"]
    assert len(await collisions(a)) == len(await collisions(b)) == 3


async def test_reported_only(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    for site in (a, b):
        await site.do("""update syncagent.replicated set policies = '{"customer_email_key": "report"}'""")
    await a.do(insert(1, "ann@x"))
    await b.do(insert(2, "ann@x"))
    applied = await ship(a, b)
    assert applied.parked == 1
    assert await emails(b) == ["ann@x"]
    await b.do("update syncagent.replicated set policies = '{}'")  # and now it is to be settled
    assert await b.store.replica.retry_parked() == 0
    assert await emails(b) == ["ann@x", None]
    await quiet(a, b)
    await same("customer", a, b)


KEPT = {
    "a foreign key": "create table u (id uuid primary key); insert into u values ('{}'); create table t (id uuid primary key, r uuid unique references u)",
    "not null": "create table t (id uuid primary key, r uuid unique not null)",
    "a key of others": "create table t (id uuid primary key, r uuid unique); create table u (id uuid primary key, r uuid references t (r))",
}


@pytest.mark.parametrize("what", KEPT)
async def test_a_row_that_has_nothing_to_yield_is_parked(sites: Sites, pair: Pair, what: str) -> None:
    a, b = await sites(KEPT[what].replace("{}", timeless(9)), *pair)
    await a.do(f"insert into t values ('{key(1)}', '{timeless(9)}')")
    await b.do(f"insert into t values ('{key(2)}', '{timeless(9)}')")
    await ship(a, b)
    assert [error for _, error in await b.parked()] == ["23505"]


async def test_one_that_cannot_yield_waits_alone(sites: Sites, pair: Pair) -> None:
    schema = "create table customer (id uuid primary key, email text unique, name text, check (name <> 'vip' or email is not null))"
    a, b = await sites(schema, *pair)
    await b.do(insert(1, "ann@x"), insert(2, "bob@x"))
    await a.do(insert(3, "ann@x", "vip"), insert(4, "bob@x"), insert(5, "cyd@x"))
    await ship(a, b)
    await b.store.replica.retry_parked()
    assert [(row["email"], error) for row, error in await b.parked()] == [("ann@x", "23505")]
    assert await emails(b) == ["ann@x", "bob@x", None, "cyd@x"]
    await b.do("update customer set email = 'free' where email = 'ann@x'")
    assert await b.store.replica.retry_parked() == 0
    await quiet(a, b)
    await same("customer", a, b)


async def test_who_was_written_since_yields_again(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(1, "ann@x"))
    await b.do(insert(2, "ann@x"))
    there = await a.batch(b)
    await ship(b, a)  # a has settled it
    await b.do("update customer set name = 'y'")  # b has not seen anything yet
    await b.apply(there)
    await quiet(a, b)
    rows = await same("customer", a, b)
    assert [row.split(",", 1)[1] for row in rows] == ["ann@x,x)", ",y)"]


async def test_the_row_that_is_to_yield_is_being_written(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await b.do(insert(2, "ann@x"))
    await b.cut()
    await a.do(insert(1, "ann@x"))
    batch = await a.batch(b)
    session = await b.holding("update customer set name = 'y'")
    with pytest.raises(Contended):
        await b.apply(batch)
    assert await collisions(b) == []
    await session.execute("commit")
    await b.apply(batch)
    await quiet(a, b)
    rows = await same("customer", a, b)
    assert [row.split(",", 1)[1] for row in rows] == ["ann@x,x)", ",y)"]


async def test_many_at_once(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    many = "insert into customer select ('01900000-0000-7000-8000-' || lpad((n * 2 + {0})::text, 12, '0'))::uuid, n || '@x', 'n' from generate_series(1, 3000) n"
    await a.do(many.format(0))
    await b.do(many.format(1))
    there, here = await a.batch(b), await b.batch(a)
    await b.apply(there)
    await a.apply(here)
    await quiet(a, b)
    assert await a.one("select count(email) from customer") == 3000
    assert len(await same("customer", a, b)) == 6000
    assert len(await collisions(a)) == len(await collisions(b)) == 3000


async def test_images_say_what_was_there(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(1, "ann@x", "of a"))
    await b.do(insert(2, "ann@x", "of b"))
    await exchange(a, b)
    (winning, losing), *_ = await b.rows(
        "select winning_image, losing_image from syncagent.conflict where kind = 'unique'"
    )
    assert json.loads(winning) == {"id": key(1), "email": "ann@x", "name": "of a"}
    assert json.loads(losing) == {"id": key(2), "email": "ann@x", "name": "of b"}


# ---- settled by hand


async def collided(sites: Sites, pair: Pair) -> tuple[Site, Site, UUID]:
    """B's row has yielded to A's; the id of the conflict."""
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(1, "ann@x", "of a"))
    await b.do(insert(2, "ann@x", "of b"))
    await cross(a, b)
    (conflict,) = {i for s in (a, b) for (i,) in await s.rows("select id from syncagent.conflict where open")}
    return a, b, conflict


async def open_(site: Site) -> list[bool]:
    return [row[0] for row in await site.rows("select open from syncagent.conflict")]


async def test_equal_settlements_are_no_conflict(sites: Sites, pair: Pair) -> None:
    a, b, _ = await collided(sites, pair)
    assert await a.conflicts() == await b.conflicts() == ["unique"]


async def test_whoever_gives_the_row_a_value_settles_it_everywhere(sites: Sites, pair: Pair) -> None:
    a, b, _ = await collided(sites, pair)
    assert await open_(a) == await open_(b) == [True]
    await b.do("update customer set email = 'ann2@x' where name = 'of b'")
    assert await open_(b) == [False]
    await quiet(a, b)
    assert await open_(a) == [False]


async def test_the_loser_gets_the_value_and_back(sites: Sites, pair: Pair) -> None:
    a, b, conflict = await collided(sites, pair)
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    await quiet(a, b)
    assert await emails(a) == await emails(b) == [None, "ann@x"]
    assert await open_(a) == await open_(b) == [False]
    with pytest.raises(asyncpg.PostgresError, match="was resolved already"):
        await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    with pytest.raises(asyncpg.PostgresError, match=f"was resolved already, by postgres at site{a.node}"):
        await b.rows("select syncagent.resolve($1, 'loser')", conflict)
    await b.rows("select syncagent.undo($1)", conflict)
    await quiet(a, b)
    with pytest.raises(asyncpg.PostgresError, match="is not resolved"):
        await a.rows("select syncagent.undo($1)", conflict)
    assert await emails(a) == await emails(b) == ["ann@x", None]
    assert await open_(a) == await open_(b) == [True]
    await same("customer", a, b)


async def test_a_value_of_its_own(sites: Sites, pair: Pair) -> None:
    a, b, conflict = await collided(sites, pair)
    with pytest.raises(asyncpg.PostgresError, match="has the value already"):
        await a.rows("select syncagent.resolve($1, 'winner')", conflict)
    with pytest.raises(asyncpg.PostgresError, match="no column mail"):
        await a.rows("""select syncagent.resolve_with($1, '{"mail": "x"}')""", conflict)
    with pytest.raises(asyncpg.UniqueViolationError):
        await a.rows("""select syncagent.resolve_with($1, '{"email": "ann@x"}')""", conflict)
    assert await open_(a) == [True]
    await a.rows("""select syncagent.resolve_with($1, '{"email": "ann2@x"}')""", conflict)
    await b.do("update customer set email = 'ann3@x' where name = 'of b'")
    with pytest.raises(asyncpg.PostgresError, match="is settled"):
        await b.rows("""select syncagent.resolve_with($1, '{"email": "ann4@x"}')""", conflict)
    await quiet(a, b)
    await same("customer", a, b)


async def test_what_was_noticed_long_ago_is_forgotten_unless_it_is_open(sites: Sites, pair: Pair) -> None:
    a, b, conflict = await collided(sites, pair)
    await a.do("update customer set name = 'a' where email is null")
    await b.do("update customer set name = 'b' where email is null")
    await cross(a, b)
    assert sorted(await a.conflicts()) == ["unique", "update/update"]
    assert await a.one("select syncagent._forget_conflicts('1 hour', 10)") == 0
    assert await a.one("select syncagent._forget_conflicts('0', 10)") == 1
    assert await a.conflicts() == ["unique"]
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    assert await a.one("select syncagent._forget_conflicts('0', 10)") == 1
    assert len(await b.conflicts()) == 2


async def test_what_was_overwritten_is_taken_back(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(1, "ann@x"))
    await exchange(a, b)
    await a.do("update customer set name = 'a'")
    await b.do("update customer set name = 'b'")
    await cross(a, b)
    (found,) = await a.rows("select id, winner, loser, open from syncagent.conflict")
    conflict, winner, loser, waits = found
    assert not waits
    with pytest.raises(asyncpg.PostgresError, match="neither winner nor loser"):
        await a.rows("select syncagent.resolve($1, 'nobody')", conflict)
    await b.rows("select syncagent.resolve($1, $2)", conflict, loser)
    await quiet(a, b)
    lost = {"site1": "a", "site2": "b"}[loser]
    assert [row[0] for row in await a.rows("select name from customer")] == [lost]
    await b.rows("select syncagent.undo($1)", conflict)
    await quiet(a, b)
    assert [row[0] for row in await a.rows("select name from customer")] == [
        {"site1": "a", "site2": "b"}[winner]
    ]
    assert await a.conflicts() == ["update/update"]


@pytest.mark.parametrize("deleted_wins", [True, False])
async def test_a_delete_is_taken_back_or_made(sites: Sites, pair: Pair, deleted_wins: bool) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(1, "ann@x"))
    await exchange(a, b)
    await (a if deleted_wins else b).clock_ahead(5)
    await a.do("delete from customer")
    await b.do("update customer set name = 'b'")
    await cross(a, b)
    assert len(await same("customer", a, b)) == (0 if deleted_wins else 1)
    (conflict,) = await a.rows("select id from syncagent.conflict")
    await a.rows("select syncagent.resolve($1, 'loser')", *conflict)
    await quiet(a, b)
    assert len(await same("customer", a, b)) == (1 if deleted_wins else 0)
    await a.rows("select syncagent.undo($1)", *conflict)
    await quiet(a, b)
    assert len(await same("customer", a, b)) == (0 if deleted_wins else 1)


async def test_who_may_settle(sites: Sites, pair: Pair) -> None:
    a, _, conflict = await collided(sites, pair)
    role = f"clerk_{a.name}"
    a.server.create_role(role)
    await a.do(
        f"select syncagent.grant_reader('{role}')",
        f"grant select on customer to {role}",
    )
    try:
        clerk = await a.session(role)
        with pytest.raises(asyncpg.PostgresError, match="may not update table public"):
            await clerk.execute(f"select syncagent.resolve('{conflict}', 'loser')")
        await a.do(f"grant update on customer to {role}")
        await clerk.execute(f"select syncagent.resolve('{conflict}', 'loser')")
        assert await a.rows("select resolved_by from syncagent.conflict") == [(role,)]
    finally:
        await a.do(f"drop owned by {role}", f"drop role {role}")


async def schedule(three: list[Site], number: int) -> None:
    rnd = random.Random(number)
    given: dict[int, set[str]] = {}
    for step in range(1, 50):
        site, mail = rnd.choice(three), f"{rnd.randrange(8)}@x"
        there = [
            row[0]
            for row in await site.rows(
                "select ('x' || right(id::text, 8))::bit(32)::int from customer order by id"
            )
        ]
        free = not await site.one("select exists (select from customer where email = $1)", mail)
        dice = rnd.random()
        if dice < 0.25 and free:
            await site.do(insert(step, mail))
            given.setdefault(step, set()).add(mail)
        elif dice < 0.40 and free and there:
            await site.do(
                f"update customer set email = '{mail}' where id = '{key(chosen := rnd.choice(there))}'"
            )
            given[chosen].add(mail)
        elif dice < 0.50 and there:
            await site.do(f"update customer set name = '{step}' where id = '{key(rnd.choice(there))}'")
        elif dice < 0.58 and there:
            await site.do(f"delete from customer where id = '{key(rnd.choice(there))}'")
        elif dice < 0.64:
            await site.compact()
        else:
            await ship_if_ready(rnd.choice([other for other in three if other is not site]), site)
    await quiet(*three)
    for site in three:  # as an agent does after each batch
        await site.store.replica.retry_parked()
    await quiet(*three)
    rows = await same("customer", *three)
    assert all([await site.parked() == [] for site in three]), f"SEED={number}"
    held = {int(row[1:37][-12:], 16): row.split(",")[1] for row in rows}
    yielded = {key(chosen) for chosen, mail in held.items() if not mail}
    for site in three:
        told = {row[0] for row in await site.rows("select key from syncagent.conflict where open")}
        assert told == yielded, f"who yielded is not in an open conflict, or another one is: SEED={number}"
    for mail in {mail for mails in given.values() for mail in mails}:
        first = min(chosen for chosen, mails in given.items() if mail in mails)
        if given[first] == {mail} and first in held:
            assert held[first] == mail, f"the first does not keep its value: SEED={number}"


@pytest.mark.soak
async def test_random_schedules(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    """As in tests/model/unique.py, on real servers: inserts, values given, passed on and taken away, deletes, late batches."""
    for number in range(seed, seed + runs(2, 200)):
        async with laboratory.sites(CUSTOMER, *pair, pair[0]) as three:
            await schedule(three, number)


async def ship_if_ready(origin: Site, receiver: Site) -> None:
    batch = await origin.batch(receiver)
    if await receiver.ready(batch.header):
        try:
            await receiver.apply(batch)
        except Inexact:
            await receiver.apply(await origin.batch(receiver, plain=False))


# ---- what must not happen


async def test_an_index_over_what_does_not_travel(sites: Sites, pair: Pair) -> None:
    schema = """create table customer (id uuid primary key, email text, name text check (name <> 'no'),
        lower_mail text generated always as (lower(email)) stored unique)"""
    a, b = await sites(schema, *pair)
    await b.do("alter table customer add column later int unique default 7")
    columns = "insert into customer (id, email, name) values "
    await b.do(f"{columns} ('{key(1)}', 'ann@x', 'b')")
    await a.do(f"{columns} ('{key(2)}', 'ANN@x', 'a')", f"{columns} ('{key(3)}', 'cyd@x', 'a')")
    assert (await ship(a, b)).parked == 2  # by its generated column, and by the default of the other one
    await b.do("alter table customer drop column later", "update customer set email = 'free@x'")
    assert await b.store.replica.retry_parked() == 0


async def test_an_expression_that_fails_on_a_row_parks_it(sites: Sites, pair: Pair) -> None:
    a, b = await sites("create table t (id uuid primary key, doc jsonb)", *pair)
    await b.do(
        "create unique index on t (((doc ->> 'n')::int))",
        f"insert into t values ('{key(1)}', '{{\"n\": 1}}')",
    )
    await a.do(
        f"""insert into t values ('{key(2)}', '{{"n": 1}}'), ('{key(3)}', '{{"n": "x"}}'), ('{key(4)}', '{{"n": 4}}')"""
    )
    await ship(a, b)
    await b.store.replica.retry_parked()
    assert [error for _, error in await b.parked()] == ["22P02"]
    assert [row[0] for row in await b.rows("select doc ->> 'n' from t order by id")] == ["1", None, "4"]


async def test_a_row_whose_newer_version_is_parked_collides_with_nothing(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await a.do(insert(5, "ann@x"))
    await exchange(a, b)
    await b.do("alter table customer add constraint no_bob check (email <> 'bob@x')")
    await a.do("update customer set email = 'bob@x'", insert(1, "ann@x"))
    await ship(a, b)
    await b.store.replica.retry_parked()
    assert len(await b.parked()) == 2
    assert await emails(b) == ["ann@x"]
    assert await collisions(b) == []
    await b.do("alter table customer drop constraint no_bob")
    assert await b.store.replica.retry_parked() == 0
    await quiet(a, b)
    assert await emails(b) == ["ann@x", "bob@x"]


async def test_nothing_is_settled_while_a_site_joins(sites: Sites, pair: Pair) -> None:
    a, b = await sites(CUSTOMER, *pair)
    await b.do(insert(2, "ann@x"), "update syncagent.local_site set joining = true")
    await a.do(insert(1, "ann@x"))
    await ship(a, b)
    await b.store.replica.retry_parked()
    assert len(await b.parked()) == 1
    await b.do("update syncagent.local_site set joining = false")
    assert await b.store.replica.retry_parked() == 0


async def test_the_other_row_keeps_what_it_has_by_now(sites: Sites, pair: Pair) -> None:
    a, b, conflict = await collided(sites, pair)
    await a.do("update customer set email = 'new@x' where name = 'of a'")
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    assert await emails(a) == ["new@x", "ann@x"]
    await a.do("update customer set name = 'Ann' where email = 'ann@x'")
    await a.rows("select syncagent.undo($1)", conflict)
    assert await a.rows("select email, name from customer order by id") == [("new@x", "of a"), (None, "Ann")]
    await quiet(a, b)
    await same("customer", a, b)


async def test_columns_that_stay_as_they_are(sites: Sites, pair: Pair) -> None:
    a, _, conflict = await collided(sites, pair)
    with pytest.raises(asyncpg.PostgresError, match="nothing to write"):
        await a.rows("select syncagent.resolve_with($1, $2)", conflict, json.dumps({"id": key(9)}))
    assert await open_(a) == [True]


async def test_conflicts_of_a_table_that_has_another_key_by_now(sites: Sites, pair: Pair) -> None:
    a, _, _ = await collided(sites, pair)
    await a.do(
        "select syncagent._detach('customer')",
        "alter table customer drop column id, add column id int generated always as identity primary key",
        "select syncagent._attach('customer', true, false)",
    )
    assert await open_(a) == [False]
