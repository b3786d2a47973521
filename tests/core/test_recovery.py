"""A majority is gone for good: whoever is left follows the one that was told to decide alone, whatever it had."""

import random
from collections.abc import Callable
from uuid import UUID

import pytest

from syncagent.core import catalog as catalogs
from syncagent.core import limits, recovery
from syncagent.core.attachment import Attachment
from syncagent.core.batch import Table
from syncagent.core.catalog import Attach, Catalog, Command, Proposal, Remove, Site
from syncagent.core.raft.machine import Machine
from syncagent.core.raft.messages import Membership, Message, founded
from syncagent.core.raft.storage import Memory
from syncagent.errors import ProtocolError, RefusedError, Undecided

SITES = 5
_LEAST_NUMBER = 50
"""Of those that the dead may have given."""


def beginning() -> Catalog:
    def site(node: int) -> Site:
        return Site(
            node=node,
            name=f"site{node}",
            site=UUID(int=node),
            incarnation=UUID(int=node),
            address=None,
            sha256=(f"{node:064x}",),
            state="member",
        )

    sites = {node: site(node) for node in range(1, SITES + 1)}
    return Catalog(cluster=UUID(int=99), next_node=SITES + 1, sites=sites)


class Node:
    """A site whose disk never waits."""

    def __init__(self, node: int, chance: random.Random, votes: int) -> None:
        self.node, self.chance = node, chance
        voters = tuple(range(1, votes + 1))
        learners = tuple(range(votes + 1, SITES + 1))
        self.disk = Memory(founded(Membership(voters, learners), catalogs.encode(beginning())))
        self.state, self.applied = beginning(), 1
        self.start()

    def start(self) -> None:
        self.machine = Machine(self.node, self.disk, self.chance.randrange, applied=self.applied)

    def propose(self, command: Command, number: int) -> None:
        try:
            self.machine.propose(catalogs.encode(Proposal(UUID(int=number), command)))
        except (Undecided, RefusedError):
            return

    def work(self) -> list[Message]:
        sent: list[Message] = []
        while ready := self.machine.ready():
            if ready.hard_state:
                self.disk.save(ready.hard_state)
            if ready.snapshot:
                self.disk.restore(ready.snapshot)
                self.state, self.applied = catalogs.decode(ready.snapshot.data), ready.snapshot.index
            self.disk.append(ready.entries)
            sent += ready.messages
            for entry in ready.committed:
                if entry.data:
                    command = catalogs.decode_proposal(entry.data).command
                    self.state, _ = catalogs.apply(self.state, entry.index, command)
                self.applied = entry.index
            self.machine.advance(ready)
        return sent

    def take_over(self, gone: int) -> None:
        """As the agent does it."""
        tail = self.disk.entries(self.applied + 1, 2**40) if self.applied < self.disk.last() else []
        new = recovery.alone(self.node, self.machine.term, self.applied, self.state, tail, gone)
        self.disk.save(new.hard_state)
        self.disk.restore(new.snapshot)
        self.state, self.applied = catalogs.decode(new.snapshot.data), new.snapshot.index
        self.start()
        self.machine.campaign()


def talk(nodes: list[Node], rounds: int, chance: random.Random, loss: float) -> None:
    """Ticks, and messages among these nodes, each of which may be lost."""
    there, flight = {node.node: node for node in nodes}, list[Message]()
    for _ in range(rounds):
        for node in nodes:
            node.machine.tick()
            flight += node.work()
        for _ in range(6):
            flight, now = [], flight
            for message in now:
                if message.to in there and chance.random() >= loss:
                    there[message.to].machine.step(message)
                    flight += there[message.to].work()


