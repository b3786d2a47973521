"""Executable model of the replication protocol.

Random schedules over N sites: inserts, updates, deletes, re-inserts, cuts, pulls, coalesced pulls (one
batch for a range of cuts, in the state of the last one), relays, compaction of row versions, collection of tombstones, keys inserted again after that, rows that
vanish behind the protocol's back, and repairs whose messages arrive late. Every run checks:

  convergence     when every batch is delivered and a last repair has run, all sites hold the same rows
  no resurrection a row whose newest write is a delete is on no site
  no write lost   what a site wrote after it was set back, or had shipped to nobody, is as good as any other write
  no false alarm  a conflict is recorded only between writes that are truly concurrent

Ground truth is a full causal history per row, which the protocol itself never stores.
With --returning a site is set back to an old copy in every run, goes on being written, and comes back under a new
number: it catches up from one donor, piece by piece, while the others go on. With --lapsed one is away for so long that
the others keep nothing for it any more; it goes on being written, and comes back in the same way. With --harmed rows are changed behind
the protocol's back, too, at one of at least three sites each, and sites that stand alike vote.

Run:               python -m tests.model.model [RUNS] [FIRST_SEED] [--coalesced] [--returning] [--lapsed] [--harmed]
Negative controls: ... --break stamp|causal|stable|filter|mark|relog|bare|flight|knot|entry|vote|onedot|early|kept|exempt|behind|forgotten   (each must fail)
"""

import random
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import permutations
from operator import lt

from tests.model import asked, play

BREAKS = {
    "stamp": "a cut ships whatever the row is now, not only what was written here",
    "causal": "batches are applied in any order",
    "stable": "applied here counts as stable",
    "filter": "a listing older than what was collected here is taken",
    "mark": "the collected mark is not asked",
    "relog": "a lost row that came back is not sent again to who asked while it was lost",
    "bare": "the entry of a lost row is compacted",
    "flight": "a listing is taken while some of it is on its way",
    "knot": "what a relay holds of another origin goes without what the relay itself has cut",
    "entry": "an entry that is settled here, and kept there, makes the row there the newer one",
    "vote": "sites vote on a row although not all of them stand where the one that asks stands",
    "onedot": "the rows of a coalesced batch all get the dot and the context of its last cut",
    "early": "a site that catches up has the donor's frontier before the last piece, and applies what follows",
    "kept": "a row that the donor has not is kept by a site that catches up",
    "exempt": "what a site that catches up has written and nobody has is taken for old, too",
    "behind": "a donor that lacks what the copy has seen will do",
    "forgotten": "what a site that lapsed has written beats what the others have changed since, and forgotten the stamp of",
}
RETURNS = {"knot", "early", "kept", "exempt", "behind"}
LAPSES = {"forgotten"}
HARMS = {"entry", "vote"}
BROKEN = None  # one of BREAKS


@dataclass(frozen=True)
class Version:
    """A row version: stamp orders it, dot (origin, batch) says which cut it left in."""
    stamp: tuple            # (hlc, node); an inserted row's implicit stamp is (time in its key, -1)
    dot: tuple | None       # None: implicit, the row was inserted and never touched since
    deleted: bool
    value: int | None
    history: frozenset      # ground truth only


@dataclass
class Batch:
    number: int
    rows: dict              # key -> Version
    context: tuple          # what the origin had applied, per origin, when it cut this batch
    dots: dict = None       # coalesced: key -> the cut that first saw its version
    contexts: dict = None   # coalesced: cut -> context, for every cut in the range

    def cut_of(self, key):
        """The cut and the context under which a row travels."""
        if self.dots is None or BROKEN == "onedot":
            return self.number, self.context
        return self.dots[key], self.contexts[self.dots[key]]


