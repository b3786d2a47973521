"""Waiting between tries: it grows, it ends somewhere, and sites do not come back together."""

from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import backoff

chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), chances)
def test_it_stays_within_its_bounds(attempt: int, chance: float) -> None:
    assert 0.5 <= backoff.delay(attempt, chance, first=1.0, most=60.0) <= 60.0


@given(st.integers(1, 5), chances)
def test_it_doubles_until_it_does_not(attempt: int, chance: float) -> None:
    delay = backoff.delay(attempt, chance, first=1.0, most=60.0)
    assert backoff.delay(attempt + 1, chance, first=1.0, most=1e9) == 2 * delay
    assert backoff.delay(attempt + 1, chance, first=1.0, most=1.0) <= 1.0


def test_half_of_it_is_chance() -> None:
    assert backoff.delay(3, 0.0, first=1.0, most=60.0) == 2.0
    assert backoff.delay(3, 0.5, first=1.0, most=60.0) == 3.0


def test_the_first_try_waits_for_nothing() -> None:
    assert backoff.delay(0, 0.9, first=1.0, most=60.0) == 0.0
