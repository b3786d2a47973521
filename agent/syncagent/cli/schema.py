"""`syncagent schema`: changes of the application's schema, carried through all sites in phases, while they write."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import changes, render, revisions
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.cli.revisions import How
from syncagent.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from syncagent.core.forest import Bucket
    from syncagent.storage.commands import Connection
    from syncagent.storage.schema.planning import Plan

_ASK = 30.0
"""Seconds the agent may take to have something agreed."""

schema = typer.Typer(
    help="Changes of the schema, carried through all sites in phases while they write.", no_args_is_help=True
)

FileArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]", help="A file of SQL statements; - for standard input.", show_default=False
    ),
]
AlembicOption = Annotated[
    Path | None,
    typer.Option(
        metavar="ALEMBIC.INI", help="The application's own revisions, instead of a file.", show_default=False
    ),
]
MetadataOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:OBJECT",
        help="SQLAlchemy's metadata, as shop.models:Base.metadata: what brings the tables there, instead of a file.",
        show_default=False,
    ),
]
RoleOption = Annotated[
    str | None,
    typer.Option(
        help="The role that the statements run as, at every site. [default: the agent's]", show_default=False
    ),
]
NewStrideOption = Annotated[
    int | None,
    typer.Option("--stride", min=2, help="For tables that are made: every site draws every so many numbers."),
]
VersionsOption = Annotated[
    str | None,
    typer.Option(
        metavar="OLD:NEW",
        help="Two schemas of views, so that the old and the new version of the application work at once; auto: the next number.",
        show_default=False,
    ),
]
AsOption = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="NEW", help="The same, after the newest version that is there.", show_default=False
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(parser=seconds, metavar="SPAN", help="How long to wait; the change goes on all the same."),
]


@schema.command()
def plan(
    file: FileArgument = None,
    *,
    alembic: AlembicOption = None,
    metadata: MetadataOption = None,
    versions: VersionsOption = None,
    new_version: AsOption = None,
    role: RoleOption = None,
    stride: NewStrideOption = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a change would do, in which phases and under which locks, and what of it is refused and why. Changes nothing."""
    from syncagent.storage.commands import site_of

    if [file, alembic, metadata].count(None) != 2:
        raise UsageError("name a file, or --alembic, or --metadata", hint="syncagent schema plan change.sql")
    how = How(role, stride, versions, new_version, metadata)
    with site_of(dsn_of(home, dsn)) as connection:
        if alembic is not None:
            scripts = revisions.pending(connection, alembic)
            if not scripts:
                render.say("every revision is here")
                return
            planned = revisions.planned(connection, dsn_of(home, dsn), scripts[0], how)
            for script in scripts[1:]:
                render.say(f"afterwards, when this one is done: {script.revision} {script.doc}")
        else:
            planned = _planned(connection, dsn_of(home, dsn), file, how)
    if as_json:
        render.json(changes.as_json(planned))
    else:
        if metadata is not None:
            render.show(planned.text)
        changes.show(planned)
    if planned.refusals:
        raise typer.Exit(1)


