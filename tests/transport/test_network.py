"""The network: who links with whom, what is refused, and that links come back and end for good."""

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import msgspec
import pytest
from aiohttp import web

from syncagent.core import ports
from syncagent.core.wire import Mark
from syncagent.errors import LinkDown, ProtocolError, RefusedError, TrustError, UsageError
from syncagent.transport import listener
from syncagent.transport.links import PeerLink
from syncagent.transport.network import TlsNetwork
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.transport.sites import PATIENCE, QUICK, Site, linked

MakeSite = Callable[[str, int], Site]


async def test_it_is_what_the_services_expect(low: Site, high: Site) -> None:
    async def work(link: ports.Link) -> None:
        assert link.rtt is None or link.rtt > 0

    network: ports.Network = TlsNetwork(
        low.hello,
        [high.peer()],
        low.credentials,
        listen="none",
        directory=low.home / "peers",
        spools=low.spools,
    )
    await network.start(work, lambda _peer, _error: None)
    await network.stop()


async def talks(there: PeerLink, back: PeerLink) -> bool:
    """Whether a message gets through, both ways."""
    for sender, receiver in (there, back), (back, there):
        request = Mark(uuid4())
        await sender.send(request)
        async with asyncio.timeout(PATIENCE):
            if await anext(receiver.messages()) != request:
                return False
    return True


# ---- who may


async def test_a_site_that_only_dials_is_a_full_member(low: Site, high: Site) -> None:
    low.listen = "none"
    there, back = await linked(low, high)
    assert low.network.port is None
    assert await talks(there, back)


async def test_two_sites_that_only_dial_never_meet(low: Site, high: Site) -> None:
    low.listen = high.listen = "none"
    await low.start(high.peer())
    await high.start(low.peer())
    assert low.network._efforts == set() == high.network._efforts


@pytest.mark.parametrize("claimant", ["dialler", "listener"])
async def test_a_peer_that_claims_another_node_is_refused(low: Site, high: Site, claimant: str) -> None:
    liar, other = (low, high) if claimant == "dialler" else (high, low)
    liar.hello = msgspec.structs.replace(liar.hello, node=9)
    await high.start(low.peer())
    await low.start(high.peer(high.address))
    _, error = await other.trouble(TrustError)
    assert f"site {liar.name} is listed for node {liar.node}, its agent says node 9" in error.message
    assert error.hint is not None
    _, told = await liar.trouble(LinkDown)
    assert "its agent says node 9" in str(told)
    assert not low.network._links
    assert not high.network._links


async def test_a_site_of_another_cluster_is_refused(low: Site, high: Site) -> None:
    high.hello = msgspec.structs.replace(high.hello, cluster="another")
    await high.start(low.peer())
    await low.start(high.peer(high.address))
    _, noticed = await high.trouble(RefusedError)
    assert "different clusters" in noticed.message
    _, told = await low.trouble(LinkDown)
    assert "different clusters" in str(told)


@pytest.mark.parametrize("newer", ["dialler", "listener"])
async def test_another_protocol_is_refused_on_both_sides(low: Site, high: Site, newer: str) -> None:
    ahead, behind = (low, high) if newer == "dialler" else (high, low)
    ahead.hello = msgspec.structs.replace(ahead.hello, protocol=2)
    await high.start(low.peer())
    await low.start(high.peer(high.address))
    for site in low, high:
        peer, error = await site.trouble(ProtocolError)
        assert peer is not None
        assert f"site {ahead.name} speaks protocol 2" in error.message
        assert f"site {behind.name} speaks protocol 1" in error.message
        assert error.hint == f"upgrade syncagent at site {behind.name}"


# ---- one link per peer


@pytest.mark.parametrize("attempt", range(3))
async def test_when_both_dial_the_link_of_the_lower_node_stays(low: Site, high: Site, attempt: int) -> None:
    """Both dials are under way before either arrives."""
    async with Proxy(0) as to_low, Proxy(0) as to_high:
        to_low.stop()
        to_high.stop()
        low.limits = high.limits = QUICK._replace(retry_first=5, retry_most=5)
        await low.start(high.peer(to_high.address))
        await high.start(low.peer(to_low.address))
        assert low.network.port is not None
        assert high.network.port is not None
        to_low.target = ("127.0.0.1", low.network.port)
        to_high.target = ("127.0.0.1", high.network.port)

        async def dialled() -> bool:
            return bool(to_low.connections and to_high.connections)

        await eventually(dialled, "both have dialled")
        first, second = (to_low, to_high) if attempt % 2 else (to_high, to_low)
        first.resume()
        await asyncio.sleep(0)
        second.resume()

        async def settled() -> bool:
            return all(
                [link.dialler for link in site.network._lives] == [low.node] for site in (low, high)
            ) and bool(low.network._links and high.network._links)

        await eventually(settled, "one link is left, dialled by the lower node")
        there, back = low.network._links[2], high.network._links[1]
        assert there.hello.session == back.hello.session
        assert await talks(there, back)
        await asyncio.gather(low.stop(), high.stop())


