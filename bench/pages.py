"""The lines that are kept, and what the documentation shows of them: pictures, and tables between two marks of a page.

`python -m bench.pages FILE...` takes lines in (what `syncagent bench --json` has printed) and writes pictures and pages anew; without a file
it only does that. A line stands in the place of an older one of the same benchmark, peer, size and version of PostgreSQL, unless that was
of a larger scale; and pictures of ratios are of full scale only.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.catalogue import BENCHMARKS
from bench.costs import statements
from bench.plot import Bar, Point, bars, curves
from bench.targets import asked, beside

Line = dict[str, Any]

ROOT = Path(__file__).parents[1]
KEPT = Path("docs/proof/bench.jsonl")
_PEERS = ("pglogical", "bucardo", "londiste")
_MARKS = re.compile(r"(<!-- (\w+) -->).*?(<!-- end of \2 -->)", re.DOTALL)
_DROPPED = ("settings", "python", "syncagent")
"""Of what was told of the surroundings: the same in all, or of no use later."""


def key(line: Line) -> tuple[object, ...]:
    return line["name"], line.get("peer"), line["env"].get("size"), _major(line)


def _major(line: Line) -> str:
    """The version of PostgreSQL, without what comes after the point."""
    return str(line["env"].get("postgresql", "")).partition(".")[0]


def merged(kept: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """In the order of the benchmarks, then in that of the first line of each."""
    found = {key(line): line for line in kept}
    for line in new:
        if (old := found.get(key(line))) and _scale(old) > _scale(line):
            continue
        env = {name: value for name, value in line["env"].items() if name not in _DROPPED}
        found[key(line)] = {**line, "env": env}
    order = list(BENCHMARKS)
    return sorted(
        found.values(), key=lambda line: order.index(line["name"]) if line["name"] in order else len(order)
    )


def _scale(line: Line) -> float:
    return float(line["env"].get("scale", 1.0))


def read(path: Path) -> list[Line]:
    """What else stands in a file, such as what was said to a person, is passed over."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


# ---- pictures


def pictures(lines: Sequence[Line]) -> dict[str, str]:
    """By their names; those of which nothing was measured are not there."""
    found: dict[str, str] = {}
    for name, title, some in (
        ("bench-ratios", "Against the peer of each", [line for line in lines if line.get("peer") not in _PEERS]),
        ("bench-peers", "Against others, PostgreSQL 15", [line for line in lines if line.get("peer") in _PEERS]),
    ):  # fmt: skip
        if rows := [_bar(line) for line in some if line.get("ratio") and _scale(line) >= 1]:
            found[name] = bars(title, rows, "times better than the peer; left of 1: worse")
    for name, title, up in (
        ("rows", "Rows in the table", "us a changed row"),
        ("columns", "Columns", "us a row"),
        ("values", "Size of a value", "us a row"),
        ("tables", "Attached tables", "us a row"),
        ("backlog", "Backlog", "us a row"),
        ("changes", "Changes of the backlog", "us a change"),
    ):
        if points := _points(line for line in lines if line["name"] == f"scaling-{name}"):
            axis = next(line["env"]["axis"] for line in lines if line["name"] == f"scaling-{name}")
            found[f"scaling-{name}"] = curves(title, axis, up, {name: points})
    if agents := _by_sites(lines):
        found["scaling-sites"] = curves("Sites", "sites", "an agent's percent of a core", agents)
    simulated = {
        shape: _points(line for line in lines if line["name"] == f"simulated-{shape}")
        for shape in ("mesh", "hub")
    }
    if all(simulated.values()):
        found["scaling-messages"] = curves("Messages, simulated", "sites", "a second, of one site", simulated)
    return found


def _bar(line: Line) -> Bar:
    """The spread of a ratio is that of our figure against the middle of theirs."""
    ratio, ours = line["ratio"], line["ours"]
    rates = abs(ratio - ours / line["theirs"]) < abs(ratio - line["theirs"] / ours)
    ends = sorted((value / ours if rates else ours / value) * ratio for value in line["spread"]["ours"])
    return Bar(f"{line['name']} / {line['peer']}, {_major(line)}", ratio, ends[0], ends[-1])


def _points(lines: Iterable[Line]) -> list[Point]:
    return sorted(
        Point(line["env"]["size"], line["ours"], *line.get("spread", {}).get("ours", [line["ours"]] * 2))
        for line in lines
    )


def _by_sites(lines: Sequence[Line]) -> dict[str, list[Point]]:
    """Where the machine is not full."""
    named = {
        line["name"]: line["env"]["by_sites"] for line in lines if line["name"].startswith("sites-calm-")
    }
    return {
        name: [Point(int(size), *[cost[who]] * 3) for size, cost in named[f"sites-calm-{shape}"].items()]
        for name, shape, who in (
            ("in a mesh", "mesh", "first"),
            ("the hub", "hub", "first"),
            ("at the hub", "hub", "others"),
        )
        if f"sites-calm-{shape}" in named
    }


# ---- tables


