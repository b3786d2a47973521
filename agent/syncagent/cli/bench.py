"""`syncagent bench`: how fast it is here, against PostgreSQL's own replication."""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import JsonOption

if TYPE_CHECKING:
    from types import ModuleType

    from bench.report import Line


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which; all if none is named.", show_default=False)
    ] = None,
    *,
    runs: Annotated[int, typer.Option(min=1, help="How often each is measured, in turn with its peer.")] = 3,
    scale: Annotated[
        float, typer.Option(min=0.001, max=100, help="Rows and seconds, as a part of the full size.")
    ] = 1.0,
    binaries: Annotated[
        int | None,
        typer.Option(
            metavar="MAJOR", help="PostgreSQL version to run, such as 15.", show_default="the newest"
        ),
    ] = None,
    list_them: Annotated[
        bool, typer.Option("--list", envvar="SYNCAGENT_BENCH_LIST", help="Say which there are.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure, on two servers of its own; --json prints one object a line."""
    catalogue = _catalogue()
    if list_them:
        about = {name: benchmark.about for name, benchmark in catalogue.BENCHMARKS.items()}
        if as_json:
            render.json(about)
        else:
            render.show(render.facts(about))
        return
    lines = []
    for line in catalogue.run(names or [], runs=runs, scale=scale, major=binaries, say=render.say):
        if as_json:
            render.json(line, line=True)
        lines.append(line)
    if not as_json:
        _tell(lines)


def _catalogue() -> "ModuleType":
    """The benchmarks lie beside the package, as `sql/` does: they are imported from where they are."""
    from syncagent import resources

    folder = resources.bench()
    spec = importlib.util.spec_from_file_location(
        "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = package
    spec.loader.exec_module(package)
    return importlib.import_module("bench.catalogue")


def _tell(lines: "list[Line]") -> None:
    def figure(value: float | None, unit: str) -> str:
        return "" if value is None else f"{value:,.4g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"

    def extent(line: "Line", whose: str) -> str:
        return " - ".join(figure(value, "").strip() for value in line.spread.get(whose, ()))

    rows = [
        (
            line.name,
            figure(line.ours, line.unit),
            extent(line, "ours"),
            figure(line.theirs, line.unit),
            extent(line, "theirs"),
            line.peer or (f"limit {line.limit:g}" if line.limit else ""),
            "" if line.ratio is None else f"{line.ratio:.2f}",
        )
        for line in lines
    ]
    render.show(
        render.grid(rows, ("benchmark", ">ours", ">from - to", ">theirs", ">from - to", "peer", ">ratio"))
    )
