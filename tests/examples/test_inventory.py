"""The small shop: what its tills have in their books is in the tables, whatever was cut off meanwhile."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_shop_that_is_cut_off_loses_no_sale() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.inventory", "--seconds", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(
        r"inventory: 4 tables equal on 3 sites, (\d+) sales, .* (\d+) customers of \d+ that were registered"
        r" \((\d+) became one with another\), stock .*",
        last,
    )
    assert found, last
    assert int(found[1]) > 50
    assert int(found[3]) > 0, "nobody was registered twice: nothing was shown"
