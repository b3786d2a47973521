"""What somebody has typed by hand at this site, planned as a change for all the others.

The plan is the ordinary one: what was typed is taken back in the rehearsal, which is rolled back, and planned as if a person had
written it into a file. The site that has it already leaves its steps out (`core.schema.Adopted`).

Invariant: what cannot be carried by `schema apply` is not carried by this either.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
from psycopg import sql

from syncagent.core.batch import Table
from syncagent.core.forest import Bucket
from syncagent.core.schema import Adopted, Step
from syncagent.storage import tables
from syncagent.storage.commands import Connection
from syncagent.storage.schema import planning, reading
from syncagent.storage.schema.looking import BRIEF, SHARED
from syncagent.storage.schema.planning import Plan, Planned, Refusal
from syncagent.storage.schema.reading import Statement

_KINDS = ("column", "constraint", "index", "table")
"""In this order they are carried, and in the other one taken back."""
_BUCKET: Bucket = "hour"


@dataclass(frozen=True)
class Part:
    """One thing that was typed: `forth` carries it, None if nothing can; `back` takes it back."""

    relation: int
    table: Table
    owner: str | None
    kind: str
    name: str
    agreed: str | None
    now: str | None
    became: str | None
    what: str
    forth: list[str] | None
    back: list[str] | None
    rehearse: list[str] | None

    @property
    def breaks(self) -> bool:
        """Rows of the table do not flow, and nothing else can be done to it here, before all sites have it."""
        before, now = json.loads(self.agreed or "{}"), json.loads(self.now or "{}")
        renamed = self.became is not None or before.get("type") != now.get("type")
        return self.kind == "table" or (self.kind == "column" and self.agreed is not None and renamed)

    @property
    def role(self) -> str | None:
        """As whom it is tried, where it is the table's owner whose words are computed: defaults, CHECKs."""
        computed = self.kind == "column" and self.became is None
        checks = self.kind == "constraint" and json.loads(self.now or self.agreed or "{}")["kind"] == "c"
        return self.owner if computed or checks else None

    @property
    def asked_of(self) -> Table | None:
        """The table as whose owner its steps are done, at each site; what breaks a table computes nothing."""
        return None if self.role is None or self.breaks else self.table

    @property
    def is_gone(self) -> bool:
        return self.now is None and self.became is None and self.kind in ("column", "table")

    @property
    def title(self) -> str:
        return f"{self.table}: {self.what}"

    def adopted(self, *, again: bool = False) -> Adopted:
        return Adopted(self.table, self.kind, self.name, self.now, self.became, again)


def parts(connection: Connection, names: Sequence[str]) -> list[Part]:
    """What is here by hand: of all attached tables, or of those named."""
    chosen = list(tables.attached(connection, names)) if names else None
    rows = connection.execute(
        """
        select t.relation, r.schema_name::text as schema, r.table_name::text as name, pg_get_userbyid(c.relowner)::text as owner,
               t.kind, t.name::text as part, t.agreed::text as agreed,
               t.now::text as now, t.became::text as became, t.what, q.*
        from syncagent.typed_record t join syncagent.replicated r on r.id = t.relation left join pg_class c on c.oid = r.relation
        cross join lateral syncagent._typed_sql(t.relation, t.kind, t.name, t.agreed, t.now, t.became) as q
        where t.epoch is null and (%(chosen)s::bigint[] is null or r.relation::oid::bigint = any (%(chosen)s::bigint[]))
        order by array_position(%(kinds)s::text[], t.kind), t.relation, t.since, t.name
        """,
        {"chosen": chosen, "kinds": list(_KINDS)},
    ).fetchall()
    return [
        Part(
            row["relation"],
            Table(row["schema"], row["name"]),
            row["owner"],
            row["kind"],
            row["part"],
            row["agreed"],
            row["now"],
            row["became"],
            row["what"],
            row["forth"],
            row["back"],
            row["rehearse"],
        )
        for row in rows
    ]


def begin(found: Sequence[Part]) -> list[Part]:
    """What one change carries: what breaks the flow of rows by itself, before all else."""
    return [part for part in found if part.breaks] or list(found)


def plan(connection: Connection, found: Sequence[Part], name: str, *, patience: float) -> Plan:
    """The change that carries these parts through the other sites. Contended where a lock was not to be had."""
    refusals = [*_shown(connection, found)]
    refusals += [
        Refusal(place + 1, part.title, "no schema change does this", _instead(part), place)
        for place, part in enumerate(found)
        if part.forth is None
    ]
    asked = [(place, part) for place, part in enumerate(found) if all(one.place != place for one in refusals)]
    direct = {place: step for place, part in asked if (step := _direct(part)) is not None}
    written = [(place, text) for place, part in asked if place not in direct for text in part.forth or ()]
    text = "".join(f"{one};\n" for part in found for one in part.forth or ())
    planned = planning.plan_of(
        connection,
        planning.Source(name, text, _read(written, found, name)),
        role=None,
        stride=None,
        bucket=_BUCKET,
        patience=patience,
        first=[(part.role, one) for part in reversed(found) for one in part.rehearse or ()],
    )
    owner = [place for place, _ in written]
    steps = [
        Planned(owner[one.place] + 1, _marked(one.step, found[owner[one.place]]), owner[one.place])
        for one in planned.steps
    ]
    steps += [Planned(place + 1, step, place) for place, step in direct.items()]
    refusals += [
        Refusal(
            owner[one.place] + 1,
            found[owner[one.place]].title,
            one.reason,
            f"{_instead(found[owner[one.place]])}; then, in a file for `syncagent schema apply`: {one.form}",
            owner[one.place],
        )
        for one in planned.refusals
    ]
    steps.sort(key=lambda one: planning.ORDER.index(one.step.phase))
    owned = [
        replace(one, step=msgspec.structs.replace(one.step, owner=found[one.place].asked_of))
        for one in _together(steps, found)
    ]
    return Plan(name, text, tuple(owned), tuple(sorted(refusals, key=lambda one: one.line)))


