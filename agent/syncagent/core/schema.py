"""Schema changes as the sites agree on them: steps in phases, who has done them, and when the next may be let go.

It exists so that every site computes the same from the same entries, and any order of sites that are away, fail or take
over can be tried without a database.

A change is a list of steps. Each step that is let go is one entry, and raises the *epoch* of the schema by one, for good;
every site does the steps in their order, each in one transaction with the epoch it reaches. A change is taken back by
more steps.

Invariants: one change is open at a time; a step is let go once, and only when those that it waits for have done all steps
before it; what contracts waits for every member but those excluded by name; after that nothing is taken back.

Calling sequence, at the site that leads:

    command = due(schema, members, near)        # after every event; propose it
    waiting = waited_for(schema, members, near) # whom the next step waits for

and at every site:

    move = next_move(schema, epoch)             # what this site, at this epoch, does next; then it is at move.upto
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec.structs import replace

from syncagent.core.attachment import Attachment
from syncagent.core.batch import Table
from syncagent.core.merge import Merges, Strategy
from syncagent.errors import ProtocolError

Phase = Literal["expand", "write-dual", "backfill", "read-new", "contract", "undo"]
Manner = Literal["transaction", "alone", "survey", "fill", "data"]
"""In one transaction with its epoch; by itself, for it cannot run in one; only looked at, to be refused if rows stand against it; or
rows get their value, portion by portion; or rows are written by whoever asked for the change, at one site."""
State = Literal["open", "back", "done", "aborted"]

_KEPT = 50
"""Changes that are over, and remembered all the same."""


class Fill(msgspec.Struct, frozen=True):
    """What rows of the epoch before have in a column that was added: a constant, as SQL writes it; None: null."""

    table: Table
    column: str
    value: str | None


class Filling(msgspec.Struct, frozen=True):
    """Rows without a value in this column get that of an expression over the row."""

    table: Table
    column: str
    value: str


class Adopted(msgspec.Struct, frozen=True):
    """A part of a table as somebody has made it by hand at some site: as JSON, None: dropped; `became` is its other name. A step that
    adopts it is left out where it finds it so, or done `again` all the same."""

    table: Table
    kind: str
    name: str
    now: str | None
    became: str | None = None
    again: bool = False


class Shown(msgspec.Struct, frozen=True):
    """A table as a version of the schema shows it: the view's name, and of each of its columns the name there and in the table."""

    name: str
    table: Table
    columns: tuple[tuple[str, str], ...]


class Version(msgspec.Struct, frozen=True):
    """A schema of views over the tables of `base`, as one version of the application knows them."""

    name: str
    base: str
    views: tuple[Shown, ...]


