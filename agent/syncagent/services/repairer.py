"""Makes rows that differ equal again: takes what is right elsewhere, and tells others what is right here.

Invariant: a site changes only its own rows, and only to what a peer has in a listing that covers all this site has collected;
what nobody can decide stays as it is, and is said.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

from syncagent.core import limits, repair
from syncagent.core.batch import BatchHeader, Table
from syncagent.core.comparison import Difference, Outcome
from syncagent.core.ports import Link, Spool, SpoolFactory
from syncagent.core.repair import Cause, Name
from syncagent.core.store import Forest, Keeper, Repaired, Repairs, Request
from syncagent.core.wire import Fetch, Look
from syncagent.errors import Contended, LinkDown, ProtocolError, RefusedError, SyncagentError, Unreachable
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Desk
from syncagent.services.verifier import Say, Verifier

_KEYS = 500
"""Rows of one listing."""
_AGAIN, _OLD = 0.2, 5.0
"""Seconds after which a listing that could not be taken is tried again, and is asked for anew."""
_ROUNDS = 60
"""Comparisons with one peer in one repair: each finds, and mends, up to a thousand rows."""
_PATIENT = 5
"""Comparisons in which nothing was taken here, while the other site should."""
_TOLD_AGAIN = 60.0
"""Seconds after which a peer is told once more of rows that it has not taken."""
_SHOWN = 100
"""Repaired rows in an answer."""


@dataclass
class Mended:
    """What was done about some differences: rows taken here, rows that peers are to take, rows that nobody can decide."""

    taken: list[Repaired] = field(default_factory=list)
    theirs: int = 0
    open: int = 0
    stale: int = 0

    @property
    def went_on(self) -> bool:
        return bool(self.taken or self.theirs or self.stale)


class Repairer:
    """Mends what the verifier finds, by itself and when asked."""

    def __init__(
        self,
        name: str,
        desk: Desk,
        verifier: Verifier,
        forest: Forest,
        repairs: Repairs,
        keeper: Keeper,
        exchange: Exchange,
        spools: SpoolFactory,
    ) -> None:
        self._name, self._desk, self._verifier, self._forest = name, desk, verifier, forest
        self._repairs, self._keeper, self._exchange, self._spools = repairs, keeper, exchange, spools
        self._waiting: dict[UUID, tuple[int, asyncio.Future[tuple[BatchHeader, Spool]]]] = {}
        self._told: dict[int, tuple[tuple[Look, frozenset[Name]] | None, float]] = {}
        self._listing: set[int] = set()
        self.on_parked: Callable[[int], None] = lambda _: None
        """So many more rows wait."""
        self.verbs = {"repair": self._repair}
        verifier.on_differing = self.heal
        exchange.on_repair, exchange.on_listing = self._heard, self._arrived

    # ---- what peers say

    async def _heard(self, link: Link, message: Fetch | Look) -> None:
        match message:
            case Look():
                self._verifier.look(link.peer.node, message)
            case Fetch(request, refusal=str(refusal)):
                self._failed(link.peer.node, request, RefusedError(refusal))
            case Fetch(request, table, keys):
                if len(keys) > _KEYS:
                    raise ProtocolError(f"a listing of {len(keys)} rows was asked for")
                await self._list(link, request, table, keys)

    async def _list(self, link: Link, request: UUID, table: Table, keys: Sequence[UUID]) -> None:
        """One at a time for each peer."""
        if link.peer.node in self._listing:
            await link.send(Fetch(request, table, (), "busy with another listing"))
            return
        self._listing.add(link.peer.node)
        try:
            header, spool = await self._repairs.listing(request, table, keys, self._spools)
            try:
                await link.send_batch(header, spool)
            finally:
                await spool.close()
        except (Unreachable, LinkDown):
            raise
        except SyncagentError as error:
            await link.send(Fetch(request, table, (), error.line))
        finally:
            self._listing.discard(link.peer.node)

    def _arrived(self, node: int, header: BatchHeader, spool: Spool) -> bool:
        """Whether somebody waits for it, and closes the spool."""
        if header.listing is None or (waiting := self._waiting.get(header.listing)) is None:
            return False
        asked, future = waiting
        if asked != node or header.origin != node or future.done():
            return False
        future.set_result((header, spool))
        return True

    def _failed(self, node: int, request: UUID, error: SyncagentError) -> None:
        asked, future = self._waiting.get(request, (None, None))
        if asked == node and future is not None and not future.done():
            future.set_exception(error)

    # ---- a listing

    async def _fetch(self, node: int, table: Table, keys: tuple[UUID, ...]) -> tuple[BatchHeader, Spool]:
        """Raises LinkDown, RefusedError."""
        link, request = self._exchange.links.get(node), uuid4()
        if link is None:
            raise LinkDown(f"there is no link with site {self._desk.roster.name(node)}")
        future: asyncio.Future[tuple[BatchHeader, Spool]] = asyncio.get_running_loop().create_future()
        self._waiting[request] = node, future
        until = self._desk.clock.now() + limits.REPAIR_PATIENCE
        try:
            await link.send(Fetch(request, table, keys))
            while not future.done():
                if self._exchange.links.get(node) is not link:
                    raise LinkDown("the link ended before the listing came")
                if self._desk.clock.now() > until:
                    raise LinkDown(f"{link.peer.name} sends no listing")
                await asyncio.wait([future], timeout=1.0)
            header, spool = future.result()
        finally:
            del self._waiting[request]
        forms = [(stream.table, stream.form) for stream in header.streams]
        if forms != [(table, "plain"), (table, "entries")] or len(header.contexts) != 2:
            await spool.close()
            problem = ProtocolError(f"{link.peer.name} sent a listing of what was not asked for")
            await link.close(problem.line)
            raise problem
        return header, spool

    async def _take(
        self, node: int, table: Table, wrong: Sequence[Difference], cause: Cause, *, dry: bool
    ) -> list[Repaired]:
        """What a listing has seen, and what is on its way, is waited for; one that has become too old is asked for again."""
        clock, keys = self._desk.clock, tuple(found.key for found in wrong)
        until = clock.now() + limits.REPAIR_PATIENCE
        while True:
            header, spool = await self._fetch(node, table, keys)
            old = clock.now() + _OLD
            try:
                while True:
                    try:
                        taken = await self._repairs.take(header, spool, wrong, cause, dry=dry)
                    except Contended:
                        if clock.now() > until:
                            raise
                    else:
                        if taken.parked and not dry:
                            self.on_parked(taken.parked)
                        return taken.rows
                    if clock.now() > old:
                        break
                    await asyncio.sleep(_AGAIN)
            finally:
                await spool.close()

    # ---- mending

    async def heal(self, node: int, outcome: Outcome, asked: Look) -> None:
        """What the verifier has found by itself, or because the peer has asked for it."""
        mended = await self.mend(node, outcome, right=frozenset(asked.trusted), whole=asked.whole)
        self._verifier.undecided(node, mended.open)

    async def mend(
        self,
        node: int,
        outcome: Outcome,
        *,
        right: Collection[Name] = (),
        source: int | None = None,
        whole: bool = False,
        dry: bool = False,
    ) -> Mended:
        """Make this site right where it differs from a peer. Of what is disputed, that site is right whose rows are `right`,
        or which is the `source`; else the majority. Raises LinkDown, RefusedError, Contended, DatabaseError."""
        mended, plan = Mended(), repair.plan(outcome.differences)
        trusted = [found for found in plan.disputed if source == node or (found.table, found.key) in right]
        disputed = [found for found in plan.disputed if found not in trusted]
        taken: list[tuple[int, Cause, list[Difference]]] = [
            (node, "stamps", plan.take),
            (node, "source", trusted),
        ]
        theirs, told = list(plan.theirs), list[Difference]()
        if source == self._desk.me:
            told, disputed = disputed, []
        if disputed:
            verdict = repair.vote(
                disputed, await self._outcomes(node, outcome, whole=whole), len(self._desk.roster.origins) + 1
            )
            taken += [(peer, "majority", found) for peer, found in sorted(verdict.take.items())]
            taken.append((node, "stamps", verdict.stamps))
            theirs += verdict.here
            mended.open = len(verdict.open)
        for peer, cause, wrong in taken:
            for table, some in _chunks(wrong):
                rows = await self._take(peer, table, some, cause, dry=dry)
                mended.taken += rows
        mended.theirs = len(theirs) + len(told)
        if not dry:
            await self._stale(outcome, mended)
            if theirs or told or mended.stale:
                names = tuple((found.table, found.key) for found in told)
                await self._tell(node, Look(whole, names), (*theirs, *told))
        return mended

    async def _outcomes(self, node: int, outcome: Outcome, *, whole: bool) -> dict[int, Outcome]:
        """How this site compares with everybody who can be asked: all of it, for who is equal has a voice, too."""
        outcomes, tables = {node: outcome}, outcome.scope.tables
        for peer in self._desk.roster.origins:
            if peer.node == node or peer.node not in self._exchange.links:
                continue
            try:
                outcomes[peer.node] = await (
                    self._verifier.whole(peer.node, tables, _nobody, thorough=True)
                    if whole
                    else self._verifier.compare(peer.node, tables, thorough=True)
                )
            except Unreachable:
                raise
            except SyncagentError:
                continue  # it has no voice
        return outcomes

    async def _stale(self, outcome: Outcome, mended: Mended) -> None:
        """Leaves that differ although their rows are equal: one of the two is not true."""
        spans = [
            (outcome.scope.tables[span.table], span.timed, outcome.scope.bucket(span))
            for span in outcome.stale
        ]
        await self._forest.anew(spans)
        mended.stale = len(spans)

    async def _tell(self, node: int, look: Look, wrong: Sequence[Difference]) -> None:
        """Not again and again of the same rows: it may be unable to take them."""
        now, names = self._desk.clock.now(), frozenset((found.table, found.key) for found in wrong)
        before, since = self._told.get(node, (None, 0.0))
        link = self._exchange.links.get(node)
        if link is not None and (before != (look, names) or now - since > _TOLD_AGAIN):
            self._told[node] = (look, names), now
            await link.send(look)

    # ---- people

    async def _repair(self, request: Request) -> dict[str, Any]:
        """With every peer, of these tables or all."""
        if self._desk.roster.witness:
            raise RefusedError("this site is a witness and has no rows", hint="ask at a site that has")
        names = request.arguments.get("tables")
        tables = tuple(Table(*name) for name in names) if names else None
        dry, deep = bool(request.arguments.get("dry")), bool(request.arguments.get("deep"))
        source = self._named(request.arguments.get("source"))

        async def say(what: str) -> None:
            await self._keeper.say(request.id, what)

        await self._verifier.prepare(tables, say, deep=deep)
        sites = []
        for peer in sorted(self._desk.roster.origins, key=lambda peer: peer.node != source):
            sites.append(
                await self._with(peer.node, peer.name, tables, say, source=source, dry=dry, deep=deep)
            )
            if (
                peer.node == source and not dry
            ):  # who is right came first: what it has is here now, and passed on
                if not sites[-1]["equal"]:
                    break
                source = self._desk.me
        return {"equal": all(site["equal"] for site in sites), "dry": dry, "sites": sites}

    def _named(self, name: str | None) -> int | None:
        if name is None:
            return None
        nodes = {peer.name: peer.node for peer in self._desk.roster.origins} | {self._name: self._desk.me}
        if name not in nodes:
            raise RefusedError(
                f"there is no site {name} with rows", hint=f"one of {', '.join(sorted(nodes))}"
            )
        return nodes[name]

    async def _with(
        self,
        node: int,
        name: str,
        tables: tuple[Table, ...] | None,
        say: Say,
        *,
        source: int | None,
        dry: bool,
        deep: bool,
    ) -> dict[str, Any]:
        """Compare and mend until the two are equal, or nothing goes on any more."""
        repaired: list[Repaired] = []
        mended, equal, error = Mended(), False, None
        try:
            still = 0
            for _ in range(_ROUNDS):
                outcome = await self._verifier.whole(node, tables, say, deep=deep and not repaired)
                equal, deep = outcome.equal, False
                if equal and tables is None:
                    await self._verifier.prove(node, outcome)
                if equal:
                    break
                mended = await self.mend(node, outcome, source=source, dry=dry, whole=True)
                repaired += mended.taken
                await say(f"{name}: {len(repaired):,} rows repaired")
                still = 0 if mended.taken else still + 1
                if dry or not mended.went_on or still > _PATIENT:
                    break
        except Unreachable:
            raise
        except SyncagentError as problem:
            error = problem.line
        return {
            "site": name,
            "equal": equal,
            "error": error,
            "repaired": len(repaired),
            "by_table": _counted(repaired),
            "rows": [
                {"table": str(r.table), "key": r.key, "cause": r.cause, "before": r.before, "after": r.after}
                for r in repaired[:_SHOWN]
            ],
            "theirs": 0 if equal else mended.theirs,
            "open": 0 if equal else mended.open,
        }


async def _nobody(_: str) -> None:
    """Nobody waits."""


def _chunks(wrong: Iterable[Difference]) -> Iterable[tuple[Table, Sequence[Difference]]]:
    ordered = sorted(wrong, key=lambda found: (found.table, found.key))
    for table, those in groupby(ordered, key=lambda found: found.table):
        rows = list(those)
        for n in range(0, len(rows), _KEYS):
            yield table, rows[n : n + _KEYS]


def _counted(repaired: Iterable[Repaired]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str], int] = {}
    for row in repaired:
        name = str(row.table), row.cause
        counts[name] = counts.get(name, 0) + 1
    return [{"table": table, "cause": cause, "rows": rows} for (table, cause), rows in sorted(counts.items())]
