"""What it costs that several sites write the same rows.

Conflicts: both sites write every one of some rows while neither applies anything, then both may; against as many rows of which each is
written at one site. By column: a backlog of updates of three columns of twelve, by `lww-column` and by `merge` with two counters, against the
same by row.
"""

import psycopg

from bench.drain import costs, once
from bench.gauges import Reading
from bench.lab import Lab
from bench.orders import UPDATE_SOME
from bench.ours import Ours
from bench.pair import Stage
from bench.report import Line, compared, middle, rounded
from bench.workloads import Workload
from syncagent.errors import SyncagentError

_ROWS = 100_000
"""Written at each of two sites."""
_WIDEN = """
alter table orders alter n set not null, alter total set not null, alter total set default 0,
    add street text default 'Unter den Linden 77', add city text default 'Berlin', add country text default 'de',
    add weight int default 1200, add paid boolean default false"""
_TYPED = {
    "lww": ("lww",),
    "lww-column": ("lww-column",),
    "merge": ("merge", "--merge", "n=counter", "--merge", "total=counter"),
}
_TIMES = {"lww-column": 1.5, "merge": 3.0}
"""What they may cost, at most so many times."""


def conflicts(lab: Lab, name: str) -> Line:
    rows = max(1, round(_ROWS * lab.scale))
    rates: dict[str, list[float]] = {"syncagent": [], "no conflicts": []}
    for run, apart in lab.turns(True, False):
        reading = _both(lab, rows, apart=apart)
        who = "no conflicts" if apart else "syncagent"
        rates[who].append(2 * rows / reading.wall)
        lab.say(f"{name} {run + 1}/{lab.runs} {who}: {rates[who][-1]:,.0f} rows/s")
    return compared(
        lab, name, "rows/s", rates, peer="no conflicts", cost=False, limit=0.5, extra={"rows": 2 * rows}
    )


def _both(lab: Lab, rows: int, *, apart: bool) -> Reading:
    system = Ours()
    with lab.replicating(system) as stage:
        stage.settle()
        for site in (0, 1):
            system.pause(site)
        stage.a.execute(UPDATE_SOME.format(rows=rows, by=1000000, above=0).encode())
        stage.b.execute(UPDATE_SOME.format(rows=rows, by=2000000, above=rows if apart else 0).encode())
        last = stage.mark(), stage.mark(backwards=True)
        stage.settle()
        meter = lab.meter(system)
        for site in (0, 1):
            system.resume(site)
        stage.await_row(last[0])
        stage.await_row(last[1], backwards=True)
        reading = meter.stop()
        stage.compare()
        _check(stage, 0 if apart else rows)
    return reading


def _check(stage: Stage, rows: int) -> None:
    """Each is recorded, with both images, where the two met."""
    found = set()
    for site in (stage.a, stage.b):
        found |= set(
            site.execute(
                "select id from syncagent.conflict_record where winning_image is not null and losing_image is not null"
            ).fetchall()
        )
    if len(found) != rows:
        raise SyncagentError(f"{rows:,} conflicts were to be recorded, and {len(found):,} were")


def _widen(site: psycopg.Connection) -> None:
    """Twelve columns, of which an update writes three: two numbers that are added to, and a time."""
    site.execute(_WIDEN)
    site.execute("vacuum (full, analyze) orders")


def by_column(strategy: str, lab: Lab, name: str, workload: Workload) -> Line:
    """Processor time of both servers and agents for a row, against the same merged by row."""
    rows = workload.scaled(lab.scale)
    readings: dict[str, list[Reading]] = {"syncagent": [], "lww": []}
    for run, chosen in lab.turns("lww", strategy):
        reading = once(lab, Ours(strategy=_TYPED[chosen], prepare=_widen), workload, rows)
        readings["lww" if chosen == "lww" else "syncagent"].append(reading)
        lab.say(f"{name} {run + 1}/{lab.runs} {chosen}: {reading.processors * 1e6 / rows:,.1f} us a row")
    spent = {who: [reading.processors * 1e6 / rows for reading in seen] for who, seen in readings.items()}
    rates = {who: middle([rows / reading.wall for reading in seen]) for who, seen in readings.items()}
    return compared(
        lab,
        name,
        "us/row",
        spent,
        peer="lww",
        cost=True,
        limit=rounded(1 / _TIMES[strategy]),
        extra={
            "rows": rows,
            "rows_per_second": rates,
            "cpu_us_per_row": {who: costs(seen, rows) for who, seen in readings.items()},
        },
    )
