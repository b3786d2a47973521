"""What a person sees: while the sites work, a table that moves or a line every few seconds; then the results.

Invariant: progress goes to stderr, results to stdout. Looking costs next to nothing: rows are an estimate.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .checksum import Checksum
from .sites import Site
from .writers import Office

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Sample:
    """One site at one moment."""

    site: str
    flights: int
    transactions: int
    tried_again: int


class Screen:
    """Shows `look()` until the block ends; `phase` says what is going on."""

    def __init__(self, look: Callable[[], Sequence[Sample]]) -> None:
        self.console = Console(stderr=True)
        self._look = look
        self._phase, self._since = "starting", time.monotonic()
        self._done = threading.Event()
        self._live = (
            Live(console=self.console, auto_refresh=False, transient=True)
            if self.console.is_terminal
            else None
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def phase(self, what: str) -> None:
        self._phase, self._since = what, time.monotonic()
        if not self._live:
            self._say(what)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if self._live:
            self._live.stop()

    def _run(self) -> None:
        while not self._done.wait(LIVE_SECONDS if self._live else PLAIN_SECONDS):
            samples = self._look()
            if self._live:
                self._live.update(self._table(samples), refresh=True)
            elif samples:
                sites = ", ".join(
                    f"{one.site} {one.flights} flights {one.transactions} writes" for one in samples
                )
                self._say(f"  {self._seconds():4.0f} s: {sites}")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def _seconds(self) -> float:
        return time.monotonic() - self._since

    def _table(self, samples: Sequence[Sample]) -> Table:
        table = Table(title=f"{self._phase} … {self._seconds():.0f} s", title_justify="left")
        table.add_column("site")
        for column in ("flights, about", "transactions of its office", "tried again"):
            table.add_column(column, justify="right")
        for one in samples:
            table.add_row(one.site, f"{one.flights:,}", f"{one.transactions:,}", f"{one.tried_again:,}")
        return table


def show_sites(sites: Sequence[Site], offices: Sequence[Office], conflicts: Sequence[int]) -> None:
    """What every office did, on stdout."""
    table = Table("site", "PostgreSQL")
    for column in ("transactions", "rows written", "tried again", "conflicts"):
        table.add_column(column, justify="right")
    for site, office, found in zip(sites, offices, conflicts, strict=True):
        again = ", ".join(f"{count} {reason}" for reason, count in office.again.items()) or "0"
        written = sum(count for task, count in office.done.items() if task != "nothing to do")
        table.add_row(
            site.name, site.server.binaries.version, f"{written:,}", f"{office.rows:,}", again, f"{found:,}"
        )
    Console().print(table)


def show_tables(sites: Sequence[str], sums: Sequence[dict[str, Checksum]]) -> None:
    """Rows and checksum of every table, and of every site that has others, on stdout."""
    table = Table("table")
    table.add_column("rows", justify="right")
    table.add_column("checksum")
    table.add_column("equal")
    for name in sums[0]:
        if len({at_site[name] for at_site in sums}) == 1:
            table.add_row(name, f"{sums[0][name].rows:,}", str(sums[0][name]), "yes")
        else:
            for site, at_site in zip(sites, sums, strict=True):
                table.add_row(name, f"{at_site[name].rows:,}", str(at_site[name]), f"NO: {site}")
    Console().print(table)
