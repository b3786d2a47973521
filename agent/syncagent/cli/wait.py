"""`syncagent wait`: until every site has everything."""

from typing import Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.errors import UsageError


def wait(
    *,
    converged: Annotated[
        bool, typer.Option("--converged", help="Until every site has everything written before this call.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(parser=seconds, metavar="TIME", help="How long at most: 90, 90s, 5m.")
    ] = "60s",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until the sites have converged; exit 1, saying who lacks what, if they have not in time."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    if not converged:
        raise UsageError("say what to wait for", hint="syncagent wait --converged")
    with site_of(dsn_of(home, dsn)) as connection:
        answer = ask(connection, "wait", {"timeout": timeout}, seconds=timeout)
    done = bool(answer.get("converged"))
    if as_json:
        render.json(answer)
    else:
        _tell(answer, done, timeout)
    if not done:
        raise typer.Exit(1)


def _tell(answer: dict[str, Any], done: bool, timeout: float) -> None:
    if done:
        render.show("converged: every site has everything written before this call")
        return
    render.show(f"not converged within {timeout:g} s")
    rows = [(missing["site"], missing["reason"]) for missing in answer.get("missing", ())]
    render.show(render.grid(rows, ("site", "reason")))
