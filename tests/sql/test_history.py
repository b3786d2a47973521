"""The history of conflicts: every site has all of it, wherever the two met, and whoever settled it."""

import asyncio
from functools import partial
from typing import Any

import asyncpg
import pytest

from syncagent.core.outbox import Group
from syncagent.errors import SyncagentError
from tests.sql.conftest import Pair, Sites
from tests.support.lab import ITEM, Row, Site, cross, exchange, key, quiet, same, ship
from tests.support.waiting import eventually

_HISTORY = """
    select id, table_name, key, kind, winner, loser, winning_image, losing_image, resolved_at, resolved_by, resolved_site, noticed_by
    from syncagent.conflict order by id
"""
_SETTLED = "select resolved_by is not null, resolved_site from syncagent.conflict where id = $1"


async def history(*sites: Site) -> list[Row]:
    """What is known of conflicts, which is the same at all sites."""
    found = [await site.rows(_HISTORY) for site in sites]
    assert all(other == found[0] for other in found), found
    return found[0]


async def known(site: Site) -> list[str]:
    """Kinds of the conflicts that a site has, whoever noticed them."""
    return [row[0] for row in await site.rows("select kind from syncagent.conflict order by kind")]


async def met(a: Site, b: Site) -> Any:
    """A conflict of one row, noticed at both; its id."""
    await a.do(f"insert into item values ('{key(1)}', 0, 'as it was')")
    await exchange(a, b)
    await a.do("update item set value = 1, note = 'of a'")
    await b.clock_ahead(1)
    await b.do("update item set value = 2, note = 'of b'")
    await cross(a, b)
    return await a.one("select id from syncagent.conflict_record")


