"""How a change of the schema, and what was typed by hand, is shown."""

from collections.abc import Callable
from typing import Any

from syncagent.cli import render


def tell_typed(found: list[dict[str, Any]]) -> None:
    for one in found:
        who = f"by {one['role']}, " if one["role"] else "noticed "
        render.show(
            f"{one['table_name']} was changed by hand here: {one['what']} ({who}{one['since']:%F %T})"
        )
        if one["statement"]:
            render.show(f"  typed: {' '.join(one['statement'].split())}")
        if one["take_back"]:
            render.show(f"  takes it back: {one['take_back']}")
    render.say("to carry it through all sites: syncagent schema adopt")


def tell(change: dict[str, Any]) -> None:
    render.show(f"{change['name']}: {change['state']}")
    rows = [
        (step["phase"], step["what"], step["locks"], step["state"], ", ".join(step["missing"]))
        for step in change["steps"]
    ]
    render.show(render.grid(rows, ("phase", "what", "locks", "state", "missing")))
    for site, why in change["failures"].items():
        render.show(f"cannot be done at {site}: {why}")


def progress() -> Callable[[str], None]:
    """Says what an agent says of its progress, once."""
    said = [""]

    def say(text: str) -> None:
        if text != said[0]:
            render.say(text)
            said[0] = text

    return say
