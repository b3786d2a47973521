"""`syncagent conflicts`: what was overwritten unseen."""

from typing import Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

conflicts = typer.Typer(help="Versions that were overwritten unseen.", no_args_is_help=True)

_SHOWN = 50


@conflicts.command("list")
def list_(
    *,
    table: Annotated[str | None, typer.Option(help="Only those of a table.", show_default=False)] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only those of a kind, as update/update.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many. [default: 50; all in JSON]", show_default=False),
    ] = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """List conflicts, the newest first."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        found, count = inspection.conflicts(connection, table, kind, limit or (None if as_json else _SHOWN))
    if as_json:
        render.json(found)
        return
    rows = [
        (str(c["id"])[:13], c["noticed_at"], c["table_name"], c["key"], c["kind"], c["winner"], c["loser"])
        for c in found
    ]
    if rows:
        render.show(render.grid(rows, ("id", "noticed", "table", "key", "kind", "winner", "loser")))
    render.say(
        "no conflicts"
        if not count
        else f"{render.counted(count, 'conflict')}" + f", {len(found)} shown" * (count > len(found))
    )


@conflicts.command()
def show(
    conflict: Annotated[str, typer.Argument(metavar="ID", help="The conflict's id, or its beginning.")],
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one conflict: both versions, column by column."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        found = inspection.conflict(connection, conflict)
    if as_json:
        render.json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.text import Text

    winning, losing = found["winning_image"] or {}, found["losing_image"] or {}
    render.show(
        render.facts(
            {
                "conflict": found["id"],
                "row": f"{found['table_name']} {found['key']}",
                "kind": found["kind"],
                "strategy": found["strategy"],
                "winner": f"{found['winner']}, {render.plain(found['winning_time'])}",
                "loser": f"{found['loser']}, {render.plain(found['losing_time'])}",
                "noticed": found["noticed_at"],
                "settled": found["settled_at"]
                and f"{found['settled_how']}, {render.plain(found['settled_at'])}",
            }
        ),
        "",
    )
    rows = []
    for column in dict.fromkeys([*winning, *losing]):
        here, there = (_cell(image, column) for image in (winning, losing))
        style = "bold yellow" if here != there else "dim"
        rows.append((Text(column, style), Text(here, style), Text(there, style)))
    render.show(render.grid(rows, ("column", f"{found['winner']} (won)", f"{found['loser']} (lost)")))


def _cell(image: dict[str, Any], column: str) -> str:
    if not image:
        return "(deleted)"
    return render.plain(image.get(column)) if image.get(column) is not None else "null"
