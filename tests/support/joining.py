"""A site that joins: an empty database with the SQL side, a donor that shows its pages over TLS, and the copy between them.

The joiner counts as a member at all sites from the start. Its tables have no keys until `keys` makes them. Cuts of the donor
are made when the copy asks for one, for no agent runs.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg

from syncagent.core.copying import Range, RangeAsked, RangeHead
from syncagent.core.membership import Peer
from syncagent.core.ports import Spool
from syncagent.core.wire import PROTOCOL, Hello
from syncagent.embedded import Server
from syncagent.services import joiner
from syncagent.storage.copier import PostgresCopier
from syncagent.storage.donor import PostgresDonor
from syncagent.storage.store import opened
from syncagent.transport.copying import HttpDonor, pages
from syncagent.transport.network import TlsNetwork
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials
from tests.support.databases import fresh_database
from tests.support.lab import Site


class Clock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> int:
        return 0

    def chance(self) -> float:
        return random.random()


Hook = Callable[[Range], Awaitable[None]]


async def _nothing(_range: Range) -> None:
    return


class _Watched:
    """The donor's database, with the hooks of a test around every range."""

    def __init__(self, join: "Joining", donor: PostgresDonor) -> None:
        self._join, self.plan, self.end, self._rows = join, donor.plan, donor.end, donor.rows

    async def rows(self, asked: RangeAsked) -> tuple[RangeHead, Spool]:
        self._join.asked.append(asked.range)
        await self._join.before(asked.range)
        read = await self._rows(asked)
        await self._join.after(asked.range)
        return read


class Joining:
    """See the module's docstring. `members` are the sites there were before; the first is the donor."""

    def __init__(
        self,
        members: Sequence[Site],
        server: Server,
        dsn: str,
        tables: str,
        keys: str,
        folder: Path,
    ) -> None:
        self.members, self.server, self.dsn, self.folder = list(members), server, dsn, folder
        self.node = len(members) + 1
        self.tables, self.keys_made_by = tables, keys
        self.stack = AsyncExitStack()
        self.credentials = {name: self._credentials(name) for name in ("donor", "joiner")}
        self.cuts: set[asyncio.Task[object]] = set()
        self.network: TlsNetwork
        self.asked: list[Range] = []
        """Ranges the donor was asked for."""
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        """Run around the reading of every range."""

    def _credentials(self, name: str) -> Credentials:
        (self.folder / name).mkdir()
        return Credentials.provide(self.folder / name, name)

    @property
    def donor(self) -> Site:
        return self.members[0]

    # ---- the database that joins

    async def install(self) -> None:
        connection = await asyncpg.connect(self.dsn)
        await connection.execute(self.tables)
        await connection.execute(
            f"insert into syncagent.local_site (site, name, node, incarnation, tail) values"
            f" (gen_random_uuid(), 'site{self.node}', {self.node}, gen_random_uuid(), syncagent._tail({self.node}, {self.node}))"
        )
        await connection.close()
        for member in self.members:
            await member.do(f"insert into syncagent.member values ({self.node}, 'site{self.node}')")

    def keys(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(self.keys_made_by.encode())

    # ---- the donor's pages

    async def listen(self, *, range_rows: int = 1000, port: int = 0) -> None:
        peer = Peer("joiner", self.node, None, self.credentials["joiner"].sha256)
        spools = Spools(self.folder / "donor")
        donor = PostgresDonor(self.donor.dsn, self.donor.node, spools, self._nudge, range_rows=range_rows)
        self.network = TlsNetwork(
            Hello(PROTOCOL, "test", self.donor.node, "donor", uuid4(), uuid4(), "0", uuid4()),
            [peer],
            self.credentials["donor"],
            listen=f"127.0.0.1:{port}",
            directory=self.folder / "donor" / "peers",
            spools=spools,
            pages=pages(_Watched(self, donor)),
        )

        async def no_link(_link: object) -> None:
            return

        await self.network.start(no_link, lambda _peer, _error: None)

    def _nudge(self) -> None:
        self.cuts.add(asyncio.ensure_future(self.donor.cut()))

    # ---- the copy

    @asynccontextmanager
    async def ends(self, port: int | None = None) -> AsyncIterator[tuple[HttpDonor, PostgresCopier]]:
        peer = Peer(
            "donor",
            self.donor.node,
            f"127.0.0.1:{port or self.network.port}",
            self.credentials["donor"].sha256,
        )
        donor = HttpDonor(peer, self.credentials["joiner"], Spools(self.folder / "joiner"))
        copier = PostgresCopier(self.dsn, self.node)
        try:
            yield donor, copier
        finally:
            await donor.close()
            await copier.close()

    async def copy(
        self,
        on_progress: Callable[[joiner.CopyProgress], None] = lambda _: None,
        port: int | None = None,
        **options: Any,
    ) -> joiner.CopyReport:
        async with self.ends(port) as (donor, copier):
            return await joiner.copy(donor, copier, Clock(), on_progress=on_progress, **options)

    async def conclude(self) -> joiner.Concluded:
        self.keys()
        async with self.ends() as (donor, copier):
            return await joiner.conclude(donor, copier)

    async def site(self) -> Site:
        """The joiner as a site with its agent's sessions, at the frontier of the copy."""
        app = await asyncpg.connect(self.dsn, statement_cache_size=0)
        self.stack.push_async_callback(app.close, timeout=2)
        identity = await app.fetchrow("select site, incarnation from syncagent.local_site")
        await app.executemany(
            "insert into syncagent.member (node, name) values ($1, $2) on conflict (node) do nothing",
            [(node, f"site{node}") for node in (self.node, *(member.node for member in self.members))],
        )
        store = await self.stack.enter_async_context(
            opened(
                self.dsn,
                site=identity["site"],
                node=self.node,
                incarnation=identity["incarnation"],
                name=f"site{self.node}",
            )
        )
        site = Site(self.node, self.server, self.dsn, store, app)
        self.stack.push_async_callback(site.close)
        return site

    async def close(self) -> None:
        await self.stack.aclose()
        await asyncio.gather(*self.cuts, return_exceptions=True)
        if hasattr(self, "network"):
            await self.network.stop()


@asynccontextmanager
async def joining(
    members: Sequence[Site],
    server: Server,
    tables: str,
    keys: str,
    folder: Path,
    template: str,
) -> AsyncIterator[Joining]:
    """`template`: a database of the server with the SQL side and nothing else."""
    with fresh_database(server, template) as database:
        join = Joining(members, server, database.dsn, tables, keys, folder)
        try:
            await join.install()
            yield join
        finally:
            await join.close()
