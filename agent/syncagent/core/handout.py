"""What a donor has given to sites that join, for whoever looks on.

Invariant: a range counts once, however often it is asked for; nothing rests on what is counted here, and it ends with the agent.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from syncagent.core.batch import Table
from syncagent.core.copying import CopyPlan, Range


class Given(NamedTuple):
    """`rows_expected` is an estimate, and with `ranges_expected` None where the copy was begun before this agent; `seconds` since the
    first of it, `idle` since the last."""

    rows: int
    rows_expected: int | None
    ranges: int
    ranges_expected: int | None
    seconds: float
    idle: float


@dataclass
class _Copy:
    plan: CopyPlan | None
    began: float
    last: float
    ranges: set[tuple[Table, int]] = field(default_factory=set)
    rows: int = 0


class Handout:
    """By the node of the site that joins; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._copies: dict[int, _Copy] = {}

    def planned(self, node: int, plan: CopyPlan, now: float) -> None:
        """A copy begins, or begins anew."""
        self._copies[node] = _Copy(plan, now, now)

    def gave(self, node: int, part: Range, rows: int, now: float) -> None:
        copy = self._copies.setdefault(node, _Copy(None, now, now))
        copy.last = now
        if (part.table, part.number) not in copy.ranges:
            copy.ranges.add((part.table, part.number))
            copy.rows += rows

    def given(self, node: int, now: float) -> Given | None:
        """None: nothing, or it has another donor."""
        if (copy := self._copies.get(node)) is None:
            return None
        rows, ranges = None, None
        if copy.plan is not None:
            planned = [part for table in copy.plan.tables for part in table.ranges]
            rows, ranges = max(sum(part.estimate for part in planned), copy.rows), len(planned)
        return Given(copy.rows, rows, len(copy.ranges), ranges, now - copy.began, now - copy.last)

    def keep(self, nodes: set[int]) -> None:
        """These join still; what others were given is of no interest any more."""
        self._copies = {node: copy for node, copy in self._copies.items() if node in nodes}
