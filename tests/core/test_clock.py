"""The clock of a site, whatever the wall clock does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import clock
from syncagent.core.clock import LEAD, MAX_SKEW

walls = st.integers(0, 10 * MAX_SKEW)


@given(walls, st.lists(st.tuples(walls, st.none() | walls)))
def test_it_rises_over_everything_it_has_seen(start: int, events: list[tuple[int, int | None]]) -> None:
    value, highest = start, start
    for wall, seen in events:
        if seen is not None:
            value = clock.lift(value, seen)
            highest = max(highest, seen)
        value = clock.tick(value, wall)
        assert value > highest
        assert value >= wall
        highest = value


@given(walls, walls)
def test_it_leaves_the_wall_by_the_lead_at_most(value: int, wall: int) -> None:
    assert clock.tick(value, wall) <= max(value, wall + LEAD) + 1


def test_once_set_it_needs_no_setting_for_the_lead() -> None:
    value = clock.tick(0, 1_000_000)
    assert clock.tick(value, 1_000_000 + LEAD) == value + 1


@given(walls, walls)
def test_a_lift_never_lowers(value: int, seen: int) -> None:
    assert clock.lift(value, seen) >= value


@given(walls, walls)
def test_a_held_stamp_is_released_when_the_wall_has_caught_up(seen: int, wall: int) -> None:
    excess = clock.excess(seen, wall)
    assert (excess > 0) == (seen > wall + MAX_SKEW)
    assert clock.excess(seen, wall + excess) == 0
    assert excess == 0 or clock.excess(seen, wall + excess - 1) > 0


@pytest.mark.parametrize(
    ("offsets", "error"),
    [
        ([], 0),
        ([3600.0], 0),  # whose is wrong?
        ([3600.0, 3599.5, 3600.2], -3599.5),
        ([-7.0, -9.0], 7.0),
        ([-7.0, 7.0, 7.0], 0),
        ([3600.0, 0.0], 0),
        ([0.4, 0.6], 0),
    ],
)
def test_a_clock_that_all_others_are_off_from_is_wrong_itself(offsets: list[float], error: float) -> None:
    assert clock.own_error(offsets) == error
    said = clock.own_trouble(offsets)
    assert (said is not None) == (error != 0)
    assert said is None or ("ahead of" in said) == (error > 0)
