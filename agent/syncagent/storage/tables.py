"""Attaching tables and detaching them: names resolved safely, locks asked for politely.

Invariant: one command is one transaction; while it waits for a lock it holds none, so that it never stands
in an application's way for longer than one short try.
"""

import fnmatch
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from psycopg import errors
from psycopg.types.json import Jsonb

from syncagent.core.attachment import Policy
from syncagent.core.forest import Bucket
from syncagent.core.merge import Merges, Strategy
from syncagent.errors import Contended, RefusedError, UsageError
from syncagent.storage import constraints, drift, merges
from syncagent.storage.commands import Connection

_TRY_MS = 300
"""One try for a lock, well below deadlock_timeout: who queues behind us is not kept."""
_PAUSE = (0.2, 1.0)

_WRITERS = ("AccessShareLock", "RowShareLock")
"""Locks that leave room for attaching: readers go on."""
_ANYBODY: tuple[str, ...] = ()

OnWait = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A table that was asked for, and what stands against attaching it. A derived key is not one uuid column."""

    oid: int
    name: str
    schema: str
    relname: str
    key: tuple[str, ...]
    derived: bool
    partitioned: bool
    foreign: bool
    problems: tuple[str, ...]
    hints: tuple[str, ...]


@dataclass(frozen=True)
class Attached:
    """An attached table; `shipped` counts its present rows that go to the other sites."""

    table: str
    key: list[str]
    derived: bool
    shipped: int | None
    numbered: list[str]
    """Columns whose numbers are this site's own."""


def refuse_witness(connection: Connection) -> None:
    """Nothing is attached at a site that is there to vote."""
    here = connection.execute(
        "select from syncagent.member m join syncagent.local_site s on s.node = m.node where m.witness"
    )
    if here.rowcount:
        raise RefusedError(
            "this site is a witness: it votes and holds no rows", hint="attach at a site that has the table"
        )


def named(connection: Connection, names: Sequence[str], *, derive: bool) -> list[Candidate]:
    """The tables of these names, each once; UsageError for a name that means nothing."""
    oids = dict.fromkeys(resolve(connection, name) for name in names)
    return [candidate(connection, oid, derive=derive) for oid in oids]


def every(
    connection: Connection, schema: str | None, exclude: Sequence[str], *, derive: bool
) -> list[Candidate]:
    """Every table of the application that is not attached, but for those a pattern excludes."""
    return [
        candidate(connection, table.oid, derive=derive)
        for table in listed(connection, schema, exclude)
        if not table.attached and not table.excluded and table.kind != "f"
    ]


@dataclass(frozen=True)
class Listed:
    """A table of the application; foreign ones (kind f) are of another server."""

    oid: int
    kind: str
    attached: bool
    excluded: bool


def listed(connection: Connection, schema: str | None, exclude: Sequence[str]) -> list[Listed]:
    """Every table of the application, in the order of names; a partition belongs to its partitioned table."""
    if (
        schema is not None
        and not connection.execute("select from pg_namespace where nspname = %s", (schema,)).rowcount
    ):
        raise UsageError(f"there is no schema {schema}", hint="schema names are case-sensitive here")
    rows = connection.execute(
        """
        select c.oid::bigint as oid, n.nspname as schema, c.relname as name, c.relkind::text as kind, r.id is not null as attached
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        left join syncagent.replicated r on r.relation = c.oid
        where c.relkind in ('r', 'p', 'f') and c.relpersistence <> 't' and not c.relispartition
          and n.nspname <> all ('{pg_catalog,information_schema,syncagent}') and n.nspname !~ '^pg_'
          and n.nspname = coalesce(%s, n.nspname)
          and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
        order by 2, 3
        """,
        (schema,),
    ).fetchall()
    return [
        Listed(
            row["oid"],
            row["kind"],
            row["attached"],
            any(
                fnmatch.fnmatchcase(name, pattern)
                for pattern in exclude
                for name in (row["name"], f"{row['schema']}.{row['name']}")
            ),
        )
        for row in rows
    ]


def resolve(connection: Connection, name: str) -> int:
    """The oid of a table as people name it: as in SQL, or exactly as it is called."""
    oid = _oid(connection, name)
    if oid is not None:
        return oid
    near = connection.execute(
        """
        select string_agg(name, ', ') as names from (
            select format('%%I.%%I', n.nspname, c.relname) as name
            from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind in ('r', 'p') and n.nspname <> all ('{pg_catalog,information_schema,syncagent}')
              and lower(c.relname) = lower(replace(regexp_replace(%s, '^.*\\.', ''), '"', '')) order by 1 limit 5) as t
        """,
        (name,),
    ).fetchone()
    if near and near["names"]:
        raise UsageError(f"there is no table {name}", hint=f"do you mean {near['names']}?")
    raise UsageError(
        f"there is no table {name}", hint="name it with its schema, in double quotes where SQL needs them"
    )


