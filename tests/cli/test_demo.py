"""`syncagent demo`: what its last line claims, and that nothing is left of it however it ends."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from syncagent.demo.network import Network
from syncagent.demo.proof import Conflict, Proof, differences, resolved
from syncagent.demo.sites import finish
from syncagent.embedded import free_port, scratch
from tests.support.waiting import until

LAST_LINE = re.compile(r"converged: 3 sites, (\d+) rows, (\d+) conflicts resolved, 0 rows differ")
SECONDS = 240
ESCAPE = "\x1b"


@pytest.fixture
def stage() -> Iterator[Path]:
    """The folder in which a demo makes its own; at the end it is empty, and no process has its files."""
    with scratch("syncagent-test-demo-") as folder:
        yield folder
        assert list(folder.iterdir()) == []
        assert [process.info for process in belonging(folder)] == []


def belonging(folder: Path) -> list[psutil.Process]:
    """Processes that were started with something of the folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        told = [*(process.info["cmdline"] or ()), (process.info["environ"] or {}).get("SYNCAGENT_HOME", "")]
        if any(str(folder) in part for part in told):
            found.append(process)
    return found


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "syncagent", "demo", "--seconds", "5", *options]


def around(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}


@contextmanager
def telling(folder: Path, talk: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A demo that is being told; what it says goes to `talk`."""
    with (
        talk.open("wb") as out,
        subprocess.Popen(command(), env=around(folder), stdout=out, stderr=out) as demo,
    ):
        try:
            yield demo
        finally:
            demo.terminate()


# The whole of it.


def test_it_ends_with_what_was_measured(stage: Path) -> None:
    done = subprocess.run(
        command("--plain"), env=around(stage), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    (last,) = done.stdout.splitlines()
    said = LAST_LINE.fullmatch(last)
    assert said, last
    assert int(said[1]) > 1000
    assert int(said[2]) > 0
    assert ESCAPE not in done.stdout + done.stderr
    for told in (
        "berlin $ syncagent init --name berlin",
        "berlin $ syncagent attach --derive-key shop.office",
        "tokyo $ syncagent join --peer",
        "lima $ kill -9",
        "tokyo is cut off",
        "tokyo (won)",
        "berlin $ syncagent why shop.product",
        "0 of them differ or are missing somewhere",
    ):
        assert told in done.stderr


@pytest.mark.soak(only="half a minute")
def test_it_moves_at_a_terminal_and_leaves_it_as_it_was(stage: Path) -> None:
    ours, theirs = pty.openpty()
    shown, told = bytearray(), False

    with subprocess.Popen(
        command(), env=around(stage), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as demo:
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as screen:
            try:
                while piece := screen.read(65536):
                    shown += piece
                    if b"agent runs" in shown and not told:
                        told = True
                        demo.send_signal(signal.SIGINT)
            except OSError:  # what Linux says when the other end is closed
                pass
        assert demo.wait(SECONDS) == 130, shown.decode()
    text = shown.decode()
    hidden, back = text.rindex(f"{ESCAPE}[?25l"), text.rindex(f"{ESCAPE}[?25h")
    assert hidden < text.rindex("agent runs") < back  # no cursor while something moves
    plain = re.sub(rf"{ESCAPE}\[[0-9;?]*[a-zA-Z]", "", text)
    assert all(f"─ {name} ─" in plain for name in ("berlin", "lima", "tokyo"))
    assert "interrupted by SIGINT: everything was stopped" in text[back:]
    assert "Traceback" not in text


# However it ends.


def test_interrupted_it_leaves_nothing(stage: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk"
    with telling(stage, talk) as demo:
        until(lambda: "lima $ syncagent join" in talk.read_text(), "one agent runs, and a verb", SECONDS)
        demo.send_signal(signal.SIGTERM)
        demo.send_signal(signal.SIGTERM)  # somebody is impatient
        assert demo.wait(60) == 130, talk.read_text()
    assert "interrupted by SIGTERM: everything was stopped" in talk.read_text()
    assert "Traceback" not in talk.read_text()


@pytest.mark.soak(only="half a minute")
def test_an_agent_that_ends_by_itself_fails_it_and_shows_why(stage: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk"
    with telling(stage, talk) as demo:
        until(lambda: "act 3" in talk.read_text(), "the shop sells", SECONDS)
        (agent,) = [
            process
            for process in belonging(stage)
            if process.info["environ"].get("SYNCAGENT_HOME", "").endswith("/tokyo")
            and process.info["cmdline"][-1] == "run"
        ]
        agent.kill()
        assert demo.wait(60) == 1, talk.read_text()
    said = talk.read_text()
    assert "error: the agent of tokyo ended by itself with exit code -9" in said
    assert "the last lines of the agent of tokyo:" in said
    assert "Traceback" not in said
    assert "converged:" not in said


async def test_what_stops_the_sites_is_not_stopped_itself() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stop() -> None:
        begun.set()
        await go_on.wait()
        done.set()

    stopping = asyncio.create_task(finish(stop()))
    await begun.wait()
    stopping.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert done.is_set()


# What the proof counts.

ONE, TWO = (UUID(int=number) for number in (1, 2))


def conflict(winner: str = "tokyo", key: str = "7") -> Conflict:
    return Conflict("shop.voucher", key, winner, ONE)


def test_a_row_differs_if_it_is_missing_or_not_the_same() -> None:
    berlin = {"1": "same", "2": "ours", "3": "only here"}
    tokyo = {"1": "same", "2": "theirs", "4": "only there"}
    assert differences([berlin, tokyo, berlin]) == ["2", "3", "4"]
    assert differences([berlin, dict(berlin)]) == []


def test_a_conflict_counts_once_however_many_sites_recorded_it() -> None:
    assert resolved([{ONE: conflict()}, {ONE: conflict()}, {TWO: conflict(key="8")}], {}) == 2


def test_a_conflict_with_two_winners_is_not_resolved() -> None:
    assert resolved([{ONE: conflict("tokyo")}, {ONE: conflict("lima")}], {}) == 0


def test_a_conflict_whose_row_differs_is_not_resolved() -> None:
    assert resolved([{ONE: conflict()}, {}], {"shop.voucher": ["7"]}) == 0


@pytest.mark.parametrize(
    "proof",
    [
        Proof(sites=3, rows=10, recorded=2, resolved=2, differing={"shop.office": ["1"]}),
        Proof(sites=3, rows=10, recorded=2, resolved=1),
        Proof(sites=3, rows=10, recorded=0, resolved=0),
    ],
)
def test_what_does_not_hold_is_not_called_converged(proof: Proof) -> None:
    assert not proof.holds
    assert str(proof).startswith("not converged: ")
    assert proof.as_facts()["converged"] is False


# The lines between the offices.

BROKEN_OFF = (ConnectionError, asyncio.IncompleteReadError)


async def test_a_site_that_is_cut_off_is_really_cut_off_until_it_is_mended() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(100):
            writer.write(piece)
        writer.close()

    ports = {"berlin": free_port(), "tokyo": free_port()}
    async with (
        await asyncio.start_server(echo, "127.0.0.1", ports["tokyo"]),
        Network(ports) as network,
    ):
        port = int(network.address("berlin", "tokyo").partition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert network.linked("berlin", "tokyo")
        assert not network.is_cut_off("tokyo")

        await network.cut_off("tokyo")
        with pytest.raises(BROKEN_OFF):
            await reader.readexactly(1)
        writer.close()
        assert not network.linked("tokyo", "berlin")
        assert network.is_cut_off("tokyo")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(BROKEN_OFF):
            await reader.readexactly(1)
        writer.close()

        network.reconnect("tokyo")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.transport.abort()
