"""Which membership is in force: the newest one in the log, committed or not.

It exists because a log can lose its end, and a change with it.

Invariant: the oldest one kept is that of what was applied, so that a snapshot of it can say so.
"""

from syncagent.core.raft.messages import Membership


class Memberships:
    """The changes in the log, and what they started from."""

    def __init__(self, index: int, membership: Membership) -> None:
        self._known = [(index, membership)]

    @property
    def newest(self) -> Membership:
        return self._known[-1][1]

    @property
    def since(self) -> int:
        """Index of the entry that brought the newest one."""
        return self._known[-1][0]

    def at(self, index: int) -> Membership:
        """As of an entry that was applied, or comes later."""
        return next(membership for since, membership in reversed(self._known) if since <= index)

    def live(self, committed: int) -> list[Membership]:
        """Those that may yet turn out to be in force: the committed one, and what follows."""
        return [self.at(committed), *(known for since, known in self._known if since > committed)]

    def add(self, index: int, membership: Membership) -> None:
        self._known.append((index, membership))

    def cut(self, index: int) -> None:
        """The log has lost its entries from `index` on."""
        while len(self._known) > 1 and self._known[-1][0] >= index:
            self._known.pop()

    def settle(self, applied: int) -> None:
        """What was in force before that is history."""
        while len(self._known) > 1 and self._known[1][0] <= applied:
            self._known.pop(0)