async def test_a_site_that_never_met_the_two_has_the_conflict(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    await met(a, b)
    await quiet(a, b, c)
    (conflict,) = await history(a, b, c)
    assert conflict[3:6] == ("update/update", "site2", "site1")
    assert '"of b"' in conflict[6]
    assert '"of a"' in conflict[7]
    assert conflict[-1] == ["site1", "site2"]
    assert await known(c) == ["update/update"]
    assert not await c.one("select exists (select from syncagent.conflict_step where node = $1)", c.node), (
        "what a site was told it does not tell on as its own"
    )


async def test_it_is_settled_at_any_site_and_taken_back_at_any_other(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await quiet(a, b, c)
    await c.rows("select syncagent.resolve($1, 'loser')", conflict)
    await quiet(a, b, c)
    await history(a, b, c)
    assert await a.rows(_SETTLED, conflict) == [(True, "site3")]
    assert [row["note"] for row in await b.app.fetch("select note from item")] == ["of a"]
    with pytest.raises(asyncpg.PostgresError, match="was resolved already, by postgres at site3"):
        await a.rows("select syncagent.resolve($1, 'winner')", conflict)
    # a's clock is far behind that of the last step: what is taken back after it was seen is taken back all the same
    await c.rows("select syncagent.undo($1)", conflict)
    await c.rows("select syncagent.resolve($1, 'loser')", conflict)
    await c.do(
        "update syncagent.conflict_step set hlc = hlc + 4096000 * 60::bigint where hlc = (select max(hlc) from syncagent.conflict_step)"
    )
    await quiet(a, b, c)
    await a.rows("select syncagent.undo($1)", conflict)
    await quiet(a, b, c)
    await history(a, b, c)
    assert await c.rows(_SETTLED, conflict) == [(False, None)]
    assert await same("item", a, b, c) == [f'({key(1)},2,"of b")']


async def test_two_who_settle_it_at_once_end_the_same(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await quiet(a, b, c)
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    await b.clock_ahead(2)
    await b.rows("""select syncagent.resolve_with($1, '{"note": "of both"}')""", conflict)
    await cross(a, b)
    await quiet(a, b, c)
    await history(a, b, c)
    assert await c.rows(_SETTLED, conflict) == [(True, "site2")]
    await same("item", a, b, c)
    assert await c.one("select count(*) from syncagent.conflict_step where what = 'resolved'") == 2


async def test_what_was_written_since_is_taken_back_by_nobody(sites: Sites, pair: Pair) -> None:
    """Neither by a version of that time, nor by values for it, nor by taking a resolution back."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await quiet(a, b, c)
    take = [
        f"select syncagent.resolve('{conflict}', 'loser')",
        f"select syncagent.resolve('{conflict}', 'winner')",
        f"""select syncagent.resolve_with('{conflict}', '{{"note": "of both"}}')""",
    ]

    async def refused(statement: str, what: str) -> None:
        with pytest.raises(asyncpg.PostgresError, match=what) as told:
            await c.do(statement)
        assert told.value.sqlstate == "SA005"
        assert "syncagent.why('public.item'" in (told.value.hint or "")

    for write in ("update item set note = 'later'", "delete from item"):
        await a.do(write)
        await quiet(a, b, c)
        for statement in take:
            await refused(statement, r"is settled: row .* was written since")
    assert await c.rows("select * from item") == []
    await a.do(f"insert into item values ('{key(1)}', 2, 'of b')")  # as it was left
    await quiet(a, b, c)
    for took, write in zip(
        take, ("update item set value = 3", "delete from item", "delete from item"), strict=True
    ):
        await b.do(took)
        await quiet(a, b, c)
        await a.do(write)
        await quiet(a, b, c)
        undo = f"select syncagent.undo('{conflict}')"
        await refused(undo, r"was written since conflict .* was resolved")
        ((made,),) = await b.rows(
            "select (writes -> 0 -> 'made')::text from syncagent.conflict_step where what = 'resolved' order by hlc desc limit 1"
        )
        await a.do("delete from item")
        await a.do(
            f'insert into item select * from jsonb_populate_record(null::item, \'{{"id": "{key(1)}", "value": 2}}\' || \'{made}\'::jsonb)'
        )
        await quiet(a, b, c)
        await c.do(undo)
        await quiet(a, b, c)
        assert await same("item", a, b, c) == [f'({key(1)},2,"of b")']


async def test_who_waits_for_a_row_sees_what_it_has_become(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    conflict = await met(a, b)
    await quiet(a, b)
    writer, clerk = await b.session(), await b.session()
    turn = writer.transaction()
    await turn.start()
    await writer.execute("update item set note = 'at the same time'")
    asked = asyncio.create_task(clerk.execute(f"select syncagent.resolve('{conflict}', 'loser')"))
    blocked = "select count(*) from pg_locks where not granted and pid = $1"
    await eventually(partial(b.one, blocked, clerk.get_server_pid()), "it waits for the row")
    await turn.commit()
    with pytest.raises(asyncpg.PostgresError, match="was written since"):
        await asked
    assert await b.one("select note from item") == "at the same time"


async def test_it_comes_through_a_site_between(sites: Sites, pair: Pair) -> None:
    """C has no link with a: what a tells reaches it with b's own batch, whichever part is first."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await b.rows("select syncagent.resolve($1, 'loser')", conflict)
    await exchange(a, b)
    here = await c.frontier()
    cut = await b.cut_groups(
        [Group(here.get(n, 0), False, (c.node,), o) for n, o in ((a.node, a.node), (b.node, None))]
    )
    parts = [(shipment.header, shipment.spool) for shipment in cut.shipments]
    assert [header.origin for header, _ in parts] == [a.node, b.node]
    await c.store.replica.apply_knot(list(reversed(parts)), attempt=0)
    await history(a, b, c)
    assert await c.rows(_SETTLED, conflict) == [(True, "site2")]
    # and c can hand on what it was handed
    assert await c.rows(
        "select node, count(*) from syncagent.conflict_step where cut is not null group by 1 order by 1"
    ) == [
        (a.node, 1),
        (b.node, 2),
    ]


async def test_what_is_forgotten_does_not_come_back(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    assert await a.one("select syncagent._forget_conflicts('0', 10)") == 1
    assert await a.rows("select * from syncagent.conflict_step") == []
    await quiet(a, b, c)
    assert await known(a) == []
    assert await c.one("select noticed_by from syncagent.conflict") == ["site2"], "a tells of it no more"
    await b.do("update item set value = 2, note = 'of b'")
    await b.rows("select syncagent.resolve($1, 'winner')", conflict)
    await quiet(a, b, c)
    assert await c.rows(_SETTLED, conflict) == [(True, "site2")]
    assert await known(a) == []
    forgotten = [await site.one("select syncagent._forget_conflicts('0', 10)") for site in (a, b, c)]
    left = [await site.one("select count(*) from syncagent.conflict_step") for site in (a, b, c)]
    assert (forgotten, left) == ([0, 1, 1], [0, 0, 0]), "steps of what is forgotten go, too"


async def test_many_at_once_are_looked_for_by_the_index_also_where_there_were_none(
    sites: Sites, pair: Pair
) -> None:
    """Who notes them, and who is told, plans while there are none, and knows it: to read all for each would take a minute of 100,000."""
    a, b, c = await sites(ITEM, *pair, pair[0])
    rows = 1001  # fewer are never looked for without an index
    await a.do(f"insert into item select syncagent.uuid7(), n from generate_series(1, {rows}) as n")
    await exchange(a, b, c)
    looks = [(b, "syncagent.conflict_step"), (c, "syncagent.conflict_record")]
    counted = "select seq_scan, n_tup_ins from pg_stat_user_tables where relid = $1::text::regclass"
    before = []
    for site, table in looks:
        await site.do(f"vacuum analyze {table}")
        before += await site.rows(counted, table)
    await a.do("update item set note = 'of a'")
    await b.do("update item set note = 'of b'")
    await exchange(a, b, c)
    assert [len(await site.conflicts()) for site in (a, b, c)] == [0, rows, 0]
    for (site, table), (scans, inserts) in zip(looks, before, strict=True):
        await site.store.replica._session.close()  # it tells what it has counted, now at the latest
        told = f"select n_tup_ins >= $2 from ({counted}) as c"
        await eventually(partial(site.one, told, table, inserts + rows), f"the rows of {table} are counted")
        assert (await site.rows(counted, table))[0][0] - scans < rows / 2


async def test_a_table_that_is_not_here(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await quiet(a, b, c)
    await c.do("select syncagent._detach('item')", "drop table item")
    assert await c.rows("select table_name, open from syncagent.conflict") == [("public.item", False)]
    with pytest.raises(asyncpg.PostgresError, match="is not at this site") as raised:
        await c.rows("select syncagent.resolve($1, 'loser')", conflict)
    assert raised.value.sqlstate == "SA003"
    # one that is noticed now is told there all the same
    other = await a.one("select gen_random_uuid()")
    await a.do(
        "insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, winning_stamp, losing_stamp)"
        f" select '{other}', 'Not here', 'x\"y', key, key_text, kind, strategy, winning_stamp, losing_stamp from syncagent.conflict_record"
    )
    await ship(a, c)
    assert await c.rows("select table_name from syncagent.conflict where id = $1", other) == [
        ('"Not here"."x""y"',)
    ]


async def test_who_settles_one_holds_up_no_merge(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    conflict = await met(a, b)
    await quiet(a, b, c)
    await a.rows("select syncagent.resolve($1, 'loser')", conflict)
    await exchange(a, b)
    await a.rows("select syncagent.undo($1)", conflict)
    session = await b.session()
    turn = session.transaction()
    await turn.start()
    await session.execute("select from syncagent.conflict_record for update")
    await session.execute("select from syncagent.conflict_step for update")
    await ship(a, b)
    assert await b.rows(_SETTLED, conflict) == [(False, None)]
    await turn.rollback()


async def test_a_merge_that_is_taken_back_has_told_nothing(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    await met(a, b)
    await exchange(a, b)
    batch = await a.batch(c)
    await c.do("alter table syncagent.frontier add constraint refused check (node <> 1) not valid")
    with pytest.raises(SyncagentError, match="refused"):
        await c.apply(batch)
    assert (
        await c.rows("select * from syncagent.conflict_step")
        == await c.rows("select * from syncagent.conflict_record")
        == []
    )
    await c.do("alter table syncagent.frontier drop constraint refused")
    await quiet(a, b, c)
    await history(a, b, c)


async def test_a_site_that_returns_tells_what_it_had_not_told(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await met(a, b)
    told = await a.one("select max(number) from syncagent.cut")
    await a.rows("select syncagent.resolve(id, 'loser') from syncagent.conflict")
    await a.cut()
    await a.do(f"select syncagent._return(9, gen_random_uuid(), 99, {told}, 0)")
    assert await a.rows("select node, cut is null, what from syncagent.conflict_step order by 1, 2") == [
        (1, False, "noticed"),
        (2, False, "noticed"),
        (9, True, "resolved"),
    ]
