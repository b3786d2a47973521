"""Executable model of `lww-column`: every column of a row is a register of its own, within the life of its row.

A row's *life* begins with its insert, or with its re-insert after a delete, and has that write's stamp; an untouched first life is
implicit, as in `model`. Each column that was changed in this life has an entry, `(stamp, dot)`, until that dot is stable, and so has
the life, if it is not implicit. Two states of a row are joined like this: the newer life wins whole; within one life a delete ends it,
whatever the stamps of its columns; else each column is that of the larger stamp. A row travels as it is, with all entries it has, in
the batches of whoever has written any of them; so states may be joined in any order, and twice.

What is hard is that a life whose entry was dropped looks like the first one. `same_life` says how it is known again.

Random schedules over N sites, as in `model`: inserts, column updates, deletes, inserts of deleted keys, cuts, pulls, coalesced pulls,
relays, compaction by column, collection of tombstones. Every run checks:

  convergence     when every batch is delivered, all sites hold the same rows
  no write lost   each column of the last life is what its newest write made it, or its insert; a row whose last life was ended is nowhere
  no false alarm  a conflict is recorded only between writes of one column, or a delete and a write, that are truly concurrent

Run:               python -m tests.model.columns [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break onedot|stamped|life|forgotten|seen|stable|mark|over   (each must fail)
"""

import random
import sys
from dataclasses import dataclass, field, replace

from tests.model import asked, play

BREAKS = {
    "onedot": "a row has one dot, of its newest write: that says in whose batches it travels, and when its entries are dropped",
    "stamped": "a delete is a register like a column: a newer column write brings the row back",
    "life": "a column write is joined to whatever life the row is in",
    "forgotten": "a life whose entry was dropped here, and is kept there, is taken for a newer one",
    "seen": "a life whose entry was dropped there, and is kept here, is taken for an older one",
    "stable": "applied here counts as stable",
    "mark": "the collected mark is not asked",
    "over": "what was written here of a life that is over elsewhere, and has no cut yet, is folded as of the new life",
}
BROKEN = None  # one of BREAKS
COLUMNS = "abc"
LIFE = "life"


@dataclass(frozen=True)
class Entry:
    """Of a life, its end, or a column. An implicit life, or a column as its life began, has none."""
    stamp: tuple            # (hlc, node)
    dot: tuple | None       # (origin, cut)


@dataclass(frozen=True)
class Row:
    """A state of a row: it lives, or `end` says who ended its life."""
    life: Entry
    end: Entry | None = None
    values: dict = field(default_factory=dict)
    entries: dict = field(default_factory=dict)   # column -> Entry
    past: dict = field(default_factory=dict)      # ground truth: column, or LIFE -> writes that this one had seen, and itself
    true_life: int = 0                            # ground truth: the write that began it

    def dots(self):
        every = [self.life, *([self.end] if self.end else self.entries.values())]
        if BROKEN == "onedot":
            every = [max(every, key=lambda entry: entry.stamp)]
        return [entry.dot for entry in every if entry.dot]

    def writes(self):
        """Each entry, and what its write had seen."""
        ends = [(self.end, self.past[LIFE])] if self.end else [(self.life, self.past[LIFE])]
        return ends + [(entry, self.past[column]) for column, entry in self.entries.items()]

    def newest(self):
        return max(entry.stamp for entry in (self.life, *([self.end] if self.end else ()), *self.entries.values()))


@dataclass
class Batch:
    number: int
    rows: dict              # key -> Row
    contexts: dict          # cut -> context, for every cut in the range
    born: dict              # key -> the dot of its implicit life, if it began in this range

    @property
    def context(self):
        return self.contexts[self.number]


