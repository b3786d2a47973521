"""Whether a database is still where its agent left it, or was set back to an earlier moment.

It exists because a restore brings back cuts, votes and log entries that others have seen: a site that went on from
there would give the same numbers to other things. So what a site has let others know is kept beside the database, too.

Invariants: what is `known` never goes back; a database that only lost what nobody was told goes on as it is, on
another timeline as well.
"""

from uuid import UUID

import msgspec


class Place(msgspec.Struct, frozen=True):
    """Which database it is. The timeline says how often its server was recovered to a point or promoted."""

    system: int
    database: int
    timeline: int


class Standing(msgspec.Struct, frozen=True):
    """How far a site is: its last cut, its vote, the last entry of Raft's log. Zero: there is none."""

    cut: int = 0
    cut_id: UUID | None = None
    term: int = 0
    vote: int = 0
    last_term: int = 0
    last: int = 0


def moved(known: Place, here: Place) -> str | None:
    """Why this is not the database that was known; None if it is."""
    if known.system != here.system:
        return f"the server has the system identifier {here.system}, the site's had {known.system}"
    if known.database != here.database:
        return f"the database has the oid {here.database}, the site's had {known.database}"
    return None


def gone_back(known: Standing, here: Standing) -> str | None:
    """What others were told and is not here any more; None if all of it is.

    A log of Raft is cut short only for entries of a later term: the last entry's term and index never go back.
    """
    if here.cut < known.cut:
        return f"its last cut is {here.cut}, the site has shipped its cut {known.cut}"
    if here.cut == known.cut and known.cut_id not in (None, here.cut_id):
        return f"its cut {here.cut} is not the one that the site has shipped"
    if here.term < known.term:
        return f"it is in term {here.term}, the site has been in term {known.term}"
    if here.term == known.term and known.vote not in (0, here.vote):
        return f"it does not know the site's vote in term {known.term}"
    if (here.last_term, here.last) < (known.last_term, known.last):
        return f"its log of the catalog ends at entry {here.last}, the site's ended at {known.last}"
    return None
