"""Bucardo, both sites as sources; of two writes that of the database that was changed last wins. Its daemon and its control database are at the receiver's.

Its tables need statistics, else it compares them row by row with each other and never ends: so this pair of servers has autovacuum, for us
as well; the quick check for changes is off, for it grows with the square of a burst.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import psycopg

from bench.gauges import tree
from bench.packages import BUCARDO, Root
from bench.pair import Stage
from bench.waiting import Late, until
from syncagent.embedded import Setting
from syncagent.errors import SyncagentError

_CONTROL = "bucardo"
_STOP_SECONDS = 20.0
_START_SECONDS = 60
_POLL = 0.05


class Bucardo:
    name = "bucardo"
    package = BUCARDO
    lingers: ClassVar[str | None] = None

    def __init__(self, root: Root) -> None:
        self._root = root
        self._stage: Stage | None = None

    @staticmethod
    def settings(root: Root) -> dict[str, Setting]:
        """What it asks the server to run in Perl finds its modules."""
        where = ", ".join(f"q({path})" for path in root.perl())
        return {"autovacuum": True, "autovacuum_naptime": "1s", "plperl.on_init": f"use lib {where};"}

    def start(self, stage: Stage) -> None:
        self._stage = stage
        self._run = stage.folder / "run"
        self._run.mkdir()
        self._install(stage)
        for name, server in (("a", stage.pair.a), ("b", stage.pair.b)):
            where = f"host=127.0.0.1 port={server.port} user=postgres pass={server.password}"
            self._verb("add", "db", name, f"dbname={stage.name}", *where.split())
        self._verb("add", "table", "public.orders", "db=a", "relgroup=g")
        self._verb("add", "dbgroup", "dg", "a:source", "b:source")
        self._verb(
            "add", "sync", "s", "relgroup=g", "dbs=dg", "conflict_strategy=bucardo_latest", "autokick=1"
        )
        self._verb("start")
        stage.check = self._check
        for backwards in (True, False):
            self._await_first(stage, backwards=backwards)

    def _install(self, stage: Stage) -> None:
        """Its control database, by the file that comes with it, and the settings that say where it may write."""
        server = stage.pair.b
        done = subprocess.run(
            [
                *(server.binaries.tool("psql"), "-qX", "--dbname", server.dsn(), "-f"),
                self._root.path / "usr/share/bucardo/bucardo.schema",
            ],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            with psycopg.connect(server.dsn(_CONTROL), autocommit=True) as control:
                for name, value in (("piddir", str(self._run)), ("quick_delta_check", "0")):
                    control.execute(
                        "update bucardo.bucardo_config set setting = %s where name = %s", (value, name)
                    )
                control.execute(
                    "update bucardo.bucardo_config set setting = replace(setting, '/var/log/bucardo', %s)"
                    " where setting like '/var/log/bucardo%%'",
                    (str(stage.folder),),
                )
        except psycopg.Error as error:
            raise SyncagentError("bucardo was not installed", detail=done.stderr[-1000:]) from error

    def _environment(self) -> dict[str, str]:
        assert self._stage is not None
        paths = os.pathsep.join(map(str, self._root.perl()))
        return {**os.environ, "PERL5LIB": paths, "PGPASSWORD": self._stage.pair.b.password, "LC_ALL": "C"}

    def _verb(self, *verb: str) -> None:
        """Its output goes to a file, for the daemon keeps it open."""
        assert self._stage is not None
        said = self._stage.folder / "bucardo.out"
        with said.open("wb") as output:
            done = subprocess.run(
                [
                    *("perl", self._root.program("bucardo"), "--dbhost=127.0.0.1", "--dbuser=postgres"),
                    *(f"--dbport={self._stage.pair.b.port}", f"--dbname={_CONTROL}", "--no-bucardorc"),
                    *(f"--piddir={self._run}", f"--logdest={self._stage.folder}", *verb),
                ],
                cwd=self._stage.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if done.returncode:
            raise SyncagentError(f"bucardo {' '.join(verb[:2])} failed", detail=said.read_text()[-1000:])

    def _await_first(self, stage: Stage, *, backwards: bool) -> None:
        """Rows, until one has arrived: what was written before it listens waits for the next."""
        for _ in range(_START_SECONDS):
            key = stage.mark(backwards=backwards)
            with suppress(Late):
                until(partial(stage.arrived, key, backwards=backwards), "the first row", 1.0, poll=_POLL)
                return
        raise SyncagentError("bucardo does not replicate", detail=self._log()[-1000:])

    def _log(self) -> str:
        assert self._stage is not None
        return "".join(path.read_text() for path in self._stage.folder.glob("log.bucardo*"))

    def _check(self) -> None:
        if not self.processes():
            raise SyncagentError("bucardo has ended", detail=self._log()[-1000:])

    def _signal(self, what: signal.Signals) -> None:
        for daemon in self.processes():
            for pid in tree(daemon):
                with suppress(ProcessLookupError):
                    os.kill(pid, what)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def processes(self) -> Sequence[int]:
        try:
            pid = int((self._run / "bucardo.mcp.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return ()
        return [pid] if Path(f"/proc/{pid}").exists() else ()

    def stop(self) -> None:
        if self._stage is None:
            return
        daemons = [pid for daemon in self.processes() for pid in tree(daemon)]
        self._signal(signal.SIGCONT)
        if daemons:
            self._verb("stop")
        try:
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in daemons), "its end", _STOP_SECONDS)
        except Late:
            for pid in daemons:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with psycopg.connect(self._stage.pair.b.dsn(), autocommit=True) as control:
            control.execute(f"drop database if exists {_CONTROL} with (force)".encode())
            control.execute("drop role if exists bucardo")