@dataclass
class Site:
    me: int
    n: int
    skew: int
    rows: dict = field(default_factory=dict)      # key -> Row: the table, and beside it what is unsettled
    cuts: int = 0
    born: dict = field(default_factory=dict)      # key -> the dot of its implicit life, until that is stable
    under: dict = field(default_factory=dict)     # key -> Row under the snapshot of the last cut
    ranges: dict = field(default_factory=dict)    # cut -> under, until the next one: what a batch of one cut ships
    frontier: list = None
    known: list = None
    contexts: dict = field(default_factory=dict)  # (origin, cut) -> context
    mark: tuple = (0, -2)
    hlc: int = 0
    settled: list = None
    met: set = field(default_factory=set)         # keys this site has ever held

    def __post_init__(self):
        self.frontier, self.settled = [0] * self.n, [0] * self.n
        self.known = [tuple([0] * self.n) for _ in range(self.n)]

    # ---- what the application does

    def alive(self):
        return sorted(key for key, row in self.rows.items() if not row.end)

    def _stamp(self, now, row):
        self.hlc = max(now + self.skew, self.hlc + 1, row.newest()[0] + 1 if row else 0)
        return Entry((self.hlc, self.me), (self.me, self.cuts + 1))

    def insert(self, key, write, now, truth):
        before = self.rows.get(key)
        life = Entry((key[0], -1), None)
        if before or (life.stamp <= self.mark and BROKEN != "mark"):
            life = self._stamp(now, before)
        else:
            self.born[key] = (self.me, self.cuts + 1)
        seen = frozenset([write]) | (before.past[LIFE] if before else frozenset())
        self.rows[key] = Row(life, None, dict.fromkeys(COLUMNS, write), {}, {LIFE: seen, **dict.fromkeys(COLUMNS, seen)}, write)
        self.met.add(key)
        truth.born(key, write, life.stamp)

    def update(self, key, columns, write, now, truth):
        row = self.rows[key]
        entry = self._stamp(now, row)
        past = {c: row.past[c] | {write} for c in columns}
        self.rows[key] = replace(row, values=row.values | dict.fromkeys(columns, write),
                                 entries=row.entries | dict.fromkeys(columns, entry), past=row.past | past)
        for column in columns:
            truth.written(key, row.true_life, column, entry.stamp, write)

    def delete(self, key, write, now, truth):
        row = self.rows[key]
        seen = frozenset().union(*row.past.values()) | {write}
        self.rows[key] = replace(row, end=self._stamp(now, row), values={}, entries={}, past={LIFE: seen})
        truth.ended(key, row.true_life)

    # ---- cuts, and what travels

    def cut(self):
        self.cuts += 1
        self.frontier[self.me] = self.cuts
        self.contexts[self.me, self.cuts] = self.known[self.me] = tuple(self.frontier)
        self.under = dict(self.rows)
        self.ranges[self.cuts] = self.under

    def batch(self, origin, after, upto, under):
        """What an origin wrote in a range of its cuts, as far as it is still there in this state."""
        def within(dot):
            return dot is not None and dot[0] == origin and after < dot[1] <= upto
        born = {key: dot for key, dot in self.born.items() if within(dot) and key in under}
        return Batch(upto, {key: row for key, row in under.items() if key in born or any(map(within, row.dots()))},
                     {cut: self.contexts[origin, cut] for cut in range(after + 1, upto + 1)}, born)

    def ready(self, origin, context):
        return all(self.frontier[o] >= context[o] for o in range(self.n) if o not in (origin, self.me))

    # ---- joining

    def covered(self, entry, context):
        """Whether who stood at this context had seen it."""
        return entry.dot is None or entry.dot[1] <= context[entry.dot[0]]

    def same_life(self, mine, theirs, context):
        """Stamps say it, unless one of the entries was dropped: then every site has had that life, and whoever dropped it can
        only mean that one."""
        if mine.stamp == theirs.stamp:
            return True
        if mine.dot is None and theirs.dot is not None:
            return theirs.dot[1] <= self.settled[theirs.dot[0]] and BROKEN != "forgotten"
        if mine.dot is not None and theirs.dot is None:
            return self.covered(mine, context) and BROKEN != "seen"
        return False

    def concurrent(self, ours, theirs):
        """Neither writer had seen the other's. What came before was judged when it came."""
        if ours.dot is None or theirs.dot is None or self.frontier[theirs.dot[0]] >= theirs.dot[1]:
            return False
        if self.covered(ours, self.contexts[theirs.dot]):
            return False
        seen = self.contexts.get(ours.dot)                # None: written here, not cut yet
        return not (seen and self.covered(theirs, seen))

    def conflict(self, one, other, stats):
        stats["conflicts"] += 1
        assert not (one <= other or other <= one), "false alarm"

    def join(self, key, row, context, stats):
        self.hlc = max(self.hlc, row.newest()[0])
        self.met.add(key)
        mine = self.rows.get(key)
        if mine is None:
            self.rows[key] = row
            return
        if BROKEN != "life" and not self.same_life(mine.life, row.life, context):
            for ours, one in mine.writes():
                for theirs, other in row.writes():
                    if self.concurrent(ours, theirs):
                        self.conflict(one, other, stats)
            if row.life.stamp > mine.life.stamp:
                self.rows[key] = replace(row, entries=row.entries | self._over(mine, row)) if BROKEN == "over" and not row.end else row
            return
        life = max(mine.life, row.life, key=lambda entry: (entry.dot is not None, entry.stamp))
        if BROKEN == "stamped" and (mine.end or row.end):
            self.rows[key] = max(mine, row, key=Row.newest)
            return
        if mine.end or row.end:
            gone = max((each for each in (mine, row) if each.end), key=lambda each: each.end.stamp)
            other = row if gone is mine else mine
            for column, entry in other.entries.items() if not other.end else ():
                if self.concurrent(*((entry, gone.end) if other is mine else (gone.end, entry))):
                    self.conflict(gone.past[LIFE], other.past[column], stats)
            self.rows[key] = replace(gone, life=life)
            return
        values, entries, past = dict(mine.values), dict(mine.entries), dict(mine.past)
        for column in COLUMNS:
            ours, theirs = mine.entries.get(column), row.entries.get(column)
            if theirs is None or (ours and ours.stamp == theirs.stamp):
                continue
            if ours and self.concurrent(ours, theirs):
                self.conflict(mine.past[column], row.past[column], stats)
            if ours is None or theirs.stamp > ours.stamp:
                values[column], entries[column], past[column] = row.values[column], theirs, row.past[column]
        self.rows[key] = replace(mine, life=life, values=values, entries=entries, past=past)

    def _over(self, mine, row):
        return {column: entry for column, entry in mine.entries.items()
                if entry.dot == (self.me, self.cuts + 1) and entry.stamp > row.entries.get(column, row.life).stamp}

    def apply(self, parts, stats):
        """Of one origin, or a knot of several; all of it is in one state, whose context covers every part's."""
        state = tuple(map(max, zip(*(part.context for part in parts.values()), strict=True)))
        for origin, part in parts.items():
            self.contexts.update({(origin, cut): context for cut, context in part.contexts.items()})
        for part in parts.values():
            for key, row in part.rows.items():
                self.join(key, row, state, stats)
        for origin, part in parts.items():
            self.frontier[origin], self.known[origin] = part.number, part.context
            self.born.update(part.born)

    def knot(self, origins, frontier):
        """What this site held of others' batches at its last cut, and its own range, for who cannot reach them."""
        upto = self.contexts[self.me, self.cuts] if self.cuts else [0] * self.n
        found = {o: (frontier[o], upto[o]) for o in {*origins, self.me} if upto[o] > frontier[o]}
        return {o: self.batch(o, *cuts, self.under) for o, cuts in found.items()} if found.keys() - {self.me} else {}

    def take_knot(self, parts, stats):
        need = [max(part.context[o] for part in parts.values()) for o in range(self.n)] if parts else []
        if not parts or any(self.frontier[o] < cut for o, cut in enumerate(need) if o != self.me and o not in parts):
            return False
        self.apply(parts, stats)
        return True

    def wait(self, origin, batch, stats):
        """It cannot be applied yet; here it is asked for again."""

    def rest(self, stats):
        """The end: what can be tried again has been."""

    # ---- forgetting

    def keeps(self, key, row):
        """Whether something is left to be done for a row whose entries every site has."""
        return False

    def compact(self, stats):
        self.known[self.me] = tuple(self.frontier)
        least = [min(context[o] for context in self.known) for o in range(self.n)]
        self.settled = list(map(max, self.settled, self.frontier if BROKEN == "stable" else least))
        for key, row in list(self.rows.items()):
            if not all(dot[1] <= self.settled[dot[0]] for dot in row.dots()) or self.keeps(key, row):
                continue
            if row.end:
                self.mark = max(self.mark, row.end.stamp)
                del self.rows[key]
                stats["tombstones collected"] += 1
                continue
            stats["entries dropped"] += len(row.entries)
            stats["lives forgotten"] += row.life.dot is not None
            self.rows[key] = replace(row, life=Entry((key[0], -1), None), entries={})
        self.born = {key: (o, cut) for key, (o, cut) in self.born.items() if cut > self.settled[o]}