def a_history(chance: random.Random) -> None:
    votes = chance.choice((1, 3, 5))
    nodes = [Node(number, chance, votes) for number in range(1, SITES + 1)]
    for number in range(30):
        talk(chance.sample(nodes, chance.randint(2, SITES)), 8, chance, 0.2)
        for node in nodes:
            table = Table("shop", f"t{number}")
            node.propose(Attach((Attachment(table),)), 100 * number + node.node)
            node.work()
    dead = set(chance.sample(range(1, votes + 1), votes // 2 + 1))
    left = [node for node in nodes if node.node not in dead]
    first = chance.choice(left)
    known = {table for entry in nodes_log(first) for table in entry}
    first.take_over(min(dead))
    talk(left, 60, chance, 0.05)
    talk(left, 2 * limits.RAFT_RESEND, chance, 0.0)  # a snapshot, or the answer to it, may have been lost
    assert all(node.state == first.state for node in left), "all that are left have one catalog"
    assert all(node.machine.leader == first.node for node in left)
    assert known <= first.state.tables.keys(), "what may have been committed is kept"
    assert min(dead) in first.state.gone
    assert first.state.next_node >= SITES + _LEAST_NUMBER
    assert first.machine.membership.voters == (first.node,)
    before = first.state.epoch
    first.propose(Attach((Attachment(Table("shop", "new")),)), 5)
    talk(left, 20, chance, 0.0)
    assert all(node.state.epoch > before for node in left), "and it can be changed"


def nodes_log(node: Node) -> list[list[Table]]:
    """The tables of every entry that the node has, committed or not."""
    entries = node.disk.entries(node.disk.first(), 2**40) if node.disk.first() <= node.disk.last() else []
    commands = [catalogs.decode_proposal(entry.data).command for entry in entries if entry.data]
    return [[one.table for one in command.attachments] for command in commands if isinstance(command, Attach)]


def histories(seed: int, runs: int) -> None:
    for number in range(runs):
        a_history(random.Random(f"{seed} {number}"))


@pytest.mark.soak
def test_whoever_is_left_follows(seed: int, runs: Callable[[int, int], int]) -> None:
    histories(seed, runs(15, 1000))


@pytest.mark.parametrize("broken", ["_FAR", "_NUMBERS", "tail"])
def test_a_rule_left_out_is_noticed(seed: int, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Index and term as if nothing had happened; numbers given twice; only what is known to be committed."""
    if broken == "tail":
        alone = recovery.alone
        monkeypatch.setattr(
            recovery,
            "alone",
            lambda me, term, index, state, _log, gone: alone(me, term, index, state, [], gone),
        )
    else:
        monkeypatch.setattr(recovery, broken, 0)
    with pytest.raises((AssertionError, ProtocolError)):
        histories(seed, 60)


def test_a_removal_that_was_tried_before_is_done_now(seed: int) -> None:
    """A leader without a majority has it in its log, and nobody could agree."""
    chance = random.Random(seed)
    nodes = [Node(number, chance, 3) for number in range(1, SITES + 1)]
    talk(nodes, 40, chance, 0.0)
    first = next(node for node in nodes if node.machine.leading)
    gone = first.node % 3 + 1
    first.propose(Remove(gone), 1)
    first.work()
    assert gone in first.state.sites
    first.take_over(gone)
    left = [node for node in nodes if node.node > 3 or node is first]
    talk(left, 60, chance, 0.0)
    assert all(gone in node.state.gone for node in left)
    assert all(node.state == first.state and node.state.epoch >= 2**20 for node in left)


def test_two_that_both_decide_alone_come_together_again(seed: int) -> None:
    chance = random.Random(seed)
    nodes = [Node(number, chance, 3) for number in range(1, SITES + 1)]
    talk(nodes, 40, chance, 0.0)
    one, other = nodes[3], nodes[4]
    one.take_over(1)
    talk([one], 30, chance, 0.0)
    one.propose(Attach((Attachment(Table("shop", "void")),)), 1)
    talk([one], 10, chance, 0.0)
    assert one.state.tables
    other.take_over(2)
    talk([one, other, nodes[2]], 60, chance, 0.0)
    assert one.state == other.state == nodes[2].state
    assert not one.state.tables
