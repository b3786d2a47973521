"""Schema changes go through a fleet that writes: nothing is lost, nobody is left behind, and all ends equal."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from syncagent.embedded import Server
from tests.sql.test_revisions import FIRST, SECOND, application
from tests.support.cluster import Cluster, Laboratory, Site, leader
from tests.support.dumps import dumped
from tests.support.fleet import Member, fleet
from tests.support.load import committed, load, share, verify
from tests.support.waiting import until

LONG = 120.0


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
                text="alter table customer drop column vip",
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
        tokyo.execute("insert into visit values (syncagent.uuid7())")
        alike(cluster)
        verify(writers, cluster.sites)
        assert lima.execute("select size from item where id = -1") == [(3,)]
        assert [one["state"] for one in change(tokyo, "history")] == ["done", "done", "done"]
        assert change(tokyo, "status")["change"] is None


def test_what_cannot_be_done_at_one_site_goes_on_or_back(laboratory: Laboratory) -> None:
    """Other data, an object of that name, a lock that is held, agents killed meanwhile: a clear state, and a command on or back."""
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        berlin, tokyo, lima = cluster
        cluster.exchange(LONG)

        tokyo.execute("insert into item values (1, 'twice', 0), (2, 'twice', 0)")
        found = change(berlin, "apply", text="alter table item add constraint one unique (name)", expect=1)
        assert any("twice" in why for why in found["failures"].values()), "who has both rows by now says so"
        tokyo.execute("update item set name = 'once' where id = 2")
        until(lambda: change(lima, "status")["change"] is None, "it goes on by itself", LONG)

        tokyo.execute("create table visit (own text)")
        found = change(
            berlin,
            "apply",
            text="create table visit (id uuid primary key); alter table item add column size int",
            expect=1,
        )
        assert "already exists" in found["failures"]["tokyo"]
        assert change(lima, "abort")["state"] == "aborted"
        until(lambda: len(epochs(cluster)) == 1, "all are at one step", LONG)
        assert [site.scalar("select to_regclass('visit')::text") for site in cluster] == [None, "visit", None]
        tokyo.execute("drop table visit")

        with lima.connect() as holder:
            holder.execute("lock table item in access share mode")
            found = change(
                berlin, "apply", "--timeout", "12s", text="alter table item add column size int", expect=1
            )
            assert "lima" in found["waiting"]
            first = until(lambda: leader(*cluster), "a leader", LONG)
            assert first is not None
            first.kill()
            began = time.monotonic()
            lima.execute("insert into item values (3, 'meanwhile', 0)")
            assert time.monotonic() - began < 1.0, "the application waited for the change"
            first.start()
            berlin.kill() if first is not berlin else tokyo.kill()
        for site in cluster:
            if not site.runs:
                site.start()
        until(lambda: change(tokyo, "history")[0]["state"] == "done", "it is done", LONG)
        until(lambda: len(epochs(cluster)) == 1, "all are at one step", LONG)
        alike(cluster)


@pytest.mark.soak(only="a third cluster")
def test_revisions_and_a_site_that_is_not_waited_for(laboratory: Laboratory, tmp_path: Path) -> None:
    """Alembic's revisions by one command; what drops the old shape waits for a person, and not for a site that was excluded."""
    second = SECOND.replace("value", "stock").replace("note", "name")
    ini = str(application(tmp_path, FIRST, second))
    with laboratory.cluster(18, 15, 18) as cluster:
        cluster.start()
        berlin, tokyo, lima = cluster
        cluster.exchange(LONG)
        tokyo.execute("insert into item values (1, 'one', 22)")
        cluster.converges(LONG)
        planned = change(berlin, "plan", "--alembic", ini)
        assert [step["phase"] for step in planned["steps"]] == ["expand", "expand", "backfill", "read-new"]
        done = berlin.syncagent("schema", "apply", "--alembic", ini, seconds=180)
        assert done.returncode == 0, done.stderr + done.stdout
        until(lambda: len(epochs(cluster)) == 1, "all are at one step", LONG)
        alike(cluster)
        assert lima.execute("select size, name from item where id = 1") == [(2, "one")]
        assert [site.scalar("select version_num from alembic_version") for site in cluster] == ["r2"] * 3

        lima.stop()
        until(lambda: not berlin.peer(lima)["linked"], "lima is away", LONG)
        found = change(
            berlin, "apply", "--timeout", "2s", text="alter table customer drop column note", expect=1
        )
        assert "lima" in found["waiting"]
        assert change(tokyo, "apply", "--exclude", "lima")["state"] == "waits for approval"
        assert change(tokyo, "apply", "--contract")["state"] == "done"
        tokyo.execute("insert into customer values (syncagent.uuid7(), 'new', 1)")
        lima.execute("insert into customer values (syncagent.uuid7(), 'away', 1, 'written before')")
        lima.start()
        until(lambda: len(epochs(cluster)) == 1, "lima has done it, too", LONG)
        names = "select name from customer where name in ('new', 'away') order by 1"
        until(lambda: all(site.execute(names) == [("away",), ("new",)] for site in cluster), "all rows", LONG)
        assert "is done" in change(berlin, "abort", change(berlin, "history")[0]["id"], expect=1)