def _read(written: Sequence[tuple[int, str]], found: Sequence[Part], name: str) -> list[Statement]:
    read = reading.statements("".join(f"{one};\n" for _, one in written), name)
    return [replace(each, role=found[place].role) for each, (place, _) in zip(read, written, strict=True)]


def _shown(connection: Connection, found: Sequence[Part]) -> list[Refusal]:
    """What was dropped, and versions show: here the views went with it, elsewhere they hang on it."""
    gone = [place for place, part in enumerate(found) if part.is_gone]
    rows = connection.execute(
        """
        select p.place, array_agg(v.name::text order by v.made_at, v.name) as names
        from unnest(%s::integer[], %s::integer[]) as p (place, relation) join syncagent.replicated r on r.id = p.relation
        join syncagent.app_version v on v.base = r.schema_name and not exists (
            select from pg_depend d join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
            join pg_class c on c.oid = w.ev_class join pg_namespace n on n.oid = c.relnamespace
            where d.refclassid = 'pg_class'::regclass and d.refobjid = r.relation and n.nspname = v.name)
        group by p.place order by p.place
        """,
        (gone, [found[place].relation for place in gone]),
    ).fetchall()
    return [
        Refusal(
            row["place"] + 1,
            found[row["place"]].title,
            f"{', '.join(row['names'])} shows it at the other sites",
            f"first: {'; '.join(f'syncagent schema drop-version {name}' for name in row['names'])}; or {_instead(found[row['place']])}",
            row["place"],
        )
        for row in rows
    ]


def _together(steps: Sequence[Planned], found: Sequence[Part]) -> list[Planned]:
    """What breaks a table is one step, and the first: after a part of it the table would still be broken here."""
    broken: dict[int, list[Planned]] = {}
    for one in steps:
        if found[one.place].breaks and one.step.manner == "transaction" and one.step.strict:
            broken.setdefault(found[one.place].relation, []).append(one)
    merged = [
        Planned(ones[0].line, _merged([one.step for one in ones]), ones[0].place) for ones in broken.values()
    ]
    return [*merged, *(one for one in steps if all(one not in ones for ones in broken.values()))]


def _merged(steps: Sequence[Step]) -> Step:
    contracts = any(step.phase == "contract" for step in steps)
    return msgspec.structs.replace(
        steps[0],
        phase="contract" if contracts else "expand",
        what="; ".join(step.what for step in steps),
        locks=BRIEF,
        statements=tuple(statement for step in steps for statement in step.statements),
        undo=tuple(statement for step in reversed(steps) for statement in step.undo),
        gone=tuple(table for step in steps for table in step.gone),
        renamed=tuple(names for step in steps for names in step.renamed),
        columns=tuple(names for step in steps for names in step.columns),
        fills=tuple(fill for step in steps for fill in step.fills),
        adopts=tuple(adopted for step in steps for adopted in step.adopts),
        aside=any(step.aside for step in steps),
    )


def _instead(part: Part) -> str:
    if part.back is None:
        return "make the table again as it was, or `syncagent detach` it"
    return "take it back: " + "; ".join(part.back)


def _marked(step: Step, part: Part) -> Step:
    """A step of a part that this site has: it is left out here, unless what it does is only a part of the way."""
    given = part.kind == "column" and part.agreed is not None and step.phase in ("write-dual", "read-new")
    if step.manner == "survey" or step.phase == "backfill" or (given and step.phase == "write-dual"):
        return step
    return msgspec.structs.replace(step, adopts=(part.adopted(again=given),))


def _direct(part: Part) -> Step | None:
    """What cannot be rehearsed here, for it would have to be built first, and needs no rehearsal."""
    if part.now is not None or part.forth is None:
        return None
    made = json.loads(part.agreed or "{}")
    if part.kind == "table":
        return Step(
            phase="contract",
            what=f"drop table {part.table}",
            locks=BRIEF,
            statements=tuple(part.forth),
            strict=True,
            gone=(part.table,),
            adopts=(part.adopted(),),
        )
    if part.kind == "constraint" and made["kind"] != "p":
        return Step(
            phase="expand",
            what=f"drop constraint {part.name} of {part.table}",
            locks=BRIEF,
            statements=tuple(part.forth),
            undo=tuple(part.back or ()),
            adopts=(part.adopted(),),
        )
    if part.kind == "index":
        return Step(
            phase="expand",
            what=f"drop index {part.name}",
            locks=SHARED,
            statements=tuple(part.forth),
            undo=tuple(one.replace(" INDEX ", " INDEX CONCURRENTLY ", 1) for one in part.back or ()),
            manner="alone",
            index=sql.Identifier(part.table.schema, part.name).as_string(),
            adopts=(part.adopted(),),
        )
    return None
