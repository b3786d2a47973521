"""One live link with a peer: two WebSocket connections, control and data, both used both ways.

Small messages never wait behind a batch, and a batch waits only for its receiver: sending awaits the
socket, receiving goes straight into a spool, and every queue has a bound, so a slow peer slows down
nobody but itself and costs no memory.

Invariant: a link lives as long as `run` does. When it ends for any reason, its tasks have ended, its
sockets are closed, half a batch is dropped, and the reason is known to both sides if they can be told.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from syncagent.core import limits, wire
from syncagent.core.batch import BatchHeader
from syncagent.core.membership import Peer
from syncagent.core.pace import Pace
from syncagent.core.wire import Bye, Hello, Message, Ping, Pong
from syncagent.errors import LinkDown, ProtocolError, SyncagentError
from syncagent.transport.assembly import Assembler, FrameSource, name_of, taken_apart
from syncagent.transport.sockets import Arrivals
from syncagent.transport.spool import FileSpool, Spools
from syncagent.transport.tls import WatchedObject, digest

UNREAD_BATCHES = 2
UNREAD_MESSAGES = 256
CLOCK_SAMPLES = 8
LAST_WORDS = 1.0
"""Seconds a peer gets to read why the link ends."""
_LOOK = 1.0
"""Seconds between looks at what the peer has acknowledged."""
_STUCK = 3.0
"""Seconds without an acknowledgement after which the end of a connection is no coincidence."""
_SWALLOWED = (
    "a device on the way loses large packets, or one connection of several: look at the MTU of tunnels, and at"
    " firewalls"
)

WebSocket = aiohttp.ClientWebSocketResponse | web.WebSocketResponse


class Limits(NamedTuple):
    """Times are seconds, sizes bytes."""

    ping_interval: float = limits.PING_INTERVAL
    link_timeout: float = limits.LINK_TIMEOUT
    probe_timeout: float = 2.0
    """How long an older link has to prove that it lives before a newer one takes its place."""
    dial_timeout: float = 10.0
    retry_first: float = 0.2
    retry_most: float = 5.0
    message_size: int = limits.MESSAGE_SIZE
    rates: Mapping[str, float] = MappingProxyType({})
    """Bytes a second of batches that go to a peer, at most, by its name."""


async def receive(socket: WebSocket, peer: Peer) -> bytes | None:
    """The next message; None once the connection is closed."""
    message = await socket.receive()
    if message.type is aiohttp.WSMsgType.BINARY:
        assert isinstance(message.data, bytes)
        return message.data
    if message.type is aiohttp.WSMsgType.TEXT or isinstance(message.data, aiohttp.WebSocketError):
        raise ProtocolError(f"site {peer.name} sent what is no message", detail=str(message.data)[:200])
    return None


class PeerLink:
    """See `core.ports.Link`."""

    def __init__(
        self,
        peer: Peer,
        hello: Hello,
        control: WebSocket,
        *,
        dialler: int,
        spools: Spools,
        limits: Limits,
        resources: AsyncExitStack,
    ) -> None:
        """`dialler` is the node that dialled; `resources` are given back when the link ends."""
        self.peer = peer
        self.hello = hello
        self.dialler = dialler
        self._ends = [_end(control)]
        self.sha256 = digest(self._ends[0].getpeercert(binary_form=True) or b"")
        """Of the certificate with which the peer has proved who it is."""
        self.resources = resources
        self.rtt: float | None = None
        self.clock_offset: float | None = None
        self.ended = asyncio.Event()
        """Set by the network once `run` has returned: nothing of the link is left."""
        self._control = control
        self._data: asyncio.Future[WebSocket] = asyncio.get_running_loop().create_future()
        self._after: asyncio.Event | None = None
        self._limits = limits
        rate = limits.rates.get(peer.name)
        self._pace = None if rate is None else Pace(rate, time.monotonic())
        self._assembler = Assembler(spools, peer.name)
        self._closing: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._speaking = asyncio.Lock()
        self._sending = asyncio.Lock()
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue(UNREAD_MESSAGES)
        self._batches: asyncio.Queue[tuple[BatchHeader, FileSpool] | None] = asyncio.Queue(UNREAD_BATCHES)
        self._samples: deque[tuple[float, float]] = deque(maxlen=CLOCK_SAMPLES)
        self._answered = asyncio.Event()
        self._answered_at = 0.0
        self._arrivals: list[Arrivals] = []

    # ---- for the services

    async def send(self, message: Message) -> None:
        self._must_be_open()
        await self._transmit(message)

    async def messages(self) -> AsyncIterator[Message]:
        while (message := await self._inbox.get()) is not None:
            yield message
        self._inbox.put_nowait(None)  # for whoever asks again

    async def send_batch(self, header: BatchHeader, spool: FrameSource) -> None:
        async with self._sending:
            self._must_be_open()
            data, begun, done = self._data.result(), False, False
            try:
                async for frame in taken_apart(header, spool):
                    self._must_be_open()
                    begun = True
                    await data.send_bytes(frame)
                    await self._rest(len(frame))
                done = True
            except (ConnectionError, aiohttp.ClientError) as error:
                raise self._lost(error) from error
            finally:
                if begun and not done:  # the peer cannot tell where the next batch would begin
                    self._end(f"{name_of(header)} was not sent to its end")

    async def _rest(self, size: int) -> None:
        """After a frame: as long as the rate says; a socket that takes everything must not keep pings waiting."""
        pause = self._pace.wait(size, time.monotonic()) if self._pace else 0.0
        if pause:
            await asyncio.wait([self._closing], timeout=pause)
        else:
            await asyncio.sleep(0)

    async def batches(self) -> AsyncIterator[tuple[BatchHeader, FileSpool]]:
        while (batch := await self._batches.get()) is not None:
            yield batch
        self._batches.put_nowait(None)

    async def close(self, reason: str) -> None:
        self._end(reason)

    # ---- for the network

    @property
    def open(self) -> bool:
        return not self._closing.done()

    def attach(self, data: WebSocket, after: asyncio.Event | None) -> None:
        """The data connection is there as well; `on_link` may begin after this event."""
        self._after = after
        self._ends.append(_end(data))
        self._data.set_result(data)

    async def answers(self, within: float) -> bool:
        """Whether the peer answers a ping in time."""
        self._answered.clear()
        try:
            async with asyncio.timeout(within):
                await self.send(Ping(time.monotonic()))
                await self._answered.wait()
        except (TimeoutError, LinkDown):
            return False
        return True

    async def run(self, on_link: Callable[["PeerLink"], Awaitable[None]]) -> None:
        """The link's whole life. Raises what broke it; returns if this side ended it on purpose."""
        listener = asyncio.create_task(self._listen())
        work = asyncio.create_task(self._work(on_link))
        helpers = [asyncio.create_task(part()) for part in (self._ping, self._watch, self._collect)]
        parts: list[asyncio.Future[Any]] = [listener, *helpers, work]
        try:
            await asyncio.wait([*parts, self._closing], return_when=asyncio.FIRST_COMPLETED)
            cause = _first_error(parts)
            self._end(_reason(cause))
            if not _heard_the_end(listener):
                await self._farewell(listener)
        finally:
            self._end("the agent stops")
            await _cancelled([listener, *helpers])
            await self.resources.aclose()
            await _cancelled([work])
            await self._discard()
        late = _first_error([work])
        if cause is None and not isinstance(late, SyncagentError):
            cause = late  # a fault while it was being cancelled
        if cause is not None:
            raise cause

    # ---- its parts; the first one to end ends the link

    async def _listen(self) -> None:
        while (data := await receive(self._control, self.peer)) is not None:
            message = wire.decode(data)
            match message:
                case Ping(sent):
                    await self._transmit(Pong(sent, time.time()))
                case Pong(sent, wall):
                    self._measure(sent, wall)
                case Bye(reason):
                    raise LinkDown(f"site {self.peer.name} closed the link", detail=reason)
                case _:
                    await self._inbox.put(message)
        raise self._lost()

    async def _ping(self) -> None:
        await asyncio.shield(self._data)
        self._answered_at = time.monotonic()
        while True:
            left = self._answered_at + self._limits.link_timeout - time.monotonic()
            if left <= 0:
                raise LinkDown(
                    f"site {self.peer.name} has not answered a ping for {self._limits.link_timeout:g} s",
                    hint="the network between the two sites is cut or overloaded, or its agent hangs; if the link comes"
                    f" back and ends again, {_SWALLOWED}",
                )
            with suppress(TimeoutError):  # a socket that takes nothing must not keep us from noticing
                async with asyncio.timeout(left):
                    await self._transmit(Ping(time.monotonic()))
                    await asyncio.sleep(self._limits.ping_interval)

    async def _watch(self) -> None:
        data, begun = await asyncio.shield(self._data), time.monotonic()
        ends = [end.get_extra_info("socket") for end in (self._control, data)]
        self._arrivals = [Arrivals(end, begun) for end in ends if end is not None]
        while True:
            for arrivals in self._arrivals:
                arrivals.look(time.monotonic())
            if self._stuck() >= self._limits.link_timeout and self._answers_pings():
                raise LinkDown(
                    f"what is sent to site {self.peer.name} has not arrived for {self._limits.link_timeout:g} s,"
                    " though it answers pings",
                    hint=_SWALLOWED,
                )
            await asyncio.sleep(_LOOK)

    async def _collect(self) -> None:
        data = await asyncio.shield(self._data)
        try:
            while (frame := await receive(data, self.peer)) is not None:
                if batch := await self._assembler.add(frame):
                    await self._hand_over(batch)
        finally:
            await self._assembler.drop()
        raise self._lost()

    async def _hand_over(self, batch: tuple[BatchHeader, FileSpool]) -> None:
        try:
            await self._batches.put(batch)
        except asyncio.CancelledError:
            await batch[1].close()
            raise

    async def _work(self, on_link: Callable[["PeerLink"], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(self._limits.dial_timeout):
                await asyncio.shield(self._data)
        except TimeoutError:
            raise LinkDown(f"site {self.peer.name} did not open its data connection") from None
        if self._after is not None:
            await self._after.wait()
        await on_link(self)

    # ---- the end

    def _end(self, reason: str) -> None:
        if not self._closing.done():
            self._closing.set_result(reason)

    async def _farewell(self, listener: "asyncio.Task[None]") -> None:
        """Say why, and wait a moment: a socket closed on unread bytes would take the words back."""
        with suppress(TimeoutError, LinkDown, ProtocolError):
            async with asyncio.timeout(LAST_WORDS):
                await self._transmit(Bye(self._closing.result()))
                await asyncio.wait([listener])
                while not _heard_the_end(listener) and await receive(self._control, self.peer) is not None:
                    pass

    async def _discard(self) -> None:
        """Close what nobody has read, and end the iterators."""
        while not self._inbox.empty():
            self._inbox.get_nowait()
        self._inbox.put_nowait(None)
        while not self._batches.empty():
            batch = self._batches.get_nowait()
            if batch is not None:
                await batch[1].close()
        self._batches.put_nowait(None)

    # ---- bytes

    async def _transmit(self, message: Message) -> None:
        data = wire.encode(message)
        if len(data) > self._limits.message_size:
            raise ProtocolError(f"a {type(message).__name__} of {len(data)} bytes is too large to be sent")
        try:
            async with self._speaking:  # two waiters on one socket would share a cancellation
                await self._control.send_bytes(data)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise self._lost(error) from error

    def _measure(self, sent: float, wall: float) -> None:
        """Of the last samples, the fastest says most about the clocks."""
        now = time.monotonic()
        self._answered_at = now
        self._answered.set()
        self.rtt = now - sent
        self._samples.append((self.rtt, wall + self.rtt / 2 - time.time()))
        self.clock_offset = min(self._samples)[1]

    def _must_be_open(self) -> None:
        if self._closing.done():
            raise LinkDown(f"the link with site {self.peer.name} has ended", detail=self._closing.result())

    def _stuck(self) -> float:
        """Seconds for which nothing has arrived of what one of the connections sends."""
        return max((arrivals.missing(time.monotonic()) for arrivals in self._arrivals), default=0.0)

    def _answers_pings(self) -> bool:
        return time.monotonic() - self._answered_at < self._limits.link_timeout / 2

    def _lost(self, error: Exception | None = None) -> LinkDown:
        what = f"the connection with site {self.peer.name} was lost"
        if fault := next((end.fault for end in self._ends if end.fault), None):
            return LinkDown(
                what,
                detail=f"bytes did not arrive as they were sent: {fault}",
                hint="a device on the way is broken, or somebody stands between the two sites",
            )
        if (stuck := self._stuck()) >= _STUCK:
            return LinkDown(
                what,
                detail=f"what was sent to it had not arrived for {stuck:.0f} s",
                hint=f"the network between the two sites is cut; or {_SWALLOWED}",
            )
        return LinkDown(what, detail=str(error) if error else None)


def _end(socket: WebSocket) -> WatchedObject:
    connection = socket.get_extra_info("ssl_object")
    assert isinstance(connection, WatchedObject)
    return connection


def _heard_the_end(listener: "asyncio.Task[None]") -> bool:
    """The peer is gone, or has said goodbye itself."""
    return listener.done() and isinstance(listener.exception(), LinkDown)


def _first_error(parts: Sequence["asyncio.Future[Any]"]) -> BaseException | None:
    for part in parts:
        error = part.exception() if part.done() and not part.cancelled() else None
        if error is not None:
            return _told_plainly(error)
    return None


def _told_plainly(error: BaseException) -> BaseException:
    """A task group wraps what happened; if that was only our own errors, the first one says it."""
    if not isinstance(error, BaseExceptionGroup) or error.split(SyncagentError)[1] is not None:
        return error
    first: BaseException = error.exceptions[0]
    return _told_plainly(first)


def _reason(cause: BaseException | None) -> str:
    if cause is None:
        return "its work is done"
    return str(cause) if isinstance(cause, SyncagentError) else "an internal error; see the log of that site"


async def _cancelled(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
