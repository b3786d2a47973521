"""Executable model of a unique column whose rows others refer to: two customers with one value become one (`merge`).

Where two rows have one value, the row of the larger key is deleted, and rows that refer to it are given to the other: ordinary
writes of whoever sees it. A site that never met both may hold a row that refers to the loser. So an *alias*, loser -> winner,
travels in the cut of the delete, and is kept as long as the tombstone: rows that refer to the loser follow it, those that are here
when the delete comes, and those that come later. Of two rows that would then have one place with the winner (an order for each
product, say) the larger key is merged into the other as well, or it yields its product: as is chosen for places. A row that was deleted by hand, and comes back for a row that
refers to it (see `references`), is merged with whoever has its value by now.

Random schedules over N sites, as in `unique`. Every run checks:

  unique          at no site, at no moment between two batches, do two rows have one value, or one place
  nothing waits   nor does a row refer to a customer that was merged away, and whose winner is there
  no one returns  a customer that was merged away does not come back for a row that could follow
  no orphans      when every batch is delivered, and what that made sites write as well, each order has its customer
  convergence     all sites hold the same rows then
  no order lost   an order that nobody deleted is there, or another one has its place
  right owner     it belongs to a customer that it was given to, or whom that one was merged into

Run:               python -m tests.model.aliases [RUNS] [FIRST_SEED] [--coalesced]
Negative controls: ... --break untold|dropped|needed|unlogged|cascade|newest|chain|place|policy|both|orphan   (each must fail)
"""

import random
import sys
from dataclasses import dataclass, field

from tests.model import asked, model, play

BREAKS = {
    "untold": "the alias stays where the two rows met",
    "dropped": "the alias is dropped once it was cut",
    "needed": "the alias is dropped with its tombstone, though another one leads to it",
    "unlogged": "rows that follow are changed where it is seen, which is no write, and goes nowhere",
    "cascade": "rows that refer to the loser are deleted with it",
    "newest": "the row of the smaller stamp loses",
    "chain": "an alias of an alias is not followed",
    "place": "two rows that come to have one place are not looked for",
    "policy": "of two rows that come to have one place one goes, whatever is chosen for places",
    "both": "of two customers that were merged, and are both missed, both come back",
    "orphan": "of two rows in one place one yields it, though the customer of both is not here",
}
BROKEN = None  # one of BREAKS
VALUES = range(6)
PRODUCTS = range(4)


@dataclass
class Truth:
    """All writes: what orders were given to, what people deleted, and what was merged into what."""
    given: dict = field(default_factory=dict)       # order -> customers
    gone: set = field(default_factory=set)          # keys that a person deleted
    merged: set = field(default_factory=set)        # (loser, winner)
    placed: set = field(default_factory=set)        # orders that lost their place to another one, and went
    keeps: bool = False                             # what is chosen for places: of two orders in one place both stay
    aliases: dict = field(default_factory=dict)     # (origin, cut) -> {(loser, winner)}: travels with the cut
    writes: int = 0

    def number(self):
        self.writes += 1
        return self.writes


def heirs(merged, key, but=()):
    """Whom a customer was merged into, and whom those were."""
    found, more = {key}, {key}
    while more:
        more = {winner for loser, winner in merged if loser in more and loser not in but} - found
        found |= more
    return found


