"""The first words on a link: each side says who it is, and why not if it will not.

Invariant: a link exists only between sites of one cluster, with one protocol number, and with a peer
that says the node its certificate is listed for. Whoever refuses says Bye with the reason.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import msgspec

from syncagent.core import wire
from syncagent.core.membership import Peer
from syncagent.core.wire import Bye, Hello
from syncagent.errors import LinkDown, ProtocolError, RefusedError, SyncagentError, TrustError
from syncagent.transport.links import WebSocket, receive

Check = Callable[[Hello], Awaitable[None]]


async def ask(socket: WebSocket, ours: Hello, peer: Peer) -> Hello:
    """The dialer's part."""
    await socket.send_bytes(wire.encode(ours))
    try:
        return _fitting(await _first_message(socket, peer), ours, peer)
    except SyncagentError as error:
        await _refuse(socket, error)
        raise


async def answer(socket: WebSocket, ours: Hello, peer: Peer, check: Check) -> Hello:
    """The listener's part. `check` may raise a reason to refuse what fits otherwise."""
    first = await _first_message(socket, peer)
    try:
        theirs = _fitting(first, ours, peer)
        await check(theirs)
    except SyncagentError as error:
        if wire.greeting(first) not in (None, ours.protocol):
            await socket.send_bytes(wire.encode(ours))  # so that it sees both numbers, too
        await _refuse(socket, error)
        raise
    await socket.send_bytes(wire.encode(msgspec.structs.replace(ours, session=theirs.session)))
    return theirs


async def _first_message(socket: WebSocket, peer: Peer) -> bytes:
    data = await receive(socket, peer)
    if data is None:
        raise LinkDown(f"site {peer.name} hung up before it said Hello")
    return data


def _fitting(first: bytes, ours: Hello, peer: Peer) -> Hello:
    number = wire.greeting(first)
    if number is not None and number != ours.protocol:
        behind = ours.name if ours.protocol < number else peer.name
        raise ProtocolError(
            f"site {ours.name} speaks protocol {ours.protocol}, site {peer.name} speaks protocol {number}",
            hint=f"upgrade syncagent at site {behind}",
        )
    theirs = wire.decode(first)
    if isinstance(theirs, Bye):
        raise LinkDown(f"site {peer.name} refused the link", detail=theirs.reason)
    if not isinstance(theirs, Hello):
        raise ProtocolError(f"site {peer.name} began with {type(theirs).__name__} instead of Hello")
    if theirs.node != peer.node:
        raise TrustError(
            f"the certificate of site {peer.name} is listed for node {peer.node}, its agent says node {theirs.node}",
            hint=f"the home of site {theirs.name} was mixed up with another one's: restore its config.toml",
        )
    if theirs.cluster != ours.cluster:
        raise RefusedError(
            f"site {ours.name} and site {peer.name} belong to different clusters",
            detail=f"{ours.cluster} and {theirs.cluster}",
            hint="one of them was set up anew: it becomes a site of the other's cluster with `syncagent join`",
        )
    return theirs


async def _refuse(socket: WebSocket, error: SyncagentError) -> None:
    with suppress(ConnectionError, aiohttp.ClientError):
        await socket.send_bytes(wire.encode(Bye(str(error))))
        await socket.close()
