"""`syncagent db`: the SQL side of a site."""

import sys
from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.attach import LockTimeoutOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

db = typer.Typer(help="The SQL side: install, upgrade, check, print, remove.", no_args_is_help=True)

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@db.command()
def install(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """Install the SQL side alone; `syncagent init` does it, too, and makes the database a site."""
    from syncagent.storage import migrations
    from syncagent.storage.commands import connected

    with connected(dsn_of(home, dsn)) as connection, connection.transaction():
        before, after = migrations.upgrade(connection)
    _tell_version(before, after, 0, as_json)


@db.command()
def upgrade(
    *,
    lock_timeout: LockTimeoutOption = "30s",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Raise the SQL side to this agent's version, and make generated functions and triggers what they should be."""
    from syncagent.errors import RefusedError
    from syncagent.storage import migrations, tables
    from syncagent.storage.commands import agent_runs, connected

    with connected(dsn_of(home, dsn)) as connection:
        if migrations.installed(connection) is None:
            raise RefusedError(
                "syncagent is not installed in this database", hint="syncagent init, or syncagent db install"
            )
        if migrations.installed(connection) != migrations.newest() and agent_runs(connection):
            raise RefusedError(
                "an agent of the version before is running for this site",
                detail="It knows only the SQL side that it was made for. What the application writes while no agent runs is shipped afterwards.",
                hint="stop it, then: syncagent db upgrade",
            )
        with connection.transaction():
            before, after = migrations.upgrade(connection)
        count = tables.regenerate(
            connection, patience=lock_timeout, on_wait=lambda held: render.say(f"waiting: {held}")
        )
    _tell_version(before, after, count, as_json)


def _tell_version(before: str | None, after: str, tables: int, as_json: bool) -> None:
    if as_json:
        render.json({"before": before, "version": after, "tables": tables})
        return
    done = (
        f"version {after} installed"
        if before is None
        else f"version {after}" + f", was {before}" * (before != after)
    )
    render.show(done + f"; functions of {render.counted(tables, 'table')} made anew" * bool(tables))


@db.command()
def check(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """Compare the SQL side with what it should be: version, functions, triggers; exit 1 if it differs."""
    from syncagent.storage import drift, migrations
    from syncagent.storage.commands import connected

    with connected(dsn_of(home, dsn)) as connection:
        findings = drift.version(connection) or drift.drift(connection)
    if as_json:
        render.json({"version": migrations.newest(), "findings": findings})
    elif findings:
        render.show(render.findings(findings))
    else:
        render.show(f"version {migrations.newest()}, everything is as it should be")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@db.command()
def sql(
    *,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", envvar="SYNCAGENT_DB_SQL_FROM", help="Only what a version lacks.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the SQL side without connecting: what init and upgrade run, in one transaction."""
    from syncagent.storage import migrations

    sys.stdout.write("\n".join(("begin;", migrations.script(since), "commit;\n")))


@db.command()
def uninstall(
    *, yes: YesOption = False, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False
) -> None:
    """Detach every table and remove the schema syncagent: the application's tables are as they were."""
    from syncagent.errors import RefusedError
    from syncagent.storage import installation, migrations
    from syncagent.storage.commands import connected

    with connected(dsn_of(home, dsn)) as connection:
        if migrations.installed(connection) is None:
            raise RefusedError(
                "syncagent is not installed in this database", hint="does the dsn lead to the right one?"
            )
        here = installation.site(connection)
        title = f"site {here['name']}" if here else "this database"
        if not yes:
            render.confirm(
                f"Remove syncagent from {title}? Conflicts, parked rows and unshipped writes go with it."
            )
        with connection.transaction():
            connection.execute("set local lock_timeout = '5s'")
            tables = installation.remove(connection)
    if as_json:
        render.json({"detached": tables})
    else:
        render.show(f"syncagent is gone from {title}; {render.counted(len(tables), 'table')} detached")
