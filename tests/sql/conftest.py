"""Sites for the tests of the SQL side."""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import pytest

from syncagent.embedded import Server
from tests.support.lab import Laboratory, Site
from tests.support.postgres import Servers

Sites = Callable[..., Awaitable[list[Site]]]
Pair = tuple[Server, Server]


def pairs(majors: Sequence[int]) -> list[tuple[int, int]]:
    """Each version beside another one: the oldest and the newest, then inwards."""
    half = len(majors) // 2
    found = list(zip(majors[:half], reversed(majors[-half:]), strict=True))
    return [*found, (majors[half], majors[-1])] if len(majors) % 2 else found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    majors = metafunc.config.getoption("majors")
    if "pair" in metafunc.fixturenames and len(majors) > 2:
        ends = pairs(majors)
        metafunc.parametrize("pair", ends, ids=[f"pg{old}+pg{new}" for old, new in ends], indirect=True)


@pytest.fixture(scope="session")
def laboratory() -> Laboratory:
    """Keeps databases for the whole run."""
    return Laboratory()


@pytest.fixture
async def sites(laboratory: Laboratory) -> AsyncIterator[Sites]:
    """`a, b = await sites(schema, *pair)`: sites with all tables of the schema attached."""
    async with AsyncExitStack() as stack:

        async def make(schema: str, *servers: Server) -> list[Site]:
            return await stack.enter_async_context(laboratory.sites(schema, *servers))

        yield make


@pytest.fixture
def pair(servers: Servers, request: pytest.FixtureRequest) -> Pair:
    """Servers of two versions, one test this way round, the next one that way: the oldest and the newest of
    `--majors`; if there are more than two, each test runs once for each of `pairs`."""
    majors = request.config.getoption("majors")
    old, new = getattr(request, "param", (majors[0], majors[-1]))
    ends = servers.of(old), servers.of(new)
    return ends if zlib.crc32(request.node.name.encode()) % 2 else (ends[1], ends[0])
