"""`syncagent parked`: rows that arrived and could not be applied."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

_SECONDS = 60.0
TableArgument = Annotated[str, typer.Argument(help="An attached table, named as in SQL.")]
KeyArgument = Annotated[str, typer.Argument(help="The row's key, as `parked list` shows it.")]

parked = typer.Typer(help="Rows that arrived and break a constraint here.", no_args_is_help=True)


@parked.command("list")
def list_(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """List the rows that wait, and what each of them breaks."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        found = inspection.parked(connection)
    if as_json:
        render.json(found)
        return
    if not found:
        render.say("no row is parked")
        return
    rows = [(row["table_name"], row["key"], row["origin"], row["since"], row["reason"]) for row in found]
    render.show(render.grid(rows, ("table", "key", "from", "since", "reason")))


@parked.command()
def retry(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """Try all of them now; the agent does it after every batch, and every few seconds."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        answer = ask(connection, "retry", {}, seconds=_SECONDS)
    if as_json:
        render.json(answer)
    else:
        render.show(
            f"{render.counted(answer['parked'], 'row')} parked" if answer["parked"] else "no row is parked"
        )


@parked.command()
def drop(
    table: TableArgument,
    key: KeyArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a parked version up, at every site: the row becomes what it is here, or goes if it is not here. The version is kept as a conflict."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        row = inspection.parked_row(connection, table, key)
        if not yes:
            render.confirm(f"Give up what {row['origin']} wrote to row {key} of {table}, at every site?")
        found = inspection.drop_parked(connection, table, key)
    if as_json:
        render.json(found)
    else:
        render.show(f"dropped; kept as conflict {found['id']}")


@parked.command()
def show(
    table: TableArgument,
    key: KeyArgument,
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one row that waits."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        row = inspection.parked_row(connection, table, key)
    if as_json:
        render.json(row)
        return
    image = row.pop("image")
    render.show(render.facts(row), "", render.facts(image or {}))
