"""What applications notice of the agent: nothing."""

import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.support.cluster import Laboratory, Site, has, mark
from tests.support.load import Writer, committed, load, share, verify
from tests.support.waiting import until


@pytest.mark.soak
def test_a_held_transaction(laboratory: Laboratory, seed: int, runs: Callable[[int, int], int]) -> None:
    """A writer that stays open while thousands commit delays itself and nobody else."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        share(a)
        cluster.exchange()
        mine = mark(a)
        cluster.exchange()
        with a.connect() as held:
            held.execute("update customer set note = 'held' where id = %s", (mine,))
            made = held.execute(
                "insert into customer values (syncagent.uuid7(), 'held', 0, null) returning id"
            ).fetchall()[0][0]
            began, least = time.monotonic(), runs(0, 30)
            with load(cluster.sites, seed) as writers:
                committed(writers, runs(600, 4000))
                while time.monotonic() - began < least:
                    committed(writers, 50)
            cluster.converges()  # the marks written after it are everywhere
            verify(writers, cluster.sites)
            assert not has(b, made)
            total, seconds = sum(writer.committed for writer in writers), time.monotonic() - began
            sys.stdout.write(f"{total} transactions while one was open for {seconds:.0f} s\n")
            held.commit()
        until(lambda: has(b, made), "the held transaction arrives")
        cluster.converges()
        assert b.scalar("select note from customer where id = %s", (mine,)) == "held"
        cluster.settles()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_isolation_levels(laboratory: Laboratory, isolation: str, seed: int) -> None:
    """No serialization failure for rows that nobody else changed, while batches of others are applied."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        share(b)
        cluster.exchange()
        quiet = Writer(a, 9, seed, isolation=isolation, shared=False)
        with load([b], seed) as others:
            quiet.start()
            committed([quiet], 300)
            quiet.halt()
            quiet.join()
        assert quiet.failure is None
        cluster.converges()
        verify([quiet, *others], cluster.sites)


def arrives(site: Site, made: UUID) -> None:
    until(lambda: has(site, made), "a row beside the hot one arrives")


class Hammer(Writer):
    """Changes one row, again and again."""

    def transaction(self, connection: "psycopg.Connection[Any]") -> None:
        connection.execute("update item set stock = stock + 1 where id = 1")
        connection.commit()
        self.committed += 1


def test_a_hot_row(laboratory: Laboratory, seed: int) -> None:
    """Four writers at each side on one row: lag stays bounded, and the application is never a deadlock's victim."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        a.execute("insert into item values (1, 'hot', 0)")
        cluster.exchange()
        with load(cluster.sites, seed, writers=4, kind=Hammer) as writers:
            lags = []
            for _ in range(8):
                committed(writers, 150)
                began = time.monotonic()
                arrives(b, mark(a))
                lags.append(time.monotonic() - began)
        sys.stdout.write(f"lag beside a hot row: {sorted(round(lag, 2) for lag in lags)} s\n")
        cluster.converges()
        assert [site.deadlocks() for site in cluster] == [0, 0]
        assert max(lags) < 10


def test_who_holds_a_row_is_named(laboratory: Laboratory) -> None:
    """A batch waits for a row that a transaction holds; status says who that is."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        wanted = mark(a)
        cluster.exchange()
        with b.connect() as holder:
            holder.execute("select from customer where id = %s for update", (wanted,))
            a.execute("update customer set note = 'changed' where id = %s", (wanted,))
            name = f"held by pid {holder.info.backend_pid} (application)"
            until(lambda: name in str(b.peer(a)["waiting"]), "status names who holds the row")
            refused = until(
                lambda: [line for line in b.said() if line["event"] == "batch refused"], "the log does, too"
            )
            assert name in refused[0]["reason"]
            assert (refused[0]["site"], refused[0]["peer"]) == (b.name, a.name)
            assert refused[0]["batch"] > 0
            arrives(a, mark(b))
            holder.rollback()
        cluster.converges()
        assert b.scalar("select note from customer where id = %s", (wanted,)) == "changed"


def test_who_locks_a_table_delays_cuts_and_is_not_delayed(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        made = mark(a)
        with a.connect() as holder:
            holder.execute("lock table item in access exclusive mode")
            late = holder.execute("insert into item values (7, 'under lock', 1) returning id").fetchall()
            arrives(a, mark(b))
            until(
                lambda: "no cut can be made" in str(a.scalar("select waiting from syncagent.agent_state")),
                "status says so",
            )
            holder.commit()
        assert late == [(7,)]
        arrives(b, made)
        cluster.converges()


def test_partitions_that_come_while_the_agent_runs(laboratory: Laboratory) -> None:
    """A partition made now is watched within a moment, and numbers drawn at both sites never meet."""
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        for site in cluster:
            site.execute(
                "create table event (n bigint generated by default as identity, day date, at text, primary key (n, day))"
                " partition by range (day)"
                if site.server.binaries.major >= 17
                else "create table event (n bigserial, day date, at text, primary key (n, day)) partition by range (day)"
            )
            site.execute(
                "create table event_early partition of event for values from (minvalue) to ('2024-01-01')"
            )
            site.attach("event", "--derive-key", "--stride", "16")
        cluster.start()
        for site in cluster:
            site.execute(
                "create table event_late partition of event for values from ('2024-01-01') to (maxvalue)"
            )
            site.execute(
                "insert into event_late (n, day, at) values (%s, '2024-02-01', 'straight')", (-site.node,)
            )
            site.execute(
                "insert into event (day, at) select date '2023-12-01' + n, 'root' from generate_series(1, 60) n"
            )
        until(
            lambda: all(site.scalar("select count(*) from syncagent._strays()") == 0 for site in cluster),
            "the new partition has its triggers",
        )
        cluster.converges(tables=("event",))
        assert b.scalar("select count(*) from event") == 122
        a.execute("update event_late set at = 'again' where n = -2")
        cluster.converges(tables=("event",))
        assert b.scalar("select at from event where n = -2") == "again"
        assert a.scalar("select count(*) from syncagent.conflict_record") == 0