@dataclass
class Site:
    me: int
    n: int
    skew: int
    rows: dict = field(default_factory=dict)      # key -> value: the user's table
    meta: dict = field(default_factory=dict)      # key -> (stamp, dot, deleted): the side table
    log: dict = field(default_factory=dict)       # key -> stamp of the last write here since the last cut
    cuts: int = 0
    out: list = field(default_factory=list)
    logged: dict = field(default_factory=dict)    # key -> the last cut that shipped it: the folded log
    under: dict = field(default_factory=dict)     # key -> Version under the snapshot of the last cut
    frontier: list = None                         # batches applied, per origin
    settled: list = None                          # per origin: the last batch that was stable here
    known: list = None                            # per peer: the context of its last applied batch
    contexts: dict = field(default_factory=dict)  # (origin, batch) -> context, kept until stable
    relay: dict = field(default_factory=dict)     # (origin, batch) -> {key: stamp}, kept until stable
    mark: tuple = (0, -2)                         # largest stamp of a tombstone collected here
    hlc: int = 0
    members: list = None                          # of the cluster: one list for all sites
    away: bool = False                            # it was set back: it applies and ships nothing
    reach: tuple = ()                             # catching up: nobody writes before the frontier covers this
    born: dict = field(default_factory=dict)      # key -> the first cut here that saw a row which was inserted here
    changed: dict = field(default_factory=dict)   # key -> the first cut here that saw the row as it is
    seen: dict = field(default_factory=dict)      # ground truth only: writes this site has seen
    past: dict = field(default_factory=dict)      # ground truth only: writes the held version had seen

    def __post_init__(self):
        self.frontier = [0] * self.n
        self.known = [tuple([0] * self.n) for _ in range(self.n)]

    def stamp_of(self, key):
        if key in self.meta:
            return self.meta[key][0]
        return (key[0], -1) if key in self.rows else None

    def lost(self, key):
        """Metadata says the row lives, the table says it does not: nothing to ship, a repair's work."""
        return key in self.meta and not self.meta[key][2] and key not in self.rows

    def write(self, key, value, deleted, now, write_id):
        before = self.stamp_of(key)
        self.hlc = max(now + self.skew, self.hlc + 1, before[0] + 1 if before else 0)
        self.past[key] = self.seen[key] = self.seen.get(key, frozenset()) | {write_id}
        self.meta[key] = ((self.hlc, self.me), (self.me, self.cuts + 1), deleted)
        self.rows.pop(key, None) if deleted else self.rows.__setitem__(key, value)
        self.log[key] = self.stamp_of(key)
        self.changed[key] = self.cuts + 1

    def insert(self, key, value, now, write_id):
        if key in self.meta or ((key[0], -1) <= self.mark and BROKEN != "mark"):
            return self.write(key, value, False, now, write_id)     # a tombstone may still be somewhere
        self.rows[key] = value
        self.past[key] = self.seen[key] = frozenset([write_id])
        self.log[key] = self.stamp_of(key)
        self.born[key] = self.cuts + 1
        self.changed[key] = self.cuts + 1

    def version(self, key):
        stamp, dot, deleted = self.meta.get(key, ((key[0], -1), None, False))
        return Version(stamp, dot, deleted, self.rows.get(key), self.past[key])

    def cut(self):
        self.cuts += 1
        self.frontier[self.me] = self.cuts
        rows = {k: self.version(k) for k, stamp in self.log.items()
                if not self.lost(k) and (self.stamp_of(k) == stamp or (BROKEN == "stamp" and self.stamp_of(k)))}
        self.log.clear()
        self.logged.update({k: self.cuts for k, v in rows.items() if v.dot is None})
        keys = sorted(self.logged.keys() | self.meta.keys() | {k for stamps in self.relay.values() for k in stamps})
        self.under = {k: self.version(k) for k in keys if not self.lost(k) and (k in self.rows or k in self.meta)}
        self.out.append(Batch(self.cuts, rows, tuple(self.frontier)))
        self.contexts[self.me, self.cuts] = self.known[self.me] = tuple(self.frontier)

    def coalesced(self, after):
        """One batch for the cuts (after, cuts], in the state of the last one: each row with its own dot."""
        dots = {k: v.dot[1] if v.dot else self.logged[k] for k, v in self.under.items()
                if (v.dot[0] == self.me if v.dot else k in self.logged)}
        dots = {k: number for k, number in dots.items() if number > after}
        return Batch(self.cuts, {k: self.under[k] for k in dots}, self.contexts[self.me, self.cuts], dots,
                     {c: self.contexts[self.me, c] for c in range(after + 1, self.cuts + 1)})

    def ready(self, origin, context):
        """Causal delivery: everything the origin had seen is here."""
        return BROKEN == "causal" or all(
            self.frontier[o] >= context[o] for o in range(self.n) if o not in (origin, self.me))

    def concurrent(self, key, origin, number, context):
        if key not in self.meta:
            return False                                  # implicit: in everybody's past
        dot = self.meta[key][1]
        if dot[1] <= context[dot[0]]:
            return False                                  # the incoming write had seen ours
        ours = self.contexts.get(dot)                     # None: written here, not cut yet
        return not (ours and ours[origin] >= number)      # ours had seen the incoming one

    def merge(self, origin, number, context, key, v, stats):
        mine = self.stamp_of(key)
        if mine is not None and v.stamp != mine:
            here, there = self.past[key], v.history
            truly = not (here <= there or there <= here)
            found = self.concurrent(key, origin, number, context)
            stats["compared"] += 1
            if found:
                stats["conflicts"] += 1
                assert truly, "false alarm"
            elif truly:
                stats["met elsewhere"] += 1               # recorded where the pair first met
        self.seen[key] = self.seen.get(key, frozenset()) | v.history
        self.hlc = max(self.hlc, v.stamp[0])
        if mine is None or v.stamp > mine:
            self.take(key, v)

    def take(self, key, v):
        self.past[key] = v.history
        self.seen[key] = self.seen.get(key, frozenset()) | v.history
        if v.dot is None:
            self.meta.pop(key, None)
        else:
            self.meta[key] = (v.stamp, v.dot, v.deleted)
        self.rows.pop(key, None) if v.deleted else self.rows.__setitem__(key, v.value)
        self.changed[key] = self.cuts + 1

    def apply(self, origin, batch, stats):
        for key, v in batch.rows.items():
            self.merge(origin, *batch.cut_of(key), key, self.dotted(origin, batch, key, v), stats)
        self.frontier[origin] = batch.number
        self.known[origin] = batch.context
        for number, context in (batch.contexts or {batch.number: batch.context}).items():
            self.contexts[origin, number] = context
            self.relay[origin, number] = {}
        for key, v in batch.rows.items():
            self.relay[origin, batch.cut_of(key)[0]][key] = v.stamp

    def knot(self, origins, frontier):
        """For a peer that cannot reach some origins: what this site held of their batches at the last cut, and its own range up to
        there, which has what replaced some of them here."""
        parts = {}
        for origin in origins:
            upto = self.contexts[self.me, self.cuts][origin] if self.cuts else 0
            numbers = range(frontier[origin] + 1, upto + 1)
            if not numbers or any((origin, number) not in self.relay for number in numbers):
                continue                                  # there is nothing, or some of it is forgotten
            dots = {k: number for number in numbers for k, stamp in self.relay[origin, number].items()
                    if k in self.under and self.under[k].stamp == stamp}
            parts[origin] = Batch(upto, {k: self.under[k] for k in dots}, self.contexts[origin, upto], dots,
                                  {number: self.contexts[origin, number] for number in numbers})
        if parts and self.cuts > frontier[self.me] and BROKEN != "knot":
            parts[self.me] = self.coalesced(frontier[self.me])
        return parts

    def take_knot(self, parts, stats):
        """All of it, or nothing."""
        need = [max(part.context[o] for part in parts.values()) for o in range(self.n)] if parts else []
        if not parts or BROKEN != "causal" and any(self.frontier[o] < c for o, c in enumerate(need) if o != self.me and o not in parts):
            return False
        for origin, part in parts.items():
            self.apply(origin, part, stats)
        return True

    def dotted(self, origin, batch, key, v):
        """The row with the dot it travels under; the same one, unless the batch has one dot for all."""
        return v if v.dot is None else replace(v, dot=(origin, batch.cut_of(key)[0]))

    def compact(self, stats):
        """Drop metadata and tombstones whose write every site is known to have applied."""
        self.known[self.me] = tuple(self.frontier)
        self.settle()
        for key, (stamp, (origin, number), deleted) in list(self.meta.items()):
            if stamp < (key[0], -1):
                continue                                  # without it the row would be as new as its key
            if key not in self.log and self.stable(origin, number) and (not self.lost(key) or BROKEN == "bare"):
                if deleted:
                    self.mark = max(self.mark, self.meta[key][0])
                del self.meta[key]
                stats["tombstones collected" if deleted else "versions compacted"] += 1
        for dot in list(self.relay):
            if self.stable(*dot):
                del self.relay[dot]

    def settle(self):
        """What may have been collected here. It never goes back, also when a member comes that knows nothing yet."""
        now = [min(self.known[p][o] for p in self.members) for o in range(self.n)]
        self.settled = list(map(max, self.settled or now, now))

    def stable(self, origin, number):
        """Every site has said, in its own stream, that it applied this batch."""
        if BROKEN == "stable":
            return self.frontier[origin] >= number
        return all(self.known[p][origin] >= number for p in self.members)

    def listing(self):
        """One side of a repair: what this site holds, read in the snapshot of a cut."""
        self.cut()
        return tuple(self.frontier), {k: self.version(k) for k in sorted(self.rows.keys() | self.meta.keys()) if not self.lost(k)}

    def relog(self, key):
        """A range read while the row was lost had to leave it out, and its reader counts as having it: send it again."""
        self.hlc = max(self.hlc, self.stamp_of(key)[0]) + 1
        self.past[key] = self.seen[key] = self.seen[key] | {(self.hlc, self.me)}    # a write of this site, of the same value
        self.meta[key] = ((self.hlc, self.me), (self.me, self.cuts + 1), False)
        self.log[key] = self.stamp_of(key)

    def repair(self, context, theirs):
        """Take from a peer's listing what this site should hold and does not."""
        if BROKEN != "flight" and any(self.frontier[o] < context[o] for o in range(self.n) if o != self.me):
            return                                        # some of it is in flight, not lost: wait
        self.settle()
        collected = self.settled
        if BROKEN != "filter" and any(c < k for c, k in zip(context, collected)):
            return                                        # older than what was collected here: ask again
        for key, v in theirs.items():
            mine = self.stamp_of(key)
            if not v.deleted and self.rows.get(key) == v.value:
                continue                                  # same row; metadata may be compacted on one side
            if self.lost(key):
                origin, number = self.meta[key][1]
                had = context[origin] >= number and not (v.deleted and v.stamp < mine)
                if had:                                   # they had our lost version, theirs is no older; or they missed it
                    newer = v.dot is not None and v.stamp > mine
                    self.take(key, v)
                    if not newer and BROKEN != "relog":
                        self.relog(key)
            elif mine is None or v.stamp > mine and (BROKEN == "entry" or key in self.meta or v.deleted or collected[v.dot[0]] < v.dot[1]):
                self.take(key, v)                         # (an entry that was compacted here says nothing new)

    def standing(self):
        """Where this site stands, and its rows, between two cuts."""
        return tuple(self.frontier), dict(self.rows)

    def vote(self, peers, stats):
        """Rows that differ although nobody has a newer one: somebody wrote behind the protocol's back. The majority is right."""
        standings = [(peer.standing(), peer.log) for peer in peers]
        if BROKEN != "vote" and any(context != tuple(self.frontier) or log for (context, _), log in standings) or self.log:
            return
        for key, value in sorted(self.rows.items()):
            voices = Counter(rows.get(key) for (_, rows), _ in standings)
            right, count = voices.most_common(1)[0]
            if right not in (None, value) and count * 2 > len(peers) + 1:
                self.rows[key] = right
                stats["outvoted"] += 1


