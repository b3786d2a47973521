"""The SQL side under random schedules, held to the ground truth and to core/merge.py."""

import random
import sys
from collections.abc import Callable

import pytest

from syncagent.embedded import Server
from tests.sql.schedule import Run
from tests.sql.truth import SCHEMA
from tests.support.lab import Laboratory

_STEPS = 120


@pytest.mark.soak
async def test_schedules(
    laboratory: Laboratory,
    server15: Server,
    server18: Server,
    seed: int,
    runs: Callable[[int, int], int],
) -> None:
    count = runs(6, 200)
    for number in range(seed, seed + count):
        await schedule(laboratory, (server15, server18), number)
    sys.stdout.write(f"{count} schedules from seed {seed} on PostgreSQL 15 and 18, 0 violations\n")


async def schedule(laboratory: Laboratory, servers: tuple[Server, Server], seed: int) -> None:
    rnd = random.Random(seed)
    chosen = [rnd.choice(servers) for _ in range(rnd.choice([2, 2, 3]))]
    async with laboratory.sites(SCHEMA, *chosen) as sites:
        run = Run(seed, sites)
        try:
            await run.run(_STEPS)
        except AssertionError as error:
            story = "\n".join(run.trace[-60:])
            raise AssertionError(f"{error}\nrepeat it with SEED={seed}; the last steps:\n{story}") from error
