"""How a change of the schema, and what was typed by hand, is shown, asked for, and waited for."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from syncagent.cli import render

if TYPE_CHECKING:
    from syncagent.storage.commands import Connection
    from syncagent.storage.schema.planning import Plan


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


def show(planned: "Plan") -> None:
    if planned.steps:
        rows = [(one.step.phase, one.line, one.step.what, one.step.locks) for one in planned.steps]
        render.show(render.grid(rows, ("phase", ">line", "what", "locks")))
    if planned.refusals:
        refused = [(one.line, one.text, one.reason, one.form) for one in planned.refusals]
        render.show("", render.grid(refused, (">line", "refused", "why", "a form that can")))


def as_json(planned: "Plan") -> dict[str, Any]:
    return {
        "name": planned.name,
        "sql": planned.text,
        "steps": [
            {
                "phase": one.step.phase,
                "line": one.line,
                "what": one.step.what,
                "locks": one.step.locks,
                "statements": one.step.statements,
                "undo": one.step.undo,
                "makes": one.step.makes,
            }
            for one in planned.steps
        ],
        "refusals": planned.refusals,
    }


def asked(connection: "Connection", planned: "Plan", role: str | None, auto: bool) -> Any:
    import msgspec

    from syncagent.storage.schema import planning

    row = connection.execute(
        "select current_setting('search_path') as path, (select name from syncagent.local_site) as site"
    ).fetchone()
    assert row is not None
    change = planning.change_of(
        planned, at=int(time.time() * 1000), site=row["site"], role=role, path=row["path"], auto=auto
    )
    return msgspec.to_builtins(change)


def wait_for(connection: "Connection", change: str, timeout: float, as_json: bool) -> str:
    """Until it is over, or a person has to do something about it: then exit 1 says so."""
    from syncagent.storage.requests import ask

    answer = ask(
        connection,
        "schema-wait",
        {"id": change, "timeout": timeout},
        seconds=timeout,
        on_progress=progress(),
    )
    return conclude(connection, change, answer, as_json)


def conclude(connection: "Connection", change: str, answer: dict[str, Any], as_json: bool) -> str:
    """What became of it; exit 1 if somebody has to do something about it."""
    from syncagent.storage.schema import telling

    found = next(one for one in telling.history(connection) if one["id"] == change)
    if as_json:
        render.json(found | {"waiting": answer["waiting"]}, line=True)
    else:
        tell(found)
        for site, why in answer["waiting"].items():
            render.show(f"{site}: {why}")
    if answer["waiting"] and answer["state"] in ("open", "back"):
        render.say("go on when that is mended: it is tried again by itself; or back: syncagent schema abort")
        raise typer.Exit(1)
    if found["state"] == "waits for approval":
        render.say(
            "when nobody needs the old shape any more: syncagent schema apply --contract; or: syncagent schema abort"
        )
    return str(found["state"])


def progress() -> Callable[[str], None]:
    """Says what an agent says of its progress, once."""
    said = [""]

    def say(text: str) -> None:
        if text != said[0]:
            render.say(text)
            said[0] = text

    return say
