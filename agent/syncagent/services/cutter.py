"""Makes cuts when the outbox says so, and hands what was read to the links.

Invariant: no byte of a batch is sent before the cut that ends it is committed, and known in the site's home; sending
never holds up the next cut.
"""

import asyncio

from syncagent.core import backoff, limits
from syncagent.core.outbox import Group, Plan
from syncagent.core.ports import HighWater, SpoolFactory
from syncagent.core.store import Cut, Origin
from syncagent.errors import SyncagentError, Unreachable
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Desk

_LEAST = 0.0005
"""Seconds it rests at least: what is due in less is due."""


class Cutter:
    """`waiting` says what a cut waits for, `made` counts cuts."""

    def __init__(
        self, desk: Desk, origin: Origin, exchange: Exchange, spools: SpoolFactory, high_water: HighWater
    ) -> None:
        self._origin, self._exchange, self._spools = origin, exchange, spools
        self._high_water = high_water
        self._outbox, self._clock, self._bells = desk.outbox, desk.clock, desk.bells
        self._observer = desk.observer
        self._failures = 0
        self.waiting: str | None = None
        self.made = 0

    async def run(self) -> None:
        """For ever. Raises Unreachable when the database is gone."""
        poll, look_at, pending, waiting = limits.BUSY_POLL, 0.0, False, 0
        async with asyncio.TaskGroup() as sending:
            while True:
                now = self._clock.now()
                if self._outbox.waiting > waiting:
                    poll, look_at = limits.BUSY_POLL, now
                waiting = self._outbox.waiting
                # What waits to be folded does so until it is: it is looked for once, and not before something would come of it.
                if not pending and now >= look_at and not self._lull(now):
                    pending = await self._origin.pending()
                    look_at = self._clock.now() + poll
                    poll = min(poll * limits.POLL_GROWTH, limits.IDLE_POLL)
                plan = self._outbox.plan(self._clock.now(), pending)
                if plan is not None:
                    await self._cut(plan, sending)
                    poll, look_at, pending = limits.BUSY_POLL, 0.0, False
                    continue
                if await self._bells.cuts.wait(self._rest(look_at, pending)):
                    poll = min(poll, limits.ASTIR_POLL)
                    look_at = min(look_at, self._clock.now() + poll)

    def _lull(self, now: float) -> float:
        """Seconds for which no cut would be made of what is new."""
        return self._outbox.wake_in(now, True) or 0.0

    def _rest(self, look_at: float, pending: bool) -> float:
        """Seconds until something may be due, if nobody rings."""
        now = self._clock.now()
        wake = self._outbox.wake_in(now, pending)
        look = limits.IDLE_POLL if pending else max(look_at - now, self._lull(now))
        return max(min(limits.IDLE_POLL, look, look if wake is None else wake), _LEAST)

    async def _cut(self, plan: Plan, sending: asyncio.TaskGroup) -> None:
        began = self._clock.now()
        try:
            cut = await self._origin.cut(plan.groups, force=plan.cause != "pending", spools=self._spools)
        except Unreachable:
            raise
        except SyncagentError as error:
            self._failures += 1
            self._observer.cut_failed(self._failures, error.line)
            self.waiting = f"no cut can be made: {error.line}"
            self._bells.news.ring()
            pause = backoff.delay(
                self._failures, self._clock.chance(), first=limits.RETRY_FIRST, most=limits.RETRY_MOST
            )
            await asyncio.sleep(pause)
            return
        self._failures, self.waiting = 0, None
        if cut is None:  # rows wait to be settled, and somebody holds them
            await asyncio.sleep(limits.IDLE_POLL)
        else:
            await self._hand_out(plan, cut, self._clock.now() - began, sending)

    async def _hand_out(self, plan: Plan, cut: Cut, took: float, sending: asyncio.TaskGroup) -> None:
        self.made += 1
        self._observer.cut(cut.number, cut.id, took, cut.rows)
        groups = self._outbox.cut_made(
            plan, cut.number, cut.id, cut.frontier, cut.empty, self._clock.now(), took
        )
        sending.create_task(self._ship(cut, groups))
        await self._exchange.answer_marks(plan.marks, cut.frontier)
        self._bells.news.ring()

    async def _ship(self, cut: Cut, groups: tuple[Group, ...]) -> None:
        try:
            if cut.shipments:
                await self._high_water.shipping(cut.number, cut.id)
        except BaseException:
            for shipment in cut.shipments:
                await shipment.spool.close()
            raise
        await self._exchange.ship(cut, groups)
