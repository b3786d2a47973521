"""A table's strategy is changed while sites write: nothing that was written is lost unseen, and all sites end equal."""

import asyncio
import json
import sys
from collections.abc import Callable

import pytest

from syncagent.core import schema as schemas
from syncagent.core.merge import Merges, Strategy
from syncagent.core.schema import Abort, Exclude, Open, Reached, Schema
from syncagent.errors import RefusedError
from syncagent.storage.commands import connected
from syncagent.storage.schema import doing, planning, strategies
from tests.sql import merge_schedule
from tests.sql.conftest import Pair, Sites
from tests.sql.merge_schedule import MergeRun
from tests.support.lab import Laboratory, Site, exchange, key, quiet, same, ship

SCHEMA = """create table item (id uuid primary key, n int not null default 0, tags text[] not null default '{}', note text, price int not null default 0);
    create table odd (a int, b text, n int not null, note text, primary key (a, b));"""
COUNTER: Merges = (("n", "counter"), ("tags", "set"))
EVERY: list[tuple[Strategy, Merges]] = [
    ("lww-column", ()),
    ("merge", COUNTER),
    ("merge", COUNTER[:1]),
    ("lww", ()),
]


class Fleet:
    """Sites whose catalog is the core's, without agents."""

    def __init__(self, *sites: Site) -> None:
        self.sites, self.schema, self.number = sites, Schema(), 0
        self.members = {site.node: site.name for site in sites}
        self.at = {site.node: (0, 0) for site in sites}

    def tell(self, command: schemas.SchemaCommand) -> None:
        result = schemas.apply(self.schema, command, self.members)
        assert result.refused is None, result.refused
        self.schema = result.schema

    async def open(self, strategy: Strategy, merges: Merges = (), table: str = "item") -> None:
        planned = await asyncio.to_thread(self._planned, table, strategy, merges)
        self.tell(Open(planning.change_of(planned, at=0, site="a", role=None, path="public", auto=True)))

    def _planned(self, table: str, strategy: Strategy, merges: Merges) -> planning.Plan:
        with connected(self.sites[0].dsn) as connection:
            return strategies.plan(connection, strategies.known(connection, table), strategy, merges)

    async def lead(self) -> bool:
        """The next step, if those who can be reached, and what they have written, let it go."""
        if self.schema.open is None:
            return False
        for site in self.sites:
            epoch = self.at[site.node][0]
            delivered = (
                epoch == self.schema.epoch and await site.one("select syncagent._not_everywhere()") is None
            )
            self.tell(Reached(site.node, epoch, None, delivered))
        command = schemas.due(self.schema, self.members, frozenset(self.members))
        if command is not None:
            self.tell(command)
        return command is not None

    async def follow(self, *sites: Site) -> None:
        for site in sites:
            at, floor = self.at[site.node]
            while (move := schemas.next_move(self.schema, at)) is not None:
                floor = schemas.floor_after(move, floor)
                with connected(site.dsn) as connection:
                    await asyncio.to_thread(doing.do, connection, move, floor, lambda _: None)
                at = move.upto
                self.at[site.node] = at, floor

    async def carry(self, strategy: Strategy, merges: Merges = (), table: str = "item") -> None:
        """A whole change, everywhere."""
        await self.open(strategy, merges, table)
        while self.schema.open is not None:
            await self.lead()
            await self.follow(*self.sites)
            if self.delivers:
                await exchange(*self.sites, plain=False)

    @property
    def delivers(self) -> bool:
        """Whether the change waits until what sites wrote has come everywhere."""
        return self.schema.open is not None and schemas.is_to_deliver(self.schema, self.sites[0].node)


async def how(site: Site) -> tuple[str, frozenset[tuple[str, str]], int | None]:
    (row,) = await site.rows(
        "select strategy, merges::text, whole from syncagent.replicated where table_name = 'item'"
    )
    return row[0], frozenset(json.loads(row[1]).items()), row[2]


async def stocked(*sites: Site) -> None:
    await sites[0].do(
        f"insert into item select k::uuid, 10, '{{red}}', 'old', 1 from unnest('{{{key(1)},{key(2)},{key(3)}}}'::text[]) as k"
    )
    await exchange(*sites)


