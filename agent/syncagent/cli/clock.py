"""`syncagent clock`: what a wrong clock has written."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.join import RateOption, TimeoutOption
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, home_of
from syncagent.cli.rejoin import PeerOption, come_back

clock = typer.Typer(help="What is held because a site's clock is ahead.", no_args_is_help=True)

_SECONDS = 20.0


@clock.callback()
def _group() -> None:
    pass


@clock.command()
def accept(
    site: Annotated[str, typer.Argument(help="The site whose clock is ahead, as `status` names it.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take what a site wrote while its clock was ahead, at every site. Set its clock first. From then on every site stamps its writes with that later time, until time has come so far; rows that were written elsewhere meanwhile lose against the site's."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        answer = ask(connection, "accept", {"site": site}, seconds=_SECONDS)
        if not yes:
            render.confirm(
                f"The clocks of all sites will run {render.span(answer['ahead'])} ahead. Accept that?"
            )
        answer = ask(connection, "accept", {"site": site, "sure": True}, seconds=_SECONDS)
    if as_json:
        render.json(answer)
    else:
        render.show(f"accepted what {site} wrote; clocks run {render.span(answer['ahead'])} ahead")


@clock.command()
def reset(
    *,
    peer: PeerOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: TimeoutOption = "60s",  # type: ignore[assignment]
    max_rate: RateOption = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """At the site whose clock was ahead: take back what nobody has applied, and stamp it anew, as of now. Set the clock, and stop the agent, first. The site gets another number. Given again, it goes on."""
    from syncagent.returning import Request

    come_back(
        Request(home=home_of(home), peer=peer, dsn=dsn, seconds=timeout, max_rate=max_rate, anew=True),
        ("equal", "come", "are replaced", "are deleted here", "stamped anew"),
        "What nobody has applied is stamped as of now, and this site gets another number. Go on?",
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
