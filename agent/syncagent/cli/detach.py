"""`syncagent detach`: these tables are replicated no more, here."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.attach import LockTimeoutOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of


def detach(
    tables: Annotated[list[str], typer.Argument(help="Attached tables, named as in SQL; dropped ones, too.")],
    *,
    lock_timeout: LockTimeoutOption = "30s",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop replicating tables at this site: all of those named, or none. Their rows stay."""
    from syncagent.storage import tables as storage
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        chosen = storage.attached(connection, tables)
        storage.detach(
            connection, chosen, patience=lock_timeout, on_wait=lambda held: render.say(f"waiting: {held}")
        )
    if as_json:
        render.json([{"table": name} for name in chosen.values()])
    else:
        render.show(*(f"detached {name}" for name in chosen.values()))
