"""Schema changes go through a fleet that writes: nothing is lost, nobody is left behind, and all ends equal."""

import json
from typing import Any

from tests.support.cluster import Laboratory, Site
from tests.support.load import committed, load, share, verify


def change(site: Site, *arguments: str, text: str = "", expect: int = 0) -> Any:
    """What `syncagent schema` answers."""
    file = site.home / "change.sql"
    file.write_text(text)
    done = site.syncagent("schema", *arguments, *([str(file)] if text else []), "--json", seconds=120)
    assert done.returncode == expect, done.stderr + done.stdout
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_additive_changes_under_load(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        berlin, tokyo, lima = cluster
        share(berlin)
        cluster.exchange()
        with load(cluster.sites, seed, writers=1) as writers:
            committed(writers, 10)
            done = change(berlin, "apply", text="alter table customer add column vip boolean not null default false;"
                          "create table visit (id uuid primary key, at timestamptz not null default now());"
                          "create index visit_at on visit (at); create index customer_name on customer (name);"
                          "comment on column customer.vip is 'pays more';")
            assert done["state"] == "done"
            committed(writers, 10)
        verify(writers, cluster.sites)
        tokyo.execute("insert into visit values (syncagent.uuid7())")
        lima.execute("update customer set vip = true where id = (select min(id::text)::uuid from customer)")
        cluster.converges(tables=("customer", "item", "line", "visit"))
