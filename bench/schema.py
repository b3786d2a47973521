"""What an application keeps of its throughput while a column is added to its table, and filled from the others, at both sites.

Four clients update and insert at one site, before the change and while it goes on; nobody writes otherwise. The column is NOT NULL
and comes from the row, so all that a change can have is in it: both shapes written, a million rows filled and proved. The application is of the old
version, so the end of that is not measured: the trigger is dropped when it has stopped.
"""

import os
import time
from statistics import mean

from bench import orders
from bench.lab import Lab
from bench.ours import Ours, begun, ended
from bench.pair import Stage
from bench.report import Line, alone, middle
from bench.workloads import pgbench, rates
from syncagent.errors import DatabaseError

ROWS = 1_000_000
_SECONDS = 20
_LIMIT = 0.8
_CHANGE = """
-- up: coalesce((total * 100)::bigint, 0)
alter table orders add column cents bigint not null;
"""
_MORE = """
insert into orders
select seed_key(i), md5('c' || i)::uuid, i, 10.5, 'seed', rpad('note ' || i, 80, 'x'), '2026-01-01'
from generate_series({first}, {last}) i"""


def schema(lab: Lab, name: str) -> Line:
    """Transactions a second during the change, as a part of those before it."""
    rows = max(lab.pair.seeds, round(ROWS * lab.scale))
    kept: list[float] = []
    before: list[float] = []
    during: list[float] = []
    took: list[float] = []
    for run in range(lab.runs):
        with lab.pair.stage("schema") as stage:
            for site in (stage.a, stage.b):
                site.execute(_MORE.format(first=lab.pair.seeds + 1, last=rows).encode())
                site.execute("vacuum (analyze) orders")
            ours = Ours()
            try:
                ours.start(stage)
                calm, busy, seconds = _measured(lab, stage, ours, rows)
                stage.await_row(stage.mark())
                stage.compare()
            finally:
                ours.stop()
        kept.append(busy / calm)
        before.append(calm)
        during.append(busy)
        took.append(seconds)
        lab.say(
            f"{name} {run + 1}/{lab.runs} {calm:,.0f} transactions/s, {busy:,.0f} during the change of {seconds:.0f} s: {kept[-1]:.2f}"
        )
    return alone(
        lab,
        name,
        "of before",
        kept,
        limit=_LIMIT,
        rows=rows,
        before=middle(before),
        during=middle(during),
        seconds=middle(took),
    )


def _measured(lab: Lab, stage: Stage, ours: Ours, rows: int) -> tuple[float, float, float]:
    """Transactions a second before and during the change, and its seconds."""
    change = stage.folder / "change.sql"
    change.write_text(_CHANGE)
    scripts = [orders.UPDATE.format(seeds=rows), orders.INSERT]
    stage.settle()
    with pgbench(stage, scripts, "--time=86400", "--progress=1", commit="on") as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        time.sleep(max(3, round(_SECONDS * min(lab.scale, 1.0))))
        calm = rates(process)
        began = time.monotonic()
        told = ended(begun(ours.member(0).home, "schema", "apply", str(change)))
        seconds = time.monotonic() - began
        busy = rates(process)
        failed = process.poll() is not None
        process.terminate()
    if failed or told["state"] != "waits for approval":
        raise DatabaseError("pgbench or the change failed", detail=f"the change is {told['state']}")
    if not calm or not busy:
        raise DatabaseError(
            "pgbench said nothing", hint="raise --scale: the change must take several seconds"
        )
    return mean(calm[1:] or calm), mean(busy), seconds
