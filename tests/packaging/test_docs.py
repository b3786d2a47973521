"""The documentation: its generated pages are current, its commands exist, and it builds as a site."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncagent.embedded import Server
from tests.support import http_page, reference
from tests.support.databases import Database
from tests.support.pages import build

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
REMEDY = "if that is meant: python -m tests.support.reference"


@pytest.mark.parametrize("name", reference.PURE)
def test_pages_made_of_the_code_are_current(name: str) -> None:
    assert (reference.FOLDER / name).read_text() == reference.PURE[name](), REMEDY


def test_the_table_of_paths_is_current() -> None:
    assert http_page.shown() == http_page.table(), "if that is meant: python -m tests.support.http_page"


def test_the_page_made_of_the_sql_side_is_current(
    server18: Server, make_database: Callable[..., Database]
) -> None:
    assert (reference.FOLDER / "sql.md").read_text() == reference.sql_side(make_database(server18)), REMEDY


def test_it_builds_as_a_site_without_a_broken_link(tmp_path: Path) -> None:
    build(tmp_path, "--strict", "--theme", "mkdocs")  # what it looks like is no matter here
    made = (tmp_path / "existing_applications" / "index.html").read_text()
    assert 'href="../examples/wagtail/"' in made  # a page that lives elsewhere in the repository


# ---- what is typed in them

_VERBS = {path[1:]: command for path, command in reference.verbs()}
_TYPED = re.compile(
    r"(?:^|\$ |/bin/|&& |exec \w+ )(?:SYNCAGENT_\w+=\S+ )?syncagent ([a-z][a-z-]*(?: [a-z][a-z-]*)?)([^\n|&;#]*)",
    re.MULTILINE,
)


def typed(page: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Verbs and what follows them, in code of the page."""
    text = page.read_text()
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for found in _TYPED.finditer("\n".join([*blocks, *inline])):
        yield tuple(found[1].split()), found[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    for words, rest in typed(page):
        verb = words if words in _VERBS else words[:1]
        if verb not in _VERBS:
            assert any(path[0] == words[0] for path in _VERBS), f"syncagent {' '.join(words)}"  # a group
            continue
        flags = {flag for parameter in _VERBS[verb].params for flag in parameter.opts} | {"--help", "-h"}
        unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) - flags
        assert not unknown, f"syncagent {' '.join(verb)} {rest}"
