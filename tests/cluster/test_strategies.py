"""A table's strategy is changed in a fleet that writes, with a site away and who leads killed: nothing is lost, and all ends equal."""

import json
from pathlib import Path
from typing import Any

import pytest

from syncagent.embedded import Server
from tests.support.cluster import Cluster, Laboratory, Site, leader
from tests.support.fleet import fleet
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


@pytest.mark.soak(only="agents of its own")
def test_a_function_is_there_at_every_site_alike_or_the_table_is_not_attached(
    server18: Server, server15: Server, tmp_path: Path
) -> None:
    """Then it merges; one that becomes another is said by `db check`, and is agreed on anew by the same command."""
    longest = 'create or replace function longest(text, text) returns text language sql immutable as $$ select case when length($1) > length($2) or length($1) = length($2) and $1 > $2 collate "C" then $1 else $2 end $$'
    other = longest.replace(">", "<")
    chosen = ("--strategy", "merge", "--merge", "name=function:public.longest")
    with fleet(
        tmp_path, "create table item (id uuid primary key, name text not null)", server18, server15
    ) as (berlin, tokyo):
        berlin.execute(longest)
        berlin.init()
        berlin.start()
        tokyo.join(berlin)
        tokyo.start()
        assert "there is no function public.longest(text, text)" in berlin.refused("attach", "item", *chosen)
        tokyo.execute(other)
        assert "is another one than was agreed on" in berlin.refused("attach", "item", *chosen)
        tokyo.execute(longest)
        berlin.ask("attach", "item", *chosen)
        berlin.execute("insert into item values (syncagent.uuid7(), 'old')")
        assert berlin.ask("wait", "--converged")["converged"]
        for site, peer in ((berlin, tokyo), (tokyo, berlin)):
            site.ask("pause", peer.name)
        for site, name in ((berlin, "a long name"), (tokyo, "short")):
            site.execute("update item set name = %s", (name,))
        for site, peer in ((berlin, tokyo), (tokyo, berlin)):
            site.ask("resume", peer.name)
        assert berlin.ask("wait", "--converged")["converged"]
        for site in (berlin, tokyo):
            assert site.scalar("select name from item") == "a long name"
            assert site.scalar("select count(*) from syncagent.conflict where open") == 0
            site.execute(other)
            assert (
                "function public.longest is another one than was agreed on" in site.verb("db", "check").stdout
            )
        assert berlin.ask("strategy", "item", *chosen[1:])["state"] == "done"
        until(
            lambda: (
                len(
                    {
                        site.scalar("select merges ->> 'name' from syncagent.replicated")
                        for site in (berlin, tokyo)
                    }
                )
                == 1
            ),
            "both have agreed on the other",
        )
        for site in (berlin, tokyo):
            assert "another one than" not in site.verb("db", "check").stdout
