"""How a site whose database was set back becomes a member again: the steps of `syncagent rejoin`, in their order.

It is compared first, and whoever runs it is asked. Then the cluster gives it another number, its database takes that,
and from there it is filled as one that joins is, but that its tables hold rows. A site whose clock was ahead comes back in
the same way (`syncagent clock reset`), but that what nobody has applied is stamped anew (`resetting`).

Invariants: nothing is changed before the question was answered; the old number is never used again; what this site wrote
and nobody has stays in its log through every step.
"""

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from syncagent import __version__, joining, node, resetting
from syncagent import settings as configuration
from syncagent.core import catalog as catalogs
from syncagent.core import stamp
from syncagent.core.catalog import Catalog
from syncagent.core.copying import At, CopyPlan, Known, decode, encode
from syncagent.core.invitation import Admission, Returning
from syncagent.core.membership import Peer
from syncagent.core.wire import PROTOCOL
from syncagent.errors import LinkDown, RefusedError, SyncagentError
from syncagent.joining import Agree, Draft, Talk
from syncagent.services.membership import peers_of
from syncagent.services.surveyor import NOTHING_TOLD, Survey, survey
from syncagent.settings import Settings
from syncagent.storage import commands, installation, registry
from syncagent.storage.copier import PostgresCopier
from syncagent.transport.copying import KNOWN_PATH, RETURN_PATH, HttpDonor
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials

DRAFT = "returning.json"
_LOOK = 0.5
_OPEN = 10.0
"""Seconds for which open transactions are waited for, and others wait behind."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says. `peer`: name or address of a member; None: whoever answers. `dsn`: where the database is
    now, if not where the home says. `anew`: what nobody has applied gets other stamps."""

    home: Path
    peer: str | None
    dsn: str | None
    seconds: float
    max_rate: float | None = None
    anew: bool = False

    @property
    def verb(self) -> str:
        return "syncagent clock reset" if self.anew else "syncagent rejoin"


class _Heard(msgspec.Struct, frozen=True):
    """Who is to hear that a number is gone, because its site is another `node` now, and for how long that is waited for."""

    catalog: Catalog
    node: int
    seconds: float
    talk: Talk


def rejoin(request: Request, talk: Talk, agree: Agree) -> Settings | None:
    """Be a member again when this returns; None if that was not agreed to. The same call again goes on."""
    settings = configuration.load(request.home)
    if request.dsn is not None:
        settings = replace(settings, dsn=request.dsn)
    (settings.home / "spool").mkdir(mode=0o700, exist_ok=True)
    draft = Draft.load(request.home, DRAFT)
    with commands.site_of(settings.dsn) as connection:
        here = _here(connection, settings)
        catalog, stands = registry.known(connection), installation.stands(connection)
    if draft is None or here.incarnation != draft.incarnation:
        peers = _candidates(request.peer, peers_of(catalog, settings.node, settings.addresses))
        host = asyncio.run(_first(peers, settings))
        found, told = Survey(), NOTHING_TOLD
        check = resetting.Check(settings, catalog.accepted) if request.anew and draft is None else None
        if check is not None:
            check.is_due()
        if (me := catalog.sites.get(here.node)) is None or not me.witness:
            found, told = asyncio.run(_survey(host, settings, here.node, stands, request, check))
        if not agree(found):
            return None
        if draft is None:
            draft = Draft(site=settings.site, incarnation=uuid4(), peer=host.name, file=DRAFT, agreed=True)
            draft.anew = request.anew
            draft.save(request.home)
        admitted = asyncio.run(_readmit(host, settings, draft))
        draft.node, draft.host = admitted.node, admitted.host
        draft.save(request.home)
        catalog = catalogs.decode(admitted.catalog)
        if draft.anew:
            told = asyncio.run(
                _told(host, settings, here.node, stands, _Heard(catalog, draft.node, request.seconds, talk))
            )
        with commands.site_of(settings.dsn) as connection, connection.transaction():
            if draft.anew:
                installation.return_anew(
                    connection, draft.node, draft.incarnation, told, catalog.accepted, _OPEN
                )
            else:
                installation.return_as(connection, draft.node, draft.incarnation, told)
            registry.follow(connection, catalog)
        talk.say(f"admitted as node {draft.node} by {host.name}")
    settings = replace(settings, node=draft.node, incarnation=draft.incarnation)
    configuration.write(settings, again=True)
    _fill(request, settings, draft, catalog, talk)
    return settings


def _fill(request: Request, settings: Settings, draft: Draft, catalog: Catalog, talk: Talk) -> None:
    host = next(p for p in peers_of(catalog, settings.node, settings.addresses) if p.node == draft.host)
    going = joining.Request(
        peer=host.address or "",
        token=None,
        dsn=settings.dsn,
        name=settings.name,
        listen=settings.listen,
        advertise=settings.advertise,
        home=settings.home,
        seconds=request.seconds,
        max_rate=request.max_rate,
        agree=lambda _survey: True,
    )
    joining.fill(going, settings, draft, host, catalog.sites[settings.node], talk)


# ---- who is here, and who may be the donor


def _here(connection: commands.Connection, settings: Settings) -> Settings:
    """Who the database says it is: an older number and incarnation of this very site, or the same."""
    if commands.agent_runs(connection):
        raise RefusedError("an agent is running for this site", hint="stop it first")
    found = installation.site(connection)
    assert found is not None
    if found["site"] != settings.site:
        raise RefusedError(
            f"this database is the site {found['name']}, not a restored copy of {settings.name}",
            hint="check --home and its dsn",
        )
    return replace(settings, node=found["node"], incarnation=found["incarnation"])


