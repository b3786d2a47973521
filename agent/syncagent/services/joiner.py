"""Copies the rows of a donor while everyone keeps writing: ranges side by side, each one retried, at a bounded rate.

In this order, and each step may be repeated after an interruption: `copy` brings the rows, then somebody makes the
primary keys, then `conclude` makes this database a site that stands at the donor's frontier.

Invariant: a range counts once its rows are committed and were compared; whatever ends a copy, the next one asks only
for the ranges that are not here.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from syncagent.core import backoff
from syncagent.core.copying import CopyPlan, Range, RangeAsked
from syncagent.core.pace import Pace
from syncagent.core.ports import Donor
from syncagent.core.store import Copier, Put, Unfinished
from syncagent.errors import ConstraintBroken, CopyDiffers, RefusedError, SyncagentError
from syncagent.services.lifecycle import Clock

WORKERS = 3
PATIENCE = 60.0
"""Seconds without a single range done, after which an interruption is the caller's."""
_FIRST, _MOST = 0.1, 5.0
_WINDOW = 20.0
"""Seconds over which the rate is taken."""
_NOTICE = 0.2
_TRIES = 2
"""How often a range is fetched that differs."""


@dataclass(frozen=True)
class CopyProgress:
    """`rows_expected` is an estimate, never below `rows`; `eta` is None until a rate is known."""

    rows: int
    rows_expected: int
    bytes: int
    ranges: int
    ranges_expected: int
    rate: float
    eta: float | None
    table: str
    trouble: str | None


@dataclass(frozen=True)
class CopyReport:
    """`ranges_kept` were here already, from a copy that was interrupted. `bytes` came over the network. In tables that held
    rows before, `equal` rows stayed, `dropped` ones were deleted, and conflicts were recorded."""

    rows: int
    versions: int
    bytes: int
    ranges: int
    ranges_kept: int
    rows_kept: int
    retries: int
    seconds: float
    equal: int
    dropped: int
    conflicts: int


@dataclass(frozen=True)
class Concluded:
    """The site stands at `frontier`. Until its own frontier covers `reach`, its ranges are from different moments:
    unique indexes and foreign keys may not hold, and it must not write."""

    frontier: dict[int, int]
    reach: dict[int, int]


OnProgress = Callable[[CopyProgress], None]


async def copy(
    donor: Donor,
    copier: Copier,
    clock: Clock,
    *,
    workers: int = WORKERS,
    max_rate: float | None = None,
    patience: float = PATIENCE,
    on_progress: OnProgress = lambda _progress: None,
) -> CopyReport:
    """Bring the rows of all the donor's tables, or what of them an interrupted copy lacks.

    `max_rate` is bytes a second over the network. Raises RefusedError (with what mends it), CopyDiffers, and what was the
    last trouble once nothing has been done for `patience` seconds; what is here stays, and calling again goes on.
    """
    effort = _Effort(donor, copier, clock, max_rate, patience, on_progress)
    return await effort.run(workers)


async def conclude(donor: Donor, copier: Copier) -> Concluded:
    """After `copy`, and after the primary keys were made: attach the tables, take over what else a site knows."""
    begun = await copier.unfinished()
    if begun is None:
        raise RefusedError("no copy was begun here", hint="copy the rows first")
    head, spool = await donor.end(begun.plan.taken)
    try:
        return Concluded(await copier.conclude(head, spool), head.reach)
    finally:
        await spool.close()


