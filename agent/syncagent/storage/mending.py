"""What `syncagent doctor --fix` does: what has one right state, known here, and a way to it that moves no row and asks no other site.

Everything else that is found is somebody's decision. Invariant: done twice is done once, and each is done whole or not at
all; one that cannot be done is said, and the next one is tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from syncagent.errors import SyncagentError
from syncagent.storage import drift, tables
from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding, Fix
from syncagent.storage.tables import OnWait


@dataclass(frozen=True)
class Mended:
    """A finding and what was done about it, or why it could not be."""

    what: str
    done: str
    failed: str | None = None


def mend(
    connection: Connection, findings: Sequence[Finding], *, patience: float, on_wait: OnWait
) -> list[Mended]:
    """Do what every finding asks for; what several ask for is done once."""
    told: dict[Fix, list[str]] = {}
    for finding in findings:
        if finding.fix is not None:
            told.setdefault(finding.fix, []).append(finding.what)
    mended = []
    for fix, whats in told.items():
        failed = None
        try:
            done = _do(connection, fix, patience, on_wait)
        except (SyncagentError, psycopg.Error, OSError) as error:
            done, failed = f"could not {fix.kind}", str(error).partition("\n")[0]
        mended += [Mended(what, done, failed) for what in whats]
    return mended


def _do(connection: Connection, fix: Fix, patience: float, on_wait: OnWait) -> str:
    match fix.kind:
        case "make private":
            Path(fix.name).chmod(0o600)
            return "only its owner can read it now"
        case "make anew":
            tables.regenerate(connection, patience=patience, on_wait=on_wait)
            return "triggers and functions were made anew"
        case "enable":
            tables.enable(connection, fix.name, fix.trigger, patience=patience, on_wait=on_wait)
            return "it fires again"
        case "restore":
            with connection.transaction():
                for name in fix.name.split():
                    for statement in drift.restoring(name):
                        connection.execute(statement.encode())
            return "made as this version has it"
