"""The rules of the protocol for one key: what apply, fold, shipping and compaction do with it.

It exists to be read, and to hold the SQL to: the SQL does the same for sets of rows and is compared with
these functions. They are total and know no table, no transaction and no order of events beyond what
their arguments say.

A row without a version entry has an *implicit* stamp: its key, or zero for a key that has no time.

Invariants: the larger stamp wins, on every site; a version is replaced only by a larger one; whatever a
committed write loses against is either a version its writer had seen, or recorded in a conflict.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from syncagent.core import stamp as stamps
from syncagent.core.frontier import Frontier

Op = Literal["insert", "update", "delete"]
Strategy = Literal["lww", "lww-column", "merge"]
"""The larger stamp wins the row; or, within the row's life, each column; or what two sites write in one column is joined."""
Merges = tuple[tuple[str, str], ...]
"""How columns are joined, by name: counter, set, append, max, min, function:SCHEMA.NAME@DIGEST; others show the latest write."""


@dataclass(frozen=True, slots=True)
class Dot:
    """The first cut that saw a version. No cut: written at that node and not cut yet."""

    node: int
    cut: int | None


@dataclass(frozen=True, slots=True)
class Version:
    """An entry of the version table."""

    stamp: UUID
    dot: Dot
    deleted: bool


@dataclass(frozen=True, slots=True)
class Local:
    """What a site holds of a key, read in one statement: row, version entry, unfolded log."""

    alive: bool
    entry: Version | None = None
    logged: UUID | None = None  # the largest stamp among committed log entries that no cut has folded
    content: bytes | None = None  # only compared, and only between two implicit rows
    born: tuple[
        Dot, ...
    ] = ()  # the cuts, of whichever site, that found this very row implicit, while they are kept


@dataclass(frozen=True, slots=True)
class Incoming:
    """A shipped row: its own dot, even in a batch of many cuts."""

    stamp: UUID
    dot: Dot
    deleted: bool
    content: bytes | None = None


def is_implicit(key: UUID, stamp: UUID) -> bool:
    """A row with this stamp needs no version entry."""
    return stamp == stamps.implicit(key)


def local_stamp(key: UUID, local: Local) -> UUID | None:
    """The stamp of what the site holds: the larger of version and log, else implicit; None: nothing.

    A logged write is not compared with the implicit stamp: it is above it, unless the key is ahead of the
    clock; then the fold gives the row its logged stamp, and so it must be judged by that one already.
    """
    if local.entry is None:
        return local.logged or (stamps.implicit(key) if local.alive else None)
    return local.entry.stamp if local.logged is None else max(local.entry.stamp, local.logged)


# ---- apply


@dataclass(frozen=True, slots=True)
class Merged:
    """What apply does with one incoming row. `entry` is the version entry afterwards, None for none.

    `unborn`: the insert that the row was stands in a conflict now, so the row must not be taken for it any more.
    Nor must it for an incoming insert that has lost in a conflict."""

    action: Literal["take", "keep", "trace"]
    entry: Version | None
    conflict: bool
    unborn: bool = False


def merge(
    key: UUID,
    local: Local,
    incoming: Incoming,
    me: int,
    context: Frontier,
    contexts: Callable[[Dot], Frontier | None],
) -> Merged:
    """`context` is that of the incoming row's own cut; `contexts` looks up the context of any other cut."""
    mine = local_stamp(key, local)
    twice = is_twice(key, local, incoming)
    conflict = twice or (
        mine not in (None, incoming.stamp) and concurrent(local, incoming, context, contexts)
    )
    if (
        mine is None
        or incoming.stamp > mine
        or (twice and (incoming.content or b"") > (local.content or b""))
    ):
        # Over a write that is not folded yet even an implicit row leaves an entry: the fold must see it.
        implicit = not incoming.deleted and is_implicit(key, incoming.stamp) and local.logged is None
        entry = None if implicit else Version(incoming.stamp, incoming.dot, incoming.deleted)
        return Merged("take", entry, conflict, conflict and bool(local.born))
    if local.logged is not None and local.logged == mine and local.entry is None:
        # Without a trace the fold could find this write implicit, although it won here by its logged stamp.
        # An entry says as much; a tombstone must stay until the fold has compared the insert with it.
        return Merged("trace", Version(mine, Dot(me, None), not local.alive), conflict)
    return Merged("keep", local.entry, conflict)


def is_twice(key: UUID, local: Local, incoming: Incoming) -> bool:
    """One key inserted twice with different content, both implicit: a conflict; the larger content wins."""
    return (
        local.alive
        and local.entry is None
        and local.logged is None
        and not incoming.deleted
        and is_implicit(key, incoming.stamp)
        and incoming.content != local.content
    )


