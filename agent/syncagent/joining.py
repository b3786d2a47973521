"""How a database becomes one more site of a cluster: the steps of `syncagent join`, in their order.

Each step leaves a trace that it was done, in the home or in the database, so the same command, given again
after an interruption, goes on where it was. Invariant: the site is counted by every member before its copy
begins, and no member before its copy is whole.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
from msgspec.structs import replace

from syncagent import __version__, node
from syncagent import settings as configuration
from syncagent.core import catalog as catalogs
from syncagent.core import stamp
from syncagent.core.invitation import Admission, Application, Token
from syncagent.core.membership import Peer
from syncagent.core.wire import PROTOCOL
from syncagent.errors import RefusedError
from syncagent.services.membership import Membership, peers_of
from syncagent.settings import Settings
from syncagent.storage import commands, installation, migrations, registry
from syncagent.storage.commands import Connection
from syncagent.transport import admission, roster
from syncagent.transport.tls import Credentials

DRAFT = "joining.json"
"""In the home, until the site is a member."""
_LOOK = 0.3


class Draft(msgspec.Struct, kw_only=True):
    """Who the site will be, decided before anybody is asked, so that asking twice is asking once."""

    site: UUID
    incarnation: UUID
    peer: str
    node: int = 0
    host: int = 0

    @classmethod
    def load(cls, home: Path) -> "Draft | None":
        path = home / DRAFT
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else None

    def save(self, home: Path) -> None:
        draft = home / f".{DRAFT}"
        draft.write_bytes(msgspec.json.encode(self))
        draft.replace(home / DRAFT)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. Without a token, a join that was admitted goes on."""

    peer: str
    token: Token | None
    dsn: str
    name: str
    listen: str
    advertise: str | None
    home: Path
    seconds: float


Say = Callable[[str], None]


def join(request: Request, say: Say) -> Settings:
    """Be a member when this returns. Raises what stands in the way; the same call again goes on."""
    request.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = Draft.load(request.home)
    with commands.connected(request.dsn) as connection:
        if draft is None or not _is_ours(connection, draft):
            draft = _admit(request, connection, draft, say)
        settings = configuration.load(request.home)
        credentials = Credentials.provide(request.home, settings.name)
        catalog = registry.known(connection)
        host = next(p for p in peers_of(catalog, settings.node, settings.addresses) if p.node == draft.host)
        if installation.is_joining(connection):
            told = asyncio.run(_counted(settings, host, credentials, catalog, request.seconds, say))
            installation.begin_at(connection, told.frontier)
    say("catching up with what was written meanwhile")
    asyncio.run(_arrive(settings, request.seconds))
    (request.home / DRAFT).unlink(missing_ok=True)
    return settings


# ---- admission


def _is_ours(connection: Connection, draft: Draft) -> bool:
    """Whether the database is this site already."""
    here = installation.site(connection) if migrations.installed(connection) else None
    return here is not None and here["site"] == draft.site


def _admit(request: Request, connection: Connection, draft: Draft | None, say: Say) -> Draft:
    installation.preflight(connection)
    if draft is None:
        draft = Draft(site=installation.new_uuid(), incarnation=uuid4(), peer=request.peer)
        draft.save(request.home)
    if request.token is None:
        raise RefusedError(
            "a token is needed", hint="`syncagent invite` at a member prints one; give it with --token"
        )
    credentials = Credentials.provide(request.home, request.name)
    settings = Settings(
        home=request.home,
        name=request.name,
        node=1,
        site=draft.site,
        incarnation=draft.incarnation,
        dsn=commands.as_url(request.dsn),
        listen=request.listen,
        advertise=request.advertise,
    )
    admitted = asyncio.run(_ask(settings, request.peer, request.token, credentials))
    catalog = catalogs.decode(admitted.catalog)
    say(f"admitted as node {admitted.node} by {catalog.name(admitted.host)}")
    host = catalog.sites[admitted.host]
    settings = replace(
        settings,
        node=admitted.node,
        addresses={} if host.address == request.peer else {host.name: request.peer},
    )
    draft.node, draft.host = admitted.node, admitted.host
    draft.save(request.home)
    with connection.transaction():
        installation.settle_as(
            connection, settings.name, settings.node, settings.site, settings.incarnation, joining=True
        )
        registry.follow(connection, catalog)
        (request.home / configuration.FILE).unlink(missing_ok=True)
        configuration.write(settings)
    return draft


async def _ask(settings: Settings, peer: str, token: Token, credentials: Credentials) -> Admission:
    sha256 = await admission.find(peer, token)
    application = Application(
        invitation=token.id,
        secret=token.secret,
        name=settings.name,
        site=settings.site,
        incarnation=settings.incarnation,
        address=settings.address,
        sha256=credentials.sha256,
        protocol=PROTOCOL,
        version=__version__,
        wall=stamp.to_seconds(node.SystemClock().wall()),
    )
    return await admission.apply(peer, sha256, application)


# ---- the copy


async def _counted(
    settings: Settings,
    host: Peer,
    credentials: Credentials,
    catalog: catalogs.Catalog,
    seconds: float,
    say: Say,
) -> roster.Told:
    """Once every member keeps what this site still needs. RefusedError names who has not heard of it."""
    admitted = catalog.sites[settings.node].admitted
    members = {site.node: site.name for site in catalog.sites.values() if site.node != settings.node}
    until, said = time.monotonic() + seconds, ""
    while True:
        told = await roster.ask(host, credentials)
        missing = [name for number, name in members.items() if told.epochs.get(number, 0) < admitted]
        if not missing:
            return told
        waiting = f"waiting for {', '.join(missing)} to hear of this site"
        if waiting != said:
            say(said := waiting)
        if time.monotonic() > until:
            raise RefusedError(
                f"{', '.join(missing)} did not hear of this site within {seconds:g} s",
                detail="A member that does not know of it could drop what it still needs.",
                hint="bring it back and run the same command again, or `syncagent remove` it at a member",
            )
        await asyncio.sleep(_LOOK)


# ---- arrival


async def _arrive(settings: Settings, seconds: float) -> None:
    """Run the agent until this site has what was written while it was copied, and is a member."""
    stop = asyncio.Event()

    async def arriving(membership: Membership) -> None:
        try:
            async with asyncio.timeout(seconds):
                await membership.arrived.wait()
        except TimeoutError:
            who = "; ".join(f"{name}: {why}" for name, why in membership.lacking.items())
            raise RefusedError(
                f"this site has not caught up within {seconds:g} s",
                detail=who or "The cluster has not agreed on it yet.",
                hint="run the same command again: it goes on where it was; --timeout waits longer",
            ) from None
        stop.set()

    await node.run(settings, stop=stop, arriving=arriving)