@dataclass
class Truth:
    """All that was ever written: of each key its lives, what ended them, and the newest write of each column in each."""
    lives: dict = field(default_factory=dict)     # key -> {life: its stamp}
    over: set = field(default_factory=set)        # (key, life)
    cells: dict = field(default_factory=dict)     # (key, life, column) -> (stamp, write)

    def born(self, key, life, stamp):
        self.lives.setdefault(key, {})[life] = stamp

    def ended(self, key, life):
        self.over.add((key, life))

    def written(self, key, life, column, stamp, write):
        self.cells[key, life, column] = max(self.cells.get((key, life, column), ((0, 0), 0)), (stamp, write))

    def rows(self):
        """What every site must hold in the end."""
        found = {}
        for key, lives in self.lives.items():
            life = max(lives, key=lambda each: lives[each])
            if (key, life) not in self.over:
                found[key] = {c: self.cells.get((key, life, c), (None, life))[1] for c in COLUMNS}
        return found


def deliver(sites, stats):
    moved = True
    while moved:
        moved = False
        for site in sites:
            for peer in sites:
                after = site.frontier[peer.me]
                if peer is not site and after < peer.cuts:
                    batch = peer.batch(peer.me, after, after + 1, peer.ranges[after + 1])
                    if site.ready(peer.me, batch.context):
                        site.apply({peer.me: batch}, stats)
                        moved = True


