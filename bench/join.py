"""How fast the rows get to a site that joins, against a dump and a restore of the same table with the same index.

Ours: the copy from a running agent, the primary key, and what makes the database a site. Theirs: `pg_dump -Fc | pg_restore`.
Then ours once more with writers at the donor, whose transactions are compared with those they did before it began.
"""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from bench import orders
from bench.lab import Lab
from bench.pair import Stage
from bench.report import Line, compared, middle
from bench.workloads import pgbench
from syncagent import resources
from syncagent.core.membership import Peer
from syncagent.embedded import free_port
from syncagent.errors import DatabaseError, SyncagentError
from syncagent.services import joiner
from syncagent.settings import peer_entry
from syncagent.storage.copier import PostgresCopier
from syncagent.transport.copying import HttpDonor
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials

ROWS = 5_000_000
PEER = "pg_dump"
_NODE = 2
_CALM_SECONDS = 20
_KEY = "alter table orders add primary key (id)"


class _Clock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> int:
        return 0

    def chance(self) -> float:
        return random.random()


@dataclass
class _Donor:
    """A running agent with the table attached, and the credentials of the site that joins."""

    stage: Stage
    peer: Peer
    credentials: Credentials


def join(lab: Lab, name: str) -> Line:
    rows = max(1, round(ROWS * lab.scale))
    rates: dict[str, list[float]] = {"syncagent": [], PEER: []}
    kept: list[float] = []
    for run, who in lab.turns("syncagent", PEER):
        with lab.pair.stage("join") as stage:
            stage.a.execute(orders.INSERT_ALL.format(rows=rows).encode())
            stage.a.execute("vacuum (analyze) orders")
            total = stage.a.execute("select count(*) from orders").fetchall()[0][0]
            seconds = _ours(stage) if who == "syncagent" else _theirs(stage)
            rates[who].append(total / seconds)
            lab.say(f"{name} {run + 1}/{lab.runs} {who}: {total / seconds:,.0f} rows/s")
            stage.compare()
            if who == "syncagent":
                with _donor(stage) as donor:
                    kept.append(_share(lab, donor))
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


def _ours(stage: Stage) -> float:
    with _donor(stage) as donor:
        return asyncio.run(_joined(donor))


@contextmanager
def _donor(stage: Stage) -> Iterator[_Donor]:
    """The agent of the first site, and an empty second one."""
    home, theirs = stage.folder / "donor", stage.folder / "joiner"
    theirs.mkdir(exist_ok=True)
    credentials = Credentials.provide(theirs, "joiner")
    fresh = not home.exists()
    if fresh:
        address = f"127.0.0.1:{free_port()}"
        _ask("init", "--dsn", stage.dsns[0], "--name", "donor", "--node", "1", "--listen", address, home=home)
        with (home / "config.toml").open("a") as configuration:
            configuration.write(peer_entry(Peer("joiner", _NODE, None, credentials.sha256)))
        _ask("attach", "orders", "--existing", "keep", home=home)
    said = (home / "config.toml").read_text()
    address = re.findall(r'(?m)^listen = "(.*)"', said)[0]
    _empty(stage)
    with (home / "agent.log").open("ab") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "syncagent", "run", "--home", home],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        while not stage.a.execute("select from syncagent.member where node = %s", (_NODE,)).rowcount:
            if agent.poll() is not None:
                raise SyncagentError(
                    "the donor's agent has ended", detail=(home / "agent.log").read_text()[-2000:]
                )
            time.sleep(0.05)
        sha256 = Credentials.provide(home, "donor").sha256
        yield _Donor(stage, Peer("donor", 1, address, sha256), credentials)
    finally:
        agent.terminate()
        agent.wait(20)


def _ask(*verb: str, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "syncagent", *verb, "--home", home, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SyncagentError("syncagent refused to be measured", detail=done.stderr.strip())
    json.loads(done.stdout)


def _empty(stage: Stage) -> None:
    """The second site before it joins: the table without a row and without its key."""
    stage.b.execute("drop schema if exists syncagent cascade")
    for path in sorted(resources.sql().glob("*.sql")):
        stage.b.execute(path.read_text(encoding="utf-8").encode())
    stage.b.execute("truncate orders; alter table orders drop constraint orders_pkey")
    stage.b.execute(
        "insert into syncagent.local_site values (true, gen_random_uuid(), 'joiner', 2, gen_random_uuid(), syncagent._tail(2, 1))"
    )


async def _joined(donor: _Donor) -> float:
    stage, folder = donor.stage, donor.stage.folder / "joiner"
    stage.settle()
    began = time.monotonic()
    source = HttpDonor(donor.peer, donor.credentials, Spools(folder))
    copier = PostgresCopier(stage.dsns[1], _NODE)
    try:
        await joiner.copy(source, copier, _Clock())
        await asyncio.to_thread(stage.b.execute, _KEY)
        await joiner.conclude(source, copier)
    finally:
        await source.close()
        await copier.close()
    return time.monotonic() - began


def _share(lab: Lab, donor: _Donor) -> float:
    """Transactions a second at the donor during a join, as a part of those before it."""
    seconds = max(2, round(_CALM_SECONDS * min(lab.scale, 1.0)))
    with pgbench(
        donor.stage, [orders.UPDATE], "--time=86400", "--progress=1", commit="on", clients=2
    ) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        time.sleep(seconds)
        calm = _rates(process)
        asyncio.run(_joined(donor))
        busy = _rates(process)
        process.terminate()
    if not calm or not busy:
        raise DatabaseError("pgbench said nothing", hint="raise --scale: the join must take several seconds")
    return mean(busy) / mean(calm)


def _rates(process: "subprocess.Popen[str]") -> list[float]:
    """What pgbench has said since the last look."""
    assert process.stderr is not None
    said = process.stderr.read() or ""
    return [float(rate) for rate in re.findall(r"progress: .*? ([\d.]+) tps", said)]
