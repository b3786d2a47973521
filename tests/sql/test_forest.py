"""Stored leaves equal their rows, whatever happened in whatever order."""

import random
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from syncagent.core import forest, stamp
from syncagent.core.forest import NOTHING, PREFIX_WIDTH, WIDTHS, Digest
from tests.sql.conftest import Pair, Sites
from tests.support.lab import Change, Laboratory, Site, exchange, ship, timeless

HOUR = forest.WIDTHS["hour"]
BASE = 480_000 * HOUR
"""A bucket long ago."""
LATE = BASE + 10 * HOUR
"""Where the horizon stands."""
Leaf = tuple[bool, int, int]
"""Part, bucket, slice."""

_DIRTY = """
    select array_agg(distinct k) from (
        select unnest(c.keys) as k from syncagent.local_site me join syncagent.cut_keys c on c.node = me.node join syncagent.forest f on f.relation = c.relation where c.id > f.consumed
        union all select unnest(m.keys) from syncagent.mark m
        union all select unnest(l.keys) from syncagent.log l, syncagent._last_cut() c where l.xid >= c.xmax or l.xid = any (c.xip)
    ) as d
"""


async def seal(site: Site, horizon: int = LATE) -> None:
    """Everything that is due."""
    await site.store.forest.advance(horizon)
    while due := await site.store.forest.due():
        for table in due:
            while await site.store.forest.reseal(table.relation) is not None:
                pass
            while await site.store.forest.seal(table.relation) is not None:
                pass


async def stored(site: Site, table: str = "item") -> int:
    """Check every leaf whose keys are not marked against the rows; returns how many there are."""
    ((text, key),) = await site.rows(
        "select syncagent._fingerprint_text(r.relation, r.columns), syncagent._tokens(r.id) ->> 'key'"
        " from syncagent.replicated r where r.table_name = $1",
        table,
    )
    async with site.app.transaction(isolation="repeatable_read"):
        tree = await site.app.fetchrow(
            "select f.* from syncagent.forest f join syncagent.replicated r on r.id = f.relation where r.table_name = $1",
            table,
        )
        dirty = set(await site.one(_DIRTY) or ())
        buckets = await site.app.fetch("select * from syncagent.bucket where relation = $1", tree["relation"])
        await site.app.execute("set local timezone = 'UTC'")
        rows = await site.rows(
            f'select {key}, hashtextextended(({text}) collate "C", 0),'
            f' hashtextextended(({text}) collate "C", 7640891576956012808) from {table} t'
        )
    depths = {(bucket["timed"], bucket["number"]): bucket["depth"] for bucket in buckets}

    def place(key: UUID) -> Leaf:
        timed = stamp.is_timed(key)
        width = forest.width(tree["bucket"], timed)
        number = forest.position(key) // width
        return timed, *forest.slice_of(forest.position(key), width, depths.get((timed, number), 0))

    expected: dict[Leaf, Digest] = {}
    for row, *lanes in rows:
        leaf = place(row)
        if leaf[1] < (tree["built"] if leaf[0] else tree["prefixes"]):
            expected[leaf] = expected.get(leaf, NOTHING).plus(Digest(1, *lanes))
    found: dict[Leaf, Digest] = {}
    for bucket in buckets:
        sums = zip(bucket["counts"], bucket["lanes_0"], bucket["lanes_1"], strict=True)
        leaves = [Digest(*each) for each in sums]
        assert all(digest.rows for digest in leaves)
        assert forest.total(leaves) == Digest(bucket["rows"], bucket["lane_0"], bucket["lane_1"])
        for number, digest in zip(bucket["slices"], leaves, strict=True):
            found[bucket["timed"], bucket["number"], number] = digest
    doubtful = {place(each) for each in dirty}
    for leaf in (expected.keys() | found.keys()) - doubtful:
        assert found.get(leaf) == expected.get(leaf), (leaf, sorted(dirty))
    return len(found)


def timed(position: int, number: int = 0) -> str:
    """A key at a position."""
    return str(UUID(int=forest.first_key(position, timed=True).int | 2 << 62 | number))


