"""Who may see rows and change something over HTTP: a token from the site's home, exchanged for a cookie.

Invariants: no secret is kept, here or in the home, but only its digest; a token is good once, for minutes, and a newer one
ends it; sessions live in the agent's memory and end with it. Whoever can make a token can read `config.toml`, and with it the database.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from aiohttp import web

from syncagent.errors import HomeFailed, RefusedError, SyncagentError
from syncagent.settings import Settings

TOKEN_SECONDS = 300.0
SESSION_SECONDS = 12 * 3600.0
_SESSIONS = 32
_TOKEN, _ADDRESS = "console.token", "console.address"


class Unsigned(RefusedError):
    """Nobody is signed in."""


class Foreign(RefusedError):
    """Another page than ours asked."""


class _Kept(msgspec.Struct):
    digest: str
    until: float


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)


# ---- the home, which agent and command line share


def announce(home: Path, address: str) -> None:
    """Where the running agent serves the console. HomeFailed if that cannot be written."""
    try:
        _write(home / _ADDRESS, address.encode())
    except OSError as error:
        raise HomeFailed(
            f"{home} cannot be written", detail=error.strerror, hint="give the agent's user the right to"
        ) from error


def withdraw(home: Path, address: str) -> None:
    """Serve it there no more; another agent's address stays."""
    try:
        if (home / _ADDRESS).read_text() == address:
            for name in (_ADDRESS, _TOKEN):
                (home / name).unlink(missing_ok=True)
    except OSError:
        pass  # a token that nobody takes ends by itself


def invitation(home: Path) -> str:
    """An address that signs in whoever opens it first. RefusedError if no agent serves one."""
    try:
        address = (home / _ADDRESS).read_text()
        token = secrets.token_urlsafe(32)
        _write(
            home / _TOKEN, msgspec.json.encode(_Kept(_digest(token), round(time.time() + TOKEN_SECONDS, 3)))
        )
    except FileNotFoundError:
        raise RefusedError(
            "no agent of this home serves a console",
            hint="start it with `syncagent run --http 127.0.0.1:7480`",
        ) from None
    except OSError as error:
        raise RefusedError(
            f"{home} cannot be written", detail=error.strerror, hint="run it as the agent's user"
        ) from error
    return f"{address}#token={token}"


def _taken(home: Path, token: str) -> bool:
    """Whether it is the token of the home, which is then none any more."""
    path = home / _TOKEN
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        if not secrets.compare_digest(kept.digest, _digest(token)):
            return False
        path.unlink()
    except (OSError, msgspec.MsgspecError):
        return False
    return time.time() < kept.until


# ---- sessions


class Desk:
    """Those who are signed in. `local`: only this host can ask."""

    def __init__(
        self, settings: Settings, *, local: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._home, self._local, self._clock = settings.home, local, clock
        # Cookies know no ports: agents of one host would take each other's.
        self.cookie = f"{'' if local else '__Host-'}syncagent-{settings.site.hex[:12]}"
        self._sessions: dict[str, float] = {}

    def sign_in(self, token: str, response: web.StreamResponse) -> None:
        """Unsigned unless the token is good; it is used up."""
        if not _taken(self._home, token):
            raise Unsigned(
                "the token is used, too old, or wrong", hint="get a new one: syncagent console token"
            )
        secret = secrets.token_urlsafe(32)
        while len(self._sessions) >= _SESSIONS:
            del self._sessions[min(self._sessions, key=self._sessions.__getitem__)]
        self._sessions[_digest(secret)] = self._clock() + SESSION_SECONDS
        response.set_cookie(
            self.cookie, secret, max_age=int(SESSION_SECONDS), path="/",
            httponly=True, samesite="Strict", secure=not self._local,
        )  # fmt: skip

    def sign_out(self, request: web.Request, response: web.StreamResponse) -> None:
        self._sessions.pop(_digest(request.cookies.get(self.cookie, "")), None)
        response.del_cookie(self.cookie, path="/", secure=not self._local, httponly=True, samesite="Strict")

    def knows(self, request: web.Request) -> bool:
        return self._sessions.get(_digest(request.cookies.get(self.cookie, "")), 0.0) > self._clock()

    def shows_rows(self, request: web.Request) -> bool:
        return self._local or self.knows(request)

    def require(self, request: web.Request) -> None:
        """Unsigned unless whoever asks is signed in."""
        if not self.knows(request):
            raise Unsigned(
                "only who is signed in may do that", hint="open what `syncagent console token` prints"
            )


def forbid_other_pages(request: web.Request) -> None:
    """Foreign if a page from elsewhere loads something of ours: it cannot read it, and could keep the agent busy. A link is no harm."""
    headers = request.headers
    if (
        headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        and headers.get("Sec-Fetch-Mode") != "navigate"
    ):
        raise Foreign("it was asked from another page", hint="open the console itself")


def require_own_page(request: web.Request) -> None:
    """Foreign unless it is JSON from a page of ours: what a browser says of that no page can change."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    # Behind a proxy the host is another one than the browser's, who compares them itself.
    own = site == "same-origin" if site is not None else origin == f"{request.scheme}://{request.host}"
    if not own:
        raise Foreign(
            "it was asked from another page", hint="use the console of this agent, or the command line"
        )
    if request.content_type != "application/json":
        raise Foreign("it is not JSON", hint="send it with Content-Type: application/json")


def status_of(error: SyncagentError) -> int | None:
    match error:
        case Unsigned():
            return 401
        case Foreign():
            return 403
        case _:
            return None
