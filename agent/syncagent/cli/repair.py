"""`syncagent repair`: make the sites equal."""

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


def repair(
    tables: ComparedArgument = None,
    *,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            help="Who is right about rows of which nobody has a newer version.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be taken, and from whom.")
    ] = False,
    deep: DeepOption = False,
    timeout: Annotated[
        float, typer.Option(parser=seconds, metavar="TIME", help="How long at most: 90s, 5m, 1h.")
    ] = "1h",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare this site with every other one, take what is right there, and let them take what is right here; exit 1 if rows still differ."""
    from syncagent.storage.attaching import named
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        chosen = named(connection, tables) if tables else []
        arguments = {
            "tables": [[table.schema, table.name] for table in chosen],
            "source": source,
            "dry": dry_run,
            "deep": deep,
        }
        with render.Progress(quiet=as_json) as progress:
            answer = ask(connection, "repair", arguments, seconds=timeout, on_progress=progress)
    if as_json:
        render.json(answer)
    else:
        for site in answer["sites"]:
            _tell(site, dry=dry_run)
        if not answer["sites"]:
            render.show("there is no other site to compare with")
    if not answer["equal"]:
        raise typer.Exit(1)


def _tell(site: dict[str, Any], *, dry: bool) -> None:
    from rich.text import Text

    name, rows = Text(site["site"], "bold"), render.counted(site["repaired"], "row")
    done = f"{rows} would be taken from elsewhere" if dry else f"{rows} repaired here"
    if site["error"] is not None:
        verdict: tuple[str, str] = ("not finished", "bold red")
        done = f"{done}; {site['error']}"
    else:
        verdict = ("equal", "green") if site["equal"] else ("differs", "bold red")
    render.show(Text.assemble(name, ": ", verdict, f", {done}"))
    if site["by_table"]:
        render.show(
            render.grid(
                [(each["table"], each["cause"], f"{each['rows']:,}") for each in site["by_table"]],
                ("table", "cause", ">rows"),
            )
        )
    if site["rows"]:
        lines = [
            (row["table"], row["key"], row["cause"], row["before"] or "", row["after"] or "")
            for row in site["rows"]
        ]
        render.show(render.grid(lines, ("table", "key", "cause", "before", "after")))
    if site["theirs"]:
        render.show(f"{render.counted(site['theirs'], 'row')} of {site['site']} are for that site to take")
    if site["open"]:
        render.show(
            f"{render.counted(site['open'], 'row')} differ, and no majority of sites says which are right; "
            "name the site that is: --source SITE"
        )
