"""What the services need of the site's database.

Invariant: a call either did all of what it says, durably where it says so, or nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from syncagent.core.arrival import Position
from syncagent.core.attachment import Attachment, Inspected
from syncagent.core.batch import BatchHeader, Table
from syncagent.core.catalog import Catalog
from syncagent.core.comparison import Difference, Outcome
from syncagent.core.copying import At, CopyPlan, EndHead, Held, Range, RangeHead
from syncagent.core.forest import Digest, Span
from syncagent.core.lapse import Behind
from syncagent.core.outbox import Group
from syncagent.core.ports import Spool, SpoolFactory
from syncagent.core.questions import Grove, Row, Standing
from syncagent.core.raft.machine import Ready
from syncagent.core.raft.messages import Membership, Snapshot
from syncagent.core.raft.storage import Memory
from syncagent.core.repair import Cause
from syncagent.core.schema import Move


@dataclass(frozen=True)
class Loaded:
    """Where the site stands, read after every connect."""

    last: int
    last_id: UUID | None
    context: dict[int, int]
    positions: dict[int, Position]
    floor: int
    parked: int

    @property
    def frontier(self) -> dict[int, int]:
        return {node: position.cut for node, position in self.positions.items()}


@dataclass(frozen=True)
class Shipment:
    """One group's batch, read under the snapshot of the cut that ends it."""

    group: Group
    header: BatchHeader
    spool: Spool


@dataclass(frozen=True)
class Cut:
    """A committed, flushed cut."""

    number: int
    id: UUID
    frontier: dict[int, int]
    rows: int
    empty: bool
    shipments: tuple[Shipment, ...]
    unable: tuple[Group, ...] = ()
    """What was asked for of the batches of others, and is not whole here."""


@dataclass(frozen=True)
class Applied:
    """A committed merge: rows written, conflicts noticed, rows parked."""

    taken: int
    conflicts: int
    parked: int

    def __add__(self, other: "Applied") -> "Applied":
        return Applied(self.taken + other.taken, self.conflicts + other.conflicts, self.parked + other.parked)


@dataclass(frozen=True)
class Request:
    """What a person asked of the agent."""

    id: UUID
    verb: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class PeerState:
    """What the agent knows of a peer, for people."""

    node: int
    linked: bool
    via: int | None
    """The peer through which this one is reached, if it has no link."""
    paused: bool
    frontier: dict[int, int]
    parked: int
    rtt: float | None
    clock_offset: float | None
    waiting: str | None
    trouble: str | None


@dataclass(frozen=True)
class Typed:
    """What somebody has made of an attached table by hand; `role` is known where an event trigger saw it."""

    table: str
    what: str
    role: str | None


class Watch(Protocol):
    """Whoever notices DDL that is typed by hand."""

    async def begin(self, *, refuse: bool) -> bool:
        """Whether it is seen as it is typed, and refused if it is to be; else it is found afterwards."""

    async def look(self) -> list[Typed]:
        """What is here by hand; it is noted."""


class Origin(Protocol):
    """The site as an origin."""

    async def pending(self) -> bool:
        """Whether a cut would find something committed that no cut has folded."""

    async def cut(self, groups: Sequence[Group], *, force: bool, spools: SpoolFactory) -> Cut | None:
        """Fold the log and read every group's rows in the same snapshot; None if there was nothing and
        it is not forced. Raises Contended if a table is locked; nothing is changed then."""

    async def cut_id(self, number: int) -> UUID | None:
        """The id of a cut, while it is kept."""


class Replica(Protocol):
    """The site as a receiver."""

    async def apply(self, header: BatchHeader, spool: Spool, *, attempt: int) -> Applied:
        """Merge a batch and move the frontier in one transaction. `attempt` counts earlier refusals: from
        the third on it waits for a refused row first. Raises Contended, Inexact, DatabaseError."""

    async def apply_knot(self, parts: Sequence[tuple[BatchHeader, Spool]], *, attempt: int) -> Applied:
        """The same for batches that wait for each other: all in one transaction."""

    async def retry_parked(self, *, alone: bool = True) -> int:
        """Try parked rows again, those of one table and origin together, then some `alone`; returns how many are left."""


