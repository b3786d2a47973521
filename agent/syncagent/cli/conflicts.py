"""`syncagent conflicts`: what was overwritten unseen, and which rows had to yield a value; settled by hand."""

import json
from datetime import timedelta
from typing import Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.errors import UsageError

conflicts = typer.Typer(
    help="Versions that were overwritten unseen, and rows that yielded a value.", no_args_is_help=True
)

_SHOWN = 50
ConflictArgument = Annotated[str, typer.Argument(metavar="ID", help="The conflict's id, or its beginning.")]


SinceOption = Annotated[
    float | None,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        help="Only those noticed in the last, as 30m or 7d.",
        show_default=False,
    ),
]
OpenOption = Annotated[
    bool | None,
    typer.Option(
        "--open/--settled",
        envvar="SYNCAGENT_CONFLICTS_LIST_OPEN",
        help="Only those that wait for somebody, or only the others.",
        show_default=False,
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="At most so many. [default: 50; all in JSON and CSV]", show_default=False),
]
CsvOption = Annotated[
    bool, typer.Option("--csv", envvar="SYNCAGENT_CSV", help="Answer in CSV.", show_default=False)
]


@conflicts.command("list")
def list_(
    *,
    table: Annotated[str | None, typer.Option(help="Only those of a table.", show_default=False)] = None,
    key: Annotated[str | None, typer.Option(help="Only those of a row.", show_default=False)] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only those of a kind, as update/update or unique.", show_default=False)
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Only those that a site has won, lost or noticed.", show_default=False)
    ] = None,
    since: SinceOption = None,
    open_: OpenOption = None,
    limit: LimitOption = None,
    as_csv: CsvOption = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """List conflicts, the newest first."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    if as_csv and as_json:
        raise UsageError("--csv and --json at once", hint="one of the two")
    wanted = inspection.Wanted(
        table, key, kind, site, None if since is None else timedelta(seconds=since), open_
    )
    with site_of(dsn_of(home, dsn)) as connection:
        found, count = inspection.conflicts(
            connection, wanted, limit or (None if as_json or as_csv else _SHOWN)
        )
    if as_json:
        render.json(found)
        return
    if as_csv:
        render.csv(found, inspection.CONFLICT_COLUMNS)
        return
    if found:
        columns = ("id", "noticed", "table", "key", "kind", "winner", "loser", "noticed by", "")
        render.show(render.grid([_line(c) for c in found], columns))
    render.say(
        "no conflicts"
        if not count
        else f"{render.counted(count, 'conflict')}" + f", {len(found)} shown" * (count > len(found))
    )


def _line(found: dict[str, Any]) -> tuple[Any, ...]:
    state = "open" if found["open"] else "resolved" if found["resolved_at"] else ""
    names = ("noticed_at", "table_name", "key", "kind", "winner", "loser")
    return (str(found["id"])[:13], *(found[name] for name in names), ", ".join(found["noticed_by"]), state)


@conflicts.command()
def show(
    conflict: ConflictArgument,
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
    _answer(found, as_json)


@conflicts.command()
def resolve(
    conflict: ConflictArgument,
    *,
    take: Annotated[
        str | None,
        typer.Option(
            metavar="winner|loser|SITE",
            help="The row becomes what this one wrote; of two rows with one value the loser gets it, and the other one yields.",
            show_default=False,
        ),
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help='Columns and their values, as {"email": "x@y"}.', show_default=False
        ),
    ] = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Settle a conflict by hand. It is a write like any other: every site gets it, and `undo` takes it back."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    if (take is None) == (value is None):
        raise UsageError("say what the row is to become", hint="--take winner, --take loser, or --value JSON")
    with site_of(dsn_of(home, dsn)) as connection:
        found = inspection.resolve(connection, conflict, take, None if value is None else _columns(value))
    _answer(found, as_json)


@conflicts.command()
def undo(
    conflict: ConflictArgument,
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a resolution back: the row becomes what it was before. Or a merge: both rows live, and what followed here goes back."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        found = inspection.undo(connection, conflict)
    _answer(found, as_json)


def _columns(value: str) -> dict[str, Any]:
    try:
        columns = json.loads(value)
    except json.JSONDecodeError as error:
        raise UsageError(f"--value is no JSON: {error}", hint='write {"column": value, ...}') from error
    if not isinstance(columns, dict):
        raise UsageError("--value is no object of columns", hint='write {"column": value, ...}')
    return columns


def _answer(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.text import Text

    winning, losing = found["winning_image"] or {}, found["losing_image"] or {}
    facts = {
        "conflict": found["id"],
        "row": f"{found['table_name']} {found['key']}",
        "kind": found["kind"],
        "strategy": found["strategy"],
        "winner": f"{found['winner'] or 'not known any more'}, {render.plain(found['winning_time'])}",
        "loser": f"{found['loser'] or 'not known any more'}, {render.plain(found['losing_time'])}",
        "noticed": f"{render.plain(found['noticed_at'])}, by {', '.join(found['noticed_by'])}",
    }
    if found["columns"] is not None:
        facts["written by both"] = ", ".join(found["columns"])
    if found["kind"] == "unique" and found["strategy"] == "merge":
        facts["constraint"] = found["constraint_name"]
        facts["merged into"] = found["other_key"]
    elif found["strategy"] == "cascade":
        facts["constraint"] = found["constraint_name"]
        facts["deleted with"] = found["other_key"]
    if found["yielded"] is not None:
        facts["constraint"] = found["constraint_name"]
        facts["keeps the value"] = found["other_key"]
        facts["the row got instead"] = json.dumps(found["yielded"], ensure_ascii=False)
        facts["open"] = "yes, until the row is given a value" if found["open"] else "no"
    if found["open"] and found["failure"]:
        facts["open"] = f"yes, until the column is written: {found['failure']}"
    if found["resolved_at"] is not None:
        facts["resolved"] = (
            f"by {found['resolved_by']} at {found['resolved_site']}, {render.plain(found['resolved_at'])}"
        )
    render.show(render.facts(facts), "")
    rows = []
    for column in dict.fromkeys([*winning, *losing]):
        here, there = (_cell(image, column) for image in (winning, losing))
        style = "bold yellow" if here != there else "dim"
        rows.append((Text(column, style), Text(here, style), Text(there, style)))
    names = (f"{found['winner'] or 'winner'} (won)", f"{found['loser'] or 'loser'} (lost)")
    render.show(render.grid(rows, ("column", *names)))


def _cell(image: dict[str, Any], column: str) -> str:
    if not image:
        return "(deleted)"
    return render.plain(image.get(column)) if image.get(column) is not None else "null"
