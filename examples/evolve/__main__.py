"""`python -m examples.evolve`: a help desk changes its schema twelve times while three sites work with two versions of it.

Invariant: the exit code is 0 only if every site has all twelve revisions, the same rows, the same schema by pg_dump, and every
ticket that a desk has made and nobody has deleted.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg

from syncagent.embedded import find_binaries

from ..compare import checksums, unequal
from ..runner import phase, play
from ..sites import CHECK_SECONDS, Site, SiteError
from .writers import V1, V2, V3, Books, Desk, Version

HERE = Path(__file__).parent
TABLES = ("person", "ticket", "team")
CONVERGE_SECONDS = 120
STEP_SECONDS = 120


class Company:
    """Three sites, their desks, and the application's repository as it is today."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.sites = [Site(i, folder, find_binaries(options.postgres), "helpdesk") for i in range(1, 4)]
        self.repository = folder / "helpdesk"
        self.desks: list[Desk] = []
        self._failed = threading.Event()
        self.books: list[Books] = []

    def start(self) -> None:
        first, *others = self.sites
        for site in self.sites:
            site.start()
        first.found()
        for site in others:
            site.join(first)
        self.repository.mkdir()
        for name in ("alembic.ini", "env.py"):
            shutil.copy(HERE / name, self.repository)
        (self.repository / "versions").mkdir()

    def stop(self) -> None:
        for desk in self.desks:
            desk.leave()
        for site in self.sites:
            site.stop()

    def release(self, upto: int, at: Site) -> None:
        """The next revisions come into the repository, one after the other, and are carried from this site."""
        there = len(list((self.repository / "versions").iterdir()))
        for revision in sorted(HERE.glob("versions/r*.py"))[there:upto]:
            shutil.copy(revision, self.repository / "versions")
            phase(f"{revision.stem} from {at.name}")
            ini = str(self.repository / "alembic.ini")
            at.command(
                *("schema", "apply", "--alembic", ini, "--auto", "--timeout", f"{STEP_SECONDS}s"),
                check=self.check,
            )

    def open(self, version: Version, seed: int, *sites: Site) -> None:
        phase(f"{version.name} is opened at {', '.join(site.name for site in sites)}")
        for site in sites:
            desk = Desk(site.dsn, version, f"{seed} {site.name}", self._failed)
            desk.start()
            self.desks.append(desk)

    def close(self, version: Version) -> None:
        phase(f"{version.name} is closed")
        for desk in [desk for desk in self.desks if desk.name.startswith(version.name)]:
            desk.leave()
            self.books.append(desk.books)
            self.desks.remove(desk)
            if desk.error:
                raise SiteError(desk.error)

    def write(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._failed.wait(min(CHECK_SECONDS, seconds))
            self.check()

    def check(self) -> None:
        """Raise if a desk or an agent has ended by itself."""
        for desk in self.desks:
            if desk.error:
                raise SiteError(desk.error)
        for site in self.sites:
            site.check()

    # ---- the end

    def verdict(self) -> str:
        """Raises SiteError if anything differs, or is missing."""
        self.sites[0].wait_converged(CONVERGE_SECONDS, self.check)
        sums = [checksums(site.dsn, TABLES) for site in self.sites]
        if differing := unequal(sums):
            raise SiteError(f"tables differ: {', '.join(differing)}")
        first, *others = [self._schema(site) for site in self.sites]
        for site, other in zip(self.sites[1:], others, strict=True):
            if first != other:
                raise SiteError(f"the schema of {site.name} differs: {sorted(set(first) ^ set(other))}")
        made = set[object]().union(*(books.made - books.deleted for books in self.books))
        with psycopg.connect(self.sites[-1].dsn) as connection:
            there = {key for (key,) in connection.execute("select id from ticket")}
            (at,) = connection.execute("select version_num from alembic_version").fetchone() or ("nothing",)
        deleted = set[object]().union(*(books.deleted for books in self.books))
        if lost := made - deleted - there:
            raise SiteError(f"{len(lost)} tickets are lost")
        rows, writes = sum(checksum.rows for checksum in sums[0].values()), sum(b.writes for b in self.books)
        return f"{len(TABLES)} tables equal on {len(self.sites)} sites at revision {at}, {rows} rows, {writes} writes"

    @staticmethod
    def _schema(site: Site) -> list[str]:
        tool = site.server.binaries.tool("pg_dump")
        done = subprocess.run(
            [tool, "--schema-only", "--exclude-schema=syncagent", site.dsn],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return [
            line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
        ]


def story(company: Company, options: argparse.Namespace) -> str:
    first, second, third = company.sites[0], company.sites[1], company.sites[-1]
    company.start()
    company.release(1, first)
    company.open(V1, options.seed, first, second, third)
    company.write(options.seconds)
    company.release(2, second)
    phase(f"{third.name} is cut off; its desk works on")
    third.halt()
    company.release(5, first)
    company.open(V2, options.seed, first, second)
    company.release(6, second)
    company.write(options.seconds)
    phase(f"{third.name} is back")
    third.run()
    company.release(7, second)
    company.open(V2, options.seed, third)
    company.release(9, second)
    company.write(options.seconds)
    company.close(V1)
    # What version 1 wrote elsewhere is still on its way, and the revision fills in what it finds at its own site.
    first.wait_converged(CONVERGE_SECONDS, company.check)
    company.release(10, first)
    company.close(V2)
    company.release(11, third)
    company.open(V3, options.seed, first, second, third)
    company.write(options.seconds)
    company.release(12, first)
    company.write(options.seconds)
    company.close(V3)
    phase("waiting, and comparing")
    return company.verdict()


if __name__ == "__main__":
    sys.exit(play("evolve", "A schema that changes while three sites work.", Company, story))
