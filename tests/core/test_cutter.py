"""How often an origin's agent looks at the log."""

import asyncio
import time
from typing import Any, cast
from uuid import UUID

import pytest

from syncagent.core.outbox import Outbox
from syncagent.core.wire import Want
from syncagent.services.cutter import Cutter
from syncagent.services.lifecycle import Desk

ME, PEER = 1, 2
FIRST, SECOND, THIRD = UUID(int=1), UUID(int=2), UUID(int=3)
TOOK = 0.05
RINGS = 200


class Clock:
    def now(self) -> float:
        return time.monotonic()


class Log:
    """An origin whose log has something new, or never has; the first cut ends the test."""

    def __init__(self, *, new: bool) -> None:
        self.looks: list[float] = []
        self._new = new

    async def pending(self) -> bool:
        self.looks.append(time.monotonic())
        return self._new

    async def cut(self, *_: object, **__: object) -> None:
        raise RuntimeError("a cut is made")


async def test_what_waits_for_its_cut_is_looked_for_once_and_when_it_could_be_made() -> None:
    outbox, clock, log = Outbox(ME), Clock(), Log(new=True)
    now = clock.now()
    outbox.loaded(1, FIRST, {ME: 1}, {ME: 1}, 0, now)
    outbox.asked(PEER, Want(1, FIRST, True), FIRST)
    for cut, cut_id in enumerate((SECOND, THIRD), start=2):
        made = outbox.plan(now + 1, True)
        assert made is not None
        outbox.cut_made(made, cut, cut_id, {ME: cut}, False, now, TOOK)
        outbox.sent(PEER)
        outbox.asked(PEER, Want(cut, cut_id, True), cut_id)

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        await _cutter(_desk(outbox, clock), log).run()

    [look] = log.looks
    assert look - now >= TOOK, "it rested"


async def test_what_happens_here_is_no_reason_to_look() -> None:
    # Merges ring every bell: a hundred a second would make as many questions to the database, and more.
    outbox, clock, log = Outbox(ME), Clock(), Log(new=False)
    outbox.loaded(1, FIRST, {ME: 1}, {ME: 1}, 0, clock.now())
    outbox.asked(PEER, Want(1, FIRST, True), FIRST)
    desk = _desk(outbox, clock)
    running = asyncio.create_task(_cutter(desk, log).run())

    for _ in range(RINGS):
        desk.bells.ring()
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert 1 < len(log.looks) < RINGS / 4, "each pause is longer than the one before"


def _desk(outbox: Outbox, clock: Clock) -> Desk:
    return Desk(ME, cast(Any, None), outbox, cast(Any, clock))


def _cutter(desk: Desk, log: Log) -> Cutter:
    anything = cast(Any, None)
    return Cutter(desk, cast(Any, log), anything, anything, anything)
