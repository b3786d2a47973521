"""What really happened, kept beside the sites: who had seen what when it wrote.

Histories are bit sets of write numbers. `saw` is what the writer's version was built on; `met` adds what
its site had weighed against that version and dropped: a write may be said to have seen it, or not.

Invariant: nothing here is told to the sites.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from syncagent.core.merge import Op


@dataclass(slots=True)
class Write:
    """One write of one key. `shown` is the value it leaves in the row; None: no row."""

    number: int
    key: UUID
    shown: int | None
    saw: int
    met: int
    entries: tuple[tuple[Op, int], ...]  # what capture logs: op and clock, in the order of the triggers
    fresh: bool  # no committed row was there: nothing that apply could find locked


class Broken(AssertionError):
    """The sites did what they must not."""


def apart(one: Write, other: Write) -> bool:
    """Neither writer had seen the other's write."""
    return not (one.met >> other.number & 1 or other.met >> one.number & 1)


def nothing_lost(committed: Iterable[Write], final: Mapping[UUID, int], conflicts: set[int]) -> None:
    """Each committed write that no other had seen is final or in a conflict; what is final is such a write."""
    of_key: dict[UUID, list[Write]] = {}
    for write in committed:
        of_key.setdefault(write.key, []).append(write)
    for key, writes in of_key.items():
        seen = 0
        for write in writes:
            seen |= write.saw & ~(1 << write.number)
        heads = [write for write in writes if not seen >> write.number & 1]
        shown = final.get(key)
        won = [write for write in heads if write.shown == shown]
        if not won:
            what = "a deleted row has come back" if shown is not None else "a row is gone that nobody deleted"
            raise Broken(f"{what}: {key} shows {shown}, the newest writes are {heads}")
        agreed = [write for write in heads if write.shown is None and _also_deleted(write, writes)]
        lost = [w for w in heads if w.shown != shown and w.number not in conflicts and w not in agreed]
        if lost:
            raise Broken(f"lost without a conflict: {lost}")


def _also_deleted(write: Write, writes: Iterable[Write]) -> bool:
    """Has somebody else deleted the row unseen: two who agree."""
    return any(other.shown is None and apart(write, other) for other in writes)
