"""Stamps: 128-bit UUIDs of version 7 that carry a hybrid logical clock, and what a key says of time.

    48 unix_ts_ms | 4 version 0111 | 12 hlc_counter | 2 variant 10 | 16 node | 46 tail

`(unix_ts_ms, hlc_counter)` is one 60-bit integer, the hlc, in units of 1/4096 ms: overflow is a carry
into the millisecond (RFC 9562 section 6.2, method 3).

Invariant: comparing stamps as 128-bit numbers compares the hlc first, then the node, then the tail; so
there is one order everywhere, PostgreSQL's `uuid` order included.
"""

from typing import NamedTuple
from uuid import UUID

ZERO = UUID(int=0)
"""The implicit stamp of a key that has no time: below every real stamp."""

UNITS_PER_MS = 4096
MAX_HLC = (1 << 60) - 1
MAX_NODE = (1 << 16) - 1
MAX_TAIL = (1 << 46) - 1

_VERSION = 7 << 76
_VARIANT = 2 << 62


class Stamp(NamedTuple):
    """The parts of a stamp, in the order in which they compare."""

    hlc: int
    node: int
    tail: int


def pack(hlc: int, node: int, tail: int) -> UUID:
    """The stamp of these parts; ValueError if one does not fit."""
    if not (0 <= hlc <= MAX_HLC and 0 <= node <= MAX_NODE and 0 <= tail <= MAX_TAIL):
        raise ValueError(f"hlc {hlc}, node {node}, tail {tail} do not fit a stamp")
    milliseconds, counter = divmod(hlc, UNITS_PER_MS)
    return UUID(int=milliseconds << 80 | _VERSION | counter << 64 | _VARIANT | node << 46 | tail)


def unpack(stamp: UUID) -> Stamp:
    """The parts of a stamp; ValueError if it is none."""
    if not is_timed(stamp):
        raise ValueError(f"{stamp} is not a UUIDv7")
    return Stamp(hlc(stamp), stamp.int >> 46 & MAX_NODE, stamp.int & MAX_TAIL)


def hlc(stamp: UUID) -> int:
    """The clock of a stamp or of a key with a time."""
    return stamp.int >> 80 << 12 | stamp.int >> 64 & 0xFFF


def is_timed(key: UUID) -> bool:
    """Does the key carry a time: version 7 and the RFC's variant."""
    return key.int >> 76 & 0xF == 7 and key.int >> 62 & 0x3 == 2


def implicit(key: UUID) -> UUID:
    """The stamp of a row that has no metadata: its key, or zero if the key has no time."""
    return key if is_timed(key) else ZERO


def from_seconds(seconds: float) -> int:
    """A wall clock time as hlc."""
    return int(seconds * 1000 * UNITS_PER_MS)


def to_seconds(hlc: int) -> float:
    """A difference of hlc, or an hlc, in seconds."""
    return hlc / (1000 * UNITS_PER_MS)
