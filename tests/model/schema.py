"""Executable model of schema changes: steps agreed on one after the other, each done by every site by itself, while all sites write.

A change is a list of steps; a step that is let go raises the schema's *epoch* by one, for good: taking a change back is more steps. A
site does the steps in their order, each in one transaction with the epoch it reaches. A batch is read in the shape its sender has, and
says in which epoch. A receiver takes what is of its own epoch or of the one before, which it brings to its own shape by what the step
says; a newer one waits; an older one is dropped and asked for again, by when its sender has done its steps.

Random schedules over 2 to 4 sites: writes of one column by the old or the new version of an application, pulls, relays, batches that
are held, sites away, kills in the middle of a step, leaders that change, changes (a column with a constant; a column that replaces
another one, in the five phases, and must be given once all rows have it; a dropped column) and their end half way. The new version
of an application says more than the old one can: what it writes cannot be computed from the old column. Rows win whole, by stamp; causal
delivery, deletes and compaction are `model`'s. Every run checks:

  no write lost   of every key the newest write of all is what every site has, with what it wrote, carried through the steps since
  one phase       no batch is taken of a site more than one step away; none of two linked sites is further, but who was away and catches up
  no holes        where the new column is read, every row has it
  none refused    where a column must be given, no row that is written or arrives lacks it
  none undone     what the new version wrote stays until somebody writes one of the two columns
  nothing resent  only rows that somebody has written since are in a batch

Run:               python -m tests.model.schema [RUNS] [FIRST_SEED]
Negative controls: ... --break newer|far|held|gate|contract|torn|early|stamp|captured|null|keep|volatile|late|leap|twice|back|hasty|anew
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.model import asked, play

BREAKS = {
    "newer": "a batch of a newer epoch is taken, without the columns that are not known here",
    "far": "a batch of any older epoch is taken",
    "held": "what is held is not looked at again when the epoch has moved",
    "gate": "the next step is let go before those who can be reached have done the last",
    "contract": "a column is dropped while a site is away",
    "torn": "a step commits, and its epoch is written afterwards",
    "early": "the epoch is written, and the step is done afterwards",
    "stamp": "rows are filled under a new stamp",
    "captured": "filling rows is captured",
    "null": "what a batch of the epoch before lacks is null",
    "keep": "what a batch of the epoch before lacks stays what it is here",
    "volatile": "a default that every site computes for itself",
    "late": "a row of the epoch before is not filled where all rows have been",
    "leap": "who was away makes the newest shape at once, without the steps between",
    "twice": "a new leader lets the step go that the last one has let go",
    "back": "a change is taken back at once, and not by steps",
    "hasty": "a column must be given before all rows have it",
    "anew": "whatever is written of a row, its new column is computed from the old one",
}
BROKEN = None  # one of BREAKS


# ---- shapes and steps: (what, column, from)

def forth(value):
    return None if value is None else ("as", value)


def carried(row, step, me=None):
    """A row of the epoch before, in the shape after the step."""
    what, column, source = step
    row = dict(row)
    if what == "add" and column not in row:
        row[column] = None if source is None else ("by", me) if BROKEN == "volatile" else source
    elif what == "drop":
        row.pop(column, None)
    elif what == "fill" and row.get(column) is None:
        row[column] = forth(row[source])
    return row


def columns(steps):
    have = ["a"]
    for what, column, _ in steps:
        if what == "add" and column not in have:
            have.append(column)
        elif what == "drop" and column in have:
            have.remove(column)
    return have


def pairs(steps):
    """Columns that are written together: new -> old."""
    both = {}
    for what, column, source in steps:
        if what == "dual":
            both[column] = source
        elif what in ("drop", "single"):
            both = {new: old for new, old in both.items() if column not in (new, old)}
    return both


def look_at(row, steps):
    """Columns that must be given where the one is that they come from."""
    must = {}
    for what, column, source in steps:
        if what == "must":
            must[column] = source
        elif what in ("drop", "may"):
            must = {new: old for new, old in must.items() if column not in (new, old)}
    for new, old in must.items():
        assert row.get(new) is not None or row.get(old) is None, "a row is refused"


PHASES = {"add": "expand", "dual": "write-dual", "fill": "backfill", "must": "backfill", "read": "read-new", "single": "undo", "drop": "contract"}


@dataclass
class World:
    """What Raft holds, and the truth."""
    log: list = field(default_factory=list)         # steps let go; the epoch is how many
    plan: list = field(default_factory=list)        # steps of the open change not let go yet
    done: list = field(default_factory=list)        # of the open change, let go
    back: bool = False                              # it is being taken back
    reached: dict = field(default_factory=dict)     # site -> epoch, as reported
    newest: dict = field(default_factory=dict)      # key -> (stamp, row, epoch of the writer)
    written: set = field(default_factory=set)       # (key, stamp) of every write of an application
    number: int = 0
    changes: int = 0


@dataclass
class Batch:
    origin: int
    after: int
    upto: int
    epoch: int
    rows: dict
    fresh: bool = True


@dataclass
class Site:
    me: int
    world: World
    n: int
    rows: dict = field(default_factory=dict)        # key -> (stamp, row)
    epoch: int = 0
    half: bool = False                              # a step whose epoch was not written, or the other way round
    away: bool = False
    catching: bool = False
    known: int = 0                                  # steps that it has heard of
    clock: int = 0
    touched: dict = field(default_factory=dict)     # origin -> [keys of each cut]
    pending: set = field(default_factory=set)
    inbox: list = field(default_factory=list)

    def __post_init__(self):
        self.touched = {node: [] for node in range(self.n)}

    @property
    def frontier(self):
        return {node: len(cuts) for node, cuts in self.touched.items()}

    def shape(self):
        return self.world.log[: self.epoch]

    def write(self, rnd):
        key, shape = rnd.randint(1, 4), self.shape()
        both, have = pairs(shape), columns(shape)
        self.world.number += 1
        row = dict(self.rows[key][1]) if key in self.rows else {}
        for step in shape if key not in self.rows else ():
            row = carried(row, step, self.me) if step[0] == "add" and step[1] in have else row
        row = {column: row.get(column) for column in have}
        before = dict(row)
        column, value = rnd.choice(have), ("w", self.world.number)
        if column in both:                              # the new application writes the new column
            row[column], row[both[column]] = ("new", value), ("down", value)
        else:
            row[column] = value
            for new, old in both.items():
                if old == column or BROKEN == "anew":
                    row[new] = forth(row[old])
        for new, old in both.items():
            assert column in (new, old) or row[new] == before[new], "what the new version wrote is undone"
        look_at(row, shape)
        self.clock += 1
        stamp = (self.clock, self.me)
        self.rows[key] = stamp, row
        self.pending.add(key)
        self.world.written.add((key, stamp))
        if key not in self.world.newest or self.world.newest[key][0] < stamp:
            self.world.newest[key] = stamp, row, self.epoch

    def cut(self):
        self.touched[self.me].append(frozenset(self.pending))
        self.pending = set()

    # ---- batches

    def read(self, origin, after):
        """Rows as they are here now, in the shape of here."""
        if origin == self.me and self.pending:
            self.cut()
        keys = set().union(*self.touched[origin][after:])
        rows = {key: self.rows[key] for key in keys if self.rows[key][0][1] == origin}
        return Batch(origin, after, len(self.touched[origin]), self.epoch, rows)

    def ask(self, sender, origin, stats):
        if any(held.origin == origin for held in self.inbox):
            return
        stats["relayed"] += origin != sender.me
        self.inbox.append(sender.read(origin, self.frontier[origin]))

    def work(self, sites, stats):
        for batch in list(self.inbox):
            batch.fresh, fresh = False, batch.fresh
            if batch.after != self.frontier[batch.origin]:
                self.inbox.remove(batch)
            elif batch.epoch > self.epoch and BROKEN != "newer":
                stats["waited"] += 1
            elif batch.epoch < self.epoch - 1 and (BROKEN not in ("far", "held") or BROKEN == "held" and fresh):
                stats["asked again"] += 1
                self.inbox.remove(batch)
            else:
                self.inbox.remove(batch)
                self.take(batch, stats)

    def take(self, batch, stats):
        if BROKEN != "newer":
            assert abs(batch.epoch - self.epoch) <= 1, "more than one phase apart"
        stats["of the epoch before"] += batch.epoch < self.epoch
        shape, have = self.shape(), columns(self.shape())
        for key, (stamp, row) in batch.rows.items():
            assert (key, stamp) in self.world.written, "a row was sent that nobody wrote"
            self.clock = max(self.clock, stamp[0])
            if key in self.rows and self.rows[key][0] >= stamp:
                continue
            for step in shape[batch.epoch :]:
                if step[0] == "fill" and BROKEN == "late":
                    continue
                if step[0] == "add" and BROKEN == "null":
                    row = {**row, step[1]: row.get(step[1])}
                elif step[0] == "add" and BROKEN == "keep" and key in self.rows:
                    row = {**row, step[1]: self.rows[key][1].get(step[1])}
                else:
                    row = carried(row, step, self.me)
            row = {column: value for column, value in row.items() if column in have}
            look_at(row, shape)
            self.rows[key] = stamp, row
        self.touched[batch.origin] += [frozenset(batch.rows)] * (batch.upto - batch.after)
        stats["batches"] += 1

    # ---- steps

    def do(self, rnd, stats):
        """The next step, or a part of it."""
        if self.epoch >= self.known:
            self.catching = False
            return
        if BROKEN == "leap" and self.catching and self.known - self.epoch > 1:
            shape = self.world.log[: self.known]
            self.rows = {key: (stamp, {column: row.get(column) for column in columns(shape)}) for key, (stamp, row) in self.rows.items()}
            self.reach(self.known)
            return
        step = self.world.log[self.epoch]
        if self.half and BROKEN == "torn":
            self.half = False
            self.reach(self.epoch + 1)
            return
        if BROKEN == "early" and not self.half and rnd.random() < 0.5:
            self.half = True
            self.reach(self.epoch + 1)              # killed before the rest
            return
        what, column, source = step
        if what == "fill":
            left = [key for key, (_, row) in self.rows.items() if row.get(column) is None and row.get(source) is not None]
            for key in rnd.sample(left, min(len(left), 2)):
                stats["rows filled"] += 1
                stamp, row = self.rows[key]
                if BROKEN == "stamp":
                    self.clock += 1
                    stamp = (self.clock, self.me)
                    self.world.written.add((key, stamp))
                if BROKEN in ("stamp", "captured"):
                    self.pending.add(key)
                    if BROKEN == "captured":
                        self.world.written.discard((key, stamp))
                self.rows[key] = stamp, carried(row, step)
            if len(left) > 2 or rnd.random() < 0.2:     # paced; or killed between two portions
                return
        elif what == "read":
            holes = [key for key, (_, row) in self.rows.items() if row.get(column) is None and row.get(source) is not None]
            assert not holes, "a hole is read"
        elif rnd.random() < 0.1:
            stats["killed in a step"] += 1
            if BROKEN == "torn":
                self.rows = {key: (stamp, carried(row, step, self.me)) for key, (stamp, row) in self.rows.items()}
                self.half = True
            return                                      # rolled back, or torn
        else:
            self.rows = {key: (stamp, carried(row, step, self.me)) for key, (stamp, row) in self.rows.items()}
        self.reach(self.epoch + 1)

    def reach(self, epoch):
        self.epoch = epoch
        self.world.reached[self.me] = epoch


# ---- the leader: what it decides is in the log, what it knows is what was reported

def lead(world, sites, rnd, stats):
    if not world.plan:
        world.done, world.back = [], False
        return
    step, near = world.plan[0], [site for site in sites if not site.away]
    if len(near) * 2 <= len(sites):
        return
    everybody = step[0] == "drop" and not world.back and BROKEN != "contract"
    waiting = [site.me for site in (sites if everybody else near) if world.reached.get(site.me, 0) < len(world.log)]
    if waiting and BROKEN != "gate":
        stats["waited for" if not everybody else "waited for, to contract"] += 1
        return
    if step[0] == "drop" and not world.back:
        assert all(world.reached.get(site.me, 0) == len(world.log) for site in sites), "contracted without a member"
        stats["contracted"] += 1
    world.log.append(step)
    if BROKEN == "twice" and rnd.random() < 0.2:
        world.log.append(step)                          # the new leader has not heard of it
    world.done.append(world.plan.pop(0))


def open_change(world, rnd, stats):
    if world.plan or world.done:
        return
    world.changes += 1
    have, new = columns(world.log), f"c{world.changes}"
    kind = rnd.choice(["add", "add", "replace", "drop"])
    if kind == "add":
        world.plan = [("add", new, rnd.choice([None, ("k", world.changes)]))]
    elif kind == "replace":
        old = rnd.choice(have)
        world.plan = [("add", new, None), ("dual", new, old), ("fill", new, old), ("must", new, old), ("read", new, old), ("drop", old, None)]
        if BROKEN == "hasty":
            world.plan[2], world.plan[3] = world.plan[3], world.plan[2]
    elif len(have) > 1:
        world.plan = [("drop", rnd.choice(have), None)]
    stats[kind] += 1


def abort(world, sites, stats):
    """What was let go of it is taken back, the last first."""
    if world.back or not world.done or any(step[0] == "drop" for step in world.done):
        return
    stats["taken back"] += 1
    undo = []
    for what, column, _ in reversed(world.done):
        if what == "dual":
            undo.append(("single", column, None))
        elif what == "must":
            undo.append(("may", column, None))
        elif what == "add":
            undo.append(("drop", column, None))
    if BROKEN == "back":
        for _, column, _ in undo:
            for site in sites:
                site.rows = {key: (stamp, {c: v for c, v in row.items() if c != column}) for key, (stamp, row) in site.rows.items()}
    world.plan, world.back = undo, True


def look(sites):
    near = [site for site in sites if not site.away and not site.catching]
    for site in near:
        for other in near:
            assert abs(site.epoch - other.epoch) <= 1, "two sites more than one phase apart"


def step(world, sites, rnd, stats):
    site, dice = rnd.choice(sites), rnd.random()
    if dice < 0.30:
        site.write(rnd)
    elif dice < 0.55 and not site.away:
        near = [other for other in sites if other is not site and not other.away]
        if near:
            sender = rnd.choice(near)
            site.ask(sender, sender.me if rnd.random() < 0.7 else rnd.choice([o.me for o in sites if o is not site]), stats)
    elif dice < 0.70:
        site.work(sites, stats)
    elif dice < 0.82:
        site.do(rnd, stats)
    elif dice < 0.90:
        lead(world, sites, rnd, stats)
    elif dice < 0.93:
        open_change(world, rnd, stats)
    elif dice < 0.94:
        abort(world, sites, stats)
    elif dice < 0.965:
        away = not site.away
        site.away, site.catching = away, not away
        stats["away"] += away
    elif dice < 0.98:
        stats["agents killed"] += 1
        site.inbox.clear()                              # what an agent holds is asked for again
    for other in sites:
        if not other.away:
            other.known = len(world.log)
    look(sites)


def rest(world, sites, rnd, stats):
    for site in sites:
        site.away, site.catching = False, True
    for _ in range(400):
        lead(world, sites, rnd, stats)
        for site in sites:
            site.known = len(world.log)
            site.do(rnd, stats)
            for other in sites:
                if other is not site:
                    site.ask(other, other.me, stats)
            site.work(sites, stats)
        if not world.plan and all(site.epoch == len(world.log) and not site.pending for site in sites):
            if all(site.frontier == sites[0].frontier for site in sites):
                return
    raise AssertionError("it does not come to rest")


def run(seed, stats, steps=260, coalesced=False):
    rnd = random.Random(f"schema {seed}")
    n = rnd.choice([2, 3, 4])
    world = World()
    sites = [Site(i, world, n) for i in range(n)]
    for _ in range(steps):
        step(world, sites, rnd, stats)
    rest(world, sites, rnd, stats)
    for key, (stamp, row, epoch) in world.newest.items():
        for each in world.log[epoch:]:
            row = carried(row, each)
        wanted = {column: row.get(column) for column in columns(world.log)}
        for site in sites:
            assert key in site.rows and site.rows[key][0] == stamp, f"a write was lost at seed {seed}"
            assert site.rows[key][1] == wanted, f"diverged at seed {seed}: {key} {site.rows[key][1]} {wanted}"
    stats["changes"] += world.changes
    stats["steps"] += len(world.log)


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run)
