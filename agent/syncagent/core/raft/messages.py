"""What Raft keeps and what its sites say to each other, as values that can travel.

It exists so that log, storage and network speak of the same things and none depends on another.

Invariants: an entry is identified by index and term: two entries that agree in both are equal, and so is
all before them. A membership in an entry is the whole outcome of a change, so nobody computes it twice.
"""

from typing import Literal
from uuid import UUID

import msgspec

from syncagent.errors import ProtocolError

NOBODY = 0
"""Where a node number is expected; limits.MAX_NODE says that no site has it."""
_OVERHEAD = 64
"""About what an entry takes beside its data."""


class Membership(msgspec.Struct, frozen=True):
    """Node numbers, ascending. Learners get everything and are not asked."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        return self.voters + self.learners


class Change(msgspec.Struct, frozen=True):
    """One site becomes a voter or a learner, whatever it was before, or leaves."""

    kind: Literal["voter", "learner", "remove"]
    node: int


class Entry(msgspec.Struct, frozen=True):
    """`membership`: in force from this entry on, on whoever has it in its log. No data: a leader's first."""

    index: int
    term: int
    data: bytes = b""
    membership: Membership | None = None

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return len(self.data) + _OVERHEAD


class Snapshot(msgspec.Struct, frozen=True):
    """All that the entries up to `index` have led to. Index zero: nothing yet."""

    index: int = 0
    term: int = 0
    membership: Membership = Membership()
    data: bytes = b""


class HardState(msgspec.Struct, frozen=True):
    """What a site must never forget, else it could vote twice in one term.

    The commit index is not among it: what was applied says as much.
    """

    term: int = 0
    vote: int = NOBODY


def founded(membership: Membership, data: bytes = b"") -> Snapshot:
    """What the storage of the first sites starts from.

    Not at index zero, where an empty log is: who joins with one is told the beginning, too.
    """
    return Snapshot(index=1, term=1, membership=membership, data=data)


# ---- messages


class _Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """`term` is the sender's; in what asks for a pre-vote or grants one, the term that would come."""

    to: int
    sender: int
    term: int


class RequestVote(_Message, frozen=True):
    """`index` and `log_term` are where the sender's log ends. `pre`: would you? `handover`: a leader wants it."""

    index: int
    log_term: int
    pre: bool = False
    handover: bool = False


class Vote(_Message, frozen=True):
    granted: bool
    pre: bool = False


class Append(_Message, frozen=True):
    """Entries that follow `index`, whose term is `log_term`; none: only a question, or news of `commit`."""

    index: int
    log_term: int
    entries: tuple[Entry, ...]
    commit: int


class Appended(_Message, frozen=True):
    """The logs agree up to `index`. Rejected: not at `index`, at most up to `hint`, whose term is `hint_term`."""

    index: int
    rejected: bool = False
    hint: int = 0
    hint_term: int = 0


class Install(_Message, frozen=True):
    """The log you need is gone: start from this. Answered like an Append that ends where it does."""

    snapshot: Snapshot


class Heartbeat(_Message, frozen=True):
    """`commit` is never beyond what the receiver has said it has. `read` numbers the reads waiting so far."""

    commit: int
    read: int = 0


class Heard(_Message, frozen=True):
    """The answer to a Heartbeat, with its `read`."""

    read: int = 0


class Propose(_Message, frozen=True):
    """To the leader, who drops what it cannot take: whoever proposes waits, and tries again."""

    data: bytes
    change: Change | None = None


class AskRead(_Message, frozen=True):
    """To the leader: up to where must I have applied, so that what I read now is what everybody has seen?"""

    request: UUID


class MayRead(_Message, frozen=True):
    """The answer to an AskRead."""

    request: UUID
    index: int


class Handover(_Message, frozen=True):
    """Your log is complete: campaign now, the leader wants you to."""


Message = (
    RequestVote
    | Vote
    | Append
    | Appended
    | Install
    | Heartbeat
    | Heard
    | Propose
    | AskRead
    | MayRead
    | Handover
)

_encoder = msgspec.msgpack.Encoder()
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    try:
        return _messages.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("a message of the control plane is malformed", detail=str(error)) from error