def _oid(connection: Connection, name: str) -> int | None:
    for call in ("to_regclass(%s)", "to_regclass(quote_ident(%s))"):
        try:
            row = connection.execute(f"select {call}::oid::bigint as oid".encode(), (name,)).fetchone()
        except (
            errors.InvalidName,
            errors.SyntaxError,
            errors.FeatureNotSupported,
        ):  # a.b.c is another database
            continue
        if row and row["oid"]:
            return int(row["oid"])
    return None


def exactly(connection: Connection, schema: str, name: str) -> int | None:
    """The oid of the table that is called so, to the letter."""
    row = connection.execute(
        "select c.oid::bigint as oid from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s",
        (schema, name),
    ).fetchone()
    return None if row is None else int(row["oid"])


def candidate(connection: Connection, oid: int, *, derive: bool) -> Candidate:
    rows = connection.execute(
        "select problem, hint from syncagent._obstacles(%s::oid::regclass, %s)", (oid, derive)
    ).fetchall()
    found = connection.execute(
        """
        select format('%%I.%%I', n.nspname, c.relname) as name, coalesce(k.names::text[], '{}') as key, k.names is not null and not k.uuid as derived,
               c.relkind = 'p' as partitioned, c.relkind = 'f' as "foreign", n.nspname::text as schema, c.relname::text as relname
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        cross join lateral syncagent._key(c.oid) as k where c.oid = %s
        """,
        (oid,),
    ).fetchone()
    assert found is not None
    return Candidate(
        oid,
        found["name"],
        found["schema"],
        found["relname"],
        tuple(found["key"]),
        found["derived"],
        found["partitioned"],
        found["foreign"],
        tuple(row["problem"] for row in rows),
        tuple(row["hint"] for row in rows if row["hint"]),
    )


