"""Links over real TLS: batches and messages both ways, bounded memory, and every way a link can end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest

from syncagent.core.batch import BatchHeader
from syncagent.core.wire import Mark, Message, Progress, Refused, Want
from syncagent.errors import DamagedFrame, LinkDown, ProtocolError
from syncagent.transport import assembly
from syncagent.transport.links import UNREAD_MESSAGES, Limits, PeerLink
from syncagent.transport.spool import FileSpool, Spools
from tests.support.proxy import Direction, Proxy
from tests.support.waiting import eventually
from tests.transport.sites import PATIENCE, QUICK, Site, filled, header, linked, read_all

MIB = 1024 * 1024
ID = UUID(int=7)


async def next_of(source: AsyncIterator[Message]) -> Message:
    async with asyncio.timeout(PATIENCE):
        return await anext(source)


async def next_batch(link: PeerLink) -> tuple[BatchHeader, list[bytes]]:
    """The next batch, read to its end."""
    async with asyncio.timeout(PATIENCE):
        received, spool = await anext(link.batches())
        try:
            return received, [await read_all(spool.read(number)) for number in range(len(received.streams))]
        finally:
            await spool.close()


async def send(site: Site, link: PeerLink, *streams: bytes, upto: int = 1) -> BatchHeader:
    spool = await filled(site.spools, [[data] for data in streams])
    sent = header(site.node, *map(len, streams), upto=upto)
    try:
        async with asyncio.timeout(PATIENCE):
            await link.send_batch(sent, spool)
    finally:
        await spool.close()
    return sent


@asynccontextmanager
async def proxied(low: Site, high: Site) -> AsyncIterator[tuple[PeerLink, PeerLink, Proxy]]:
    """Two sites with a bad network between them; `low` dials."""
    await high.start(low.peer())
    assert high.network.port is not None
    async with Proxy(high.network.port) as proxy:
        await low.start(high.peer(proxy.address))
        yield await low.link(), await high.link(), proxy
        await asyncio.gather(low.stop(), high.stop())


# ---- what a link carries


async def test_messages_go_both_ways(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    assert (there.peer.name, back.peer.name) == ("high", "low")
    assert there.hello.site == high.hello.site
    assert back.hello.incarnation == low.hello.incarnation
    said: list[Message] = [Want(3, ID, plain=True), Refused("x", "no", "yes"), Progress({1: 2}, 0), Mark(ID)]
    for sender, receiver in (there, back), (back, there):
        for message in said:
            await sender.send(message)
        heard = receiver.messages()
        assert [await next_of(heard) for _ in said] == said


@pytest.mark.parametrize("sizes", [(0,), (100,), (7, 9, 11), (3 * MIB, 20), (8 * MIB, 8 * MIB)], ids=str)
async def test_batches_go_both_ways_at_the_same_time(low: Site, high: Site, sizes: tuple[int, ...]) -> None:
    links = await linked(low, high)
    streams = [os.urandom(size // 2) + bytes(size - size // 2) for size in sizes]
    sent = await asyncio.gather(
        send(low, links[0], *streams), send(high, links[1], *reversed(streams), upto=5),
        next_batch(links[1]), next_batch(links[0]),
    )  # fmt: skip
    assert sent[2] == (sent[0], streams)
    assert sent[3] == (sent[1], list(reversed(streams)))


async def test_one_spool_serves_many_and_batches_keep_their_order(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    data = os.urandom(MIB)
    spool = await filled(low.spools, [[data]])
    headers = [header(1, MIB, upto=upto) for upto in range(1, 6)]
    sending = asyncio.gather(*(there.send_batch(each, spool) for each in headers))
    for expected in headers:
        assert await next_batch(back) == (expected, [data])
    await sending
    await spool.close()


async def test_a_header_may_be_large_but_not_endless(
    low: Site, high: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of a hundred thousand cuts: its contexts alone are megabytes."""
    there, back = await linked(low, high)
    spool = await filled(low.spools, [[b"row"]])
    large = header(1, 3, upto=100_000, contexts=100_000)
    await asyncio.gather(there.send_batch(large, spool), arrival := asyncio.create_task(next_batch(back)))
    assert arrival.result()[0] == large
    monkeypatch.setattr(assembly, "HEADER_SIZE", MIB)
    with pytest.raises(ProtocolError, match="more than 1048576"):
        await there.send_batch(large, spool)
    assert there.open
    await spool.close()


