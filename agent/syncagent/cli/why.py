"""`syncagent why`: the story of one row."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of


def why(
    table: Annotated[str, typer.Argument(help="An attached table, named as in SQL.")],
    key: Annotated[str, typer.Argument(help="The row's primary key; several columns as (1,abc).")],
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a row: which site wrote it and when, who may not have it yet, whom it won against."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        story = inspection.why(connection, table, key)
    if as_json:
        render.json(story)
        return
    rows = [
        (line["what"], line["site"], line["at"], line["cut"], line["detail"], line["stamp"]) for line in story
    ]
    render.show(render.grid(rows, ("what", "site", "at", ">cut", "detail", "stamp")))
