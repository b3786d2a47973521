"""What becomes of a site whose database changed under it: a failover goes on by itself, a restore comes back by `rejoin`."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from syncagent.embedded import Server, scratch
from tests.support.backups import base_backup, caught_up, dumped, restored, restored_dump
from tests.support.databases import Database
from tests.support.fleet import Member, fleet
from tests.support.postgres import SETTINGS, binaries
from tests.support.waiting import until

TABLES = """
create table item (id uuid primary key, name text not null unique);
create table stock (code text primary key, pieces integer not null);
"""
LOOKS = ("select * from item order by id", "select * from stock order by code")
TABLE = "create table item (id uuid primary key, name text not null unique)"
INSERT = "insert into item values (syncagent.uuid7(), %s)"


@pytest.fixture
def own18() -> Iterator[Server]:
    """A server of the test's own, which it may kill and set back."""
    with (
        scratch("syncagent-own-") as folder,
        Server(binaries(18), folder / "own", settings=SETTINGS) as server,
    ):
        yield server


def names(site: Member) -> list[str]:
    return [name for (name,) in site.execute("select name from item order by name")]


def test_a_failover_goes_on(own18: Server, server18: Server, tmp_path: Path) -> None:
    with fleet(tmp_path, TABLE, own18, server18) as (berlin, tokyo):
        standby = base_backup(own18, own18.data_dir.with_name("standby"), standby=True)
        try:
            standby.start()
            two = berlin.database.dsn.replace(
                f"127.0.0.1:{own18.port}", f"127.0.0.1:{standby.port},127.0.0.1:{own18.port}"
            )
            berlin.ask("init", "--dsn", two, "--name", "berlin", "--listen", berlin.address)
            berlin.start()
            berlin.ask("attach", "item")
            tokyo.join(berlin)
            tokyo.start()
            berlin.execute(INSERT, ("before",))
            tokyo.execute(INSERT, ("from tokyo",))
            said = berlin.verb("wait", "--converged")
            assert said.returncode == 0, said.stdout + said.stderr
            until(lambda: caught_up(own18, standby), "the standby has it all")

            own18.kill()
            promoted = Member("berlin", Database(standby, berlin.database.name), tmp_path)
            with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                connection.execute("select pg_promote()")
            promoted.execute(INSERT, ("after",))
            until(
                lambda: names(tokyo) == ["after", "before", "from tokyo"], "the same agent ships from there"
            )
            tokyo.execute(INSERT, ("late",))
            until(lambda: "late" in names(promoted), "and applies there")
            assert promoted.members() == {"berlin": (1, "voter"), "tokyo": (2, "learner")}
        finally:
            berlin.stop()
            standby.stop()


KILLED = 9
STEPS = (
    ("returning", "_readmit"),
    ("installation", "return_as"),
    ("PostgresCopier", "put"),
    ("joiner", "conclude"),
)


def killed(site: Member, owner: str, name: str) -> int:
    """Rejoin, and die right after this step; how the process ended."""
    program = f"""
import asyncio, inspect, os, sys
from syncagent import returning
from syncagent.services import joiner
from syncagent.storage import installation
from syncagent.storage.copier import PostgresCopier
from syncagent.cli.app import main
function = {owner}.{name}
if inspect.iscoroutinefunction(function):
    async def dying(*given, **named):
        await function(*given, **named)
        os._exit({KILLED})
else:
    def dying(*given, **named):
        function(*given, **named)
        os._exit({KILLED})
{owner}.{name} = dying
main(["rejoin", "--yes", "--home", sys.argv[1]])
"""
    return subprocess.run([sys.executable, "-c", program, str(site.home)], check=False, timeout=60).returncode


def wait_equal(*sites: Member) -> None:
    said = sites[0].verb("wait", "--converged", "--timeout", "60")
    assert said.returncode == 0, said.stdout + said.stderr
    for look in LOOKS:
        assert all(site.execute(look) == sites[0].execute(look) for site in sites[1:]), look


