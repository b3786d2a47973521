"""Frames: small and checked; damage of any kind is found and placed."""

import os
import random
from dataclasses import dataclass

import pytest

from syncagent.core import wire
from syncagent.core.wire import COMPRESSED, DATA_FRAME, FRAME_HEAD, HEADER_FRAME, unpack_head
from syncagent.errors import DamagedFrame
from syncagent.transport import frames
from syncagent.transport.frames import FRAME_SIZE, Encoder, Tally

ROWS = b"".join(b"%d,some text of a row,%d\n" % (number, number * 7) for number in range(4000))[:FRAME_SIZE]


def frame(raw: bytes, stream: int = 2, number: int = 7) -> bytes:
    return Encoder().frame(DATA_FRAME, stream, number, raw)


@pytest.mark.parametrize(
    ("raw", "compressed"),
    [
        (ROWS, True),
        (os.urandom(FRAME_SIZE), False),
        (b"a" * 1023, False),
        (b"a" * 1024, True),
        (b"", False),
        (os.urandom(1), False),
    ],
    ids=["rows", "noise", "short", "just long enough", "empty", "one byte"],
)
def test_compresses_only_where_it_pays(raw: bytes, compressed: bool) -> None:
    made = frame(raw)
    head = unpack_head(made)
    assert (head.stream, head.number, head.raw) == (2, 7, len(raw))
    assert bool(head.flags & COMPRESSED) == compressed
    assert len(made) <= FRAME_HEAD + len(raw)
    assert frames.payload_of(made, "b") == raw


@pytest.mark.parametrize("raw", [ROWS, b"short"], ids=["compressed", "plain"])
def test_any_flipped_bit_is_found(raw: bytes, seed: int) -> None:
    made, chance = frame(raw), random.Random(seed)
    everywhere_in_head = range(FRAME_HEAD * 8)
    for bit in [*everywhere_in_head, *(chance.randrange(len(made) * 8) for _ in range(300))]:
        bad = bytearray(made)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedFrame, match="batch 7"):
            frames.head_of(bytes(bad), "batch 7")


@pytest.mark.parametrize("raw", [ROWS, b"short"], ids=["compressed", "plain"])
def test_any_missing_or_added_byte_is_found(raw: bytes) -> None:
    made = frame(raw)
    for length in [*range(FRAME_HEAD + 3), len(made) // 2, len(made) - 1]:
        with pytest.raises(DamagedFrame, match="batch 7"):
            frames.head_of(made[:length], "batch 7")
    with pytest.raises(DamagedFrame):
        frames.head_of(made + b"x", "batch 7")


def test_a_damaged_frame_is_named() -> None:
    made = frame(ROWS)
    with pytest.raises(DamagedFrame) as caught:
        frames.head_of(made[:-1], "batch (3, 4] of node 9")
    assert caught.value.message == "batch (3, 4] of node 9, stream 2, frame 7: it stops too early"
    assert caught.value.recoverable


def packed(raw: bytes) -> bytes:
    """A zstd frame, however many bytes it holds."""
    return frames.zstd.compress(raw)  # type: ignore[attr-defined, no-any-return]


@dataclass
class Lie:
    """A frame whose digest is right and whose contents are not: what a faulty peer could send."""

    payload: bytes
    raw: int
    flags: int = COMPRESSED

    def frame(self) -> bytes:
        head = wire.pack_unsigned(DATA_FRAME, self.flags, 0, 0, self.raw, len(self.payload))
        return head + wire.pack_digest(frames._digest(head, self.payload)) + self.payload


@pytest.mark.parametrize(
    "lie",
    [
        Lie(packed(b"0" * 10_000_000), FRAME_SIZE),
        Lie(packed(ROWS), len(ROWS) - 1),
        Lie(packed(ROWS)[:-9], len(ROWS)),
        Lie(b"this is not zstd", 100),
        Lie(b"plain", 6, flags=0),
        Lie(b"", 2**32 - 1),
    ],
    ids=["bomb", "wrong length", "half", "not zstd", "plain of wrong length", "huge claim"],
)
def test_a_frame_cannot_lie_about_its_length(lie: Lie) -> None:
    with pytest.raises(DamagedFrame):
        frames.payload_of(lie.frame(), "b")


def a_batch() -> list[bytes]:
    encoder, tally = Encoder(), Tally()
    made = []
    for stream, raw in [(0, b"one"), (0, b"two"), (1, ROWS), (3, b"four")]:
        made.append(encoder.frame(DATA_FRAME, stream, tally.frames, raw))
        tally.add(unpack_head(made[-1]))
    return [*made, encoder.end(tally)]


def taken(batch: list[bytes]) -> bool:
    tally = Tally()
    return [frames.take(each, tally, "b") for each in batch][-1]


def test_a_whole_batch_is_taken() -> None:
    assert taken(a_batch())


def _without(batch: list[bytes], index: int) -> list[bytes]:
    return batch[:index] + batch[index + 1 :]


DAMAGES = {
    "first left out": lambda batch: _without(batch, 0),
    "middle left out": lambda batch: _without(batch, 2),
    "last left out": lambda batch: _without(batch, 3),
    "repeated": lambda batch: batch[:2] + batch[1:],
    "swapped": lambda batch: [batch[1], batch[0], *batch[2:]],
    "one of another batch": lambda batch: [frame(b"uno", 0, 0), *batch[1:]],
    "end of another batch": lambda batch: [*batch[:-1], Encoder().end(Tally())],
    "stream out of order": lambda batch: [*batch[:4], frame(b"x", 1, 4)],
    "stream beyond all": lambda batch: [*batch[:4], frame(b"x", frames.MOST_STREAMS, 4)],
    "header among rows": lambda batch: [*batch[:4], Encoder().frame(HEADER_FRAME, 3, 4, b"x")],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_frames_that_do_not_add_up(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(DamagedFrame):
        taken(damage(a_batch()))


def test_an_end_frame_fits_whatever_the_number_of_streams() -> None:
    tally = Tally()
    head = unpack_head(frame(b"x", frames.MOST_STREAMS - 1, 0))
    tally.add(head)
    end = Encoder().end(tally)
    assert len(frames.payload_of(end, "b")) == FRAME_SIZE


def test_split_leaves_out_what_is_not_whole() -> None:
    batch = a_batch()
    chunk = b"".join(batch)
    assert list(frames.split(chunk)) == batch
    assert list(frames.split(chunk[:-1])) == batch[:-1]
    assert list(frames.split(b"")) == []
