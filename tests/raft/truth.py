"""What Raft promises, checked as it happens, by somebody who sees all sites at once.

Invariant: nothing here is told to the sites.
"""

import zlib
from collections.abc import Sequence

from syncagent.core.raft.log import Log
from syncagent.core.raft.messages import Entry


class Broken(AssertionError):
    """The sites did what they must not."""


class Truth:
    def __init__(self) -> None:
        self.floor = 0
        """Somebody was told what the entries up to here have led to: so must be whoever asks from now on."""
        self.leaders: dict[int, int] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._written: dict[tuple[int, int], tuple[int | None, Entry]] = {}
        self._committed: dict[
            int, tuple[int, int]
        ] = {}  # index -> its term, and the term it was committed in
        self._applied: dict[int, tuple[Entry | None, int]] = {}

    def voted(self, node: int, term: int, candidate: int) -> None:
        other = self._votes.setdefault((node, term), candidate)
        if other != candidate:
            raise Broken(f"votes: node {node} voted for nodes {other} and {candidate} in term {term}")

    def elected(self, node: int, term: int, log: Log) -> None:
        other = self.leaders.setdefault(term, node)
        if other != node:
            raise Broken(f"election safety: nodes {other} and {node} both lead in term {term}")
        for index, (entry_term, committed_in) in self._committed.items():
            if committed_in < term and index >= log.first and log.term(index) != entry_term:
                raise Broken(f"leader completeness: node {node} leads in term {term} without entry {index}")

    def wrote(self, before: int | None, entries: Sequence[Entry]) -> None:
        """`before`: the term of the entry before them."""
        for entry in entries:
            known = self._written.setdefault((entry.index, entry.term), (before, entry))
            if known[1] != entry or (before is not None and known[0] not in (None, before)):
                raise Broken(f"log matching: {known} and {(before, entry)}")
            before = entry.term

    def committed(self, index: int, entry_term: int, term: int) -> None:
        known = self._committed.setdefault(index, (entry_term, term))
        if known[0] != entry_term:
            raise Broken(f"commit: entry {index} of terms {known[0]} and {entry_term}")

    def applied(self, node: int, index: int, state: int, entry: Entry | None) -> None:
        """`entry`: what was applied, None for a snapshot; `state`: what it led to."""
        known, led_to = self._applied.setdefault(index, (entry, state))
        if led_to != state or (known and entry and known != entry):
            raise Broken(f"state machine safety: node {node} has applied another entry {index}")

    def read(self, node: int, applied: int, floor: int) -> None:
        """Answered at `applied`; `floor` is what it was when the question was asked."""
        if applied < floor:
            raise Broken(f"linearizable reads: node {node} answered from {applied}, {floor} was known")
        self.floor = max(self.floor, applied)


def following(state: int, data: bytes) -> int:
    """The whole catalog, in 32 bits: it differs if anything before did."""
    return zlib.crc32(data, state)
