"""Executable model of a strategy that is changed while sites write: from rows that win whole to columns, back, and from columns to columns.

A change is steps, as in `schema`: each raises the epoch, every site does them in their order by itself, a batch says in which epoch it was
read; a newer one waits, one older than the last *strict* step is asked for again.

From rows to columns one step is enough. What wins whole is a life: the version of a row of `lww`, or its tombstone, becomes a life that began
with that write, and of two lives the newer one wins, as ever. From columns it takes two. First sites write *whole*: every write begins a life,
a delete begins one that has ended, while all still join by column. When all do so, and what each has written by column has come
everywhere, the registers of columns are dropped: what they say is known to all, and whoever wrote meanwhile without having seen it has
begun a newer life, which wins whole before the switch and after it. So with the registers goes the row's newest stamp: its stamp is its life's.

Random schedules over 2 to 4 sites, of the columns of `columns` or of `merging`: inserts, updates, deletes, inserts of deleted keys, cuts, pulls, relays,
compaction, sites away, changes in all directions, and some that are taken back. Every run checks:

  convergence     when every batch is delivered, all sites hold the same rows
  no write lost   the newest life wins, and in it each column, counter, set is what its writes made it; what is nowhere was seen by a later
                  write or is in a conflict (of `columns`)
  no false alarm  a conflict is recorded only between writes of which neither had seen the other

Run:               python -m tests.model.strategies [RUNS] [FIRST_SEED]
Negative controls: ... --break one|early|gate|kept|ended|columns   (each must fail)
"""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from tests.model import asked, columns, merging, play
from tests.model.columns import COLUMNS, LIFE, Entry
from tests.model.merging import COUNTER, SET, SIBLINGS

BREAKS = {
    "one": "from columns in one step: nobody writes whole before",
    "early": "the switch is let go before what was written by column has come everywhere",
    "gate": "the switch is let go before all write whole",
    "kept": "at the switch to rows a row keeps the stamp of its newest column",
    "ended": "while rows are written whole a delete ends the life that it finds",
    "columns": "what a version of a row becomes is not a life, but a write of each of its columns",
}
BROKEN = None  # one of BREAKS


@dataclass
class World:
    """What the sites have agreed on, and the truth. A step is (how rows are joined, written whole)."""
    log: list
    plan: list = field(default_factory=list)
    strict: list = field(default_factory=list)      # of the log: whether batches from before cannot be read
    reached: dict = field(default_factory=dict)
    pasts: dict = field(default_factory=dict)       # write -> the writes that it had seen
    ends: set = field(default_factory=set)
    told: set = field(default_factory=set)          # writes in a conflict


