"""Every site has every conflict, through a hub, whatever is killed on the way."""

import json
from typing import Any

import pytest

from tests.cluster.test_relay import spokes
from tests.support.cluster import Laboratory, Site, has, mark
from tests.support.load import share
from tests.support.waiting import until


def listed(site: Site) -> list[dict[str, Any]]:
    done = site.syncagent("conflicts", "list", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [{name: value for name, value in row.items() if name != "noticed_at"} for row in found]


@pytest.mark.soak(only="agents and a server are killed")
def test_a_conflict_of_two_shops_is_at_the_hub_and_settled_there(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15, 18, prepare=spokes) as cluster:
        hub, one, other = cluster
        cluster.start()
        share(hub)
        born = mark(hub)
        until(lambda: all(has(site, born) for site in (one, other)), "the rows are everywhere")
        hub.kill()
        one.execute("update item set name = 'of one' where id = 1")
        other.execute("update item set name = 'of the other' where id = 1")
        hub.start()
        noticed = "select count(*) from syncagent.conflict"
        until(lambda: all(site.scalar(noticed) == 1 for site in cluster), "every site has the conflict")

        # settled at one shop; the hub's server dies with it, the other shop was away
        other.kill()
        conflict = str(one.scalar("select id from syncagent.conflict"))
        hub.server.kill()
        done = one.syncagent("conflicts", "resolve", conflict, "--take", "loser")
        assert done.returncode == 0, done.stdout + done.stderr
        hub.server.start()
        other.start()
        settled = "select resolved_site from syncagent.conflict"
        until(lambda: all(site.scalar(settled) == one.name for site in cluster), "all know who settled it")
        cluster.converges()
        # who meets both versions before he is told notes when he did
        told = "select jsonb_agg(to_jsonb(c) - 'noticed_at' order by c.id)::text from syncagent.conflict c"
        until(lambda: len({site.scalar(told) for site in cluster}) == 1, "every site says the same")
        assert listed(hub) == listed(one) == listed(other)
        assert {one.name, other.name} == {listed(hub)[0]["winner"], listed(hub)[0]["loser"]}

        # and taken back at the hub
        done = hub.syncagent("conflicts", "undo", conflict)
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: all(site.scalar(settled) is None for site in cluster), "it is taken back everywhere")
        cluster.converges()
