"""A bad network between three sites that go on writing: what they agree on, who leads, and what is said of it."""

import random
from collections.abc import Callable

import pytest

from tests.support.cluster import Cluster, Laboratory, Site, has, leader, leads, mark
from tests.support.load import Writer, committed, load, share, verify
from tests.support.proxy import BACK, THERE, Direction, Proxy
from tests.support.waiting import until


def term(site: Site) -> int:
    return int(site.scalar("select term from syncagent.raft_state"))


def ways(sender: Site, receiver: Site) -> list[tuple[Proxy, Direction]]:
    """All that bytes from one site to the other pass."""
    return [(receiver.ways[sender.name], THERE), (sender.ways[receiver.name], BACK)]


@pytest.mark.soak
def test_three_sites_in_bad_weather(
    laboratory: Laboratory, seed: int, runs: Callable[[int, int], int]
) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        share(cluster.sites[0])
        cluster.exchange()
        first = until(lambda: leader(*cluster), "a leader")
        assert first is not None
        with load(cluster.sites, seed, writers=1) as writers:
            slow(cluster, first)
            one_way(cluster, first)
            damage(cluster, first)
            minority(cluster)
            anything(cluster, writers, random.Random(seed), runs(2, 300))
            committed(writers, 50)
        cluster.converges()
        verify(writers, cluster.sites)


def slow(cluster: Cluster, first: Site) -> None:
    """100 ms each way are no reason for another leader."""
    before = term(first)
    for site in cluster:
        cluster.network.slow(0.1, *cluster.links(site))
    for site in cluster:
        site.decide()
    assert leader(*cluster) is first
    assert term(first) == before
    for site in cluster:
        cluster.network.slow(0.0, *cluster.links(site))


def one_way(cluster: Cluster, first: Site) -> None:
    """Who hears nothing of the leader asks for votes, and gets none from who does; back, it follows again."""
    deaf, other = (site for site in cluster if site is not first)
    before = term(first)
    cluster.network.deafen(*ways(first, deaf))
    until(lambda: not leads(deaf), "it knows of no leader")
    first.decide()
    other.decide()
    assert leader(first, other) is first
    cluster.network.heal(*(proxy for proxy, _ in ways(first, deaf)))
    until(lambda: leader(*cluster) is first, "it follows again")
    assert term(first) == before

    # And a leader that hears nobody does not stay one, though all hear it.
    others = [deaf, other]
    for site in others:
        cluster.network.deafen(*ways(site, first))
    second = until(lambda: leader(*others), "another one leads")
    assert second is not first
    assert second is not None
    second.decide()
    for site in others:
        cluster.network.heal(*(proxy for proxy, _ in ways(site, first)))
    until(lambda: leader(*cluster), "all follow one")


def damage(cluster: Cluster, first: Site) -> None:
    """Whoever gets a byte that is not what was sent says so, and the link is made anew; nothing else happens."""
    peer = next(site for site in cluster if site is not first)
    for proxy, direction in ways(first, peer):
        cluster.network.damage(proxy, direction)
    said = [line.get("reason", "") for line in until(lambda: damaged(peer, first), "it is said")]
    assert all("a device on the way is broken" in reason for reason in said)
    until(lambda: peer.peer(first)["linked"], "the link is back")
    made = mark(first)
    until(lambda: has(peer, made), "and carries rows")


def damaged(site: Site, peer: Site) -> list[dict[str, str]]:
    return [
        line
        for line in site.said()
        if line.get("peer") == peer.name
        and "bytes did not arrive as they were sent" in line.get("reason", "")
    ]


def minority(cluster: Cluster) -> None:
    """It changes nothing and says who is missing; each side goes on writing, and healing is enough."""
    *majority, lonely = cluster
    cluster.cut_off(lonely)
    said = lonely.syncagent("invite")
    assert said.returncode == 1
    assert "could not agree in time" in said.stderr
    assert "berlin, tokyo, lima" in said.stderr
    majority[0].decide()
    cluster.heal(lonely)
    until(lambda: leader(*cluster), "all follow one again")
    lonely.decide()


def anything(cluster: Cluster, writers: list[Writer], rng: random.Random, steps: int) -> None:
    """Faults come and go on any link; at the end one leads, and the catalog can be changed from everywhere."""
    network = cluster.network
    for _ in range(steps):
        one, other = rng.sample(cluster.sites, 2)
        proxies = cluster.links(one, other)
        match rng.choice(("cut", "deaf", "slow", "throttle", "damage", "heal", "heal")):
            case "cut":
                network.cut(*proxies)
            case "deaf":
                network.deafen(*ways(one, other))
            case "slow":
                network.slow(rng.uniform(0.0, 0.5), *proxies)
            case "throttle":
                network.slow(0.0, *proxies, rate=rng.uniform(5e3, 1e6))
            case "damage":
                for proxy, direction in ways(one, other):
                    network.damage(proxy, direction)
            case _:
                network.slow(0.0, *proxies)
                network.heal(*proxies)
        committed(writers, rng.randrange(5, 50))
    for site in cluster:
        network.slow(0.0, *cluster.links(site))
        cluster.heal(site)
    until(lambda: leader(*cluster), "all follow one again")
    for site in cluster:
        site.decide()
