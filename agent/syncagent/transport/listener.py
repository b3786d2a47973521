"""Being reached by peers: TLS and HTTP up to the point where a peer is known and its socket is open.

Invariant: without a certificate that is listed and proved, only `PUT /v1/certificate` does anything, and
that only for a listed certificate, and what is given as `gate`, which looks at a token itself.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from aiohttp import web

from syncagent.core.membership import Peer
from syncagent.errors import TrustError, UsageError
from syncagent.transport.addresses import host_and_port
from syncagent.transport.dialler import CERTIFICATE_PATH, CONTROL_PATH, DATA_PATH, keep_alive
from syncagent.transport.frames import LARGEST_FRAME
from syncagent.transport.links import LAST_WORDS, Limits, WebSocket
from syncagent.transport.pages import refusal
from syncagent.transport.tls import Trust

LARGEST_CERTIFICATE = 16 * 1024
Abort = Callable[[], None]
OnControl = Callable[[Peer, WebSocket, Abort], Awaitable[None]]
OnData = Callable[[Peer, UUID, WebSocket, Abort], Awaitable[None]]
Handler = Callable[[web.Request, Peer], Awaitable[web.StreamResponse]]
NO_PAGES: Mapping[str, Handler] = MappingProxyType({})


class Listener:
    """`on_control` and `on_data` are awaited as the life of a peer's socket."""

    def __init__(
        self,
        address: str,
        trust: Trust,
        limits: Limits,
        on_control: OnControl,
        on_data: OnData,
        on_stranger: Callable[[TrustError], None],
        pages: Mapping[str, Handler] = NO_PAGES,
        gate: Iterable[web.RouteDef] = (),
    ) -> None:
        """`pages` are what else peers may GET: path to handler; `gate` is what anybody may ask."""
        self._address = address
        self._trust = trust
        self._limits = limits
        self._on_control = on_control
        self._on_data = on_data
        self._on_stranger = on_stranger
        self._server: asyncio.Server | None = None
        app = web.Application(client_max_size=LARGEST_CERTIFICATE)
        app.router.add_put(CERTIFICATE_PATH, self._introduction)
        app.router.add_get(CONTROL_PATH, self._for_peers(self._control))
        app.router.add_get(DATA_PATH + "/{session}", self._for_peers(self._data))
        app.router.add_routes(gate)
        for path, handler in pages.items():
            app.router.add_get(path, self._for_peers(handler))
        app.router.add_route("*", "/{rest:.*}", self._for_peers(_nothing_here))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=LAST_WORDS)

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        host, port = host_and_port(self._address)
        await self._runner.setup()
        assert self._runner.server is not None
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._runner.server,
                host or None,
                port,
                ssl=self._trust.context,
                ssl_handshake_timeout=self._limits.dial_timeout,
                ssl_shutdown_timeout=LAST_WORDS,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise UsageError(
                f"cannot listen on {self._address}",
                detail=error.strerror,
                hint="see which program uses the port, or choose another address with --listen",
            ) from error

    async def stop(self) -> None:
        """The handlers have been made to return before."""
        if self._server is not None:
            self._server.close()
            await self._runner.cleanup()
            if sys.version_info >= (3, 13):
                self._server.abort_clients()  # those still in their TLS handshake

    # ---- endpoints

    async def _introduction(self, request: web.Request) -> web.Response:
        try:
            await self._trust.introduce((await request.read()).decode("ascii", errors="replace"))
        except TrustError as error:
            self._on_stranger(error)
            return refusal(web.HTTPForbidden.status_code, error)
        return web.Response(status=web.HTTPNoContent.status_code)

    def _for_peers(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            transport = request.transport
            peer = self._trust.identify(transport.get_extra_info("ssl_object")) if transport else None
            if peer is None:
                error = TrustError("this is for peers with a listed certificate")
                return refusal(web.HTTPForbidden.status_code, error)
            return await handler(request, peer)

        return guarded

    async def _control(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        socket, abort = await _open(request, self._limits.message_size)
        await self._on_control(peer, socket, abort)
        return socket

    async def _data(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        try:
            session = UUID(request.match_info["session"])
        except ValueError:
            return await _nothing_here(request, peer)
        socket, abort = await _open(request, LARGEST_FRAME)
        if request.transport is not None:
            keep_alive(request.transport.get_extra_info("socket"))
        await self._on_data(peer, session, socket, abort)
        return socket


async def _open(request: web.Request, message_size: int) -> tuple["web.WebSocketResponse[Any]", Abort]:
    socket = web.WebSocketResponse(max_msg_size=message_size + 1, compress=False, timeout=LAST_WORDS)
    try:
        await socket.prepare(request)
    except ConnectionError as error:  # it went away before it was answered: nobody will read why
        raise web.HTTPRequestTimeout from error

    def abort() -> None:
        if request.transport is not None:
            request.transport.abort()

    return socket, abort


async def _nothing_here(_request: web.Request, _peer: Peer) -> web.StreamResponse:
    return refusal(web.HTTPNotFound.status_code, TrustError("there is nothing here"))
