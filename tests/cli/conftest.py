"""The command line, run in this process, and sites to run it on."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from syncagent.cli.app import main
from syncagent.embedded import Server
from tests.support import nursery
from tests.support.databases import Database, fresh_database
from tests.support.postgres import Servers


@dataclass(frozen=True)
class Said:
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Cli = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """`cli("status", "--json")`: one verb, with an environment of its own."""
    for name in [name for name in os.environ if name.startswith("SYNCAGENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        code = exit_.value.code
        return Said(code if isinstance(code, int) else 0, said.out, said.err)

    return run


@dataclass(frozen=True)
class Site:
    """A database that was made a site, and its home."""

    database: Database
    home: Path
    cli: Cli

    def __call__(self, *arguments: object) -> Said:
        return self.cli(*arguments, "--home", self.home)

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(statement, parameters or None)


@dataclass(frozen=True)
class Mould:
    """A site to be copied."""

    database: Database
    home: Path


@pytest.fixture(autouse=True)
def talk() -> Iterator[None]:
    """A verb that was run in this process has left its log at an output that is closed by now."""
    yield
    structlog.reset_defaults()


def _needed(database: Database, home: Path) -> tuple[str, ...]:
    listen = ("--listen", "127.0.0.1:7400")
    return ("init", "--dsn", database.dsn, "--name", "paris", *listen, "--home", str(home))


def init(cli: Cli, database: Database, home: Path, *more: object) -> Said:
    return cli(*_needed(database, home), *more)


@pytest.fixture
def make_site(cli: Cli, tmp_path: Path) -> Callable[..., Site]:
    """`make_site(database, "--name", "tokyo")`: a database becomes a site."""
    homes = iter(range(1, 10))

    def make(database: Database, *options: object) -> Site:
        home = tmp_path / f"home{next(homes)}"
        assert init(cli, database, home, *options).code == 0
        return Site(database, home, cli)

    return make


on_each_version = pytest.mark.usefixtures("server")
"""For what asks the catalogs in ways that differ; the rest of the command line is the same on all."""
on_each_of_the_matrix = pytest.mark.usefixtures("matrix_server")
"""The same, where `make test` is content with the newest version."""


@pytest.fixture
def asked_server(request: pytest.FixtureRequest) -> Server:
    """The one of the version that the test is run on."""
    asked = (name for name in ("server", "matrix_server") if name in request.fixturenames)
    server: Server = request.getfixturevalue(next(asked, "server18"))
    return server


@pytest.fixture
def database(asked_server: Server, make_database: Callable[..., Database]) -> Database:
    """A fresh, empty database."""
    return make_database(asked_server)


@pytest.fixture(scope="session")
def moulds(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Server], Mould]]:
    """What `init` makes of an empty database, once on each of the servers, which outlive it; to be copied."""
    made: dict[Path, Mould] = {}
    with ExitStack() as stack:

        def mould(server: Server) -> Mould:
            if server.data_dir not in made:
                database = stack.enter_context(fresh_database(server))
                home = tmp_path_factory.mktemp("mould") / "home"
                done = nursery.run(*_needed(database, home))
                assert done.returncode == 0, done.stderr
                made[server.data_dir] = Mould(database, home)
            return made[server.data_dir]

        yield mould


@pytest.fixture
def site(
    cli: Cli,
    asked_server: Server,
    make_database: Callable[..., Database],
    moulds: Callable[[Server], Mould],
    tmp_path: Path,
) -> Site:
    """Site paris, node 1, without tables: a copy of what `init` made."""
    mould = moulds(asked_server)
    database, home = make_database(asked_server, mould.database.name), tmp_path / "home0"
    shutil.copytree(mould.home, home)
    settings = home / "config.toml"
    settings.write_text(settings.read_text().replace(mould.database.dsn, database.dsn))
    return Site(database, home, cli)
