"""Executable model of `merge`: dotted version vectors without vectors in the rows.

A row is a set of *siblings*, each the value of one write under that write's dot. A write replaces the siblings it has read by one of its
own; a delete leaves a dead one. Two states of a row are joined by what each side has seen: a sibling stays if both have it, or if the
one that has not got it has not seen it either. What a batch has seen is its context; what a site has seen is its frontier, and what it
has written since its last cut. So no vector is kept for a row, and none can be forgotten.

A last sibling that every site has seen needs no dot any more: it is the *base*, as an insert is that nobody has touched. Dead siblings
that every site has seen go.

Sites, schedules and what travels are those of `columns`. Every run checks:

  convergence     when every batch is delivered, all sites show the same siblings
  exactness       which are those that no write had read; a row all of whose last writes were deletes is nowhere

Run:               python -m tests.model.siblings [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break vector|uncut|lww|stable|mark   (each must fail)
"""

import sys
from dataclasses import dataclass, field, replace

from tests.model import asked, columns, play
from tests.model.columns import Entry

BREAKS = {
    "vector": "what a row has seen is a vector of its own, which goes with its entries",
    "uncut": "what was written here since the last cut counts as seen by a batch that comes",
    "lww": "of two siblings the newer one stays",
    "stable": "applied here counts as stable",
    "mark": "the collected mark is not asked",
}
BROKEN = None  # one of BREAKS
BASE = None
"""Instead of a dot."""


@dataclass(frozen=True)
class Sibling:
    stamp: tuple
    value: int | None       # None: dead
    write: int              # ground truth


@dataclass(frozen=True)
class Row:
    siblings: dict = field(default_factory=dict)  # dot, or BASE -> Sibling
    vector: dict = field(default_factory=dict)    # only of the variant: origin -> cut

    @property
    def values(self):
        return {sibling.value for sibling in self.siblings.values() if sibling.value is not None}

    @property
    def end(self):
        return not self.values

    def dots(self):
        return [dot for dot in self.siblings if dot is not BASE]

    def newest(self):
        return max(sibling.stamp for sibling in self.siblings.values())

    def having(self, siblings):
        vector = dict(self.vector)
        for dot in siblings:
            if dot is not BASE:
                vector[dot[0]] = max(vector.get(dot[0], 0), dot[1])
        return Row(siblings, vector)


class Site(columns.Site):
    # ---- what the application does

    def _write(self, key, value, write, now, truth):
        row = self.rows.get(key, Row())
        entry: Entry = self._stamp(now, row if row.siblings else None)
        truth.wrote(key, write, value is not None, {sibling.write for sibling in row.siblings.values()})
        self.rows[key] = row.having({entry.dot: Sibling(entry.stamp, value, write)})

    def insert(self, key, write, now, truth):
        self.met.add(key)
        if key in self.rows or ((key[0], -1) <= self.mark and BROKEN != "mark"):
            return self._write(key, write, write, now, truth)
        self.born[key] = (self.me, self.cuts + 1)
        truth.wrote(key, write, True, set())
        self.rows[key] = Row({BASE: Sibling((key[0], -1), write, write)})

    def update(self, key, _, write, now, truth):
        self._write(key, write, write, now, truth)

    def delete(self, key, write, now, truth):
        self._write(key, None, write, now, truth)

    # ---- joining

    def seen(self, dot):
        """Whether this site has, or had, what was written under a dot."""
        return dot[1] <= (self.frontier[dot[0]] + (dot[0] == self.me))

    def join(self, key, row, context, stats):
        self.hlc = max(self.hlc, row.newest()[0])
        self.met.add(key)
        mine = self.rows.get(key, Row())
        here, there = mine.siblings, row.siblings
        if key not in self.rows:
            self.rows[key] = row
            return

        def replaced_there(dot):
            if BROKEN == "vector":
                return dot[1] <= row.vector.get(dot[0], 0)
            if BROKEN == "uncut" and dot == (self.me, self.cuts + 1):
                return True
            return dot[1] <= context[dot[0]]

        def replaced_here(dot):
            if BROKEN == "vector":
                return dot[1] <= mine.vector.get(dot[0], 0)
            return self.seen(dot)

        kept = {dot: sibling for dot, sibling in here.items() if dot is not BASE and (dot in there or not replaced_there(dot))}
        kept |= {dot: sibling for dot, sibling in there.items() if dot is not BASE and (dot in here or not replaced_here(dot))}
        assert kept, "a base is only ever replaced"
        if BROKEN == "lww" and len(kept) > 1:
            dot = max(kept, key=lambda each: kept[each].stamp)
            kept = {dot: kept[dot]}
        stats["siblings"] += len(kept) > 1
        self.rows[key] = replace(mine, vector={o: max(mine.vector.get(o, 0), row.vector.get(o, 0)) for o in mine.vector | row.vector}).having(kept)

    # ---- forgetting

    def _settled(self, dot):
        return dot is not BASE and dot[1] <= self.settled[dot[0]]

    def compact(self, stats):
        self.known[self.me] = tuple(self.frontier)
        least = [min(context[o] for context in self.known) for o in range(self.n)]
        self.settled = list(map(max, self.settled, self.frontier if BROKEN == "stable" else least))
        for key, row in list(self.rows.items()):
            dead = [dot for dot, sibling in row.siblings.items() if sibling.value is None and self._settled(dot)]
            self.mark = max([self.mark, *(row.siblings[dot].stamp for dot in dead)])
            stats["tombstones collected"] += len(dead)
            left = {dot: sibling for dot, sibling in row.siblings.items() if dot not in dead}
            if not left:
                del self.rows[key]
                continue
            if len(left) == 1 and self._settled(*left):
                (sibling,) = left.values()
                left = {BASE: replace(sibling, stamp=(key[0], -1))}
                stats["lives forgotten"] += 1
            self.rows[key] = Row(left, {} if BASE in left else row.vector)
        self.born = {key: (o, cut) for key, (o, cut) in self.born.items() if cut > self.settled[o]}


@dataclass
class Truth:
    """Every write of a key, and which of them some write had read."""
    alive: dict = field(default_factory=dict)     # key -> {write: whether it is a value}
    read: dict = field(default_factory=dict)      # key -> writes

    def wrote(self, key, write, alive, read):
        self.alive.setdefault(key, {})[write] = alive
        self.read.setdefault(key, set()).update(read)

    def rows(self):
        last = {key: {w for w, alive in writes.items() if alive and w not in self.read[key]} for key, writes in self.alive.items()}
        return {key: values for key, values in last.items() if values}


def run(seed, stats, steps=300, coalesced=False):
    columns.run(seed, stats, steps, coalesced, kind=Site, oracle=Truth)


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
