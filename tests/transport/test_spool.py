"""Spools: what was written is read, however large, however often; memory and disk stay within limits."""

import asyncio
import os
import stat
import tracemalloc
from io import FileIO
from pathlib import Path

import pytest

from syncagent.core import ports
from syncagent.errors import DamagedFrame, SpoolFull, SyncagentError
from syncagent.transport import spool as spool_module
from syncagent.transport.frames import FRAME_SIZE
from syncagent.transport.spool import FileSpool, Spools
from tests.transport.sites import filled, read_all

MIB = 1024 * 1024
ROW = b"0190c6b4-3c2a-7000-8000-%012d|some text that compresses|%d\n"


@pytest.fixture
def spools(tmp_path: Path) -> Spools:
    return Spools(tmp_path, memory=MIB)


def rows(size: int) -> bytes:
    return b"".join(ROW % (number, number) for number in range(size // 70))


def test_it_is_what_the_services_expect(spools: Spools) -> None:
    factory: ports.SpoolFactory = spools
    spool: ports.Spool = factory("batch")
    assert spool.sizes() == []


@pytest.mark.parametrize(
    "sizes",
    [[0], [1], [FRAME_SIZE], [FRAME_SIZE + 1], [10, 20, 30], [3 * MIB], [5, 3 * MIB, 7, 2 * MIB], []],
    ids=str,
)
@pytest.mark.parametrize("piece", [7000, FRAME_SIZE, 5 * FRAME_SIZE + 3])
async def test_what_was_written_is_read(spools: Spools, sizes: list[int], piece: int) -> None:
    contents = [os.urandom(size // 2) + rows(size - size // 2) for size in sizes]
    pieces = [[data[at : at + piece] for at in range(0, len(data) or 1, piece)] for data in contents]
    spool = await filled(spools, pieces)
    assert spool.sizes() == [len(data) for data in contents if data]
    for stream, data in enumerate(contents):
        assert await read_all(spool.read(stream)) == data
    assert await read_all(spool.read(len(sizes))) == b""
    await spool.close()


async def test_a_copy_made_of_frames_is_equal(spools: Spools) -> None:
    contents = [os.urandom(2 * MIB), rows(3 * MIB), b"end"]
    spool = await filled(spools, [[data] for data in contents])
    copy = spools("copy")
    complete = [await copy.accept(frame) async for frame in spool.frames()]
    assert complete == [False] * (len(complete) - 1) + [True]
    assert copy.sizes() == spool.sizes()
    for stream, data in enumerate(contents):
        assert await read_all(copy.read(stream)) == data
    assert await read_all(copy.frames()) == await read_all(spool.frames())
    await spool.close()
    await copy.close()


async def test_many_read_at_once(spools: Spools) -> None:
    contents = [os.urandom(3 * MIB), rows(MIB)]
    spool = await filled(spools, [[data] for data in contents])
    readers = [read_all(spool.read(stream)) for stream in (0, 1) for _ in range(4)]
    travelling = [read_all(spool.frames()) for _ in range(3)]
    everything = await asyncio.gather(*readers, *travelling)
    assert everything[:8] == [contents[0]] * 4 + [contents[1]] * 4
    assert len(set(everything[8:])) == 1
    await spool.close()


async def test_memory_stays_bounded(tmp_path: Path) -> None:
    spools = Spools(tmp_path)
    block = os.urandom(MIB)
    tracemalloc.start()
    try:
        spool = spools("large")
        for _ in range(64):
            await spool.write(0, block)
        await spool.seal()
        read = 0
        async for piece in spool.read(0):
            read += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == 64 * MIB
    assert peak < spools.memory + 4 * MIB
    await spool.close()


async def test_the_file_has_no_name_and_belongs_to_us_alone(spools: Spools, tmp_path: Path) -> None:
    spool = await filled(spools, [[os.urandom(3 * MIB)]])
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []
    assert isinstance(spool._file, FileIO)
    here = await asyncio.to_thread(tmp_path.stat)
    status = os.fstat(spool._file.fileno())
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert (status.st_nlink, status.st_dev) == (0, here.st_dev)
    await spool.close()


async def test_the_disk_limit_holds_for_all_together(tmp_path: Path) -> None:
    spools = Spools(tmp_path, memory=MIB, disk=4 * MIB)
    first = await filled(spools, [[os.urandom(3 * MIB)]])
    assert 2 * MIB < spools.used <= 4 * MIB
    second = spools("batch (4, 5] of node 2")
    with pytest.raises(SpoolFull, match=r"batch \(4, 5\] of node 2") as caught:
        await second.write(0, os.urandom(3 * MIB))
    assert caught.value.hint is not None
    assert caught.value.recoverable
    await second.close()
    await first.close()
    await first.close()
    assert spools.used == 0
    third = await filled(spools, [[os.urandom(3 * MIB)]])
    await third.close()


async def test_a_full_disk_says_so(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_nameless", lambda _directory: FileIO("/dev/full", "r+"))
    spool = spools("batch")
    with pytest.raises(SpoolFull, match="no space left") as caught:
        await spool.write(0, os.urandom(2 * MIB))
    assert str(spools.directory) in caught.value.message
    assert caught.value.hint is not None
    await spool.close()
    assert spools.used == 0


async def test_a_missing_directory_says_so(tmp_path: Path) -> None:
    spool = Spools(tmp_path / "gone", memory=MIB)("batch")
    with pytest.raises(SyncagentError, match="cannot write in") as caught:
        await spool.write(0, os.urandom(2 * MIB))
    assert caught.value.hint is not None
    await spool.close()


@pytest.mark.parametrize("place", [10, MIB, 2 * MIB + 5])
async def test_a_file_that_was_changed_is_found(spools: Spools, place: int) -> None:
    spool = await filled(spools, [[os.urandom(3 * MIB)]], "batch (1, 2] of node 1")
    _overwrite(spool, place)
    for source in (spool.read(0), spool.frames()):
        with pytest.raises(DamagedFrame, match=r"batch \(1, 2\] of node 1"):
            await read_all(source)
    await spool.close()


async def test_a_file_that_was_cut_short_is_found(spools: Spools) -> None:
    spool = await filled(spools, [[os.urandom(3 * MIB)]], "batch (1, 2] of node 1")
    assert spool._file is not None
    spool._file.truncate(MIB)
    for source in (spool.read(0), spool.frames()):
        with pytest.raises(DamagedFrame, match=r"batch \(1, 2\] of node 1"):
            await read_all(source)
    await spool.close()


def _overwrite(spool: FileSpool, place: int) -> None:
    assert spool._file is not None
    before = os.pread(spool._file.fileno(), 1, place)
    os.pwrite(spool._file.fileno(), bytes([before[0] ^ 8]), place)


async def test_its_rules_are_enforced(spools: Spools) -> None:
    spool = spools("batch")
    with pytest.raises(RuntimeError, match="not sealed"):
        await read_all(spool.read(0))
    await spool.write(2, b"x")
    with pytest.raises(ValueError, match="stream 1 after stream 2"):
        await spool.write(1, b"x")
    await spool.seal()
    assert spool.sizes() == [0, 0, 1]
    with pytest.raises(RuntimeError, match="already sealed"):
        await spool.write(2, b"x")
    await spool.close()
    with pytest.raises(RuntimeError, match="closed"):
        await read_all(spool.read(0))


async def test_a_thread_that_comes_late_opens_nothing(spools: Spools) -> None:
    """A writer that is cancelled at the disk leaves its thread behind, which may begin after the end."""
    spool = spools("batch")
    await spool.write(0, os.urandom(MIB))
    await spool.close()
    spool._spill()
    assert spool._file is None


async def test_a_close_that_is_cancelled_closes_all_the_same(spools: Spools) -> None:
    spool = await filled(spools, [[os.urandom(3 * MIB)]])
    file = spool._file
    assert file is not None
    closer = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    closer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closer
    await asyncio.to_thread(spool._close_file)  # waits for the thread that is at it
    assert file.closed
    assert spools.used == 0