@dataclass
class Site(model.Site):
    """A customer is (write, value, None), an order (write, product, customer)."""
    truth: Truth = None
    aliases: set = field(default_factory=set)       # (loser, winner)
    made: set = field(default_factory=set)          # those of them that no cut has yet
    bereft: dict = field(default_factory=dict)      # customers that this batch has deleted, as they were
    held: set = field(default_factory=set)          # orders that wait, parked: their customer is not here, and their place is taken
    came: set = field(default_factory=set)          # with this batch, or what waited until then
    whole: bool = True                              # else more parts of a knot come

    def __hash__(self):
        return self.me

    def orders(self, customer):
        return sorted(key for key, (_, _, owner) in self.rows.items() if owner == customer and key not in self.held)

    def holder(self, value):
        return min((key for key, (_, held, owner) in self.rows.items() if owner is None and held == value), default=None)

    def placed(self, product, customer):
        return min((key for key in self.orders(customer) if self.rows[key][1] == product), default=None)

    # ---- writes

    def put(self, key, value, owner, now):
        number = self.truth.number()
        if key in self.rows:
            self.write(key, (number, value, owner), False, now, number)
        else:
            self.insert(key, (number, value, owner), now, number)

    def erase(self, key, now):
        self.write(key, None, True, now, self.truth.number())

    def order(self, key, product, customer, now):
        self.truth.given.setdefault(key, set()).add(customer)
        self.put(key, product, customer, now)

    def remove(self, key, now):
        """With all that refers to it, in one transaction."""
        for each in (*self.orders(key), key):
            self.truth.gone.add(each)
            self.erase(each, now)

    # ---- the protocol

    def cut(self):
        super().cut()
        if self.made:
            self.truth.aliases[self.me, self.cuts] = self.made
            self.made = set()
            if BROKEN == "dropped":
                self.aliases.clear()

    def take(self, key, v):
        if v.deleted and key in self.rows and self.rows[key][2] is None:
            self.bereft[key] = self.rows[key]
        self.held.discard(key)
        self.came.add(key)
        super().take(key, v)

    def apply(self, origin, batch, stats):
        if BROKEN != "untold":
            for number in batch.contexts or [batch.number]:
                self.aliases |= self.truth.aliases.get((origin, number), set())
        super().apply(origin, batch, stats)
        if self.whole:
            self.bring_together(stats)
            self.check()

    def take_knot(self, parts, stats):
        self.whole = False
        taken = super().take_knot(parts, stats)
        self.whole = True
        if taken:
            self.bring_together(stats)
            self.check()
        return taken

    def compact(self, stats):
        super().compact(stats)
        held = len(self.aliases)
        needed = {key for key, (_, _, deleted) in self.meta.items() if deleted} | {winner for _, winner in self.aliases if BROKEN != "needed"}
        self.aliases = {alias for alias in self.aliases if alias in self.made or alias[0] in needed}
        stats["aliases dropped"] += held - len(self.aliases)

    def winner(self, key):
        """Whom rows that refer to this one follow: the lowest that is here of those it was merged into; None if none is."""
        if key in self.rows:
            return key
        if BROKEN == "chain":
            found = {winner for loser, winner in self.aliases if loser == key}
        else:
            found = heirs(self.aliases, key) - {key}
        return min(found & self.rows.keys(), default=None)

    def bring_together(self, stats):
        """Once all is there that comes at once. Who comes back may be whom others wait for."""
        moved = True
        while moved:
            self.came |= self.held
            self.held.clear()                               # they are tried again
            self.settle_collisions(stats)
            moved = False
            while self.follow_winners(stats) or self.restore(stats):
                moved = bool(self.held)
        self.bereft.clear()
        self.came.clear()

    def settle_collisions(self, stats):
        for value in VALUES:
            keys = sorted(key for key, (_, held, owner) in self.rows.items() if owner is None and held == value)
            first = min(keys, key=lambda key: self.stamp_of(key) if BROKEN == "newest" else key, default=None)
            for key in keys:
                if key != first:
                    self.merge_rows(key, first, stats)
        places = {}
        for order, (_, product, customer) in sorted(self.rows.items(), key=lambda row: (row[1][2] not in self.rows and row[0] in self.came, row[0])):
            if not customer or product is None or places.setdefault((customer, product), order) == order:
                continue
            if customer in self.rows or BROKEN == "orphan":
                self.give_way(order, customer, stats)
            else:
                stats["held"] += 1
                self.held.add(order)

    def follow_winners(self, stats):
        late = [(order, self.winner(customer)) for order, (_, _, customer) in sorted(self.rows.items())
                if customer and order not in self.held and self.winner(customer) != customer]
        for order, owner in late:
            if owner and order in self.rows:
                stats["late"] += 1
                self.follow(order, owner, stats)
        return any(owner for _, owner in late)

    def merge_rows(self, loser, winner, stats):
        stats["merged"] += 1
        self.truth.merged.add((loser, winner))
        self.aliases.add((loser, winner))
        self.made.add((loser, winner))
        for order in self.orders(loser):
            if BROKEN == "cascade":
                self.erase(order, self.hlc)
            else:
                self.follow(order, winner, stats)
        if loser in self.rows:
            self.erase(loser, self.hlc)

    def follow(self, order, winner, stats):
        number, product, customer = self.rows[order]
        if BROKEN == "unlogged":
            self.rows[order] = (number, product, winner)
            return
        there = None if product is None else self.placed(product, winner)
        if there is not None and there != order and BROKEN != "place":
            self.give_way(max(order, there), winner, stats)
            if there < order:
                return
        self.write(order, (number, product, winner), False, self.hlc, self.truth.number())

    def give_way(self, order, owner, stats):
        stats["one place"] += 1
        if self.truth.keeps and BROKEN != "policy":
            stats["kept both"] += 1
            self.write(order, (self.rows[order][0], None, owner), False, self.hlc, self.truth.number())
        else:
            self.truth.placed.add(order)
            self.erase(order, self.hlc)

    def restore(self, stats):
        """A row that was deleted comes back for those that refer to it; with whoever has its value now it is merged."""
        missed = [key for key in sorted(self.bereft) if key not in self.rows and self.orders(key)]
        merged = {loser for loser, _ in self.aliases}
        missed = [key for key in missed if key not in merged] or missed[: None if BROKEN == "both" else 1]     # others may have somebody to follow then
        for key in missed:
            number, value, _ = self.bereft[key]
            assert key in self.truth.gone or not heirs(self.told(), key, self.truth.gone) & self.rows.keys(), "one that was merged away comes back"
            stats["restored"] += 1
            there = self.holder(value)
            if there is not None and there < key:
                self.merge_rows(key, there, stats)
                continue
            self.write(key, (number, value, None), False, self.hlc, self.truth.number())
            if there is not None:
                self.merge_rows(there, key, stats)
        return bool(missed)

    def check(self):
        customers = [value for _, value, owner in self.rows.values() if owner is None and value is not None]
        assert len(customers) == len(set(customers)), "two rows have one value"
        places = [(owner, value) for key, (_, value, owner) in self.rows.items() if owner is not None and value is not None and key not in self.held]
        assert len(places) == len(set(places)), "two rows have one place"
        told = self.told()
        for owner in {owner for _, _, owner in self.rows.values()} - self.rows.keys() - self.truth.gone - {None}:
            assert not heirs(told, owner, self.truth.gone) & self.rows.keys(), "a row waits for one that was merged away"

    def told(self):
        """What was merged, as far as this site has heard: by the deletes that are the newest versions here, or forgotten."""
        found = set(self.made)
        for dot, made in self.truth.aliases.items():
            if dot[1] <= self.frontier[dot[0]]:
                found |= {pair for pair in made if pair[0] not in self.meta or self.meta[pair[0]][1] == dot}
        return found


