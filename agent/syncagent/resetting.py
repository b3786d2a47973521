"""What a site whose clock was ahead is asked before it takes back what nobody has applied: whether that is so, and is over.

It comes back as one that was restored does (`returning`). What is here besides: why not, and what is told to whom.

Invariants: a site whose clock is still wrong takes nothing back; nor one of which somebody has applied what is ahead of time:
that would stay, and win. What nobody has applied is known only once all have heard that its number is gone, for then nobody
applies more of it.
"""

from collections.abc import Mapping

import msgspec

from syncagent.core import stamp
from syncagent.core.copying import At, Known
from syncagent.errors import RefusedError
from syncagent.node import SystemClock
from syncagent.settings import Settings
from syncagent.storage import commands, installation

_ACCEPT = "`syncagent clock accept {}` at another member takes the rest as well, at every site"


class Check(msgspec.Struct, frozen=True):
    """Stamps up to `accepted` are taken although no clock has come so far."""

    settings: Settings
    accepted: int

    def is_due(self) -> None:
        """Raise unless this site's clock runs ahead of time."""
        with commands.site_of(self.settings.dsn) as connection:
            lead = stamp.to_seconds(installation.lead(connection, self.accepted))
        if lead <= self.settings.max_clock_skew:
            raise RefusedError(
                f"there is nothing to take back: the stamps of this site are {max(lead, 0.0):.1f} s ahead",
                detail=f"Up to {self.settings.max_clock_skew:g} s (max_clock_skew) nobody holds anything.",
                hint="`syncagent status` says what is held, and where",
            )

    def is_right(self, peer: str, wall: float, asked: float) -> None:
        """Raise unless this site's clock, when it `asked`, was that of a peer."""
        ahead = asked - wall
        if wall and abs(ahead) > self.settings.max_clock_skew:
            raise RefusedError(
                f"the clock of this site is still {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of {peer}",
                hint="set it, with NTP or chrony, and run the same command again",
            )

    def is_free(self, peer: str, told: At, have: Mapping[str, int | None]) -> None:
        """Raise if somebody has applied what is ahead of time, or may have."""
        me = self.settings.name
        away = [name for name, cut in have.items() if cut is None and name != me]
        if away:
            raise RefusedError(
                f"{peer} has no link with {', '.join(away)}: what is applied there of this site is not known",
                hint=f"bring it back, or `syncagent remove` it; or {_ACCEPT.format(me)}",
            )
        limit = max(_wall(), self.accepted) + stamp.from_seconds(self.settings.max_clock_skew)
        with commands.site_of(self.settings.dsn) as connection:
            newest = {name: installation.newest_up_to(connection, cut or 0) for name, cut in have.items()}
        newest[peer] = told.newest
        who = max(newest, key=lambda name: newest[name])
        if newest[who] > limit:
            raise RefusedError(
                f"{who} has applied what this site wrote {stamp.to_seconds(newest[who] - _wall()):.0f} s ahead of time",
                detail="That stays, and wins against what the others write until then.",
                hint=_ACCEPT.format(me),
            )


def _wall() -> int:
    return SystemClock().wall()


def lagging(donor: str, told: At, known: Known, me: str) -> str | None:
    """Who has more of this site than the donor, or may have."""
    for name, cut in known.have.items():
        if name != me and (cut is None or cut > told.cut):
            return (
                f"{name} has no link with {donor}"
                if cut is None
                else f"{name} has cut {cut}, {donor} has {told.cut}"
            )
    return None