class Newest(dict):
    """Ground truth: of each key the newest version that any site has ever held, as (stamp, deleted)."""

    def __init__(self):
        super().__init__()
        self._all = {}                            # key -> stamp -> (deleted, dot)

    def note(self, site):
        for key, (stamp, dot, deleted) in site.meta.items():
            self.add(key, stamp, dot, deleted)

    def add(self, key, stamp, dot, deleted):
        self._all.setdefault(key, {})[stamp] = deleted, dot
        self[key] = max(self.get(key, (stamp, deleted)), (stamp, deleted))

    def lose(self, key, node, had, kept):
        """What a node wrote after the last of its cuts that others have is gone, but for a version that somebody kept."""
        left = {s: (gone, dot) for s, (gone, dot) in self._all[key].items() if dot[0] != node or dot[1] <= had or s == kept}
        self._all[key] = left
        self[key] = max(((s, gone) for s, (gone, _) in left.items()), default=NOTHING)


NOTHING = ((0, -2), None)


@dataclass
class Return:
    """A site is set back to an old copy, goes on being written, and catches up under a new number, piece by piece."""
    site: Site
    copy: Site
    node: int                                     # its number to come
    former: int = None                            # the old number, once nothing comes of it but by relay
    donor: Site = None
    stated: tuple = None                          # the donor's frontier, before the first piece
    left: list = field(default_factory=list)      # pieces that are not here yet
    own: dict = field(default_factory=dict)       # ground truth only: what nobody else had -> its stamp and value
    horizon: dict = None                          # it lapsed: what each other site knew that it had of theirs
    beaten: set = field(default_factory=set)      # own writes that lost against a stamp nobody knows any more: conflicts

    PIECES = 3

    def set_back(self, sites, newest):
        """What the site had shipped, others have; what it had not is gone, but for what the copy has."""
        site, others = self.site, [s for s in sites if s is not self.site]
        had = max(s.frontier[site.me] for s in others)
        self.former = site.me
        kept = {k: stamp for s in (*others, self.copy) for k, (stamp, _, _) in s.meta.items()}
        for key in newest:
            newest.lose(key, site.me, had, kept.get(key))
        members = site.members
        site.__dict__.update(self.copy.__dict__)
        site.members, site.away, self.logged = members, True, dict(site.log)

    def lapse(self, sites):
        """Nobody counts on the site any more, and it hears of nothing; nothing of it is lost."""
        site, others = self.site, [s for s in sites if s is not self.site]
        self.former = site.me
        self.horizon = {s.me: s.known[site.me][s.me] for s in others}
        site.members.remove(site.me)
        site.away, self.logged = True, {}

    def begin(self, sites):
        """A new number; what nobody has is a write of it, everything else may turn out to be old."""
        site, old = self.site, self.site.me
        others = [s for s in sites if s is not site]
        had = max(s.frontier[old] for s in others)
        fit = [s for s in others if BROKEN == "behind" or (s.frontier[old] == had and all(
            s.frontier[o] >= site.frontier[o] for o in range(site.n) if o != old))]
        if not fit:
            return
        self.donor = donor = fit[0]
        keys = {k for k, stamp in site.log.items() if had <= site.cuts or self.logged.get(k) != stamp}
        keys |= {k for batch in site.out if batch.number > had for k, v in batch.rows.items() if site.stamp_of(k) == v.stamp}
        keys = {k for k in keys if site.stamp_of(k) and not site.lost(k) and (k not in site.meta or site.meta[k][0][1] == old)}
        own = keys if BROKEN != "exempt" else set()
        site.born = {k: cut for k, cut in site.born.items() if cut > had}
        if old in site.members:
            site.members.remove(old)
        site.members.append(self.node)
        site.me, site.cuts, site.out, site.logged = self.node, 0, [], {}
        mine = {k: ((site.meta[k][0][0], self.node), (self.node, 1), site.meta[k][2]) for k in keys & site.meta.keys()}
        site.meta = {k: entry for k, entry in mine.items() if k in own}
        site.log = {k: site.stamp_of(k) for k in own}
        self.own = {k: (mine[k][0] if k in mine else (k[0], -1), site.rows.get(k)) for k in keys}
        site.contexts, site.relay, site.frontier, site.settled = {}, {}, [0] * site.n, None
        site.known = [tuple([0] * site.n) for _ in range(site.n)]
        donor.cut()
        self.stated, self.left = tuple(donor.frontier), list(range(self.PIECES))
        site.reach = tuple([sys.maxsize] * site.n)
        if BROKEN == "early":
            self.stand()

    def piece(self):
        """What the donor holds of some keys, in the snapshot of one more cut. One way: it is right about what is not ours."""
        piece, site, donor = self.left.pop(), self.site, self.donor
        _, listed = donor.listing()
        for key in sorted(k for k in site.rows.keys() | site.meta.keys() | listed.keys() if k[1] % self.PIECES == piece):
            theirs = listed.get(key)
            if self.forgotten(key, theirs) and BROKEN != "forgotten":
                self.beaten.add(key)                      # a conflict, with our row in it
                del site.log[key]
                site.meta.pop(key, None)
                site.rows.pop(key, None)
                if theirs:
                    site.take(key, theirs)
            elif key in site.log:
                if theirs and theirs.stamp > site.stamp_of(key):
                    site.take(key, theirs)
                elif theirs and self.horizon and theirs.dot is None:
                    assert theirs.history <= site.past[key], "overwritten unseen"
            elif theirs:
                site.take(key, theirs)
            elif BROKEN != "kept":
                site.rows.pop(key, None)
                site.meta.pop(key, None)
        site.hlc = max(site.hlc, donor.hlc)
        if not self.left:
            site.reach = tuple(donor.frontier)            # pieces may hold what is sent again until then
        if not self.left and BROKEN != "early":
            self.stand()

    def forgotten(self, key, theirs):
        """A write of a site that lapsed meets what was changed since, by a write whose stamp is compacted, or that it deleted.
        Which is the newer nobody knows; what the others agree on stays. What was born here nobody else can have changed."""
        if self.horizon is None or key not in self.site.log or key in self.site.born:
            return False
        return theirs is None or theirs.dot is None and self.donor.changed.get(key, 0) > self.horizon[self.donor.me]

    def stand(self):
        """In one step with the last piece: the donor's frontier, and what it knows beyond its rows."""
        site, donor = self.site, self.donor
        site.frontier = list(self.stated)
        site.contexts.update(donor.contexts)
        site.known = [site.contexts.get((o, self.stated[o]), tuple([0] * site.n)) for o in range(site.n)]
        site.mark, site.settled, site.away = max(site.mark, donor.mark), donor.settled and list(donor.settled), False

    def step(self, sites):
        """One more, of however many it takes."""
        if self.donor is None:
            self.begin(sites)
        elif self.left:
            self.piece()


