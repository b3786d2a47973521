"""The lines between the offices: TCP forwarders on loopback, one for each who may dial whom, that can be cut.

Invariant: agents reach each other through these lines only, so a site that is cut off is really cut off:
its open connections break off and nobody gets a new one, while its database and its agent go on.
"""

import asyncio
from contextlib import AsyncExitStack
from itertools import permutations
from types import TracebackType
from typing import Self

_HOST = "127.0.0.1"
_PIECE = 64 * 1024


class Line:
    """Forwards what arrives at `port` to where a site's agent listens."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.up = True
        self._target = target
        self._talks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def busy(self) -> bool:
        """Whether somebody talks over it."""
        return bool(self._talks)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, _HOST)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Break off what is open and what comes, until it is mended."""
        self.up = False
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def mend(self) -> None:
        self.up = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(_HOST, self._target)
            ends.append(far_writer)
            self._talks.add(task)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass  # one end hung up, or the line was cut: the other end learns of it now
        finally:
            self._talks.discard(task)
            for end in ends:
                end.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while piece := await source.read(_PIECE):
        sink.write(piece)
        await sink.drain()
    raise ConnectionResetError


class Network:
    """Lines between all of them, both ways; `listening` maps each site to the port its agent listens on."""

    def __init__(self, listening: dict[str, int]) -> None:
        self._lines = {(dialler, site): Line(listening[site]) for dialler, site in permutations(listening, 2)}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for line in self._lines.values():
            await self._open.enter_async_context(line)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    def address(self, dialler: str, site: str) -> str:
        """What `dialler` must dial to reach `site`."""
        return f"{_HOST}:{self._lines[dialler, site].port}"

    def linked(self, one: str, other: str) -> bool:
        """Whether these two talk with each other, whoever dialled."""
        return self._lines[one, other].busy or self._lines[other, one].busy

    def is_cut_off(self, site: str) -> bool:
        """Whether no line of this site is up."""
        return not any(line.up for ends, line in self._lines.items() if site in ends)

    async def cut_off(self, site: str) -> None:
        for ends, line in self._lines.items():
            if site in ends:
                await line.cut()

    def reconnect(self, site: str) -> None:
        for ends, line in self._lines.items():
            if site in ends:
                line.mend()