class Keeper(Protocol):
    """What keeps metadata small, and speaks with people."""

    async def load(self) -> Loaded: ...

    async def on_request(self, ring: Callable[[], None]) -> None:
        """`ring` is called whenever a person has asked something."""

    async def cover(self) -> int:
        """Give partitions that have come their triggers; returns how many came or left."""

    async def compact(self, *, always: bool) -> int:
        """Drop what is settled, if more is than the last time, or `always`; returns how many entries went."""

    async def trim(self) -> int:
        """Empty slots of the log whose entries are all folded; returns how many are not empty yet."""

    async def forget_conflicts(self, seconds: float) -> int:
        """Those that were noticed longer ago, but for open ones; returns how many went."""

    async def behind(self) -> tuple[list[Behind], int]:
        """Members that lack something of this one, and how many bytes are kept because some site lacks something."""

    async def requests(self) -> list[Request]: ...

    async def answer(self, request: UUID, answer: dict[str, Any]) -> None: ...

    async def say(self, request: UUID, progress: str) -> None:
        """How far a request is, for whoever waits."""

    async def report(
        self, peers: Sequence[PeerState], waiting: str | None, trouble: str | None, leader: int | None
    ) -> None:
        """Make the state visible in SQL."""

    async def paused(self) -> set[int]:
        """Peers whose batches are not to be applied for now."""

    async def set_paused(self, nodes: Sequence[int], paused: bool) -> None: ...

    async def blockers(self) -> str | None:
        """Who holds what the merge waits for, in words; None if nobody."""


class Tables(Protocol):
    """Attached tables, here. Whatever waits for a lock gives up after some seconds with Contended."""

    async def attached(self) -> dict[Attachment, bool]:
        """Those that are, and whether the catalog has had them."""

    async def attach(self, attachment: Attachment) -> None:
        """Raises RefusedError, Contended."""

    async def detach(self, table: Table) -> None:
        """Raises Contended."""

    async def agree(self, attachment: Attachment) -> None:
        """The catalog has them."""

    async def inspect(self, attachments: Sequence[Attachment]) -> list[Inspected]:
        """The preflight of each. Changes nothing."""


class Shapes(Protocol):
    """The application's schema, here, as far as schema changes have brought it."""

    async def standing(self) -> tuple[int, int]:
        """The epoch, and the oldest whose batches can be read."""

    async def do(self, move: Move, floor: int, tell: Callable[[str], None]) -> None:
        """A step, and the epoch that it leads to; `tell` hears, from any thread, how far one is that takes long. Raises Contended if locks were not to be had; else what the server, or the
        rows, have against it: nothing of it was done then."""

    async def undelivered(self) -> str | None:
        """What keeps writes by column, from before rows were logged whole, from being known everywhere; None if nothing does."""


@dataclass(frozen=True)
class Due:
    """What the forest of one table waits for: leaves to be computed anew, buckets to be sealed, all of it to be read again."""

    relation: int
    marked: bool
    unsealed: bool
    unscrubbed: bool


class View(Protocol):
    """The forest and the rows at one moment. Tables are numbered by `number`; spans name them so."""

    async def standing(self, tables: Sequence[Table] | None) -> Standing:
        """Where this site stands, of these tables or all, with their list."""

    async def left_out(self, frontier: Mapping[int, int], groves: Sequence[Grove]) -> tuple[Span, ...]:
        """Sealed buckets that cannot be compared with a site at this frontier, tables numbered as in this list."""

    def number(self, tables: Sequence[Table]) -> None: ...

    async def sums(
        self, level: str, spans: Sequence[Span], left_out: Iterable[Span]
    ) -> tuple[dict[int, Digest], ...]:
        """Of each span the years, months, days or buckets in it that hold rows: where each begins, and its digest."""

    async def leaves(
        self, depth: int, spans: Sequence[Span]
    ) -> tuple[tuple[int, dict[int, Digest]] | None, ...]:
        """Of each bucket, or part of one, depth and slices: at this depth, or at their own if that is less."""

    async def count(self, spans: Sequence[Span]) -> tuple[dict[int, Digest], ...]:
        """Digests from the rows, like `sums` with one part."""

    async def rows(self, spans: Sequence[Span], most: int) -> tuple[tuple[Row, ...], ...]:
        """The rows of each span. Raises ProtocolError if they are more."""


