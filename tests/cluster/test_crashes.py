"""kill -9 of an agent or of a server under load: it goes on, nothing is lost, nothing is there twice."""

from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection, OperationalError
from psycopg.errors import DeadlockDetected, SerializationFailure

from tests.support.cluster import Laboratory, Site
from tests.support.load import Writer, committed, load, share, verify
from tests.support.waiting import until


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


def test_a_large_batch_is_interrupted(laboratory: Laboratory) -> None:
    """By a link that is cut, an agent that stops, and one that is killed: none of it is seen until all is there."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        proxies = cluster.links(a, b)
        for proxy in proxies:
            proxy.rate = 1_500_000
        a.execute(
            "insert into customer select syncagent.uuid7(), md5(random()::text), i, md5(random()::text) from generate_series(1, 100000) i"
        )

        def interruption(victim: Site, interrupt: Callable[[], None]) -> None:
            before = traffic()
            until(lambda: traffic() > before + 1_000_000, "a megabyte passes")
            assert b.scalar("select count(*) from customer where name <> 'mark'") == 0
            interrupt()
            if not victim.runs:
                victim.start()

        def traffic() -> int:
            return sum(sum(proxy.forwarded.values()) for proxy in proxies)

        def cut() -> None:
            cluster.cut_off(a)
            cluster.heal(a)

        interruption(a, cut)
        interruption(a, a.stop)
        interruption(b, b.stop)
        interruption(a, a.kill)
        interruption(b, b.kill)
        for proxy in proxies:
            proxy.rate = None
        cluster.converges()
        assert b.scalar("select count(*) from customer where name <> 'mark'") == 100_000
        cluster.settles()


TALLY = """
create table tally (id int primary key, n bigint not null, log text not null);
create table told (tally int not null, amount int not null, text text not null);
comment on table told is 'what was added at this site alone'
"""
MERGED = ("tally", "--strategy", "merge", "--merge", "n=counter", "--merge", "log=append")


class Teller(Writer):
    """Adds to rows that all share, several times in a transaction, and notes what it has added along with it."""

    def transaction(self, connection: "Connection[Any]") -> None:
        tally = self.random.randint(1, 3)
        try:
            for _ in range(self.random.choice((1, 2, 3))):
                told = (tally, self.random.randint(-9, 9), self.random.choice(("x;", "y;", "x;x;")))
                connection.execute(
                    "update tally set n = n + %s, log = log || %s where id = %s", (*told[1:], tally)
                )
                connection.execute("insert into told values (%s, %s, %s)", told)
            connection.commit()
        except (SerializationFailure, DeadlockDetected) as refusal:
            connection.rollback()
            self.refused.append(str(refusal))
        except OperationalError:
            self.lost += 1
            raise
        else:
            self.committed += 1


@pytest.mark.soak(only="ten seconds")
def test_what_is_merged_is_exact_whoever_is_killed(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        for site in cluster:
            site.execute(TALLY)
        cluster.start()
        a.attach(*MERGED)
        until(
            lambda: b.scalar("select count(*) from syncagent.replicated where strategy = 'merge'"),
            "it is attached",
        )
        a.execute("insert into tally select i, 0, '' from generate_series(1, 3) i")
        cluster.exchange()
        with load(cluster.sites, seed, kind=Teller, rest=0.005) as writers:
            for victim in (a, b, b, a):
                committed(writers, 25)
                victim.server.kill()
                victim.server.start()
                committed(writers, 25)
                victim.kill()
                committed(writers, 25)
                victim.start()
        cluster.converges(tables=("tally",))
        told = [row for site in cluster for row in site.execute("select tally, amount, text from told")]
        for number, n, log in a.execute("select id, n, log from tally"):
            assert n == sum(amount for tally, amount, _ in told if tally == number)
            said = "".join(text for tally, _, text in told if tally == number)
            assert sorted(log) == sorted(said), f"seed {seed}: {log}"
        cluster.settles()
