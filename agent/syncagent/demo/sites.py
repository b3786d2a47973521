"""One office's site: a PostgreSQL server, the shop's database, an agent; driven by syncagent's own commands.

Invariant: what a person would type is what is run, with the site's home in SYNCAGENT_HOME. An agent that ends
unasked ends the demo, and `stop` returns when nothing of the site runs any more.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from syncagent.demo import shop
from syncagent.embedded import Binaries, Server, free_port
from syncagent.errors import SyncagentError

T = TypeVar("T")

_STOP_SECONDS = 20.0
_KILLED = -signal.SIGKILL
_CLEAN = (0, -signal.SIGTERM)
"""How an agent ends when it is told to; the second one before it has come to listen."""


class Site:
    """`heard` is told every command before it runs."""

    def __init__(
        self, number: int, name: str, folder: Path, binaries: Binaries, heard: Callable[[str, str], None]
    ) -> None:
        self.number, self.name = number, name
        self.home = folder / name
        self.log = folder / f"{name}.log"
        self.server = Server(binaries, folder / f"{name}.postgres")
        self.port = free_port()
        self._heard = heard
        self._agent: Process | None = None
        self._ending = False

    @property
    def dsn(self) -> str:
        """Of the owner of the database: the agent's."""
        return self.server.dsn(shop.DATABASE)

    @property
    def app_dsn(self) -> str:
        """Of the application."""
        return self.server.dsn(shop.DATABASE, shop.ROLE)

    @property
    def agent_runs(self) -> bool:
        return self._agent is not None and self._agent.returncode is None

    def open(self) -> None:
        """A running server with an empty database, and the role of the shop's application. Blocks."""
        self.server.start()
        self.server.execute(shop.NEW_DATABASE)
        self.server.create_role(shop.ROLE)

    # ---- commands

    async def init(self) -> None:
        """The first site of a cluster."""
        await self.command("init", "--name", self.name, "--listen", f"127.0.0.1:{self.port}")

    async def when_ready(self) -> None:
        """Until the agent can be asked."""
        while (await self._quietly("status"))[0]["state"] != "running":
            pass

    async def invite(self) -> str:
        """A token for one more site."""
        return str((await self.ask("invite"))["token"])

    async def join(self, address: str, token: str) -> None:
        """One more site of the cluster that the token is of."""
        await self.command(
            *("join", "--peer", address, "--name", self.name, "--listen", f"127.0.0.1:{self.port}"),
            SYNCAGENT_TOKEN=token,
        )

    def reach(self, addresses: Mapping[str, str]) -> None:
        """Write into config.toml where the others are reached, as a person would with an editor."""
        path = self.home / "config.toml"
        lines = path.read_text().splitlines()
        if "[addresses]" not in lines:
            lines += ["", "[addresses]"]
        lines += [
            f'{name} = "{address}"'
            for name, address in addresses.items()
            if not any(line.startswith(f"{name} = ") for line in lines)
        ]
        path.write_text("\n".join(lines) + "\n")

    async def ask(self, *arguments: str) -> Any:
        """What a command answers in JSON."""
        return json.loads(await self.command(*arguments, "--json"))

    async def _quietly(self, *arguments: str) -> Any:
        """The same, and nobody is told."""
        return json.loads(await self._run(*arguments, "--json"))

    async def command(self, *arguments: str, **environment: str) -> str:
        """Run one command to its end; what it answered on stdout."""
        self._heard(self.name, " ".join(["syncagent", *arguments]))
        return await self._run(*arguments, **environment)

    async def _run(self, *arguments: str, **environment: str) -> str:
        process = await self._start(*arguments, stdout=PIPE, stderr=PIPE, **environment)
        try:
            answer, talk = await process.communicate()
        finally:
            await _end(process)
        if process.returncode:
            raise SyncagentError(
                f"`syncagent {' '.join(arguments)}` at {self.name} ended with exit code {process.returncode}",
                detail=(talk + answer).decode(errors="replace").strip(),
            )
        return answer.decode(errors="replace")

    async def _start(self, *arguments: str, stdout: Any, stderr: Any, **more: str) -> Process:
        # Nothing that is set around the demo reaches the sites; they stand in no terminal's way of Ctrl-C.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNCAGENT_")}
        environment |= {"SYNCAGENT_HOME": str(self.home), "PYTHONIOENCODING": "utf-8", **more}
        if arguments[0] in ("init", "join"):
            environment["SYNCAGENT_DSN"] = self.dsn
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "syncagent", *arguments),
            env=environment,
            stdin=DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    # ---- the agent

    async def run(self) -> None:
        """Start the agent."""
        self._heard(self.name, "syncagent run")
        with self.log.open("ab") as log:
            self._agent = await self._start("run", stdout=log, stderr=STDOUT)

    async def watch(self) -> None:
        """For ever; raises when the agent ends unasked."""
        while True:
            agent = self._agent
            if agent is not None:
                code = await agent.wait()
                if agent is self._agent and not self._ending:
                    raise SyncagentError(f"the agent of {self.name} ended by itself with exit code {code}")
            await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """The agent gets a kill -9."""
        assert self._agent is not None
        agent, self._agent = self._agent, None
        self._heard(self.name, f"kill -9 {agent.pid}")
        agent.kill()
        await agent.wait()

    async def stop(self) -> None:
        """Agent, then server. Raises if the agent did not end as it should."""
        self._ending = True
        agent, self._agent = self._agent, None
        code = 0
        if agent is not None:
            if agent.returncode is None:
                agent.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    code = await agent.wait()
            except TimeoutError:
                code = _KILLED
            finally:
                await _end(agent)
        await in_thread(self.server.stop)
        if code not in _CLEAN:
            how = (
                f"did not stop within {_STOP_SECONDS:.0f} s"
                if code == _KILLED
                else f"ended with exit code {code}"
            )
            raise SyncagentError(f"the agent of {self.name} {how} when it was told to stop")

    def log_tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:]) or "(it was not started, or said nothing)"


async def _end(process: Process) -> None:
    """Whatever it is doing."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            pass
        await process.wait()


async def in_thread(work: Callable[[], T]) -> T:
    """Run what blocks."""
    return await finish(asyncio.to_thread(work))


async def finish(work: Awaitable[T]) -> T:
    """Await it to its end even if we are cancelled meanwhile: what it starts or stops must not stay halfway."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
