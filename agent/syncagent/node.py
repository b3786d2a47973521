"""Composition root: the only module that knows every part.

A run is one stretch with the database: open the store, read where the site stands, let the loops work on
inbox and outbox until the database goes away or the agent is stopped. Whatever ends a run, the next one
starts from what is committed.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import structlog

from syncagent import __version__
from syncagent.core import backoff, stamp
from syncagent.core.catalog import Catalog
from syncagent.core.copying import Counted, Known, decode, encode
from syncagent.core.handout import Handout
from syncagent.core.identity import Standing
from syncagent.core.inbox import Inbox
from syncagent.core.invitation import Returning
from syncagent.core.membership import Peer
from syncagent.core.outbox import Outbox
from syncagent.core.ports import Link, Observer, Spool, Unobserved
from syncagent.core.store import Loaded
from syncagent.core.wire import PROTOCOL, Hello
from syncagent.errors import SyncagentError
from syncagent.services.admissions import Admissions
from syncagent.services.applier import Applier
from syncagent.services.attaching import Attaching
from syncagent.services.clocks import Clocks
from syncagent.services.cutter import Cutter
from syncagent.services.elections import Elections
from syncagent.services.evolving import Evolving
from syncagent.services.exchange import Exchange
from syncagent.services.fingerprints import Fingerprints
from syncagent.services.housekeeper import Housekeeper
from syncagent.services.lapsing import Lapsing
from syncagent.services.lifecycle import Desk, Roster
from syncagent.services.membership import Departed, Membership, lapsed_of, peers_of, removed_from
from syncagent.services.renewal import Renewal
from syncagent.services.repairer import Repairer
from syncagent.services.telling import Telling
from syncagent.services.verifier import Verifier
from syncagent.services.watching import Watching
from syncagent.settings import Settings
from syncagent.storage import blueprint as blueprints
from syncagent.storage.attaching import PostgresTables
from syncagent.storage.donor import PostgresDonor
from syncagent.storage.high_water import HighWater
from syncagent.storage.schema.doing import PostgresShapes
from syncagent.storage.schema.typed import PostgresTyped
from syncagent.storage.store import PostgresStore, opened
from syncagent.transport.admission import Gate
from syncagent.transport.copying import (
    BLUEPRINT_PATH,
    COUNTED_PATH,
    KNOWN_PATH,
    RETURN_PATH,
    page,
    pages,
)
from syncagent.transport.keyring import Keyring
from syncagent.transport.links import Limits
from syncagent.transport.network import TlsNetwork
from syncagent.transport.spool import Spools

_HEALTHY = 10.0
"""Seconds after which a stretch with the database counts as a good one."""


Loop = Callable[[], Coroutine[Any, Any, None]]
Arriving = Callable[[Membership], Coroutine[Any, Any, None]]


class Window:
    """What whoever looks at the running agent is given: `observer` hears what it does, and while the agent holds its
    database `standing` is its role and term in the group that agrees, `is_member` whether that counts it; `handout` is what it has
    given to sites that join."""

    def __init__(self, observer: Observer | None = None) -> None:
        self.handout = Handout()
        self.observer: Observer = observer or Unobserved()
        self.standing: Callable[[], tuple[str, int]] | None = None
        self.is_member: Callable[[], bool] = lambda: False

    def unready(self) -> str | None:
        """Why nobody should rely on this site now."""
        if self.standing is None:
            return "the agent has no database, or is starting"
        return None if self.is_member() else "this site is no member: it still joins, or was removed"


class SystemClock:
    """Where time and chance are read."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> int:
        return stamp.from_seconds(time.time())

    def chance(self) -> float:
        return random.random()


async def run(
    settings: Settings,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[], None] | None = None,
    arriving: Arriving | None = None,
    window: Window | None = None,
) -> None:
    """Be the agent of a site until `stop` is set. Raises what trying again cannot mend.

    `arriving`: the agent of a site that joins; it is called once per stretch, beside the loops, and sets `stop`.
    """
    log = structlog.get_logger().bind(site=settings.name)
    clock = SystemClock()
    failures = 0
    while not stop.is_set():
        began = clock.now()
        try:
            await _unless(stop, _run_once(settings, clock, log, on_ready, arriving, window or Window()))
        except* SyncagentError as group:
            errors = list(_leaves(group))
            if any(isinstance(error, Departed) for error in errors):
                log.info("left the cluster")
                stop.set()
            for error in errors:
                if not error.recoverable and not stop.is_set():
                    raise error from None
            if not stop.is_set():
                failures = 1 if clock.now() - began > _HEALTHY else failures + 1
                pause = backoff.delay(failures, clock.chance(), first=0.1, most=5.0)
                log.warning("interrupted", reason=str(errors[0]), again_in=round(pause, 2))
                await _until(stop, pause)


