"""Rules left out, one at a time: each must be found by a schedule, or the schedules prove little.

Invariant: what is changed here is put back.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from syncagent.core.raft import quorum
from syncagent.core.raft.leader import Leader
from syncagent.core.raft.log import Log
from syncagent.core.raft.machine import Machine
from syncagent.core.raft.members import Memberships
from syncagent.core.raft.messages import Appended, Change, Entry, Install, Membership
from syncagent.core.raft.progress import Progress
from syncagent.core.raft.reads import Read
from syncagent.errors import Undecided
from tests.raft.run import USUAL, Scene

_install, _tick = Machine._installed, Leader.tick


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _hasty(self: Leader, change: Change) -> Membership:
    if self._is_changing():
        raise Undecided("another change is not committed yet")
    return quorum.changed(self._log.membership, change)


def _unasked(self: Leader, read: Read) -> None:
    if self._is_settled():
        self._answer(read._replace(upto=self._log.committed))


def _too_soon(self: Leader, read: Read) -> None:
    self._reads.take(read._replace(upto=self._log.committed))
    self._confirm()


def _backwards(self: Machine, message: Install) -> Appended:
    if message.snapshot.index <= self.log.committed:
        self.log.restore(message.snapshot)
    return _install(self, message)


def _accept(self: Log, index: int, term: int, entries: Sequence[Entry]) -> int | None:
    """What is here stays, whatever the leader has there."""
    if self.term(index) != term:
        return None
    self.extend([entry for entry in entries if entry.index > self.last])
    return index + len(entries)


def _trusting(self: Log, index: int, term: int, entries: Sequence[Entry]) -> int | None:
    """Entries are taken wherever they fit, without a look at the one before them."""
    if index > self.last:
        return None
    fresh = next((at for at, entry in enumerate(entries) if self.term(entry.index) != entry.term), None)
    if fresh is not None and entries[fresh].index > self.committed:
        self._cut(entries[fresh].index)
        self.extend(entries[fresh:])
    return index + len(entries)


def _campaign(self: Machine) -> None:
    if self.leading is None and self._may_lead():
        self._campaign(pre=False)


def _patient(self: Leader) -> bool:
    _tick(self)
    return True


def _forward(self: Progress) -> None:
    """A lost append is taken for one that arrived."""
    self.match = self.next - 1
    self.state, self.owed = "probe", True


@dataclass(frozen=True)
class Variant:
    """`patches`: of classes of the core. `switch`: of the simulator's drivers."""

    why: str
    patches: tuple[tuple[type, str, Any], ...] = ()
    scene: Scene = USUAL
    switch: str | None = None

    @contextmanager
    def rules(self) -> Iterator[tuple[str, ...]]:
        """While these hold, runs are to be given what this yields as `broken`."""
        with ExitStack() as stack:
            for owner, name, patch in self.patches:
                stack.enter_context(mock.patch.object(owner, name, patch))
            yield (self.switch,) if self.switch else ()


_ROUGH = replace(USUAL, voters=(3, 4, 5), faults=(0.15, 0.3), pace=(0.1,), odd=0.05)
_CRASHES = replace(_ROUGH, kinds=("crash",))
_SPLITS = replace(_ROUGH, kinds=("alone", "split"), voters=(3, 5), does=("write",) * 3 + ("read",))
_DUELS = replace(
    _CRASHES,
    voters=(3,),
    kinds=("crash", "crash", "leader"),
    delay=(0.3,),
    lasts=(0.05, 3.0),
    faults=(0.2,),
    steps=(300,),
)
"""Several campaign at once, and whoever dies is back while they do."""
_ROTATION = replace(
    _CRASHES,
    voters=(3,),
    kinds=("halves", "leader"),
    cradle=(0.7,),
    few=(0,),
    delay=(0.2,),
    late=(1.0,),
    loss=(0.0,),
    lasts=(4.0,),
    faults=(0.15,),
    append=(1,),
    steps=(600,),
    does=("write",),
    odd=0.4,
)
"""Leaders are cut off at birth, or soon after, and are back."""
_MOVING = replace(
    USUAL,
    voters=(4,),
    learners=(0,),
    faults=(0.0,),
    cradle=(0.8,),
    pace=(0.05,),
    kinds=("halves",),
    lasts=(12.0,),
    loss=(0.0,),
    delay=(0.01,),
    steps=(600,),
    does=("change",),
    odd=0.0,
)
"""Leaders are cut off at birth: alone, then with one other, and so on; all that is wanted is another membership."""
_READING = replace(
    _ROUGH,
    voters=(3,),
    kinds=("halves",),
    few=(0,),
    delay=(0.05,),
    late=(40.0,),
    lasts=(4.0,),
    faults=(0.015,),
    pace=(0.02,),
    steps=(800,),
    odd=0.05,
    does=("read", "read", "write"),
)
"""Leaders are replaced before they know."""
_LONG = replace(_SPLITS, kinds=("alone", "leader"), lasts=(2.0, 8.0), faults=(0.1,), steps=(300,))
"""Some are away while leaders come and go."""
_LATE = replace(
    _ROUGH,
    kinds=("crash", "alone"),
    twice=(0.5,),
    delay=(0.05,),
    late=(40.0,),
    lasts=(2.0,),
    does=("write", "write", "compact", "change"),
)
"""What is sent arrives twice, and long after."""

VARIANTS = {
    "vote": Variant("a vote is not persisted", scene=_DUELS, switch="vote"),
    "early": Variant("entries are acknowledged before they are persisted", scene=_CRASHES, switch="early"),
    "counting": Variant(
        "an entry of an old term is committed by counting",
        ((Leader, "_may_commit", _always),),
        scene=_ROTATION,
    ),
    "no-op": Variant(
        "the membership is changed before anything of the own term is committed",
        ((Leader, "_changed", _hasty),),
        scene=_MOVING,
    ),
    "two": Variant(
        "the membership is changed again before the last change is committed",
        ((Leader, "_is_changing", _never),),
        scene=_MOVING,
    ),
    "taken-back": Variant(
        "a membership stays in force that its log has lost",
        ((Memberships, "cut", _never),),
        scene=replace(_ROUGH, kinds=("halves",), few=(0,), does=("change", "write")),
    ),
    "read": Variant("reads are answered without a quorum", ((Leader, "read", _unasked),), scene=_READING),
    "read-early": Variant(
        "a new leader reads before it knows what is committed",
        ((Leader, "read", _too_soon),),
        scene=replace(_READING, kinds=("leader",)),
    ),
    "backwards": Variant(
        "a snapshot replaces what is newer", ((Machine, "_installed", _backwards),), scene=_LATE
    ),
    "complete": Variant(
        "votes go to candidates whose log is behind", ((Log, "is_complete", _always),), scene=_SPLITS
    ),
    "replaced": Variant(
        "entries of a lost term are not replaced", ((Log, "accept", _accept),), scene=_SPLITS
    ),
    "before": Variant(
        "entries are taken without a look at the one before", ((Log, "accept", _trusting),), scene=_LONG
    ),
    "lost": Variant("what was sent counts as received", ((Progress, "probe", _forward),), scene=_ROUGH),
    "pre-vote": Variant("a site that was away campaigns at once", ((Machine, "campaign", _campaign),)),
    "lease": Variant(
        "votes are asked for and given while there is a leader",
        ((Machine, "campaign", _campaign), (Machine, "_has_leader", _never)),
    ),
    "quorum": Variant("a leader that nobody answers goes on", ((Leader, "tick", _patient),)),
}
