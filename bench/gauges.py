"""What is read off: seconds of the wall and of processors, and memory.

Invariant: a server's seconds are those of its whole process tree, with the children it has buried; Linux only,
for nobody else tells them.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree_seconds(pid: int) -> float:
    """Processor seconds so far of a process, its living descendants, and those they have waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS + sum(tree_seconds(int(child)) for child in children)


def tree(pid: int) -> list[int]:
    """A process and its living descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(below for child in children for below in tree(int(child)))]


def peak_megabytes(pid: int) -> float:
    """The most memory a process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def machine_seconds() -> tuple[float, float]:
    """Processor seconds of the whole machine that were used, and those taken by its host."""
    fields = [int(field) / _TICKS for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = fields
    return user + nice + system + interrupts + soft + stolen, stolen


@dataclass(frozen=True)
class Reading:
    """Between start and stop. `origin`, `receiver`, `agents`: processor seconds."""

    wall: float
    origin: float
    receiver: float
    agents: float
    others: float
    """Processors that everything else on this machine kept busy, on average: the noise."""

    @property
    def processors(self) -> float:
        return self.origin + self.receiver + self.agents


@dataclass
class Meter:
    """Running from its making until `stop`; `agents` names the processes beside the two servers."""

    origin: int
    receiver: int
    agents: Callable[[], Sequence[int]]
    _start: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._start = self._look()

    def stop(self) -> Reading:
        wall, origin, receiver, agents, ours, machine = (
            now - then for now, then in zip(self._look(), self._start, strict=True)
        )
        others = max(0.0, machine - origin - receiver - agents - ours) / wall
        return Reading(wall, origin, receiver, agents, others)

    def _look(self) -> tuple[float, ...]:
        mine = os.times()
        return (
            time.monotonic(),
            tree_seconds(self.origin),
            tree_seconds(self.receiver),
            sum(map(tree_seconds, self.agents())),
            mine.user + mine.system + mine.children_user + mine.children_system,
            machine_seconds()[0],
        )
