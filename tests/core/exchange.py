"""Sites that are an inbox, an outbox and a few numbers: what is decided, without a database or a network.

A site's rows are the cuts in which they were written, so what must hold can be said in vectors: what is
applied continues what was there, and its origin had seen nothing that is not here or comes with it. Not all
of them need to have links with each other.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import combinations
from uuid import UUID

from msgspec.structs import replace

from syncagent.core import frontier, stamp
from syncagent.core.arrival import Entry
from syncagent.core.batch import BatchHeader, Form
from syncagent.core.inbox import Inbox
from syncagent.core.outbox import Outbox, Plan
from syncagent.core.wire import Refused, Want
from tests.core.batches import cut_id, header, position

Payload = tuple[int, int]
"""The batch's origin, and a number of its own."""


@dataclass
class Site:
    me: int
    peers: tuple[int, ...]
    pending: int = 0
    cuts: list[tuple[dict[int, int], int]] = field(default_factory=list)  # context and rows of 1, 2, 3, ...
    cut_times: list[float] = field(default_factory=list)
    applied: dict[int, int] = field(default_factory=dict)
    known: dict[int, dict[int, int]] = field(
        default_factory=dict
    )  # context of the last cut applied, per origin

    def __post_init__(self) -> None:
        self.inbox: Inbox[Payload] = Inbox(self.me, self.peers)
        self.outbox = Outbox(self.me)

    @property
    def last(self) -> int:
        return len(self.cuts)

    def here(self) -> dict[int, int]:
        return {**self.applied, self.me: self.last}

    def load(self, now: float) -> list[Payload]:
        """What a new connection to the database tells."""
        context = self.cuts[-1][0] if self.cuts else {}
        self.outbox.loaded(self.last, self.cut_id(self.last), context, self.here(), 0, now)
        return self.inbox.loaded({node: position(node, cut) for node, cut in self.applied.items()})

    def cut_id(self, cut: int) -> UUID | None:
        return cut_id(self.me, cut) if 0 < cut <= self.last else None

    def make_cut(self, plan: Plan, now: float, world: "Exchange") -> list[tuple[int, list[BatchHeader]]]:
        """For each peer the batches that go together, its own last."""
        self.cuts.append(({**self.applied, self.me: self.last + 1}, self.pending))
        empty, self.pending = not self.pending, 0
        self.cut_times.append(now)
        context = self.cuts[-1][0]
        groups = self.outbox.cut_made(plan, self.last, cut_id(self.me, self.last), context, empty, now)
        made = []
        for peer in {peer for group in groups for peer in group.peers}:
            own: list[BatchHeader] = []
            parts: list[BatchHeader] = []
            for group in (g for g in groups if peer in g.peers):
                form: Form = "plain" if group.plain else "exact"
                if group.origin is None:
                    own.append(self.batch(group.after, self.last, form, self.outbox.needed))
                elif group.after < self.applied.get(group.origin, 0):
                    worth = self.outbox.worth(group.origin)
                    there = world.sites[group.origin]
                    parts.append(there.batch(group.after, self.applied[group.origin], form, worth))
            made.append((peer, [*parts, replace(own[0], relayed=tuple(part.origin for part in parts))]))
        return made

    def batch(self, after: int, upto: int, form: Form, needed: int) -> BatchHeader:
        contexts = {cut: self.cuts[cut - 1][0] for cut in range(after + 1, upto + 1)}
        rows = sum(rows for _, rows in self.cuts[after:upto])
        return replace(header(self.me, after, upto, contexts, rows, form=form), needed=needed)

    def commit(self, entries: list[Entry[Payload]]) -> None:
        """All or nothing: afterwards everything that an origin, or a relay, had seen is here."""
        for batch, _ in self.inbox.batches(entries):
            assert batch.after == self.applied.get(batch.origin, 0), "a gap, or twice"
            self.applied[batch.origin] = batch.upto
            self.known[batch.origin] = batch.context
        for entry in entries:
            assert frontier.covers(self.here(), entry.header.context), "not causal"


