"""Executable model of `merge` as it is built: within the life of a row, as in `columns`, each column joins by a kind of its own.

Beside its value a column has, until all dots of the row are stable, an entry for each node that wrote it: the newest of that node's
writes, and what the kind needs.

  counter   `(since, cut, total)`: what that node has added in the unbroken stretch of its cuts `since < .. <= cut`
  set       the elements that the node added, each with the cut of its add; a remove leaves nothing but the node's newest cut
  siblings  the node's last write, unless a write that had read it replaced it; `max`, `min` and the newest are functions of them

What a row shows of its siblings is here what a function of the application makes of them: all of them, told apart. It may fail, now and at one site
only: then the row shows the newest, keeps its entries also when all have them, and is tried again. Of a row that came its value is made anew.

Two states of a column are joined by what each side has seen: what comes, its context; a site, its frontier, and what it has written
since its last cut. A column of which one side has seen all is the other's, as it is there. Else a sibling, or an element's add, stays if both have
it, or if the one that lacks it has not seen its dot; and a counter is the value of one side and what that side has not seen of the
other's. Entries are only ever dropped all together, so a stretch may go on at its writer that others have dropped: then what the other
side has not seen of *ours* is told exactly, and is added to theirs.

Batches that wait for each other are applied together, as a knot: each is a state of its own origin. What one of them has seen of another
is in its rows, and only in those: a row that came in one part has, for the next, seen what that part had seen.

Every run checks:

  convergence   when every batch is delivered, all sites hold the same rows
  exactness     a counter is what was inserted and all that was added; an element is there if it was added by a write that no remove had
                seen; siblings are the writes that no other had read

Run:               python -m tests.model.merging [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break total|largest|one|union|revived|uncut|replaced|stable|state|part|once|written|dropped|taken   (each must fail)
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.model import asked, columns, play
from tests.model.columns import Row

BREAKS = {
    "total": "a stretch that was dropped here is taken for one of which nothing was seen",
    "largest": "of two counters that were written at once the larger one stays",
    "one": "entries are dropped one by one",
    "union": "sets that were written at once are united",
    "revived": "an element that was added again has only its first dot",
    "uncut": "what was written here since the last cut counts as seen by a batch that comes",
    "replaced": "a write leaves the siblings that it has read",
    "stable": "applied here counts as stable",
    "state": "in a knot all parts count as read where all that any of them had seen was seen",
    "part": "in a knot a row that came in one part counts as read before it",
    "once": "of the statements of a transaction, which have one stamp, only the first counts",
    "written": "what a function makes of siblings is written as one more version",
    "dropped": "entries are dropped where the function has failed",
    "taken": "what a row that came shows is taken for what the function makes of its siblings",
}
BROKEN = None  # one of BREAKS
COUNTER, SET, SIBLINGS = columns.COLUMNS
Seen = Callable[[int], int]
"""The last cut of a node that one side has seen."""


@dataclass(frozen=True)
class Part:
    """What is known of one node's writes of a column. `tells`: (since, total), {element: cut}, or the writes that make up the value."""
    stamp: tuple
    node: int
    cut: int
    tells: object

    @property
    def dot(self):
        return self.node, self.cut


@dataclass(frozen=True)
class Column:
    """In place of an entry of `columns`: all parts of a column."""
    parts: dict = field(default_factory=dict)     # node -> Part

    @property
    def stamp(self):
        return max(part.stamp for part in self.parts.values())


@dataclass(frozen=True)
class Merged(Row):
    def dots(self):
        inner = [] if self.end else [part.dot for column in self.entries.values() for part in column.parts.values()]
        return [entry.dot for entry in (self.life, self.end) if entry and entry.dot] + inner


# ---- joining two states of a column; each a value and its parts


def unseen(parts, other, seen: Seen):
    """What one side has added that the other has not seen; None: it is not told."""
    total = 0
    for node, part in parts.items():
        since, amount = part.tells
        theirs = other.get(node)
        if part.cut <= seen(node):
            continue
        if theirs and theirs.tells[0] == since:
            total += amount - theirs.tells[1] if theirs.cut < part.cut else 0
        elif since >= seen(node) or BROKEN == "total":
            total += amount
        else:
            return None
    return total


