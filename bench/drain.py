"""How fast a backlog gets to the other site.

The receiver is told to apply nothing, the backlog is written at the origin, both servers have a checkpoint, the
receiver may go on: from then to the moment its last row is visible there. Rows are those the application wrote, so
coalescing counts.
"""

from collections.abc import Sequence

from bench.gauges import Reading
from bench.lab import Lab
from bench.native import Native
from bench.ours import Ours
from bench.report import Line, compared, middle
from bench.systems import System
from bench.workloads import Workload


def drain(lab: Lab, name: str, workload: Workload) -> Line:
    rows = workload.scaled(lab.scale)
    readings: dict[str, list[Reading]] = {Ours.name: [], Native.name: []}
    for run, make in lab.turns(Native, Ours):
        system = make()
        reading = once(lab, system, workload, rows)
        readings[system.name].append(reading)
        lab.say(f"{name} {run + 1}/{lab.runs} {system.name}: {rows / reading.wall:,.0f} rows/s")
    rates = {who: [rows / reading.wall for reading in seen] for who, seen in readings.items()}
    return compared(
        lab,
        name,
        "rows/s",
        rates,
        peer=Native.name,
        cost=False,
        extra={
            "rows": rows,
            "cpu_us_per_row": {who: _costs(seen, rows) for who, seen in readings.items()},
            "others": middle([reading.others for seen in readings.values() for reading in seen]),
        },
    )


def once(lab: Lab, system: System, workload: Workload, rows: int) -> Reading:
    """A backlog written and drained; both sites equal at the end."""
    with lab.replicating(system) as stage:
        stage.settle()
        system.pause()
        workload.write(stage, rows)
        last = stage.mark()
        stage.settle()
        meter = lab.meter(system)
        system.resume()
        stage.await_row(last)
        reading = meter.stop()
        stage.compare()
    return reading


def _costs(readings: Sequence[Reading], rows: int) -> dict[str, float]:
    return {
        part: middle([getattr(reading, part) * 1e6 / rows for reading in readings])
        for part in ("origin", "receiver", "agents")
    }
