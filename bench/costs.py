"""What a model of the costs says of sizes that no one machine can show, from what was measured on one.

Pure: lines in, statements out. Every law has two numbers, found by least squares of the relative errors; how far it is from what was measured
is told beside what it predicts. Something that does not grow where it was measured is taken as constant, not as shrinking.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Line = Mapping[str, Any]

MANY_SITES = (100, 300)
MANY_TABLES = 1000
MANY_ROWS = 1_000_000_000


class Law(NamedTuple):
    """`fixed + each * x`; `off`: the largest relative error at what was measured; `upto`: the largest of these."""

    fixed: float
    each: float
    off: float
    upto: float

    def at(self, x: float) -> float:
        return self.fixed + self.each * x


class Statement(NamedTuple):
    """`measured` is at the largest size that was."""

    what: str
    size: str
    measured: float
    at: str
    predicted: float
    unit: str
    off: float


def law(points: Iterable[tuple[float, float]]) -> Law | None:
    """None if there are not two sizes; it never falls, and is never negative."""
    found = sorted((x, y) for x, y in points if y > 0)
    if len({x for x, _ in found}) < 2:
        return None
    weights = [1 / y**2 for _, y in found]
    total = sum(weights)
    middle_x = sum(w * x for w, (x, _) in zip(weights, found, strict=True)) / total
    middle_y = sum(w * y for w, (_, y) in zip(weights, found, strict=True)) / total
    spread = sum(w * (x - middle_x) ** 2 for w, (x, _) in zip(weights, found, strict=True))
    together = sum(w * (x - middle_x) * (y - middle_y) for w, (x, y) in zip(weights, found, strict=True))
    each = max(0.0, together / spread)
    fixed = middle_y - each * middle_x
    if fixed < 0:
        fixed = 0.0
        each = sum(w * x * y for w, (x, y) in zip(weights, found, strict=True)) / sum(
            w * x * x for w, (x, _) in zip(weights, found, strict=True)
        )
    off = max(abs(fixed + each * x - y) / y for x, y in found)
    return Law(fixed, each, off, found[-1][0])


def statements(lines: Sequence[Line]) -> list[Statement]:
    """What can be said with these lines; what was not measured is left out."""
    return [
        *_sites(lines, "mesh", "first", "the agent of a site in a mesh", 1),
        *_sites(lines, "hub", "first", "the agent of the hub", 1),
        *_sites(lines, "hub", "others", "the agent of a site at a hub", 0),
        *_messages(lines),
        *_sized(
            lines, "scaling-tables", "a server at rest, attached tables", MANY_TABLES, "% of a core",
            lambda line: line["env"]["rest_percent"]["server"],
        ),
        *_sized(
            lines, "scaling-rows", "an update in a table, rows", MANY_ROWS, "us", lambda line: line["ours"], math.log10
        ),
        *_sized(
            lines, "scaling-backlog", "a backlog gets to the other site, rows", MANY_ROWS, "s",
            lambda line: line["env"]["wall"],
        ),
        *_sized(
            lines, "scaling-backlog", "the memory of an agent, rows of a backlog", MANY_ROWS, "MB",
            lambda line: line["env"]["agent_mb"], math.log10,
        ),
    ]  # fmt: skip


def _sized(
    lines: Sequence[Line],
    name: str,
    what: str,
    many: float,
    unit: str,
    value: Callable[[Line], float],
    scale: Callable[[float], float] = float,
) -> list[Statement]:
    figures = {line["env"]["size"]: value(line) for line in lines if line["name"] == name}
    found = law((scale(size), figure) for size, figure in figures.items())
    if found is None:
        return []
    most = max(figures)
    predicted = found.at(scale(many))
    return [Statement(what, f"{most:,}", figures[most], f"{many:,}", predicted, unit, found.off)]


def _sites(lines: Sequence[Line], shape: str, who: str, what: str, less: int) -> list[Statement]:
    """By peers; a site at a hub has one peer, and is told of the others, so there it is by sites. Of what falls with more sites nothing is
    said: the machine was full, and slowed it down."""
    for line in lines:
        if line["name"] == f"sites-calm-{shape}":
            by_sites = {int(size): cost[who] for size, cost in line["env"]["by_sites"].items()}
            found = law((size - less, cost) for size, cost in by_sites.items())
            most = max(by_sites)
            if found is not None and by_sites[most] > by_sites[min(by_sites)]:
                return [
                    Statement(
                        f"{what}, sites", f"{most}", by_sites[most], f"{many}", found.at(many - less),
                        "% of a core", found.off,
                    )
                    for many in MANY_SITES
                ]  # fmt: skip
    return []


def _messages(lines: Sequence[Line]) -> list[Statement]:
    return [
        statement
        for shape, who in (("mesh", "a site in a mesh"), ("hub", "the hub"))
        for many in MANY_SITES
        for statement in _sized(
            lines,
            f"simulated-{shape}",
            f"messages of {who}, sites (simulated)",
            many,
            "a second",
            lambda line: line["ours"],
        )
    ]
