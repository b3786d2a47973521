"""The hybrid logical clock of a site, pure: the wall clock is an argument.

The SQL side keeps it as a sequence; these functions say what that sequence must do.

Invariant: the clock rises strictly, never steps back with the wall clock, and stands at or ahead of the
wall clock after each tick, so that the time in a fresh key is below its transaction's stamp.
"""

from collections.abc import Collection

from syncagent.core import limits, stamp

LEAD = stamp.from_seconds(limits.CLOCK_LEAD)
MAX_SKEW = stamp.from_seconds(limits.MAX_CLOCK_SKEW)


def tick(clock: int, wall: int) -> int:
    """The next value. A clock that fell behind is set a little ahead of the wall, so that the next ones
    need no setting."""
    drawn = clock + 1
    return drawn if drawn >= wall else wall + LEAD + 1


def lift(clock: int, seen: int) -> int:
    """After a larger stamp was seen: the next tick is above it. Never lowers the clock."""
    return max(clock, seen)


def excess(seen: int, wall: int, allowed: int = MAX_SKEW) -> int:
    """How far a stamp is beyond what the wall clock allows, in hlc units; 0 if it is not. Such a stamp is held: applied, a clock in
    2099 would win for ever; dropped, its rows would be lost."""
    return max(0, seen - wall - allowed)


def own_error(offsets: Collection[float]) -> float:
    """Seconds by which this site's own wall clock is ahead (behind: negative), by what its peers' are ahead of it: 0 unless at least two are known,
    and all say so. Of two clocks nobody can tell which is wrong."""
    if len(offsets) < 2 or min(offsets) * max(offsets) <= 0:
        return 0.0
    least = -min(offsets, key=abs)
    return least if abs(least) > limits.CLOCK_OFFSET else 0.0


def own_trouble(offsets: Collection[float]) -> str | None:
    """The same for people."""
    if not (error := own_error(offsets)):
        return None
    where, so = (
        ("ahead of", "the others hold what is written here")
        if error > 0
        else ("behind", "what is written here may lose to what is older")
    )
    return f"this site's clock is {abs(error):.0f} s {where} those of all its peers: {so}; let its host keep time with NTP or chrony"
