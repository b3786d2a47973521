"""Scenarios as text: what is done to a few sites, and what must be seen then.

It exists so that the cases that matter can be read, and written, by whoever knows Raft and no Python. A site
does at once, and durably, what its machine says; what it sends stays in flight until it is delivered.

    sites 1 2 3               voters, founded together; first line
    learners 4                the same, without a vote
    blank 5                   sites that have nothing yet
    limits window 3           of leader.Options

    campaign 1                tick 1 10                 tick all 10
    propose 1 a b             change 1 voter 4          read 1 question
    transfer 1 2              unreachable 1 3           forget 2
    compact 1 keep 0          restart 1
    refused VERB ...          undecided VERB ...        it must raise that

    deliver                   all that is in flight, or `deliver 1 -> 2`, but not what comes of it
    settle                    deliver until nothing is in flight
    drop 1 -> 2               what is in flight there; `drop` for all
    cut 1 -> 2                from now on; `cut 3`: whatever way; `heal`

    expect 1 is leader in term 2
    expect 1 applied a b      committed 3      log 2/2 3/2      members 1 2 3 learners 4      read question
    expect 1 sees 3 replicate match 3 next 4 inflight 0
    expect in flight 1 -> 2 append 2+1, heartbeat
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest

from syncagent.core.raft.leader import Options
from syncagent.core.raft.machine import Machine
from syncagent.core.raft.messages import (
    Append,
    Appended,
    AskRead,
    Change,
    Handover,
    Heard,
    Heartbeat,
    Install,
    MayRead,
    Membership,
    Message,
    Propose,
    RequestVote,
    Vote,
    founded,
)
from syncagent.core.raft.storage import Memory
from syncagent.errors import RefusedError, Undecided


class Member:
    """A site that never waits."""

    def __init__(self, node: int, disk: Memory, options: Options) -> None:
        self.node, self.disk, self.options = node, disk, options
        self.applied: list[str] = []
        self.reads: list[UUID] = []
        self.upto = 0
        self.start()

    def start(self) -> None:
        if self.upto < self.disk.snapshot().index:
            self._load()
        self.machine = Machine(
            self.node, self.disk, lambda _: self.node, applied=self.upto, options=self.options
        )

    def _load(self) -> None:
        snapshot = self.disk.snapshot()
        self.applied, self.upto = snapshot.data.decode().split(), snapshot.index

    def work(self) -> list[Message]:
        sent: list[Message] = []
        while ready := self.machine.ready():
            if ready.hard_state:
                self.disk.save(ready.hard_state)
            if ready.snapshot:
                self.disk.restore(ready.snapshot)
                self._load()
            self.disk.append(ready.entries)
            sent += ready.messages
            for entry in ready.committed:
                self.applied += [entry.data.decode()] if entry.data else []
                self.upto = entry.index
            self.reads += ready.reads
            self.machine.advance(ready)
        return sent

    def compact(self, keep: int) -> None:
        self.disk.compact(self.machine.snapshot(" ".join(self.applied).encode()), keep)


class Script:
    """Interprets one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.members: dict[int, Member] = {}
        self.flight: list[Message] = []
        self._cut: set[tuple[int, int]] = set()
        self._voters: tuple[int, ...] = ()
        self._learners: tuple[int, ...] = ()
        self._blank: tuple[int, ...] = ()
        self._options = Options(heartbeat=1, election=10)

    def run(self) -> None:
        for number, line in enumerate(self.file.read_text().splitlines(), 1):
            words = line.partition("#")[0].split()
            if words:
                try:
                    self._do(words)
                except AssertionError as error:
                    raise AssertionError(f"{self.file.name}:{number}: {line}\n{error}") from error

    def _do(self, words: list[str]) -> None:
        verb, *rest = words
        if verb == "expect":
            self._expect(rest)
        elif verb in ("refused", "undecided"):
            with pytest.raises(RefusedError if verb == "refused" else Undecided):
                self._do(rest)
        elif verb in ("sites", "learners", "blank"):
            setattr(self, {"sites": "_voters"}.get(verb, f"_{verb}"), tuple(map(int, rest)))
        elif verb == "limits":
            self._options = replace(self._options, **dict(zip(rest[::2], map(int, rest[1::2]), strict=True)))
        elif verb in ("deliver", "settle", "drop", "cut", "heal"):
            self._net(verb, rest)
        else:
            self._act(verb, rest)

    def _member(self, node: str) -> Member:
        if not self.members:
            start = founded(Membership(self._voters, self._learners))
            for one in self._voters + self._learners:
                self.members[one] = Member(one, Memory(start), self._options)
            for one in self._blank:
                self.members[one] = Member(one, Memory(), self._options)
        return self.members[int(node)]

    # ---- sites

    def _act(self, verb: str, words: list[str]) -> None:
        if words[0] == "all":
            for node in list(self.members):
                self._act(verb, [str(node), *words[1:]])
            return
        member, rest = self._member(words[0]), words[1:]
        if verb == "restart":
            member.start()
        elif verb == "compact":
            member.compact(int(rest[1]) if rest else 0)
        elif verb == "tick":
            for _ in range(int(rest[0]) if rest else 1):
                member.machine.tick()
                self._work(member)
        elif verb == "propose":
            for data in rest:
                member.machine.propose(data.encode())
        else:
            _SINGLE[verb](member.machine, *rest)
        self._work(member)

    def _work(self, member: Member) -> None:
        self.flight += [m for m in member.work() if (m.sender, m.to) not in self._cut]

    # ---- the network

    def _net(self, verb: str, words: list[str]) -> None:
        if verb == "heal":
            self._cut.clear()
        elif verb == "cut" and len(words) == 1:
            node = int(words[0])
            self._cut |= {(node, other) for other in self.members} | {(other, node) for other in self.members}
        elif verb == "cut":
            self._cut.add((int(words[0]), int(words[2])))
        elif verb == "settle":
            for _ in range(200):
                if not self.flight:
                    return
                self._deliver(self._take([]))
            raise AssertionError(f"it does not settle: {self._told(self.flight)}")
        else:
            taken = self._take(words)
            if verb == "deliver":
                self._deliver(taken)

    def _take(self, words: list[str]) -> list[Message]:
        way = (int(words[0]), int(words[2])) if words else None
        taken = [message for message in self.flight if way in (None, (message.sender, message.to))]
        self.flight = [message for message in self.flight if message not in taken]
        return taken

    def _deliver(self, messages: list[Message]) -> None:
        for message in messages:
            if (message.sender, message.to) not in self._cut:
                self.members[message.to].machine.step(message)
                self._work(self.members[message.to])

    # ---- what must be seen

    def _expect(self, words: list[str]) -> None:
        if words[:2] == ["in", "flight"]:
            way = words[2:5] if words[3:4] == ["->"] else []
            ends = (int(way[0]), int(way[2])) if way else None
            seen = self._told([m for m in self.flight if ends in (None, (m.sender, m.to))])
            wanted = " ".join(words[2 + len(way) :])
        else:
            node, what, *rest = words
            seen, wanted = self._seen(self._member(node), what, rest), " ".join(rest)
        assert seen == wanted, f"seen: {seen}"

    def _seen(self, member: Member, what: str, rest: list[str]) -> str:
        machine, log = member.machine, member.machine.log
        match what:
            case "is":
                whose = f" of {machine.leader}" if machine.role == "follower" and machine.leader else ""
                return f"{machine.role}{whose} in term {machine.term}"
            case "applied":
                return " ".join(member.applied)
            case "committed":
                return str(log.committed)
            case "log":
                return " ".join(f"{index}/{log.term(index)}" for index in range(log.first, log.last + 1))
            case "members":
                told = [*machine.membership.voters]
                learners = ["learners", *machine.membership.learners] if machine.membership.learners else []
                return " ".join(map(str, [*told, *learners]))
            case "read":
                return " ".join(word for word in rest if uuid5(NAMESPACE_OID, word) in member.reads)
            case "sees":
                assert machine.leading is not None, "it does not lead"
                seen = machine.leading.peers.get(int(rest[0]))
                if seen is None:
                    return f"{rest[0]} nowhere"
                counts = f"match {seen.match} next {seen.next} inflight {len(seen.inflight)}"
                return f"{rest[0]} {seen.state} {counts}"
            case _:
                raise ValueError(f"{self.file.name}: nothing to see: {what}")

    @staticmethod
    def _told(messages: list[Message]) -> str:
        return ", ".join(map(_text, messages)) or "nothing"


_SINGLE: dict[str, Callable[..., None]] = {
    "campaign": Machine.campaign,
    "forget": Machine.forget,
    "change": lambda machine, kind, node: machine.propose(b"", Change(kind, int(node))),
    "read": lambda machine, name: machine.read(uuid5(NAMESPACE_OID, name)),
    "transfer": lambda machine, peer: machine.transfer(int(peer)),
    "unreachable": lambda machine, peer: machine.unreachable(int(peer)),
}


def _text(message: Message) -> str:
    match message:
        case RequestVote():
            return "asks pre-vote" if message.pre else "asks vote"
        case Vote():
            return ("grants" if message.granted else "refuses") + (" pre-vote" if message.pre else " vote")
        case Append():
            return f"append {message.index}+{len(message.entries)}"
        case Appended():
            return f"lacks {message.index}" if message.rejected else f"has {message.index}"
        case Install():
            return f"snapshot {message.snapshot.index}"
        case Heartbeat() | Heard() | Handover() | Propose():
            return type(message).__name__.lower()
        case AskRead():
            return "asks read"
        case MayRead():
            return f"may read {message.index}"
