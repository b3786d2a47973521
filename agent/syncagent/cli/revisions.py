"""`syncagent schema plan|apply --alembic`: the application's own revisions, each of them one change."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncagent.errors import RefusedError

if TYPE_CHECKING:
    from alembic.script import Script

    from syncagent.storage.commands import Connection
    from syncagent.storage.schema.planning import Plan
    from syncagent.storage.schema.versions import Asked

_LOOK = 1.0
"""Seconds between two looks at whether its rows are to be written."""
_PATIENCE = 30.0


@dataclass(frozen=True)
class How:
    """What the command line says of a change beside its statements."""

    role: str | None = None
    stride: int | None = None
    versions: str | None = None
    new_version: str | None = None
    metadata: str | None = None

    def difference(self, connection: "Connection", dsn: str) -> tuple[str, str]:
        """What brings the tables to the metadata, as SQL, and what that is called."""
        from syncagent.storage.schema import metadata

        name = str(self.metadata)
        return metadata.difference(connection, dsn, metadata.loaded(name)), name

    def asked(self) -> "Asked | None":
        from syncagent.storage.schema import versions

        return versions.asked(self.versions, self.new_version)


def pending(connection: "Connection", ini: Path) -> "list[Script]":
    """The revisions that this site has not got, the oldest first."""
    from syncagent.storage.schema import revisions

    return revisions.pending(connection, ini)


def planned(connection: "Connection", dsn: str, script: "Script", how: How) -> "Plan":
    """What a revision does; those before it are there."""
    from syncagent.storage.schema import planning, revisions

    revision = revisions.listened(dsn, script)
    row = connection.execute("select node from syncagent.local_site").fetchone()
    assert row is not None
    found = planning.plan_of(
        connection,
        planning.Source(
            f"{script.revision} {script.doc}",
            Path(script.path).read_text(encoding="utf-8"),
            (*revision.before, *revision.after),
        ),
        role=how.role,
        stride=how.stride,
        bucket="hour",
        patience=_PATIENCE,
        asked=how.asked(),
    )
    return planning.of_revision(found, revision, row["node"])


def under_way(connection: "Connection", script: "Script") -> str | None:
    """The change that carries this revision already, begun by an earlier command."""
    from syncagent.storage import registry

    change = registry.known(connection).schema.open
    if change is None or not change.name.startswith(f"{script.revision} "):
        return None
    return str(change.id)


def carry(
    connection: "Connection",
    dsn: str,
    change: str,
    script: "Script",
    timeout: float,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Until the change is over or stuck; its rows are written when it is their turn."""
    from syncagent.storage.requests import ask
    from syncagent.storage.schema import revisions

    until = time.monotonic() + timeout
    while True:
        if _are_due(connection, change):
            on_progress(f"{script.revision}: its rows are written")
            revisions.run_data(dsn, script)
        left = until - time.monotonic()
        answer = ask(
            connection,
            "schema-wait",
            {"id": change, "timeout": max(0.0, min(_LOOK, left))},
            seconds=_LOOK,
            on_progress=on_progress,
        )
        if answer["over"] or answer["stuck"] or left <= 0:
            return answer


def _are_due(connection: "Connection", change: str) -> bool:
    """Whether all that comes before its rows is done here."""
    from syncagent.storage import registry

    found = next((one for one in registry.known(connection).schema.changes if str(one.id) == change), None)
    here = connection.execute("select node, schema_epoch from syncagent.local_site").fetchone()
    if found is None or here is None:
        raise RefusedError("the change is not known here any more", hint="`syncagent schema history`")
    at = here["schema_epoch"] - found.base
    step = found.track[at] if 0 <= at < len(found.track) else None
    return step is not None and step.data is not None and step.data[1] == here["node"]
