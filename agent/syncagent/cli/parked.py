"""`syncagent parked`: rows that arrived and could not be applied."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

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
def show(
    table: Annotated[str, typer.Argument(help="An attached table, named as in SQL.")],
    key: Annotated[str, typer.Argument(help="The row's key, as `parked list` shows it.")],
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