class _Effort:
    """One call of `copy`."""

    def __init__(
        self,
        donor: Donor,
        copier: Copier,
        clock: Clock,
        max_rate: float | None,
        patience: float,
        on_progress: OnProgress,
    ) -> None:
        self._donor, self._copier, self._clock = donor, copier, clock
        self._patience, self._on_progress = patience, on_progress
        self._pace = None if max_rate is None else Pace(max_rate, clock.now())
        self._began = self._moved = clock.now()
        self._said = float("-inf")
        self._rows = self._versions = self._bytes = self._retries = self._done = 0
        self._equal = self._dropped = self._conflicts = 0
        self._marks: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._trouble: str | None = None
        self._plan: CopyPlan
        self._start: Unfinished | None = None

    async def run(self, workers: int) -> CopyReport:
        self._start = start = await self._begun()
        self._plan, self._before = start.plan, start.before
        # Entries without a row are read before any row: where a row has come since, the row's own entry counts.
        for waiting in (
            deque(part for part in start.ranges if part.node is None),
            deque(part for part in start.ranges if part.node is not None),
        ):
            await self._all_of(waiting, workers)
        self._tell("", always=True)
        return CopyReport(
            self._rows,
            self._versions,
            self._bytes,
            self._done,
            start.done_ranges,
            start.done_rows,
            self._retries,
            self._clock.now() - self._began,
            self._equal,
            self._dropped,
            self._conflicts,
        )

    async def _begun(self) -> Unfinished:
        """What was begun, or the donor's plan, taken over."""
        attempt = 0
        while True:
            try:
                begun = await self._copier.unfinished()
                if begun is None:
                    return await self._copier.begin(await self._donor.plan())
            except SyncagentError as error:
                attempt += 1
                await self._pause(error, attempt)
            else:
                return begun

    async def _all_of(self, waiting: deque[Range], workers: int) -> None:
        async def work() -> None:
            while waiting:
                await self._fetch(waiting.popleft())

        tasks = [asyncio.create_task(work()) for _ in range(min(workers, len(waiting)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, part: Range) -> None:
        attempt = differed = 0
        while True:
            try:
                held = await self._copier.held(part)
                asked = RangeAsked(part, self._plan.taken, held, self._before if held else None)
                head, spool = await self._donor.rows(asked, self._received)
                try:
                    self._put(await self._copier.put(part, head, spool))
                finally:
                    await spool.close()
            except SyncagentError as error:
                attempt += 1
                differed += isinstance(error, CopyDiffers)
                if differed >= _TRIES:
                    raise
                await self._pause(error, attempt)
            else:
                self._rows, self._versions, self._done = (
                    self._rows + head.rows,
                    self._versions + head.versions,
                    self._done + 1,
                )
                self._moved, self._trouble = self._clock.now(), None
                self._tell(str(part.table), always=True)
                return

    def _put(self, put: Put) -> None:
        self._equal, self._dropped = self._equal + put.equal, self._dropped + put.dropped
        self._conflicts += put.conflicts

    async def _pause(self, error: SyncagentError, attempt: int) -> None:
        """Before the next try; raises what cannot be mended by one, or was not for too long."""
        lasting = not error.recoverable or isinstance(error, ConstraintBroken)
        if lasting or self._clock.now() - self._moved > self._patience:
            raise error
        self._retries, self._trouble = self._retries + 1, error.line
        self._tell("", always=True)
        await asyncio.sleep(backoff.delay(attempt, self._clock.chance(), first=_FIRST, most=_MOST))

    async def _received(self, size: int) -> None:
        self._bytes += size
        self._tell("")
        if self._pace is not None:
            await asyncio.sleep(self._pace.wait(size, self._clock.now()))

    def _tell(self, table: str, *, always: bool = False) -> None:
        now = self._clock.now()
        if not always and now - self._said < _NOTICE:
            return
        self._said = now
        self._marks.append((now, self._rows))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()
        since, before = self._marks[0]
        rate = (self._rows - before) / (now - since) if now > since else 0.0
        rows, ranges, expected, total = self._rows, self._done, 0, 0
        if (start := self._start) is not None:
            rows, ranges = rows + start.done_rows, ranges + start.done_ranges
            expected = sum(part.estimate for part in start.ranges) + start.done_rows
            total = len(start.ranges) + start.done_ranges
        expected = max(expected, rows)
        self._on_progress(
            CopyProgress(
                rows,
                expected,
                self._bytes,
                ranges,
                total,
                rate,
                (expected - rows) / rate if rate > 0 else None,
                table,
                self._trouble,
            )
        )
