"""Executable model of a unique column: two rows, written at two sites, with one value (`keep-both`).

No site can refuse what another has committed. Once a batch is merged whole, any two rows of one value are a *collision*: the row of
the larger key yields, which is an ordinary write of whoever sees it: its value is taken from it, and that is stamped, logged, cut
and shipped as everything. Several sites may do so at once; what they write is the same, and the newest stamp stays.

Random schedules over N sites, as in `model`: inserts, new values, updates that leave the value, deletes, values that one row gives up
and another takes in one transaction, cuts, pulls, coalesced pulls, relays, compaction. Every run checks:

  unique          at no site, at no moment between two batches, do two rows have one value
  convergence     when every batch is delivered, and what that made sites write as well, all sites hold the same rows
  one keeps it    the first row that ever had a value, and lives, and was never given another, has it in the end
  no value lost   a row without its newest value is in a collision that says so
  no false alarm  two rows collide only if neither writer had seen what the other wrote

Run:               python -m tests.model.unique [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break unlogged|local|newest|within|knot   (each must fail)
"""

import random
import sys
from dataclasses import dataclass, field

from tests.model import asked, model, play

BREAKS = {
    "unlogged": "a row that yields is changed where the collision is seen, which is no write, and goes nowhere",
    "local": "the row that is here yields to the one that comes",
    "newest": "the row of the smaller stamp yields",
    "within": "rows are looked at one by one, while the batch is merged",
    "knot": "a part of a knot is looked at before the next one is merged",
}
BROKEN = None  # one of BREAKS
VALUES = range(10)


@dataclass
class Truth:
    """All writes: which others the writer's site had seen; what rows were given; and all collisions that were recorded."""
    seen: dict = field(default_factory=dict)        # write -> writes
    given: dict = field(default_factory=dict)       # key -> every value that a person gave the row
    collisions: set = field(default_factory=set)    # (winner, loser, value)
    cuts: dict = field(default_factory=dict)        # (origin, cut) -> writes seen there
    writes: int = 0

    def number(self):
        self.writes += 1
        return self.writes


@dataclass
class Site(model.Site):
    """A row's value is what a person wrote, as (write, value); a value of None collides with nothing."""
    truth: Truth = None
    world: frozenset = frozenset()
    yielding: bool = False                          # a knot is merged: not yet

    def __hash__(self):
        return self.me

    # ---- what the application does; a value that another row has here is refused here

    def free(self, value, *but):
        return value is None or all(v != value for key, (_, v) in self.rows.items() if key not in but)

    def record(self, write):
        self.world |= {write}
        self.truth.seen[write] = self.world

    def give(self, key, value, now):
        number = self.truth.number()
        self.record(number)
        self.truth.given.setdefault(key, []).append(value)
        if key in self.rows:
            self.write(key, (number, value), False, now, number)
        else:
            self.insert(key, (number, value), now, number)

    def take_away(self, key, now):
        number = self.truth.number()
        self.record(number)
        self.write(key, None, True, now, number)

    # ---- the protocol

    def cut(self):
        super().cut()
        self.truth.cuts[self.me, self.cuts] = self.world

    def merge(self, origin, number, context, key, v, stats):
        super().merge(origin, number, context, key, v, stats)
        if BROKEN == "within":
            self.settle_collisions(stats, {key})

    def apply(self, origin, batch, stats):
        for number in batch.contexts or [batch.number]:
            self.world |= self.truth.cuts[origin, number]
        super().apply(origin, batch, stats)
        if not self.yielding or BROKEN == "knot":
            self.settle_collisions(stats, set(batch.rows))
        if not self.yielding:
            self.check()

    def take_knot(self, parts, stats):
        self.yielding = True
        taken = super().take_knot(parts, stats)
        self.yielding = False
        if taken:
            self.settle_collisions(stats, {key for part in parts.values() for key in part.rows})
            self.check()
        return taken

    def settle_collisions(self, stats, came):
        holders = {}
        for key, (_, value) in sorted(self.rows.items()):
            if value is not None:
                holders.setdefault(value, []).append(key)
        for value, keys in holders.items():
            if len(keys) < 2:
                continue
            first = self.keeper(keys, came)
            for key in keys:
                if key != first:
                    self.settle_collision(first, key, value, stats)

    def keeper(self, keys, came):
        if BROKEN == "local":
            return next((key for key in keys if key in came), keys[0])
        if BROKEN == "newest":
            return max(keys, key=self.stamp_of)
        return keys[0]

    def settle_collision(self, winner, loser, value, stats):
        one, other = self.rows[winner][0], self.rows[loser][0]
        assert one not in self.truth.seen[other] and other not in self.truth.seen[one], "false alarm"
        stats["collisions"] += 1
        self.truth.collisions.add((winner, loser, value))
        if BROKEN == "unlogged":
            self.rows[loser] = (other, None)
            return
        number = self.truth.number()
        self.record(number)
        self.write(loser, (number, None), False, self.hlc, number)

    def check(self):
        values = [value for _, value in self.rows.values() if value is not None]
        assert len(values) == len(set(values)), "two rows have one value"


def step(site, sites, rnd, now, stats, coalesced):
    dice = rnd.random()
    value = rnd.choice([None, *VALUES])
    keys = sorted(site.rows)
    if dice < 0.10 and site.free(value):
        site.give((max(0, now + site.skew), site.truth.number()), value, now)
    elif dice < 0.25 and keys:
        key = rnd.choice(keys)
        if site.free(value, key):
            site.give(key, value, now)
    elif dice < 0.33 and keys:
        key = rnd.choice(keys)
        site.give(key, site.rows[key][1], now)              # something else of the row
    elif dice < 0.40 and len(keys) > 1:
        one, other = rnd.sample(keys, 2)
        passed = site.rows[one][1]
        site.give(one, None, now)                           # handed over in one transaction
        site.give(other, passed, now)
        stats["handed over"] += passed is not None
    elif dice < 0.44 and keys:
        site.take_away(rnd.choice(keys), now)
    elif dice < 0.60:
        site.cut()
    elif dice < 0.84:
        model.pull(site, sites, rnd, stats, coalesced)
    elif dice < 0.92 and len(sites) > 2:
        model.relay(site, sites, rnd, stats)
    else:
        site.compact(stats)
    site.check()


def run(seed, stats, steps=300, coalesced=False):
    rnd = random.Random(f"unique {seed}")
    n = rnd.choice([2, 3, 4])
    truth, members = Truth(), list(range(n))
    sites = [Site(i, n, rnd.randint(-5, 5), members=members, truth=truth) for i in range(n)]
    now = 0
    for _ in range(steps):
        now += rnd.randint(0, 2)
        step(rnd.choice(sites), sites, rnd, now, stats, coalesced)
    stats["rounds"] = max(stats["rounds"], model.come_to_rest(sites, stats, seed))
    for site in sites[1:]:
        assert site.rows == sites[0].rows, f"diverged at seed {seed}"
    judge(sites[0], seed)


def judge(site, seed):
    truth = site.truth
    for value in VALUES:
        first = min((key for key, given in truth.given.items() if value in given), default=None)
        if first in site.rows and set(truth.given[first]) == {value}:
            holders = [key for key, (_, held) in site.rows.items() if held == value]
            assert holders == [first], f"the first does not keep its value at seed {seed}"
    for key, (_, value) in site.rows.items():
        given = truth.given[key]
        if value is None and None not in given:
            assert any(loser == key and v in given for _, loser, v in truth.collisions), f"a value was lost at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
