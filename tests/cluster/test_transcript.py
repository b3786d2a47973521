"""The page that shows how three sites are made says what is answered."""

from pathlib import Path

from tests.support.postgres import Servers
from tests.support.transcript import PAGE, compared, perform


def test_the_page_says_what_is_answered(servers: Servers, tmp_path: Path) -> None:
    page = PAGE.read_text()
    assert compared(perform(page, servers, tmp_path)) == compared(page), (
        "if that is meant: python -m tests.support.transcript"
    )
