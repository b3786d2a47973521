"""The copy of the rows with which a site joins, while everyone keeps writing."""

from syncagent.embedded import Server
from tests.joining.conftest import MakeJoin
from tests.support.lab import exchange, same

TABLES = """
create table customer (id uuid not null, name text not null, credit numeric(12, 2) not null, body text);
create table item (id bigint not null, name text not null, stock integer not null);
create table line (customer uuid not null, position integer not null, quantity integer, text text);
create table event (id uuid not null, day date not null, what json) partition by range (day);
create table event_2025 partition of event for values from ('2025-01-01') to ('2026-01-01');
create table event_2026 (day date not null, what json, id uuid not null);
alter table event attach partition event_2026 for values from ('2026-01-01') to ('2027-01-01');
create table nothing (id uuid not null, n integer)
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


async def test_one_table(make_join: MakeJoin, server15: Server, server18: Server) -> None:
    join = await make_join(TABLES, KEYS, server15, server18)
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
