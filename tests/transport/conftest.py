import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.transport.sites import Site


@pytest.fixture
async def make_site(tmp_path: Path) -> AsyncIterator[Callable[[str, int], Site]]:
    """`make_site(name, node)`; all are stopped after the test, and nothing may be left of them."""
    sites: list[Site] = []

    def make(name: str, node: int) -> Site:
        sites.append(Site(tmp_path, name, node))
        return sites[-1]

    yield make
    await asyncio.gather(*(site.stop() for site in sites if hasattr(site, "network")))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [site.spools.used for site in sites] == [0] * len(sites)


@pytest.fixture
def low(make_site: Callable[[str, int], Site]) -> Site:
    return make_site("low", 1)


@pytest.fixture
def high(make_site: Callable[[str, int], Site]) -> Site:
    return make_site("high", 2)
