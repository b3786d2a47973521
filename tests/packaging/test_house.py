"""Habits that no linter holds us to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "agent").rglob("*.py"))
SQL = sorted((ROOT / "sql").rglob("*.sql"))

MODULE_LINES = 500
FUNCTION_LINES = 70
KEYWORDS = "SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|FROM|WHERE|RETURNS|LANGUAGE|BEGIN|DECLARE|PERFORM"


def functions(module: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(module: Path) -> None:
    assert len(module.read_text().splitlines()) <= MODULE_LINES
    for function in functions(module):
        assert (function.end_lineno or 0) - function.lineno < FUNCTION_LINES, function.name


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "sql/README.md"])
def test_what_a_newcomer_reads_is_there(name: str) -> None:
    assert (ROOT / name).read_text().strip()


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_trap_has_its_tests() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "traps.md").read_text()))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 50
    assert named <= defined, named - defined


def test_sql_is_in_lower_case() -> None:
    for file in SQL:
        code = re.sub(r"--.*|'[^']*'", "", file.read_text())
        assert not re.findall(rf"\b({KEYWORDS})\b", code), file.name
