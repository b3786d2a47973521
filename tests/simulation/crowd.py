"""What more sites make of the traffic: messages that a site sends a second, as the simulator counts them, in a mesh and at a hub.

`python -m tests.simulation.crowd` prints one JSON object a line, as `syncagent bench` does, for `python -m bench.pages`. More sites than these take a
simulator in one process too long: of a mesh it makes every message of every pair.
"""

import json
import sys
from collections import Counter
from typing import Any

from tests.simulation.run import Run, Scene

_CALM = Scene(
    steps=(60,),
    pace=(0.05,),
    hot=(0.0,),
    ends=(1.0,),
    refused=0.0,
    commits=(0.001,),
    faults=(0.0,),
    deaths=0.0,
)
SIZES = (4, 8, 16)


def messages(shape: str, size: int, seed: int = 1) -> dict[str, float]:
    """A second, while the application commits twenty times a second over all sites: the first site's, and the mean of the others'."""
    run = Run(seed, Scene(**{**vars(_CALM), "sites": (size,), "shapes": (shape,)}))
    run.net.weather.loss = run.net.weather.twice = 0.0
    run.net.weather.delay = 0.005
    sent: Counter[int] = Counter()
    send = run.net.send

    def counted(source: int, target: int, message: object, **how: Any) -> None:
        sent[source] += 1
        send(source, target, message, **how)

    run.net.send = counted  # type: ignore[method-assign]
    run.run()
    others = [count for node, count in sent.items() if node != 1]
    return {"first": sent[1] / run.schedule.now, "others": sum(others) / len(others) / run.schedule.now}


def main() -> None:
    for shape in ("mesh", "hub"):
        for size in SIZES:
            found = messages(shape, size)
            line = {
                "name": f"simulated-{shape}",
                "ours": round(found["first"], 2),
                "unit": "messages/s",
                "env": {"axis": "sites", "size": size, "others": round(found["others"], 2)},
            }
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
