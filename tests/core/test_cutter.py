"""How often an origin's agent looks at the log."""

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


class Clock:
    def now(self) -> float:
        return time.monotonic()


class Log:
    """An origin whose log always has something new; the first cut ends the test."""

    def __init__(self) -> None:
        self.looks = 0

    async def pending(self) -> bool:
        self.looks += 1
        return True

    async def cut(self, *_: object, **__: object) -> None:
        raise RuntimeError("a cut is made")


async def test_what_waits_for_its_cut_is_not_looked_for_again() -> None:
    outbox, clock, log = Outbox(ME), Clock(), Log()
    now = clock.now()
    outbox.loaded(1, FIRST, {ME: 1}, {ME: 1}, 0, now)
    outbox.asked(PEER, Want(1, FIRST, True), FIRST)
    for cut, cut_id in enumerate((SECOND, THIRD), start=2):
        made = outbox.plan(now + 1, True)
        assert made is not None
        outbox.cut_made(made, cut, cut_id, {ME: cut}, False, now, TOOK)
        outbox.sent(PEER)
        outbox.asked(PEER, Want(cut, cut_id, True), cut_id)
    anything = cast(Any, None)
    cutter = Cutter(
        Desk(ME, anything, outbox, cast(Any, clock)), cast(Any, log), anything, anything, anything
    )

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        await cutter.run()

    assert clock.now() - now >= TOOK, "it rested"
    assert log.looks == 1
