"""One schedule: an application at every site, faults, then peace; and what must be true in the end.

Invariant: everything follows from the seed.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from uuid import UUID

from syncagent.core import limits, stamp
from syncagent.core.arrival import START
from syncagent.core.merge import Op
from tests.simulation.database import Database, Transaction
from tests.simulation.site import Site
from tests.simulation.truth import Broken, Write, nothing_lost
from tests.simulation.world import Net, Schedule, Weather

_AHEAD = (0, 0, 0, 2, 6, 3_600_000)
"""Milliseconds by which a new key may be ahead of the clock."""
_HOURS = 3600.0
_PATIENCE = 400
"""Seconds after the end of all faults within which all must be everywhere."""
_BORN = (1_000_000_000 - 5) * stamp.UNITS_PER_MS
_HOT = [UUID(int=0x4000 << 64 | 0x8000 << 48 | n) for n in (1, 2)] + [
    stamp.pack(at, 9, n) for n, at in enumerate((_BORN, _BORN + 1, _BORN + 3600 * 1000 * stamp.UNITS_PER_MS))
]
"""Keys that every site makes: two without a time, two that are older than all, one that is ahead of all."""

_ON_HOT = {True: ("delete", "update"), False: ("insert", "insert", "vanish")}


@dataclass(frozen=True)
class Scene:
    """What a schedule is like. A scene of its own finds a broken rule sooner than the usual weather."""

    sites: tuple[int, ...] = (2, 2, 3, 3, 3, 4, 5)
    steps: tuple[int, ...] = (50, 80, 110)
    pace: tuple[float, ...] = (0.02, 0.1, 0.5)  # seconds between two statements of the application
    hot: tuple[float, ...] = (0.05, 0.3)  # how many of them go to the keys that every site makes
    ends: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)  # how soon transactions end
    refused: float = 0.02  # how often a cut finds a table locked
    commits: tuple[float, ...] = (0.001, 0.01, 0.1)  # how long a cut may take, in seconds
    faults: tuple[float, ...] = (0.0, 0.03, 0.08)  # per statement
    shapes: tuple[str, ...] = ("mesh", "mesh", "hub", "line", "some")  # who can have a link with whom
    deaths: float = 0.15  # how many schedules lose a site for good
    kinds: tuple[str, ...] = ("partition", "split", "link", "agent", "database", "clock", "slow")


USUAL = Scene()


@dataclass
class Story:
    """What happened in some schedules, so that a test can ask whether anything did."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, count: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + count


