"""`syncagent bench`: how fast it is here, against PostgreSQL's own replication."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import JsonOption

if TYPE_CHECKING:
    from types import ModuleType

    from bench.report import Line


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which; if none is named, those that --list says.", show_default=False),
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
    peers: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where Debian's packages of others are unpacked.")
    ] = Path("/"),
    list_them: Annotated[
        bool, typer.Option("--list", envvar="SYNCAGENT_BENCH_LIST", help="Say which there are.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure, on two servers of its own; --json prints one object a line."""
    catalogue = _catalogue()
    if list_them:
        _list(catalogue, as_json=as_json)
        return
    lines = []
    measured = catalogue.run(names or [], runs=runs, scale=scale, major=binaries, peers=peers, say=render.say)
    for line in measured:
        if as_json:
            render.json(line, line=True)
        lines.append(line)
    if not as_json:
        _tell(lines, importlib.import_module("bench.targets"))


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


def _list(catalogue: "ModuleType", *, as_json: bool) -> None:
    """What there is, and what of it runs if none is named."""
    there = catalogue.BENCHMARKS
    if as_json:
        render.json({name: {"about": one.about, "by_name": one.by_name} for name, one in there.items()})
        return
    rows = [(name, "" if one.by_name else "yes", one.about) for name, one in there.items()]
    render.show(render.grid(rows, ("benchmark", "if none is named", "what is measured")))


def _tell(lines: "list[Line]", targets: "ModuleType") -> None:
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
            line.peer or "",
            "missing" if "missing" in line.env else "" if line.ratio is None else f"{line.ratio:.2f}",
            targets.asked(line.name, line.peer, line.limit),
        )
        for line in lines
    ]
    render.show(
        render.grid(
            rows, ("benchmark", ">ours", ">from - to", ">theirs", ">from - to", "peer", ">ratio", ">asked")
        )
    )
    for line in lines:
        if told := targets.beside(line.env, line.ours, line.theirs):
            render.say(f"{line.name}, {line.peer}: {told}" if line.peer else f"{line.name}: {told}")
        if why := line.env.get("missing"):
            render.say(f"{line.name}: {why}")