@schema.command()
def apply(
    file: FileArgument = None,
    *,
    alembic: AlembicOption = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto", help="Drop the old shape as soon as every site has the new one, without asking again."
        ),
    ] = False,
    contract: Annotated[
        bool,
        typer.Option(
            "--contract", help="Of the change under way: nobody needs the old shape any more, drop it."
        ),
    ] = False,
    exclude: Annotated[
        str | None,
        typer.Option(
            metavar="SITE", help="Of the change under way: do not wait for this site.", show_default=False
        ),
    ] = None,
    metadata: MetadataOption = None,
    versions: VersionsOption = None,
    new_version: AsOption = None,
    role: RoleOption = None,
    stride: NewStrideOption = None,
    timeout: TimeoutOption = "10m",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry a change through all sites, or bring on the one under way."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask, require_agent

    how = How(role, stride, versions, new_version, metadata)
    sources = 3 - [file, alembic, metadata].count(None)
    if sources > 1 or (sources == 1) == (contract or exclude is not None):
        raise UsageError(
            "name a file"
            if sources == 0
            else "one change at a time; --contract and --exclude are about the one under way",
            hint="syncagent schema apply FILE, or: syncagent schema apply --contract",
        )
    if alembic is not None:
        _carry_revisions(home, dsn, alembic, how, auto, timeout, as_json)
        return
    if sources == 0 and (versions or new_version):
        raise UsageError("versions are made by a change", hint="syncagent schema apply FILE --as app_v13")
    with site_of(dsn_of(home, dsn)) as connection:
        require_agent(connection)
        if sources:
            planned = _planned(connection, dsn_of(home, dsn), file, how)
            _refuse(planned)
            verb, asked = "schema-open", {"change": changes.asked(connection, planned, role, auto)}
        elif exclude is not None:
            verb, asked = "schema-exclude", {"site": exclude, "contract": contract}
        else:
            verb, asked = "schema-approve", {}
        opened = ask(connection, verb, asked, seconds=_ASK)["id"]
        changes.wait_for(connection, opened, timeout, as_json)


