"""What becomes of a site whose database changed under it: a failover goes on by itself, a restore comes back by `rejoin`."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from syncagent.embedded import Server, scratch
from tests.support.backups import base_backup, caught_up
from tests.support.databases import Database
from tests.support.fleet import Member, fleet
from tests.support.postgres import SETTINGS, binaries
from tests.support.waiting import until

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
