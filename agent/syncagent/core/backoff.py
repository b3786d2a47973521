"""How long to wait before the next try: doubling, bounded, spread by chance.

Invariant: never below `first / 2`, never above `most`. Chance is an argument, so a schedule replays.
"""


def delay(attempt: int, chance: float, *, first: float, most: float) -> float:
    """Seconds before try number `attempt + 1`, after `attempt` >= 1 failures; `chance` in [0, 1).

    Half of the delay is fixed and half is chance ("equal jitter"): peers that lost one site together
    do not come back together, and nobody comes back at once.
    """
    if attempt < 1:
        return 0.0
    whole = min(most, first * 2.0 ** min(attempt - 1, 62))
    return whole / 2 + whole / 2 * chance
