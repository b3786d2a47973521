"""What a benchmark answers: one line, with what is needed to believe it."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bench.lab import Lab
from syncagent import __version__

_NOTHING: Mapping[str, Any] = {}


class Line(msgspec.Struct, frozen=True):
    """The fields are those of the interface; `ours` and `theirs` are medians of the runs.

    `ratio` > 1 is better than the peer. `spread`: least and most of each. Where there is no peer, `peer`,
    `theirs` and `ratio` are null, and `limit` says what was asked.
    """

    name: str
    ours: float | None
    theirs: float | None
    peer: str | None
    unit: str
    ratio: float | None
    limit: float | None
    runs: int
    spread: Mapping[str, list[float]]
    env: Mapping[str, Any]


def compared(
    lab: Lab,
    name: str,
    unit: str,
    figures: Mapping[str, Sequence[float]],
    *,
    peer: str,
    cost: bool,
    limit: float | None = None,
    extra: Mapping[str, Any] = _NOTHING,
) -> Line:
    """`figures`: of "syncagent" and of the peer, one each run; a cost is better when it is smaller."""
    ours, theirs = median(figures["syncagent"]), median(figures[peer])
    return Line(
        name,
        rounded(ours),
        rounded(theirs),
        peer,
        unit,
        rounded(theirs / ours if cost else ours / theirs),
        limit,
        lab.runs,
        {"ours": _extent(figures["syncagent"]), "theirs": _extent(figures[peer])},
        {**environment(lab), **extra},
    )


def alone(
    lab: Lab, name: str, unit: str, figures: Sequence[float], *, limit: float | None, **extra: object
) -> Line:
    """A figure of ours that is held to a limit."""
    return Line(
        name,
        rounded(median(figures)),
        None,
        None,
        unit,
        None,
        limit,
        lab.runs,
        {"ours": _extent(figures)},
        {**environment(lab), **extra},
    )


def missing(lab: Lab, name: str, peer: str, error: Exception) -> Line:
    """A peer that is not there, or does not do it."""
    why = [str(error), *(str(more) for key in ("detail", "hint") if (more := getattr(error, key, None)))]
    return Line(
        name, None, None, peer, "", None, None, lab.runs, {}, {**environment(lab), "missing": "; ".join(why)}
    )


def rounded(value: float) -> float:
    """Four digits: no more are true."""
    return float(f"{value:.4g}")


def middle(values: Sequence[float]) -> float:
    return rounded(median(values))


def _extent(values: Sequence[float]) -> list[float]:
    return [rounded(min(values)), rounded(max(values))]


def environment(lab: Lab) -> dict[str, Any]:
    """Where and on what this was measured."""
    return {
        "syncagent": __version__,
        "postgresql": lab.pair.a.binaries.version,
        "settings": lab.pair.settings,
        "scale": lab.scale,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