async def test_rows_become_columns_and_rows_again(sites: Sites, pair: Pair) -> None:
    """In all directions, with rows that no site has seen of another at each change; odd keys, too."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await stocked(a, b)
    await a.do("insert into odd values (1, 'x', 1, 'old')")
    await exchange(a, b)
    for number, (strategy, merges) in enumerate(EVERY):
        await a.do(
            f"update item set note = 'a{number}' where id = '{key(1)}'",
            f"delete from item where id = '{key(2)}'",
            f"update odd set note = 'a{number}'",
        )
        await b.do(
            f"update item set price = {number} where id = '{key(1)}'",
            f"update item set note = 'b{number}', n = n + 1 where id = '{key(2)}'",
            "update odd set n = n + 1",
        )
        await fleet.carry(strategy, merges)
        if strategy != "merge":
            await fleet.carry(strategy, (), "odd")
        await a.do(f"insert into item (id, n) values ('{key(2)}', {number}) on conflict do nothing")
        await b.do(f"update item set n = n + 1 where id = '{key(1)}'")
        await exchange(a, b, plain=False)
        assert await same("item", a, b)
        assert await same("odd", a, b)
        assert {await how(site) for site in (a, b)} == {(strategy, frozenset(merges), None)}


async def test_by_column_once_it_is_changed(sites: Sites, pair: Pair) -> None:
    """What nobody had seen of the rows' writes from before is decided as before; after it by column."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await stocked(a, b)
    await a.do(f"update item set note = 'a' where id = '{key(1)}'")
    await b.do(f"update item set price = 7 where id = '{key(1)}'")
    await fleet.carry("lww-column")
    await a.do(f"update item set note = 'a' where id = '{key(2)}'")
    await b.do(f"update item set price = 7 where id = '{key(2)}'")
    await exchange(a, b, plain=False)
    assert await same("item", a, b)
    assert await a.rows(f"select note, price from item where id = '{key(1)}'") == [("old", 7)], (
        "the later write has the row"
    )
    assert await a.rows(f"select note, price from item where id = '{key(2)}'") == [("a", 7)]
    assert {*await a.conflicts(), *await b.conflicts()} == {"update/update"}
    for site in (a, b):
        await site.compact()
        assert await site.versions("item") == {}


@pytest.mark.soak(only="three seconds for each direction")
@pytest.mark.parametrize("number", range(len(EVERY)))
async def test_writes_that_no_cut_has_at_the_switch(sites: Sites, pair: Pair, number: int) -> None:
    """In each direction, before every step at every site: what one site alone writes is there to the last, what two write is there or in a conflict."""
    a, b = await sites(SCHEMA, *pair)
    fleet, turns = Fleet(a, b), 0
    await stocked(a, b)
    before, after = EVERY[number - 1], EVERY[number]
    if before[0] != "lww":
        await fleet.carry(*before)
    await fleet.open(*after)
    while fleet.schema.open is not None:
        if await fleet.lead():
            turns += 1
            for site, row in ((a, 2), (b, 3)):
                await site.do(
                    f"update item set note = '{site.node} {turns}', n = n + {site.node} where id = '{key(1)}'",
                    f"update item set n = n + 1, note = 'turn {turns}', tags = tags || '{{{turns}}}'::text[] where id = '{key(row)}'",
                )
        await fleet.follow(a, b)
        if fleet.delivers:
            await exchange(a, b, plain=False)
            if before[0] == "merge":  # siblings stand against it
                await a.do(f"update item set price = price + 1 where id = '{key(1)}'")
    await exchange(a, b, plain=False)
    assert turns >= (1 if before[0] == "lww" else 2)
    assert await same("item", a, b)
    for row in (2, 3):
        n, note, tags = (await a.rows(f"select n, note, tags from item where id = '{key(row)}'"))[0]
        assert (n, note) == (10 + turns, f"turn {turns}")
        assert sorted(tags) == sorted(["red", *map(str, range(1, turns + 1))])
    kept = {await a.one(f"select note from item where id = '{key(1)}'")}
    for site in (a, b):
        for won, lost in await site.rows(
            "select winning_image ->> 'note', losing_image ->> 'note' from syncagent.conflict"
        ):
            kept |= {won, lost}
    assert {f"{site.node} {turns}" for site in (a, b)} <= kept, f"overwritten unseen: {kept}"
    assert {await how(site) for site in (a, b)} == {(after[0], frozenset(after[1]), None)}