class Remerged(msgspec.Struct, frozen=True):
    """How a table is merged from here on; `whole`: as before, but its rows are logged whole, until the step that changes it."""

    table: Table
    strategy: Strategy
    merges: Merges = ()
    whole: bool = False


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """`strict`: batches of the epoch before cannot be read any more. `gone` are tables that are dropped, `renamed` those with
    another name, `columns` renamed columns. A survey's statements find rows that stand against `what`. `index` is what a step that is
    done alone makes or drops, `everybody`: it is let go when no member is missing. `data`: a revision of the application, and the site that writes its
    rows. `adopts` is what some site has already. `makes` and `unmakes` are versions that it makes and drops; `aside`: views of those that are
    there are made anew around it. `remerges` changes a table's strategy; `delivered`: it is let go when what each site wrote before its epoch has come
    everywhere. Its statements run as whoever owns the table `owner`, unless the change says as whom: there a person's words are computed. `undoes` is
    the epoch this step takes back."""

    phase: Phase
    what: str
    locks: str
    statements: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    manner: Manner = "transaction"
    strict: bool = False
    fills: tuple[Fill, ...] = ()
    attach: tuple[Attachment, ...] = ()
    gone: tuple[Table, ...] = ()
    renamed: tuple[tuple[Table, Table], ...] = ()
    columns: tuple[tuple[Table, str, str], ...] = ()
    index: str | None = None
    filling: Filling | None = None
    data: tuple[str, int] | None = None
    everybody: bool = False
    adopts: tuple[Adopted, ...] = ()
    makes: tuple[Version, ...] = ()
    unmakes: tuple[str, ...] = ()
    aside: bool = False
    remerges: Remerged | None = None
    delivered: bool = False
    owner: Table | None = None
    undoes: int | None = None

    @property
    def contracts(self) -> bool:
        """Nothing is taken back once it is let go: the old shape goes. To look for who uses it takes nothing."""
        if self.remerges is not None and self.undoes is None:
            return not self.remerges.whole
        return self.phase == "contract" and self.manner != "survey"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """`at`: when it was asked for, in milliseconds since 1970, at which site; `role` and `path` are those its statements run with.
    `base` is the epoch before it, `track` its steps that were let go, `ahead` those to come."""

    id: UUID
    name: str
    text: str
    at: int
    site: str
    role: str | None
    path: str
    auto: bool
    ahead: tuple[Step, ...]
    base: int = 0
    track: tuple[Step, ...] = ()
    state: State = "open"
    approved: bool = False
    excluded: tuple[int, ...] = ()
    failures: dict[int, str] = {}

    @property
    def is_open(self) -> bool:
        return self.state in ("open", "back")

    @property
    def phase(self) -> Phase | None:
        """Of the step that was let go last."""
        return self.track[-1].phase if self.track else None

    @property
    def upto(self) -> int:
        """The epoch that its steps have led to."""
        return self.base + len(self.track)


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """`reached` is the epoch that each site has said to be at; `delivered` one of which it has said that what it wrote before has come
    everywhere."""

    epoch: int = 0
    changes: tuple[Change, ...] = ()
    reached: dict[int, int] = {}
    delivered: dict[int, int] = {}

    @property
    def open(self) -> Change | None:
        return next((change for change in self.changes if change.is_open), None)


# ---- commands


class Open(msgspec.Struct, frozen=True, tag=True):
    """A change, planned."""

    change: Change


class Advance(msgspec.Struct, frozen=True, tag=True):
    """Its next step is let go: the one at this place."""

    change: UUID
    place: int


class Reached(msgspec.Struct, frozen=True, tag=True):
    """A site has got to this epoch; or cannot do the step after it. `delivered`: what it wrote before has come everywhere."""

    node: int
    epoch: int
    failure: str | None = None
    delivered: bool = False


class Approve(msgspec.Struct, frozen=True, tag=True):
    """Whoever uses the old shape is gone: it may be contracted. What could not be done before is looked at anew."""

    change: UUID


