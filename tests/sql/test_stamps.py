"""The clock and the stamps made of it, held to core/stamp.py."""

import random
from datetime import UTC, datetime
from uuid import UUID

import pytest

from syncagent.core import stamp
from tests.sql.conftest import Pair, Sites
from tests.support.lab import ITEM, exchange
from tests.support.lab import key as key_of

HLC = "nextval('syncagent.hlc')"


async def test_stamps_are_packed_alike(sites: Sites, pair: Pair, seed: int) -> None:
    rnd = random.Random(seed)
    edges = [0, 1, 4095, 4096, stamp.MAX_HLC]
    parts = [(hlc, node, tail) for hlc in edges for node in (1, 65535) for tail in (0, stamp.MAX_TAIL)]
    parts += [(rnd.getrandbits(60), rnd.randint(1, 65535), rnd.getrandbits(46)) for _ in range(200)]
    for site in await sites(ITEM, *pair):
        made = await site.rows(
            "select syncagent._stamp(h, syncagent._tail(n, t)) from unnest($1::int8[], $2::int4[], $3::int8[]) as p (h, n, t)",
            *map(list, zip(*parts, strict=True)),
        )
        assert [row[0] for row in made] == [stamp.pack(*part) for part in parts]


async def test_stamps_are_read_alike(sites: Sites, pair: Pair, seed: int) -> None:
    rnd = random.Random(seed)
    keys = [UUID(int=rnd.getrandbits(128)) for _ in range(300)]
    keys += [stamp.pack(rnd.getrandbits(60), rnd.randint(1, 65535), rnd.getrandbits(46)) for _ in range(100)]
    for site in await sites(ITEM, *pair):
        read = await site.rows(
            "select k, syncagent._timed(k), syncagent._implicit(k), syncagent._hlc(k), syncagent.stamp_node(k)"
            " from unnest($1::uuid[]) as k order by k",
            keys,
        )
        assert [row[0] for row in read] == sorted(keys)
        for key, timed, implicit, hlc, node in read:
            assert timed == stamp.is_timed(key)
            assert implicit == stamp.implicit(key)
            assert hlc == stamp.hlc(key)
            assert node == (stamp.unpack(key).node if timed else None)


async def test_time_of_a_stamp(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    moment = datetime(2024, 2, 29, 12, 30, 15, 250000, tzinfo=UTC)
    floor = await a.one("select syncagent.uuid7_floor($1)", moment)

    assert stamp.hlc(floor) == stamp.from_seconds(moment.timestamp())
    assert await a.one("select syncagent.stamp_time($1::uuid)", floor) == moment
    assert await a.one("select syncagent.stamp_time(gen_random_uuid())") is None


async def test_keys_rise_and_say_where_they_were_made(sites: Sites, pair: Pair) -> None:
    _, b = await sites(ITEM, *pair)
    keys = [row[0] for row in await b.rows("select syncagent.uuid7() from generate_series(1, 100)")]

    assert keys == sorted(set(keys))
    assert {stamp.unpack(key).node for key in keys} == {2}


async def test_clock_is_never_behind_the_wall(sites: Sites, pair: Pair) -> None:
    # So the time in a key that was just made is below its transaction's stamp.
    (a,) = await sites(ITEM, pair[0])
    await a.do("select setval('syncagent.hlc', 1)")

    behind = await a.one(
        "with w as materialized (select syncagent._wall() as wall) select syncagent._tick() - wall from w"
    )
    after = await a.one(
        "with t as materialized (select syncagent._tick() as tick) select tick - syncagent._wall() from t"
    )

    assert behind > 0
    assert after < 3 * 4096


async def test_clock_survives_a_step_back_of_the_wall(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    await a.clock_ahead(3600)

    ticks = [row[0] for row in await a.rows("select syncagent._tick() from generate_series(1, 50)")]

    assert ticks == sorted(set(ticks))
    assert ticks[-1] - ticks[0] < 4096


async def test_what_is_stamped_anew_is_of_now_and_above_all_that_stays(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await b.clock_ahead(2)
    await b.do(f"insert into item values ('{key_of(1)}', 1)")
    await exchange(a, b)
    told, theirs = (
        (await b.frontier())[1],
        await a.one("select newest from syncagent.frontier where node = 2"),
    )
    await a.clock_ahead(3600)
    await a.do("update item set value = 2", "insert into item values (syncagent.uuid7(), 3)")
    await a.cut()  # nobody has it
    await a.do("update item set value = value + 10")
    before = await a.rows("select * from syncagent.log order by hlc")
    anew = f"select syncagent._anew(3, gen_random_uuid(), 1, {told}, 0, 0)"

    session = await a.session()
    await session.execute(f"begin; {anew}; rollback")
    assert await a.rows("select * from syncagent.log order by hlc") == before
    assert await a.one("select syncagent._tick() - syncagent._wall()") > 3599 * 4096000, (
        "undone with the rest"
    )

    await a.do(anew)
    entries = await a.rows("select hlc, op::text, cardinality(keys) from syncagent.log order by hlc")
    clock = await a.one("select syncagent._tick()")
    assert [entry[1:] for entry in entries] == [("I", 1), ("U", 1), ("U", 2)], "in their order"
    assert theirs < entries[0][0] < entries[-1][0] < clock
    assert clock < await a.one("select syncagent._wall()") + 3 * 4096000


@pytest.mark.parametrize("distance", [-(10**9), -1, 0, 1, 8191, 8192, 10**9])
async def test_lift(sites: Sites, pair: Pair, distance: int) -> None:
    (a,) = await sites(ITEM, pair[0])
    seen = await a.one(f"select {HLC} from syncagent._tick()") + distance

    await a.do(f"select syncagent._lift({seen})")

    assert seen < await a.one("select syncagent._tick()") < max(seen, seen - distance) + 4 * 4096 * 1000


async def test_conflict_has_one_name_everywhere(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    one, other = UUID(int=1), UUID(int=2)
    query = "select syncagent._conflict_id('public.item', $1, $2, $3)"

    assert await a.one(query, UUID(int=7), one, other) == await b.one(query, UUID(int=7), other, one)
