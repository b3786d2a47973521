"""Joining over the wire: the only thing a site without a listed certificate may ask for.

Two requests over TLS. The first asks for the member's proof that it knows the token's verifier, bound to the
certificate of this connection; the second, to that same certificate only, brings the secret.

Invariant: the secret leaves only towards a certificate that has proved to belong to a member.
"""

import secrets
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from uuid import UUID

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from syncagent.core import invitation
from syncagent.core.invitation import Admission, Application, Token
from syncagent.core.membership import Peer
from syncagent.errors import LinkDown, RefusedError, SyncagentError, TrustError, UsageError
from syncagent.transport.addresses import host_and_port
from syncagent.transport.pages import LARGEST_REFUSAL, Refusal, refusal
from syncagent.transport.sockets import connector
from syncagent.transport.tls import PinnedContext, digest

PROOF_PATH, JOIN_PATH = "/v1/invitation", "/v1/join"
_NONCE = 32
_SECONDS = 60.0
"""The longest an answer may take: the cluster has to agree before it comes."""


Verifier = Callable[[UUID], Awaitable[bytes | None]]
Admit = Callable[[Application], Awaitable[Admission]]

_encoder = msgspec.msgpack.Encoder()
_applications = msgspec.msgpack.Decoder(Application)
_admissions = msgspec.msgpack.Decoder(Admission)


class Gate:
    """The member's side: two pages that anybody may ask for."""

    def __init__(self, certificate: Callable[[], str], verifier: Verifier, admit: Admit) -> None:
        """`certificate`: SHA-256 of the one this site shows now."""
        self._certificate, self._verifier, self._admit = certificate, verifier, admit

    def routes(self) -> list[web.RouteDef]:
        return [web.get(PROOF_PATH + "/{id}/{nonce}", self._prove), web.post(JOIN_PATH, self._join)]

    async def _prove(self, request: web.Request) -> web.Response:
        try:
            known, nonce = UUID(request.match_info["id"]), bytes.fromhex(request.match_info["nonce"])
        except ValueError:
            return refusal(HTTPStatus.BAD_REQUEST, UsageError("this is not a question a site asks"))
        try:
            verifier = await self._verifier(known)
        except SyncagentError as error:
            return refusal(HTTPStatus.CONFLICT, error)
        if verifier is None or len(nonce) != _NONCE:
            return refusal(HTTPStatus.FORBIDDEN, _unknown())
        return web.Response(body=invitation.proof(verifier, self._certificate(), nonce))

    async def _join(self, request: web.Request) -> web.Response:
        try:
            application = _applications.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError):
            return refusal(
                HTTPStatus.BAD_REQUEST,
                UsageError(
                    "this application to join cannot be read", hint="use the same version of syncagent"
                ),
            )
        try:
            verifier = await self._verifier(application.invitation)
            if verifier is None or not invitation.equal(verifier, invitation.verifier(application.secret)):
                return refusal(HTTPStatus.FORBIDDEN, _unknown())
            admission = await self._admit(application)
        except SyncagentError as error:
            return refusal(HTTPStatus.CONFLICT, error)
        return web.Response(body=_encoder.encode(admission))


def _unknown() -> TrustError:
    return TrustError(
        "this token is not known here: it was used, has expired, or belongs to another cluster",
        hint="get a new one with `syncagent invite` at a member",
    )


# ---- the joiner's side


async def find(address: str, token: Token) -> str:
    """The SHA-256 of the certificate at this address, proved to be a member's. Raises LinkDown, TrustError."""
    nonce = secrets.token_bytes(_NONCE)
    async with _session() as session:
        context = _Looking(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.sslobject_class = _LookingObject
        context.shown = []
        url = _url(address, PROOF_PATH) / str(token.id) / nonce.hex()
        body = await _ask(session.get(url, ssl=context, allow_redirects=False), address)
        certificate = context.shown[-1]
    if not invitation.equal(body, invitation.proof(invitation.verifier(token.secret), certificate, nonce)):
        raise TrustError(
            f"what answers at {address} does not know this token",
            hint="somebody stands between the two sites, or the token was not copied whole",
        )
    return certificate


async def apply(address: str, sha256: str, application: Application) -> Admission:
    """Ask to be admitted, of whoever has this certificate. Raises LinkDown, TrustError, RefusedError."""
    async with _session() as session:
        context = PinnedContext.to(Peer("the member", 0, address, sha256), None)
        request = session.post(
            _url(address, JOIN_PATH), data=_encoder.encode(application), ssl=context, allow_redirects=False
        )
        return _admissions.decode(await _ask(request, address))


class _Looking(ssl.SSLContext):
    """Takes any certificate, and remembers it: the proof decides."""

    shown: list[str]


class _LookingObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        assert isinstance(self.context, _Looking)
        self.context.shown.append(digest(self.getpeercert(binary_form=True) or b""))


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector(),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=_SECONDS, connect=10),
    )


def _url(address: str, path: str) -> URL:
    host, port = host_and_port(address)
    return URL.build(scheme="https", host=host, port=port) / path[1:]


async def _ask(
    request: "aiohttp.client._BaseRequestContextManager[aiohttp.ClientResponse]", address: str
) -> bytes:
    try:
        async with request as answer:
            if answer.status == HTTPStatus.OK:
                return await answer.read()
            status, body = answer.status, await answer.content.read(LARGEST_REFUSAL)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise LinkDown(
            f"cannot reach a member at {address}",
            detail="no answer in time" if isinstance(error, TimeoutError) else str(error),
            hint="is its agent running, is the address right, does a firewall stand between?",
        ) from error
    try:
        said = msgspec.json.decode(body, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UsageError(
            f"what answers at {address} is not the agent of a site",
            detail=f"HTTP status {status}",
            hint="give the address that the member's agent listens on",
        ) from None
    raise RefusedError(said.message, detail=said.detail, hint=said.hint)