def step(site, sites, rnd, now, stats, coalesced):
    dice = rnd.random()
    customers = sorted(key for key, (_, _, owner) in site.rows.items() if owner is None)
    orders = sorted(key for key, (_, _, owner) in site.rows.items() if owner in site.rows)   # another cannot be written again
    key = (max(0, now + site.skew), site.truth.writes + 1)
    value, product = rnd.choice([None, *VALUES, *VALUES]), rnd.choice(PRODUCTS)
    free = value is None or site.holder(value) is None
    if dice < 0.12 and free:
        site.put(key, value, None, now)
    elif dice < 0.24 and customers:
        customer = rnd.choice(customers)
        if site.placed(product, customer) is None:
            site.order(key, product, customer, now)
    elif dice < 0.29 and customers and free:
        site.put(rnd.choice(customers), value, None, now)
    elif dice < 0.33 and customers:
        customer = rnd.choice(customers)
        site.put(customer, site.rows[customer][1], None, now)          # something else of the row
    elif dice < 0.38 and orders:
        order = rnd.choice(orders)
        customer = rnd.choice(customers)
        if site.placed(site.rows[order][1], customer) in (None, order):
            site.order(order, site.rows[order][1], customer, now)
    elif dice < 0.40 and customers:
        site.remove(rnd.choice(customers), now)
    elif dice < 0.42 and orders:
        site.remove(rnd.choice(orders), now)
    elif dice < 0.58:
        site.cut()
    elif dice < 0.84:
        model.pull(site, sites, rnd, stats, coalesced)
    elif dice < 0.93 and len(sites) > 2:
        model.relay(site, sites, rnd, stats)
    else:
        site.compact(stats)
    site.check()


def run(seed, stats, steps=300, coalesced=False):
    rnd = random.Random(f"merging {seed}")
    n = rnd.choice([2, 3, 4])
    truth, members = Truth(keeps=seed % 5 == 2), list(range(n))
    sites = [Site(i, n, rnd.randint(-5, 5), members=members, truth=truth) for i in range(n)]
    now = 0
    for _ in range(steps):
        now += rnd.randint(0, 2)
        step(rnd.choice(sites), sites, rnd, now, stats, coalesced)
    stats["rounds"] = max(stats["rounds"], model.come_to_rest(sites, stats, seed))
    for site in sites:
        assert site.rows == sites[0].rows, f"diverged at seed {seed}"
        assert not site.held, f"a row waits for ever at seed {seed}"
    rows = sites[0].rows
    assert all(owner is None or owner in rows for _, _, owner in rows.values()), f"an orphan at seed {seed}"
    assert not (truth.keeps and truth.placed), f"an order went that was to be kept at seed {seed}"
    for order, given in truth.given.items():
        if order in rows:
            assert rows[order][2] in set().union(*(heirs(truth.merged, key) for key in given)), f"a wrong owner at seed {seed}"
        else:
            assert order in truth.gone or order in truth.placed, f"an order was lost at seed {seed}"


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run, coalesced="--coalesced" in sys.argv)
