"""Every benchmark by its name, and how a run of several goes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench import forest, orders, peers, scaling, strategies, workloads
from bench.capture import capture, transactions
from bench.drain import drain
from bench.join import join
from bench.lab import Lab
from bench.lag import RATE, lag, rest
from bench.memory import memory
from bench.pair import Pair
from bench.report import Line
from bench.schema import schema
from bench.sites import calm, sites
from bench.traffic import traffic
from bench.workloads import CLIENTS, Workload
from syncagent.embedded import find_binaries
from syncagent.errors import UsageError

T = TypeVar("T")


class Benchmark(NamedTuple):
    about: str
    measure: Callable[[Lab, str], Iterable[Line]]
    by_name: bool = False
    """It runs only if it is named: all the others together take half an hour at most."""


def _one(about: str, measure: Callable[[Lab, str], Line], *, by_name: bool = False) -> Benchmark:
    """A benchmark that answers one line."""
    return Benchmark(about, lambda lab, name: [measure(lab, name)], by_name)


def _of(measure: Callable[[Lab, str, Workload], T], workload: Workload) -> Callable[[Lab, str], T]:
    return lambda lab, name: measure(lab, name, workload)


DRAINED = {
    "insert-txn": (Workload(200_000, workloads.insert_txn, new=True), "200,000 inserts, one a transaction"),
    "update-txn": (Workload(200_000, workloads.update_txn), "200,000 updates, one a transaction"),
    "insert-bulk": (Workload(400_000, workloads.insert_bulk, new=True), "one insert of 400,000 rows"),
    "update-bulk": (Workload(300_000, workloads.update_bulk), "one update of 300,000 rows"),
    "hot-rows": (Workload(200_000, workloads.update_hot), "200,000 updates of 1,000 rows, one a transaction"),
}
CAPTURED = {
    "insert-txn": (Workload(100_000, workloads.insert_txn), "100,000 inserts, one a transaction"),
    "update-txn": (Workload(100_000, workloads.update_txn), "100,000 updates, one a transaction"),
    "insert-bulk": DRAINED["insert-bulk"],
    "update-bulk": DRAINED["update-bulk"],
}


def _against(names: Iterable[str]) -> Callable[[Lab, str], Iterable[Line]]:
    return partial(
        peers.against,
        {name: peers.PEERS[name] for name in names},
        {name: workload for name, (workload, _) in DRAINED.items()},
        {name: workload for name, (workload, _) in CAPTURED.items()},
    )


BENCHMARKS: dict[str, Benchmark] = {
    **{
        f"drain-{name}": Benchmark(f"a backlog gets to the other site: {about}", _of(drain, workload))
        for name, (workload, about) in DRAINED.items()
    },
    **{
        f"capture-{name}": _one(f"what the origin's server pays for: {about}", _of(capture, workload))
        for name, (workload, about) in CAPTURED.items()
    },
    "capture-tps": _one("transactions a second of the application, synchronous commit", transactions),
    "lag": _one(f"from a commit to its sight at the other site, at {RATE} transactions a second", lag),
    "lag-2000": _one("the same at 2,000 transactions a second", lambda lab, name: lag(lab, name, 2000)),
    "rest": _one("an agent's processor while nobody writes", rest),
    "bytes-per-row": _one("network bytes for a row", traffic),
    "memory": _one("resident memory of an agent with a million rows on their way", memory),
    "sites": Benchmark(
        "an agent's processor with 2, 4 and 8 sites, in a mesh and at a hub, at 500 transactions a second over all",
        sites,
    ),
    "drain-conflicts": _one(
        "100,000 rows, each written at both sites, get to the other; against rows written at one",
        strategies.conflicts,
        by_name=True,
    ),
    **{
        f"{name}-{how}": _one(
            f"processor time of an update of 3 columns of 12, by {strategy}, against by row: {about}",
            _of(partial(strategies.by_column, strategy), workload),
            by_name=True,
        )
        for name, strategy in (("columns", "lww-column"), ("merge", "merge"))
        for how, (workload, about) in (("txn", DRAINED["update-txn"]), ("bulk", DRAINED["update-bulk"]))
    },
    "join": _one(
        "5,000,000 rows get to a site that joins, with their key; against pg_dump and pg_restore",
        join,
        by_name=True,
    ),
    "seal": _one(
        "the forest of 10,000,000 rows made, against one aggregate of their fingerprints",
        forest.seal,
        by_name=True,
    ),
    "verify": _one(
        "bytes of a comparison of equal sites, 100 tables, 10,000,000 rows and 100,000",
        forest.verify,
        by_name=True,
    ),
    "repair": _one(
        "10 rows lost of 10,000,000, found and taken back; against md5 over all", forest.repair, by_name=True
    ),
    "upkeep": _one(
        "the forest under 1,000 random updates a second of 10,000,000 old rows", forest.upkeep, by_name=True
    ),
    "schema": _one(
        "transactions a second while a column is added to 1,000,000 rows and filled, against before",
        schema,
        by_name=True,
    ),
    "sites-calm": Benchmark(
        "the same at 2 transactions a second of each site, which leaves the machine half idle",
        calm,
        by_name=True,
    ),
    **{
        f"scaling-{what}": Benchmark(
            f"processor time of a row as there are more of: {about}", measure, by_name=True
        )
        for what, (about, measure) in {
            "rows": ("rows in the table, 10,000 to 1,000,000 times --scale", scaling.rows),
            "columns": ("columns, 7 to 100", scaling.columns),
            "values": ("bytes of a value, 1 kB to 1 MB", scaling.values),
            "tables": ("tables, 1 to 100", scaling.tables),
            "backlog": ("rows of a backlog, 100,000 to 1,000,000 times --scale", scaling.backlog),
            "changes": (
                "changes of a backlog, ten of each row, 100,000 to 10,000,000 times --scale",
                scaling.changes,
            ),
        }.items()
    },
    "peers": Benchmark(
        "drains, capture and lag on PostgreSQL 15, against pglogical, Bucardo and Londiste",
        _against(peers.PEERS),
        by_name=True,
    ),
    **{
        f"peers-{name}": Benchmark(f"the same against {name} alone", _against([name]), by_name=True)
        for name in peers.PEERS
    },
}


def run(
    names: Sequence[str],
    *,
    runs: int,
    scale: float,
    major: int | None,
    peers: Path,
    say: Callable[[str], None],
) -> Iterator[Line]:
    """The lines of each benchmark as it is done; all that are not only by name if none is named. Raises UsageError, Diverged."""
    for name in names:
        if name not in BENCHMARKS:
            raise UsageError(f"there is no benchmark {name}", hint=f"there are {', '.join(BENCHMARKS)}")
    if not Path("/proc/self/stat").exists():
        raise UsageError("benchmarks read /proc, so they need Linux")
    seeds = max(1, round(orders.SEEDS * scale / CLIENTS)) * CLIENTS
    binaries = find_binaries(major)
    say(f"two servers, PostgreSQL {binaries.version}, {seeds:,} rows each")
    with Pair.running(binaries, seeds) as pair:
        for name in names or [name for name, benchmark in BENCHMARKS.items() if not benchmark.by_name]:
            yield from BENCHMARKS[name].measure(Lab(pair, runs, scale, say, peers), name)
