"""Rules left out, one at a time: each must be found by a schedule, or the schedules prove little.

Invariant: what is changed here is put back.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock
from uuid import UUID

from syncagent.core import merge, stamp
from syncagent.core.frontier import Frontier
from syncagent.core.merge import Local, Merged, Window
from tests.simulation.run import USUAL, BothWays, Run, Scene

_may_drop, _merge, _is_born_implicit = merge.may_drop, merge.merge, merge.is_born_implicit
_concurrent = merge.concurrent


def _young(key: UUID, local: Local, stable: Frontier, old_transactions: bool) -> bool:
    return _may_drop(key, local, stable, False)


def _unasked(key: UUID, local: Local, stable: Frontier, old_transactions: bool) -> bool:
    return _may_drop(key, Local(local.alive, local.entry), stable, old_transactions)


def _low(key: UUID, local: Local, stable: Frontier, old_transactions: bool) -> bool:
    entry = local.entry
    if entry is None or entry.dot.cut is None or local.logged is not None or entry.deleted:
        return _may_drop(key, local, stable, old_transactions)
    return stable.get(entry.dot.node, 0) >= entry.dot.cut


def _unseen(local: Local, *arguments: Any) -> bool:
    return _concurrent(replace(local, born=()), *arguments)


def _traceless(*arguments: Any) -> Merged:
    merged = _merge(*arguments)
    return Merged("keep", arguments[1].entry, merged.conflict) if merged.action == "trace" else merged


def _born(
    *, order: bool = True, ahead: bool = True, odd: bool = True, mark: bool = True
) -> Callable[[UUID, Window, UUID], bool]:
    """`is_born_implicit` without one of its conditions."""

    def born(key: UUID, window: Window, collected: UUID) -> bool:
        return (
            window.alive
            and window.ops[0] == "insert"
            and not (order and "delete" in window.ops)
            and not (odd and not stamp.is_timed(key))
            and not (ahead and key >= window.stamp)
            and not (mark and stamp.is_timed(key) and key <= collected)
        )

    return born


@dataclass(frozen=True)
class Variant:
    """`patches`: functions of core/merge.py, by name. `scene` is weather in which the rule matters, `play` what happens in it."""

    why: str
    patches: dict[str, Callable[..., Any]] = field(default_factory=dict)
    scene: Scene = USUAL
    switch: str | None = None  # of the simulator itself
    play: type[Run] = Run

    @contextmanager
    def rules(self) -> Iterator[tuple[str, ...]]:
        """While these hold, runs are to be given what this yields as `broken`."""
        with ExitStack() as stack:
            for name, patch in self.patches.items():
                stack.enter_context(mock.patch.object(merge, name, patch))
            yield (self.switch,) if self.switch else ()


_CALM = replace(USUAL, faults=(0.0,), sites=(2, 3), hot=(0.9,), steps=(80,))
_CROWD = replace(_CALM, ends=(0.1, 0.3), pace=(0.1, 0.5))
"""Everybody writes the same few keys, in transactions that stay open."""
_TOMBS = replace(_CALM, ends=(0.3,), pace=(0.1, 0.5), hot=(1.0,), steps=(30,))
"""Keys that every site makes and deletes, again and again."""
_LATE = replace(_CALM, ends=(0.6,), pace=(0.1, 0.5), hot=(1.0,), steps=(30,), refused=0.8)
"""What is committed stays in the log for seconds."""
_SLOW = replace(_CALM, ends=(1.0,), pace=(0.1, 0.3), commits=(1.0, 3.0), steps=(30,))
"""Cuts that take seconds."""
_CRASHES = replace(USUAL, faults=(0.15,), kinds=("database",))
_LAGGING = replace(USUAL, sites=(3, 4), faults=(0.1,), kinds=("slow", "split", "link"))
_APART = replace(_TOMBS, sites=(3,), faults=(0.1,), kinds=("split", "link", "slow"))
_DEATHS = replace(
    USUAL,
    sites=(3,),
    steps=(50, 80),
    hot=(0.6,),
    deaths=1.0,
    faults=(0.08,),
    kinds=("clock", "clock", "split"),
)
"""One of three sites dies, and what it had said may be held for its clock."""
_SPOKES = replace(_CALM, sites=(3, 4), shapes=("hub", "line"), hot=(0.6,), deaths=0.0)
"""Nothing gets to most but through others."""

VARIANTS = {
    "settle": Variant(
        "a live row under a newer tombstone is only left unshipped", scene=_TOMBS, switch="settle"
    ),
    "horizon": Variant(
        "a tombstone goes while transactions that ran when it was applied are open",
        {"may_drop": _young},
        scene=_CROWD,
    ),
    "trace": Variant(
        "apply lets an unfolded local write win and leaves no entry", {"merge": _traceless}, scene=_LATE
    ),
    "order": Variant(
        "implicit if the first entry is an insert, whatever follows",
        {"is_born_implicit": _born(order=False)},
        scene=_CROWD,
    ),
    "ahead": Variant(
        "implicit, and compacted, although the key is above the stamp",
        {"is_born_implicit": _born(ahead=False), "may_drop": _low},
    ),
    "odd": Variant(
        "a key without a time is implicit at its insert", {"is_born_implicit": _born(odd=False)}, scene=_CALM
    ),
    "mark": Variant("the collected mark is not asked", {"is_born_implicit": _born(mark=False)}, scene=_CROWD),
    "uncut": Variant("compaction does not ask the log", {"may_drop": _unasked}, scene=_LATE),
    "fold": Variant(
        "the fold writes over a version that apply wrote after its snapshot", switch="fold", scene=_SLOW
    ),
    "between": Variant("the fold does not look at implicit rows again", switch="between", scene=_SLOW),
    "lock": Variant("apply does not wait for row locks", switch="lock", scene=_CROWD),
    "unseen": Variant(
        "an implicit row is in everybody's past, even an insert of this site that the writer lacks",
        {"concurrent": _unseen},
    ),
    "unborn": Variant(
        "an insert that has lost, in a conflict, counts as what the row is", switch="unborn", scene=_CALM
    ),
    "relayed": Variant(
        "a relay takes what it holds for any insert of the key that it has met",
        scene=_SPOKES,
        switch="relayed",
    ),
    "again": Variant(
        "what came by one way is merged once more when it comes by the other",
        scene=replace(_CALM, sites=(3,), shapes=("mesh",), deaths=0.0),
        switch="again",
        play=BothWays,
    ),
    "last": Variant(
        "what the last batches of a site that died had not seen is forgotten while they are held",
        scene=_DEATHS,
        switch="last",
    ),
    "stable": Variant("applied here counts as stable", switch="stable"),
    "grace": Variant(
        "a tombstone goes when it is some seconds old, whoever lacks it", scene=_APART, switch="grace"
    ),
    "told": Variant(
        "stable is what a peer said before its database had flushed it", switch="told", scene=_CRASHES
    ),
    "flush": Variant("a batch leaves before its cut is flushed", switch="flush", scene=_CRASHES),
    "dot": Variant("one dot for a batch of several cuts", switch="dot", scene=_LAGGING),
    "causal": Variant("batches are applied before what they build on", switch="causal"),
    "parts": Variant("the batches of a knot are applied one after the other", switch="parts", scene=_LAGGING),
    "plain": Variant("plain rows are written without a look at metadata", switch="plain"),
}
