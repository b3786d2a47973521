"""The documentation as people read it: built as `make docs` does, opened in a real browser.

Its theme is tens of thousands of small files, so only `make docs` installs it, and then runs this.
"""

import functools
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import CHROMIUM, browsing
from tests.support.pages import build

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("material") is None, reason="its theme is not there: make docs"
    ),
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium: apt install chromium"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_reader_finds_a_page_at_night(tmp_path: Path) -> None:
    build(tmp_path / "site")
    with served(tmp_path / "site") as at, browsing(tmp_path / "browser") as page:
        faults: list[str] = []
        page.on(
            "console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on(
            "response", lambda got: faults.append(f"{got.status} {got.url}") if got.status >= 400 else None
        )
        page.on("requestfailed", lambda asked: faults.append(f"failed {asked.url} {asked.failure}"))
        page.goto(at)
        expect(page).to_have_title("syncagent")
        expect(page.locator("h1").first).to_be_visible()
        at_night(page)
        searches(page)
        expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
        for name, picture in (("architecture", "architecture.svg"), ("console", "console-well.png")):
            page.goto(f"{at}/{name}/")
            drawn = page.locator(f'img[src$="{picture}"]')
            expect(drawn).to_be_visible()
            assert drawn.evaluate("image => image.complete && image.naturalWidth > 100")
        assert not faults


def at_night(page: Page) -> None:
    """As the reader's system says, and as the reader says, who is remembered."""
    body, scheme = page.locator("body"), "data-md-color-scheme"
    expect(body).to_have_attribute(scheme, "default")
    ground = "element => getComputedStyle(element).backgroundColor"
    light = body.evaluate(ground)
    page.get_by_title("dark", exact=True).click()
    expect(body).to_have_attribute(scheme, "slate")
    assert body.evaluate(ground) != light


def searches(page: Page) -> None:
    page.keyboard.press("/")
    query = page.get_by_role("textbox", name="Search")
    expect(query).to_be_focused()
    query.press_sequentially("rejoin")
    found = page.locator(".md-search-result__link").filter(has_text="syncagent rejoin")
    found.first.click()
    expect(page.locator("h1").first).to_contain_text("Command line")
    expect(page.locator("mark").first).to_contain_text("rejoin")
    assert "h=rejoin" in page.url
