"""Compares this site with its peers, all the time and when asked; keeps its forest true.

Invariant: nothing waits for it, and it changes no row. What it says is equal was compared in one snapshot of each site; what
it says differs was found twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

from syncagent.core import limits, stamp, summary
from syncagent.core.batch import Table
from syncagent.core.comparison import Comparison, Difference, Outcome
from syncagent.core.ports import Link
from syncagent.core.questions import Answer, Begin, Begun, Prepare, Prepared, Question, Root, Settle
from syncagent.core.store import Due, Forest, Keeper, Request
from syncagent.core.wire import Compare, Compared, Look
from syncagent.errors import Contended, LinkDown, ProtocolError, RefusedError, SyncagentError, Unreachable
from syncagent.services.comparing import Side
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Bell, Desk

_LOOK = 1.0
"""Seconds between two looks at what is to be sealed."""
_SITTINGS, _OF_ONE = 8, 2
"""Comparisons that peers, or one of them, may hold here at a time. (Each asks one at a time; the last may not be over.)"""
_AGAIN = 2.0
"""Seconds after which a difference is looked at once more."""
_LOOKS = 5
"""Looks after the first one, while others differ each time."""
_MANY = 1000
"""Marked keys after which there may be more of them."""
_TRUSTED = 1000
"""Rows that a peer is trusted with, of those it has named."""
_UNASKED = Look(whole=False, trusted=())

Say = Callable[[str], Awaitable[None]]


class Verifier:
    """`trouble` says which site differs, while one does."""

    def __init__(self, desk: Desk, forest: Forest, keeper: Keeper, exchange: Exchange) -> None:
        self._desk, self._forest, self._keeper, self._exchange = desk, forest, keeper, exchange
        self._clock = desk.clock
        self._sittings: dict[tuple[int, UUID], asyncio.Queue[Question | None]] = {}
        self._answers: dict[UUID, asyncio.Future[Answer]] = {}
        self._differs: dict[int, str] = {}
        self._failing: dict[int, str] = {}
        self._undecided: dict[int, int] = {}
        self._soon: dict[int, Look] = {}
        self._bell = Bell()
        self._turn = asyncio.Lock()
        self.on_differing: Callable[[int, Outcome, Look], Awaitable[None]] | None = None
        self.on_unlike_hashes: Callable[[], None] | None = None
        self.verbs = {"verify": self._verify}
        exchange.on_compare, exchange.on_compared = self._asked, self._answered

    @property
    def trouble(self) -> str | None:
        names = self._desk.roster.name
        told = []
        for node, what in self._differs.items():
            see = (
                "no majority says who is right, see `syncagent repair --source`"
                if self._undecided.get(node)
                else "see `syncagent verify`"
            )
            told.append(f"differs from {names(node)}: {what}; {see}")
        told += [f"a table cannot be read to be compared: {why}" for why in self._failing.values()]
        return "; ".join(told) or None

    def undecided(self, node: int, rows: int) -> None:
        """So many rows differ from those of this site, and nobody can say who is right."""
        self._undecided[node] = rows

    # ---- the forest

    async def tend(self) -> None:
        """Seal what is due, and compute anew what is marked, for ever, in small steps with rests between them."""
        while True:
            failing: dict[int, str] = {}
            try:
                await self._advance()
                for due in await self._forest.due():
                    try:
                        await self._tend(due)
                    except Unreachable:
                        raise
                    except Contended:
                        continue  # somebody holds the table: next time
                    except SyncagentError as error:  # a page that cannot be read, say: the other tables go on
                        failing[due.relation] = error.line
            except Contended:
                pass
            if failing != self._failing:
                self._failing = failing
                self._desk.bells.news.ring()
            await asyncio.sleep(_LOOK)

    async def _tend(self, due: Due) -> None:
        for step, wanted, rest in (
            (self._forest.reseal, due.marked, limits.VERIFY_REST),
            (self._forest.seal, True, limits.VERIFY_REST),
            (self._forest.scrub, due.unscrubbed, limits.SCRUB_REST),
        ):
            began = self._clock.now()
            if wanted and await step(due.relation) is not None:
                await asyncio.sleep((self._clock.now() - began) * rest)

    async def _advance(self) -> None:
        await self._forest.advance(self._clock.wall() - stamp.from_seconds(limits.SEAL_GRACE))

    async def _freshen(self, say: Say) -> None:
        """All that is due, at once: somebody waits. What is written meanwhile is not waited for."""
        await self._advance()
        done = 0
        for due in await self._forest.due():
            keys = await self._forest.reseal(due.relation)
            while keys is not None and keys >= _MANY:
                done += keys
                await say(f"this site: {done:,} rows of the forest computed")
                keys = await self._forest.reseal(due.relation)
            while (rows := await self._forest.seal(due.relation)) is not None:
                done += rows
                await say(f"this site: {done:,} rows of the forest computed")

    # ---- what peers ask

    async def _asked(self, link: Link, message: Compare) -> None:
        sitting = link.peer.node, message.request
        if (queue := self._sittings.get(sitting)) is not None:
            if queue.full():
                raise ProtocolError("questions faster than answers")
            queue.put_nowait(message.question)
        elif isinstance(message.question, Prepare | Begin):
            here = [node for node, _ in self._sittings]
            if len(here) >= _SITTINGS or here.count(link.peer.node) >= _OF_ONE:
                await link.send(Compared(message.request, None, "busy with other comparisons"))
                return
            self._sittings[sitting] = asyncio.Queue(2)
            try:
                await self._sit(link, message.request, message.question, self._sittings[sitting])
            except (ProtocolError, LinkDown):
                raise
            except SyncagentError as error:
                await link.send(Compared(message.request, None, error.line))
            finally:
                del self._sittings[sitting]

    async def _sit(
        self,
        link: Link,
        request: UUID,
        begin: Prepare | Begin,
        queue: "asyncio.Queue[Question | None]",
    ) -> None:
        """Answer the questions of one comparison, from one snapshot, until there are no more."""
        if isinstance(begin, Prepare):
            await self.prepare(begin.tables, _nobody, deep=begin.deep)
            await link.send(Compared(request, Prepared()))
            return
        async with self._forest.view() as view:
            side = await Side.of(view, begin.tables)
            mine = await side.left_out(begin.standing.frontier)
            await link.send(Compared(request, Begun(side.standing.known_to(begin.standing), mine)))
            while (question := await _within(limits.VERIFY_PATIENCE, queue.get())) is not None:
                answer: Answer
                if isinstance(question, Settle):
                    there = begin.standing.listed(question.groves or side.standing.groves)
                    answer = await side.settle(there, mine, question.left_out, whole=begin.whole)
                    answer = side.over(answer, question)
                else:
                    answer = await side.answer(question)
                await link.send(Compared(request, answer))
                if isinstance(answer, Root) and answer.over:
                    break

    # ---- what this site asks

    def _answered(self, message: Compared) -> None:
        future = self._answers.get(message.request)
        if future is None or future.done():
            return
        if message.answer is None:
            future.set_exception(RefusedError(message.error or "the peer does not answer"))
        else:
            future.set_result(message.answer)

    async def _ask(self, link: Link, request: UUID, question: Question) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[request] = future
        try:
            await link.send(Compare(request, question))
            patience = limits.VERIFY_PREPARE if isinstance(question, Prepare) else limits.VERIFY_PATIENCE
            async with asyncio.timeout(patience):
                while not future.done():
                    if self._exchange.links.get(link.peer.node) is not link:
                        raise LinkDown("the link ended in the middle of a comparison")
                    await asyncio.wait([future], timeout=_LOOK)
                return future.result()
        except TimeoutError:
            raise LinkDown(f"{link.peer.name} does not answer") from None
        finally:
            del self._answers[request]

    async def _compare(
        self,
        node: int,
        tables: tuple[Table, ...] | None,
        say: Say,
        turn: float,
        suspects: Sequence[Difference],
        *,
        whole: bool,
        deep: bool,
    ) -> Outcome:
        """`whole`: the peer prepares for it. Raises RefusedError, LinkDown, ProtocolError, DatabaseError."""
        link, request = self._exchange.links.get(node), uuid4()
        if link is None:
            raise LinkDown("no link")
        over = False
        try:
            if whole:
                await self._ask(link, uuid4(), Prepare(tables, deep))
            async with self._turn, self._forest.view() as view:
                side = await Side.of(view, tables)
                begin = Begin(side.standing.listed(None), tables, whole)
                machine, question, over = await self._agree(link, request, side, begin, turn, suspects)
                await self._converse(link, request, side, machine, question, say)
                return machine.outcome
        except ProtocolError as error:
            await link.close(error.line)
            raise
        finally:
            if not over:
                with suppress(LinkDown):
                    await link.send(Compare(request, None))

    async def _agree(
        self,
        link: Link,
        request: UUID,
        side: Side,
        begin: Begin,
        turn: float,
        suspects: Sequence[Difference],
    ) -> tuple[Comparison, Question | None, bool]:
        """On what is compared; what is to be asked first, and whether the peer knows that there is nothing."""
        begun = await self._ask(link, request, begin)
        if not isinstance(begun, Begun):
            raise ProtocolError("an answer to another question")
        if begun.standing.known != side.standing.known:
            if len(begun.standing.known) != len(
                side.standing.known
            ):  # each fingerprint has answers of its own
                raise Contended(
                    "the cluster is turning to another fingerprint, and not every site has heard of it"
                )
            if self.on_unlike_hashes is not None:
                self.on_unlike_hashes()
            raise RefusedError(
                f"fingerprints of {link.peer.name} and of this site cannot be compared",
                detail="the two servers hash the same text to different numbers",
                hint="the cluster turns to sha256 by itself, and all sites compute their forests anew; try again later",
            )
        there = begun.standing.listed(begun.standing.groves or side.standing.groves)
        mine = await side.left_out(there.frontier)
        groves = None if begun.standing.groves is None else side.standing.groves
        root = await side.settle(there, mine, begun.left_out, whole=begin.whole)
        theirs = await self._ask(link, request, Settle(groves, mine, root.root))
        if not isinstance(theirs, Root) or side.scope is None:
            raise ProtocolError("an answer to another question")
        machine = Comparison(side.standing, there, side.scope, side.sums, turn, suspects)
        question = machine.first(root, theirs)
        if theirs.over and question is not None:
            raise ProtocolError("the other site takes for equal what is not")
        return machine, question, theirs.over

    async def _converse(
        self,
        link: Link,
        request: UUID,
        side: Side,
        machine: Comparison,
        question: Question | None,
        say: Say,
    ) -> None:
        asked = 0
        while question is not None:
            asked += 1
            found = len(machine.outcome.differences)
            await say(f"{link.peer.name}: {asked:,} questions, {found:,} differing rows so far")
            answer = await self._ask(link, request, question)
            question = machine.heard(await side.answer(question), answer)

    async def _confirmed(
        self,
        node: int,
        tables: tuple[Table, ...] | None,
        say: Say,
        *,
        whole: bool,
        thorough: bool,
        deep: bool = False,
    ) -> Outcome:
        """A difference counts if it is there a second time, too; a few are looked at by themselves then, unless all is to be
        known of the second time."""
        turn = self._clock.chance()
        outcome = await self._compare(node, tables, say, turn, (), whole=whole, deep=deep)
        for _ in range(_LOOKS):
            if outcome.equal:
                return outcome
            await asyncio.sleep(_AGAIN)
            suspects = () if thorough else outcome.suspects()
            again = await self._compare(node, tables, say, turn, suspects, whole=whole, deep=False)
            confirmed = again.confirmed(outcome)
            if again.equal or not confirmed.equal:
                return confirmed
            outcome = again
        raise Contended("other rows differ each time")

    async def compare(
        self, node: int, tables: tuple[Table, ...] | None, *, thorough: bool = False
    ) -> Outcome:
        """What is sealed, with one peer; a difference was found twice. Raises RefusedError, LinkDown, ProtocolError,
        Contended, DatabaseError."""
        return await self._confirmed(node, tables, _nobody, whole=False, thorough=thorough)

    async def prepare(self, tables: tuple[Table, ...] | None, say: Say, *, deep: bool) -> None:
        """Make the forest of this site true, up to now; `deep`: from the rows."""
        if deep:
            await self._forest.fell(tables)
        await self._freshen(say)

    async def whole(
        self,
        node: int,
        tables: tuple[Table, ...] | None,
        say: Say,
        *,
        deep: bool = False,
        thorough: bool = False,
    ) -> Outcome:
        """With the newest rows, too, if both sites are found still at the first or second look; the peer prepares for it."""
        outcome = await self._confirmed(node, tables, say, whole=True, deep=deep, thorough=thorough)
        if outcome.equal and not (outcome.scope.whole and not outcome.scope.left_out):
            await asyncio.sleep(_LOOK)
            await self._freshen(say)
            outcome = await self._confirmed(node, tables, say, whole=True, thorough=thorough)
        return outcome

    # ---- by itself

    def look(self, node: int, asked: Look) -> None:
        """Compare with this peer soon: it has asked for it."""
        before = self._soon.get(node, _UNASKED)
        self._soon[node] = Look(before.whole or asked.whole, (*before.trusted, *asked.trusted)[-_TRUSTED:])
        self._bell.ring()

    async def watch(self) -> None:
        """Compare with one of the peers, whichever, for ever; with those that have asked for it, at once."""
        turn, took = self._clock.now(), 0.0
        while True:
            long = took + min(limits.VERIFY_SHARE * took, limits.VERIFY_MOST)
            rest = max(limits.VERIFY_INTERVAL, long) * (0.75 + self._clock.chance() / 2)
            while (left := turn + rest - self._clock.now()) > 0 and not self._soon:
                await self._bell.wait(left)
            nodes = sorted(node for node in self._exchange.links if self._desk.roster.is_origin(node))
            wanted = {node: look for node, look in self._soon.items() if node in nodes}
            self._soon.clear()
            if left <= 0:  # whoever asks again and again does not take this one's turn
                turn = self._clock.now()
                if nodes:
                    wanted.setdefault(nodes[int(self._clock.chance() * len(nodes))], _UNASKED)
            differs = False
            for node, asked in wanted.items():
                try:
                    differs |= not await self._watched(node, asked)
                except Unreachable:
                    raise
                except SyncagentError:
                    continue  # the link, a lock, or a peer that is busy: another time
            if left <= 0:  # what differs is to be mended soon, however long it took
                took = 0.0 if differs else self._clock.now() - turn

    async def _watched(self, node: int, asked: Look) -> bool:
        """Whether they are equal."""
        if asked.whole:
            await self._freshen(_nobody)
            outcome = await self.whole(node, None, _nobody)
        else:
            outcome = await self.compare(node, None)
        await self.prove(node, outcome)
        if not outcome.equal and self.on_differing is not None:
            await self.on_differing(node, outcome, asked)
        return outcome.equal

    async def prove(self, node: int, outcome: Outcome) -> None:
        """Keep what a comparison of all tables has found, for `status` and for `syncagent.proof`."""
        counts = summary.by_table(outcome)
        await self._forest.prove(node, outcome, {"rows": counts, "hours": summary.hours(outcome.differences)})
        if outcome.equal:
            self._differs.pop(node, None)
            self._undecided.pop(node, None)
        else:
            self._differs[node] = ", ".join(f"{rows:,} rows of {table}" for table, rows in counts.items())
        self._desk.bells.news.ring()

    # ---- people

    async def _verify(self, request: Request) -> dict[str, Any]:
        """With every peer, of these tables or all."""
        if self._desk.roster.witness:
            raise RefusedError("this site is a witness and has no rows", hint="ask at a site that has")
        names = request.arguments.get("tables")
        tables = tuple(Table(*name) for name in names) if names else None

        async def say(what: str) -> None:
            await self._keeper.say(request.id, what)

        deep = bool(request.arguments.get("deep"))
        await self.prepare(tables, say, deep=deep)
        sites = [
            await self._report(peer.node, peer.name, tables, say, deep) for peer in self._desk.roster.origins
        ]
        return {"equal": all(site["equal"] for site in sites), "sites": sites}

    async def _report(
        self, node: int, name: str, tables: tuple[Table, ...] | None, say: Say, deep: bool
    ) -> dict[str, Any]:
        await say(f"{name}: beginning")
        try:
            outcome = await self.whole(node, tables, say, deep=deep)
        except Unreachable:
            raise
        except SyncagentError as error:
            return {"site": name, "equal": False, "error": error.line}
        if tables is None:
            await self.prove(node, outcome)
        return {"site": name, "error": None, **summary.told(outcome)}


async def _nobody(_: str) -> None:
    """Nobody waits."""


async def _within(seconds: float, what: Awaitable[Question | None]) -> Question | None:
    """None if it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await what
    except TimeoutError:
        return None