def settled(*sites: Member) -> bool:
    return not any(site.scalar("select sum(entries) from syncagent._entries()") for site in sites)


@pytest.mark.soak
def test_a_site_restored_from_a_backup_returns(
    own18: Server,
    server18: Server,
    server15: Server,
    tmp_path: Path,
    runs: Callable[[int, int], int],
) -> None:
    with fleet(tmp_path, TABLES, server18, own18, server15) as (berlin, tokyo, lima):
        berlin.init()
        berlin.start()
        for name in "abcdefgh":
            berlin.execute(INSERT, (name,))
        berlin.execute("insert into stock select 'c' || i, i from generate_series(1, 1000) i")
        berlin.ask("attach", "--all", "--derive-key", "--strategy", "lww-column")
        for site in (tokyo, lima):
            site.join(berlin)
            site.start()
        wait_equal(berlin, tokyo, lima)

        tokyo.stop()
        tokyo.execute(INSERT, ("logged at the backup, deleted later",))
        tokyo.execute(INSERT, ("logged at the backup",))
        backup = base_backup(own18, own18.data_dir.with_name("backup"))
        tokyo.start()
        wait_equal(berlin, tokyo, lima)
        berlin.execute(
            "delete from item where name in ('a', 'logged at the backup, deleted later'); update item set name = 'a' where name = 'b'"
        )
        berlin.execute("delete from stock where pieces <= 10")
        tokyo.execute("update stock set pieces = -pieces where pieces between 11 and 20")
        tokyo.execute(INSERT, ("shipped after the backup",))
        wait_equal(berlin, tokyo, lima)
        until(lambda: settled(berlin, tokyo, lima), "nobody remembers what was deleted")

        tokyo.stop(kill=True)
        restored(own18, backup)
        before = [tokyo.execute(look) for look in LOOKS]
        said = tokyo.refused("run")
        assert "this database is not where site tokyo has been" in said
        assert "syncagent rejoin" in said
        assert [tokyo.execute(look) for look in LOOKS] == before
        tokyo.execute(INSERT, ("written after the restore",))
        tokyo.execute(
            "update item set name = 'c at tokyo' where name = 'c'; delete from item where name = 'e'"
        )
        tokyo.execute("update stock set pieces = 0 where code = 'c1000'")
        berlin.execute(
            "update item set name = 'c at berlin' where name = 'c'; update item set name = 'd at berlin' where name = 'd'"
        )
        wait = berlin.verb("wait", "--converged", "--timeout", "1s")
        assert wait.returncode == 1

        before = [tokyo.execute(look) for look in LOOKS]
        survey = tokyo.ask("rejoin", "--dry-run")["survey"]
        assert {table["table"]: table["own"] for table in survey["tables"]} == {
            "public.item": 3,
            "public.stock": 1,
        }
        assert {table["table"]: table["extra"] for table in survey["tables"]} == {
            "public.item": 2,
            "public.stock": 10,
        }
        assert [tokyo.execute(look) for look in LOOKS] == before, "it only looked"
        assert berlin.members()["tokyo"][0] == 2

        for owner, function in STEPS[-runs(1, len(STEPS)) :]:
            assert killed(tokyo, owner, function) == KILLED, function
        assert "has not joined to the end" in tokyo.refused("run")
        tokyo.ask("rejoin", "--peer", "berlin", "--yes")
        tokyo.start()
        wait_equal(berlin, tokyo, lima)
        for site in (berlin, tokyo, lima):
            assert names(site) == sorted(
                [
                    "a",
                    "c at berlin",
                    "d at berlin",
                    "f",
                    "g",
                    "h",
                    "logged at the backup",
                    "shipped after the backup",
                    "written after the restore",
                ]
            )
            assert site.members()["tokyo"][0] == 4
            assert site.scalar("select pieces from stock where code = 'c1000'") == 0
            assert site.scalar("select count(*) from stock") == 990
        lost = "select losing_image ->> 'name' from syncagent.conflict_record where winning_image ->> 'name' = 'c at berlin'"
        assert tokyo.scalar(lost) == "c at tokyo"
        until(lambda: settled(berlin, tokyo, lima), "what is known of the old number settles, too")


