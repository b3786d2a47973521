"""`syncagent`: puts the verbs together and turns errors into exit codes.

Invariant: exit 0 done, 1 refused or unhealthy, 2 usage. Verbs import what they need when they run, so
that `--help` is quick.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from syncagent import __version__
from syncagent.cli import render
from syncagent.cli.adopt import adopt
from syncagent.cli.attach import attach
from syncagent.cli.bench import bench
from syncagent.cli.certificate import certificate
from syncagent.cli.clock import clock
from syncagent.cli.conflicts import conflicts
from syncagent.cli.console import console
from syncagent.cli.constraints import constraints
from syncagent.cli.db import db
from syncagent.cli.demo import demo
from syncagent.cli.detach import detach
from syncagent.cli.doctor import doctor
from syncagent.cli.fingerprint import fingerprint
from syncagent.cli.forest import forest
from syncagent.cli.init import init
from syncagent.cli.invite import invite
from syncagent.cli.join import join
from syncagent.cli.leave import leave, remove
from syncagent.cli.merge import merge
from syncagent.cli.parked import parked
from syncagent.cli.pause import pause, resume
from syncagent.cli.rejoin import rejoin
from syncagent.cli.repair import repair
from syncagent.cli.run import run
from syncagent.cli.schema import schema
from syncagent.cli.status import status
from syncagent.cli.strategy import strategy
from syncagent.cli.support import support_bundle
from syncagent.cli.tables import tables
from syncagent.cli.verify import verify
from syncagent.cli.wait import wait
from syncagent.cli.why import why
from syncagent.errors import SyncagentError, UsageError

PREFIX = "SYNCAGENT"
"""Every flag has a twin in the environment: SYNCAGENT_VERB_FLAG."""

PANELS = {
    "Sites": ("init", "invite", "join", "run", "leave", "remove", "rejoin"),
    "Tables": ("adopt", "attach", "detach", "tables", "constraints", "strategy", "merge", "schema"),
    "How it is": ("status", "wait", "verify", "repair", "forest", "fingerprint", "why"),
    "What waits": ("conflicts", "parked", "pause", "resume", "clock"),
    "Care": ("doctor", "support-bundle", "certificate", "console", "db"),
    "A look": ("demo", "bench"),
}
"""Where help shows a verb or a group."""
_PANEL = {name: panel for panel, names in PANELS.items() for name in names}

app = typer.Typer(
    name="syncagent",
    help="Multi-master replication for the PostgreSQL you already run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": PREFIX, "help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"syncagent {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _verb in (
    init,
    invite,
    join,
    adopt,
    attach,
    detach,
    tables,
    constraints,
    strategy,
    run,
    status,
    wait,
    verify,
    forest,
    fingerprint,
    repair,
    why,
    pause,
    resume,
    leave,
    remove,
    rejoin,
    doctor,
    support_bundle,
    demo,
    bench,
):
    app.command(rich_help_panel=_PANEL[_verb.__name__.replace("_", "-")])(_verb)
for _name, _group in (
    ("conflicts", conflicts),
    ("parked", parked),
    ("certificate", certificate),
    ("clock", clock),
    ("console", console),
    ("schema", schema),
    ("merge", merge),
    ("db", db),
):
    app.add_typer(_group, name=_name, rich_help_panel=_PANEL[_name])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one verb and exit."""
    try:
        app(arguments)
    except SyncagentError as error:
        render.error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:  # whoever read the answer has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
