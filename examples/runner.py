"""What the runners of the examples share: options, a folder, phases told on stderr, and a verdict.

Invariant: the exit code is 0 only if the story ran to its end and its verdict says that all is equal.
"""

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from syncagent.embedded import find_binaries, scratch
from syncagent.errors import SyncagentError

from .cluster import Application, Cluster
from .compare import Checksum, unequal
from .sites import Site, SiteError

STARTED = time.monotonic()
Story = Callable[[Cluster, argparse.Namespace], str]
"""Does everything between start and stop; returns what the last line says beside the verdict."""


def main(application: Callable[[Path], Application], needs: str, description: str, story: Story) -> int:
    """Run one example; `needs` is the package without which it cannot."""
    options = _options(f"python -m examples.{needs}", description)
    if importlib.util.find_spec(needs) is None:
        print(f"{needs} is not installed; `make examples` installs and runs it", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def told() -> str:
        with _folder(f"{needs}-", options.keep) as folder:
            cluster = Cluster(application(folder), options.sites, folder, find_binaries(options.postgres))
            with cluster, _logs_on_error(cluster):
                return story(cluster, options)

    return _concluded(needs, told)


def _concluded(name: str, told: Callable[[], str]) -> int:
    """The exit code, and the last line."""
    try:
        last = told()
    except (SiteError, SyncagentError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"{name}: {last}, {time.monotonic() - STARTED:.0f} s")
    return 0


class Company(Protocol):
    """What a story is told of; it can be stopped whatever has become of it."""

    sites: list[Site]

    def stop(self) -> None: ...


C = TypeVar("C", bound=Company)


def play(
    name: str, description: str,
    company: Callable[[Path, argparse.Namespace], C], story: Callable[[C, argparse.Namespace], str],
) -> int:  # fmt: skip
    """Run an example that needs nothing beside syncagent. The story returns what the last line says, or raises SiteError."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    add = parser.add_argument
    add("--seconds", type=float, default=3, help="how long each part is written (default: %(default)s)")
    add("--seed", type=int, default=0, help="what is written (default: %(default)s)")
    add("--postgres", type=int, metavar="MAJOR", help="version of the sites (default: the preferred)")
    options = parser.parse_args()

    def told() -> str:
        with scratch(f"{name}-") as folder, _stopped(company(folder, options)) as there:
            return story(there, options)

    return _concluded(name, told)


@contextmanager
def _stopped(company: C) -> Iterator[C]:
    try:
        yield company
    except (SiteError, SyncagentError):
        for site in company.sites:
            print(f"--- the last lines of the agent of {site.name}\n{site.log_tail()}", file=sys.stderr)
        raise
    finally:
        company.stop()


def phase(what: str) -> None:
    print(f"{time.monotonic() - STARTED:5.0f} s  {what}", file=sys.stderr, flush=True)


def show(heading: str, text: str) -> None:
    """Something that syncagent said, as wide as it is."""
    print("", heading, *(line.rstrip() for line in text.splitlines()), "", sep="\n", flush=True)


def settle(cluster: Cluster) -> str:
    """Wait until every site has everything, and hold every table of every site against the others."""
    phase("waiting until every site has everything")
    began = time.monotonic()
    cluster.converge()
    waited = time.monotonic() - began
    phase("comparing all columns of all attached tables")
    sums = cluster.compare()
    if wrong := unequal(sums):
        raise SiteError("\n".join([f"{len(wrong)} tables differ", *cluster.differences(wrong)]))
    print(f"converged {waited:.1f} s after the last write; {_equal(sums)}", flush=True)
    return _equal(sums)


def same(found: Sequence[object], what: str) -> None:
    """Raise if sites that hold the same rows show the application something else."""
    for number, other in enumerate(found[1:], 2):
        if other != found[0]:
            raise SiteError(
                "\n".join([f"{what} differ between site1 and site{number}", *_unlike(found[0], other)])
            )


def _unlike(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two answers are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _unlike(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _unlike(*pair, f"{where}/{number}")
    elif one != other:
        yield f"  {where}: {one!r} and {other!r}"


def _equal(sums: Sequence[dict[str, Checksum]]) -> str:
    rows = sum(checksum.rows for checksum in sums[0].values())
    return f"{len(sums[0])} tables equal on {len(sums)} sites, {rows} rows"


def _options(program: str, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=description)
    add = parser.add_argument
    add(
        "--sites",
        type=int,
        choices=range(2, 10),
        default=2,
        metavar="N",
        help="2 to 9 (default: %(default)s)",
    )
    add("--seconds", type=float, default=20, help="how long all sites write (default: %(default)s)")
    add("--seed", type=int, default=0, help="what they write (default: %(default)s)")
    add("--postgres", type=int, metavar="MAJOR", help="version of the sites (default: the preferred)")
    add("--keep", action="store_true", help="leave data, homes and logs in a folder and say which")
    return parser.parse_args()


@contextmanager
def _folder(prefix: str, keep: bool) -> Iterator[Path]:
    if keep:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        folder.chmod(0o711)  # the account of the servers must get to its data
        try:
            yield folder
        finally:
            print(f"kept: {folder}", file=sys.stderr)
    else:
        with scratch(prefix) as folder:
            yield folder


@contextmanager
def _logs_on_error(cluster: Cluster) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        print(*cluster.logs(), sep="\n", file=sys.stderr)
        raise
