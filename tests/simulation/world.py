"""Virtual time, and a network that loses, doubles, delays and reorders what it is given.

It exists so that a schedule is a function of its seed: nothing here reads a clock or any other chance.

Invariant: a packet arrives only over the link it was sent on, and only while that link lives at both ends.
"""

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

Action = Callable[[], None]


class Schedule:
    """The clock of the world, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._count = 0

    def after(self, seconds: float, action: Action) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, action))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            at, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            action()
        self.now = max(self.now, until)


class End(Protocol):
    """What a link ends in."""

    node: int
    running: bool

    def linked(self, peer: int) -> None: ...

    def unlinked(self, peer: int) -> None: ...

    def heard(self, peer: int, message: object) -> None: ...


@dataclass
class Weather:
    """How bad the network is in this schedule."""

    delay: float
    loss: float
    twice: float
    slow: dict[int, float] = field(default_factory=dict)  # by whom everything takes longer


@dataclass
class _Pair:
    """The link of two sites: `up` are the ends that believe in it; `alive` says whether they are right."""

    session: int = 0
    alive: bool = False
    up: set[int] = field(default_factory=set)
    latest: dict[int, float] = field(
        default_factory=dict
    )  # when the last ordered message arrives, per sender


class Net:
    """All links of the world."""

    def __init__(self, schedule: Schedule, rnd: random.Random, weather: Weather) -> None:
        self.schedule, self.rnd, self.weather = schedule, rnd, weather
        self.ends: dict[int, End] = {}
        self.nodes: tuple[int, ...] = ()
        self._pairs: dict[frozenset[int], _Pair] = {}
        self._cut: dict[tuple[int, int], int] = {}

    def start(self, ends: list[End], pairs: Iterable[tuple[int, int]]) -> None:
        """Only these can ever have a link."""
        self.ends = {end.node: end for end in ends}
        for one, other in pairs:
            self._pairs[frozenset((one, other))] = _Pair()
            self._dial(one, other)

    def peers(self, node: int) -> list[int]:
        """With whom a site can have a link."""
        return sorted(other for pair in self._pairs if node in pair for other in pair - {node})

    def gone(self, node: int) -> None:
        """A site that never comes back."""
        self._pairs = {names: pair for names, pair in self._pairs.items() if node not in names}

    def partition(self, source: int, target: int, seconds: float) -> None:
        """Nothing gets from one to the other for so long; both notice that their link is dead."""
        way = source, target
        self._cut[way] = self._cut.get(way, 0) + 1
        self.schedule.after(self.rnd.uniform(0, 1) * min(seconds, 20), lambda: self.kill(source, target))

        def heal() -> None:
            self._cut[way] = max(0, self._cut.get(way, 0) - 1)

        self.schedule.after(seconds, heal)

    def heal(self) -> None:
        self._cut.clear()
        self.weather.loss = self.weather.twice = 0
        self.weather.slow.clear()

    def kill(self, one: int, other: int) -> None:
        """The link dies. Each end notices in its own time."""
        pair = self._pairs.get(frozenset((one, other)))
        if pair is not None and pair.alive:
            pair.alive = False
            for end, peer in ((one, other), (other, one)):
                self.schedule.after(
                    self.rnd.choice((0.0, 0.05, 5.0)) * self.rnd.random(), self._notice(pair, end, peer)
                )

    def _notice(self, pair: _Pair, end: int, peer: int) -> Action:
        session = pair.session

        def notice() -> None:
            if pair.session == session and end in pair.up:
                self._drop(pair, end, peer)

        return notice

    def _drop(self, pair: _Pair, end: int, peer: int) -> None:
        pair.up.discard(end)
        self.ends[end].unlinked(peer)
        if not pair.up:
            self._dial(end, peer)

    def stopped(self, node: int) -> None:
        """The agent there has ended: its links die, and it does not notice any more."""
        for names, pair in self._pairs.items():
            if node in names and pair.session:
                (peer,) = names - {node}
                pair.alive = False
                if node in pair.up:
                    pair.up.discard(node)
                    if not pair.up:
                        self._dial(node, peer)
                if peer in pair.up:
                    self.schedule.after(self.rnd.uniform(0, 1), self._notice(pair, peer, node))

    def _dial(self, one: int, other: int) -> None:
        """Try until it works."""
        names = frozenset((one, other))
        pair = self._pairs.get(names)

        def dial() -> None:
            if pair is None or names not in self._pairs or pair.alive or pair.up:
                return
            blocked = self._cut.get((one, other)) or self._cut.get((other, one))
            if blocked or not (self.ends[one].running and self.ends[other].running):
                self.schedule.after(self.rnd.uniform(0.5, 2), dial)
                return
            pair.session += 1
            pair.alive = True
            pair.latest = {}
            pair.up = {one, other}
            self.ends[one].linked(other)
            self.ends[other].linked(one)

        self.schedule.after(self.rnd.uniform(0, 0.2), dial)

    def connected(self) -> bool:
        return all(pair.alive and len(pair.up) == 2 for pair in self._pairs.values())

    def send(
        self, source: int, target: int, message: object, *, weight: float = 1.0, ordered: bool = True
    ) -> None:
        """`weight`: how much longer than a small message it takes. Ordered ones do not overtake each other."""
        pair = self._pairs.get(frozenset((source, target)), _Pair())
        weather, rnd = self.weather, self.rnd
        for _ in range(2 if rnd.random() < weather.twice else 1):
            if not pair.alive or self._cut.get((source, target)) or rnd.random() < weather.loss:
                continue
            slow = max(weather.slow.get(source, 1.0), weather.slow.get(target, 1.0))
            delay = weather.delay * rnd.uniform(0.2, 1.5) * weight * slow
            if ordered:
                pair.latest[source] = max(self.schedule.now + delay, pair.latest.get(source, 0.0))
                delay = pair.latest[source] - self.schedule.now
            self.schedule.after(delay, self._arrival(pair, source, target, message))

    def _arrival(self, pair: _Pair, source: int, target: int, message: object) -> Action:
        session = pair.session

        def arrive() -> None:
            cut = self._cut.get((source, target))
            if pair.alive and pair.session == session and target in pair.up and not cut:
                self.ends[target].heard(source, message)

        return arrive
