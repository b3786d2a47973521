"""`syncagent forest`: the Merkle tree of a table."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

if TYPE_CHECKING:
    from rich.table import Table

Level = Literal["year", "month", "day", "hour", "minute"]
_LEVELS = get_args(Level)
_NAMES = {"year": "%Y", "month": "%B", "day": "%d", "hour": "%H:00", "minute": "%H:%M"}
_LINES = 40
"""The finest level is shown that needs no more."""
_BAR = 24


def forest(
    table: Annotated[str, typer.Argument(help="An attached table, named as in SQL.")],
    *,
    by: Annotated[
        Level | None,
        typer.Option("--by", help="How fine.", show_default=f"the finest of at most {_LINES} lines"),
    ] = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the Merkle tree of a table: its rows by the time of their keys, how they are cut into leaves, and what is being written. Parts with the same digest at two sites are equal."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        level, found = by or _LEVELS[0], inspection.forest(connection, table, by or _LEVELS[0])
        finest = inspection.finest(connection, table)
        for finer in () if by else _LEVELS[1 : _LEVELS.index(finest) + 1]:
            parts = inspection.forest(connection, table, finer)
            if len(parts) > _LINES:
                break
            level, found = finer, parts
    if as_json:
        render.json({"by": level, "parts": found})
    elif not found:
        render.say(f"nothing is sealed yet: each {finest} of keys is, a minute after it has ended")
    else:
        render.show(_drawn(found, level))


def _drawn(found: list[dict[str, Any]], level: Level) -> "Table":
    """A line for each part, under those for the wider ones that hold it."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("keys made (UTC)", ">rows", "", ">buckets", ">leaves", ">open", "digest"):
        drawn.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left")
    most, above = max(part["rows"] for part in found), ("",) * len(_LEVELS)
    depth = _LEVELS.index(level)
    for part in found:
        path = _path(part["begins"], depth)
        for height, name in enumerate(path):
            if path[: height + 1] == above[: height + 1]:
                continue
            label = "  " * height + name
            if height < len(path) - 1:
                drawn.add_row(Text(label, "dim"))
                continue
            drawn.add_row(
                label,
                f"{part['rows']:,}",
                Text("\u2588" * max(1, round(_BAR * part["rows"] / most)) if part["rows"] else "", "green"),
                f"{part['buckets']:,}",
                f"{part['leaves']:,}",
                Text(f"{part['open']:,}", "yellow") if part["open"] else "",
                Text(part["digest"], "dim"),
            )
        above = path
    return drawn


def _path(begins: datetime | None, depth: int) -> tuple[str, ...]:
    """Its name at each level, from the year on."""
    if begins is None:
        return ("keys without a time",)
    return tuple(f"{begins.astimezone(UTC):{_NAMES[level]}}" for level in _LEVELS[: depth + 1])
