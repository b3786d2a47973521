"""What rows are compared by: the servers' own hash, or sha256, for the whole cluster.

The hash is fast, and nobody promises that it is the same on every version of PostgreSQL. Sites whose servers hash known
texts to different numbers prove nothing to each other; the first one that sees it has the cluster turn to sha256.
"""

import asyncio
from typing import Any, get_args
from uuid import uuid4

from syncagent.core.catalog import Fingerprint, FingerprintKind
from syncagent.core.store import Request
from syncagent.errors import SyncagentError, UsageError
from syncagent.services.elections import Elections
from syncagent.services.lifecycle import Bell

_SECONDS = 10.0
_AGAIN = 30.0
KINDS = get_args(FingerprintKind)


class Fingerprints:
    """See the module's docstring."""

    def __init__(self, elections: Elections) -> None:
        self._elections, self._bell = elections, Bell()
        self._unlike = False
        self.verbs = {"fingerprint": self._choose}

    def unlike(self) -> None:
        """A peer's server hashes otherwise."""
        self._unlike = True
        self._bell.ring()

    async def run(self) -> None:
        """Turn to sha256 once that is needed, for ever."""
        while True:
            await self._bell.wait(_AGAIN)
            if not self._unlike:
                continue
            self._unlike = False
            if self._elections.catalog.fingerprint == "hash" and self._elections.is_member:
                try:
                    await self._elections.submit(Fingerprint("sha256"), uuid4(), seconds=_SECONDS)
                except SyncagentError:
                    await asyncio.sleep(_AGAIN)  # the next comparison says it again

    async def _choose(self, request: Request) -> dict[str, Any]:
        """Answers what is in force; with a `kind`, once the cluster has agreed on it."""
        kind = request.arguments.get("kind")
        if kind is not None:
            if kind not in KINDS:
                raise UsageError(f"{kind!r} is no fingerprint", hint="hash or sha256")
            await self._elections.submit(Fingerprint(kind), uuid4(), seconds=_SECONDS)
        return {"fingerprint": self._elections.catalog.fingerprint if kind is None else kind}
