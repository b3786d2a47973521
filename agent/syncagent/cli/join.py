"""`syncagent join`: a database becomes one more site of a cluster."""

from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import HomeOption, JsonOption, home_of, seconds

if TYPE_CHECKING:
    from pathlib import Path


def join(
    peer: Annotated[str, typer.Option(help="HOST:PORT of a member, whose agent runs.")],
    dsn: Annotated[
        str,
        typer.Option(
            envvar="SYNCAGENT_DSN",
            help="The new site's database, as postgresql://user:password@host:5432/database.",
        ),
    ],
    name: Annotated[str, typer.Option(help="The site's name: up to 63 ASCII letters, digits, - and _.")],
    listen: Annotated[
        str,
        typer.Option(help='HOST:PORT that the agent listens on, or "none" for a site that only dials out.'),
    ],
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SYNCAGENT_TOKEN",
            help="What `syncagent invite` printed at a member. The environment keeps it out of process lists.",
            show_default=False,
        ),
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="HOST:PORT that peers dial. [default: --listen]", show_default=False)
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(parser=seconds, metavar="TIME", help="How long to wait for other sites at each step."),
    ] = "60s",  # type: ignore[assignment]
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Become a site of a member's cluster: identity, copy, what was written meanwhile. Given again, it goes on."""
    from syncagent import joining
    from syncagent import settings as configuration
    from syncagent.cli.run import talk_on_stderr
    from syncagent.core.invitation import Token

    configuration.site_name(name)
    configuration.listen_address(listen)
    configuration.address(peer)
    if advertise is not None:
        configuration.address(advertise)
    folder = home_of(home)
    _refuse_used(folder)
    talk_on_stderr(as_json=as_json, only_trouble=True)
    settings = joining.join(
        joining.Request(
            peer=peer,
            token=None if token is None else Token.read(token),
            dsn=dsn,
            name=name,
            listen=listen,
            advertise=advertise,
            home=folder,
            seconds=timeout,
        ),
        render.say,
    )
    if as_json:
        render.json({"node": settings.node, "name": settings.name, "home": str(settings.home)})
    else:
        render.show(f"Site {settings.name} is node {settings.node} of the cluster. Now: syncagent run")


def _refuse_used(home: "Path") -> None:
    from syncagent.cli.init import refuse_used
    from syncagent.joining import DRAFT

    if not (home / DRAFT).exists():
        refuse_used(home)
