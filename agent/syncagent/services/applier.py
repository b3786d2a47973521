"""Applies batches, one at a time, in the order the inbox allows.

Invariant: a batch that cannot be applied keeps its place and its bytes; nothing is skipped, and no
origin waits for another one's trouble.
"""

import asyncio

from syncagent.core import backoff, limits
from syncagent.core.arrival import Entry
from syncagent.core.ports import Merged, Spool
from syncagent.core.store import Applied, Keeper, Replica, Request
from syncagent.errors import Contended, Inexact, SyncagentError, Unreachable
from syncagent.services.lifecycle import Desk

_LONG = 0.1
"""Seconds after which it is asked who is in the way of a merge."""
_PARKED_AGAIN = 5.0
_KEPT_BACK = dict.fromkeys(("paused", "causal", "schema", "clock")) | {"deferred": "it was refused"}
"""Why a batch that is here is not merged at once; None: as the inbox says it. Why it was refused may name rows."""


class Applier:
    """Counts what it did: `batches`, `rows`, `conflicts`; `parked` rows are those waiting now."""

    def __init__(self, desk: Desk, replica: Replica, keeper: Keeper, parked: int) -> None:
        self._desk, self._replica, self._keeper = desk, replica, keeper
        self._inbox, self._clock = desk.inbox, desk.clock
        self.batches = self.rows = self.conflicts = 0
        self.parked = parked
        self._parked_at = desk.clock.now()
        self._retried: list[asyncio.Future[None]] = []
        self._waits: dict[int, str] = {}
        self.verbs = {"retry": self._retry}

    def park(self, rows: int) -> None:
        """A repair has parked so many more."""
        self.parked += rows
        self._desk.bells.applies.ring()

    async def run(self) -> None:
        """For ever. Raises Unreachable when the database is gone."""
        while True:
            now, wall = self._clock.now(), self._clock.wall()
            self._waits |= {
                node: _KEPT_BACK[waiting.reason] or waiting.text
                for node, waiting in self._inbox.waiting(now, wall).items()
                if waiting.reason in _KEPT_BACK
            }
            entries = self._next(now, wall)
            if entries:
                await self._apply(entries)
                self._desk.bells.ring()
            asked, self._retried = self._retried, []
            due = self.parked and self._clock.now() - self._parked_at >= _PARKED_AGAIN
            if asked or due or (self.parked and entries):
                await self._retry_parked(alone=bool(asked or due))
            for future in asked:
                if not future.done():
                    future.set_result(None)
            if not entries and not self._retried:
                wake = self._inbox.wake_in(
                    now, wall
                )  # of that moment: what is due since then is not slept over
                longest = _PARKED_AGAIN if self.parked else None
                await self._desk.bells.applies.wait(
                    min((s for s in (wake, longest) if s is not None), default=None)
                )

    def _next(self, now: float, wall: int) -> list[Entry[Spool]]:
        entry = self._inbox.pick(now, wall)
        return self._inbox.pick_knot(now, wall) if entry is None else [entry]

    async def _apply(self, entries: list[Entry[Spool]]) -> None:
        attempt = max(self._inbox.attempts(entry.origin) for entry in entries)
        merging = asyncio.ensure_future(self._merge(entries, attempt))
        who, began = None, self._clock.now()
        try:
            done, _ = await asyncio.wait([merging], timeout=_LONG if attempt else None)
            if not done:
                who = await self._keeper.blockers()
            applied = await merging
        except Inexact:
            for entry in entries:
                for spool in self._inbox.inexact(entry):
                    await spool.close()
        except Unreachable:
            raise
        except SyncagentError as error:
            await self._defer(entries, error, attempt, who)
        else:
            await self._applied(entries, applied, attempt + 1, self._clock.now() - began)
        finally:
            merging.cancel()
            await asyncio.gather(merging, return_exceptions=True)  # it has ended, and its end was seen

    async def _merge(self, entries: list[Entry[Spool]], attempt: int) -> Applied:
        parts = self._inbox.batches(entries)
        if len(parts) == 1:
            return await self._replica.apply(*parts[0], attempt=attempt)
        return await self._replica.apply_knot(parts, attempt=attempt)

    async def _defer(
        self, entries: list[Entry[Spool]], error: SyncagentError, attempt: int, who: str | None
    ) -> None:
        most = 0.25 if isinstance(error, Contended) else limits.RETRY_MOST
        pause = backoff.delay(attempt + 1, self._clock.chance(), first=limits.RETRY_FIRST, most=most)
        reason = error.line + (f" (held by {who})" if who else "")
        for entry in entries:
            until = self._clock.now() + pause
            name, batch = self._desk.roster.name(entry.origin), entry.header.upto
            self._desk.observer.refused(name, batch, attempt + 1, reason)
            for spool in self._inbox.deferred(entry, f"refused {attempt + 1} times: {reason}", until):
                await spool.close()
        self._desk.bells.asks.ring()

    async def _applied(
        self, entries: list[Entry[Spool]], applied: Applied, attempts: int, took: float
    ) -> None:
        for entry in entries:
            overtaken = self._inbox.applied(entry)
            for header, _ in entry.parts:
                self._desk.outbox.learned(header.origin, header.upto, header.rows, header.needed)
            for spool in (*entry.payloads, *overtaken):
                await spool.close()
        waits = filter(None, [self._waits.pop(entry.origin, None) for entry in entries])
        headers = [header for entry in entries for header, _ in entry.parts]
        named = tuple((self._desk.roster.name(header.origin), header) for header in headers)
        merged = Merged(
            *(named, "; ".join(dict.fromkeys(waits)) or None, attempts, took),
            *(applied.taken, applied.conflicts, applied.parked),
        )
        self._desk.observer.applied(merged)
        self.batches += len(entries)
        self.rows += applied.taken
        self.conflicts += applied.conflicts
        self.parked += applied.parked

    async def _retry(self, request: Request) -> dict[str, int]:
        """Somebody has done something about parked rows, and wants to know whether it was enough."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retried.append(future)
        self._desk.bells.applies.ring()
        await future
        return {"parked": self.parked}

    async def _retry_parked(self, *, alone: bool) -> None:
        """Those of a table and an origin together, and then some `alone`: that takes longer, and is not done after every batch."""
        if alone:
            self._parked_at = self._clock.now()
        try:
            self.parked = await self._replica.retry_parked(alone=alone)
        except Unreachable:
            raise
        except SyncagentError:
            return  # somebody holds one of the rows, or there is no room: next time
