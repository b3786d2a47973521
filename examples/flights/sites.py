"""One site: a PostgreSQL server of its own with the application's database, and syncagent beside it.

Invariant: syncagent is used as an operator would, by its command line and `config.toml`; the application's
role, tables and connections are those it would have without it. `stop` leaves no process behind.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg import sql
from sqlalchemy import Engine

from syncagent.embedded import Binaries, Server, free_port

from . import database
from .models import TABLES

DATABASE = "flights"
STOP_SECONDS = 20
CHECK_SECONDS = 0.5


class SiteError(Exception):
    """syncagent refused or ended."""


class Site:
    def __init__(self, number: int, folder: Path, binaries: Binaries) -> None:
        self.number = number
        self.name = f"site{number}"
        self.port = free_port()
        self.home = folder / self.name
        self.log = folder / f"{self.name}.log"
        self.server = Server(
            binaries, folder / f"{self.name}.postgres", settings={"log_min_messages": "warning"}
        )
        self._agent: subprocess.Popen[bytes] | None = None
        self._engines: list[Engine] = []

    @property
    def dsn(self) -> str:
        """Of the owner of the database: the agent's."""
        return self.server.dsn(DATABASE)

    def start(self) -> None:
        """A running server with the empty tables of the application, made by the application."""
        self.server.start()
        self.server.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
        for role in (database.OWNER, database.APP):
            self.server.create_role(role)
        administrator = database.engine(self.server.dsn(DATABASE), "administrator")
        database.create(administrator)
        administrator.dispose()

    def engine(self, office: str, isolation: str = "READ COMMITTED") -> Engine:
        """Connections of the application's role."""
        engine = database.engine(self.server.dsn(DATABASE, database.APP), office, isolation)
        self._engines.append(engine)
        return engine

    @property
    def listen(self) -> str:
        return f"127.0.0.1:{self.port}"

    def found(self) -> None:
        """The first site of a cluster, and its agent."""
        self.command("init", "--dsn", self.dsn, "--name", self.name, "--listen", self.listen)
        self.run()

    def invite(self) -> str:
        """A token; the agent may be just starting."""
        while self.ask("status", "--json")[0]["state"] != "running":
            self.check()
        return str(self.ask("invite", "--json")["token"])

    def join(self, peer: "Site") -> None:
        """One more site of the peer's cluster, and its agent."""
        os.environ["SYNCAGENT_TOKEN"] = peer.invite()
        self.command(
            *("join", "--peer", peer.listen, "--dsn", self.dsn, "--name", self.name, "--listen", self.listen)
        )
        self.run()

    def attach(self) -> None:
        self.command("attach", *TABLES)

    def run(self) -> None:
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "syncagent", "run", "--home", self.home],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we stop our agents in order
            )

    def check(self) -> None:
        """Raise if the agent has ended by itself."""
        if self._agent and self._agent.poll() is not None:
            raise SiteError(f"the agent of {self.name} ended with exit code {self._agent.returncode}")

    def wait_converged(self, seconds: int, check: Callable[[], None]) -> None:
        self.command("wait", "--converged", "--timeout", str(seconds), check=check)

    def conflicts(self) -> int:
        return len(self.ask("conflicts", "list", "--json"))

    def ask(self, *arguments: str) -> Any:
        return json.loads(self.command(*arguments))

    def command(self, *arguments: str, check: Callable[[], None] = lambda: None) -> str:
        """Run one verb on this site's home and return its answer; `check` may raise meanwhile."""
        command = [sys.executable, "-m", "syncagent", *arguments, "--home", str(self.home)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                answer, talk = _communicate(process, check)
            finally:
                process.kill()  # does nothing to one that has ended
        if process.returncode:
            what = f"syncagent {arguments[0]} at {self.name} ended with exit code {process.returncode}"
            raise SiteError(f"{what}:\n{talk}{answer}".rstrip())
        return answer

    def log_tail(self, lines: int = 20) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:]) or "(the agent was not started, or said nothing)"

    def stop(self) -> None:
        for engine in self._engines:
            engine.dispose()
        if self._agent and self._agent.poll() is None:
            self._agent.terminate()
            try:
                self._agent.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        self.server.stop()


def _communicate(process: subprocess.Popen[str], check: Callable[[], None]) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            check()
