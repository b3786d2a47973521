"""The applier's loop: what falls due between two looks at the clock is not slept over."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import structlog

from syncagent.core.batch import BatchHeader
from syncagent.core.inbox import Inbox
from syncagent.core.membership import Peer
from syncagent.core.outbox import Outbox
from syncagent.core.ports import Spool, Unobserved
from syncagent.core.store import Applied
from syncagent.errors import Contended
from syncagent.services.applier import Applier
from syncagent.services.lifecycle import Desk, Roster
from syncagent.services.telling import Telling
from tests.core.batches import batch
from tests.support.waiting import eventually


class Clock:
    """Leaps at each look, so that every moment lies between two of them for some step."""

    def __init__(self, step: float) -> None:
        self._leapt, self._step = 0.0, step

    def now(self) -> float:
        self._leapt += self._step
        return time.monotonic() + self._leapt

    def wall(self) -> int:
        return 1 << 59

    def chance(self) -> float:
        return 0.5


class Replica:
    """Refuses a batch some times, then takes it."""

    def __init__(self, refusals: int) -> None:
        self.left, self.done = refusals, asyncio.Event()

    async def apply(self, _header: BatchHeader, _spool: Spool, *, attempt: int) -> Applied:
        if self.left:
            self.left -= 1
            raise Contended(f"somebody holds a row, attempt {attempt}")
        self.done.set()
        return Applied(1, 0, 0)

    async def apply_knot(self, parts: Sequence[Any], *, attempt: int) -> Applied:
        raise AssertionError("there is one batch")

    async def retry_parked(self, *, alone: bool = True) -> int:
        return 0


class Nothing:
    async def close(self) -> None:
        return


async def test_a_refused_batch_is_tried_again_whenever_it_falls_due() -> None:
    for step in (0.001, 0.002, 0.003, 0.004, 0.006, 0.009, 0.014):
        inbox: Inbox[Any] = Inbox(1, [2])
        inbox.loaded({})
        inbox.linked(2)
        assert inbox.wants(0.0, 0)
        assert inbox.arrived(batch(2, 0, 1), Nothing())
        replica: Any = Replica(4)
        keeper: Any = None
        applier = Applier(Desk(1, inbox, Outbox(1), Clock(step)), replica, keeper, 0)
        applier._keeper = Blockers()  # type: ignore[assignment]
        running = asyncio.create_task(applier.run())
        async with asyncio.timeout(5):
            await replica.done.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Blockers:
    async def blockers(self) -> str | None:
        return None


async def test_a_batch_that_is_refused_for_long_is_told_of() -> None:
    """Each line has what it is found by: the site, the peer, the batch."""
    inbox: Inbox[Any] = Inbox(1, [2])
    inbox.loaded({})
    inbox.linked(2)
    assert inbox.wants(0.0, 0)
    assert inbox.arrived(batch(2, 0, 1), Nothing())
    replica: Any = Replica(9)
    keeper: Any = Blockers()
    with structlog.testing.capture_logs() as lines:
        desk = Desk(
            *(1, inbox, Outbox(1), Clock(0.05), Roster((Peer("tokyo", 2, None, ""),))),
            observer=Telling(Unobserved(), structlog.get_logger().bind(site="berlin")),
        )
        applier = Applier(desk, replica, keeper, 0)
        running = asyncio.create_task(applier.run())

        async def merged() -> bool:
            return applier.batches == 1

        await eventually(merged, "the batch is merged")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    found = {"site": "berlin", "peer": "tokyo", "batch": 1}
    reason = "somebody holds a row, attempt 7"
    assert lines == [
        {"event": "batch refused", "log_level": "warning", "attempt": 8, "reason": reason, **found},
        {"event": "batch merged", "log_level": "info", **found},
    ]


def test_cuts_that_fail_for_long_are_told_of_ever_less() -> None:
    with structlog.testing.capture_logs() as lines:
        telling = Telling(Unobserved(), structlog.get_logger().bind(site="berlin"))
        for attempt in range(1, 100):
            telling.cut_failed(attempt, "there is no room")
        telling.cut(1, uuid4(), 0.1, 1)
        telling.cut(1, uuid4(), 0.1, 1)
    told = [(line["event"], line.get("attempt"), line["site"]) for line in lines]
    assert told == [
        *(("no cut", attempt, "berlin") for attempt in (8, 16, 32, 64)),
        ("cuts are made again", None, "berlin"),
    ]
