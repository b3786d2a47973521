"""What replication costs the origin: processor seconds of its server, and transactions that do not happen.

Seconds are those of the whole process tree of the origin's server from before the work until its last row is visible
at the other site, against the same work without replication. What the server does afterwards (metadata that is
dropped once everybody has everything) is told beside it.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from bench import orders
from bench.gauges import tree_seconds
from bench.lab import Lab
from bench.native import Native
from bench.ours import Ours
from bench.pair import Stage
from bench.report import Line, compared, middle
from bench.systems import Nothing, System
from bench.workloads import Workload, finish, pgbench

_REAPED = 0.3
"""Seconds for a server to bury the children of the work."""
_AFTER = 3.0
"""Seconds for which is counted what a server does afterwards: agents compact once a second, and nobody says when they are done."""
_TPS_SECONDS = 10.0
_SYSTEMS = (Nothing, Native, Ours)


def capture(lab: Lab, name: str, workload: Workload) -> Line:
    seconds, extra = _measured(lab, name, workload, *_SYSTEMS)
    return _line(lab, name, "s", seconds, cost=True, extra=extra)


def capture_against(peer: Callable[[], System], lab: Lab, name: str, workload: Workload) -> Line:
    """Both with what replicates; what it is without is told in `env`."""
    seconds, extra = _measured(lab, name, workload, Nothing, peer, Ours)
    none = middle(seconds.pop(Nothing.name))
    return compared(lab, name, "s", seconds, peer=peer().name, cost=True, extra={"none": none, **extra})


def _measured(
    lab: Lab, name: str, workload: Workload, *systems: Callable[[], System]
) -> tuple[dict[str, list[float]], dict[str, object]]:
    rows = workload.scaled(lab.scale)
    seconds: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    for run, make in lab.turns(*systems):
        system = make()
        used, later = _once(lab, system, workload, rows)
        seconds.setdefault(system.name, []).append(used)
        after.setdefault(system.name, []).append(later)
        lab.say(f"{name} {run + 1}/{lab.runs} {system.name}: {used:.2f} s of processors")
    return seconds, {"rows": rows, "afterwards": _middles(after)}


def _once(lab: Lab, system: System, workload: Workload, rows: int) -> tuple[float, float]:
    with lab.replicating(system) as stage:
        origin = lab.pair.a.pid
        assert origin is not None
        stage.settle()
        start = tree_seconds(origin)
        workload.write(stage, rows)
        if not isinstance(system, Nothing):
            stage.await_row(stage.mark())
        time.sleep(_REAPED)
        used, later = tree_seconds(origin) - start, 0.0
        if not isinstance(system, Nothing):
            time.sleep(_AFTER)
            later = tree_seconds(origin) - start - used
            stage.compare()
    return used, later


def transactions(lab: Lab, name: str) -> Line:
    """Transactions a second of four clients, synchronous commit, half inserts and half updates."""
    rates: dict[str, list[float]] = {make.name: [] for make in _SYSTEMS}
    for run, make in lab.turns(*_SYSTEMS):
        system = make()
        with lab.replicating(system) as stage:
            stage.settle()
            rate = _rate(stage, max(1, round(_TPS_SECONDS * lab.scale)))
            if not isinstance(system, Nothing):
                stage.await_row(stage.mark())
                stage.compare()
        rates[system.name].append(rate)
        lab.say(f"{name} {run + 1}/{lab.runs} {system.name}: {rate:,.0f} transactions/s")
    return _line(lab, name, "transactions/s", rates, cost=False, extra={})


def _rate(stage: Stage, seconds: int) -> float:
    with pgbench(stage, [orders.INSERT, orders.UPDATE], f"--time={seconds}", commit="on") as process:
        return finish(process)


def _line(
    lab: Lab,
    name: str,
    unit: str,
    figures: Mapping[str, Sequence[float]],
    *,
    cost: bool,
    extra: Mapping[str, object],
) -> Line:
    """Against no replication; how native logical replication does in that is told in `env`."""
    theirs = compared(
        lab, name, unit, {**figures, Ours.name: figures[Native.name]}, peer=Nothing.name, cost=cost
    )
    native = {"value": theirs.ours, "ratio": theirs.ratio, "spread": theirs.spread["ours"]}
    return compared(lab, name, unit, figures, peer=Nothing.name, cost=cost, extra={"native": native, **extra})


def _middles(figures: dict[str, list[float]]) -> dict[str, float]:
    return {who: middle(values) for who, values in figures.items()}
