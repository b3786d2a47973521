"""What the services need of the network, as Protocols: they are tested against these, and run on them.

Invariant: a service imports the core and this module, never a driver, a socket or a file.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from syncagent.core.batch import BatchHeader
from syncagent.core.copying import CopyPlan, EndHead, RangeAsked, RangeHead
from syncagent.core.membership import Peer
from syncagent.core.wire import Hello, Message
from syncagent.errors import SyncagentError


class Spool(Protocol):
    """The bytes of one batch, one or more streams: written once, then read many times, also at once.

    Memory stays bounded whatever the size. Who made a spool, or got it from `Link.batches`, closes it.
    """

    async def write(self, stream: int, data: bytes) -> None:
        """Add raw COPY bytes to stream 0, 1, ...; a stream is finished once a later one is written."""

    async def seal(self) -> None:
        """No more writes; from here on it can be read."""

    def read(self, stream: int) -> AsyncIterator[bytes]:
        """The raw bytes of a stream, verified; DamagedFrame if they are not what was written."""

    def frames(self) -> AsyncIterator[bytes]:
        """The encoded frames of all streams and the end frame, as they travel."""

    def sizes(self) -> list[int]:
        """Raw bytes per stream."""

    @property
    def took(self) -> float:
        """Seconds from the first of its frames to the last, where they came over a link."""

    async def close(self) -> None:
        """Give memory and disk back. Idempotent."""


class SpoolFactory(Protocol):
    def __call__(self, name: str) -> Spool:
        """A new, empty spool; `name` says in messages which batch it is."""


class Link(Protocol):
    """A live connection with one peer, both ways. At most one per peer is given out at a time."""

    @property
    def peer(self) -> Peer: ...

    @property
    def hello(self) -> Hello:
        """What the peer said of itself: site, incarnation, version."""

    @property
    def rtt(self) -> float | None:
        """Seconds a control message takes there and back."""

    @property
    def clock_offset(self) -> float | None:
        """Seconds the peer's wall clock is ahead of ours."""

    async def send(self, message: Message) -> None:
        """Control. Raises LinkDown once the link has ended, as `send_batch` does."""

    def messages(self) -> AsyncIterator[Message]:
        """Control, in order; ends with the link. Ping, Pong and Bye are dealt with inside. One reader."""

    async def send_batch(self, header: BatchHeader, spool: Spool) -> None:
        """Data. Returns when the last byte is handed to the socket; one at a time, callers queue up."""

    def batches(self) -> AsyncIterator[tuple[BatchHeader, Spool]]:
        """Data: batches that are complete and verified; ends with the link. One reader."""

    async def close(self, reason: str) -> None:
        """Begin to end the link: the peer is told why, iterators end, `on_link` is cancelled."""


OnLink = Callable[[Link], Awaitable[None]]
OnTrouble = Callable[[Peer | None, SyncagentError], None]


class Network(Protocol):
    """Keeps a link with every peer that can be had."""

    async def start(self, on_link: OnLink, on_trouble: OnTrouble) -> None:
        """Listen, and dial every peer that has an address, again and again.

        `on_link` is awaited as the link's life: when it returns or raises, the link closes; when the
        link ends, it is cancelled. `on_trouble` hears of refused certificates, protocol mismatch,
        unreachable peers and links that broke (peer None: an unknown certificate).
        """

    async def know(self, peers: Sequence[Peer], removed: Mapping[str, str]) -> None:
        """These are the peers from now on. Who is not among them is refused at once, and its link ends soon;
        `removed` says by certificate who was one, and is told so."""

    async def stop(self) -> None:
        """Every link is closed, every `on_link` has ended, no task and no socket is left. Idempotent."""


class Keyring(Protocol):
    """The site's own certificates."""

    @property
    def sha256(self) -> tuple[str, ...]:
        """The one that is shown, then the one that is to replace it, if there is one."""

    @property
    def until(self) -> float:
        """When the one that is shown should have been replaced, in seconds since 1970."""

    async def prepare(self) -> None:
        """Make a key and certificate that are to replace those in use. It survives a crash."""

    async def turn(self) -> None:
        """Those are in use from the next handshake on; the old key is gone."""


class Merged(NamedTuple):
    """A batch that was merged and committed, or several that go together: each with the name of its origin. `waited_for` is what
    last kept it from that, `attempts` how often it was tried, `seconds` how long the last try took."""

    batches: tuple[tuple[str, BatchHeader], ...]
    waited_for: str | None
    attempts: int
    seconds: float
    rows: int
    conflicts: int
    parked: int


class Observer(Protocol):
    """Hears what the services have done, for whoever measures the agent. Never waits, never raises."""

    def cut(self, number: int, cut_id: UUID, seconds: float, rows: int) -> None:
        """A cut was made and committed."""

    def cut_failed(self, attempt: int, reason: str) -> None:
        """A cut could not be made, for so many times in a row."""

    def sent(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        """A batch was handed to the link with this peer."""

    def received(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        """A batch has come from this peer, in so many seconds from its first byte to its last."""

    def applied(self, merged: Merged) -> None: ...

    def refused(self, origin: str, batch: int, attempt: int, reason: str) -> None:
        """A batch, known by the last cut in it, could not be applied for so many times, and is tried again."""


class Unobserved:
    """Where nobody measures."""

    def cut(self, number: int, cut_id: UUID, seconds: float, rows: int) -> None: ...
    def cut_failed(self, attempt: int, reason: str) -> None: ...
    def sent(self, peer: str, batch: BatchHeader, seconds: float) -> None: ...
    def received(self, peer: str, batch: BatchHeader, seconds: float) -> None: ...
    def applied(self, merged: Merged) -> None: ...
    def refused(self, origin: str, batch: int, attempt: int, reason: str) -> None: ...


class HighWater(Protocol):
    """What others are told of this site, kept outside its database. Durable when a call returns; raises HomeFailed."""

    async def shipping(self, cut: int, cut_id: UUID) -> None:
        """Before a batch leaves that ends at this cut."""

    async def telling(self, term: int, vote: int, last_term: int, last: int) -> None:
        """Before a message of Raft leaves that says so much."""


class Donor(Protocol):
    """The site that rows are copied from. What it hands out is complete and verified; whoever got a spool closes it.

    Raises LinkDown and Contended, which another try may not meet, RefusedError, TrustError, DamagedFrame.
    """

    async def plan(self, *, look: bool = False) -> CopyPlan:
        """Its frontier, its tables, and how they are cut into ranges. `look`: only to compare."""

    async def rows(
        self, asked: RangeAsked, on_bytes: Callable[[int], Awaitable[None]]
    ) -> tuple[RangeHead, Spool]:
        """One range. `on_bytes` is awaited for every piece that came over the network: it may make it wait."""

    async def end(self, taken: str) -> tuple[EndHead, Spool]:
        """What else a joiner must know; asked for after the last range."""
