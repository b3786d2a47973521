"""What a majority of the voters says, and how the set of voters may change.

It exists apart to be compared with a definition so simple that it cannot be wrong.

Invariant: any majority of a membership and any majority of what `changed` makes of it share a voter.
"""

from collections.abc import Mapping
from typing import Literal

from syncagent.core import limits
from syncagent.core.raft.messages import Change, Membership
from syncagent.errors import RefusedError


def majority(voters: tuple[int, ...]) -> int:
    return len(voters) // 2 + 1


def agreed(voters: tuple[int, ...], reached: Mapping[int, int]) -> int:
    """The largest number that a majority has reached. Zero for nobody: no voters decide nothing."""
    if not voters:
        return 0
    ordered = sorted((reached.get(node, 0) for node in voters), reverse=True)
    return ordered[majority(voters) - 1]


def tally(voters: tuple[int, ...], votes: Mapping[int, bool]) -> Literal["won", "lost", "open"]:
    """Who is no voter does not count."""
    granted = sum(votes.get(node, False) for node in voters)
    refused = sum(not votes.get(node, True) for node in voters)
    if voters and granted >= majority(voters):
        return "won"
    return "lost" if len(voters) - refused < majority(voters) else "open"


def changed(membership: Membership, change: Change) -> Membership:
    """Raises RefusedError if nothing would change, or nobody be left to vote."""
    node = change.node
    if not 0 < node <= limits.MAX_NODE:
        raise RefusedError(f"{node} is no node number")
    voters = {*membership.voters} - {node}
    learners = {*membership.learners} - {node}
    if change.kind == "voter":
        voters.add(node)
    elif change.kind == "learner":
        learners.add(node)
    after = Membership(tuple(sorted(voters)), tuple(sorted(learners)))
    if after == membership:
        what = "is no member" if change.kind == "remove" else f"is a {change.kind} already"
        raise RefusedError(f"node {node} {what}")
    if not after.voters:
        raise RefusedError(f"node {node} is the last voter", hint="make another site a voter first")
    return after
