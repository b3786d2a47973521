"""Executable model of a foreign key: one site deletes a row to which another one refers before it hears of that (`restore-parent`).

No site can refuse what another has committed. Where a delete arrives and rows that refer to the deleted one are there, and stay once
the batch, or the knot, is merged whole, the deleted row is written again as it was: an ordinary write of the site that sees it, newer
than the delete. The site that made the referring row always sees it: it had that row before the delete came, or its own constraint
would have refused it. Others may see it, too; what they write is the same. With --cascade the rows that refer to it are deleted instead.

With --unique children have a place, which is one child's alone: of two that have one the larger key yields (`keep-both`, see `unique`). That
is a write of whoever sees it, which may be a site that has deleted the parent by then: nobody else need have it, either, when this write
wins against a delete of the child. So a child whose parent is not here does not yield. The one that came waits, parked, until the parent is
back, or one of the two goes.

Random schedules over N sites, as in `model`: parents, children of them, deletes that take the children along, children that are
given another parent, cuts, pulls, coalesced pulls, relays, compaction. Every run checks:

  no orphans      when every batch is delivered, and what that made sites write as well, each child has its parent
  convergence     all sites hold the same rows then
  no false alarm  a parent comes back only if a child was written by who had not seen the delete, or the child go
  unique          at no site, at no moment between two batches, do two children have one place, and nothing waits in the end
  no more goes    with --cascade, too: a row that nobody deleted, and no delete of its parent took along, is there

Run:               python -m tests.model.references [RUNS] [FIRST_SEED] [--coalesced] [--cascade] [--unique]
Negative controls: ... --break unlogged|within|knot|older|ignored|revived   (each must fail)
"""

import random
import sys
from dataclasses import dataclass, field

from tests.model import asked, model, play

BREAKS = {
    "unlogged": "the parent is put back where it is missed, which is no write, and goes nowhere",
    "within": "it is looked for children while the batch is merged",
    "knot": "it is looked for children before the next part of a knot is merged",
    "older": "the parent comes back under its old stamp, which is below that of the delete",
    "ignored": "foreign keys are not looked at",
    "revived": "a child yields its place though its parent is not here",
}
COLLIDING = {"revived"}
BROKEN = None  # one of BREAKS


@dataclass
class Truth:
    """All writes: which others the writer's site had seen; which deleted, and how children were written."""
    seen: dict = field(default_factory=dict)        # write -> writes
    gone: dict = field(default_factory=dict)        # parent -> writes that deleted it
    referred: dict = field(default_factory=dict)    # parent -> writes that made a row refer to it
    children: set = field(default_factory=set)
    waited: set = field(default_factory=set)        # parents that were deleted where a child of theirs was parked, and did not go with them
    cuts: dict = field(default_factory=dict)        # (origin, cut) -> writes seen there
    writes: int = 0

    def number(self):
        self.writes += 1
        return self.writes