async def test_what_was_added_is_in_the_count_when_it_is_one_no_more(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(SCHEMA, *pair, pair[0])
    fleet = Fleet(a, b, c)
    await stocked(a, b, c)
    await fleet.carry("merge", COUNTER)
    await exchange(a, b, c, plain=False)
    for number, site in enumerate((a, b, c)):
        await site.do(
            f"update item set n = n + {10**number}, tags = tags || '{{{number}}}'::text[] where id = '{key(1)}'"
        )
    await ship(a, b)
    await fleet.carry("lww")
    await exchange(a, b, c, plain=False)
    assert await same("item", a, b, c)
    for site in (a, b, c):
        assert await site.rows(f"select n, tags from item where id = '{key(1)}'") == [
            (121, ["0", "1", "2", "red"])
        ]
        assert await site.conflicts() == []
    await b.do(f"update item set n = n - 1 where id = '{key(1)}'")
    await c.do(f"update item set n = n - 20 where id = '{key(1)}'")
    await exchange(a, b, c, plain=False)
    assert await same("item", a, b, c)
    assert {*await a.conflicts(), *await b.conflicts(), *await c.conflicts()} == {"update/update"}


async def test_columns_are_dropped_only_when_all_have_come(sites: Sites, pair: Pair) -> None:
    """And who wrote the row whole meanwhile, and had not seen them, has it, at every site, and a conflict says so."""
    a, b, c = await sites(SCHEMA, *pair, pair[0])
    fleet = Fleet(a, b, c)
    await stocked(a, b, c)
    await fleet.carry("lww-column")
    await c.clock_ahead(2)
    await c.do(f"update item set note = 'by column, later' where id = '{key(1)}'")
    await c.do(f"delete from item where id = '{key(2)}'")
    await fleet.open("lww")
    assert await fleet.lead()
    await fleet.follow(a, b, c)
    await b.do(
        f"update item set price = 5 where id = '{key(1)}'", f"update item set price = 6 where id = '{key(2)}'"
    )
    assert not await fleet.lead(), "what was written by column is nowhere yet"
    with pytest.raises(AssertionError, match="must have come"):
        fleet.tell(Exclude(fleet.schema.open.id, c.node))  # type: ignore[union-attr]
    await ship(c, a)
    assert not await fleet.lead()
    assert await b.rows(f"select note, price from item where id = '{key(1)}'") == [("old", 5)]
    await exchange(a, b, c)
    assert await fleet.lead()
    await fleet.follow(a, b, c)
    await fleet.lead()
    assert fleet.schema.open is None
    await exchange(a, b, c, plain=False)
    assert await same("item", a, b, c)
    for site in (a, b, c):
        assert await site.rows(
            f"select note, price from item where id in ('{key(1)}', '{key(2)}') order by id"
        ) == [("old", 5), ("old", 6)]
    assert {"update/delete", "update/update"} <= {
        *await a.conflicts(),
        *await b.conflicts(),
        *await c.conflicts(),
    }


async def test_siblings_that_are_open_stand_against_it(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await stocked(a, b)
    await fleet.carry("merge", COUNTER)
    await a.do(f"update item set note = 'a' where id = '{key(1)}'")
    await b.do(f"update item set note = 'b' where id = '{key(1)}'")
    await exchange(a, b, plain=False)
    with pytest.raises(RefusedError, match="have siblings that nobody has settled"):
        await fleet.open("lww")
    await a.do(f"update item set note = 'settled' where id = '{key(1)}'")
    await exchange(a, b, plain=False)
    await fleet.carry("lww")
    assert await b.one(f"select note from item where id = '{key(1)}'") == "settled"


async def test_it_is_taken_back_while_columns_are_there(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await stocked(a, b)
    await fleet.carry("merge", COUNTER)
    await a.do(f"update item set n = n + 1 where id = '{key(1)}'")
    await fleet.open("lww")
    assert await fleet.lead()
    await fleet.follow(a)
    await a.do(f"update item set n = n + 1 where id = '{key(2)}'")
    fleet.tell(Abort(fleet.schema.open.id))  # type: ignore[union-attr]
    while fleet.schema.open is not None:
        await fleet.lead()
        await fleet.follow(a, b)
    await b.do("update item set n = n + 10")
    await exchange(a, b, plain=False)
    assert await same("item", a, b)
    assert await a.rows("select n from item order by id") == [(21,), (11,), (20,)], (
        "what was written whole has the row"
    )
    assert await a.one(f"select n from item where id = '{key(1)}'") == 21, (
        "what was counted before is counted"
    )
    assert {*await a.conflicts(), *await b.conflicts()} == {"update/update"}, (
        "what was added beside it is not lost from sight"
    )
    assert {(await how(site))[0] for site in (a, b)} == {"merge"}
    assert await a.one("select whole from syncagent.replicated where id = 1") is None


async def test_what_cannot_be_merged_so_is_said_before_anything_is_done(sites: Sites, pair: Pair) -> None:
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    with pytest.raises(RefusedError, match="cannot be merged so") as refused:
        await fleet.open("merge", (("note", "counter"),))
    assert "note" in str(refused.value.detail)
    await b.do("alter table item alter column n drop not null")
    await fleet.open("merge", (("n", "counter"),))
    assert await fleet.lead()
    await fleet.follow(a)
    with pytest.raises(RefusedError, match="may be null"):
        await fleet.follow(b)
    fleet.tell(Abort(fleet.schema.open.id))  # type: ignore[union-attr]
    while fleet.schema.open is not None:
        await fleet.lead()
        await fleet.follow(a, b)
    assert {(await how(site))[0] for site in (a, b)} == {"lww"}


async def test_a_parked_row_goes_along(sites: Sites, pair: Pair) -> None:
    """One that waits at a site is written when it can be, as it is elsewhere."""
    a, b = await sites(SCHEMA, *pair)
    fleet = Fleet(a, b)
    await stocked(a, b)
    await b.do("alter table item add constraint small check (price < 100)")
    for number, (strategy, merges) in enumerate([EVERY[0], EVERY[1], EVERY[3]]):
        await a.do(f"update item set price = {1000 + number} where id = '{key(1)}'")
        await exchange(a, b)
        assert len(await b.parked()) == 1
        await fleet.carry(strategy, merges)
        assert len(await b.parked()) == 1
    await b.do("alter table item drop constraint small")
    await a.do(f"update item set note = 'new' where id = '{key(1)}'")
    await exchange(a, b, plain=False)
    assert await same("item", a, b)
    assert await b.rows(f"select price, note from item where id = '{key(1)}'") == [(1002, "new")]
    assert await b.parked() == []


class ChangingRun(MergeRun):
    """A schedule with changes in all directions, each site doing its steps when chance has it. In the end the sites have the same rows."""

    SCHEMA = merge_schedule.SCHEMA.partition("comment on")[0]
    TARGETS: tuple[tuple[Strategy, Merges], ...] = (
        ("lww", ()),
        ("lww-column", ()),
        ("merge", (("n", "counter"), ("s", "set"), ("top", "max"), ("log", "append"))),
        ("merge", (("n", "counter"),)),
    )

    def __init__(self, seed: int, sites: list[Site]) -> None:
        super().__init__(seed, sites)
        self.fleet = Fleet(*sites)

    async def step(self, site: Site) -> None:
        if self.rnd.random() > 0.3:
            await super().step(site)
        elif self.fleet.schema.open is None:
            await self.ask(self.rnd.choice(self.TARGETS))
        elif self.rnd.random() < 0.5:
            self.trace.append(f"the next step is let go: {await self.fleet.lead()}")
        else:
            await self.fleet.follow(site)
            self.trace.append(f"{site.node} is at {self.fleet.at[site.node]}")

    async def ask(self, target: tuple[Strategy, Merges]) -> None:
        if len({at for at, _ in self.fleet.at.values()}) > 1:
            return
        try:
            await self.fleet.open(*target)
            self.trace.append(f"it is to be {target}")
        except RefusedError as refused:
            self.trace.append(f"{target}: {refused}")

    async def apply(self, site: Site, peer: Site) -> None:
        shipment = self.flights.get((site.node, peer.node))
        epoch, floor = self.fleet.at[peer.node]
        if shipment is not None and shipment.header.schema > epoch:
            return
        if shipment is not None and shipment.header.schema < floor:
            del self.flights[site.node, peer.node]
            return
        await super().apply(site, peer)

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step(self.rnd.choice(self.sites))
        for _ in range(20):
            await self.fleet.follow(*self.sites)
            await exchange(*self.sites, plain=False)
            for site in self.sites:
                await self.settle(site)
            await exchange(*self.sites, plain=False)
            if not await self.fleet.lead() and self.fleet.schema.open is None:
                break
        assert self.fleet.schema.open is None, "the change does not end"
        await quiet(*self.sites)
        await same("item", *self.sites)

    async def settle(self, site: Site) -> None:
        """Somebody reads the siblings, and writes."""
        if site is self.sites[0] and (await how(site))[0] == "merge":
            await site.do(
                "update item set r = r + 1, s = array_append(s, 9), top = top + 1, log = log || '.'"
            )


@pytest.mark.soak
async def test_random_schedules(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    for number in range(seed, seed + runs(2, 100)):
        async with laboratory.sites(ChangingRun.SCHEMA, *pair, pair[number % 2]) as sites:
            run = ChangingRun(number, list(sites))
            try:
                await run.run(90)
            except BaseException:
                sys.stdout.write("\n".join(run.trace) + f"\nSEED={number}\n")
                raise
