"""Agreement: drives the site's Raft machine, and keeps the catalog as of the entry applied last.

Invariants: nothing of a Ready leaves before it is durable, in the database and in the site's home; the catalog and the entry that led to it are
recorded together; whoever submits a command learns what it did, or that nobody could decide in time.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import UUID

from syncagent.core import catalog as catalogs
from syncagent.core import limits, quorum, recovery
from syncagent.core.catalog import Catalog, Command, Outcome, Proposal
from syncagent.core.ports import HighWater
from syncagent.core.raft.machine import Machine, Ready
from syncagent.core.raft.messages import Entry, Handover, Message, decode, encode
from syncagent.core.store import Registry
from syncagent.errors import ProtocolError, RefusedError, Undecided
from syncagent.services.lifecycle import Bell, Clock

_TRY_AGAIN = 1.0
"""Seconds after which a proposal that is not applied yet is made again: it may have been lost."""
_COMPACT = 256
"""Entries after which the log is compacted."""
_ALL = 2**62
_ROUNDING = 1e-6
"""Of a tick: a sum of tenths of a second may fall short by so much."""
_UNHEARD = 256
"""Messages that may wait to be heard; Raft bears the loss of those beyond."""

Post = Callable[[int, bytes], None]
OnChange = Callable[[Catalog], Awaitable[None]]


class Elections:
    """`post` sends bytes to a node and never waits; `on_change` is awaited with each new catalog."""

    def __init__(
        self,
        me: int,
        registry: Registry,
        high_water: HighWater,
        catalog: Catalog,
        applied: int,
        clock: Clock,
        post: Post,
    ) -> None:
        self._registry, self._high_water, self._clock, self._post = registry, high_water, clock, post
        self.me, self._state, self.applied = me, catalog, applied
        self.catalog = registry.current(applied, catalog)
        self._machine = self._new_machine(applied)
        self._heard: deque[bytes] = deque(maxlen=_UNHEARD)
        self._bell = Bell()
        self._waiting: dict[UUID, asyncio.Future[Outcome]] = {}
        self._reads: dict[UUID, asyncio.Future[None]] = {}
        self._compacted = applied
        self._steady: frozenset[int] = frozenset()
        self._taking: tuple[int, asyncio.Future[None]] | None = None
        self.on_change: OnChange | None = None
        self.removed = asyncio.Event()
        """This site was removed, and its vote does not count any more."""

    def _new_machine(self, applied: int) -> Machine:
        return Machine(
            self.me, self._registry.memory, lambda n: int(self._clock.chance() * n), applied=applied
        )

    # ---- what others see

    @property
    def leader(self) -> int:
        """Zero: none is known."""
        return self._machine.leader

    @property
    def standing(self) -> tuple[str, int]:
        """This site's role in the group, and its term."""
        return self._machine.role, self._machine.term

    @property
    def leads(self) -> bool:
        return self._machine.leading is not None

    @property
    def is_member(self) -> bool:
        """Not one that still joins, or was removed."""
        site = self.catalog.sites.get(self.me)
        return site is not None and site.state == "member"

    @property
    def is_witness(self) -> bool:
        """This site votes, and holds no rows."""
        return self._is_witness(self.me)

    @property
    def voters(self) -> tuple[int, ...]:
        return self._machine.membership.voters

    # ---- events

    def heard(self, data: bytes) -> None:
        """A message from another site."""
        self._heard.append(data)
        self._bell.ring()

    def unlinked(self, node: int) -> None:
        self._machine.unreachable(node)

    def steady(self, nodes: frozenset[int]) -> None:
        """Sites whose agents are seen to run for good: see `quorum.next_change`."""
        self._steady = nodes

    async def submit(self, command: Command, proposal: UUID, *, seconds: float) -> Outcome:
        """What the command did. RefusedError if it was refused, Undecided if nobody decided in time."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[proposal] = future
        data = catalogs.encode(Proposal(proposal, command))
        try:
            async with asyncio.timeout(seconds):
                asked, again = 0, 0.0
                while not future.done():
                    now = self._clock.now()
                    if (
                        self.leader != asked or now >= again
                    ):  # what an older leader was told is lost, most likely
                        with suppress(Undecided):
                            self._machine.propose(data)
                            self._bell.ring()
                        asked, again = self.leader, now + _TRY_AGAIN
                    await asyncio.wait([future], timeout=limits.RAFT_TICK)
        except TimeoutError:
            raise self._undecided() from None
        finally:
            del self._waiting[proposal]
        outcome = future.result()
        if outcome.refused is not None:
            raise RefusedError(outcome.refused, hint=outcome.hint)
        return outcome

    async def settle(self, request: UUID, *, seconds: float) -> None:
        """Until the catalog here has all that anybody was told before this call."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                attempt = 0
                while True:
                    asked = UUID(int=request.int ^ attempt)  # an id is never used twice
                    self._reads[asked] = future
                    with suppress(Undecided):
                        self._machine.read(asked)
                        self._bell.ring()
                    done, _ = await asyncio.wait([future], timeout=_TRY_AGAIN)
                    if done:
                        return
                    attempt += 1
        except TimeoutError:
            raise self._undecided() from None
        finally:
            self._reads = {asked: waiting for asked, waiting in self._reads.items() if waiting is not future}

    async def take_over(self, gone: int) -> None:
        """Decide alone from now on, without this site and without asking anybody: see `core.recovery`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._taking = gone, future
        self._bell.ring()
        await future

    def _undecided(self) -> Undecided:
        voters = [self.catalog.name(node) for node in self.voters]
        need = len(voters) // 2 + 1
        return Undecided(
            "the cluster could not agree in time: no majority of the sites that vote can be reached",
            detail=f"{need} of these must run and reach each other: {', '.join(voters)}",
            hint="see `syncagent status`; rows are written and shipped all the same. If who is missing is gone for good:"
            " `syncagent remove SITE --force`",
        )

    # ---- the loop

    async def run(self) -> None:
        """For ever. Raises Unreachable when the database is gone."""
        if self._machine.membership.voters == (self.me,):
            self._machine.campaign()
        since = self._clock.now()
        while True:
            await self._work()
            if self._taking is not None:
                await self._take_over(*self._taking)
                continue
            calm = self._machine.calm
            await self._bell.wait(max(0.0, since + calm * limits.RAFT_TICK - self._clock.now()))
            passed = int((self._clock.now() - since) / limits.RAFT_TICK + _ROUNDING)
            since += passed * limits.RAFT_TICK
            if passed > calm + 1:
                passed = 1  # this site was held up itself, and has not waited for anybody
            for _ in range(min(passed, calm - 1)):
                self._machine.tick()
            while self._heard:
                self._step(self._heard.popleft())
            if passed >= calm:
                self._machine.tick()
            if passed:
                self._follow_catalog()

    async def _take_over(self, gone: int, future: asyncio.Future[None]) -> None:
        """Between two Readys, when the storage holds all there is."""
        self._taking, memory = None, self._registry.memory
        tail = memory.entries(self.applied + 1, _ALL) if self.applied < memory.last() else []
        try:
            new = recovery.alone(self.me, self._machine.term, self.applied, self._state, tail, gone)
        except RefusedError as error:
            future.set_exception(error)
            return
        await self._registry.save(Ready(new.hard_state, new.snapshot, (), (), (), ()))
        self._compacted = new.snapshot.index
        self._machine = self._new_machine(new.snapshot.index)
        await self._became(new.snapshot.index, catalogs.decode(new.snapshot.data))
        self._machine.campaign()
        if not future.done():
            future.set_result(None)

    def _step(self, data: bytes) -> None:
        try:
            message = decode(data)
            if not self._is_fenced(message):
                self._machine.step(message)
        except ProtocolError:
            return  # of no use to anybody; Raft bears the loss

    def _is_fenced(self, message: Message) -> bool:
        """From a site that was removed and is in no membership that may be in force. It may still hand over."""
        return (
            message.sender in self.catalog.gone
            and message.sender not in self._machine.live
            and not isinstance(message, Handover)
        )

    def _follow_catalog(self) -> None:
        """A leader brings Raft's membership to what the catalog says, step by step."""
        if not self.leads:
            return
        if self.is_witness and (heir := self._holder()):
            self._machine.transfer(heir)  # who has rows leads, and keeps its vote when one has to go
            return
        change = quorum.next_change(self.catalog, self._machine.membership, self.me, self._steady)
        if change is not None:
            with suppress(Undecided):
                self._machine.propose(b"", change)

    def _holder(self) -> int:
        """A voter with rows that could lead instead of this witness; zero if none is heard of, or one is about to."""
        leading = self._machine.leading
        if leading is None or leading.heir:
            return 0
        able = [
            node
            for node, progress in leading.peers.items()
            if progress.active and node in self.voters and not self._is_witness(node)
        ]
        return able[0] if able else 0

    def _is_witness(self, node: int) -> bool:
        site = self.catalog.sites.get(node)
        return site is not None and site.witness

    async def _work(self) -> None:
        while ready := self._machine.ready():
            await self._registry.save(ready)
            if ready.messages:
                await self._high_water.telling(*self._registry.memory.standing())
            if ready.snapshot is not None:
                await self._became(ready.snapshot.index, catalogs.decode(ready.snapshot.data))
            self._send(ready.messages)
            if ready.committed:
                await self._apply(ready.committed)
            for request in ready.reads:
                if (future := self._reads.get(request)) is not None and not future.done():
                    future.set_result(None)
            self._machine.advance(ready)
        if self.me in self.catalog.gone and self.me not in self._machine.membership.nodes:
            self.removed.set()
        if self.applied - self._compacted >= _COMPACT:
            await self._registry.compact(self._machine.snapshot(catalogs.encode(self._state)))
            self._compacted = self.applied

    def _send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            self._post(message.to, encode(message))

    async def _apply(self, entries: tuple[Entry, ...]) -> None:
        catalog, outcomes = self._state, dict[UUID, Outcome]()
        for entry in entries:
            if entry.data:
                proposal = catalogs.decode_proposal(entry.data)
                catalog, outcome = catalogs.apply(catalog, entry.index, proposal.command)
                outcomes.setdefault(proposal.id, outcome)
        await self._registry.applied(entries[-1].index, catalog, self._machine.membership)
        await self._became(entries[-1].index, catalog)
        for proposed, outcome in outcomes.items():
            if (future := self._waiting.get(proposed)) is not None and not future.done():
                future.set_result(outcome)

    async def _became(self, index: int, state: Catalog) -> None:
        before = self.catalog
        self._state, self.applied = state, index
        self.catalog = self._registry.current(index, state)
        if self.catalog != before and self.on_change is not None:
            await self.on_change(self.catalog)