class Exchange:
    """Sites and the messages between them."""

    def __init__(self, rnd: random.Random, count: int) -> None:
        """Every site has links with one or more others, and there is a way from each to each."""
        self.rnd = rnd
        self.now = 0.0
        nodes = range(1, count + 1)
        self.sites = {me: Site(me, tuple(node for node in nodes if node != me)) for me in nodes}
        self.control: dict[tuple[int, int], deque[Want | Refused]] = {}  # by sender and receiver
        self.data: dict[tuple[int, int], deque[list[tuple[BatchHeader, Payload]]]] = {}
        self.open: set[Payload] = set()  # neither applied nor closed
        self.spools = self.knots = self.relayed = 0
        for site in self.sites.values():
            site.load(self.now)
        pairs = set(combinations(nodes, 2))
        if rnd.random() < 0.5:
            tree = {(rnd.randrange(1, node), node) for node in nodes[1:]}
            pairs = tree | {pair for pair in pairs if rnd.random() < 0.2}
        self.links = sorted(pairs)
        for pair in self.links:
            self.link(*pair)

    # ---- what may happen at any time

    def link(self, one: int, other: int) -> None:
        """A new link; what was under way over the one before is gone."""
        for me, peer in ((one, other), (other, one)):
            self.close([payload for parts in self.data.get((me, peer), ()) for _, payload in parts])
            self.control[me, peer], self.data[me, peer] = deque(), deque()
            self.sites[me].inbox.unlinked(peer)
            self.sites[me].outbox.unlinked(peer)
        if self.rnd.random() < 0.2:
            self.now += self.rnd.choice([0.1, 1.0, 5.0])
            self.ask(self.sites[one])
            self.ask(self.sites[other])
        for me, peer in ((one, other), (other, one)):
            self.sites[me].inbox.linked(peer)

    def close(self, payloads: list[Payload]) -> None:
        for payload in payloads:
            self.open.remove(payload)

    def ask(self, site: Site) -> bool:
        wants = site.inbox.wants(self.now, stamp.from_seconds(self.now))
        for peer, want in wants:
            self.control[site.me, peer].append(want)
        return bool(wants)

    def cut(self, site: Site) -> bool:
        plan = site.outbox.plan(self.now, site.pending > 0)
        for peer, batches in site.make_cut(plan, self.now, self) if plan else ():
            parts = []
            for batch in batches:
                self.spools += 1
                self.open.add((site.me, self.spools))
                parts.append((batch, (site.me, self.spools)))
            self.data[site.me, peer].append(parts)
        return plan is not None

    def deliver(self) -> bool:
        """Some link hands over its oldest message."""
        full = [
            (queue, ends) for queues in (self.control, self.data) for ends, queue in queues.items() if queue
        ]
        if full:
            _, (sender, receiver) = chosen = self.rnd.choice(full)
            self._receive(self.sites[sender], self.sites[receiver], chosen[0].popleft())
        return bool(full)

    def _receive(
        self, sender: Site, site: Site, message: Want | Refused | list[tuple[BatchHeader, Payload]]
    ) -> None:
        match message:
            case Want():
                refusal = site.outbox.asked(sender.me, message, site.cut_id(message.after))
                if refusal:
                    self.control[site.me, sender.me].append(refusal)
            case list():
                sender.outbox.sent(site.me)
                *relayed, (batch, payload) = message
                self.relayed += len(relayed)
                if not site.inbox.arrived(batch, payload, relayed):
                    self.close([payload for _, payload in message])
            case Refused():
                raise AssertionError(f"refused: {message}")

    def apply(self, site: Site, trouble: float = 0.0) -> bool:
        """Merge what may be merged; with some luck it is refused, inexact, or the connection goes away."""
        wall = stamp.from_seconds(self.now)
        entry = site.inbox.pick(self.now, wall)
        entries = [entry] if entry else site.inbox.pick_knot(self.now, wall)
        self.knots += len(entries) > 1
        if not entries:
            return False
        match self.rnd.randrange(5) if self.rnd.random() < trouble else None:
            case 0:
                for each in entries:
                    site.inbox.deferred(each, "locked", self.now + self.rnd.choice([0.01, 5.0]))
            case 1:
                for each in entries:
                    self.close(site.inbox.inexact(each))
            case 2:  # gone before the commit
                self.close(site.load(self.now))
            case 3:  # and after it
                site.commit(entries)
                self.close(site.load(self.now))
            case _:
                site.commit(entries)
                for each in entries:
                    self.close(site.inbox.applied(each))
                    for header, payload in each.parts:
                        site.outbox.learned(header.origin, header.upto, header.rows, header.needed)
                        self.close([payload])
        return True

    def gossip(self, site: Site) -> None:
        for one, other in self.links:
            if site.me in (one, other):
                peer = other if site.me == one else one
                self.sites[peer].inbox.told(site.me, site.here())

    # ---- schedules

    def stir(self, steps: int) -> None:
        """Whatever comes, in whatever order."""
        for _ in range(steps):
            site = self.rnd.choice(list(self.sites.values()))
            match self.rnd.randrange(16):
                case 0 | 1:
                    site.pending += 1
                case 2:
                    self.now += self.rnd.choice([0.003, 0.1, 2.0])
                case 3 if self.rnd.random() < 0.2:
                    self.link(*self.rnd.choice(self.links))
                case 4 | 5:
                    self.ask(site)
                case 6 | 7:
                    self.cut(site)
                case 8 | 9 | 10:
                    self.apply(site, trouble=0.2)
                case 11:
                    self.gossip(site)
                case _:
                    self.deliver()

    def rest(self, seconds: float) -> None:
        """Everything that can happen without a write does, as long as time is left."""
        end = self.now + seconds
        while self.now < end:
            sites = self.sites.values()
            moved = self.deliver()
            for site in sites:
                self.gossip(site)
                moved |= self.ask(site) | self.apply(site) | self.cut(site)
            if not moved:
                self.now = min(
                    [end, *(self.now + max(wake, 1e-6) for site in sites for wake in self._wakes(site))]
                )

    def _wakes(self, site: Site) -> list[float]:
        wakes = (
            site.inbox.wake_in(self.now, stamp.from_seconds(self.now)),
            site.outbox.wake_in(self.now, site.pending > 0),
        )
        return [wake for wake in wakes if wake is not None]
