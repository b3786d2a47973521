"""Batches between the database and the links: in memory while small, in a nameless file when not.

A spool keeps a batch as the frames that travel, so one COPY serves every peer and a received batch is
stored as it came. Frames gather in memory; past the limit they move to the file, all at once, so memory
is the write buffer and nothing is held twice. Disk I/O happens in a thread.

Invariant: memory per spool stays below its limit plus a few frames, disk of all spools together below
theirs, and the file is gone when the process is, however that ends.
"""

import asyncio
import errno
import os
import tempfile
import threading
from bisect import bisect_left
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path

from syncagent.core import limits
from syncagent.core.wire import DATA_FRAME, unpack_head
from syncagent.errors import DamagedFrame, SpoolFull, SyncagentError
from syncagent.transport import frames
from syncagent.transport.frames import FRAME_SIZE

MEMORY = limits.SPOOL_MEMORY
DISK = 16 * 1024 * 1024 * 1024
READ_SIZE = 1024 * 1024
"""Read ahead, per reader; several frames, so that a thread is worth its start."""


class Spools:
    """Makes the spools of one agent and keeps count of the disk they use together."""

    def __init__(
        self, directory: Path, *, memory: int = MEMORY, disk: int = DISK, frame_size: int = FRAME_SIZE
    ) -> None:
        if not 1 <= frame_size <= FRAME_SIZE:
            raise ValueError(f"frame_size must be 1 .. {FRAME_SIZE}")
        self.directory = directory
        self.memory = memory
        self.disk = disk
        self.frame_size = frame_size
        self.used = 0

    def __call__(self, name: str) -> "FileSpool":
        return FileSpool(name, self)

    def reserve(self, size: int, name: str) -> None:
        if self.used + size > self.disk:
            raise SpoolFull(
                f"{name}: batches on their way would take more than {self.disk} bytes of disk",
                detail=f"{self.used} bytes are in use in {self.directory}",
                hint="see 'syncagent status' for a peer or a database that is slow, or raise the spool limit",
            )
        self.used += size

    def release(self, size: int) -> None:
        self.used -= size


