"""Links with the peers: what they ask and send goes into inbox and outbox, what these decide goes out.

Invariant: the state of a link ends with the link; a peer that comes back is asked anew from the
frontier in the database.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID

from syncagent.core.outbox import Group
from syncagent.core.ports import Link
from syncagent.core.store import Origin, Shipment
from syncagent.core.wire import Ballot, Inspect, Mark, Marked, Message, Progress, Refused, Report, Want
from syncagent.errors import LinkDown, SyncagentError
from syncagent.services.lifecycle import Desk

_PATIENCE = 1.0
"""Seconds a small message may take to leave; one that did not is said again later, or its link is dead."""
_REFUSED_AGAIN = 15.0
"""Seconds after which a refused want is repeated."""
_BALLOTS = 64
"""Messages of Raft that wait for one socket; it bears the loss of those beyond."""
_NOBODY = UUID(int=0)
"""The request of those who only want a cut to be made."""


class Exchange:
    """All links of the site, and what came over them."""

    def __init__(self, desk: Desk, origin: Origin) -> None:
        self._desk, self._origin = desk, origin
        self._inbox, self._outbox, self._clock, self._bells = desk.inbox, desk.outbox, desk.clock, desk.bells
        self.links: dict[int, Link] = {}
        self.progress: dict[int, Progress] = {}
        self.troubles: dict[int, str] = {}
        self.marked: dict[UUID, dict[int, int]] = {}
        self._askers: dict[UUID, Link | None] = {}
        self._said: Progress | None = None
        self._ballots: dict[int, asyncio.Queue[bytes]] = {}
        self.on_ballot: Callable[[bytes], None] | None = None
        self.on_unlinked: Callable[[int], None] | None = None
        self.on_report: Callable[[Report], None] | None = None
        self.on_inspect: Callable[[Link, Inspect], Coroutine[Any, Any, None]] | None = None

    # ---- a link's life

    async def on_link(self, link: Link) -> None:
        node = link.peer.node
        self.links[node] = link
        self.troubles.pop(node, None)
        if is_origin := self._desk.roster.is_origin(node):
            self._inbox.linked(node)
        self._bells.ring()
        try:
            if self._said is not None:
                await link.send(self._said)
            ballots = self._ballots[node] = asyncio.Queue(_BALLOTS)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hear(link, group))
                group.create_task(self._receive(link))
                group.create_task(self._vote(link, ballots))
        finally:
            if self.links.get(node) is link:
                del self.links[node]
                self._ballots.pop(node, None)
                if self.on_unlinked is not None:
                    self.on_unlinked(node)
                self.progress.pop(node, None)
                if is_origin:
                    self._inbox.unlinked(node)
                self._outbox.unlinked(node)
            self._bells.ring()

    async def _hear(self, link: Link, group: asyncio.TaskGroup) -> None:
        async for message in link.messages():
            if isinstance(message, Inspect) and self.on_inspect is not None:
                group.create_task(self.on_inspect(link, message))  # it takes its time
            else:
                await self._heard(link, message)

    async def _heard(self, link: Link, message: Message) -> None:
        node = link.peer.node
        match message:
            case Want():
                known = (
                    self._outbox.last_id
                    if message.after == self._outbox.last
                    else await self._origin.cut_id(message.after)
                )
                refusal = self._outbox.asked(node, message, known)
                if refusal is not None:
                    await link.send(refusal)
                self._bells.cuts.ring()
            case Refused():
                hint = f" ({message.hint})" if message.hint else ""
                self._inbox.refused(node, message.message + hint, self._clock.now() + _REFUSED_AGAIN)
                self._bells.asks.ring()
                self._bells.news.ring()
            case Progress():
                self.progress[node] = message
                self._bells.news.ring()
            case Mark():
                self._askers[message.request] = link
                self._outbox.marked(message.request)
                self._bells.cuts.ring()
            case Ballot():
                if self.on_ballot is not None:
                    self.on_ballot(message.data)
            case Report():
                if self.on_report is not None:
                    self.on_report(message)
            case Marked():
                self.marked[message.request] = message.frontier
                self._bells.news.ring()
            case _:
                pass

    async def _receive(self, link: Link) -> None:
        async for header, spool in link.batches():
            if header.origin == link.peer.node and self._inbox.arrived(header, spool):
                self._bells.applies.ring()
            else:
                await spool.close()
            self._bells.asks.ring()

    def epochs(self) -> dict[int, int]:
        """The catalog that each site is known to work by."""
        told = {node: progress.epoch for node, progress in self.progress.items()}
        return {**told, self._desk.me: self._desk.roster.epoch}

    def have(self, node: int) -> dict[str, int | None]:
        """The last cut of a node that each other peer is known to have applied, by name; None: there is no link."""
        told = {
            peer.name: self.progress.get(peer.node) for peer in self._desk.roster.origins if peer.node != node
        }
        return {name: progress.frontier.get(node, 0) if progress else None for name, progress in told.items()}

    def trouble(self, node: int, what: str) -> None:
        """The network says why there is no link, or why one broke."""
        self.troubles[node] = what
        self._bells.news.ring()

    # ---- out

    async def _vote(self, link: Link, ballots: "asyncio.Queue[bytes]") -> None:
        """By itself, so that Raft never waits for a socket."""
        while True:
            await link.send(Ballot(await ballots.get()))

    def post(self, node: int, data: bytes) -> None:
        """A message of Raft, if there is a link and it is not choked."""
        if (ballots := self._ballots.get(node)) is not None:
            with suppress(asyncio.QueueFull):
                ballots.put_nowait(data)

    def forget(self, node: int) -> None:
        """The site was removed."""
        self.progress.pop(node, None)
        self.troubles.pop(node, None)

    async def ask(self) -> None:
        """Send the wants of the inbox, for ever."""
        while True:
            now, wall = self._clock.now(), self._clock.wall()
            await self._send_all(self._inbox.wants(now))
            await self._bells.asks.wait(self._inbox.wake_in(now, wall))

    async def _send(self, node: int, message: Message) -> None:
        link = self.links.get(node)
        if link is None:
            return
        try:
            await link.send(message)
        except LinkDown:
            return  # its on_link is about to end

    async def ship(self, shipment: Shipment, groups: tuple[Group, ...]) -> None:
        """Send one batch to every peer that still wants it, then give its bytes back."""
        peers = next(
            (g.peers for g in groups if (g.after, g.plain) == (shipment.group.after, shipment.group.plain)),
            (),
        )
        try:
            async with asyncio.TaskGroup() as group:
                for node in peers:
                    group.create_task(self._deliver(node, shipment))
        finally:
            await shipment.spool.close()

    async def _deliver(self, node: int, shipment: Shipment) -> None:
        try:
            if (link := self.links.get(node)) is not None:
                await link.send_batch(shipment.header, shipment.spool)
        except SyncagentError as error:
            self.troubles[node] = error.message
        finally:
            self._outbox.sent(node)
            self._bells.cuts.ring()

    def mark(self, request: UUID) -> None:
        """Ask for a cut here; `marked` will hold its frontier."""
        self._askers[request] = None
        self._outbox.marked(request)
        self._bells.cuts.ring()

    def cut_soon(self) -> None:
        """Whoever wants a cut of what is committed now looks for it in the database."""
        self.mark(_NOBODY)

    async def mark_peer(self, node: int, request: UUID) -> None:
        await self._send(node, Mark(request))

    async def answer_marks(self, requests: tuple[UUID, ...], frontier: dict[int, int]) -> None:
        for request in requests:
            link = self._askers.pop(request, None)
            if link is None:
                self.marked[request] = frontier
                self._bells.news.ring()
            elif self.links.get(link.peer.node) is link:
                await self._send(link.peer.node, Marked(request, frontier))

    async def gossip(self, progress: Progress) -> None:
        """Tell every peer, unless it was told that already."""
        if progress == self._said:
            return
        self._said = progress
        await self._send_all((node, progress) for node in list(self.links))

    async def _send_all(self, letters: Iterable[tuple[int, Message]]) -> None:
        """Side by side: a peer whose socket is full holds up nobody but itself, and not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE), asyncio.TaskGroup() as group:
                for node, message in letters:
                    group.create_task(self._send(node, message))
