"""Sites, and one that joins them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from syncagent.embedded import Server
from tests.support.joining import Joining, joining
from tests.support.lab import Laboratory

MakeJoin = Callable[..., Awaitable[Joining]]


@pytest.fixture(scope="session")
def laboratory() -> Laboratory:
    """Keeps databases for the whole run."""
    return Laboratory()


@pytest.fixture
async def make_join(laboratory: Laboratory, tmp_path: Path) -> AsyncIterator[MakeJoin]:
    """`await make_join(tables, keys, joiner's server, *servers of the members)`; the first member is the donor."""
    async with AsyncExitStack() as stack:

        async def make(tables: str, keys: str, server: Server, *servers: Server) -> Joining:
            members = await stack.enter_async_context(laboratory.sites(f"{tables};{keys}", *servers))
            return await stack.enter_async_context(joining(members, server, tables, keys, tmp_path))

        yield make
