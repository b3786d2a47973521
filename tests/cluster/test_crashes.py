"""kill -9 of an agent or of a server under load: it goes on, nothing is lost, nothing is there twice."""

from tests.support.cluster import Laboratory
from tests.support.load import committed, load, share, verify


def test_an_agent_is_killed(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        share(a)
        cluster.exchange()
        with load(cluster.sites, seed) as writers:
            for victim in (a, b, a):
                committed(writers, 150)
                victim.kill()
                committed(writers, 50)
                victim.start()
        cluster.converges()
        verify(writers, cluster.sites)
        cluster.settles()


def test_a_server_is_killed(laboratory: Laboratory, seed: int) -> None:
    """Batches are applied without a flush: what a crash takes back comes again, for nobody forgot it."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        share(a)
        cluster.exchange()
        agents = [site.agent.pid for site in cluster]
        with load(cluster.sites, seed) as writers:
            for victim in (b, a, b):
                committed(writers, 150)
                victim.server.kill()
                victim.server.start()
                committed(writers, 50)
        cluster.converges()
        verify(writers, cluster.sites)
        assert [site.agent.pid for site in cluster] == agents
        cluster.settles()
