"""Sites that write at the same time end with the same rows, and with no metadata left."""

from tests.support.cluster import Cluster, Laboratory, has, mark
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until


def test_writes_everywhere(laboratory: Laboratory, seed: int) -> None:
    writes_everywhere(laboratory, (18, 15, 18), seed)


def test_another_version_at_each_site(laboratory: Laboratory, majors: tuple[int, ...], seed: int) -> None:
    """Those of `--majors`: two of them in `make test`, five in `make test-matrix`."""
    writes_everywhere(laboratory, tuple(reversed(majors)), seed)


def writes_everywhere(laboratory: Laboratory, majors: tuple[int, ...], seed: int) -> None:
    with laboratory.cluster(*majors) as cluster:
        cluster.start()
        share(cluster.sites[0])
        cluster.exchange()
        with load(cluster.sites, seed) as writers:
            committed(writers, 600)
        done = cluster.sites[0].syncagent("wait", "--converged", "--timeout", "60")
        assert done.returncode == 0, done.stdout + done.stderr
        assert not cluster.differences()
        verify(writers, cluster.sites)
        cluster.settles()


def test_a_site_is_cut_off_and_healed(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        *_, lonely = cluster
        cluster.start()
        share(cluster.sites[0])
        cluster.exchange()
        with load(cluster.sites, seed) as writers:
            committed(writers, 100)
            cluster.cut_off(lonely)
            committed(writers, 400)
            cluster.heal(lonely)
            committed(writers, 100)
        cluster.converges()
        verify(writers, cluster.sites)
        assert conflicts(cluster) > 0
        cluster.settles()


def conflicts(cluster: Cluster) -> int:
    """How many pairs of versions met; whoever met the same pair says the same of it."""
    seen: dict[object, set[object]] = {}
    for site in cluster:
        for row in site.execute(
            "select id, kind, winning_stamp, winning_node, losing_stamp, losing_node from syncagent.conflict_record"
        ):
            # which of two deletes or updates came in depends on the site
            seen.setdefault(row[0], set()).add(row[2:])
    assert all(len(told) == 1 for told in seen.values())
    return len(seen)


def test_a_site_that_only_dials_is_a_full_member(laboratory: Laboratory, seed: int) -> None:
    def prepare(cluster: Cluster) -> None:
        cluster.sites[1].only_dials()
        cluster.introduce()

    with laboratory.cluster(18, 15, prepare=prepare) as cluster:
        cluster.start()
        share(cluster.sites[1])
        cluster.exchange()
        with load(cluster.sites, seed) as writers:
            committed(writers, 200)
            cluster.network.cut(*cluster.links(cluster.sites[0]))
            committed(writers, 100)
            cluster.heal(cluster.sites[0])
        cluster.converges()
        verify(writers, cluster.sites)


def test_a_peer_is_away(laboratory: Laboratory, seed: int) -> None:
    """What it will need is kept until it is back, and the application goes on."""
    with laboratory.cluster(18, 15, 18) as cluster:
        a, b, away = cluster
        cluster.start()
        cluster.exchange()
        away.stop()
        with load([a, b], seed, shared=False) as writers:
            committed(writers, 300)
        until(lambda: cluster.differences().keys() == {"customer", "item", "line"}, "the others went on")
        until(lambda: not Cluster([a, b], cluster.network).differences(), "the others are equal")
        needed = sum(len(rows) for writer in writers if writer.site is a for rows in writer.rows.values())
        assert a.scalar("select sum(cardinality(keys)) from syncagent.cut_keys") >= needed
        a.stop()
        a.start()
        away.start()
        cluster.converges()
        verify(writers, cluster.sites)
        cluster.settles()


def test_a_slow_peer_does_not_stall_the_others(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        a, b, slow = cluster
        cluster.start()
        cluster.exchange()
        for proxy in cluster.links(slow):
            proxy.rate = 20_000
        a.execute(
            "insert into customer select syncagent.uuid7(), md5(random()::text), 0, md5(random()::text) from generate_series(1, 8000)"
        )
        last = mark(a)
        until(lambda: has(b, last), "the others go on")
        assert not has(slow, last)
        back = mark(b)
        until(lambda: has(a, back), "both ways")
        assert not has(slow, last)
        for proxy in cluster.links(slow):
            proxy.rate = None
        cluster.converges()


def test_pause_and_resume(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        assert b.syncagent("pause", a.name).returncode == 0
        held = mark(a)
        theirs = mark(b)
        until(lambda: has(a, theirs), "what the pausing site writes goes on")
        until(lambda: b.peer(a)["waiting"] == "paused by the operator", "status says why")
        assert not has(b, held)
        b.stop()
        b.start()  # it stays paused
        theirs = mark(b)
        until(lambda: has(a, theirs), "a new agent")
        assert not has(b, held)
        assert b.syncagent("resume", a.name).returncode == 0
        cluster.converges()
