"""The command line, run in this process, and sites to run it on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from syncagent.cli.app import main
from tests.support.databases import Database


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


def init(cli: Cli, database: Database, home: Path, *more: object) -> Said:
    needed = ("--dsn", database.dsn, "--name", "paris", "--listen", "127.0.0.1:7400", "--home", home)
    return cli("init", *needed, *more)


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
def database(request: pytest.FixtureRequest, make_database: Callable[..., Database]) -> Database:
    """A fresh, empty database."""
    asked = (name for name in ("server", "matrix_server") if name in request.fixturenames)
    return make_database(request.getfixturevalue(next(asked, "server18")))


@pytest.fixture
def site(database: Database, make_site: Callable[..., Site]) -> Site:
    """Site paris, node 1, without tables."""
    return make_site(database)
