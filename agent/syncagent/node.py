"""Composition root: the only module that knows every part.

A run is one stretch with the database: open the store, read where the site stands, let the loops work on
inbox and outbox until the database goes away or the agent is stopped. Whatever ends a run, the next one
starts from what is committed.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from uuid import uuid4

import structlog

from syncagent import __version__
from syncagent.core import backoff, stamp
from syncagent.core.inbox import Inbox
from syncagent.core.membership import Peer
from syncagent.core.outbox import Outbox
from syncagent.core.ports import Link, Spool
from syncagent.core.wire import PROTOCOL, Hello
from syncagent.errors import SyncagentError
from syncagent.services.applier import Applier
from syncagent.services.cutter import Cutter
from syncagent.services.exchange import Exchange
from syncagent.services.housekeeper import Housekeeper
from syncagent.services.lifecycle import Desk
from syncagent.settings import Settings
from syncagent.storage.donor import PostgresDonor
from syncagent.storage.store import PostgresStore, opened
from syncagent.transport.copying import pages
from syncagent.transport.network import TlsNetwork
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials

CLUSTER = "static"
"""Until clusters have an identity of their own, the peers' certificates are the cluster."""


_HEALTHY = 10.0
"""Seconds after which a stretch with the database counts as a good one."""


class SystemClock:
    """Where time and chance are read."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> int:
        return stamp.from_seconds(time.time())

    def chance(self) -> float:
        return random.random()


async def run(settings: Settings, *, stop: asyncio.Event, on_ready: Callable[[], None] | None = None) -> None:
    """Be the agent of a site until `stop` is set. Raises what trying again cannot mend."""
    log = structlog.get_logger().bind(site=settings.name)
    clock = SystemClock()
    failures = 0
    while not stop.is_set():
        began = clock.now()
        try:
            await _unless(stop, _run_once(settings, clock, log, on_ready))
        except* SyncagentError as group:
            errors = list(_leaves(group))
            for error in errors:
                if not error.recoverable:
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
) -> None:
    async with opened(
        settings.dsn,
        site=settings.site,
        node=settings.node,
        incarnation=settings.incarnation,
        name=settings.name,
        peers=settings.peers,
    ) as store:
        (settings.home / "spool").mkdir(mode=0o700, exist_ok=True)
        spools = Spools(settings.home / "spool")
        loops, exchange = await _assemble(settings, store, spools, clock)
        donor = PostgresDonor(settings.dsn, settings.node, spools, exchange.cut_soon)
        network = TlsNetwork(
            hello(settings),
            settings.peers,
            Credentials.provide(settings.home, settings.name),
            listen=settings.listen,
            directory=settings.home / "peers",
            spools=spools,
            pages=pages(donor),
        )

        told: dict[str | None, str] = {}

        async def on_link(link: Link) -> None:
            log.info("link up", peer=link.peer.name)
            told.pop(link.peer.name, None)
            try:
                await exchange.on_link(link)
            finally:
                log.info("link down", peer=link.peer.name)

        def on_trouble(peer: Peer | None, error: SyncagentError) -> None:
            name, reason = peer.name if peer else None, str(error)
            if told.get(name) != reason:  # who is away for a day is not news every few seconds
                log.warning("trouble with a peer", peer=name, reason=reason)
            told[name] = reason
            if peer is not None:
                exchange.trouble(peer.node, reason)

        await network.start(on_link, on_trouble)
        log.info(
            "running",
            node=settings.node,
            listen=settings.listen,
            peers=[peer.name for peer in settings.peers],
        )
        if on_ready is not None:
            on_ready()
        try:
            async with asyncio.TaskGroup() as group:
                for loop in loops:
                    group.create_task(loop)
        finally:
            await network.stop()
            log.info("stopped")


def hello(settings: Settings) -> Hello:
    return Hello(
        protocol=PROTOCOL,
        cluster=CLUSTER,
        node=settings.node,
        name=settings.name,
        site=settings.site,
        incarnation=settings.incarnation,
        version=__version__,
        session=uuid4(),
    )


async def _assemble(
    settings: Settings, store: PostgresStore, spools: Spools, clock: SystemClock
) -> tuple[list[Coroutine[Any, Any, None]], Exchange]:
    """Inbox and outbox as the database says, and the loops that drive them."""
    loaded = await store.keeper.load()
    inbox: Inbox[Spool] = Inbox(
        settings.node,
        [peer.node for peer in settings.peers],
        max_skew=stamp.from_seconds(settings.max_clock_skew),
    )
    inbox.loaded(loaded.positions)
    for node in await store.keeper.paused():
        inbox.pause(node)
    outbox = Outbox()
    outbox.loaded(loaded.last, loaded.last_id, loaded.context, loaded.frontier, loaded.floor, clock.now())
    desk = Desk(settings.node, inbox, outbox, clock)
    exchange = Exchange(desk, store.origin)
    cutter = Cutter(desk, store.origin, exchange, spools)
    applier = Applier(desk, store.replica, store.keeper, loaded.parked)
    housekeeper = Housekeeper(desk, settings.peers, store.keeper, exchange, cutter, applier)
    await store.keeper.on_request(desk.bells.requests.ring)
    loops = [
        cutter.run(),
        applier.run(),
        exchange.ask(),
        housekeeper.tidy(),
        housekeeper.tell(),
        housekeeper.serve(),
    ]
    return loops, exchange
