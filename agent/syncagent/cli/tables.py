"""`syncagent tables`: what is replicated here."""

from datetime import UTC, datetime

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of


def tables(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """List the attached tables with their rows, strategy, and what is unsettled."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        found = inspection.tables(connection)
    if as_json:
        render.json(found)
        return
    if not found:
        render.say("no table is attached: syncagent attach TABLE...")
        return
    rows = [
        (
            table["table_name"] + (" (dropped)" if table["dropped"] else ""),
            ", ".join(table["key_columns"]) + (" (derived)" if table["derived"] else ""),
            table["strategy"],
            "" if table["estimated_rows"] is None else f"~{table['estimated_rows']:,}",
            f"{table['unsettled_rows']:,}",
            f"{table['parked_rows']:,}",
            _moment(table["sealed_until"]),
            "" if table["open_buckets"] is None else f"{table['open_buckets']:,}",
        )
        for table in found
    ]
    render.show(
        render.grid(
            rows, ("table", "key", "strategy", ">rows", ">unsettled", ">parked", "sealed until", ">open")
        )
    )


def _moment(at: datetime | None) -> str:
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
