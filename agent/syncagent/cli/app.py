"""`syncagent`: puts the verbs together and turns errors into exit codes.

Invariant: exit 0 done, 1 refused or unhealthy, 2 usage. Verbs import what they need when they run, so
that `--help` is quick.
"""

import sys
from typing import Annotated

import typer

from syncagent import __version__
from syncagent.cli import render
from syncagent.cli.attach import attach
from syncagent.cli.init import init
from syncagent.cli.run import run
from syncagent.errors import SyncagentError, UsageError

PREFIX = "SYNCAGENT"
"""Every flag has a twin in the environment: SYNCAGENT_VERB_FLAG."""

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


for _verb in (init, attach, run):
    app.command()(_verb)


def main() -> None:
    try:
        app()
    except SyncagentError as error:
        render.error(error)
        sys.exit(2 if isinstance(error, UsageError) else 1)
