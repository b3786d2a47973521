"""Where the programs of the peers are: installed, or Debian's packages unpacked into a folder, where nothing is started and nothing replaced.

`python -m bench.packages FOLDER` fetches and unpacks them, those of each peer by themselves: one that cannot be had is said, and left out.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from syncagent.embedded import Binaries
from syncagent.errors import SyncagentError, UsageError

MAJOR = 15
"""PostgreSQL's version for which Debian has all of the peers."""
_SERVER = Path(f"usr/lib/postgresql/{MAJOR}")


@dataclass(frozen=True)
class Package:
    """What a peer is made of; `files` tell whether it is there."""

    name: str
    files: tuple[str, ...]
    debian: tuple[str, ...]

    def root(self, root: Path) -> "Root":
        """Where it is; raises UsageError if it is not."""
        missing = [
            name for name in (str(_SERVER / "bin/postgres"), *self.files) if not (root / name).exists()
        ]
        if missing:
            raise UsageError(
                f"{self.name} is not installed",
                detail=f"{root} has no {', '.join(missing)}",
                hint=f"On Debian 12: apt install postgresql-{MAJOR} {' '.join(self.debian)}; or, with nothing installed: make bench-peers",
            )
        return Root(root.absolute())


@dataclass(frozen=True)
class Root:
    """A tree as Debian lays it: the machine's own, or that of unpacked packages."""

    path: Path

    def binaries(self) -> Binaries:
        return Binaries.at(self.path / _SERVER / "bin")

    def program(self, name: str) -> Path:
        return self.path / "usr/bin" / name

    def perl(self) -> list[Path]:
        """Where Perl's modules are."""
        share, library = self.path / "usr/share/perl5", self.path / "usr/lib"
        return [share, *library.glob("*/perl5/5.*")]

    def python(self) -> Path:
        return self.path / "usr/lib/python3/dist-packages"


_SERVER_ITSELF = Package(
    f"PostgreSQL {MAJOR}",
    (str(_SERVER / "bin/postgres"),),
    (f"postgresql-{MAJOR}", f"postgresql-client-{MAJOR}", "libpq5"),
)
PGLOGICAL = Package("pglogical", (f"{_SERVER}/lib/pglogical.so",), (f"postgresql-{MAJOR}-pglogical",))
BUCARDO = Package(
    "bucardo",
    ("usr/bin/bucardo", "usr/share/perl5/DBIx/Safe.pm", f"{_SERVER}/lib/plperl.so"),
    (
        *("bucardo", f"postgresql-plperl-{MAJOR}", "libdbi-perl", "libdbix-safe-perl", "libdbd-pg-perl"),
        *("libboolean-perl", "libpod-parser-perl"),
    ),
)
LONDISTE = Package(
    "londiste",
    ("usr/bin/londiste", "usr/bin/pgqd", f"{_SERVER}/lib/pgq_triggers.so"),
    (
        *(
            "pgqd",
            f"postgresql-{MAJOR}-pgq3",
            f"postgresql-{MAJOR}-pgq-node",
            f"postgresql-{MAJOR}-londiste-sql",
        ),
        *("python3-londiste", "python3-pgq", "python3-skytools", "python3-psycopg2"),
    ),
)


def unpack(packages: tuple[str, ...], root: Path) -> None:
    """Fetch them, and lay their files under `root`."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        _done(["apt-get", "download", "-qq", *packages], Path(name))
        for archive in sorted(Path(name).glob("*.deb")):
            _done(["dpkg-deb", "--extract", str(archive), str(root)], Path(name))


def _done(command: list[str], where: Path) -> None:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(
            f"{command[0]} is not here", hint="Peers are unpacked on Debian; elsewhere, install them."
        ) from error
    if done.returncode:
        raise SyncagentError(
            f"{' '.join(command[:2])} failed",
            detail=done.stderr.strip()[-500:],
            hint="apt-get update",
        )


def main(root: Path) -> None:
    for package in (_SERVER_ITSELF, PGLOGICAL, BUCARDO, LONDISTE):
        if all((root / file).exists() for file in package.files):
            continue
        try:
            unpack(package.debian, root)
        except SyncagentError as error:
            why = "; ".join(filter(None, (str(error), error.detail, error.hint)))
            print(f"{package.name} cannot be had here: {why}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
