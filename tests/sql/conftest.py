"""Sites for the tests of the SQL side."""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from syncagent.embedded import Server
from tests.support.lab import Laboratory, Site
from tests.support.postgres import Servers

Sites = Callable[..., Awaitable[list[Site]]]
Pair = tuple[Server, Server]


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
    """The oldest and the newest version of `--majors`, one test this way round, the next one that way."""
    majors = request.config.getoption("majors")
    ends = servers.of(majors[0]), servers.of(majors[-1])
    return ends if zlib.crc32(request.node.name.encode()) % 2 else (ends[1], ends[0])
