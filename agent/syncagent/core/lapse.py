"""Who was away for so long that nothing is kept for it any more.

A site keeps what another one has not applied yet: its keys, their versions, what was deleted. Past a bound the other one
lapses: the cluster agrees on it, everybody forgets what it lacks, and it comes back by comparing its rows (`rejoin`).

Invariant: whoever can be reached does not lapse, nor does one that lacks nothing.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """`away`: seconds for which something is kept for a site that cannot be reached; `kept`: bytes of all that is kept."""

    away: float = 30 * 86400.0
    kept: int = 10 * 1000**3


@dataclass(frozen=True)
class Behind:
    """A site that lacks something of this one since so many `seconds`."""

    node: int
    seconds: float


def overdue(behind: Iterable[Behind], reached: Collection[int], kept: int, bounds: Bounds) -> Behind | None:
    """The site that is to lapse: of those that cannot be reached the one that has lacked something for longest."""
    away = [one for one in behind if one.node not in reached]
    last = max(away, key=lambda one: (one.seconds, -one.node), default=None)
    return last if last and (last.seconds > bounds.away or kept > bounds.kept) else None
