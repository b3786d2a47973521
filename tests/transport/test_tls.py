"""Certificates and pins: who may open what, and what is said to those who may not."""

import asyncio
import datetime as dt
import shutil
import ssl
import stat
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from syncagent.core import limits
from syncagent.core.membership import Peer
from syncagent.errors import LinkDown, TrustError, UsageError
from syncagent.transport import tls
from syncagent.transport.keyring import Keyring
from syncagent.transport.tls import Credentials, PinnedContext
from tests.transport.sites import Site, linked


def test_a_site_makes_its_key_and_certificate_once(tmp_path: Path) -> None:
    made = Credentials.provide(tmp_path / "home", "berlin-1")
    assert Credentials.provide(tmp_path / "home", "berlin-1") == made
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert sorted(path.name for path in made.key.parent.iterdir()) == ["certificate.pem", "key.pem"]
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["berlin-1"]
    assert certificate.not_valid_after_utc == made.until
    assert (made.until - dt.datetime.now(dt.UTC)).days in (729, 730)
    assert tls.digest_of_pem(made.certificate.read_text()) == made.sha256


def test_an_interrupted_init_goes_on_with_its_key(tmp_path: Path) -> None:
    made = Credentials.provide(tmp_path, "a")
    key = made.key.read_bytes()
    made.certificate.unlink()
    again = Credentials.provide(tmp_path, "a")
    assert again.key.read_bytes() == key
    assert again.sha256 != made.sha256


def test_a_lost_or_foreign_key_is_refused(tmp_path: Path) -> None:
    first, second = Credentials.provide(tmp_path / "a", "a"), Credentials.provide(tmp_path / "b", "b")
    first.key.unlink()
    with pytest.raises(UsageError, match="its key") as lost:
        Credentials.provide(tmp_path / "a", "a")
    second.key.rename(first.key)
    with pytest.raises(UsageError, match="cannot be used together") as foreign:
        first.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert lost.value.hint is not None
    assert foreign.value.hint is not None


@pytest.mark.parametrize("name", ["zürich", "x" * 70, ""], ids=["not ASCII", "long", "empty"])
def test_a_name_no_certificate_can_carry(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a site's name"):
        Credentials.provide(tmp_path, name)


def test_a_pin_may_be_written_with_colons() -> None:
    assert tls.normal(" AB:CD:01\n") == "abcd01"


async def test_an_unlisted_certificate_is_refused_with_a_clear_message(low: Site, high: Site) -> None:
    """Both sides are told which certificate, and what to do."""
    await high.start()
    await low.start(high.peer(high.address))
    peer, said = await low.trouble()
    assert peer is not None
    assert peer.name == "high"
    nobody, noticed = await high.trouble()
    assert nobody is None
    for error in (said, noticed):
        assert isinstance(error, TrustError)
        assert "not listed at site high" in error.message
        assert "'low'" in error.message
        assert low.credentials.sha256 in str(error.detail)
        assert "syncagent join" in str(error.hint)
    assert list((high.home / "peers").glob("*")) == []


async def test_an_unlisted_certificate_opens_nothing(low: Site, high: Site) -> None:
    await high.start()
    proven = PinnedContext.to(high.peer(), low.credentials)
    async with aiohttp.ClientSession() as session:
        for path in ("/v1/control", "/v1/data/x", "/"):
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"https://{high.address}{path}", ssl=proven)


