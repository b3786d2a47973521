"""A site whose clock is ahead: what it wrote is held everywhere, until time has come so far, or until a person takes it.

Invariant: what is taken is taken by all sites: each clock runs ahead then, and who did not agree would hold the others.
"""

from typing import Any
from uuid import uuid4

from syncagent.core import stamp
from syncagent.core.catalog import Accept
from syncagent.core.store import Request
from syncagent.errors import RefusedError, UsageError
from syncagent.services.elections import Elections
from syncagent.services.lifecycle import Desk

_SECONDS = 10.0


class Clocks:
    """See the module's docstring."""

    def __init__(self, desk: Desk, elections: Elections) -> None:
        self._desk, self._elections = desk, elections
        self.verbs = {"accept": self._accept}

    async def _accept(self, request: Request) -> dict[str, Any]:
        """How far a site is ahead; once somebody is `sure`, all sites take what it has written so far."""
        name, roster, wall = request.arguments["site"], self._desk.roster, self._desk.clock.wall()
        node = next((peer.node for peer in roster.origins if peer.name == name), None)
        if node is None:
            raise UsageError(f"there is no other site {name}", hint="`syncagent status` lists them")
        until = self._desk.inbox.ahead(node, wall)
        if until is None:
            raise RefusedError(
                f"nothing of {name} is held here because of its clock",
                hint="`syncagent status` says what is held, and why",
            )
        if request.arguments.get("sure"):
            await self._elections.submit(Accept(until), uuid4(), seconds=_SECONDS)
        return {"site": name, "ahead": stamp.to_seconds(until - wall)}