def join_counter(mine, theirs, here: Seen, there: Seen, stats):
    (value, parts), (other, others) = mine, theirs
    came = unseen(others, parts, here)
    if BROKEN == "largest":
        value = max(value, other)
    elif came is not None:
        value += came
    else:
        stats["told by ours"] += 1
        ours = unseen(parts, others, there)
        assert ours is not None, "neither side tells what the other lacks"
        value = other + ours
    return value, {node: max((p[node] for p in (parts, others) if node in p), key=lambda part: part.cut) for node in parts | others}


def join_set(mine, theirs, here: Seen, there: Seen, stats):
    (value, parts), (other, others) = mine, theirs

    def adds(side):
        return {(element, node, cut) for node, part in side.items() for element, cut in part.tells.items()}

    ours, came = adds(parts), adds(others)
    live = {add for add in ours if add in came or add[2] > there(add[1])} | {add for add in came if add in ours or add[2] > here(add[1])}
    dotted = [{element for element, _, _ in side} for side in (ours, came)]
    base = {element for element in value & other if element not in dotted[0] or element not in dotted[1]}
    joined = {element for element, _, _ in live} | base
    if BROKEN == "union":
        joined = value | other
    stats["removed"] += len((value | other) - joined)
    newest = {node: max((p[node] for p in (parts, others) if node in p), key=lambda part: part.cut) for node in parts | others}
    return frozenset(joined), {
        node: replace(part, tells={element: cut for element, origin, cut in live if origin == node}) for node, part in newest.items()}


def join_siblings(mine, theirs, here: Seen, there: Seen, stats):
    (value, parts), (_, others) = mine, theirs
    ours, came = ({part.dot for part in side.values()} for side in (parts, others))
    kept = {node: part for node, part in parts.items() if part.dot in came or part.cut > there(node)}
    kept |= {node: part for node, part in others.items() if part.dot in ours or part.cut > here(node)}
    stats["siblings"] += len(kept) > 1
    return newest(kept) if kept else value, kept


def newest(parts):
    return max(parts.values(), key=lambda part: part.stamp).tells


def made(parts):
    """What the function of the application makes of siblings."""
    return frozenset().union(*(part.tells for part in parts.values()))


def fresh(parts, seen: Seen):
    """Whether there is something in a column that a side has not seen."""
    return any(part.cut > seen(node) for node, part in parts.items())


JOINS = {COUNTER: join_counter, SET: join_set, SIBLINGS: join_siblings}


