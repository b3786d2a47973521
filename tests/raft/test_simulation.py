"""Many schedules of whole clusters in virtual time, and rules left out to see that the schedules find it."""

from collections import Counter
from collections.abc import Callable

import pytest

from syncagent.errors import ProtocolError
from tests.raft.run import Run
from tests.raft.truth import Broken
from tests.raft.variants import VARIANTS


@pytest.mark.soak
def test_schedules(seed: int, runs: Callable[[int, int], int]) -> None:
    story: Counter[str] = Counter()
    count = runs(60, 10_000)
    for number in range(seed, seed + count):
        try:
            story.update(Run(number).run())
        except (Broken, ProtocolError) as broken:
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


@pytest.mark.parametrize("name", VARIANTS)
def test_broken_rules_are_noticed(name: str) -> None:
    variant = VARIANTS[name]
    with variant.rules() as broken:
        first = _FIRST.get(name, 0)
        for number in range(first, first + _PATIENCE):
            try:
                Run(number, variant.scene, broken).run()
            except (Broken, ProtocolError):  # the sites notice some of it themselves
                return
    pytest.fail(f"{_PATIENCE} schedules did not notice that {variant.why}")


_PATIENCE = 150
_FIRST = {"counting": 15, "no-op": 12, "read": 29, "read-early": 18, "backwards": 94}
"""The schedule to begin with, where those before it are known to notice nothing."""
