"""What a service manager is told, as systemd asks for it (sd_notify(3)): the agent is ready, it lives, it stops.

Invariant: silent where nobody listens, and never a reason for the agent to end. A sign of life is sent by the event loop
itself, so that one that hangs sends none.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping


class Manager:
    """Of this process; the environment says where it listens, and how often it must hear something."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 / 3 if ours else 0.0

    def say(self, *words: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.setblocking(False)
            door.sendto("\n".join(words).encode(), self._address)

    def ready(self) -> None:
        self.say("READY=1", "STATUS=running")

    async def live(self) -> None:
        """Say so for as long as this is awaited."""
        while self._address and self._every:
            self.say("WATCHDOG=1")
            await asyncio.sleep(self._every)
