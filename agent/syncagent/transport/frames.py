"""Raw COPY bytes as frames: small, compressed where it pays, and checked one by one and as a whole.

A batch travels as header frames (its `BatchHeader`), data frames stream by stream, and one end frame
with the size of every stream and a digest over all data frames. Every frame is checked before its
payload is used for anything.

Invariant: bytes that were cut short, changed, left out, repeated or reordered anywhere in a batch raise
`DamagedFrame`, which names the batch, the stream and the frame.
"""

import sys
from collections.abc import Iterator
from struct import Struct

import xxhash

from syncagent.core import limits, wire
from syncagent.core.wire import COMPRESSED, DATA_FRAME, END_FRAME, FRAME_HEAD, HEADER_FRAME, FrameHead
from syncagent.errors import DamagedFrame, ProtocolError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_SIZE = limits.FRAME_SIZE
"""Raw bytes in a frame. Every agent accepts up to this many, whatever it sends itself."""
LARGEST_FRAME = FRAME_SIZE + FRAME_HEAD
WORTH_COMPRESSING = 1024
ZSTD_LEVEL = 1
_size = Struct("<Q")
MOST_STREAMS = FRAME_SIZE // _size.size - 1
"""So many sizes, and a digest, fit into the end frame."""


class Encoder:
    """Makes frames; holds the compressor, whose set-up would cost more than a small frame."""

    def __init__(self) -> None:
        self._zstd = zstd.ZstdCompressor(level=ZSTD_LEVEL)

    def frame(self, kind: int, stream: int, number: int, raw: bytes | bytearray | memoryview) -> bytes:
        payload, flags = raw, 0
        if len(raw) >= WORTH_COMPRESSING:
            packed = self._zstd.compress(raw, zstd.ZstdCompressor.FLUSH_FRAME)
            if len(packed) < len(raw):
                payload, flags = packed, COMPRESSED
        head = wire.pack_unsigned(kind, flags, stream, number, len(raw), len(payload))
        return b"".join((head, wire.pack_digest(_digest(head, payload)), payload))

    def header(self, header: bytes) -> Iterator[bytes]:
        """An encoded header; it grows with the cuts of a batch, so it is cut into frames like rows."""
        for number, start in enumerate(range(0, len(header), FRAME_SIZE)):
            yield self.frame(HEADER_FRAME, 0, number, header[start : start + FRAME_SIZE])

    def end(self, tally: "Tally") -> bytes:
        return self.frame(END_FRAME, len(tally.sizes), tally.frames, tally.summary())


class Tally:
    """What the data frames so far add up to: the same at both ends, or something is damaged."""

    def __init__(self) -> None:
        self.frames = 0
        self.sizes: list[int] = []
        self._digest = xxhash.xxh3_64()

    def add(self, head: FrameHead) -> None:
        self.sizes.extend([0] * (head.stream + 1 - len(self.sizes)))
        self.sizes[head.stream] += head.raw
        self.frames += 1
        self._digest.update(_size.pack(head.digest))

    def summary(self) -> bytes:
        return b"".join((self._digest.digest(), *map(_size.pack, self.sizes)))


def head_of(frame: bytes, name: str) -> FrameHead:
    """The checked head of one whole frame."""
    try:
        head = wire.unpack_head(frame)
    except ProtocolError as error:
        raise DamagedFrame(f"{name}: {error.message}", detail=error.detail) from error
    if len(frame) != FRAME_HEAD + head.length:
        raise _damaged(name, head, "it stops too early", f"{len(frame)} of {FRAME_HEAD + head.length} bytes")
    if head.digest != _digest(frame[: FRAME_HEAD - _size.size], memoryview(frame)[FRAME_HEAD:]):
        raise _damaged(name, head, "its digest does not match")
    if not 0 <= head.raw <= FRAME_SIZE:
        raise _damaged(name, head, f"it claims {head.raw} bytes, more than a frame holds")
    return head


def payload_of(frame: bytes, name: str) -> bytes:
    """The raw bytes of one whole frame, checked."""
    head = head_of(frame, name)
    if not head.flags & COMPRESSED:
        raw = frame[FRAME_HEAD:]
    else:
        unzstd = zstd.ZstdDecompressor()
        try:
            raw = unzstd.decompress(memoryview(frame)[FRAME_HEAD:], max_length=head.raw + 1)
        except zstd.ZstdError as error:
            raise _damaged(name, head, "it cannot be decompressed", str(error)) from error
    if len(raw) != head.raw:
        raise _damaged(name, head, "it has another length than it claims")
    return raw


def take(frame: bytes, tally: Tally, name: str) -> bool:
    """Check the next frame of a batch in its place and add it to the tally; True if it was the end."""
    head = head_of(frame, name)
    if head.number != tally.frames:
        raise _damaged(name, head, f"frame {tally.frames} was expected")
    if head.kind == END_FRAME:
        if payload_of(frame, name) != tally.summary():
            raise DamagedFrame(f"{name}: the batch does not add up to what its end frame says")
        return True
    if head.kind != DATA_FRAME or not len(tally.sizes) - 1 <= head.stream < MOST_STREAMS:
        raise _damaged(name, head, "it has no place here")
    tally.add(head)
    return False


def split(chunk: bytes) -> Iterator[bytes]:
    """The whole frames at the start of a chunk; a frame that is not whole is left out."""
    start = 0
    while start + FRAME_HEAD <= len(chunk):
        stop = start + FRAME_HEAD + wire.unpack_head(chunk, start).length
        if stop > len(chunk):
            return
        yield chunk[start:stop]
        start = stop


def _digest(head: bytes, payload: bytes | bytearray | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(payload, seed=xxhash.xxh3_64_intdigest(head))


def _damaged(name: str, head: FrameHead, what: str, detail: str | None = None) -> DamagedFrame:
    place = {HEADER_FRAME: "header", END_FRAME: "end"}.get(head.kind, f"stream {head.stream}")
    return DamagedFrame(f"{name}, {place}, frame {head.number}: {what}", detail=detail)