async def test_a_batch_that_is_not_as_announced_is_not_sent(low: Site, high: Site) -> None:
    there, _ = await linked(low, high)
    spool = await filled(low.spools, [[b"row"]])
    with pytest.raises(DamagedFrame, match="sizes in its header"):
        await there.send_batch(header(1, 4), spool)
    assert there.open
    await spool.close()


async def test_pings_measure_the_way_and_the_clocks(low: Site, high: Site) -> None:
    async with proxied(low, high) as (there, back, proxy):
        proxy.delay = 0.05

        async def measured() -> bool:
            return all((link.rtt or 0) >= 0.1 for link in (there, back))

        await eventually(measured, "a round trip takes twice the delay")
        for link in (there, back):
            assert link.clock_offset is not None
            assert abs(link.clock_offset) < 0.1


# ---- bounds


async def test_a_slow_peer_slows_down_nobody_else(
    low: Site, high: Site, make_site: Callable[[str, int], Site]
) -> None:
    third = make_site("third", 3)
    await third.start(low.peer())
    await high.start(low.peer())
    assert high.network.port is not None
    async with Proxy(high.network.port) as proxy:
        await low.start(high.peer(proxy.address), third.peer(third.address))
        links = {link.peer.name: link for link in (await low.link(), await low.link())}
        receiver = await third.link()
        proxy.stop("there")
        stuck = asyncio.create_task(send(low, links["high"], os.urandom(8 * MIB)))
        for upto in range(1, 4):
            await asyncio.gather(send(low, links["third"], bytes(MIB), upto=upto), next_batch(receiver))
        assert not stuck.done()
        proxy.resume()
        await stuck
        await asyncio.gather(low.stop(), third.stop(), high.stop())


async def test_a_limited_rate_holds_back_rows_and_nothing_else(low: Site, high: Site) -> None:
    """Control does not wait behind it; without it, the same bytes pass at once; a link that ends ends the wait."""
    low.limits = QUICK._replace(rates={"high": 500_000.0})
    mine, theirs = await linked(low, high)
    clock = asyncio.get_running_loop().time
    began = clock()
    sending = asyncio.create_task(send(low, mine, os.urandom(MIB)))
    receiving = asyncio.create_task(next_batch(theirs))
    for number in range(5):
        await mine.send(Mark(UUID(int=number)))
        await next_of(theirs.messages())
    assert not sending.done()
    await asyncio.gather(sending, receiving)
    assert clock() - began > 0.9 * MIB / 500_000
    await asyncio.gather(send(high, theirs, os.urandom(8 * MIB)), next_batch(mine))
    stuck = asyncio.create_task(send(low, mine, os.urandom(32 * MIB), upto=2))
    await mine.send(Mark(ID))
    await next_of(theirs.messages())
    await mine.close("enough")
    with pytest.raises(LinkDown):
        await stuck


