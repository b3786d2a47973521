"""One schedule: clients at every site, faults, then peace; and what must come of it.

Invariant: everything follows from the seed.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import cycle
from uuid import UUID

from syncagent.core.raft.machine import Machine
from syncagent.core.raft.messages import Change, Membership, Message, founded
from syncagent.errors import RefusedError
from tests.raft.site import OPTIONS, Site, World
from tests.raft.truth import Broken, Truth
from tests.raft.weather import Net
from tests.simulation.world import Schedule

_PATIENCE = 60.0
"""Seconds after the end of all faults within which the cluster must agree on something again."""
_NODES = 6


@dataclass(frozen=True)
class Scene:
    """What a schedule is like. A scene of its own finds a broken rule sooner than the usual weather."""

    voters: tuple[int, ...] = (1, 2, 3, 3, 3, 4, 5)
    learners: tuple[int, ...] = (0, 0, 1)
    steps: tuple[int, ...] = (100, 200)
    pace: tuple[float, ...] = (0.02, 0.1, 0.2)  # seconds between two steps
    disk: tuple[float, ...] = (0.0, 0.005, 0.05)
    loss: tuple[float, ...] = (0.0, 0.02, 0.2)
    twice: tuple[float, ...] = (0.0, 0.1)
    delay: tuple[float, ...] = (0.005, 0.05)
    faults: tuple[float, ...] = (0.0, 0.05, 0.15)  # per step
    kinds: tuple[str, ...] = ("crash", "leader", "way", "alone", "split", "halves", "disk", "clock")
    does: tuple[str, ...] = (
        *("write",) * 6,
        *("read",) * 5,
        *("change", "change", "compact"),
    )
    cradle: tuple[float, ...] = (0.0, 0.3)  # how often a new leader is cut off at once
    few: tuple[int, ...] = (0, 1)  # how many voters stay with it, one time after the other
    odd: float = 0.02  # how often an operator does something beside
    lasts: tuple[float, ...] = (0.3, 2.0, 8.0)  # seconds at most that a fault takes
    late: tuple[float, ...] = (10.0, 40.0)  # how much later than others a few messages come
    append: tuple[int, ...] = (1, 300)  # bytes of entries in a message


USUAL = Scene()


class Run:
    """`broken` names the rules that the drivers do not keep."""

    def __init__(self, seed: int, scene: Scene = USUAL, broken: Collection[str] = ()) -> None:
        self.rnd = rnd = random.Random(seed)
        self.scene, self.schedule = scene, Schedule()
        self.net = Net(
            self.schedule,
            rnd,
            self._deliver,
            rnd.choice(scene.delay),
            rnd.choice(scene.loss),
            rnd.choice(scene.twice),
            rnd.choice(scene.late),
        )
        self.world = World(self.schedule, self.net, rnd, Truth(), broken, rnd.random() < 0.5)
        self.world.disk = rnd.choice(scene.disk)
        self.world.options = replace(OPTIONS, append=rnd.choice(scene.append))
        voters = rnd.choice(scene.voters)
        members = Membership(
            tuple(range(1, voters + 1)), tuple(range(voters + 1, voters + 1 + rnd.choice(scene.learners)))
        )
        self.sites = {
            node: Site(node, self.world, founded(members) if node in members.nodes else None)
            for node in range(1, _NODES + 1)
        }
        self._few = cycle(scene.few)
        self.cradle = rnd.choice(scene.cradle)
        self.world.born = self._born
        self.pace, self.faults = rnd.choice(scene.pace), rnd.choice(scene.faults)
        self._written = self._read = 0

    def run(self) -> dict[str, int]:
        """Raises Broken. Returns what happened, counted."""
        rnd = self.rnd
        for site in self.sites.values():
            site.start()
        self._pass(rnd.choice((0.0, 4.0)))
        for _ in range(rnd.choice(self.scene.steps)):
            self._pass(rnd.expovariate(1 / self.pace))
            if rnd.random() < self.faults:
                self._fault()
            if rnd.random() < self.scene.odd:
                self._odd()
            self._do(rnd.choice(self.scene.does))
        self._heal()
        self._must_agree(b"at last")
        self._must_stay()
        self._must_be_replaced()
        self.world.count("messages", self.net.sent)
        return self.world.counts

    def _pass(self, seconds: float) -> None:
        self.schedule.run(self.schedule.now + seconds)

    def _deliver(self, message: Message) -> None:
        self.sites[message.to].hear(message)

    # ---- clients

    def _any(self) -> Site:
        """Likelier one that believes that it leads; not one that was never told anything."""
        leading = [site for site in self.sites.values() if site.machine and site.machine.leading]
        told = [site for site in self.sites.values() if site.disk.last()]
        return self.rnd.choice(leading if leading and self.rnd.random() < 0.5 else told)

    def _do(self, what: str) -> None:
        site = self._any()
        if what == "write":
            self._written += 1
            site.propose(f"w{self._written}".encode() * self.rnd.choice((1, 1, 20)))
        elif what == "read":
            self._ask(site)
        elif what == "change":
            self._change(site)
        elif what == "compact":
            self.rnd.choice(list(self.sites.values())).compact(self.rnd.choice((0, 1, 5)))

    def _ask(self, site: Site) -> None:
        self._read += 1
        site.read(UUID(int=self._read))

    def _change(self, site: Site) -> None:
        voters = len(site.machine.membership.voters) if site.machine else 3
        kinds = ("voter", "voter", "voter", "learner") if voters < 4 else ("voter", "remove", "learner")
        self._written += 1
        change = Change(self.rnd.choice(kinds), self.rnd.randint(1, _NODES))  # type: ignore[arg-type]
        site.propose(f"c{self._written}".encode(), change)

    def _odd(self) -> None:
        site, other = self._any(), self.rnd.choice(list(self.sites))
        if site.machine is None:
            return
        what: Callable[[Machine], None] = self.rnd.choice(
            (
                lambda machine: machine.transfer(other),
                lambda machine: machine.unreachable(other),
                lambda machine: machine.forget(),
                lambda machine: machine.campaign(),
            )
        )
        try:
            what(site.machine)
        except RefusedError:
            return
        site.work()

    # ---- faults

    def _fault(self) -> None:
        rnd, seconds = self.rnd, self.rnd.choice(self.scene.lasts) * self.rnd.random()
        kind, site = rnd.choice(self.scene.kinds), self._any()
        if kind in ("leader", "halves"):
            site = self._leader() or site
        others = [node for node in self.sites if node != site.node]
        if kind in ("crash", "leader"):
            self._crash(site, seconds)
        elif kind == "way":
            self._cut(
                {rnd.choice(((site.node, rnd.choice(others)), (rnd.choice(others), site.node)))}, seconds
            )
        elif kind == "alone":
            ins, outs = {(other, site.node) for other in others}, {(site.node, other) for other in others}
            self._cut(rnd.choice((ins, outs, ins | outs)), seconds)
        elif kind == "split":
            self._split({node for node in self.sites if rnd.random() < 0.5}, seconds)
        elif kind == "halves":
            self._halve(site, seconds)
        elif kind == "disk":
            site.slow = rnd.choice((1.0, 10.0, 50.0))
        else:
            site.pace = rnd.choice((0.5, 1.0, 1.0, 2.0, 4.0))

    def _crash(self, site: Site, seconds: float) -> None:
        """Now, or between two of its next steps; all together, now and then."""
        for one in self.sites.values() if self.rnd.random() < 0.1 else (site,):
            if self.rnd.random() < 0.3:
                one.crash(seconds)
            else:
                one.doom, one.rest = self.rnd.randint(0, 12), seconds

    def _born(self, site: Site) -> None:
        if self.rnd.random() < self.cradle:
            self._halve(site, self.rnd.choice(self.scene.lasts) * self.rnd.random())

    def _halve(self, site: Site, seconds: float) -> None:
        """It, a voter perhaps, and whoever has no vote, apart from the others."""
        voters = {*site.machine.membership.voters} - {site.node} if site.machine else set()
        few = self.rnd.sample(sorted(voters), min(len(voters), next(self._few)))
        self._split((self.sites.keys() - voters) | {site.node, *few}, seconds)

    def _split(self, here: set[int], seconds: float) -> None:
        there = self.sites.keys() - here
        self._cut({(a, b) for a in here for b in there} | {(b, a) for a in here for b in there}, seconds)

    def _cut(self, ways: set[tuple[int, int]], seconds: float) -> None:
        self.net.cut |= ways
        self.schedule.after(seconds, lambda: self.net.cut.difference_update(ways))

    # ---- the end

    def _heal(self) -> None:
        self.cradle = 0.0
        self._pass(10.0)  # what was to be ended by itself has ended
        self.net.heal()
        for site in self.sites.values():
            site.pace = site.slow = 1.0
            site.doom = None
            site.start()

    def _must_agree(self, last: bytes) -> None:
        """On something new, all members, and each of them reads it."""
        end = self.schedule.now + _PATIENCE
        while (
            (leader := self._leader()) is None
            or last not in leader.acknowledged
            or not self._is_level(leader)
        ):
            if self.schedule.now > end:
                raise Broken(f"liveness: {self._told()}")
            if leader is not None and last not in leader.acknowledged:
                leader.propose(last)
            self._pass(0.5)
        reads, members = self.world.counts.get("reads", 0), self._members(leader)
        for site in members:
            self._ask(site)
        self._pass(2.0)
        if self.world.counts.get("reads", 0) - reads < len(members):
            raise Broken(f"liveness: a read is not answered: {self._told()}")

    def _leader(self) -> Site | None:
        leading = [site for site in self.sites.values() if site.machine and site.machine.leading]
        return max(leading, key=lambda site: site.machine.term if site.machine else 0, default=None)

    def _ruler(self) -> tuple[Site, Machine]:
        leader = self._leader()
        if leader is None or leader.machine is None:
            raise Broken(f"stability: nobody leads any more: {self._told()}")
        return leader, leader.machine

    def _members(self, leader: Site) -> list[Site]:
        assert leader.machine is not None
        return [self.sites[node] for node in leader.machine.membership.nodes]

    def _is_level(self, leader: Site) -> bool:
        return len({self._view(site) for site in self._members(leader)}) == 1

    @staticmethod
    def _view(site: Site) -> tuple[object, ...]:
        machine = site.machine
        return site.applied, site.state, machine and (machine.leader, machine.membership)

    def _must_stay(self) -> None:
        """Whoever was away comes back, and the leader stays."""
        leader, machine = self._ruler()
        term, membership = machine.term, machine.membership
        away = self.rnd.choice([node for node in self.sites if node != leader.node])
        if away in membership.voters and len(membership.voters) < 3:
            return
        others = [node for node in self.sites if node != away]
        ways = {(other, away) for other in others} | {(away, other) for other in others}
        self._cut(ways, 4.0)
        self._pass(4.1)
        leader.propose(b"while it was away")
        self._pass(4.0)
        if machine.term != term or machine.leading is None:
            raise Broken(f"stability: node {away} came back, and the leader had to go")
        if not self._is_level(leader):
            raise Broken(f"liveness: {self._told()}")

    def _must_be_replaced(self) -> None:
        """A leader that hears nobody, or is gone, while the others are a majority."""
        leader, machine = self._ruler()
        if len(machine.membership.voters) < 3:
            return
        if self.rnd.random() < 0.5:
            leader.crash(2 * _PATIENCE)
        deaf = {(other, leader.node) for other in self.sites}
        self.net.cut |= deaf
        end = self.schedule.now + _PATIENCE
        while self._leader() in (None, leader):
            self._pass(0.5)
            if self.schedule.now > end:
                raise Broken(f"liveness: node {leader.node} is not replaced: {self._told()}")
        self.net.cut -= deaf
        leader.start()
        self._must_agree(b"under another leader")

    def _told(self) -> str:
        return "; ".join(
            f"node {site.node}: {site.machine.role} in term {site.machine.term} of {site.machine.leader},"
            f" {site.applied}/{site.machine.log.committed}/{site.machine.log.last}, {site.machine.membership}"
            for site in self.sites.values()
            if site.machine
        )
