"""What is done where rows of two sites break a constraint: read, and chosen.

Invariant: a choice names a constraint that is there; keep-both is chosen only where a row has something to yield, and merge only
where two rows can become one.
"""

from collections.abc import Mapping, Sequence

from syncagent.core.attachment import Policy
from syncagent.errors import RefusedError, UsageError
from syncagent.storage.commands import Connection

ON_UNIQUE: tuple[Policy, ...] = ("keep-both", "merge", "report")
ON_FOREIGN_KEY: tuple[Policy, ...] = ("restore-parent", "cascade", "report")


def choices(on_unique: Sequence[str], on_foreign_key: Sequence[str]) -> tuple[tuple[str, Policy], ...]:
    """CONSTRAINT=POLICY as typed; UsageError for what is neither."""
    found: dict[str, Policy] = {}
    for words, policies in (
        *((words, ON_UNIQUE) for words in on_unique),
        *((words, ON_FOREIGN_KEY) for words in on_foreign_key),
    ):
        name, _, word = words.rpartition("=")
        policy = next((policy for policy in policies if policy == word), None)
        if not name or policy is None:
            raise UsageError(
                f"{words!r} does not say what is done about a constraint",
                hint=f"write CONSTRAINT={' or CONSTRAINT='.join(policies)}",
            )
        found[name] = policy
    return tuple(sorted(found.items()))


def of_table(connection: Connection, oid: int, chosen: Sequence[tuple[str, Policy]]) -> dict[str, Policy]:
    """Those of the choices that name a constraint of this table."""
    names = _names(connection, [oid])
    return {name: policy for name, policy in chosen if name in names}


def refuse_unfit(
    connection: Connection, tables: Mapping[int, str], chosen: Sequence[tuple[str, Policy]]
) -> None:
    """RefusedError for a choice that names a constraint of none of these tables, which need not be attached yet, or rows that
    cannot be merged."""
    _refuse_unknown(connection, tables, chosen)
    _refuse_unmergeable(connection, tables, chosen)


def _refuse_unknown(
    connection: Connection, tables: Mapping[int, str], chosen: Sequence[tuple[str, Policy]]
) -> None:
    names = _names(connection, list(tables))
    for name, _ in chosen:
        if name not in names:
            raise RefusedError(
                f"{' and '.join(tables.values())} {'have' if len(tables) > 1 else 'has'} no constraint {name} that rows of two sites could break",
                hint=f"there are: {', '.join(sorted(names))}" if names else "there are none",
            )


def refuse_nothing_to_yield(connection: Connection, oid: int, chosen: Sequence[tuple[str, Policy]]) -> None:
    """RefusedError if rows of an attached table cannot both be kept."""
    rows = connection.execute(
        "select u.name::text as name from syncagent.replicated r cross join lateral syncagent._rules(r.id) as u"
        " where r.relation = %s::bigint::oid and u.column_name is null",
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


def _refuse_unmergeable(
    connection: Connection, tables: Mapping[int, str], chosen: Sequence[tuple[str, Policy]]
) -> None:
    rows = connection.execute(
        "select c.relname::text as name, syncagent._merge_problem(i.indrelid::regclass, i.indexrelid::regclass) as problem"
        " from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = any (%s::bigint[]::oid[])",
        (list(tables),),
    ).fetchall()
    problems = {row["name"]: row["problem"] for row in rows if row["problem"]}
    for name, policy in chosen:
        if policy == "merge" and name in problems:
            raise RefusedError(
                f"rows that collide in {name} cannot be merged: {problems[name]}",
                hint=f"keep both: --on-unique {name}=keep-both; or settle them by hand: --on-unique {name}=report",
            )


def _names(connection: Connection, oids: Sequence[int]) -> set[str]:
    rows = connection.execute(
        "select c.relname::text as name from pg_index i join pg_class c on c.oid = i.indexrelid"
        " where i.indrelid = any (%(oids)s::bigint[]::oid[]) and (i.indisunique or i.indisexclusion) and not i.indisprimary"
        " union all select f.conname::text from pg_constraint f"
        " where f.conrelid = any (%(oids)s::bigint[]::oid[]) and f.contype = 'f'",
        {"oids": list(oids)},
    ).fetchall()
    return {row["name"] for row in rows}
