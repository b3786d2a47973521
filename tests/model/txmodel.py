"""Transactions over the replication model: open transactions, capture log, snapshot S2, fold, apply between.

Local writes happen in transactions that stay open, roll back to savepoints, and commit later. Capture
keeps (op, clock) per statement; a transaction's stamp is its last clock. A cut is two steps, the snapshot
S2 and the fold; application commits, apply and compaction run in between. Checked per run:
  convergence    the same rows everywhere, once all is delivered
  no lost write  every committed write that no other write had seen is the final one or in a conflict
  no false alarm a conflict is recorded only between truly concurrent writes
Pulls may be coalesced: one batch for a range of cuts, read under the snapshot of the last one;
batches that wait for each other are applied together. A relay hands on what it holds of the batches of
others, read under the snapshot of its own last cut: all of it, and its own, is applied at once, maybe late.
Run:               python -m tests.model.txmodel [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: --break RULE[,RULE]: each of BREAKS must fail, given enough runs (trace needs thousands;
settle, horizon and between are in txmodel_directed.py); --page: the eight rules that an earlier draft lacked.
"""

import random
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import permutations

BREAKS = {
    "settle":  "a live row under a newer tombstone is only left unshipped",
    "horizon": "a tombstone is collected while transactions that ran when it was applied are open or unfolded",
    "trace":   "apply lets an unfolded local write win and leaves no version entry",
    "order":   "implicit if the first entry is an insert, whatever follows",
    "ahead":   "implicit, and compacted, although the key is above the stamp",
    "odd":     "a key without a time is implicit at its insert, whatever was collected here",
    "relay":   "a relay reads what it holds now, without the unfolded log, not what it held at its cut",
    "fold":    "the fold writes over a version that apply wrote after S2",
    "between": "only version rows the fold writes are guarded against apply after S2, implicit rows are not",
    "mark":    "the collected mark is not asked",
    "uncut":   "compaction does not ask the log",
    "lock":    "apply does not wait for the row locks of open transactions",
    "stable":  "applied here counts as stable",
    "onedot":  "the rows of a coalesced batch all get the dot and the context of its last cut",
    "named":   "a resend takes every logged key without an entry for an implicit row of this site",
    "unseen":  "an implicit row is in everybody's past, even an insert of this site that the writer lacks",
    "relayed": "a relay takes what it holds for any implicit insert of the key that it has met, since the stamps are equal",
    "again":   "what came by one way is merged once more when it comes by the other",
    "whole":   "a relayed range is applied by the context of its origin, not by what its relay had applied",
    "outdone": "an implicit insert that has lost, in a conflict, counts as what the row is",
}
PAGE = {"settle", "horizon", "trace", "order", "ahead", "odd", "relay", "between"}
BROKEN = set()  # of BREAKS
UNCUT = 10 ** 9


@dataclass(frozen=True)
class Version:
    stamp: tuple            # (clock, node); implicit: (time in the key, -1)
    dot: tuple | None       # None: implicit
    deleted: bool
    value: int | None       # the id of the write
    top: int                # ground truth: the write
    history: frozenset      # ground truth: what it had seen, itself included


@dataclass
class Statement:
    key: tuple
    value: int | None       # None: delete
    entries: list           # [(op, clock)], in the order in which the triggers fired
    write: int
    history: frozenset
    fresh: bool             # no committed row was there: nothing that apply could find locked


@dataclass
class Batch:
    number: int
    rows: dict
    context: tuple
    dots: dict = None       # coalesced: key -> the cut that first saw its version
    contexts: dict = None   # coalesced: cut -> context, for every cut in the range

    def cut_of(self, key):
        """The cut and the context under which a row travels."""
        if self.dots is None or "onedot" in BROKEN:
            return self.number, self.context
        return self.dots[key], self.contexts[self.dots[key]]

    @property
    def first(self):
        return min(self.contexts or {self.number: None})


