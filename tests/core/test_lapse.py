"""Who was away for too long."""

from syncagent.core.lapse import Behind, Bounds, overdue

BOUNDS = Bounds(away=100.0, kept=1000)
LONG, SHORT = Behind(2, 200.0), Behind(3, 20.0)


def test_whoever_lacks_something_for_too_long_and_cannot_be_reached_lapses() -> None:
    assert overdue([LONG, SHORT], (), 0, BOUNDS) == LONG
    assert overdue([LONG, SHORT], (2,), 0, BOUNDS) is None, "slow is not away"
    assert overdue([SHORT], (), 0, BOUNDS) is None
    assert overdue([], (), 10**9, BOUNDS) is None, "nobody lacks anything"


def test_when_too_much_is_kept_whoever_is_away_longest_lapses_however_short_that_is() -> None:
    assert overdue([SHORT, Behind(4, 30.0)], (), 1001, BOUNDS) == Behind(4, 30.0)
    assert overdue([SHORT, LONG], (2,), 1001, BOUNDS) == SHORT
    assert overdue([SHORT], (3,), 1001, BOUNDS) is None, "it is what is on its way"
