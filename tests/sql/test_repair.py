"""Rows that were changed behind the triggers come back, from a site that has them right, and nothing else is touched."""

import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import permutations
from uuid import uuid4

import pytest

from syncagent.core import repair
from syncagent.core.batch import Table
from syncagent.core.comparison import Difference, Outcome
from syncagent.core.store import Repaired
from syncagent.embedded import Server
from syncagent.errors import Contended
from tests.sql.conftest import Pair
from tests.sql.test_forest import BASE, seal, timed
from tests.sql.test_verified import compared
from tests.support.lab import Change, Laboratory, Memory, Site, _Kind, exchange, same, ship, timeless

SCHEMA = """
create table line (a int, b text, value int, primary key (a, b));
create table item (id uuid primary key, value int unique, note text);
create table part (id uuid, region int, value int, primary key (id, region)) partition by list (region);
create table part_1 partition of part for values in (1);
create table part_2 partition of part for values in (2);
"""
KEYS = [timeless(1), timeless(2), *(timed(BASE + n, n) for n in range(2, 8))]


async def behind(site: Site, *statements: str) -> None:
    """What no trigger sees."""
    await site.do(
        "set session_replication_role = replica", *statements, "set session_replication_role = origin"
    )


async def scrub(*sites: Site) -> None:
    """Everything from its rows."""
    for site in sites:
        await site.store.forest.fell(None)
        await seal(site)


async def _nothing() -> None:
    pass


async def find(site: Site, peer: Site) -> Outcome:
    return await compared(site, peer, _nothing)


async def mend(
    site: Site,
    peer: Site,
    *others: Site,
    trusted: bool = False,
    dry: bool = False,
    between: Callable[[], Awaitable[None]] = _nothing,
) -> list[Repaired]:
    """What a site takes from a peer; `others` vote. `between`: the listing and what is taken of it."""
    outcome = await find(site, peer)
    plan = repair.plan(outcome.differences)
    groups: list[tuple[Site, repair.Cause, list[Difference]]] = [(peer, "stamps", plan.take)]
    if trusted:
        groups.append((peer, "source", plan.disputed))
    else:
        outcomes = {peer.node: outcome} | {other.node: await find(site, other) for other in others}
        verdict = repair.vote(plan.disputed, outcomes, 2 + len(others))
        groups.append((peer, "stamps", verdict.stamps))
        nodes = {other.node: other for other in (peer, *others)}
        groups += [(nodes[node], "majority", wrong) for node, wrong in verdict.take.items()]
    taken: list[Repaired] = []
    for source, cause, wrong in groups:
        for table in sorted({found.table for found in wrong}):
            some = [found for found in wrong if found.table == table]
            header, spool = await source.store.repairs.listing(
                uuid4(), table, [found.key for found in some], lambda _: Memory()
            )
            await between()
            taken += (await site.store.repairs.take(header, spool, some, cause, dry=dry)).rows
    return taken


async def populate(*sites: Site) -> None:
    await sites[0].do(
        "insert into line select n, 'x', n from generate_series(1, 12) n",
        "insert into item values " + ", ".join(f"('{key}', {n})" for n, key in enumerate(KEYS)),
        "insert into part select id, 1 + value % 2, value from item",
    )
    await exchange(*sites)
    for site in sites:
        await site.compact()
    for _ in range(2):  # what all have is told, then forgotten
        await exchange(*sites)
        for site in sites:
            await site.compact()
    for site in sites:
        await seal(site)


async def alike(*sites: Site) -> None:
    for table in ("line", "item", "part"):
        await same(table, *sites)


