"""The copy of the rows with which a site joins, while everyone keeps writing."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from uuid import UUID

import asyncpg
import pytest

from syncagent.core import stamp
from syncagent.core.copying import Range
from syncagent.core.frontier import covers
from syncagent.embedded import Server
from syncagent.errors import Inexact
from tests.joining.conftest import MakeJoin
from tests.support.joining import Joining
from tests.support.lab import Site, exchange, key, patiently, same

TABLES = """
create table customer (id uuid not null, name text not null, credit numeric(12, 2) not null, body text);
create table item (id bigint not null, name text not null, stock integer not null);
create table line (customer uuid not null, position integer not null, quantity integer, text text);
create table event (id uuid not null, day date not null, what json) partition by range (day);
create table event_2025 partition of event for values from ('2025-01-01') to ('2026-01-01');
create table event_2026 (day date not null, what json, id uuid not null);
alter table event attach partition event_2026 for values from ('2026-01-01') to ('2027-01-01');
create table nothing (id uuid not null, n integer);
comment on table customer is 'lww-column';
comment on table line is 'lww-column'
"""
KEYS = """
alter table customer add primary key (id);
alter table item add primary key (id);
alter table line add primary key (customer, position);
alter table event add primary key (id, day);
alter table nothing add primary key (id)
"""
FILL = [
    "insert into customer select syncagent.uuid7(), 'c' || n, n, null from generate_series(1, {0}) n",
    "insert into item select n, 'i' || n, n from generate_series(1, {0}) n",
    "insert into line select c.id, p, p, 'text' from customer c cross join generate_series(1, 3) p",
    "insert into event select syncagent.uuid7(), date '2025-06-01' + n % 500, json_build_object('n', n) from generate_series(1, {0}) n",
]
NAMES = ("customer", "item", "line", "event", "nothing")


async def test_a_copy(make_join: MakeJoin, server15: Server, server18: Server) -> None:
    async with make_join(TABLES, KEYS, server15, server18) as join:
        (donor,) = join.members
        await donor.do(*(text.format(500) for text in FILL))
        await join.listen()

        report = await join.copy()
        assert report.rows == 500 + 500 + 1500 + 500
        concluded = await join.conclude()
        joiner = await join.site()

        for name in NAMES:
            await same(name, donor, joiner)
        assert await joiner.frontier() == concluded.frontier
        await exchange(donor, joiner)
        assert await joiner.conflicts() == await donor.conflicts() == []


# ---- while everyone writes


async def write(site: Site, chance: random.Random) -> None:
    """One transaction of an application that touches what was written a moment ago more often than what is old."""
    late = "order by id desc limit 5 offset " + str(chance.choice((0, 0, 0, 3, 200)))
    n = chance.randrange(1, 900)
    await site.do(
        chance.choice(
            (
                "insert into customer values (syncagent.uuid7(), 'new', 1, null)",
                "insert into customer select syncagent.uuid7(), 'new', n, null from generate_series(1, 20) n",
                f"update customer set credit = credit + 1 where id in (select id from customer {late})",
                f"update customer set name = name || '+' where id in (select id from customer {late})",
                f"delete from customer where id in (select id from customer {late})",
                f"update item set stock = stock + {n} where id between {n} and {n + 5}",
                f"delete from item where id = {n}",
                f"insert into item values ({n}, 'again', {n}) on conflict do nothing",
                f"insert into item values ({chance.randrange(10**6)}, 'new', {n}) on conflict do nothing",
                f"update line set quantity = {n} where customer in (select id from customer {late})",
                f"delete from line where customer in (select id from customer {late}) and position = 2",
                "insert into line select id, 9, 9, 'late' from customer order by id desc limit 3 on conflict do nothing",
                f"insert into event values (syncagent.uuid7(), date '2025-12-25' + {n % 20}, '{{}}')",
                f"update event set day = day + 9 where id in (select id from event {late}) and day < '2026-12-01'",
                f"update event set what = '[{n}]' where id in (select id from event {late})",
                f"with d as (delete from customer where id in (select id from customer {late}) returning *) insert into customer select id, name, 0, 'again' from d",
            )
        )
    )


async def mix(sites: Sequence[Site], chance: random.Random) -> None:
    """Some writes, and some of what the sites would do about them."""
    for _ in range(chance.randrange(6)):
        with suppress(asyncpg.UniqueViolationError):
            await write(chance.choice(sites), chance)
    doing = chance.randrange(4)
    if doing == 0:
        await patiently(sites[0].cut)
    elif doing == 1 and len(sites) > 1:
        origin, receiver = chance.sample(list(sites), 2)
        shipment = await patiently(partial(origin.batch, receiver))
        if await receiver.ready(shipment.header):
            try:
                await patiently(partial(receiver.apply, shipment))
            except Inexact:
                exact = await patiently(partial(origin.batch, receiver, plain=False))
                await patiently(partial(receiver.apply, exact))


async def converges(donor: Site, *others: Site) -> None:
    """Everything everywhere, the same rows, the same versions, and no conflict at the joiner, the last one, that is none. (It
    may know one more than the others: with an older version that they have only heard of in its last state.)"""
    sites = (donor, *others)
    await exchange(*sites, rounds=30)
    for name in NAMES:
        await same(name, *sites)
        for other in others:
            assert await other.versions(name) == await donor.versions(name), f"versions of {name}"
    known = {row for site in sites[:-1] for row in await site.rows(CONFLICTS)}
    for row in set(await sites[-1].rows(CONFLICTS)) - known:
        won, lost = ((UUID(str(row[n])), sites[row[n + 2] - 1]) for n in (2, 3))
        for (written, writer), (unseen, origin) in ((won, lost), (lost, won)):
            assert not await had_seen(writer, written, origin, unseen), row


CONFLICTS = (
    "select id, kind, winning_stamp, losing_stamp, winning_node, losing_node from syncagent.conflict_record"
)


async def had_seen(writer: Site, written: UUID, origin: Site, other: UUID) -> bool:
    """Whether the first cut of a write was made when its site had a cut of the other one's origin that held that."""
    cuts = "select max(c.newest) from syncagent.context c where c.node = $1 and c.cut <= $2"
    for cut, context in await writer.rows(
        "select cut, context::text from syncagent.context where node = $1 order by cut", writer.node
    ):
        if await writer.one(cuts, writer.node, cut) >= stamp.hlc(written):
            upto = json.loads(context).get(str(origin.node), 0)
            return bool((await origin.one(cuts, origin.node, upto) or 0) >= stamp.hlc(other))
    return False