class Site(columns.Site):
    fails = 0.4                                       # how often a function of the application does

    def __post_init__(self):
        super().__post_init__()
        self.held, self.came = {}, {}                 # origin -> batch; in a knot, key -> what it has seen beyond the frontier
        self.shown, self.tries = {}, 0                # key -> the siblings of which the row shows what the function makes

    # ---- what the application does

    def insert(self, key, write, now, truth):
        super().insert(key, write, now, truth)
        row = self.rows[key]
        values = {COUNTER: write, SET: frozenset([(write, 0)]), SIBLINGS: frozenset([write])}
        self.rows[key] = Merged(row.life, None, values, {}, row.past, write)
        truth.set_out(key, write)

    def update(self, key, changed, write, now, truth):
        row, rnd = self.rows[key], random.Random(write)
        stamp, dot = self._stamp(now, row).stamp, (self.me, self.cuts + 1)
        values, entries = dict(row.values), dict(row.entries)
        for name in changed:
            parts = dict(entries.get(name, Column()).parts)
            mine = parts.get(self.me)
            if name == COUNTER:
                amounts = [rnd.randint(-9, 9) for _ in range(rnd.choice([1, 1, 2]))]     # statements of one transaction
                values[name] += sum(amounts)
                since, total = mine.tells if mine else (self.cuts, 0)
                parts[self.me] = Part(stamp, *dot, (since, total + sum(amounts[:1] if BROKEN == "once" else amounts)))
                truth.added(key, row.true_life, sum(amounts))
            elif name == SET:
                parts[self.me] = Part(stamp, *dot, dict(mine.tells) if mine else {})
                values[name] = self._change(key, row, parts, rnd, write, truth)
            else:
                truth.wrote(key, row.true_life, write, made(parts) if parts else values[name])
                if BROKEN != "replaced":
                    parts = {}
                parts[self.me] = Part(stamp, *dot, frozenset([write]))
                values[name] = frozenset([write])
            entries[name] = Column(parts)
        self.rows[key] = replace(row, values=values, entries=entries)

    def _change(self, key, row, parts, rnd, write, truth):
        """Add an element, maybe one that others add as well, or remove one."""
        value = row.values[SET]
        if value and rnd.random() < 0.5:
            gone = rnd.choice(sorted(value))
            for node, part in parts.items():
                parts[node] = replace(part, tells={e: cut for e, cut in part.tells.items() if e != gone})
            truth.removed(key, row.true_life, gone, self.me, self.frontier)
            return value - {gone}
        element = (row.true_life, rnd.randint(0, 3))
        if element not in value:
            known = parts[self.me].tells
            if not (BROKEN == "revived" and element in known):
                parts[self.me] = replace(parts[self.me], tells=known | {element: self.cuts + (BROKEN != "revived")})
            truth.put(key, row.true_life, element, write, self.me, self.cuts + 1)
        return value | {element}

    def delete(self, key, write, now, truth):
        row = self.rows[key]
        end = self._stamp(now, row)
        self.rows[key] = replace(row, end=end, values={}, entries={})
        truth.ended(key, row.true_life)

    # ---- what is shown of siblings

    def siblings(self, key):
        row = self.rows.get(key)
        parts = row.entries.get(SIBLINGS, Column()).parts if row and not row.end else {}
        return parts if len(parts) > 1 else {}

    def show(self, key, stats, may_fail=True):
        """Unless the function fails, here and now."""
        parts, row = self.siblings(key), self.rows.get(key)
        dots = frozenset(part.dot for part in parts.values())
        if not parts or self.shown.get(key) == dots:
            return
        self.tries += 1
        if may_fail and random.Random(f"{self.me} {key} {self.tries}").random() < self.fails:
            stats["function failed"] += 1
            return
        if BROKEN == "written":
            stamp = self._stamp(0, row).stamp
            parts = {self.me: Part(stamp, self.me, self.cuts + 1, made(parts))}
            self.rows[key] = replace(row, entries=row.entries | {SIBLINGS: Column(parts)}, values=row.values | {SIBLINGS: made(parts)})
            return
        self.shown[key] = dots
        self.rows[key] = replace(row, values=row.values | {SIBLINGS: made(parts)})

    def rest(self, stats):
        for key in list(self.rows):
            self.show(key, stats, may_fail=False)

    def keeps(self, key, row):
        dots = frozenset(part.dot for part in self.siblings(key).values())
        return bool(dots) and self.shown.get(key) != dots and BROKEN != "dropped"

    # ---- joining

    def seen(self, node):
        return self.cuts + 1 if node == self.me else self.frontier[node]

    def concurrent(self, ours, theirs):
        return False                              # who wrote at once is a matter of `columns`

    def join(self, key, row, context, stats):
        before = self.siblings(key)
        self.join_row(key, row, context, stats)
        if BROKEN == "taken" and not before:
            self.shown[key] = frozenset(part.dot for part in self.siblings(key).values())
        else:
            self.shown.pop(key, None)
        self.show(key, stats)

    def join_row(self, key, row, context, stats):
        mine = self.rows.get(key)
        if mine is None or mine.end or row.end or not self.same_life(mine.life, row.life, context):
            super().join(key, row, context, stats)
            return
        self.hlc = max(self.hlc, row.newest()[0])
        life = max(mine.life, row.life, key=lambda entry: (entry.dot is not None, entry.stamp))
        values, entries = dict(mine.values), dict(mine.entries)

        def here(node):
            return max(self.seen(node), self.came[key][node] if key in self.came and BROKEN != "part" else 0)

        def there(node):
            return self.cuts + 1 if BROKEN == "uncut" and node == self.me else context[node]

        for name in set(mine.entries) | set(row.entries):
            parts, others = (each.entries.get(name, Column()).parts for each in (mine, row))
            if all(part.cut <= here(node) or parts.get(node, part).cut >= part.cut and node in parts for node, part in others.items()):
                continue
            values[name], joined = self.join_column(name, (values[name], parts), (row.values[name], others), here, there, stats)
            entries[name] = Column(joined)
        self.rows[key] = replace(mine, life=life, values=values, entries=entries)

    def join_column(self, name, mine, theirs, here: Seen, there: Seen, stats):
        if fresh(mine[1], there):
            stats["at once"] += 1
            return JOINS[name](mine, theirs, here, there, stats)
        stats["theirs"] += 1
        (_, parts), (value, others) = mine, theirs
        joined = dict(others)
        for node, part in parts.items():        # nothing that the other side has dropped is dropped here but with all the rest
            if name != SIBLINGS and node not in joined:
                joined[node] = part if name == COUNTER else replace(part, tells={e: c for e, c in part.tells.items() if e in value})
        return value, joined

    # ---- knots

    def wait(self, origin, batch, stats):
        self.held[origin] = batch
        self.held = {o: held for o, held in self.held.items() if min(held.contexts) == self.frontier[o] + 1}
        knot = dict(self.held)
        while knot and (early := [o for o, held in knot.items() if any(
                self.frontier[p] < cut and not (p in knot and knot[p].number >= cut) for p, cut in enumerate(held.context) if p not in (o, self.me))]):
            for o in early:
                del knot[o]
        if not knot:
            return
        stats["tied"] += len(knot) > 1
        together = tuple(map(max, zip(*(part.context for part in knot.values()), strict=True)))
        for o, held in knot.items():
            self.contexts.update({(o, cut): context for cut, context in held.contexts.items()})
        for o, part in knot.items():
            state = together if BROKEN == "state" else part.context
            for key, row in part.rows.items():
                self.join(key, row, state, stats)
                self.came[key] = tuple(map(max, self.came.get(key, self.frontier), part.context))
            self.frontier[o], self.known[o] = part.number, part.context
            self.born.update(part.born)
        self.came = {}

    # ---- forgetting

    def compact(self, stats):
        for key in list(self.rows):
            self.show(key, stats)
        super().compact(stats)
        if BROKEN == "one":
            for key, row in self.rows.items():
                entries = {name: Column({node: part for node, part in column.parts.items() if part.cut > self.settled[node]})
                           for name, column in row.entries.items()}
                self.rows[key] = replace(row, entries={name: column for name, column in entries.items() if column.parts})


