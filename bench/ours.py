"""syncagent as an operator runs it: two homes made by its verbs, two agents as processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from bench.pair import Stage
from syncagent.embedded import free_port
from syncagent.errors import SyncagentError
from syncagent.storage.commands import site_of
from syncagent.storage.requests import ask

_STOP_SECONDS = 20
_ANSWER_SECONDS = 30


class Member:
    """One site: a home made by the verbs, an agent as a process."""

    def __init__(self, home: Path, dsn: str, name: str, listen: int | None = None) -> None:
        self.home, self.dsn, self.name = home, dsn, name
        self.port = listen or free_port()
        self.agent: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def verb(self, *verb: str) -> Any:
        """What it answered."""
        return ended(begun(self.home, *verb))

    def init(self) -> None:
        self.verb("init", "--dsn", self.dsn, "--name", self.name, "--listen", self.address)

    def run(self) -> None:
        with (self.home / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "syncagent", "run", "--home", self.home],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_agent(self) -> None:
        """Until it can be asked."""
        while self.verb("status")[0]["state"] != "running":
            self.check()

    def check(self) -> None:
        """Raises if the agent has ended."""
        if self.agent is None or self.agent.poll() is not None:
            raise SyncagentError("an agent has ended", detail=(self.home / "agent.log").read_text()[-2000:])

    def stop(self) -> None:
        if self.agent is None:
            return
        self.agent.terminate()
        try:
            self.agent.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            self.agent.wait()
        self.agent = None


class Ours:
    name = "syncagent"

    def __init__(
        self,
        listen: int | None = None,
        dialled: int | None = None,
        tables: Sequence[str] = (),
        strategy: Sequence[str] = ("lww",),
        prepare: Callable[[psycopg.Connection], None] = lambda _: None,
    ) -> None:
        """`listen`: port of the origin's agent; `dialled`: where the receiver finds it, if not there. Then the
        origin does not dial. `tables` are attached beside the one that is measured. `strategy`: as it is typed.
        `prepare`: what each database gets before."""
        self._listen, self._dialled, self._tables = listen, dialled, tables
        self._strategy, self._prepare = strategy, prepare
        self._members: list[Member] = []

    def start(self, stage: Stage) -> None:
        self._stage = stage
        for site in (stage.a, stage.b):
            self._prepare(site)
        a = Member(stage.folder / "a", stage.dsns[0], "a", self._listen)
        b = Member(stage.folder / "b", stage.dsns[1], "b")
        self._members = [a]
        a.init()
        a.run()
        a.await_agent()
        apart = self._dialled is not None
        joining = begun(
            b.home,
            *("join", "--peer", f"127.0.0.1:{self._dialled}" if apart else a.address, "--dsn", b.dsn),
            *("--name", "b", "--listen", "none" if apart else b.address),
            SYNCAGENT_TOKEN=a.verb("invite")["token"],
        )
        ended(joining)
        self._members.append(b)
        b.run()
        b.await_agent()
        a.verb("attach", "orders", *self._tables, "--existing", "keep", "--strategy", *self._strategy)
        stage.check = self._check
        for backwards in (True, False):
            stage.await_row(stage.mark(backwards=backwards), backwards=backwards)

    def _check(self) -> None:
        for member in self._members:
            member.check()

    def pause(self, site: int = 1) -> None:
        self._ask("pause", site)

    def resume(self, site: int = 1) -> None:
        self._ask("resume", site)

    def _ask(self, verb: str, site: int) -> None:
        with site_of(self._stage.dsns[site]) as connection:
            ask(connection, verb, {"peers": []}, seconds=_ANSWER_SECONDS)

    def member(self, site: int) -> Member:
        """The origin is 0, the receiver 1."""
        return self._members[site]

    def processes(self) -> Sequence[int]:
        return [member.agent.pid for member in self._members if member.agent]

    def stop(self) -> None:
        for member in self._members:
            member.stop()
        self._members = []


def begun(home: Path, *verb: str, **environment: str) -> "subprocess.Popen[str]":
    """One verb, as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "syncagent", *verb, "--home", home, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def ended(process: "subprocess.Popen[str]") -> Any:
    """What it answered."""
    answer, talk = process.communicate()
    if process.returncode:
        raise SyncagentError("syncagent refused to be measured", detail=talk.strip())
    return json.loads(answer)
