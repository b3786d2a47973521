"""Sites for the tests of the transport: real certificates, real TLS on loopback, no database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from syncagent.core.batch import BatchHeader, CutContext, Stream, Table
from syncagent.core.membership import Peer
from syncagent.core.wire import PROTOCOL, Hello
from syncagent.errors import SyncagentError
from syncagent.transport.links import Limits, PeerLink
from syncagent.transport.network import TlsNetwork
from syncagent.transport.spool import FileSpool, Spools
from syncagent.transport.tls import Credentials

LOOPBACK = "127.0.0.1:0"
QUICK = Limits(
    ping_interval=0.05,
    link_timeout=10.0,
    probe_timeout=0.3,
    dial_timeout=10.0,
    retry_first=0.01,
    retry_most=0.1,
)
PATIENCE = 20.0


class Site:
    """One site's network; its links and troubles come out of queues."""

    def __init__(self, home: Path, name: str, node: int) -> None:
        self.home = home / name
        self.home.mkdir()
        self.name = name
        self.node = node
        self.credentials = Credentials.provide(self.home, name)
        self.spools = Spools(self.home)
        self.hello = Hello(PROTOCOL, "test", node, name, uuid4(), uuid4(), "0.1", uuid4())
        self.listen = LOOPBACK
        self.limits = QUICK
        self.network: TlsNetwork
        self._links: asyncio.Queue[PeerLink] = asyncio.Queue()
        self._troubles: asyncio.Queue[tuple[Peer | None, SyncagentError]] = asyncio.Queue()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.network.port}"

    def peer(self, address: str | None = None, *, node: int | None = None, sha256: str | None = None) -> Peer:
        """This site as another one lists it."""
        return Peer(self.name, node or self.node, address, sha256 or self.credentials.sha256)

    async def start(self, *peers: Peer, on_link: Callable[[PeerLink], Awaitable[None]] | None = None) -> None:
        self.network = TlsNetwork(
            self.hello,
            peers,
            self.credentials,
            listen=self.listen,
            directory=self.home / "peers",
            spools=self.spools,
            limits=self.limits,
        )
        await self.network.start(on_link or self._hold, self._note)

    async def stop(self) -> None:
        await self.network.stop()

    async def link(self) -> PeerLink:
        """The next link that comes up."""
        async with asyncio.timeout(PATIENCE):
            return await self._links.get()

    async def trouble(
        self, kind: type[SyncagentError] = SyncagentError
    ) -> tuple[Peer | None, SyncagentError]:
        """The next trouble of a kind."""
        async with asyncio.timeout(PATIENCE):
            while True:
                peer, error = await self._troubles.get()
                if isinstance(error, kind):
                    return peer, error

    async def _hold(self, link: PeerLink) -> None:
        self._links.put_nowait(link)
        await asyncio.Event().wait()

    def _note(self, peer: Peer | None, error: SyncagentError) -> None:
        self._troubles.put_nowait((peer, error))


async def linked(low: Site, high: Site, through: str | None = None) -> tuple[PeerLink, PeerLink]:
    """Start both; `low` dials. `through` is another address to dial `high` at."""
    await high.start(low.peer())
    await low.start(high.peer(through or high.address))
    return await low.link(), await high.link()


def header(origin: int, *sizes: int, upto: int = 1, contexts: int = 1) -> BatchHeader:
    streams = tuple(
        Stream(Table("public", f"t{number}"), "plain", ("id",), 1, size) for number, size in enumerate(sizes)
    )
    cuts = tuple(
        CutContext(upto - contexts + 1 + number, {1: number, 2: number}) for number in range(contexts)
    )
    return BatchHeader(origin, upto - contexts, upto, UUID(int=upto), cuts, 0, streams)


async def filled(spools: Spools, streams: Sequence[Sequence[bytes]], name: str = "batch") -> FileSpool:
    """A sealed spool with these pieces in each stream."""
    spool = spools(name)
    for number, pieces in enumerate(streams):
        for piece in pieces:
            await spool.write(number, piece)
    await spool.seal()
    return spool


async def read_all(source: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in source])
