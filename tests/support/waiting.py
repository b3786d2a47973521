"""Waiting for what a test expects, with a deadline: no test sleeps and hopes.

Where there is an event to await, await that. These are for what can only be looked at, such as a row in a
database or the end of a process.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1


def until(look: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
    """Call `look` until it returns something true, and return that."""
    deadline, pause, never = time.monotonic() + seconds, _FIRST_PAUSE, threading.Event()
    while True:
        late = time.monotonic() >= deadline
        if seen := look():
            return seen
        if late:
            raise _missed(what, seconds, seen)
        never.wait(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


async def eventually(look: Callable[[], Awaitable[T]], what: str, seconds: float = SECONDS) -> T:
    """`until` for code that awaits."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        late = time.monotonic() >= deadline
        if seen := await look():
            return seen
        if late:
            raise _missed(what, seconds, seen)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _missed(what: str, seconds: float, seen: object) -> AssertionError:
    return AssertionError(f"not within {seconds:g} s: {what} (last seen: {seen!r})")
