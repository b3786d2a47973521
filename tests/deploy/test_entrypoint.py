"""What `docker compose up` does, done without a container: the same scripts, on three servers.

The passwords of `secrets.sh`, databases and roles as `database.sh` makes them, and the agents that `entrypoint.sh` becomes.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from syncagent.embedded import Server, free_port, scratch
from tests.support.databases import Database
from tests.support.postgres import SETTINGS, Servers, binaries
from tests.support.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = ("berlin", "tokyo", "lima")
_CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("SYNCAGENT_", "SITE_", "PG"))
}


def script(name: str, environment: dict[str, str], *arguments: str | Path) -> None:
    done = subprocess.run(
        ["sh", DEPLOY / name, *arguments],
        env=_CLEAN | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Container:
    """One site's database, home and process."""

    def __init__(self, name: str, server: Server, folder: Path, more: dict[str, str]) -> None:
        self.name, self.server, self.home = name, server, folder / name
        self.database = Database(server, "shop")
        self.address, self.log = f"127.0.0.1:{free_port()}", folder / f"{name}.log"
        self.secrets = folder / "secrets" / name
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None

    def make_database(self) -> None:
        """As the image of PostgreSQL does it."""
        tools = self.server.binaries.tool("psql").parent
        script(
            "compose/database.sh",
            {
                "PATH": f"{tools}:{os.environ['PATH']}",
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.server.port),
                "PGPASSWORD": self.server.password,
                "SITE_NAME": self.name,
                "AGENT_PASSWORD_FILE": str(self.secrets / "database" / "agent"),
            },
        )

    def drop_database(self) -> None:
        self.database.leave()
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute("drop database if exists shop with (force)")
            for role in ("syncagent", "shop_owner"):
                if connection.execute("select from pg_roles where rolname = %s", (role,)).rowcount:
                    connection.execute(f"drop owned by {role}".encode())
                    connection.execute(f"drop role {role}".encode())

    def start(self) -> None:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SYNCAGENT_HOME": str(self.home),
            "SITE_NAME": self.name,
            "SITE_DSN": f"postgresql://syncagent@127.0.0.1:{self.server.port}/shop",
            "SITE_PASSWORD_FILE": str(self.secrets / "agent" / "password"),
            "SITE_LISTEN": self.address,
            "SITE_ADVERTISE": self.address,
            **self._more,
        }
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                ["sh", DEPLOY / "entrypoint.sh", "--json"],
                env=_CLEAN | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> int:
        """As a container is stopped: SIGTERM to its first process."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def kill(self) -> None:
        """All of it at once, as if the host had lost power."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait(20)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        return self.database.execute(statement)

    def probe(self) -> int:
        """As the image's health check asks."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SYNCAGENT_HOME": str(self.home),
        }
        return subprocess.run(
            [sys.executable, DEPLOY / "probe.py"], env=_CLEAN | environment, capture_output=True, check=False
        ).returncode

    def processes(self) -> Iterator[Path]:
        """The folders in /proc of its processes."""
        assert self._process is not None
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(folder.name)) == self._process.pid:
                    yield folder
            except ProcessLookupError:
                continue


@pytest.fixture
def containers(servers: Servers, tmp_path: Path) -> Iterator[list[Container]]:
    owner = f"{os.geteuid()}:{os.getegid()}"
    script("compose/secrets.sh", {}, tmp_path / "secrets", owner, owner)
    invitations = tmp_path / "invitations"
    invitations.mkdir()
    with ExitStack() as stack:
        third = Server(
            binaries(18), stack.enter_context(scratch("syncagent-third-")) / "data", settings=SETTINGS
        )
        third.start()
        stack.callback(third.kill)
        made: list[Container] = []
        for name, server in zip(NAMES, (servers.of(18), servers.of(15), third), strict=True):
            more = {"SITE_INVITATIONS": str(invitations)}
            more |= {"SITE_PEER": made[0].address} if made else {"SITE_TABLES": "shop.item"}
            container = Container(name, server, tmp_path, more)
            stack.callback(container.drop_database)
            stack.callback(container.kill)
            container.make_database()
            made.append(container)
        yield made
        for container in made:
            sys.stdout.write(f"---- log of {container.name}\n{container.log.read_text()[-3000:]}\n")


def joined(container: Container) -> bool:
    """This site's agent runs, is linked with the two others, and has the table."""
    if '"event": "running"' not in container.log.read_text():
        return False
    try:
        (row,) = container.execute(
            "select (select count(*) filter (where linked) from syncagent.status) = 2"
            " and exists (select from syncagent.replicated_table)"
        )
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return False
    return bool(row[0])


