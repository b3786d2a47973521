"""The console's files, as they lie beside this module: read once, packed once.

Invariant: the browser loads nothing from elsewhere, runs no script but these, and turns no text into markup: the policy says so, and Trusted
Types hold the scripts to it.
"""

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from syncagent.errors import RefusedError

FOLDER = Path(__file__).parent / "console"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class File(NamedTuple):
    type: str
    plain: bytes
    packed: bytes
    tag: str


def files() -> dict[str, File]:
    """By name."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if kind := _TYPES.get(path.suffix):
            data = path.read_bytes()
            found[path.name] = File(
                kind, data, gzip.compress(data, mtime=0), hashlib.sha256(data).hexdigest()[:16]
            )
    return found


class Pages:
    def __init__(self) -> None:
        self._files = files()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self._page), web.get("/console/{name}", self._page)]

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        file = self._files.get(name)
        if file is None:
            raise RefusedError(f"the console has no file {name}", hint="open /")
        headers = {
            "Content-Security-Policy": POLICY,
            "Cache-Control": "no-cache",
            "ETag": f'"{file.tag}"',
            "Vary": "Accept-Encoding",
            "Content-Type": f"{file.type}; charset=utf-8",
        }
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=file.packed, headers=headers | {"Content-Encoding": "gzip"})
        return web.Response(body=file.plain, headers=headers)