CROWD = [timed(BASE + HOUR // 100 * n, n) for n in range(100)]
"""A bucket that is full enough to be halved."""
PLACES = [
    *(timed(BASE + edge, n) for n, edge in enumerate((0, 1, HOUR - 1, HOUR, 2 * HOUR - 1, 5 * HOUR), 1000)),
    timed(0, 1001), timed(forest.END - 1, 1002), timed(LATE - 1, 1003), timed(LATE, 1004), timed(LATE + HOUR, 1005),
    "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
    timeless(1), "01900000-0000-4000-8000-000000000001", "ff000000-0000-4000-8000-000000000001",
]  # fmt: skip
"""Keys at the edges of buckets, slices, parts and times."""


class Story:
    """Two sites, and what happens to them, step by step."""

    def __init__(self, sites: Sequence[Site], chance: random.Random) -> None:
        self.sites, self.chance = list(sites), chance
        self.open: list[tuple[Site, asyncpg.Connection]] = []
        self.told: list[str] = []
        self.leaves = 0

    def key(self) -> str:
        return self.chance.choice(CROWD if self.chance.random() < 0.5 else PLACES)

    def write(self) -> str:
        value = self.chance.randrange(1000)
        several = ", ".join(f"('{key}', {value})" for key in {self.key() for _ in range(3)})
        return self.chance.choice(
            [
                f"insert into item (id, value) values {several} on conflict (id) do nothing",
                f"update item set value = {value} where id in ('{self.key()}', '{self.key()}')",
                f"delete from item where id = '{self.key()}'",
                f"update item set id = '{self.key()}' where id = '{self.key()}' and not exists (select from item where id = '{self.key()}')",
                f"update item set note = 'n{value}' where value % 7 = {value % 7}",
            ]
        )

    async def step(self) -> None:
        site = self.chance.choice(self.sites)
        act = self.chance.choice(
            [self.writes] * 5
            + [self.opens, self.ends, self.cuts, self.seals, self.seals_on, self.settles]
            + [self.ships] * 3
            + [self.reseals] * 3
        )
        self.told.append(f"{act.__name__} at {site.node}")
        await act(site)
        self.leaves += await stored(site)

    async def writes(self, site: Site) -> None:
        statement = self.write()
        self.told.append(statement)
        try:
            await site.do("set lock_timeout = 50", statement)
        except (asyncpg.UniqueViolationError, asyncpg.LockNotAvailableError):
            pass

    async def opens(self, site: Site) -> None:
        if any(owner is site for owner, _ in self.open):
            return
        session = await site.session()
        await session.execute("begin")
        statement = self.write()
        self.told.append(f"open: {statement}")
        try:
            await session.execute(f"set local lock_timeout = 50; {statement}")
            self.open.append((site, session))
        except (asyncpg.UniqueViolationError, asyncpg.LockNotAvailableError):
            await session.close()

    async def ends(self, _: Site) -> None:
        if self.open:
            _, session = self.open.pop()
            await session.execute(self.chance.choice(["commit", "rollback"]))
            await session.close()

    async def cuts(self, site: Site) -> None:
        await site.cut()

    async def ships(self, site: Site) -> None:
        (other,) = (peer for peer in self.sites if peer is not site)
        if not any(owner is other for owner, _ in self.open):  # it would wait for their locks
            await ship(site, other)
            self.leaves += await stored(other)

    async def seals(self, site: Site) -> None:
        await site.store.forest.advance(BASE + self.chance.choice([0, HOUR, 5 * HOUR, 10 * HOUR, 48 * HOUR]))

    async def seals_on(self, site: Site) -> None:
        for table in await site.store.forest.due():
            await site.store.forest.seal(table.relation)

    async def reseals(self, site: Site) -> None:
        for table in await site.store.forest.due():
            await site.store.forest.reseal(table.relation)

    async def settles(self, site: Site) -> None:
        """What both have is forgotten."""
        if not self.open:
            await exchange(*self.sites)
            await site.compact()

    async def finish(self) -> None:
        while self.open:
            await self.ends(self.sites[0])
        await exchange(*self.sites)
        for site in self.sites:
            await seal(site)
            self.leaves += await stored(site)
        one, other = [
            await site.rows(
                "select timed, number, rows, lane_0, lane_1 from syncagent.bucket where rows > 0 order by timed, number"
            )
            for site in self.sites
        ]
        assert one == other


async def play(sites: Sequence[Site], chance: random.Random, steps: int) -> Story:
    story = Story(sites, chance)
    await sites[0].do(
        "insert into item (id, value) select k, 1 from unnest(array[" + ", ".join(f"'{k}'::uuid" for k in CROWD) + "]) k"
    )  # fmt: skip
    if chance.random() < 0.5:
        await exchange(*sites)
    width = chance.choice(["hour", "hour", *WIDTHS])
    story.told.append(f"a bucket holds one {width}")
    for site in sites:
        await site.do(f"update syncagent.replicated set bucket = '{width}'")
        await seal(site, BASE + HOUR)
    try:
        for _ in range(steps):
            await story.step()
        await story.finish()
    except AssertionError:
        print("\n".join(story.told))  # noqa: T201
        raise
    finally:
        for _, session in story.open:
            await session.close()
    return story


ITEM = "create table item (id uuid primary key, value int, note text)"


@pytest.mark.soak
async def test_a_leaf_without_marks_equals_its_rows(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    leaves = 0
    for run in range(runs(4, 1000)):
        async with laboratory.sites(ITEM, *pair) as sites:
            leaves += (await play(sites, random.Random(seed + run), 30)).leaves
    assert leaves > 50


BROKEN: dict[str, list[Change]] = {
    "arrivals leave no marks": [
        ("50_apply.sql", "where s._key < v_horizon or not syncagent._timed(s._key)", "where false")
    ],
    "arrivals of keys without a time leave no marks": [
        ("50_apply.sql", "where s._key < v_horizon or not syncagent._timed(s._key)", "where s._key < v_horizon")
    ],
    "what is forgotten at the origin is forgotten by the forest": [
        ("40_cut.sql", "f.consumed < g.id;", "f.consumed < g.id where false;")
    ],
    "marks are forgotten that were not seen": [
        ("58_forest.sql", "delete from syncagent.mark where id = any (v_marks)", "delete from syncagent.mark where relation = p_relation"),
        ("58_forest.sql", "    where m.before < p_keys;", "    where m.before < 1;"),
    ],
    "the bounds of a slice are closed": [
        ("58_forest.sql", "syncagent._last_key(s.low + s.size - 1, m.timed) as high", "syncagent._last_key(s.low + s.size, m.timed) as high")
    ],
    "rows that arrive plain are not marked": [
        ("50_apply.sql", "(p_lowest < syncagent._first_key(f.horizon * syncagent._width(f.bucket, true), true)) is not false", "false")
    ],
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
async def test_rules_left_out_are_noticed(laboratory: Laboratory, pair: Pair, broken: str) -> None:
    for run in range(40):
        async with laboratory.sites(ITEM, pair[0], pair[0], changes=BROKEN[broken]) as sites:
            try:
                await play(sites, random.Random(run), 30)
            except AssertionError:
                return
    raise AssertionError(f"nobody notices that {broken}")


async def test_every_kind_of_table(sites: Sites, pair: Pair) -> None:
    """Derived keys, partitions, a table whose columns are altered."""
    (a,) = await sites(
        "create table item (id uuid primary key, value int);"
        " create table pair (one int, two text, value int, primary key (one, two));"
        " create table parted (id uuid, value int, primary key (id)) partition by range (id);"
        f" create table parted_1 partition of parted for values from (minvalue) to ('{timed(BASE + HOUR)}');"
        f" create table parted_2 (value int, id uuid not null); alter table parted attach partition parted_2 for values from ('{timed(BASE + HOUR)}') to (maxvalue)",
        pair[0],
    )
    keys = ", ".join(f"('{key}')" for key in [*CROWD, *PLACES])
    await a.do(
        f"insert into item (id) values {keys}",
        f"insert into parted (id) values {keys}",
        "insert into pair select n, 'x' || n, n from generate_series(1, 3000) n",
    )
    await seal(a)
    for table, least in (("item", 4), ("parted", 4), ("pair", 200)):
        assert await stored(a, table) > least
    await a.do("update pair set value = 0 where one % 100 = 0", f"delete from parted where id < '{CROWD[9]}'")
    await a.cut()
    await seal(a)
    assert await a.one("select count(*) from syncagent._forest_dirty()") == 0
    for table in ("item", "parted", "pair"):
        await stored(a, table)

    await a.do("update item set value = 1")
    await a.cut()
    await seal(a)
    await a.do(
        "alter table item alter value type numeric(9, 2)"
    )  # no trigger says that every text is another now
    await seal(a)
    assert await stored(a) > 4


async def test_buckets_of_another_width_are_computed_from_the_rows(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    await a.do("insert into item (id) values " + ", ".join(f"('{key}')" for key in [*CROWD, *PLACES]))
    found = {}
    for width in ("hour", "day", "minute"):
        await a.do(f"update syncagent.replicated set bucket = '{width}'")
        await seal(a, BASE + 48 * HOUR)
        assert await stored(a) > 4
        found[width] = await a.one("select count(*) from syncagent.bucket where timed and rows > 0")
        await a.do(f"update item set value = 1 where id = '{CROWD[7]}'")
        await a.cut()
        await seal(a, BASE + 48 * HOUR)
        assert await a.one("select count(*) from syncagent._forest_dirty()") == 0
        await stored(a)
    assert found["day"] < found["hour"] < found["minute"]


async def test_a_full_bucket_is_halved_and_one_that_grew_is_halved_again(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])

    async def depth() -> tuple[Any, ...]:
        (found,) = await a.rows("select depth, rows, cardinality(slices) from syncagent.bucket")
        return found

    async def grow(low: int, high: int) -> None:
        await a.do(
            f"insert into item (id) select syncagent._stamp({BASE} + n * {HOUR // 100_000}, -9223372036854775808 + n) from generate_series({low}, {high}) n"
        )
        await a.cut()
        await seal(a)

    await grow(1, 20)
    assert await depth() == (0, 20, 1)
    await grow(21, 10_000)
    _, rows, slices = await depth()
    assert rows == 10_000
    assert 32 <= rows / slices <= 128
    await stored(a)
    await a.do(f"delete from item where id > '{timed(BASE + HOUR // 5000)}'")
    await a.cut()
    await seal(a)
    assert (await depth())[2] < slices
    await stored(a)
    await a.do("delete from item")
    await a.cut()
    await seal(a)
    assert await a.one("select sum(rows) from syncagent.bucket") == 0


async def test_keys_and_positions_are_those_of_the_core(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    for key in (*CROWD[:3], *PLACES):
        place, part = forest.position(UUID(key)), stamp.is_timed(UUID(key))
        assert await a.rows(
            "select syncagent._position($1), syncagent._first_key($2, $3), syncagent._last_key($2, $3)",
            UUID(key), place, part,
        ) == [(place, forest.first_key(place, timed=part), forest.last_key(place, timed=part))]  # fmt: skip
    for width in (*forest.WIDTHS.values(), PREFIX_WIDTH):
        assert await a.one("select syncagent._depth($1, 1)", width) == forest.deepest(width)


async def test_where_much_is_marked_all_is_sealed_again_from_there(sites: Sites, pair: Pair) -> None:
    a, b = await sites("create table item (id uuid primary key, value int, note text)", *pair)
    await a.do(
        f"insert into item select syncagent._stamp({BASE} + n::bigint * {HOUR // 20}, -9223372036854775808 + n), n from generate_series(1, 200) n"
    )
    await exchange(a, b)
    for site in (a, b):
        await seal(site, LATE + 100 * HOUR)
        assert await stored(site) > 0
    await a.do("update item set note = 'x' where value > 60")
    await exchange(a, b)
    for site in (a, b):
        before = await site.rows("select number, seal from syncagent.bucket where rows > 0 order by number")
        async with site.app.transaction(isolation="repeatable_read"):
            assert await site.one("select syncagent._forest_reseal(1, 1)") == 0
        assert await site.rows("select number, seal from syncagent.bucket order by number") == before[:3]
        assert await site.one("select built from syncagent.forest") == before[3][0]
        await stored(site)
        await seal(site, LATE + 100 * HOUR)
        assert await stored(site) > 0


async def test_too_many_buckets_are_left_out_as_a_whole(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    await a.do(
        f"insert into item (id) select syncagent._stamp({BASE} + n::bigint * {HOUR}, -9223372036854775808 + n) from generate_series(0, 4) n"
    )
    await a.cut()
    await seal(a)
    every = "select distinct timed, number from syncagent._forest_left_out('{}', $1) where timed order by 2"
    assert await a.rows(every, 6) == [*((True, BASE // HOUR + n) for n in range(5)), (True, None)]
    assert await a.rows(every, 5) == [(True, None)]


async def test_views_share_a_session_unless_they_are_at_once_or_fail(sites: Sites, pair: Pair) -> None:
    (a,) = await sites("create table item (id uuid primary key, value int)", pair[0])

    async def pid() -> int:
        async with a.store.forest.view() as view:
            return int(view._session.get_server_pid())

    first = await pid()
    assert await pid() == first
    async with a.store.forest.view() as view:
        assert view._session.get_server_pid() == first
        assert await pid() != first
    with pytest.raises(RuntimeError, match="given up"):
        async with a.store.forest.view():
            raise RuntimeError("given up")
    assert await pid() != first, "what it was at is not known"
