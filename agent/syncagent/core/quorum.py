"""Who votes: Raft's own membership follows the catalog, one change at a time."""

from syncagent.core.catalog import Catalog
from syncagent.core.raft.messages import Change, Membership

VOTERS = 5
"""So many sites vote, unless the cluster is smaller."""


def next_change(catalog: Catalog, membership: Membership, me: int, steady: frozenset[int]) -> Change | None:
    """The next step from Raft's membership to the one the catalog wants; None: they agree, as far as can be.

    The number of voters is odd: one more would have to be reached, and none more could be missed. Sites with
    rows vote before witnesses. `me` leads and keeps its vote. `steady`: sites whose agents run for good; no other gets a vote, else a site that has
    joined and is not started yet could take the majority along.
    """
    voters = membership.voters
    leaving = [node for node in membership.nodes if node not in catalog.sites]
    for node in leaving:
        if voters != (node,):  # the only one that votes goes when another one does
            return Change("remove", node)
    for node in sorted(catalog.sites):
        if node not in membership.nodes:
            return Change("learner", node)
    ranked = [
        site.node for site in sorted(catalog.sites.values(), key=lambda site: (site.witness, site.node))
    ]
    able = [
        node
        for node in ranked
        if (site := catalog.sites[node]).state == "member"
        and not site.learner
        and node in steady
        and node not in voters
    ]
    even = len(voters) % 2 == 0 or bool(leaving)
    if len(voters) < VOTERS and len(able) >= (1 if even else 2):
        return Change("voter", able[0])
    if even and not leaving:
        return Change("learner", max((node for node in voters if node != me), key=ranked.index))
    return None
