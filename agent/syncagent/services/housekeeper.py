"""Everything that is not moving rows: metadata kept small, the state shown, requests carried out.

Invariant: nothing waits for it; it does one thing at a time, and what it misses it does the next time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import reduce
from typing import Any
from uuid import UUID, uuid4

from syncagent.core import clock as clocks
from syncagent.core import frontier, limits
from syncagent.core.membership import Peer
from syncagent.core.ports import Link
from syncagent.core.store import Keeper, PeerState, Request
from syncagent.core.wire import Progress
from syncagent.errors import Contended, RefusedError, SyncagentError, Unreachable
from syncagent.services.applier import Applier
from syncagent.services.attaching import Attaching
from syncagent.services.cutter import Cutter
from syncagent.services.elections import Elections
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Desk
from syncagent.services.verifier import Verifier

_TURN = 1.0
"""Seconds between two looks at what could be dropped."""
_THOROUGH = 30
"""Every so many turns it looks although nothing seems to have changed: what was held back may be free."""
_QUIET = 0.2
"""Least seconds between two reports."""
_LONGEST_WAIT = 3600.0
_MARK_AGAIN = 5.0
"""Seconds after which a site that is reached through another one is asked for a cut again."""

_Asked = dict[int, tuple[Link | None, float]]
"""Over which link a site was asked for a cut, and when."""

Verb = Callable[[Request], Awaitable[dict[str, Any]]]
"""What a request asks for; a SyncagentError is its answer, too."""


class Housekeeper:
    """See the module's docstring."""

    def __init__(
        self,
        desk: Desk,
        keeper: Keeper,
        exchange: Exchange,
        cutter: Cutter,
        applier: Applier,
        elections: Elections,
        attaching: Attaching,
        verifier: Verifier,
        *,
        steady: bool,
    ) -> None:
        """`steady`: the agent runs for good, not only until the site has joined."""
        self._me, self._inbox, self._outbox, self._clock, self._bells = (
            desk.me,
            desk.inbox,
            desk.outbox,
            desk.clock,
            desk.bells,
        )
        self._roster, self._keeper, self._steady = desk.roster, keeper, steady
        self._exchange, self._cutter, self._applier = exchange, cutter, applier
        self._elections, self._attaching, self._verifier = elections, attaching, verifier
        self._evolving = attaching.evolving
        self._shown: tuple[list[PeerState], str | None, str | None, int | None] | None = None
        self._trouble: str | None = None
        self._serving: dict[UUID, asyncio.Task[None]] = {}
        self.verbs: dict[str, Verb] = {"wait": self._wait, "pause": self._switch, "resume": self._switch}
        self.warning: Callable[[], str | None] = lambda: None
        """What is not wrong yet, and should be seen to."""
        self.history = limits.CONFLICT_HISTORY
        """Seconds for which conflicts are kept."""
        self._heard = asyncio.Condition()

    async def tidy(self) -> None:
        """Cover new partitions; compact and trim, for ever, while there is work.

        A site that joins forgets nothing yet: another one that joins beside it may not be counted here.
        """
        done, left, turn = (-1, -1), 0, 0
        while True:
            uncovered = await self._cover()
            seen, turn = (self._cutter.made, self._applier.batches), turn + 1
            always = turn % _THOROUGH == 0
            try:
                due = (seen != done or always) and self._elections.is_member
                if due and not self._inbox.holds_last_words:
                    await self._keeper.compact(always=always)
                if always:
                    await self._keeper.forget_conflicts(self.history)
                if seen != done or left:
                    left = await self._keeper.trim()
                done, self._trouble = seen, uncovered
            except Unreachable:
                raise
            except Contended:
                done = (-1, -1)
            except SyncagentError as error:
                done, self._trouble = (-1, -1), f"metadata cannot be dropped: {error.line}"
            await asyncio.sleep(_TURN)

    async def _cover(self) -> str | None:
        """What keeps a new partition from being watched, in words."""
        try:
            await self._keeper.cover()
        except Unreachable:
            raise
        except SyncagentError as error:
            return f"triggers are not as they must be yet: {error.line}"
        return None

    async def tell(self) -> None:
        """Tell the peers how far this site is, and show what is known of them, for ever."""
        while True:
            await self._bells.news.wait(_TURN)
            progress = Progress(
                frontier=self._frontier(),
                parked=self._applier.parked,
                waiting=self._cutter.waiting,
                epoch=self._roster.epoch,
                attached=self._attaching.epoch,
                trouble=self._evolving.trouble or self._attaching.trouble,
                steady=self._steady,
                links=tuple(sorted(self._exchange.links)),
                schema=self._evolving.epoch,
            )
            await self._exchange.gossip(progress)
            shown = (
                [self._state(peer) for peer in self._roster.peers],
                self._cutter.waiting,
                self._trouble
                or self._evolving.trouble
                or self._attaching.trouble
                or self._verifier.trouble
                or self._own_clock()
                or self.warning(),
                self._elections.leader or None,
            )
            if shown != self._shown:
                await self._keeper.report(*shown)
                self._shown = shown
            async with self._heard:
                self._heard.notify_all()
            await asyncio.sleep(_QUIET)

    def _own_clock(self) -> str | None:
        offsets = [
            link.clock_offset for link in self._exchange.links.values() if link.clock_offset is not None
        ]
        return clocks.own_trouble(offsets)

    def _frontier(self) -> dict[int, int]:
        mine = {self._me: self._outbox.last} if self._outbox.last else {}
        return {**self._inbox.frontier, **mine}

    def _state(self, peer: Peer) -> PeerState:
        link, way = self._exchange.links.get(peer.node), self._exchange.way(peer.node)
        progress = self._exchange.progress.get(peer.node)
        waiting = self._inbox.waiting(self._clock.now(), self._clock.wall()).get(peer.node)
        before = next((s for s in self._shown[0] if s.node == peer.node), None) if self._shown else None
        return PeerState(
            node=peer.node,
            linked=link is not None,
            via=None if link is not None or way is None else way.peer.node,
            paused=False,
            frontier=progress.frontier if progress else before.frontier if before else {},
            parked=progress.parked if progress else before.parked if before else 0,
            rtt=None if link is None or link.rtt is None else round(link.rtt, 3),
            clock_offset=None if link is None or link.clock_offset is None else round(link.clock_offset, 2),
            waiting=None
            if waiting is None
            or waiting.reason in ("asked", "none", "next", "applying", "relayed", "unlinked")
            else waiting.text,
            trouble=self._exchange.troubles.get(peer.node),
        )

    # ---- requests

    async def serve(self) -> None:
        """Carry out what people ask, for ever, each by itself: one may wait for long."""
        async with asyncio.TaskGroup() as group:
            while True:
                for request in await self._keeper.requests():
                    if request.id not in self._serving:
                        self._serving[request.id] = group.create_task(self._serve(request))
                await self._bells.requests.wait(5.0)

    async def _serve(self, request: Request) -> None:
        verb = self.verbs.get(request.verb)
        try:
            answer = (
                await verb(request)
                if verb is not None
                else {
                    "error": f"this agent does not know the request {request.verb!r}",
                    "hint": "upgrade the agent",
                }
            )
        except Unreachable:
            raise
        except SyncagentError as error:
            detail = f" ({error.detail})" if error.detail else ""
            answer = {"error": error.message + detail, "hint": error.hint}
        await self._keeper.answer(request.id, answer)
        del self._serving[request.id]

    async def _switch(self, request: Request) -> dict[str, Any]:
        """Pause and resume."""
        known = {peer.node for peer in self._roster.peers}
        nodes = sorted(known & set(request.arguments.get("peers") or known))
        await self._keeper.set_paused(nodes, request.verb == "pause")
        for node in nodes:
            self._inbox.pause(node, request.verb == "pause")
        self._bells.ring()
        return {"paused": sorted(await self._keeper.paused())}

    async def _wait(self, request: Request) -> dict[str, Any]:
        """Until every site has what was committed anywhere before the request."""
        return await self.converged(min(float(request.arguments.get("timeout") or 60.0), _LONGEST_WAIT))

    async def converged(self, seconds: float) -> dict[str, Any]:
        """See `_wait`; the answer says who is missing, if any."""
        if self._elections.is_witness:
            raise RefusedError("this site is a witness and has no rows", hint="ask at a site that has")
        marks = {node: uuid4() for node in (self._me, *(peer.node for peer in self._roster.origins))}
        asked: _Asked = {}
        answer: dict[str, Any] = {"converged": True, "missing": []}
        try:
            async with asyncio.timeout(seconds):
                self._exchange.mark(marks[self._me])
                while await self._missing(marks, asked):
                    async with self._heard:
                        await self._heard.wait()
        except TimeoutError:
            missing = [
                {"site": self._roster.name(n), "node": n, "reason": why}
                for n, why in (await self._missing(marks, asked)).items()
            ]
            answer = {"converged": not missing, "missing": missing}
        for mark in marks.values():
            self._exchange.marked.pop(mark, None)
        return answer | {"frontier": self._frontier(), "parked": self._applier.parked}

    async def caught_up(self, seconds: float) -> dict[str, str]:
        """Until this site has all that was committed anywhere before; who stands in the way, if it has not."""
        if self._elections.is_witness:
            return {}
        marks = {peer.node: uuid4() for peer in self._roster.origins}
        asked: _Asked = {}
        lacking = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while lacking := await self._lacking(marks, asked):
                    async with self._heard:
                        await self._heard.wait()
        for mark in marks.values():
            self._exchange.marked.pop(mark, None)
        return lacking

    async def _lacking(self, marks: dict[int, UUID], asked: _Asked) -> dict[str, str]:
        marked, have = self._exchange.marked, self._frontier()
        await self._ask_for_marks(marks, asked)
        lacking = {}
        for node, mark in marks.items():
            if mark not in marked:
                near = self._exchange.way(node) is not None
                lacking[self._roster.name(node)] = "has not made its cut yet" if near else "no link"
            elif (cut := marked[mark].get(node, 0)) > have.get(node, 0):
                lacking[self._roster.name(node)] = f"cut {have.get(node, 0)} of {cut} is applied here"
        return lacking

    async def _ask_for_marks(self, marks: dict[int, UUID], asked: _Asked) -> None:
        """Of peers that can be reached in a new way, a cut; again, where it may have been lost on the way."""
        now = self._clock.now()
        for node, mark in marks.items():
            way, (asked_by, since) = self._exchange.way(node), asked.get(node, (None, now))
            lost = node not in self._exchange.links and now - since > _MARK_AGAIN
            if way is not None and mark not in self._exchange.marked and (asked_by is not way or lost):
                asked[node] = way, now
                await self._exchange.mark_peer(node, mark)

    async def _missing(self, marks: dict[int, UUID], asked: _Asked) -> dict[int, str]:
        """Who has not got there yet, and why."""
        marked = self._exchange.marked
        await self._ask_for_marks(marks, asked)
        missing: dict[int, str] = {}
        for node, mark in marks.items():
            if mark in marked:
                continue
            near = node == self._me or self._exchange.way(node) is not None
            missing[node] = "has not made its cut yet" if near else "no link"
        if missing:
            return missing
        target = reduce(frontier.join, (marked[mark] for mark in marks.values()))
        for node in marks:
            progress = self._exchange.progress.get(node)
            have = self._frontier() if node == self._me else progress.frontier if progress else {}
            parked = self._applier.parked if node == self._me else progress.parked if progress else 0
            if not frontier.covers(have, target):
                behind = ", ".join(
                    f"{self._roster.name(o)}: {have.get(o, 0)} of {cut}"
                    for o, cut in target.items()
                    if have.get(o, 0) < cut
                )
                missing[node] = f"has not applied everything ({behind})"
            elif parked:
                missing[node] = f"{parked} parked rows: see `syncagent parked list` there"
        return missing