class Run:
    """`broken` names the rules that are not kept."""

    def __init__(self, seed: int, scene: Scene = USUAL, broken: Collection[str] = ()) -> None:
        self.rnd = rnd = random.Random(seed)
        self.scene, self.broken = scene, broken
        self.schedule = Schedule()
        loss = rnd.choice((0.0, 0.0, 0.05))
        weather = Weather(rnd.choice((0.001, 0.02, 0.3)), loss, rnd.choice((0.0, 0.05)))
        self.net = Net(self.schedule, rnd, weather)
        self.writes: list[Write] = []
        births: dict[UUID, set[int]] = {}
        nodes = self.net.nodes = tuple(range(1, rnd.choice(scene.sites) + 1))
        self.members = set(nodes)
        self.sites = [
            Site(n, self.members, self.schedule, self.net, rnd, self.writes, births, broken) for n in nodes
        ]
        self.pairs = _pairs(rnd, rnd.choice(scene.shapes), nodes)
        self.dead: Site | None = None
        self.net.start(list(self.sites), self.pairs)
        for site in self.sites:
            site.refused, site.commits = scene.refused, scene.commits
            site.ahead = rnd.choice((0.0, 0.0, 0.01, -1.0, 2.0))
        self.pace, self.hot, self.ends = rnd.choice(scene.pace), rnd.choice(scene.hot), rnd.choice(scene.ends)
        self.faults = rnd.choice(scene.faults)
        self.death = rnd.random() if rnd.random() < scene.deaths else 2.0

    def run(self, story: Story | None = None) -> None:
        """Raises Broken."""
        self._live()
        self._heal()
        self._rest()
        self._judge()
        if story is not None:
            self._tell(story)

    def _live(self) -> None:
        """What happens until all is healed."""
        rnd = self.rnd
        steps = rnd.choice(self.scene.steps)
        for step in range(steps):
            if self.dead is None and step >= self.death * steps:
                self._death()
            self.schedule.run(self.schedule.now + rnd.expovariate(1 / self.pace))
            site = rnd.choice(self.sites)
            if rnd.random() < self.faults:
                self._fault(site)
            if site.up:
                self._statement(site)

    # ---- the application

    def _statement(self, site: Site) -> None:
        rnd, database = self.rnd, site.database
        if database.open and rnd.random() < 0.25:
            self._end(site, rnd.choice(database.open))
            return
        crowded = len(database.open) > 2
        tx = (
            rnd.choice(database.open)
            if database.open and (crowded or rnd.random() < 0.5)
            else database.begin()
        )
        self._write(site, tx)
        if rnd.random() < self.ends * 0.7:
            self._commit(site, tx)

    def _write(self, site: Site, tx: Transaction) -> None:
        """One statement, unless it would wait for another transaction."""
        rnd, database = self.rnd, site.database
        held = {w.key for other in database.open if other is not tx for w in other.writes}
        if rnd.random() < self.hot:
            key = rnd.choice(_HOT)
            if key not in held:
                alive = database.visible(tx, key) is not None
                self._change(site, tx, rnd.choice(_ON_HOT[alive]), key)
            return
        dice = rnd.random()
        if dice < 0.30:
            kind = rnd.choice(("insert", "insert", "insert", "vanish"))
            self._change(site, tx, kind, self._new_key(site))
            return
        free = sorted(key for key in database.state.past if key not in held)
        if not free:
            return
        key = rnd.choice(free)
        if database.visible(tx, key) is None:
            if dice < 0.6:
                self._change(site, tx, "insert", key)
        elif dice < 0.38:
            self._change(site, tx, "delete", key)
            self._change(site, tx, "insert", self._new_key(site))
        elif dice < 0.78:
            self._change(site, tx, "update", key)
        else:
            self._change(site, tx, rnd.choice(("delete", "delete", "reborn", "nested")), key)

    def _change(self, site: Site, tx: Transaction, kind: str, key: UUID) -> None:
        ops: tuple[Op, ...] = {
            "insert": ("insert",),
            "update": ("update",),
            "delete": ("delete",),
            "reborn": ("delete", "insert"),
            "nested": ("insert", "delete"),  # its trigger inserts the row again, and fires first
            "vanish": ("delete", "insert"),  # its trigger deletes the row
        }[kind]  # type: ignore[assignment]
        shown = None if kind in ("delete", "vanish") else -1
        site.database.write(tx, key, ops, site.wall(), shown)

    def _new_key(self, site: Site) -> UUID:
        rnd = self.rnd
        if rnd.random() < 0.2:
            return UUID(int=rnd.getrandbits(128), version=4)
        at = site.database.tick(site.wall()) + rnd.choice(_AHEAD) * stamp.UNITS_PER_MS
        return stamp.pack(at, site.node, rnd.getrandbits(46))

    def _end(self, site: Site, tx: Transaction) -> None:
        dice = self.rnd.random()
        if dice < 0.7:
            self._commit(site, tx)
        elif dice < 0.85:
            site.database.open.remove(tx)
        else:
            del tx.writes[self.rnd.randint(0, len(tx.writes)) :]  # to a savepoint

    def _commit(self, site: Site, tx: Transaction) -> None:
        database: Database = site.database
        database.commit(tx)
        if self.rnd.random() < 0.5:
            database.flush()  # else its commit is asynchronous
        site.written()

    # ---- faults

    def _fault(self, site: Site) -> None:
        rnd = self.rnd
        other = rnd.choice(self.net.peers(site.node))
        seconds = rnd.choice((1.0, 5.0, 40.0)) * self.pace * 10 * rnd.random()
        kind = rnd.choice(self.scene.kinds)
        if kind == "partition":
            self.net.partition(site.node, other, seconds)
        elif kind == "split":
            self.net.partition(site.node, other, seconds)
            self.net.partition(other, site.node, seconds)
        elif kind == "link":
            self.net.kill(site.node, other)
        elif kind == "agent":
            site.crash()
            self.schedule.after(seconds / 4, site.start)
        elif kind == "database":
            site.crash_database(keep=rnd.random() < 0.5)
            self.schedule.after(seconds / 8, site.restart_database)
            self.schedule.after(seconds / 4, site.start)
        elif kind == "clock":
            self._step_clock(site)
        else:
            self.net.weather.slow[site.node] = rnd.choice((1, 10, 50))

    def _death(self) -> None:
        """A site ends for good, and the others agree that it has. Those left have still a way to each other."""
        for site in self.rnd.sample(self.sites, len(self.sites)):
            left = self.members - {site.node}
            if len(left) > 1 and _connected(left, self.pairs):
                site.crash()
                site.up = False
                self.dead = site
                self.sites.remove(site)
                self.members.discard(site.node)
                self.net.gone(site.node)
                for other in self.sites:
                    other.inbox.removed(site.node)
                return

    def _step_clock(self, site: Site) -> None:
        """By hours, for a while or until the time has caught up; or by a second."""
        step = self.rnd.choice((-1.0, 1.0, 4.0, 20.0, _HOURS, -_HOURS))
        site.ahead += step
        if abs(step) > 5:
            self.schedule.after(self.pace * 20 * self.rnd.random(), lambda: self._undo_clock(site, step))

    def _undo_clock(self, site: Site, step: float) -> None:
        site.ahead -= step

    # ---- the end

    def _heal(self) -> None:
        self.net.heal()
        for site in self.sites:
            site.restart_database()
            site.start()
            for tx in list(site.database.open):
                self._commit(site, tx)

    def _rest(self) -> None:
        """Until nothing is left to say; time goes on as far as a clock was ahead."""
        for _ in range(_PATIENCE // 2):
            self.schedule.run(self.schedule.now + 2)
            if self.net.connected() and all(site.at_rest(self.sites) for site in self.sites):
                break
            walls = [site.wall() for site in self.sites]
            clocks = [*self.sites, self.dead] if self.dead else self.sites  # of a batch that is held, too
            newest = max(site.database.state.clock for site in clocks)
            beyond = stamp.to_seconds(newest - min(walls)) - limits.MAX_CLOCK_SKEW
            if beyond > 60 and all(site.quiet() for site in self.sites):
                self.schedule.now += beyond
        else:
            raise Broken(f"stuck: {self._waiting()}")
        for _ in range(6):  # a batch may still be on its way, and want another one
            made = [site.cuts for site in self.sites]
            self.schedule.run(self.schedule.now + 12)
            if made == [site.cuts for site in self.sites]:
                return
        raise Broken("sites at rest go on making cuts")

    def _waiting(self) -> str:
        said = []
        for site in self.sites:
            here = {node: at.cut for node, at in site.database.state.positions.items()}
            waits = {n: w.text for n, w in site.inbox.waiting(site.now, site.wall()).items()}
            said.append(f"node {site.node} at {here}, pending {site.database.pending()}: {waits}")
        return "; ".join(said)

    def _judge(self) -> None:
        final = self.sites[0].database.state.rows
        for site in self.sites[1:]:
            if site.database.state.rows != final:
                raise Broken(f"diverged: {_difference(final, site.database.state.rows)}")
        committed = [write for site in self.sites for write in site.database.state.committed]
        if self.dead is not None:
            self._judge_dead(self.dead.node)
            met = 0
            for site in self.sites:
                for bits in site.database.state.met.values():
                    met |= bits
            committed += [w for w in self.dead.database.state.committed if met >> w.number & 1]
        # What a site that is gone has recorded went with it: a conflict has one record, where the two met first.
        recorded = [*self.sites, self.dead] if self.dead else self.sites
        conflicts = set[int]().union(*(site.database.state.conflicts for site in recorded))
        nothing_lost(committed, final, conflicts)
        for site in self.sites:
            site.database.compact(site.members)
            left = {k: v for k, v in site.database.state.entries.items() if v.stamp >= stamp.implicit(k)}
            if left:
                raise Broken(f"node {site.node} keeps metadata of what is settled: {left}")

    def _judge_dead(self, node: int) -> None:
        """What one has of a site that is gone all have."""
        reached = {site.database.state.positions.get(node, START).cut for site in self.sites}
        if len(reached) > 1:
            raise Broken(f"the batches of node {node}, which is gone, are known up to {reached}")

    def _tell(self, story: Story) -> None:
        for site in self.sites:
            story.add("cuts", site.cuts)
            story.add("knots", site.knots)
            story.add("coalesced", site.coalesced)
            story.add("asked again", site.again)
            story.add("relayed", site.relayed)
            story.add("conflicts", len(site.database.state.conflicts))
        story.add("deaths", self.dead is not None)
        story.add("writes", len(self.writes))
        story.add("runs", 1)


class BothWays(Run):
    """Three sites. The first one's batch comes to the last over their link, and then again with the next one, from the
    second, of which it was wanted before; meanwhile the last has written on top of it."""

    def _live(self) -> None:
        first, second, last = self.sites
        self._pass(10)
        self._do(first, "insert", _HOT[0])
        self._pass(20)
        self._apart(first, last, 20)
        self._apart(first, second, 60)
        self._pass(15)
        last.refused = 1.0  # so that it makes no cut, and the second does not get the batch from it either
        self._pass(15)
        self._do(first, "update", _HOT[0])
        self._pass(10)
        self._do(last, "update", _HOT[0])
        self._apart(first, last, 60)
        self._do(first, "insert", _HOT[1])
        self._pass(40)
        last.refused = self.scene.refused

    def _pass(self, seconds: float) -> None:
        self.schedule.run(self.schedule.now + seconds)

    def _do(self, site: Site, kind: str, key: UUID) -> None:
        tx = site.database.begin()
        self._change(site, tx, kind, key)
        self._commit(site, tx)

    def _apart(self, one: Site, other: Site, seconds: float) -> None:
        self.net.partition(one.node, other.node, seconds)
        self.net.partition(other.node, one.node, seconds)
        self.net.kill(one.node, other.node)


def _pairs(rnd: random.Random, shape: str, nodes: Sequence[int]) -> list[tuple[int, int]]:
    """Whoever can have a link with whom; there is always a way."""
    mesh = list(combinations(nodes, 2))
    if shape == "mesh":
        return mesh
    if shape == "hub":
        return [pair for pair in mesh if nodes[0] in pair]
    if shape == "line":
        return [(one, other) for one, other in mesh if other == one + 1]
    some = [pair for pair in mesh if rnd.random() < 0.6]
    return some if _connected(set(nodes), some) else mesh


def _connected(nodes: set[int], pairs: Collection[tuple[int, int]]) -> bool:
    reached = {min(nodes)}
    while more := {n for pair in pairs if reached & set(pair) for n in pair if n in nodes} - reached:
        reached |= more
    return reached == nodes


def _difference(one: dict[UUID, int], other: dict[UUID, int]) -> str:
    return ", ".join(
        f"{key}: {one.get(key)} and {other.get(key)}"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    )
