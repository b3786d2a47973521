"""What changes something over HTTP: signing in and out, settling a conflict, and parked rows.

Invariant: each is a POST of JSON from the console's own page; all but signing in need its cookie. What it does is what the verb of
the same name does, in a session of its own.
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
from syncagent.storage.requests import ask
from syncagent.transport.pages import as_json
from syncagent.web.signing import Desk, require_own_page

T = TypeVar("T")
_MILLISECONDS = 10_000


class Token(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class Resolution(msgspec.Struct, forbid_unknown_fields=True):
    """`take` or `value`: what this site wrote, or columns and their values."""

    id: str
    take: str | None = None
    value: dict[str, Any] | None = None


class Undoing(msgspec.Struct, forbid_unknown_fields=True):
    id: str


class Dropping(msgspec.Struct, forbid_unknown_fields=True):
    table: str
    key: str


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Action(NamedTuple):
    """One POST, and what its body holds."""

    path: str
    summary: str
    body: type[msgspec.Struct]


SIGN_IN = Action("/session", "Sign in with a token of `syncagent console token`.", Token)
SIGN_OUT = Action("/session/end", "Sign out.", Nothing)
RESOLVE = Action(
    "/conflict/resolve",
    "Settle a conflict: take winner, loser, or a site; or give columns values.",
    Resolution,
)
UNDO = Action("/conflict/undo", "Take a resolution back.", Undoing)
RETRY = Action("/parked/retry", "Try all parked rows now.", Nothing)
DROP = Action("/parked/drop", "Give a parked version up, at every site; it is kept as a conflict.", Dropping)
ACTIONS = (SIGN_IN, SIGN_OUT, RESOLVE, UNDO, RETRY, DROP)


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
            RETRY: self._retry,
            DROP: self._drop,
        }
        return [
            web.get(f"{root}/session", self._session),
            *(web.post(root + action.path, handler) for action, handler in handlers.items()),
        ]

    async def _session(self, request: web.Request) -> web.Response:
        return as_json({"signed_in": self._desk.knows(request), "rows": self._desk.shows_rows(request)})

    async def _sign_in(self, request: web.Request) -> web.Response:
        require_own_page(request)
        asked = await _read(request, Token)
        response = as_json({"signed_in": True, "rows": True})
        self._desk.sign_in(asked.token, response)
        _log("signed in", at=request.remote)
        return response

    async def _sign_out(self, request: web.Request) -> web.Response:
        require_own_page(request)
        response = as_json({"signed_in": False})
        self._desk.sign_out(request, response)
        return response

    async def _resolve(self, request: web.Request) -> web.Response:
        self._may(request)
        asked = await _read(request, Resolution)
        if (asked.take is None) == (asked.value is None):
            raise UsageError("say what the row is to become", hint="send take or value, and not both")
        settled = await self._do(lambda c: inspection.resolve(c, asked.id, asked.take, asked.value))
        _log("resolved", conflict=settled["id"])
        return as_json(settled)

    async def _undo(self, request: web.Request) -> web.Response:
        self._may(request)
        asked = await _read(request, Undoing)
        undone = await self._do(lambda c: inspection.undo(c, asked.id))
        _log("undone", conflict=undone["id"])
        return as_json(undone)

    async def _retry(self, request: web.Request) -> web.Response:
        self._may(request)
        await _read(request, Nothing)
        left = await self._do(lambda c: ask(c, "retry", {}, seconds=_MILLISECONDS / 1000))
        _log("retried", parked=left["parked"])
        return as_json(left)

    async def _drop(self, request: web.Request) -> web.Response:
        self._may(request)
        asked = await _read(request, Dropping)
        kept = await self._do(lambda c: inspection.drop_parked(c, asked.table, asked.key))
        _log("dropped", conflict=kept["id"])
        return as_json(kept)

    def _may(self, request: web.Request) -> None:
        require_own_page(request)
        self._desk.require(request)

    async def _do(self, change: Callable[[Connection], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(self._change, change)

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


def _log(did: str, **about: Any) -> None:
    structlog.get_logger().info("console", did=did, **about)


def bodies() -> dict[str, Any]:
    """What is sent, as OpenAPI describes it."""
    return msgspec.json.schema_components(
        [action.body for action in ACTIONS], ref_template="#/components/schemas/{name}"
    )[1]


def described(error: dict[str, Any]) -> dict[str, Any]:
    """Them, as OpenAPI describes paths."""
    found: dict[str, Any] = {}
    for action in ACTIONS:
        schema = {"$ref": f"#/components/schemas/{action.body.__name__}"}
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
