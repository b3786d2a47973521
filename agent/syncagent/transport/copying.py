"""The copy of the rows over HTTP: the pages that a donor shows its peers, and the joiner that asks for them.

An answer is the frames of a batch: header frames with what is said, then data frames stream by stream, then the end frame
that sums them up. The donor sends when its transaction is over, the joiner begins when all is here and verified, so
neither database waits for the network.

Invariant: an answer that was cut short, changed or reordered is `DamagedFrame` or `LinkDown`, never a shorter answer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from syncagent.core import limits
from syncagent.core.copying import CopyPlan, EndHead, RangeAsked, RangeHead, decode, encode
from syncagent.core.handout import Handout
from syncagent.core.membership import Peer
from syncagent.core.ports import Spool
from syncagent.core.wire import FRAME_HEAD, HEADER_FRAME, unpack_head
from syncagent.errors import (
    Contended,
    DamagedFrame,
    DiskFull,
    LinkDown,
    ProtocolError,
    RefusedError,
    SpoolFull,
    SyncagentError,
    Unreachable,
)
from syncagent.transport import frames
from syncagent.transport.addresses import host_and_port
from syncagent.transport.dialler import (
    CERTIFICATE_PATH,
    distrusted,
    in_short,
    refused,
)
from syncagent.transport.frames import LARGEST_FRAME
from syncagent.transport.listener import Handler
from syncagent.transport.pages import LARGEST_REFUSAL, Refusal, refusal
from syncagent.transport.sockets import connector
from syncagent.transport.spool import FileSpool, Spools
from syncagent.transport.tls import Credentials, PinnedContext

PLAN_PATH, ROWS_PATH, END_PATH = "/v1/copy/plan", "/v1/copy/rows", "/v1/copy/end"
COUNTED_PATH, BLUEPRINT_PATH = "/v1/copy/counted", "/v1/copy/blueprint"
KNOWN_PATH, RETURN_PATH, LOOK_PATH = "/v1/return/known", "/v1/return", "/v1/return/plan"
LARGEST_PLAN = 64 * 1024 * 1024
LARGEST_HEAD = 16 * 1024 * 1024
_PIECE = 256 * 1024
Head = TypeVar("Head", RangeHead, EndHead)
OnBytes = Callable[[int], Awaitable[None]]


class DonorStore(Protocol):
    """What the pages need of the donor's database; joiners are named by their node."""

    async def plan(self, joiner: int, *, look: bool) -> CopyPlan: ...
    async def rows(self, asked: RangeAsked) -> tuple[RangeHead, Spool]: ...
    async def end(self, joiner: int, taken: str) -> tuple[EndHead, Spool]: ...


# ---- the donor


def pages(store: DonorStore, handout: Handout | None = None) -> Mapping[str, Handler]:
    """For `TlsNetwork(pages=...)`. `handout` counts what joiners are given."""
    counted = handout or Handout()

    async def plan(request: web.Request, peer: Peer) -> web.StreamResponse:
        look = request.path == LOOK_PATH
        made = await store.plan(peer.node, look=look)
        if not look:
            counted.planned(peer.node, made, time.monotonic())
        return web.Response(body=encode(made), content_type="application/json")

    async def rows(request: web.Request, peer: Peer) -> web.StreamResponse:
        asked = decode(RangeAsked, await request.read())
        head, spool = await store.rows(asked)
        counted.gave(peer.node, asked.range, head.rows, time.monotonic())
        return await _send(request, encode(head), spool)

    async def end(request: web.Request, peer: Peer) -> web.StreamResponse:
        head, spool = await store.end(peer.node, request.query.get("taken", ""))
        return await _send(request, encode(head), spool)

    return {
        PLAN_PATH: explained(plan),
        LOOK_PATH: explained(plan),
        ROWS_PATH: explained(rows),
        END_PATH: explained(end),
    }


def page(say: Callable[[int, bytes], Awaitable[bytes]]) -> Handler:
    """One more page, for `HttpDonor.ask`: it is told who asks, and with what."""

    async def answer(request: web.Request, peer: Peer) -> web.StreamResponse:
        return web.Response(body=await say(peer.node, await request.read()))

    return explained(answer)


def explained(handler: Handler) -> Handler:
    """An error becomes a refusal the joiner can show; a stream that has begun can only be broken off."""

    async def explaining(request: web.Request, peer: Peer) -> web.StreamResponse:
        try:
            return await handler(request, peer)
        except SyncagentError as error:
            passing = isinstance(error, Contended | Unreachable | SpoolFull | DiskFull)
            status = HTTPStatus.SERVICE_UNAVAILABLE if passing else HTTPStatus.CONFLICT
            return refusal(status, error)

    return explaining


async def _send(request: web.Request, head: bytes, spool: Spool) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    try:
        await response.prepare(request)
        for frame in frames.Encoder().header(head):
            await _write(response, frame)
        async for frame in spool.frames():
            await _write(response, frame)
        await response.write_eof()
    except (ConnectionError, TimeoutError, SyncagentError):
        if request.transport is not None:
            request.transport.abort()  # so that nobody takes what was sent for all of it
    finally:
        await spool.close()
    return response


async def _write(response: web.StreamResponse, frame: bytes) -> None:
    """A joiner that takes nothing for long has vanished."""
    async with asyncio.timeout(limits.COPY_STALLED):
        await response.write(frame)


# ---- the joiner


