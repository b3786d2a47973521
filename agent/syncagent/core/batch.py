"""What one shipment says of itself; the rows travel beside it as COPY bytes.

Invariant: a batch is the range of cuts `(after, upto]` of one origin, in the state the rows had at
`upto`, and names the context of every cut in that range, so that each row's own dot stays exact.
"""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

import msgspec

Form = Literal["plain", "exact", "keys", "aliases", "conflicts", "entries"]
BESIDE: tuple[Form, ...] = ("keys", "aliases", "conflicts")
"""What travels with rows, and is none."""


class Table(msgspec.Struct, frozen=True, order=True):
    """A table as every site knows it."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Stream(msgspec.Struct, frozen=True):
    """Rows of one table. `plain` rows have implicit stamps and only their columns; `exact` rows carry
    `_stamp uuid, _cut int8, _deleted bool` before them. `keys` are no rows: which keys each cut of the range saw
    changed, for a receiver that may have to hand them on; nor are `aliases`: which rows were merged into which; nor `conflicts`: what the cuts of
    the range tell of conflicts; `entries` are what a listing knows of versions. `size` is the length of the raw COPY bytes; `lowest` is
    not above any key of plain rows."""

    table: Table
    form: Form
    columns: tuple[str, ...]
    rows: int
    size: int
    lowest: UUID | None = None


class CutContext(msgspec.Struct, frozen=True):
    """The frontier the origin had when it made a cut."""

    cut: int
    frontier: dict[int, int]


class BatchHeader(msgspec.Struct, frozen=True):
    """`newest` is the largest clock (hlc) of any stamp in the batch, 0 if there is none; `needed` the last cut of
    the origin that says something. `relayed` names other origins: a batch of each went before this one, read under the
    same snapshot, and is applied with it or not at all; `unable` those that were asked for, and are not whole here.
    `listing`: this is no batch, but what was asked for by this request, at the frontier that is its last context; of the first each
    entry is the last cut that held anything. `schema` is the epoch of the schema whose shape the rows have."""

    origin: int
    after: int
    upto: int
    upto_id: UUID
    contexts: tuple[CutContext, ...]
    newest: int
    streams: tuple[Stream, ...]
    needed: int = 0
    relayed: tuple[int, ...] = ()
    unable: tuple[int, ...] = ()
    listing: UUID | None = None
    schema: int = 0

    @property
    def context(self) -> dict[int, int]:
        """The frontier of the origin at `upto`."""
        return self.contexts[-1].frontier

    @property
    def rows(self) -> int:
        return sum(stream.rows for stream in self.streams if stream.form not in BESIDE)

    @property
    def size(self) -> int:
        return sum(stream.size for stream in self.streams)


def states(parts: Sequence[BatchHeader]) -> list[dict[int, int]]:
    """Of each part of a knot, what whoever read its rows had seen: the origin, or the relay whose own batch follows."""
    seen = [part.context for part in parts]
    for place, part in enumerate(parts):
        for before in range(place - len(part.relayed), place):
            seen[before] = part.context
    return seen
