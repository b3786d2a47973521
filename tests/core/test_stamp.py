"""Stamps: one order everywhere, and nothing is lost on the way into a UUID and back."""

from uuid import NAMESPACE_URL, RFC_4122, UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncagent.core import stamp
from syncagent.core.stamp import MAX_HLC, MAX_NODE, MAX_TAIL, UNITS_PER_MS, ZERO, Stamp

parts = st.builds(Stamp, st.integers(0, MAX_HLC), st.integers(0, MAX_NODE), st.integers(0, MAX_TAIL))


@given(parts)
def test_unpack_is_the_inverse_of_pack(made_of: Stamp) -> None:
    packed = stamp.pack(*made_of)
    assert stamp.unpack(packed) == made_of
    assert stamp.hlc(packed) == made_of.hlc
    assert (packed.version, packed.variant) == (7, RFC_4122)


@given(parts, parts, st.booleans())
def test_stamps_compare_like_their_parts(one: Stamp, other: Stamp, same_clock: bool) -> None:
    if same_clock:
        other = other._replace(hlc=one.hlc)
    left, right = stamp.pack(*one), stamp.pack(*other)
    assert (left < right) == (one < other)
    assert (left.bytes < right.bytes) == (one < other)  # how PostgreSQL compares uuid


def test_the_counter_carries_into_the_millisecond() -> None:
    last = stamp.pack(7 * UNITS_PER_MS - 1, MAX_NODE, MAX_TAIL)
    following = stamp.pack(7 * UNITS_PER_MS, 0, 0)
    assert last < following
    assert (last.int >> 80, following.int >> 80) == (6, 7)


def test_the_time_is_where_the_rfc_puts_it() -> None:
    example = UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")  # RFC 9562, A.6: 2022-02-22 19:22:22 UTC
    assert stamp.hlc(example) // UNITS_PER_MS == 1645557742000
    assert int(stamp.to_seconds(stamp.hlc(example))) == 1645557742


@pytest.mark.parametrize(
    "made_of",
    [(-1, 0, 0), (MAX_HLC + 1, 0, 0), (0, MAX_NODE + 1, 0), (0, -1, 0), (0, 0, MAX_TAIL + 1), (0, 0, -1)],
)
def test_what_does_not_fit_is_refused(made_of: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        stamp.pack(*made_of)


@given(parts)
def test_a_key_with_a_time_is_its_own_implicit_stamp(made_of: Stamp) -> None:
    key = stamp.pack(*made_of)
    assert stamp.is_timed(key)
    assert stamp.implicit(key) == key


@pytest.mark.parametrize(
    "key",
    [
        UUID("5b3e2c1f-7a84-4c0d-9e1b-0c2d4e6f8a90"),
        uuid5(NAMESPACE_URL, "name"),
        ZERO,
        UUID(int=(1 << 128) - 1),
        UUID("017f22e2-79b0-7cc3-d8c4-dc0c0c07398f"),  # version 7, but not the RFC's variant
    ],
)
def test_a_key_without_a_time_is_below_every_stamp(key: UUID) -> None:
    assert stamp.implicit(key) == ZERO < stamp.pack(0, 0, 0)
    with pytest.raises(ValueError, match="not a UUIDv7"):
        stamp.unpack(key)


@given(st.floats(0, 4e9))
def test_seconds_survive_to_a_quarter_of_a_microsecond(seconds: float) -> None:
    assert stamp.to_seconds(stamp.from_seconds(seconds)) == pytest.approx(seconds, abs=1e-6)
