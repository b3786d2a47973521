"""Somebody types DDL into one site's database: within seconds all say so there, and one command has it at every site."""

import psycopg
import pytest

from syncagent import settings
from syncagent.storage.commands import connected
from syncagent.web import live, metrics
from syncagent.web.findings import findings
from syncagent.web.metrics import Measured
from tests.cluster.test_schema_changes import LONG, alike, change
from tests.support.cluster import Laboratory
from tests.support.waiting import until


def test_typed_at_one_site(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15) as cluster:
        berlin, tokyo = cluster
        with (tokyo.home / "config.toml").open("a") as file:
            file.write('\n[schema]\ntyped = "refuse"\n')
        cluster.start()
        berlin.execute("insert into item values (1, 'one', 1), (2, 'two', 2)")
        cluster.exchange(LONG)
        until(lambda: berlin.scalar("select syncagent._watched() = 'there'"), "it is watched", LONG)
        berlin.execute(
            "alter table item add column size int default 7; update item set size = 5 where id = 1"
        )

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
            assert [found.type for found in findings(live.asked(connection)) if "by hand" in found.text] == [
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
