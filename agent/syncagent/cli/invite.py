"""`syncagent invite`: a token that lets one site join."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.errors import UsageError

_SECONDS = 30.0


def invite(
    *,
    ttl: Annotated[
        float, typer.Option(parser=seconds, metavar="TIME", help="How long the token is good: 90s, 5m, 1h.")
    ] = "1h",  # type: ignore[assignment]
    learner: Annotated[
        bool, typer.Option("--learner", help="The new site never votes: for one that is often away.")
    ] = False,
    witness: Annotated[
        bool,
        typer.Option(
            "--witness", help="The new site only votes, and holds no rows: a third vote for two sites."
        ),
    ] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a token with which one site can join, once. Whoever has it can become a member: keep it secret."""
    import secrets
    from datetime import UTC, datetime

    from syncagent.core.invitation import SECRET, Token, verifier
    from syncagent.storage.commands import site_of
    from syncagent.storage.installation import new_uuid
    from syncagent.storage.requests import ask

    if learner and witness:
        raise UsageError("a witness is there to vote, and a learner never does", hint="give one of the two")
    token = Token(new_uuid(), secrets.token_bytes(SECRET))
    with site_of(dsn_of(home, dsn)) as connection:
        asked = {
            "id": str(token.id),
            "verifier": verifier(token.secret).hex(),
            "ttl": ttl,
            "learner": learner,
            "witness": witness,
        }
        answer = ask(connection, "invite", asked, seconds=_SECONDS)
    expires = datetime.fromtimestamp(answer["expires"] / 1000, UTC)
    if as_json:
        render.json({"token": str(token), "expires": expires, "peer": answer["address"]})
        return
    render.line(str(token))
    peer = answer["address"] or "HOST:PORT of a member that listens"
    render.say(f"good for one site until {expires:%Y-%m-%d %H:%M:%S} UTC; there:")
    render.say(f"syncagent join --peer {peer} --token ... --dsn ... --name ... --listen ...")
