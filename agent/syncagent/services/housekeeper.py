"""Everything that is not moving rows: metadata kept small, the state shown, requests carried out.

Invariant: nothing waits for it; it does one thing at a time, and what it misses it does the next time.
"""

import asyncio
from functools import reduce
from typing import Any
from uuid import UUID, uuid4

from syncagent.core import frontier
from syncagent.core.membership import Peer
from syncagent.core.store import Keeper, PeerState, Request
from syncagent.core.wire import Progress
from syncagent.errors import Contended, SyncagentError, Unreachable
from syncagent.services.applier import Applier
from syncagent.services.cutter import Cutter
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Desk

_TURN = 1.0
"""Seconds between two looks at what could be dropped."""
_THOROUGH = 30
"""Every so many turns it looks although nothing seems to have changed: what was held back may be free."""
_QUIET = 0.2
"""Least seconds between two reports."""
_LONGEST_WAIT = 3600.0


class Housekeeper:
    """See the module's docstring."""

    def __init__(
        self,
        desk: Desk,
        peers: tuple[Peer, ...],
        keeper: Keeper,
        exchange: Exchange,
        cutter: Cutter,
        applier: Applier,
    ) -> None:
        self._me, self._inbox, self._outbox, self._clock, self._bells = (
            desk.me,
            desk.inbox,
            desk.outbox,
            desk.clock,
            desk.bells,
        )
        self._peers, self._keeper = peers, keeper
        self._exchange, self._cutter, self._applier = exchange, cutter, applier
        self._shown: tuple[list[PeerState], str | None, str | None] | None = None
        self._trouble: str | None = None
        self._waits: dict[UUID, asyncio.Task[None]] = {}
        self._heard = asyncio.Condition()

    async def tidy(self) -> None:
        """Cover new partitions; compact and trim, for ever, while there is work."""
        done, left, turn = (-1, -1), 0, 0
        while True:
            uncovered = await self._cover()
            seen, turn = (self._cutter.made, self._applier.batches), turn + 1
            always = turn % _THOROUGH == 0
            try:
                if seen != done or always:
                    await self._keeper.compact(always=always)
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
            return f"a new partition is not watched yet: {error.line}"
        return None

    async def tell(self) -> None:
        """Tell the peers how far this site is, and show what is known of them, for ever."""
        while True:
            await self._bells.news.wait(_TURN)
            progress = Progress(
                frontier=self._frontier(), parked=self._applier.parked, waiting=self._cutter.waiting
            )
            await self._exchange.gossip(progress)
            shown = ([self._state(peer) for peer in self._peers], self._cutter.waiting, self._trouble)
            if shown != self._shown:
                await self._keeper.report(*shown)
                self._shown = shown
            async with self._heard:
                self._heard.notify_all()
            await asyncio.sleep(_QUIET)

    def _frontier(self) -> dict[int, int]:
        mine = {self._me: self._outbox.last} if self._outbox.last else {}
        return {**self._inbox.frontier, **mine}

    def _state(self, peer: Peer) -> PeerState:
        link = self._exchange.links.get(peer.node)
        progress = self._exchange.progress.get(peer.node)
        waiting = self._inbox.waiting(self._clock.now(), self._clock.wall()).get(peer.node)
        before = next((s for s in self._shown[0] if s.node == peer.node), None) if self._shown else None
        return PeerState(
            node=peer.node,
            linked=link is not None,
            paused=False,
            frontier=progress.frontier if progress else before.frontier if before else {},
            parked=progress.parked if progress else before.parked if before else 0,
            rtt=None if link is None or link.rtt is None else round(link.rtt, 3),
            clock_offset=None if link is None or link.clock_offset is None else round(link.clock_offset, 2),
            waiting=None
            if waiting is None or waiting.reason in ("asked", "none", "next", "applying", "unlinked")
            else waiting.text,
            trouble=self._exchange.troubles.get(peer.node),
        )

    # ---- requests

    async def serve(self) -> None:
        """Carry out what people ask, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                for request in await self._keeper.requests():
                    if request.verb == "wait":
                        if request.id not in self._waits:
                            self._waits[request.id] = group.create_task(self._wait(request))
                    else:
                        await self._keeper.answer(request.id, await self._carry_out(request))
                await self._bells.requests.wait(5.0)

    async def _carry_out(self, request: Request) -> dict[str, Any]:
        if request.verb not in ("pause", "resume"):
            return {
                "error": f"this agent does not know the request {request.verb!r}",
                "hint": "upgrade the agent",
            }
        known = {peer.node for peer in self._peers}
        nodes = sorted(known & set(request.arguments.get("peers") or known))
        await self._keeper.set_paused(nodes, request.verb == "pause")
        for node in nodes:
            self._inbox.pause(node, request.verb == "pause")
        self._bells.ring()
        return {"paused": sorted(await self._keeper.paused())}

    async def _wait(self, request: Request) -> None:
        """Until every site has what was committed anywhere before the request."""
        timeout = min(float(request.arguments.get("timeout") or 60.0), _LONGEST_WAIT)
        marks = {node: uuid4() for node in (self._me, *(peer.node for peer in self._peers))}
        asked: dict[int, object] = {}
        answer: dict[str, Any] = {"converged": True, "missing": []}
        try:
            async with asyncio.timeout(timeout):
                self._exchange.mark(marks[self._me])
                while await self._missing(marks, asked):
                    async with self._heard:
                        await self._heard.wait()
        except TimeoutError:
            missing = [
                {"site": self._name(n), "node": n, "reason": why}
                for n, why in (await self._missing(marks, asked)).items()
            ]
            answer = {"converged": not missing, "missing": missing}
        answer |= {"frontier": self._frontier(), "parked": self._applier.parked}
        for mark in marks.values():
            self._exchange.marked.pop(mark, None)
        await self._keeper.answer(request.id, answer)
        del self._waits[request.id]

    async def _missing(self, marks: dict[int, UUID], asked: dict[int, object]) -> dict[int, str]:
        """Who has not got there yet, and why; peers with a new link are asked for a cut."""
        marked = self._exchange.marked
        missing: dict[int, str] = {}
        for node, mark in marks.items():
            if mark in marked:
                continue
            link = self._exchange.links.get(node)
            missing[node] = "has not made its cut yet" if node == self._me or link else "no link"
            if link is not None and asked.get(node) is not link:
                asked[node] = link
                await self._exchange.mark_peer(node, mark)
        if missing:
            return missing
        target = reduce(frontier.join, (marked[mark] for mark in marks.values()))
        for node in marks:
            progress = self._exchange.progress.get(node)
            have = self._frontier() if node == self._me else progress.frontier if progress else {}
            parked = self._applier.parked if node == self._me else progress.parked if progress else 0
            if not frontier.covers(have, target):
                behind = ", ".join(
                    f"{self._name(o)}: {have.get(o, 0)} of {cut}"
                    for o, cut in target.items()
                    if have.get(o, 0) < cut
                )
                missing[node] = f"has not applied everything ({behind})"
            elif parked:
                missing[node] = f"{parked} parked rows: see `syncagent parked list` there"
        return missing

    def _name(self, node: int) -> str:
        return next((peer.name for peer in self._peers if peer.node == node), "this site")
