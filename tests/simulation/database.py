"""A site's database in memory: what sql/ does, one key at a time, with the verdicts of core/merge.py.

Invariant: what is committed but not flushed is lost in a crash; a cut's commit flushes all before it.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID

from syncagent.core import clock, merge, stamp
from syncagent.core import frontier as vectors
from syncagent.core.arrival import START, Position
from syncagent.core.batch import BatchHeader, CutContext, Form, Stream, Table
from syncagent.core.merge import Dot, Incoming, Local, Op, Version, Window
from syncagent.core.outbox import Group
from syncagent.errors import Contended, Inexact
from tests.simulation.truth import Broken, Write, apart

_TABLE = Table("public", "item")
_BYTES = 100
_GRACE = 5 * 1000 * stamp.UNITS_PER_MS
"""After which a tombstone goes, where that is the rule that is not kept."""


class Row(NamedTuple):
    """A shipped row. No stamp: implicit; no cut: it came in the plain form. `write` is for the truth."""

    key: UUID
    stamp: UUID | None
    cut: int | None
    deleted: bool
    value: int | None
    write: int


class Logged(NamedTuple):
    """A committed transaction in the log."""

    xid: int
    stamp: UUID
    entries: tuple[tuple[UUID, Op, int], ...]


class Running(NamedTuple):
    """A pg_snapshot: who ran when it was taken."""

    xmax: int
    xids: frozenset[int]


class Context(NamedTuple):
    frontier: dict[int, int]
    applied: Running | None  # None: a cut of our own
    newest: int


class Made(NamedTuple):
    """A cut in the cut table."""

    id: UUID
    newest: int


Keys = dict[UUID, bool]
"""What a cut saw changed: key -> implicit."""


class Payload(NamedTuple):
    rows: list[Row]
    keys: dict[int, Keys]  # of the rows, by cut


@dataclass
class State:
    """All that is committed. Values are never changed in place, so a shallow copy is a snapshot."""

    clock: int = 0
    rows: dict[UUID, int] = field(default_factory=dict)
    entries: dict[UUID, Version] = field(default_factory=dict)
    log: list[Logged] = field(default_factory=list)
    logged: dict[UUID, UUID] = field(default_factory=dict)  # the largest stamp in the log, per key
    positions: dict[int, Position] = field(default_factory=dict)
    known: dict[int, dict[int, int]] = field(default_factory=dict)
    contexts: dict[tuple[int, int], Context] = field(default_factory=dict)
    cuts: dict[int, Made] = field(default_factory=dict)
    records: dict[tuple[int, int], Keys] = field(default_factory=dict)  # by node and cut
    oldest: int = 0  # of the transactions that ran at the last cut
    trimmed: int = 0
    settling: set[UUID] = field(default_factory=set)
    mark: UUID = stamp.ZERO
    # the truth
    committed: list[Write] = field(default_factory=list)
    past: dict[UUID, int] = field(default_factory=dict)  # the write that the version of a key is
    met: dict[UUID, int] = field(default_factory=dict)
    tombs: dict[UUID, int] = field(default_factory=dict)  # the write that a tombstone from elsewhere is
    conflicts: set[int] = field(default_factory=set)

    def copy(self) -> "State":
        other = replace(self)
        for name, value in self.__dict__.items():
            if isinstance(value, dict | list | set):
                setattr(other, name, value.copy())
        return other


@dataclass
class Transaction:
    xid: int
    writes: list[Write] = field(default_factory=list)


class Shipped(NamedTuple):
    group: Group
    header: BatchHeader
    payload: Payload


@dataclass
class Staged:
    """A cut whose commit is still to come, read in one snapshot."""

    number: int
    id: UUID
    made: Made
    keys: Keys
    frontier: dict[int, int]
    entries: dict[UUID, Version]
    seen: dict[UUID, Version | None]  # the entries it found
    settling: set[UUID]
    conflicts: set[int]
    folded: int
    oldest: int
    shipments: list[Shipped]
    unable: list[Group]


class Database:
    """`writes` and `births` (those that became implicit) are everybody's; `broken` names the rules this one does not keep."""

    def __init__(
        self,
        node: int,
        rnd: random.Random,
        writes: list[Write],
        births: dict[UUID, set[int]],
        broken: Collection[str],
    ) -> None:
        self.node, self.rnd, self.writes, self.births, self.broken = node, rnd, writes, births, broken
        self.state = State()
        self.durable = self.state.copy()
        self.open: list[Transaction] = []
        self.told: dict[int, dict[int, int]] = {}  # what peers said beside their cuts
        self.merging = False
        self._xids = 1

    # ---- commits and crashes

    def flush(self) -> None:
        self.durable = self.state.copy()

    def crash(self) -> None:
        self.state = self.durable.copy()
        self.open.clear()
        self.told.clear()
        self.merging = False

    def tick(self, wall: int) -> int:
        self.state.clock = clock.tick(self.state.clock, wall)
        return self.state.clock

    # ---- the application

    def begin(self) -> Transaction:
        self._xids += 1
        self.open.append(Transaction(self._xids))
        return self.open[-1]

    def running(self) -> Running:
        return Running(self._xids + 1, frozenset(tx.xid for tx in self.open))

    def holder(self, key: UUID) -> Transaction | None:
        return next((tx for tx in self.open if any(w.key == key for w in tx.writes)), None)

    def visible(self, tx: Transaction, key: UUID) -> int | None:
        mine = [w.shown for w in tx.writes if w.key == key]
        return mine[-1] if mine else self.state.rows.get(key)

    def write(self, tx: Transaction, key: UUID, ops: Sequence[Op], wall: int, shown: int | None) -> None:
        """`shown` as a number says only that a row is left: it shows the number of the write, unless it is
        the agent's own, which leaves the row as it is."""
        number = len(self.writes)
        state = self.state
        before = next((w for w in reversed(tx.writes) if w.key == key), None)
        if before is None and key in state.past:
            before = self.writes[state.past[key]]
        saw = before.saw if before else 0
        met = saw | state.met.get(key, 0) | (before.met if before else 0)
        bit = 1 << number
        write = Write(
            number,
            key,
            number if shown == -1 else shown,
            saw | bit,
            met | bit,
            tuple((op, self.tick(wall)) for op in ops),
            key not in state.rows,
        )
        self.writes.append(write)
        tx.writes.append(write)

    def commit(self, tx: Transaction) -> None:
        self.open.remove(tx)
        if not tx.writes:
            return
        state = self.state
        last = max(at for write in tx.writes for _, at in write.entries)
        version = stamp.pack(last, self.node, self.node)
        for write in tx.writes:
            if write.shown is None:
                state.rows.pop(write.key, None)
            else:
                state.rows[write.key] = write.shown
            state.past[write.key] = write.number
            state.met[write.key] = state.met.get(write.key, 0) | write.met
            state.logged[write.key] = max(version, state.logged.get(write.key, version))
            state.committed.append(write)
        entries = tuple((write.key, op, at) for write in tx.writes for op, at in write.entries)
        state.log.append(Logged(tx.xid, version, entries))

    # ---- cuts

    def pending(self) -> bool:
        return bool(self.state.log or self.state.settling)

    def fold(self, groups: Iterable[Group], *, force: bool) -> Staged | None:
        """A cut of what is committed now; `install` commits it."""
        state = self.state
        if not state.log and not force:
            return None
        number = self.last.cut + 1
        named: dict[UUID, list[tuple[int, Op, int]]] = {}
        stamps: dict[UUID, UUID] = {}
        for xid, version, logged in state.log:
            for key, op, at in logged:
                named.setdefault(key, []).append((at, op, xid))
                stamps[key] = max(version, stamps.get(key, version))
        frontier = {node: position.cut for node, position in state.positions.items()} | {self.node: number}
        newest = max((at for found in named.values() for at, _, _ in found), default=0)
        cut_id = UUID(int=self.rnd.getrandbits(128))
        oldest = min((tx.xid for tx in self.open), default=self._xids + 1)
        made = Made(cut_id, newest)
        staged = Staged(
            number, cut_id, made, {}, frontier, {}, {}, set(), set(), len(state.log), oldest, [], []
        )
        for key, found in named.items():
            self._fold_key(staged, key, sorted(found), stamps[key])
        for group in groups:
            self._ship(staged, group)
        return staged

    def _fold_key(self, staged: Staged, key: UUID, found: list[tuple[int, Op, int]], version: UUID) -> None:
        state = self.state
        entry = staged.seen[key] = state.entries.get(key)
        unseen = False
        if entry is not None and entry.deleted and entry.dot.node != self.node and entry.dot.cut is not None:
            context = state.contexts.get((entry.dot.node, entry.dot.cut))
            ran = context.applied.xids if context and context.applied else frozenset()
            unseen = any(op == "insert" and xid in ran for _, op, xid in found)
        window = Window([op for _, op, _ in found], version, key in state.rows, entry, unseen)
        folded = merge.fold(key, window, Dot(self.node, staged.number), state.mark)
        if folded.outcome == "lost":
            raise Broken(f"node {self.node} lost {key}")
        staged.keys[key] = folded.outcome == "implicit"
        if folded.outcome == "implicit":
            self.births.setdefault(key, set()).add(state.past[key])
        if folded.outcome == "stamped":
            assert folded.entry is not None
            staged.entries[key] = folded.entry
        if folded.outcome == "settle":
            staged.settling.add(key)
        if folded.conflict:
            staged.conflicts |= {state.tombs[key], state.past[key]}

    def _ship(self, staged: Staged, group: Group) -> None:
        """The rows of a range of cuts, as they are in the cut's snapshot."""
        state, origin = self.state, group.origin or self.node
        at = Position(staged.number, staged.id) if origin == self.node else state.positions.get(origin, START)
        if at.cut <= group.after:
            return
        keys = {
            cut: found
            for (node, cut), found in sorted(state.records.items())
            if node == origin and cut > group.after
        }
        told = {
            cut: found
            for cut in range(group.after + 1, at.cut + 1)
            if (found := state.contexts.get((origin, cut)))
        }  # a want that is long out of date gets what the receiver refuses
        if origin == self.node:
            keys[at.cut] = staged.keys
            told[at.cut] = Context(staged.frontier, None, staged.made.newest)
        elif len(told) < at.cut - group.after:
            staged.unable.append(group)
            return
        folded = {key: (cut, plain) for cut, found in keys.items() for key, plain in found.items()}
        rows, shipped = list[Row](), dict[int, Keys]()
        for key, (cut, implicit) in sorted(folded.items()):
            entry, alive = staged.entries.get(key) or state.entries.get(key), key in state.rows
            dot = merge.shipped(cut, alive, entry, origin, group.after, implicit=implicit)
            if dot is not None and dot.cut is not None:
                number = at.cut if "dot" in self.broken else dot.cut
                rows.append(self._row(key, entry, None if entry is None and group.plain else number))
                shipped.setdefault(dot.cut, {})[key] = entry is None
        exact = sum(row.cut is not None for row in rows)
        forms: tuple[tuple[Form, int], ...] = (("plain", len(rows) - exact), ("exact", exact))
        streams = [Stream(_TABLE, form, ("id", "value"), n, n * _BYTES) for form, n in forms if n]
        header = BatchHeader(
            origin,
            group.after,
            at.cut,
            at.id or staged.id,
            tuple(CutContext(cut, context.frontier) for cut, context in told.items()),
            max(context.newest for context in told.values()),
            tuple(streams),
        )
        staged.shipments.append(Shipped(group, header, Payload(rows, shipped)))

    def _row(self, key: UUID, entry: Version | None, cut: int | None) -> Row:
        state = self.state
        if entry is None or not entry.deleted:
            return Row(key, entry.stamp if entry else None, cut, False, state.rows[key], state.past[key])
        ours = entry.dot.node == self.node  # else what is here may be a write that lost to the tombstone
        return Row(key, entry.stamp, cut, True, None, (state.past if ours else state.tombs)[key])

    def install(self, staged: Staged) -> bool:
        """The commit of a cut; False: what it read was changed under it, and it is to be made again."""
        state = self.state
        if "between" in self.broken and any(
            staged.seen[key] != state.entries.get(key) for key in staged.entries
        ):
            return False
        state.entries.update(staged.entries)
        del state.log[: staged.folded]
        state.logged = {}
        for _, version, entries in state.log:
            for key, _, _ in entries:
                state.logged[key] = max(version, state.logged.get(key, version))
        state.positions[self.node] = Position(staged.number, staged.id)
        state.known[self.node] = staged.frontier
        state.contexts[self.node, staged.number] = Context(staged.frontier, None, staged.made.newest)
        state.cuts[staged.number] = staged.made
        state.records[self.node, staged.number] = staged.keys
        state.oldest = staged.oldest
        state.settling |= staged.settling
        state.conflicts |= staged.conflicts
        if "flush" not in self.broken:
            self.flush()
        return True

    @property
    def last(self) -> Position:
        return self.state.positions.get(self.node, START)

    def cut_id(self, number: int) -> UUID | None:
        made = self.state.cuts.get(number)
        return made.id if made else None

    def settle(self, wall: int) -> None:
        """Rows that live under a newer tombstone become writes of this site, unless somebody holds them."""
        state = self.state
        if "settle" in self.broken:
            state.settling.clear()
        for key in sorted(state.settling):
            if self.holder(key) is None:
                state.settling.discard(key)
                if merge.needs_settling(self.local(key)):
                    tx = self.begin()
                    self.write(tx, key, ["update"], wall, state.rows[key])
                    self.commit(tx)
            elif not (key in state.rows and (entry := state.entries.get(key)) and entry.deleted):
                state.settling.discard(key)

    # ---- apply

    def local(self, key: UUID) -> Local:
        state = self.state
        value = state.rows.get(key)
        content = None if value is None else value.to_bytes(8)
        born = tuple(Dot(*dot) for dot, keys in state.records.items() if keys.get(key))
        return Local(value is not None, state.entries.get(key), state.logged.get(key), content, born)

    def apply(self, parts: Sequence[tuple[BatchHeader, Payload]], wall: int) -> None:
        """One transaction, not flushed. Raises Contended or Inexact, and has changed nothing then."""
        before = self.state.copy() if len(parts) > 1 else self.state
        try:
            for header, payload in parts:
                self._merge(header, payload, wall)
        except (Contended, Inexact):
            self.state = before
            raise
        here = {node: position.cut for node, position in self.state.positions.items()}
        for header, _ in parts:
            if not vectors.covers(here, header.context | {header.origin: header.upto}):
                raise Broken(f"node {self.node} shows cut {header.upto} of {header.origin} before its causes")

    def _merge(self, header: BatchHeader, payload: Payload, wall: int) -> None:
        state, origin, rows = self.state, header.origin, payload.rows
        if state.positions.get(origin, START).cut != header.after:
            raise Broken(
                f"node {self.node} applies {header.after}-{header.upto} of {origin} in the wrong place"
            )
        if "lock" not in self.broken and any(self._held(row) for row in rows):
            raise Contended("a row is being written")
        if "plain" not in self.broken and any(
            row.cut is None and (row.key in state.entries or row.key in state.logged) for row in rows
        ):
            raise Inexact("plain rows met metadata")
        state.clock = clock.lift(self.tick(wall), header.newest)
        applied = self.running()
        for context in header.contexts:
            state.contexts[origin, context.cut] = Context(context.frontier, applied, header.newest)
        lost = set[UUID]()
        for row in rows:
            if row.cut is not None and row.cut <= header.after and "again" not in self.broken:
                continue  # it has come by another way
            if "plain" in self.broken and row.cut is None:
                self._take(row, None)
            elif self._judge(header, row) and "relayed" not in self.broken:
                lost.add(row.key)
        for cut in (cut for cut in payload.keys if cut > header.after):
            keys = payload.keys[cut]
            state.records[origin, cut] = {k: implicit for k, implicit in keys.items() if k not in lost}
        state.positions[origin] = Position(header.upto, header.upto_id)
        state.known[origin] = header.context

    def _held(self, row: Row) -> bool:
        """Is the row being written here? A tombstone finds no row of an open insert."""
        return any(
            write.key == row.key and not (write.fresh and row.deleted)
            for tx in self.open
            for write in tx.writes
        )

    def _judge(self, header: BatchHeader, row: Row) -> bool:
        """Whether it has lost, in a conflict."""
        state, key = self.state, row.key
        local = self.local(key)
        dot = Dot(header.origin, row.cut)
        version = row.stamp if row.stamp is not None else stamp.implicit(key)
        incoming = Incoming(version, dot, row.deleted, None if row.value is None else row.value.to_bytes(8))
        context = {} if row.cut is None else state.contexts[header.origin, row.cut].frontier
        verdict = merge.merge(key, local, incoming, self.node, context, self._context)
        theirs = self.writes[row.write]
        if verdict.conflict:
            ours = self.writes[state.past[key]]
            # An implicit stamp stands for whoever inserted the key.
            born = self.births.get(key, ()) if row.stamp is None else ()
            if not any(apart(ours, self.writes[one]) for one in {row.write, *born}):
                raise Broken(f"false alarm at node {self.node}: {ours} and {theirs}")
            state.conflicts |= {ours.number, theirs.number}
        if verdict.action == "take":
            if verdict.unborn:
                self._unborn(key)
            self._take(row, verdict.entry)
        else:
            state.met[key] = state.met.get(key, 0) | theirs.met
            if verdict.action == "trace":
                assert verdict.entry is not None
                state.entries[key] = verdict.entry
        return verdict.conflict and verdict.action != "take"

    def _unborn(self, key: UUID) -> None:
        for (node, cut), keys in self.state.records.items():
            kept = "unborn" if node == self.node else "relayed"
            if keys.get(key) and kept not in self.broken:
                self.state.records[node, cut] = {k: implicit for k, implicit in keys.items() if k != key}

    def _take(self, row: Row, entry: Version | None) -> None:
        state, key = self.state, row.key
        if row.deleted:
            state.rows.pop(key, None)
            state.tombs[key] = row.write
        else:
            assert row.value is not None
            state.rows[key] = row.value
        if entry is None:
            state.entries.pop(key, None)
        else:
            state.entries[key] = entry
        state.past[key] = row.write
        state.met[key] = state.met.get(key, 0) | self.writes[row.write].met

    def _context(self, dot: Dot) -> dict[int, int] | None:
        assert dot.cut is not None
        found = self.state.contexts.get((dot.node, dot.cut))
        return found.frontier if found else None

    # ---- compaction

    def stable(self, members: Iterable[int]) -> dict[int, int]:
        state = self.state
        here = {node: position.cut for node, position in state.positions.items()}
        known = {**state.known, self.node: here}
        if "stable" in self.broken:
            return here
        if "told" in self.broken:
            known = {node: vectors.join(what, self.told.get(node, {})) for node, what in known.items()}
        return vectors.stable(known, members)

    def compact(self, members: Iterable[int]) -> None:
        state = self.state
        if self.merging or not self.last.cut:
            return
        stable = self.stable(members)
        if not state.log:  # all that has ended is folded
            state.oldest = min((tx.xid for tx in self.open), default=self._xids + 1)
        for key, entry in list(state.entries.items()):
            found = state.contexts.get((entry.dot.node, entry.dot.cut)) if entry.dot.cut else None
            old = bool(found and found.applied and found.applied.xmax > state.oldest)
            if "grace" in self.broken and entry.deleted:
                droppable = state.clock - stamp.hlc(entry.stamp) > _GRACE
            else:
                droppable = merge.may_drop(key, self.local(key), stable, old)
            if key in state.settling or not droppable:
                continue
            del state.entries[key]
            if entry.deleted:
                state.mark = max(state.mark, entry.stamp)
        for (node, cut), context in list(state.contexts.items()):
            free = context.applied is None or context.applied.xmax <= state.oldest
            if cut <= stable.get(node, 0) and free:
                del state.contexts[node, cut]
        for node, cut in [dot for dot in state.records if dot[1] <= stable.get(dot[0], 0)]:
            del state.records[node, cut]
        done = stable.get(self.node, 0)
        for cut in [cut for cut in state.cuts if cut < done]:
            del state.cuts[cut]
        state.trimmed = max(state.trimmed, done)
