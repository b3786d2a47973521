"""What replicates in a run: one of these, on the databases of a stage.

Invariant: `start` returns when a row has arrived at the other site, `pause` when nothing is applied any more; `stop`
leaves no process, slot or subscription behind.
"""

from collections.abc import Sequence
from typing import Protocol

from bench.pair import Stage


class System(Protocol):
    name: str

    def start(self, stage: Stage) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def processes(self) -> Sequence[int]:
        """Those outside the two servers."""

    def stop(self) -> None: ...


class Nothing:
    """No replication: what the application's work costs by itself."""

    name = "none"

    def start(self, stage: Stage) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def processes(self) -> Sequence[int]:
        return ()

    def stop(self) -> None: ...
