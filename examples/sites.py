"""One site: a PostgreSQL server of its own with the application's database, and syncagent beside it.

Invariant: syncagent is used as an operator would, by its command line and `config.toml`; the application's
roles, tables and connections are those it would have without it. `stop` leaves no process behind.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from psycopg import sql

from syncagent.embedded import Binaries, Server, free_port

STOP_SECONDS = 20
CHECK_SECONDS = 0.5


class SiteError(Exception):
    """syncagent refused or ended."""


class Site:
    def __init__(self, number: int, folder: Path, binaries: Binaries, database: str) -> None:
        self.number = number
        self.name = f"site{number}"
        self.port = free_port()
        self.database = database
        self.home = folder / self.name
        self.log = folder / f"{self.name}.log"
        self.server = Server(
            binaries, folder / f"{self.name}.postgres", settings={"log_min_messages": "warning"}
        )
        self._agent: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Of the administrator and of the agent."""
        return self.server.dsn(self.database)

    def start(self) -> None:
        """A running server with an empty database."""
        self.server.start()
        self.server.execute(sql.SQL("create database {}").format(sql.Identifier(self.database)))

    @property
    def listen(self) -> str:
        return f"127.0.0.1:{self.port}"

    def found(self) -> None:
        """The first site of a cluster, and its agent."""
        self.command("init", "--dsn", self.dsn, "--name", self.name, "--listen", self.listen)
        self.run()

    def attach(self, *tables: str) -> str:
        """Replicate tables, everywhere; what was answered."""
        return self.command("attach", *tables)

    def join(self, peer: "Site") -> None:
        """One more site of the peer's cluster, with a copy of the rows, and its agent."""
        os.environ["SYNCAGENT_TOKEN"] = str(peer.ask("invite", "--json")["token"])
        self.command(
            *("join", "--peer", peer.listen, "--dsn", self.dsn, "--name", self.name, "--listen", self.listen)
        )
        self.run()

    def run(self) -> None:
        """Start the agent, and wait until it can be asked."""
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "syncagent", "run", "--home", self.home],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we stop our agents in order
            )
        while self.ask("status", "--json")[0]["state"] != "running":
            self.check()

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

    def command(
        self, *arguments: str, check: Callable[[], None] = lambda: None, codes: Container[int] = (0,)
    ) -> str:
        """Run one verb on this site's home and return its answer; `check` may raise meanwhile."""
        return self._run(arguments, check, codes)[0]

    def told(self, *arguments: str, codes: Container[int] = (0,)) -> str:
        """What a person sees: the answer, and what is said beside it."""
        answer, talk = self._run(arguments, lambda: None, codes)
        return f"{answer}\n{talk}"

    def _run(
        self, arguments: Sequence[str], check: Callable[[], None], codes: Container[int]
    ) -> tuple[str, str]:
        command = [sys.executable, "-m", "syncagent", *arguments, "--home", str(self.home)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                answer, talk = communicate(process, check)
            finally:
                process.kill()  # does nothing to one that has ended
        if process.returncode not in codes:
            what = f"syncagent {arguments[0]} at {self.name} ended with exit code {process.returncode}"
            raise SiteError(f"{what}:\n{talk}{answer}".rstrip())
        return answer, talk

    def halt(self) -> None:
        """The agent, at once; the database and the application go on. `run` again, and the site is back."""
        if self._agent:
            self._agent.kill()
            self._agent.wait()
            self._agent = None

    def log_tail(self, lines: int = 20) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:]) or "(the agent was not started, or said nothing)"

    def stop(self) -> None:
        if self._agent and self._agent.poll() is None:
            self._agent.terminate()
            try:
                self._agent.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        self.server.stop()


def communicate(process: subprocess.Popen[str], check: Callable[[], None]) -> tuple[str, str]:
    """What a process answers and says until it ends; `check` may raise meanwhile."""
    while True:
        try:
            return process.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            check()
