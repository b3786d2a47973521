"""Eight clients at each of three sites, all on the same fifty rows, for minutes: what the application gets to feel of it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest
from psycopg import sql

from tests.support.cluster import Cluster, Laboratory, Site, has, mark
from tests.support.databases import Database
from tests.support.waiting import until

CLIENTS, ROWS, SECONDS = 8, 50, 300
IN_ORDER = r"""
\set a random(1, 48)
\set b random(:a + 1, 49)
\set c random(:b + 1, 50)
"""
AT_RANDOM = r"""
\set a random(1, 50)
\set b random(1, 50)
\set c random(1, 50)
"""
SCRIPT = (
    "begin;\n"
    + "".join(
        "update customer set credit = credit + 1, note = :client_id"
        f" where id = ('01900000-0000-7000-8000-' || lpad(:{name}::text, 12, '0'))::uuid;\n"
        for name in "abc"
    )
    + "commit;\n"
)
FILL = (
    "insert into customer select ('01900000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'hot', 0, null"
    f" from generate_series(1, {ROWS}) as n"
)
DEADLOCK = re.compile(r"DETAIL: +(Process \d+ waits for .*(?:\n\t.*)+)")


class Felt(NamedTuple):
    """What the application got: transactions that were done, and that failed, over all sites; seconds until a row was everywhere."""

    done: int
    failed: int
    lags: Sequence[float]

    @property
    def rate(self) -> float:
        return self.failed / (self.done + self.failed)

    def __str__(self) -> str:
        lag = f", lag up to {max(self.lags):.1f} s" if self.lags else ""
        return f"{self.done:,} transactions done, {self.failed:,} failed ({self.rate:.5f}){lag}"


def clients(database: Database, script: Path, seed: int) -> "subprocess.Popen[str]":
    server = database.server
    return subprocess.Popen(
        [
            server.binaries.tool("pgbench"),
            *("--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--jobs=2"),
            *(f"--time={SECONDS}", f"--random-seed={seed}", f"--file={script}", database.name),
        ],
        env={**os.environ, "PGHOST": str(server.socket_dir), "PGPORT": str(server.port), "PGUSER": "postgres"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def felt(databases: Sequence[Database], script: Path, seed: int, sites: Sequence[Site] = ()) -> Felt:
    """Run the clients at all of these; meanwhile a row is written at each site, again and again, and awaited at all."""
    running = [clients(database, script, seed) for database in databases]
    lags = []
    while sites and running[0].poll() is None:
        began = time.monotonic()
        marks = [mark(site) for site in sites]
        until(partial(everywhere, sites, marks), "marks everywhere", 60)
        lags.append(time.monotonic() - began)
    done = failed = 0
    for process in running:
        said, talk = process.communicate()
        assert process.returncode == 0, talk
        assert "aborted" not in talk, talk
        done += _number(r"number of transactions actually processed: (\d+)", said)
        failed += _number(r"number of failed transactions: (\d+)", said)
    return Felt(done, failed, lags)


def everywhere(sites: Sequence[Site], marks: Sequence[UUID]) -> bool:
    return all(has(site, *marks) for site in sites)


def _number(what: str, said: str) -> int:
    found = re.search(what, said)
    assert found, said
    return int(found.group(1))


def deadlocks(cluster: Cluster, since: Sequence[int]) -> list[str]:
    """What the servers told of each, from these places of their logs on."""
    logs = [
        site.server.log.read_bytes()[at:].decode(errors="replace")
        for site, at in zip(cluster, since, strict=True)
    ]
    return [found for log in logs for found in DEADLOCK.findall(log)]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.sql"


@pytest.mark.soak(only="five minutes")
def test_clients_that_take_rows_in_the_order_of_their_keys_never_fail(
    laboratory: Laboratory, script: Path, seed: int
) -> None:
    script.write_text(IN_ORDER + SCRIPT)
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        cluster.sites[0].execute(FILL)
        cluster.exchange()
        before = [site.server.log.stat().st_size for site in cluster]
        seen = felt([site.database for site in cluster], script, seed, cluster.sites)
        sys.stdout.write(f"in the order of keys: {seen}\n")
        assert seen.failed == 0
        assert deadlocks(cluster, before) == []
        assert max(seen.lags) < 10
        cluster.converges(120)
        cluster.settles(60)


@pytest.mark.soak(only="ten minutes")
def test_clients_that_take_rows_at_random_fail_as_often_as_without_us(
    laboratory: Laboratory, script: Path, seed: int
) -> None:
    script.write_text(AT_RANDOM + SCRIPT)
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        cluster.sites[0].execute(FILL)
        cluster.exchange()
        before = [site.server.log.stat().st_size for site in cluster]
        seen = felt([site.database for site in cluster], script, seed, cluster.sites)
        sys.stdout.write(f"at random: {seen}\n")
        told = deadlocks(cluster, before)
        assert told, "clients that take rows at random are each other's victims"
        # whoever stands in the way is shown with his statement
        for each in told:
            for process in re.findall(r"Process \d+: (.*)", each):
                assert process.startswith("update customer set credit"), each
        assert max(seen.lags) < 10
        cluster.converges(120)
        cluster.settles(60)

        alone = [Database(site.server, f"alone{number}") for number, site in enumerate(cluster)]
        for site in cluster:
            site.stop()
        for database, site in zip(alone, cluster, strict=True):
            site.server.execute(sql.SQL("create database {}").format(sql.Identifier(database.name)))
            database.execute("create table customer (id uuid primary key, name text, credit int, note text)")
            database.execute(FILL)
        plain = felt(alone, script, seed)
        for database in alone:
            database.leave()
            database.server.execute(sql.SQL("drop database {}").format(sql.Identifier(database.name)))
        sys.stdout.write(f"without us: {plain}\n")
        assert seen.rate <= 1.1 * plain.rate
