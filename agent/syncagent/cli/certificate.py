"""`syncagent certificate renew`: this site proves with a new key who it is, and nothing stops for it."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds

certificate = typer.Typer(help="This site's certificate, by which its peers know it.", no_args_is_help=True)
_SECONDS = 30.0


@certificate.callback()
def _group() -> None:
    pass


@certificate.command()
def renew(
    *,
    timeout: Annotated[
        float, typer.Option(parser=seconds, metavar="TIME", help="How long to wait for the others: 90s, 5m.")
    ] = "60s",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace this site's key and certificate while its agent runs; exit 1 if somebody has not heard in time.

    Each member learns the new one before it is shown, then the old one opens nothing any more. Who is away
    holds it up; the agent ends it by itself once all have heard.
    """
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        answer = ask(connection, "renew", {"timeout": timeout}, seconds=timeout + _SECONDS)
    answer["until"] = datetime.fromtimestamp(answer["until"], UTC)
    missing: dict[str, str] = answer["missing"]
    if as_json:
        render.json(answer)
    elif missing:
        render.show(f"not renewed within {timeout:g} s: the old certificate is still in use")
        render.show(render.grid(missing.items(), ("site", "reason")))
        render.say("the agent goes on by itself as soon as they have heard of the new one")
    else:
        render.show(f"This site has a new certificate, good until {answer['until']:%Y-%m-%d}:")
        render.show(f"SHA-256 {answer['sha256']}")
    if missing:
        raise typer.Exit(1)
