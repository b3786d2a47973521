"""What changes something over HTTP: signing in and out, and settling a conflict.

Invariant: each is a POST of JSON from the console's own page; all but signing in need its cookie. A conflict is settled as
`syncagent conflicts resolve` does it, in a session of its own.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import web

from syncagent.errors import UsageError
from syncagent.storage import inspection
from syncagent.storage.commands import Connection, border, connected
from syncagent.web.signing import Desk, require_own_page

T = TypeVar("T")
_MILLISECONDS = 10_000


class Token(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class Resolution(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    take: str


class Undoing(msgspec.Struct, forbid_unknown_fields=True):
    id: str


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Action(NamedTuple):
    """One POST, and what its body holds."""

    path: str
    summary: str
    body: type[msgspec.Struct]


SIGN_IN = Action("/session", "Sign in with a token of `syncagent console token`.", Token)
SIGN_OUT = Action("/session/end", "Sign out.", Nothing)
RESOLVE = Action("/conflict/resolve", "Settle a conflict: take winner, loser, or a site.", Resolution)
UNDO = Action("/conflict/undo", "Take a resolution back.", Undoing)
ACTIONS = (SIGN_IN, SIGN_OUT, RESOLVE, UNDO)


class Desktop:
    """Does them, one change of rows after the other."""

    def __init__(self, dsn: str, desk: Desk) -> None:
        self._dsn, self._desk, self._turn = dsn, desk, asyncio.Lock()

    def routes(self, root: str) -> list[web.RouteDef]:
        handlers = {
            SIGN_IN: self._sign_in,
            SIGN_OUT: self._sign_out,
            RESOLVE: self._resolve,
            UNDO: self._undo,
        }
        return [
            web.get(f"{root}/session", self._session),
            *(web.post(root + action.path, handler) for action, handler in handlers.items()),
        ]

    async def _session(self, request: web.Request) -> web.Response:
        return _json({"signed_in": self._desk.knows(request), "rows": self._desk.shows_rows(request)})

    async def _sign_in(self, request: web.Request) -> web.Response:
        require_own_page(request)
        asked = await _read(request, Token)
        response = _json({"signed_in": True, "rows": True})
        self._desk.sign_in(asked.token, response)
        structlog.get_logger().info("console", did="signed in", at=request.remote)
        return response

    async def _sign_out(self, request: web.Request) -> web.Response:
        require_own_page(request)
        response = _json({"signed_in": False})
        self._desk.sign_out(request, response)
        return response

    async def _resolve(self, request: web.Request) -> web.Response:
        self._may(request)
        asked = await _read(request, Resolution)
        return await self._do(
            "resolved", asked.id, lambda c: inspection.resolve(c, asked.id, asked.take, None)
        )

    async def _undo(self, request: web.Request) -> web.Response:
        self._may(request)
        asked = await _read(request, Undoing)
        return await self._do("undone", asked.id, lambda c: inspection.undo(c, asked.id))

    def _may(self, request: web.Request) -> None:
        require_own_page(request)
        self._desk.require(request)

    async def _do(self, did: str, conflict: str, change: Callable[[Connection], Any]) -> web.Response:
        async with self._turn:
            answer = await asyncio.to_thread(self._change, change)
        structlog.get_logger().info("console", did=did, conflict=conflict)
        return _json(answer)

    def _change(self, change: Callable[[Connection], T]) -> T:
        with connected(self._dsn) as connection, border():
            connection.execute(f"set statement_timeout = {_MILLISECONDS}".encode())
            return change(connection)


B = TypeVar("B", bound=msgspec.Struct)


async def _read(request: web.Request, kind: type[B]) -> B:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.MsgspecError as error:
        raise UsageError(
            "the body is not what is asked for", detail=str(error), hint="see openapi.json"
        ) from error


def _json(answer: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer, enc_hook=str), content_type="application/json")


def described(error: dict[str, Any]) -> dict[str, Any]:
    """Them, as OpenAPI describes paths."""
    found: dict[str, Any] = {}
    for action in ACTIONS:
        names = list(action.body.__struct_fields__)
        schema = {
            "type": "object",
            "required": names,
            "properties": {name: {"type": "string"} for name in names},
        }
        found[action.path] = {
            "post": {
                "summary": action.summary,
                "operationId": action.path.strip("/").replace("/", "_"),
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                "responses": {
                    "200": {"description": action.summary, "content": {"application/json": {"schema": {}}}},
                    "default": error,
                },
            }
        }
    found[SIGN_IN.path]["get"] = {
        "summary": "Whether whoever asks is signed in, and is shown rows.",
        "operationId": "session_get",
        "responses": {"200": {"description": "It is said.", "content": {"application/json": {"schema": {}}}}},
    }
    return found
