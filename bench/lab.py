"""One run of `syncagent bench`: the pair of servers, how often, how large, and whose turn it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.gauges import Meter
from bench.pair import Pair, Stage
from bench.systems import System

T = TypeVar("T")


@dataclass(frozen=True)
class Lab:
    """`say` tells a person what is going on; `peers` is the tree in which programs of others are looked for."""

    pair: Pair
    runs: int
    scale: float
    say: Callable[[str], None]
    peers: Path = Path("/")

    def turns(self, *all_of_them: T) -> Iterator[tuple[int, T]]:
        """Everyone once a run, in turning order, so that a drift of the machine hits all alike."""
        for run in range(self.runs):
            for one in all_of_them if run % 2 == 0 else reversed(all_of_them):
                yield run, one

    @contextmanager
    def replicating(self, system: System) -> Iterator[Stage]:
        """A fresh stage with the system at work on it; if all goes well, equal sites at the end."""
        with self.pair.stage(system.name) as stage:
            try:
                system.start(stage)
                yield stage
            finally:
                system.stop()

    def meter(self, system: System) -> Meter:
        assert self.pair.a.pid is not None
        assert self.pair.b.pid is not None
        return Meter(self.pair.a.pid, self.pair.b.pid, system.processes)
