"""Vectors: what several sites know together, and what a batch must wait for."""

from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import frontier

NODES = (1, 2, 3, 4)
vectors = st.dictionaries(st.sampled_from(NODES), st.integers(0, 5))


@given(vectors, vectors, vectors)
def test_join_is_the_least_that_covers_both(
    one: dict[int, int], two: dict[int, int], any_: dict[int, int]
) -> None:
    both = frontier.join(one, two)
    assert frontier.covers(both, one)
    assert frontier.covers(both, two)
    if frontier.covers(any_, one) and frontier.covers(any_, two):
        assert frontier.covers(any_, both)


@given(st.lists(vectors, min_size=1), vectors)
def test_meet_is_the_most_that_all_cover(some: list[dict[int, int]], any_: dict[int, int]) -> None:
    common = frontier.meet(some)
    assert all(frontier.covers(one, common) for one in some)
    if all(frontier.covers(one, any_) for one in some):
        assert frontier.covers(common, any_)


@given(vectors, vectors)
def test_vectors_are_not_changed(one: dict[int, int], two: dict[int, int]) -> None:
    before = dict(one), dict(two)
    frontier.join(one, two)
    frontier.meet([one, two])
    assert (one, two) == before


@given(st.dictionaries(st.sampled_from(NODES), vectors), st.sets(st.sampled_from(NODES), min_size=1))
def test_stable_is_what_each_member_has_said(known: dict[int, dict[int, int]], members: set[int]) -> None:
    stable = frontier.stable(known, members)
    for node in NODES:
        assert stable.get(node, 0) == min(known.get(member, {}).get(node, 0) for member in members)


def test_a_member_that_has_said_nothing_holds_everything_back() -> None:
    assert frontier.stable({1: {1: 9, 2: 9}, 2: {1: 9, 2: 9}}, [1, 2]) == {1: 9, 2: 9}
    assert frontier.stable({1: {1: 9, 2: 9}, 2: {1: 9, 2: 9}}, [1, 2, 3]) == {}
    assert frontier.stable({}, []) == {}


def test_who_has_left_holds_nothing_back() -> None:
    assert frontier.stable({1: {1: 9}, 2: {1: 9}, 3: {1: 2}}, [1, 2]) == {1: 9}


def test_a_batch_waits_for_what_its_origin_had_seen() -> None:
    context = {1: 7, 2: 3, 3: 5, 4: 1}
    assert frontier.missing(context, {3: 4}, origin=2, me=1) == {3: 5, 4: 1}
    assert frontier.ready(context, {3: 5, 4: 1}, origin=2, me=1)  # neither for itself nor for us
    assert not frontier.ready(context, {3: 5}, origin=2, me=1)
