"""The JSON of `/api/v1`: what the verbs that look show. What changes something is in `actions`.

Invariant: the list of answers is the list of routes and of `openapi.json`, so none is served that is not described. Rows of the
application are shown on a loopback address, for whoever may read the database of this host sees them in `syncagent conflicts`, too, and to
who is signed in.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from aiohttp import web

from syncagent import __version__
from syncagent.errors import RefusedError, SyncagentError, Unreachable, UsageError
from syncagent.storage import inspection
from syncagent.storage.commands import Connection
from syncagent.storage.schema import telling
from syncagent.transport.pages import as_json
from syncagent.web import actions, signing
from syncagent.web.database import Reader
from syncagent.web.live import Full

ROOT = "/api/v1"
_SHOWN, _MOST = 50, 1000
Query = dict[str, str]


class Withheld(RefusedError):
    """It is not for whoever asks from here."""


class Answer(NamedTuple):
    """One GET. `parameters` are those of the query, with what they choose."""

    path: str
    summary: str
    ask: Callable[[Connection, Query], Any]
    parameters: Mapping[str, str] = MappingProxyType({})
    rows: bool = False
    """Whether it shows rows of attached tables, or their keys."""


def _limit(query: Query) -> int:
    text = query.get("limit", str(_SHOWN))
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise UsageError(
            f"limit {text!r} is not a number from 1 to {_MOST}", hint="leave it out for the default"
        )
    return int(text)


def _conflicts(connection: Connection, query: Query) -> Any:
    since = query.get("since")
    if since is not None and not since.isdecimal():
        raise UsageError(f"since {since!r} is not a number of seconds", hint="write it as since=3600")
    if query.get("open") not in (None, "true", "false"):
        raise UsageError("open is true or false", hint="leave it out for both")
    wanted = inspection.Wanted(
        query.get("table"),
        query.get("key"),
        query.get("kind"),
        query.get("site"),
        None if since is None else timedelta(seconds=int(since)),
        None if "open" not in query else query["open"] == "true",
    )
    found, count = inspection.conflicts(connection, wanted, _limit(query))
    return {"count": count, "conflicts": found}


def _named(query: Query, *names: str) -> list[str]:
    if missing := [name for name in names if not query.get(name)]:
        raise UsageError(f"{missing[0]} is missing", hint=f"add ?{missing[0]}=... to the address")
    return [query[name] for name in names]


def _view(name: str) -> Callable[[Connection, Query], Any]:
    def ask(connection: Connection, query: Query) -> Any:
        return connection.execute(
            f"select * from syncagent.{name} limit %s".encode(), (_limit(query),)
        ).fetchall()

    return ask


_TABLE = {"table": "an attached table, named as in SQL"}
_AT_MOST = {"limit": f"at most so many, 1 to {_MOST}; {_SHOWN} if left out"}
ANSWERS = (
    Answer(
        "/status", "Every site: lag, what waits and why, clocks, sizes.", lambda c, _: inspection.status(c)
    ),
    Answer("/sites", "The members, and who leads.", lambda c, _: inspection.sites(c)),
    Answer("/lag", "What each site has not applied of each other.", _view("lag"), _AT_MOST),
    Answer("/tables", "Attached tables.", lambda c, _: inspection.tables(c)),
    Answer(
        "/forest",
        "The Merkle tree of a table, by the time of its keys.",
        lambda c, q: inspection.forest(c, _named(q, "table")[0], q.get("by", "day")),
        _TABLE | {"by": "year, month, day, hour or minute; day if left out"},
    ),
    Answer(
        "/conflicts",
        "Conflicts, the newest first, and how many there are.",
        _conflicts,
        _TABLE
        | {"key": "of this row", "kind": "as update/update", "site": "won, lost or noticed by this one"}
        | {"since": "noticed in the last seconds", "open": "true or false"}
        | _AT_MOST,
        rows=True,
    ),
    Answer(
        "/conflict",
        "One conflict, with both versions.",
        lambda c, q: inspection.conflict(c, _named(q, "id")[0]),
        {"id": "its id, or the beginning"},
        rows=True,
    ),
    Answer("/parked", "Rows that break a constraint here, and wait.", _view("parked"), _AT_MOST, rows=True),
    Answer(
        "/why",
        "The story of one row.",
        lambda c, q: inspection.why(c, *_named(q, "table", "key")),
        _TABLE | {"key": "its key, as text"},
        rows=True,
    ),
    Answer("/schema-changes", "Schema changes, in their order.", _view("schema_change"), _AT_MOST),
    Answer(
        "/schema-steps",
        "Schema changes, the newest first, with their steps and whom each waits for.",
        lambda c, q: telling.history(c)[: _limit(q)],
        _AT_MOST,
    ),
)
EVENTS = "/events"


def routes(reader: Reader, desk: signing.Desk) -> list[web.RouteDef]:

    def serve(answer: Answer) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            query = dict(request.query)
            if unknown := query.keys() - answer.parameters.keys():
                raise UsageError(
                    f"{min(unknown)!r} is not a parameter of {answer.path}",
                    hint=f"known are: {', '.join(answer.parameters) or 'none'}",
                )
            if answer.rows and not desk.shows_rows(request):
                raise Withheld(
                    "rows are shown to this host and to who is signed in",
                    hint="open what `syncagent console token` prints, or use the command line there",
                )
            return as_json(await reader.read(lambda connection: answer.ask(connection, query)))

        return handle

    async def described(_request: web.Request) -> web.Response:
        return as_json(openapi())

    found = [web.get(ROOT + answer.path, serve(answer)) for answer in ANSWERS]
    return [*found, web.get(f"{ROOT}/openapi.json", described)]


def status_of(error: SyncagentError) -> int:
    if (status := signing.status_of(error)) is not None:
        return status
    match error:
        case Full():
            return 503
        case UsageError():
            return 400
        case Withheld():
            return 403
        case RefusedError():
            return 404
        case Unreachable():
            return 503
        case _:
            return 500


def openapi() -> dict[str, Any]:
    """This API, described as OpenAPI 3.1 does."""
    error = {
        "description": "It was not done: what, and what to do.",
        "content": _content("#/components/schemas/Error"),
    }
    paths = {
        ROOT + answer.path: {
            "get": {
                "summary": answer.summary,
                "operationId": answer.path.strip("/").replace("-", "_"),
                "parameters": [
                    {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
                    for name, text in answer.parameters.items()
                ],
                "responses": {
                    "200": {"description": answer.summary, "content": {"application/json": {"schema": {}}}},
                    "default": error,
                },
            }
        }
        for answer in ANSWERS
    }
    paths |= {ROOT + path: described for path, described in actions.described(error).items()}
    paths[ROOT + EVENTS] = {
        "get": {
            "summary": "What is so now, each second, as server-sent events.",
            "operationId": "events",
            "responses": {
                "200": {
                    "description": "They come until one side ends.",
                    "content": {"text/event-stream": {}},
                },
                "default": error,
            },
        }
    }
    fields = {
        "message": {"type": "string"},
        "detail": {"type": ["string", "null"]},
        "hint": {"type": ["string", "null"]},
    }
    schemas = {"Error": {"type": "object", "required": ["message"], "properties": fields}} | actions.bodies()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "syncagent",
            "version": __version__,
            "description": "One site, as its agent sees it.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _content(reference: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": reference}}}
