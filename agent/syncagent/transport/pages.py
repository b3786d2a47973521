"""What a server answers, as JSON: also when it does not do what was asked."""

from typing import Any

import msgspec
from aiohttp import web

from syncagent.errors import SyncagentError

LARGEST_REFUSAL = 16 * 1024


class Refusal(msgspec.Struct):
    """An error, on its way to whoever asked."""

    message: str
    detail: str | None = None
    hint: str | None = None


def as_json(answer: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(answer, enc_hook=str), content_type="application/json"
    )


def refusal(status: int, error: SyncagentError) -> web.Response:
    return as_json(Refusal(error.message, error.detail, error.hint), status)