@schema.command()
def status(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """Show the change under way: its steps, and whom it waits for."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.schema import telling, typed

    with site_of(dsn_of(home, dsn)) as connection:
        found = telling.status(connection) | {"typed": typed.listed(connection)}
    if as_json:
        render.json(found)
        return
    late = {site: epoch for site, epoch in found["sites"].items() if epoch < found["epoch"]}
    if found["change"] is None:
        render.show(f"no schema change is under way; {found['epoch']} steps so far")
    else:
        changes.tell(found["change"])
    for version in found["versions"]:
        render.show(f"version {version['name']} of {version['base']}")
    for site, epoch in late.items():
        render.show(f"{site} is at step {epoch} of {found['epoch']}")
    if found["typed"]:
        changes.tell_typed(found["typed"])


@schema.command()
def adopt(
    tables: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]...", help="Of these tables. [default: of all]", show_default=False),
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and change nothing.")] = False,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto", help="Drop the old shape as soon as every site has the new one, without asking again."
        ),
    ] = False,
    timeout: TimeoutOption = "10m",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry what somebody has typed by hand at this site through all the others; here it is left out."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask, require_agent
    from syncagent.storage.schema import adopting, typed

    with site_of(dsn_of(home, dsn)) as connection:
        require_agent(connection)
        typed.note(connection)
        here = connection.execute("select name from syncagent.local_site").fetchone()
        name, found = f"typed at {here and here['name']}", adopting.parts(connection, tables or ())
        if not found:
            render.say("nothing was typed here that the other sites have not got")
        while found:
            chosen = adopting.begin(found)
            planned = adopting.plan(connection, chosen, name, patience=_ASK)
            if dry_run and as_json:
                render.json(changes.as_json(planned))
            elif not as_json:
                changes.show(planned)
            if dry_run:
                raise typer.Exit(1 if planned.refusals else 0)
            _refuse(planned)
            change = changes.asked(connection, planned, None, auto)
            opened = ask(connection, "schema-open", {"change": change}, seconds=_ASK)["id"]
            if changes.wait_for(connection, opened, timeout, as_json) != "done":
                if len(chosen) < len(found):
                    render.say("the rest of what was typed is carried afterwards, by the same command")
                return
            found = adopting.parts(connection, tables or ()) if len(chosen) < len(found) else []


@schema.command()
def abort(
    change: Annotated[
        str | None, typer.Argument(help="Its id. [default: the one under way]", show_default=False)
    ] = None,
    *,
    timeout: TimeoutOption = "10m",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back what was done of a change, at every site: until it drops the old shape."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        opened = ask(connection, "schema-abort", {} if change is None else {"id": change}, seconds=_ASK)["id"]
        changes.wait_for(connection, opened, timeout, as_json)


@schema.command("drop-version")
def drop_version(
    name: Annotated[str, typer.Argument(metavar="VERSION", help="Such as app_v12.", show_default=False)],
    *,
    timeout: TimeoutOption = "10m",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop a version's views at every site, once nobody uses them."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask, require_agent
    from syncagent.storage.schema import planning, telling, versions

    with site_of(dsn_of(home, dsn)) as connection:
        require_agent(connection)
        there = [one["name"] for one in versions.known(connection)]
        if name not in there:
            raise RefusedError(
                f"there is no version {name}",
                hint=f"there is {', '.join(there)}" if there else "no change was made with --versions yet",
            )
        if (change := telling.status(connection)["change"]) is not None:
            raise RefusedError(
                f"a schema change is under way: {change['name']}",
                hint="the versions before it go with `syncagent schema apply --contract`, its own with `syncagent schema abort`",
            )
        change = changes.asked(connection, planning.of_drop(name), None, auto=True)
        opened = ask(connection, "schema-open", {"change": change}, seconds=_ASK)["id"]
        changes.wait_for(connection, opened, timeout, as_json)


@schema.command()
def history(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """List the changes so far, the newest first."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.schema import telling

    with site_of(dsn_of(home, dsn)) as connection:
        found = telling.history(connection)
    if as_json:
        render.json(found)
        return
    if not found:
        render.say("the schema was not changed yet")
        return
    rows = [
        (one["id"], one["name"], one["state"], len(one["steps"]), one["site"], one["asked_at"])
        for one in found
    ]
    render.show(render.grid(rows, ("change", "name", "state", ">steps", "from", "asked at")))


# ---- a plan


def _planned(connection: "Connection", dsn: str, file: str | None, how: How) -> "Plan":
    from syncagent.storage.schema import planning

    text, name = _written(file) if file is not None else how.difference(connection, dsn)
    if not text.strip() and how.metadata is not None:
        render.say(f"the tables are as {how.metadata} says")
        raise typer.Exit(0)
    bucket: Bucket = "hour"
    found = planning.plan(
        connection,
        text,
        name,
        role=how.role,
        stride=how.stride,
        bucket=bucket,
        patience=_ASK,
        asked=how.asked(),
    )
    if not found.steps and not found.refusals:
        raise UsageError(
            f"there is no statement in {name}", hint="write SQL, each statement ended by a semicolon"
        )
    return found


def _written(file: str) -> tuple[str, str]:
    """The SQL that a person has written, and what it is called."""
    if file == "-":
        return sys.stdin.read(), "standard input"
    path = Path(file)
    try:
        return path.read_text(encoding="utf-8"), path.name
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", hint="a file of SQL in UTF-8, or -") from None


def _refuse(planned: "Plan") -> None:
    if planned.refusals:
        raise RefusedError(
            f"{planned.name} cannot be carried to every site, so nothing of it is",
            detail="\n".join(f"line {one.line}: {one.reason}" for one in planned.refusals),
            hint="\n".join(f"line {one.line}: {one.form}" for one in planned.refusals),
        )


# ---- revisions


def _carry_revisions(
    home: Path | None,
    dsn: str | None,
    ini: Path,
    how: How,
    auto: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """One after the other; the next one is planned when the one before it is done."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask, require_agent

    with site_of(dsn_of(home, dsn)) as connection:
        require_agent(connection)
        scripts = revisions.pending(connection, ini)
        if len(scripts) > 1 and how.asked() is not None:
            raise RefusedError(
                f"{len(scripts)} revisions are to come, and versions are of one",
                hint=f"carry those before {scripts[-1].revision} first, without versions",
            )
        for script in scripts:
            opened = revisions.under_way(connection, script)
            if opened is None:
                planned = revisions.planned(connection, dsn_of(home, dsn), script, how)
                _refuse(planned)
                change = changes.asked(connection, planned, how.role, auto)
                opened = ask(connection, "schema-open", {"change": change}, seconds=_ASK)["id"]
            answer = revisions.carry(
                connection, dsn_of(home, dsn), opened, script, timeout, changes.progress()
            )
            if changes.conclude(connection, opened, answer, as_json) != "done":
                return
        render.say("every revision is here")
