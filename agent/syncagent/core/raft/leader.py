"""What a site does while it leads: replicate, commit, confirm reads, change the membership.

It exists apart from the machine because all of this begins with an election and is void with the next.

Invariants: an entry is committed here only if a majority of the newest membership holds it durably and it,
or one after it, is of this term; a membership is changed only when the one before it and an entry of this
term are committed, so that any two that may be in force at once differ by one site; what is sent is decided
when somebody asks (`emit`), so much that arrives at once leaves as one message.
"""

from collections.abc import Callable
from dataclasses import dataclass

from syncagent.core import limits
from syncagent.core.raft import quorum
from syncagent.core.raft.log import Log
from syncagent.core.raft.messages import (
    NOBODY,
    Append,
    Appended,
    Change,
    Entry,
    Handover,
    Heard,
    Heartbeat,
    Install,
    Membership,
    Message,
)
from syncagent.core.raft.progress import Progress
from syncagent.core.raft.reads import Read, Reads
from syncagent.errors import ProtocolError, RefusedError, Undecided


@dataclass(frozen=True)
class Options:
    """See limits for the units."""

    heartbeat: int = limits.RAFT_HEARTBEAT
    election: int = limits.RAFT_ELECTION
    resend: int = limits.RAFT_RESEND
    append: int = limits.RAFT_APPEND
    window: int = limits.RAFT_WINDOW
    uncommitted: int = limits.RAFT_UNCOMMITTED


