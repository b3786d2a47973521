"""`syncagent verify` between real sites: equal is proved, what differs is named, and nothing on its way is counted."""

import json
from typing import Any

from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.load import committed, load, share
from tests.support.waiting import until

OLD = 490_000 * 14_745_600_000
"""A key's clock of long ago: an hour that is sealed."""


def verify(site: Site, *arguments: str) -> dict[str, Any]:
    done = site.syncagent("verify", "--json", *arguments)
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if answer["equal"] else 1)
    return answer


def populate(cluster: Cluster) -> None:
    """Rows of now, of long ago, and of keys without a time."""
    first = cluster.sites[0]
    share(first)
    first.execute(
        "insert into customer select syncagent._stamp(%s + n * 300000000::bigint, -9223372036854775808 + n), 'old', n, null"
        " from generate_series(1, 2000) n",
        (OLD,),
    )
    first.execute(
        "insert into customer select gen_random_uuid(), 'timeless', n, null from generate_series(1, 50) n"
    )
    cluster.converges()


def behind_the_triggers(site: Site, *statements: str) -> None:
    with site.connect() as connection:
        connection.execute("set session_replication_role = replica")
        for statement in statements:
            connection.execute(statement.encode())


def key_of(site: Site, name: str, place: int = 0) -> str:
    return str(
        site.scalar("select id from customer where name = %s order by id offset %s limit 1", (name, place))
    )


def test_equal_sites_are_proved_and_different_ones_named(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        cluster.start()
        populate(cluster)
        answer = verify(a)
        (site,) = answer["sites"]
        assert answer["equal"], answer
        assert site["complete"], site
        rows = {table["table"]: table["rows"] for table in site["tables"]}
        assert rows == {
            f"public.{t}": a.scalar(f"select count(*) from {t}") for t in ("customer", "item", "line")
        }
        assert a.execute("select site, equal, rows, before, found ->> 'hours' from syncagent.proof order by at desc limit 1") == [
            (b.name, True, sum(rows.values()), None, "{}")
        ]  # fmt: skip

        lost, changed, timeless = key_of(b, "old", 77), key_of(b, "shared", 3), key_of(b, "timeless", 9)
        behind_the_triggers(
            b,
            f"create table kept as select * from customer where id in ('{lost}', '{changed}', '{timeless}')",
            f"delete from customer where id = '{lost}'",
            f"update customer set note = 'changed' where id = '{changed}'",
            f"update customer set name = 'changed' where id = '{timeless}'",
            "insert into item values (100000, 'nobody has seen it', 1)",
        )
        answer = verify(a, "--deep")
        (site,) = answer["sites"]
        assert {(found["table"], found["key"], found["what"]) for found in site["differences"]} == {
            ("public.customer", lost, "missing there"),
            ("public.customer", changed, "different"),
            ("public.customer", timeless, "different"),
            ("public.item", "100000", "missing here"),
        }
        assert sum(site["hours"].values()) == 4
        assert len(site["hours"]) == 4
        assert {table["table"]: table["differing"] for table in site["tables"]} == {
            "public.customer": 3, "public.item": 1, "public.line": 0,
        }  # fmt: skip
        shown = a.syncagent("verify", "customer")
        assert shown.returncode == 1
        assert lost in shown.stdout
        assert "100000" not in shown.stdout

        # from here on it is noticed without being asked, at the other site, too
        until(
            lambda: b.scalar("select count(*) from syncagent.proof where not equal and site = 'berlin'"),
            "a proof",
            60,
        )
        trouble = "select trouble from syncagent.status where is_self"
        until(lambda: "differs from berlin" in str(b.scalar(trouble)), "status says so")

        behind_the_triggers(
            b,
            "delete from item where id = 100000",
            "delete from customer where id in (select id from kept)",
            "insert into customer select * from kept",
        )
        assert verify(b, "--deep")["equal"]
        assert b.scalar("select trouble from syncagent.agent_state") is None


def test_nothing_on_its_way_is_counted_as_different(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        populate(cluster)
        with load(cluster.sites, seed) as writers:
            for number in range(3):
                committed(writers, 30)
                answer = verify(cluster.sites[number % 3], "item", "line")
                assert answer["equal"], answer
        cluster.converges()
        answer = verify(cluster.sites[1])
        assert answer["equal"]
        assert all(site["complete"] for site in answer["sites"])
        for site in cluster:
            assert not site.execute(
                "select site, found::text, rows, open from syncagent.proof where not equal"
            )


def test_whoever_is_away_is_not_compared(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        a.start()
        until(lambda: a.scalar("select syncagent._agent_runs()"), "the agent runs")
        (site,) = verify(a)["sites"]
        assert (site["site"], site["equal"]) == (b.name, False)
        assert "no link" in site["error"]
        a.stop()
        done = a.syncagent("verify")
        assert done.returncode == 1
        assert "no agent is running" in done.stderr
