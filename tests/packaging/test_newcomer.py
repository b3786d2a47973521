"""The path of a newcomer, from the README alone, in an environment of its own: from `pip install` on in every run, whole in the soak, for it takes minutes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import newcomer

ROOT = Path(__file__).parents[2]


def test_the_readme_says_what_a_newcomer_types() -> None:
    told = newcomer.blocks((ROOT / "README.md").read_text())
    begun = [[" ".join(command.split()[:2]) for command in block] for block in told]
    assert begun == [
        ["make demo", "make test"],
        ["pip install", *(f"syncagent {verb}" for verb in ("init", "attach", "run", "invite"))],
        ["syncagent join", "syncagent run", "syncagent status"],
    ]


@pytest.mark.soak
def test_a_newcomer_gets_there(runs: Callable[[int, int], int]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("a clone is made of a repository")
    part = [] if runs(0, 1) else ["--packaged"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.newcomer", *part],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== two sites" in done.stdout
