"""A donor gives way to its application."""

from syncagent.core import copying, limits


def test_the_busier_the_application_the_longer_a_donor_rests() -> None:
    rests = [copying.rest(0.2, rate) for rate in (0.0, 10.0, 100.0, limits.COPY_BUSY, 10 * limits.COPY_BUSY)]
    assert rests[0] == 0.0, "nobody is there to give way to"
    assert rests == sorted(rests)
    assert rests[3] == rests[4] == 0.2 * limits.COPY_REST


def test_whoever_waits_for_a_range_is_not_made_to_wait_too_long() -> None:
    assert copying.rest(100.0, limits.COPY_BUSY) * limits.COPY_SESSIONS < limits.COPY_STALLED
