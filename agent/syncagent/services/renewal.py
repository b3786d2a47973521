"""What the catalog says of this site: where it is dialled, and its certificates, also while one replaces another.

Every member must know the new certificate before it is shown, for one that does not would take this site for a
stranger, and could not be told any more. So who is away holds a renewal up; it ends by itself when all have
heard, whatever happens in between: what is still to be done is in the home and in the catalog.

Invariant: the certificate that is shown is listed at every member that can be reached.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from syncagent.core import limits, stamp
from syncagent.core.catalog import Describe
from syncagent.core.ports import Keyring
from syncagent.core.store import Request
from syncagent.errors import RefusedError, Undecided
from syncagent.services.elections import Elections
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Bell, Desk

_SECONDS = 10.0
_LOOK = 0.2
_AGAIN = 1.0


class Renewal:
    """See the module's docstring. `address` is where this site is dialled."""

    def __init__(
        self, desk: Desk, elections: Elections, exchange: Exchange, keyring: Keyring, address: str | None
    ) -> None:
        self._desk, self._elections, self._exchange = desk, elections, exchange
        self._keyring, self._address = keyring, address
        self._listed_at = 0
        self._heard: set[int] = set()
        self.bell = Bell()
        self.verbs = {"renew": self._renew}

    async def run(self) -> None:
        """Until this site is removed: the catalog follows what is so, and a renewal that was begun comes to its end."""
        while self._desk.me not in self._elections.catalog.gone:
            if not self._is_listed():
                self._listed_at = 0
                self._heard.clear()
                await self._describe()
            elif len(self._keyring.sha256) == 1:
                await self.bell.wait(None)
            elif self.missing():
                await self.bell.wait(_LOOK)
            else:
                await self._keyring.turn()

    def _is_listed(self) -> bool:
        site = self._elections.catalog.sites.get(self._desk.me)
        return site is not None and (site.address, site.sha256) == (self._address, self._keyring.sha256)

    async def _describe(self) -> None:
        try:
            told = Describe(self._desk.me, self._address, self._keyring.sha256)
            await self._elections.submit(told, uuid4(), seconds=_SECONDS)
        except Undecided:
            await self.bell.wait(_AGAIN)
        except RefusedError:
            if self._desk.me not in self._elections.catalog.gone:
                raise

    def missing(self) -> dict[str, str]:
        """Members that are not known to have heard of what is listed, and why."""
        catalog, epochs = self._elections.catalog, self._exchange.epochs()
        self._listed_at = self._listed_at or catalog.epoch  # or earlier: who has this catalog has heard
        self._heard |= {node for node, epoch in epochs.items() if epoch >= self._listed_at}
        return {
            site.name: "has not heard yet" if self._exchange.way(site.node) else "no link"
            for site in catalog.sites.values()
            if site.node != self._desk.me and site.node not in self._heard
        }

    def warning(self) -> str | None:
        """The certificate's end is near, or past."""
        left = self._keyring.until - stamp.to_seconds(self._desk.clock.wall())
        if left > limits.CERTIFICATE_NOTICE:
            return None
        verb = "ends" if left > 0 else "has ended"
        return (
            f"this site's certificate {verb} on {datetime.fromtimestamp(self._keyring.until, UTC):%Y-%m-%d};"
            " hint: `syncagent certificate renew`"
        )

    async def _renew(self, request: Request) -> dict[str, Any]:
        """A new key and certificate, in use everywhere; or who holds that up."""
        until = self._desk.clock.now() + float(request.arguments.get("timeout") or 60.0)
        before = self._keyring.sha256[0]
        if len(self._keyring.sha256) == 1:
            await self._keyring.prepare()
        self.bell.ring()
        while not (done := self._keyring.sha256[0] != before and self._is_listed()):
            if self._desk.clock.now() >= until:
                break
            await asyncio.sleep(_LOOK)
        missing = (
            {} if done else self.missing() if self._is_listed() else {"the cluster": "has not agreed yet"}
        )
        return {"sha256": self._keyring.sha256[0], "until": self._keyring.until, "missing": missing}
