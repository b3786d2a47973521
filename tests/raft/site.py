"""A site of the simulator: a machine, the disk it outlives, and a driver that can die between any two steps.

Invariant: what a driver has not written when it dies is gone; the disk is never torn within one step.
"""

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from syncagent.core.raft.leader import Options
from syncagent.core.raft.machine import Machine, Ready
from syncagent.core.raft.messages import NOBODY, Change, Entry, HardState, Message, Snapshot, Vote
from syncagent.core.raft.storage import Memory
from syncagent.errors import RefusedError, Undecided
from tests.raft.truth import Broken, Truth, following
from tests.raft.weather import Net
from tests.simulation.world import Schedule

TICK = 0.1
OPTIONS = Options(heartbeat=2, election=10, resend=30, append=300, window=3, uncommitted=20)
"""Little of everything, so that limits are met."""


@dataclass
class World:
    """What all sites share."""

    schedule: Schedule
    net: Net
    rnd: random.Random
    truth: Truth
    broken: Collection[str] = ()
    atomic: bool = True  # a Ready is written in one transaction
    disk: float = 0.001  # seconds that a write takes
    options: Options = OPTIONS
    born: Callable[["Site"], None] = lambda _: None  # told of a new leader before it has said anything
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by


class Site:
    def __init__(self, node: int, world: World, snapshot: Snapshot | None) -> None:
        self.node, self.world = node, world
        self.disk = Memory(snapshot)
        self.applied, self.state = 0, 0  # the catalog, durable
        self.machine: Machine | None = None
        self.pace = 1.0  # of its clock
        self.slow = 1.0  # its disk
        self.doom: int | None = None  # steps until it dies
        self.rest = 1.0  # seconds until it is back then
        self.acknowledged: set[bytes] = set()
        self._life = 0
        self._working = False
        self._led = 0  # the last term in which it was seen to lead
        self._committed = 0  # as leader
        self._asked: dict[UUID, int] = {}  # reads: what had to be seen
        self._proposed: set[bytes] = set()

    # ---- life and death

    def start(self) -> None:
        if self.machine is not None:
            return
        snapshot = self.disk.snapshot()
        if snapshot.index > self.applied:
            self._load(snapshot)
        world = self.world
        self.machine = Machine(
            self.node, self.disk, world.rnd.randrange, applied=self.applied, options=world.options
        )
        self._working = False
        self._tick(self._life)

    def crash(self, seconds: float) -> None:
        """And be back after so long."""
        self.world.schedule.after(seconds, self.start)
        self.machine, self.doom = None, None
        self._life += 1
        self._led = self._committed = 0
        self._asked.clear()
        self._proposed.clear()
        self.world.count("crashes")

    def _tick(self, life: int) -> None:
        if life == self._life and self.machine is not None:
            self.machine.tick()
            self.work()
            self.world.schedule.after(TICK * self.pace, lambda: self._tick(life))

    # ---- what is asked of it

    def hear(self, message: Message) -> None:
        if self.machine is not None:
            self.machine.step(message)
            self.work()

    def propose(self, data: bytes, change: Change | None = None) -> None:
        if self.machine is not None:
            try:
                self.machine.propose(data, change)
            except (Undecided, RefusedError):
                return
            self._proposed.add(data)
            self.work()

    def read(self, request: UUID) -> None:
        if self.machine is not None:
            try:
                self.machine.read(request)
            except Undecided:
                return
            self._asked[request] = self.world.truth.floor
            self.work()

    def compact(self, keep: int) -> None:
        if self.machine is not None and not self._working and self.applied > self.disk.snapshot().index:
            data = msgspec.msgpack.encode(self.state)
            self.disk.compact(self.machine.snapshot(data), keep)
            self.world.count("compactions")

    # ---- Readys

    def work(self) -> None:
        """Begin to do what the machine says, unless something is being done."""
        if self._working or self.machine is None:
            return
        ready = self.machine.ready()
        self._watch(self.machine)
        if ready is not None:
            self._working = True
            self._proceed(self._life, self._steps(self.machine, ready))

    def _proceed(self, life: int, steps: Iterator[float]) -> None:
        """Do steps, until one takes time, or the site dies between two of them."""
        while life == self._life:
            if self.doom is not None:
                self.doom -= 1
                if self.doom < 0:
                    self.crash(self.rest)
                    return
            seconds = next(steps, None)
            if seconds is None:
                self._working = False
                self.work()
                return
            if seconds:
                self.world.schedule.after(seconds, lambda: self._proceed(life, steps))
                return

    def _steps(self, machine: Machine, ready: Ready) -> Iterator[float]:
        if "early" in self.world.broken:
            yield from self._send(ready)
        for write in (self._save, self._restore, self._append):
            if write(ready) and not self.world.atomic:
                yield self._seconds()
        if ready.snapshot is not None and ready.snapshot.index > self.applied:
            self._load(ready.snapshot)
        yield self._seconds() if ready.hard_state or ready.snapshot or ready.entries else 0.0
        if "early" not in self.world.broken:
            yield from self._send(ready)
        for entry in ready.committed:
            self._apply(entry)
            yield 0.0
        for request in ready.reads:
            if (floor := self._asked.pop(request, None)) is not None:
                self.world.truth.read(self.node, self.applied, floor)
                self.world.count("reads")
        machine.advance(ready)

    def _seconds(self) -> float:
        return self.world.disk * self.slow * self.world.rnd.uniform(0.5, 1.5)

    def _save(self, ready: Ready) -> bool:
        if ready.hard_state is not None:
            forgotten = "vote" in self.world.broken
            self.disk.save(HardState(ready.hard_state.term, NOBODY) if forgotten else ready.hard_state)
        return ready.hard_state is not None

    def _restore(self, ready: Ready) -> bool:
        if ready.snapshot is not None:
            if ready.snapshot.index < self.applied:
                raise Broken(f"the catalog of node {self.node} went back to {ready.snapshot.index}")
            self.disk.restore(ready.snapshot)
            self.world.count("snapshots")
        return ready.snapshot is not None

    def _append(self, ready: Ready) -> bool:
        if ready.entries:
            self.disk.append(ready.entries)
            self.world.truth.wrote(self.disk.term(ready.entries[0].index - 1), ready.entries)
        return bool(ready.entries)

    def _send(self, ready: Ready) -> Iterator[float]:
        for message in ready.messages:
            if isinstance(message, Vote) and message.granted and not message.pre:
                self.world.truth.voted(self.node, message.term, message.to)
            self.world.net.send(message)
            yield 0.0

    def _apply(self, entry: Entry) -> None:
        if entry.index != self.applied + 1:
            raise Broken(f"node {self.node} applies {entry.index} after {self.applied}")
        self.applied, self.state = entry.index, following(self.state, entry.data)
        self.world.truth.applied(self.node, self.applied, self.state, entry)
        if entry.data in self._proposed:
            self._proposed.discard(entry.data)
            self.acknowledged.add(entry.data)
            self.world.truth.floor = max(self.world.truth.floor, self.applied)
            self.world.count("changes" if entry.membership else "writes")

    def _load(self, snapshot: Snapshot) -> None:
        self.applied = snapshot.index
        self.state = msgspec.msgpack.decode(snapshot.data, type=int) if snapshot.data else 0
        self.world.truth.applied(self.node, self.applied, self.state, None)

    def _watch(self, machine: Machine) -> None:
        if machine.leading is None:
            return
        truth, log = self.world.truth, machine.log
        if machine.term != self._led:
            self._led, self._committed = machine.term, log.committed
            truth.elected(self.node, machine.term, log)
            self.world.count("elections")
            self.world.born(self)
        for index in range(self._committed + 1, log.committed + 1):
            truth.committed(index, log.term(index) or 0, machine.term)
        self._committed = max(self._committed, log.committed)
