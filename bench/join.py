"""How fast a site joins, against a dump and a restore of the same table with the same index.

Ours: all of `syncagent join`, the table and its key made, rows copied and compared, caught up, a member. Theirs:
`pg_dump -Fc | pg_restore`. Then ours once more with writers at the donor, whose transactions are compared with those
they did before it began.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import mean

from bench import orders
from bench.lab import Lab
from bench.ours import Member, begun, ended
from bench.pair import Stage
from bench.report import Line, compared, middle
from bench.workloads import pgbench, rates
from syncagent.errors import DatabaseError

ROWS = 5_000_000
PEER = "pg_dump"
_CALM_SECONDS = 20


def join(lab: Lab, name: str) -> Line:
    rows = max(1, round(ROWS * lab.scale))
    rates: dict[str, list[float]] = {"syncagent": [], PEER: []}
    kept: list[float] = []
    for run, who in lab.turns("syncagent", PEER):
        with lab.pair.stage("join") as stage:
            stage.a.execute(orders.INSERT_ALL.format(rows=rows).encode())
            stage.a.execute("vacuum (analyze) orders")
            total = stage.a.execute("select count(*) from orders").fetchall()[0][0]
            with ExitStack() as stack:
                donor = stack.enter_context(_donor(stage)) if who == "syncagent" else None
                seconds = _joined(stage, donor, "first") if donor else _theirs(stage)
                rates[who].append(total / seconds)
                lab.say(f"{name} {run + 1}/{lab.runs} {who}: {total / seconds:,.0f} rows/s")
                stage.compare()
                if donor:
                    kept.append(_share(lab, stage, donor))
                    lab.say(f"{name} {run + 1}/{lab.runs} the donor's writers kept {kept[-1]:.2f}")
    return compared(
        lab,
        name,
        "rows/s",
        rates,
        peer=PEER,
        cost=False,
        limit=0.8,
        extra={"rows": rows, "donor_kept": middle(kept), "donor_kept_runs": kept},
    )


def _theirs(stage: Stage) -> float:
    stage.b.execute("drop table orders")
    stage.settle()
    tool, began = stage.pair.a.binaries.tool, time.monotonic()
    dump = subprocess.Popen(
        [tool("pg_dump"), "-Fc", "-t", "orders", "--dbname", stage.dsns[0]], stdout=subprocess.PIPE
    )
    restore = subprocess.run(
        [tool("pg_restore"), "--no-owner", "--dbname", stage.dsns[1]], stdin=dump.stdout, check=False
    )
    if dump.wait() or restore.returncode:
        raise DatabaseError("pg_dump or pg_restore failed")
    return time.monotonic() - began


@contextmanager
def _donor(stage: Stage) -> Iterator[Member]:
    """The agent of the first site."""
    donor = Member(stage.folder / "donor", stage.dsns[0], "donor")
    donor.init()
    donor.verb("attach", "orders", "--existing", "keep")
    donor.run()
    try:
        donor.await_agent()
        yield donor
    finally:
        donor.stop()


def _joined(stage: Stage, donor: Member, name: str) -> float:
    """Seconds until an empty database was a member."""
    stage.b.execute("drop schema if exists syncagent cascade; drop table if exists orders")
    token = donor.verb("invite")["token"]
    stage.settle()
    began = time.monotonic()
    ended(
        begun(
            stage.folder / name,
            *("join", "--peer", donor.address, "--dsn", stage.dsns[1], "--name", name, "--listen", "none"),
            SYNCAGENT_TOKEN=token,
        )
    )
    took = time.monotonic() - began
    donor.verb("remove", name, "--yes")
    return took


def _share(lab: Lab, stage: Stage, donor: Member) -> float:
    """Transactions a second at the donor during a join, as a part of those before it."""
    seconds = max(2, round(_CALM_SECONDS * min(lab.scale, 1.0)))
    with pgbench(stage, [orders.UPDATE], "--time=86400", "--progress=1", commit="on", clients=2) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        time.sleep(seconds)
        calm = rates(process)
        _joined(stage, donor, "second")
        busy = rates(process)
        process.terminate()
    if not calm or not busy:
        raise DatabaseError("pgbench said nothing", hint="raise --scale: the join must take several seconds")
    return mean(busy) / mean(calm)
