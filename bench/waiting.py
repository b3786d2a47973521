"""For what daemons and servers of other systems do in their own time."""

import time
from collections.abc import Callable

from syncagent.errors import SyncagentError

_POLL = 0.01


class Late(SyncagentError):
    """What was waited for did not happen in time."""


def until(look: Callable[[], object], what: str, seconds: float, *, poll: float = _POLL) -> None:
    """Look every `poll` seconds until it is so. Raises Late after `seconds`, or what `look` raises."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise Late(f"{what}: not within {seconds:g} s")
        time.sleep(poll)
