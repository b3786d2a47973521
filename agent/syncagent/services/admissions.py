"""Who asks to join, or to return: whether the token is good, whether the site fits, and its place in the cluster.

Invariant: nothing is decided here that the cluster has not agreed on; a refusal leaves no trace, and the token
as good as it was.
"""

from uuid import UUID, uuid4

from syncagent.core import catalog as catalogs
from syncagent.core import limits, stamp
from syncagent.core.catalog import Admit, Return
from syncagent.core.invitation import Admission, Application, Returning
from syncagent.core.wire import PROTOCOL
from syncagent.errors import RefusedError
from syncagent.services.elections import Elections
from syncagent.services.lifecycle import Clock

_SECONDS = 10.0
"""The longest wait for the cluster to agree."""
_READ = 5.0
MAX_SKEW = 60.0
"""Seconds between the clocks of a member and of a joiner; more is a clock that is not set."""


class Admissions:
    """See the module's docstring."""

    def __init__(self, me: int, version: str, clock: Clock, elections: Elections) -> None:
        self._me, self._version, self._clock, self._elections = me, version, clock, elections

    async def verifier(self, invitation: UUID) -> bytes | None:
        """Of a token that is still good; a member that lags asks first."""
        for attempt in range(2):
            known = self._elections.catalog.invitations.get(invitation)
            if known is not None:
                return known.verifier if known.expires > self._now() else None
            if not attempt:
                await self._elections.settle(uuid4(), seconds=_READ)
        return None

    async def admit(self, application: Application) -> Admission:
        """A place for whoever showed a token. Raises RefusedError, Undecided."""
        if self._elections.is_witness:
            raise RefusedError(
                "this member is a witness: it has no rows to begin with",
                hint="give the address of another member with --peer",
            )
        self._check(application)
        outcome = await self._elections.submit(
            Admit(
                invitation=application.invitation,
                at=self._now(),
                name=application.name,
                site=application.site,
                incarnation=application.incarnation,
                address=application.address,
                sha256=application.sha256,
            ),
            uuid4(),
            seconds=_SECONDS,
        )
        return Admission(outcome.node, self._me, catalogs.encode(self._elections.catalog))

    async def readmit(self, node: int, returning: Returning) -> Admission:
        """Another number for a site whose certificate is listed. Raises RefusedError, Undecided."""
        self._check(returning)
        outcome = await self._elections.submit(
            Return(node, returning.incarnation, returning.void), uuid4(), seconds=_SECONDS
        )
        return Admission(outcome.node, self._me, catalogs.encode(self._elections.catalog))

    def _check(self, application: Application | Returning) -> None:
        if application.protocol != PROTOCOL or _release(application.version) < _release(self._version):
            raise RefusedError(
                f"this site runs syncagent {self._version} (protocol {PROTOCOL}), yours is"
                f" {application.version} (protocol {application.protocol})",
                hint="install the version that the members run",
            )
        ahead = application.wall - stamp.to_seconds(self._clock.wall())
        if abs(ahead) > MAX_SKEW:
            raise RefusedError(
                f"your clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this site's",
                hint="set the clocks with NTP, then join",
            )

    def _now(self) -> int:
        return int(stamp.to_seconds(self._clock.wall()) * 1000)


def _release(version: str) -> tuple[int, ...]:
    """The numbers in front: 0.2.0.dev1 is 0, 2, 0."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers[:3])


assert MAX_SKEW > limits.MAX_CLOCK_SKEW, "who may join may still be held until its clock is set"
