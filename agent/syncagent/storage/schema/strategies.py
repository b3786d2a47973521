"""A table's strategy changes, in steps: what is asked of the cluster.

Invariant: changes nothing here; what stands against the new strategy at this site is said before anything is asked.
"""

import json
from dataclasses import dataclass

from psycopg import sql

from syncagent.core.batch import Table
from syncagent.core.merge import Merges, Strategy
from syncagent.core.schema import Remerged, Step
from syncagent.errors import RefusedError
from syncagent.storage import attaching, merges, tables
from syncagent.storage.commands import Connection
from syncagent.storage.schema.planning import Plan, Planned

_LOCKS = "ACCESS EXCLUSIVE, for a moment"


@dataclass(frozen=True)
class Known:
    """An attached table and how it is merged; `whole` while its strategy changes."""

    oid: int
    relation: int
    table: Table
    strategy: Strategy
    merges: Merges
    whole: bool


def known(connection: Connection, name: str) -> Known:
    """RefusedError if no such table is attached."""
    (table,) = attaching.named(connection, [name])
    (oid,) = tables.attached(connection, [name])
    row = connection.execute(
        "select id, strategy, merges, whole is not null as whole from syncagent.replicated where relation = %s::bigint::oid",
        (oid,),
    ).fetchone()
    assert row is not None
    chosen = tuple(sorted(row["merges"].items()))
    return Known(oid, row["id"], table, row["strategy"], chosen, row["whole"])


def plan(connection: Connection, now: Known, strategy: Strategy, chosen: Merges) -> Plan:
    """RefusedError where it cannot be; without steps, it is so already."""
    merges.refuse_unknown(connection, {now.oid: str(now.table)}, chosen)
    chosen = tuple(sorted(merges.pinned(connection, now.oid, dict(chosen)).items()))
    _refuse_obstacles(connection, now, strategy, chosen)
    _refuse_siblings(connection, now)
    typed = " ".join([strategy, *(f"--merge {name}={how}" for name, how in chosen)])
    text = f"-- syncagent strategy {now.table} {typed}"
    steps = [] if (now.strategy, now.merges) == (strategy, chosen) else _steps(now, strategy, chosen)
    return Plan(f"strategy of {now.table}", text, tuple(Planned(0, step) for step in steps), ())


def _steps(now: Known, strategy: Strategy, chosen: Merges) -> list[Step]:
    steps: list[Step] = []
    what = " ".join([strategy, *(f"{name}={how}" for name, how in chosen)])
    if chosen:
        steps.append(
            Step(
                phase="expand",
                what=f"whether the columns of {now.table} can be merged so",
                locks="none of a table",
                statements=(_obstacles(now.table, strategy, chosen),),
                manner="survey",
            )
        )
    by_column = now.strategy != "lww"
    if by_column:
        steps.append(
            Step(
                phase="write-dual",
                what=f"rows of {now.table} are written whole: of two writes at once the later one wins the row",
                locks=_LOCKS,
                remerges=Remerged(now.table, now.strategy, now.merges, whole=True),
            )
        )
    steps.append(
        Step(
            phase="contract" if by_column else "expand",
            what=f"rows of {now.table} are merged by {what}",
            locks=_LOCKS,
            strict=True,
            remerges=Remerged(now.table, strategy, chosen),
            delivered=by_column,
        )
    )
    return steps


def _obstacles(table: Table, strategy: Strategy, chosen: Merges) -> str:
    return (
        sql.SQL(
            'select problem as "not so:" from syncagent._merge_obstacles(to_regclass({}), {}, {}::text::jsonb)'
        )
        .format(
            sql.Literal(sql.Identifier(table.schema, table.name).as_string()),
            sql.Literal(strategy),
            sql.Literal(json.dumps(dict(chosen))),
        )
        .as_string()
    )


def _refuse_obstacles(connection: Connection, now: Known, strategy: Strategy, chosen: Merges) -> None:
    if found := merges.obstacles(connection, now.oid, strategy, dict(chosen)):
        raise RefusedError(
            f"{now.table} cannot be merged so",
            detail="\n".join(row["problem"] for row in found),
            hint="\n".join(row["hint"] for row in found),
        )


def _refuse_siblings(connection: Connection, now: Known) -> None:
    row = connection.execute("select syncagent._open_siblings(%s) as rows", (now.relation,)).fetchone()
    if row is not None and row["rows"]:
        raise RefusedError(
            f"{row['rows']} row(s) of {now.table} have siblings that nobody has settled",
            hint="`syncagent conflicts list --open` shows them; what is written to the column settles them",
        )
