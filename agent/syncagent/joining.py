"""How a database becomes one more site of a cluster: the steps of `syncagent join`, in their order.

Each step leaves a trace that it was done, in the home or in the database, so the same command, given again
after an interruption, goes on where it was. Invariants: every member counts the site before its copy begins; the
site is no member before its rows, its constraints and what was written meanwhile are here.
"""

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import UUID, uuid4

import msgspec
from msgspec.structs import replace

from syncagent import __version__, node
from syncagent import settings as configuration
from syncagent.core import catalog as catalogs
from syncagent.core import stamp
from syncagent.core.catalog import Catalog, Site
from syncagent.core.copying import Counted, decode
from syncagent.core.invitation import Admission, Application, Token
from syncagent.core.membership import Peer
from syncagent.core.wire import PROTOCOL
from syncagent.errors import RefusedError
from syncagent.services import joiner
from syncagent.services.joiner import CopyProgress
from syncagent.services.membership import Membership, peers_of
from syncagent.services.surveyor import NOTHING_TOLD, Survey, survey
from syncagent.settings import Settings
from syncagent.storage import blueprint as blueprints
from syncagent.storage import commands, installation, migrations, registry
from syncagent.storage.blueprint import Blueprint
from syncagent.storage.blueprint.parts import Name
from syncagent.storage.commands import Connection
from syncagent.storage.copier import PostgresCopier
from syncagent.transport import admission
from syncagent.transport.copying import BLUEPRINT_PATH, COUNTED_PATH, HttpDonor
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials

Agree = Callable[[Survey], bool]
Build = Callable[[Connection, Blueprint], list[str]]
DRAFT, BLUEPRINT = "joining.json", "joining.blueprint"
"""In the home, until the site is a member."""
_LOOK = 0.3


class Draft(msgspec.Struct, kw_only=True):
    """Who the site will be, decided before anybody is asked, so that asking twice is asking once; and which
    tables it makes itself, decided before the first is made."""

    site: UUID
    incarnation: UUID
    peer: str
    node: int = 0
    host: int = 0
    made: list[Name] | None = None
    file: str = DRAFT
    agreed: bool = False
    """What becomes of the rows that are here already."""
    anew: bool = False
    """A site that returns has taken back what nobody had applied, and stamps it anew."""

    @classmethod
    def load(cls, home: Path, file: str = DRAFT) -> "Draft | None":
        path = home / file
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else None

    def save(self, home: Path) -> None:
        _keep(home / self.file, msgspec.json.encode(self))


