"""Random schedules on real PostgreSQL, with the ground truth kept beside them.

It exists because the rules of the protocol were found by programs that know everything (tests/model);
here the SQL side is put through the same schedules: transactions that stay open, savepoints, statements
that nest, hot keys, keys ahead of the clock and without a time, cuts for some peers and not for others,
late and coalesced batches, what one has of a third handed on, compaction, trimming, clocks that jump.

Each write has a number, which is also the value it leaves in the row; `seen` says which writes its
writer had seen. What must hold at the end: every site has the same rows; each committed write that no
other had seen is final, or in a conflict, or a delete that somebody else had made as well; no conflict is
between writes of which one had seen the other.
On the way every fold and every merge is compared, key by key, with `core/merge.py`.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from syncagent.core import merge, stamp
from syncagent.core.merge import Dot, Incoming, Version, Window
from syncagent.core.outbox import Group
from syncagent.core.store import Shipment
from syncagent.errors import Contended, Inexact
from tests.sql.truth import (
    AHEAD,
    HOT,
    OPS,
    Actor,
    Shipped,
    State,
    Transaction,
    Write,
    apart,
    as_text,
    decode,
    frontier,
    lookup,
    short,
    statement_of,
)
from tests.support.lab import Site


class Run:
    """One schedule."""

    def __init__(self, seed: int, sites: Sequence[Site]) -> None:
        self.rnd = random.Random(seed)
        self.actors = [Actor(site) for site in sites]
        self.by_node = {actor.site.node: actor for actor in self.actors}
        self.writes: dict[int, Write] = {}
        self.committed: list[Write] = []
        self.stamped: dict[tuple[UUID, UUID], int] = {}  # (key, stamp) -> write
        self.settled: dict[int, int] = {}  # a value -> the write by which its site repeated it
        self.conflicts: set[int] = set()
        self.flights: dict[tuple[int, int], Shipment] = {}
        self.exactly: set[tuple[int, int]] = set()
        self.trace: list[str] = []

    def say(self, text: str) -> None:
        self.trace.append(text)

    async def run(self, steps: int) -> None:
        rnd = self.rnd
        self.ends = rnd.choice([0.1, 0.3, 0.6, 1.0])  # how soon transactions end
        self.hot = rnd.choice([0.05, 0.30])
        for actor in self.actors:
            await actor.site.clock_ahead(rnd.choice([0, 0, 0.01, 1, 3600]))
        for _ in range(steps):
            await self.step(rnd.choice(self.actors))
        await self.finish()
        await self.judge()

    async def step(self, actor: Actor) -> None:
        rnd, dice = self.rnd, self.rnd.random()
        if dice < 0.45:
            await self.statement(actor)
        elif dice < 0.53:
            await self.end_one(actor)
        elif dice < 0.68:
            peers = [other for other in self.actors if other is not actor and rnd.random() < 0.7]
            await self.cut(actor, peers, busy=rnd.random() < 0.3)
        elif dice < 0.86:
            await self.apply(actor, rnd.choice([other for other in self.actors if other is not actor]))
        elif dice < 0.90:
            via, *others = rnd.sample(
                [other for other in self.actors if other is not actor], len(self.actors) - 1
            )
            if others and not await self.relay(actor, via, others, plain=True):
                await self.relay(actor, via, others, plain=False)
        elif dice < 0.95:
            self.say(f"{actor.site.node} compacts {await actor.site.compact()}")
        elif dice < 0.97:
            self.say(f"{actor.site.node} trims {await actor.site.store.keeper.trim()}")
        else:
            seconds = rnd.choice([0.005, 2, 5])
            self.say(f"{actor.site.node} clock +{seconds} s")
            await actor.site.do(
                f"select setval('syncagent.hlc', nextval('syncagent.hlc') + {int(seconds * 4096000)})"
            )

    # ---- the application

    async def statement(self, actor: Actor) -> None:
        rnd = self.rnd
        tx = rnd.choice(actor.open) if actor.open and (len(actor.open) > 2 or rnd.random() < 0.5) else None
        tx = tx or await actor.begin()
        if rnd.random() < 0.15:
            await tx.session.execute(f"savepoint s{len(tx.savepoints)}")
            tx.savepoints.append(len(tx.writes))
        await self.write(actor, tx)
        if rnd.random() < self.ends * 0.7:
            await self.commit(actor, tx)

    async def write(self, actor: Actor, tx: Transaction) -> None:
        """One statement, unless it would wait for another transaction."""
        rnd = self.rnd
        free = [k for k in sorted(actor.seen) if actor.holder(k) in (None, tx)]
        alive = [k for k in free if actor.visible(tx, k) is not None]
        gone = [k for k in free if actor.visible(tx, k) is None]
        dice = rnd.random()
        if dice < self.hot:
            key = rnd.choice(HOT)
            if actor.holder(key) in (None, tx):
                there = actor.visible(tx, key) is not None
                await self.change(
                    actor, tx, rnd.choice(["delete", "update", "upsert"]) if there else "insert", [key]
                )
        elif (dice := rnd.random()) < 0.30:
            keys = [await self.new_key(actor) for _ in range(rnd.choice([1, 1, 3]))]
            await self.change(actor, tx, rnd.choice(["insert", "insert", "upsert", "vanish"]), keys)
        elif dice < 0.38 and gone:
            await self.change(actor, tx, rnd.choice(["insert", "upsert"]), [rnd.choice(gone)])
        elif dice < 0.45 and alive:
            await self.change(actor, tx, "rekey", [rnd.choice(alive), await self.new_key(actor)])
        elif dice < 0.75 and alive:
            await self.change(actor, tx, "update", rnd.sample(alive, min(len(alive), rnd.choice([1, 1, 4]))))
        elif dice < 0.85 and alive:
            await self.change(actor, tx, "delete", rnd.sample(alive, min(len(alive), rnd.choice([1, 1, 3]))))
        elif alive:
            await self.change(
                actor, tx, rnd.choice(["reborn", "reborn nested", "upsert"]), [rnd.choice(alive)]
            )

    async def new_key(self, actor: Actor) -> UUID:
        if self.rnd.random() < 0.2:
            return UUID(int=self.rnd.getrandbits(128), version=4)
        clock = await actor.site.one("select syncagent._tick()")
        return stamp.pack(
            clock + self.rnd.choice(AHEAD) * stamp.UNITS_PER_MS, actor.site.node, self.rnd.getrandbits(46)
        )

    async def change(self, actor: Actor, tx: Transaction, kind: str, keys: list[UUID]) -> None:
        numbers = range(len(self.writes) + 1, len(self.writes) + 1 + len(keys))
        pairs = list(zip(keys, numbers, strict=True))
        await tx.session.execute(statement_of(kind, pairs))
        self.say(
            f"{actor.site.node} tx{id(tx) % 1000} {kind} " + ", ".join(f"{short(k)}={n}" for k, n in pairs)
        )
        for key, number in pairs:
            gone = kind in ("delete", "vanish") or (kind == "rekey" and key == keys[0])
            before = [w.seen for w in tx.writes if w.key == key]
            seen = (before[-1] if before else actor.seen.get(key, frozenset())) | {number}
            self.writes[number] = Write(number, key, None if gone else number, seen, key not in actor.rows)
            tx.writes.append(self.writes[number])

    async def end_one(self, actor: Actor) -> None:
        if not actor.open:
            return
        tx, dice = self.rnd.choice(actor.open), self.rnd.random()
        if dice < 0.7:
            await self.commit(actor, tx)
        elif dice < 0.85 or not tx.savepoints:
            self.say(f"{actor.site.node} tx{id(tx) % 1000} rolls back")
            await tx.session.execute("rollback")
            actor.end(tx)
        else:
            back = self.rnd.randrange(len(tx.savepoints))
            self.say(f"{actor.site.node} tx{id(tx) % 1000} rolls back to {back}")
            await tx.session.execute(f"rollback to s{back}")
            del tx.writes[tx.savepoints[back] :]
            del tx.savepoints[back + 1 :]

    async def commit(self, actor: Actor, tx: Transaction) -> None:
        site = actor.site
        xid = await tx.session.fetchval("select pg_current_xact_id_if_assigned()::text")
        await tx.session.execute("commit")
        actor.end(tx)
        if tx.writes:
            clock = await site.one("select max(hlc) from syncagent.log where xid = $1::text::xid8", xid)
            version = stamp.pack(clock, site.node, 12345 + site.node)
            actor.xids.add(xid)
            for write in tx.writes:
                self.now_true(actor, write, version)
            self.say(f"{site.node} tx{id(tx) % 1000} commits {version}")

    def now_true(self, actor: Actor, write: Write, version: UUID) -> None:
        if write.shown is None:
            actor.rows.pop(write.key, None)
        else:
            actor.rows[write.key] = write.shown
        actor.past[write.key] = write.number
        actor.seen[write.key] = actor.seen.get(write.key, frozenset()) | write.seen
        self.stamped[write.key, version] = write.number
        self.committed.append(write)

    # ---- the agent

    async def cut(self, actor: Actor, peers: Sequence[Actor], *, busy: bool = False) -> None:
        site = actor.site
        before = await self.state(actor)

        async def meanwhile() -> None:
            for _ in range(3):
                await (self.statement(actor) if self.rnd.random() < 0.6 else self.end_one(actor))

        self.say(f"{site.node} cuts for {[p.site.node for p in peers]}")
        for plain in (True, False):
            chosen = [p for p in peers if ((p.site.node, site.node) in self.exactly) != plain]
            cut = await site.cut(
                *(p.site for p in chosen), plain=plain, force=plain, during=meanwhile if busy else None
            )
            if cut is None:
                # nothing to fold, but peers that want the exact form must have it
                cut = await site.cut(*(p.site for p in chosen), plain=plain) if chosen else None
            for peer, shipment in zip(chosen, cut.shipments if cut else (), strict=True):
                self.flights[site.node, peer.site.node] = shipment
                self.exactly.discard((peer.site.node, site.node))
            if plain:
                assert cut is not None
                await self.compare_fold(actor, before, cut.number)
        await self.notice_settling(actor)
        await self.notice_conflicts(actor)

    async def compare_fold(self, actor: Actor, before: State, number: int) -> None:
        after, site = await self.state(actor), actor.site
        named: dict[UUID, bool] = dict(
            await site.rows(
                "select k, bool_and(c.implicit) from syncagent.cut_keys c, unnest(c.keys) k"
                " where c.node = $1 and c.cut = $2 group by k",
                site.node,
                number,
            )
        )
        assert named.keys() == before.logged.keys()
        for key, entries in before.logged.items():
            ops = [OPS[op] for _, op, _ in sorted(entries)]
            local = before.local(key)
            assert local.logged is not None
            window = Window(ops, local.logged, local.alive, local.entry)
            expected = merge.fold(key, window, Dot(site.node, number), before.mark)
            assert after.entries.get(key) == expected.entry, f"fold of {key}: {expected}"
            assert named[key] == (expected.outcome == "implicit"), f"fold of {key}: {expected}"
            actor.settling |= expected.outcome == "settle"

    async def notice_settling(self, actor: Actor) -> None:
        """Writes that the agent made of its own: rows that lived under a newer tombstone."""
        if not actor.settling:
            return
        found = await actor.site.rows(
            "select l.xid::text, k, max(l.hlc) from syncagent.log l, unnest(l.keys) k where l.xid::text <> all ($1)"
            " group by 1, 2",
            [*actor.xids, *(await self.own_xids(actor))],
        )
        for xid, key, clock in found:
            actor.xids.add(xid)
            number, value = len(self.writes) + 1, actor.rows[key]
            self.writes[number] = Write(number, key, value, actor.seen[key] | {number})
            self.settled[value] = number
            self.now_true(
                actor, self.writes[number], stamp.pack(clock, actor.site.node, 12345 + actor.site.node)
            )
            self.say(f"{actor.site.node} settles {short(key)}={value} as write {number}")

    async def own_xids(self, actor: Actor) -> list[str]:
        found = [
            await tx.session.fetchval("select pg_current_xact_id_if_assigned()::text") for tx in actor.open
        ]
        return [xid for xid in found if xid is not None]

    async def apply(self, actor: Actor, origin: Actor, beside: Mapping[int, int] | None = None) -> bool:
        """Whether the batch on its way was applied; `beside`: cuts of others that count as applied."""
        way = origin.site.node, actor.site.node
        shipment = self.flights.get(way)
        if shipment is None:
            return False
        header = shipment.header
        if header.after != (await actor.site.frontier()).get(header.origin, 0):
            del self.flights[way]
            return False
        if not await actor.site.ready(header, beside):
            return False
        rows = await decode(shipment)
        before = await self.state(actor)
        try:
            await actor.site.apply(shipment)
        except Contended:
            self.say(f"{way[1]} refuses {header.after}-{header.upto} of {way[0]}")
            assert self.in_the_way(actor, rows), "refused for no reason"
            return False
        except Inexact:
            self.exactly.add((way[1], way[0]))
            del self.flights[way]
            return False
        del self.flights[way]
        self.say(
            f"{way[1]} applies {header.after}-{header.upto} of {way[0]}: {[(short(r.key), r.value) for r in rows]}"
        )
        await self.compare_merge(actor, before, header.origin, rows)
        await self.notice_conflicts(actor)
        return True

    def in_the_way(self, actor: Actor, rows: Iterable[Shipped]) -> bool:
        """Is a row of the batch being written here? A tombstone finds no row of an open insert."""
        return any(
            w.key == row.key and not (w.fresh and row.deleted)
            for row in rows
            for tx in actor.open
            for w in tx.writes
        )

    async def relay(self, actor: Actor, via: Actor, others: Sequence[Actor], *, plain: bool) -> bool:
        """What one has, of itself and of others, read at one cut and applied in one transaction. False: plain rows
        met metadata."""
        site, here = actor.site, await actor.site.frontier()
        groups = [
            Group(here.get(o.site.node, 0), plain, (site.node,), o.site.node if o is not via else None)
            for o in (*others, via)
        ]
        before = await self.state(via)
        cut = await via.site.cut_groups(groups)
        await self.compare_fold(via, before, cut.number)
        await self.notice_settling(via)
        await self.notice_conflicts(via)
        assert not cut.unable, "what was not everywhere is not whole any more"
        parts = [(shipment.header, shipment.spool) for shipment in cut.shipments]
        shipped = [(shipment.header.origin, await decode(shipment)) for shipment in cut.shipments]
        before = await self.state(actor)
        try:
            await site.store.replica.apply_knot(parts, attempt=0)
        except Contended:
            assert self.in_the_way(actor, [row for _, rows in shipped for row in rows]), (
                "refused for no reason"
            )
            return True
        except Inexact:
            return False
        self.say(
            f"{site.node} takes from {via.site.node} {[(h.origin, h.after, h.upto) for h, _ in parts]}:"
            f" {[(short(row.key), row.value) for _, rows in shipped for row in rows]}"
        )
        for origin, rows in shipped:  # no key is in two of them
            await self.compare_merge(actor, before, origin, rows)
        await self.notice_conflicts(actor)
        return True

    async def compare_merge(self, actor: Actor, before: State, origin: int, rows: Sequence[Shipped]) -> None:
        """Hold what the merge did to the core's verdict; then learn what the site holds now."""
        after = await self.state(actor)
        for row in rows:
            write = self.writes[self.write_of(row.key, row.stamp, row.value)]
            local = before.local(row.key)
            implicit = row.stamp is None
            content = None if row.value is None else as_text(row.key, row.value)
            version = stamp.implicit(row.key) if row.stamp is None else row.stamp
            incoming = Incoming(version, Dot(origin, row.cut), row.deleted, content)
            # a plain row comes without its cut; then it met no metadata, and no context is asked
            context = after.contexts[origin, row.cut] if row.cut is not None else {}
            verdict = merge.merge(row.key, local, incoming, actor.site.node, context, lookup(before))
            taken = verdict.action == "take"
            assert after.entries.get(row.key) == verdict.entry, f"merge of {row}: {verdict}"
            shown = row.value if taken else before.rows.get(row.key)
            assert after.rows.get(row.key) == shown, f"merge of {row} with {local}: {verdict}"
            assert not implicit or not row.deleted
            actor.seen[row.key] = actor.seen.get(row.key, frozenset()) | write.seen
            if taken:
                actor.past[row.key] = write.number
        actor.rows = after.rows

    async def state(self, actor: Actor) -> State:
        site = actor.site
        entries = {
            key: Version(version, Dot(node, cut), deleted)
            for key, (version, node, cut, deleted) in (await site.versions("item")).items()
        }
        logged: dict[UUID, list[tuple[int, str, UUID]]] = {}
        for key, clock, op, last in await site.rows(
            "select k, l.hlc, l.op::text, l.last from syncagent._last_cut() c,"
            " (select *, max(hlc) over (partition by xid) as last from syncagent.log) l, unnest(l.keys) k"
            " where l.xid >= c.xmax or l.xid = any (c.xip)"
        ):
            version = stamp.pack(last, site.node, 12345 + site.node)
            logged.setdefault(key, []).append((clock, op, version))
        contexts = {
            (node, cut): frontier.decode(context)
            for node, cut, context in await site.rows(
                "select node, cut, context::text from syncagent.context"
            )
        }
        rows: dict[UUID, int] = dict(await site.rows("select id, value from item"))
        born: dict[UUID, list[Dot]] = {}
        for key, node, cut in await site.rows(
            "select k, node, max(cut) from syncagent.cut_keys, unnest(keys) k where implicit group by k, node"
        ):
            born.setdefault(key, []).append(Dot(node, cut))
        mark = await site.one("select collected from syncagent.replicated")
        return State(rows, entries, logged, contexts, mark, born)

    async def notice_conflicts(self, actor: Actor) -> None:
        for conflict, kind, key, high, low, won, lost in await actor.site.rows(
            "select id, kind, key, winning_stamp, losing_stamp, (winning_image ->> 'value')::int,"
            " (losing_image ->> 'value')::int from syncagent.conflict_record where id <> all ($1)",
            list(actor.noticed),
        ):
            actor.noticed.add(conflict)
            one, other = (self.writes[self.write_of(key, *v)] for v in ((high, won), (low, lost)))
            self.say(f"{actor.site.node} notices {kind} on {short(key)}: {one.number} and {other.number}")
            self.conflicts |= {one.number, other.number}
            # that one kind is recorded on suspicion: the insert ran while the tombstone was applied
            assert kind == "insert/delete" or apart(one, other), f"false alarm: {kind} of {one} and {other}"

    def write_of(self, key: UUID, version: UUID | None, value: int | None) -> int:
        """The write that made a version; a live row of that version must show its value."""
        number = self.stamped.get((key, version)) if version is not None else None
        if number is None:
            assert value is not None, f"nobody wrote {key} with stamp {version}"
            number = self.settled.get(value, value)
        assert self.writes[number].shown == value, f"{key} {version} shows {value}, not {self.writes[number]}"
        return number

    # ---- the end

    async def finish(self) -> None:
        for actor in self.actors:
            for tx in list(actor.open):
                await self.commit(actor, tx)
        quiet = 0
        for _ in range(20):
            for actor in self.actors:
                await self.cut(actor, [other for other in self.actors if other is not actor])
            moved = [await self.apply_all(actor) for actor in self.actors]
            busy = not all(moved) or [a for a in self.actors if await a.site.store.origin.pending()]
            quiet = 0 if busy or [a for a in self.actors if await self.behind(a)] else quiet + 1
            if quiet > 2:  # once more, and once more, so that each knows what the others know
                return
        raise AssertionError("stuck: the sites never come to rest")

    async def apply_all(self, actor: Actor) -> bool:
        """Whether every other site's batch was applied. Coalesced batches may wait for one another for
        ever: those that miss nothing but each other go together."""
        others = [other for other in self.actors if other is not actor]
        left = [other for other in others if not await self.apply(actor, other)]
        left = [other for other in left if not await self.apply(actor, other)]
        flights = [self.flights.get((other.site.node, actor.site.node)) for other in left]
        heads = {f.header.origin: f.header.upto for f in flights if f is not None}
        return all([await self.apply(actor, other, beside=heads) for other in left])

    async def behind(self, actor: Actor) -> bool:
        """Has a cut with rows not been applied here?"""
        here = await actor.site.frontier()
        for other in self.actors:
            newest = await other.site.one(
                "select coalesce(max(cut), 0) from syncagent.cut_keys where node = $1", other.site.node
            )
            if here.get(other.site.node, 0) < newest:
                return True
        return False

    async def judge(self) -> None:
        final: list[dict[UUID, int]] = [
            dict(await actor.site.rows("select id, value from item")) for actor in self.actors
        ]
        assert all(rows == final[0] for rows in final[1:]), "diverged"
        of_key: dict[UUID, list[Write]] = {}
        for write in self.committed:
            of_key.setdefault(write.key, []).append(write)
        for key, writes in of_key.items():
            heads = [w for w in writes if not any(w.number in o.seen for o in writes if o is not w)]
            won = [w for w in heads if w.shown == final[0].get(key)]
            assert won, f"the final state of {key} is nobody's newest write: {heads}"
            if len(won) == len(heads) and key not in final[0]:
                continue  # all of them deleted
            agreed = [
                w for w in heads if w.shown is None and any(o.shown is None and apart(o, w) for o in writes)
            ]
            lost = [w for w in heads if w not in won + agreed and w.number not in self.conflicts]
            assert not lost, f"lost without a conflict: {lost}"
        for actor in self.actors:
            await actor.site.compact()
            left = [
                key
                for key, (version, *_) in (await actor.site.versions("item")).items()
                if version > stamp.implicit(key)
            ]
            assert not left, f"site {actor.site.node} keeps metadata of what is settled: {left}"
