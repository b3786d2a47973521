"""From SQL to steps: what runs in which phase, under which locks, and what cannot be carried to every site.

The plan is a rehearsal: each statement is tried in the site's database after those before it, and at the end all of it is rolled
back. So what the server has against a statement is said here, and what a default comes to is what the server says.

Invariant: nothing is changed; locks are asked for as politely as when it is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import psycopg
from psycopg import errors, sql

from syncagent.core.forest import Bucket
from syncagent.core.schema import Change, Phase, Step
from syncagent.storage import tables
from syncagent.storage.commands import Connection, border
from syncagent.storage.schema import columns, objects, pairs, reading, versions
from syncagent.storage.schema.looking import Against, Look
from syncagent.storage.schema.reading import Statement
from syncagent.storage.schema.revisions import Revision
from syncagent.storage.schema.versions import Asked, Versions

ORDER: tuple[Phase, ...] = ("expand", "write-dual", "backfill", "read-new", "contract")
_DATA = (
    "insert_stmt",
    "update_stmt",
    "delete_stmt",
    "merge_stmt",
    "copy_stmt",
    "truncate_stmt",
    "select_stmt",
)


_HANGS_ON_IT = (errors.DependentObjectsStillExist, errors.FeatureNotSupported)
_FOR_THEMSELVES = ("type ", "domain ")
"""What columns hang on: it can be taken back once nothing that is generated for a table knows of those any more."""


@dataclass(frozen=True)
class Planned:
    """A step, and the line of the statement that it comes from; `place` is that of the statement among all."""

    line: int
    step: Step
    place: int = 0


@dataclass(frozen=True)
class Refusal:
    """A statement that cannot be carried to every site: where it stands, why, and a form that can."""

    line: int
    text: str
    reason: str
    form: str
    place: int = 0


@dataclass(frozen=True)
class Plan:
    """`steps` in the order in which they are done; `versions` are those it is asked to make."""

    name: str
    text: str
    steps: tuple[Planned, ...]
    refusals: tuple[Refusal, ...]
    versions: Versions | None = None


@dataclass(frozen=True)
class Source:
    """What a change is called, as somebody wrote it, and the statements read from that."""

    name: str
    text: str
    statements: Sequence[Statement]


class _Enough(Exception):
    """The rehearsal is over: roll it back."""


def plan(
    connection: Connection,
    text: str,
    name: str,
    *,
    role: str | None,
    stride: int | None,
    bucket: Bucket,
    patience: float,
    asked: Asked | None = None,
) -> Plan:
    """UsageError where it is no SQL; Contended where a lock was not to be had."""
    source = Source(name, text, reading.statements(text, name))
    return with_versions(
        plan_of(
            connection,
            source,
            role=role,
            stride=stride,
            bucket=bucket,
            patience=patience,
            asked=asked,
        )
    )


def plan_of(
    connection: Connection,
    source: Source,
    *,
    role: str | None,
    stride: int | None,
    bucket: Bucket,
    patience: float,
    first: Sequence[tuple[str | None, str]] = (),
    asked: Asked | None = None,
) -> Plan:
    """The plan of statements that were read, as it is after those that come first, each with its role; the steps of its versions come with `with_versions`."""
    found: list[Plan] = []

    def rehearse() -> None:
        look = Look(connection, stride, bucket)
        for look.role, statement in first:
            look.run(statement)
        look.role = role
        two = None if asked is None else versions.begin(look, asked, role)
        steps: list[Planned] = []
        refusals: list[Refusal] = []
        for place, each in enumerate(source.statements):
            look.role = each.role or role
            try:
                steps += [Planned(each.line, step, place) for step in _tried(look, each)]
            except Against as against:
                refusals.append(Refusal(each.line, each.text, against.reason, against.form, place))
                continue
            for both in look.pairs.values():
                both.at = both.at or (each.line, place)
        look.role = role
        if not refusals:
            steps = [*_paired(look), *steps]
            two = two and versions.end(look, two, role)
        ordered = sorted(steps, key=lambda planned: ORDER.index(planned.step.phase))
        found.append(Plan(source.name, source.text, tuple(ordered), tuple(refusals), two))
        raise _Enough

    with border():
        try:
            tables.patiently(connection, _attached(connection), (), rehearse, patience, lambda _held: None)
        except _Enough:
            pass
    return found[-1]


def _attached(connection: Connection) -> list[int]:
    rows = connection.execute("select relation::oid::bigint as oid from syncagent.replicated").fetchall()
    return [row["oid"] for row in rows]


def _tried(look: Look, statement: Statement) -> list[Step]:
    """Its steps; what it does stays for the statements after it, unless it is refused."""
    if statement.kind in _DATA:
        raise Against(
            "it is about rows, which replicate by themselves",
            "run it at one site, before or after the change",
        )
    if statement.kind == "transaction_stmt":
        raise Against("every step is a transaction of its own", "leave it out")
    look.notes = statement.notes
    try:
        with look.connection.transaction():
            if statement.kind == "alter_table_stmt":
                return columns.parts(look, statement.node)
            if statement.kind in objects.RULES:
                return objects.RULES[statement.kind](look, statement)
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise
        raise Against(error.diag.message_primary or str(error), _form(look, error)) from error
    kind = statement.kind.removesuffix("_stmt").replace("_", " ")
    raise Against(
        f"a statement of this kind ({kind}) is not carried to all sites", "run it at each site by hand"
    )


def _form(look: Look, error: psycopg.Error) -> str:
    there = (
        versions.known(look.connection) if isinstance(error, _HANGS_ON_IT) and look.version is None else []
    )
    if there:
        last = there[-1]["name"]
        return f"with --as NAME, which makes a version after {last}; or first: syncagent schema drop-version {last}"
    return error.diag.message_hint or "see what is there at this site"


def _paired(look: Look) -> list[Planned]:
    """What keeps columns of the old and of the new shape in step; before what the statements ask for in the same phase."""
    found = []
    for both in look.pairs.values():
        line, place = both.at or (0, 0)
        found += [Planned(line, step, place) for step in pairs.steps(look, both)]
    return found


def with_versions(planned: Plan) -> Plan:
    """The plan, and the steps that make its versions and drop those before."""
    if planned.versions is None or planned.refusals:
        return planned
    steps = list(planned.steps)
    for place, step in reversed(versions.around(planned.versions, [one.step for one in steps])):
        steps.insert(place, Planned(0, step))
    return replace(planned, steps=tuple(steps))


def of_drop(name: str) -> Plan:
    """The plan that drops a version."""
    steps = tuple(Planned(0, step) for step in versions.dropped([name]))
    return Plan(f"drop version {name}", f"-- syncagent schema drop-version {name}", steps, ())


def of_revision(planned: Plan, revision: Revision, node: int) -> Plan:
    """The plan of all that a revision does to the schema, with its rows in their place, and where the site is then."""
    before = [one for one in planned.steps if one.place < len(revision.before)]
    after = [one for one in planned.steps if one.place >= len(revision.before)]
    if revision.data is not None:
        rows = Step(
            phase="backfill",
            what="the rows that the revision writes",
            locks="those of its statements, at one site",
            manner="data",
            data=(revision.id, node),
        )
        before.append(Planned(revision.data, rows))
    make = (
        "create table if not exists alembic_version (version_num varchar(32) not null, constraint alembic_version_pkc primary key (version_num))",
        "delete from alembic_version",
    )
    version = Step(
        phase=after[-1].step.phase if after else "read-new",
        what=f"alembic_version is {revision.id}",
        locks="none of a table",
        statements=(*make, _version(revision.id)),
        undo=(*make[1:], *([_version(revision.down)] if revision.down else [])),
    )
    return with_versions(replace(planned, steps=(*before, *after, Planned(0, version))))


def _version(revision: str) -> str:
    return sql.SQL("insert into alembic_version values ({})").format(sql.Literal(revision)).as_string()


def change_of(planned: Plan, *, at: int, site: str, role: str | None, path: str, auto: bool) -> Change:
    """What is asked of the cluster: expanding statements that follow each other are one step."""
    steps: list[Step] = []
    for step in (one.step for one in planned.steps):
        if steps and _join(steps[-1], step):
            steps[-1] = _joined(steps[-1], step)
        else:
            steps.append(step)
    return Change(
        id=uuid4(),
        name=planned.name,
        text=planned.text,
        at=at,
        site=site,
        role=role,
        path=path,
        auto=auto,
        ahead=tuple(steps),
    )


def _join(one: Step, other: Step) -> bool:
    return (
        one.phase == other.phase == "expand"
        and one.manner == other.manner == "transaction"
        and not (one.strict or other.strict)
        and not (one.adopts or other.adopts or one.makes or other.makes)
        and not one.what.startswith(_FOR_THEMSELVES)
        and not other.what.startswith(_FOR_THEMSELVES)
    )


def _joined(one: Step, other: Step) -> Step:
    return Step(
        phase=one.phase,
        what=f"{one.what}; {other.what}",
        locks=one.locks if one.locks == other.locks else f"{one.locks}; {other.locks}",
        statements=(*one.statements, *other.statements),
        undo=(*other.undo, *one.undo),
        fills=(*one.fills, *other.fills),
        attach=(*one.attach, *other.attach),
    )