class Changing:
    """A site of `columns` or of `merging` whose tables change their strategy."""

    world: World
    epoch, floor, under_epoch, whole_at, away = 0, 0, 0, 0, False

    @property
    def how(self):
        return self.world.log[self.epoch]

    @property
    def whole(self):
        return self.how[0] == "row" or self.how[1]

    # ---- what the application does

    def update(self, key, changed, write, now, truth):
        if not self.whole:
            super().update(key, changed, write, now, truth)
            return
        row, life = self.rows[key], self._stamp(now, self.rows[key])
        past = frozenset().union(*row.past.values()) | {write}
        values = self.changed(row, changed, write)
        self.rows[key] = replace(row, life=life, values=values, entries={}, past=dict.fromkeys((LIFE, *COLUMNS), past), true_life=write)
        truth.born(key, write, life.stamp)
        truth.begun(key, write, values)

    def changed(self, row, changed, write):
        return row.values | dict.fromkeys(changed, write)

    def delete(self, key, write, now, truth):
        row = self.rows[key]
        if not self.whole or (BROKEN == "ended" and self.how[0] != "row"):
            super().delete(key, write, now, truth)
            return
        end = self._stamp(now, row)
        past = frozenset().union(*row.past.values()) | {write}
        self.rows[key] = replace(row, life=end, end=end, values={}, entries={}, past={LIFE: past}, true_life=write)
        truth.born(key, write, end.stamp)
        truth.ended(key, write)

    def note(self, key, write):
        """What a write had seen."""
        seen = [past for past in self.rows[key].past.values() if write in past]
        self.world.pasts[write] = frozenset().union(*seen) - {write}

    # ---- batches

    def cut(self):
        super().cut()
        self.under_epoch = self.epoch
        self.ranges[self.cuts] = (self.epoch, self.under)

    def join(self, key, row, context, stats):
        if self.how[0] != "row":
            super().join(key, row, context, stats)
            return
        self.hlc = max(self.hlc, row.newest()[0])
        self.met.add(key)
        mine = self.rows.get(key)
        if mine is None:
            self.rows[key] = row
            return
        if mine.life.stamp != row.life.stamp and self.concurrent(mine.life, row.life):
            self.conflict(mine.past[LIFE], row.past[LIFE], stats)
        if row.life.stamp > mine.life.stamp:
            self.rows[key] = row

    def conflict(self, one, other, stats):
        super().conflict(one, other, stats)
        self.world.told |= one | other

    def understands(self, epoch):
        return self.floor <= epoch <= self.epoch

    # ---- steps

    def do(self, stats):
        """The next step that was let go, in one transaction."""
        if self.epoch + 1 >= len(self.world.log):
            return
        before, self.epoch = self.how, self.epoch + 1
        if self.world.strict[self.epoch]:
            self.floor = self.epoch
        if self.how[0] != before[0]:
            self.rows = {key: self.switched(key, row, before[0]) for key, row in self.rows.items()}
            stats[f"{before[0]} to {self.how[0]}"] += 1
        self.whole_at = self.cuts + 1
        self.cut()
        self.world.reached[self.me] = self.epoch

    def switched(self, key, row, before):
        if before == "row":
            if BROKEN == "columns" and row.life.dot and not row.end and isinstance(self, ColumnSite):
                return replace(row, life=Entry((key[0], -1), None), entries=dict.fromkeys(COLUMNS, row.life))
            return row
        if row.end and self.how[0] == "row":
            end = Entry(row.end.stamp if BROKEN == "kept" else row.life.stamp, row.end.dot)
            return replace(row, life=end, end=end)
        newest = max((row.life, *row.entries.values()), key=lambda entry: entry.stamp)
        life = Entry(newest.stamp, row.life.dot or newest.dot) if BROKEN == "kept" and isinstance(self, ColumnSite) else row.life
        return replace(row, life=life, entries={})

    def delivered(self):
        """What it wrote by column has come everywhere."""
        return all(context[self.me] >= self.whole_at for context in self.known)


class ColumnSite(Changing, columns.Site):
    pass


class MergeSite(Changing, merging.Site):
    fails = 0                                         # siblings of which it has failed stand against a change

    def changed(self, row, changed, write):
        values, rnd = dict(row.values), random.Random(write)
        for name in changed:
            if name == COUNTER:
                values[name] += rnd.randint(-9, 9)
            elif name == SET:
                values[name] = values[name] - set(list(sorted(values[name]))[:1]) if rnd.random() < 0.5 else values[name] | {(write, 1)}
            else:
                values[name] = frozenset([write])
        return values


class ColumnTruth(columns.Truth):
    def __init__(self):
        super().__init__()
        self.start = {}                               # (key, life) -> its columns as it began

    def begun(self, key, life, values):
        self.start[key, life] = values

    def rows(self):
        found = super().rows()
        for key, row in found.items():
            life = max(self.lives[key], key=lambda each: self.lives[key][each])
            for column, value in self.start.get((key, life), {}).items():
                if (key, life, column) not in self.cells:
                    row[column] = value
        return found


class MergeTruth(merging.Truth):
    def begun(self, key, life, values):
        self.counts[key, life] = values[COUNTER]
        self.adds[key, life] = {(element, life): None for element in values[SET]}
        self.values[key, life] = set(values[SIBLINGS])


