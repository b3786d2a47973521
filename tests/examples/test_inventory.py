"""The small shop: what its tills have in their books is in the tables, whatever was cut off meanwhile."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.soak(only="half a minute")
def test_a_shop_that_is_cut_off_loses_no_sale(runs: Callable[[int, int], int], seed: int) -> None:
    merged = 0
    for each in range(seed, seed + runs(0, 20)):
        done = subprocess.run(
            [sys.executable, "-m", "examples.inventory", "--seconds", "2", "--seed", str(each)],
            cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"seed {each}\n{done.stdout}{done.stderr}"
        last = done.stdout.splitlines()[-1]
        found = re.fullmatch(
            r"inventory: 4 tables equal on 3 sites, (\d+) sales, .* (\d+) customers of \d+ that were registered"
            r" \((\d+) became one with another\), stock .*",
            last,
        )
        assert found, last
        assert int(found[1]) > 20
        merged += int(found[3])
    assert merged > 0, "nobody was registered twice: nothing was shown"
