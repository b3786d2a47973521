"""Whose row is right, where two sites differ and nothing is on its way.

Each site mends itself: it takes what it lacks, and what is newer elsewhere, and leaves to the other site what that one
lacks. Where nobody's row is newer, somebody has written behind the triggers, or a disk is damaged; then most sites are right, or
the one that a person trusts. What is taken is looked at again under a lock (sql/59): what was decided here may be old by then.

Invariant: a row is taken back only where every site that voted stood where this one stands.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from syncagent.core.batch import Table
from syncagent.core.comparison import Content, Difference, Outcome

Cause = Literal["stamps", "majority", "source"]
"""Why rows are taken: by their stamps; because most sites have them so; because a person said so."""
Name = tuple[Table, UUID]


@dataclass
class Plan:
    """Of the rows that differ from a peer's: those to `take` from it by their stamps, those that are `theirs` to take, and
    those that are `disputed`."""

    take: list[Difference] = field(default_factory=list)
    theirs: list[Difference] = field(default_factory=list)
    disputed: list[Difference] = field(default_factory=list)


def plan(differences: Iterable[Difference]) -> Plan:
    made = Plan()
    for found in differences:
        if found.content_here is None:
            made.take.append(found)
        elif found.content_there is None:
            made.theirs.append(found)
        elif found.here is None or found.there is None or found.here == found.there:
            made.disputed.append(found)
        else:
            (made.take if found.there > found.here else made.theirs).append(found)
    return made


@dataclass
class Verdict:
    """What a vote says: which rows are to be taken, and from which node; which are right `here`; which are `open`. Without
    a majority, a stamp that only one of the two has decides: those of `stamps` the peer's."""

    take: dict[int, list[Difference]] = field(default_factory=dict)
    stamps: list[Difference] = field(default_factory=list)
    here: list[Difference] = field(default_factory=list)
    open: list[Difference] = field(default_factory=list)


def vote(disputed: Iterable[Difference], outcomes: Mapping[int, Outcome], sites: int) -> Verdict:
    """Of rows that differ from a peer's. `outcomes` are comparisons of this site with others; `sites` is how many there
    are, this one included."""
    verdict = Verdict()
    rows = {
        node: {(other.table, other.key): other for other in outcome.differences}
        for node, outcome in outcomes.items()
    }
    for found in disputed:
        name = (found.table, found.key)
        voices = {
            node: voice
            for node, outcome in outcomes.items()
            if (voice := _voice(found, rows[node].get(name), outcome))
        }
        counts = Counter(voice for voice in (*voices.values(), found.content_here))
        right, count = counts.most_common(1)[0]
        if count * 2 <= sites and found.here == found.there:
            verdict.open.append(found)
        elif count * 2 <= sites and found.here is None:
            verdict.stamps.append(found)
        elif count * 2 <= sites:
            verdict.here.append(found)
            verdict.open.append(
                found
            )  # as long as the peer does not take it: its own entry may only be forgotten already
        elif right == found.content_here:
            verdict.here.append(found)
        else:
            node = min(node for node, voice in voices.items() if voice == right)
            verdict.take.setdefault(node, []).append(found)
    return verdict


def _voice(found: Difference, other: Difference | None, outcome: Outcome) -> Content:
    """What a peer has of a row, if it was compared with the very row that is disputed, and there is one; `other`: how it
    differs there."""
    if other is not None:
        return other.content_there if other.content_here == found.content_here else None
    complete = not outcome.more and not outcome.spans and (found.table, found.key) not in outcome.unconfirmed
    return found.content_here if complete and outcome.scope.holds(found.table, found.key) else None
