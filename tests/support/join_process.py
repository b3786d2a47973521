"""A joiner as a process, to be killed: copies until it is done, and prints the report.

python -m tests.support.join_process '{"dsn": ..., "node": ..., "address": ..., "sha256": ..., "home": ..., "max_rate": ...}'
"""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from syncagent.core.membership import Peer
from syncagent.node import SystemClock
from syncagent.services import joiner
from syncagent.storage.copier import PostgresCopier
from syncagent.transport.copying import HttpDonor
from syncagent.transport.spool import Spools
from syncagent.transport.tls import Credentials


async def main(said: dict[str, Any]) -> None:
    home = Path(said["home"])
    peer = Peer("donor", said["donor"], said["address"], said["sha256"])
    donor = HttpDonor(peer, Credentials.provide(home, "joiner"), Spools(home))
    copier = PostgresCopier(said["dsn"], said["node"])
    try:
        report = await joiner.copy(donor, copier, SystemClock(), workers=2, max_rate=said.get("max_rate"))
        if said.get("conclude"):
            await joiner.conclude(donor, copier)
        print(json.dumps(asdict(report)))  # noqa: T201
    finally:
        await donor.close()
        await copier.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
