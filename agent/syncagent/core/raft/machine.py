"""Raft: what one site does with what it hears, so that all of them apply the same entries in the same order.

It exists apart from clock, disk and network so that every order of events, and a crash between any two of
them, can be tried.

Invariants: one leader per term; logs that agree in an entry agree in all before it; a leader's log has all
that was committed before it; what is committed is applied in the same order everywhere; a read that is
released sees all that was answered to anybody before it was asked. They hold if nothing of a Ready is
sent or applied before its hard state, snapshot and entries are durable.

Calling sequence. Events go in, effects come out:

    machine = Machine(me, storage, chance, applied=...)    # at start; `applied` is recorded with what it led to
    machine.step(message)                    # from another site; may raise ProtocolError
    machine.tick()                           # every limits.RAFT_TICK seconds; machine.calm says how many nothing comes of
    machine.propose(data, change)            # may raise Undecided: try again; RefusedError: never
    machine.read(request)                    # the same; a request's id is never used twice
    machine.unreachable(peer)                # optional: its link went away
    machine.forget()                         # optional: the leader has said goodbye
    machine.transfer(peer)                   # a leader that is about to go away
    machine.campaign()                       # without waiting for the timeout
    while ready := machine.ready():          # after ANY event; one at a time
        ... save its hard state, then restore its snapshot, then append its entries, or all in one
            transaction; all durable before anything else happens
        ... send its messages; any may be lost
        ... apply its committed entries, if it has a snapshot from that on; skip those without data
        ... answer its reads from what is applied now; whoever waits for another one asks again in time
        machine.advance(ready)
    snapshot = machine.snapshot(data)        # between Readys, now and then: to compact the storage

Events may come while a Ready is being written. Whoever proposes knows its entry by what is in it: it may be
lost, or come twice. `chance(n)` is any number from 0 to n-1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, assert_never
from uuid import UUID

from syncagent.core.raft import quorum
from syncagent.core.raft.leader import Leader, Options
from syncagent.core.raft.log import Log
from syncagent.core.raft.messages import (
    NOBODY,
    Append,
    Appended,
    AskRead,
    Change,
    Entry,
    Handover,
    HardState,
    Heard,
    Heartbeat,
    Install,
    MayRead,
    Membership,
    Message,
    Propose,
    RequestVote,
    Snapshot,
    Vote,
)
from syncagent.core.raft.reads import Read
from syncagent.core.raft.storage import Storage
from syncagent.errors import ProtocolError, RefusedError, Undecided

Role = Literal["follower", "precandidate", "candidate", "leader"]

_DEFAULT = Options()


@dataclass(frozen=True)
class Ready:
    """What is to be done now, in this order."""

    hard_state: HardState | None
    snapshot: Snapshot | None
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]
    committed: tuple[Entry, ...]
    reads: tuple[UUID, ...]


class Machine:
    """See the module's docstring."""

    def __init__(
        self,
        me: int,
        storage: Storage,
        chance: Callable[[int], int],
        *,
        applied: int = 0,
        options: Options = _DEFAULT,
    ) -> None:
        self.me, self.options = me, options
        self.role: Role = "follower"
        self.leader = NOBODY
        self.log = Log(storage, applied)
        self.leading: Leader | None = None
        self._chance = chance
        self._saved = storage.hard_state()
        self.term, self.vote = self._saved.term, self._saved.vote
        if self.log.last_term > self.term:  # founded, or given a snapshot: that term is taken
            self.term, self.vote = self.log.last_term, NOBODY
        self._votes: dict[int, bool] = {}
        self._messages: list[Message] = []
        self._reads: list[tuple[int, UUID]] = []  # confirmed, to be released once so much is applied
        self._handed: Ready | None = None
        self._elapsed = 0
        self._wait()

    @property
    def membership(self) -> Membership:
        """The newest one here, committed or not."""
        return self.log.membership

    @property
    def live(self) -> frozenset[int]:
        """Whoever is in a membership that may be in force."""
        return frozenset(
            node for known in self.log.memberships.live(self.log.committed) for node in known.nodes
        )

    @property
    def calm(self) -> int:
        """Ticks until one that something comes of, that one included, if nothing is heard before."""
        if self.leading is not None:
            return self.leading.calm
        return max(1, self._timeout - self._elapsed)

    # ---- events

    def tick(self) -> None:
        if self.leading is not None:
            if not self.leading.tick():
                self._follow(self.term, NOBODY)
            return
        self._elapsed += 1
        if self._elapsed >= self._timeout:
            self.leader = NOBODY
            self.campaign()

    def campaign(self) -> None:
        """Ask whether others would vote for this site."""
        if self.leading is None and self._may_lead():
            self._campaign(pre=True)

    def propose(self, data: bytes, change: Change | None = None) -> None:
        """Something to agree on; the change, if any, takes effect with it."""
        assert data or change is not None, "no data is what a leader starts with"
        if self.leading is not None:
            self.leading.propose(data, change)
        else:
            self._send(Propose(to=self._known_leader(), sender=self.me, term=0, data=data, change=change))

    def read(self, request: UUID) -> None:
        """Released by a Ready from which on what is applied here is no older than this moment."""
        if self.leading is not None:
            self.leading.read(Read(request, self.me))
        else:
            self._send(AskRead(to=self._known_leader(), sender=self.me, term=0, request=request))

    def unreachable(self, peer: int) -> None:
        if self.leading is not None:
            self.leading.unreachable(peer)

    def forget(self) -> None:
        """The leader is going away: let others win an election at once."""
        if self.leading is None:
            self.leader = NOBODY

    def transfer(self, peer: int) -> None:
        """Raises RefusedError where there is nothing to hand over, or nobody to take it."""
        if self.leading is None:
            raise RefusedError(f"node {self.me} does not lead")
        self.leading.transfer(peer)

    def step(self, message: Message) -> None:
        if message.to != self.me or message.sender in (self.me, NOBODY):
            raise ProtocolError(
                "a message of the control plane went astray",
                detail=f"from node {message.sender} to node {message.to}, and this is node {self.me}",
            )
        if isinstance(message, Propose | AskRead):
            self._on_request(message)
        elif self._is_current(message):
            self._dispatch(message)
            if self.leading is not None and self.leading.is_removed:
                self._resign(self.leading)

    # ---- effects

    def ready(self) -> Ready | None:
        """None: nothing to do."""
        assert self._handed is None, "the last Ready was not advanced"
        if self.leading is not None:
            self.leading.emit()
        hard_state = HardState(self.term, self.vote)
        committed = self.log.committed_entries(self.options.append)
        upto = committed[-1].index if committed else max(self.log.applied, self._received())
        ready = Ready(
            hard_state if hard_state != self._saved else None,
            self.log.snapshot,
            self.log.unstable(),
            tuple(self._messages),
            committed,
            tuple(request for index, request in self._reads if index <= upto),
        )
        if ready == _NOTHING:
            return None
        self._messages = []
        self._reads = [(index, request) for index, request in self._reads if index > upto]
        self._handed = ready
        return ready

    def advance(self, ready: Ready) -> None:
        """All of it is done."""
        assert ready is self._handed, "they are done one at a time"
        self._handed = None
        self._saved = ready.hard_state or self._saved
        self.log.persisted(ready.entries, ready.snapshot)
        if ready.snapshot is not None:
            self.log.applied_to(ready.snapshot.index)
        if ready.committed:
            self.log.applied_to(ready.committed[-1].index)
        if self.leading is not None:
            self.leading.persisted()
            if self.leading.is_removed:
                self._resign(self.leading)

    def snapshot(self, data: bytes) -> Snapshot:
        """Of what is applied, for the storage's compaction. `data` is all of it."""
        assert self._handed is None, "between Readys it is known what is applied"
        index = self.log.applied
        return Snapshot(index, self.log.term(index) or 0, self.log.memberships.at(index), data)

    def _received(self) -> int:
        return self.log.snapshot.index if self.log.snapshot else 0

    def _send(self, message: Message) -> None:
        self._messages.append(message)

    # ---- roles

    def _wait(self) -> None:
        """Start waiting: for a leader's sign of life, or for votes."""
        self._elapsed = 0
        self._timeout = self.options.election + self._chance(self.options.election)

    def _follow(self, term: int, leader: int) -> None:
        if term != self.term:
            self.term, self.vote = term, NOBODY
        self.role, self.leader, self.leading = "follower", leader, None
        self._wait()

    def _may_lead(self) -> bool:
        """A site that is being removed may still be the only one that can commit its removal."""
        live = self.log.memberships.live(self.log.committed)
        return self.log.snapshot is None and any(self.me in membership.voters for membership in live)

    def _campaign(self, *, pre: bool, handover: bool = False) -> None:
        if not pre:
            self.term, self.vote = self.term + 1, self.me
        self.role, self.leader = "precandidate" if pre else "candidate", NOBODY
        self._wait()
        self._votes = {self.me: True}
        for node in self.membership.voters:
            if node != self.me:
                self._send(
                    RequestVote(
                        to=node,
                        sender=self.me,
                        term=self.term + pre,
                        index=self.log.last,
                        log_term=self.log.last_term,
                        pre=pre,
                        handover=handover,
                    )
                )
        self._count()

    def _count(self) -> None:
        result = quorum.tally(self.membership.voters, self._votes)
        if result == "won" and self.role == "precandidate":
            self._campaign(pre=False)
        elif result == "won":
            self.role, self.leader = "leader", self.me
            self._elapsed = 0
            self.leading = Leader(self.me, self.term, self.log, self.options, self._send, self._answer)
        elif result == "lost":
            self._follow(self.term, NOBODY)

    def _resign(self, leading: Leader) -> None:
        """Our removal is committed: tell so, and let whoever has most take over."""
        leading.emit()
        if heir := leading.successor():
            self._send(Handover(to=heir, sender=self.me, term=self.term))
        self._follow(self.term, NOBODY)

    # ---- terms

    def _is_current(self, message: Message) -> bool:
        """Settles which term it is now. False: nothing more is to be done with this message."""
        if message.term < self.term:
            self._correct(message)
            return False
        if message.term > self.term:
            match message:
                case RequestVote(handover=False) if self._has_leader():
                    return False  # whoever was cut off, or removed, does not disturb the others
                case RequestVote(pre=True) | Vote(pre=True, granted=True):
                    pass  # a term that nobody has begun
                case Append() | Install() | Heartbeat():
                    self._follow(message.term, message.sender)
                case _:
                    self._follow(message.term, NOBODY)
        return True

    def _has_leader(self) -> bool:
        """Has it been heard of within the shortest time after which anybody campaigns?"""
        return self.leader != NOBODY and self._elapsed < self.options.election

    def _correct(self, message: Message) -> None:
        """Whoever is behind learns the term: else neither could a candidate rejoin that is ahead."""
        match message:
            case Append() | Install() | Heartbeat():
                self._send(
                    Appended(to=message.sender, sender=self.me, term=self.term, index=0, rejected=True)
                )
            case RequestVote(pre=True):
                self._send(Vote(to=message.sender, sender=self.me, term=self.term, granted=False, pre=True))
            case _:
                pass

    # ---- messages

    def _on_request(self, message: Propose | AskRead) -> None:
        """Not passed on twice: while two sites take each other for the leader, it would go in circles."""
        if self.leading is None:
            return
        try:
            if isinstance(message, Propose):
                self.leading.propose(message.data, message.change)
            else:
                self.leading.read(Read(message.request, message.sender))
        except (Undecided, RefusedError):
            pass  # whoever asked has a limit to its patience

    def _dispatch(self, message: Message) -> None:
        match message:
            case RequestVote():
                self._on_request_vote(message)
            case Vote():
                self._on_vote(message)
            case Append() | Install() | Heartbeat():
                self._on_leader(message)
            case Appended():
                if self.leading is not None:
                    self.leading.appended(message)
            case Heard():
                if self.leading is not None:
                    self.leading.heard(message)
            case MayRead():
                self._reads.append((message.index, message.request))
            case Handover():
                if self.leading is None and self._may_lead():
                    self._campaign(pre=False, handover=True)
            case Propose() | AskRead():
                raise AssertionError("they belong to no term")
            case _:
                assert_never(message)

    def _on_request_vote(self, message: RequestVote) -> None:
        """Also of a learner: whoever asks may know a newer membership."""
        free = (
            self.vote == message.sender
            or (self.vote == NOBODY and self.leader == NOBODY)
            or (message.pre and message.term > self.term)
        )
        granted = free and self.log.is_complete(message.index, message.log_term)
        if granted and not message.pre:
            self.vote = message.sender
            self._elapsed = 0
        self._send(
            Vote(
                to=message.sender,
                sender=self.me,
                term=message.term if granted else self.term,
                granted=granted,
                pre=message.pre,
            )
        )

    def _on_vote(self, message: Vote) -> None:
        if self.role == ("precandidate" if message.pre else "candidate"):
            self._votes.setdefault(message.sender, message.granted)
            self._count()

    def _on_leader(self, message: Append | Install | Heartbeat) -> None:
        if self.leading is not None:
            raise ProtocolError(
                f"nodes {self.me} and {message.sender} both lead in term {self.term}",
                hint="a voter has forgotten its vote; find the site that was restored",
            )
        if self.role != "follower":
            self._follow(self.term, message.sender)
        self.leader, self._elapsed = message.sender, 0
        match message:
            case Append():
                self._send(self._appended(message))
            case Install():
                self._send(self._installed(message))
            case Heartbeat():
                self.log.commit(message.commit)
                self._send(Heard(to=message.sender, sender=self.me, term=self.term, read=message.read))

    def _appended(self, message: Append) -> Appended:
        if [entry.index for entry in message.entries] != [
            message.index + 1 + at for at in range(len(message.entries))
        ]:
            raise ProtocolError(f"node {message.sender} sent entries that do not follow each other")
        index: int | None = self.log.committed
        if message.index >= self.log.committed:
            index = self.log.accept(message.index, message.log_term, message.entries)
            self.log.commit(min(message.commit, index or 0))
        if index is not None:
            return Appended(to=message.sender, sender=self.me, term=self.term, index=index)
        hint, hint_term = self.log.agreement(message.index, message.log_term)
        return Appended(
            to=message.sender,
            sender=self.me,
            term=self.term,
            index=message.index,
            rejected=True,
            hint=hint,
            hint_term=hint_term,
        )

    def _installed(self, message: Install) -> Appended:
        """A snapshot older than what is committed here is of no use, nor one whose last entry is here."""
        snapshot, log = message.snapshot, self.log
        if log.term(snapshot.index) == snapshot.term:
            log.commit(snapshot.index)
        elif snapshot.index > log.committed:
            log.restore(snapshot)
        return Appended(to=message.sender, sender=self.me, term=self.term, index=log.committed)

    def _answer(self, read: Read) -> None:
        if read.sender == self.me:
            self._reads.append((read.upto, read.request))
        else:
            self._send(
                MayRead(to=read.sender, sender=self.me, term=self.term, request=read.request, index=read.upto)
            )

    def _known_leader(self) -> int:
        if self.leader == NOBODY:
            raise Undecided(
                "the cluster has no leader now",
                detail=f"voters: {', '.join(map(str, self.membership.voters)) or 'none known'}",
            )
        return self.leader


_NOTHING = Ready(None, None, (), (), (), ())
