"""`syncagent console`: who may use the console that `run --http` serves."""

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, home_of

console = typer.Typer(help="The console that `run --http` serves.", no_args_is_help=True)


@console.callback()
def _group() -> None:
    pass


@console.command()
def token(*, home: HomeOption = None, dsn: DsnOption = None, as_json: JsonOption = False) -> None:
    """Print an address that signs in whoever opens it first, within five minutes. It ends the one printed before."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import require_agent
    from syncagent.web.signing import TOKEN_SECONDS, invitation

    with site_of(dsn_of(home, dsn)) as connection:
        require_agent(connection)
    address = invitation(home_of(home))
    if as_json:
        render.json({"address": address, "seconds": TOKEN_SECONDS})
        return
    render.line(address)
    render.say(
        f"good once, for {render.span(TOKEN_SECONDS)}; whoever opens it sees rows and settles conflicts"
    )