async def test_no_two_links_with_one_peer_are_given_out_at_a_time(low: Site, high: Site) -> None:
    """The old link's work may take its time to end; the new link's begins only then."""
    events: list[str] = []
    released, second_began = asyncio.Event(), asyncio.Event()

    async def work(link: PeerLink) -> None:
        number = len([event for event in events if event == "begin"])
        events.append("begin")
        if number:
            second_began.set()
        try:
            await asyncio.Event().wait()
        finally:
            if not number:
                await asyncio.shield(released.wait())
            events.append("end")

    await high.start(low.peer(), on_link=work)
    await low.start(high.peer(high.address))
    await low.link()
    await low.stop()
    await low.start(high.peer(high.address))
    await low.link()
    assert events == ["begin"]
    released.set()
    async with asyncio.timeout(PATIENCE):
        await second_began.wait()
    assert events == ["begin", "end", "begin"]


@pytest.mark.parametrize("again", ["low", "high"])
async def test_a_new_link_replaces_a_dead_one(low: Site, high: Site, again: str) -> None:
    """The peer was restarted while nothing could tell us that its old link is gone."""
    await high.start(low.peer())
    assert high.network.port is not None
    async with Proxy(high.network.port) as proxy:
        await low.start(high.peer(proxy.address))
        ends = {"low": await low.link(), "high": await high.link()}
        proxy.stop()
        restarted, waiting = (low, high) if again == "low" else (high, low)
        await restarted.stop()
        await restarted.start(waiting.peer(waiting.address))
        new, kept = await restarted.link(), await waiting.link()
        await ends[waiting.name].ended.wait()
        assert await talks(new, kept)
        await asyncio.gather(low.stop(), high.stop())


async def test_a_live_link_is_not_replaced_by_the_higher_node(low: Site, high: Site) -> None:
    there, back = await linked(low, high)
    with pytest.raises(LinkDown, match="refused the link") as caught:
        await high.network._dialler.dial(low.peer(low.address))
    assert caught.value.detail == "site low has a link with site high that works"
    assert there.open
    assert back.open
    assert await talks(there, back)


# ---- coming back


async def test_links_come_back_after_a_restart(low: Site, high: Site) -> None:
    await linked(low, high)
    high.listen = high.address
    for _ in range(2):
        await high.stop()
        await high.start(low.peer())
        assert await talks(await low.link(), await high.link())


async def test_a_peer_that_is_away_is_reported_and_tried_again(low: Site, high: Site) -> None:
    await high.start(low.peer())
    address = high.listen = high.address
    await high.stop()
    await low.start(high.peer(address))
    for _ in range(2):
        peer, error = await low.trouble()
        assert isinstance(error, LinkDown)
        assert error.recoverable
        assert error.message == f"cannot reach site high at {address}"
        assert error.hint is not None
        assert peer == high.peer(address)
    await high.start(low.peer())
    assert await talks(await low.link(), await high.link())


