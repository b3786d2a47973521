"""The Merkle forest: where a row's key stands in it, and digests that add up.

A key has a *position* of 60 bits in one of two parts of its table's tree: the clock of a key with a time, or the first bits
of one without. A *bucket* is a stretch of positions of one width; a leaf is a *slice* of a bucket, the bucket halved
`depth` times. Above buckets there are days, months and years (of positions in time), the table, and the forest.

A digest is a number of rows and the sums of their fingerprints in two lanes modulo 2^64. Sums, not XOR: XOR cancels
what is there twice, and takes two pairs for each other.

Invariant: the digest of a stretch is the sum over any stretches it is made of; so trees of different depth compare, and
what is not to be compared is left out of a sum.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Literal
from uuid import UUID

import msgspec
import xxhash

from syncagent.core import stamp

SECOND = 1000 * stamp.UNITS_PER_MS
Bucket = Literal["minute", "hour", "day"]
WIDTHS: Mapping[Bucket, int] = {"minute": 60 * SECOND, "hour": 3600 * SECOND, "day": 86400 * SECOND}
"""Positions in a bucket of keys with a time."""
PREFIX_WIDTH = 1 << 52
"""The same for keys without: the first byte of the key is the bucket."""
END = 1 << 60
"""Behind the last position."""
DEEPEST = 24

_LANE = 1 << 64
_HALF = 1 << 63


def wrapped(number: int) -> int:
    """Modulo 2^64, signed, as PostgreSQL has it."""
    return (number + _HALF) % _LANE - _HALF


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """A set of rows: how many, and the sums of their fingerprints."""

    rows: int
    lane_0: int
    lane_1: int

    def plus(self, other: "Digest") -> "Digest":
        return Digest(
            self.rows + other.rows, wrapped(self.lane_0 + other.lane_0), wrapped(self.lane_1 + other.lane_1)
        )


NOTHING = Digest(0, 0, 0)


def total(digests: Iterable[Digest]) -> Digest:
    found = NOTHING
    for digest in digests:
        found = found.plus(digest)
    return found


def root(tables: Iterable[tuple[str, Digest]]) -> bytes:
    """One hash over the digests of tables, in the order of their names: what travels when nothing differs."""
    state = xxhash.xxh3_128()
    for name, digest in sorted(tables, key=lambda table: table[0]):
        state.update(msgspec.msgpack.encode((name, digest)))
    return state.digest()


# ---- positions


class Span(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Positions `low <= p < high` in one part of one table."""

    table: int
    timed: bool
    low: int
    high: int

    @property
    def width(self) -> int:
        return self.high - self.low

    def parts(self, count: int) -> Iterator["Span"]:
        """It, cut into so many pieces, or as many as there are positions."""
        count = min(count, self.width)
        bounds = [self.low + self.width * n // count for n in range(count + 1)]
        for low, high in pairwise(bounds):
            yield Span(self.table, self.timed, low, high)


def position(key: UUID) -> int:
    return stamp.hlc(key) if stamp.is_timed(key) else key.int >> 68


def first_key(position: int, *, timed: bool) -> UUID:
    """No key at this position is below it. (It need not be a key of this part itself.)"""
    if timed:
        return UUID(int=position >> 12 << 80 | 7 << 76 | (position & 0xFFF) << 64)
    return UUID(int=position << 68)


def last_key(position: int, *, timed: bool) -> UUID:
    """No key at this position is above it."""
    return UUID(int=first_key(position, timed=timed).int | (1 << (64 if timed else 68)) - 1)


# ---- buckets and slices


def width(bucket: Bucket, timed: bool) -> int:
    """Of the buckets in one part of a table."""
    return WIDTHS[bucket] if timed else PREFIX_WIDTH


def deepest(width: int) -> int:
    """How often buckets of this width can be halved."""
    return min(DEEPEST, (width & -width).bit_length() - 1)


def slice_of(position: int, width: int, depth: int) -> tuple[int, int]:
    """The bucket and the slice that a position lies in."""
    bucket, offset = divmod(position, width)
    return bucket, offset // (width >> depth)


def slice_span(table: int, timed: bool, width: int, bucket: int, depth: int, number: int) -> Span:
    size = width >> depth
    low = bucket * width + number * size
    return Span(table, timed, low, low + size)


def coarser(leaves: Mapping[int, Digest], halvings: int) -> dict[int, Digest]:
    """The same leaves of a tree that is so many halvings less deep."""
    sums: dict[int, Digest] = {}
    for number, digest in leaves.items():
        sums[number >> halvings] = sums.get(number >> halvings, NOTHING).plus(digest)
    return sums


def differing(here: Mapping[int, Digest], there: Mapping[int, Digest]) -> list[int]:
    """Where two sets of leaves, days, ... differ; what is not named is empty."""
    return sorted(n for n in here.keys() | there.keys() if here.get(n, NOTHING) != there.get(n, NOTHING))


# ---- the calendar (UTC); by arithmetic, for keys go on after the year 9999


_DAY = WIDTHS["day"]


def _day_of(year: int, month: int) -> int:
    """The first day of a month, in days since 1970; month 13 is the next January."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    shifted = year - (month <= 2)
    era, of_era = divmod(shifted, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def _month_of(day: int) -> tuple[int, int]:
    """Year and month of a day since 1970."""
    era, of_era = divmod(day + 719468, 146097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + (3 if shifted < 10 else -9)
    return year_of_era + era * 400 + (month <= 2), month


def period(level: str, position: int) -> tuple[int, int]:
    """The year, month or day that a position in time lies in: where it begins and ends."""
    day = position // _DAY
    year, month = _month_of(day)
    match level:
        case "year":
            low, high = _day_of(year, 1), _day_of(year, 13)
        case "month":
            low, high = _day_of(year, month), _day_of(year, month + 1)
        case _:
            low, high = day, day + 1
    return low * _DAY, high * _DAY
