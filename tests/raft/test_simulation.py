"""Many schedules of whole clusters in virtual time, and rules left out to see that the schedules find it."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.raft.run import Run
from tests.raft.truth import Broken


@pytest.mark.soak
def test_schedules(seed: int, runs: Callable[[int, int], int]) -> None:
    story: Counter[str] = Counter()
    count = runs(150, 10_000)
    for number in range(seed, seed + count):
        try:
            story.update(Run(number).run())
        except Broken as broken:
            raise AssertionError(f"{broken}\nrepeat it with SEED={number}") from broken
    if count > 1:  # schedules in which little happens prove little
        for what, least in (
            ("elections", 3),
            ("crashes", 2),
            ("writes", 15),
            ("reads", 15),
            ("changes", 1),
            ("compactions", 3),
            ("snapshots", 0.5),
        ):
            assert story[what] >= least * count, story