async def test_a_peer_that_takes_the_call_and_says_nothing(low: Site, high: Site) -> None:
    low.limits = QUICK._replace(dial_timeout=0.2)
    callers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: callers.append(writer), "127.0.0.1", 0)
    await low.start(high.peer(f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"))
    _, error = await low.trouble()
    assert error.detail == "no answer in time"
    await low.stop()
    for caller in callers:
        caller.close()
    silent.close()
    await silent.wait_closed()


# ---- the work on a link


async def test_a_caller_that_is_gone_before_the_answer(
    low: Site, high: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was killed, say: no news, and no traceback in the log of the one that answers."""
    answer = listener._open
    gone: list[web.Request] = []

    async def once_too_late(request: web.Request, size: int) -> object:
        if not gone:
            assert request.transport is not None
            request.transport.abort()
            gone.append(request)
        return await answer(request, size)

    monkeypatch.setattr(listener, "_open", once_too_late)
    there, back = await linked(low, high)
    assert gone
    assert await talks(there, back)
    assert not caplog.records


async def test_the_link_ends_with_its_work(low: Site, high: Site) -> None:
    done = asyncio.Event()

    async def work(link: PeerLink) -> None:
        done.set()

    await high.start(low.peer(), on_link=work)
    await low.start(high.peer(high.address))
    link = await low.link()
    await asyncio.gather(done.wait(), link.ended.wait())
    _, error = await low.trouble()
    assert error.detail == "its work is done"


@pytest.mark.parametrize("grouped", [False, True])
async def test_trouble_in_the_work_is_told_to_both(low: Site, high: Site, grouped: bool) -> None:
    async def fail() -> None:
        raise RefusedError("the table is not there", hint="create it")

    async def work(link: PeerLink) -> None:
        if not grouped:
            await fail()
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    await high.start(low.peer(), on_link=work)
    await low.start(high.peer(high.address))
    _, error = await high.trouble()
    assert isinstance(error, RefusedError)
    _, told = await low.trouble()
    assert "the table is not there" in str(told)


async def test_a_fault_in_the_work_reaches_the_supervisor(low: Site, high: Site) -> None:
    faults: asyncio.Queue[BaseException] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: faults.put_nowait(context["exception"])
    )

    async def work(link: PeerLink) -> None:
        raise ZeroDivisionError

    await high.start(low.peer(), on_link=work)
    await low.start(high.peer(high.address))
    async with asyncio.timeout(PATIENCE):
        assert isinstance(await faults.get(), ZeroDivisionError)
    _, told = await low.trouble()
    assert "an internal error" in str(told)


# ---- start and stop


async def test_stop_leaves_no_task_and_no_socket(low: Site, high: Site, make_site: MakeSite) -> None:
    """In every state at once: linked, dialling in vain, refused, greeting."""
    third = make_site("third", 3)
    before = sockets()
    await high.start(low.peer(), third.peer())
    await low.start(high.peer(high.address), third.peer("127.0.0.1:1"))
    await third.start(high.peer(high.address, node=7), low.peer(low.address, sha256="00" * 32))
    await asyncio.gather(low.link(), high.link(), third.trouble(TrustError))
    for site in third, high, low:
        await site.stop()
        await site.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}

    async def closed() -> bool:
        return sockets() <= before

    await eventually(closed, "the event loop has closed every socket")


def sockets() -> set[int]:
    """The sockets this process has open."""
    found = set()
    for descriptor in range(1024):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.add(descriptor)
    return found


async def test_start_and_stop_again_and_again(low: Site, high: Site) -> None:
    for _ in range(3):
        there, back = await linked(low, high)
        await low.network.start(_never, lambda _peer, _error: None)  # it runs already
        assert await talks(there, back)
        await asyncio.gather(low.stop(), high.stop(), low.stop())


async def _never(_link: PeerLink) -> None:
    raise AssertionError


async def test_stop_while_a_peer_hangs(low: Site, high: Site) -> None:
    await high.start(low.peer())
    assert high.network.port is not None
    async with Proxy(high.network.port) as proxy:
        await low.start(high.peer(proxy.address))
        await asyncio.gather(low.link(), high.link())
        proxy.stop()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(low.stop(), high.stop())


async def test_stop_does_not_wait_for_a_caller_that_says_nothing(low: Site) -> None:
    await low.start()
    _, writer = await asyncio.open_connection("127.0.0.1", low.network.port)
    async with asyncio.timeout(low.limits.dial_timeout / 2):
        await low.stop()
    writer.close()


async def test_a_port_in_use_says_so(low: Site, high: Site) -> None:
    await high.start()
    low.listen = high.address
    with pytest.raises(UsageError, match="cannot listen on") as caught:
        await low.start()
    assert caught.value.hint is not None
    low.listen = "127.0.0.1:0"
    await low.start()
    assert low.network.port


@pytest.mark.parametrize("address", ["", "db", "db:", "db:x", "db:70000", "::1:7400", "[::1]"])
async def test_an_address_that_is_none(low: Site, high: Site, address: str) -> None:
    low.listen = address
    with pytest.raises(UsageError, match="not HOST:PORT"):
        await low.start()
    low.listen = "none"
    with pytest.raises(UsageError, match="not HOST:PORT"):
        await low.start(high.peer(address))
    await low.start()


async def test_ipv6(low: Site, high: Site) -> None:
    high.listen = "[::1]:0"
    await high.start(low.peer())
    await low.start(high.peer(f"[::1]:{high.network.port}"))
    assert await talks(await low.link(), await high.link())
