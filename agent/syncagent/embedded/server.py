"""One running PostgreSQL.

Invariants: every server has an initdb of its own (clones would share a system identifier); it listens on
loopback only, with a password, and on a socket inside a folder that nobody else can enter; `stop` and
`kill` return when no process of it is left.
"""

import base64
import hashlib
import hmac
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from syncagent.embedded.account import account, launch, own, reachable, run, tail
from syncagent.embedded.binaries import Binaries, within_reach
from syncagent.errors import DatabaseError, UsageError

Setting = str | int | float | bool

DEFAULTS: dict[str, Setting] = {
    "shared_buffers": "64MB",
    "max_connections": 60,
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
# A killed process keeps what it wrote; only a machine that loses power does not. Pages can still be torn
# by a kill, so full_page_writes stays on.
FAST: dict[str, Setting] = {"fsync": False}

_SOCKET_PATH_LIMIT = 100
_PORTS = range(20000, 32768)  # below the range from which outgoing connections take theirs
_KEPT = 200
"""Ports that stay reserved at most, in one process."""
_kept: deque[int] = deque()
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class _PortTaken(DatabaseError):
    """Somebody else listens there."""


def free_port() -> int:
    """A TCP port of loopback on which nobody listens now, and that no other call is given for a while."""
    for _ in range(1000):
        port = secrets.choice(_PORTS)
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.close()
            continue
        # Bound, it is taken for the next call, in whatever process; whoever means to listen there sets the
        # same option, and with it on both sides and nobody listening yet, the kernel lets both bind.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _kept.append(probe.detach())
        if len(_kept) > _KEPT:
            os.close(_kept.popleft())
        return port
    raise DatabaseError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


@contextmanager
def scratch(prefix: str = "syncagent-", where: Path | None = None) -> Iterator[Path]:
    """A folder for data directories, reachable by the servers' account; gone afterwards. `where`: instead of the
    usual place for what is temporary."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=where) as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


class Server:
    """One PostgreSQL server in `data_dir`, which `start` makes if it is empty or missing.

    `settings` overrides DEFAULTS and is read at every start; ALTER SYSTEM overrides both. `durable` says
    that data must survive a loss of power, not only a kill. A port not given is chosen, and stays.
    """

    def __init__(
        self,
        binaries: Binaries,
        data_dir: Path,
        port: int | None = None,
        settings: Mapping[str, Setting] | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self.binaries = binaries
        self.data_dir = data_dir.absolute()
        self.log = self.data_dir / "server.log"
        self.socket_dir = self.data_dir
        self.settings: dict[str, Setting] = dict(settings or {})
        self.durable = durable
        self.port = port or free_port()
        self._port_may_move = port is None
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"Server(PostgreSQL {self.binaries.version}, {self.data_dir}, port {self.port})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The postmaster."""
        return self._process.pid if self._process and self.running else None

    @property
    def password(self) -> str:
        """Of the superuser `postgres`, and of every role made by `create_role`."""
        return (self.data_dir / "password").read_text()

    def dsn(self, dbname: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """How to connect by TCP; roles not made by `create_role` need their `password`."""
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://{quote(user)}:{secret}@127.0.0.1:{self.port}/{quote(dbname)}"

    def execute(self, statement: sql.SQL | sql.Composed, dbname: str = "postgres") -> None:
        """Run one statement as the superuser, in its own transaction or (CREATE DATABASE) in none."""
        with psycopg.connect(self.dsn(dbname), autocommit=True) as connection:
            connection.execute(statement)

    def create_role(self, name: str) -> None:
        """A role that may log in with the server's password, and nothing more."""
        self.execute(
            sql.SQL("create role {} login password {}").format(
                sql.Identifier(name), sql.Literal(_verifier(self.password))
            )
        )

    def start(self, timeout: float = _START_SECONDS) -> None:
        """Return when the server takes connections, after `timeout` seconds at most."""
        if self.running:
            return
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise()
        while True:
            self._launch()
            try:
                self._await_ready(timeout)
            except _PortTaken:
                if not self._port_may_move:
                    raise
                self.port = free_port()
            else:
                self._port_may_move = False  # its clients know it now
                return

    def stop(self, timeout: float = _STOP_SECONDS) -> None:
        """Shut down, rolling back what is open; what does not stop in `timeout` seconds is killed."""
        if self._process and self.running:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._forget()

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children at one moment: nothing is flushed or said."""
        if self._process and self.running:
            self._process.send_signal(signal.SIGSTOP)  # so that no child is born while we look
            children = _children(self._process.pid)
            for pid in (*children, self._process.pid):
                _kill(pid)
            self._process.wait()
            for pid in children:
                _await_gone(pid)
        self._forget()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _forget(self) -> None:
        self._process = None
        if self.socket_dir != self.data_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)
            self.socket_dir = self.data_dir

    def _initialise(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        own(self.data_dir)
        if not reachable(self.data_dir):
            user = account()
            raise UsageError(
                f"{user.name if user else 'this user'} cannot enter {self.data_dir}",
                detail="Servers started by root run as that account.",
                hint="Choose a folder below one that everybody may enter, such as /tmp.",
            )
        if self.binaries.major >= 17:
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        else:
            locale = ["--locale=C.UTF-8"]
        with tempfile.NamedTemporaryFile("w") as secret:
            password = secrets.token_urlsafe(12)
            secret.write(_verifier(password))
            secret.flush()
            own(Path(secret.name))
            run(
                [
                    within_reach(self.binaries).folder / "initdb",
                    *("-D", self.data_dir, "-U", "postgres", "--encoding=UTF8"),
                    *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret.name}"),
                    *locale,
                    *([] if self.durable else ["--no-sync"]),
                ],
                doing=f"initdb in {self.data_dir}",
            )
        self._write("password", password)
        with (self.data_dir / "postgresql.conf").open("a") as configuration:
            configuration.write("include = 'syncagent.conf'\n")

    def _write(self, name: str, text: str) -> None:
        path = self.data_dir / name
        path.touch(mode=0o600)
        path.write_text(text)
        own(path)

    def _configure(self) -> None:
        if len(os.fsencode(self.data_dir)) > _SOCKET_PATH_LIMIT - len("/.s.PGSQL.65535.lock"):
            self.socket_dir = Path(tempfile.mkdtemp(prefix="syncagent-"))
            own(self.socket_dir)
        settings = {
            **DEFAULTS,
            **({} if self.durable else FAST),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": f'"{self.socket_dir}"',
            **self.settings,
            "port": self.port,
        }
        self._write("syncagent.conf", "".join(f"{k} = {_literal(v)}\n" for k, v in settings.items()))

    def _launch(self) -> None:
        self._configure()
        with self.log.open("ab") as log:
            own(self.log)
            self._log_start = log.tell()
            self._process = launch(
                [within_reach(self.binaries).folder / "postgres", "-D", self.data_dir], log
            )

    def _await_ready(self, timeout: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                try:
                    psycopg.connect(self.dsn(), connect_timeout=5).close()
                except psycopg.OperationalError:
                    continue
                return
            raise self._failure("stopped while starting")
        self.kill()
        raise self._failure(f"took no connections within {timeout:.0f} s")

    def _failure(self, what: str) -> DatabaseError:
        self._forget()
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            text = tail(log.read())
        kind = _PortTaken if "could not bind" in text else DatabaseError
        return kind(
            f"PostgreSQL {self.binaries.version} in {self.data_dir} {what}",
            detail=text or "Its log is empty.",
            hint=f"The whole log is {self.log}.",
        )


def _verifier(password: str) -> str:
    """What the server keeps of it (RFC 5803). One round of hashing: more make guessing dear, and nobody guesses 96 random
    bits; 4096 of them are a third of what a login costs."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    parts = (salt, stored, hmac.digest(salted, b"Server Key", "sha256"))
    salt_text, stored_text, server_text = (base64.b64encode(part).decode() for part in parts)
    return f"SCRAM-SHA-256$1:{salt_text}${stored_text}:{server_text}"


def _literal(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("'", "''") + "'"


def _children(pid: int) -> list[int]:
    """Linux only; elsewhere a server's children end by themselves when they miss their postmaster."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended while we looked
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _await_gone(pid: int) -> None:
    """Wait for a process that is not our child; a zombie counts as gone."""
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            select.select([handle], [], [], _STOP_SECONDS)
        finally:
            os.close(handle)
