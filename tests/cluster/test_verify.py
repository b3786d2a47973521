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


def hashes_otherwise(site: Site) -> None:
    """As a server of another version might."""
    for name in ("_lanes", "_known_answers"):
        definition = site.scalar("select pg_get_functiondef(('syncagent.' || %s)::regproc)", (name,))
        site.execute(definition.replace("7640891576956012808", "1"))


def kind(site: Site) -> str:
    return str(site.scalar("select fingerprint from syncagent.local_site"))


def key_of(site: Site, name: str, place: int = 0) -> str:
    return str(
        site.scalar("select id from customer where name = %s order by id offset %s limit 1", (name, place))
    )


def test_equal_sites_are_proved_and_different_ones_named(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        hashes_otherwise(b)
        cluster.start()
        populate(cluster)
        assert "hash the same text to different numbers" in verify(a)["sites"][0]["error"]
        until(lambda: {kind(a), kind(b)} == {"sha256"}, "the cluster turns to what is the same everywhere")
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

        trees = [
            json.loads(site.syncagent("forest", "customer", "--by", "hour", "--json").stdout)["parts"]
            for site in cluster
        ]
        here, there = ([(part["begins"], part["rows"], part["digest"]) for part in tree] for tree in trees)
        assert here == there
        assert here[-1][:2] == (None, 50), "keys without a time"
        assert sum(rows for _, rows, _ in here) == 2050, "those of this hour are not sealed yet"
        drawn = a.syncagent("forest", "customer").stdout
        assert "2025" in drawn, drawn
        assert "keys without a time" in drawn

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
        assert changed in shown.stdout
        assert "100000" not in shown.stdout

        # what one of the two lacks it takes from the other; who is right about the rest nobody knows
        trouble = "select trouble from syncagent.status where is_self"
        until(lambda: "no majority" in str(b.scalar(trouble)), "status says so", 60)
        assert b.scalar("select count(*) from syncagent.proof where not equal and site = 'berlin'")
        until(lambda: not verify(a, "item")["sites"][0]["differences"], "the item is at both")
        assert b.execute("select key_text, cause from syncagent.repair_record") == [(lost, "missing")]
        planned = a.syncagent("repair", "--source", b.name, "--dry-run")
        assert planned.returncode == 1
        assert changed in planned.stdout
        assert "2 rows would be taken from elsewhere" in planned.stdout
        done = a.syncagent("repair", "--source", a.name, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert verify(b, "--deep")["equal"]
        assert b.scalar("select name from customer where id = %s", (timeless,)) == "timeless"
        for site in cluster:
            until(lambda site=site: site.scalar(trouble) is None, "status forgets it")  # type: ignore[misc]


def test_nothing_on_its_way_is_counted_as_different(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        populate(cluster)
        with load(cluster.sites, seed, rest=0.1) as writers:
            for site in cluster.sites[:2]:
                committed(writers, 30)
                answer = verify(site, "item", "line")
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


def test_what_is_lost_comes_back_by_itself(laboratory: Laboratory, seed: int) -> None:
    """Behind the triggers, at one of three sites that are written: the scrub sees it, and nobody is asked."""
    with laboratory.cluster(18, 15, 18) as cluster:
        a, b, _ = cluster
        cluster.start()
        populate(cluster)
        cluster.converges()
        lost = [key_of(b, "old", place) for place in (3, 400, 401)]
        changed = key_of(b, "timeless", 9)
        with load(cluster.sites, seed, rest=0.1) as writers:
            behind_the_triggers(
                b,
                *(f"delete from customer where id = '{key}'" for key in lost),
                f"update customer set name = 'changed' where id = '{changed}'",
                "update syncagent.forest set scrubbed_at = '-infinity'",
            )
            until(
                lambda: b.scalar("select count(*) from syncagent.repair_record") == 4,
                "all four are repaired",
                60,
            )
            committed(writers, 30)
        cluster.converges()
        assert b.execute("select cause, count(*) from syncagent.repair_record group by cause order by cause") == [
            ("majority", 1), ("missing", 3)
        ]  # fmt: skip
        for site in cluster:
            assert site.scalar("select count(*) from customer where name = 'old'") == 2000
            assert not site.scalar("select count(*) from customer where name = 'changed'")
            assert site.scalar("select count(*) from syncagent.repair_record") == (4 if site is b else 0)
        assert verify(a, "--deep")["equal"]
