"""A year of revisions in two minutes, while three sites work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVOLVE = ROOT / "examples/evolve"


def test_the_application_knows_nothing_of_syncagent() -> None:
    revisions = sorted(EVOLVE.glob("versions/r*.py"))
    assert len(revisions) == 12
    for file in (*revisions, EVOLVE / "env.py", EVOLVE / "alembic.ini"):
        assert "syncagent" not in file.read_text(), file


@pytest.mark.soak(only="takes minutes")
def test_twelve_revisions_at_three_sites() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.evolve"],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"evolve: 3 tables equal on 3 sites at revision r12, \d+ rows, \d+ writes, \d+ s", last
    ), last
