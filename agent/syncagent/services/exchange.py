"""Links with the peers: what they ask and send goes into inbox and outbox, what these decide goes out.

Messages for a site without a link go through a peer that has one, as Letters; what a peer receives so it may lose.

Invariant: the state of a link ends with the link; a peer that comes back is asked anew from the
frontier in the database.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from syncagent.core.batch import BatchHeader
from syncagent.core.outbox import Group
from syncagent.core.ports import Link, Spool
from syncagent.core.store import Cut, Origin, Shipment
from syncagent.core.wire import (
    Ballot,
    Compare,
    Compared,
    Fetch,
    Inspect,
    Letter,
    Look,
    Mark,
    Marked,
    Message,
    Progress,
    Refused,
    Report,
    Want,
    decode,
    encode,
)
from syncagent.errors import LinkDown, ProtocolError, SyncagentError
from syncagent.services.lifecycle import Desk

_PATIENCE = 1.0
"""Seconds a small message may take to leave; one that did not is said again later, or its link is dead."""
_REFUSED_AGAIN = 15.0
"""Seconds after which a refused want is repeated."""
_OUTGROWN_AGAIN = 1.0
"""Seconds after which what had too old a shape is asked for again."""
_SAID_AGAIN = 5.0
"""Seconds after which a site that is reached through another one is told once more how far this one is."""
_QUEUE = 64
"""Messages of Raft and letters of others that wait for one socket; who sent them bears the loss of those beyond."""
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
        self._askers: dict[UUID, int] = {}
        self._said: Progress | None = None
        self._told: dict[int, tuple[Progress, float]] = {}
        self._queues: dict[int, asyncio.Queue[Message]] = {}
        self.on_ballot: Callable[[bytes], None] | None = None
        self.on_unlinked: Callable[[int], None] | None = None
        self.on_report: Callable[[Report], None] | None = None
        self.on_inspect: Callable[[int, Inspect], Coroutine[Any, Any, None]] | None = None
        self.on_compare: Callable[[Link, Compare], Coroutine[Any, Any, None]] | None = None
        self.on_compared: Callable[[Compared], None] | None = None
        self.on_repair: Callable[[Link, Fetch | Look], Coroutine[Any, Any, None]] | None = None
        self.on_listing: Callable[[int, BatchHeader, Spool], bool] | None = None

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
                self._told[node] = self._said, self._clock.now()
            queue = self._queues[node] = asyncio.Queue(_QUEUE)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hear(link, group))
                group.create_task(self._receive(link))
                group.create_task(self._carry(link, queue))
        finally:
            if self.links.get(node) is link:
                del self.links[node]
                self._queues.pop(node, None)
                if self.on_unlinked is not None:
                    self.on_unlinked(node)
                self.progress.pop(node, None)
                self._told.pop(node, None)
                if is_origin:
                    self._inbox.unlinked(node)
                self._outbox.unlinked(node)
            self._bells.ring()

    async def _hear(self, link: Link, group: asyncio.TaskGroup) -> None:
        async for message in link.messages():
            match message:
                case Letter() if message.target != self._desk.me:
                    self._pass_on(link, message)
                case Letter():
                    await self._heard(message.source, _opened(message), group)
                case Want() | Refused():
                    await self._asked(link, message)
                case Compare() if self.on_compare is not None:
                    group.create_task(self.on_compare(link, message))
                case Compared() if self.on_compared is not None:
                    self.on_compared(message)
                case Fetch() | Look() if self.on_repair is not None:
                    group.create_task(self.on_repair(link, message))
                case _:
                    await self._heard(link.peer.node, message, group)

    def _pass_on(self, link: Link, letter: Letter) -> None:
        """To a peer that its sender has no link with; over one more link and no further."""
        if letter.source == link.peer.node and letter.target in self.links:
            self._put(letter.target, letter)

    async def _asked(self, link: Link, message: Want | Refused) -> None:
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
                self._bells.asks.ring()
            case Refused():
                hint = f" ({message.hint})" if message.hint else ""
                self._inbox.refused(node, message.message + hint, self._clock.now() + _REFUSED_AGAIN)
                self._bells.asks.ring()
                self._bells.news.ring()

    async def _heard(self, node: int, message: Message, group: asyncio.TaskGroup) -> None:
        """What a site has said, over its link or through another one."""
        match message:
            case Inspect() if self.on_inspect is not None:
                group.create_task(self.on_inspect(node, message))  # it takes its time
            case Progress():
                self.progress[node] = message
                if node in self.links:
                    self._inbox.told(node, message.frontier)
                    self._bells.asks.ring()
                self._bells.news.ring()
            case Mark():
                self._askers[message.request] = node
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
        """What a peer relays comes before its own batch, and only with it."""
        relayed: list[tuple[BatchHeader, Spool]] = []
        async with AsyncExitStack() as kept:
            async for header, spool in link.batches():
                if header.listing is not None:
                    if self.on_listing is None or not self.on_listing(link.peer.node, header, spool):
                        await spool.close()
                    continue
                kept.push_async_callback(spool.close)
                self._desk.observer.received(link.peer.name, header, spool.took)
                if self._inbox.is_outgrown(header):
                    self._outgrown(link.peer.node, header)
                    continue
                if header.origin != link.peer.node:
                    relayed.append((header, spool))
                    continue
                if self._inbox.arrived(header, spool, relayed):
                    kept.pop_all()
                    self._bells.applies.ring()
                await kept.aclose()
                relayed = []
                self._bells.asks.ring()

    def _outgrown(self, node: int, header: BatchHeader) -> None:
        """Its shape is too old; it is asked for again, in a newer one once its sender has done its steps."""
        self._inbox.refused(
            node,
            f"that site is at step {header.schema} of the schema's changes",
            self._clock.now() + _OUTGROWN_AGAIN,
        )
        self._bells.asks.ring()
        self._bells.news.ring()

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

    async def _carry(self, link: Link, queue: "asyncio.Queue[Message]") -> None:
        """By itself, so that neither Raft nor who sends letters ever waits for a socket."""
        while True:
            await link.send(await queue.get())

    def post(self, node: int, data: bytes) -> None:
        """A message of Raft, if there is a way and it is not choked."""
        if (link := self.way(node)) is not None:
            self._put(link.peer.node, self._addressed(node, link, Ballot(data)))

    def _put(self, node: int, message: Message) -> None:
        if (queue := self._queues.get(node)) is not None:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(message)

    def way(self, node: int) -> Link | None:
        """The link with this site, or with a peer that has one with it."""
        if (link := self.links.get(node)) is not None:
            return link
        for peer, link in sorted(self.links.items()):
            told = self.progress.get(peer)
            if told is not None and node in told.links:
                return link
        return None

    def _addressed(self, node: int, link: Link, message: Message) -> Message:
        return message if link.peer.node == node else Letter(self._desk.me, node, encode(message))

    async def send(self, node: int, message: Message) -> None:
        """Raises LinkDown if there is no way, or it ends."""
        if (link := self.way(node)) is None:
            raise LinkDown(f"there is no link with site {self._desk.roster.name(node)}")
        await link.send(self._addressed(node, link, message))

    def forget(self, node: int) -> None:
        """The site was removed."""
        self.progress.pop(node, None)
        self.troubles.pop(node, None)
        self._told.pop(node, None)

    async def ask(self) -> None:
        """Send the wants of the inbox, for ever."""
        while True:
            now, wall = self._clock.now(), self._clock.wall()
            await self._send_all(self._inbox.wants(now, wall, self._outbox.lacked))
            await self._bells.asks.wait(self._inbox.wake_in(now, wall))

    async def _send(self, node: int, message: Message) -> None:
        try:
            await self.send(node, message)
        except LinkDown:
            return  # there is no way, or the on_link of the last one is about to end

    async def ship(self, cut: Cut, groups: tuple[Group, ...]) -> None:
        """Send every peer what it still wants of a cut; bytes that nobody waits for are given back."""
        shared = [(_Shared(shipment), _peers(shipment.group, groups)) for shipment in cut.shipments]
        try:
            async with asyncio.TaskGroup() as group:
                for node in {node for _, peers in shared for node in peers}:
                    unable = tuple(g.origin for g in cut.unable if g.origin is not None and node in g.peers)
                    parts = [one for one, peers in shared if node in peers]
                    for one in parts:
                        one.users += 1
                    group.create_task(self._deliver(node, parts, unable))
                for one, _ in shared:
                    await one.given_back()
        finally:
            for one, _ in shared:
                await one.shipment.spool.close()

    async def _deliver(self, node: int, parts: "list[_Shared]", unable: tuple[int, ...]) -> None:
        """What is relayed first, then this site's own."""
        parts.sort(key=lambda one: one.shipment.group.origin is None)
        relayed = tuple(one.shipment.header.origin for one in parts[:-1])
        try:
            for one in parts:
                if (link := self.links.get(node)) is not None:
                    began = self._clock.now()
                    await link.send_batch(self._headed(one.shipment, relayed, unable), one.shipment.spool)
                    took = self._clock.now() - began
                    self._desk.observer.sent(link.peer.name, one.shipment.header, took)
                one.users -= 1
                await one.given_back()
        except SyncagentError as error:
            self.troubles[node] = error.message
        finally:
            self._outbox.sent(node)
            self._bells.cuts.ring()

    def _headed(self, shipment: Shipment, relayed: tuple[int, ...], unable: tuple[int, ...]) -> BatchHeader:
        if shipment.group.origin is not None:
            return replace(shipment.header, needed=self._outbox.worth(shipment.group.origin))
        return replace(shipment.header, needed=self._outbox.needed, relayed=relayed, unable=unable)

    def mark(self, request: UUID) -> None:
        """Ask for a cut here; `marked` will hold its frontier."""
        self._askers[request] = self._desk.me
        self._outbox.marked(request)
        self._bells.cuts.ring()

    def cut_soon(self) -> None:
        """Whoever wants a cut of what is committed now looks for it in the database."""
        self.mark(_NOBODY)

    async def mark_peer(self, node: int, request: UUID) -> None:
        await self._send(node, Mark(request))

    async def answer_marks(self, requests: tuple[UUID, ...], frontier: dict[int, int]) -> None:
        for request in requests:
            asker = self._askers.pop(request, self._desk.me)
            if asker == self._desk.me:
                self.marked[request] = frontier
                self._bells.news.ring()
            else:
                await self._send(asker, Marked(request, frontier))

    async def gossip(self, progress: Progress) -> None:
        """Tell every site that can be reached, unless it was told that already."""
        now, self._said = self._clock.now(), progress
        letters = []
        for peer in self._desk.roster.peers:
            told, since = self._told.get(peer.node, (None, now))
            if self.way(peer.node) is None:
                self.progress.pop(peer.node, None)
                self._told.pop(peer.node, None)
            elif told != progress or (peer.node not in self.links and now - since > _SAID_AGAIN):
                self._told[peer.node] = progress, now
                letters.append((peer.node, progress))
        await self._send_all(letters)

    async def _send_all(self, letters: Iterable[tuple[int, Message]]) -> None:
        """Side by side: a peer whose socket is full holds up nobody but itself, and not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE), asyncio.TaskGroup() as group:
                for node, message in letters:
                    group.create_task(self._send(node, message))


class _Shared:
    """A batch that several peers are sent; its bytes are given back when the last one has them."""

    def __init__(self, shipment: Shipment) -> None:
        self.shipment, self.users = shipment, 0

    async def given_back(self) -> None:
        if self.users == 0:
            await self.shipment.spool.close()


def _peers(read: Group, groups: tuple[Group, ...]) -> tuple[int, ...]:
    """Who still wants what was read."""
    wanted = read._replace(peers=())
    return next((group.peers for group in groups if group._replace(peers=()) == wanted), ())


def _opened(letter: Letter) -> Message:
    """What is in it, if it may travel so."""
    message = decode(letter.data)
    if not isinstance(message, Progress | Mark | Marked | Ballot | Inspect | Report):
        raise ProtocolError(f"node {letter.source} sent a {type(message).__name__} through another site")
    return message
