"""How fast a backlog gets to the other site.

The receiver is told to apply nothing, the backlog is written at the origin, both servers have a checkpoint, the
receiver may go on: from then to the moment its last row is visible there. Rows are those the application wrote, so
coalescing counts. `COPY` of as many is the limit that no replication of new rows passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.copy import Copy
from bench.gauges import Reading
from bench.lab import Lab
from bench.native import Native
from bench.ours import Ours
from bench.report import Line, compared, middle
from bench.systems import System
from bench.workloads import Workload, insert_bulk


def drain(lab: Lab, name: str, workload: Workload) -> Iterator[Line]:
    """Against PostgreSQL's own replication, and against the limit if there is one."""
    limits = (Copy,) if workload.new else ()
    readings = _measured(lab, name, workload, Native, Ours, *limits)
    for peer in (Native, *limits):
        yield _line(lab, name, workload, readings, peer.name)


def drain_against(peer: Callable[[], System], lab: Lab, name: str, workload: Workload) -> Line:
    return _line(lab, name, workload, _measured(lab, name, workload, peer, Ours), peer().name)


def _measured(
    lab: Lab, name: str, workload: Workload, *systems: Callable[[], System]
) -> dict[str, list[Reading]]:
    rows = workload.scaled(lab.scale)
    readings: dict[str, list[Reading]] = {}
    for run, make in lab.turns(*systems):
        system = make()
        written = Workload(workload.rows, insert_bulk) if isinstance(system, Copy) else workload
        reading = once(lab, system, written, rows)
        readings.setdefault(system.name, []).append(reading)
        lab.say(f"{name} {run + 1}/{lab.runs} {system.name}: {rows / reading.wall:,.0f} rows/s")
    return readings


def _line(
    lab: Lab, name: str, workload: Workload, readings: Mapping[str, Sequence[Reading]], peer: str
) -> Line:
    rows = workload.scaled(lab.scale)
    seen = {who: readings[who] for who in (Ours.name, peer)}
    return compared(
        lab,
        name,
        "rows/s",
        {who: [rows / reading.wall for reading in one] for who, one in seen.items()},
        peer=peer,
        cost=False,
        extra={
            "rows": rows,
            "cpu_us_per_row": {who: costs(one, rows) for who, one in seen.items()},
            "others": middle([reading.others for one in seen.values() for reading in one]),
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


def costs(readings: Sequence[Reading], rows: int) -> dict[str, float]:
    """Processor microseconds a row, by where."""
    return {
        part: middle([getattr(reading, part) * 1e6 / rows for reading in readings])
        for part in ("origin", "receiver", "agents")
    }