class Forest(Protocol):
    """The Merkle forest of the site."""

    def view(self) -> AbstractAsyncContextManager[View]:
        """As it is now, for as long as it is not left."""

    async def prove(self, node: int, outcome: Outcome, found: Mapping[str, object]) -> None:
        """Note what a comparison with this site has found."""

    async def advance(self, horizon: int) -> None:
        """Buckets whose time has ended before this clock may be sealed from now on."""

    async def due(self) -> list[Due]:
        """Tables that have something to do."""

    async def fell(self, tables: Sequence[Table] | None) -> None:
        """Forget the trees of these tables, or of all: they are to be computed from the rows again."""

    async def seal(self, relation: int) -> int | None:
        """The next buckets of a table; how many rows were read, None if there was nothing to seal."""

    async def anew(self, spans: Sequence[tuple[Table, bool, int]]) -> None:
        """Compute these buckets from their rows: of a table, whether of keys with a time, the number."""

    async def scrub(self, relation: int) -> int | None:
        """Compute the next buckets of a table from their rows; how many rows were read, None if that is not due."""

    async def reseal(self, relation: int) -> int | None:
        """The leaves of some marked keys; how many keys, None if there were no marks."""


@dataclass(frozen=True)
class Repaired:
    """A row that was taken from a peer: why, and how it was and is, as JSON; None: it was not, or is not, there."""

    table: Table
    key: str
    cause: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Taken:
    """What was taken of a listing; so many of the rows break a constraint here, and are parked."""

    rows: list[Repaired]
    parked: int


class Repairs(Protocol):
    """Rows that are wrong here, or at a peer."""

    async def listing(
        self, request: UUID, table: Table, keys: Sequence[UUID], spools: SpoolFactory
    ) -> tuple[BatchHeader, Spool]:
        """What this site has of some rows. Raises RefusedError, Contended."""

    async def take(
        self,
        header: BatchHeader,
        spool: Spool,
        wrong: Sequence[Difference],
        cause: Cause,
        *,
        dry: bool,
    ) -> Taken:
        """Of a peer's listing what is right there, and wrong here. `dry`: and then take all of it back. Raises Contended
        while the listing holds what has not come here yet, or is too old, and if somebody writes one of the rows."""


class Registry(Protocol):
    """Raft's log and the catalog."""

    @property
    def memory(self) -> Memory: ...

    def current(self, index: int, catalog: Catalog) -> Catalog:
        """What to work by: the catalog as of this entry, or the one this site was admitted with if that is newer."""

    async def save(self, ready: Ready) -> None:
        """Hard state, snapshot and entries of a Ready: durable when this returns."""

    async def applied(self, index: int, catalog: Catalog, membership: Membership) -> None:
        """The catalog as of this entry; it and its index are recorded together."""

    async def compact(self, snapshot: Snapshot) -> None:
        """The log up to this snapshot, of what was applied here, is not needed any more."""


@dataclass(frozen=True)
class Unfinished:
    """What of a copy is not here yet, in the order in which it is to be fetched. `before`: the number of a site that returns."""

    plan: CopyPlan
    ranges: tuple[Range, ...]
    done_rows: int
    done_ranges: int
    before: int | None = None


@dataclass(frozen=True)
class Put:
    """What a range has changed: rows that came, rows that went, conflicts noticed; and rows that were here already."""

    taken: int
    dropped: int = 0
    conflicts: int = 0
    equal: int = 0


@dataclass(frozen=True)
class Differing:
    """Rows of a range that are not here, are different here, are only here; what this site wrote itself apart."""

    lacking: int = 0
    changed: int = 0
    extra: int = 0


class Copier(Protocol):
    """The joiner's database while its rows are copied."""

    async def unfinished(self) -> Unfinished | None:
        """The copy that was begun here, if there is one."""

    async def begin(self, plan: CopyPlan) -> Unfinished:
        """Take over a plan. Raises RefusedError if a table is missing or has other columns."""

    async def held(self, part: Range) -> Held | None:
        """What is here of a range, if its table is attached."""

    async def own(self, table: Table, told: At) -> int | None:
        """How many keys this site has written and nobody has, if others have its cuts up to `told`; None if the table is
        not attached here."""

    async def differing(self, part: Range, head: RangeHead, spool: Spool, told: At) -> Differing:
        """What of a donor's range is not as here. Changes nothing."""

    async def put(self, part: Range, head: RangeHead, spool: Spool) -> Put:
        """One range and the record that it is here, in one transaction. Raises CopyDiffers if what was written is
        not what the donor has read; nothing is changed then."""

    async def conclude(self, head: EndHead, spool: Spool) -> dict[int, int]:
        """Attach the tables and become a site that stands at the donor's frontier, in one transaction; the frontier.
        The primary keys are there by now."""

    async def forget(self) -> None:
        """Give up a copy that was begun: the rows it brought are deleted, but for tables that held rows before."""