def test_a_site_joins_after_a_change_and_not_within_one(
    server18: Server, server15: Server, tmp_path: Path
) -> None:
    """It comes with the shape that the others have, and changes on with them."""
    with fleet(tmp_path, "", server18, server15, server18) as (berlin, tokyo, lima):
        berlin.init()
        berlin.execute("create table item (id uuid primary key, name text not null, old int)")
        berlin.start()
        berlin.ask("attach", "item")
        berlin.execute(
            "insert into item select syncagent.uuid7(), 'before', n from generate_series(1, 200) as n"
        )

        def apply(member: Member, text: str, *how: str, expect: int = 0) -> Any:
            file = tmp_path / "change.sql"
            file.write_text(text)
            done = member.verb("schema", "apply", str(file), *how, "--json")
            assert done.returncode == expect, done.stderr + done.stdout
            return json.loads(done.stdout)

        apply(
            berlin,
            "alter table item add column size int not null default 3; create index item_name on item (name)",
        )
        tokyo.join(berlin)
        tokyo.start()
        tokyo.execute("insert into item (id, name, size) values (syncagent.uuid7(), 'at tokyo', 5)")
        two = ("--versions", "app_v1:app_v2")
        waits = apply(tokyo, "alter table item add column late text; alter table item drop column old", *two)
        assert waits["state"] == "waits for approval"
        berlin.execute("insert into app_v1.item (id, name, old) values (syncagent.uuid7(), 'version 1', 1)")
        tokyo.execute("insert into app_v2.item (id, name, late) values (syncagent.uuid7(), 'version 2', 'y')")
        with tokyo.database.connect() as session, session.transaction():
            session.execute("select from app_v1.item")
            used = tokyo.verb("schema", "apply", "--contract", "--json")
            assert used.returncode == 1
            assert "has used item in its transaction" in used.stdout
        token = tokyo.ask("invite")["token"]
        assert "a schema change is under way" in lima.refused(*lima.joining(tokyo), token=token)
        until(lambda: tokyo.ask("schema", "history")[0]["state"] == "done", "it goes on by itself", LONG)
        lima.join(tokyo)
        lima.start()
        lima.execute("insert into item (id, name, late) values (syncagent.uuid7(), 'at lima', 'x')")
        apply(lima, "alter table item rename column late to note", "--auto")
        assert berlin.ask("wait", "--converged")["converged"]
        everywhere = (berlin, tokyo, lima)
        epochs = {site.scalar("select schema_epoch from syncagent.local_site") for site in everywhere}
        assert len(epochs) == 1
        rows = [site.execute("select * from item order by id") for site in everywhere]
        assert rows[0] == rows[1] == rows[2]
        assert [row[1:] for row in rows[0][-2:]] == [
            ("version 2", 3, "y"),
            ("at lima", 3, "x"),
        ]
        first, *others = [dumped(site.database, server18) for site in everywhere]
        assert all("Type: VIEW" in entry for other in others for entry in first ^ other), (
            "but as 15 writes it"
        )
        assert [
            site.execute("select id, name, late from app_v2.item order by id") for site in everywhere
        ] == [[(row[0], row[1], row[3]) for row in rows[0]]] * 3
        assert [
            site.scalar("select reloptions from pg_class where oid = 'app_v2.item'::regclass")
            for site in everywhere
        ] == [["security_invoker=true"]] * 3
        assert lima.ask("schema", "drop-version", "app_v2")["state"] == "done"
        assert [site.scalar("select to_regnamespace('app_v2')") for site in everywhere] == [None] * 3