def _candidates(peer: str | None, known: tuple[Peer, ...]) -> list[Peer]:
    with_rows = [one for one in known if one.address is not None and not one.witness]
    found = [one for one in with_rows if peer in (None, one.name, one.address)]
    if not found:
        named = ", ".join(one.name for one in with_rows) or "nobody"
        raise RefusedError(
            f"{peer} is none of the members with rows that this database knows"
            if peer
            else "this database knows no other member that can be dialled",
            detail=f"It knows {named}.",
            hint="name one of them with --peer; if none of them is there any more: `syncagent db uninstall`,"
            " empty tables, and `syncagent join` as a new site",
        )
    return found


def _donor(peer: Peer, settings: Settings) -> HttpDonor:
    return HttpDonor(peer, Credentials.provide(settings.home, settings.name), Spools(settings.home / "spool"))


async def _first(peers: list[Peer], settings: Settings) -> Peer:
    """The first one that answers."""
    trouble: SyncagentError | None = None
    for peer in peers:
        donor = _donor(peer, settings)
        try:
            await donor.ask(KNOWN_PATH, str(settings.node).encode())
        except LinkDown as error:
            trouble = error
        else:
            return peer
        finally:
            await donor.close()
    assert trouble is not None
    raise trouble


# ---- what would happen


async def _survey(
    peer: Peer,
    settings: Settings,
    number: int,
    stands: dict[int, int],
    request: Request,
    check: resetting.Check | None,
) -> tuple[Survey, At]:
    """What rejoining would do, and the last cut of `number` that others have."""
    donor, copier = _donor(peer, settings), PostgresCopier(settings.dsn, number)
    try:
        asked = stamp.to_seconds(node.SystemClock().wall())
        known = decode(Known, await donor.ask(KNOWN_PATH, str(number).encode()))
        if check is not None:
            check.is_right(peer.name, known.wall, asked)
            there = (await donor.plan(look=True)).frontier
            check.is_free(peer.name, there.get(number, NOTHING_TOLD), known.have)
        plan = await _covering(donor, number, stands, request.seconds)
        told, have = plan.frontier.get(number, NOTHING_TOLD), known.have
        best = max(have, key=lambda name: have[name] or 0, default=None)
        if best is not None and (have[best] or 0) > told.cut:
            raise RefusedError(
                f"{best} has more of what this site shipped than {peer.name}: cut {have[best]}, not {told.cut}",
                hint=f"{request.verb} --peer {best}",
            )
        notes = [
            f"this database ends at cut {stands.get(number, 0)} of this site; the others have its cuts up to {told.cut}",
            *(
                f"{name} has them only up to {cut}: rows it lacks stay away there until a comparison repairs them"
                if cut is not None
                else f"how many of them {name} has is not known: no link"
                for name, cut in have.items()
                if cut is None or cut < told.cut
            ),
        ]
        return Survey(await survey(donor, copier, plan, told), notes), told
    finally:
        await donor.close()
        await copier.close()


async def _told(peer: Peer, settings: Settings, number: int, stands: dict[int, int], heard: _Heard) -> At:
    """The last cut of `number` that anybody will ever apply: asked once all have heard that it is gone."""
    donor, until = _donor(peer, settings), time.monotonic() + heard.seconds
    try:
        admitted = heard.catalog.sites[heard.node].admitted
        await joining.counted(donor, heard.catalog, heard.node, admitted, heard.seconds, heard.talk)
        while True:
            plan = await _covering(donor, number, stands, heard.seconds)
            told = plan.frontier.get(number, NOTHING_TOLD)
            known = decode(Known, await donor.ask(KNOWN_PATH, str(number).encode()))
            lagging = resetting.lagging(peer.name, told, known, settings.name)
            if lagging is None:
                return told
            if time.monotonic() > until:
                raise RefusedError(
                    f"what others have of this site is not known: {lagging}",
                    hint="run the same command again: it goes on where it was",
                )
            await asyncio.sleep(_LOOK)
    finally:
        await donor.close()


async def _covering(donor: HttpDonor, number: int, stands: dict[int, int], seconds: float) -> CopyPlan:
    """The donor's plan, once it has all that this database had applied of others."""
    until = time.monotonic() + seconds
    while True:
        plan = await donor.plan(look=True)
        lacking = [
            origin
            for origin, cut in stands.items()
            if origin != number and cut > (plan.frontier[origin].cut if origin in plan.frontier else 0)
        ]
        if not lacking:
            return plan
        if time.monotonic() > until:
            raise RefusedError(
                f"{donor.peer.name} lacks what this database has of node {lacking[0]}",
                detail=f"cut {stands[lacking[0]]} is here",
                hint="wait until it has caught up, or name another member with --peer",
            )
        await asyncio.sleep(_LOOK)


async def _readmit(peer: Peer, settings: Settings, draft: Draft) -> Admission:
    donor = _donor(peer, settings)
    asked = Returning(
        incarnation=draft.incarnation,
        protocol=PROTOCOL,
        version=__version__,
        wall=stamp.to_seconds(node.SystemClock().wall()),
        void=draft.anew,
    )
    try:
        return decode(Admission, await donor.ask(RETURN_PATH, encode(asked)))
    finally:
        await donor.close()
