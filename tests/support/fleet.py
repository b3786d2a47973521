"""Sites as an operator makes them, from nothing, with `init`, `invite`, `join` and `run`.

Where a test is about something else, `support.cluster` makes whole clusters in a second.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncagent.embedded import Server, free_port
from tests.support import nursery
from tests.support.databases import Database, fresh_database
from tests.support.waiting import until


class Member:
    """A database, a home to be, and an agent when it runs."""

    def __init__(self, name: str, database: Database, folder: Path) -> None:
        self.name, self.database = name, database
        self.home, self.log = folder / name, folder / f"{name}.log"
        self.address = f"127.0.0.1:{free_port()}"
        self.environment: dict[str, str] = {}
        """Of its verbs and its agent, beside that of the test. It may name another version of syncagent: what has one is an
        interpreter of its own."""
        self._agent: nursery.Process | subprocess.Popen[bytes] | None = None

    def verb(self, *arguments: str, token: str | None = None) -> "subprocess.CompletedProcess[str]":
        """How it ended, whatever it said."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNCAGENT_")}
        environment |= {"SYNCAGENT_TOKEN": token} if token else {}
        words = (*arguments, "--home", str(self.home))
        if not self.environment:
            return nursery.run(*words, environment=environment)
        return subprocess.run(
            [sys.executable, "-m", "syncagent", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment | self.environment,
        )

    def ask(self, *arguments: str, token: str | None = None) -> Any:
        """What it answered; it must have done what it was told."""
        done = self.verb(*arguments, "--json", token=token)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    def refused(self, *arguments: str, token: str | None = None) -> str:
        """What it said; it must have refused, and told a way on."""
        done = self.verb(*arguments, token=token)
        assert done.returncode == 1, done.stderr + done.stdout
        assert "hint: " in done.stderr
        assert token is None or token not in done.stderr
        return done.stderr

    # ---- a life

    def init(self) -> None:
        self.ask("init", "--dsn", self.database.dsn, "--name", self.name, "--listen", self.address)

    def joining(self, peer: "Member") -> tuple[str, ...]:
        """The command, without the token."""
        return (
            *("join", "--peer", peer.address, "--dsn", self.database.dsn, "--name", self.name),
            *("--listen", self.address),
        )

    def join(self, peer: "Member", *how: str) -> None:
        """`how`: what the invitation says of it, as `--witness`."""
        self.ask(*self.joining(peer), token=peer.ask("invite", *how)["token"])

    def start(self, *, as_json: bool = True) -> None:
        with self.log.open("ab") as file:
            words = ("run", "--home", str(self.home), *["--json"] * as_json)
            if self.environment:
                self._agent = subprocess.Popen(
                    [sys.executable, "-m", "syncagent", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self.environment,
                )
            else:
                self._agent = nursery.start(*words, out=file)
        until(
            lambda: self.scalar("select syncagent._agent_runs()") or self.ended(), f"the agent of {self.name}"
        )

    def ended(self) -> bool:
        assert self._agent is not None
        assert self._agent.poll() is None, f"the agent of {self.name} ended:\n{self.log.read_text()[-3000:]}"
        return False

    def exit_code(self) -> int:
        """Of an agent that is about to end by itself."""
        assert self._agent is not None
        agent, self._agent = self._agent, None
        return agent.wait(30)

    def stop(self, *, kill: bool = False) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.kill() if kill else agent.terminate()
            agent.wait(20)

    # ---- looking

    def execute(self, statement: str, parameters: tuple[Any, ...] | None = None) -> list[tuple[Any, ...]]:
        return self.database.execute(statement, parameters)

    def scalar(self, query: str, parameters: tuple[Any, ...] | None = None) -> Any:
        return self.execute(query, parameters)[0][0]

    def members(self) -> dict[str, tuple[int, str]]:
        """Name, number and role of every site, as this one knows them."""
        return {
            name: (node, role)
            for name, node, role in self.execute("select name, node, role from syncagent.site")
        }

    @property
    def leader(self) -> str | None:
        found = self.execute("select name from syncagent.site where leads")
        return str(found[0][0]) if found else None


@contextmanager
def fleet(folder: Path, schema: str, *servers: Server) -> Iterator[list[Member]]:
    """One database with this schema on each server; no sites yet."""
    names = ("berlin", "tokyo", "lima", "oslo", "cairo")
    members: list[Member] = []
    open_: list[Any] = []
    try:
        for name, server in zip(names, servers, strict=False):
            server.start()
            context = fresh_database(server)
            database = context.__enter__()
            open_.append(context)
            if schema:
                database.execute(schema)
            members.append(Member(name, database, folder))
        yield members
    finally:
        for member in members:
            member.stop()
            if member.log.exists():
                sys.stdout.write(f"---- log of {member.name}\n{member.log.read_text()[-3000:]}\n")
        for context in reversed(open_):
            context.__exit__(None, None, None)
