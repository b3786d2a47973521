"""A rate: never exceeded by more than a second's worth, and used up when there is enough to send."""

import random

import pytest

from syncagent.core.pace import Pace, rate
from syncagent.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"), [("500kB", 5e5), ("10 MB", 1e7), ("1.5mb", 1.5e6), ("20000", 2e4), ("1GB", 1e9)]
)
def test_a_rate_as_people_write_it(text: str, value: float) -> None:
    assert rate(text) == value


@pytest.mark.parametrize("text", ["", "fast", "5MB/s", "-5MB", "0", "1kB", "9" * 400])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate") as caught:
        rate(text)
    assert caught.value.hint


def test_no_more_passes_than_the_rate_allows(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        speed, now = rng.uniform(1e4, 1e7), rng.uniform(0, 1e6)
        pace, passed = Pace(speed, now), []
        for _ in range(200):
            now += rng.choice((0.0, 0.0, rng.expovariate(1.0)))  # whoever sends may be late, too
            size = rng.randrange(1, 128 * 1024)
            passed.append((now, size))
            now += pace.wait(size, now)
        for first, (start, _) in enumerate(passed):
            sent = 0
            for at, size in passed[first:]:
                sent += size
                assert sent - size <= speed * (at - start + 1.0) + 1


def test_all_of_it_is_used() -> None:
    pace, now = Pace(1e6, 0.0), 0.0
    for _ in range(1000):
        now += pace.wait(10_000, now)
    assert now == pytest.approx(10.0)
