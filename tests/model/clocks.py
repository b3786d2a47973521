"""Executable model of a clock that was ahead: batches that are held, that are accepted, and whose origin takes them back.

Sites, batches and the way back under another number are those of `model`. One site's clock runs far ahead for a while. Who gets its
batches holds them: they are applied once time has come so far, or once somebody accepts the clock, which counts at every site. Another
site's clock may be ahead as well: that one applies them at once, and passes them on.

When its clock is right again the site may take back what nobody has applied (`clock reset`):

  1. it stops, and asks who has applied what of it: if that is ahead of time itself, it is refused, and the clock must be accepted (what
     is stamped anew would be ahead as well, above what stays)
  2. its number is gone, as agreed; each site hears of it at its own time, and drops what it holds of that number
  3. once all have heard, nobody can apply more of it than somebody has applied by now: what no one has, is stamped anew, above all that
     stays, under the new number; its clock is set back to there

Between any two of these steps, others write, cut, deliver and apply, time passes, and the site itself is written. What kills it leaves
it between two steps, and it goes on: nothing of a step is kept but in its database and in what was agreed.

Every run checks:

  convergence     when every batch is delivered, all sites hold the same rows
  nothing undone  what a row ends as, is the work of a write that no other write of the row had seen
  nothing ahead   no stamp is ahead of time in the end, unless it was accepted, or another clock was ahead
  no false alarm  a conflict is recorded only between writes that are truly concurrent

Run:               python -m tests.model.clocks [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break held|unheard|told|below|born|clock   (each must fail)
"""

import random
import sys
from dataclasses import dataclass, field
from itertools import permutations
from operator import lt

from tests.model import asked, model, play
from tests.model.model import Return

BREAKS = {
    "held": "who hears that a number is gone keeps what is held of it, and applies it when time has come",
    "unheard": "what is to be stamped anew is decided before all have heard that the number is gone",
    "told": "only one site is asked what it has applied, also if another one has applied more, and passed it on",
    "below": "stamps anew are of now, also where what they replace is of later",
    "born": "rows that were born at the site keep the stamp that is in their key",
    "clock": "the clock of the site is not set back",
}
BROKEN = None  # one of BREAKS
SKEW = 12
"""Stamps further ahead of a site's clock are held there."""


@dataclass
class Site(model.Site):
    """It holds what is ahead of its clock. `wrote`, one for all sites, is ground truth: of each key its writes, with what they had seen."""

    wrote: dict = None
    held: list = field(default_factory=list)      # (origin, batch) that have come, oldest first
    gone: int = None                              # the number that was taken back, once this site has heard of it
    others: int = 0                               # the largest clock of all that came from others

    def write(self, key, value, deleted, now, write_id):
        super().write(key, value, deleted, now, write_id)
        self.wrote.setdefault(key, {})[write_id] = self.past[key], value

    def insert(self, key, value, now, write_id):
        super().insert(key, value, now, write_id)
        self.wrote.setdefault(key, {})[write_id] = self.past[key], value

    def apply(self, origin, batch, stats):
        super().apply(origin, batch, stats)
        self.others = max(self.others, *(v.stamp[0] for v in batch.rows.values()), 0)

    def due(self, batch, now, accepted):
        """Whether time has come as far as what is in it, or somebody has accepted that."""
        newest = max((v.stamp[0] for v in batch.rows.values()), default=0)
        return newest <= max(now + self.skew, accepted) + SKEW

    def receive(self, origin, batch, now, accepted, stats):
        """Apply it, if it is the next one, or hold it."""
        if self.due(batch, now, accepted):
            self.advance(origin, batch, stats)
        elif self.gone != origin and (origin, batch) not in self.held:
            self.held.append((origin, batch))
            stats["held"] += 1

    def advance(self, origin, batch, stats):
        """Whether it was the next one, and its causes are here."""
        first = min(batch.contexts or (batch.number,))
        if first != self.frontier[origin] + 1 or not self.ready(origin, batch.context):
            return False
        self.apply(origin, batch, stats)
        return True

    def release(self, now, accepted, stats):
        """Apply what was held, as far as time has come."""
        for origin, batch in list(self.held):
            if batch.number <= self.frontier[origin]:
                self.held.remove((origin, batch))
            elif self.due(batch, now, accepted) and self.advance(origin, batch, stats):
                self.held.remove((origin, batch))
                stats["released"] += 1

    def hear(self, number):
        """The number is gone: what is held of it is void."""
        self.gone = number
        if BROKEN != "held":
            self.held = [(origin, batch) for origin, batch in self.held if origin != number]