@dataclass
class Truth(columns.Truth):
    """Of each life what was added to its counter, its elements' adds and who removed them, and its siblings."""
    counts: dict = field(default_factory=dict)
    adds: dict = field(default_factory=dict)      # (key, life) -> {(element, write): dot}
    gone: set = field(default_factory=set)        # (key, life, element, write)
    values: dict = field(default_factory=dict)    # (key, life) -> writes
    read: set = field(default_factory=set)

    def set_out(self, key, life):
        self.counts[key, life] = life
        self.adds[key, life] = {((life, 0), life): None}
        self.values[key, life] = {life}

    def added(self, key, life, amount):
        self.counts[key, life] += amount

    def put(self, key, life, element, write, node, cut):
        self.adds[key, life][element, write] = (node, cut)

    def removed(self, key, life, element, me, frontier):
        for (each, write), dot in self.adds[key, life].items():
            if each == element and (dot is None or dot[0] == me or dot[1] <= frontier[dot[0]]):
                self.gone.add((key, life, each, write))

    def wrote(self, key, life, write, read):
        self.values[key, life].add(write)
        self.read |= {(key, life, each) for each in read}

    def rows(self):
        found = {}
        for key, row in super().rows().items():
            del row
            life = max(self.lives[key], key=lambda each: self.lives[key][each])
            found[key] = {
                COUNTER: self.counts[key, life],
                SET: frozenset(e for e, write in self.adds[key, life] if (key, life, e, write) not in self.gone),
                SIBLINGS: frozenset(w for w in self.values[key, life] if (key, life, w) not in self.read),
            }
        return found


def run(seed, stats, steps=300, coalesced=False):
    broken, columns.BROKEN = columns.BROKEN, "stable" if BROKEN == "stable" else None
    try:
        columns.run(seed, stats, steps, coalesced, kind=Site, oracle=Truth)
    finally:
        columns.BROKEN = broken


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
