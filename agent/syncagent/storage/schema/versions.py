"""Two versions of the application at once: each has a schema of views over the same tables, in the shape that it knows.

The old version's views are made before anything is changed, the new one's when every row has what they show; where the old shape
is dropped, the old versions go first, when nobody uses them any more.

Invariant: a view names columns as the tables have them when it is made; from then on the server keeps it right.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg.types.json import Jsonb

from syncagent.core.batch import Table
from syncagent.core.schema import Phase, Shown, Step, Version
from syncagent.errors import RefusedError, UsageError
from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding
from syncagent.storage.schema.looking import BRIEF, Look

_MAX_NAME = 63
_NONE = "none of a table"
_LOOKS = 10
_LOOK = 0.1
"""How often, and how many seconds apart, it is looked who uses a version: a server tells only of what is under way."""
_NAMED = 5
_INVOKER = 150000
"""The first server whose views can act with the rights of whoever uses them."""


@dataclass(frozen=True)
class Asked:
    """The names of the two; None: the one that is there, and the next number."""

    old: str | None = None
    new: str | None = None


@dataclass(frozen=True)
class Versions:
    """Those of a change. `there` are the versions of its schema that are here already, `before` and `after` the tables as they are and as they
    will be."""

    base: str
    old: str
    new: str
    there: tuple[str, ...]
    before: tuple[Shown, ...]
    after: tuple[Shown, ...] = ()

    @property
    def gone(self) -> tuple[str, ...]:
        """What the change leaves behind."""
        return tuple(dict.fromkeys((*self.there, self.old)))


def asked(text: str | None, new: str | None) -> Asked | None:
    """What `--versions` and `--as` say. UsageError where that is nothing."""
    if text is None:
        return None if new is None else Asked(None, _named(new))
    if new is not None:
        raise UsageError("--versions names the new one, too", hint="--versions OLD:NEW, or --as NEW")
    if text == "auto":
        return Asked()
    old, colon, new = text.partition(":")
    if not colon or old == new:
        raise UsageError("--versions are two names", hint="--versions app_v12:app_v13, or --versions auto")
    return Asked(_named(old), _named(new))


def _named(name: str) -> str:
    if not name or len(name.encode()) > _MAX_NAME or name.startswith("pg_"):
        raise UsageError(f"{name or 'nothing'} is no name of a version", hint="such as app_v13")
    return name


def known(connection: Connection) -> list[dict[str, str]]:
    """The versions that are here, the oldest first: name and base."""
    return connection.execute(
        "select name::text, base::text from syncagent.app_version order by made_at, name"
    ).fetchall()


def begin(look: Look, wanted: Asked, role: str | None) -> Versions:
    """Before the statements are tried. Versions that are there are out of their way from then on."""
    base = look.one("select current_schema()::text")
    if base is None:
        raise UsageError(
            "no schema of the search path is here", hint="set it in the site's dsn: options=-csearch_path=..."
        )
    there = tuple(one["name"] for one in known(look.connection) if one["base"] == base)
    numbers = [int(match[1]) for name in there if (match := re.search(r"(\d+)$", name))]
    old = wanted.old or (there[-1] if there else f"{base}_v1")
    new = wanted.new or f"{base}_v{max(numbers, default=1) + 1}"
    if new in there:
        raise RefusedError(
            f"there is a version {new} already", hint=f"another name, or: syncagent schema drop-version {new}"
        )
    if new == old:
        raise UsageError(
            f"{new} would be the old version and the new one", hint="--versions OLD:NEW names both"
        )
    found = Versions(base, old, new, there, _shown(look, base))
    if not found.before:
        raise UsageError(f"no table of schema {base} is attached", hint="syncagent attach TABLE")
    if old not in there:
        with look.connection.transaction(force_rollback=True):
            make(look.connection, Version(old, base, found.before), role)
    for name in there:
        look.connection.execute("select syncagent._drop_version(%s, %s)", (name, role))
    look.version = new
    return found


def end(look: Look, found: Versions, role: str | None) -> Versions:
    """After the statements were tried."""
    found = replace(found, after=_shown(look, found.base))
    make(look.connection, Version(found.new, found.base, found.after), role)
    return found


def make(connection: Connection, version: Version, role: str | None) -> None:
    """The schema and its views, owned by a role or by the present one."""
    views = [
        {
            "view": shown.name,
            "schema": shown.table.schema,
            "table": shown.table.name,
            "columns": shown.columns,
        }
        for shown in version.views
    ]
    connection.execute(
        "select syncagent._make_version(%s, %s, %s, %s)", (version.name, version.base, Jsonb(views), role)
    )


def set_aside(connection: Connection) -> Any:
    """What brings the views of all versions back: meanwhile columns can be changed on which they hang."""
    row = connection.execute("select syncagent._views_aside() as kept").fetchone()
    assert row is not None
    return row["kept"]


def put_back(connection: Connection, kept: Any) -> None:
    connection.execute("select syncagent._views_back(%s)", (Jsonb(kept),))


def refuse_users(connection: Connection, names: Sequence[str]) -> None:
    """Raises RefusedError that names who still uses one of these versions."""
    found: dict[str, None] = {}
    for look in range(_LOOKS):
        rows = connection.execute(
            "select format('%%s %%s', u.who, u.how) as text from unnest(%s::name[]) as v (name) cross join syncagent.version_users(v.name) as u"
            " order by u.who, u.how",
            (list(names),),
        ).fetchall()
        found |= {row["text"]: None for row in rows}
        if look + 1 < _LOOKS:
            time.sleep(_LOOK)
    if found:
        told = list(found)[:_NAMED]
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise RefusedError(
            f"{', '.join(names)} is still used: {'; '.join(told)}{more}",
            hint="move them to the new version, and it is tried again by itself; or `syncagent schema abort`",
        )


def findings(connection: Connection) -> Iterator[Finding]:
    """For `doctor`: views that show rows which the policies of their tables hide."""
    for row in connection.execute(
        """
        select v.name::text as version, format('%I.%I', v.name, c.relname) as view, string_agg(distinct t.oid::regclass::text, ', ') as tables
        from syncagent.app_version v join pg_namespace n on n.nspname = v.name join pg_class c on c.relnamespace = n.oid and c.relkind = 'v'
        join pg_rewrite w on w.ev_class = c.oid
        join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refclassid = 'pg_class'::regclass
        join pg_class t on t.oid = d.refobjid and t.relrowsecurity
        where not exists (select from pg_options_to_table(c.reloptions) as o
                          where o.option_name = 'security_invoker' and o.option_value in ('true', 'on', 'yes', '1'))
        group by v.name, c.relname order by 2
        """
    ).fetchall():
        old = connection.info.server_version < _INVOKER
        yield Finding(
            "error",
            f"view {row['view']} shows all rows of {row['tables']}, row security or not: it acts with the rights of its owner"
            + (", for this server knows no other views" if old else ""),
            f"syncagent schema drop-version {row['version']}"
            if old
            else f"alter view {row['view']} set (security_invoker = true)",
        )


def _shown(look: Look, base: str) -> tuple[Shown, ...]:
    """The attached tables of a schema, and those that the change makes, as they are."""
    rows = look.connection.execute(
        "select c.relname::text as name, array_agg(a.attname::text order by a.attnum) as columns from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " where n.nspname = %s and not c.relispartition and c.relkind in ('r', 'p')"
        " and (c.oid = any (%s::bigint[]::oid[]) or c.oid in (select r.relation from syncagent.replicated r)) group by 1 order by 1",
        (base, sorted(look.made)),
    ).fetchall()
    return tuple(
        Shown(row["name"], Table(base, row["name"]), tuple((name, name) for name in row["columns"]))
        for row in rows
    )


# ---- the steps


def around(found: Versions, steps: Sequence[Step]) -> list[tuple[int, Step]]:
    """What is done beside the steps of a change, each with the place before which it comes."""
    first = next((place for place, step in enumerate(steps) if step.contracts), len(steps))
    if any(step.phase in ("expand", "write-dual", "backfill") for step in steps[first:]):
        raise RefusedError(
            "rows are written, or something is added, after the old shape has gone",
            hint="split the revision: what drops and renames comes last",
        )
    more = []
    if found.old not in found.there:
        more.append((0, _made(found.old, found.base, found.before, "expand")))
    more.append((first, _made(found.new, found.base, _mapped(found.after, steps[first:]), "read-new")))
    if first < len(steps):
        more += [(first, step) for step in dropped(found.gone)]
    return more


def dropped(names: Sequence[str]) -> list[Step]:
    """Versions go, when nobody uses them."""
    listed = ", ".join(names)
    return [
        Step(
            phase="contract",
            what=f"who still uses {listed}",
            locks=_NONE,
            manner="survey",
            unmakes=tuple(names),
        ),
        Step(
            phase="contract",
            what=f"drop version {listed}",
            locks=f"{BRIEF}, of its views",
            unmakes=tuple(names),
        ),
    ]


def _made(name: str, base: str, views: tuple[Shown, ...], phase: Phase) -> Step:
    return Step(
        phase=phase,
        what=f"version {name} of {base}",
        locks=_NONE,
        makes=(Version(name, base, views),),
    )


def _mapped(views: Sequence[Shown], contracting: Sequence[Step]) -> tuple[Shown, ...]:
    """Tables as they will be, by the names that they have before those steps."""
    for step in reversed(contracting):
        columns = {(table, after): before for table, before, after in step.columns}
        tables = {after: before for before, after in step.renamed}
        views = [
            Shown(
                shown.name,
                tables.get(shown.table, shown.table),
                tuple((name, columns.get((shown.table, at), at)) for name, at in shown.columns),
            )
            for shown in views
        ]
    return tuple(views)