@dataclass
class Reset(Return):
    """A site takes back what it wrote while its clock was ahead, step by step."""

    due: list = field(default_factory=list)       # who has not heard yet

    def refused(self, sites, now, accepted):
        """Something of the site that is ahead of time is applied somewhere: the clock must be accepted."""
        old = self.site.me
        had = max(s.frontier[old] for s in sites if s is not self.site)
        applied = [v.stamp[0] for batch in self.site.out if batch.number <= had for v in batch.rows.values()]
        return max(applied, default=0) > max(now, accepted) + SKEW

    def agree(self, sites):
        """The number is gone."""
        self.former, self.due = self.site.me, [s for s in sites if s is not self.site]
        self.site.members.remove(self.former)
        self.site.members.append(self.node)
        self.site.away, self.site.held = True, []

    def next(self, sites, now, accepted, rnd, stats):
        if self.due and BROKEN != "unheard":
            self.due.pop(rnd.randrange(len(self.due))).hear(self.former)
        elif self.donor is None:
            self.anew(sites, now, accepted, rnd, stats)
        elif self.due:
            self.due.pop().hear(self.former)
        elif self.left:
            self.piece()

    def anew(self, sites, now, accepted, rnd, stats):
        """What nobody has applied gets stamps of now, in its order, under the new number; the rest comes from who has most of it."""
        site, old = self.site, self.site.me
        others = [s for s in sites if s is not site]
        had = max(s.frontier[old] for s in others) if BROKEN != "told" else rnd.choice(others).frontier[old]
        fit = [s for s in others if s.frontier[old] == had and all(s.frontier[o] >= site.frontier[o] for o in range(site.n) if o != old)]
        if not fit:
            return
        self.donor = fit[0]
        mine = {k for k, stamp in site.log.items() if site.stamp_of(k) == stamp}
        mine |= {k for batch in site.out if batch.number > had for k, v in batch.rows.items() if site.stamp_of(k) == v.stamp}
        mine = sorted((k for k in mine if k not in site.meta or site.meta[k][0][1] == old), key=site.stamp_of)
        stays = [v.stamp[0] for batch in site.out if batch.number <= had for v in batch.rows.values()]
        floor = max([now + site.skew, accepted, site.others, *stays]) if BROKEN != "below" else now + site.skew
        stats["stamped anew"] += len(mine)
        fresh = {}
        for place, key in enumerate(mine, 1):
            if BROKEN != "born" or key in site.meta:
                fresh[key] = (floor + place, self.node), (self.node, 1), key not in site.rows
        if BROKEN != "clock":
            site.hlc = floor + len(mine)
        site.born = {k: cut for k, cut in site.born.items() if cut > had}
        site.me, site.cuts, site.out, site.logged = self.node, 0, [], {}
        site.meta = fresh
        site.log = {k: site.stamp_of(k) for k in mine}
        self.own = {k: (site.stamp_of(k), site.rows.get(k)) for k in mine}
        site.contexts, site.relay, site.frontier, site.settled = {}, {}, [0] * site.n, None
        site.known = [tuple([0] * site.n) for _ in range(site.n)]
        self.donor.cut()
        self.stated, self.left = tuple(self.donor.frontier), list(range(self.PIECES))
        site.reach = tuple([sys.maxsize] * site.n)


