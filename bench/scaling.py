"""How cost grows: with the rows that are there, with columns, with the size of a value, with tables, with the backlog.

Each size is a line of its own: processor microseconds of both servers and agents for a row that gets to the other site, as a drain is measured;
beside it what it took on the wall, and how much memory an agent had. The largest size grows with `--scale`: a hundred million changes are
`scaling-changes --scale 10`, as many rows `scaling-backlog --scale 100`.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import psycopg

from bench.drain import once
from bench.gauges import peak_megabytes, tree_seconds
from bench.lab import Lab
from bench.ours import Ours
from bench.pair import Diverged, Stage
from bench.report import Line, alone, middle
from bench.workloads import Workload, insert_bulk

_CHANGED = 20_000
"""Rows of a backlog, where something else grows."""
_MORE = (
    "insert into orders select seed_key(i), md5('c' || i)::uuid, i, 10.5, 'seed', rpad('note ' || i, 80, 'x'), '2026-01-01'"
    " from generate_series({seeds} + 1, {rows}) i"
)
_TIMES = 10
"""Changes of a row, where changes grow."""
_WRITTEN = "update orders set n = n + 1 where id in (select seed_key(i) from unnest(%s::bigint[]) i)"
_TOTAL_BYTES = 32 * 1024 * 1024
_VALUE = """
insert into orders (id, customer, n, status, note)
select new_key(), gen_random_uuid(), i, 'large', (select string_agg(md5(random()::text || i || j), '') from generate_series(1, {words}) j)
from generate_series(1, {rows}) i"""
_RESTING = 30.0
_CALM = 5.0


class Shape(NamedTuple):
    """What one size is like: what each database gets, what is attached, what the application writes, and how many rows of it."""

    size: int
    rows: int
    write: Callable[[Stage, int], None]
    prepare: Callable[[psycopg.Connection], None] = lambda _: None
    tables: Sequence[str] = ()


def _sizes(first: int, most: float, step: int = 10) -> list[int]:
    """From the first, times `step`, up to the largest; the first in any case."""
    sizes = [first]
    while sizes[-1] * step <= most * 1.001:
        sizes.append(sizes[-1] * step)
    return sizes


def rows(lab: Lab, name: str) -> Iterator[Line]:
    """As many updates of rows chosen at random, in a table of more and more rows."""

    def write(size: int, stage: Stage, count: int) -> None:
        stage.a.execute(_WRITTEN, (random.Random(size).sample(range(1, size + 1), count),))

    for size in _sizes(10_000, 1_000_000 * lab.scale):
        shape = Shape(size, min(_CHANGED, size), partial(write, size), partial(_filled, lab, size))
        yield _line(lab, name, "rows of the table", shape)


def columns(lab: Lab, name: str) -> Iterator[Line]:
    """As many inserts into a table of more and more columns."""

    def prepare(size: int, site: psycopg.Connection) -> None:
        more = ", ".join(f"add c{n} int not null default {n}" for n in range(7, size))
        if more:
            site.execute(f"alter table orders {more}".encode())
        site.execute("vacuum (full, analyze) orders")

    for size in (7, 25, 100):
        shape = Shape(size, _scaled(lab, _CHANGED), insert_bulk, partial(prepare, size))
        yield _line(lab, name, "columns", shape)


def values(lab: Lab, name: str) -> Iterator[Line]:
    """Values that cannot be compressed, of more and more bytes; as many bytes of them together."""

    def write(size: int, stage: Stage, count: int) -> None:
        stage.a.execute(_VALUE.format(words=size // 32, rows=count).encode())

    for size in _sizes(1024, 1024**2, 32):
        count = max(2, _scaled(lab, _TOTAL_BYTES) // size)
        yield _line(lab, name, "bytes of a value", Shape(size, count, partial(write, size)))


def tables(lab: Lab, name: str) -> Iterator[Line]:
    """As many inserts over more and more tables, one transaction; and what the sites use at rest."""

    def prepare(names: Sequence[str], site: psycopg.Connection) -> None:
        for table in names:
            site.execute(f"create table {table} (id uuid primary key, n int, note text)".encode())

    def write(names: Sequence[str], stage: Stage, count: int) -> None:
        with stage.a.transaction():
            for table in names:
                stage.a.execute(
                    f"insert into {table} select new_key(), i, rpad('note ' || i, 80, 'x')"
                    f" from generate_series(1, {count // len(names)}) i".encode()
                )

    for size in (1, 10, 100):
        names = [f"part_{n}" for n in range(size)]
        count = max(1, _scaled(lab, _CHANGED) // size) * size
        shape = Shape(size, count, partial(write, names), partial(prepare, names), names)
        yield _line(lab, name, "tables", shape, rest=True)


def backlog(lab: Lab, name: str) -> Iterator[Line]:
    """More and more rows written while the other site takes nothing."""
    for size in _sizes(100_000, 1_000_000 * lab.scale):
        yield _line(lab, name, "rows of the backlog", Shape(size, size, insert_bulk))


def changes(lab: Lab, name: str) -> Iterator[Line]:
    """More and more changes, ten of each row, written while the other site takes nothing."""

    def write(stage: Stage, count: int) -> None:
        for _ in range(_TIMES):
            stage.a.execute("update orders set n = n + 1")
            stage.a.execute("vacuum orders")  # else the table grows tenfold

    for size in _sizes(100_000, 10_000_000 * lab.scale):
        shape = Shape(size, size, write, partial(_filled, lab, size // _TIMES))
        yield _line(lab, name, "changes of the backlog", shape)


def _filled(lab: Lab, size: int, site: psycopg.Connection) -> None:
    """So many rows are there."""
    site.execute(_MORE.format(seeds=lab.pair.seeds, rows=size).encode())
    site.execute("delete from orders where n > %s", (size,))
    site.execute("vacuum (analyze) orders")


def _scaled(lab: Lab, count: int) -> int:
    return max(100, round(count * min(lab.scale, 10.0)))


def _line(lab: Lab, name: str, axis: str, shape: Shape, *, rest: bool = False) -> Line:
    costs: list[float] = []
    walls: list[float] = []
    memory: list[float] = []
    calm: dict[str, list[float]] = {"agent": [], "server": []}
    for run in range(lab.runs):
        system = _Watched(lab, shape, rest=rest)
        reading = once(lab, system, Workload(shape.rows, shape.write), shape.rows)
        costs.append(reading.processors * 1e6 / shape.rows)
        walls.append(reading.wall)
        memory.append(system.megabytes)
        for who, percent in system.calm.items():
            calm[who].append(percent)
        lab.say(
            f"{name} {run + 1}/{lab.runs} {shape.size:,} {axis}: {costs[-1]:,.1f} us a row in {reading.wall:.2f} s"
        )
    return alone(
        lab, name, "us/row", costs, limit=None, axis=axis, size=shape.size, rows=shape.rows, wall=middle(walls),
        agent_mb=middle(memory), **({"rest_percent": {who: middle(some) for who, some in calm.items()}} if rest else {}),
    )  # fmt: skip


class _Watched(Ours):
    """Says what it had used when it was stopped: the larger agent's memory; and, before anything was written, percents of a processor at rest."""

    def __init__(self, lab: Lab, shape: Shape, *, rest: bool) -> None:
        super().__init__(tables=shape.tables, prepare=shape.prepare)
        self._lab, self._shape, self._rest = lab, shape, rest
        self.megabytes = 0.0
        self.calm: dict[str, float] = {}

    def start(self, stage: Stage) -> None:
        super().start(stage)
        self._stage = stage
        if self._rest:
            self.calm = self._at_rest()

    def _at_rest(self) -> dict[str, float]:
        """The busier agent and the busier server."""
        seconds = max(3.0, _RESTING * min(self._lab.scale, 1.0))
        time.sleep(_CALM)
        agents = self.processes()
        servers = [server.pid for server in (self._lab.pair.a, self._lab.pair.b) if server.pid]
        began, before = time.monotonic(), [tree_seconds(pid) for pid in (*agents, *servers)]
        time.sleep(seconds)
        wall, after = time.monotonic() - began, [tree_seconds(pid) for pid in (*agents, *servers)]
        used = [100 * (now - then) / wall for now, then in zip(after, before, strict=True)]
        return {"agent": max(used[: len(agents)]), "server": max(used[len(agents) :])}

    def stop(self) -> None:
        if self.processes():
            self.megabytes = max(map(peak_megabytes, self.processes()))
            self._check_tables()
        super().stop()

    def _check_tables(self) -> None:
        """Those beside the one that every drain compares."""
        for table in self._shape.tables:
            here, there = (
                site.execute(
                    f"select count(*), sum(hashtextextended({table}::text, 0)::numeric) from {table}".encode()
                ).fetchone()
                for site in (self._stage.a, self._stage.b)
            )
            if here != there:
                raise Diverged(f"{table}: the sites differ", detail=f"count and sum: {here} and {there}")