def _leaves(group: BaseExceptionGroup[SyncagentError]) -> Iterator[SyncagentError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Work until `stop` is set, whatever is waited for then."""
    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(work), group.create_task(_set(stop))}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def _set(stop: asyncio.Event) -> None:
    await stop.wait()


async def _until(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


async def _run_once(
    settings: Settings,
    clock: SystemClock,
    log: structlog.stdlib.BoundLogger,
    on_ready: Callable[[], None] | None,
    arriving: Arriving | None,
    window: Window,
) -> None:
    async with opened(
        settings.dsn,
        site=settings.site,
        node=settings.node,
        incarnation=settings.incarnation,
        name=settings.name,
        joining=arriving is not None,
    ) as store:
        (settings.home / "spool").mkdir(mode=0o700, exist_ok=True)
        spools = Spools(settings.home / "spool")
        high_water = HighWater(settings.home, settings.incarnation)
        observer = Telling(window.observer, log)
        parts = await _assemble(
            *(settings, store, spools, clock, high_water, observer, window.handout), steady=arriving is None
        )
        told: dict[str | None, str] = {}

        async def on_link(link: Link) -> None:
            log.info("link up", peer=link.peer.name)
            told.pop(link.peer.name, None)
            try:
                await parts.exchange.on_link(link)
            finally:
                log.info("link down", peer=link.peer.name)

        def on_trouble(peer: Peer | None, error: SyncagentError) -> None:
            name, reason = peer.name if peer else None, str(error)
            if told.get(name) != reason:  # who is away for a day is not news every few seconds
                log.warning("trouble with a peer", peer=name, reason=reason)
            told[name] = reason
            if peer is not None:
                parts.exchange.trouble(peer.node, reason)

        await parts.network.start(on_link, on_trouble)
        log.info(
            "running",
            node=settings.node,
            listen=settings.listen,
            peers=[peer.name for peer in parts.roster.peers],
        )
        window.is_member = lambda: parts.membership.is_member
        window.standing = parts.standing
        if on_ready is not None:
            on_ready()
        try:
            async with asyncio.TaskGroup() as group:
                for loop in parts.loops:
                    group.create_task(loop())
                if arriving is not None:
                    group.create_task(arriving(parts.membership))
        finally:
            window.standing = None
            await parts.network.stop()
            log.info("stopped")


def hello(settings: Settings, cluster: UUID) -> Hello:
    return Hello(
        protocol=PROTOCOL,
        cluster=str(cluster),
        node=settings.node,
        name=settings.name,
        site=settings.site,
        incarnation=settings.incarnation,
        version=__version__,
        session=uuid4(),
    )


class _Parts(NamedTuple):
    """A site's agent, put together."""

    network: TlsNetwork
    exchange: Exchange
    membership: Membership
    roster: Roster
    loops: list[Loop]
    standing: Callable[[], tuple[str, int]]


def _proof(
    settings: Settings,
    desk: Desk,
    store: PostgresStore,
    exchange: Exchange,
    elections: Elections,
    spools: Spools,
    applier: Applier,
) -> tuple[Verifier, Repairer, Fingerprints]:
    """What shows that sites are equal, what makes them so, and by which fingerprints."""
    verifier = Verifier(desk, store.forest, store.keeper, exchange)
    repairer = Repairer(
        settings.name, desk, verifier, store.forest, store.repairs, store.keeper, exchange, spools
    )
    fingerprints = Fingerprints(elections)
    verifier.on_unlike_hashes = fingerprints.unlike
    repairer.on_parked = applier.park
    return verifier, repairer, fingerprints


async def _assemble(
    settings: Settings,
    store: PostgresStore,
    spools: Spools,
    clock: SystemClock,
    high_water: HighWater,
    observer: Telling,
    handout: Handout,
    *,
    steady: bool,
) -> _Parts:
    """Inbox and outbox as the database says, what was agreed, and the loops that drive them."""
    state, applied = await store.registry.load()
    catalog = store.registry.current(applied, state)
    loaded = await store.keeper.load()
    here = Standing(loaded.last, loaded.last_id, *store.registry.memory.standing())
    await high_water.recognise(settings.name, await store.keeper.place(), here)
    witness = settings.node in catalog.sites and catalog.sites[settings.node].witness
    roster = Roster(peers_of(catalog, settings.node, settings.addresses), catalog.epoch, witness)
    inbox = _inbox(settings, catalog, roster, loaded, await store.keeper.paused())
    outbox = _outbox(settings, loaded, clock)
    desk = Desk(settings.node, inbox, outbox, clock, roster, observer=observer)
    exchange = Exchange(desk, store.origin)
    elections = Elections(settings.node, store.registry, high_water, state, applied, clock, exchange.post)
    exchange.on_ballot, exchange.on_unlinked = elections.heard, elections.unlinked
    keyring = Keyring(settings.home, settings.name)
    network = _network(settings, catalog, spools, keyring, exchange, elections, clock, handout)
    keyring.on_turn = network.use
    await network.know((*roster.peers, *lapsed_of(catalog)), removed_from(catalog))
    attaching = await _attaching(settings, desk, store, elections, exchange, observer, steady=steady)
    membership = Membership(desk, elections, exchange, network, settings.addresses)
    renewal = Renewal(desk, elections, exchange, keyring, settings.address)

    async def follow(catalog: Catalog) -> None:
        await membership.follow(catalog)
        attaching.changed()
        renewal.bell.ring()

    elections.on_change = follow
    cutter = Cutter(desk, store.origin, exchange, spools, high_water)
    applier = Applier(desk, store.replica, store.keeper, loaded.parked)
    verifier, repairer, fingerprints = _proof(settings, desk, store, exchange, elections, spools, applier)
    housekeeper = Housekeeper(
        desk, store.keeper, exchange, cutter, applier, elections, attaching, verifier, steady=steady
    )
    housekeeper.history = settings.history
    housekeeper.verbs.update(membership.verbs | attaching.verbs | renewal.verbs)
    housekeeper.verbs.update(applier.verbs | verifier.verbs | repairer.verbs)
    housekeeper.verbs.update(fingerprints.verbs | Clocks(desk, elections).verbs)
    lapsing = Lapsing(desk, store.keeper, exchange, elections, settings.bounds)
    housekeeper.warning = lambda: "; ".join(filter(None, (lapsing.trouble, renewal.warning()))) or None
    await store.keeper.on_request(desk.bells.requests.ring)
    loops: list[Loop] = [
        elections.run,
        membership.watch,
        partial(membership.arrive, housekeeper.caught_up),
        renewal.run,
        lapsing.run,
        fingerprints.run,
        *attaching.loops,
        cutter.run,
        applier.run,
        exchange.ask,
        verifier.tend,
        verifier.watch,
        housekeeper.tidy,
        housekeeper.tell,
        housekeeper.serve,
    ]
    return _Parts(network, exchange, membership, roster, loops, lambda: elections.standing)


async def _attaching(
    settings: Settings,
    desk: Desk,
    store: PostgresStore,
    elections: Elections,
    exchange: Exchange,
    observer: Telling,
    *,
    steady: bool,
) -> Attaching:
    """The tables of this site, which follow the catalog, and their shape, which follows it before them; and who looks whether it does."""
    evolving = Evolving(desk, PostgresShapes(settings.dsn), elections, exchange, store.keeper)
    await evolving.load()
    attaching = Attaching(desk, PostgresTables(settings.dsn), elections, exchange, evolving)
    if steady:
        watching = Watching(
            desk, PostgresTyped(settings.dsn, store.keeper), evolving, refuse=settings.refuse_typed
        )
        watching.on_typed = observer.typed
        attaching.loops = (*attaching.loops, watching.run)
    return attaching


def _network(
    settings: Settings,
    catalog: Catalog,
    spools: Spools,
    keyring: Keyring,
    exchange: Exchange,
    elections: Elections,
    clock: SystemClock,
    handout: Handout,
) -> TlsNetwork:
    """Links, and the pages that a site that joins or returns asks for."""
    admissions = Admissions(settings.node, __version__, clock, elections)
    donor = PostgresDonor(settings.dsn, settings.node, spools, exchange.cut_soon)

    async def counted(_node: int, _asked: bytes) -> bytes:
        return encode(Counted(exchange.epochs()))

    async def known(_node: int, asked: bytes) -> bytes:
        return encode(Known(exchange.have(int(asked)), stamp.to_seconds(clock.wall())))

    async def returning(node: int, asked: bytes) -> bytes:
        return encode(await admissions.readmit(node, decode(Returning, asked)))

    async def blueprint(_node: int, _asked: bytes) -> bytes:
        return await asyncio.to_thread(blueprints.of_attached, settings.dsn)

    return TlsNetwork(
        hello(settings, catalog.cluster),
        peers_of(catalog, settings.node, settings.addresses),
        keyring.current,
        listen=settings.listen,
        directory=settings.home / "peers",
        spools=spools,
        limits=Limits(rates=settings.rates),
        pages={
            COUNTED_PATH: page(counted),
            KNOWN_PATH: page(known),
            RETURN_PATH: page(returning),
            BLUEPRINT_PATH: page(blueprint),
            **pages(donor, handout),
        },
        gate=Gate(lambda: keyring.current.sha256, admissions.verifier, admissions.admit).routes(),
    )


def _inbox(
    settings: Settings, catalog: Catalog, roster: Roster, loaded: Loaded, paused: set[int]
) -> "Inbox[Spool]":
    inbox: Inbox[Spool] = Inbox(
        settings.node,
        [*(peer.node for peer in roster.origins), *(catalog.gone.keys() - {settings.node})],
        max_skew=stamp.from_seconds(settings.max_clock_skew),
    )
    inbox.loaded(loaded.positions)
    inbox.accept(catalog.accepted)
    for node, gone in catalog.gone.items():
        inbox.removed(node, void=gone.void)
    for node in paused:
        inbox.pause(node)
    return inbox


def _outbox(settings: Settings, loaded: Loaded, clock: SystemClock) -> Outbox:
    outbox = Outbox(settings.node)
    outbox.loaded(loaded.last, loaded.last_id, loaded.context, loaded.frontier, loaded.floor, clock.now())
    return outbox
