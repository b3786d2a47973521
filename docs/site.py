"""What the site holds beside the pages of docs/: pages that live elsewhere in the repository, and links between all of them.

MkDocs calls it (`hooks` in mkdocs.yml). Invariant: a link that works in the repository works in the site, or is plain text there
with the path it meant; none is dropped in silence, and one that leads nowhere in the repository is left for MkDocs to complain of.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reference/sql_side.md": "sql/README.md",
    "examples/flights.md": "examples/flights/README.md",
    "examples/inventory.md": "examples/inventory/README.md",
    "examples/evolve.md": "examples/evolve/README.md",
    "examples/mlflow.md": "examples/mlflow/README.md",
    "examples/wagtail.md": "examples/wagtail/README.md",
}
"""Pages of the site, and the files that they are."""
_PAGES = {source: page for page, source in ELSEWHERE.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#|/)([^)#\s]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """`folder/*` in the nav is every page of that folder."""
    assert config.nav is not None
    config.nav = [_expanded(entry) for entry in config.nav]
    return config


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _listed(below) for title, below in entry.items()}
    return entry


def _listed(below: Any) -> Any:
    if isinstance(below, list):
        return [_expanded(entry) for entry in below]
    if isinstance(below, str) and below.endswith("/*"):
        folder = below.removesuffix("/*")
        pages = sorted(path.name for path in (ROOT / "docs" / folder).glob("*.md"))
        return [f"{folder}/{name}" for name in sorted(pages, key=lambda name: name != "README.md")]
    return below


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site needs them."""
    here = page.file.src_uri
    source = ELSEWHERE.get(here, f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        bang, text, target, anchor = found[1], found[2], found[3], found[4] or ""
        meant = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (ROOT / meant).is_dir():
            meant = posixpath.join(meant, "README.md")
        if meant in _PAGES:
            there = _PAGES[meant]
        elif meant.startswith("docs/") or not (ROOT / meant).exists():
            there = meant.removeprefix("docs/")
        else:
            return f"{text} (`{meant}`)"
        return f"{bang}[{text}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(link, markdown)
