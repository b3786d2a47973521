"""`syncagent demo`: three sites on this machine, from nothing to a proof."""

from typing import Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import JsonOption

_INTERRUPTED = 130


def demo(
    plain: Annotated[bool, typer.Option("--plain", help="One line per event, without colours.")] = False,
    seconds: Annotated[
        float,
        typer.Option(min=5, max=3600, help="How long the shop sells; the rest takes about as long again."),
    ] = 20.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave homes, logs and data in a folder and say which.")
    ] = False,
    seed: Annotated[int, typer.Option(help="What the offices do.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Show it: three offices of a shop, conflicts, a cut line, a heal, and the proof that all are equal."""
    from syncagent.demo.stage import Demo, Interrupted, perform
    from syncagent.demo.story import Choices

    try:
        proof = perform(Demo(Choices(seconds, seed), plain=plain, keep=keep))
    except Interrupted as interruption:
        render.error(interruption)
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        render.json(proof.as_facts())
    else:
        typer.echo(str(proof))
    if not proof.holds:
        raise typer.Exit(1)