async def joined_while_everyone_writes(join: Joining, chance: random.Random) -> None:
    donor, other = join.members
    await donor.do(*(text.format(900) for text in FILL))
    await donor.do(
        f"insert into customer values ('{key(1)}', 'large', 1, (select string_agg(md5(n::text), '') from generate_series(1, 50000) n))"
    )
    await exchange(donor, other)
    for _ in range(10):
        await mix(join.members, chance)
    await join.listen(range_rows=300)
    turn = asyncio.Lock()

    async def around(_range: Range) -> None:
        async with turn:
            await mix(join.members, chance)

    join.before = join.after = around
    report = await join.copy(workers=2)
    assert report.ranges > 10
    await mix(join.members, chance)
    concluded = await join.conclude()
    joiner = await join.site()
    for _ in range(5):
        await mix(join.members, chance)
    await converges(donor, other, joiner)
    assert covers(await joiner.frontier(), concluded.reach)

    # from here on it is a site like any other: what it writes at the same time is a conflict, once
    row = await donor.one("select id from customer where name <> 'large' order by id limit 1")
    before = len(await joiner.conflicts())
    await donor.do(f"update customer set name = 'donor' where id = '{row}'")
    await joiner.do(f"update customer set name = 'joiner' where id = '{row}'")
    await exchange(donor, other, joiner)
    assert len(await joiner.conflicts()) == before + 1
    assert len(await same("customer", donor, other, joiner)) > 800


@pytest.mark.soak
async def test_while_everyone_writes(
    make_join: MakeJoin, server15: Server, server18: Server, seed: int, runs: Callable[[int, int], int]
) -> None:
    for run in range(runs(1, 60)):
        servers = (server15, server18, server15) if run % 2 else (server18, server15, server18)
        async with make_join(TABLES, KEYS, *servers) as join:
            await joined_while_everyone_writes(join, random.Random(seed + run))


SHOP = """create table customer (id uuid not null, email text, name text); create table sale (id uuid not null, customer uuid not null)"""
SHOP_KEYS = """alter table customer add primary key (id), add constraint customer_email_key unique (email);
    alter table sale add primary key (id), add foreign key (customer) references customer (id) on delete cascade"""


async def test_who_was_merged_away_is_known_to_the_joiner(
    make_join: MakeJoin, server15: Server, server18: Server
) -> None:
    """Rows that come late, of a site that has not heard of the merges, follow at the joiner as elsewhere: there was one merge
    before the copy, and one at its beginning, of which it gets the delete, but the alias with a batch."""
    async with make_join(SHOP, SHOP_KEYS, server15, server18, server15) as join:
        donor, third = join.members
        for site in join.members:
            await site.do("""update syncagent.replicated set policies = '{"customer_email_key": "merge"}'""")

        async def merges(number: int) -> None:
            """The donor has merged a customer of the third site into its own."""
            first, second = key(number), key(number + 1)
            await third.do(f"insert into customer values ('{second}', '{number}@x', 'second')")
            await donor.do(f"insert into customer values ('{first}', '{number}@x', 'first of {number}')")
            await donor.apply(await third.batch(donor))
            await donor.do(f"update customer set email = '{number}@y' where id = '{first}'")
            await donor.cut()
            await third.do(f"insert into sale values ('{key(10 + number)}', '{second}')")

        async def around(_range: Range) -> None:
            if len(join.asked) == 1:
                await merges(3)

        await merges(1)
        await join.listen()
        join.before = around
        await join.copy(workers=1)
        await join.conclude()
        joiner = await join.site()
        owners = "select c.name from sale s left join customer c on c.id = s.customer order by s.id"
        await joiner.apply(await third.batch(joiner, plain=False))
        assert await joiner.rows(owners) == [("first of 1",), (None,)]
        await joiner.apply(await donor.batch(joiner, plain=False))
        assert await joiner.rows(owners) == [("first of 1",), ("first of 3",)]
        await exchange(donor, third, joiner)
        for name in ("customer", "sale"):
            assert len(await same(name, donor, third, joiner)) == 2