# ---- who leads

def lead(world, sites, stats):
    if not world.plan:
        return
    now, after = world.log[-1], world.plan[0]
    leaves = now[0] != "row" and now[0] != after[0]
    waiting = [site for site in sites if world.reached.get(site.me, 0) < len(world.log) - 1]
    if leaves and BROKEN != "one":
        if (BROKEN != "gate" and waiting) or (BROKEN != "early" and not all(site.delivered() for site in sites)) or any(site.away for site in sites):
            stats["waited for"] += 1
            return
    elif any(not site.away for site in waiting):
        return
    world.strict.append(not after[1])
    world.log.append(world.plan.pop(0))


def open_change(world, rnd, stats):
    if world.plan or any(world.reached.get(me, 0) < len(world.log) - 1 for me in world.reached):
        return
    how, whole = world.log[-1]
    if whole:                                         # its second step was taken from the plan: it is taken back
        return
    if how == "row":
        world.plan = [(rnd.choice(["x", "y"]), False)]
    else:
        target = rnd.choice([name for name in ("row", "row", "x", "y") if name != how])
        world.plan = ([] if BROKEN == "one" else [(how, True)]) + [(target, False)]


def take_back(world, stats):
    if world.plan and world.log[-1][1]:
        world.plan = [(world.log[-1][0], False)]
        stats["taken back"] += 1


# ---- schedules

def pull(site, peer, together, stats):
    after = site.frontier[peer.me]
    if after >= peer.cuts or site.away or peer.away:
        return False
    upto = peer.cuts if together or not site.understands(peer.ranges[after + 1][0]) else after + 1
    epoch, under = peer.ranges[upto]
    if epoch > site.epoch:
        stats["waited"] += 1
        return False
    if not site.understands(epoch):
        stats["asked again"] += 1
        return False
    batch = peer.batch(peer.me, after, upto, under)
    if not site.ready(peer.me, batch.context):
        return False
    site.apply({peer.me: batch}, stats)
    return True


def relay(site, origins, via, stats):
    if site.away or via.away or not site.understands(via.under_epoch) or via.under_epoch > site.epoch:
        return False
    taken = site.take_knot(via.knot([origin.me for origin in origins], site.frontier), stats)
    stats["relayed"] += taken
    return taken


def write(site, rnd, writes, now, gone, truth):
    dice, alive = rnd.random(), site.alive()[-4:]
    again = [key for key in sorted(gone & site.met) if key not in site.rows or site.rows[key].end][-3:]
    if dice < 0.12 or not alive:
        key = (max(0, now + site.skew), writes)
        site.insert(key, writes, now, truth)
    elif dice < 0.22 and again:
        key = rnd.choice(again)
        site.insert(key, writes, now, truth)
    else:
        key = rnd.choice(alive)
        if dice < 0.34:
            gone.add(key)
            site.world.ends.add(writes)
            site.delete(key, writes, now, truth)
        else:
            site.update(key, rnd.sample(COLUMNS, rnd.choice([1, 1, 1, 2, 3])), writes, now, truth)
    site.note(key, writes)


