"""`python -m examples.flights --sites 3`: the application at several sites at once, kept equal by syncagent.

One site loads the data set, the office of every site writes from the first moment on, then all stop and the
sites are compared. Invariant: the exit code is 0 only if all five tables have equal checksums everywhere.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syncagent.embedded import find_binaries, scratch
from syncagent.errors import SyncagentError

from .company import Company
from .models import TABLES
from .screen import Screen, show_sites, show_tables
from .sites import Site, SiteError

CONVERGE_SECONDS = 300


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with _folder(options.keep) as folder:
            majors = options.postgres or [None]
            numbers = range(1, options.sites + 1)
            sites = [Site(i, folder, find_binaries(majors[(i - 1) % len(majors)])) for i in numbers]
            return _run(Company(sites, options.seed), options)
    except (SiteError, SyncagentError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(company: Company, options: argparse.Namespace) -> int:
    started = time.monotonic()
    with company, _logs_on_error(company):
        with Screen(company.samples) as screen:
            screen.phase(f"starting {options.sites} PostgreSQL servers with the application's empty tables")
            company.build()
            screen.phase("making sites of them: init, run, attach, join")
            company.connect()
            screen.phase("loading at site1, writing everywhere")
            company.open()
            loading = time.monotonic()
            loaded = company.load(options.rows)
            load_seconds = time.monotonic() - loading
            screen.phase("writing everywhere")
            company.write(options.seconds)
            company.close()
            screen.phase("waiting until every site has everything")
            waiting = time.monotonic()
            company.converge(CONVERGE_SECONDS)
            wait_seconds = time.monotonic() - waiting
            screen.phase("comparing")
            sums = company.compare()
        show_sites(company.sites, company.offices, [site.conflicts() for site in company.sites])
        show_tables([site.name for site in company.sites], sums)
        print(f"load {load_seconds:.1f} s, converged {wait_seconds:.1f} s after the last write")
        unequal = [table for table in TABLES if len({at_site[table] for at_site in sums}) > 1]
        if unequal:
            print(*company.differences(), sep="\n", file=sys.stderr)
            _print_logs(company)
        rows = sum(checksum.rows for checksum in sums[0].values())
        verdict = (
            f"{len(unequal)} of {len(TABLES)} tables differ" if unequal else f"{len(TABLES)} tables equal"
        )
        sites, seconds = len(company.sites), time.monotonic() - started
        print(
            f"flights: {verdict} on {sites} sites, {loaded} flights loaded, {rows} rows now, {seconds:.0f} s"
        )
        return 1 if unequal else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights", description="The flights application at several sites, kept equal."
    )
    add = parser.add_argument
    add(
        "--sites",
        type=int,
        choices=range(2, 10),
        default=3,
        metavar="N",
        help="2 to 9 (default: %(default)s)",
    )
    add(
        "--seconds", type=float, default=20, help="how long to write on after the load (default: %(default)s)"
    )
    add("--rows", type=int, metavar="N", help="load only the first N flights and N hours of weather")
    add("--seed", type=int, default=0, help="what the offices do (default: %(default)s)")
    add(
        "--postgres",
        type=int,
        nargs="+",
        metavar="MAJOR",
        help="versions of the sites, in turn (default: the preferred)",
    )
    add("--keep", action="store_true", help="leave data, homes and logs in a folder and say which")
    return parser.parse_args()


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    if keep:
        folder = Path(tempfile.mkdtemp(prefix="flights-"))
        folder.chmod(0o711)  # the account of the servers must get to its data
        try:
            yield folder
        finally:
            print(f"kept: {folder}", file=sys.stderr)
    else:
        with scratch("flights-") as folder:
            yield folder


@contextmanager
def _logs_on_error(company: Company) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        _print_logs(company)
        raise


def _print_logs(company: Company) -> None:
    for site in company.sites:
        print(f"--- the last lines of the agent of {site.name}\n{site.log_tail()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
