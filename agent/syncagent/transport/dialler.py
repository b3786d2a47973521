"""Reaching a peer: introduce the certificate, say Hello, open both connections.

Invariant: nothing is sent to a server whose certificate is not the listed one, and a dial that fails
leaves no connection behind.
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext
from uuid import uuid4

import aiohttp
import msgspec
from yarl import URL

from syncagent.core.membership import Peer
from syncagent.core.wire import Hello
from syncagent.errors import LinkDown, SyncagentError, TrustError, UsageError
from syncagent.transport import handshake
from syncagent.transport.addresses import host_and_port
from syncagent.transport.frames import LARGEST_FRAME
from syncagent.transport.links import LAST_WORDS, Limits, PeerLink, WebSocket
from syncagent.transport.pages import LARGEST_REFUSAL, Refusal
from syncagent.transport.sockets import connector
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials, PinnedContext, WrongCertificate

CERTIFICATE_PATH, CONTROL_PATH, DATA_PATH = "/v1/certificate", "/v1/control", "/v1/data"


class Dialler:
    def __init__(
        self, hello: Hello, peers: Sequence[Peer], credentials: Credentials, spools: Spools, limits: Limits
    ) -> None:
        self._hello = hello
        self._spools = spools
        self._limits = limits
        self._credentials = credentials
        self._certificate = credentials.certificate
        self._known: dict[int, Peer] = {}
        self._anonymous: dict[int, PinnedContext] = {}
        self._proven: dict[int, PinnedContext] = {}
        self.know(peers)

    def use(self, credentials: Credentials) -> None:
        """What is shown from the next dial on. Blocks."""
        self._credentials, self._certificate = credentials, credentials.certificate
        self._proven = {peer.node: PinnedContext.to(peer, credentials) for peer in self._known.values()}

    def know(self, peers: Sequence[Peer]) -> None:
        """Whom to expect at the other end, from the next dial on."""
        for peer in peers:
            if self._known.get(peer.node) != peer:
                self._anonymous[peer.node] = PinnedContext.to(peer, None)
                self._proven[peer.node] = PinnedContext.to(peer, self._credentials)
        self._known = {peer.node: peer for peer in peers}

    async def dial(self, peer: Peer) -> tuple[PeerLink, WebSocket]:
        """A new link and its data connection. Raises LinkDown, TrustError, ProtocolError, RefusedError."""
        try:
            async with asyncio.timeout(self._limits.dial_timeout):
                return await self._dial(peer)
        except aiohttp.ClientConnectorCertificateError as error:
            raise distrusted(peer, error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LinkDown(
                f"cannot reach site {peer.name} at {peer.address}",
                detail=in_short(error),
                hint="is its agent running, is the address right, does a firewall stand between?",
            ) from error

    async def _dial(self, peer: Peer) -> tuple[PeerLink, WebSocket]:
        async with AsyncExitStack() as resources:
            session = aiohttp.ClientSession(connector=connector(), cookie_jar=aiohttp.DummyCookieJar())
            sockets: list[WebSocket] = []
            resources.push_async_callback(_hang_up, session, sockets)
            host, port = host_and_port(peer.address or "")
            site = URL.build(scheme="https", host=host, port=port)
            await self._introduce(session, site, peer)
            context = self._proven[peer.node]
            ours = msgspec.structs.replace(self._hello, session=uuid4())
            control = await _connect(session, site / CONTROL_PATH[1:], context, self._limits.message_size)
            sockets.append(control)
            theirs = await handshake.ask(control, ours, peer)
            data = await _connect(session, site / DATA_PATH[1:] / str(ours.session), context, LARGEST_FRAME)
            sockets.append(data)
            keep_alive(data.get_extra_info("socket"))
            link = PeerLink(
                peer,
                theirs,
                control,
                dialler=ours.node,
                spools=self._spools,
                limits=self._limits,
                resources=resources.pop_all(),
            )
            return link, data

    async def _introduce(self, session: aiohttp.ClientSession, site: URL, peer: Peer) -> None:
        """Hand over the certificate, which is public, so that the next handshake may use it."""
        url, pem = site / CERTIFICATE_PATH[1:], await asyncio.to_thread(Path.read_bytes, self._certificate)
        async with session.put(
            url, data=pem, ssl=self._anonymous[peer.node], allow_redirects=False
        ) as answer:
            if answer.status == HTTPStatus.NO_CONTENT:
                return
            raise refused(peer, answer.status, await answer.content.read(LARGEST_REFUSAL))


async def _connect(
    session: aiohttp.ClientSession, url: URL, context: SSLContext, message_size: int
) -> WebSocket:
    timeout = aiohttp.ClientWSTimeout(ws_close=LAST_WORDS)
    limit = message_size + 1  # the first size that is refused
    return await session.ws_connect(url, ssl=context, max_msg_size=limit, compress=0, timeout=timeout)


async def _hang_up(session: aiohttp.ClientSession, sockets: Sequence[WebSocket]) -> None:
    await session.close()  # aborts the connections: nothing may wait for a peer that takes no bytes
    for each in sockets:
        await each.close()


def keep_alive(connection: socket.socket | None) -> None:
    """A data connection may rest for days; what stands between the sites must not forget it."""
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # macOS names it otherwise; its default serves
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)


def in_short(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error.os_error) if isinstance(error, aiohttp.ClientConnectorError) else str(error)


def distrusted(peer: Peer, error: aiohttp.ClientConnectorCertificateError) -> SyncagentError:
    cause = error.certificate_error
    if not isinstance(cause, WrongCertificate):
        return TrustError(f"the certificate shown for site {peer.name} is not valid", detail=str(cause))
    return TrustError(
        f"at {peer.address} a certificate was shown that is not the one listed for site {peer.name}",
        detail=f"shown {cause.presented}, listed {peer.sha256}",
        hint="the address is wrong, somebody else answers there, or that site was set up anew and must join again",
    )


def refused(peer: Peer, status: int, body: bytes) -> SyncagentError:
    try:
        said = msgspec.json.decode(body, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UsageError(
            f"what answers at {peer.address} is not the agent of site {peer.name}",
            detail=f"HTTP status {status}",
        )
    return TrustError(f"site {peer.name} refused: {said.message}", detail=said.detail, hint=said.hint)
