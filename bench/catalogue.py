"""Every benchmark by its name, and how a run of several goes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import forest, orders, strategies, workloads
from bench.capture import capture, transactions
from bench.drain import drain
from bench.join import join
from bench.lab import Lab
from bench.lag import lag
from bench.memory import memory
from bench.pair import Pair
from bench.report import Line
from bench.schema import schema
from bench.traffic import traffic
from bench.workloads import CLIENTS, Workload
from syncagent.embedded import find_binaries
from syncagent.errors import UsageError


class Benchmark(NamedTuple):
    about: str
    measure: Callable[[Lab, str], Line]


def _of(measure: Callable[[Lab, str, Workload], Line], workload: Workload) -> Callable[[Lab, str], Line]:
    return lambda lab, name: measure(lab, name, workload)


_DRAINED = {
    "insert-txn": (Workload(200_000, workloads.insert_txn), "200,000 inserts, one a transaction"),
    "update-txn": (Workload(200_000, workloads.update_txn), "200,000 updates, one a transaction"),
    "insert-bulk": (Workload(400_000, workloads.insert_bulk), "one insert of 400,000 rows"),
    "update-bulk": (Workload(300_000, workloads.update_bulk), "one update of 300,000 rows"),
    "hot-rows": (Workload(200_000, workloads.update_hot), "200,000 updates of 1,000 rows, one a transaction"),
}
_CAPTURED = {
    "insert-txn": (Workload(100_000, workloads.insert_txn), "100,000 inserts, one a transaction"),
    "update-txn": (Workload(100_000, workloads.update_txn), "100,000 updates, one a transaction"),
    "insert-bulk": _DRAINED["insert-bulk"],
    "update-bulk": _DRAINED["update-bulk"],
}

BENCHMARKS: dict[str, Benchmark] = {
    **{
        f"drain-{name}": Benchmark(f"a backlog gets to the other site: {about}", _of(drain, workload))
        for name, (workload, about) in _DRAINED.items()
    },
    **{
        f"capture-{name}": Benchmark(f"what the origin's server pays for: {about}", _of(capture, workload))
        for name, (workload, about) in _CAPTURED.items()
    },
    "drain-conflicts": Benchmark(
        "100,000 rows, each written at both sites, get to the other; against rows written at one",
        strategies.conflicts,
    ),
    "columns-txn": Benchmark(
        "processor time of an update of 3 columns of 7, merged by column; against by row",
        _of(strategies.columns, _DRAINED["update-txn"][0]),
    ),
    "columns-bulk": Benchmark(
        "the same, all rows in one update", _of(strategies.columns, _DRAINED["update-bulk"][0])
    ),
    "capture-tps": Benchmark("transactions a second of the application, synchronous commit", transactions),
    "lag": Benchmark("from a commit to its sight at the other site, at 200 transactions a second", lag),
    "join": Benchmark(
        "5,000,000 rows get to a site that joins, with their key; against pg_dump and pg_restore", join
    ),
    "memory": Benchmark("resident memory of an agent with a million rows on their way", memory),
    "seal": Benchmark(
        "the forest of 10,000,000 rows made, against one aggregate of their fingerprints", forest.seal
    ),
    "verify": Benchmark(
        "bytes of a comparison of equal sites, 100 tables, 10,000,000 rows and 100,000", forest.verify
    ),
    "repair": Benchmark(
        "10 rows lost of 10,000,000, found and taken back; against md5 over all", forest.repair
    ),
    "upkeep": Benchmark(
        "the forest under 1,000 random updates a second of 10,000,000 old rows", forest.upkeep
    ),
    "schema": Benchmark(
        "transactions a second while a column is added to 1,000,000 rows and filled, against before", schema
    ),
    "bytes-per-row": Benchmark("network bytes for a row", traffic),
}


def run(
    names: Sequence[str], *, runs: int, scale: float, major: int | None, say: Callable[[str], None]
) -> Iterator[Line]:
    """One line a benchmark, as each is done; all of them if none is named. Raises UsageError, Diverged."""
    for name in names:
        if name not in BENCHMARKS:
            raise UsageError(f"there is no benchmark {name}", hint=f"there are {', '.join(BENCHMARKS)}")
    if not Path("/proc/self/stat").exists():
        raise UsageError("benchmarks read /proc, so they need Linux")
    seeds = max(1, round(orders.SEEDS * scale / CLIENTS)) * CLIENTS
    binaries = find_binaries(major)
    say(f"two servers, PostgreSQL {binaries.version}, {seeds:,} rows each")
    with Pair.running(binaries, seeds) as pair:
        for name in names or BENCHMARKS:
            yield BENCHMARKS[name].measure(Lab(pair, runs, scale, say), name)
