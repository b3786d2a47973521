"""Fixtures for all tests: servers, databases, seeds and run counts."""

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import hypothesis
import pytest

from syncagent.embedded import Server, scratch
from tests.support.cluster import Laboratory
from tests.support.databases import Database, fresh_database
from tests.support.postgres import FETCHED, MAJORS, Servers, in_memory

# The same examples in every run: a failure is the change's, not the day's. `--soak` looks for new ones.
hypothesis.settings.register_profile("share", deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=2000, print_blob=True)


def _majors(text: str) -> tuple[int, ...]:
    majors = tuple(int(part) for part in text.split(","))
    if unknown := set(majors) - set(FETCHED):
        raise ValueError(f"no such versions to test: {unknown}")
    return majors


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--majors", type=_majors, default=MAJORS, help="PostgreSQL versions for the fixture `server`: 15,18"
    )
    parser.addoption("--soak", action="store_true", help="run the seeded tests with their full counts")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("soak" if config.getoption("soak") else "share")
    # Terminated, the run still stops its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    majors = metafunc.config.getoption("majors")
    few = majors if len(majors) > len(MAJORS) else majors[-1:]
    for name, chosen in (("server", majors), ("matrix_server", few)):
        if name in metafunc.fixturenames:
            ids = [f"pg{major}" for major in chosen]
            metafunc.parametrize(name, chosen, ids=ids, indirect=True, scope="session")
    if "part" in metafunc.fixturenames:  # tenths of many long runs, for processes to share
        metafunc.parametrize(
            "part", range(10 if metafunc.config.getoption("soak") and not os.environ.get("SEED") else 1)
        )


_LONG = ("tests/cluster/", "tests/chaos/", "tests/cli/test_demo.py", "tests/examples/test_flights.py")
"""Where tests take tens of seconds."""


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """What is only of the soak is skipped without it; `SEED` repeats one run of it."""
    marker = item.get_closest_marker("soak")
    why = marker.kwargs.get("only") if marker else None
    if why and not (item.config.getoption("soak") or os.environ.get("SEED")):
        item.add_marker(pytest.mark.skip(reason=f"{why}: --soak"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first in the queue of each process, who begin with an equal share: so none is left at the end, when there is
    nothing to do beside it. Modules stay together, for what their tests share."""
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    long = [module for name, module in modules.items() if name.startswith(_LONG)]
    short = [item for name, module in modules.items() if not name.startswith(_LONG) for item in module]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = -(-len(items) // processes)
    items.clear()
    for number in range(processes):
        queue = [item for module in long[number::processes] for item in module]
        more = max(share - len(queue), 0)
        items += [*queue, *short[:more]]
        del short[:more]
    items += short


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """One server per major version, for the whole run: `servers.of(15)`."""
    with scratch("syncagent-tests-", in_memory()) as folder:
        servers = Servers(folder)
        try:
            yield servers
        finally:
            servers.stop()


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    """Clusters with real agents, on servers that flush what they acknowledge; no test cuts the power."""
    with scratch("syncagent-cluster-", in_memory()) as folder:
        laboratory = Laboratory(folder, durable=True)
        try:
            yield laboratory
        finally:
            laboratory.stop()


@pytest.fixture
def majors(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """The versions of `--majors`."""
    chosen: tuple[int, ...] = request.config.getoption("majors")
    return chosen


@pytest.fixture
def server15(servers: Servers) -> Server:
    return servers.of(15)


@pytest.fixture
def server18(servers: Servers) -> Server:
    return servers.of(18)


@pytest.fixture
def server(servers: Servers, request: pytest.FixtureRequest) -> Server:
    """Runs the test once for each version of `--majors`."""
    return servers.of(request.param)


@pytest.fixture
def matrix_server(servers: Servers, request: pytest.FixtureRequest) -> Server:
    """Once for each version of `make test-matrix`; in `make test` the newest will do."""
    return servers.of(request.param)


@pytest.fixture
def make_database() -> Iterator[Callable[..., Database]]:
    """`make_database(server, template="template1")`: a fresh database, dropped after the test."""
    with ExitStack() as stack:
        yield lambda server, template="template1": stack.enter_context(fresh_database(server, template))


@pytest.fixture
def database(server: Server, make_database: Callable[..., Database]) -> Database:
    """A fresh, empty database, once on each version."""
    return make_database(server)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What a test's randomness starts from: `SEED`, else a number of the test's own."""
    seed = int(os.environ.get("SEED") or zlib.crc32(request.node.nodeid.encode()))
    request.node.add_report_section("call", "seed", f"SEED={seed}")  # shown if the test fails
    return seed


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`runs(share, full)`: how often a seeded test runs; `full` under `--soak`, once if `SEED` is given."""

    def choose(share: int, full: int) -> int:
        if os.environ.get("SEED"):
            return 1
        return full if request.config.getoption("soak") else share

    return choose