def concurrent(
    local: Local, incoming: Incoming, context: Frontier, contexts: Callable[[Dot], Frontier | None]
) -> bool:
    """Had neither writer seen the other? Only for versions with different stamps."""
    if local.logged is not None and (
        local.entry is None
        or local.logged >= local.entry.stamp
        or (local.alive and local.entry.deleted)  # an insert that had not seen this tombstone
    ):
        return True  # not cut yet: nobody has seen it
    if local.entry is None:
        # Implicit: in everybody's past, but for an insert that is known here and that the writer had not seen.
        return local.alive and any((dot.cut or 0) > context.get(dot.node, 0) for dot in local.born)
    dot = local.entry.dot
    if dot.cut is None:
        return True
    if dot.cut <= context.get(dot.node, 0):
        return False  # the incoming writer had seen ours
    ours = contexts(dot)
    assert incoming.dot.cut is not None, "what is shipped has been cut"
    return (
        ours is None or ours.get(incoming.dot.node, 0) < incoming.dot.cut
    )  # else ours had seen the incoming one


# ---- fold


@dataclass(frozen=True, slots=True)
class Window:
    """What a cut sees of a key that its log entries name: all of it under the cut's snapshot."""

    ops: Sequence[Op]  # of all entries of the window, in the order of their clocks
    stamp: UUID  # of the last transaction in the window that names the key
    alive: bool
    entry: Version | None = None
    unseen_tombstone: bool = (
        False  # one of the transactions already ran when the entry's tombstone was applied
    )


@dataclass(frozen=True, slots=True)
class Folded:
    """What the fold does with a key. `entry` is the version entry afterwards.

    implicit   shipped without metadata
    stamped    shipped, and its entry written
    replaced   nothing: a newer remote version travels in its own origin's batch
    settle     nothing is shipped; a row lives under a newer tombstone: a write of this site follows
    lost       nothing: the row is gone and no delete explains it: alarm, and a repair's work
    """

    outcome: Literal["implicit", "stamped", "replaced", "settle", "lost"]
    entry: Version | None
    conflict: bool  # with the tombstone in the entry

    @property
    def shipped(self) -> bool:
        return self.outcome in ("implicit", "stamped")


def fold(key: UUID, window: Window, dot: Dot, mark: UUID) -> Folded:
    """`mark`: the largest stamp of any tombstone that was collected here (`stamps.ZERO` before the first)."""
    entry = window.entry
    conflict = entry is not None and entry.deleted and window.unseen_tombstone
    if entry is not None and entry.stamp > window.stamp:
        return Folded("settle" if entry.deleted and window.alive else "replaced", entry, conflict)
    if not window.alive and "delete" not in window.ops:
        return Folded("lost", entry, conflict)
    if entry is None and is_born_implicit(key, window, mark):
        return Folded("implicit", None, conflict)
    return Folded("stamped", Version(window.stamp, dot, not window.alive), conflict)


def is_born_implicit(key: UUID, window: Window, mark: UUID) -> bool:
    """May a row without an entry go without metadata? Each condition loses committed rows if it is left out."""
    return (
        window.alive
        and window.ops[0] == "insert"  # first: an inner statement logs before the one that fired it
        and "delete" not in window.ops  # deleted and inserted again: somebody may hold the older row
        and stamps.is_timed(key)  # a key without a time has no stamp at its insert
        and key < window.stamp  # a key from a clock ahead of ours would beat every next write
        and key > mark  # below it a forgotten tombstone of this very key may be
    )


def needs_settling(local: Local) -> bool:
    """A row lives, its entry says deleted, nobody has written it since: this site must write it once more.

    Asked again under the row's lock. It depends on what is stored alone, so a restart can ask it for every
    tombstone and forget nothing.
    """
    return local.alive and local.entry is not None and local.entry.deleted and local.logged is None


# ---- ship


def shipped(
    folded: int, alive: bool, entry: Version | None, origin: int, after: int, *, implicit: bool = True
) -> Dot | None:
    """The dot under which a key travels in a batch of `origin` that starts after `after`; None: it does not.

    The origin ships what its log names; a relay, what the origin's cuts named that it has applied.

    `folded` is the last cut whose fold named the key, `implicit` whether it found the row implicit. If it
    did not and there is no entry now, some version of the key was compacted, so everybody has it: the row
    would travel under a stamp and a dot that are not its own. All else is read under the batch's snapshot.
    """
    if entry is None:
        return Dot(origin, folded) if alive and implicit and folded > after else None
    theirs = entry.dot.node == origin and entry.dot.cut is not None and entry.dot.cut > after
    return entry.dot if theirs and (alive or entry.deleted) else None


# ---- compaction


def may_drop(key: UUID, local: Local, stable: Frontier, old_transactions: bool) -> bool:
    """May the version entry go? For a tombstone: and the collected mark be raised to its stamp.

    `stable`: dots that every member is known to have applied. `old_transactions`: some that ran when the
    tombstone was applied here are open, or their log entries not folded; they may hold an insert of the key.
    """
    entry = local.entry
    if entry is None or entry.dot.cut is None or local.logged is not None:
        return False
    if stable.get(entry.dot.node, 0) < entry.dot.cut:
        return False
    if entry.deleted:
        return not old_transactions and not local.alive
    return entry.stamp >= stamps.implicit(key)
