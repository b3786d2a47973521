"""How the columns of a table are joined whose strategy is `merge`: chosen, and checked.

Invariant: a choice names a column that is there, of a type that goes with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from psycopg.types.json import Jsonb

from syncagent.core.merge import Merges, Strategy
from syncagent.errors import RefusedError, UsageError
from syncagent.storage.commands import Connection

if TYPE_CHECKING:
    from syncagent.storage.tables import Candidate


def choices(typed: Sequence[str], strategy: Strategy) -> Merges:
    """COLUMN=HOW as typed; UsageError for what is neither, and where columns are not merged."""
    if typed and strategy != "merge":
        raise UsageError(
            "how columns are merged is said, and the strategy is not merge", hint="use --strategy merge, too"
        )
    found = {}
    for words in typed:
        name, _, how = words.rpartition("=")
        if not name or not how:
            raise UsageError(
                f"{words!r} does not say how a column is merged",
                hint="write COLUMN=counter, or set, append, max, min, latest, function:SCHEMA.NAME",
            )
        found[name] = how
    return tuple(sorted(found.items()))


def of_table(connection: Connection, oid: int, chosen: Merges) -> dict[str, str]:
    """Those of the choices that name a column of this table, functions as they are here."""
    names = _names(connection, [oid])
    return pinned(connection, oid, {name: how for name, how in chosen if name in names})


def pinned(connection: Connection, oid: int, chosen: Mapping[str, str]) -> dict[str, str]:
    """What is agreed on: a function is named with a digest of its definition."""
    row = connection.execute(
        "select syncagent._pinned(%s::bigint::oid::regclass, %s) as merges", (oid, Jsonb(dict(chosen)))
    ).fetchone()
    assert row is not None
    found: dict[str, str] = row["merges"]
    return found


def refuse_unknown(connection: Connection, tables: Mapping[int, str], chosen: Merges) -> None:
    """RefusedError for a choice that names a column of none of these tables."""
    names = _names(connection, list(tables))
    for name, _ in chosen:
        if name not in names:
            raise RefusedError(
                f"{' and '.join(tables.values())} {'have' if len(tables) > 1 else 'has'} no column {name}",
                hint="a column is named as it is called, without quotes",
            )


def judged(connection: Connection, candidates: "Sequence[Candidate]", chosen: Merges) -> "list[Candidate]":
    """The candidates, each also with what stands against merging its columns so."""
    found = []
    for candidate in candidates:
        rows = obstacles(connection, candidate.oid, "merge", of_table(connection, candidate.oid, chosen))
        found.append(
            replace(
                candidate,
                problems=candidate.problems + tuple(row["problem"] for row in rows),
                hints=candidate.hints + tuple(row["hint"] for row in rows),
            )
        )
    return found


def obstacles(
    connection: Connection, oid: int, strategy: Strategy, chosen: Mapping[str, str]
) -> list[dict[str, str]]:
    """What stands against merging a table so: problem and hint."""
    return connection.execute(
        "select problem, hint from syncagent._merge_obstacles(%s::bigint::oid::regclass, %s, %s)",
        (oid, strategy, Jsonb(dict(chosen))),
    ).fetchall()


def _names(connection: Connection, oids: Sequence[int]) -> set[str]:
    rows = connection.execute(
        "select a.attname::text as name from pg_attribute a"
        " where a.attrelid = any (%s::bigint[]::oid[]) and a.attnum > 0 and not a.attisdropped",
        (list(oids),),
    ).fetchall()
    return {row["name"] for row in rows}
