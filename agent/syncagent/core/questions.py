"""What two sites say to each other while they compare their forests.

Invariant: tables are named once, in a Standing or a Settle, and are numbered from then on, each in the order of a list that
both know; a span names its table so.
"""

from collections import Counter
from collections.abc import Mapping
from uuid import UUID

import msgspec
import xxhash

from syncagent.core.batch import Table
from syncagent.core.forest import Bucket, Digest, Span


class Grove(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A table as a site has it: `shape` stands for its columns and their types, `bucket` is the width of its buckets."""

    table: Table
    shape: str
    bucket: Bucket = "hour"


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """Where a site stands. `known` are its answers to questions about fingerprints whose answers are known; `quiet` says that
    nothing was written that no cut holds. Of origins in `needed` that is the last cut that held any rows: a site at rest may never
    hear of later ones.

    Tables are numbered in the order of their names; they travel only if `listing`, a hash of them, differs. Positions below
    `sealed` are in buckets, those of keys without a time and with one; tables of `behind` have not come so far.
    """

    known: tuple[int, ...]
    frontier: dict[int, int]
    quiet: bool
    sealed: tuple[int, int]
    behind: dict[int, tuple[int, int]]
    listing: bytes
    groves: tuple[Grove, ...] | None
    needed: dict[int, int] = {}

    @property
    def filled(self) -> dict[int, int]:
        """Per origin the last cut with rows that was applied."""
        return self.frontier | self.needed

    def reach(self, number: int) -> tuple[int, int]:
        return self.behind.get(number, self.sealed)

    def known_to(self, other: "Standing") -> "Standing":
        """As it travels to a site that stands there: without the tables, if they are the same."""
        return self.listed(None) if self.listing == other.listing else self

    def listed(self, groves: tuple[Grove, ...] | None) -> "Standing":
        """With this list of tables, which did not travel, or travelled later."""
        return msgspec.structs.replace(self, groves=groves)


def standing(
    known: tuple[int, ...],
    frontier: dict[int, int],
    quiet: bool,
    groves: Mapping[Grove, tuple[int, int]],
    needed: Mapping[int, int] | None = None,
) -> Standing:
    """Of these tables, and how far each is sealed: most of them equally far, if their buckets are of one width."""
    listed = tuple(sorted(groves))
    often = Counter(groves.values())
    sealed = max(often, key=lambda reach: (often[reach], reach), default=(0, 0))
    behind = {number: groves[grove] for number, grove in enumerate(listed) if groves[grove] != sealed}
    listing = xxhash.xxh3_128_digest(msgspec.msgpack.encode(listed))
    idle = {node: cut for node, cut in (needed or {}).items() if cut != frontier[node]}
    return Standing(known, frontier, quiet, sealed, behind, listing, listed, idle)


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Seal what is due, and compute anew what is marked, of all tables. `deep`: these, or all, from the rows."""

    tables: tuple[Table, ...] | None
    deep: bool


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Take a snapshot, of these tables, or of all: where do you stand, and what can you not compare with me? `whole`: rows
    that are in no bucket yet, too, if both sites are still."""

    standing: Standing
    tables: tuple[Table, ...] | None
    whole: bool


class Settle(msgspec.Struct, frozen=True, tag=True):
    """This is left out on my side, by the number of my tables; my root over what is left is this one, and yours?"""

    groves: tuple[Grove, ...] | None
    left_out: tuple[Span, ...]
    root: bytes = b""


class Sums(msgspec.Struct, frozen=True, tag=True):
    """Of these spans, the sums of what they are made of at a level."""

    level: str
    spans: tuple[Span, ...]


class Leaves(msgspec.Struct, frozen=True, tag=True):
    """Of these buckets, or parts of one, the slices at this depth, or at your own if that is less."""

    depth: int
    spans: tuple[Span, ...]


class Count(msgspec.Struct, frozen=True, tag=True):
    """Of these spans the digests, from the rows themselves."""

    spans: tuple[Span, ...]


class Rows(msgspec.Struct, frozen=True, tag=True):
    """The rows of these spans."""

    spans: tuple[Span, ...]


Question = Prepare | Begin | Settle | Sums | Leaves | Count | Rows


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """It is done."""


class Begun(msgspec.Struct, frozen=True, tag=True):
    standing: Standing
    left_out: tuple[Span, ...]


class Root(msgspec.Struct, frozen=True, tag=True):
    """`over`: there is nothing more to ask, the two are equal."""

    root: bytes
    over: bool = False


class Summed(msgspec.Struct, frozen=True, tag=True):
    """For each span, where each part that holds rows begins, and its digest."""

    sums: tuple[dict[int, Digest], ...]


class Sliced(msgspec.Struct, frozen=True, tag=True):
    """For each span the depth, and its slices that hold rows, numbered in their bucket; none if it holds no row."""

    slices: tuple[tuple[int, dict[int, Digest]] | None, ...]


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A row: its key, and as people write it, if that is something else; its stamp, unless it is implicit; its fingerprint."""

    key: UUID
    shown: str
    stamp: UUID | None
    lane_0: int
    lane_1: int

    @property
    def content(self) -> tuple[int, int]:
        return self.lane_0, self.lane_1


class Listed(msgspec.Struct, frozen=True, tag=True):
    rows: tuple[tuple[Row, ...], ...]


Answer = Prepared | Begun | Root | Summed | Sliced | Listed