class Leader:
    """`send` takes messages, `answer` reads that are confirmed."""

    def __init__(
        self,
        me: int,
        term: int,
        log: Log,
        options: Options,
        send: Callable[[Message], None],
        answer: Callable[[Read], None],
    ) -> None:
        self.me, self.term = me, term
        self.peers: dict[int, Progress] = {}
        self.heir = NOBODY  # to whom leadership is being handed over
        self._log, self._options, self._send, self._answer = log, options, send, answer
        self._reads = Reads()
        self._asked = 0  # the reads that heartbeats were sent for
        self._early: list[Read] = []  # taken before anything of this term was committed
        self._beat = self._check = 0
        log.extend([Entry(log.last + 1, term)])
        self._meet()

    def _meet(self) -> None:
        """Replicate to whom any membership names that may be in force; who is removed still hears that it is."""
        named = {node for live in self._log.memberships.live(self._log.committed) for node in live.nodes}
        for node in named - self.peers.keys() - {self.me}:
            self.peers[node] = Progress(next=self._log.last, window=self._options.window)
        for node in self.peers.keys() - named:
            self._feed(node, self.peers.pop(node))

    @property
    def calm(self) -> int:
        """See `Machine.calm`; what is asked again after `resend` ticks may wait for the next heartbeat."""
        return max(1, min(self._options.heartbeat - self._beat, self._options.election - self._check))

    # ---- events

    def tick(self) -> bool:
        """False: no majority has been heard of for as long as an election takes. Lead no longer."""
        self._beat += 1
        self._check += 1
        for progress in self.peers.values():
            progress.waited += 1
            if progress.state == "snapshot" and progress.waited >= self._options.resend:
                progress.probe()
        if self._check < self._options.election:
            return True
        self._check, self.heir = 0, NOBODY
        active = {node: int(progress.active) for node, progress in self.peers.items()} | {self.me: 1}
        for progress in self.peers.values():
            progress.active = False
        return quorum.agreed(self._voters, active) == 1

    def propose(self, data: bytes, change: Change | None) -> None:
        """Raises Undecided or RefusedError."""
        log = self._log
        if self.heir:
            raise Undecided(f"node {self.me} is handing leadership over to node {self.heir}")
        if log.last - log.committed >= self._options.uncommitted:
            raise Undecided(f"{log.last - log.committed} entries wait to be committed")
        if len(data) > limits.RAFT_APPEND:
            raise RefusedError(f"{len(data)} bytes are too much for one entry of the catalog")
        membership = None if change is None else self._changed(change)
        log.extend([Entry(log.last + 1, self.term, data, membership)])
        if membership is not None:
            self._meet()

    def _changed(self, change: Change) -> Membership:
        if not self._is_settled():
            raise Undecided("the leader has not committed anything yet")
        if self._is_changing():
            raise Undecided("another change of the membership is not committed yet")
        return quorum.changed(self._log.membership, change)

    def _is_settled(self) -> bool:
        """Is anything of this term committed? Before, what others may have committed is not known."""
        return self._log.term(self._log.committed) == self.term

    def _is_changing(self) -> bool:
        return self._log.memberships.since > self._log.committed

    def read(self, read: Read) -> None:
        """Raises Undecided."""
        if len(self._reads) + len(self._early) >= self._options.uncommitted:
            raise Undecided(f"{len(self._reads) + len(self._early)} reads wait to be confirmed")
        if self._is_settled():
            self._reads.take(read._replace(upto=self._log.committed))
            self._confirm()
        else:
            self._early.append(read)

    def persisted(self) -> None:
        """More of the log is durable."""
        self._commit()

    def appended(self, message: Appended) -> None:
        progress = self.peers.get(message.sender)
        if progress is None:
            return
        progress.active = True
        if message.rejected:
            hint = message.hint
            if message.hint_term:
                hint, _ = self._log.agreement(hint, message.hint_term)
            progress.rejected(message.index, hint)
            return
        if message.index > self._log.last:
            raise ProtocolError(
                f"node {message.sender} acknowledges what it was never sent",
                detail=f"entry {message.index}, and the last one is {self._log.last}",
            )
        news = progress.acknowledged(message.index)
        probed = progress.state == "probe" and progress.match == message.index
        installed = progress.state == "snapshot" and news and progress.match + 1 >= self._log.first
        if probed or installed:
            progress.replicate()
        if news:
            self._commit()
            self._hand_over()

    def heard(self, message: Heard) -> None:
        if (progress := self.peers.get(message.sender)) is not None:
            progress.alive(self._log.last)
            self._reads.heard(message.sender, message.read)
            self._confirm()

    def unreachable(self, node: int) -> None:
        """What is under way to it is lost, most likely."""
        if (progress := self.peers.get(node)) is not None and progress.state != "probe":
            progress.probe()

    def transfer(self, node: int) -> None:
        """Hand over to this voter as soon as it has everything; given up after an election timeout."""
        if node not in self.peers or node not in self._voters:
            raise RefusedError(f"node {node} is no other voter")
        self.heir, self._check = node, 0
        self._hand_over()

    # ---- decisions

    @property
    def _voters(self) -> tuple[int, ...]:
        return self._log.membership.voters

    @property
    def is_removed(self) -> bool:
        """A membership without our vote is committed: this leadership has nothing left to do."""
        return self.me not in self._voters and not self._is_changing()

    def successor(self) -> int:
        """The voter that has most of the log, and was heard of."""
        known = [(p.active, p.match, node) for node, p in self.peers.items() if node in self._voters]
        return max(known, default=(False, 0, NOBODY))[2]

    def _commit(self) -> None:
        reached = {node: progress.match for node, progress in self.peers.items()} | {
            self.me: self._log.stable
        }
        index = quorum.agreed(self._voters, reached)
        if index > self._log.committed and self._may_commit(index):
            self._log.commit(index)
            self._meet()
            early, self._early = self._early, []
            for read in early:
                self._reads.take(read._replace(upto=self._log.committed))
            self._confirm()

    def _may_commit(self, index: int) -> bool:
        """Held by a majority is not enough: an entry of an older term can still be replaced."""
        return self._log.term(index) == self.term

    def _confirm(self) -> None:
        for read in self._reads.confirmed(self._voters, self.me):
            self._answer(read)

    def _hand_over(self) -> None:
        if self.heir in self.peers and self.peers[self.heir].match == self._log.last:
            self._send(Handover(to=self.heir, sender=self.me, term=self.term))

    # ---- messages

    def emit(self) -> None:
        """Send what is due."""
        if self._beat >= self._options.heartbeat or self._reads.taken > self._asked:
            self._beat, self._asked = 0, self._reads.taken
            for node, progress in self.peers.items():
                progress.told = min(progress.match, self._log.committed)
                self._send(
                    Heartbeat(to=node, sender=self.me, term=self.term, commit=progress.told, read=self._asked)
                )
        for node, progress in self.peers.items():
            self._feed(node, progress)

    def _feed(self, node: int, progress: Progress) -> None:
        while progress.due(self._log.last, self._log.committed):
            before = progress.next - 1
            term = self._log.term(before)
            if term is None:
                self._install(node, progress)
                return
            entries = self._log.entries(progress.next, self._options.append) if progress.takes_entries else []
            self._send(
                Append(
                    to=node,
                    sender=self.me,
                    term=self.term,
                    index=before,
                    log_term=term,
                    entries=tuple(entries),
                    commit=self._log.committed,
                )
            )
            progress.sent(before + len(entries), self._log.committed)

    def _install(self, node: int, progress: Progress) -> None:
        """What it needs is compacted. A site that is not there is not sent the whole catalog again and again."""
        if progress.active:
            snapshot = self._log.newest_snapshot()
            self._send(Install(to=node, sender=self.me, term=self.term, snapshot=snapshot))
            progress.snapshot(snapshot.index)