def test_three_sites_come_up_joined_and_again(containers: list[Container], tmp_path: Path) -> None:
    berlin, tokyo, lima = containers
    for container in (lima, tokyo, berlin):  # nobody may rely on an order
        container.start()
    until((lima.home / "joining.json").exists, "lima is being admitted", 90)
    assert lima.probe() == 1
    lima.kill()
    lima.start()
    for container in containers:
        until(lambda container=container: joined(container), f"{container.name} is joined", 120)  # type: ignore[misc]
    tell_no_secret(containers, tmp_path)
    assert berlin.probe() == 0

    for number, container in enumerate(containers):
        container.execute(
            f"insert into shop.item select syncagent.uuid7(), 'item of {container.name}', {number}"
        )
    all_have(containers, 3)

    for container in (berlin, lima):
        assert container.stop() == 0
        until(lambda container=container: not [*container.processes()], "nothing of it is left")  # type: ignore[misc]
    assert berlin.probe() == 1
    logs = [container.log.read_text() for container in containers]
    for container in (berlin, lima):
        container.start()
    berlin.execute("insert into shop.item select syncagent.uuid7(), 'after', 4")
    all_have(containers, 4)
    for container, before in zip(containers, logs, strict=True):
        assert "entrypoint:" not in container.log.read_text()[len(before) :]
    assert berlin.execute("select count(*) from syncagent.member where state = 'member'") == [(3,)]


def all_have(containers: list[Container], rows: int) -> None:
    for container in containers:
        until(
            lambda container=container: container.execute("select count(*) from shop.item") == [(rows,)],  # type: ignore[misc]
            f"{container.name} has {rows} rows",
            90,
        )


def tell_no_secret(containers: list[Container], folder: Path) -> None:
    """Neither environments, command lines nor logs do; and no invitation is left over."""
    secrets = {
        (folder / "secrets" / container.name / "agent" / "password").read_text().strip()
        for container in containers
    }
    assert len(secrets) == len(containers)
    for container in containers:
        told = [container.log.read_bytes(), (container.home / "config.toml").read_bytes()]
        running = list(container.processes())
        assert running
        for process in running:
            with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended tells nothing
                told += [(process / "environ").read_bytes(), (process / "cmdline").read_bytes()]
        assert len(told) > 2
        for text in told:
            assert not re.search(rb"sa1-", text)
            assert not any(secret.encode() in text for secret in secrets)
        assert (container.home / "pgpass").stat().st_mode & 0o077 == 0
    assert list((folder / "invitations").iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "SITE_NAME is not set"),
        ({"SITE_NAME": "oslo"}, "SITE_DSN is not set"),
        ({"SITE_NAME": "oslo", "SITE_DSN": "postgresql://a:secret@db/x"}, "SITE_DSN holds a password"),
        (
            {"SITE_NAME": "oslo", "SITE_DSN": "postgresql://a@db/x", "SITE_PASSWORD_FILE": "/nowhere"},
            "/nowhere cannot be read",
        ),
    ],
)
def test_what_is_missing_is_said(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", DEPLOY / "entrypoint.sh"],
        env=_CLEAN | environment | {"SYNCAGENT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []
