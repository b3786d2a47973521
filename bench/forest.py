"""What the Merkle forest costs: to be made, to be kept, to be compared when all is equal, to be mended when it is not.

Every row is of long ago, so every one is in a sealed bucket: 36,000 rows an hour. They are made once for all runs of a
benchmark. What is read of a table is what PostgreSQL counts (`pg_stat_user_tables`), bytes are those of the line between the two
agents, both ways, with TLS.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import psycopg

from bench import orders
from bench.gauges import tree_seconds
from bench.lab import Lab
from bench.ours import Ours
from bench.pair import Diverged, Stage
from bench.report import Line, alone, compared, middle, rounded
from bench.traffic import Counter
from bench.workloads import pgbench
from syncagent.embedded import free_port
from syncagent.errors import SyncagentError

ROWS = 10_000_000
_FEW = 100_000
_TABLES = 100
_LOST = 10
_PIECE = 10_000
"""Rows of one range of the comparison by md5."""
_RATE = 1000
"""Updates a second."""
_SECONDS = 120
_WATCHED = 60
"""Seconds in which sites compare themselves."""
_MORE = (
    "insert into orders select seed_key(i), md5('c' || i)::uuid, i, 10.5, 'seed', rpad('note ' || i, 80, 'x'), '2026-01-01'"
    " from generate_series({seeds} + 1, {rows}) i"
)


@dataclass(frozen=True)
class Grown:
    """Two sites with agents, all rows sealed at both; `line` counts what goes between them."""

    stage: Stage
    system: Ours
    line: Counter
    rows: int

    def sites(self) -> Sequence[psycopg.Connection]:
        return self.stage.a, self.stage.b

    def ask(self, verb: str, *arguments: str, site: int = 0) -> Any:
        return self.system.member(site).verb(verb, *arguments)


@contextmanager
def _grown(lab: Lab, name: str, rows: int, tables: int = 1) -> Iterator[Grown]:
    """`tables` in all; those beside the one that is measured hold a row each."""
    port = free_port()
    line = Counter(port)
    system = Ours(port, line.port, tables=[f"small_{number}" for number in range(1, tables)])
    began = time.monotonic()
    try:
        with lab.pair.stage(name.replace("-", "_")) as stage:
            try:
                _both(stage, lambda site: _fill(site, lab.pair.seeds, rows, tables))
                system.start(stage)
                lab.say(f"{name}: {rows:,} rows at both sites after {time.monotonic() - began:.0f} s")
                grown = Grown(stage, system, line, rows)
                answer = grown.ask("verify")
                if not answer["equal"]:
                    raise Diverged(f"{name}: the sites differ", detail=str(answer)[:500])
                lab.say(f"{name}: sealed and equal after {time.monotonic() - began:.0f} s")
                yield grown
            finally:
                system.stop()
    finally:
        line.close()


def _fill(site: psycopg.Connection, seeds: int, rows: int, tables: int) -> None:
    site.execute(_MORE.format(seeds=seeds, rows=rows).encode())
    site.execute("delete from orders where n > %s", (rows,))
    for number in range(1, tables):
        site.execute(f"create table small_{number} (id uuid primary key, note text)".encode())
        site.execute(f"insert into small_{number} values (seed_key({number}), 'one')".encode())
    site.execute("vacuum (analyze)")


def _both(stage: Stage, work: Any) -> None:
    threads = [threading.Thread(target=work, args=(site,)) for site in (stage.a, stage.b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- sealing


def seal(lab: Lab, name: str) -> Line:
    """Every bucket of the table at one site, against one aggregate of the same fingerprints over the same rows."""
    rows, spent = max(_FEW, round(ROWS * lab.scale)), dict[str, list[float]](syncagent=[], aggregate=[])
    with _grown(lab, name, rows) as grown:
        grown.system.stop()
        for run, who in lab.turns("syncagent", "aggregate"):
            began = _server_seconds(lab, 0)
            (_seal if who == "syncagent" else _aggregate)(grown.stage.a)
            spent[who].append((_server_seconds(lab, 0) - began) / rows * 1e6)
            lab.say(f"{name} {run + 1}/{lab.runs} {who}: {spent[who][-1]:.2f} µs a row")
        share = grown.stage.a.execute(
            "select (pg_total_relation_size('syncagent.bucket') + pg_total_relation_size('syncagent.forest'))::float"
            " / pg_table_size('orders')"
        ).fetchall()[0][0]
    return compared(
        lab, name, "us/row", spent, peer="aggregate", cost=True, limit=1 / 1.5, extra={"rows": rows, "share_of_table": rounded(share)}
    )  # fmt: skip


def _seal(site: psycopg.Connection) -> None:
    (relation,) = site.execute("select id from syncagent.replicated where table_name = 'orders'").fetchall()[
        0
    ]
    site.execute("select syncagent._forest_fell(null, null)")
    site.execute("set jit = off")
    while True:
        (done,) = site.execute("select syncagent._forest_seal(%s, 50000)", (relation,)).fetchall()[0]
        if done is None:
            return


def _aggregate(site: psycopg.Connection) -> None:
    site.execute(
        "select f.* from syncagent.replicated r cross join lateral syncagent._fingerprint(r.relation, r.columns) as f"
        " where r.table_name = 'orders'"
    )


def _server_seconds(lab: Lab, which: int) -> float:
    server = (lab.pair.a, lab.pair.b)[which]
    assert server.pid is not None
    return tree_seconds(server.pid)


# ---- equal sites


def verify(lab: Lab, name: str) -> Line:
    """Bytes of one comparison that two equal sites make by themselves, with many rows and with few: of those a second
    while nobody compares, as many are taken off."""
    sizes: dict[int, list[float]] = {}
    for rows in (max(_FEW, round(ROWS * lab.scale)), _FEW):
        with _grown(lab, name, rows, _TABLES) as grown:
            sizes[rows] = [_comparisons(grown, _WATCHED) for _ in range(lab.runs)]
        lab.say(f"{name}: {rows:,} rows, {middle(sizes[rows]):,.0f} bytes a comparison")
    many = max(sizes)
    return alone(
        lab,
        name,
        "bytes",
        sizes[many],
        limit=1024,
        rows=many,
        tables=_TABLES,
        with_few=middle(sizes[_FEW]),
        few=_FEW,
    )


def _comparisons(grown: Grown, seconds: float) -> float:
    """What each needed, with the pings of the time: what goes in a second in which nobody compares is taken off."""
    before, began = _compared(grown), grown.line.bytes
    seen, end = [began], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1.0)
        seen.append(grown.line.bytes)
    made, sent = _compared(grown) - before, seen[-1] - began
    if not made:
        raise SyncagentError("no comparison was made", hint="`syncagent status` at the sites says why")
    return max(0.0, sent - median(now - then for then, now in pairwise(seen)) * (len(seen) - 1)) / made


def _compared(grown: Grown) -> int:
    """Comparisons made so far, at both sites."""
    counts = (site.execute("select coalesce(sum(times), 0) from syncagent.proof") for site in grown.sites())
    return sum(int(count.fetchall()[0][0]) for count in counts)


# ---- sites that differ


def repair(lab: Lab, name: str) -> Line:
    """Rows that one site has lost, found and taken back, against a comparison of the whole tables by md5 over ranges of keys.
    Processor seconds of both servers; until both are known to be equal."""
    rows = max(_FEW, round(ROWS * lab.scale))
    spent: dict[str, list[float]] = {"syncagent": [], "md5": []}
    read: list[float] = []
    sent: list[float] = []
    took: list[float] = []
    with _grown(lab, name, rows) as grown:
        for run, who in lab.turns("syncagent", "md5"):
            if who == "md5":
                meter = lab.meter(grown.system)
                _by_md5(grown)
                found = meter.stop()
            else:
                before, sized = _read(grown), grown.line.bytes
                _lose(grown, random.Random(run))
                meter = lab.meter(grown.system)
                answer = grown.ask("repair", site=1)
                found = meter.stop()
                sent.append(grown.line.bytes - sized)
                read.append(max(now - then for now, then in zip(_read(grown), before, strict=True)))
                took.append(found.wall)
                (kept,) = grown.stage.b.execute("select count(*) from syncagent.repair").fetchall()[0]
                if not answer["equal"] or kept != _LOST * len(sent):
                    raise Diverged(f"{name}: {kept} rows repaired so far", detail=str(answer)[:500])
                lab.say(f"{name} {run + 1}/{lab.runs}: {read[-1]:,.0f} rows read, {sent[-1]:,.0f} bytes sent")
            spent[who].append(found.origin + found.receiver)
            lab.say(
                f"{name} {run + 1}/{lab.runs} {who}: {spent[who][-1]:.2f} s of processors in {found.wall:.1f} s"
            )
        grown.stage.compare()
    return compared(
        lab, name, "s", spent, peer="md5", cost=True, limit=100,
        extra={"rows": rows, "lost": _LOST, "rows_read": middle(read), "bytes": middle(sent), "wall": middle(took)},
    )  # fmt: skip


def _lose(grown: Grown, chance: random.Random) -> None:
    """At the second site, and its leaves know it: as if their merge had been undone."""
    numbers = chance.sample(range(1, grown.rows), _LOST)
    with grown.stage.b.transaction():
        grown.stage.b.execute("set local session_replication_role = replica")
        grown.stage.b.execute(
            "delete from orders where id in (select seed_key(i) from unnest(%s::bigint[]) i)", (numbers,)
        )
        grown.stage.b.execute(
            "insert into syncagent.mark (relation, keys) select r.id, array(select seed_key(i) from unnest(%s::bigint[]) i)"
            " from syncagent.replicated r where r.table_name = 'orders'",
            (numbers,),
        )


def _read(grown: Grown) -> list[int]:
    """Rows of the table that were read so far, at each site, once every session has told."""
    time.sleep(11)
    counts = []
    for site in grown.sites():
        counted = site.execute(
            "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = 'orders'"
        )
        counts.append(int(counted.fetchall()[0][0]))
    return counts


def _by_md5(grown: Grown) -> None:
    query = "select n / %(piece)s, md5(string_agg(orders::text, '' order by id)) from orders group by 1 order by 1"
    for site in grown.sites():
        site.execute("set jit = off")
        site.execute(query, {"piece": _PIECE}).fetchall()


# ---- under load


def upkeep(lab: Lab, name: str) -> Line:
    """While old rows are updated at random: processors that the forest's own sessions use, the busier site's, and the
    greatest age of a leaf that was not true."""
    rows, seconds = max(_FEW, round(ROWS * lab.scale)), max(10, round(_SECONDS * lab.scale))
    used: list[float] = []
    ages: list[float] = []
    rates: list[float] = []
    with _grown(lab, name, rows) as grown:
        for run in range(lab.runs):
            script = orders.UPDATE.replace("{seeds}", str(rows))
            with pgbench(
                grown.stage, [script], f"--time={seconds}", f"--rate={_RATE}", commit="off"
            ) as process:
                began, before = time.monotonic(), [_forest_seconds(site) for site in grown.sites()]
                dirty, age = [_Dirty(site) for site in grown.sites()], 0.0
                while process.poll() is None:
                    time.sleep(1.0)
                    age = max(age, *(one.look() for one in dirty))
                wall = time.monotonic() - began
                after = [_forest_seconds(site) for site in grown.sites()]
                said = process.stdout.read() if process.stdout else ""
            rates.append(float(said.partition("tps = ")[2].split()[0]))
            used.append(max(now - then for now, then in zip(after, before, strict=True)) / wall)
            ages.append(age)
            lab.say(
                f"{name} {run + 1}/{lab.runs}: {used[-1]:.2f} processors at {rates[-1]:.0f} updates/s; dirty {age:.0f} s"
            )
        grown.stage.await_row(grown.stage.mark())
    return alone(
        lab, name, "processors", used, limit=0.3, rows=rows, rate=middle(rates), dirty_seconds=max(ages)
    )


def _forest_seconds(site: psycopg.Connection) -> float:
    pids = site.execute(
        "select pid from pg_stat_activity where application_name = 'syncagent forest' and datname = current_database()"
    )
    return sum(tree_seconds(pid) for (pid,) in pids.fetchall())


class _Dirty:
    """How long the oldest mark of a site has been there, to a second."""

    def __init__(self, site: psycopg.Connection) -> None:
        self._site = site
        self._looks: list[tuple[float, int, int]] = []

    def look(self) -> float:
        now = time.monotonic()
        mark, oldest, cut, consumed = self._site.execute(
            "select coalesce(max(m.id), 0), coalesce(min(m.id), 0), coalesce((select max(k.id) from syncagent.cut_keys k), 0),"
            " coalesce((select f.consumed from syncagent.forest f join syncagent.replicated r on r.id = f.relation where r.table_name = 'orders'), 0)"
            " from syncagent.mark m"
        ).fetchall()[0]
        self._looks.append((now, mark, cut))
        # what had come at a look is open until the oldest mark is younger, and the last cut of that time is consumed
        self._looks = [
            look
            for look in self._looks
            if (oldest and look[1] >= oldest) or look[2] > consumed or look[0] == now
        ]
        return now - self._looks[0][0]
