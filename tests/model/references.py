"""Executable model of a foreign key: one site deletes a row to which another one refers before it hears of that (`restore-parent`).

No site can refuse what another has committed. Where a delete arrives and rows that refer to the deleted one are there, and stay once
the batch, or the knot, is merged whole, the deleted row is written again as it was: an ordinary write of the site that sees it, newer
than the delete. The site that made the referring row always sees it: it had that row before the delete came, or its own constraint
would have refused it. Others may see it, too; what they write is the same. With --cascade the rows that refer to it are deleted instead.

Random schedules over N sites, as in `model`: parents, children of them, deletes that take the children along, children that are
given another parent, cuts, pulls, coalesced pulls, relays, compaction. Every run checks:

  no orphans      when every batch is delivered, and what that made sites write as well, each child has its parent
  convergence     all sites hold the same rows then
  no false alarm  a parent comes back only if a child was written by who had not seen the delete, or the child go
  no more goes    with --cascade, too: a row that nobody deleted, and no delete of its parent took along, is there

Run:               python -m tests.model.references [RUNS] [FIRST_SEED] [--coalesced] [--cascade]
Negative controls: ... --break unlogged|within|knot|older|ignored   (each must fail)
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
}
BROKEN = None  # one of BREAKS


@dataclass
class Truth:
    """All writes: which others the writer's site had seen; which deleted, and how children were written."""
    seen: dict = field(default_factory=dict)        # write -> writes
    gone: dict = field(default_factory=dict)        # parent -> writes that deleted it
    referred: dict = field(default_factory=dict)    # parent -> writes that made a row refer to it
    children: set = field(default_factory=set)
    cuts: dict = field(default_factory=dict)        # (origin, cut) -> writes seen there
    writes: int = 0

    def number(self):
        self.writes += 1
        return self.writes


@dataclass
class Site(model.Site):
    """A row is (write, the key of its parent); one without a parent is a parent."""
    truth: Truth = None
    world: frozenset = frozenset()
    cascade: bool = False
    whole: bool = True                              # else more parts of a knot come
    bereft: dict = field(default_factory=dict)      # parents that this batch has deleted, as they were

    def __hash__(self):
        return self.me

    def children(self, parent):
        return [key for key, (_, other) in self.rows.items() if other == parent]

    def record(self):
        number = self.truth.number()
        self.world |= {number}
        self.truth.seen[number] = self.world
        return number

    def put(self, key, parent, now):
        number = self.record()
        if parent:
            self.truth.children.add(key)
            self.truth.referred.setdefault(parent, []).append(number)
        if key in self.rows:
            self.write(key, (number, parent), False, now, number)
        else:
            self.insert(key, (number, parent), now, number)

    def remove(self, key, now):
        """With all that refers to it, in one transaction."""
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
        super().take(key, v)
        if BROKEN == "within":
            self.restore_parents()

    def apply(self, origin, batch, stats):
        for number in batch.contexts or [batch.number]:
            self.world |= self.truth.cuts[origin, number]
        super().apply(origin, batch, stats)
        if self.whole or BROKEN == "knot":
            self.restore_parents(stats)

    def take_knot(self, parts, stats):
        self.whole = False
        taken = super().take_knot(parts, stats)
        self.whole = True
        self.restore_parents(stats)
        return taken

    def restore_parents(self, stats=None):
        for key, (write, _) in self.bereft.items():
            if key in self.rows or not self.children(key) or BROKEN == "ignored":
                continue
            deletes = self.truth.gone[key]
            assert any(other not in self.truth.seen[delete] for delete in deletes for other in self.truth.referred[key]), "false alarm"
            if self.cascade:
                self.delete_orphans(key, stats)
                continue
            if stats is not None:
                stats["parents restored"] += 1
            if BROKEN == "unlogged":
                self.rows[key] = (write, None)
            elif BROKEN == "older":
                self.rows[key] = (write, None)
                self.log[key] = self.stamp_of(key)
            else:
                number = self.record()
                self.write(key, (write, None), False, self.hlc, number)
        self.bereft.clear()


    def delete_orphans(self, parent, stats):
        for key in sorted(self.children(parent)):
            if stats is not None:
                stats["orphans deleted"] += 1
            if BROKEN == "unlogged":
                del self.rows[key]
            else:
                self.truth.gone.setdefault(key, [])
                self.write(key, None, True, self.hlc, self.record())


def step(site, sites, rnd, now, stats, coalesced):
    dice = rnd.random()
    parents = sorted(key for key, (_, parent) in site.rows.items() if parent is None)
    children = sorted(key for key, (_, parent) in site.rows.items() if parent is not None)
    key = (max(0, now + site.skew), site.truth.writes + 1)
    if dice < 0.08:
        site.put(key, None, now)
    elif dice < 0.20 and parents:
        site.put(key, rnd.choice(parents), now)
    elif dice < 0.26 and parents and children:
        site.put(rnd.choice(children), rnd.choice(parents), now)
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


def run(seed, stats, steps=300, coalesced=False, cascade=False):
    rnd = random.Random(f"references {seed}")
    n = rnd.choice([2, 3, 4])
    truth, members = Truth(), list(range(n))
    sites = [Site(i, n, rnd.randint(-5, 5), members=members, truth=truth, cascade=cascade) for i in range(n)]
    now = 0
    for _ in range(steps):
        now += rnd.randint(0, 2)
        step(rnd.choice(sites), sites, rnd, now, stats, coalesced)
    stats["rounds"] = max(stats["rounds"], model.come_to_rest(sites, stats, seed))
    for site in sites[1:]:
        assert site.rows == sites[0].rows, f"diverged at seed {seed}"
    for site in sites:
        orphans = [key for key, (_, parent) in site.rows.items() if parent and parent not in site.rows]
        assert not orphans, f"an orphan at seed {seed}"
    for key in truth.children:
        assert key in sites[0].rows or key in truth.gone, f"a row was lost at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv, cascade="--cascade" in sys.argv)