@dataclass
class Site:
    me: int
    n: int
    skew: int
    rows: dict = field(default_factory=dict)
    meta: dict = field(default_factory=dict)      # version table: key -> (stamp, dot, deleted)
    log: list = field(default_factory=list)       # committed, unfolded: (xid, stamp, {key: [(op, clock)]})
    open: dict = field(default_factory=dict)      # xid -> [Statement]
    cutting: tuple = None                         # the snapshot S2 of a cut whose fold has not committed
    settle: set = field(default_factory=set)      # rows found alive under a newer tombstone
    beside: dict = field(default_factory=dict)    # key -> transactions that ran when its tombstone was applied
    out: list = field(default_factory=list)
    folded: dict = field(default_factory=dict)    # key -> the last cut that shipped it as an implicit row
    births: dict = field(default_factory=dict)    # key -> {node: its cut that found it implicit}, if that row is what is held
    under: tuple = ({}, {}, {}, {}, {}, ())       # rows, versions, past, beside, births, frontier under the last cut, folded
    frontier: list = None
    known: list = None
    contexts: dict = field(default_factory=dict)
    held: dict = field(default_factory=dict)      # origin -> a batch that waits for those of others
    mark: tuple = (-1, -2)
    hlc: int = 0
    seen: dict = field(default_factory=dict)      # ground truth
    past: dict = field(default_factory=dict)      # ground truth: key -> (write, history) of the version held

    def __post_init__(self):
        self.frontier = [0] * self.n
        self.known = [tuple([0] * self.n) for _ in range(self.n)]

    # ---- the application
    def clock(self, now):
        self.hlc = max(now + self.skew, self.hlc + 1)         # it looks at no key and at no version
        return self.hlc

    def holder(self, key):
        return next((x for x, ss in self.open.items() if any(s.key == key for s in ss)), None)

    def visible(self, xid, key):
        mine = [s.value for s in self.open[xid] if s.key == key]
        return mine[-1] if mine else self.rows.get(key)

    def execute(self, xid, key, ops, write, now):
        """One statement on one key; nothing if it would wait for another transaction or break the key."""
        if self.holder(key) not in (None, xid) or (ops[0] == "insert") != (self.visible(xid, key) is None):
            return
        before = [s for s in self.open[xid] if s.key == key]
        history = (before[-1].history if before else self.seen.get(key, frozenset())) | {write}
        fired = reversed(ops) if len(ops) > 1 else ops        # nested: the inner statement's trigger fires first
        self.open[xid].append(Statement(key, None if ops[-1] == "delete" else write, [(op, self.clock(now)) for op in fired],
                                        write, history, key not in self.rows))

    def commit(self, xid):
        done = self.open.pop(xid)
        entries = {}
        for s in done:
            self.rows.pop(s.key, None) if s.value is None else self.rows.__setitem__(s.key, s.value)
            self.past[s.key] = s.write, s.history
            self.seen[s.key] = self.seen.get(s.key, frozenset()) | s.history
            entries.setdefault(s.key, []).extend(s.entries)
        if done:
            self.log.append((xid, (max(c for es in entries.values() for _, c in es), self.me), entries))
        return done

    # ---- versions
    def logged(self, key, log=None):
        return max((stamp for _, stamp, keys in (self.log if log is None else log) if key in keys), default=None)

    def stamp_of(self, key):
        """A logged write is not compared with the implicit stamp: if the key is ahead of it, the fold stamps it all the same."""
        known = [stamp for stamp in (self.meta.get(key, (None,))[0], self.logged(key)) if stamp]
        return max(known, default=(key[0], -1) if key in self.rows else None)

    def version(self, key):
        stamp, dot, deleted = self.meta.get(key, ((key[0], -1), None, False))
        if deleted and key in self.rows:                      # a row that is still to settle: the version is the tombstone
            return Version(stamp, dot, True, None, *self.beside[key][1:])
        return Version(stamp, dot, deleted, self.rows.get(key), *self.past[key])

    # ---- cut: S2, then the fold
    def cut_begin(self):
        if self.cutting is None:
            self.cutting = (dict(self.rows), dict(self.meta), list(self.log), list(self.frontier), self.mark, dict(self.past),
                            dict(self.beside), {key: dict(cuts) for key, cuts in self.births.items()})

    def cut_end(self, stats, conflicts):
        if self.cutting is None:
            return
        rows, meta, log, frontier, mark, past, besides, births = self.cutting
        self.cutting = None
        number = frontier[self.me] + 1
        batch, writes = {}, {}
        for key in {k: 1 for _, _, keys in log for k in keys}:
            stamp, here = self.logged(key, log), meta.get(key)
            ops = [op for op, _ in sorted((e for _, _, keys in log for e in keys.get(key, [])), key=lambda e: e[1])]
            born = ops[0] == "insert" and ("order" in BROKEN or "delete" not in ops)
            beside, tomb, _ = self.beside.get(key, (set(), 0, None))
            if here and here[2] and any(x in beside and key in keys for x, _, keys in log):
                conflicts |= {tomb, past[key][0]}             # an insert that could not see this tombstone, nor it the insert
            if here and here[0] > stamp:                      # a remote version has replaced it
                if here[2] and key in rows:
                    self.settle.add(key)
                continue
            # Above the mark, that is before anything was collected, a key without a time would be safe as well: as zero it
            # is like one with the time 1 that all sites make. It is left out since a UUIDv4 as it is says nothing beside a mark.
            implicit = (born and key in rows and here is None
                        and ((key[0], -1) < stamp or "ahead" in BROKEN)
                        and (((key[0], -1) > mark or "mark" in BROKEN) and key[0] > 0 or key[0] == 0 and "odd" in BROKEN))
            if not implicit:
                writes[key] = stamp, (self.me, number), key not in rows
            s, d, gone = writes.get(key, ((key[0], -1), None, False))
            batch[key] = Version(s, d, gone, rows.get(key), *past[key])
        if any(self.meta.get(k) != meta.get(k) for k in (() if "fold" in BROKEN else writes if "between" in BROKEN else batch)):
            stats["folds repeated"] += 1                      # 40001: the whole cut again
            return
        self.folded |= {k: number for k, v in batch.items() if v.dot is None or "named" in BROKEN}
        for key in (k for k, v in batch.items() if v.dot is None):
            self.births.setdefault(key, {})[self.me] = number
        self.meta.update(writes)
        del self.log[:len(log)]
        self.frontier[self.me] = frontier[self.me] = number
        self.under = rows, {**meta, **writes}, past, besides, births, tuple(frontier)
        self.out.append(Batch(number, batch, tuple(frontier)))
        self.contexts[self.me, number] = self.known[self.me] = tuple(frontier)

    def coalesced(self, after):
        """One batch for the cuts (after, last], in the state of the last one: each row with its own dot."""
        rows, meta, past = self.under[:3]
        number, dots, batch = self.frontier[self.me], {}, {}
        for key in sorted(self.folded.keys() | meta.keys()):
            stamp, dot, deleted = meta.get(key, ((key[0], -1), None, False))
            cut = dot[1] if dot else self.folded[key]
            if (dot is None or dot[0] == self.me) and after < cut <= number and deleted == (key not in rows):
                dots[key] = cut
                batch[key] = Version(stamp, dot, deleted, rows.get(key), *past[key])
        return Batch(number, batch, self.contexts[self.me, number], dots,
                     {c: self.contexts[self.me, c] for c in range(after + 1, number + 1)})

    def relayed(self, origins, after):
        """What this site held at its last cut of the batches of others: per origin one range, each row with its own dot."""
        rows, meta, past, besides, births, frontier = self.under
        if "relay" in BROKEN:
            rows, meta, past, besides, births = self.rows, self.meta, self.past, self.beside, self.births
        parts = {}
        for origin in (o for o in origins if frontier and frontier[o] > after[o]):
            dots, batch = {}, {}
            for key, (stamp, (node, cut), deleted) in meta.items():
                if node == origin and after[origin] < cut <= frontier[origin] and (deleted or key in rows):
                    top = besides[key][1:] if deleted and key in rows else past[key]
                    dots[key], batch[key] = cut, Version(stamp, (node, cut), deleted, None if deleted else rows[key], *top)
            for key, cuts in births.items():
                if key in rows and key not in meta and after[origin] < cuts.get(origin, 0) <= frontier[origin]:
                    dots[key], batch[key] = cuts[origin], Version((key[0], -1), None, False, rows[key], *past[key])
            contexts = {c: self.contexts[origin, c] for c in range(after[origin] + 1, frontier[origin] + 1)}
            parts[origin] = Batch(frontier[origin], batch, contexts[frontier[origin]], dots, contexts)
        return parts

    def cut(self, stats, conflicts):
        self.cut_end(stats, conflicts)
        self.cut_begin()
        self.cut_end(stats, conflicts)

    def settling(self, write, now, truth):
        """Under the row's lock: it lives, its version says deleted, nobody has written it since: a write of this site."""
        for key in sorted(self.settle):
            if self.holder(key) is None:
                self.settle.discard(key)
                if key in self.rows and self.meta.get(key, (0, 0, False))[2] and self.logged(key) is None:
                    self.open[-1] = []
                    self.execute(-1, key, ["update"], write, now)
                    truth.extend(self.commit(-1))
                    return

    # ---- apply
    def ready(self, origin, context):
        return all(self.frontier[o] >= context[o] for o in range(self.n) if o not in (origin, self.me))

    def knot(self, origin, batch):
        """Batches of several cuts may wait for each other: the ones to apply together with this one, if they are here."""
        self.held[origin] = batch
        held = {o: b for o, b in self.held.items() if b.first == self.frontier[o] + 1}
        knot = [origin]
        for o in knot:
            for p in range(self.n):
                if p not in (o, self.me) and held[o].context[p] > self.frontier[p]:
                    if p not in held or held[p].number < held[o].context[p]:
                        return {}
                    if p not in knot:
                        knot.append(p)
        return {o: held[o] for o in knot}

    def refused(self, batch):
        """A row lock or an uncommitted unique entry in the way: roll back, try later."""
        for key, v in batch.rows.items():
            for ss in self.open.values():
                if any(s.key == key and not (s.fresh and v.deleted) for s in ss):
                    return "lock" not in BROKEN               # a tombstone finds no row of an open insert
        return False

    def concurrent(self, key, origin, number, context):
        stamp, _, gone = self.meta.get(key, ((-1, -2), None, False))
        if self.logged(key) is not None and (self.logged(key) >= stamp or gone and key in self.rows):
            return True                                       # not cut yet: nobody has seen it; the tombstone is not what it is
        if key not in self.meta:
            return "unseen" not in BROKEN and any(cut > context[node] for node, cut in self.births.get(key, {}).items())
        dot = self.meta[key][1]
        if dot[1] <= context[dot[0]]:
            return False
        ours = self.contexts.get(dot)
        return not (ours and ours[origin] >= number)

    def merge(self, origin, number, context, key, v, stats, conflicts):
        mine, found = self.stamp_of(key), False
        if mine is not None and v.stamp != mine:
            top, here = self.past[key]
            truly = not (here <= v.history or v.history <= here)
            stats["compared"] += 1
            found = self.concurrent(key, origin, number, context)
            if found:
                stats["conflicts"] += 1
                assert truly, "false alarm"
                conflicts |= {top, v.top}
        self.seen[key] = self.seen.get(key, frozenset()) | v.history
        self.hlc = max(self.hlc, v.stamp[0])
        fresh = self.logged(key) is not None
        twice = v.stamp == mine and v.dot is None and key not in self.meta and not fresh and self.rows.get(key) != v.value
        if twice:
            conflicts |= {self.past[key][0], v.top}
        taken = mine is None or v.stamp > mine or (twice and v.value > self.rows[key])
        if taken:
            if twice or found:
                self.outdone(key)
            self.past[key] = v.top, v.history
            if v.dot is None and not fresh:
                self.meta.pop(key, None)
            else:                                             # over a write not folded yet even an implicit row: the fold must see it
                self.meta[key] = v.stamp, v.dot or (origin, number), v.deleted
            self.rows.pop(key, None) if v.deleted else self.rows.__setitem__(key, v.value)
            if v.deleted:
                self.beside[key] = set(self.open), v.top, v.history
        elif self.logged(key) is not None and mine == self.logged(key) and "trace" not in BROKEN:
            self.meta[key] = mine, (self.me, UNCUT), key not in self.rows
        if v.dot is None and (taken or not (twice or found) or "relayed" in BROKEN):
            self.births.setdefault(key, {})[origin] = number

    def outdone(self, key):
        """What an implicit insert has lost against had not seen it: whatever the row becomes, it is not that insert."""
        births = self.births.get(key, {})
        for node in [n for n in births if ("outdone" if n == self.me else "relayed") not in BROKEN]:
            del births[node]
            if node == self.me:
                del self.folded[key]

    def apply(self, origin, batch, stats, conflicts):
        if self.refused(batch):
            stats["refused"] += 1
            return False
        for key, v in batch.rows.items():
            if batch.cut_of(key)[0] <= self.frontier[origin] and "again" not in BROKEN:
                continue
            if "onedot" in BROKEN and v.dot is not None:
                v = replace(v, dot=(origin, batch.number))
            self.merge(origin, *batch.cut_of(key), key, v, stats, conflicts)
        self.frontier[origin] = batch.number
        self.known[origin] = batch.context
        for number, context in (batch.contexts or {batch.number: batch.context}).items():
            self.contexts[origin, number] = context
        return True

    def take(self, via, own, parts, frontier, stats, conflicts):
        """Of a relay, its own range and those of others, under its snapshot with that frontier: all of it, or nothing."""
        if own.first != self.frontier[via] + 1:
            return False                                      # a later cut of it is here, and with that all it had then
        parts = {o: part for o, part in parts.items() if part.number > self.frontier[o]} | {via: own}   # others may be ahead
        need = {o: part.context for o, part in parts.items() if o != via} if "whole" in BROKEN else {via: frontier}
        for o in (o for o in need for p in range(self.n)
                  if p not in (o, self.me) and need[o][p] > max(self.frontier[p], parts[p].number if p in parts else 0)):
            return False
        if any(self.refused(part) for part in parts.values()):
            return False
        for o, part in parts.items():
            self.apply(o, part, stats, conflicts)
        return True

    def compact(self, stats):
        self.known[self.me] = tuple(self.frontier)
        for key, (stamp, (origin, number), deleted) in list(self.meta.items()):
            if (self.logged(key) is not None and "uncut" not in BROKEN) or not self.stable(origin, number) or key in self.settle:
                continue
            if not deleted and stamp < (key[0], -1) and "ahead" not in BROKEN:
                continue                                      # implicit would be larger than what comes next
            if deleted:
                live = set(self.open) | {x for x, _, _ in self.log}
                if "horizon" not in BROKEN and self.beside.get(key, (set(), 0, None))[0] & live:
                    continue
                self.mark = max(self.mark, stamp)
            del self.meta[key]
            stats["tombstones collected" if deleted else "versions compacted"] += 1
        for dot in [d for d in self.contexts if self.everywhere(*d)]:
            del self.contexts[dot]
        for cuts in self.births.values():
            for node in [node for node, cut in cuts.items() if self.everywhere(node, cut)]:
                del cuts[node]

    def stable(self, origin, number):
        return self.frontier[origin] >= number if "stable" in BROKEN else self.everywhere(origin, number)

    def everywhere(self, origin, number):
        return all(self.known[p][origin] >= number for p in range(self.n))


