"""The physical limit: rows that are read from one table and put into another with the same index, by `COPY`, and nothing else."""

import subprocess
from collections.abc import Sequence

from bench.pair import Stage
from syncagent.errors import DatabaseError

_OUT = "copy (select * from orders where status <> 'seed') to stdout (format binary)"
_IN = "copy orders from stdin (format binary)"


class Copy:
    """No replication: what a backlog of inserts has brought is copied when it may go on."""

    name = "COPY"

    def start(self, stage: Stage) -> None:
        self._stage = stage

    def pause(self) -> None: ...

    def resume(self) -> None:
        psql = self._stage.pair.a.binaries.tool("psql")
        ends = [(psql, "-qX", "-v", "ON_ERROR_STOP=1", "--dbname", dsn, "-c") for dsn in self._stage.dsns]
        source = subprocess.Popen([*ends[0], _OUT], stdout=subprocess.PIPE)
        sink = subprocess.run([*ends[1], _IN], stdin=source.stdout, check=False)
        if source.wait() or sink.returncode:
            raise DatabaseError("COPY failed")

    def processes(self) -> Sequence[int]:
        return ()

    def stop(self) -> None: ...
