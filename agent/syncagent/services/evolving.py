"""Schema changes: every site does the steps that were let go, and the site that leads lets the next one go.

Invariants: what is here follows the catalog, step by step, and says how far it has got; what was decided is in the catalog,
so whoever leads next goes on where the last one was. A step that cannot be done keeps its place and is tried again; nothing
after it is done here.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec

from syncagent.core import schema as schemas
from syncagent.core.catalog import Catalog
from syncagent.core.schema import Abort, Approve, Change, Exclude, Open, Reached
from syncagent.core.store import Keeper, Request, Shapes
from syncagent.errors import Contended, RefusedError, SyncagentError, Undecided, Unreachable
from syncagent.services.elections import Elections
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Bell, Desk

_SECONDS = 10.0
_LOOK = 0.2
"""Seconds between two looks at whether the next step may be let go."""
_REST = 2.0
"""The same while no change is open."""
_LOOKS = 10
"""How often it is looked whether what mends a step has come everywhere, before it is tried again."""
_DELIVERED = 0.5
"""Seconds between two looks at whether what was written here has come everywhere."""
_AGAIN = 5.0
"""Seconds after which a step that could not be done is tried again."""


class Evolving:
    """`epoch` is that of the schema here; `trouble` says what keeps it from the next."""

    def __init__(
        self, desk: Desk, shapes: Shapes, elections: Elections, exchange: Exchange, keeper: Keeper
    ) -> None:
        self._desk, self._shapes, self._elections = desk, shapes, elections
        self._exchange, self._keeper = exchange, keeper
        self.bell, self._lead_bell = Bell(), Bell()
        self.epoch = self._floor = 0
        self.trouble: str | None = None
        self.on_done: Callable[[], None] = lambda: None
        """Called when a step is done here."""
        self.verbs = {
            "schema-open": self._open,
            "schema-wait": self._wait,
            "schema-abort": self._abort,
            "schema-approve": self._approve,
            "schema-exclude": self._exclude,
        }

    async def load(self) -> None:
        """Where this site stands; before any batch is looked at."""
        self.epoch, self._floor = await self._shapes.standing()
        self._desk.inbox.reshaped(self.epoch, self._floor)

    @property
    def is_behind(self) -> bool:
        """A step was let go that is not done here."""
        return self.epoch < self._elections.catalog.schema.epoch

    def changed(self) -> None:
        """The catalog has."""
        self.bell.ring()
        self._lead_bell.ring()

    # ---- this site

    async def run(self) -> None:
        """For ever: what is here follows the catalog."""
        while True:
            if not self._elections.is_witness:
                await self._follow()
            await self.bell.wait(_DELIVERED if self._is_to_deliver() else _AGAIN if self.trouble else None)

    async def _follow(self) -> None:
        while (move := schemas.next_move(self._elections.catalog.schema, self.epoch)) is not None:
            floor = schemas.floor_after(move, self._floor)
            await self._deliver_what_mends()
            try:
                await self._shapes.do(move, floor, partial(self._tell, asyncio.get_running_loop()))
            except Unreachable:
                raise
            except Contended as error:
                self._say(f"step {move.upto} of the schema's changes waits: {error.line}")
                return
            except SyncagentError as error:
                self._say(f"step {move.upto} of the schema's changes cannot be done: {error.line}")
                await self._report(error.line)
                return
            self.epoch, self._floor = move.upto, floor
            for spool in self._desk.inbox.reshaped(self.epoch, self._floor):
                await spool.close()
            self._say(None)
            self._desk.bells.ring()
            self.on_done()
        await self._report(None, delivered=self._is_to_deliver() and await self._has_delivered())

    async def _deliver_what_mends(self) -> None:
        """What was written here since a step could not be done, at whatever site, is to be everywhere before it is: rows that come after it wait where
        it cannot be done yet, maybe for want of these very rows. Not waited for long: applications go on writing."""
        change = self._elections.catalog.schema.open
        if change is None or not change.failures:
            return
        for _ in range(_LOOKS):
            if await self._shapes.undelivered() is None:
                return
            await asyncio.sleep(_LOOK)

    def _is_to_deliver(self) -> bool:
        """All wait until what this site wrote has come everywhere."""
        catalog, me = self._elections.catalog, self._desk.me
        is_done = me in catalog.holders and self.epoch == catalog.schema.epoch
        return is_done and schemas.is_to_deliver(catalog.schema, me)

    async def _has_delivered(self) -> bool:
        self._say(await self._shapes.undelivered())
        return self.trouble is None

    def _tell(self, loop: asyncio.AbstractEventLoop, progress: str) -> None:
        """From the thread that works."""
        loop.call_soon_threadsafe(self._say, progress)

    def _say(self, trouble: str | None) -> None:
        self.trouble = trouble
        self._desk.bells.news.ring()

    async def _report(self, failure: str | None, *, delivered: bool = False) -> None:
        """Into the catalog, so that whoever leads knows it."""
        schema, me = self._elections.catalog.schema, self._desk.me
        known = schema.reached.get(me, 0) >= self.epoch
        told = schema.open.failures.get(me) if schema.open else None
        if (known and failure == told and not delivered) or not self._elections.is_member:
            return
        reached = Reached(me, self.epoch, failure, delivered)
        try:
            await self._elections.submit(reached, uuid4(), seconds=_SECONDS)
        except Undecided:
            self.trouble = self.trouble or "no majority: the others do not know yet which steps are done here"

    # ---- the site that leads

    async def lead(self) -> None:
        """For ever: let the next step go as soon as it may, while this site leads."""
        while True:
            is_open = self._elections.catalog.schema.open is not None
            await self._lead_bell.wait(_LOOK if is_open else _REST)
            if not self._elections.leads:
                continue
            catalog = self._elections.catalog
            command = schemas.due(catalog.schema, catalog.holders, self._near(catalog))
            if command is not None:
                try:
                    await self._elections.submit(command, uuid4(), seconds=_SECONDS)
                except (Undecided, RefusedError):
                    continue  # another leads now, or will

    def _near(self, catalog: Catalog) -> frozenset[int]:
        """Sites that can be reached."""
        return frozenset(
            node for node in catalog.holders if node == self._desk.me or self._exchange.way(node) is not None
        )

    # ---- people

    async def _open(self, request: Request) -> dict[str, Any]:
        self._refuse_old_agents()
        change = msgspec.convert(request.arguments["change"], Change)
        await self._elections.submit(Open(change), request.id, seconds=_SECONDS)
        return {"id": str(change.id)}

    def _refuse_old_agents(self) -> None:
        old = [
            peer.name
            for peer in self._desk.roster.origins
            if (told := self._exchange.progress.get(peer.node)) is not None and told.schema is None
        ]
        if old:
            raise RefusedError(
                f"the agent of site {', '.join(old)} is too old to change the schema",
                hint="upgrade it, then again",
            )

    async def _wait(self, request: Request) -> dict[str, Any]:
        """Until the change is over, or nobody but a person can bring it on, or the time is up; with progress meanwhile."""
        until = self._desk.clock.now() + float(request.arguments["timeout"])
        said = ""
        while True:
            catalog = self._elections.catalog
            change = _named(catalog, request.arguments["id"])
            waiting = self._waiting(catalog)
            over = not change.is_open or (schemas.awaits_approval(change) and not waiting)
            stuck = any(catalog.name(node) in waiting for node in change.failures)
            if over or stuck or self._desk.clock.now() >= until:
                return {"state": change.state, "waiting": waiting, "over": over, "stuck": stuck}
            if (now := _told(change, waiting)) != said:
                said = now
                await self._keeper.say(request.id, said)
            await asyncio.sleep(_LOOK)

    def _waiting(self, catalog: Catalog) -> dict[str, str]:
        found = schemas.waited_for(catalog.schema, catalog.holders, self._near(catalog))
        waiting = {}
        for node, why in found.items():
            told = self._exchange.progress.get(node)
            trouble = self.trouble if node == self._desk.me else told.trouble if told else None
            waiting[catalog.name(node)] = trouble or why
        return waiting

    async def _abort(self, request: Request) -> dict[str, Any]:
        change = self._of(request)
        await self._elections.submit(Abort(change.id), request.id, seconds=_SECONDS)
        return {"id": str(change.id)}

    async def _approve(self, request: Request) -> dict[str, Any]:
        change = self._of(request)
        await self._elections.submit(Approve(change.id), request.id, seconds=_SECONDS)
        return {"id": str(change.id)}

    async def _exclude(self, request: Request) -> dict[str, Any]:
        change = self._of(request)
        site = self._elections.catalog.named(request.arguments["site"])
        if site is None:
            raise RefusedError(
                f"the cluster has no site {request.arguments['site']}",
                hint="`syncagent status` shows its names",
            )
        await self._elections.submit(Exclude(change.id, site.node), request.id, seconds=_SECONDS)
        if request.arguments.get("contract"):
            await self._elections.submit(Approve(change.id), uuid4(), seconds=_SECONDS)
        return {"id": str(change.id)}

    def _of(self, request: Request) -> Change:
        """The one that was named, or the one that is open."""
        catalog = self._elections.catalog
        if (named := request.arguments.get("id")) is not None:
            return _named(catalog, named)
        if (change := catalog.schema.open) is not None:
            return change
        raise RefusedError(
            "no schema change is under way", hint="`syncagent schema history` shows those that were"
        )


def _named(catalog: Catalog, named: str) -> Change:
    change = next((change for change in catalog.schema.changes if change.id == UUID(named)), None)
    if change is None:
        raise RefusedError(
            "there is no such schema change", hint="`syncagent schema history` shows those that were"
        )
    return change


def _told(change: Change, waiting: dict[str, str]) -> str:
    """How far it is, for whoever waits."""
    steps = len(change.track) + len(change.ahead)
    done = f"{len(change.track)} of {steps} steps let go"
    what = f", {change.phase}: {change.track[-1].what}" if change.track else ""
    who = "; ".join(f"{site} {why}" for site, why in waiting.items())
    return f"{done}{what}" + (f"; waits for {who}" if who else "")
