"""Where the story is told: a folder, three sites and the lines between them, opened before it and cleared after.

Invariant: however the story ends (told, failed, Ctrl-C, SIGTERM, a closed terminal), agents and servers are
stopped and the folder is gone before `perform` returns; only a story that was told and cleared counts.
"""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from syncagent.demo.network import Network
from syncagent.demo.proof import Proof
from syncagent.demo.screen import Screen
from syncagent.demo.sites import Site, finish
from syncagent.demo.story import ACTS, Choices, Story, open_shop
from syncagent.embedded import find_binaries, scratch
from syncagent.errors import SyncagentError

CITIES = ("berlin", "lima", "tokyo")
_ASK_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SyncagentError):
    """Somebody pressed Ctrl-C or ended us; everything was stopped."""


@dataclass(frozen=True)
class Demo:
    """What `syncagent demo` was asked for."""

    choices: Choices
    plain: bool = False
    keep: bool = False


def perform(demo: Demo) -> Proof:
    """The whole demo. Raises SyncagentError if anything of it failed, or could not be cleared away."""
    return asyncio.run(_perform(demo))


async def _perform(demo: Demo) -> Proof:
    with (
        Screen(plain=demo.plain, acts=ACTS) as screen,
        _signals() as heard,
        _folder(demo.keep, screen) as folder,
    ):
        try:
            proof = await _on_stage(demo.choices, folder, screen)
        except* (SyncagentError, psycopg.Error) as group:
            raise _first(group) from None
        except* asyncio.CancelledError:
            raise Interrupted(f"interrupted by {heard[0].name}: everything was stopped") from None
        screen.say("Agents and servers are stopped.")
        return proof


async def _on_stage(choices: Choices, folder: Path, screen: Screen) -> Proof:
    binaries = find_binaries()
    sites = [Site(number, city, folder, binaries, screen.command) for number, city in enumerate(CITIES, 1)]
    async with Network({site.name: site.port for site in sites}) as network, _cleared(sites, screen):
        await open_shop(sites, screen, choices.seed)
        return await Story(sites, network, screen, choices).tell()


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """The first signal cancels this task; those of an impatient person must not leave servers behind."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    heard: list[signal.Signals] = []

    def hear(number: signal.Signals) -> None:
        if not heard and task is not None:
            task.cancel()
        heard.append(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, hear, number)
    try:
        yield heard
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@contextmanager
def _folder(keep: bool, screen: Screen) -> Iterator[Path]:
    if not keep:
        with scratch("syncagent-demo-") as folder:
            yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="syncagent-demo-"))
    folder.chmod(0o711)  # the account of the servers must get to its data
    try:
        yield folder
    finally:
        screen.say(f"Kept: homes, logs and data in {folder}")


@asynccontextmanager
async def _cleared(sites: Sequence[Site], screen: Screen) -> AsyncIterator[None]:
    """Stop every site at the end; after a failure show what the agents said last."""
    failed = True
    try:
        yield
        failed = False
    except asyncio.CancelledError:
        failed = False  # somebody had seen enough
        raise
    finally:
        if failed:
            await _show_states(sites, screen)
        stopping = asyncio.gather(*(site.stop() for site in sites), return_exceptions=True)
        ends = await finish(stopping)
        problems = [end for end in ends if isinstance(end, BaseException)]
        if problems or failed:
            for site in sites:
                screen.say(f"the last lines of the agent of {site.name}:")
                screen.answer(site.log_tail(), whole=True)
        if problems and not failed:
            raise problems[0]


async def _show_states(sites: Sequence[Site], screen: Screen) -> None:
    """How the sites stand to each other, as far as they can still tell."""
    for site in sites:
        if site.agent_runs:
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    screen.answer(await site.command("status"))
            except (SyncagentError, TimeoutError):
                continue  # what went wrong first is told anyway


def _first(group: BaseExceptionGroup[BaseException]) -> SyncagentError:
    """What happened first; the rest are its consequences."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, SyncagentError):
        return error
    return SyncagentError("PostgreSQL refused something of the shop", detail=str(error).strip())
