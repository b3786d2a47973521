"""Batches that have arrived, and where the stream of an origin stands.

Invariant: an entry is one transaction at its receiver, whatever it holds.
"""

from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

from syncagent.core.batch import BatchHeader
from syncagent.errors import ProtocolError

P = TypeVar("P")


class Position(NamedTuple):
    """The last cut applied of an origin, and the id it had there."""

    cut: int
    id: UUID | None


START = Position(0, None)


@dataclass(frozen=True, eq=False)
class Entry(Generic[P]):
    """A complete batch that is held here, with those that its sender relays; `order` is its place among all arrivals."""

    header: BatchHeader
    payload: P
    order: int
    relayed: tuple[tuple[BatchHeader, P], ...] = ()

    @property
    def origin(self) -> int:
        return self.header.origin

    @property
    def parts(self) -> tuple[tuple[BatchHeader, P], ...]:
        return (*self.relayed, (self.header, self.payload))

    @property
    def payloads(self) -> list[P]:
        return [payload for _, payload in self.parts]

    @property
    def reach(self) -> dict[int, int]:
        """Up to where it brings whoever applies it."""
        return {header.origin: header.upto for header, _ in self.parts}

    @property
    def newest(self) -> tuple[int, int]:
        """The largest clock in it, and the origin it is of."""
        return max((header.newest, header.origin) for header, _ in self.parts)

    @property
    def size(self) -> int:
        return sum(header.size for header, _ in self.parts)


def check(header: BatchHeader) -> None:
    """A batch must describe itself completely: each cut in its range has its context."""
    cuts = [context.cut for context in header.contexts]
    if header.after >= header.upto or cuts != list(range(header.after + 1, header.upto + 1)):
        raise ProtocolError(
            f"node {header.origin} sent a batch ({header.after}, {header.upto}] with the contexts of {len(cuts)} cuts",
            hint="both sites must run the same version of syncagent; then restart the agent at the origin",
        )


Reason = Literal[
    "none",
    "unlinked",
    "paused",
    "refused",
    "asked",
    "relayed",
    "causal",
    "schema",
    "clock",
    "deferred",
    "next",
    "applying",
]


@dataclass(frozen=True)
class Waiting:
    """What an origin's stream waits for, in words a status line can show."""

    reason: Reason
    text: str
