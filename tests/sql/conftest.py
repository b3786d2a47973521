"""Sites for the tests of the SQL side."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.support.lab import Laboratory, Site

Sites = Callable[..., Awaitable[list[Site]]]


@pytest.fixture(scope="session")
def laboratory() -> Laboratory:
    """Keeps the templates of the whole run."""
    return Laboratory()


@pytest.fixture
async def sites(laboratory: Laboratory) -> AsyncIterator[Sites]:
    """`a, b = await sites(schema, server, server)`: sites with all tables of the schema attached."""
    async with AsyncExitStack() as stack:

        async def make(schema: str, *servers: object, **options: object) -> list[Site]:
            return await stack.enter_async_context(laboratory.sites(schema, *servers, **options))  # type: ignore[arg-type]

        yield make