async def test_unread_messages_wait_at_the_sender(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    many = UNREAD_MESSAGES * 20
    sender = asyncio.create_task(_say(there, many))

    async def full() -> bool:
        return back._inbox.full()

    await eventually(full, "the queue is full")
    assert not sender.done()
    heard = back.messages()
    for number in range(many):
        message = await next_of(heard)
        assert isinstance(message, Refused)
        assert message.code == str(number)
    await sender


async def _say(link: PeerLink, many: int) -> None:
    for number in range(many):
        await link.send(Refused(str(number), "x" * 2000))


async def test_a_message_too_large_is_not_sent(low: Site, high: Site) -> None:
    there, _ = await linked(low, high)
    with pytest.raises(ProtocolError, match="too large"):
        await there.send(Refused("x", "y" * 5 * MIB))
    assert there.open


async def test_a_message_too_large_ends_the_link(low: Site, high: Site) -> None:
    low.limits = Limits(message_size=8 * MIB)
    there, _ = await linked(low, high)
    await there.send(Refused("x", "y" * 5 * MIB))
    _, error = await high.trouble()
    assert isinstance(error, ProtocolError)
    assert "sent what is no message" in error.message


async def test_memory_does_not_grow_with_the_batch(tmp_path: Path) -> None:
    """300 MB from one site to another in one process, which grows by a few megabytes."""
    program = [sys.executable, "-m", "tests.transport.large_batch", str(tmp_path), "300"]
    done = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 48


# ---- how a link ends


async def test_a_link_cut_in_the_middle_of_a_batch_leaves_nothing(low: Site, high: Site) -> None:
    high.spools = Spools(high.home, memory=MIB)
    async with proxied(low, high) as (there, back, proxy):
        batches = back.batches()
        waiting = asyncio.ensure_future(anext(batches))
        proxy.rate = 50 * MIB
        sending = asyncio.create_task(send(low, there, os.urandom(64 * MIB)))
        await proxy.passed(8 * MIB, "there")
        assert high.spools.used > 0
        await proxy.cut()
        with pytest.raises(LinkDown):
            await sending
        with pytest.raises(StopAsyncIteration):
            await waiting
        with pytest.raises(StopAsyncIteration):
            await anext(batches)
        await back.ended.wait()
        assert high.spools.used == 0
        proxy.rate = None
        again, anew = await low.link(), await high.link()
        await asyncio.gather(send(low, again, b"once more"), next_batch(anew))


async def test_an_unfinished_batch_ends_the_link(low: Site, high: Site) -> None:
    """After half a batch nobody could tell where the next one begins."""
    async with proxied(low, high) as (there, back, proxy):
        proxy.rate = 50 * MIB
        sending = asyncio.create_task(send(low, there, os.urandom(64 * MIB)))
        await proxy.passed(2 * MIB, "there")
        proxy.rate = None
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await back.ended.wait()
        _, error = await high.trouble(LinkDown)
        assert "batch (0, 1] of node 1 was not sent to its end" in str(error)


async def test_a_spool_that_got_damaged_is_not_sent_to_its_end(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    spool = await filled(low.spools, [[os.urandom(2 * MIB)]])
    spool._pending[3] = spool._pending[3][:-1]
    with pytest.raises(DamagedFrame, match="stream 0, frame 3: it stops too early"):
        await there.send_batch(header(1, 2 * MIB), spool)
    await back.ended.wait()
    await spool.close()


class Corrupting(FileSpool):
    """Flips a bit of frame 3 on its way out."""

    async def frames(self) -> AsyncIterator[bytes]:
        number = 0
        async for frame in super().frames():
            yield frame if number != 3 else frame[:-1] + bytes([frame[-1] ^ 1])
            number += 1


async def test_damage_on_the_way_ends_the_link_and_is_named(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    spool = Corrupting("batch", low.spools)
    await spool.write(0, os.urandom(2 * MIB))
    await spool.seal()
    with suppress(LinkDown):  # the last bytes may have been in the socket already
        await there.send_batch(header(1, 2 * MIB), spool)
    _, error = await high.trouble(DamagedFrame)
    assert error.message == "batch (0, 1] of node 1 from low, stream 0, frame 3: its digest does not match"
    _, told = await low.trouble(LinkDown)
    assert error.message in str(told)
    assert back._batches.qsize() == 1  # the mark of the end
    await spool.close()


@pytest.mark.parametrize("direction", ["there", "back"])
async def test_a_bit_that_arrives_wrong_ends_the_link(low: Site, high: Site, direction: Direction) -> None:
    """Who gets it says what was wrong with it; the next link carries the batch."""
    async with proxied(low, high) as (mine, theirs, proxy):
        proxy.damage(direction)
        sites = (low, high) if direction == "there" else (high, low)
        with suppress(LinkDown):
            await send(sites[0], mine if direction == "there" else theirs, os.urandom(MIB))
        _, error = await sites[1].trouble(LinkDown)
        assert error.message == f"the connection with site {sites[0].name} was lost"
        assert error.detail is not None
        assert error.detail.startswith("bytes did not arrive as they were sent: ")
        assert error.hint
        again = {site.name: await site.link() for site in sites}
        sending = send(sites[0], again[sites[0].name], bytes(MIB))
        await asyncio.gather(sending, next_batch(again[sites[1].name]))


async def test_a_batch_that_is_not_as_announced_is_not_taken(low: Site, high: Site) -> None:
    class Boasting(FileSpool):
        def sizes(self) -> list[int]:
            return [4]

    there, _ = await linked(low, high)
    spool = Boasting("batch", low.spools)
    await spool.write(0, b"row")
    await spool.seal()
    await there.send_batch(header(1, 4), spool)
    _, error = await high.trouble(DamagedFrame)
    assert error.detail == "announced [4], found [3]"
    await spool.close()


@pytest.mark.parametrize("connection", ["control", "data"])
@pytest.mark.parametrize("text", [False, True], ids=["bytes", "text"])
async def test_nonsense_ends_the_link(low: Site, high: Site, connection: str, text: bool) -> None:
    there, back = await linked(low, high)
    socket = there._control if connection == "control" else there._data.result()
    if text:
        await socket.send_str("hello?")
    else:
        await socket.send_bytes(b"\xc1" * 50)
    _, error = await high.trouble(ProtocolError)
    await back.ended.wait()
    _, told = await low.trouble(LinkDown)
    assert error.message in str(told)


async def test_no_room_for_a_batch_is_said_to_both(low: Site, high: Site) -> None:
    high.spools = Spools(high.home, memory=MIB, disk=2 * MIB)
    there, _ = await linked(low, high)
    spool = await filled(low.spools, [[os.urandom(8 * MIB)]])
    with suppress(LinkDown):  # the last bytes may have been in the socket already
        await there.send_batch(header(1, 8 * MIB), spool)
    await spool.close()
    _, error = await high.trouble()
    assert "more than 2097152 bytes of disk" in error.message
    _, told = await low.trouble()
    assert "more than 2097152 bytes of disk" in str(told)


async def test_unread_batches_are_closed_with_the_link(low: Site, high: Site) -> None:
    high.spools = Spools(high.home, memory=MIB)
    there, back = await linked(low, high)
    for upto in (1, 2):
        await send(low, there, os.urandom(3 * MIB), upto=upto)

    async def arrived() -> bool:
        return back._batches.qsize() == 2

    await eventually(arrived, "two batches are there")
    assert high.spools.used > 4 * MIB
    await low.stop()
    await back.ended.wait()
    assert high.spools.used == 0


async def test_an_ended_link_says_so(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    heard = [message async for message in _until_closed(there)]
    assert heard == []
    spool = await filled(low.spools, [[b"row"]])
    with pytest.raises(LinkDown, match="has ended"):
        await there.send(Mark(ID))
    with pytest.raises(LinkDown, match="has ended"):
        await there.send_batch(header(1, 3), spool)
    await spool.close()
    await back.ended.wait()
    peer, error = await high.trouble()
    assert peer is not None
    assert peer.name == "low"
    assert error.detail == "we are done"


async def _until_closed(link: PeerLink) -> AsyncIterator[Message]:
    await link.close("we are done")
    async for message in link.messages():
        yield message


async def test_a_peer_that_does_not_answer_pings_is_given_up(low: Site, high: Site) -> None:
    low.limits = QUICK._replace(link_timeout=0.4, dial_timeout=0.5)
    async with proxied(low, high) as (there, _, proxy):
        proxy.stop("there")
        await there.ended.wait()
        _, error = await low.trouble(LinkDown)
        assert "has not answered a ping for 0.4 s" in error.message
        assert error.hint is not None
        await proxy.cut()
        proxy.resume()
        await asyncio.gather(low.link(), high.link())


async def test_a_receiver_that_is_busy_for_long_keeps_its_link(low: Site, high: Site) -> None:
    """Nobody reads the batches, so the data connection stands still; pings go on beside it."""
    low.limits = high.limits = QUICK._replace(link_timeout=0.5)
    there, back = await linked(low, high)
    stuck = asyncio.create_task(_send_many(low, there))
    pings = 0

    async def many_pings() -> bool:
        nonlocal pings
        pings += len(there._samples)
        there._samples.clear()
        return pings >= 20

    await eventually(many_pings, "twenty pings, a second in all, were answered")
    assert not stuck.done()
    assert there.open
    for _ in range(9):
        await next_batch(back)
    await stuck


async def _send_many(low: Site, link: PeerLink) -> None:
    for upto in range(1, 10):
        await send(low, link, os.urandom(4 * MIB), upto=upto)
