"""How long after its commit a row is visible at the other site, while the application writes.

Every 50 ms a probe row is written that carries the time; the other site is asked for it every two milliseconds. The
time counts from the row's own clock, so the commit itself is in it. What agents use while nobody writes is measured here, too:
the shorter the lag, the oftener somebody looks whether there is something to do.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import quantiles
from uuid import UUID

import psycopg

from bench import orders
from bench.gauges import tree_seconds
from bench.lab import Lab
from bench.native import Native
from bench.ours import Ours
from bench.pair import Stage
from bench.report import Line, alone, compared, middle
from bench.systems import System
from bench.workloads import CLIENTS, finish, pgbench
from syncagent.errors import SyncagentError

RATE = 200
"""Transactions a second."""
_CLIENT_RATE = 100
"""Those of one client at most, so that a slow disk does not keep the rate down."""
_SECONDS = 15.0
_WARM_UP = 1.0
_EVERY = 0.05
_LOOK = 0.002
_GRACE = 15.0
_LIMIT_MS = 25.0
_CALM = 5.0
"""Seconds after the last row until agents rest."""
_RESTING = 20.0
_LIMIT_PERCENT = 1.0
_PROBE = (
    "insert into orders (id, customer, n, status, note, updated_at)"
    " values (new_key(), gen_random_uuid(), 0, 'probe', '', clock_timestamp()) returning id, extract(epoch from updated_at)"
)
_ARRIVED = "select id from orders where id = any(%s)"


class Probes:
    """Writes probes in a thread of its own until `stop`."""

    def __init__(self, dsn: str) -> None:
        self.waiting: dict[UUID, float] = {}
        self.lock = threading.Lock()
        self._dsn = dsn
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._stop.wait(_EVERY):
                row = connection.execute(_PROBE).fetchone()
                assert row is not None
                with self.lock:
                    self.waiting[row[0]] = float(row[1])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def lag(lab: Lab, name: str, rate: int = RATE, peer: Callable[[], System] = Native) -> Line:
    """The 99th percentile; the median, and what the agents use meanwhile, are told beside it."""
    seconds = max(2.0, _SECONDS * lab.scale)
    halves: dict[str, list[float]] = {}
    tails: dict[str, list[float]] = {}
    agents: list[float] = []
    written: list[float] = []
    for run, make in lab.turns(peer, Ours):
        system = make()
        with lab.replicating(system) as stage:
            stage.settle()
            with _load(stage, seconds, rate) as reached:
                meter = lab.meter(system)
                half, tail = _measure(stage, seconds)
                reading = meter.stop()
            stage.await_row(stage.mark())
            stage.compare()
        halves.setdefault(system.name, []).append(half)
        tails.setdefault(system.name, []).append(tail)
        written += reached
        if system.name == Ours.name:
            agents.append(100 * reading.agents / reading.wall)
        lab.say(f"{name} {run + 1}/{lab.runs} {system.name}: p50 {half:.1f} ms, p99 {tail:.1f} ms")
    return compared(
        lab,
        name,
        "ms",
        tails,
        peer=peer().name,
        cost=True,
        limit=_LIMIT_MS,
        extra={
            "percentile": 99,
            "p50": {who: middle(values) for who, values in halves.items()},
            "rate": rate,
            "reached": middle(written),
            "agents_percent": middle(agents),
        },
    )


def rest(lab: Lab, name: str) -> Line:
    """Percent of a processor that an agent uses while nobody writes, the busier of the two; the servers are told beside it."""
    seconds = max(5.0, _RESTING * min(lab.scale, 1.0))
    used: list[float] = []
    servers: list[float] = []
    for run in range(lab.runs):
        system = Ours()
        with lab.replicating(system) as stage:
            stage.settle()
            stage.await_row(stage.mark())
            time.sleep(_CALM)
            meter, before = lab.meter(system), [tree_seconds(pid) for pid in system.processes()]
            time.sleep(seconds)
            reading, after = meter.stop(), [tree_seconds(pid) for pid in system.processes()]
            stage.compare()
        used.append(100 * max(now - then for now, then in zip(after, before, strict=True)) / reading.wall)
        servers.append(100 * max(reading.origin, reading.receiver) / reading.wall)
        lab.say(f"{name} {run + 1}/{lab.runs} agent {used[-1]:.2f} %, server {servers[-1]:.2f} %")
    return alone(lab, name, "% of a core", used, limit=_LIMIT_PERCENT, server=middle(servers))


@contextmanager
def _load(stage: Stage, seconds: float, rate: int) -> Iterator[list[float]]:
    """Yields where the rate that was reached will be."""
    reached: list[float] = []
    clients = max(CLIENTS, rate // _CLIENT_RATE)
    duration = f"--time={round(seconds + _WARM_UP + 1)}"
    scripts = [orders.INSERT, orders.UPDATE]
    with pgbench(stage, scripts, duration, f"--rate={rate}", commit="on", clients=clients) as process:
        time.sleep(_WARM_UP)
        yield reached
        reached.append(finish(process))


def _measure(stage: Stage, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds."""
    lags: list[float] = []
    probes = Probes(stage.dsns[0])
    end = time.time() + seconds
    try:
        while time.time() < end:
            lags += _arrivals(stage, probes)
            time.sleep(_LOOK)
    finally:
        probes.stop()
    while probes.waiting:
        if time.time() > end + _GRACE:
            raise SyncagentError(f"{len(probes.waiting)} probes did not arrive")
        lags += _arrivals(stage, probes)
        time.sleep(_LOOK)
    cuts = quantiles(lags, n=100, method="inclusive")
    return cuts[49] * 1000, cuts[98] * 1000


def _arrivals(stage: Stage, probes: Probes) -> list[float]:
    with probes.lock:
        asked = list(probes.waiting)
    if not asked:
        return []
    arrived = [row[0] for row in stage.b.execute(_ARRIVED, (asked,)).fetchall()]
    now = time.time()
    with probes.lock:
        return [now - probes.waiting.pop(key) for key in arrived]