PATHS = [
    ("GET", "/"),
    ("GET", "/v1/control"),
    ("GET", "/v1/data/0190c6b4-3c2a-7000-8000-000000000000"),
    ("GET", "/v1/certificate"),
    ("POST", "/v1/certificate"),
    ("DELETE", "/anything"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_without_a_certificate_nothing_is_shown(low: Site, high: Site, method: str, path: str) -> None:
    await high.start(low.peer())
    anonymous = PinnedContext.to(high.peer(), None)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    async with aiohttp.ClientSession(headers=upgrade) as session:
        answer = await session.request(method, f"https://{high.address}{path}", ssl=anonymous)
        assert answer.status == 403
        assert (await answer.json())["message"] == "this is for peers with a listed certificate"


@pytest.mark.parametrize(
    "pem",
    [b"", b"nonsense", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
async def test_what_is_no_certificate_is_refused(low: Site, high: Site, pem: bytes) -> None:
    await high.start(low.peer())
    anonymous = PinnedContext.to(high.peer(), None)
    async with aiohttp.ClientSession() as session:
        answer = await session.put(f"https://{high.address}/v1/certificate", data=pem, ssl=anonymous)
        assert answer.status == 403


async def test_a_certificate_beside_a_listed_one_does_not_slip_in(
    low: Site, high: Site, tmp_path: Path
) -> None:
    await high.start(low.peer())
    other = Credentials.provide(tmp_path / "other", "other")
    both = low.credentials.certificate.read_bytes() + other.certificate.read_bytes()
    async with aiohttp.ClientSession() as session:
        url = f"https://{high.address}/v1/certificate"
        await session.put(url, data=both, ssl=PinnedContext.to(high.peer(), None))
        with pytest.raises(aiohttp.ClientError):
            await session.get(url, ssl=PinnedContext.to(high.peer(), other))


async def test_plain_http_gets_no_byte(low: Site, high: Site) -> None:
    await high.start(low.peer())
    reader, writer = await asyncio.open_connection("127.0.0.1", high.network.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    writer.close()


async def test_an_older_tls_is_refused(low: Site, high: Site) -> None:
    await high.start(low.peer())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection("127.0.0.1", high.network.port, ssl=context)


async def test_nothing_is_sent_to_a_server_with_another_certificate(
    low: Site, high: Site, tmp_path: Path
) -> None:
    """Not even our certificate: the handshake ends before it is complete."""
    impostor = Credentials.provide(tmp_path / "impostor", "high")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_into(context)
    greeted: list[object] = []
    server = await asyncio.start_server(lambda *streams: greeted.append(streams), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    await low.start(high.peer(f"127.0.0.1:{port}"))
    peer, error = await low.trouble()
    assert peer is not None
    assert isinstance(error, TrustError)
    assert "not the one listed for site high" in error.message
    assert error.detail == f"shown {impostor.sha256}, listed {high.credentials.sha256}"
    assert "set up anew" in str(error.hint)
    assert greeted == []
    await low.stop()
    server.close()
    await server.wait_closed()


async def test_an_introduced_certificate_is_kept(low: Site, high: Site) -> None:
    await linked(low, high)
    kept = high.home / "peers" / f"{low.credentials.sha256}.pem"
    assert tls.digest_of_pem(kept.read_text()) == low.credentials.sha256
    await high.stop()
    kept.write_text("damaged")
    await high.start(low.peer())  # a damaged copy is as good as none
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"https://{high.address}/", ssl=PinnedContext.to(high.peer(), low.credentials))
    await high.stop()
    kept.write_bytes(low.credentials.certificate.read_bytes())
    await high.start(low.peer())
    async with aiohttp.ClientSession() as session:
        proven = PinnedContext.to(high.peer(), low.credentials)
        answer = await session.get(f"https://{high.address}/", ssl=proven)
        assert answer.status == 404


async def test_a_certificate_taken_off_the_list_opens_nothing_any_more(low: Site, high: Site) -> None:
    await linked(low, high)
    await high.stop()
    await high.start()
    await low.stop()
    await low.start(high.peer(high.address))
    _, error = await low.trouble(TrustError)
    assert "not listed at site high" in error.message


async def test_what_is_no_agent_says_so(low: Site, high: Site) -> None:
    """Somebody with the right certificate who does not speak our language."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    high.credentials.load_into(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    await low.start(high.peer(f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    _, error = await low.trouble()
    assert isinstance(error, UsageError | LinkDown)
    await low.stop()
    server.close()
    await server.wait_closed()


# ---- renewal


def holds_a_pair(home: Path) -> str:
    """The digest of the key's certificate, as an agent that starts after a crash finds it."""
    found = Credentials.provide(home, "a")
    found.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    return found.sha256


def test_a_crash_at_any_step_of_a_renewal_leaves_a_working_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of a file is the last one, in turn; then the agent starts anew, and the renewal goes on."""
    replace, left = Path.replace, 0

    def until_none_are_left(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise InterruptedError
        left -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", until_none_are_left)
    ended = []
    for steps in range(10):
        home = tmp_path / str(steps)
        left = 2
        old = Credentials.provide(home, "a").sha256
        left = steps
        with suppress(InterruptedError):
            Credentials.prepare(home, "a")
            Credentials.turn(home)
        done, left = left > 0, 9
        now = holds_a_pair(home)
        ended.append(now != old)
        new = Credentials.prepare(home, "a").sha256
        assert new not in (old, now)
        assert Credentials.turn(home).sha256 == new == holds_a_pair(home)
        assert sorted(path.name for path in home.iterdir() if path.name[0] != ".") == [
            "certificate.pem",
            "key.pem",
        ]
        if done:
            break
    assert ended == [False, False, False, True, True, True], "two files made, two moved"


async def test_a_new_certificate_takes_the_place_of_the_old_one(
    low: Site, high: Site, tmp_path: Path
) -> None:
    """Listed first, then shown; taken off the list the old one opens nothing, and its link is made anew."""
    _, theirs = await linked(low, high)
    keyring = Keyring(low.home, "low")
    keyring.on_turn = low.network.use
    copied = Path(shutil.copytree(low.home, tmp_path / "stolen"))
    stolen = Credentials.read(copied / tls.KEY, copied / tls.CERTIFICATE)
    await keyring.prepare()
    old, new = keyring.sha256
    await high.network.know([Peer("low", 1, None, old, (new,))], {})
    await keyring.turn()
    assert theirs.open, "a link that is there stays"
    await high.network.know([Peer("low", 1, None, new)], {})
    again = await high.link()
    assert (again.sha256, theirs.open) == (new, False)
    async with aiohttp.ClientSession() as session:
        context = PinnedContext.to(high.peer(), stolen)
        answer = await session.get(f"https://{high.address}/v1/control", ssl=context)
        assert answer.status == 403


async def test_nobody_is_refused_for_the_end_of_a_certificate(
    low: Site, high: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CERTIFICATE_LIFETIME", -3600.0)
    for site in (low, high):
        site.credentials.certificate.unlink()
        site.credentials = Credentials.provide(site.home, site.name)
        assert site.credentials.until < dt.datetime.now(dt.UTC)
    await linked(low, high)
