"""Three sites on cables of their own: what is cut here is cut by the kernel, and no connection is reset."""

from uuid import UUID

import pytest

from tests.support.cables import ETHERNET, Switch, needs_cables
from tests.support.cluster import Cluster, Laboratory, Site, has, leader, leads, mark
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until

TUNNEL = 1300
"""Bytes of a packet; what a tunnel in a tunnel leaves of Ethernet's."""
TOO_NARROW = 1100


@needs_cables
@pytest.mark.soak(only="half a minute, and bad weather is had without cables")
def test_cables_are_pulled(laboratory: Laboratory, seed: int) -> None:
    with Switch() as switch, laboratory.cluster(18, 15, 18, prepare=switch.introduce) as cluster:
        switch.narrow(cluster.sites[2], TUNNEL)  # which tells nobody, and is no hindrance
        cluster.start()
        share(cluster.sites[0])
        cluster.exchange()
        with load(cluster.sites, seed, writers=1, rest=0.1) as writers:
            pulled(cluster, switch)
            lost_power(cluster, switch)
            committed(writers, 20)
        cluster.converges()
        verify(writers, cluster.sites)


def pulled(cluster: Cluster, switch: Switch) -> None:
    """The leader's: the others agree without it, it learns by itself that it is alone, and a heal is enough.

    Meanwhile all that is large is lost between these others.
    """
    first = until(lambda: leader(*cluster), "a leader")
    assert first is not None
    one, other = (site for site in cluster if site is not first)
    switch.pull(first)
    second = until(lambda: leader(one, other), "another one leads")
    assert second is not None
    second.decide()
    until(lambda: not leads(first), "it leads no more")
    alone = mark(first)

    switch.narrow(other, TOO_NARROW)
    large = large_row(one)
    until(
        lambda: not first.peer(one)["linked"] and not first.peer(other)["linked"], "it sees that it is alone"
    )
    until(
        lambda: not one.peer(first)["linked"] and not other.peer(first)["linked"], "they see that it is away"
    )
    until(lambda: lost(one, other) or lost(other, one), "they say that something large does not arrive")
    assert not has(one, alone)
    assert not has(other, large)

    switch.narrow(other, ETHERNET)
    switch.plug(first)
    until(lambda: has(one, alone) and has(other, alone, large), "what was written meanwhile is everywhere")
    until(lambda: leader(*cluster), "all follow one")


def large_row(site: Site) -> UUID:
    made: UUID = site.scalar(
        "insert into customer select syncagent.uuid7(), 'large', 0, string_agg(md5(n::text), '')"
        " from generate_series(1, 1000) n returning id"
    )
    return made


def lost(site: Site, peer: Site) -> bool:
    """Whether it says so. Which of the two connections is stuck, and what notices first, depends on what was under way."""
    return any(
        "loses large packets" in line.get("reason", "")
        for line in site.said()
        if line.get("peer") == peer.name and line["event"] == "trouble with a peer"
    )


def lost_power(cluster: Cluster, switch: Switch) -> None:
    """A machine that dies says nothing; back, it is not kept waiting by the connections it left behind."""
    site, *others = cluster
    until(lambda: all(other.peer(site)["linked"] for other in others), "what was stuck before is over")
    switch.pull(site)
    site.kill()
    switch.plug(site)
    assert all(other.peer(site)["linked"] for other in others), "nobody has noticed yet"
    site.start()
    back = mark(site)
    until(lambda: [line["event"] for line in site.said()].count("running") == 2, "its agent runs again")
    until(lambda: all(has(other, back) for other in others), "it is back before they would have noticed", 15)