@dataclass
class Site(model.Site):
    """A row is (write, the key of its parent, its place); one without a parent is a parent."""
    truth: Truth = None
    world: frozenset = frozenset()
    cascade: bool = False
    whole: bool = True                              # else more parts of a knot come
    bereft: dict = field(default_factory=dict)      # parents that this batch has deleted, as they were
    held: set = field(default_factory=set)          # children that wait, parked: their place is taken, and the parent of whoever would yield is not here
    came: set = field(default_factory=set)          # with this batch, or what waited until then

    def __hash__(self):
        return self.me

    def children(self, parent):
        return [key for key, (_, other, _) in self.rows.items() if other == parent and key not in self.held]

    def free(self, place, but=None):
        return place is None or all(there != place or key == but or key in self.held for key, (_, _, there) in self.rows.items())

    def record(self):
        number = self.truth.number()
        self.world |= {number}
        self.truth.seen[number] = self.world
        return number

    def put(self, key, parent, now, place=None):
        number = self.record()
        if parent:
            self.truth.children.add(key)
            self.truth.referred.setdefault(parent, []).append(number)
        if key in self.rows:
            self.write(key, (number, parent, place), False, now, number)
        else:
            self.insert(key, (number, parent, place), now, number)

    def remove(self, key, now):
        """With all that refers to it, in one transaction."""
        self.truth.waited |= {key} & {self.rows[child][1] for child in self.held}
        for each in (*self.children(key), key):
            number = self.record()
            self.truth.gone.setdefault(each, []).append(number)
            self.write(each, None, True, now, number)

    def cut(self):
        super().cut()
        self.truth.cuts[self.me, self.cuts] = self.world

    def take(self, key, v):
        if v.deleted and key in self.rows and self.rows[key][1] is None:
            self.bereft[key] = self.rows[key]
        self.held.discard(key)
        self.came.add(key)
        super().take(key, v)
        if BROKEN == "within":
            self.restore_parents()

    def apply(self, origin, batch, stats):
        for number in batch.contexts or [batch.number]:
            self.world |= self.truth.cuts[origin, number]
        super().apply(origin, batch, stats)
        if self.whole or BROKEN == "knot":
            self.bring_together(stats)

    def take_knot(self, parts, stats):
        self.whole = False
        taken = super().take_knot(parts, stats)
        self.whole = True
        self.bring_together(stats)
        return taken

    def bring_together(self, stats):
        moved = True
        while moved:
            self.came |= self.held
            self.held.clear()                           # they are tried again
            self.settle_places(stats)
            moved = self.restore_parents(stats) and bool(self.held)
        self.came.clear()
        places = [place for key, (_, _, place) in self.rows.items() if place is not None and key not in self.held]
        assert len(places) == len(set(places)), "two children have one place"

    def settle_places(self, stats):
        holders = {}
        for key, (_, _, place) in sorted(self.rows.items(), key=lambda row: (row[0] in self.came, row[0])):
            if place is not None:
                holders.setdefault(place, []).append(key)
        for place, keys in holders.items():
            first = keys[0]
            for key in keys[1:]:
                loser = max(first, key)
                write, parent, _ = self.rows[loser]
                if parent in self.rows or BROKEN == "revived":
                    stats["yielded"] += 1
                    number = self.record()
                    self.truth.referred.setdefault(parent, []).append(number)
                    self.write(loser, (write, parent, None), False, self.hlc, number)
                    first = min(first, key)
                else:
                    stats["held"] += 1
                    self.held.add(key)

    def restore_parents(self, stats=None):
        moved = False
        for key, (write, _, _) in self.bereft.items():
            if key in self.rows or not self.children(key) or BROKEN == "ignored":
                continue
            moved = True
            deletes = self.truth.gone[key]
            assert key in self.truth.waited or any(other not in self.truth.seen[delete] for delete in deletes for other in self.truth.referred[key]), "false alarm"
            if self.cascade:
                self.delete_orphans(key, stats)
                continue
            if stats is not None:
                stats["parents restored"] += 1
            if BROKEN == "unlogged":
                self.rows[key] = (write, None, None)
            elif BROKEN == "older":
                self.rows[key] = (write, None, None)
                self.log[key] = self.stamp_of(key)
            else:
                number = self.record()
                self.write(key, (write, None, None), False, self.hlc, number)
        self.bereft.clear()
        return moved

    def delete_orphans(self, parent, stats):
        for key in sorted(self.children(parent)):
            if stats is not None:
                stats["orphans deleted"] += 1
            if BROKEN == "unlogged":
                del self.rows[key]
            else:
                self.truth.gone.setdefault(key, [])
                self.write(key, None, True, self.hlc, self.record())


def step(site, sites, rnd, now, stats, coalesced, place):
    """`place`: of a child that is written, or None."""
    dice = rnd.random()
    parents = sorted(key for key, (_, parent, _) in site.rows.items() if parent is None)
    children = sorted(key for key, (_, parent, _) in site.rows.items() if parent is not None and key not in site.held)
    key = (max(0, now + site.skew), site.truth.writes + 1)
    if dice < 0.08:
        site.put(key, None, now)
    elif dice < 0.20 and parents:
        site.put(key, rnd.choice(parents), now, place if site.free(place) else None)
    elif dice < 0.26 and parents and children:
        child = rnd.choice(children)
        site.put(child, rnd.choice(parents), now, place if site.free(place, child) else None)
    elif dice < 0.30 and parents:
        site.put(rnd.choice(parents), None, now)
    elif dice < 0.40 and parents:
        site.remove(rnd.choice(parents), now)
    elif dice < 0.43 and children:
        site.remove(rnd.choice(children), now)
    elif dice < 0.58:
        site.cut()
    elif dice < 0.84:
        model.pull(site, sites, rnd, stats, coalesced)
    elif dice < 0.93 and len(sites) > 2:
        model.relay(site, sites, rnd, stats)
    else:
        site.compact(stats)


def run(seed, stats, steps=300, coalesced=False, cascade=False, unique=False):
    rnd, places = random.Random(f"references {seed}"), random.Random(f"places {seed}")
    n = rnd.choice([2, 3, 4])
    truth, members = Truth(), list(range(n))
    sites = [Site(i, n, rnd.randint(-5, 5), members=members, truth=truth, cascade=cascade) for i in range(n)]
    now = 0
    for _ in range(steps):
        now += rnd.randint(0, 2)
        step(rnd.choice(sites), sites, rnd, now, stats, coalesced, places.randrange(6) if unique else None)
    stats["rounds"] = max(stats["rounds"], model.come_to_rest(sites, stats, seed))
    for site in sites[1:]:
        assert site.rows == sites[0].rows, f"diverged at seed {seed}"
    for site in sites:
        assert not site.held, f"a row waits for ever at seed {seed}"
        orphans = [key for key, (_, parent, _) in site.rows.items() if parent and parent not in site.rows]
        assert not orphans, f"an orphan at seed {seed}"
    for key in truth.children:
        assert key in sites[0].rows or key in truth.gone, f"a row was lost at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv, cascade="--cascade" in sys.argv, unique="--unique" in sys.argv or BROKEN in COLLIDING)
