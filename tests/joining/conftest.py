"""Sites, and one that joins them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from syncagent.embedded import Server
from tests.support.joining import Joining, joining
from tests.support.lab import Change, Laboratory

MakeJoin = Callable[..., AbstractAsyncContextManager[Joining]]


@pytest.fixture(scope="session")
def lab() -> Laboratory:
    """Keeps databases for the whole run."""
    return Laboratory()


@pytest.fixture
def make_join(lab: Laboratory, tmp_path: Path) -> MakeJoin:
    """`async with make_join(tables, keys, joiner's server, *servers of the members)`; the first member is the donor."""
    numbers = count(1)

    @asynccontextmanager
    async def make(
        tables: str,
        keys: str,
        server: Server,
        *servers: Server,
        changes: Sequence[Change] = (),
        joiner_tables: str | None = None,
    ) -> AsyncIterator[Joining]:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        async with (
            lab.sites(f"{tables};{keys}", *servers, changes=changes) as members,
            joining(
                members, server, joiner_tables or tables, keys, folder, lab.installed(server, changes)
            ) as join,
        ):
            yield join

    return make
