"""What is done about two rows with one value of a unique or exclusion constraint: read, and chosen.

Invariant: a choice names a constraint that is there, and keep-both is chosen only where a row has something to yield.
"""

from collections.abc import Mapping, Sequence

from syncagent.core.catalog import OnUnique
from syncagent.errors import RefusedError, UsageError
from syncagent.storage.commands import Connection

POLICIES: tuple[OnUnique, ...] = ("keep-both", "report")


def choices(given: Sequence[str]) -> tuple[tuple[str, OnUnique], ...]:
    """CONSTRAINT=POLICY as typed; UsageError for what is neither."""
    found: dict[str, OnUnique] = {}
    for words in given:
        name, equals, word = words.rpartition("=")
        policy = next((policy for policy in POLICIES if policy == word), None)
        if not equals or not name or policy is None:
            raise UsageError(
                f"{words!r} does not say what is done about a constraint",
                hint=f"write CONSTRAINT={' or CONSTRAINT='.join(POLICIES)}",
            )
        found[name] = policy
    return tuple(sorted(found.items()))


def chosen(connection: Connection, oid: int) -> dict[str, OnUnique]:
    """What has been chosen for an attached table, also for constraints that only other sites have."""
    row = connection.execute(
        "select on_unique from syncagent.replicated where relation = %s::bigint::oid", (oid,)
    ).fetchone()
    return dict(row["on_unique"]) if row else {}


def of_table(connection: Connection, oid: int, chosen: Sequence[tuple[str, OnUnique]]) -> dict[str, OnUnique]:
    """Those of the choices that name a constraint of this table."""
    names = _names(connection, [oid])
    return {name: policy for name, policy in chosen if name in names}


def refuse_unknown(
    connection: Connection, tables: Mapping[int, str], chosen: Sequence[tuple[str, OnUnique]]
) -> None:
    """RefusedError for a choice that names a constraint of none of these tables."""
    names = _names(connection, list(tables))
    for name, _ in chosen:
        if name not in names:
            raise RefusedError(
                f"{' and '.join(tables.values())} {'have' if len(tables) > 1 else 'has'} no unique or exclusion constraint {name}",
                hint=f"there are: {', '.join(sorted(names))}" if names else "there are none",
            )


def refuse_nothing_to_yield(connection: Connection, oid: int, chosen: Sequence[tuple[str, OnUnique]]) -> None:
    """RefusedError if rows of an attached table cannot both be kept."""
    rows = connection.execute(
        "select constraint_name as name from syncagent.constraints_of(%s::bigint::oid::regclass) where column_name is null",
        (oid,),
    ).fetchall()
    stuck = {row["name"] for row in rows}
    for name, policy in chosen:
        if policy == "keep-both" and name in stuck:
            raise RefusedError(
                f"constraint {name} has no column that could become null, or be marked: a row has nothing to yield",
                detail="columns of the key and of foreign keys are left alone, and so is what is neither text nor may be null",
                hint="rows that collide are parked: settle them by hand, or make one of its columns nullable",
            )


def _names(connection: Connection, oids: Sequence[int]) -> set[str]:
    rows = connection.execute(
        "select c.relname::text as name from pg_index i join pg_class c on c.oid = i.indexrelid"
        " where i.indrelid = any (%s::bigint[]::oid[]) and (i.indisunique or i.indisexclusion) and not i.indisprimary",
        (list(oids),),
    ).fetchall()
    return {row["name"] for row in rows}