def deliver(sites, stats, former):
    """Everything to everybody, once time has come for all of it."""
    moved = True
    while moved:
        moved = any([site.held and site.release(sys.maxsize // 2, 0, stats) for site in sites])
        before = [list(site.frontier) for site in sites]
        for site in sites:
            site.release(sys.maxsize // 2, 0, stats)
        model.deliver(sites, stats, former)
        moved = moved or before != [site.frontier for site in sites]


def undone(site, wrote):
    """Keys that hold the work of a write that another one had seen."""
    for key, writes in wrote.items():
        last = {value for number, (past, value) in writes.items()
                if not any(other != number and number in seen for other, (seen, _) in writes.items())}
        if site.rows.get(key) not in last:
            yield key


class Play:
    """One run: the clocks, who is ahead of whom, and what becomes of it."""

    def __init__(self, seed, stats, coalesced):
        self.rnd, self.fate, self.stats, self.coalesced = random.Random(seed), random.Random(f"clock {seed}"), stats, coalesced
        n, wrote = self.rnd.choice([2, 3, 4]), {}
        members = list(range(n))
        self.sites = [Site(i, n + 1, self.rnd.randint(-3, 3), members=members, wrote=wrote) for i in range(n)]
        self.now, self.writes, self.accepted, self.wrote, self.n = 0, 0, 0, wrote, n
        self.late = self.fate.choice(self.sites)
        self.begins, self.ends = sorted(self.fate.sample(range(20, 280), 2))
        self.ahead = self.fate.choice([30, 200, 2000])
        self.other = self.fate.choice([s for s in self.sites if s is not self.late]) if self.fate.random() < 0.3 else None
        self.reset, self.right = None, self.late.skew

    def clocks(self, number):
        """One is ahead for a while; another one may be, too."""
        if number in (self.begins, self.ends):
            self.late.skew = self.right + self.ahead * (number == self.begins)
            if self.other:
                self.other.skew = self.ahead * (number == self.begins)
        if number > self.ends and self.fate.random() < 0.1:
            self.person()
        if self.fate.random() < 0.003:
            self.accept()

    def accept(self):
        """What is held of the one that is ahead is taken by all."""
        held = [v.stamp[0] for site in self.sites for _, batch in site.held for v in batch.rows.values()]
        if held:
            self.accepted = max(self.accepted, *held)
            self.stats["accepted"] += 1

    def person(self):
        """The clock is right again: what it has written is taken back."""
        if self.reset is None:
            reset = Reset(self.late, None, self.n)
            if self.late.hlc <= max(self.now + self.late.skew, self.accepted, self.late.others) + SKEW:
                return                                    # there is nothing to take back
            if reset.refused(self.sites, self.now, self.accepted):
                self.stats["refused"] += 1
                self.accepted = max(self.accepted, self.late.hlc)
                return
            self.reset = reset
            reset.agree(self.sites)
            self.stats["reset"] += 1
        else:
            self.reset.next(self.sites, self.now, self.accepted, self.fate, self.stats)

    @property
    def former(self):
        return self.reset.former if self.reset else None

    def step(self, number):
        self.now += self.rnd.randint(0, 2)
        self.clocks(number)
        site, dice = self.rnd.choice(self.sites), self.rnd.random()
        self.writes += 1
        waits = any(map(lt, site.frontier, site.reach))
        if (site.away and dice >= 0.52) or (dice < 0.56 and waits and site.me == self.n) or (dice >= 0.95 and waits):
            return
        if dice < 0.52:
            self.write(site, dice)
        elif dice < 0.56:
            self.insert_again(site)
        elif dice < 0.70:
            site.cut()
        elif dice < 0.80:
            self.pull(site)
        elif dice < 0.88:
            site.release(self.now, self.accepted, self.stats)
        elif dice < 0.93 and self.n > 2:
            self.relay(site)
        else:
            site.compact(self.stats)

    def write(self, site, dice):
        if dice < 0.12:
            site.insert((max(0, self.now + site.skew, site.hlc * (self.rnd.random() < 0.5)), self.writes), self.writes, self.now, self.writes)
        elif site.rows:
            deleted = dice > 0.44
            site.write(self.rnd.choice(sorted(site.rows)), None if deleted else self.writes, deleted, self.now, self.writes)

    def insert_again(self, site):
        gone = sorted(k for k in self.wrote if k not in site.rows and k in site.seen and k not in site.log)
        if gone:
            site.insert(self.rnd.choice(gone), self.writes, self.now, self.writes)

    def pull(self, site):
        peer = self.rnd.choice([s for s in self.sites if s is not site])
        batch = None if peer.away else next((b for b in peer.out if b.number > site.frontier[peer.me]), None)
        if self.coalesced and batch and self.rnd.random() < 0.7:
            batch = peer.coalesced(site.frontier[peer.me])
        if batch:
            site.receive(peer.me, batch, self.now, self.accepted, self.stats)

    def relay(self, site):
        origin, via = self.rnd.sample([s for s in self.sites if s is not site], 2)
        if via.away or origin.away:
            return
        parts = via.knot([origin.me], site.frontier)
        if all(site.due(part, self.now, self.accepted) for part in parts.values()) and site.take_knot(parts, self.stats):
            self.stats["relayed"] += 1


def run(seed, stats, steps=400, coalesced=False):
    play_ = Play(seed, stats, coalesced)
    for number in range(steps):
        play_.step(number)
    sites, reset = play_.sites, play_.reset
    while reset and (reset.due or reset.donor is None or reset.left):
        for site in sites:
            if not site.away:
                site.cut()
        if not reset.due:
            model.deliver(sites, stats, reset.former)     # all donors are fit by then
        reset.next(sites, play_.now, play_.accepted, play_.fate, stats)
    for site in sites:
        site.cut()
    deliver(sites, stats, play_.former)
    for site in sites:
        for key in undone(site, play_.wrote):
            raise AssertionError(f"undone at seed {seed}: {key}")
    for site in sites[1:]:
        assert site.rows == sites[0].rows, f"diverged at seed {seed}"
    assert all(s.frontier == sites[0].frontier for s in sites), f"stuck at seed {seed}"
    if reset and not play_.accepted and not play_.other:
        newest = max(stamp[0] for site in sites for stamp, *_ in [((site.hlc, 0),), *site.meta.values()])
        assert newest <= play_.now + SKEW + steps, f"ahead of time at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
