"""`syncagent leave` and `syncagent remove`: a site goes, by itself or because it is dead."""

from typing import Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds

_SECONDS = 45.0
_DANGER = (
    "DANGER: nobody is asked. If the sites that cannot be reached are alive, there will be two clusters that know nothing of each other",
    "what was agreed there and is not known here is void; so is what they agree from now on, once a site of this cluster meets them",
    "do this at one site only, when the others will never come back as they were",
)


def leave(
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Leave although a site lacks something that was written here.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(parser=seconds, metavar="TIME", help="How long to wait for the others: 90s, 5m.")
    ] = "60s",  # type: ignore[assignment]
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take this site out of the cluster, once the others have everything written here. Its rows stay."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask, require_agent

    with site_of(dsn_of(home, dsn)) as connection:
        require_agent(connection)
        if not yes:
            render.confirm(
                "This site leaves the cluster; what is written here from now on goes nowhere. Go on?"
            )
        asked = {"timeout": timeout, "force": force}
        answer = ask(connection, "leave", asked, seconds=timeout + _SECONDS)
    if as_json:
        render.json(answer)
        return
    render.show("This site has left the cluster; its agent ends by itself.")
    if answer["missing"]:
        render.say(f"not everything written here has reached {', '.join(answer['missing'])}")
    render.say("its rows stay; `syncagent db uninstall` takes syncagent out of the database")


def remove(
    site: Annotated[str, typer.Argument(help="Name or number of the site that is gone for good.")],
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="There is no majority any more, and never will be: this site decides alone from now on. At ONE site only.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a dead site from the cluster, after telling what may be lost with it."""
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn_of(home, dsn)) as connection:
        found = ask(connection, "remove", {"site": site, "force": force}, seconds=_SECONDS)
        for line in [*losses(found), *(_DANGER if force else ())]:
            render.say(line)
        if not yes:
            render.confirm(f"Site {found['site']} is removed for ever; it can only join as a new one. Go on?")
        asked = {"site": site, "force": force, "sure": True}
        answer = ask(connection, "remove", asked, seconds=_SECONDS)
    if as_json:
        render.json(answer)
    else:
        render.show(f"Site {found['site']}, node {found['node']}, is no member any more.")


def losses(found: dict[str, Any]) -> list[str]:
    """What goes with the site, as far as this one can know."""
    have: dict[str, int | None] = found["have"]
    known = {name: cut for name, cut in have.items() if cut is not None}
    most = max(known.values(), default=0)
    told = [f"what {found['site']} wrote after its cut {most}, and shipped to nobody, is lost"]
    told += [
        f"{name} has it only up to cut {cut}; rows it wrote after that stay away there until a comparison repairs them"
        for name, cut in known.items()
        if cut < most
    ]
    told += [f"how much of it {name} has is not known: no link" for name, cut in have.items() if cut is None]
    return told
