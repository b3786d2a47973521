"""`syncagent verify`: are the sites equal?"""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import (
    ComparedArgument,
    DeepOption,
    DsnOption,
    HomeOption,
    JsonOption,
    dsn_of,
    seconds,
)


def verify(
    tables: ComparedArgument = None,
    *,
    deep: DeepOption = False,
    timeout: Annotated[
        float, typer.Option(parser=seconds, metavar="TIME", help="How long at most: 90s, 5m, 1h.")
    ] = "1h",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare this site with every other one; exit 1 if a row differs, naming table, hour and key."""
    from syncagent.storage.attaching import named
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        chosen = named(connection, tables) if tables else []
        arguments = {"tables": [[table.schema, table.name] for table in chosen], "deep": deep}
        with render.Progress(quiet=as_json) as progress:
            answer = ask(connection, "verify", arguments, seconds=timeout, on_progress=progress)
    if as_json:
        render.json(answer)
    else:
        for site in answer["sites"]:
            _tell(site)
        if not answer["sites"]:
            render.show("there is no other site to compare with")
    if not answer["equal"]:
        raise typer.Exit(1)


def _tell(site: dict[str, Any]) -> None:
    from rich.text import Text

    name = Text(site["site"], "bold")
    if site["error"] is not None:
        render.show(Text.assemble(name, ": ", ("not compared", "bold red"), f", {site['error']}"))
        return
    rows = sum(table["rows"] for table in site["tables"])
    if not site["equal"]:
        verdict = ("differs", "bold red")
    elif rows or not site["open"]:
        verdict = ("equal", "green")
    else:
        verdict = ("nothing differs so far", "yellow")
    told = f", {render.counted(rows, 'row')} of {render.counted(len(site['tables']), 'table')} compared"
    render.show(Text.assemble(name, ": ", verdict, told))
    render.show(
        render.grid(
            [
                (
                    table["table"],
                    f"{table['rows']:,}",
                    f"{table['differing']:,}" if table["differing"] else "",
                )
                for table in site["tables"]
            ],
            ("table", ">rows", ">differ"),
        )
    )
    for table, why in site["unlike"].items():
        render.show(f"{table} {why}: not compared")
    if site["before"] is not None:
        moment = datetime.fromtimestamp(site["before"], UTC)
        render.say(f"rows with keys made after {moment:%Y-%m-%d %H:%M} UTC were being written: not compared")
    if site["open"]:
        render.say(f"{render.counted(site['open'], 'bucket')} being written, or on the way: not compared")
    if site["hours"]:
        render.show(render.grid(list(site["hours"].items()), ("keys made in the hour", ">rows that differ")))
    if site["differences"]:
        lines = [
            (found["table"], found["key"], found["what"], found["stamp_here"], found["stamp_there"])
            for found in site["differences"]
        ]
        render.show(render.grid(lines, ("table", "key", "what", "stamp here", "stamp there")))
    if site["more"]:
        render.say("and more")
    if site["crowded"]:
        render.say(f"{site['crowded']} instants with more differing rows than can be listed")
    if site["stale"]:
        render.say(f"{render.counted(site['stale'], 'leaf', 'leaves')} differ though their rows are equal")
