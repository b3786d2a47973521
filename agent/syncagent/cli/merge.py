"""`syncagent merge`: functions of the application that merge a column."""

from pathlib import Path
from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import DsnOption, HomeOption, JsonOption, dsn_of, seconds
from syncagent.errors import UsageError

merge = typer.Typer(help="Functions of yours that merge a column.", no_args_is_help=True)


@merge.callback()
def _group() -> None:
    pass


@merge.command()
def check(
    function: Annotated[str, typer.Argument(help="With its schema, as SCHEMA.NAME.", show_default=False)],
    *,
    table: Annotated[
        str | None, typer.Option(help="Ask it for values of a column of this table.", show_default=False)
    ] = None,
    column: Annotated[str | None, typer.Option(help="Which one.", show_default=False)] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=r"Ask it for these: a value a line, \N for null.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(parser=seconds, metavar="TIME", help="How long it may take for all values once."),
    ] = "10s",  # type: ignore[assignment]
    home: HomeOption = None,
    dsn: DsnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try whether a function may merge a column: it always makes the same of two values, in either order, whichever of three come first,
    and of one value that value. Changes nothing; exit 1 if it breaks a law, with the smallest example."""
    from syncagent.storage import laws
    from syncagent.storage.commands import site_of

    if (table is None) != (column is None) or (table is None) == (samples is None):
        raise UsageError("say for which values", hint="--table TABLE --column COLUMN, or --samples FILE")
    address = dsn_of(home, dsn)
    with site_of(address) as connection:
        if samples is None:
            assert table is not None
            assert column is not None
            asked = laws.for_column(connection, function, table, column)
        else:
            asked = laws.of_samples(connection, function, laws.read(_lines(samples)))
    found = laws.laws(address, asked, timeout)
    if as_json:
        render.json(
            {"function": asked.called, "type": asked.type, "samples": len(asked.samples), "laws": found}
        )
    else:
        rows = [(law.law, "yes" if law.holds else "no", law.example or "") for law in found]
        render.show(render.grid(rows, (f"{asked.called}, {asked.type}", "holds", "but")))
    if not all(law.holds for law in found):
        raise typer.Exit(1)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