def run(seed, stats, steps=300, coalesced=False, kind=Site, oracle=Truth):
    rnd = random.Random(seed)
    n = rnd.choice([2, 3, 4])
    sites = [kind(i, n, rnd.randint(-5, 5)) for i in range(n)]
    truth, gone = oracle(), set()
    now = writes = 0
    for _ in range(steps):
        now += rnd.randint(0, 2)
        site, dice = rnd.choice(sites), rnd.random()
        writes += 1
        if dice < 0.06:
            site.insert((max(0, now + site.skew), writes), writes, now, truth)
        elif dice < 0.36 and site.alive():
            columns = rnd.sample(COLUMNS, rnd.choice([1, 1, 1, 2, 3]))
            site.update(rnd.choice(site.alive()[-4:]), columns, writes, now, truth)
        elif dice < 0.42 and site.alive():
            key = rnd.choice(site.alive()[-4:])
            gone.add(key)
            site.delete(key, writes, now, truth)
        elif dice < 0.47:
            keys = sorted(key for key in gone & site.met if key not in site.rows or site.rows[key].end)
            if keys:
                site.insert(rnd.choice(keys[-3:]), writes, now, truth)
                stats["inserted again"] += 1
        elif dice < 0.63:
            site.cut()
        elif dice < 0.85:
            peer = rnd.choice([s for s in sites if s is not site])
            after = site.frontier[peer.me]
            if after < peer.cuts:
                together = coalesced and rnd.random() < 0.7
                upto = peer.cuts if together else after + 1
                batch = peer.batch(peer.me, after, upto, peer.ranges[upto])
                if site.ready(peer.me, batch.context):
                    site.apply({peer.me: batch}, stats)
                    stats["coalesced"] += upto > after + 1
                else:
                    site.wait(peer.me, batch, stats)
        elif dice < 0.92 and n > 2:
            origin, via = rnd.sample([s for s in sites if s is not site], 2)
            stats["relayed"] += site.take_knot(via.knot([origin.me], site.frontier), stats)
        else:
            site.compact(stats)
    for _ in range(2):
        for site in sites:
            site.cut()
        deliver(sites, stats)
    expected = truth.rows()
    for site in sites:
        site.rest(stats)
        held = {key: row.values for key, row in site.rows.items() if not row.end}
        assert held.keys() == expected.keys(), f"resurrected or lost at seed {seed}: {sorted(held.keys() ^ expected.keys())}"
        for key, values in expected.items():
            assert held[key] == values, f"a write was lost at seed {seed}: {key} is {held[key]}, not {values}"
    assert all(site.frontier == sites[0].frontier for site in sites), f"stuck at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
