"""Londiste on PgQ, from the origin to the receiver: it knows one writer a table. A ticker, and a worker at each."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench.packages import LONDISTE, Root
from bench.pair import Stage
from syncagent.embedded import Server, Setting
from syncagent.embedded.account import launch, own
from syncagent.errors import SyncagentError

_WORKER = """[londiste]
db = {dsn}
queue_name = bench
logfile = {folder}/{name}.log
pidfile = {folder}/{name}.pid
"""
_TICKER = """[pgqd]
base_connstr = host=127.0.0.1 port={port} user=postgres
database_list = {database}
logfile = {folder}/pgqd.log
pidfile = {folder}/pgqd.pid
"""
_STOP_SECONDS = 20


class Londiste:
    name = "londiste"
    package = LONDISTE
    lingers: ClassVar[str | None] = None

    def __init__(self, root: Root) -> None:
        self._root = root
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def settings(root: Root) -> dict[str, Setting]:
        del root
        return {}

    def start(self, stage: Stage) -> None:
        self._stage = stage
        self._folder = stage.folder / "londiste"
        self._folder.mkdir(mode=0o700)
        self._write(stage)
        own(self._folder)
        a, b = (self._dsn(server) for server in (stage.pair.a, stage.pair.b))
        self._verb("a", "create-root", "a", a)
        self._verb("b", "create-leaf", "b", b, f"--provider={a}")
        self._running["pgqd"] = self._launch(self._root.program("pgqd"), "pgqd.ini")
        for name in "ab":
            self._running[name] = self._worker(name)
        self._verb("a", "add-table", "orders")
        self._verb("b", "add-table", "orders", "--expect-sync")
        stage.check = self._check
        stage.await_row(stage.mark())

    def _write(self, stage: Stage) -> None:
        """The files that it reads, its own only; passwords are in none but the last."""
        texts = {
            f"{name}.ini": _WORKER.format(dsn=self._dsn(server), folder=self._folder, name=name)
            for name, server in (("a", stage.pair.a), ("b", stage.pair.b))
        }
        texts["pgqd.ini"] = _TICKER.format(port=stage.pair.a.port, database=stage.name, folder=self._folder)
        texts["passwords"] = "".join(
            f"127.0.0.1:{server.port}:*:postgres:{server.password}\n"
            for server in (stage.pair.a, stage.pair.b)
        )
        for name, text in texts.items():
            path = self._folder / name
            path.write_text(text)
            path.chmod(0o600)
            own(path)

    def _dsn(self, server: Server) -> str:
        return f"host=127.0.0.1 port={server.port} user=postgres dbname={self._stage.name}"

    def _launch(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """As the servers' account: none of these runs as root."""
        with (self._folder / "output").open("ab") as output:
            return launch(
                [
                    *("/usr/bin/env", "-C", self._folder, f"PYTHONPATH={self._root.python()}"),
                    *(f"PGPASSFILE={self._folder / 'passwords'}", *command),
                ],
                output,
            )

    def _worker(self, name: str) -> subprocess.Popen[bytes]:
        return self._launch(*self._londiste(name), "worker")

    def _londiste(self, name: str) -> list[str | Path]:
        return ["/usr/bin/python3", self._root.program("londiste"), "-q", f"{name}.ini"]

    def _verb(self, name: str, *verb: str) -> None:
        if self._launch(*self._londiste(name), *verb).wait():
            raise SyncagentError(f"londiste {verb[0]} failed", detail=self._said())

    def _said(self) -> str:
        return "".join(path.read_text() for path in self._folder.glob("*o[gu]*"))[-1500:]

    def _check(self) -> None:
        for name, process in self._running.items():
            if process.poll() is not None:
                raise SyncagentError(f"{name} of londiste has ended", detail=self._said())

    def pause(self) -> None:
        """The receiver's worker is gone; the ticker goes on."""
        self._end(self._running.pop("b"))

    def resume(self) -> None:
        self._running["b"] = self._worker("b")

    def processes(self) -> Sequence[int]:
        return [process.pid for process in self._running.values()]

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        while self._running:
            self._end(self._running.popitem()[1])
