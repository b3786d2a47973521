"""`syncagent adopt`: what attaching a whole database would mean. It attaches nothing."""

import glob
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.attach import foretell
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of

if TYPE_CHECKING:
    from syncagent.storage.preflight import Judged

_STRIDE = 64
"""Room for as many sites as somebody who has to be told will have."""


def adopt(
    *,
    schema: Annotated[
        str | None, typer.Option(help="Only tables of this schema.", show_default=False)
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave out, as in 'audit_*' or 'billing.*'.", show_default=False
        ),
    ] = None,
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of every table whether it can be attached, why not, and what mends it; also before `init`."""
    from syncagent.storage import preflight
    from syncagent.storage.commands import connected

    with connected(dsn_of(home, dsn)) as connection:
        judged = preflight.whole(connection, schema, exclude or [])
    if not as_json:
        render.say(_advice(judged, schema, exclude or []))
    foretell(judged, as_json)


def _advice(judged: "list[Judged]", schema: str | None, exclude: list[str]) -> str:
    """The command that attaches what can go."""
    going = [table for table in judged if table.verdict == "goes"]
    if not going:
        return "there is nothing to attach"
    words = ["syncagent", "attach", "--all"]
    if schema is not None:
        words += ["--schema", schema]
    # patterns see names without their quotes
    stay = [
        glob.escape(f"{table.candidate.schema}.{table.candidate.relname}")
        for table in judged
        if table.verdict == "stays" and not table.candidate.foreign
    ]
    for pattern in [*exclude, *stay]:
        words += ["--exclude", pattern]
    if any(table.candidate.derived for table in going):
        words.append("--derive-key")
    if any(table.numbered for table in going):
        words += ["--stride", str(_STRIDE)]
    count = render.counted(len(going), "table")
    return f"{count} can be attached as the schema is now: {shlex.join(words)}"
