"""A program: sends one batch of many megabytes between two sites, spool to spool, in one process.

Prints how many megabytes the process grew by at its peak, over what it took for a small batch.
"""

import asyncio
import os
import resource
import sys
from pathlib import Path

from syncagent.transport.links import PeerLink
from tests.transport.sites import Site, header, linked

MIB = 1024 * 1024


async def transfer(low: Site, there: PeerLink, back: PeerLink, megabytes: int) -> None:
    block = os.urandom(MIB)
    spool = low.spools("batch")
    for _ in range(megabytes):
        await spool.write(0, block)
    await spool.seal()
    sending = asyncio.create_task(there.send_batch(header(1, megabytes * MIB), spool))
    _, received = await anext(back.batches())
    await sending
    read = 0
    async for piece in received.read(0):
        read += len(piece)
    assert read == megabytes * MIB
    await spool.close()
    await received.close()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


async def main(directory: Path, megabytes: int) -> None:
    low, high = Site(directory, "low", 1), Site(directory, "high", 2)
    there, back = await linked(low, high)
    await transfer(low, there, back, 8)
    before = peak()
    await transfer(low, there, back, megabytes)
    sys.stdout.write(str(peak() - before))
    await asyncio.gather(low.stop(), high.stop())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
