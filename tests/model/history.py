"""Executable model of the history of conflicts, which every site has whole: steps (noticed, resolved, undone) that travel in the cuts.

A site writes only its own steps; a cut of it tells those that no cut has yet, and the conflict itself with the step that notices it.
Whoever is told adds what he lacks, and can hand it on, for a step says of which node and cut it is. Who meets a conflict that he
was told of writes no step. Of the steps that settle one that of the largest clock holds, then that of the larger node. Each site forgets
conflicts of a certain age, with their steps. (Of what comes in one transaction from several nodes, a step may come before its conflict.)

Random schedules over two to four sites: conflicts are noticed and settled, cuts are made, and taken from their site or from another one that
has them; an agent dies before it commits. Every run checks:

  own word        what a site has just settled, or taken back, is so there
  everywhere      when all is delivered, and what is old forgotten, all sites hold the same conflicts, noticed by the same sites
  one end         and each of them is settled, or not, by the same step
  nothing again   a site tells what it did once; at rest nobody has anything to tell

Run:               python -m tests.model.history [RUNS] [FIRST_SEED]
Negative controls: ... --break echo|arrival|clock|relay|late|kept   (each must fail)
"""

import random
from dataclasses import dataclass, field

from tests.model import asked, play

BREAKS = {
    "echo": "who is told of a conflict tells it on as his own",
    "arrival": "the step that came last holds",
    "clock": "a step has the clock of its site, however far behind that is",
    "relay": "a site hands on what it did itself, and nothing else",
    "late": "a step is dropped whose conflict is not here yet",
    "kept": "what comes late is kept, however old it is",
}
BROKEN = None  # one of BREAKS
AGE = 60


@dataclass
class Site:
    me: int
    skew: int
    cuts: int = 0
    acts: int = 0                                   # own steps
    arrivals: int = 0
    records: dict = field(default_factory=dict)     # conflict -> when it was noticed
    steps: dict = field(default_factory=dict)       # (conflict, node, clock) -> [cut, what, arrival]
    frontier: dict = field(default_factory=dict)    # node -> cut
    contexts: dict = field(default_factory=dict)    # (node, cut) -> frontier

    def arrived(self):
        self.arrivals += 1
        return self.arrivals

    def step(self, conflict, what, clock):
        self.acts += 1
        self.steps[conflict, self.me, clock] = [None, what, self.arrived()]

    def notice(self, conflict, now):
        if conflict not in self.records:
            self.records[conflict] = now
            self.step(conflict, "noticed", 0)

    def settled(self, conflict):
        """The step that holds."""
        found = [(arrival if BROKEN == "arrival" else clock, node, what)
                 for (c, node, clock), (_, what, arrival) in self.steps.items() if c == conflict and what != "noticed"]
        return max(found, default=(0, 0, "undone"))

    def settle(self, conflict, now):
        known = max(clock for c, _, clock in self.steps if c == conflict)
        what = "undone" if self.settled(conflict)[2] == "resolved" else "resolved"
        self.step(conflict, what, now + self.skew if BROKEN == "clock" else max(now + self.skew, known + 1))
        assert self.settled(conflict)[1:] == (self.me, what), "somebody has settled it, and it is not so"

    def cut(self):
        self.cuts += 1
        for key, step in self.steps.items():
            if key[1] == self.me and step[0] is None:
                step[0] = self.cuts
        self.frontier[self.me] = self.cuts
        self.contexts[self.me, self.cuts] = dict(self.frontier)

    def told(self, origin, after):
        """What its tables say of a node's cuts: the steps, and the conflicts themselves."""
        return [(key, step[0], step[1], self.records.get(key[0]) if step[1] == "noticed" else None)
                for key, step in self.steps.items()
                if key[1] == origin and (step[0] or 0) > after and (step[1] != "noticed" or key[0] in self.records) and (BROKEN != "relay" or origin == self.me)]

    def take(self, via, stats):
        """All that another site has, at its newest cut, in one transaction."""
        for origin, cut in via.frontier.items():
            after = self.frontier.get(origin, 0)
            if origin == self.me or cut <= after:
                continue
            stats["relayed"] += origin != via.me
            batch = via.told(origin, after)
            for (conflict, node, clock), number, what, noticed in batch:
                if BROKEN != "late" or noticed is not None or conflict in self.records:
                    self.steps.setdefault((conflict, node, clock), [number, what, self.arrived()])
            for (conflict, *_), _, _, noticed in batch:
                if noticed is not None and conflict not in self.records:
                    self.records[conflict] = noticed
                    stats["told"] += 1
                    if BROKEN == "echo":
                        self.step(conflict, "noticed", 0)
            self.frontier[origin] = cut

    def forget(self, now, stats):
        for conflict in [c for c, noticed in self.records.items() if noticed < now - AGE and (BROKEN != "kept" or any(k[:2] == (c, self.me) for k in self.steps))]:
            stats["forgotten"] += 1
            del self.records[conflict]
            for key in [key for key in self.steps if key[0] == conflict]:
                del self.steps[key]


def run(seed, stats, **_):
    rng = random.Random(seed)
    sites = [Site(me, rng.randrange(-8, 9)) for me in range(1, rng.randint(2, 4) + 1)]
    events, now = 0, 0
    for now in range(1, rng.randint(60, 140)):
        site, via = rng.sample(sites, 2)
        match rng.randrange(8):
            case 0 | 1:
                site.notice(now, now)
                if rng.random() < 0.5:
                    via.notice(now, now)  # the same pair, at once
                events += 1
            case 2 | 3 if site.records:
                site.settle(rng.choice(sorted(site.records)[-3:]), now)
            case 4:
                site.cut()
            case 5 | 6:
                via.cut()
                if rng.random() < 0.9:  # else it dies, and nothing of it was
                    site.take(via, stats)
            case 7:
                site.forget(now, stats)
    acts = sum(site.acts for site in sites)
    for _ in sites:
        for via in sites:
            via.cut()
            for site in sites:
                if site is not via:
                    site.take(via, stats)
    for site in sites:
        site.forget(now, stats)
        assert sum(site.acts for site in sites) == acts, "told, it was told again"
        assert all(step[0] for step in site.steps.values()), "something is still to be told"
    first = sites[0]
    for site in sites[1:]:
        assert site.records.keys() == first.records.keys(), "a site lacks a conflict, or has forgotten less"
        for conflict in site.records:
            ends = {s.settled(conflict)[1:] for s in (site, first)}
            assert len(ends) == 1, "two sites have it settled otherwise"
            noticed = [{k[1] for k, step in s.steps.items() if k[0] == conflict and step[1] == "noticed"} for s in (site, first)]
            assert noticed[0] == noticed[1], "two sites say otherwise who has noticed it"
    stats["conflicts"] += events


if __name__ == "__main__":
    BROKEN = asked("--break")
    play(run)
