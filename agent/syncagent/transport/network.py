"""Links with every peer that can be had: listens, dials, and settles on one link per peer.

Both sides may dial. When two links meet, the one dialled by the lower node stays; a link dialled again
replaces the one before it, for its dialler would not dial while that one lived; and a link of the higher
node replaces one of the lower node only if that does not answer a ping any more.

Invariant: at most one `on_link` per peer runs at a time, and after `stop` nothing does.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aiohttp
from aiohttp import web

from syncagent.core import backoff
from syncagent.core.membership import Peer
from syncagent.core.wire import Hello
from syncagent.errors import LinkDown, RefusedError, SyncagentError
from syncagent.transport import handshake
from syncagent.transport.addresses import host_and_port
from syncagent.transport.dialler import Dialler
from syncagent.transport.links import Limits, PeerLink, WebSocket
from syncagent.transport.listener import NO_PAGES, Abort, Handler, Listener
from syncagent.transport.spool import Spools
from syncagent.transport.tls import NOBODY, Credentials, Trust, normal, pins

OnLink = Callable[[PeerLink], Awaitable[None]]
OnTrouble = Callable[[Peer | None, SyncagentError], None]
Result = TypeVar("Result")
NOWHERE = "none"
_PARTING = 10.0
"""Seconds that the link with a removed peer stays."""


class TlsNetwork:
    """See `core.ports.Network`."""

    def __init__(
        self,
        hello: Hello,
        peers: Sequence[Peer],
        credentials: Credentials,
        *,
        listen: str,
        directory: Path,
        spools: Spools,
        limits: Limits | None = None,
        pages: Mapping[str, Handler] = NO_PAGES,
        gate: Sequence[web.RouteDef] = (),
    ) -> None:
        """`hello` is what this site says of itself (each link gets its own session); `listen` is HOST:PORT
        or "none"; `directory` keeps the certificates of peers that have introduced themselves; `pages` are
        what else peers may GET here, `gate` what anybody may ask."""
        for address in (None if listen == NOWHERE else listen, *(peer.address for peer in peers)):
            if address is not None:
                host_and_port(address)
        self._hello = hello
        self._peers = {peer.node: peer for peer in peers}
        self._credentials = credentials
        self._listen = listen
        self._directory = directory
        self._spools = spools
        self._limits = limits or Limits()
        self._pages, self._gate = pages, gate
        self._switch = asyncio.Lock()
        self._running = False
        self._on_link: OnLink
        self._on_trouble: OnTrouble
        self._listener: Listener | None = None
        self._dialler: Dialler
        self._links: dict[int, PeerLink] = {}  # per peer the one that counts
        self._awaited: dict[tuple[int, UUID], PeerLink] = {}  # without their data connection so far
        self._lives: dict[PeerLink, asyncio.Task[None]] = {}
        self._efforts: set[asyncio.Task[Any]] = set()  # dialling and greeting: cancelled by stop
        self._dialling: dict[int, asyncio.Future[None]] = {}
        self._trust: Trust | None = None
        self._removed = NOBODY

    @property
    def port(self) -> int | None:
        """The port that is listened on; None if nobody can dial this site."""
        return self._listener.port if self._listener else None

    async def start(self, on_link: OnLink, on_trouble: OnTrouble) -> None:
        async with self._switch:
            if self._running:
                return
            self._on_link, self._on_trouble = on_link, on_trouble
            peers = tuple(self._peers.values())
            self._dialler = Dialler(self._hello, peers, self._credentials, self._spools, self._limits)
            if self._listen != NOWHERE:
                trust = self._trust = await asyncio.to_thread(
                    Trust, self._hello.name, self._credentials, peers, self._directory
                )
                await asyncio.to_thread(trust.know, peers, self._removed)
                stranger = partial(on_trouble, None)
                listener = Listener(
                    self._listen,
                    trust,
                    self._limits,
                    self._on_control,
                    self._on_data,
                    stranger,
                    self._pages,
                    self._gate,
                )
                await listener.start()
                self._listener = listener
            self._running = True
            for peer in peers:
                self._keep_dialling(peer)

    async def know(self, peers: Sequence[Peer], removed: Mapping[str, str] = NOBODY) -> None:
        """These are the peers from now on: links with others end, and those that have come are dialled."""
        async with self._switch:
            before, self._peers = self._peers, {peer.node: peer for peer in peers}
            self._removed = removed
            if not self._running:
                return
            self._dialler.know(peers)
            if self._trust is not None:
                await asyncio.to_thread(self._trust.know, peers, removed)
            for node, old in before.items():
                if self._peers.get(node) != old and (dialling := self._dialling.pop(node, None)):
                    dialling.cancel()
                if self._is_out(node) and (link := self._links.get(node)):
                    self._effort(self._part(link)).add_done_callback(_raise_alarm)
            for node, link in self._links.items():
                if (known := self._peers.get(node)) and link.sha256 not in map(normal, pins(known)):
                    await link.close(f"the certificate that site {known.name} had shown was replaced")
            for node, peer in self._peers.items():
                if before.get(node) != peer:
                    self._keep_dialling(peer)

    def _is_out(self, node: int) -> bool:
        peer = self._peers.get(node)
        return peer is None or peer.lapsed

    async def use(self, credentials: Credentials) -> None:
        """What this site shows of itself from the next handshake on; links that are there stay."""
        async with self._switch:
            self._credentials = credentials
            if self._running:
                await asyncio.to_thread(self._dialler.use, credentials)
            if self._trust is not None:
                await asyncio.to_thread(self._trust.use, credentials)

    async def _part(self, link: PeerLink) -> None:
        """Not before the peer can have heard that it was removed."""
        await asyncio.sleep(_PARTING)
        await link.close(f"site {link.peer.name} was removed from the cluster")

    def _keep_dialling(self, peer: Peer) -> None:
        if peer.address:
            self._dialling[peer.node] = self._effort(self._keep_linked(peer))
            self._dialling[peer.node].add_done_callback(_raise_alarm)

    async def stop(self) -> None:
        async with self._switch:
            self._running = False
            for effort in self._efforts:
                effort.cancel()
            await asyncio.gather(*self._efforts, return_exceptions=True)
            for link in self._lives:
                await link.close(f"site {self._hello.name} is stopping")
            await asyncio.gather(*self._lives.values(), return_exceptions=True)
            if self._listener is not None:
                await self._listener.stop()
                self._listener = None

    # ---- dialling

    async def _keep_linked(self, peer: Peer) -> None:
        clock, attempt = asyncio.get_running_loop().time, 0
        while True:
            try:
                if peer.node not in self._links:
                    link, data = await self._dialler.dial(peer)
                    await self._settle(self._begin(link), data)
            except SyncagentError as error:
                self._report(peer, error)
            since = clock()
            if link_now := self._links.get(peer.node):
                await link_now.ended.wait()
            attempt = attempt + 1 if clock() - since < self._limits.retry_most else 1
            await asyncio.sleep(
                backoff.delay(
                    attempt, random.random(), first=self._limits.retry_first, most=self._limits.retry_most
                )
            )

    # ---- being dialled

    async def _on_control(self, peer: Peer, socket: WebSocket, abort: Abort) -> None:
        try:
            theirs = await self._effort(self._greet(peer, socket))
        except SyncagentError as error:
            self._report(peer, error)
            return
        if not self._running:
            return
        resources = AsyncExitStack()
        resources.callback(abort)
        link = PeerLink(
            peer,
            theirs,
            socket,
            dialler=peer.node,
            spools=self._spools,
            limits=self._limits,
            resources=resources,
        )
        self._awaited[peer.node, theirs.session] = self._begin(link)
        await link.ended.wait()
        self._awaited.pop((peer.node, theirs.session), None)

    async def _greet(self, peer: Peer, socket: WebSocket) -> Hello:
        try:
            async with asyncio.timeout(self._limits.dial_timeout):
                return await handshake.answer(socket, self._hello, peer, partial(self._check_free, peer))
        except (TimeoutError, ConnectionError, aiohttp.ClientError) as error:
            raise LinkDown(f"site {peer.name} dialled, but did not finish its greeting") from error

    async def _check_free(self, peer: Peer, _theirs: Hello) -> None:
        if peer.lapsed:
            raise RefusedError(
                f"site {peer.name} was away for so long that nothing is kept for it any more",
                hint="`syncagent rejoin` there compares its rows with the others', and sends what was written there",
            )
        current = self._links.get(peer.node)
        if current is None or not current.open or self._gives_way(current, peer.node):
            return
        if await current.answers(self._limits.probe_timeout):
            raise LinkDown(f"site {self._hello.name} has a link with site {peer.name} that works")
        await current.close("it does not answer any more")

    async def _on_data(self, peer: Peer, session: UUID, socket: WebSocket, abort: Abort) -> None:
        link = self._awaited.pop((peer.node, session), None)
        if link is not None:
            link.resources.callback(abort)
            await self._settle(link, socket)
            await link.ended.wait()

    # ---- one link per peer

    def _gives_way(self, current: PeerLink, dialler: int) -> bool:
        """Whether a link dialled by `dialler` replaces this one."""
        return dialler in (current.dialler, min(self._hello.node, current.peer.node))

    async def _settle(self, link: PeerLink, data: WebSocket) -> None:
        """Both connections are there: make it the link of its peer, or end it."""
        node = link.peer.node
        current = self._links.get(node)
        if not self._running:
            await link.close(f"site {self._hello.name} is stopping")
        elif current and current.open and not self._gives_way(current, link.dialler):
            await link.close("there is a link already")
        else:
            self._links[node] = link
            if current:
                await current.close("a newer link took its place")
            link.attach(data, current.ended if current else None)

    def _begin(self, link: PeerLink) -> PeerLink:
        self._lives[link] = task = asyncio.create_task(self._live(link))
        task.add_done_callback(_raise_alarm)
        return link

    async def _live(self, link: PeerLink) -> None:
        trouble: SyncagentError | None = None
        try:
            await link.run(self._on_link)
        except SyncagentError as error:
            trouble = error
        finally:
            if self._links.get(link.peer.node) is link:
                del self._links[link.peer.node]
            del self._lives[link]
            link.ended.set()
        if trouble is not None:
            self._report(link.peer, trouble)

    # ---- helpers

    def _report(self, peer: Peer, error: SyncagentError) -> None:
        """A connection that failed is no trouble while there is another one."""
        if not (isinstance(error, LinkDown) and peer.node in self._links):
            self._on_trouble(peer, error)

    def _effort(self, work: Coroutine[Any, Any, Result]) -> asyncio.Future[Result]:
        task = asyncio.create_task(work)
        self._efforts.add(task)
        task.add_done_callback(self._efforts.discard)
        return task


def _raise_alarm(task: asyncio.Future[Any]) -> None:
    """Errors of ours were reported; anything else is a fault of the program, for its supervisor."""
    if not task.cancelled() and (error := task.exception()):
        task.get_loop().call_exception_handler(
            {"message": "an internal error ended a link", "exception": error, "future": task}
        )
