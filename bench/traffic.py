"""Network bytes for a row that was written: what goes over the line between the two sites, both ways, all told.

The line is a forwarder on loopback that counts. Native replication's goes from the receiver to the origin's server,
ours from the receiver's agent to the origin's.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bench.lab import Lab
from bench.native import Native
from bench.ours import Ours
from bench.report import Line, compared
from bench.systems import System
from bench.workloads import Workload, insert_txn, update_txn
from syncagent.embedded import free_port

_PIECE = 256 * 1024
_ROWS = 50_000


class Counter:
    """Forwards what comes to `port` to `target`, and counts the bytes of both directions."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._ears = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._ears.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._counts: list[int] = []
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def bytes(self) -> int:
        return sum(self._counts)

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._ears.accept()
            except OSError:  # closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # nobody listens there yet: whoever dialled tries again
                near.close()
                continue
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                self._counts.append(0)
                arguments = (source, sink, len(self._counts) - 1)
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, index: int) -> None:
        try:
            while piece := source.recv(_PIECE):
                self._counts[index] += len(piece)
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one end is gone: so is the other
            source.close()
            sink.close()

    def close(self) -> None:
        for end in (self._ears, *self._ends):
            end.close()


def traffic(lab: Lab, name: str) -> Line:
    """While rows are inserted and updated in transactions of their own."""
    sizes: dict[str, list[float]] = {Ours.name: [], Native.name: []}
    for run, who in lab.turns(Native.name, Ours.name):
        with _counted(lab, who) as (counter, system):
            size = _once(lab, system, counter)
        sizes[who].append(size)
        lab.say(f"{name} {run + 1}/{lab.runs} {who}: {size:.1f} bytes")
    return compared(lab, name, "bytes", sizes, peer=Native.name, cost=True)


@contextmanager
def _counted(lab: Lab, who: str) -> Iterator[tuple[Counter, System]]:
    target = lab.pair.a.port if who == Native.name else free_port()
    counter = Counter(target)
    try:
        yield counter, Native(counter.port) if who == Native.name else Ours(target, counter.port)
    finally:
        counter.close()


def _once(lab: Lab, system: System, counter: Counter) -> float:
    rows = 0
    with lab.replicating(system) as stage:
        before = counter.bytes
        for write in (insert_txn, update_txn):
            workload = Workload(_ROWS, write)
            workload.write(stage, workload.scaled(lab.scale))
            rows += workload.scaled(lab.scale)
        stage.await_row(stage.mark())
        used = counter.bytes - before
        stage.compare()
    return used / rows
