"""Schema changes for people: what the catalog knows of them, from the site's database.

Invariant: reads only what was agreed; it works while no agent runs.
"""

from datetime import UTC, datetime
from typing import Any

from syncagent.core import schema as schemas
from syncagent.core.catalog import Catalog
from syncagent.core.schema import Change, Step
from syncagent.storage import registry
from syncagent.storage.commands import Connection
from syncagent.storage.schema import versions


def status(connection: Connection) -> dict[str, Any]:
    """The change under way, if there is one, and how far each site is."""
    catalog = registry.known(connection)
    here = connection.execute("select schema_epoch from syncagent.local_site").fetchone()
    assert here is not None
    change = catalog.schema.open
    return {
        "epoch": catalog.schema.epoch,
        "here": here["schema_epoch"],
        "sites": {name: catalog.schema.reached.get(node, 0) for node, name in catalog.holders.items()},
        "versions": versions.known(connection),
        "change": None if change is None else told(catalog, change),
    }


def history(connection: Connection) -> list[dict[str, Any]]:
    """Every change that is remembered, the newest first."""
    catalog = registry.known(connection)
    return [told(catalog, change) for change in reversed(catalog.schema.changes)]


def told(catalog: Catalog, change: Change) -> dict[str, Any]:
    """One change, with its steps."""
    reached = catalog.schema.reached
    steps = [
        _step(step, epoch, [name for node, name in catalog.holders.items() if reached.get(node, 0) < epoch])
        for epoch, step in enumerate(change.track, change.base + 1)
    ]
    return {
        "id": str(change.id),
        "name": change.name,
        "state": "waits for approval" if schemas.awaits_approval(change) else change.state,
        "phase": change.phase,
        "asked_at": datetime.fromtimestamp(change.at / 1000, UTC),
        "site": change.site,
        "steps": steps + [_step(step, None, []) for step in change.ahead],
        "failures": {catalog.name(node): why for node, why in change.failures.items()},
        "excluded": [catalog.name(node) for node in change.excluded],
        "sql": change.text,
    }


def _step(step: Step, epoch: int | None, lacking: list[str]) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "phase": step.phase,
        "what": step.what,
        "locks": step.locks,
        "state": "to come" if epoch is None else "under way" if lacking else "done",
        "missing": lacking,
        "statements": step.statements,
    }
