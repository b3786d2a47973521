"""A batch on its way over a link: taken apart into frames here, put together again there.

Invariant: a batch comes out complete, verified and as announced by its header, or not at all; memory
does not grow with its rows, for they go into the spool frame by frame.
"""

import time
from collections.abc import AsyncIterator
from typing import Protocol

from syncagent.core.batch import BatchHeader
from syncagent.core.wire import HEADER_FRAME, decode_header, encode_header
from syncagent.errors import DamagedFrame, ProtocolError
from syncagent.transport import frames
from syncagent.transport.spool import FileSpool, Spools

HEADER_SIZE = 16 * 1024 * 1024
"""A header grows with the cuts in its range; past this the range must be made smaller."""


class FrameSource(Protocol):
    """What sending asks of a spool."""

    def frames(self) -> AsyncIterator[bytes]: ...
    def sizes(self) -> list[int]: ...


def name_of(header: BatchHeader) -> str:
    return f"batch ({header.after}, {header.upto}] of node {header.origin}"


async def taken_apart(header: BatchHeader, spool: FrameSource) -> AsyncIterator[bytes]:
    """The frames of a batch: its header, its rows, its end."""
    _must_agree(header, spool)
    data = encode_header(header)
    if len(data) > HEADER_SIZE:
        raise ProtocolError(
            f"{name_of(header)}: its header has {len(data)} bytes, more than {HEADER_SIZE}",
            hint="send a shorter range of cuts",
        )
    for frame in frames.Encoder().header(data):
        yield frame
    async for frame in spool.frames():
        yield frame


class Assembler:
    """Puts one batch after the other together from the frames of a data connection."""

    def __init__(self, spools: Spools, sender: str) -> None:
        self._spools = spools
        self._sender = sender
        self._data = bytearray()
        self._next = 0
        self._began = 0.0
        self._header: BatchHeader | None = None
        self._spool: FileSpool | None = None

    async def add(self, frame: bytes) -> tuple[BatchHeader, FileSpool] | None:
        """The batch, if this frame completed it; from then on the spool is the caller's."""
        if self._spool is None and self._in_header(frame):
            return None
        if self._header is None or self._spool is None:
            self._header = decode_header(bytes(self._data))
            self._spool = self._spools(f"{name_of(self._header)} from {self._sender}")
        if not await self._spool.accept(frame):
            return None
        _must_agree(self._header, self._spool)
        self._spool.took = time.monotonic() - self._began
        whole = self._header, self._spool
        self._data, self._next, self._header, self._spool = bytearray(), 0, None, None
        return whole

    def _in_header(self, frame: bytes) -> bool:
        name = f"a batch from {self._sender}"
        head = frames.head_of(frame, name)
        if head.kind != HEADER_FRAME:
            return False
        if head.number != self._next:
            raise DamagedFrame(f"{name}, header, frame {head.number}: frame {self._next} was expected")
        if self._next == 0:
            self._began = time.monotonic()
        self._next += 1
        self._data += frames.payload_of(frame, name)
        if len(self._data) > HEADER_SIZE:
            raise ProtocolError(f"{name}: its header is larger than {HEADER_SIZE} bytes")
        return True

    async def drop(self) -> None:
        """Forget the batch that is not complete."""
        if self._spool is not None:
            await self._spool.close()
            self._spool = None


def _must_agree(header: BatchHeader, spool: FrameSource) -> None:
    announced, found = [stream.size for stream in header.streams], spool.sizes()
    found += [0] * (len(announced) - len(found))  # a last stream without a byte was never written
    if announced != found:
        raise DamagedFrame(
            f"{name_of(header)}: its streams do not have the sizes in its header",
            detail=f"announced {announced[:16]}, found {found[:16]}",
        )
