"""Random schedules of `merge` on real PostgreSQL, with the ground truth kept beside them.

What a site knows is kept by the numbers of writes: its own, and all that the origin of a batch knew at its cut. What must hold at the
end: every site has the same rows; of each key the last life, unless it was ended, and in it: the counter is what was inserted and all
that was added; a member is in the set if some write added it that no remove had known; the newest and the largest are of the writes that
no other had known; and what was appended is there once, in the order of its stamps, unless somebody who knew it replaced the whole.
"""

from collections.abc import Sequence
from uuid import UUID

from tests.sql.column_schedule import Run
from tests.support.lab import Site

SCHEMA = """
create table item (id uuid primary key, life int not null, n int not null, s int[] not null, r int, top int, log text not null);
comment on table item is 'merge {"n": "counter", "s": "set", "top": "max", "log": "append"}'
"""
COLUMNS = ("n", "s", "r", "top", "log")


class MergeRun(Run):
    """One schedule."""

    def __init__(self, seed: int, sites: Sequence[Site]) -> None:
        super().__init__(seed, sites)
        self.known: dict[int, set[int]] = {site.node: set() for site in sites}
        self.cuts: dict[tuple[int, int], frozenset[int]] = {}
        self.counts: dict[int, int] = {}  # of a life
        self.adds: dict[int, dict[int, int]] = {}  # of a life: write -> member
        self.gone: set[int] = set()  # adds that were removed
        self.texts: dict[int, dict[int, str]] = {}  # of a life: write -> what it appended
        self.siblings: dict[tuple[int, str], dict[int, int]] = {}  # (life, column): write -> value
        self.read: set[tuple[str, int]] = set()
        self.knew: dict[int, frozenset[int]] = {}  # of a write: those that its site knew

    async def insert(self, site: Site, key: UUID, seen: frozenset[int]) -> None:
        number = len(self.writes) + 1
        self.counts[number], self.adds[number] = number, {number: 0}
        self.texts[number] = {number: chr(0x4E00 + number)}
        for column in ("r", "top"):
            self.siblings[number, column] = {number: number}
        statement = f"insert into item values ('{key}', {number}, {number}, '{{0}}', {number}, {number}, '{chr(0x4E00 + number)}')"
        await self.done(site, statement, key, number, COLUMNS, seen)

    async def update(self, site: Site, key: UUID, row: Sequence[object]) -> None:
        first, life, members = len(self.writes) + 1, int(str(row[0])), row[2]
        assert isinstance(members, list)
        writes: list[tuple[str, tuple[str, ...]]] = []
        columns: tuple[str, ...] = ()
        for number in range(first, first + self.rnd.choice([1, 1, 1, 2, 3])):
            if not columns or self.rnd.random() < 0.5:
                columns = tuple(self.rnd.sample(COLUMNS, self.rnd.choice([1, 1, 1, 2, 3])))
            changes = ", ".join(self.change(column, site, life, number, members) for column in columns)
            self.knew[number] = frozenset(self.known[site.node])
            writes.append((f"update item set {changes} where id = '{key}'", columns))
            self.known[site.node].add(number)  # what follows in the transaction has read it
        await site.together(*(statement for statement, _ in writes))
        for statement, columns in writes:
            await self.note(site, statement, key, life, columns, frozenset())

    def change(self, column: str, site: Site, life: int, number: int, members: list[int]) -> str:
        if column == "n":
            amount = self.rnd.choice([-2, -1, 1, 5])
            self.counts[life] += amount
            return f"n = n + {amount}"
        if column == "log":
            known = [write for write in self.texts[life] if write in self.known[site.node]]
            if self.rnd.random() < 0.15:
                self.read |= {(column, write) for write in known}
                self.texts[life][number] = chr(0x4E00 + number)
                return f"log = '{chr(0x4E00 + number)}'"
            self.texts[life][number] = self.rnd.choice(["x", "y", "xx", "xy"])  # many begin as others
            return f"log = log || '{self.texts[life][number]}'"
        if column == "s":
            member = self.rnd.randint(0, 3)
            if member in members:
                self.gone |= {
                    write
                    for write, each in self.adds[life].items()
                    if each == member and write in self.known[site.node]
                }
                members.remove(member)
                return f"s = array_remove(s, {member})"
            self.adds[life][number] = member
            members.append(member)
            return f"s = array_append(s, {member})"
        value = number if column == "r" else self.rnd.randint(0, 1000)
        values = self.siblings[life, column]
        self.read |= {(column, write) for write in values if write in self.known[site.node]}
        values[number] = value
        return f"{column} = {value}"

    async def delete(self, site: Site, key: UUID, row: Sequence[int]) -> None:
        await self.done(site, f"delete from item where id = '{key}'", key, row[0], (), frozenset(), end=True)

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
        self.knew[len(self.writes) + 1] = frozenset(self.known[site.node])
        await super().done(site, statement, key, life, columns, seen, end=end)
        self.known[site.node].add(len(self.writes))

    # ---- the agent

    async def cut(self, site: Site) -> None:
        await super().cut(site)
        number = await site.one("select max(number) from syncagent.cut")
        if number is not None:
            self.cuts.setdefault((site.node, number), frozenset(self.known[site.node]))

    async def apply(self, site: Site, peer: Site) -> None:
        shipment = self.flights.get((site.node, peer.node))
        await super().apply(site, peer)
        if shipment is not None and (await peer.frontier()).get(site.node, 0) == shipment.header.upto:
            self.known[peer.node] |= self.cuts[site.node, shipment.header.upto]

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
        expected = self.lives()
        assert tables[0].keys() == expected.keys(), (
            f"resurrected, or lost: {tables[0].keys() ^ expected.keys()}"
        )
        for key, life in expected.items():
            number, n, s, r, top, log = tables[0][key]
            assert (number, n) == (life, self.counts[life]), f"{key} counts {n}, not {self.counts[life]}"
            members = {member for write, member in self.adds[life].items() if write not in self.gone}
            assert sorted(s) == sorted(members), f"{key} has {s}, not {members}"
            texts = {w: text for w, text in self.texts[life].items() if ("log", w) not in self.read}
            said = "".join(texts[w] for w in sorted(texts, key=lambda w: (self.writes[w].stamp, w)))
            assert log == said, f"{key} says {log}, not {said}"
            left = {
                c: {w: v for w, v in self.siblings[life, c].items() if (c, w) not in self.read}
                for c in ("r", "top")
            }
            assert r == max(left["r"], key=lambda write: self.writes[write].stamp), (
                f"{key} shows {r} of {left['r']}"
            )
            assert top == max(left["top"].values()), f"{key} shows {top} of {left['top']}"
            await self.judge_siblings(key, set(left["r"]))

    async def judge_siblings(self, key: UUID, left: set[int]) -> None:
        """Conflicts of a column are of two writes of which neither knew the other; all that is left is in an open one."""
        stamps = {self.writes[write].stamp for write in left}
        for site in self.sites:
            found = await site.rows(
                "select winning_stamp, losing_stamp, open from syncagent.conflict where key = $1 and columns is not null",
                str(key),
            )
            for winning, losing, _ in found:
                one, other = (
                    [w for w in self.writes.values() if w.key == key and w.stamp == stamp]
                    for stamp in (winning, losing)
                )
                assert one, f"{key} has a conflict of a write that nobody made: {winning}"
                assert other, f"{key} has a conflict of a write that nobody made: {losing}"
                seen = [
                    (w, o)
                    for w in one
                    for o in other
                    if w.number in self.knew[o.number] or o.number in self.knew[w.number]
                ]
                assert not seen, f"no conflict: one had seen the other: {seen}"
            told = {stamp for *pair, is_open in found if is_open for stamp in pair}
            assert stamps == told or (len(stamps) == 1 and not told), (
                f"{key} has {left}, and {site.node} tells of {told}"
            )

    def lives(self) -> dict[UUID, int]:
        found = {}
        for key in self.keys:
            last = max(
                (w for w in self.writes.values() if w.key == key and w.life == w.number),
                key=lambda write: write.stamp,
            )
            if not any(
                write.end for write in self.writes.values() if write.key == key and write.life == last.number
            ):
                found[key] = last.number
        return found
