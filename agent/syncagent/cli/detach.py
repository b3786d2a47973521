"""`syncagent detach`: these tables are replicated no more, here."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.attach import LockTimeoutOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

_SECONDS = 25.0
"""How long the cluster may take to agree."""


def detach(
    tables: Annotated[list[str], typer.Argument(help="Attached tables, named as in SQL; dropped ones, too.")],
    *,
    lock_timeout: LockTimeoutOption = "30s",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop replicating tables, at every site: all of those named, or none. Their rows stay."""
    from syncagent.storage import attaching
    from syncagent.storage import tables as storage
    from syncagent.storage.commands import agent_runs, site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        chosen = storage.attached(connection, tables)
        missing: dict[str, str] = {}
        if agent_runs(connection):
            going = [(table.schema, table.name) for table in attaching.named(connection, tables)]
            asked = {"tables": going, "timeout": lock_timeout}
            missing = ask(connection, "detach", asked, seconds=lock_timeout + _SECONDS)["missing"]
        else:
            attaching.refuse_agreed(connection, chosen)
            storage.detach(
                connection, chosen, patience=lock_timeout, on_wait=lambda held: render.say(f"waiting: {held}")
            )
    if as_json:
        render.json([{"table": name} for name in chosen.values()])
    else:
        render.show(*(f"detached {name}" for name in chosen.values()))
    for site, why in missing.items():
        render.say(f"not detached yet at {site}: {why}")
