"""What a server answers, as JSON, when it does not do what was asked."""

import msgspec
from aiohttp import web

from syncagent.errors import SyncagentError

LARGEST_REFUSAL = 16 * 1024


class Refusal(msgspec.Struct):
    """An error, on its way to whoever asked."""

    message: str
    detail: str | None = None
    hint: str | None = None


def refusal(status: int, error: SyncagentError) -> web.Response:
    body = msgspec.json.encode(Refusal(error.message, error.detail, error.hint))
    return web.Response(status=status, body=body, content_type="application/json")
