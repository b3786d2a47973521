"""Random schedules of `lww-column` on real PostgreSQL, with the ground truth kept beside them.

Each write has a number, which is the value it leaves in the columns it writes, so a row says which writes it is made of. What must
hold at the end: every site has the same rows; of each key the last life, unless it was ended, with what the newest write of each column
in it made it; each write that is not there was seen by whoever replaced it or ended its life, or is in a conflict; no conflict is
between writes of which one had seen the other.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from syncagent.core import stamp
from syncagent.core.store import Shipment
from syncagent.errors import Inexact
from tests.support.lab import Site, quiet

SCHEMA = """
create table item (id uuid primary key, life int not null, a int not null, b int not null, c int not null);
comment on table item is 'lww-column'
"""
COLUMNS = ("a", "b", "c")
_CONFLICTS = """
select key, winning_stamp, losing_stamp, array[(w ->> 'life')::int, (w ->> 'a')::int, (w ->> 'b')::int, (w ->> 'c')::int],
       array[(l ->> 'life')::int, (l ->> 'a')::int, (l ->> 'b')::int, (l ->> 'c')::int]
from (select key, winning_stamp, losing_stamp, winning_image as w, losing_image as l from syncagent.conflict_record) as c
"""


@dataclass(frozen=True)
class Write:
    """Of some columns of a row; of all and its life, or of its end. `seen`: the writes that its writer had seen of them."""

    number: int
    key: UUID
    life: int
    columns: tuple[str, ...]
    end: bool
    stamp: UUID
    seen: frozenset[int]


class Run:
    """One schedule. `trace` tells what happened."""

    def __init__(self, seed: int, sites: Sequence[Site]) -> None:
        self.rnd, self.sites = random.Random(seed), list(sites)
        self.writes: dict[int, Write] = {}
        self.keys: list[UUID] = []
        self.flights: dict[tuple[int, int], Shipment] = {}
        self.exactly: set[tuple[int, int]] = set()
        self.buried: dict[int, set[UUID]] = {}
        self.trace: list[str] = []

    async def run(self, steps: int) -> None:
        for site in self.sites:
            await site.clock_ahead(self.rnd.choice([0, 0, 0.01, 1, 60]))
        for _ in range(steps):
            await self.step(self.rnd.choice(self.sites))
        await quiet(*self.sites)
        await self.judge()

    async def step(self, site: Site) -> None:
        other = self.rnd.choice([peer for peer in self.sites if peer is not site])
        dice = self.rnd.random()
        if dice < 0.5:
            await self.write(site)
        elif dice < 0.68:
            await self.cut(site)
        elif dice < 0.9:
            await self.apply(other, site)
        else:
            self.trace.append(f"{site.node} compacts {await site.compact()}")

    # ---- the application

    async def write(self, site: Site) -> None:
        rows = {row[0]: row[1:] for row in await site.rows("select * from item")}
        dice, alive = self.rnd.random(), sorted(rows)[-4:]
        buried = await self.notice(site)
        gone = [key for key in self.keys if key not in rows and key in buried][-3:]
        if dice < 0.12 or not (alive or gone):
            key = await self.new_key(site)
            self.keys.append(key)
            await self.insert(site, key, frozenset())
        elif dice < 0.22 and gone:
            key = self.rnd.choice(gone)
            ends = [write for write in self.writes.values() if write.key == key and write.end]
            await self.insert(site, key, frozenset().union(*(write.seen for write in ends)))
        elif dice < 0.32 and alive:
            await self.delete(site, (key := self.rnd.choice(alive)), rows[key])
        elif alive:
            await self.update(site, (key := self.rnd.choice(alive)), rows[key])

    async def notice(self, site: Site) -> set[UUID]:
        """Keys whose delete this site has seen, be it forgotten by now."""
        found = {row[0] for row in await site.rows("select key from syncagent.version_1 where deleted")}
        mine = {
            write.key
            for write in self.writes.values()
            if write.end and stamp.unpack(write.stamp).node == site.node
        }
        self.buried.setdefault(site.node, set()).update(found | mine)
        return self.buried[site.node]

    async def new_key(self, site: Site) -> UUID:
        if self.rnd.random() < 0.2:
            return UUID(int=self.rnd.getrandbits(128), version=4)
        return stamp.pack(await site.one("select syncagent._tick()"), site.node, self.rnd.getrandbits(46))

    async def insert(self, site: Site, key: UUID, seen: frozenset[int]) -> None:
        number = len(self.writes) + 1
        await self.done(
            site,
            f"insert into item values ('{key}', {number}, {number}, {number}, {number})",
            key,
            number,
            COLUMNS,
            seen,
        )

    async def update(self, site: Site, key: UUID, row: Sequence[int]) -> None:
        number, columns = (
            len(self.writes) + 1,
            tuple(self.rnd.sample(COLUMNS, self.rnd.choice([1, 1, 1, 2, 3]))),
        )
        changes = ", ".join(f"{column} = {number}" for column in columns)
        seen = frozenset().union(*(self.past(row[1 + COLUMNS.index(column)]) for column in columns))
        await self.done(site, f"update item set {changes} where id = '{key}'", key, row[0], columns, seen)

    async def delete(self, site: Site, key: UUID, row: Sequence[int]) -> None:
        seen = frozenset().union(*map(self.past, row))
        await self.done(site, f"delete from item where id = '{key}'", key, row[0], (), seen, end=True)

    def past(self, number: int) -> frozenset[int]:
        return self.writes[number].seen | {number}

    async def done(
        self,
        site: Site,
        statement: str,
        key: UUID,
        life: int,
        columns: tuple[str, ...],
        seen: frozenset[int],
        *,
        end: bool = False,
    ) -> None:
        await site.do(statement)
        await self.note(site, statement, key, life, columns, seen, end=end)

    async def note(
        self,
        site: Site,
        statement: str,
        key: UUID,
        life: int,
        columns: tuple[str, ...],
        seen: frozenset[int],
        *,
        end: bool = False,
    ) -> None:
        number = len(self.writes) + 1
        clock = await site.one("select max(hlc) from syncagent.log where $1 = any (keys)", key)
        version = stamp.pack(clock, site.node, 12345 + site.node)
        self.writes[number] = Write(number, key, life, columns, end, version, seen)
        self.trace.append(f"{site.node}: {statement}  -- {number} at {version}")

    # ---- the agent

    async def cut(self, site: Site) -> None:
        peers = [peer for peer in self.sites if peer is not site and self.rnd.random() < 0.7]
        self.trace.append(f"{site.node} cuts for {[peer.node for peer in peers]}")
        for plain in (True, False):
            chosen = [peer for peer in peers if ((peer.node, site.node) in self.exactly) != plain]
            cut = await site.cut(*chosen, plain=plain, force=bool(chosen))
            for peer, shipment in zip(chosen, cut.shipments if cut else (), strict=True):
                self.flights[site.node, peer.node] = shipment
                self.exactly.discard((peer.node, site.node))

    async def apply(self, site: Site, peer: Site) -> None:
        shipment = self.flights.get((site.node, peer.node))
        here = (await peer.frontier()).get(site.node, 0)
        if shipment is None or shipment.header.after != here or not await peer.ready(shipment.header):
            return
        del self.flights[site.node, peer.node]
        try:
            applied = await peer.apply(shipment, attempt=self.rnd.choice([0, 1, 2]))
            self.trace.append(f"{peer.node} has {site.node} up to {shipment.header.upto}: {applied}")
        except Inexact:
            self.exactly.add((peer.node, site.node))

    # ---- the truth

    async def judge(self) -> None:
        tables = [{row[0]: row[1:] for row in await site.rows("select * from item")} for site in self.sites]
        for table in tables:
            apart = {
                key: (table.get(key), tables[0].get(key))
                for key in self.keys
                if table.get(key) != tables[0].get(key)
            }
            assert not apart, f"the sites differ: {apart}"
        expected = self.rows()
        assert tables[0].keys() == expected.keys(), (
            f"resurrected, or lost: {tables[0].keys() ^ expected.keys()}"
        )
        for key, row in expected.items():
            assert tables[0][key] == row, f"a write of {key} was lost"
        await self.judge_conflicts(expected)

    def rows(self) -> dict[UUID, tuple[int, ...]]:
        found = {}
        for key in self.keys:
            lives = [
                write for write in self.writes.values() if write.key == key and write.life == write.number
            ]
            last = max(lives, key=lambda write: write.stamp)
            inside = [
                write for write in self.writes.values() if write.key == key and write.life == last.number
            ]
            if not any(write.end for write in inside):
                newest = [
                    max((w for w in inside if column in w.columns), key=lambda w: w.stamp)
                    for column in COLUMNS
                ]
                found[key] = (last.number, *(write.number for write in newest))
        return found

    async def judge_conflicts(self, rows: dict[UUID, tuple[int, ...]]) -> None:
        told: set[int] = set()
        by_stamp = {(write.key, write.stamp): write for write in self.writes.values()}
        for site in self.sites:
            for key, winning, losing, *images in await site.rows(_CONFLICTS):
                one, other = (by_stamp.get((key, each)) for each in (winning, losing))
                assert one is not None or other is not None
                told |= {write.number for write in (one, other) if write is not None}
                told |= {number for image in images if image for number in image}
                if one is not None and other is not None:
                    assert one.number not in other.seen, f"{other} had seen {one}"
                    assert other.number not in one.seen, f"{one} had seen {other}"
        there = {number for row in rows.values() for number in row}
        seen = frozenset().union(*(write.seen for write in self.writes.values()))
        for write in self.writes.values():
            if not write.end and write.number not in there | seen and write.number not in told:
                raise AssertionError(f"{write} is nowhere, and nobody had seen it")
