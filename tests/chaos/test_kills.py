"""kill -9 of agents and servers at random moments under load, and links that come and go.

Nothing acknowledged is lost, nothing comes twice, and the sites end equal. The ground truth is kept by the
writers: each knows how its own rows must be. A seed decides who is struck when, counted in transactions;
what the machine does meanwhile is its own affair, so a seed repeats a run as far as that can be.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.load import Writer, committed, load, share, verify

KILLS = 6
"""Per run; a full soak makes 102."""


class Chaos:
    """What is done to a cluster; the next thing begins while the last one is still felt."""

    def __init__(self, cluster: Cluster, writers: list[Writer], seed: int) -> None:
        self.cluster, self.writers, self.random = cluster, writers, random.Random(seed)
        self.done: Counter[str] = Counter()

    @property
    def kills(self) -> int:
        return self.done["agent killed"] + self.done["server killed"]

    def strike(self) -> None:
        """One misfortune, and its end some transactions later."""
        self._pass()
        site = self.random.choice(self.cluster.sites)
        match self.random.choice(("agent", "agent", "server", "server", "both", "link", "alone")):
            case "agent":
                self._kill_agent(site)
                self._pass()
                site.start()
            case "server":
                self._kill_server(site)
                site.server.start()
            case "both":
                self._kill_agent(site)
                self._kill_server(site)
                site.server.start()
                self._pass()
                site.start()
            case "link":
                peer = self.random.choice([other for other in self.cluster if other is not site])
                self._cut(site, peer)
                self._pass()
                self.cluster.heal(site, peer)
            case _:
                self._cut(site)
                self._pass()
                self.cluster.heal(site)

    def _pass(self) -> None:
        committed(self.writers, self.random.randrange(1, 60))

    def _kill_agent(self, site: Site) -> None:
        site.kill()
        self.done["agent killed"] += 1

    def _kill_server(self, site: Site) -> None:
        site.server.kill()
        self.done["server killed"] += 1

    def _cut(self, site: Site, peer: Site | None = None) -> None:
        self.cluster.cut_off(site, peer)
        self.done["links cut"] += 1


@pytest.mark.soak
def test_random_kills(laboratory: Laboratory, seed: int, runs: Callable[[int, int], int]) -> None:
    for run in range(runs(1, 17)):
        sys.stdout.write(f"SEED={seed + run} ")
        with laboratory.cluster(18, 15, 18) as cluster:
            cluster.start()
            share(cluster.sites[0])
            cluster.exchange()
            with load(cluster.sites, seed + run) as writers:
                chaos = Chaos(cluster, writers, seed + run)
                while chaos.kills < KILLS:
                    chaos.strike()
            cluster.converges(60)
            verify(writers, cluster.sites)
            cluster.settles()
            total = sum(writer.committed for writer in writers)
            doubts = sum(writer.in_doubt for writer in writers)
            sys.stdout.write(f"{dict(chaos.done)}, {total} transactions, {doubts} in doubt, 0 rows differ\n")
