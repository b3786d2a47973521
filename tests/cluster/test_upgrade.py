"""An upgrade, site by site, from what an older version has left: the application writes on, both versions replicate, nothing is lost."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from syncagent import settings as configuration
from syncagent.embedded import free_port
from syncagent.storage import drift, migrations, tables
from syncagent.storage.commands import connected
from syncagent.transport.tls import Credentials
from tests.support import releases
from tests.support.fleet import Member, fleet
from tests.support.founding import found_together
from tests.support.postgres import Servers
from tests.support.waiting import until


class Application:
    """Inserts a row every few milliseconds, and notes how long each took."""

    def __init__(self, member: Member) -> None:
        self._dsn = member.database.dsn
        self._stop = threading.Event()
        self.slowest, self.rows = 0.0, 0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self._stop.wait(0.01):
                    began = time.monotonic()
                    connection.execute(
                        "insert into item values (syncagent.uuid7(), 'meanwhile ' || %s, 1)", (self.rows,)
                    )
                    self.slowest, self.rows = max(self.slowest, time.monotonic() - began), self.rows + 1
        except psycopg.Error as error:
            self.error = error

    def __enter__(self) -> "Application":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def settle(member: Member, kept: Path) -> tuple[str, str, str]:
    """A home for a database that is a site, with settings as they were kept: dsn, address, certificate."""
    member.home.mkdir(mode=0o700)
    member.address = f"127.0.0.1:{free_port()}"
    text = kept.read_text()
    for there, here in ((releases.DSN, member.database.dsn), (releases.LISTEN, member.address)):
        assert there in text
        text = text.replace(there, here)
    (member.home / "config.toml").write_text(text)
    credentials = Credentials.provide(member.home, configuration.load(member.home).name)
    return member.database.dsn, member.address, credentials.sha256


@pytest.fixture
def sites(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[list[Member]]:
    """Two sites as a release has left them: the one that the test names, or the oldest. Until there is one, of the present revision."""
    folder = releases.KEPT
    if not releases.released():
        folder = tmp_path / "kept"
        folder.mkdir()
        releases.keep(folder, "0.0.0", servers.of(releases.OLDEST))
    revision = getattr(request, "param", releases.released(folder)[0])
    with fleet(tmp_path, "", servers.of(18), servers.of(15)) as members:
        for node, member in enumerate(members, 1):
            releases.restore(releases.dump_of(folder, revision, node), member.database)
            with connected(member.database.dsn) as connection, connection.transaction():
                migrations.upgrade(connection)
            with connected(member.database.dsn) as connection:
                tables.regenerate(connection, patience=5, on_wait=lambda _: None)
                assert drift.drift(connection) == []
        found_together(
            [
                settle(member, releases.config_of(folder, revision, node))
                for node, member in enumerate(members, 1)
            ]
        )
        yield members


def rows(member: Member) -> list[tuple[Any, ...]]:
    return member.execute("select * from item order by id")


def equal(members: list[Member]) -> None:
    until(lambda: rows(members[0]) == rows(members[1]), "both have the same rows")


def goes_on(members: list[Member]) -> None:
    """What no agent had seen at the release, they see now."""
    for member in members:
        member.start()
    equal(members)
    assert len(rows(members[0])) == releases.ROWS + 2 - 2
    assert members[0].scalar("select count(*) from syncagent.conflict where kind = 'update/update'") == 1


def test_one_site_after_the_other(sites: list[Member], tmp_path: Path) -> None:
    berlin, tokyo = sites
    upgraded = {"PYTHONPATH": str(releases.next_version(tmp_path / "next"))}
    newer = f"{int(migrations.newest()) + 1:04}"
    goes_on(sites)

    berlin.environment = upgraded
    assert "an agent of the version before is running" in berlin.refused("db", "upgrade")
    with Application(berlin) as application:
        berlin.stop()
        done = berlin.ask("db", "upgrade")
        assert done == {"before": migrations.newest(), "version": newer, "tables": 1}
        berlin.environment = {}
        assert "newer than this agent" in berlin.refused("status")
        berlin.environment = upgraded
        berlin.start()
        until(lambda: application.rows > 20 or application.error, "the application writes on")
    assert application.error is None
    assert application.slowest < 5
    assert berlin.ask("db", "check")["findings"] == []

    # One version apart, both ways.
    tokyo.execute("insert into item values (syncagent.uuid7(), 'to the newer one', 1)")
    tokyo.execute("update item set price = 3000 where name = 'item 3'")
    equal(sites)
    assert berlin.scalar("select price from item where name = 'item 3'") == 3000
    assert application.rows == tokyo.scalar("select count(*) from item where name like 'meanwhile%%'")
    agents = {member.name: member.scalar("select version from syncagent.agent_state") for member in sites}
    assert agents["berlin"].startswith("99.")
    assert not agents["tokyo"].startswith("99.")
    assert berlin.verb("verify").returncode == 0

    # A change of the schema is carried by both, whichever is asked.
    file = tmp_path / "change.sql"
    for asked, text in (
        (tokyo, "alter table item add column size int not null default 7"),
        (
            berlin,
            "alter table item add constraint sized check (size > 0); create index item_size on item (size)",
        ),
    ):
        file.write_text(text)
        assert asked.ask("schema", "apply", str(file))["state"] == "done"
    for member in sites:
        member.execute("insert into item (id, name, price, size) values (syncagent.uuid7(), 'sized', 1, 8)")
    equal(sites)
    assert len({member.scalar("select schema_epoch from syncagent.local_site") for member in sites}) == 1

    tokyo.stop()
    tokyo.environment = upgraded
    tokyo.ask("db", "upgrade")
    tokyo.start()
    tokyo.execute("delete from item where name = 'item 4'")
    equal(sites)


@pytest.mark.parametrize("sites", releases.released()[1:], indirect=True)
def test_each_later_release_is_upgraded_from(sites: list[Member]) -> None:
    """From the oldest one the test above goes."""
    goes_on(sites)
    sites[1].execute("delete from item where name = 'item 4'")
    equal(sites)


def test_what_is_released_is_kept() -> None:
    """What it left is there, so that the way from it to the present is tried for ever; and its SQL is what it was."""
    kept = releases.releases()
    remedy = "make release, at that release"
    assert releases.published() | tagged() <= {release.version for release in kept}, remedy
    for release in kept:
        assert releases.digest(release.revision) == release.sha256, f"revision {release.revision} is released"
        for node in releases.SITES:
            assert releases.dump_of(releases.KEPT, release.revision, node).exists(), remedy
            assert releases.config_of(releases.KEPT, release.revision, node).exists(), remedy
    assert set(migrations.revisions()[:-1]) <= set(releases.released()), "one revision a release"


def tagged() -> set[str]:
    """Versions that have a tag in this repository, if it is one."""
    done = subprocess.run(
        ["git", "tag", "--list", "v[0-9]*"], cwd=releases.ROOT, capture_output=True, text=True, check=False
    )
    return {tag.removeprefix("v") for tag in done.stdout.split()}