def deliver(sites, stats, former):
    """Hand every site every batch it still lacks, in an order that causal delivery accepts; of an origin that is gone as others hold it."""
    moved = True
    while moved:
        moved = False
        sent = [(site, peer.me, batch) for site, peer in permutations(sites, 2) if not peer.away for batch in peer.out]
        for site, origin, batch in sent:
            if not site.away and batch.number == site.frontier[origin] + 1 and site.ready(origin, batch.context):
                site.apply(origin, batch, stats)
                moved = True
        for site, via in permutations(sites, 2):
            if former is not None and not site.away and not via.away and site.frontier[former] < via.frontier[former]:
                moved |= site.take_knot(via.knot([o for o in range(site.n) if o not in (site.me, via.me)], site.frontier), stats)


def pull(site, sites, rnd, stats, coalesced):
    """The next batch of some peer, or all it has in one."""
    peer = rnd.choice([s for s in sites if s is not site])
    batch = next((b for b in peer.out if b.number > site.frontier[peer.me]), None)
    if coalesced and batch and rnd.random() < 0.7:
        batch = peer.coalesced(site.frontier[peer.me])
        stats["coalesced"] += len(batch.contexts) > 1
    if batch and site.ready(peer.me, batch.context):
        site.apply(peer.me, batch, stats)


