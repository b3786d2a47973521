"""Somebody types DDL into one site's database: within seconds all say so there, and one command has it at every site."""

import psycopg
import pytest

from syncagent import settings
from syncagent.storage.commands import connected
from syncagent.web import live, metrics
from syncagent.web.findings import findings
from syncagent.web.metrics import Measured
from tests.cluster.test_schema_changes import LONG, alike, change
from tests.support.cluster import Cluster, Laboratory
from tests.support.dumps import dumped
from tests.support.waiting import until


def equal(cluster: Cluster, *tables: str) -> None:
    """In rows and in shape."""
    until(lambda: not cluster.differences(tables), "all are equal", LONG)
    first, *others = [dumped(site.database, cluster.sites[0].server) for site in cluster]
    assert all(other == first for other in others)


def test_typed_at_one_site(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        berlin, tokyo = cluster
        with (tokyo.home / "config.toml").open("a") as file:
            file.write('\n[schema]\ntyped = "refuse"\n')
        cluster.start()
        berlin.execute("insert into item values (1, 'one', 1), (2, 'two', 2)")
        cluster.exchange(LONG)
        until(lambda: berlin.scalar("select syncagent._watched() = 'there'"), "it is watched", LONG)
        berlin.execute("alter table item add column size int default 7")
        berlin.execute("update item set size = 5 where id = 1")

        what = "column size was added: integer default 7"
        until(
            lambda: any(line["event"] == "table changed by hand" for line in berlin.said()), "its log says so"
        )
        (said,) = [line for line in berlin.said() if line["event"] == "table changed by hand"]
        assert (said["table"], said["what"], said["role"]) == ("public.item", what, "postgres")
        assert berlin.scalar("select typed from syncagent.status where is_self") == [f"public.item: {what}"]
        (shown,) = change(berlin, "status")["typed"]
        assert shown["statement"].startswith("alter table item add column size")
        assert shown["take_back"] == "alter table public.item drop column size"
        for verb in (("status",), ("doctor",)):
            told = " ".join(berlin.syncagent(*verb).stdout.split())
            assert "column size was added" in told
            assert "syncagent schema adopt" in told
        with connected(berlin.dsn) as connection:
            page = metrics.written(
                Measured("berlin"), settings.load(berlin.home), metrics.asked(connection), None
            )
            assert b'syncagent_typed_changes{site="berlin"} 1.0' in page
            state = live.asked(connection) | {"member": True, "joins": []}
            assert [found.type for found in findings(state) if "by hand" in found.text] == [
                "syncagent schema adopt"
            ]
        assert tokyo.execute("select * from syncagent.typed_change") == []

        tokyo.execute("update item set stock = 22 where id = 2")
        cluster.exchange(LONG)
        assert change(berlin, "adopt")["state"] == "done"
        cluster.converges(LONG)
        assert tokyo.execute("select id, stock, size from item order by id") == [(1, 1, 5), (2, 22, 7)]
        with pytest.raises(psycopg.Error, match="column late was added") as refused:
            tokyo.execute("alter table item add column late int")
        assert "syncagent schema apply" in str(refused.value.diag.message_hint)
        assert change(tokyo, "apply", text="alter table item add column late int")["state"] == "done"
        alike(cluster)
        assert [
            site.execute("select * from syncagent.typed_change where not taken_over") for site in cluster
        ] == [[], []]


@pytest.mark.soak(only="a cluster of its own")
def test_the_worst_that_can_be_typed(laboratory: Laboratory) -> None:
    """A column dropped, a column renamed, a table dropped: rows wait, none is lost, and it goes on by one command, or back."""
    with laboratory.cluster(18, 15) as cluster:
        cluster.start()
        berlin, tokyo = cluster
        tokyo.execute(
            "insert into customer select syncagent.uuid7(), 'n' || i, i, 'note ' || i from generate_series(1, 50) as i"
        )
        cluster.exchange(LONG)

        berlin.execute("alter table customer drop column note")
        berlin.execute("insert into customer values (syncagent.uuid7(), 'at berlin', 1)")
        berlin.execute("insert into item values (1, 'waits', 1)")
        tokyo.execute("insert into customer values (syncagent.uuid7(), 'at tokyo', 1, 'kept')")
        until(
            lambda: berlin.scalar("select typed from syncagent.status where is_self"), "it is noticed", LONG
        )
        berlin.execute(change(berlin, "status")["typed"][0]["take_back"])
        berlin.execute("insert into customer values (syncagent.uuid7(), 'after', 1, 'flows')")
        names = "select count(*) from customer where name in ('at berlin', 'at tokyo', 'after')"
        until(lambda: [site.scalar(names) for site in cluster] == [3, 3], "rows flow", LONG)
        assert tokyo.scalar("select count(*) from item") == 1
        assert berlin.scalar("select count(*) from customer where note is null") > 50
        done = berlin.syncagent("repair", "customer", "--source", "tokyo", seconds=LONG)
        assert done.returncode == 0, done.stderr + done.stdout
        until(lambda: not cluster.differences(), "all are equal", LONG)
        assert berlin.scalar("select count(*) from customer where note like 'note %%'") == 50

        berlin.execute("alter table customer drop column note")
        berlin.execute("alter table customer rename column credit to money")
        berlin.execute("insert into customer values (syncagent.uuid7(), 'of the new shape', 2)")
        tokyo.execute("insert into customer values (syncagent.uuid7(), 'of the old shape', 3, 'goes')")
        assert change(berlin, "adopt")["state"] == "waits for approval"
        assert tokyo.scalar("select count(*) from customer where note is not null") > 50, (
            "nothing is dropped yet"
        )
        assert change(tokyo, "apply", "--contract")["state"] == "done"
        equal(cluster, "customer", "item", "line")
        assert berlin.scalar("select count(*) from customer where name like 'of the %% shape'") == 2

        berlin.execute("drop table line")
        tokyo.execute("insert into line values (syncagent.uuid7(), 1, 1, 'waits')")
        berlin.execute("insert into item values (2, 'goes out', 1)")
        until(
            lambda: tokyo.scalar("select count(*) from item where id = 2") == 1, "other tables go out", LONG
        )
        assert change(berlin, "adopt", "--auto")["state"] == "done"
        tokyo.execute("insert into item values (3, 'comes in', 1)")
        until(lambda: berlin.scalar("select count(*) from item where id = 3") == 1, "rows come in", LONG)
        equal(cluster, "customer", "item")
