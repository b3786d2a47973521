"""Inboxes and outboxes together, in whatever order things happen: all arrives, and then it is quiet."""

import random
import sys
from collections.abc import Callable

import pytest

from syncagent.core import frontier, limits
from tests.core.exchange import Exchange


@pytest.mark.soak
def test_everything_arrives_and_then_it_is_quiet(seed: int, runs: Callable[[int, int], int]) -> None:
    knots = relayed = 0
    share = runs(60, 20_000)
    for number in range(seed, seed + share):
        try:
            world = schedule(number)
            knots, relayed = knots + world.knots, relayed + world.relayed
        except AssertionError as error:
            raise AssertionError(f"{error}; repeat it with SEED={number}") from error
    sys.stdout.write(
        f"{share} schedules from seed {seed}, all arrive: {knots} batches waited for each other, {relayed} were relayed\n"
    )
    assert (knots and relayed) or share == 1, "no batches ever waited for each other, or were relayed"


def schedule(seed: int) -> Exchange:
    rnd = random.Random(seed)
    world = Exchange(rnd, rnd.choice([2, 3, 4]))
    world.stir(400)
    stopped = world.now
    world.rest(600.0)
    sites = world.sites.values()
    written = {
        site.me: max((n for n, (_, rows) in enumerate(site.cuts, 1) if rows), default=0) for site in sites
    }
    meshed = (
        len(world.links) == len(sites) * (len(sites) - 1) // 2
    )  # else news is relayed, and comes in turns
    for site in sites:
        assert not site.pending
        assert frontier.covers(site.here(), written), f"site {site.me} is at {site.here()} of {written}"
        stable = frontier.stable({**site.known, site.me: site.here()}, world.sites)
        assert frontier.covers(stable, written), (
            f"site {site.me} does not know that all have {written}: {stable}"
        )
        late = [time - stopped for time in site.cut_times if time > stopped]
        assert len(late) <= (8 if meshed else 12), f"site {site.me} goes on cutting"
        assert max(late, default=0.0) <= 2 * limits.RETRY_MOST, f"site {site.me} cuts at rest"
    assert not world.open, "a batch that is neither applied nor closed"
    return world