def relay(site, sites, rnd, stats):
    """What some peer has of another one."""
    origin, via = rnd.sample([s for s in sites if s is not site], 2)
    stats["relayed"] += site.take_knot(via.knot([origin.me], site.frontier), stats)


def come_to_rest(sites, stats, seed, most=12):
    """Cut and deliver until nobody has anything to say, also of what sites write because of what they got; in how many rounds."""
    rounds = 0
    while any(site.log for site in sites) or rounds == 0:
        rounds += 1
        assert rounds < most, f"no end at seed {seed}"
        for site in sites:
            site.cut()
        deliver(sites, stats, None)
    return rounds


def harm(sites, mishap, lost, stats):
    """Another value, written behind the protocol's back, in a row that all sites hold in one version."""
    site = mishap.choice(sites)
    key = mishap.choice(sorted(site.rows)) if site.rows else None
    alike = all(s.rows.get(key) == site.rows.get(key) and s.stamp_of(key) == site.stamp_of(key) and key not in s.log for s in sites)
    if key and alike and key not in lost and site.rows[key] > 0:
        site.rows[key] = -site.rows[key]
        stats["rows harmed"] += 1


def run(seed, stats, steps=400, coalesced=False, returning=False, harmed=False, lapsed=False):
    returning = returning or lapsed
    rnd, mishap = random.Random(seed), random.Random(f"mishap {seed}")
    n = rnd.choice([2, 3, 4])
    n = max(n, 3) if harmed else n
    members = list(range(n))
    sites = [Site(i, n + returning, rnd.randint(-5, 5), members=members) for i in range(n)]
    chance, back, former = random.Random(f"return {seed}"), None, None
    saved, restored = sorted(chance.sample(range(steps), 2)) if returning else (-1, -1)
    now = writes = 0
    mail = []                                             # repair listings on their way
    newest = Newest()
    lost = set()                                          # ground truth: keys of rows that vanished somewhere
    again = set()                                         # ground truth: keys inserted again after a delete
    for number in range(steps):
        now += rnd.randint(0, 2)
        if number == saved:
            old = chance.choice(sites)
            back = Return(old, deepcopy(old), n)
            if lapsed:
                back.lapse(sites)
                former = back.former
                stats["lapsed"] += 1
        elif number == restored and not lapsed:
            back.set_back(sites, newest)
            former = back.former
            stats["set back"] += 1
        elif number > restored >= 0 and chance.random() < 0.1:
            back.step(sites)
        site, dice = rnd.choice(sites), rnd.random()
        writes += 1
        if (site.away and dice >= 0.52) or (dice < 0.56 and any(map(lt, site.frontier, site.reach))):
            continue                                      # set back, it is written, and nothing else, until it returns
        if dice < 0.10:
            site.insert((max(0, now + site.skew), writes), writes, now, writes)
        elif dice < 0.45 and site.rows:
            site.write(rnd.choice(sorted(site.rows)), writes, False, now, writes)
        elif dice < 0.52 and site.rows:
            site.write(rnd.choice(sorted(site.rows)), None, True, now, writes)
        elif dice < 0.56:
            gone = sorted(k for k in newest if k not in site.rows and k in site.seen and newest[k][1]
                          and k not in site.log and k not in lost)
            if gone:
                key = rnd.choice(gone)
                due = (max(now + site.skew, site.hlc + 1), site.me)     # the stamp it must at least have
                site.insert(key, writes, now, writes)
                newest.add(key, max(due, site.stamp_of(key)), (site.me, site.cuts + 1), False)
                again.add(key)
                stats["inserted again"] += 1
        elif dice < 0.70:
            site.cut()
        elif dice < 0.88:
            peer = rnd.choice([s for s in sites if s is not site])
            batch = None if peer.away else next((b for b in peer.out if b.number > site.frontier[peer.me]), None)
            if coalesced and batch and rnd.random() < 0.7:
                batch = peer.coalesced(site.frontier[peer.me])
                stats["coalesced"] += len(batch.contexts) > 1
            if batch and site.ready(peer.me, batch.context):
                site.apply(peer.me, batch, stats)
        elif dice < 0.93 and n > 2:
            origin, via = rnd.sample([s for s in sites if s is not site], 2)
            if not via.away and not origin.away and site.take_knot(via.knot([origin.me], site.frontier), stats):
                stats["relayed"] += 1
        elif dice < 0.95 and any(map(lt, site.frontier, site.reach)):
            continue                                      # what it holds is of later moments than its frontier says
        elif dice < 0.95:
            mail.append((rnd.choice([s for s in sites if s is not site]), site.listing()))
        elif dice < 0.97 and mail:
            peer, letter = mail.pop(rnd.randrange(len(mail)))
            if not peer.away:
                peer.repair(*letter)
                newest.note(peer)                         # what is sent again is a write like any other
                stats["repairs"] += 1
        elif dice < 0.975 and site.rows:
            key = rnd.choice(sorted(site.rows))
            if key not in site.log and key not in again and all(s.rows.get(key, 1) > 0 for s in sites):
                del site.rows[key]                        # lost behind the protocol's back
                lost.add(key)
                stats["rows lost"] += 1
        else:
            site.compact(stats)
        if harmed and mishap.random() < 0.04:
            harm(sites, mishap, lost, stats)
        if harmed and mishap.random() < 0.04:
            site.vote([s for s in sites if s is not site], stats)
        newest.note(site)
        if back and back.site.away:
            newest.note(back.site)
    for site in sites:
        if not site.away:
            site.cut()
    deliver(sites, stats, former)
    while returning and (back.donor is None or back.left):
        back.step(sites)                                  # all donors are fit by now
        newest.note(back.site)
    for site in sites:
        site.cut()
    deliver(sites, stats, former)
    listings = [site.listing() for site in sites]
    deliver(sites, stats, former)
    for a, b in permutations(range(n), 2):
        sites[a].repair(*listings[b])
        newest.note(sites[a])
    for site in sites:
        site.cut()
    deliver(sites, stats, former)
    for site in sites if harmed or returning else ():     # a site that was set back may have known of a loss
        site.vote([s for s in sites if s is not site], stats)
        assert all(value > 0 for value in site.rows.values()), f"harm is left at seed {seed}"
    beaten = back.beaten if returning else ()                   # what lost there is seen, and may have been the newest
    for key, (_, deleted) in newest.items():
        assert key in beaten or not (deleted and any(key in s.rows for s in sites)), f"resurrected at seed {seed}"
    for key in again:
        assert key in beaten or newest[key][1] or newest[key] == NOTHING or all(key in s.rows for s in sites), f"re-insert lost at seed {seed}"
    stats["own writes"] += len(back.own) if returning else 0
    stats["beaten"] += len(beaten)
    for key, (stamp, value) in back.own.items() if returning else ():
        last = key not in lost and (newest[key][0] == stamp if key in newest else True)
        assert not last or key in beaten or sites[0].rows.get(key) == value, f"own write lost at seed {seed}"
    for site in sites[1:]:
        assert site.rows == sites[0].rows, f"diverged at seed {seed}"
    assert all(s.frontier == sites[0].frontier for s in sites), f"stuck at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv or BROKEN == "onedot", returning="--returning" in sys.argv or BROKEN in RETURNS,
         harmed="--harmed" in sys.argv or BROKEN in HARMS, lapsed="--lapsed" in sys.argv or BROKEN in LAPSES)