_SHOWN = {
    "ratios": ("bench-ratios",),
    "peers": ("bench-peers",),
    "sizes": tuple(
        f"scaling-{what}" for what in ("rows", "columns", "values", "tables", "backlog", "changes")
    ),
    "sites": ("scaling-sites",),
    "messages": ("scaling-messages",),
}


def blocks(lines: Sequence[Line]) -> dict[str, str]:
    """What stands between the marks of a page, by their names: a table, and the pictures that belong to it."""
    drawn = pictures(lines)
    written = tables(lines)
    return {
        name: "\n\n".join(
            [
                *([written[name]] if name in written else []),
                *(
                    f"![{_title(drawn[picture])}](images/{picture}.svg)"
                    for picture in _SHOWN.get(name, ())
                    if picture in drawn
                ),
            ]
        )
        for name in {**written, **_SHOWN}
    }


def _title(picture: str) -> str:
    return picture.partition("<title>")[2].partition("</title>")[0]


def tables(lines: Sequence[Line]) -> dict[str, str]:
    """By the names of their marks, as Markdown."""
    plain = [line for line in lines if not line["name"].startswith(("scaling-", "simulated-", "sites-"))]
    return {
        "ratios": _compared(line for line in plain if line.get("peer") not in _PEERS),
        "peers": _compared(line for line in plain if line.get("peer") in _PEERS),
        "sizes": _table(
            ("what grows", "size", "us a row", "from, to", "rows", "seconds", "agent MB", "of"),
            (
                (
                    line["env"]["axis"], _figure(line["env"]["size"]), _figure(line["ours"]), _extent(line, "ours"),
                    _figure(line["env"]["rows"]), _figure(line["env"]["wall"]), _figure(line["env"]["agent_mb"]), _when(line),
                )
                for line in lines if line["name"].startswith("scaling-")
            ),
        ),
        "sites": _table(
            ("shape", "sites", "transactions/s", "reached", "first agent", "other agents", "both servers", "equal after", "scale", "of"),
            (
                (
                    line["name"].rpartition("-")[2], size, _figure(cost["rate"]), _figure(cost["reached"]), f"{_figure(cost['first'])} %",
                    f"{_figure(cost['others'])} %", f"{_figure(cost['servers'])} %", f"{_figure(cost['late'])} s", f"{_scale(line):g}", _when(line),
                )
                for line in lines if line["name"].startswith("sites-")
                for size, cost in line["env"]["by_sites"].items()
            ),
        ),
        "model": _table(
            ("what", "measured at", "", "predicted at", "", "the law is off by at most"),
            (
                (
                    found.what, found.size, f"{_figure(found.measured)} {found.unit}", found.at,
                    f"{_figure(found.predicted)} {found.unit}", f"{found.off:.0%}",
                )
                for found in statements(lines)
            ),
        ),
    }  # fmt: skip


def _compared(lines: Iterable[Line]) -> str:
    return _table(
        ("name", "ours", "from, to", "theirs", "from, to", "peer", "ratio", "asked", "beside", "runs", "scale", "of"),
        (
            (
                f"`{line['name']}`", _with_unit(line["ours"], line), _extent(line, "ours"),
                _with_unit(line["theirs"], line), _extent(line, "theirs"), _peer(line), _figure(line["ratio"]),
                asked(line["name"], line["peer"], line["limit"]), beside(line["env"], line["ours"], line["theirs"]), str(line["runs"]), f"{line['env'].get('scale', 1):g}", _when(line),
            )
            for line in lines
        ),
    )  # fmt: skip


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    written = ["| " + " | ".join(row) + " |" for row in rows]
    if not written:
        return "Not measured yet."
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *written])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _with_unit(value: float | None, line: Line) -> str:
    return "" if value is None else f"{_figure(value)} {line['unit']}"


def _extent(line: Line, whose: str) -> str:
    return ", ".join(_figure(value) for value in line["spread"].get(whose, ()))


def _peer(line: Line) -> str:
    if why := line["env"].get("missing"):
        return f"{line['peer']}: {why}"
    return line["peer"] or ""


def _when(line: Line) -> str:
    return f"{line['env'].get('date', '')[:10]}, {line['env'].get('postgresql', '')}"


def filled(page: str, found: Mapping[str, str]) -> str:
    """The page with each of its tables anew; what is between the marks of another name stays."""

    def anew(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n{found[mark[2]]}\n{mark[3]}" if mark[2] in found else mark[0]

    return _MARKS.sub(anew, page)


def main(files: Sequence[str]) -> None:
    kept = ROOT / KEPT
    lines = merged(read(kept), (line for file in files for line in read(Path(file))))
    kept.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    for name, picture in pictures(lines).items():
        (ROOT / "docs" / "images" / f"{name}.svg").write_text(picture)
    for name in ("benchmarks.md", "scaling.md"):
        page = ROOT / "docs" / name
        page.write_text(filled(page.read_text(), blocks(lines)))


if __name__ == "__main__":
    main(sys.argv[1:])
