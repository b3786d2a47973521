"""The receiver's decisions: what to ask each origin for, and which complete batch may be applied next.

It exists apart from the services so that every order of events can be tried without a database.

Invariants: the batches held of one origin form a chain that starts at the position applied here;
at most WINDOW batches of an origin are held or asked for, more only while batches wait for each other;
only what is covered here, together with what is handed out beside it, and whose stamps are not ahead of
the wall clock, is handed out; one transaction at a time is being applied.

A batch of several cuts has seen what its origin had applied at the last of them. So two of them can each
lack the other: a knot. No order of them is causal, but one transaction that applies all of it is.

An origin without a link, or whose clock is ahead, is asked for at a peer that has its batches: the relay. What a relay sends is
one entry, its own batch and those of others, read in one snapshot; whatever was replaced in them by a third origin
is in it as well, or here. When a link comes or goes meanwhile, parts that have come the other way are left out.

Calling sequence. Events go in, decisions come out; nothing is remembered outside:

    inbox = Inbox(me, origins)
    dropped = inbox.loaded(positions)         # after every connect to the database: what it has applied
    inbox.linked(origin) / inbox.unlinked(origin)                   # a link came up / went away
    inbox.reshaped(epoch, floor)              # the schema of this site has changed: what is newer waits, what is too old is dropped
    inbox.told(peer, frontier)                # what a linked peer says that it has applied: it may be the better relay
    for origin, want in inbox.wants(now, wall, lacked): send        # after ANY event, and when wake_in passes
    inbox.receiving(origin, now)              # optional: bytes of the asked batch are coming in
    kept = inbox.arrived(header, payload, relayed)   # complete and verified; not kept: close it; may raise ProtocolError
    inbox.refused(origin, message, until)     # the origin answered Refused
    entry = inbox.pick(now, wall)             # None, or the batch to apply; then exactly one of those below
    entries = inbox.pick_knot(now, wall)      # if there is none: batches to apply together; then, for each,
        dropped = inbox.applied(entry)                              # inbox.batches(entries) was committed
        dropped = inbox.inexact(entry)                              # plain rows met metadata: ask again, exact
        dropped = inbox.deferred(entry, reason, until)              # rolled back: not before `until`
        dropped = inbox.loaded(positions)                           # the connection went away in between
    inbox.wake_in(now, wall)                  # seconds until a decision may change without an event: ask with the
                                              # very time of the decision, else what falls due between is missed

`now` is monotonic seconds, `wall` the wall clock as a 60-bit hlc (stamp.from_seconds). `payload` is the
caller's own (a spool); whatever the inbox drops is returned for closing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from types import MappingProxyType
from typing import Generic, TypeVar

from msgspec.structs import replace

from syncagent.core import clock, frontier, limits, stamp
from syncagent.core.arrival import START, Entry, Position, Waiting, check
from syncagent.core.batch import BatchHeader
from syncagent.core.routes import Routes
from syncagent.core.wire import Relay, Want
from syncagent.errors import ProtocolError

P = TypeVar("P")


@dataclass
class _Origin(Generic[P]):
    """One origin as the receiver sees it."""

    applied: Position = START
    linked: bool = False
    paused: bool = False
    exact: bool = False  # the batch after `applied` is wanted in exact form
    asked: Want | None = None
    asked_at: float = 0.0
    held: list[Entry[P]] = field(default_factory=list)
    attempts: int = 0  # failures of the first held batch
    apply_after: float = 0.0
    ask_after: float = 0.0
    trouble: str = ""  # why apply_after or ask_after is set

    def tail(self) -> Position:
        """Where the chain of held batches ends: the next want starts there."""
        return (
            Position(self.held[-1].header.upto, self.held[-1].header.upto_id) if self.held else self.applied
        )


class Inbox(Generic[P]):
    """See the module's docstring."""

    def __init__(self, me: int, origins: Iterable[int] = (), *, max_skew: int = clock.MAX_SKEW) -> None:
        """`max_skew`, in hlc units: stamps further ahead of the wall clock are held."""
        self.me = me
        self._max_skew = max_skew
        self._accepted = self._schema = self._floor = 0
        self._positions: dict[int, Position] | None = None  # None: the database was not read yet
        self._origins: dict[int, _Origin[P]] = {node: _Origin() for node in origins}
        self._applying: list[Entry[P]] = []
        self._routes = Routes()
        self._gone: dict[int, bool] = {}  # whether what it had sent is void
        self._arrivals = 0

    # ---- what the database has

    def loaded(self, positions: Mapping[int, Position]) -> list[P]:
        """The frontier as committed: after every connect, and when the fate of a commit is unknown."""
        self._applying = []
        self._positions = dict(positions)
        dropped: list[P] = []
        for node, origin in self._origins.items():
            applied = positions.get(node, START)
            if applied != origin.applied:
                origin.applied, origin.attempts, origin.apply_after = applied, 0, 0.0
            dropped += self._rechain(origin)
        return dropped

    def _rechain(self, origin: _Origin[P]) -> list[P]:
        """Keep the batches that go beyond what is applied, without a gap in what they bring of anybody."""
        have = self.frontier
        chain: list[Entry[P]] = []
        dropped: list[P] = []
        for entry in origin.held:
            gap = any(header.after > have.get(header.origin, 0) for header, _ in entry.parts)
            void = gap or self._gone.get(entry.origin, False)
            if entry in self._applying or (entry.header.upto > have.get(entry.origin, 0) and not void):
                chain.append(entry)
                have = frontier.join(have, entry.reach)
            else:
                dropped += entry.payloads
        origin.held = chain
        if origin.asked and (origin.asked.after, origin.asked.after_id) != origin.tail():
            origin.asked = None
        return dropped

    @property
    def frontier(self) -> dict[int, int]:
        """The last cut applied here, per node."""
        return {node: position.cut for node, position in (self._positions or {}).items()}

    def _at(self, node: int) -> _Origin[P]:
        known = (self._positions or {}).get(node, START)
        return self._origins.setdefault(node, _Origin(applied=known))

    def reshaped(self, epoch: int, floor: int) -> list[P]:
        """The schema is at this epoch here; rows of older ones than `floor` cannot be read any more, and are asked for again."""
        self._schema, self._floor = epoch, floor
        dropped: list[P] = []
        for origin in self._origins.values():
            free = [entry for entry in origin.held if entry not in self._applying]
            if any(self.is_outgrown(entry.header) for entry in free):
                dropped += [payload for entry in free for payload in entry.payloads]
                origin.held, origin.asked = [entry for entry in origin.held if entry not in free], None
        for origin in self._origins.values():
            dropped += self._rechain(origin)
        return dropped

    def is_outgrown(self, header: BatchHeader) -> bool:
        """Its rows have a shape that is too old to be read here."""
        return header.schema < self._floor

    # ---- who there is

    def meet(self, node: int) -> None:
        """A site that has come."""
        self._at(node)

    def removed(self, node: int, *, void: bool = False) -> list[P]:
        """A site that is gone for good: nobody could resume it. `void`: what it has sent, and is not applied, it has taken back."""
        origin = self._at(node)
        origin.paused = False
        self._gone[node] = void
        return self._rechain(origin)

    @property
    def holds_last_words(self) -> bool:
        """Whether batches of a site that is gone are here and not applied yet. It is not asked any more what it has seen, but
        what these had not seen must not be forgotten before they meet it."""
        return any(header.origin in self._gone for entry in self._held() for header, _ in entry.parts)

    def _held(self) -> list[Entry[P]]:
        return [entry for origin in self._origins.values() for entry in origin.held]

    # ---- links and relays

    def linked(self, node: int) -> None:
        """A new link: nothing asked over an older one counts any more."""
        origin = self._at(node)
        origin.linked, origin.asked, origin.ask_after = True, None, 0.0

    def unlinked(self, node: int) -> None:
        """The link is gone. What has arrived complete is kept."""
        origin = self._at(node)
        origin.linked, origin.asked = False, None
        self._routes.unlinked(node)

    def told(self, peer: int, have: Mapping[int, int]) -> None:
        """What a linked peer says that it has applied."""
        self._routes.told(peer, have)

    def relay(self, node: int) -> int | None:
        """Whom this origin is asked for at, if not itself."""
        return self._routes.relay(node)

    # ---- wants

    def pause(self, node: int, paused: bool = True) -> None:
        """Neither ask this origin nor apply what it sent."""
        self._at(node).paused = paused

    def wants(
        self, now: float, wall: int, lacked: Mapping[int, int] = MappingProxyType({})
    ) -> list[tuple[int, Want]]:
        """The wants to send now; they count as sent. `lacked`: the cuts that others wait for, and ask us for."""
        out: list[tuple[int, Want]] = []
        have = self.frontier  # and what is held: a relay that has no more than that has nothing more
        timely = {node: self._timely(origin, wall) for node, origin in self._origins.items()}
        for entry in (entry for entries in timely.values() for entry in entries):
            have = frontier.join(have, entry.reach)
        linked = [node for node, origin in self._origins.items() if origin.linked]
        near = {
            node: node in linked and len(timely[node]) == len(self._origins[node].held)
            for node in self._origins
        }
        self._routes.choose(near, linked, have, now)
        tangled = self._tangled(wall) if self._positions is not None else {}
        needs = frontier.join(tangled, lacked)
        for node, origin in self._origins.items() if self._positions is not None else ():
            if self._has_room(node, origin, tangled) and origin.linked:
                want = self._want(node, origin, needs)
                if self._may_ask(origin, want, now):
                    origin.asked, origin.asked_at = want, now
                    out.append((node, want))
        return out

    def _want(self, node: int, origin: _Origin[P], needs: Mapping[int, int]) -> Want:
        """What follows all that is here, and on its way, of this peer and of whom it relays."""
        cut, cut_id = origin.tail()
        have = self.frontier
        for entry in origin.held:
            have = frontier.join(have, entry.reach)
        relay = {
            other: Relay(have.get(other, 0), needs.get(other, 0))
            for other in self._routes.of(node)
            if not self._origins[other].paused
        }
        return Want(cut, cut_id, plain=not origin.exact, needs=needs.get(node, 0), relay=relay)

    def _has_room(self, node: int, origin: _Origin[P], tangled: Mapping[int, int]) -> bool:
        """A knot is closed by whoever lacks a batch, and sooner by all who send small ones meanwhile."""
        sent = [other for other in tangled if self._sender(other) == node]
        if len(origin.held) < limits.WINDOW or any(tangled[other] for other in sent):
            return True
        size = sum(entry.size for entry in origin.held)
        return bool(sent) and len(origin.held) < limits.KNOT_WINDOW and size < limits.KNOT_SIZE

    def _sender(self, node: int) -> int:
        """Who sends this origin's batches."""
        return self._routes.relay(node) or node

    def _may_ask(self, origin: _Origin[P], want: Want, now: float) -> bool:
        if origin.paused or now < origin.ask_after:
            return False
        asked = origin.asked
        if asked is None or asked.needs < want.needs or now >= origin.asked_at + limits.ASK_AGAIN:
            return True
        return any(
            other not in asked.relay or asked.relay[other].needs < relay.needs
            for other, relay in want.relay.items()
        )

    def receiving(self, node: int, now: float) -> None:
        """Bytes are coming in: the want is being answered, do not repeat it."""
        self._at(node).asked_at = now

    def refused(self, node: int, message: str, until: float) -> None:
        """The origin cannot serve our want; ask again after `until`, or over a new link."""
        origin = self._at(node)
        origin.asked, origin.ask_after, origin.trouble = None, until, message

    # ---- batches

    def arrived(self, header: BatchHeader, payload: P, relayed: Sequence[tuple[BatchHeader, P]] = ()) -> bool:
        """A complete batch, and what came before it from the same sender.

        False: stale, twice, beyond a gap, or in a form that is not wanted any more.
        """
        headers = [*(part for part, _ in relayed), header]
        for part in headers:
            check(part)
        if sorted(part.origin for part, _ in relayed) != sorted(header.relayed):
            raise ProtocolError(
                f"node {header.origin} sent a batch that goes with those of nodes {header.relayed}, which did not come",
                hint="both sites must run the same version of syncagent; then restart the agent at the origin",
            )
        origin = self._origins.get(header.origin)
        if origin is None or origin.asked is None or header.after != origin.asked.after:
            return False
        if any(part.origin not in origin.asked.relay for part, _ in relayed):
            return False
        if not origin.asked.plain and any(
            stream.form == "plain" for part in headers for stream in part.streams
        ):
            return False
        self._arrivals += 1
        entry = Entry(header, payload, self._arrivals, tuple(relayed))
        self.told(header.origin, header.context)
        unable = {node: relay.after for node, relay in origin.asked.relay.items() if node in header.unable}
        self._routes.unable(header.origin, unable)
        origin.held.append(entry)
        origin.asked = None
        self._rechain(origin)
        return entry in origin.held

    def pick(self, now: float, wall: int) -> Entry[P] | None:
        """The batch to apply now, oldest first over all origins."""
        if self._applying:
            return None
        holding = [origin for origin in self._origins.values() if origin.held]
        ready = [origin.held[0] for origin in holding if not self._blocked(origin, origin.held[0], now, wall)]
        entry = min(ready, key=lambda entry: entry.order, default=None)
        self._applying = [] if entry is None else [entry]
        return entry

    def pick_knot(self, now: float, wall: int) -> list[Entry[P]]:
        """The fewest batches that wait for nothing but each other, oldest first; for one transaction."""
        if self._applying:
            return []
        holding = [node for node, origin in self._origins.items() if origin.held]
        closed = [knot for knot, lacking in (self._knot(node, wall) for node in holding) if not lacking]
        free = [k for k in closed if all(self._hindered(entry, now, wall) is None for entry in k)]
        smallest: list[Entry[P]] = min(free, key=len, default=[])
        self._applying = sorted(smallest, key=lambda entry: entry.order)
        return list(self._applying)

    def _knot(self, node: int, wall: int) -> tuple[list[Entry[P]], dict[int, int]]:
        """What must be applied together with the first batch of an origin, and the cuts it lacks."""
        taken, lacking = {node: 1}, dict[int, int]()
        knot, seen = [self._origins[node].held[0]], 0
        while seen < len(knot):
            entry, seen = knot[seen], seen + 1
            for other, cut in self._lacks(entry, self.frontier).items():
                sender, reach, enough = self._brings(other, cut, wall)
                knot += self._at(sender).held[taken.get(sender, 0) : reach]
                taken[sender] = max(reach, taken.get(sender, 0))
                if not enough:
                    lacking[other] = max(cut, lacking.get(other, 0))
        return knot, lacking

    def _brings(self, node: int, cut: int, wall: int) -> tuple[int, int, bool]:
        """Who has sent this cut, any relay of before, too, with how many of the batches held of it; and whether anybody has."""
        sender = self._sender(node)
        for peer in (node, sender, *self._origins):
            for count, entry in enumerate(self._timely(self._at(peer), wall), 1):
                if entry.reach.get(node, 0) >= cut:
                    return peer, count, True
        return sender, len(self._timely(self._at(sender), wall)), False

    def _tangled(self, wall: int) -> dict[int, int]:
        """Origins whose batches are in an open knot, or would close it, and up to which cut they must come."""
        tangled: dict[int, int] = {}
        for node, origin in self._origins.items():
            knot, lacking = self._knot(node, wall) if self._timely(origin, wall) else ([], {})
            for entry in knot if lacking else ():  # what is closed needs nothing more
                tangled = frontier.join(dict.fromkeys(entry.reach, 0), tangled)
            tangled = frontier.join(tangled, lacking)
        return tangled

    def _lacks(self, entry: Entry[P], have: Mapping[int, int]) -> dict[int, int]:
        have = frontier.join(have, entry.reach)
        return frontier.missing(entry.header.context, have, origin=entry.origin, me=self.me)

    def _blocked(self, origin: _Origin[P], entry: Entry[P], now: float, wall: int) -> Waiting | None:
        """Why this batch may not be applied now."""
        if origin.paused:
            return Waiting("paused", "paused by the operator")
        if hindered := self._hindered(entry, now, wall):
            return hindered
        if lacks := self._lacks(entry, self.frontier):
            names = ", ".join(f"cut {cut} of node {other}" for other, cut in sorted(lacks.items()))
            return Waiting("causal", f"waits for {names}")
        return None

    def _hindered(self, entry: Entry[P], now: float, wall: int) -> Waiting | None:
        """What keeps this batch back beside the batches of others."""
        origin, (newest, node) = self._origins[entry.origin], entry.newest
        if any(self._origins[part.origin].paused for part, _ in entry.parts):
            return Waiting("paused", "paused by the operator")
        if entry.header.schema > self._schema:
            return Waiting(
                "schema", f"waits until this site has done step {entry.header.schema} of the schema's changes"
            )
        if self._excess(newest, wall):
            ahead = stamp.to_seconds(newest - wall)
            return Waiting("clock", f"held: the clock of node {node} is {ahead:.1f} s ahead of ours")
        if now < origin.apply_after and entry is origin.held[0]:
            return Waiting("deferred", origin.trouble)
        return None

    def batches(self, entries: Sequence[Entry[P]]) -> list[tuple[BatchHeader, P]]:
        """What to commit for entries that were picked: each range from where this site will then be."""
        have, batches = self.frontier, []
        for entry in entries:
            for header, payload in entry.parts:
                after = have.get(header.origin, 0)
                if header.upto > after:
                    batches.append(
                        (header if header.after == after else replace(header, after=after), payload)
                    )
            have = frontier.join(have, entry.reach)
        return batches

    def applied(self, entry: Entry[P]) -> list[P]:
        """Rows and frontier are committed. Returns what has been overtaken by that."""
        origin = self._end(entry)
        origin.held.remove(entry)
        assert self._positions is not None
        for header, _ in entry.parts:
            at = self._at(header.origin)
            if header.upto > at.applied.cut:
                at.applied = self._positions[header.origin] = Position(header.upto, header.upto_id)
        origin.exact, origin.attempts, origin.apply_after = False, 0, 0.0
        return [payload for other in self._origins.values() for payload in self._rechain(other)]

    def inexact(self, entry: Entry[P]) -> list[P]:
        """Plain rows met metadata of their keys: forget the chain, ask for it in exact form."""
        origin = self._end(entry)
        dropped = [payload for held in origin.held for payload in held.payloads]
        origin.held, origin.asked, origin.exact = [], None, True
        origin.attempts, origin.apply_after = 0, 0.0
        return dropped

    def deferred(self, entry: Entry[P], reason: str, until: float) -> list[P]:
        """It could not be applied and nothing was changed. Other origins go on. Returns what the schema has outgrown meanwhile."""
        origin = self._end(entry)
        origin.attempts += 1
        origin.apply_after, origin.trouble = until, reason
        return self.reshaped(self._schema, self._floor)

    def attempts(self, node: int) -> int:
        """How often the first held batch of this origin was deferred."""
        return self._at(node).attempts

    def _end(self, entry: Entry[P]) -> _Origin[P]:
        assert entry in self._applying, "only a batch that was picked can end"
        self._applying.remove(entry)
        return self._origins[entry.origin]

    # ---- a clock that is ahead

    def accept(self, until: int) -> None:
        """Somebody has said that stamps up to this clock are to be taken: time counts as having come so far."""
        self._accepted = until

    def _timely(self, origin: _Origin[P], wall: int) -> list[Entry[P]]:
        """What is held of an origin up to where a clock is ahead; the rest does not count as here: others build on its first cuts."""
        return list(takewhile(lambda entry: not self._excess(entry.newest[0], wall), origin.held))

    def ahead(self, node: int, wall: int) -> int | None:
        """The largest clock of what is held of an origin because it is too far ahead; None if nothing is."""
        held = [entry.newest[0] for entry in self._at(node).held]
        return max((newest for newest in held if self._excess(newest, wall)), default=None)

    def _excess(self, newest: int, wall: int) -> int:
        return clock.excess(newest, max(wall, self._accepted), self._max_skew)

    # ---- for status and for the loop

    def waiting(self, now: float, wall: int) -> dict[int, Waiting]:
        """Per origin, what its stream waits for."""
        return {node: self._waiting(node, origin, now, wall) for node, origin in self._origins.items()}

    def _waiting(self, node: int, origin: _Origin[P], now: float, wall: int) -> Waiting:
        if applying := [entry for entry in self._applying if entry.origin == node]:
            return Waiting("applying", f"applying up to cut {applying[-1].header.upto}")
        if origin.held:
            return self._blocked(origin, origin.held[0], now, wall) or Waiting("next", "about to be applied")
        if origin.paused:
            return Waiting("paused", "paused by the operator")
        if not origin.linked:
            if (via := self.relay(node)) is not None:
                return Waiting(
                    "relayed", f"has everything up to cut {origin.applied.cut}, asked node {via} for more"
                )
            return Waiting("unlinked", "no link")
        if now < origin.ask_after:
            return Waiting("refused", origin.trouble)
        if origin.asked is not None:
            return Waiting("asked", f"has everything up to cut {origin.asked.after}, asked for more")
        return Waiting("none", "about to ask")

    def wake_in(self, now: float, wall: int) -> float | None:
        """Seconds until wants or pick may answer differently although nothing happens; None: never."""
        waits = self._routes.waits(now)
        tangled = self._tangled(wall)
        for node, origin in self._origins.items():
            if origin.paused:
                continue
            if origin.held:
                waits.append(origin.apply_after - now)
                waits += [stamp.to_seconds(self._excess(entry.newest[0], wall)) for entry in origin.held]
            if origin.linked and self._has_room(node, origin, tangled):
                waits.append(
                    origin.asked_at + limits.ASK_AGAIN - now if origin.asked else origin.ask_after - now
                )
        return min((wait for wait in waits if wait > 0), default=None)
