"""The origin's decisions: when to make a cut, and which ranges of cuts to read out for whom.

It exists apart from the services so that every order of events can be tried without a database.

Invariants: a batch ends at a cut that was made for it, so its snapshot is open while it is read; each
want is answered once; a peer without a want holds nobody; at rest no cut is made because of a cut that
told nothing; a want for a cut that was never made here is refused. What is handed on of the batches of others is
read under the same snapshot, so this site's context says how far it goes.

Calling sequence. Events go in, decisions come out:

    outbox = Outbox(me)
    outbox.loaded(last, last_id, context, frontier, floor, now)     # after every connect to the database
    answer = outbox.asked(peer, want, id_here)           # a want; answer: None, or the Refused to send
    outbox.unlinked(peer)                                # its link went away, and its want with it
    outbox.learned(origin, upto, rows, needed)           # a batch of another origin was applied here
    outbox.marked(request)                               # somebody wants a cut of what is committed now
    plan = outbox.plan(now, pending)                     # after ANY event, and when wake_in passes
    if plan:                                             # one cut transaction: fold, and read every group
        ... for group in plan.groups: read (group.after, new cut] in the group's form into a spool; of another
            origin, up to the last cut that was applied of it; nothing, if that is not beyond group.after
        groups = outbox.cut_made(plan, number, id, frontier, empty, now)      # committed; before any byte leaves
        ... send each group's spool to group.peers, then outbox.sent(peer); answer plan.marks with the frontier
    outbox.wake_in(now, pending)                         # seconds until plan may answer differently

`pending`: the log has entries that no cut has folded. `empty`: the cut folded none. If the cut fails,
cut_made is not called and nothing was consumed: ask plan again after a pause. `id_here` is what the
database holds as the id of cut `want.after` (None: not known any more); `outbox.last_id` saves the look
when `want.after == outbox.last`. `now` is monotonic seconds.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple
from uuid import UUID

from syncagent.core import frontier as vectors
from syncagent.core import limits
from syncagent.core.wire import Refused, Want

Cause = Literal["mark", "behind", "pending", "knowledge", "idle"]


class Group(NamedTuple):
    """Peers at the same position: one batch `(after, upto]` is read once and sent to all of them.

    `origin` is whose cuts these are; None: this site's own.
    """

    after: int
    plain: bool
    peers: tuple[int, ...]
    origin: int | None = None


class Plan(NamedTuple):
    """A cut to make now, the batches to read under its snapshot, and the wants and marks it answers."""

    cause: Cause
    groups: tuple[Group, ...]
    marks: tuple[UUID, ...]
    wants: Mapping[int, Want]


class Outbox:
    """See the module's docstring."""

    def __init__(self, me: int) -> None:
        self._me, self.last = me, 0
        self.last_id: UUID | None = None
        self.floor = 0
        self._context: dict[int, int] = {}
        self._needed = 0  # the last cut that says something; later ones were made for a peer that lagged,
        # and only who has seen what builds on them needs them
        self._news: dict[int, int] = {}  # the newest batch with rows applied here, per origin
        self._here: dict[int, int] = {}  # the last cut applied, per origin
        self._worth: dict[int, int] = {}  # of those, the last that says something
        self._cut_at = float("-inf")
        self._interval = limits.CUT_INTERVAL
        self._took = 0.0  # the last cut
        self._asked_at = float("-inf")  # when the last cut was made that somebody had asked for
        self._wants: dict[int, Want] = {}
        self._answering: dict[int, Want] = {}
        self._marks: list[UUID] = []

    # ---- events

    def loaded(
        self,
        last: int,
        last_id: UUID | None,
        context: Mapping[int, int],
        frontier: Mapping[int, int],
        floor: int,
        now: float,
    ) -> None:
        """The last cut in the database with its context, the frontier of now, and the cut up to which the
        log is gone. What is not recorded is assumed: that everybody needs the last cut, and that what was
        applied since is news.
        """
        self.last, self.last_id, self.floor = last, last_id, floor
        self._context, self._news = dict(context), dict(frontier)
        self._here, self._worth = dict(frontier), dict(frontier)
        self._needed, self._cut_at, self._asked_at = last, now, now

    def asked(self, peer: int, want: Want, id_here: UUID | None) -> Refused | None:
        """A peer wants what follows `want.after`. A newer want replaces the one before."""
        refusal = self._refusal(want, id_here)
        if refusal is not None:
            self._wants.pop(peer, None)
        elif not _same(self._answering.get(peer), want):  # said twice while the answer is on its way
            self._wants[peer] = want
        return refusal

    def _refusal(self, want: Want, id_here: UUID | None) -> Refused | None:
        if want.after > self.last or (want.after > 0 and id_here is not None and id_here != want.after_id):
            return Refused(
                code="unknown-cut",
                message=f"cut {want.after} that you applied was never made here; the last one is {self.last}",
                hint="this database was restored or replaced; run `syncagent rejoin` at the site that went back",
            )
        if want.after < self.floor or (want.after > 0 and id_here is None):
            return Refused(
                code="log-cut",
                message=f"the log after cut {want.after} is gone; it starts after cut {self.floor}",
                hint="the site that was away must catch up by comparing rows",
            )
        return None

    def unlinked(self, peer: int) -> None:
        """The peer asks again over its next link."""
        self._wants.pop(peer, None)
        self._answering.pop(peer, None)

    def sent(self, peer: int) -> None:
        """The last answer has left, or was given up."""
        self._answering.pop(peer, None)

    def learned(self, origin: int, upto: int, rows: int, needed: int) -> None:
        """A batch of another origin was applied. An empty one is no news, else sites at rest would chatter; but whoever
        is relayed this origin wants what its origin would send it: up to the cut that is `needed`.
        """
        self._here[origin] = max(upto, self._here.get(origin, 0))
        self._worth[origin] = max(min(needed, upto), self._worth.get(origin, 0))
        if rows:
            self._news[origin] = max(upto, self._news.get(origin, 0))

    def marked(self, request: UUID) -> None:
        """The next cut answers this request."""
        self._marks.append(request)

    # ---- decisions

    def plan(self, now: float, pending: bool) -> Plan | None:
        """Should a cut be made now, and what is to be read under it."""
        cause, due = self._due(pending)
        if cause is None or now < due:
            return None
        groups: dict[Group, list[int]] = {}
        for peer, want in sorted(self._wants.items()):
            for origin, relay in sorted(want.relay.items()):
                groups.setdefault(Group(relay.after, want.plain, (), origin), []).append(peer)
            groups.setdefault(Group(want.after, want.plain, ()), []).append(peer)
        ordered = sorted(groups, key=lambda group: (group.origin or 0, group.after, group.plain))
        shared = tuple(group._replace(peers=tuple(groups[group])) for group in ordered)
        return Plan(cause, shared, tuple(self._marks), dict(self._wants))

    def wake_in(self, now: float, pending: bool) -> float | None:
        """Seconds until plan says something, if nothing else happens; None: never."""
        cause, due = self._due(pending)
        return None if cause is None else max(0.0, due - now)

    def _due(self, pending: bool) -> tuple[Cause | None, float]:
        """Why a cut is to be made, and when."""
        if self._marks:
            return "mark", self._cut_at
        if any(self._is_behind(want) for want in self._wants.values()):
            return "behind", self._cut_at + self._interval
        if pending and self._wants:
            return "pending", self._cut_at + self._interval
        if self._wants and self._has_news(self._context):
            return "knowledge", self._cut_at + limits.KNOWLEDGE_INTERVAL
        if pending:
            alone = (self._cut_at - self._asked_at) / limits.IDLE_CUT_SHARE
            return "idle", self._cut_at + min(max(alone, limits.IDLE_CUT_INTERVAL), limits.IDLE_CUT_MOST)
        return None, 0.0

    def _is_behind(self, want: Want) -> bool:
        """What this peer lacks says something, or what it has waits for it."""
        return want.after < max(self._needed, min(want.needs, self.last)) or any(
            relay.after < max(self._worth.get(node, 0), min(relay.needs, self._here.get(node, 0)))
            for node, relay in want.relay.items()
        )

    def _has_news(self, context: Mapping[int, int]) -> bool:
        return not vectors.covers(context, self._news)

    def cut_made(
        self,
        plan: Plan,
        number: int,
        cut_id: UUID,
        frontier: Mapping[int, int],
        empty: bool,
        now: float,
        took: float = 0.0,
    ) -> tuple[Group, ...]:
        """The cut is committed, after `took` seconds. Returns the groups with the peers that still want them."""
        rest = limits.CUT_REST * min(took, self._took)  # one that had to wait delays those after it no more
        self._interval = min(max(limits.CUT_INTERVAL, rest), limits.CUT_INTERVAL_MOST)
        self._took = took
        # Those that nobody asks for are seldom anyway: whoever comes back meanwhile does not wait for one.
        if plan.cause == "idle":
            self._interval = limits.CUT_INTERVAL
        else:
            self._asked_at = now
        # It may tell of a merge that is committed, and not heard of here yet: whoever hands this cut on must know by then.
        unheard = any(cut > self._here.get(node, 0) for node, cut in frontier.items() if node != self._me)
        if not empty or plan.marks or unheard or self._has_news(self._context):
            self._needed = number
        self.last, self.last_id, self._context, self._cut_at = number, cut_id, dict(frontier), now
        self._marks = [request for request in self._marks if request not in plan.marks]
        answered = {peer for peer, want in plan.wants.items() if self._take(peer, want)}
        groups = (
            group._replace(peers=tuple(peer for peer in group.peers if peer in answered))
            for group in plan.groups
        )
        return tuple(group for group in groups if group.peers)

    def _take(self, peer: int, planned: Want) -> bool:
        """The want is answered, unless it was replaced or its link went away meanwhile."""
        want = self._wants.get(peer)
        if want is None or not _same(planned, want):
            return False
        self._answering[peer] = self._wants.pop(peer)
        return True

    @property
    def waiting(self) -> int:
        """How many wants and marks wait for a cut."""
        return len(self._wants) + len(self._marks)

    @property
    def lacked(self) -> dict[int, int]:
        """Cuts of other origins that peers wait for, and ask us for, and that are not here: whoever has them must be told."""
        lacked: dict[int, int] = {}
        for want in self._wants.values():
            wanted = {node: relay.needs for node, relay in want.relay.items()}
            lacked = vectors.join(lacked, {n: cut for n, cut in wanted.items() if cut > self._here.get(n, 0)})
        return lacked

    @property
    def needed(self) -> int:
        """The last cut that says something: at rest nobody wants more."""
        return self._needed

    def worth(self, origin: int) -> int:
        """The last cut of another origin that says something, of those applied here."""
        return self._worth.get(origin, 0)


def _same(one: Want | None, other: Want) -> bool:
    """They ask for the same, however much it is waited for."""
    return one is not None and _asked(one) == _asked(other)


def _asked(want: Want) -> tuple[object, ...]:
    relay = {node: relay.after for node, relay in want.relay.items()}
    return want.after, want.after_id, want.plain, relay
