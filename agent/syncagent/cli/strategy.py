"""`syncagent strategy`: what becomes of a row that two sites write at once, changed at all sites while they write."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from syncagent.cli import changes, render
from syncagent.cli.attach import MergeOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.errors import UsageError

if TYPE_CHECKING:
    from syncagent.storage.schema.strategies import Known

_ASK = 30.0
"""Seconds the agent may take to have something agreed."""


def strategy(
    table: Annotated[str, typer.Argument(help="An attached table, named as in SQL.", show_default=False)],
    chosen: Annotated[
        Literal["lww", "lww-column", "merge"] | None,
        typer.Argument(
            help="The later write wins the row, or each of its columns, or the columns are merged. [default: show it]",
            show_default=False,
        ),
    ] = None,
    *,
    merge: MergeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and change nothing.")] = False,
    timeout: Annotated[
        float,
        typer.Option(
            parser=seconds, metavar="SPAN", help="How long to wait; the change goes on all the same."
        ),
    ] = "10m",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show, or change at all sites, how rows of a table are merged that two sites write at once. It is a schema change: `syncagent
    schema status` shows whom it waits for, `syncagent schema abort` takes it back while that can be."""
    from syncagent.storage import merges
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask, require_agent
    from syncagent.storage.schema import strategies

    if chosen is None and merge:
        raise UsageError(
            "how columns are merged is said of a strategy", hint="syncagent strategy TABLE merge"
        )
    with site_of(dsn_of(home, dsn)) as connection:
        now = strategies.known(connection, table)
        if chosen is None:
            _tell(now, as_json)
            return
        wanted = merges.choices(merge or [], chosen)
        planned = strategies.plan(connection, now, chosen, wanted)
        if not planned.steps:
            _tell(now, as_json)
        elif dry_run:
            render.json(changes.as_json(planned)) if as_json else changes.show(planned)
        else:
            require_agent(connection)
            change = changes.asked(connection, planned, None, auto=True)
            opened = ask(connection, "schema-open", {"change": change}, seconds=_ASK)["id"]
            changes.wait_for(connection, opened, timeout, as_json)


def _tell(now: "Known", as_json: bool) -> None:
    if as_json:
        render.json(
            {
                "table": now.table,
                "strategy": now.strategy,
                "merges": dict(now.merges),
                "changing": now.whole,
            }
        )
        return
    columns = ", ".join(f"{name}={how}" for name, how in now.merges)
    changing = "; it is changing: syncagent schema status" if now.whole else ""
    render.show(f"{now.table}: {now.strategy}{' ' if columns else ''}{columns}{changing}")
