"""A bad network between two agents: a TCP proxy on loopback that cuts, delays, slows down, damages, or goes deaf.

Everything can be changed while connections are open.
"""

import asyncio
from typing import Literal

Direction = Literal["there", "back"]
Pipe = asyncio.Queue[tuple[float, bytes]]
THERE: Direction = "there"
BACK: Direction = "back"
PIECE = 16 * 1024
UNDERWAY = 64
"""Pieces that a delayed connection holds, each way."""


class Proxy:
    """Forwards 127.0.0.1:`port` to a target; "there" is from who dials to the target."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """`port` and `host` are the target's; the target may come up later, or move."""
        self.target = (host, port)
        self.port = 0
        self.delay = 0.0
        """Seconds every byte waits, each way."""
        self.rate: float | None = None
        """Bytes per second, each way and connection."""
        self.forwarded: dict[Direction, int] = {THERE: 0, BACK: 0}
        self._damage: set[Direction] = set()
        self._flows: dict[Direction, asyncio.Event] = {THERE: asyncio.Event(), BACK: asyncio.Event()}
        self._accepting = True
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._progress = asyncio.Condition()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def __aenter__(self) -> "Proxy":
        self.resume()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=PIECE)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    # ---- what can go wrong

    async def cut(self) -> None:
        """Reset every open connection, both ends."""
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def refuse(self) -> None:
        """New connections are reset at once, until `accept`."""
        self._accepting = False

    def accept(self) -> None:
        self._accepting = True

    def stop(self, direction: Direction | None = None) -> None:
        """Bytes are taken no more, and nobody is told: one way, or both."""
        for name, flow in self._flows.items():
            if direction in (None, name):
                flow.clear()

    def damage(self, direction: Direction) -> None:
        """One bit of the next piece that goes there arrives wrong."""
        self._damage.add(direction)

    def resume(self) -> None:
        for flow in self._flows.values():
            flow.set()

    async def passed(self, size: int, direction: Direction) -> None:
        """Wait until so many bytes have been forwarded in all."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.forwarded[direction] >= size)

    # ---- forwarding

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        writers = [writer]
        try:
            if self._accepting:
                await self._flows[THERE].wait()
                far_reader, far_writer = await asyncio.open_connection(*self.target, limit=PIECE)
                writers.append(far_writer)
                async with asyncio.TaskGroup() as group:
                    for source, sink, direction in (reader, far_writer, THERE), (far_reader, writer, BACK):
                        pipe: Pipe = asyncio.Queue(UNDERWAY)
                        group.create_task(self._take(source, pipe))
                        group.create_task(self._give(sink, pipe, direction))
        except* (OSError, asyncio.CancelledError):
            pass  # one end went away, or the connection was cut: the other end is told below
        finally:
            for end in writers:
                end.transport.abort()
            del self._connections[writer]

    async def _take(self, source: asyncio.StreamReader, pipe: Pipe) -> None:
        clock = asyncio.get_running_loop().time
        while piece := await source.read(PIECE):
            await pipe.put((clock() + self.delay, piece))
        await pipe.put((clock() + self.delay, b""))

    async def _give(self, sink: asyncio.StreamWriter, pipe: Pipe, direction: Direction) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, piece = await pipe.get()
            await asyncio.sleep(max(due - clock(), 0))
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
            await self._flows[direction].wait()
            if not piece:
                raise ConnectionResetError
            if direction in self._damage:
                self._damage.discard(direction)
                piece = piece[:-1] + bytes([piece[-1] ^ 1])
            sink.write(piece)
            await sink.drain()
            async with self._progress:
                self.forwarded[direction] += len(piece)
                self._progress.notify_all()
