"""A table's strategy is changed in a fleet that writes, with a site away and who leads killed: nothing is lost, and all ends equal."""

import json
from typing import Any

import pytest

from tests.support.cluster import Cluster, Laboratory, Site, leader
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until

LONG = 120.0


def strategy(site: Site, *arguments: str, expect: int = 0) -> Any:
    """What `syncagent strategy` answers; what it refuses, in words."""
    done = site.syncagent("strategy", *arguments, "--json", seconds=150)
    assert done.returncode == expect, done.stderr + done.stdout
    return json.loads(done.stdout) if done.stdout else done.stderr


def everywhere(cluster: Cluster, expected: str) -> bool:
    asked = "select strategy || coalesce(' ' || whole::text, '') from syncagent.replicated where table_name = 'item'"
    return {site.scalar(asked) for site in cluster} == {expected}


@pytest.mark.soak(only="a third cluster")
def test_a_strategy_changes_under_load(laboratory: Laboratory, seed: int) -> None:
    """To columns it passes a site that is away; from them it waits for each, by name, and whoever leads next goes on."""
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        berlin, tokyo, lima = cluster
        share(berlin)
        cluster.exchange(LONG)
        with load(cluster.sites, seed, writers=1, rest=0.02) as writers:
            committed(writers, 10)
            cluster.cut_off(tokyo)
            until(lambda: not berlin.peer(tokyo)["linked"], "tokyo is away", LONG)
            plan = strategy(berlin, "item", "merge", "--merge", "stock=counter", "--dry-run")
            assert [step["phase"] for step in plan["steps"]] == ["expand", "expand"]
            assert strategy(berlin, "item", "merge", "--merge", "stock=counter")["state"] == "done"
            committed(writers, 10)
            cluster.heal(tokyo)
            until(lambda: everywhere(cluster, "merge"), "tokyo has done it, too", LONG)
            committed(writers, 10)
            assert strategy(tokyo, "item")["merges"] == {"stock": "counter"}

            cluster.cut_off(lima)
            until(lambda: not berlin.peer(lima)["linked"], "lima is away", LONG)
            waits = strategy(tokyo, "item", "lww-column", "--timeout", "3s", expect=1)
            assert "lima" in waits["waiting"]
            first = until(lambda: leader(berlin, tokyo), "a leader", LONG)
            assert first is not None
            first.kill()
            first.start()
            committed(writers, 10)
            cluster.heal(lima)
            until(lambda: everywhere(cluster, "lww-column"), "all have changed it", LONG)
            committed(writers, 10)
        cluster.converges(LONG, ["customer", "item", "line"])
        verify(writers, cluster.sites)
