"""syncagent as an operator runs it: two homes made by its verbs, two agents as processes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pair import Stage
from syncagent.embedded import free_port
from syncagent.errors import SyncagentError
from syncagent.storage.commands import site_of
from syncagent.storage.requests import ask

_STOP_SECONDS = 20
_ANSWER_SECONDS = 30


class Ours:
    name = "syncagent"

    def __init__(self, listen: int | None = None, dialled: int | None = None) -> None:
        """`listen`: port of the origin's agent; `dialled`: where the receiver finds it, if not there. Then the
        origin does not dial."""
        self._listen, self._dialled = listen or free_port(), dialled
        self._agents: list[subprocess.Popen[bytes]] = []

    def start(self, stage: Stage) -> None:
        self._stage = stage
        self._homes = [stage.folder / name for name in "ab"]
        (dsn_a, dsn_b), port = stage.dsns, self._listen
        here = f"127.0.0.1:{port}"
        _ended(_begun(self._homes[0], "init", "--dsn", dsn_a, "--name", "a", "--listen", here))
        self._agents = [self._run(self._homes[0])]
        self._await_agent(self._homes[0])
        token = _ended(_begun(self._homes[0], "invite"))["token"]
        apart = self._dialled is not None
        joining = _begun(
            self._homes[1],
            *(
                "join",
                "--peer",
                f"127.0.0.1:{self._dialled}" if apart else here,
                "--dsn",
                dsn_b,
                "--name",
                "b",
            ),
            *("--listen", "none" if apart else f"127.0.0.1:{free_port()}"),
            SYNCAGENT_TOKEN=token,
        )
        _ended(joining)
        attach = ("attach", "orders", "--existing", "keep")
        self._both(attach, attach)
        self._agents.append(self._run(self._homes[1]))
        stage.check = self._check
        for backwards in (True, False):
            stage.await_row(stage.mark(backwards=backwards), backwards=backwards)

    def _both(self, *verbs: tuple[str, ...]) -> list[dict[str, Any]]:
        """One verb at each site, at once; their answers."""
        running = [_begun(home, *verb) for verb, home in zip(verbs, self._homes, strict=True)]
        return [_ended(process) for process in running]

    def _await_agent(self, home: Path) -> None:
        """Until it can be asked."""
        while _ended(_begun(home, "status"))[0]["state"] != "running":
            self._check()

    def _run(self, home: Path) -> subprocess.Popen[bytes]:
        with (home / "agent.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "syncagent", "run", "--home", home],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _check(self) -> None:
        for agent, home in zip(self._agents, self._homes, strict=False):
            if agent.poll() is not None:
                raise SyncagentError("an agent has ended", detail=(home / "agent.log").read_text()[-2000:])

    def pause(self) -> None:
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")

    def _ask(self, verb: str) -> None:
        with site_of(self._stage.dsns[1]) as connection:
            ask(connection, verb, {"peers": []}, seconds=_ANSWER_SECONDS)

    def processes(self) -> Sequence[int]:
        return [agent.pid for agent in self._agents]

    def stop(self) -> None:
        for agent in self._agents:
            agent.terminate()
        for agent in self._agents:
            try:
                agent.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        self._agents = []


def _begun(home: Path, *verb: str, **environment: str) -> "subprocess.Popen[str]":
    """One verb, as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "syncagent", *verb, "--home", home, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def _ended(process: "subprocess.Popen[str]") -> Any:
    """What it answered."""
    answer, talk = process.communicate()
    if process.returncode:
        raise SyncagentError("syncagent refused to be measured", detail=talk.strip())
    return json.loads(answer)