def run(seed, stats, steps=400, coalesced=False):
    rnd = random.Random(f"strategies {seed}")
    kind, oracle = rnd.choice([(ColumnSite, ColumnTruth), (MergeSite, MergeTruth)])
    n, world = rnd.choice([2, 3, 4]), World([(rnd.choice(["row", "x", "x"]), False)], strict=[True])
    sites, truth, gone = [kind(i, n, rnd.choice([-40, -5, 0, 5, 40])) for i in range(n)], oracle(), set()
    for site in sites:
        site.world = world
        world.reached[site.me] = 0
    now = writes = 0
    for _ in range(steps):
        now += rnd.randint(0, 2)
        site, dice = rnd.choice(sites), rnd.random()
        if dice < 0.36:
            writes += 1
            write(site, rnd, writes, now, gone, truth)
        elif dice < 0.48:
            site.cut()
        elif dice < 0.7:
            pull(site, rnd.choice([s for s in sites if s is not site]), coalesced and rnd.random() < 0.7, stats)
        elif dice < 0.75 and n > 2:
            origin, via = rnd.sample([s for s in sites if s is not site], 2)
            relay(site, [origin], via, stats)
        elif dice < 0.79:
            site.compact(stats)
        elif dice < 0.81:
            site.away = not site.away and rnd.random() < 0.4
        elif dice < 0.812:
            take_back(world, stats)
        elif dice < 0.86:
            open_change(world, rnd, stats)
        elif dice < 0.92:
            lead(world, sites, stats)
        elif not site.away:
            site.do(stats)
    rest(world, sites, stats)
    judge(seed, world, sites, truth, writes, kind)


def rest(world, sites, stats):
    for site in sites:
        site.away = False
    for _ in range(12):
        lead(world, sites, stats)
        for site in sites:
            site.do(stats)
            site.cut()
        moved = True
        while moved:
            moved = any([pull(site, peer, False, stats) for site in sites for peer in sites if peer is not site])
            moved = moved or any([relay(site, [s for s in sites if s is not site], via, stats) for site in sites for via in sites if via is not site])
        for site in sites:
            site.compact(stats)
    assert not world.plan, "a change does not end"


def judge(seed, world, sites, truth, writes, kind):
    assert all(site.frontier == sites[0].frontier for site in sites), f"stuck at seed {seed}"
    expected = truth.rows()
    for site in sites:
        held = {key: row.values for key, row in site.rows.items() if not row.end}
        assert held.keys() == expected.keys(), f"resurrected or lost at seed {seed}: {sorted(held.keys() ^ expected.keys())}"
        for key, values in expected.items():
            assert held[key] == values, f"a write was lost at seed {seed}: {key} is {held[key]}, not {values}"
    if kind is ColumnSite:
        seen = frozenset().union(*world.pasts.values())
        there = {number for values in expected.values() for number in values.values()}
        nowhere = [w for w in range(1, writes + 1) if w not in world.ends | there | seen | world.told]
        lives = {row.true_life for row in sites[0].rows.values()}
        assert not set(nowhere) - lives, f"a write is nowhere, and in no conflict, at seed {seed}: {nowhere}"


def overtaken():
    """What chance rarely makes: who writes a row whole has a clock that is behind, and has not seen a column of it; a third site has seen the
    column, and drops the registers before it hears of the row. Returns what the sites show."""
    stats, truth = Counter(), ColumnTruth()
    world = World([("x", False)], strict=[True])
    ahead, behind, third = sites = [ColumnSite(me, 3, skew) for me, skew in enumerate((40, -40, 0))]
    for site in sites:
        site.world = world
        world.reached[site.me] = 0
    key = (0, 1)
    third.insert(key, 1, 0, truth)
    rest(world, sites, stats)
    ahead.update(key, ["a"], 2, 50, truth)
    ahead.cut()
    world.plan = [("x", True), ("row", False)]
    lead(world, sites, stats)
    for site in sites:
        site.do(stats)
    pull(behind, third, False, stats)
    behind.cut()
    for site in (ahead, third):
        while pull(site, behind, False, stats):
            pass
    behind.update(key, ["b"], 3, 50, truth)
    for _ in range(2):
        for site, peer in [(behind, ahead), (third, ahead), (behind, third), (ahead, third)]:
            while pull(site, peer, False, stats):
                pass
        ahead.cut()
        third.cut()
    behind.cut()
    for peer in (behind, third) * 2:
        while pull(ahead, peer, False, stats):
            pass
    for site in sites:
        site.known[site.me] = tuple(site.frontier)
    lead(world, sites, stats)
    assert len(world.log) == 3, "the switch is let go"
    third.do(stats)
    rest(world, sites, stats)
    return [site.rows[key].values for site in sites]


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run)
