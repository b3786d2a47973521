"""The protocol as programs: random schedules, the properties that must hold, and variants without a rule that must not."""

import sys
from collections import Counter


def asked(option):
    """What follows an option of the command line."""
    return sys.argv[sys.argv.index(option) + 1] if option in sys.argv else None


def play(run, **scene):
    """`[RUNS] [FIRST_SEED]` of the command line; `run(seed, stats, **scene)` raises where something does not hold."""
    numbers = [int(a) for a in sys.argv[1:3] if a.isdigit()]
    runs, first = (numbers + [2000, 0][len(numbers) :])[:2]
    stats = Counter()
    for seed in range(first, first + runs):
        run(seed, stats, **scene)
    print(f"{runs} runs converged;", dict(stats))
