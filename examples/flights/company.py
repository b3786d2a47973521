"""All sites and their offices: load at the first, write at all, wait, compare.

Invariant: while anything runs, an agent that ended or an office that met an error is noticed within a moment.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from sqlalchemy import Engine, text

from .checksum import Checksum, checksums, row_hashes, row_text
from .load import load
from .models import TABLES
from .screen import Sample
from .sites import Site, SiteError
from .writers import Office

ISOLATION = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]  # of the offices, in turn
CHECK_SECONDS = 0.25
MEET_SECONDS = 120
SHOWN = 3  # differing rows per table
ABOUT = text("select n_live_tup from pg_stat_user_tables where relid = 'flights.flights'::regclass")


class Stopped(Exception):
    """The load was told to stop."""


class Company:
    """`with` it, everything that it starts is stopped at the end: offices, then agents and servers."""

    def __init__(self, sites: list[Site], seed: int) -> None:
        self.sites = sites
        self.offices: list[Office] = []
        self._seed = seed
        self._observers: list[Engine] = []
        self._stopped = threading.Event()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def build(self) -> None:
        """Running servers with the application's empty tables."""
        for site in self.sites:
            self._open.callback(site.stop)
            site.start()
        self._observers = [site.engine("observer") for site in self.sites]

    def connect(self) -> None:
        """Make sites of them: the first founds a cluster and attaches the tables, the others join it."""
        first, *others = self.sites
        first.found()
        first.attach(*TABLES)
        for site in others:
            site.join(first)

    def open(self) -> None:
        """Every office begins to write."""
        for site in self.sites:
            engine = site.engine(site.name, ISOLATION[(site.number - 1) % len(ISOLATION)])
            self.offices.append(self._open.enter_context(Office(engine, site.number, self._seed)))

    def load(self, rows: int | None) -> int:
        """The data set into the first site, while all write. Returns the flights loaded."""

        def progress(table: str, done: int) -> None:
            if self._stopped.is_set():
                raise Stopped

        with ThreadPoolExecutor(1) as executor:
            engine = self.sites[0].engine("loader")
            future = executor.submit(load, engine, rows, progress)
            try:
                while True:
                    try:
                        return future.result(CHECK_SECONDS)["flights"]
                    except StillRunning:
                        self.check()
            finally:
                self._stopped.set()
                engine.dispose()

    def write(self, seconds: float) -> None:
        """Go on for so long, and until every office has changed flights: most came from elsewhere."""
        self._until(time.monotonic() + seconds, lambda: False)
        if not self._until(
            time.monotonic() + MEET_SECONDS, lambda: all(o.done["delay"] for o in self.offices)
        ):
            raise SiteError(f"flights did not reach every site within {MEET_SECONDS} s")

    def close(self) -> None:
        """Every office goes home."""
        for office in self.offices:
            office.stop()
        self.check()

    def converge(self, seconds: int) -> None:
        self.sites[0].wait_converged(seconds, self.check)

    def compare(self) -> list[dict[str, Checksum]]:
        return [checksums(observer) for observer in self._observers]

    def differences(self) -> Iterator[str]:
        """Some rows that are not the same everywhere, as every site has them."""
        for table in TABLES:
            hashes = [row_hashes(observer, table) for observer in self._observers]
            keys = sorted(set().union(*hashes))
            differing = [key for key in keys if len({one.get(key) for one in hashes}) > 1]
            if differing:
                yield f"{table}: {len(differing)} rows differ"
            for key in differing[:SHOWN]:
                for site, observer in zip(self.sites, self._observers, strict=True):
                    yield f"  {site.name}: {row_text(observer, table, key) or 'no row ' + str(key)}"

    def samples(self) -> list[Sample]:
        if not self.offices:
            return []
        samples = []
        for site, observer, office in zip(self.sites, self._observers, self.offices, strict=False):
            with observer.connect() as connection:
                flights = connection.scalar(ABOUT) or 0
            samples.append(Sample(site.name, flights, office.done.total(), office.again.total()))
        return samples

    def check(self) -> None:
        """Raise what went wrong at some site."""
        for site in self.sites:
            site.check()
        for office in self.offices:
            office.check()

    def _until(self, deadline: float, reached: Callable[[], bool]) -> bool:
        never = threading.Event()
        while not reached():
            if time.monotonic() > deadline:
                return False
            self.check()
            never.wait(CHECK_SECONDS)
        return True