@pytest.mark.soak
def test_a_restored_dump_returns(
    server18: Server, server15: Server, tmp_path: Path, runs: Callable[[int, int], int]
) -> None:
    """Of a site, whose share of serial numbers is another one then, and of a witness."""
    for _ in range(runs(0, 1)):
        with fleet(tmp_path, "", server18, server15, server18) as (berlin, tokyo, lima):
            for site in (berlin, tokyo):
                site.execute("create table ticket (id serial primary key, name text not null)")
            berlin.init()
            berlin.start()
            berlin.ask("attach", "ticket", "--derive-key", "--stride", "8")
            tokyo.join(berlin)
            lima.join(berlin, "--witness")
            for site in (tokyo, lima):
                site.start()
            write = "insert into ticket (name) values (%s)"
            for site in (berlin, tokyo):
                site.execute(write, ("before",))
            assert berlin.ask("wait", "--converged")["converged"]
            for site in (tokyo, lima):
                dumped(site.database, tmp_path / f"{site.name}.dump")
            tokyo.execute("delete from ticket where id = 2")
            berlin.execute(write, ("after the dump",))
            assert berlin.ask("wait", "--converged")["converged"]

            for node, site in ((4, lima), (5, tokyo)):
                site.stop()
                restored_dump(site.database, tmp_path / f"{site.name}.dump")
                assert "syncagent rejoin" in site.refused("run")
                site.ask("rejoin", "--yes")
                site.start()
                until(lambda site=site, node=node: berlin.members()[site.name][0] == node, "it is back")  # type: ignore[misc]
            assert berlin.scalar("select witness from syncagent.member where name = 'lima'")
            for site in (berlin, tokyo):
                site.execute(write, (f"{site.name} again",))
            assert berlin.ask("wait", "--converged")["converged"]
            look = "select id % 8, name from ticket order by name, id"
            assert tokyo.execute(look) == berlin.execute(look)
            assert tokyo.execute(look) == [
                (1, "after the dump"),
                (1, "before"),
                (1, "berlin again"),
                (5, "tokyo again"),
            ]


@pytest.mark.soak(only="a server that is set back")
def test_a_backup_from_before_a_strategy_changed_does_not_return(
    own18: Server, server18: Server, tmp_path: Path
) -> None:
    """What its versions say is merged in another way by now: it says so, and changes nothing; the others go on."""
    with fleet(tmp_path, TABLES, server18, own18) as (berlin, tokyo):
        berlin.init()
        berlin.start()
        berlin.ask("attach", "item", "--strategy", "lww-column")
        tokyo.join(berlin)
        tokyo.start()
        berlin.execute(INSERT, ("before",))
        assert berlin.ask("wait", "--converged")["converged"]
        tokyo.stop()
        backup = base_backup(own18, own18.data_dir.with_name("backup"))
        tokyo.start()
        assert berlin.ask("strategy", "item", "lww")["state"] == "done"
        tokyo.execute(INSERT, ("after",))
        assert berlin.ask("wait", "--converged")["converged"]

        tokyo.stop(kill=True)
        restored(own18, backup)
        assert "syncagent rejoin" in tokyo.refused("run")
        before = [tokyo.execute(look) for look in LOOKS]
        said = tokyo.refused("rejoin", "--yes")
        assert "public.item is merged in another way here than at the donor" in said
        assert "set the site back to a newer backup" in said
        assert [tokyo.execute(look) for look in LOOKS] == before
        berlin.execute(INSERT, ("later",))
        assert names(berlin) == ["after", "before", "later"]
