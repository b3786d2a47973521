"""`syncagent support-bundle`: what somebody who helps wants to see, in one file, without a secret and without rows.

Invariant: what is gathered is written only after the scrubber has gone over it; what is known to be secret (passwords of
the dsn, keys of the home, tokens) and what looks like it is in no file of the archive.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, home_of
from syncagent.errors import RefusedError, SyncagentError, UsageError

if TYPE_CHECKING:
    from syncagent.settings import Settings
    from syncagent.storage.commands import Connection

_LOG_BYTES = 4 * 1024 * 1024
"""Of the log, its end: enough for hours of trouble."""
_LINES = 20_000
_KEY_LINE = 8
"""Characters: a shorter line of a key tells nothing, and would be found in other words."""


def support_bundle(
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where to write it. [default: syncagent-SITE-TIME.tar.gz here]", show_default=False
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="The agent's log, if it is a file; the journal is asked for the unit syncagent by itself.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write doctor, status, versions, settings, catalog, sizes, plans and the log's end to one file, without secrets or rows.

    It holds names of sites, hosts, roles, tables and columns: look into it before you send it.
    """
    from datetime import UTC, datetime

    from syncagent.settings import load

    folder = home_of(home)
    settings: Settings | None = None
    try:
        settings = load(folder)
    except UsageError:
        if dsn is None:
            raise
    made = datetime.now(UTC)
    name = f"syncagent-{settings.name if settings else 'site'}-{made:%Y%m%dT%H%M%SZ}"
    target = output or Path(f"{name}.tar.gz")
    if target.exists():
        raise RefusedError(f"{target} is there already", hint="name another file with --output")
    texts = _gathered(folder, settings, dsn or (settings.dsn if settings else ""), log)
    hidden = _write(target, name, texts, _scrubber(folder, [dsn, settings.dsn if settings else None]))
    if as_json:
        render.json({"file": str(target), "parts": sorted(texts), "hidden": hidden})
    else:
        render.line(str(target))
        render.say(
            f"{render.counted(len(texts), 'part')}, {render.counted(hidden, 'secret')} left out; it names hosts, roles and tables:"
        )
        render.say(f"look into it before you send it: tar xzf {target}")


def _gathered(folder: Path, settings: "Settings | None", dsn: str, log: Path | None) -> dict[str, str]:
    """The parts; one that cannot be had says why in its place."""
    from syncagent.storage import support
    from syncagent.storage.commands import connected

    parts: dict[str, Callable[[], object]] = {
        "versions.json": support.versions,
        "settings.toml": lambda: _settings(folder),
        "home.json": lambda: _files(folder),
        "log.txt": lambda: _log(log),
    }
    texts = {name: _told(look) for name, look in parts.items()}
    try:
        with connected(dsn) as connection:
            texts["doctor.json"] = _told(lambda: _doctor(connection, folder, settings, dsn))
            texts |= {
                f"{name}.json": _told(lambda look=look: look(connection))  # type: ignore[misc]
                for name, look in support.PARTS.items()
            }
    except SyncagentError as error:
        texts["database.txt"] = str(error)
    return texts


def _told(look: Callable[[], object]) -> str:
    import msgspec
    import psycopg

    try:
        found = look()
    except (SyncagentError, psycopg.Error, OSError) as error:
        return f"not to be had: {error}\n"
    if isinstance(found, str):
        return found
    return msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=2).decode() + "\n"


def _doctor(connection: "Connection", folder: Path, settings: "Settings | None", dsn: str) -> object:
    from syncagent.cli.doctor import examine

    return examine(connection, folder, settings, dsn)


def _settings(folder: Path) -> str:
    from syncagent.settings import FILE

    return (folder / FILE).read_text(encoding="utf-8")


def _files(folder: Path) -> list[dict[str, Any]]:
    """What lies in the home, by name, size and rights; of its secrets no more than that."""
    found = []
    for path in sorted(folder.rglob("*"))[:1000]:
        facts = path.lstat()
        found.append(
            {"name": str(path.relative_to(folder)), "bytes": facts.st_size, "mode": f"{facts.st_mode:o}"}
        )
    return found


def _log(log: Path | None) -> str:
    """The end of the file, or of the unit's journal."""
    import subprocess

    if log is not None:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - _LOG_BYTES, 0))
            return file.read().decode(errors="replace")
    command = ["journalctl", "--unit=syncagent", "--no-pager", "--output=short-iso", f"--lines={_LINES}"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return done.stdout.decode(errors="replace")[-_LOG_BYTES:]


def _scrubber(folder: Path, dsns: list[str | None]) -> "Callable[[str], tuple[str, int]]":
    """Knows the passwords, and each line of the keys, for a log may quote one."""
    from syncagent.storage import support
    from syncagent.transport.tls import KEY, NEXT_KEY

    known = {secret for dsn in dsns if dsn for secret in support.passwords(dsn)}
    for path in (folder / KEY, folder / NEXT_KEY):
        if path.exists():
            lines = path.read_text(encoding="ascii", errors="replace").splitlines()
            known |= {line for line in lines if len(line) >= _KEY_LINE and not line.startswith("-----")}
    return support.Scrubber(known).scrub


def _write(target: Path, name: str, texts: dict[str, str], scrub: "Callable[[str], tuple[str, int]]") -> int:
    """All of it or no file; readable by its owner alone. How often something was left out."""
    import io
    import os
    import tarfile
    import time

    hidden = 0
    draft = target.with_name(f".{target.name}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for part, text in sorted(texts.items()):
                clean, found = scrub(text)
                hidden += found
                data = clean.encode()
                entry = tarfile.TarInfo(f"{name}/{part}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(data))
        draft.rename(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return hidden
