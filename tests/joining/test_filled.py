"""A site joins whose tables hold rows already: equal ones stay, of others the larger stamp or content wins everywhere,
and what only it has goes to all."""

import asyncpg

from syncagent.core.copying import At
from syncagent.embedded import Server
from syncagent.services.surveyor import survey
from tests.joining.conftest import MakeJoin
from tests.support.lab import exchange, key, same

TABLES = """
create table item (id uuid primary key, name text not null unique, note text);
create table stock (code text primary key, pieces integer not null);
create table empty (id uuid primary key, n integer);
comment on table stock is 'lww-column'
"""
HERE = f"""
insert into item values ('{key(1)}', 'equal', null), ('{key(2)}', 'larger here', 'z'), ('{key(3)}', 'smaller here', 'a'),
    ('{key(4)}', 'old', null), ('{key(5)}', 'deleted there', null), ('{key(6)}', 'only here', null);
insert into stock values ('equal', 1), ('differs', 20), ('only here', 4)
"""
THERE = [
    f"insert into item values ('{key(1)}', 'equal', null), ('{key(2)}', 'larger here', 'y'), ('{key(3)}', 'smaller here', 'b')",
    f"insert into item values ('{key(4)}', 'older', null), ('{key(5)}', 'deleted there', null), ('{key(8)}', 'only there', null)",
    "insert into stock values ('equal', 1), ('differs', 10), ('only there', 5)",
    f"insert into empty values ('{key(1)}', 1)",
]
LATER = [f"update item set name = 'new' where id = '{key(4)}'", f"delete from item where id = '{key(5)}'"]


async def test_rows_that_are_there_already(make_join: MakeJoin, server15: Server, server18: Server) -> None:
    async with make_join(TABLES, "select 1", server15, server18, server18, joiner_tables=TABLES) as join:
        donor, third = join.members
        await donor.do(*THERE)
        await exchange(donor, third)
        await donor.do(*LATER)
        connection = await asyncpg.connect(join.dsn)
        await connection.execute(HERE)
        await connection.close()
        await join.listen(range_rows=3)

        async with join.ends() as (there, here):
            await here.begin(await there.plan())
            begun = await here.unfinished()
            assert begun is not None
            found = {one.table: one for one in await survey(there, here, begun.plan, At(0, None, {}))}
            seen = {name: (one.equal, one.lacking, one.changed, one.extra) for name, one in found.items()}
            assert seen["public.item"] == (1, 1, 3, 2)
            assert seen["public.stock"] == (1, 1, 1, 1)
            assert found["public.empty"].missing

        report = await join.copy()
        assert report.conflicts == 4
        await join.conclude()
        joiner = await join.site()
        await exchange(donor, third, joiner)
        await exchange(donor, third, joiner)
        for table in ("item", "stock", "empty"):
            await same(table, donor, third, joiner)
        rows = {row[0]: row[1] for row in await joiner.rows("select name, note from item")}
        assert rows == {
            "equal": None,
            "larger here": "z",
            "smaller here": "b",
            "new": None,
            "only here": None,
            "only there": None,
        }
        kinds = sorted(kind.split(" ")[0] for kind in await joiner.conflicts())
        assert kinds == ["insert/insert", "update/delete", "update/update", "update/update"]
        assert len(await donor.conflicts()) == 1, "what it had itself was the smaller content"