def _keep(path: Path, data: bytes) -> None:
    """All of it or what was there before."""
    draft = path.with_name(f".{path.name}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. Without a token, a join that was admitted goes on. `agree` is asked before rows that are
    here already are touched."""

    peer: str
    token: Token | None
    dsn: str
    name: str
    listen: str
    advertise: str | None
    home: Path
    seconds: float
    max_rate: float | None = None
    agree: Agree


class Talk(Protocol):
    """Whoever watches."""

    def say(self, text: str) -> None: ...

    def progress(self, progress: CopyProgress) -> None: ...


def join(request: Request, talk: Talk) -> Settings:
    """Be a member when this returns. Raises what stands in the way; the same call again goes on."""
    request.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = Draft.load(request.home)
    with commands.connected(request.dsn) as connection:
        if draft is None or not _is_ours(connection, draft):
            draft = _admit(request, connection, draft, talk)
        settings = configuration.load(request.home)
        catalog = registry.known(connection)
        host = next(p for p in peers_of(catalog, settings.node, settings.addresses) if p.node == draft.host)
        site = catalog.sites[settings.node]
    fill(request, settings, draft, host, site, talk)
    return settings


def fill(request: Request, settings: Settings, draft: Draft, host: Peer, site: Site, talk: Talk) -> None:
    """What follows the admission, up to membership."""
    if site.witness:
        asyncio.run(_arrive(request, settings, None, talk))
    else:
        asyncio.run(_fill(request, settings, draft, host, site.admitted, talk))
    with commands.connected(request.dsn) as connection:
        installation.joined(connection)
    for name in (draft.file, BLUEPRINT):
        (request.home / name).unlink(missing_ok=True)


# ---- admission


def _is_ours(connection: Connection, draft: Draft) -> bool:
    """Whether the database is this site already."""
    here = installation.site(connection) if migrations.installed(connection) else None
    return here is not None and here["site"] == draft.site


def _admit(request: Request, connection: Connection, draft: Draft | None, talk: Talk) -> Draft:
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
        dsn=request.dsn,
        listen=request.listen,
        advertise=request.advertise,
    )
    admitted = asyncio.run(_ask(settings, request.peer, request.token, credentials))
    catalog = catalogs.decode(admitted.catalog)
    site = catalog.sites[admitted.node]
    as_what = ", a witness, which votes and holds no rows," if site.witness else ""
    talk.say(f"admitted as node {admitted.node}{as_what} by {catalog.name(admitted.host)}")
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
            connection,
            settings.name,
            settings.node,
            settings.site,
            settings.incarnation,
            joining=True,
            copied=site.witness,
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


# ---- tables and rows


async def _fill(
    request: Request, settings: Settings, draft: Draft, host: Peer, admitted: int, talk: Talk
) -> None:
    (settings.home / "spool").mkdir(mode=0o700, exist_ok=True)
    credentials = Credentials.provide(settings.home, settings.name)
    donor = HttpDonor(host, credentials, Spools(settings.home / "spool"))
    try:
        with commands.connected(settings.dsn) as connection:
            catalog = registry.known(connection)
        await counted(donor, catalog, settings.node, admitted, request.seconds, talk)
        plan = await _blueprint(donor, settings.home)
        copied = await asyncio.to_thread(_tables, request, draft, plan, talk)
        if not copied:
            await _rows(request, settings, draft, plan, donor, talk)
    finally:
        await donor.close()
    await _arrive(
        request, settings, partial(_build, request, draft, plan, blueprints.build_after, talk), talk
    )


async def counted(
    donor: HttpDonor, catalog: Catalog, me: int, admitted: int, seconds: float, talk: Talk
) -> None:
    """Until every member keeps what this site still needs. RefusedError names who has not heard of it."""
    # One that joins at the same time drops nothing before it is a member, and then it knows of this one.
    members = {
        site.node: site.name
        for site in catalog.sites.values()
        if site.node != me and site.state == "member" and not site.witness
    }
    until, said = time.monotonic() + seconds, ""
    while True:
        epochs = decode(Counted, await donor.ask(COUNTED_PATH)).epochs
        missing = [name for number, name in members.items() if epochs.get(number, 0) < admitted]
        if not missing:
            return
        waiting = f"waiting for {', '.join(missing)} to hear of this site"
        if waiting != said:
            talk.say(said := waiting)
        if time.monotonic() > until:
            raise RefusedError(
                f"{', '.join(missing)} did not hear of this site within {seconds:g} s",
                detail="A member that does not know of it could drop what it still needs.",
                hint="bring it back and run the same command again, or `syncagent remove` it at a member",
            )
        await asyncio.sleep(_LOOK)


async def _blueprint(donor: HttpDonor, home: Path) -> Blueprint:
    """The donor's, kept: what was begun with one is ended with the same."""
    path = home / BLUEPRINT
    if not path.exists():
        _keep(path, await donor.ask(BLUEPRINT_PATH))
    return blueprints.decode(path.read_bytes())


def _tables(request: Request, draft: Draft, plan: Blueprint, talk: Talk) -> bool:
    """Make the tables that are missing; those that are there must be like the donor's. Whether all rows are here."""
    with commands.connected(request.dsn) as connection:
        if installation.is_copied(connection):
            return True
        if draft.made is None:
            draft.made = blueprints.missing(connection, plan)
            draft.save(request.home)
        found = [table.name for table in plan.tables if table.name not in draft.made]
        if differing := blueprints.differences(connection, plan.only(found)):
            raise RefusedError(
                "tables that are here are not as at the other sites",
                detail="\n".join(differing),
                hint="change them, or drop those that are empty: join makes what is missing",
            )
        for note in (*plan.notes, *blueprints.build_before(connection, plan.only(draft.made))):
            talk.say(f"note: {note}")
        if draft.made:
            talk.say(f"made {len(draft.made)} table{'s' * (len(draft.made) > 1)}")
        return False


async def _rows(
    request: Request, settings: Settings, draft: Draft, plan: Blueprint, donor: HttpDonor, talk: Talk
) -> None:
    copier = PostgresCopier(settings.dsn, settings.node)
    try:
        if not draft.agreed:
            await _ask_about_rows(request, draft, donor, copier)
        report = await joiner.copy(
            donor,
            copier,
            node.SystemClock(),
            max_rate=request.max_rate,
            patience=request.seconds,
            on_progress=talk.progress,
        )
        talk.say(
            f"copied {report.rows + report.rows_kept - report.equal:,} rows from {donor.peer.name}, compared range by range"
        )
        if report.equal or report.dropped or report.conflicts:
            talk.say(
                f"{report.equal:,} rows were here already, {report.dropped:,} went, {report.conflicts:,} conflicts were recorded"
            )
        await asyncio.to_thread(_build, request, draft, plan, blueprints.build_keys, talk)
        await joiner.conclude(donor, copier)
    finally:
        await copier.close()


async def _ask_about_rows(request: Request, draft: Draft, donor: HttpDonor, copier: PostgresCopier) -> None:
    """Tables that hold rows are compared, and whoever joins is asked; a no leaves them as they were."""
    begun = await copier.unfinished()
    plan = begun.plan if begun else await donor.plan()
    if begun is None:
        await copier.begin(plan)
    try:
        tables = [table for table in await survey(donor, copier, plan, NOTHING_TOLD) if not table.missing]
        agreed = not tables or request.agree(Survey(tables))
    except BaseException:
        await copier.forget()
        raise
    if not agreed:
        await copier.forget()
        raise RefusedError("nothing was done with the rows that are here", hint="empty the tables, or agree")
    draft.agreed = True
    draft.save(request.home)


def _build(request: Request, draft: Draft, plan: Blueprint, build: Build, talk: Talk) -> None:
    with commands.connected(request.dsn) as connection:
        for note in build(connection, plan.only(draft.made or ())):
            talk.say(f"note: {note}")


# ---- arrival


async def _arrive(
    request: Request, settings: Settings, finish: Callable[[], None] | None, talk: Talk
) -> None:
    """Run the agent until this site has what was written while it was copied, and is a member. `finish` is what is
    still to be made then."""
    stop = asyncio.Event()

    async def arriving(membership: Membership) -> None:
        if finish is not None:
            talk.say("catching up with what was written meanwhile")
        try:
            async with asyncio.timeout(request.seconds):
                await membership.arrived.wait()
        except TimeoutError:
            who = "; ".join(f"{name}: {why}" for name, why in membership.lacking.items())
            raise RefusedError(
                f"this site has not caught up within {request.seconds:g} s",
                detail=who or "The cluster has not agreed on it yet.",
                hint="run the same command again: it goes on where it was; --timeout waits longer",
            ) from None
        if not membership.is_member:
            if finish is not None:
                await asyncio.to_thread(finish)
            await membership.confirm()
        stop.set()

    await node.run(settings, stop=stop, arriving=arriving)
