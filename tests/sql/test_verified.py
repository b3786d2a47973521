"""Three sites that write, ship, merge, seal and forget in any order never look different while they are not."""

import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from syncagent.core.comparison import Comparison, Outcome
from syncagent.errors import Inexact
from syncagent.services.comparing import Side
from tests.sql.conftest import Pair
from tests.sql.test_forest import BASE, HOUR, seal, timed
from tests.support.lab import Change, Laboratory, Site, exchange, timeless

SCHEMA = """
create table line (a int, b text, value int, primary key (a, b));
create table item (id uuid primary key, value int);
"""
KEYS = [timeless(1), timeless(2), timed(BASE + HOUR, 1), *(timed(BASE + n, n) for n in range(2, 8))]
"""Most of them in one leaf: what is computed anew for one of them shows the others."""


async def compared(one: Site, other: Site, between: Callable[[], Awaitable[None]]) -> Outcome:
    """What one finds; something may happen between the snapshots of the two."""
    async with one.store.forest.view() as view:
        here = await Side.of(view, None)
        await between()
        async with other.store.forest.view() as its_view:
            there = await Side.of(its_view, None)
            out_here = await here.left_out(there.standing.frontier)
            out_there = await there.left_out(here.standing.frontier)
            mine = await here.settle(there.standing, out_here, out_there, whole=True)
            theirs = await there.settle(here.standing, out_there, out_here, whole=True)
            assert here.scope is not None
            assert here.scope == there.scope
            machine = Comparison(here.standing, there.standing, here.scope, here.sums)
            question = machine.first(mine, theirs)
            while question is not None:
                question = machine.heard(await here.answer(question), await there.answer(question))
            return machine.outcome


class Story:
    def __init__(self, sites: Sequence[Site], chance: random.Random) -> None:
        self.sites, self.chance = list(sites), chance
        self.told: list[object] = []
        self.rows = 0

    async def step(self) -> None:
        site = self.chance.choice(self.sites)
        act = self.chance.choice([self.write] * 6 + [self.ship] * 6 + [self.seal] * 4 + [self.compact])
        self.told.append((act.__name__, site.node))
        await act(site)

    async def write(self, site: Site) -> None:
        place, value = self.chance.randrange(1, 13), self.chance.randrange(10**6)
        statement = self.chance.choice(
            [
                f"update line set value = {value} where a = {place}",
                f"delete from line where a = {place}",
                f"insert into line values ({place}, 'x', {value}) on conflict do nothing",
                f"update item set value = {value} where id = '{self.chance.choice(KEYS)}'",
                f"update item set value = {value} where id = '{self.chance.choice(KEYS)}'",
                f"delete from item where id = '{self.chance.choice(KEYS)}'",
                f"insert into item values ('{self.chance.choice(KEYS)}', {value}) on conflict do nothing",
            ]
        )
        self.told.append(statement)
        await site.do(statement)

    async def ship(self, site: Site) -> None:
        other = self.chance.choice([peer for peer in self.sites if peer is not site])
        self.told.append(("to", other.node))
        for plain in (True, False):
            batch = await site.batch(other, plain=plain)
            if not await other.ready(batch.header):
                return
            try:
                await other.apply(batch)
            except Inexact:
                continue
            return

    async def seal(self, site: Site) -> None:
        await seal(site)

    async def compact(self, site: Site) -> None:
        await site.compact()

    async def compare(self) -> None:
        one, other = self.chance.sample(self.sites, 2)

        async def between() -> None:
            for _ in range(self.chance.choice([0, 0, 1, 3])):
                await self.step()

        self.told.append(("compare", one.node, other.node))
        outcome = await compared(one, other, between)
        self.rows += sum(outcome.tables.values())
        assert outcome.equal, (self.told, outcome.differences, outcome.stale)


async def play(sites: Sequence[Site], chance: random.Random, steps: int) -> Story:
    story = Story(sites, chance)
    await sites[0].do(
        "insert into line select n, 'x', 0 from generate_series(1, 12) n",
        "insert into item values " + ", ".join(f"('{key}', 0)" for key in KEYS),
    )
    await exchange(*sites)
    for site in sites:
        await seal(site)
    for _ in range(steps):
        await story.step()
        if chance.random() < 0.5:
            await story.compare()
    await exchange(*sites)
    for site in sites:
        await seal(site)
    for one, other in itertools.pairwise(sites):
        outcome = await compared(one, other, _nothing)
        assert outcome.equal
        assert outcome.scope.whole
        assert sum(outcome.tables.values()) == await one.one(
            "select (select count(*) from line) + (select count(*) from item)"
        )
    return story


async def _nothing() -> None:
    pass


@pytest.mark.soak
async def test_what_is_on_its_way_is_no_difference(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    rows = 0
    for run in range(runs(2, 500)):
        async with laboratory.sites(SCHEMA, pair[0], pair[1], pair[0]) as sites:
            rows += (await play(sites, random.Random(seed + run), 40)).rows
    assert rows > 100


BROKEN: dict[str, list[Change]] = {
    "what was emptied is forgotten": [
        ("58_forest.sql", "where b.rows = 0 and not exists (select from syncagent.seal s where s.number = b.seal)", "where b.rows = 0")
    ],
    "frontiers are not compared": [
        ("58_forest.sql", "where e.value::bigint > coalesce((p_frontier ->> e.key)::bigint, 0))\n    )", "where false)\n    )")
    ],
    "what is in no cut yet is compared": [
        ("58_forest.sql", "cross join syncagent._last_cut() as c where l.xid >= c.xmax or l.xid = any (c.xip)", "where false")
    ],
}  # fmt: skip


_FIRST = {"what was emptied is forgotten": 2, "what is in no cut yet is compared": 10}
"""The story to begin with, where those before it are known to show nothing."""


@pytest.mark.parametrize("broken", BROKEN)
async def test_rules_left_out_show_differences_that_are_none(
    laboratory: Laboratory, pair: Pair, broken: str
) -> None:
    first = _FIRST.get(broken, 0)
    for run in range(first, first + 40):
        async with laboratory.sites(SCHEMA, *([pair[0]] * 3), changes=BROKEN[broken]) as sites:
            try:
                await play(sites, random.Random(run), 40)
            except AssertionError:
                return
    raise AssertionError(f"nobody notices that {broken}")


async def test_a_difference_is_found_once_it_is_sealed(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await a.do("insert into line select n, 'x', 0 from generate_series(1, 12) n")
        await exchange(a, b)
        await b.do(
            "set session_replication_role = replica",
            "delete from line where a = 7",
            "set session_replication_role = origin",
        )
        for site in (a, b):
            await seal(site)
        outcome = await compared(a, b, _nothing)
        found: list[Any] = [(d.shown, d.what) for d in outcome.differences]
        assert found == [("(7,x)", "missing there")]


async def test_cuts_that_held_nothing_keep_nothing_from_being_compared(
    laboratory: Laboratory, pair: Pair
) -> None:
    """At rest nobody asks for them, so nobody would ever get there."""
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await a.do(f"insert into item values ('{timed(BASE, 1)}', 1), ('{timed(BASE + 9 * HOUR, 2)}', 2)")
        await exchange(a, b)
        for _ in range(2):
            await a.cut(force=True)
        await seal(a, BASE + 5 * HOUR)
        await seal(b, BASE + 5 * HOUR)
        outcome = await compared(a, b, _nothing)
        assert sum(outcome.tables.values()) == 2
        assert outcome.scope.whole
        assert not outcome.scope.left_out
