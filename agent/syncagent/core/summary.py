"""What a comparison has found, in numbers and words for people."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from syncagent.core import comparison, forest, stamp
from syncagent.core.batch import Table
from syncagent.core.comparison import Difference, Outcome

_SHOWN = 100
"""Differing rows in an answer."""


def by_table(outcome: Outcome) -> dict[str, int]:
    """How many rows of each table differ, as far as it was counted."""
    counts: dict[str, int] = {}
    for found in outcome.differences:
        counts[str(found.table)] = counts.get(str(found.table), 0) + 1
    for span in (*outcome.spans, *outcome.stale):
        counts.setdefault(str(outcome.scope.tables[span.table]), 0)
    return counts


def hours(differences: Sequence[Difference]) -> dict[str, int]:
    """How many rows differ of those whose keys were made in an hour, or have a first byte and no time."""
    counts: dict[str, int] = {}
    for found in differences:
        hour = _hour(found.key)
        counts[hour] = counts.get(hour, 0) + 1
    return counts


def _hour(key: UUID) -> str:
    if not stamp.is_timed(key):
        return f"keys {key.hex[:2]}…"
    seconds = forest.position(key) // forest.WIDTHS["hour"] * 3600
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:00 UTC")
    except (ValueError, OverflowError, OSError):
        return f"hour {seconds // 3600}"


def told(outcome: Outcome) -> dict[str, Any]:
    """What `verify` answers of one peer."""
    agreed = outcome.scope
    counts = by_table(outcome)
    other: Mapping[Table, str] = comparison.unlike(outcome.here, outcome.there)
    before = None if agreed.whole else min((sealed[1] for sealed in agreed.sealed if sealed[1]), default=0)
    return {
        "equal": outcome.equal and not other,
        "complete": agreed.whole and not agreed.left_out,
        "open": len(agreed.left_out),
        "before": None if before is None else stamp.to_seconds(before),
        "root": outcome.root.hex(),
        "tables": [
            {"table": str(table), "rows": rows, "differing": counts.get(str(table), 0)}
            for table, rows in outcome.tables.items()
        ],
        "unlike": {str(table): why for table, why in sorted(other.items())},
        "hours": hours(outcome.differences),
        "differences": [
            {
                "table": str(found.table),
                "key": found.shown,
                "what": found.what,
                "stamp_here": None if found.here is None else str(found.here),
                "stamp_there": None if found.there is None else str(found.there),
            }
            for found in outcome.differences[:_SHOWN]
        ],
        "stale": len(outcome.stale),
        "crowded": len(outcome.spans),
        "more": outcome.more or len(outcome.differences) > _SHOWN,
    }
