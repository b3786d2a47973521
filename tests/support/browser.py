"""A real browser, that of the machine, without a window."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A page that has loaded nothing yet. What it says to its console of its policy, or asks of another host, fails the test."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=CHROMIUM,
            headless=True,
            args=_FLAGS,
            viewport={"width": 1280, "height": 800},
            reduced_motion="reduce",
        )
        page = context.pages[0]
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda said: complaints.append(said.text) if "Security Policy" in said.text else None
        )
        page.on(
            "request", lambda asked: complaints.append(asked.url) if "//127.0.0.1:" not in asked.url else None
        )
        try:
            yield page
        finally:
            context.close()
    assert not complaints
