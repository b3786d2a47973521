"""Sites that have no link with each other exchange everything through those that have one with both."""

from collections.abc import Callable

import pytest

from tests.cluster.test_convergence import conflicts
from tests.support.cluster import Cluster, Laboratory, Site, has, mark
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until


def spokes(cluster: Cluster) -> None:
    """One hub, and shops that nobody can dial."""
    for shop in cluster.sites[1:]:
        shop.only_dials()
    cluster.introduce()


def linked(site: Site) -> set[int]:
    return {node for (node,) in site.execute("select node from syncagent.peer_state where linked")}


@pytest.mark.soak
def test_a_hub_and_its_shops(laboratory: Laboratory, seed: int, runs: Callable[[int, int], int]) -> None:
    """Each is away for a while, one after the other: its link is cut, or its agent killed. Six shops under `--soak`."""
    with laboratory.cluster(*[18] * (1 + runs(2, 6)), prepare=spokes) as cluster:
        hub, *shops = cluster
        cluster.start()
        share(shops[0])
        cluster.exchange(120)
        with load(cluster.sites, seed) as writers:
            committed(writers, 100)
            for number, shop in enumerate(shops):
                if number % 2:
                    cluster.cut_off(shop)
                else:
                    shop.kill()
                committed(writers, 60)
                if number % 2:
                    cluster.heal(shop)
                else:
                    shop.start()
        done = shops[1].syncagent("wait", "--converged", "--timeout", "60")
        assert done.returncode == 0, done.stdout + done.stderr
        cluster.converges(60)
        verify(writers, cluster.sites)
        assert conflicts(cluster) > 0
        for shop in shops:
            assert linked(shop) == {hub.node}
        assert shops[0].peer(shops[1])["via"] == hub.node
        assert shops[-1].syncagent("invite").returncode == 0, "whoever leads can be reached"

        # what a shop that is away holds back at the hub, and what it leaves for itself, is in docs/operations.md
        away, other = shops[0], shops[1]
        cluster.settles(60)
        away.stop()
        rows = 5_000
        other.execute(
            "insert into customer select syncagent.uuid7(), 'n', 0, null from generate_series(1, %s)", (rows,)
        )
        born = mark(other)
        until(lambda: has(hub, born), "the rows are at the hub")
        other.execute("update customer set credit = 1 where name = 'n'")
        away.execute(
            "insert into item select i, 'n', 0 from generate_series(100001, %s) i", (100_000 + rows,)
        )
        last = mark(other)
        until(lambda: all(has(site, last) for site in (hub, *shops[1:])), "the others go on")
        kept = hub.unsettled()
        number = hub.scalar("select id from syncagent.replicated where table_name = 'customer'")
        assert kept[f"version_{number}"] <= rows + 1, kept
        assert hub.scalar("select sum(cardinality(keys)) from syncagent.cut_keys") <= 2 * rows + 2
        assert hub.scalar("select count(*) from syncagent.context") <= 100
        assert away.scalar("select pg_total_relation_size('syncagent.cut_keys')") <= 100_000
        assert away.scalar("select syncagent._log_bytes()") <= 40 * rows + 200_000
        away.start()
        cluster.converges(60)
        cluster.settles(60)


def test_two_sites_lose_their_link_and_then_their_third(laboratory: Laboratory, seed: int) -> None:
    """What a site has sent to one other before it died for good reaches everybody who is left."""
    with laboratory.cluster(18, 15, 18) as cluster:
        a, b, c = cluster
        cluster.start()
        share(a)
        cluster.exchange()
        cluster.cut_off(a, b)
        with load(cluster.sites, seed) as writers:
            committed(writers, 200)
        cluster.converges(60)
        verify(writers, cluster.sites)
        assert a.peer(b)["via"] == c.node
        assert "alive" in a.syncagent("remove", b.name, "--yes").stderr

        # b has links with nobody but c; what it says now, only c hears, and only while a is away
        a.stop()
        words = mark(b)
        until(lambda: has(c, words), "c has heard it")
        b.kill()
        a.start()
        until(lambda: has(a, words), "the dead site's last words")

        # what c has heard, and merges only when the site was removed already, reaches a as well
        with c.connect() as busy:
            busy.execute("lock table customer in exclusive mode")
            b.start()
            words = mark(b)
            until(lambda: "refused" in str(c.peer(b)["waiting"]), "c has heard it, and cannot merge it")
            assert c.syncagent("pause", b.name).returncode == 0
            b.kill()
            until(lambda: c.syncagent("remove", b.name, "--yes").returncode == 0, "c and a are a majority")
            members = "select array_agg(name order by name) from syncagent.member"
            until(lambda: a.scalar(members) == sorted([a.name, c.name]), "a has heard of it")
            a.kill()
            a.start()
            assert not has(c, words)
            busy.rollback()
        until(lambda: has(a, words), "the removed site's last words")
        left = Cluster([a, c], cluster.network)
        left.converges()
        left.settles(60)
