"""The page about conflicts says what happens."""

from tests.support.conflicts_page import PAGE, perform
from tests.support.lab import Laboratory
from tests.support.postgres import Servers


async def test_the_page_says_what_happens(laboratory: Laboratory, servers: Servers) -> None:
    page = PAGE.read_text()
    assert await perform(page, laboratory, servers) == page, (
        "if that is meant: python -m tests.support.conflicts_page"
    )
