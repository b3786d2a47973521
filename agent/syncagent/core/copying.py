"""What donor and joiner say to each other about the copy of the rows.

Invariant: a range is named by its table's number in the plan and its own in the table; bounds are the text of the
key columns, `low <= key < high`, None where there is none. A range without a node is the *rest* of its table:
version entries and parked rows that belong to no row. It is read before every other range.
"""

from typing import TypeVar
from uuid import UUID

import msgspec

from syncagent.core import limits
from syncagent.core.batch import Table
from syncagent.core.forest import Bucket
from syncagent.core.invitation import Admission, Returning
from syncagent.core.merge import Merges, Strategy
from syncagent.errors import ProtocolError

ROWS, VERSIONS, PARKED = 0, 1, 2
"""The streams of a range."""
CONTEXTS, CONFLICTS, RECORDS, ALIASES, STEPS = 0, 1, 2, 3, 4
"""The streams of the end."""


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str


class Node(msgspec.Struct, frozen=True):
    """What holds rows of an attached table: it, or one of its partitions."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Range(msgspec.Struct, frozen=True):
    """`estimate` is about how many rows it has."""

    table: Table
    number: int
    node: Node | None
    low: tuple[str, ...] | None
    high: tuple[str, ...] | None
    estimate: int

    def __str__(self) -> str:
        if self.node is None:
            return f"{self.table}, entries without a row"
        low = "the first key" if self.low is None else f"key ({', '.join(self.low)})"
        high = "the end" if self.high is None else f"before ({', '.join(self.high)})"
        return f"{self.node}, {low} to {high}"


class CopiedTable(msgspec.Struct, frozen=True):
    """A table as the donor has it attached; `bytes` and `rows` are estimates."""

    table: Table
    key_columns: tuple[str, ...]
    derived: bool
    stride: int | None
    columns: tuple[Column, ...]
    rows: int
    bytes: int
    ranges: tuple[Range, ...]
    bucket: Bucket = "hour"
    strategy: Strategy = "lww"
    merges: Merges = ()

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]


class At(msgspec.Struct, frozen=True):
    """The last cut applied of an origin, and what it had applied when it made it. `newest`: the largest clock of what it
    had written by then; `needed`: the last of its cuts that held anything."""

    cut: int
    id: UUID | None
    context: dict[int, int]
    newest: int = 0
    needed: int | None = None


class CopyPlan(msgspec.Struct, frozen=True):
    """`taken` is the donor's snapshot in which it read `frontier`."""

    donor: int
    encoding: str
    taken: str
    frontier: dict[int, At]
    tables: tuple[CopiedTable, ...]


class Held(msgspec.Struct, frozen=True):
    """What somebody has of a range: how many rows, and their fingerprint."""

    rows: int
    lanes: tuple[int, int]


class RangeAsked(msgspec.Struct, frozen=True):
    """The donor reads it once its cuts hold all that was committed at `taken`. Rows that are `held` do not travel. `before`:
    the number that a site had which returns."""

    range: Range
    taken: str
    held: Held | None = None
    before: int | None = None


class RangeHead(msgspec.Struct, frozen=True):
    """What the streams that follow hold, all read in `snapshot`. `columns` are those of the rows, `entries` those of
    their version entries; the lanes are the fingerprint of the rows. `same`: the rows are held, and left out. `lapsed`: the joiner had; then rows which
    were changed since have an entry, also if nothing else is known of them."""

    columns: tuple[str, ...]
    entries: tuple[str, ...]
    rows: int
    lanes: tuple[int, int]
    versions: int
    parked: int
    snapshot: str
    same: bool = False
    lapsed: bool = False


class SequenceAt(msgspec.Struct, frozen=True):
    """Where the sequence of a column stands."""

    table: Table
    column: str
    last: int
    called: bool


class EndHead(msgspec.Struct, frozen=True):
    """`reach` is a frontier that covers all the ranges have seen: the joiner's tables are as of one moment once its own
    covers it. `clock` is above every stamp. Entries that are gone at the donor were of cuts up to `compacted`, tombstones among them
    of those up to `forgotten`. `schema` is the epoch of its schema."""

    reach: dict[int, int]
    clock: int
    collected: tuple[tuple[Table, UUID], ...]
    sequences: tuple[SequenceAt, ...]
    contexts: int
    conflicts: int
    records: int
    compacted: dict[int, int] = {}
    forgotten: dict[int, int] = {}
    schema: int = 0
    aliases: int = 0
    steps: int = 0


class Counted(msgspec.Struct, frozen=True):
    """By which catalog each member is known to work, the donor included: whose is new enough counts the joiner."""

    epochs: dict[int, int]


class Known(msgspec.Struct, frozen=True):
    """Of a node: the last cut that each other member is known to have, None if there is no link with it. `wall`: the clock of
    who says so, in seconds since 1970."""

    have: dict[str, int | None]
    wall: float = 0.0


T = TypeVar("T", CopyPlan, RangeAsked, RangeHead, EndHead, Counted, Known, Returning, Admission)


def encode(
    said: CopyPlan | RangeAsked | RangeHead | EndHead | Counted | Known | Returning | Admission,
) -> bytes:
    return msgspec.json.encode(said)


def decode(kind: type[T], data: bytes) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            f"a message of the copy is malformed ({kind.__name__})", detail=str(error)
        ) from error


def rest(took: float, rate: float) -> float:
    """Seconds that a donor rests after a range, so that its application keeps most of the machine: `took` is how long the
    range took, `rate` how many rows a second are written there meanwhile."""
    return min(took * limits.COPY_REST * min(rate / limits.COPY_BUSY, 1.0), limits.COPY_REST_MOST)
