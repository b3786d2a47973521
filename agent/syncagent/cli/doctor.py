"""`syncagent doctor`: what is wrong, and the command that mends it."""

from typing import TYPE_CHECKING

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, home_of
from syncagent.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from syncagent.settings import Settings
    from syncagent.storage.drift import Finding


def doctor(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """Examine settings, grants, clocks, triggers, drift and disk; exit 1 if something is broken."""
    from syncagent.settings import load
    from syncagent.storage import checks
    from syncagent.storage.commands import connected

    folder = home_of(home)
    settings: Settings | None = None
    try:
        settings = load(folder)
    except UsageError:
        if dsn is None:
            raise
    findings = _home(folder) if settings else []
    way = dsn or (settings.dsn if settings else "")
    with connected(way) as connection:
        findings += checks.examine(connection, way, settings.max_clock_skew if settings else None)
        if settings and (found := checks.stranger(connection, settings.site, settings.incarnation)):
            findings.append(found)
    order = ("error", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    if as_json:
        render.json(findings)
    else:
        _tell(findings)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def _tell(findings: "list[Finding]") -> None:
    if findings:
        render.show(render.findings(findings))
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    if errors or warnings:
        render.say(f"{render.counted(errors, 'error')}, {render.counted(warnings, 'warning')}")
    else:
        render.say("everything is as it should be")


def _home(folder: "Path") -> "list[Finding]":
    """The files of the home: secrets kept to their owner, the certificate that peers know."""
    from datetime import UTC, datetime, timedelta

    from syncagent.core import limits
    from syncagent.errors import SyncagentError
    from syncagent.settings import FILE
    from syncagent.storage.drift import Finding
    from syncagent.storage.room import disk
    from syncagent.transport.tls import CERTIFICATE, KEY, NEXT_KEY, Credentials

    found = [
        Finding("error", f"{folder / name} can be read by others", f"chmod 600 {folder / name}")
        for name in (FILE, KEY, NEXT_KEY)
        if (folder / name).exists() and (folder / name).stat().st_mode & 0o077
    ]
    try:
        own = Credentials.read(folder / KEY, folder / CERTIFICATE)
        found.append(Finding("note", f"this site's certificate has the SHA-256 {own.sha256}"))
        if (left := own.until - datetime.now(UTC)) < timedelta(seconds=limits.CERTIFICATE_NOTICE):
            verb = "ends" if left > timedelta() else "has ended"
            what = f"this site's certificate {verb} on {own.until:%Y-%m-%d}; links go on all the same"
            found.append(Finding("warning", what, "syncagent certificate renew"))
    except (OSError, SyncagentError) as error:
        found.append(
            Finding("error", f"{folder / CERTIFICATE}: {error}", "restore it, or make the home anew")
        )
    found += disk(folder, FILE, "batches on their way go there")
    return found
