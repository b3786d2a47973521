"""What every site looks like at this moment, by plain SQL and by what goes over the lines.

Invariant: how far a site is behind is counted in sales of the other offices that its own database does not
show yet; nobody is asked for it, so it says the same whatever the agents believe.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self

import psycopg
from psycopg import sql

from syncagent.demo import shop
from syncagent.demo.load import Office
from syncagent.demo.network import Network
from syncagent.demo.sites import Site


class Till(NamedTuple):
    """An office's sales, as some site shows them."""

    sales: int
    last: datetime | None


class View(NamedTuple):
    """What one database shows. `tills` are by the number of the office."""

    rows: int
    purchases: int
    conflicts: int
    tills: Mapping[int, Till]


@dataclass(frozen=True)
class Sight:
    """One site at one moment. `behind` and `seconds`: sales of the others not here yet, and how old they are."""

    name: str
    rows: int
    purchases: int
    conflicts: int
    writes: float
    behind: int
    seconds: float
    links: Mapping[str, bool]
    cut_off: bool
    agent: bool
    tills: Mapping[int, Till]

    def shows(self, sales: Mapping[int, int]) -> bool:
        """Whether so many sales of each office are here."""
        return all(number in self.tills and self.tills[number].sales >= n for number, n in sales.items())


class Watch:
    """`with` it, `look` as often as you like."""

    def __init__(self, sites: Sequence[Site], network: Network, offices: Sequence[Office]) -> None:
        self._sites, self._network, self._offices = sites, network, offices
        self._open = AsyncExitStack()
        self._connections: list[psycopg.AsyncConnection] = []
        self._committed: tuple[float, list[int]] = (time.monotonic(), [0] * len(sites))
        counts = [
            sql.SQL("(select count(*) from {})").format(relation)
            for relation in (
                *(table.quoted for table in shop.TABLES),
                sql.Identifier("syncagent", "conflict"),
            )
        ]
        self._counts = sql.SQL("select {}").format(sql.SQL(", ").join(counts))

    async def __aenter__(self) -> Self:
        for site in self._sites:
            connection = await psycopg.AsyncConnection.connect(site.dsn, autocommit=True)
            self._connections.append(await self._open.enter_async_context(connection))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def look(self) -> list[Sight]:
        views = await asyncio.gather(*map(self._view, self._connections))
        homes = {
            site.number: view.tills.get(site.number) for site, view in zip(self._sites, views, strict=True)
        }
        return [
            self._sight(site, view, homes, rate)
            for site, view, rate in zip(self._sites, views, self._rates(), strict=True)
        ]

    async def _view(self, connection: psycopg.AsyncConnection) -> View:
        counts = await (await connection.execute(self._counts)).fetchone()
        assert counts is not None
        found = await connection.execute("select number, sales, last_sale from shop.office")
        names = [table.name for table in shop.TABLES]
        return View(
            rows=sum(counts[:-1]),
            purchases=counts[names.index("purchase")],
            conflicts=counts[-1],
            tills={number: Till(sales, last) async for number, sales, last in found},
        )

    def _rates(self) -> list[float]:
        """Transactions per second of every office since the last look."""
        now, counts = time.monotonic(), [office.committed for office in self._offices]
        since, before = self._committed
        self._committed = now, counts
        span = max(now - since, 0.001)
        return [(count - earlier) / span for count, earlier in zip(counts, before, strict=True)]

    def _sight(self, site: Site, view: View, homes: Mapping[int, Till | None], rate: float) -> Sight:
        behind, seconds = 0, 0.0
        for number, home in homes.items():
            here = view.tills.get(number, Till(0, None))
            if home is not None and number != site.number and home.sales > here.sales:
                behind += home.sales - here.sales
                if home.last and here.last:
                    seconds = max(seconds, (home.last - here.last).total_seconds())
        others = [other.name for other in self._sites if other is not site]
        return Sight(
            name=site.name,
            rows=view.rows,
            purchases=view.purchases,
            conflicts=view.conflicts,
            writes=rate,
            behind=behind,
            seconds=seconds,
            links={other: self._network.linked(site.name, other) for other in others},
            cut_off=self._network.is_cut_off(site.name),
            agent=site.agent_runs,
            tills=view.tills,
        )
