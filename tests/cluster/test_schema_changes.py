"""Schema changes go through a fleet that writes: nothing is lost, nobody is left behind, and all ends equal."""

import json
from typing import Any

from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.dumps import dumped
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until

LONG = 90.0


def change(site: Site, *arguments: str, text: str = "", expect: int = 0) -> Any:
    """What `syncagent schema` answers; what it refuses, in words."""
    file = site.home / "change.sql"
    file.write_text(text)
    done = site.syncagent("schema", *arguments, *([str(file)] if text else []), "--json", seconds=150)
    assert done.returncode == expect, done.stderr + done.stdout
    return json.loads(done.stdout) if done.stdout else done.stderr


def epochs(cluster: Cluster) -> set[int]:
    return {site.scalar("select schema_epoch from syncagent.local_site") for site in cluster}


def alike(cluster: Cluster) -> None:
    """In data, and in what pg_dump says of the schema."""
    tables = [
        name for (name,) in cluster.sites[0].execute("select table_name::text from syncagent.replicated")
    ]
    cluster.converges(LONG, tables)
    newest = cluster.sites[0].server
    first, *others = [dumped(site.database, newest) for site in cluster]
    assert all(other == first for other in others)


def test_changes_under_load_with_a_site_away(laboratory: Laboratory, seed: int) -> None:
    """Additive ones pass it, and it catches up in order; what drops the old shape waits for it, by name."""
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        berlin, tokyo, lima = cluster
        share(berlin)
        cluster.exchange(LONG)
        with load(cluster.sites, seed, writers=1) as writers:
            committed(writers, 10)
            done = change(
                berlin,
                "apply",
                text="""
                alter table customer add column vip boolean not null default false;
                create table visit (id uuid primary key, at timestamptz not null default now());
                create index customer_name on customer (name);
                comment on column customer.vip is 'pays more';""",
            )
            assert done["state"] == "done"
            cluster.cut_off(tokyo)
            until(lambda: not berlin.peer(tokyo)["linked"], "tokyo is away", LONG)
            assert (
                change(lima, "apply", text="alter table item add column size int default 3")["state"]
                == "done"
            )
            waits = change(
                lima,
                "apply",
                "--auto",
                "--timeout",
                "3s",
                text="alter table customer drop column note",
                expect=1,
            )
            assert "tokyo" in waits["waiting"]
            assert "one at a time" in change(
                berlin, "apply", text="alter table item add column late int", expect=1
            )
            committed(writers, 10)
            tokyo.execute("insert into item (id, name, stock) values (-1, 'written away', 1)")
            cluster.heal(tokyo)
            until(lambda: epochs(cluster) == {4}, "all have done all steps", LONG)
            committed(writers, 10)
        verify(writers, cluster.sites)
        tokyo.execute("insert into visit values (syncagent.uuid7())")
        alike(cluster)
        assert lima.execute("select size from item where id = -1") == [(3,)]
        assert [one["state"] for one in change(tokyo, "history")] == ["done", "done", "done"]
        assert change(tokyo, "status")["change"] is None
