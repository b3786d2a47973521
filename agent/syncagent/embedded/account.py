"""Who PostgreSQL's programs run as.

Invariant: PostgreSQL refuses root, so root's servers run as `postgres` or `nobody`; for everybody else the
account is None, and nothing here changes anything.
"""

import os
import pwd
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from syncagent.errors import DatabaseError, UsageError

_TAIL_LINES = 15


class Account(NamedTuple):
    """An operating system user."""

    name: str
    uid: int
    gid: int


@cache
def account() -> Account | None:
    """The account that servers run as when we are root; None: they run as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise UsageError(
        "PostgreSQL does not run as root, and there is no account to run it as",
        hint="Add a user named postgres, or work as an ordinary user.",
    )


def own(path: Path) -> None:
    """Give `path` to the servers' account."""
    if user := account():
        os.chown(path, user.uid, user.gid)


def reachable(path: Path) -> bool:
    """Whether the servers' account may execute `path` (for a folder: enter it)."""
    user = account()
    if user is None:
        return os.access(path, os.X_OK)
    for part in (path, *path.parents):
        status = part.stat()
        shift = 6 if status.st_uid == user.uid else 3 if status.st_gid == user.gid else 0
        if not status.st_mode >> shift & 1:
            return False
    return True


def launch(command: list[str | Path], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs as the servers' account, away from our terminal and environment.

    Its own session keeps Ctrl-C from it (we stop our servers in order); PG* variables would change what it does.
    """
    user = account()
    return subprocess.Popen(
        command,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=user and user.uid,
        group=user and user.gid,
        extra_groups=user and [],
    )


def run(command: list[str | Path], *, doing: str) -> None:
    """Run a program to its end; an error quotes the end of what it printed."""
    with tempfile.TemporaryFile() as output:
        if launch(command, output).wait():
            output.seek(0)
            raise DatabaseError(f"{doing} failed", detail=tail(output.read()))


def tail(text: bytes) -> str:
    """The last lines of what a program printed."""
    return "\n".join(text.decode(errors="replace").strip().splitlines()[-_TAIL_LINES:])
