"""A site is away for too long: nothing grows for it any more, and it comes back with what it has written."""

import pytest

from tests.support.cluster import Cluster, Laboratory, Site, mark
from tests.support.waiting import until

TABLES = ("customer", "item")
"""A key with a time, and one that is derived."""
ONE = ("berlin changes", "berlin deletes", "lima changes", "lima deletes", "stays")
BOTH = ("both change", "deleted here", "deleted there")


def insert(site: Site, name: str, number: int) -> None:
    site.execute("insert into customer values (syncagent.uuid7(), %s, 0, null)", (name,))
    site.execute("insert into item values (%s, %s, 0)", (number, name))


def change(site: Site, *names: str) -> None:
    for table in TABLES:
        site.execute(
            f"update {table} set name = %s || name where name = any (%s)", (f"{site.name}: ", list(names))
        )


def delete(site: Site, *names: str) -> None:
    for table in TABLES:
        site.execute(f"delete from {table} where name = any (%s)", (list(names),))


def names(site: Site) -> list[list[str]]:
    return [[name for (name,) in site.execute(f"select name from {table} order by name")] for table in TABLES]


def entries(*sites: Site) -> int:
    return sum(site.scalar("select coalesce(sum(entries), 0) from syncagent._entries()") for site in sites)


def cut(site: Site) -> None:
    until(lambda: not site.scalar("select count(*) from syncagent.log"), "it is cut")


def trouble(site: Site) -> str:
    return str(site.scalar("select trouble from syncagent.agent_state"))


def test_a_site_that_is_away_too_long_lapses_and_comes_back(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 15, 18, prepare=limited) as cluster:
        berlin, tokyo, lima = cluster
        cluster.start()
        for number, name in enumerate((*ONE, *BOTH)):
            insert(berlin, name, number)
        cluster.converges(tables=[*TABLES])
        cluster.settles()  # each knows that the others have it

        cluster.cut_off(lima)
        change(lima, "lima changes", "both change", "deleted there")
        delete(lima, "lima deletes", "deleted here")
        insert(lima, "written while away", 101)
        cut(lima)  # nobody gets to see it
        change(lima, "written while away")
        cut(lima)
        change(berlin, "berlin changes", "both change", "deleted here")
        delete(berlin, "berlin deletes", "deleted there")
        until(lambda: "site lima was away for too long" in trouble(berlin), "lima has lapsed")
        for site in (berlin, tokyo, berlin):  # who has something to say, looks what he need not keep
            mark(site)
        until(lambda: not entries(berlin, tokyo), "nothing is kept for it")

        cluster.heal(lima)
        said = "select coalesce(string_agg(trouble, ''), '') from syncagent.peer_state"
        until(lambda: "syncagent rejoin" in lima.scalar(said), "it is told")
        lima.stop()
        insert(lima, "in no cut", 102)
        done = lima.syncagent("rejoin", "--yes")
        assert done.returncode == 0, done.stderr
        lima.start()
        cluster.exchange()
        expected = ["berlin: berlin changes", "berlin: both change", "berlin: deleted here"]
        expected += ["in no cut", "lima: lima changes", "lima: written while away", "stays"]
        for table in names(lima):
            assert [name for name in table if name != "mark"] == expected
        cluster.converges(tables=[*TABLES])
        seen = lima.execute(
            "select kind, losing_image ->> 'name', winning_image ->> 'name' from syncagent.conflict_record"
            " order by 1, table_name"
        )
        assert seen[::2] == seen[1::2] == [
            ("possible delete/update", None, "berlin: deleted here"),
            ("possible update/delete", "lima: deleted there", None),
            ("possible update/update", "lima: both change", "berlin: both change"),
        ]  # fmt: skip
        until(lambda: "lima" not in trouble(berlin), "status forgets it")


def limited(cluster: Cluster) -> None:
    for site in cluster:
        with (site.home / "config.toml").open("a") as file:
            file.write('\n[limits]\naway = "3s"\n')
    cluster.introduce()


SHOP = """create table buyer (id uuid primary key, email text unique, name text not null);
    create table purchase (id uuid primary key, buyer uuid not null references buyer on delete cascade, what text not null)"""
MERGED = (
    """update syncagent.replicated set policies = '{"buyer_email_key": "merge"}' where table_name = 'buyer'"""
)


def shop(cluster: Cluster) -> None:
    limited(cluster)
    for site in cluster:
        for statement in SHOP.split(";"):
            site.execute(statement)
        site.attach("buyer", "purchase")
        site.execute(MERGED)


def buy(site: Site, buyer: str, what: str) -> None:
    site.execute(
        "insert into purchase select syncagent.uuid7(), id, %s from buyer where name = %s", (what, buyer)
    )


@pytest.mark.soak(only="a site lapses: 20 s")
def test_what_was_written_meanwhile_for_rows_that_are_gone(laboratory: Laboratory) -> None:
    """One was deleted, one was merged into another: whoever was away brings the first back, and its rows for the second follow."""
    with laboratory.cluster(18, 15, 18, prepare=shop) as cluster:
        berlin, tokyo, lima = cluster
        cluster.start()
        for name in ("deleted", "unused", "winner", "loser"):
            berlin.execute("insert into buyer values (syncagent.uuid7(), %s, %s)", (f"{name}@x", name))
        buy(berlin, "deleted", "early")
        cluster.converges(tables=["buyer", "purchase"])
        cluster.settles()

        cluster.cut_off(lima)
        for name in ("deleted", "winner", "loser"):
            buy(lima, name, f"late, for {name}")
        cut(lima)
        berlin.execute("delete from buyer where name in ('deleted', 'unused')")
        with tokyo.database.connect() as session, session.transaction():  # neither can know of the other one
            session.execute("update buyer set email = 'one@x' where name = 'loser'")
            berlin.execute("update buyer set email = 'one@x' where name = 'winner'")
        until(lambda: berlin.scalar("select count(*) from buyer") == 1, "they are one")
        until(lambda: "site lima was away for too long" in trouble(berlin), "lima has lapsed")
        cluster.heal(lima)
        said = "select coalesce(string_agg(trouble, ''), '') from syncagent.peer_state"
        until(lambda: "syncagent rejoin" in lima.scalar(said), "it is told")
        lima.stop()
        done = lima.syncagent("rejoin", "--yes")
        assert done.returncode == 0, done.stderr
        lima.start()
        cluster.exchange()
        cluster.converges(tables=["buyer", "purchase"])
        found = "select b.name, p.what from purchase p left join buyer b on b.id = p.buyer order by p.what"
        for site in cluster:
            assert site.execute(found) == [
                ("deleted", "late, for deleted"),
                ("winner", "late, for loser"),
                ("winner", "late, for winner"),
            ]
            assert site.execute("select name from buyer order by name") == [("deleted",), ("winner",)]