async def test_what_is_missing_comes_back(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await behind(
            b,
            f"delete from item where id in ('{KEYS[0]}', '{KEYS[4]}')",
            "delete from line where a in (3, 4)",
            f"delete from part where id = '{KEYS[5]}'",
        )
        await scrub(b)
        assert len(await mend(b, a, dry=True)) == 5
        assert len(await b.table("item")) == len(KEYS) - 2, "nothing was done yet"
        taken = await mend(b, a)
        assert [(str(row.table), row.cause, row.before) for row in taken] == [
            ("public.item", "missing", None), ("public.item", "missing", None),
            ("public.line", "missing", None), ("public.line", "missing", None),
            ("public.part", "missing", None),
        ]  # fmt: skip
        await alike(a, b)
        assert not await b.store.origin.pending(), "it is no write of this site"
        await seal(b)
        assert (await find(b, a)).equal
        assert await b.rows(
            "select table_name, count(*) from syncagent.repair_record group by 1 order by 1"
        ) == [("item", 2), ("line", 2), ("part", 1)]


async def test_cuts_that_held_nothing_hold_no_repair_up(laboratory: Laboratory, pair: Pair) -> None:
    """At rest nobody asks for them."""
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await a.cut()
        await behind(b, f"delete from item where id = '{KEYS[0]}'")
        await scrub(b)
        assert [row.cause for row in await mend(b, a)] == ["missing"]
        await alike(a, b)


async def test_a_newer_version_is_lost_and_comes_back(laboratory: Laboratory, pair: Pair) -> None:
    """Its entry is still here, at a site that received it, and at the one that wrote it."""
    async with laboratory.sites(SCHEMA, pair[0], pair[1], pair[0]) as (a, b, c):
        await populate(a, b, c)
        await a.do(
            f"update item set note = 'new' where id = '{KEYS[3]}'",
            "update line set value = 99 where a in (5, 6)",
        )
        await ship(a, b)
        await ship(b, a)
        for site in (a, b):
            await seal(site)
        await behind(b, f"delete from item where id = '{KEYS[3]}'", "delete from line where a = 5")
        await behind(a, "delete from line where a = 6")
        await scrub(a, b)
        assert {row.cause for row in await mend(b, a)} == {"lost"}
        assert await b.one(f"select note from item where id = '{KEYS[3]}'") == "new"
        assert [row.cause for row in await mend(a, b)] == ["lost"]
        for site in (a, b):  # which wrote it, and which may have handed it on
            assert await site.store.origin.pending(), "whoever read the range meanwhile had to leave it out"
        await exchange(a, b, c)
        await alike(a, b, c)


async def test_the_entry_of_a_lost_row_stays(laboratory: Laboratory, pair: Pair) -> None:
    """Without it the row of a site that never had the newer version would be as good as any."""
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await a.do("update line set value = 99 where a in (5, 6)")
        await exchange(a, b)
        await behind(a, "delete from line where a = 5")
        for _ in range(2):
            await exchange(a, b)
            for site in (a, b):
                await site.compact()
        assert (len(await a.versions("line")), len(await b.versions("line"))) == (1, 0)
        await scrub(a, b)
        assert [row.cause for row in await mend(a, b)] == ["lost"]
        for _ in range(2):
            await exchange(a, b)
            for site in (a, b):
                await site.compact()
        await alike(a, b)
        assert not await a.versions("line")


async def test_most_sites_are_right(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, pair[0], pair[1], pair[0]) as (a, b, c):
        await populate(a, b, c)
        await behind(
            a,
            f"update item set note = 'changed' where id = '{KEYS[2]}'",
            f"update item set note = 'changed' where id = '{KEYS[0]}'",
            "update line set value = 99 where a = 7",
        )
        await scrub(a)
        assert await mend(b, a, c) == []
        assert {row.cause for row in await mend(a, b, c)} == {"majority"}
        await alike(a, b, c)


async def test_of_two_sites_somebody_must_say_who_is_right(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await behind(a, "update line set value = 99 where a = 7")
        await scrub(a)
        assert await mend(a, b) == [] == await mend(b, a)
        (row,) = await mend(b, a, trusted=True)
        assert (row.cause, '"value": 7' in str(row.before), '"value": 99' in str(row.after)) == (
            "source",
            True,
            True,
        )
        await alike(a, b)


async def test_a_deleted_row_that_is_back_is_left_and_told(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await a.do(f"delete from item where id = '{KEYS[3]}'", "delete from line where a = 8")
        await ship(a, b)
        await ship(b, a)
        await behind(b, f"insert into item values ('{KEYS[3]}', 3)", "insert into line values (8, 'x', 8)")
        for site in (a, b):
            await seal(site)
        await scrub(a, b)
        assert await mend(a, b) == [], "the tombstone here is newer"
        await alike_not(a, b)
        outcome = await find(b, a)
        assert {found.what for found in outcome.differences} == {"missing there"}


async def alike_not(a: Site, b: Site) -> None:
    assert await a.table("item") != await b.table("item")


async def test_what_is_written_meanwhile_is_left_alone(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await behind(b, f"delete from item where id = '{KEYS[4]}'", "update line set value = 99 where a = 7")
        await scrub(b)

        async def written() -> None:
            await b.do(
                f"insert into item values ('{KEYS[4]}', 1000) on conflict do nothing",
                "update line set value = 100 where a = 7",
            )

        assert await mend(b, a, trusted=True, between=written) == []
        assert await b.one("select value from line where a = 7") == 100
        assert await b.one(f"select value from item where id = '{KEYS[4]}'") == 1000


async def test_a_listing_waits_for_what_it_has_seen(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await behind(b, "delete from line where a = 3")
        await scrub(b)
        outcome = await find(b, a)
        await a.do("update line set value = 0 where a = 4")
        await a.cut()
        header, spool = await a.store.repairs.listing(
            uuid4(), outcome.differences[0].table, [outcome.differences[0].key], lambda _: Memory()
        )
        with pytest.raises(Contended, match="not come here yet"):
            await b.store.repairs.take(header, spool, outcome.differences, "stamps", dry=False)
        await ship(a, b)
        assert (await b.store.repairs.take(header, spool, outcome.differences, "stamps", dry=False)).rows
        await alike(a, b)


async def test_a_listing_from_before_a_forgotten_delete_is_refused(
    laboratory: Laboratory, pair: Pair
) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await behind(b, "delete from line where a = 3")
        await scrub(b)
        outcome = await find(b, a)
        header, spool = await a.store.repairs.listing(
            uuid4(), outcome.differences[0].table, [outcome.differences[0].key], lambda _: Memory()
        )
        await a.do("delete from line where a = 3")
        for _ in range(2):
            await exchange(a, b)
            for site in (a, b):
                await site.compact()
        with pytest.raises(Contended, match="older than what was collected"):
            await b.store.repairs.take(header, spool, outcome.differences, "stamps", dry=False)
        assert not await b.rows("select from line where a = 3")


async def test_an_entry_that_was_forgotten_here_says_nothing_new(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await a.do("update line set value = 0 where a = 4")
        await ship(a, b)
        await ship(b, a)
        await b.compact()
        assert (len(await a.versions("line")), len(await b.versions("line"))) == (1, 0)
        await behind(a, "update line set value = 99 where a = 4")
        await scrub(a, b)
        assert await mend(b, a) == []
        assert await b.one("select value from line where a = 4") == 0


async def test_a_lost_row_is_not_taken_from_who_never_had_it(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, pair[0], pair[1], pair[0]) as (a, b, c):
        await populate(a, b, c)
        await c.do("update line set value = 0 where a = 4")
        await ship(c, b)
        key = next(iter(await b.versions("line")))
        await behind(b, "delete from line where a = 4")
        lost = Difference(Table("public", "line"), key, "(4,x)", "missing here", None, None)
        for source, taken in (a, 0), (c, 1):
            header, spool = await source.store.repairs.listing(uuid4(), lost.table, [key], lambda _: Memory())
            assert len((await b.store.repairs.take(header, spool, [lost], "stamps", dry=False)).rows) == taken
        assert await b.one("select value from line where a = 4") == 0


async def test_a_row_that_breaks_a_constraint_is_parked(laboratory: Laboratory, pair: Pair) -> None:
    async with laboratory.sites(SCHEMA, *pair) as (a, b):
        await populate(a, b)
        await behind(
            b,
            f"delete from item where id = '{KEYS[4]}'",
            f"insert into item values ('{timed(BASE + 99, 99)}', 4)",
        )
        await scrub(b)
        assert len(await mend(b, a)) == 1
        assert [image["value"] for image, _ in await b.parked()] == [4]
        assert await mend(b, a) == [], "it is known, and waits"


class Story:
    """Writes, cuts, merges, compaction, harm and repair in any order."""

    def __init__(self, sites: Sequence[Site], chance: random.Random) -> None:
        self.sites, self.chance, self.repaired = list(sites), chance, 0
        self.harmed: set[str] = set()

    async def step(self) -> None:
        site, peer, *others = self.chance.sample(self.sites, len(self.sites))
        match self.chance.choice(["write"] * 6 + ["ship"] * 8 + ["compact"] * 3 + ["harm", "mend", "mend"]):
            case "write":
                await self._write(site)
            case "ship":
                batch = await peer.batch(site, plain=False)
                if await site.ready(batch.header):
                    await site.apply(batch)
            case "compact":
                await site.compact()
            case "harm":
                await self._harm(site)
            case _:
                await self.mend(site, peer, *others)

    async def _write(self, site: Site) -> None:
        place, value = self.chance.randrange(1, 13), self.chance.randrange(10**6)
        key = self.chance.choice([key for key in KEYS if key not in self.harmed] or KEYS)
        await site.do(
            self.chance.choice(
                [
                    f"update line set value = {value} where a = {place}",
                    f"update item set note = '{value}' where id = '{key}'",
                    f"delete from line where a = {place}",
                    f"insert into line values ({place}, 'x', {value}) on conflict do nothing",
                ]
            )
        )

    async def _harm(self, site: Site) -> None:
        """At one site each, of rows that nobody writes any more."""
        key = self.chance.choice(KEYS)
        if key not in self.harmed and await self._settled(key):
            self.harmed.add(key)
            await behind(
                site,
                self.chance.choice(
                    [
                        f"delete from item where id = '{key}'",
                        f"update item set note = 'harm' where id = '{key}'",
                    ]
                ),
            )

    async def _settled(self, key: str) -> bool:
        """Everybody holds the same, and nobody is about to tell anything else."""
        held = [await site.rows(f"select (t.*)::text from item t where id = '{key}'") for site in self.sites]
        pending = [await site.store.origin.pending() for site in self.sites]
        return held == [held[0]] * len(held) and not any(pending)

    async def mend(self, site: Site, peer: Site, *others: Site) -> None:
        await scrub(site, peer, *others)
        try:
            self.repaired += len(await mend(site, peer, *others))
        except Contended:
            return


async def play(sites: Sequence[Site], chance: random.Random) -> Story:
    story = Story(sites, chance)
    await populate(*sites)
    for _ in range(50):
        await story.step()
    await exchange(*sites)
    for _ in range(2):
        for site, peer, *others in permutations(sites):
            await story.mend(site, peer, *others)
        await exchange(*sites)
    await alike(*sites)
    for row in await sites[0].rows("select id::text, note from item"):
        assert row[1] != "harm", row
    assert len(await sites[0].table("item")) == len(KEYS)
    return story


@pytest.mark.soak
@pytest.mark.usefixtures("part")
async def test_harm_is_mended_whenever_it_is_done(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    repaired = 0
    for run in range(runs(1, 50)):
        async with laboratory.sites(SCHEMA, pair[0], pair[1], pair[0]) as sites:
            repaired += (await play(sites, random.Random(seed + run))).repaired
    sys.stdout.write(f"{repaired} rows repaired\n")


RULES: dict[str, tuple[Change, Callable[[Laboratory, Pair], Awaitable[None]]]] = {
    "entry": (("59_repair.sql", "or not q.settled)", "or true)"), test_an_entry_that_was_forgotten_here_says_nothing_new),
    "any": (
        ("59_repair.sql", "and q.cut <= coalesce(($2 ->> q.node::text)::bigint, 0) then 'lost'", "then 'lost'"),
        test_a_lost_row_is_not_taken_from_who_never_had_it,
    ),
    "filter": (
        ("59_repair.sql", "where e.value::bigint > coalesce((p_context ->> e.key)::bigint, 0)) then", "where false) then"),
        test_a_listing_from_before_a_forgotten_delete_is_refused,
    ),
    "flight": (
        ("59_repair.sql", "and e.value::bigint > coalesce(f.cut, 0)) then", "and false) then"),
        test_a_listing_waits_for_what_it_has_seen,
    ),
    "content": (
        ("59_repair.sql", "where (f.lane_0, f.lane_1) is not distinct from (k.lane_0, k.lane_1)\n              and k.key not in (select syncagent._uncut({id}))", "where true"),
        test_what_is_written_meanwhile_is_left_alone,
    ),
    "bare": (("40_cut.sql", "and (v.deleted or not ({t_absent}))   -- else the row is lost, and nothing would say so", ""), test_the_entry_of_a_lost_row_stays),
    "relog": (("59_repair.sql", "where m.cause = 'lost' and m.theirs", "where false and m.theirs"), test_a_newer_version_is_lost_and_comes_back),
}  # fmt: skip


class _Broken(Laboratory):
    """Makes sites that lack a rule."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change = change

    def _kind(self, server: Server, schema: str, changes: Sequence[Change]) -> _Kind:
        return super()._kind(server, schema, [*changes, self._change])


@pytest.mark.parametrize("rule", RULES)
async def test_a_rule_left_out_is_noticed(pair: Pair, rule: str) -> None:
    change, test = RULES[rule]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await test(_Broken(change), pair)
