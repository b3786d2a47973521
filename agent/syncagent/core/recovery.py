"""A majority that is gone for good: one of the sites that are left decides alone, and gives votes anew.

Raft has no answer to this, since it cannot tell the dead from those that are only cut off; a person can. What
the site knows is taken whole, also what it cannot know to be committed: it may have been, and somebody
may have been told so.

Invariants: index and term lie so far ahead that every site which is left takes this catalog for its own,
whatever it had; a number that the dead may have given to somebody is not given again. Who was removed is refused
by all who have heard; what it decides on its own meanwhile is void as soon as they hear of this.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from syncagent.core import catalog as catalogs
from syncagent.core import limits
from syncagent.core.catalog import Catalog, Remove
from syncagent.core.raft.messages import Entry, HardState, Membership, Snapshot
from syncagent.errors import RefusedError

_FAR = 2**20
"""Entries, and terms, that no cluster gets through between two looks at each other."""
_NUMBERS = 100
"""Node numbers that the dead may have given."""


class Recovery(NamedTuple):
    """What a site begins anew from; durable before anything is said to anybody."""

    hard_state: HardState
    snapshot: Snapshot


def alone(me: int, term: int, index: int, state: Catalog, log: Sequence[Entry], gone: int) -> Recovery:
    """This site as the only one that votes. `state` is as of `index`, `log` what follows. Raises RefusedError."""
    catalog = state
    for entry in log:
        index, term = entry.index, max(term, entry.term)
        if entry.data:
            catalog, _ = catalogs.apply(catalog, index, catalogs.decode_proposal(entry.data).command)
    # Farther with each number, so that if two sites are told to do this, one of them gives way.
    index, term = index + me * _FAR, term + me * _FAR
    if gone not in catalog.gone:  # else it was tried before, and is in the log
        catalog, outcome = catalogs.apply(catalog, index, Remove(gone))
        if outcome.refused is not None:
            raise RefusedError(outcome.refused, hint=outcome.hint)
    if me not in catalog.sites:
        raise RefusedError("this site was removed itself", hint="do it at another one")
    numbers = min(catalog.next_node + _NUMBERS, limits.MAX_NODE + 1)
    catalog = replace(catalog, epoch=index, next_node=numbers)
    others = tuple(node for node in sorted(catalog.sites) if node != me)
    snapshot = Snapshot(index, term, Membership((me,), others), catalogs.encode(catalog))
    return Recovery(HardState(term, me), snapshot)
