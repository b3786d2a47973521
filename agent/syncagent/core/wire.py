"""What agents say to each other: control messages, and the head of a data frame.

It exists so that one place knows the bytes. Control messages are MessagePack maps with a `type`; a
field that is not known is ignored, one that is missing or of the wrong type is an error. A data frame
is a head of fixed length and a payload; `transport.frames` fills them.

Invariant: `decode(encode(m)) == m`, and bytes that are no message raise `ProtocolError`, never anything
else. Whatever the protocol number, a Hello is a map with `type` and `protocol`: that much never changes.
"""

from struct import Struct
from typing import NamedTuple
from uuid import UUID

import msgspec

from syncagent.core.attachment import Attachment, Inspected
from syncagent.core.batch import BatchHeader, Table
from syncagent.core.questions import Answer, Question
from syncagent.errors import ProtocolError

PROTOCOL = 1
"""Raised when agents of the old number could not understand, or would misread, the new ones."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first message of a link, from both sides. `session` is the link's, chosen by who dials."""

    protocol: int
    cluster: str
    node: int
    name: str
    site: UUID
    incarnation: UUID
    version: str
    session: UUID


class Ping(msgspec.Struct, frozen=True, tag=True):
    """`sent` is the sender's own clock, of any origin, in seconds; it comes back as it is."""

    sent: float


class Pong(msgspec.Struct, frozen=True, tag=True):
    """`wall` is the answerer's wall clock, in seconds since 1970."""

    sent: float
    wall: float


class Relay(msgspec.Struct, frozen=True):
    """Of an origin that I have no link with, I have applied the cuts up to `after`; `needs` as in a Want."""

    after: int
    needs: int = 0


class Want(msgspec.Struct, frozen=True, tag=True):
    """I have applied your cuts up to `after` (whose id is `after_id`): send what follows.

    `needs` is the cut that batches of others here wait for, though nobody may have written before it.
    `relay` asks for what you hold of the batches of others, too.
    """

    after: int
    after_id: UUID | None
    plain: bool
    needs: int = 0
    relay: dict[int, Relay] = {}


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A Want that cannot be served, and what to do about it."""

    code: str
    message: str
    hint: str | None = None


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Gossip for `status`, `wait` and who joins; stability never rests on it.

    `epoch`: the catalog this site works by; `attached`: the one whose tables it has attached, `trouble` what keeps
    it from that. `steady`: its agent runs for good, not only until it has joined. `links` are the nodes it has links with, so
    that whoever has none with one of them knows whom to send a Letter through. `schema`: the epoch of its schema; None: its agent
    knows of none.
    """

    frontier: dict[int, int]
    parked: int
    waiting: str | None = None
    epoch: int = 0
    attached: int = 0
    trouble: str | None = None
    steady: bool = True
    links: tuple[int, ...] = ()
    schema: int | None = None


class Mark(msgspec.Struct, frozen=True, tag=True):
    """Cut what is committed, and tell me your frontier."""

    request: UUID


class Marked(msgspec.Struct, frozen=True, tag=True):
    """The answer to a Mark."""

    request: UUID
    frontier: dict[int, int]


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Could you attach these tables?"""

    request: UUID
    attachments: tuple[Attachment, ...]


class Report(msgspec.Struct, frozen=True, tag=True):
    """The answer to an Inspect; or why there is none."""

    request: UUID
    found: tuple[Inspected, ...] = ()
    error: str | None = None


class Compare(msgspec.Struct, frozen=True, tag=True):
    """A question about the forest, of one comparison; without one, the comparison is over."""

    request: UUID
    question: Question | None


class Compared(msgspec.Struct, frozen=True, tag=True):
    """The answer to a Compare; or why there is none."""

    request: UUID
    answer: Answer | None
    error: str | None = None


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Send me a listing of these keys of a table; or, as an answer, why there is none."""

    request: UUID
    table: Table
    keys: tuple[UUID, ...]
    refusal: str | None = None


class Look(msgspec.Struct, frozen=True, tag=True):
    """Compare yourself with me soon, and repair what differs. `whole`: the newest rows, too; `trusted`: rows that somebody has
    said are right here, where none is newer."""

    whole: bool
    trusted: tuple[tuple[Table, UUID], ...]


class Ballot(msgspec.Struct, frozen=True, tag=True):
    """A message of Raft, as `core.raft.messages` writes it."""

    data: bytes


class Letter(msgspec.Struct, frozen=True, tag=True):
    """A message for a site that the sender has no link with, through a peer that has one; `data` is the message.

    It goes through one peer, and what belongs to a link (wants, refusals, batches) never travels so.
    """

    source: int
    target: int
    data: bytes


class Bye(msgspec.Struct, frozen=True, tag=True):
    """The last message of a link: why its sender ends it."""

    reason: str


Message = (
    Hello
    | Ping
    | Pong
    | Want
    | Refused
    | Progress
    | Mark
    | Marked
    | Ballot
    | Inspect
    | Report
    | Compare
    | Compared
    | Fetch
    | Look
    | Letter
    | Bye
)


class _Greeting(msgspec.Struct):
    type: str
    protocol: int


_encoder = msgspec.msgpack.Encoder()
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_headers = msgspec.msgpack.Decoder(BatchHeader)
_greetings = msgspec.msgpack.Decoder(_Greeting)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    try:
        return _messages.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("a control message is malformed", detail=str(error)) from error


def greeting(data: bytes) -> int | None:
    """The protocol number, if this is a Hello of any protocol: asked before `decode` may fail on it."""
    try:
        said = _greetings.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return said.protocol if said.type == Hello.__name__ else None


def encode_header(header: BatchHeader) -> bytes:
    return _encoder.encode(header)


def decode_header(data: bytes) -> BatchHeader:
    try:
        return _headers.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("a batch header is malformed", detail=str(error)) from error


class FrameHead(NamedTuple):
    """What stands before a frame's payload.

    `number` counts the frames of its kind in the batch; `raw` is the payload's length once it is
    decompressed, `length` as it travels; `digest` covers the other fields and the payload.
    """

    kind: int
    flags: int
    stream: int
    number: int
    raw: int
    length: int
    digest: int


HEADER_FRAME, DATA_FRAME, END_FRAME = 1, 2, 3
COMPRESSED = 1
"""In `flags`: the payload is one zstd frame."""

_digested = Struct("<BBxxIIII")
_digest = Struct("<Q")
FRAME_HEAD = _digested.size + _digest.size


def pack_unsigned(kind: int, flags: int, stream: int, number: int, raw: int, length: int) -> bytes:
    """The fields of a frame's head that its digest covers."""
    return _digested.pack(kind, flags, stream, number, raw, length)


def pack_digest(digest: int) -> bytes:
    return _digest.pack(digest)


def unpack_head(data: bytes, offset: int = 0) -> FrameHead:
    """Raises ProtocolError if fewer than FRAME_HEAD bytes are left."""
    if len(data) - offset < FRAME_HEAD:
        raise ProtocolError("a frame is shorter than its head", detail=f"{len(data) - offset} bytes")
    return FrameHead(
        *_digested.unpack_from(data, offset), *_digest.unpack_from(data, offset + _digested.size)
    )
