"""Vectors node -> cut: what a site has applied, and what follows from several of them.

Invariant: a node that is not named stands at 0. Vectors are never changed in place here.
"""

from collections.abc import Iterable, Mapping

Frontier = Mapping[int, int]


def covers(left: Frontier, right: Frontier) -> bool:
    """Everything in `right` is in `left`."""
    return all(left.get(node, 0) >= cut for node, cut in right.items())


def join(left: Frontier, right: Frontier) -> dict[int, int]:
    """The pointwise maximum: what a site knows that had seen both."""
    return {node: max(left.get(node, 0), right.get(node, 0)) for node in {**left, **right}}


def meet(vectors: Iterable[Frontier]) -> dict[int, int]:
    """The pointwise minimum: what all of them cover. Of no vectors at all: nothing."""
    vectors = list(vectors)
    if not vectors:
        return {}
    nodes = set.intersection(*(set(vector) for vector in vectors))
    return {node: min(vector[node] for vector in vectors) for node in nodes}


def stable(known: Mapping[int, Frontier], members: Iterable[int]) -> dict[int, int]:
    """The dots that every member has said, in its own stream, to have applied.

    `known` holds per member the context of the last cut applied from it; for the site itself, its
    frontier. A member that has said nothing yet holds everything back.
    """
    return meet(known.get(member, {}) for member in members)


def missing(context: Frontier, frontier: Frontier, *, origin: int, me: int) -> dict[int, int]:
    """What must be applied here before a batch of `origin` with that context, node -> cut."""
    return {
        node: cut for node, cut in context.items() if node not in (origin, me) and frontier.get(node, 0) < cut
    }


def ready(context: Frontier, frontier: Frontier, *, origin: int, me: int) -> bool:
    """Causal delivery: everything the origin had seen is here."""
    return not missing(context, frontier, origin=origin, me=me)
