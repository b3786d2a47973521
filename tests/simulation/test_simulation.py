"""Many schedules of whole clusters in virtual time, and rules left out to see that the schedules find it."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.simulation.run import USUAL, Run, Story
from tests.simulation.truth import Broken
from tests.simulation.variants import VARIANTS, Variant


@pytest.mark.soak
def test_schedules(seed: int, runs: Callable[[int, int], int]) -> None:
    story = Story()
    count = runs(100, 20_000)
    for number in range(seed, seed + count):
        try:
            Run(number).run(story)
        except Broken as broken:
            raise AssertionError(f"{broken}\nrepeat it with SEED={number}") from broken
    sys.stdout.write(f"{count} schedules from seed {seed}, 0 violations: {story.counts}\n")
    if count > 1:  # schedules in which little happens prove little
        for what, least in (
            ("cuts", 20),
            ("coalesced", 8),
            ("knots", 1),
            ("asked again", 0.1),
            ("conflicts", 5),
        ):
            assert story.counts[what] >= least * count, story.counts


_SHOPS = replace(
    USUAL, sites=(6, 7), shapes=("hub",), steps=(50,), pace=(60.0,), faults=(0.15,), deaths=0.0,
    kinds=("split", "link", "agent", "database"),
)  # fmt: skip
"""A hub and shops that reach nobody else; a fault may last for hours."""


@pytest.mark.soak
def test_shops_that_are_away_for_hours(seed: int, runs: Callable[[int, int], int]) -> None:
    story = Story()
    count = runs(2, 200)
    for number in range(seed, seed + count):
        try:
            run = Run(number, _SHOPS)
            run.run(story)
        except Broken as broken:
            raise AssertionError(f"{broken}\nrepeat it with SEED={number}") from broken
        story.add("minutes", int(run.schedule.now / 60))
    sys.stdout.write(f"{count} schedules of shops from seed {seed}, 0 violations: {story.counts}\n")


@pytest.mark.soak
@pytest.mark.parametrize("name", VARIANTS)
def test_broken_rules_are_noticed(name: str) -> None:
    """The schedule that notices it holds with all rules."""
    variant = VARIANTS[name]
    number, what = first_broken(variant, _FIRST.get(name, 0))
    variant.play(number, variant.scene).run()
    sys.stdout.write(f"noticed after {number + 1} schedules: {what[:80]}\n")


def first_broken(variant: Variant, first: int) -> tuple[int, str]:
    with variant.rules() as broken:
        for number in range(first, first + _PATIENCE):
            try:
                variant.play(number, variant.scene, broken).run()
            except Broken as error:
                return number, str(error)
    pytest.fail(f"{_PATIENCE} schedules did not notice that {variant.why}")


_PATIENCE = 150
_FIRST = {"horizon": 49, "order": 36, "odd": 32, "mark": 13, "uncut": 12, "unborn": 18, "last": 134}
"""The schedule to begin with, where those before it are known to notice nothing."""
