"""A site: its database, and an agent that drives core's inbox and outbox as the services do.

Invariant: what the agent knows is gone when it crashes; a call it had begun in its database may have been
committed or not.
"""

import random
from collections.abc import Callable, Collection
from functools import partial
from uuid import UUID

from msgspec.structs import replace

from syncagent.core import backoff, limits, stamp
from syncagent.core.arrival import START, Entry
from syncagent.core.batch import BatchHeader
from syncagent.core.inbox import Inbox
from syncagent.core.outbox import Outbox, Plan
from syncagent.core.wire import Refused, Want
from syncagent.errors import Contended, Inexact, ProtocolError
from tests.simulation.database import Database, Payload, Shipped, Staged
from tests.simulation.truth import Write
from tests.simulation.world import Net, Schedule

EPOCH = 1_000_000.0
"""The wall clock, in seconds, when a schedule begins."""
_REFUSED_AGAIN = 15.0
_TURN = 1.0
_GOSSIP = 0.2

Parts = list[tuple[BatchHeader, Payload]]
"""Batches that travel together, the sender's own last."""


class HastyInbox(Inbox[Payload]):
    """Hands out batches before what they build on."""

    def _lacks(self, entry: Entry[Payload], have: object) -> dict[int, int]:
        return {}


class Site:
    """`members` are all nodes of the cluster; a site that is gone for good is taken out."""

    def __init__(
        self,
        node: int,
        members: Collection[int],
        schedule: Schedule,
        net: Net,
        rnd: random.Random,
        writes: list[Write],
        births: dict[UUID, set[int]],
        broken: Collection[str],
    ) -> None:
        self.node, self.members, self.schedule, self.net, self.rnd = node, members, schedule, net, rnd
        self.broken = broken
        self.database = Database(node, rnd, writes, births, broken)
        self.up = True  # the database
        self.running = False  # the agent
        self.ahead = 0.0  # of the true time, in seconds
        self.links: set[int] = set()
        self.refused = 0.02  # how often a cut finds a table locked
        self.commits: tuple[float, ...] = (0.001, 0.01, 0.1)  # how long its transaction may take
        self.cuts = 0  # made in all
        self.knots = self.coalesced = self.again = 0
        self._life = 0  # changes when what was begun must not go on
        self._staged: Staged | None = None  # the cut being committed
        self._applying = False
        self._pause = 0.0
        self._failures = 0
        self._behind_cut: list[Callable[[], None]] = []
        self._wake: float | None = None
        self._tidying = self._telling = False
        self.relayed = 0
        self.start()

    # ---- life

    @property
    def now(self) -> float:
        return self.schedule.now

    def wall(self) -> int:
        return stamp.from_seconds(EPOCH + self.now + self.ahead)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """If the agent is still in this life then."""
        life = self._life

        def due() -> None:
            if life == self._life:
                action()

        self.schedule.after(seconds, due)

    def start(self) -> None:
        """A new process, or one whose database has come back."""
        if self.running or not self.up:
            return
        self.inbox: Inbox[Payload] = (HastyInbox if "causal" in self.broken else Inbox)(
            self.node, [node for node in self.net.nodes if node != self.node]
        )
        for node in self.net.nodes:
            if node not in self.members:
                self.inbox.removed(node)
        self.outbox = Outbox(self.node)
        self.running = True
        self._load()

    def _load(self) -> None:
        state = self.database.state
        last = self.database.last
        self.inbox.loaded(state.positions)
        here = {node: position.cut for node, position in state.positions.items()}
        self.outbox.loaded(last.cut, last.id, state.known.get(self.node, {}), here, state.trimmed, self.now)
        self.turn()

    def crash(self) -> None:
        """The agent ends. What it had asked of its database may still be done."""
        if self.running:
            if self._staged is not None and self.rnd.random() < 0.5:
                self.database.install(self._staged)  # its commit had left
            self._forget()
            self.running = False
            self.links.clear()
            self.net.stopped(self.node)

    def _forget(self) -> None:
        self._life += 1
        self._applying = self._tidying = self._telling = False
        self._staged = None
        self.database.merging = False
        self._behind_cut.clear()
        self._wake, self._pause, self._failures = None, 0.0, 0

    def crash_database(self, *, keep: bool) -> None:
        """`keep`: the agent outlives it, and reads everything again when it is back."""
        if not self.up:
            return
        self._staged = None
        if not keep:
            self.crash()
        self._forget()
        for peer in self.net.nodes:
            self.outbox.sent(peer)
        self.up = False
        self.database.crash()

    def restart_database(self) -> None:
        if self.up:
            return
        self.up = True
        if self.running:
            self._load()

    # ---- links

    def linked(self, peer: int) -> None:
        self.links.add(peer)
        self.inbox.linked(peer)
        if self.up:
            self.net.send(self.node, peer, self._here())
        self.turn()

    def unlinked(self, peer: int) -> None:
        self.links.discard(peer)
        self.inbox.unlinked(peer)
        self.outbox.unlinked(peer)
        self.turn()

    def heard(self, peer: int, message: object) -> None:
        if not self.running or not self.up:
            return
        match message:
            case Want():
                self._asked(peer, message)
            case Refused():
                self.inbox.refused(peer, message.message, self.now + _REFUSED_AGAIN)
            case list():
                *relayed, (header, payload) = message
                try:
                    self.relayed += self.inbox.arrived(header, payload, relayed) and len(relayed)
                except ProtocolError:
                    self.net.kill(self.node, peer)
            case dict():
                self.inbox.told(peer, message)
            case _:
                pass
        self.turn()

    def _asked(self, peer: int, want: Want) -> None:
        known = self.outbox.last_id if want.after == self.outbox.last else self.database.cut_id(want.after)
        refusal = self.outbox.asked(peer, want, known)
        if refusal is not None:
            self.net.send(self.node, peer, refusal)
        elif "told" in self.broken:
            self.database.told[peer] = {self.node: want.after}

    # ---- what the loops do, after any event

    def turn(self) -> None:
        if not self.running or not self.up:
            return
        self._cut()
        self._apply()
        for peer, want in self.inbox.wants(self.now, self.wall(), self.outbox.lacked):
            self.net.send(self.node, peer, want)
        pending = self.database.pending()
        wakes = [self.inbox.wake_in(self.now, self.wall())]
        if self._staged is None:
            wake = self.outbox.wake_in(self.now, pending)
            wakes.append(None if wake is None else max(wake, self._pause - self.now))
        wake = min((w for w in wakes if w is not None), default=None)
        if wake is not None:
            at = self.now + max(wake, 0.0005)
            if self._wake is None or at < self._wake - 1e-9:
                self._wake = at
                self.later(at - self.now, partial(self._woken, at))

    def _woken(self, at: float) -> None:
        if self._wake == at:
            self._wake = None
            self.turn()

    def written(self) -> None:
        """The application has committed; the agent's poll will find it."""
        self.later(self.rnd.choice((0.002, 0.01, limits.IDLE_POLL)) * self.rnd.random(), self.turn)
        self._tidy()

    def _cut(self) -> None:
        if self._staged is not None or self.now < self._pause:
            return
        plan = self.outbox.plan(self.now, self.database.pending())
        if plan is None:
            return
        if self.rnd.random() < self.refused:  # somebody has locked a table
            self._failures += 1
            self._pause = self.now + backoff.delay(
                self._failures, self.rnd.random(), first=limits.RETRY_FIRST, most=limits.RETRY_MOST
            )
            return
        self._failures = 0
        staged = self.database.fold(plan.groups, force=plan.cause != "pending")
        if staged is None:
            self.database.settle(self.wall())
            self._pause = self.now + limits.IDLE_POLL
            return
        self._staged = staged
        self.database.merging = not {"fold", "between"} & set(self.broken)
        self.later(self.rnd.choice(self.commits) * self.rnd.random(), partial(self._commit_cut, plan, staged))

    def _commit_cut(self, plan: Plan, staged: Staged) -> None:
        self.database.merging, self._staged = False, None
        if self.database.install(staged):
            self.cuts += 1
            self.database.settle(self.wall())
            groups = self.outbox.cut_made(
                plan, staged.number, staged.id, staged.frontier, not staged.keys, self.now
            )
            wanted = {group._replace(peers=()): group.peers for group in groups}
            for peer in {peer for group in groups for peer in group.peers}:
                shipments = [
                    s for s in staged.shipments if peer in wanted.get(s.group._replace(peers=()), ())
                ]
                unable = [group.origin for group in staged.unable if peer in group.peers]
                self._send(peer, shipments, tuple(node for node in unable if node is not None))
            self._tell()
        waiting, self._behind_cut = self._behind_cut, []
        for action in waiting:
            action()
        self._tidy()
        self.turn()

    def _send(self, peer: int, shipments: list[Shipped], unable: tuple[int, ...]) -> None:
        """What a peer gets from one cut: in one piece, since what is not complete is nothing."""
        parts: Parts = []
        for shipped in shipments:
            if shipped.group.origin is not None:
                worth = self.outbox.worth(shipped.header.origin)
                parts.append((replace(shipped.header, needed=worth), shipped.payload))
        for shipped in shipments:
            if shipped.group.origin is None:
                self.coalesced += shipped.header.upto > shipped.header.after + 1
                relayed = tuple(header.origin for header, _ in parts)
                header = replace(shipped.header, needed=self.outbox.needed, relayed=relayed, unable=unable)
                parts.append((header, shipped.payload))
        rows = sum(len(payload.rows) for _, payload in parts)
        self.net.send(self.node, peer, parts, weight=1 + rows / 4, ordered=False)

        def sent() -> None:
            self.outbox.sent(peer)
            self.turn()

        self.later(0.001, sent)

    # ---- apply

    def _apply(self) -> None:
        if self._applying:
            return
        entry = self.inbox.pick(self.now, self.wall())
        entries = self.inbox.pick_knot(self.now, self.wall()) if entry is None else [entry]
        if entries:
            self._applying = True
            self.knots += len(entries) > 1
            self.later(self.rnd.choice((0.001, 0.02)) * self.rnd.random(), partial(self._merge, entries))

    def _merge(self, entries: list[Entry[Payload]]) -> None:
        if self.database.merging:
            self._behind_cut.append(partial(self._merge, entries))
            return
        if "parts" in self.broken and len(entries) > 1:
            for entry in entries[1:]:
                self.inbox.deferred(entry, "one after the other", self.now)
            del entries[1:]
        try:
            self.database.apply(self.inbox.batches(entries), self.wall())
        except Inexact:
            self.again += 1
            for entry in entries:
                self.inbox.inexact(entry)
        except Contended as error:
            attempt = max(self.inbox.attempts(entry.origin) for entry in entries)
            pause = backoff.delay(attempt + 1, self.rnd.random(), first=limits.RETRY_FIRST, most=0.25)
            for entry in entries:
                self.inbox.deferred(entry, error.message, self.now + pause)
        else:
            self.later(0.005 * self.rnd.random(), partial(self._applied, entries))
            return
        self._applying = False
        self.turn()

    def _applied(self, entries: list[Entry[Payload]]) -> None:
        self._applying = False
        for entry in entries:
            self.inbox.applied(entry)
            for header, _ in entry.parts:
                self.outbox.learned(header.origin, header.upto, header.rows, header.needed)
        self._tell()
        self._tidy()
        self.turn()

    def _here(self) -> dict[int, int]:
        return {node: position.cut for node, position in self.database.state.positions.items()}

    def _tell(self) -> None:
        """Gossip of where this site is, not at once."""
        if not self._telling:
            self._telling = True
            self.later(_GOSSIP * self.rnd.random(), self._told)

    def _told(self) -> None:
        self._telling = False
        if self.up:
            for peer in sorted(self.links):
                self.net.send(self.node, peer, self._here())

    # ---- housekeeping

    def _tidy(self) -> None:
        """Once in a while after something has changed."""
        if self.running and not self._tidying:
            self._tidying = True
            self.later(_TURN * self.rnd.random(), self._tidied)

    def _tidied(self) -> None:
        self._tidying = False
        if self.up:
            if not self.inbox.holds_last_words or "last" in self.broken:
                self.database.compact(self.members)
            if self.rnd.random() < 0.3:
                self.database.flush()

    def at_rest(self, others: "Collection[Site]") -> bool:
        """Nothing to cut, nothing to apply, nothing to tell."""
        here = self.database.state.positions
        return (
            self.running
            and self.up
            and not (self._staged or self._applying or self.database.pending())
            and all(here.get(other.node, START).cut >= other.outbox.needed for other in others)
            and not self.outbox._has_news(self.outbox._context)
            and all(
                w.reason in ("asked", "relayed") or self._has_last_words(node, others)
                for node, w in self.inbox.waiting(self.now, self.wall()).items()
            )
        )

    def _has_last_words(self, node: int, others: "Collection[Site]") -> bool:
        """Of a site that is gone all that anybody has: nobody need be able to hand it on."""
        known = [other.database.state.positions.get(node, START).cut for other in others]
        return node not in self.members and self._here().get(node, 0) == max(known)

    def quiet(self) -> bool:
        """Whatever is left waits for a clock."""
        waits = self.inbox.waiting(self.now, self.wall()).values()
        return all(wait.reason in ("asked", "relayed", "clock", "causal") for wait in waits)