def deliver(sites, stats, conflicts):
    moved = True
    while moved:
        moved = False
        for site, peer in permutations(sites, 2):
            for batch in peer.out:
                if batch.number == site.frontier[peer.me] + 1 and site.ready(peer.me, batch.context):
                    moved |= site.apply(peer.me, batch, stats, conflicts)


def seen(site, sites, conflicts, truth):
    """What the frontier covers was met here: as it is, in what has replaced it, or in what lost a conflict somewhere."""
    lost = frozenset().union(*(s.history for s in truth if s.write in conflicts))
    return all(v.top in site.seen.get(key, ()) or v.top in lost
               for peer in sites for batch in peer.out[: site.frontier[peer.me]] for key, v in batch.rows.items())


def run(seed, stats, steps=400, coalesced=False):
    rnd = random.Random(seed)
    n = rnd.choice([2, 3, 4])
    sites = [Site(i, n, rnd.randint(-5, 5)) for i in range(n)]
    now, writes, truth, conflicts, mail = 0, 0, [], set(), []
    ends = rnd.choice([0.1, 0.3, 0.6, 1.0])                   # how soon transactions end
    hot = rnd.choice([0.05, 0.30])                            # how many writes go to a few keys that every site makes
    for _ in range(steps):
        now += rnd.randint(0, 2)
        site, dice = rnd.choice(sites), rnd.random()
        writes += 1
        if dice < 0.42:
            xid = rnd.choice(sorted(site.open)) if site.open and (len(site.open) > 2 or rnd.random() < 0.5) else writes
            site.open.setdefault(xid, [])
            kind = rnd.random()
            alive, gone = sorted(site.rows), sorted(k for k in site.seen if k not in site.rows)
            if rnd.random() < hot:
                key = (0, -rnd.randint(1, 3))
                site.execute(xid, key, ["insert"] if key not in site.rows else rnd.choice([["delete"], ["update"]]), writes, now)
            elif kind < 0.25:
                site.execute(xid, (max(1, now + site.skew + rnd.choice([0, 0, 0, 2, 6])), writes), ["insert"], writes, now)
            elif kind < 0.35:
                name = rnd.randint(1, 5)                      # from 4 on a key with a time, made by every site
                site.execute(xid, (0, -name) if name < 4 else (now - now % 40 + 1, -name), ["insert"], writes, now)
            elif kind < 0.45 and gone:
                site.execute(xid, rnd.choice(gone), ["insert"], writes, now)
            elif kind < 0.85 and alive:
                site.execute(xid, rnd.choice(alive), ["update"], writes, now)
            elif kind < 0.95 and alive:
                site.execute(xid, rnd.choice(alive), ["delete"], writes, now)
            elif alive:
                site.execute(xid, rnd.choice(alive), ["delete", "insert"], writes, now)
            if rnd.random() < ends * 0.7:
                truth += site.commit(xid)
        elif dice < 0.50 and site.open:
            xid = rnd.choice(sorted(site.open))
            what = rnd.random()
            if what < 0.7:
                truth += site.commit(xid)
            elif what < 0.85:
                del site.open[xid]                            # rolled back
            else:
                del site.open[xid][rnd.randint(0, len(site.open[xid])):]   # to a savepoint
        elif dice < 0.58:
            site.cut_begin()
        elif dice < 0.68:
            site.cut_end(stats, conflicts)
        elif dice < 0.88:
            peer = rnd.choice([s for s in sites if s is not site])
            batch = next((b for b in peer.out if b.number > site.frontier[peer.me]), None)
            if coalesced and batch and rnd.random() < 0.7:
                batch = peer.coalesced(site.frontier[peer.me])
                stats["coalesced"] += len(batch.contexts) > 1
            if batch and site.ready(peer.me, batch.context):
                site.apply(peer.me, batch, stats, conflicts)
            elif coalesced and batch:
                knot = site.knot(peer.me, batch)
                if not any(site.refused(part) for part in knot.values()):
                    stats["knots"] += bool(knot)
                    for origin, part in knot.items():
                        site.apply(origin, part, stats, conflicts)
        elif dice < 0.93 and n > 2:
            via, *others = rnd.sample([s for s in sites if s is not site], n - 1)
            origins = [o.me for o in others[: rnd.randint(1, n)]]
            if mail and rnd.random() < 0.4:
                to, *letter = mail.pop(rnd.randrange(len(mail)))
                if to.take(*letter, stats, conflicts):
                    stats["relayed"] += 1
                    assert seen(to, sites, conflicts, truth), "relayed before its causes"
            elif via.under[5] and via.under[5][via.me] > site.frontier[via.me]:
                letter = site, via.me, via.coalesced(site.frontier[via.me]), via.relayed(origins, site.frontier), via.under[5]
                if rnd.random() < 0.3:
                    mail.append(letter)
                elif site.take(*letter[1:], stats, conflicts):
                    stats["relayed"] += 1
                    assert seen(site, sites, conflicts, truth), "relayed before its causes"
        elif dice < 0.96 and "settle" not in BROKEN:
            site.settling(writes, now, truth)
        else:
            site.compact(stats)
    for site in sites:
        for xid in sorted(site.open):
            truth += site.commit(xid)
    for turn in range(6):                                     # settling makes new writes: until all is quiet
        for site in sites:
            site.cut(stats, conflicts)
        deliver(sites, stats, conflicts)
        for site in sites:
            while site.settle and "settle" not in BROKEN:
                writes += 1
                site.settling(writes, now, truth)
    for site in sites[1:]:
        assert site.rows == sites[0].rows, "diverged"
    assert all(s.frontier == sites[0].frontier for s in sites), "stuck"
    covered = {}
    for s in truth:
        covered.setdefault(s.key, []).append(s)
    for key, ss in covered.items():
        heads = [s for s in ss if not any(s.write in o.history and o is not s for o in ss)]
        final = sites[0].rows.get(key)
        won = [s for s in heads if s.value == final]
        assert won, "the final state is nobody's newest write"
        if final is None and len(won) == len(heads):
            continue                                          # all of them deleted
        assert all(s in won or s.write in conflicts for s in heads), "write lost, no conflict"


if __name__ == "__main__":
    if "--break" in sys.argv:
        BROKEN = set(sys.argv[sys.argv.index("--break") + 1].split(","))
    if "--page" in sys.argv:
        BROKEN = BROKEN | PAGE
    numbers = [int(a) for a in sys.argv[1:3] if a.isdigit()]
    runs, first = (numbers + [2000, 0][len(numbers) :])[:2]
    stats, failed, example = Counter(), Counter(), {}
    for seed in range(first, first + runs):
        try:
            run(seed, stats, coalesced="--coalesced" in sys.argv or bool(BROKEN & {"onedot", "named"}))
        except AssertionError as e:
            failed[str(e)] += 1
            example.setdefault(str(e), seed)
    print(f"{runs} runs, broken: {sorted(BROKEN) or 'nothing'};", dict(failed) or "all hold", example, dict(stats))
    sys.exit(bool(failed))
