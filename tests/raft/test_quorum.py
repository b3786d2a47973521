"""Majorities, held to definitions too simple to be wrong."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncagent.core.raft.messages import Change, Membership
from syncagent.core.raft.quorum import agreed, changed, majority, tally
from syncagent.errors import RefusedError

nodes = st.integers(1, 7)
voters = st.sets(nodes, min_size=1).map(lambda some: tuple(sorted(some)))
memberships = st.builds(
    lambda voters, learners: Membership(voters, tuple(sorted(learners - {*voters}))), voters, st.sets(nodes)
)
changes = st.builds(Change, st.sampled_from(["voter", "learner", "remove"]), nodes)


def majorities(membership: Membership) -> list[set[int]]:
    sizes = range(len(membership.voters) // 2 + 1, len(membership.voters) + 1)
    return [set(some) for size in sizes for some in combinations(membership.voters, size)]


@given(voters, st.dictionaries(nodes, st.integers(0, 9)))
def test_agreed_is_the_largest_number_that_more_than_half_have_reached(
    voters: tuple[int, ...], reached: dict[int, int]
) -> None:
    enough = [n for n in range(10) if 2 * sum(reached.get(v, 0) >= n for v in voters) > len(voters)]
    assert agreed(voters, reached) == max(enough)


@given(voters, st.dictionaries(nodes, st.booleans()))
def test_an_election_is_open_while_the_missing_votes_can_turn_it(
    voters: tuple[int, ...], votes: dict[int, bool]
) -> None:
    worst = 2 * sum(votes.get(v, False) for v in voters) > len(voters)
    best = 2 * sum(votes.get(v, True) for v in voters) > len(voters)
    assert tally(voters, votes) == ("won" if worst else "open" if best else "lost")


def test_no_voters_decide_nothing() -> None:
    assert agreed((), {1: 5}) == 0
    assert tally((), {1: True}) == "lost"


@given(memberships, changes)
def test_majorities_before_and_after_a_change_share_a_voter(membership: Membership, change: Change) -> None:
    try:
        after = changed(membership, change)
    except RefusedError:
        return
    assert len({*membership.voters} ^ {*after.voters}) <= 1
    assert not {*after.voters} & {*after.learners}
    assert (change.node in after.nodes) == (change.kind != "remove")
    assert all(one & other for one in majorities(membership) for other in majorities(after))
    assert min(map(len, majorities(after))) == majority(after.voters)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Change("remove", 2), "no member"),
        (Change("voter", 1), "voter already"),
        (Change("learner", 3), "learner already"),
        (Change("remove", 1), "last voter"),
        (Change("learner", 1), "last voter"),
        (Change("voter", 0), "no node number"),
        (Change("voter", 0x10000), "no node number"),
    ],
)
def test_changes_that_cannot_be(change: Change, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        changed(Membership((1,), (3,)), change)
