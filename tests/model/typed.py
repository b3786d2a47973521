"""Executable model of DDL that somebody types by hand at one site, on top of `schema`: a column is there, and then all sites come to it.

What is typed is no step: the site's epoch does not move, and the column does not travel. Adopted, it is an ordinary change that adds the
column; the site that has it leaves the step out, and writes anew, under its own stamps, the rows that hold something else in it than all rows
are given. Taken back, the site has it by hand again, with what is in it.

Random schedules over 2 to 4 sites, as in `schema`, in which people also type columns, fill them and have them adopted. Every run checks what
`schema` does, with the value in the column as part of what was written, and that no column travels that was not agreed on.

Run:               python -m tests.model.typed [RUNS] [FIRST_SEED]
Negative controls: ... --break unsent|again|travels|swept
"""

import random
from dataclasses import dataclass, field

from tests.model import asked, play, schema

BREAKS = {
    "unsent": "rows with a value of their own keep their stamp when the column is adopted",
    "again": "the step is done where the column is already: all rows come to the constant",
    "travels": "the column is in batches as soon as it is there",
    "swept": "the next step of another change takes the column along",
}
BROKEN = None  # one of BREAKS


@dataclass
class World(schema.World):
    typed: int = 0
    undone: set = field(default_factory=set)        # epochs that take something back


@dataclass
class Site(schema.Site):
    own: tuple | None = None                        # a column typed here, and what its rows were given
    held: dict = field(default_factory=dict)        # key -> what is in it
    adopted: dict = field(default_factory=dict)     # column -> what its rows were given
    swept: bool = False

    def type_in(self, rnd):
        self.world.typed += 1
        self.own = f"t{self.world.typed}", rnd.choice([None, ("k", self.world.typed)])
        self.held, self.swept = dict.fromkeys(self.rows, self.own[1]), False

    def fill(self, rnd):
        """An application that knows the column writes it."""
        key = rnd.choice(sorted(self.rows))
        self.world.number += 1
        self.held[key] = ("h", self.world.number)
        self.clock += 1
        self.note(key, (self.clock, self.me), self.rows[key][1], self.epoch)
        self.rows[key] = (self.clock, self.me), self.rows[key][1]
        self.pending.add(key)

    def note(self, key, stamp, row, epoch):
        self.world.written.add((key, stamp))
        if self.world.newest[key][0] < stamp:
            self.world.newest[key] = stamp, row, epoch

    def read(self, origin, after):
        batch = super().read(origin, after)
        if self.own and (BROKEN == "travels" or self.swept):
            batch.rows = {key: (stamp, {**row, self.own[0]: self.held.get(key)}) for key, (stamp, row) in batch.rows.items()}
        return batch

    def take(self, batch, stats):
        for _, row in batch.rows.values():
            assert set(row) <= set(schema.columns(self.world.log[: batch.epoch])), "a column travels that nobody agreed on"
        super().take(batch, stats)

    def do(self, rnd, stats):
        before, step = self.epoch, self.world.log[self.epoch] if self.epoch < self.known else None
        if step and self.own and step[:2] == ("add", self.own[0]):
            if rnd.random() < 0.1:
                stats["killed in a step"] += 1
            else:
                self.take_over(stats)
            return
        here = {key: row.get(step[1]) for key, (_, row) in self.rows.items()} if step else {}
        super().do(rnd, stats)
        if self.epoch > before and step[0] == "drop" and step[1] in self.adopted:
            source = self.adopted.pop(step[1])
            if self.epoch in self.world.undone and self.own is None:
                stats["by hand again"] += 1
                self.own, self.held, self.swept = (step[1], source), here, False
        elif self.epoch > before and self.own and BROKEN == "swept":
            self.swept = True

    def take_over(self, stats):
        column, source = self.own
        for key, (stamp, row) in self.rows.items():
            value = self.held.get(key, source)
            if value != source:
                stats["values sent"] += 1
                self.clock += 1
                self.note(key, (self.clock, self.me), {**row, column: value}, self.epoch + 1)
                if BROKEN not in ("unsent", "again"):
                    stamp = self.clock, self.me
                    self.pending.add(key)
            self.rows[key] = stamp, {**row, column: source if BROKEN == "again" else value}
        self.own, self.adopted[column] = None, source
        self.reach(self.epoch + 1)


def adopt(world, sites, rnd, stats):
    have = [site for site in sites if site.own and site.own[0] not in schema.columns(world.log)]
    if have and not world.plan and not world.done:
        world.changes += 1
        stats["adopted"] += 1
        world.plan = [("add", *rnd.choice(have).own)]


def run(seed, stats, steps=260, coalesced=False):
    rnd = random.Random(f"typed {seed}")
    n = rnd.choice([2, 3, 4])
    world = World()
    sites = [Site(i, world, n) for i in range(n)]
    for _ in range(steps):
        site, dice = rnd.choice(sites), rnd.random()
        if dice < 0.03 and site.own is None:
            site.type_in(rnd)
        elif dice < 0.10 and site.own and site.rows:
            site.fill(rnd)
        elif dice < 0.13:
            adopt(world, sites, rnd, stats)
        else:
            epoch = len(world.log)
            schema.step(world, sites, rnd, stats)
            if len(world.log) > epoch and world.back:
                world.undone.add(len(world.log))
    schema.rest(world, sites, rnd, stats)
    for key, (stamp, row, epoch) in world.newest.items():
        for each in world.log[epoch:]:
            row = schema.carried(row, each)
        wanted = {column: row.get(column) for column in schema.columns(world.log)}
        for site in sites:
            assert key in site.rows and site.rows[key][0] == stamp, f"a write was lost at seed {seed}"
            assert site.rows[key][1] == wanted, f"diverged at seed {seed}: {key} {site.rows[key][1]} {wanted}"
    stats["typed"] += world.typed


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run)