class HttpDonor:
    """The Donor of the services: one peer that is reached at its address. Closed when the copy is over."""

    def __init__(self, peer: Peer, credentials: Credentials, spools: Spools) -> None:
        host, port = host_and_port(peer.address or "")
        self.peer, self._spools = peer, spools
        self._site = URL.build(scheme="https", host=host, port=port)
        self._certificate = credentials.certificate
        self._anonymous = PinnedContext.to(peer, None)
        self._proven = PinnedContext.to(peer, credentials)
        self._session: aiohttp.ClientSession | None = None
        self._introducing = asyncio.Lock()

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def ask(self, path: str, body: bytes | None = None) -> bytes:
        """What another page says."""
        async with self._get(path, body) as answer:
            return await _whole(answer, LARGEST_PLAN)

    async def plan(self, *, look: bool = False) -> CopyPlan:
        path = LOOK_PATH if look else PLAN_PATH
        return decode(CopyPlan, await self.ask(path))

    async def rows(self, asked: RangeAsked, on_bytes: OnBytes) -> tuple[RangeHead, Spool]:
        async with self._get(ROWS_PATH, encode(asked)) as answer:
            return await self._take(answer, RangeHead, f"copy of {asked.range}", on_bytes)

    async def end(self, taken: str) -> tuple[EndHead, Spool]:
        async with self._get(END_PATH, taken=taken) as answer:
            return await self._take(answer, EndHead, "the end of the copy", _nothing)

    @asynccontextmanager
    async def _get(
        self, path: str, body: bytes | None = None, **query: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200; everything else is raised, also what goes wrong while it is read."""
        try:
            session = await self._introduced()
            async with session.get(
                self._site.with_path(path).with_query(query),
                data=body,
                ssl=self._proven,
                allow_redirects=False,
            ) as answer:
                if answer.status != HTTPStatus.OK:
                    raise self._refusal(answer.status, await answer.content.read(LARGEST_REFUSAL))
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            raise distrusted(self.peer, error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LinkDown(
                f"the copy from site {self.peer.name} at {self.peer.address} was interrupted",
                detail=in_short(error),
                hint="is its agent running? what was copied is kept",
            ) from error

    async def _introduced(self) -> aiohttp.ClientSession:
        """Hand over the certificate, once a session, so that the handshakes to come may use it."""
        async with self._introducing:
            if self._session is None:
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=limits.COPY_STALLED)
                session = aiohttp.ClientSession(
                    connector=connector(), cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout
                )
                try:
                    await self._introduce(session)
                except BaseException:
                    await session.close()
                    raise
                self._session = session
            return self._session

    async def _introduce(self, session: aiohttp.ClientSession) -> None:
        pem = await asyncio.to_thread(Path.read_bytes, self._certificate)
        url = self._site.with_path(CERTIFICATE_PATH)
        async with session.put(url, data=pem, ssl=self._anonymous, allow_redirects=False) as answer:
            if answer.status != HTTPStatus.NO_CONTENT:
                raise refused(self.peer, answer.status, await answer.content.read(LARGEST_REFUSAL))

    def _refusal(self, status: int, body: bytes) -> SyncagentError:
        if status not in (HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE):
            return refused(self.peer, status, body)
        try:
            said = msgspec.json.decode(body, type=Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return refused(self.peer, status, body)
        kind = RefusedError if status == HTTPStatus.CONFLICT else Contended
        return kind(f"site {self.peer.name}: {said.message}", detail=said.detail, hint=said.hint)

    async def _take(
        self, answer: aiohttp.ClientResponse, kind: type[Head], name: str, on_bytes: OnBytes
    ) -> tuple[Head, FileSpool]:
        spool = self._spools(f"{name} from {self.peer.name}")
        try:
            return decode(kind, await _receive(answer, spool, on_bytes)), spool
        except BaseException:
            await spool.close()
            raise


async def _receive(answer: aiohttp.ClientResponse, spool: FileSpool, on_bytes: OnBytes) -> bytes:
    """Fill the spool; what stood before its frames."""
    head, complete, name = bytearray(), False, spool.name
    async for frame in _frames(answer, name, on_bytes):
        if complete:
            raise DamagedFrame(f"{name}: it goes on after its end")
        if unpack_head(frame).kind == HEADER_FRAME:
            head += frames.payload_of(frame, name)
            if len(head) > LARGEST_HEAD:
                raise ProtocolError(f"{name}: its header is larger than {LARGEST_HEAD} bytes")
        else:
            complete = await spool.accept(frame)
    if not complete:
        raise DamagedFrame(f"{name}: it stops too early")
    return bytes(head)


async def _nothing(_size: int) -> None:
    return


async def _frames(answer: aiohttp.ClientResponse, name: str, on_bytes: OnBytes) -> AsyncIterator[bytes]:
    data = b""
    while piece := await answer.content.read(_PIECE):
        await on_bytes(len(piece))
        data, start = data + piece, 0
        while len(data) - start >= FRAME_HEAD:
            stop = start + FRAME_HEAD + unpack_head(data, start).length
            if stop - start > LARGEST_FRAME:
                raise DamagedFrame(f"{name}: a frame claims {stop - start} bytes")
            if stop > len(data):
                break
            yield data[start:stop]
            start = stop
        data = data[start:]
    if data:
        raise DamagedFrame(f"{name}: it stops inside a frame")


async def _whole(answer: aiohttp.ClientResponse, most: int) -> bytes:
    data = bytearray()
    while piece := await answer.content.read(_PIECE):
        data += piece
        if len(data) > most:
            raise ProtocolError(f"an answer of the copy is larger than {most} bytes")
    return bytes(data)