def refuse_obstacles(candidates: Sequence[Candidate]) -> None:
    """One error for all that stands against it."""
    bad = [candidate for candidate in candidates if candidate.problems]
    if not bad:
        return
    reasons = [f"{candidate.name}: {'; '.join(candidate.problems)}" for candidate in bad]
    hints = [hint for candidate in bad for hint in candidate.hints]
    if len(bad) == 1:
        raise RefusedError(
            f"table {bad[0].name} cannot be attached: {'; '.join(bad[0].problems)}", hint="\n".join(hints)
        )
    raise RefusedError(
        f"{len(bad)} tables cannot be attached, so none was",
        detail="\n".join(reasons),
        hint="\n".join([*hints, "or leave them out"]),
    )


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How tables are attached: see `syncagent attach`."""

    derive: bool
    ship: bool
    stride: int | None
    bucket: Bucket
    policies: Sequence[tuple[str, Policy]]
    strategy: Strategy
    merges: Merges = ()


def attach(
    connection: Connection, tables: Sequence[Candidate], terms: Terms, *, patience: float, on_wait: OnWait
) -> list[Attached]:
    """Attach all or none. Contended, naming who is in the way, after `patience` seconds."""

    def work() -> list[Attached]:
        return [_attach(connection, table, terms) for table in tables]

    return patiently(connection, [table.oid for table in tables], _WRITERS, work, patience, on_wait)


def _with_partitions(connection: Connection, oids: Sequence[int]) -> list[int]:
    rows = connection.execute(
        "select distinct n.node::oid::bigint as oid from unnest(%s::bigint[]) as t (oid)"
        " cross join lateral syncagent._nodes(t.oid::oid::regclass) as n (node)",
        (list(oids),),
    )
    return [row["oid"] for row in rows]


def _attach(connection: Connection, table: Candidate, terms: Terms) -> Attached:
    only = "" if table.partitioned else "only "
    connection.execute(f"lock table {only}{table.name} in share row exclusive mode".encode())
    made = connection.execute(
        "select syncagent._attach(%s::oid::regclass, %s, %s, %s, %s, %s, %s, %s) as id",
        (
            table.oid,
            terms.derive,
            terms.ship,
            terms.stride,
            terms.bucket,
            Jsonb(constraints.of_table(connection, table.oid, terms.policies)),
            terms.strategy,
            Jsonb(merges.of_table(connection, table.oid, terms.merges)),
        ),
    ).fetchone()
    assert made is not None
    row = connection.execute(
        "select r.key_columns::text[] as key, r.derived, coalesce(sum(cardinality(l.keys)), 0)::bigint as rows,"
        " array(select s.column_name::text from syncagent.stride s where s.relation = r.id order by 1) as numbered"
        " from syncagent.replicated r left join syncagent.log l on l.relation = r.id where r.id = %s group by r.id",
        (made["id"],),
    ).fetchone()
    assert row is not None
    return Attached(
        table.name, row["key"], row["derived"], row["rows"] if terms.ship else None, row["numbered"]
    )


def attached(connection: Connection, names: Sequence[str]) -> dict[int, str]:
    """Oid and name of attached tables, dropped ones too; RefusedError for one that is not attached."""
    found = {}
    for name in names:
        row = connection.execute(
            """
            select r.relation::oid::bigint as oid,
                   case when c.oid is null then format('%%I.%%I', r.schema_name, r.table_name)
                        else format('%%I.%%I', n.nspname, c.relname) end as name
            from syncagent.replicated r
            left join pg_class c on c.oid = r.relation left join pg_namespace n on n.oid = c.relnamespace
            where r.relation = %s::bigint::oid
               or c.oid is null and %s::text[] in (array[r.table_name::text], array[r.schema_name::text, r.table_name::text])
            """,
            (_oid(connection, name), _parts(connection, name)),
        ).fetchone()
        if row is None:
            raise RefusedError(
                f"table {name} is not attached", hint="`syncagent tables` lists those that are"
            )
        found[int(row["oid"])] = str(row["name"])
    return found


def _parts(connection: Connection, name: str) -> list[str]:
    """Schema and name, or name alone, without their quotes."""
    try:
        row = connection.execute("select parse_ident(%s) as parts", (name,)).fetchone()
    except errors.InvalidParameterValue:
        return [name]
    return [] if row is None else row["parts"]


def detach(connection: Connection, tables: Mapping[int, str], *, patience: float, on_wait: OnWait) -> None:
    """Detach all or none; their rows stay. Contended, naming who is in the way, after `patience` seconds."""

    def work() -> None:
        connection.execute("lock table syncagent.merge_lock in exclusive mode")
        for oid in tables:
            connection.execute("select syncagent._detach(%s::bigint::oid::regclass)", (oid,))

    merge_lock = _oid(connection, "syncagent.merge_lock")
    assert merge_lock is not None
    patiently(connection, [*tables, merge_lock], _ANYBODY, work, patience, on_wait)


def regenerate(connection: Connection, *, patience: float, on_wait: OnWait) -> int:
    """Make triggers and functions anew where they are not what they should be; returns for how many tables."""
    strays = connection.execute(
        "select relation, node::oid::bigint as node from syncagent._strays()"
    ).fetchall()
    stale = drift.stale(connection)

    def work() -> None:
        connection.execute("lock table syncagent.merge_lock in exclusive mode")
        for stray in strays:
            connection.execute(
                "select syncagent._cover(%s, %s::bigint::oid::regclass)", (stray["relation"], stray["node"])
            )
        for relation, _, _ in stale:
            connection.execute("select syncagent._generate(%s)", (relation,))

    if stale or strays:
        oids = [*(oid for _, oid, _ in stale), *(stray["node"] for stray in strays)]
        patiently(connection, oids, _ANYBODY, work, patience, on_wait)
    return len({relation for relation, _, _ in stale} | {stray["relation"] for stray in strays})


def enable(connection: Connection, table: str, trigger: str, *, patience: float, on_wait: OnWait) -> None:
    """Let a trigger of ours fire again; `table` is named as in SQL."""
    oid = resolve(connection, table)
    row = connection.execute(
        "select format('alter table %%s enable trigger %%I', %s::bigint::oid::regclass, %s::text) as statement",
        (oid, trigger),
    ).fetchone()
    assert row is not None
    statement = row["statement"].encode()
    patiently(connection, [oid], _ANYBODY, lambda: connection.execute(statement), patience, on_wait)


# ---- locks


def patiently(
    connection: Connection,
    oids: Sequence[int],
    compatible: Sequence[str],
    work: Callable[[], T],
    patience: float,
    on_wait: OnWait,
) -> T:
    """Do the work in one transaction, from the start again whenever a lock is not to be had at once."""
    deadline, said = time.monotonic() + patience, ""
    while True:
        try:
            with connection.transaction():
                connection.execute(f"set local lock_timeout = {_TRY_MS}".encode())
                return work()
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            held = _holders(connection, oids, compatible)
        if time.monotonic() >= deadline:
            raise Contended(
                f"a lock was not to be had within {patience:g} s; nothing was changed",
                detail=held,
                hint="end that transaction, or try again with a longer --lock-timeout",
            )
        if held != said:
            on_wait(held)
            said = held
        time.sleep(random.uniform(*_PAUSE))


def _holders(connection: Connection, oids: Sequence[int], compatible: Sequence[str]) -> str:
    """Who holds locks on these tables that exclude ours, in words."""
    rows = connection.execute(
        """
        select format('%%s is locked by pid %%s (%%s, %%s, transaction open for %%s s)', l.relation::regclass, a.pid,
                      coalesce(nullif(a.application_name, ''), a.usename), a.state,
                      round(extract(epoch from clock_timestamp() - a.xact_start))) as held
        from pg_locks l join pg_stat_activity a using (pid)
        where l.granted and l.relation = any (%s::bigint[]::oid[]) and l.pid <> pg_backend_pid() and l.mode <> all (%s)
          and l.database = (select oid from pg_database where datname = current_database())
        group by 1 order by 1
        """,
        (_with_partitions(connection, oids), list(compatible)),
    ).fetchall()
    return "\n".join(row["held"] for row in rows) or "whoever held it has let go meanwhile"
