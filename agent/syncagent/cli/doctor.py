"""`syncagent doctor`: what is wrong, and the command that mends it."""

from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, home_of
from syncagent.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from syncagent.settings import Settings
    from syncagent.storage.commands import Connection
    from syncagent.storage.drift import Finding
    from syncagent.storage.mending import Mended

_PATIENCE = 30.0
"""Seconds to try for a lock that others hold."""


def doctor(
    *,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what has one right state: rights of the home's files, generated functions, disabled triggers. The rest is yours to decide.",
        ),
    ] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine settings, grants, certificates, clocks, triggers, drift, peers and disk; exit 1 if something is broken."""
    from syncagent.settings import load
    from syncagent.storage import mending
    from syncagent.storage.commands import connected

    folder = home_of(home)
    settings: Settings | None = None
    try:
        settings = load(folder)
    except UsageError:
        if dsn is None:
            raise
    with connected(dsn or (settings.dsn if settings else "")) as connection:
        findings, mended = examine(connection, folder, settings, dsn), []
        if fix and (mended := mending.mend(connection, findings, patience=_PATIENCE, on_wait=_waiting)):
            findings = examine(connection, folder, settings, dsn)
    if as_json:
        render.json({"mended": mended, "findings": findings} if fix else findings)
    else:
        _tell_mended(mended)
        _tell(findings)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def examine(
    connection: "Connection", folder: "Path", settings: "Settings | None", dsn: str | None
) -> "list[Finding]":
    """Everything that can be seen from the home, if there is one, and from the database; what is worst comes first."""
    from syncagent.storage import checks

    findings = _home(folder) if settings else []
    way = dsn or (settings.dsn if settings else "")
    findings += checks.examine(connection, way, settings.max_clock_skew if settings else None)
    if settings:
        findings += checks.identity(connection, settings.site, settings.incarnation, certificate_of(folder))
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def certificate_of(folder: "Path") -> str | None:
    """The SHA-256 of the home's certificate, if it can be read."""
    from syncagent.errors import SyncagentError
    from syncagent.transport.tls import CERTIFICATE, KEY, Credentials

    try:
        return Credentials.read(folder / KEY, folder / CERTIFICATE).sha256
    except (OSError, SyncagentError):
        return None


def _waiting(held: str) -> None:
    render.say(f"waiting: {held}")


def _tell_mended(mended: "list[Mended]") -> None:
    for one in mended:
        render.say(f"{one.what}: {one.done}" + (f": {one.failed}" if one.failed else ""))


def _tell(findings: "list[Finding]") -> None:
    if findings:
        render.show(render.findings(findings))
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    if errors or warnings:
        render.say(f"{render.counted(errors, 'error')}, {render.counted(warnings, 'warning')}")
    else:
        render.say("everything is as it should be")
    if any(finding.fix for finding in findings):
        render.say("some of it is mended by: syncagent doctor --fix")


def _home(folder: "Path") -> "list[Finding]":
    """The files of the home: secrets kept to their owner, the certificate that peers know."""
    from datetime import UTC, datetime, timedelta

    from syncagent.core import limits
    from syncagent.errors import SyncagentError
    from syncagent.settings import FILE
    from syncagent.storage.drift import Finding, Fix
    from syncagent.storage.room import disk
    from syncagent.transport.tls import CERTIFICATE, KEY, NEXT_KEY, Credentials

    found = [
        Finding(
            "error",
            f"{folder / name} can be read by others",
            f"chmod 600 {folder / name}",
            Fix("make private", str(folder / name)),
        )
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
