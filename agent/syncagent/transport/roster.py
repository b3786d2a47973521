"""One question to a peer: who of the cluster works by which catalog, and how far it has come.

It exists for a site that joins: before it takes its copy, every member must count it, else one of them could
drop what the joiner still needs.
"""

from collections.abc import Awaitable, Callable
from uuid import UUID

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from syncagent.core.membership import Peer
from syncagent.errors import LinkDown, ProtocolError
from syncagent.transport.addresses import host_and_port
from syncagent.transport.tls import Credentials, PinnedContext

ROSTER_PATH, CERTIFICATE_PATH = "/v1/roster", "/v1/certificate"
_SECONDS = 15.0


class Told(msgspec.Struct, frozen=True):
    """`epochs`: the catalog each member is known to work by, the answerer's own included. `frontier`: the last
    cut of each origin that the answerer has, and its id."""

    epochs: dict[int, int]
    frontier: dict[int, tuple[int, UUID | None]]


_encoder = msgspec.msgpack.Encoder()
_told = msgspec.msgpack.Decoder(Told)


def page(look: Callable[[], Awaitable[Told]]) -> Callable[[web.Request, Peer], Awaitable[web.StreamResponse]]:
    """The answerer's side."""

    async def answer(_request: web.Request, _peer: Peer) -> web.StreamResponse:
        return web.Response(body=_encoder.encode(await look()))

    return answer


async def ask(peer: Peer, credentials: Credentials) -> Told:
    """Raises LinkDown, ProtocolError."""
    host, port = host_and_port(peer.address or "")
    site = URL.build(scheme="https", host=host, port=port)
    try:
        async with aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=_SECONDS)
        ) as session:
            pem = credentials.certificate.read_bytes()
            async with session.put(
                site / CERTIFICATE_PATH[1:], data=pem, ssl=PinnedContext.to(peer, None), allow_redirects=False
            ) as met:
                met.raise_for_status()
            async with session.get(
                site / ROSTER_PATH[1:], ssl=PinnedContext.to(peer, credentials), allow_redirects=False
            ) as answer:
                answer.raise_for_status()
                return _told.decode(await answer.read())
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise LinkDown(
            f"site {peer.name} at {peer.address} does not answer",
            detail="no answer in time" if isinstance(error, TimeoutError) else str(error),
            hint="is its agent running? then run the same command again: it goes on where it was",
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            f"site {peer.name} gave an answer that cannot be read", detail=str(error)
        ) from error
