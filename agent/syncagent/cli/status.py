"""`syncagent status`: how the sites stand to each other."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY = 1.0


def status(
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")] = False,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every site: lag in rows and seconds, what is held or parked and why, clocks, log size."""
    from syncagent.storage import inspection
    from syncagent.storage.commands import site_of

    with site_of(dsn_of(home, dsn)) as connection:
        if watch:
            _watch(lambda: inspection.status(connection), as_json)
            return
        found = inspection.status(connection)
    if as_json:
        render.json(found)
        return
    render.show(_picture(found))
    if found[0]["state"] != "running":
        render.say("no agent is running for this site: start it with `syncagent run`")


def _watch(look: Any, as_json: bool) -> None:
    import time

    from rich.live import Live

    try:
        if as_json:
            while True:
                render.json(look(), line=True)
                time.sleep(_EVERY)
        with Live(_picture(look()), console=render.console(), auto_refresh=False) as live:
            while True:
                live.update(_picture(look()), refresh=True)
                time.sleep(_EVERY)
    except KeyboardInterrupt:
        return


def _picture(found: list[dict[str, Any]]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    me, peers = found[0], found[1:]
    good = me["state"] == "running"
    head = Text.assemble(
        (me["name"], "bold"),
        f", node {me['node']}, {_role(me)}: ",
        ("agent running", "green") if good else ("no agent", "bold red"),
    )
    if good and not any(site["leads"] for site in found):
        head.append("  no leader: members and schema cannot change now", "yellow")
    facts = [
        f"log {render.size(me['log_bytes'])}",
        f"{render.counted(me['unsettled_rows'], 'row')} unsettled",
        f"{me['parked']:,} parked",
        render.counted(me["conflicts"], "conflict"),
    ]
    parts: list[RenderableType] = [head, Text("  ".join(facts), "dim")]
    if peers:
        parts += [Text(""), render.grid([_line(peer) for peer in peers], _HEADINGS)]
    else:
        parts.append(Text("no other sites yet: syncagent invite  lets one join", "dim"))
    for site in found:
        for kind, colour in (("waiting", "yellow"), ("trouble", "red")):
            if site[kind]:
                parts.append(Text.assemble((f"{site['name']} {kind}: ", colour), site[kind]))
    parts += [
        Text.assemble(
            ("changed by hand here, and nowhere else: ", "yellow"), what, "; syncagent schema adopt"
        )
        for what in me["typed"]
    ]
    return Group(*parts)


_HEADINGS = ("peer", "role", "state", ">lacks", ">since", ">applied", ">ago", ">parked", ">rtt", ">clock")
_COLOURS = {"linked": "green", "relayed": "green", "paused": "yellow", "away": "bold red", "unknown": "dim"}


def _role(site: dict[str, Any]) -> str:
    """What it is to the group that agrees on members and schema."""
    return "leader" if site["leads"] else str(site["role"])


def _line(peer: dict[str, Any]) -> tuple[object, ...]:
    """What a peer lacks of ours, for how long; the last cut of it that was applied here, and when."""
    from datetime import UTC, datetime

    from rich.text import Text

    ago = None if peer["applied_at"] is None else (datetime.now(UTC) - peer["applied_at"]).total_seconds()
    lacks = render.counted(peer["behind_rows"], "row") if peer["behind_rows"] else "nothing"
    if peer["behind_rows"] is None:
        lacks = ""  # a witness has no rows to lack
    return (
        f"{peer['name']} ({peer['node']})",
        _role(peer),
        Text(
            f"via {peer['via']}" if peer["state"] == "relayed" else peer["state"],
            _COLOURS.get(peer["state"], ""),
        ),
        lacks,
        render.span(peer["behind_seconds"] or None),
        "" if peer["applied_cut"] is None else f"cut {peer['applied_cut']:,}",
        render.span(ago),
        peer["parked"],
        "" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.0f} ms",
        "" if peer["clock_offset_seconds"] is None else f"{peer['clock_offset_seconds']:+.2f} s",
    )
