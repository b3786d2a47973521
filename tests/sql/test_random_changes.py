"""Random changes of the schema at sites that write, ship, lag behind, and take changes back: all end equal, in rows and in what pg_dump says."""

import asyncio
import random
from collections.abc import Callable

import pytest

from syncagent.errors import Contended, Inexact
from tests.sql.conftest import Pair
from tests.sql.test_schema_changes import Fleet
from tests.support.databases import Database
from tests.support.dumps import dumped
from tests.support.lab import Laboratory, Site, exchange, patiently, same

SCHEMA = "create table item (id uuid primary key, value int, note text)"


class Run:
    """One random history. `shape` is what the columns are once all steps are done."""

    def __init__(self, fleet: Fleet, rnd: random.Random) -> None:
        self.fleet, self.rnd = fleet, rnd
        self.numbers = iter(range(1000))
        self.met = dict.fromkeys(("waited", "asked again", "from before", "taken back", "changes"), 0)

    async def columns(self, site: Site) -> list[str]:
        found = await site.rows(
            "select a.attname::text from pg_attribute a where a.attrelid = 'item'::regclass and a.attnum > 1 and not a.attisdropped"
            " and a.attgenerated = ''"
        )
        return [name for (name,) in found]

    async def write(self, site: Site) -> None:
        """One row, with some of the columns that are there, whichever version of the application writes."""
        chosen = self.rnd.sample(columns := await self.columns(site), self.rnd.randint(1, len(columns)))
        values = ", ".join(f"'{self.rnd.randint(1, 9)}'" for _ in chosen)
        names = ", ".join(f'"{name}"' for name in chosen)
        if self.rnd.random() < 0.4:
            await site.do(f"insert into item (id, {names}) values (syncagent.uuid7(), {values})")
        elif self.rnd.random() < 0.15:
            await site.do("delete from item where id = (select id from item order by random() limit 1)")
        else:
            await site.do(
                f"update item set ({names}) = row({values}) where id = (select id from item order by random() limit 1)"
            )

    async def ship(self, origin: Site, receiver: Site) -> None:
        """As the inbox has it: what is newer waits, what is too old is asked for again."""
        at, floor = self.fleet.at(receiver)
        batch = await patiently(lambda: origin.batch(receiver, plain=self.rnd.random() < 0.7))
        if batch.header.schema > at:
            self.met["waited"] += 1
        elif batch.header.schema < floor:
            self.met["asked again"] += 1
        elif await receiver.ready(batch.header):
            self.met["from before"] += batch.header.schema < at
            try:
                await receiver.apply(batch)
            except (Inexact, Contended):
                return

    async def open(self) -> None:
        if self.fleet.schema.open is not None:
            return
        number, columns = next(self.numbers), await self.columns(self.fleet.sites[0])
        column = self.rnd.choice(columns)
        text = self.rnd.choice(
            [
                f"alter table item add column c{number} int default {number}",
                f"alter table item add column c{number} text; create index i{number} on item (c{number})",
                f"alter table item add column c{number} int not null default 3, add column d{number} varchar(9)",
                f'alter table item drop column "{column}"'
                if len(columns) > 2
                else "comment on table item is 'x'",
                f"comment on table item is 'of {number}'; grant {self.rnd.choice(['select', 'insert'])} on item to public",
                f'alter table item rename column "{column}" to c{number}',
                f'-- down: "{column}_new"::text\nalter table item alter column "{column}" type varchar(30) using "{column}"::text'
                if column in ("value", "note")
                else f"create table other{number} (id uuid primary key)",
            ]
        )
        planned = await asyncio.to_thread(self.fleet.planned, text)
        if not planned.refusals:
            await self.fleet.open(text)
            self.met["changes"] += 1

    async def step(self) -> None:
        site, other = self.rnd.sample(self.fleet.sites, 2)
        dice = self.rnd.random()
        if dice < 0.4:
            await self.write(site)
        elif dice < 0.65:
            await self.ship(site, other)
        elif dice < 0.8:
            await self.fleet.follow(site, most=1)
        elif dice < 0.88:
            self.fleet.lead()
        elif dice < 0.95:
            await self.open()
        elif dice < 0.97 and (change := self.fleet.schema.open) is not None and change.state == "open":
            if not any(step.phase == "contract" for step in change.track):
                self.fleet.take_back()
                self.met["taken back"] += 1
        else:
            await site.compact()

    async def rest(self) -> None:
        while True:
            await self.fleet.follow(*self.fleet.sites)
            if self.fleet.schema.open is None:
                break
            self.fleet.lead()
        await exchange(*self.fleet.sites, plain=False)


@pytest.mark.soak
async def test_random_changes(
    laboratory: Laboratory, pair: Pair, seed: int, runs: Callable[[int, int], int]
) -> None:
    newest = max(pair, key=lambda server: server.binaries.major)
    for number in range(seed, seed + runs(1, 50)):
        rnd = random.Random(f"changes {number}")
        async with laboratory.sites(SCHEMA, *pair, pair[0]) as trio:
            run = Run(Fleet(*trio), rnd)
            try:
                for _ in range(120):
                    await run.step()
                await run.rest()
                await same("item", *trio)
                first, *others = [dumped(Database(site.server, site.name), newest) for site in trio]
                assert [first ^ other for other in others] == [set(), set()]
            except BaseException:
                print(f"repeat it with SEED={number}; {run.met}; {run.fleet.schema}")  # noqa: T201
                raise