class FileSpool:
    """One batch. See `core.ports.Spool`."""

    def __init__(self, name: str, owner: Spools) -> None:
        self.name = name
        self.took = 0.0
        self._owner = owner
        self._encoder = frames.Encoder()
        self._tally = frames.Tally()
        self._stream = 0
        self._partial = bytearray()
        self._starts: list[int] = []  # where each stream begins, counted in bytes of frames
        self._pending: list[bytes] = []  # the frames from _on_disk on
        self._offsets: list[int] = []  # where each of them begins
        self._end = 0
        self._on_disk = 0
        self._reserved = 0
        self._file: FileIO | None = None
        self._lock = threading.Lock()  # no thread uses the file while another one closes it
        self._sealed = False
        self._closed = False

    # ---- writing

    async def write(self, stream: int, data: bytes) -> None:
        self._must_be(sealed=False)
        if stream != self._stream:
            if not self._stream < stream < frames.MOST_STREAMS:
                raise ValueError(f"{self.name}: stream {stream} after stream {self._stream}")
            await self._finish_frame()
            self._stream = stream
        rest, size = memoryview(data), self._owner.frame_size
        if self._partial:
            missing = size - len(self._partial)
            self._partial += rest[:missing]
            rest = rest[missing:]
            if len(self._partial) == size:
                await self._finish_frame()
        while len(rest) >= size:
            await self._add_raw(rest[:size])
            rest = rest[size:]
        self._partial += rest

    async def seal(self) -> None:
        self._must_be(sealed=False)
        await self._finish_frame()
        self._seal(self._encoder.end(self._tally))

    async def accept(self, frame: bytes) -> bool:
        """The next frame as it came from a peer; True if that completed and sealed the batch."""
        self._must_be(sealed=False)
        if frames.take(frame, self._tally, self.name):
            self._seal(frame)
            return True
        await self._add(frame)
        return False

    async def _finish_frame(self) -> None:
        if self._partial:
            raw, self._partial = self._partial, bytearray()
            await self._add_raw(raw)

    async def _add_raw(self, raw: bytearray | memoryview) -> None:
        frame = self._encoder.frame(DATA_FRAME, self._stream, self._tally.frames, raw)
        self._tally.add(unpack_head(frame))
        await self._add(frame)

    async def _add(self, frame: bytes) -> None:
        self._starts.extend([self._end] * (len(self._tally.sizes) - len(self._starts)))
        self._append(frame)
        size = self._end - self._on_disk
        if size <= self._owner.memory:
            return
        self._owner.reserve(size, self.name)
        self._reserved += size
        await asyncio.to_thread(self._spill)
        self._pending.clear()
        self._offsets.clear()
        self._on_disk = self._end

    def _append(self, frame: bytes) -> None:
        self._pending.append(frame)
        self._offsets.append(self._end)
        self._end += len(frame)

    def _seal(self, end: bytes) -> None:
        self._starts.append(self._end)
        self._append(end)
        self._sealed = True

    # ---- reading

    async def read(self, stream: int) -> AsyncIterator[bytes]:
        self._must_be(sealed=True)
        if stream < len(self._tally.sizes):
            async for frame in self._between(self._starts[stream], self._starts[stream + 1]):
                yield frames.payload_of(frame, self.name)

    async def frames(self) -> AsyncIterator[bytes]:
        self._must_be(sealed=True)
        async for frame in self._between(0, self._end):
            frames.head_of(frame, self.name)
            yield frame

    def sizes(self) -> list[int]:
        return list(self._tally.sizes)

    async def _between(self, start: int, stop: int) -> AsyncIterator[bytes]:
        while start < min(stop, self._on_disk):
            size = min(READ_SIZE, min(stop, self._on_disk) - start)
            chunk = await asyncio.to_thread(self._read_file, start, size)
            before = start
            for frame in frames.split(chunk):
                start += len(frame)
                yield frame
            if start == before:
                raise DamagedFrame(f"{self.name}: the spool file is damaged at byte {start}")
        for index in range(bisect_left(self._offsets, start), len(self._pending)):
            if self._offsets[index] >= stop:
                return
            yield self._pending[index]

    # ---- the file: these run in threads

    def _spill(self) -> None:
        with self._lock:
            if self._closed:
                return  # the writer was cancelled, and its thread began only after the end
            try:
                if self._file is None:
                    self._file = _nameless(self._owner.directory)
                for frame in self._pending:
                    rest = memoryview(frame)
                    while rest:
                        rest = rest[self._file.write(rest) :]
            except OSError as error:
                raise self._explained(error) from error

    def _read_file(self, start: int, size: int) -> bytes:
        with self._lock:
            if self._file is None:
                raise RuntimeError(f"{self.name}: read after close")
            return os.pread(self._file.fileno(), size, start)

    def _close_file(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _explained(self, error: OSError) -> SyncagentError:
        place = self._owner.directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return SpoolFull(
                f"{self.name}: no space left in {place}",
                hint="free some disk space there; the batch is tried again by itself",
            )
        return SyncagentError(
            f"{self.name}: cannot write in {place}",
            detail=error.strerror,
            hint="the directory must exist and belong to the agent's user",
        )

    # ---- the end

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pending.clear()
        self._offsets.clear()
        self._owner.release(self._reserved)
        if self._reserved:  # a thread was at the file, or still is
            closing = asyncio.get_running_loop().run_in_executor(None, self._close_file)
            await asyncio.shield(closing)  # most are closed by a task that is being cancelled

    def _must_be(self, *, sealed: bool) -> None:
        if self._closed:
            raise RuntimeError(f"{self.name}: the spool is closed")
        if self._sealed != sealed:
            raise RuntimeError(f"{self.name}: the spool is {'not ' if sealed else 'already '}sealed")


def _nameless(directory: Path) -> FileIO:
    """A file, 0600, that no name leads to: opened without one where the kernel can, else unlinked at once."""
    file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (the spool closes it)
    assert isinstance(file, FileIO)
    return file
