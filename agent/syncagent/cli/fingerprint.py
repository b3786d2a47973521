"""`syncagent fingerprint`: what rows are compared by."""

from typing import Annotated, Literal

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of


def fingerprint(
    kind: Annotated[
        Literal["hash", "sha256"] | None,
        typer.Argument(help="What all sites are to use from now on.", show_default=False),
    ] = None,
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say, or choose for the whole cluster, what rows are compared by: the servers' own hash, which is fast, or sha256, which nobody can forge, and which is the same on every server. Every site computes its forest anew then."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        answer = ask(connection, "fingerprint", {"kind": kind} if kind else {}, seconds=30)
    if as_json:
        render.json(answer)
    else:
        render.show(f"rows are compared by {answer['fingerprint']}")
