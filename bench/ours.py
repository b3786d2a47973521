"""syncagent as an operator runs it: two homes made by its verbs, two agents as processes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bench.pair import Stage
from syncagent.core.membership import Peer
from syncagent.embedded import free_port
from syncagent.errors import SyncagentError
from syncagent.settings import peer_entry
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
        ports = self._listen, free_port()
        said = self._both(
            *(
                ("init", "--dsn", dsn, "--name", name, "--node", str(node), "--listen", f"127.0.0.1:{port}")
                for node, (name, dsn, port) in enumerate(zip("ab", stage.dsns, ports, strict=True), 1)
            )
        )
        a, b = (Peer(s["name"], s["node"], s["listen"], s["sha256"]) for s in said)
        if self._dialled is not None:
            a, b = replace(a, address=f"127.0.0.1:{self._dialled}"), replace(b, address=None)
        for home, peer in zip(self._homes, (b, a), strict=True):
            with (home / "config.toml").open("a") as configuration:
                configuration.write(peer_entry(peer))
        attach = ("attach", "orders", "--existing", "keep")
        self._both(attach, attach)
        self._agents = [self._run(home) for home in self._homes]
        stage.check = self._check
        for backwards in (True, False):
            stage.await_row(stage.mark(backwards=backwards), backwards=backwards)

    def _both(self, *verbs: tuple[str, ...]) -> list[dict[str, Any]]:
        """One verb at each site, at once; their answers."""
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "syncagent", *verb, "--home", home, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for verb, home in zip(verbs, self._homes, strict=True)
        ]
        said = [process.communicate() for process in running]
        for process, (_, talk) in zip(running, said, strict=True):
            if process.returncode:
                raise SyncagentError("syncagent refused to be measured", detail=talk.strip())
        return [json.loads(answer) for answer, _ in said]

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
        for agent, home in zip(self._agents, self._homes, strict=True):
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
