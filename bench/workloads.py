"""What the application does at the origin: rows written one by one, or all at once.

Invariant: every workload ends with its last row committed, and its own processor seconds are not counted.
"""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import orders
from bench.pair import Stage
from syncagent.errors import DatabaseError

CLIENTS = 4


@dataclass(frozen=True)
class Workload:
    """`write(stage, rows)` writes so many rows; `rows` is how many at scale 1. `new`: all of them are, so `COPY` is the limit."""

    rows: int
    write: Callable[[Stage, int], None]
    new: bool = False

    def scaled(self, scale: float) -> int:
        """As many rows for each client, one at least; an update of all rows takes what there is."""
        return max(1, round(self.rows * scale / CLIENTS)) * CLIENTS


def _by_transactions(script: str) -> Callable[[Stage, int], None]:
    """One row a transaction, asynchronous commit."""

    def write(stage: Stage, rows: int) -> None:
        with pgbench(stage, [script], "--transactions", str(rows // CLIENTS), commit="off") as process:
            finish(process)

    return write


def at_once(statement: str) -> Callable[[Stage, int], None]:
    """One statement, one transaction."""

    def write(stage: Stage, rows: int) -> None:
        stage.a.execute(statement.format(rows=rows).encode())

    return write


insert_txn = _by_transactions(orders.INSERT)
update_txn = _by_transactions(orders.UPDATE)
update_hot = _by_transactions(orders.UPDATE_HOT)
insert_bulk = at_once(orders.INSERT_ALL)
update_bulk = at_once(orders.UPDATE_ALL)


def pgbench(
    stage: Stage, scripts: Sequence[str], *arguments: str, commit: str, clients: int = CLIENTS, site: int = 0
) -> subprocess.Popen[str]:
    """Start these scripts in equal shares, at the origin or at another site."""
    server = (stage.pair.a, stage.pair.b)[site]
    paths = [stage.folder / f"{site}_{number}.pgbench" for number in range(len(scripts))]
    for path, script in zip(paths, scripts, strict=True):
        path.write_text(script.format(seeds=stage.pair.seeds))
    return subprocess.Popen(
        [
            server.binaries.tool("pgbench"),
            *("--no-vacuum", "--protocol=prepared", f"--client={clients}", "--jobs=2"),
            *(f"--file={path}" for path in paths),
            *arguments,
            stage.name,
        ],
        env={
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            "PGPASSWORD": server.password,
            "PGOPTIONS": f"-c synchronous_commit={commit}",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> float:
    """Wait for pgbench; returns transactions per second."""
    said, talk = process.communicate()
    rate = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    if process.returncode or "aborted" in talk or rate is None:
        raise DatabaseError("pgbench failed", detail=talk[-1000:])
    return float(rate.group(1))


def rates(process: subprocess.Popen[str]) -> list[float]:
    """Transactions a second, as pgbench has said since the last look: with `--progress`, and stderr that does not block."""
    assert process.stderr is not None
    said = process.stderr.read() or ""
    if "aborted" in said:
        raise DatabaseError("pgbench failed", detail=said[-1000:])
    return [float(rate) for rate in re.findall(r"progress: .*? ([\d.]+) tps", said)]
