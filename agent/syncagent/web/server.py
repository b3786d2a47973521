"""The agent's HTTP side: an address, plain only where nobody else can listen in, and what is answered there.

Invariants: nothing leaves a network interface without TLS; a page on the web that makes a browser ask this host for another name
gets no answer; what is asked here never ends the agent.
"""

import asyncio
import ipaddress
import socket
import ssl
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from syncagent.errors import SyncagentError, UsageError
from syncagent.node import Window
from syncagent.settings import Settings
from syncagent.transport.addresses import host_and_port
from syncagent.transport.pages import as_json, refusal
from syncagent.transport.tls import Credentials
from syncagent.web import actions, api, metrics, signing
from syncagent.web.database import Reader
from syncagent.web.live import Live
from syncagent.web.pages import Pages

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_local(host: str) -> bool:
    """Whether every address of it is this host's loopback. UsageError if it has none."""
    if not host:
        return False  # every interface
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--http: {host} is no address of this host", detail=error.strerror) from error
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


async def _guard(_request: web.Request, response: web.StreamResponse) -> None:
    """What an answer says to the browser, unless it says better."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)


class Server:
    """Serves `window` until it is stopped. The site's certificate is read anew when a renewal has replaced it."""

    def __init__(self, settings: Settings, address: str) -> None:
        self._settings, self._address = settings, address
        self._host, self._port = host_and_port(address)
        self._local = is_local(self._host)
        self._measured = metrics.Measured(settings.name)
        self.window = Window(self._measured)
        self._reader = Reader(settings.dsn)
        self._scraping = asyncio.Lock()
        app = web.Application(middlewares=[self._guarded], client_max_size=64 * 1024)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        app.router.add_get("/metrics", self._metrics)
        self._live = Live(self._reader, self._measured, self.window, settings.name)
        desk = signing.Desk(settings, local=self._local)
        app.router.add_routes(api.routes(self._reader, desk))
        app.router.add_routes(actions.Desktop(settings.dsn, desk).routes(api.ROOT))
        app.router.add_get(api.ROOT + api.EVENTS, self._live.listen)
        app.router.add_routes(Pages().routes())
        app.on_response_prepare.append(_guard)
        app.on_shutdown.append(self._live.stop)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._turning: asyncio.Task[None] | None = None
        self._announced: str | None = None

    async def start(self) -> None:
        """UsageError if the address cannot be had, or the certificate cannot be used."""
        context = None if self._local else await asyncio.to_thread(self._context)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host or None, self._port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise UsageError(
                f"cannot listen on {self._address}",
                detail=error.strerror,
                hint="see which program uses the port, or choose another one with --http",
            ) from error
        if context is not None:
            self._turning = asyncio.create_task(self._follow(context))
        await self._live.start()
        scheme = "http" if self._local else "https"
        self._announced = f"{scheme}://{self._shown()}/"
        await asyncio.to_thread(signing.announce, self._settings.home, self._announced)
        structlog.get_logger().info("http", site=self._settings.name, at=f"{scheme}://{self._address}/")

    async def stop(self) -> None:
        if self._turning is not None:
            self._turning.cancel()
        await self._runner.cleanup()
        await self._reader.close()
        if self._announced is not None:
            await asyncio.to_thread(signing.withdraw, self._settings.home, self._announced)

    def _shown(self) -> str:
        """The address for a browser: where it listens on every interface, the name that peers dial."""
        if self._host not in ("", "0.0.0.0", "::"):
            return self._address
        name = host_and_port(self._settings.address)[0] if self._settings.address else socket.gethostname()
        return f"[{name}]:{self._port}" if ":" in name else f"{name}:{self._port}"

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        Credentials.provide(self._settings.home, self._settings.name).load_into(context)
        return context

    async def _follow(self, context: ssl.SSLContext) -> None:
        """Handshakes show the certificate that is in use, also after it was renewed."""
        shown = None
        while True:
            await asyncio.sleep(10)
            try:
                now = await asyncio.to_thread(Credentials.provide, self._settings.home, self._settings.name)
                if now.sha256 != shown:
                    now.load_into(context)
                    shown = now.sha256
            except (SyncagentError, OSError) as error:
                structlog.get_logger().warning(
                    "certificate not read", site=self._settings.name, reason=str(error)
                )

    # ---- answers

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._local and not self._is_ours(request.host):
                raise UsageError(f"{request.host} is not served here", hint="ask for 127.0.0.1 or localhost")
            signing.forbid_other_pages(request)
            response = await handler(request)
        except SyncagentError as error:
            response = refusal(api.status_of(error), error)
        except web.HTTPException as error:
            wrong = UsageError(
                f"{request.method} {request.path}: {error.reason}", hint="see /api/v1/openapi.json"
            )
            response = refusal(error.status, wrong)
        return response

    @staticmethod
    def _is_ours(host: str) -> bool:
        """A name that a page from elsewhere cannot have pointed here."""
        name = (host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host).strip("[]")
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name.lower() == "localhost"

    async def _health(self, _request: web.Request) -> web.Response:
        return as_json({"healthy": True})

    async def _readiness(self, _request: web.Request) -> web.Response:
        reason = self.window.unready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        return as_json({"ready": reason is None, "reason": reason}, status)

    async def _metrics(self, _request: web.Request) -> web.Response:
        async with self._scraping:
            try:
                rows = await self._reader.read(metrics.asked)
            except SyncagentError:
                rows = None  # the page says so: syncagent_database_up
            standing = self.window.standing() if self.window.standing else None
            page = metrics.written(self._measured, self._settings, rows, standing)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})
