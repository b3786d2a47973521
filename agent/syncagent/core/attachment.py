"""A table that is replicated everywhere, as the sites agree on it."""

from typing import Literal

import msgspec
from msgspec.structs import replace

from syncagent.core.batch import Table
from syncagent.core.forest import Bucket
from syncagent.core.merge import Merges, Strategy

Policy = Literal["keep-both", "merge", "restore-parent", "cascade", "report"]
"""Of two rows with one value one yields it, or they become one; a row that others refer to comes back, or those go, too; or a person
is to decide."""


class Attachment(msgspec.Struct, frozen=True, order=True):
    """A table that is replicated everywhere, and how: see `syncagent attach`. `policies`: of constraints by name; others
    keep both rows, and restore parents. `merges`: where the strategy is merge."""

    table: Table
    derive: bool = False
    ship: bool = True
    stride: int | None = None
    bucket: Bucket = "hour"
    policies: tuple[tuple[str, Policy], ...] = ()
    strategy: Strategy = "lww"
    merges: Merges = ()

    @property
    def merged(self) -> str:
        """The strategy, and of columns how they are joined."""
        return " ".join([self.strategy, *(f"{name}={how}" for name, how in self.merges)])

    def under(self, policies: tuple[tuple[str, Policy], ...]) -> "Attachment":
        """With these policies, too."""
        return replace(self, policies=tuple(sorted((dict(self.policies) | dict(policies)).items())))


class Inspected(msgspec.Struct, frozen=True):
    """What a site found about a table that is to be attached. `rows`: those it has, about; None: it is attached."""

    table: Table
    problems: tuple[str, ...]
    hints: tuple[str, ...]
    rows: int | None
