"""`syncagent run`: the agent, in the foreground."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from syncagent.cli.options import HomeOption, JsonOption, home_of

if TYPE_CHECKING:
    import asyncio

    from syncagent.settings import Settings

_PATIENCE = 15.0
"""Seconds to wait for a server that cannot be reached when the agent starts; later it waits for ever."""


def run(
    home: HomeOption = None,
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="SYNCAGENT_DSN",
            help="Another way to the site's database than the home's.",
            show_default=False,
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve the console, health, metrics and state there: on a loopback address in plain HTTP, on others with the site's certificate.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Be the site's agent until SIGTERM or Ctrl-C. Talks on stderr; --json makes each line a JSON object."""
    import asyncio

    import msgspec

    from syncagent import settings as configuration

    settings = configuration.load(home_of(home))
    if dsn is not None:
        settings = msgspec.structs.replace(settings, dsn=dsn)
    _check(settings.dsn)
    talk_on_stderr(as_json=as_json)
    asyncio.run(_run(settings, http))


def _check(dsn: str) -> None:
    """The SQL side is of our version. A server that is just starting, as both may be, is waited for."""
    import signal
    import sys
    import time

    from syncagent.cli import render
    from syncagent.errors import Unreachable
    from syncagent.storage.commands import site_of

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    deadline, said = time.monotonic() + _PATIENCE, False
    while True:
        try:
            with site_of(dsn):
                return
        except Unreachable as error:
            if time.monotonic() >= deadline:
                raise
            if not said:
                render.say(f"{error.line}; trying for {_PATIENCE:g} s")
                said = True
        time.sleep(0.2)


async def _run(settings: "Settings", http: str | None) -> None:
    import asyncio
    import os
    import signal

    from syncagent import node
    from syncagent.cli.manager import Manager
    from syncagent.web import observing

    manager = Manager(os.environ)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unheard)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    life = loop.create_task(manager.live())
    server = None
    traces = observing.traces(settings.name, os.environ)
    try:
        if http is not None:
            from syncagent.web.server import Server

            server = Server(settings, http)
            await server.start()
        window = server.window if server is not None else node.Window()
        if traces is not None:
            window.observer = observing.Both(window.observer, traces)
        await node.run(settings, stop=stop, on_ready=manager.ready, window=window)
    finally:
        if server is not None:
            await server.stop()
        if traces is not None:
            await asyncio.to_thread(traces.stop)
        life.cancel()
        manager.say("STOPPING=1")


def _unheard(loop: "asyncio.AbstractEventLoop", context: dict[str, Any]) -> None:
    """A connection's end is met, and told, by whoever uses it next; that nobody waited for its last answer is no news."""
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)


def talk_on_stderr(*, as_json: bool, only_trouble: bool = False) -> None:
    """The agent's log."""
    import logging
    import sys

    import structlog

    form: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *form,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.WARNING if only_trouble else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
