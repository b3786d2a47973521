"""The most memory an agent has while one batch of a million rows is on its way."""

from bench.gauges import peak_megabytes
from bench.lab import Lab
from bench.ours import Ours
from bench.report import Line, alone, middle
from bench.workloads import Workload, at_once, insert_bulk

_ROWS = 1_000_000
_LIMIT_MB = 150.0
_UPDATE = "update orders set n = n + 1"


def memory(lab: Lab, name: str) -> Line:
    """They are inserted, then all are updated with those that were there: plain rows, then exact ones."""
    rows = Workload(_ROWS, insert_bulk).scaled(lab.scale)
    most: list[float] = []
    sites: list[tuple[float, float]] = []
    for run in range(lab.runs):
        system = Ours()
        with lab.replicating(system) as stage:
            for write in (insert_bulk, at_once(_UPDATE)):
                system.pause()
                write(stage, rows)
                last = stage.mark()
                system.resume()
                stage.await_row(last)
            origin, receiver = map(peak_megabytes, system.processes())
            stage.compare()
        sites.append((origin, receiver))
        most.append(max(origin, receiver))
        lab.say(f"{name} {run + 1}/{lab.runs}: origin {origin:.0f} MB, receiver {receiver:.0f} MB")
    origins, receivers = zip(*sites, strict=True)
    return alone(
        lab,
        name,
        "MB",
        most,
        limit=_LIMIT_MB,
        rows=rows,
        origin=middle(origins),
        receiver=middle(receivers),
    )
