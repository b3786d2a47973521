"""The story, act by act: what is done to the sites, and what is told about it.

Invariant: an act that is over has reached what it told: rows have arrived, a site is cut off, or it has caught
up; the story waits for that by looking, and fails with what is missing.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from syncagent.demo import shop
from syncagent.demo.load import Office
from syncagent.demo.network import Network
from syncagent.demo.proof import Proof, prove
from syncagent.demo.screen import Screen
from syncagent.demo.sites import Site, in_thread
from syncagent.demo.watch import Sight, Watch
from syncagent.errors import SyncagentError

ACTS = 8
_PACE = 25.0
"""Transactions a second that a clerk aims at."""
_LOOK_SECONDS = 0.3
_PATIENCE = 60.0
"""Seconds for what should take one."""

# How the seconds of the load are shared among its acts.
_TOGETHER, _WITHOUT_AGENT, _APART, _HEALED = 0.25, 0.12, 0.38, 0.25


@dataclass(frozen=True)
class Choices:
    """What the person asked for; `seconds` is how long the shop sells."""

    seconds: float
    seed: int


class Story:
    """Told once, to the three sites of a stage, with the lines between them."""

    def __init__(self, sites: Sequence[Site], network: Network, screen: Screen, choices: Choices) -> None:
        self._sites, self._network, self._screen, self._choices = sites, network, screen, choices
        self._home, self._second, self._far = sites
        self._offices = [Office(site.app_dsn, site.number, site.name, choices.seed, _PACE) for site in sites]
        self._sights: list[Sight] = []
        self._looked = asyncio.Event()

    async def tell(self) -> Proof:
        """The whole story. What goes wrong beside it (an agent that ends, an office that fails) ends it."""
        await self._join()
        async with Watch(self._sites, self._network, self._offices) as watch, asyncio.TaskGroup() as beside:
            companions = [beside.create_task(self._keep_looking(watch))]
            companions += [beside.create_task(site.watch()) for site in self._sites]
            await self._arrive()
            selling = [beside.create_task(office.work()) for office in self._offices]
            await self._sell_together()
            await self._cut_off()
            await self._heal()
            for office in self._offices:
                office.close()
            await asyncio.wait(selling)
            await self._converge()
            await self._explain()
            proof = await self._prove()
            for companion in companions:
                companion.cancel()
        return proof

    # ---- the acts

    async def _join(self) -> None:
        self._screen.act(
            "three offices become one shop",
            "The first one founds a cluster and invites the others; each of them joins with one command.",
        )
        home, *others = self._sites
        await home.init()
        home.reach(self._addresses(home))
        await home.run()
        tables = [f"shop.{table.name}" for table in shop.TABLES]
        await home.when_ready()
        await home.command("attach", "--derive-key", *tables)
        self._screen.say("The tables are replicated as they are: no column is added, no query changed.")
        self._screen.say("The databases of the others are empty: joining brings the tables and their rows.")
        for site in others:
            await site.join(self._network.address(site.name, home.name), await home.invite())
            site.reach(self._addresses(site))
            await site.run()
        self._screen.answer(await home.command("status"))

    def _addresses(self, site: Site) -> dict[str, str]:
        """Where it reaches the others: through lines that can be cut."""
        return {
            other.name: self._network.address(site.name, other.name)
            for other in self._sites
            if other is not site
        }

    async def _arrive(self) -> None:
        self._screen.say(f"{self._home.name} has customers and goods already; now every office gets them.")
        await self._until("the first rows are everywhere", self._level)

    async def _sell_together(self) -> None:
        self._screen.act(
            "everybody sells, everywhere",
            "Three offices write the same tables at once, often the same rows.",
        )
        await self._pass(_TOGETHER)
        site = self._second
        self._screen.say(f"Now the agent of {site.name} dies. Its database goes on selling.")
        await site.kill()
        await self._pass(_WITHOUT_AGENT)
        sold = self._sold()
        await site.run()
        await self._until(f"{site.name} has caught up", lambda sights: all(s.shows(sold) for s in sights))
        self._screen.say(f"{site.name} has caught up: nothing lost, nothing twice.")

    async def _cut_off(self) -> None:
        far = self._far
        self._screen.act(
            f"{far.name} is cut off",
            "Every line to it is dead. All three go on selling, and drift apart.",
        )
        await self._network.cut_off(far.name)
        await self._pass(_APART / 3)
        for site, price in ((self._home, 379), (far, 349)):
            self._screen.say(f"{site.name} sets the price of the espresso machine to {price}.")
            await self._reprice(site, price)
            await self._pass(_APART / 6)
        self._screen.answer(await self._home.command("status"))
        await self._pass(_APART / 3)
        behind = self._sights[far.number - 1]
        self._screen.say(
            f"{far.name} lacks {behind.behind:,} sales of the others, the oldest {behind.seconds:.1f} s old."
        )

    async def _reprice(self, site: Site, price: int) -> None:
        async with await psycopg.AsyncConnection.connect(site.app_dsn) as connection:
            await connection.execute(
                "update shop.product set price = %s, changed_by = %s where sku = %s",
                (price, site.name, shop.STAR),
            )

    async def _heal(self) -> None:
        self._screen.act("the lines are mended", "Everything flows, while the shop goes on selling.")
        before = sum(sight.conflicts for sight in self._sights)
        sold = self._sold()
        self._network.reconnect(self._far.name)
        await self._until(
            f"{self._far.name} has caught up", lambda sights: all(s.shows(sold) for s in sights)
        )
        found = sum(sight.conflicts for sight in self._sights) - before
        self._screen.say(f"Caught up. {found:,} conflict records more: what was overwritten unseen is kept.")
        await self._pass(_HEALED)

    async def _converge(self) -> None:
        self._screen.act("closing time", "The offices stop selling. Does every site have everything?")
        self._screen.answer(await self._home.command("wait", "--converged", "--timeout", f"{_PATIENCE:.0f}s"))

    async def _explain(self) -> None:
        self._screen.act("one conflict", "The espresso machine: who won, and what became of the other price?")
        star = await self._star()
        for site in self._sites:
            found: list[dict[str, Any]] = await site.ask("conflicts", "list", "--table", "shop.product")
            for conflict in (conflict for conflict in found if conflict["key"] == star):
                self._screen.answer(await site.command("conflicts", "show", conflict["id"]))
                self._screen.answer(await site.command("why", "shop.product", star), whole=True)
                return
        raise SyncagentError(
            "two offices set one price unseen, and no conflict was recorded", detail=f"shop.product {star}"
        )

    async def _star(self) -> str:
        async with await psycopg.AsyncConnection.connect(self._home.app_dsn) as connection:
            found = await connection.execute("select id::text from shop.product where sku = %s", (shop.STAR,))
            row = await found.fetchone()
            assert row is not None
            return str(row[0])

    async def _prove(self) -> Proof:
        self._screen.act(
            "the proof",
            "Plain SQL, not syncagent: every column of every row of every table, at all three sites.",
        )
        proof = await prove([site.dsn for site in self._sites])
        self._screen.say(
            f"{proof.rows:,} rows per site, {proof.differ} of them differ or are missing somewhere."
        )
        self._screen.say(
            f"{proof.resolved:,} of {proof.recorded:,} conflicts have the same winner everywhere."
        )
        for table, keys in proof.differing.items():
            self._screen.answer(f"{table}: {len(keys)} rows differ, as {', '.join(keys[:3])}")
        return proof

    # ---- time passes

    async def _keep_looking(self, watch: Watch) -> None:
        while True:
            self._sights = await watch.look()
            self._screen.show(self._sights)
            self._looked.set()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _pass(self, share: float) -> None:
        """A share of the seconds that the shop sells."""
        await asyncio.sleep(share * self._choices.seconds)

    async def _until(self, what: str, reached: Callable[[Sequence[Sight]], bool]) -> None:
        """Look until it is so."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    self._looked.clear()
                    await self._looked.wait()
                    if reached(self._sights):
                        return
        except TimeoutError:
            raise SyncagentError(f"not within {_PATIENCE:.0f} s: {what}") from None

    def _sold(self) -> dict[int, int]:
        """What every office has sold by now, by its own till."""
        return {
            site.number: sight.tills[site.number].sales
            for site, sight in zip(self._sites, self._sights, strict=True)
        }

    @staticmethod
    def _level(sights: Sequence[Sight]) -> bool:
        return len({sight.rows for sight in sights}) == 1 and sights[0].rows > 0


async def open_shop(sites: Sequence[Site], screen: Screen, seed: int) -> None:
    """The first act, before there is anything of syncagent: three servers, one of them with the shop's data."""
    version = sites[0].server.binaries.version
    screen.act(
        "three PostgreSQL servers",
        f"PostgreSQL {version} for {', '.join(site.name for site in sites)}; nothing is installed for it.",
    )
    await asyncio.gather(*(in_thread(site.open) for site in sites))
    rng = random.Random(seed)
    await in_thread(lambda: shop.create(sites[0].dsn))
    await in_thread(lambda: shop.fill(sites[0].app_dsn, [site.name for site in sites], rng))
    screen.say(f"The shop's application connects as {shop.ROLE}, without any right on schema syncagent.")
