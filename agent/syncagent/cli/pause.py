"""`syncagent pause` and `syncagent resume`: maintenance."""

from typing import Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of
from syncagent.errors import UsageError

_SECONDS = 10.0

PeersArgument = Annotated[
    list[str] | None, typer.Argument(help="Names or node numbers; all if none is named.", show_default=False)
]


def pause(
    peers: PeersArgument = None,
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply no batches of these peers for now. They stay linked, and get ours."""
    _switch("pause", peers or [], dsn_of(home, dsn), as_json)


def resume(
    peers: PeersArgument = None,
    *,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply the batches of these peers again."""
    _switch("resume", peers or [], dsn_of(home, dsn), as_json)


def _switch(verb: str, names: list[str], dsn: str, as_json: bool) -> None:
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of
    from syncagent.storage.requests import ask

    with site_of(dsn) as connection:
        members = [row for row in inspection.sites(connection) if not row["is_self"]]
        chosen = [_member(members, name) for name in names]
        answer = ask(connection, verb, {"peers": [member["node"] for member in chosen]}, seconds=_SECONDS)
    paused = [member["name"] for member in members if member["node"] in answer.get("paused", ())]
    if as_json:
        render.json({"paused": [member["node"] for member in members if member["name"] in paused]})
    else:
        render.show(f"paused: {', '.join(paused) or 'nobody'}")


def _member(members: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for member in members:
        if name in (member["name"], str(member["node"])):
            return member
    known = ", ".join(member["name"] for member in members) or "none"
    raise UsageError(f"there is no peer {name}", hint=f"peers are: {known}")
