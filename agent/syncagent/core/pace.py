"""A rate that is not to be exceeded: how long each piece has to wait.

Invariant: over any time, no more passes than the rate allows and one second's worth; what was not used in the
last second is lost, so a rest is no reason for a rush.
"""

import math
import re

from syncagent.errors import UsageError

_UNITS = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_RATE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([kmg]?b)?\s*", re.IGNORECASE)
_LEAST = 10_000.0
"""Below, a single frame would take longer than a link waits for a sign of life."""


def rate(text: str) -> float:
    """Bytes a second as people write them: 500kB, 10MB."""
    found = _RATE.fullmatch(text)
    value = float(found[1]) * _UNITS[(found[2] or "").lower()] if found else 0.0
    if not _LEAST <= value < math.inf:
        raise UsageError(
            f"{text!r} is not a rate", hint="write bytes a second as 500kB or 10MB; 10kB is the least"
        )
    return value


class Pace:
    """See the module's docstring; `rate` is in bytes a second."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._free_at = rate, now

    def wait(self, size: int, now: float) -> float:
        """Seconds to wait now that so many bytes have passed."""
        self._free_at = max(self._free_at, now - 1.0) + size / self._rate
        return max(0.0, self._free_at - now)