class Exclude(msgspec.Struct, frozen=True, tag=True):
    """It does not wait for this site any more."""

    change: UUID
    node: int


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Take back what was done of it."""

    change: UUID


class Close(msgspec.Struct, frozen=True, tag=True):
    """All its steps are done."""

    change: UUID


SchemaCommand = Open | Advance | Reached | Approve | Exclude | Abort | Close


def attached_after(step: Step, attached: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """The tables that are replicated once a step is let go."""
    names = dict(step.renamed)
    kept = [
        replace(known, table=names.get(known.table, known.table))
        for known in attached
        if known.table not in step.gone
    ]
    if (how := step.remerges) is not None and not how.whole:
        kept = [
            replace(known, strategy=how.strategy, merges=how.merges) if known.table == how.table else known
            for known in kept
        ]
    return tuple(sorted((*kept, *step.attach)))


class Result(NamedTuple):
    """The schema after a command; the step it has let go, if any; or why it was refused."""

    schema: Schema
    released: Step | None = None
    refused: str | None = None
    hint: str | None = None


def apply(
    schema: Schema,
    command: SchemaCommand,
    members: Mapping[int, str],
    joining: Sequence[str] = (),
    attached: Iterable[Attachment] | None = None,
) -> Result:
    """`members`: sites with rows, by number; `joining`: those that have not got theirs yet; `attached`: tables, where they are known."""
    match command:
        case Open() if joining:
            return Result(
                schema,
                refused=f"site {joining[0]} is joining",
                hint="wait until it has its copy: `syncagent status`",
            )
        case Open() if attached is not None and not _starts_from(command.change, attached):
            return Result(
                schema,
                refused="the table is not attached, or is merged in another way by now",
                hint="look again: `syncagent strategy TABLE`; `syncagent schema status` says whether this site has steps to do",
            )
        case Open():
            return _open(schema, command.change)
        case Reached():
            return Result(_reached(schema, command))
        case Abort():
            return _abort(schema, command)
        case Exclude() if command.node not in members:
            return Result(schema, refused=f"no member with rows has the number {command.node}")
        case Exclude() if schema.open is not None and any(step.delivered for step in schema.open.ahead):
            return Result(
                schema,
                refused="what every site has written by column must have come to all others first",
                hint="wait for it; or `syncagent schema abort`; or `syncagent remove` it, if it is gone for good",
            )
        case Advance() | Approve() | Exclude() | Close():
            change = schema.open
            if change is None or change.id != command.change:
                return Result(schema)  # it came twice, or late
            return _changed(schema, change, command, members)


def _starts_from(change: Change, attached: Iterable[Attachment]) -> bool:
    """Whether a strategy that it changes is the one it was planned from."""
    how = next((step.remerges for step in change.ahead if step.remerges is not None), None)
    if how is None:
        return True
    known = next((known for known in attached if known.table == how.table), None)
    return known is not None and (
        (known.strategy, known.merges) == (how.strategy, how.merges) if how.whole else known.strategy == "lww"
    )


def _open(schema: Schema, change: Change) -> Result:
    if any(known.id == change.id for known in schema.changes):
        return Result(schema)
    if (other := schema.open) is not None:
        return Result(
            schema,
            refused=f"another schema change is under way: {other.name}",
            hint="one at a time: wait for it (`syncagent schema status`), or take it back (`syncagent schema abort`)",
        )
    begun = replace(
        change, base=schema.epoch, track=(), state="open", approved=False, excluded=(), failures={}
    )
    return Result(replace(schema, changes=(*schema.changes, begun)))


def _reached(schema: Schema, command: Reached) -> Schema:
    reached = {**schema.reached, command.node: max(command.epoch, schema.reached.get(command.node, 0))}
    schema = replace(schema, reached=reached)
    if command.delivered:
        schema = replace(schema, delivered={**schema.delivered, command.node: command.epoch})
    change = schema.open
    if change is None:
        return schema
    failures = {node: why for node, why in change.failures.items() if node != command.node}
    move = next_move(schema, command.epoch) if command.epoch >= reached[command.node] else None
    if command.failure is not None and move is not None and move.step is not None:
        failures[command.node] = command.failure
    return _with(schema, replace(change, failures=failures))


def _abort(schema: Schema, command: Abort) -> Result:
    change = next((change for change in schema.changes if change.id == command.change), None)
    if change is None or change.state in ("back", "aborted"):
        return Result(schema)
    if any(step.contracts for step in change.track) or change.state == "done":
        return Result(
            schema,
            refused=f"{change.name} cannot be taken back: "
            + ("it is done" if change.state == "done" else "the old shape is being dropped"),
            hint="change it back with `syncagent strategy`"
            if any(step.remerges for step in change.track)
            else "write a change that makes it again: `syncagent schema plan`",
        )
    undo = tuple(
        inverse(step, change.base + place) for place, step in reversed(list(enumerate(change.track, 1)))
    )
    return Result(_with(schema, replace(change, state="back", ahead=undo, failures={})))


def inverse(step: Step, epoch: int) -> Step:
    """The step that takes this one back."""
    return Step(
        phase="undo",
        what=f"take back: {step.what}",
        locks=step.locks,
        statements=step.undo,
        manner="alone" if step.manner == "alone" else "transaction",
        strict=True,
        gone=tuple(attachment.table for attachment in step.attach),
        renamed=tuple((new, old) for old, new in step.renamed),
        columns=tuple((table, new, old) for table, old, new in step.columns),
        index=step.index,
        data=step.data,
        adopts=step.adopts,
        unmakes=tuple(version.name for version in step.makes),
        aside=step.aside,
        remerges=step.remerges and replace(step.remerges, whole=False),
        owner=step.owner,
        undoes=epoch,
    )


def _changed(
    schema: Schema, change: Change, command: Advance | Approve | Exclude | Close, members: Mapping[int, str]
) -> Result:
    match command:
        case Advance() if command.place == len(change.track) and change.ahead:
            step = change.ahead[0]
            after = replace(change, track=(*change.track, step), ahead=change.ahead[1:], failures={})
            return Result(replace(_with(schema, after), epoch=schema.epoch + 1), step)
        case Approve():
            return Result(_with(schema, replace(change, approved=True, failures={})))  # they try again
        case Exclude():
            return Result(_with(schema, replace(change, excluded=tuple({*change.excluded, command.node}))))
        case Close() if not change.ahead:
            over: State = "aborted" if change.state == "back" else "done"
            return Result(_pruned(_with(schema, replace(change, state=over, failures={})), members))
        case _:
            return Result(schema)  # decided by who did not know what had been


def _with(schema: Schema, change: Change) -> Schema:
    changes = tuple(change if known.id == change.id else known for known in schema.changes)
    return replace(schema, changes=changes)


def _pruned(schema: Schema, members: Mapping[int, str]) -> Schema:
    """What is over for everybody, but for the newest."""
    slowest = min((schema.reached.get(node, 0) for node in members), default=schema.epoch)
    old, new = schema.changes[:-_KEPT], schema.changes[-_KEPT:]
    return replace(schema, changes=(*(change for change in old if change.upto > slowest), *new))


# ---- what is done next


def waited_for(schema: Schema, members: Mapping[int, str], near: frozenset[int]) -> dict[int, str]:
    """Whom the next step waits for, and why. `near`: sites that can be reached."""
    change = schema.open
    if change is None:
        return {}
    everybody = bool(change.ahead) and (change.ahead[0].everybody or change.ahead[0].phase == "contract")
    left_out = change.ahead[0].undoes or 0 if change.ahead else 0
    waiting = {}
    for node in members:
        if schema.reached.get(node, 0) < left_out:
            continue  # what is taken back next it has not done: it leaves it out, and nothing before that keeps it
        lag = schema.epoch - schema.reached.get(node, 0)
        if node in change.failures:
            waiting[node] = change.failures[node]
        elif lag > 0 and node in near:
            waiting[node] = f"has {lag} of the steps still to do"
        elif everybody and node not in near and node not in change.excluded:
            waiting[node] = "cannot be reached" + (
                f", and has {lag} of the steps still to do" if lag > 0 else ""
            )
        elif is_to_deliver(schema, node):
            waiting[node] = "has written what has not come everywhere yet"
    return waiting


def is_to_deliver(schema: Schema, node: int) -> bool:
    """Whether the next step waits until what this site wrote before has come everywhere."""
    change = schema.open
    asked = change is not None and bool(change.ahead) and change.ahead[0].delivered
    return asked and schema.delivered.get(node, 0) < schema.epoch


def awaits_approval(change: Change) -> bool:
    """What comes next drops the old shape, and nobody has said yet that it may."""
    contracts = bool(change.ahead) and change.ahead[0].phase == "contract"
    return change.state == "open" and contracts and not (change.auto or change.approved)


def due(schema: Schema, members: Mapping[int, str], near: frozenset[int]) -> SchemaCommand | None:
    """What the site that leads proposes now."""
    change = schema.open
    if change is None or waited_for(schema, members, near) or awaits_approval(change):
        return None
    return Advance(change.id, len(change.track)) if change.ahead else Close(change.id)


class Move(NamedTuple):
    """What a site does to get to an epoch; without a step, nothing is to be done."""

    upto: int
    step: Step | None
    change: Change


def next_move(schema: Schema, at: int) -> Move | None:
    """What this site does next. A step that was taken back meanwhile is left out, with all up to its end: it may be the one that
    cannot be done here."""
    if at >= schema.epoch:
        return None
    for change in schema.changes:
        if change.base <= at < change.upto:
            for epoch, step in enumerate(change.track, change.base + 1):
                if step.undoes == at + 1:
                    return Move(epoch, None, change)
            return Move(at + 1, change.track[at - change.base], change)
    raise ProtocolError(
        f"step {at + 1} of the schema is not known any more",
        hint="this site was away for too long: `syncagent remove` it at a member, and let it join again",
    )


def floor_after(move: Move, floor: int) -> int:
    """The oldest epoch whose batches can be read once the move is made; `floor` was it before."""
    strict = move.step is None or move.step.strict
    return move.upto if strict else max(floor, move.upto - 1)
