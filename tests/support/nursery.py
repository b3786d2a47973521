"""Processes of syncagent, without the half second that each would import.

One process has imported everything and does nothing but fork; a child runs the command line as `python -m
syncagent` would, in a process of its own with its own signals, files and environment.
How a child ended is told by whoever forked it, who waits for it and does nothing else.

A verb imports what it needs; here that is imported already. The tests of the command line itself, of the
packages and of the demo start real interpreters.
"""

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, NoReturn

_LONGEST = 2**18
"""Bytes of a request: arguments and environment."""
_IMPORTED = (
    "alembic.command",
    "syncagent.joining",
    "syncagent.node",
    "syncagent.returning",
)
_TRIED = (("status", "--help"), ("status", "--home", os.devnull))
"""What is imported to show a page of help, and to read arguments."""


class Process:
    """A child, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, arguments: tuple[str, ...], told: socket.socket) -> None:
        self.args, self._told = arguments, told
        self.returncode: int | None = None
        self.pid = self._number(None)

    def _number(self, seconds: float | None) -> int:
        if not select.select([self._told], [], [], seconds)[0]:
            raise subprocess.TimeoutExpired(self.args, seconds or 0)
        said = self._told.recv(64)
        assert said, f"whoever waits for {self.args} has ended"
        return int(said)

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, seconds: float | None = None) -> int:
        """How it ended: its exit code, or minus the signal that killed it."""
        if self.returncode is None:
            self.returncode = self._number(seconds)
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # it ended just now
                pass

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """The process that forks. It ends when nobody can ask it any more."""

    def __init__(self) -> None:
        self._asked, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )

    def start(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], files: tuple[IO[bytes], ...]
    ) -> Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            request = json.dumps([arguments, dict(environment), str(Path.cwd())]).encode()
            descriptors = [*(file.fileno() for file in files), theirs.fileno()]
            socket.send_fds(self._asked, [request], descriptors)
        return Process(arguments, ours)

    def close(self) -> None:
        self._asked.close()
        self._process.wait()


_nurseries: list[_Nursery] = []


def start(
    *arguments: str | Path,
    out: IO[bytes],
    error: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Process:
    """`syncagent` with these arguments. Both of its outputs go to `out` if `error` is not given."""
    if not _nurseries:
        _nurseries.append(_Nursery())
        atexit.register(_nurseries[0].close)
    words = tuple(str(argument) for argument in arguments)
    return _nurseries[0].start(
        words, os.environ if environment is None else environment, (out, out if error is None else error)
    )


def run(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    together: bool = False,
    seconds: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """The same, to its end. `together`: what it says of errors is among its answers."""
    with _Said() as out, _Said() as error:
        process = start(
            *arguments, out=out.file, error=out.file if together else error.file, environment=environment
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(process.args, code, out.text(), error.text())


class _Said:
    """A file in memory."""

    def __init__(self) -> None:
        self.file = os.fdopen(os.memfd_create("said"), "w+b", buffering=0)

    def __enter__(self) -> "_Said":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def text(self) -> str:
        self.file.seek(0)
        return self.file.read().decode()


# In the process that forks.


def _serve(asked: socket.socket) -> NoReturn:
    """Until the tests are over. A child comes back from no call."""
    from syncagent.cli.app import main

    for name in _IMPORTED:
        importlib.import_module(name)
    for words in _TRIED:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), suppress(SystemExit):
            main(words)
    gc.collect()
    gc.freeze()  # so that a child does not copy what it only reads
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(asked, _LONGEST, 3)
        if not request:
            sys.exit()
        if os.fork() == 0:
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            arguments, environment, folder = json.loads(request)
            _watch(socket.socket(fileno=descriptors.pop()))
            _become(arguments, environment, folder, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(told: socket.socket) -> None:
    """Fork once more, and tell how the child ended. Returns in the child."""
    if child := os.fork():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        told.send(str(child).encode())
        told.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        os._exit(0)
    told.close()


def _become(
    arguments: list[str], environment: dict[str, str], folder: str, descriptors: list[int]
) -> NoReturn:
    """`python -m syncagent` with these arguments, to its end."""
    for number, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["", *arguments]
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    code = 1
    try:
        runpy.run_module("syncagent", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001  (as the interpreter would)
        traceback.print_exc()
    gc.collect()  # a task that nobody awaited says so now
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take all that was imported apart costs as much as to import it


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
