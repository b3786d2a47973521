"""What a random schedule knows of itself: its writes, its sites, and what its batches say.

It reads batches byte by byte and tables by plain SQL, so that nothing of it is the code under test.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import msgspec

from syncagent.core import merge
from syncagent.core.batch import BESIDE
from syncagent.core.frontier import Frontier
from syncagent.core.merge import Dot, Local, Version
from syncagent.core.store import Shipment
from tests.support.lab import Site

SCHEMA = """
create table item (id uuid primary key, value int not null, note text);
create function nested() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' and new.note = 'vanish' then
        delete from item where id = new.id;
    elsif tg_op = 'DELETE' and current_setting('app.reborn', true) <> '' then
        insert into item values (old.id, current_setting('app.reborn')::int);
    end if;
    return null;
end $$;
create trigger nested after insert or delete on item for each row execute function nested();
"""
HOT = [UUID(f"00000000-0000-4000-8000-00000000000{n}") for n in range(1, 4)]
AHEAD = (0, 0, 0, 2, 6, 3_600_000)
"""Milliseconds by which a new key may be ahead of the clock."""
OPS: dict[str, merge.Op] = {"I": "insert", "U": "update", "D": "delete"}
frontier = msgspec.json.Decoder(dict[int, int])


@dataclass
class Write:
    """One write of one key. `shown` is the value of the row it leaves; None: no row."""

    number: int
    key: UUID
    shown: int | None
    seen: frozenset[int]
    fresh: bool = False  # no committed row was there: nothing that apply could find locked


@dataclass
class Transaction:
    session: asyncpg.Connection
    writes: list[Write] = field(default_factory=list)
    savepoints: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Shipped:
    """A row of a batch. Without a stamp it is implicit; without a cut it came in the plain form."""

    key: UUID
    stamp: UUID | None
    cut: int | None
    deleted: bool
    value: int | None


@dataclass
class State:
    """What a site holds, read from its tables."""

    rows: dict[UUID, int]
    entries: dict[UUID, Version]
    logged: dict[UUID, list[tuple[int, str, UUID]]]  # not folded: the entry's clock, op, transaction's stamp
    contexts: dict[tuple[int, int], dict[int, int]]
    mark: UUID
    born: dict[UUID, list[Dot]]  # the cuts that found a row implicit

    def local(self, key: UUID) -> Local:
        logged = max((stamp for _, _, stamp in self.logged.get(key, ())), default=None)
        content = as_text(key, self.rows[key]) if key in self.rows else None
        return Local(key in self.rows, self.entries.get(key), logged, content, tuple(self.born.get(key, ())))


class Actor:
    """A site, its application, and what is true of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.rows: dict[UUID, int] = {}
        self.past: dict[UUID, int] = {}  # the write that the site's version of a key is
        self.seen: dict[UUID, frozenset[int]] = {}
        self.open: list[Transaction] = []
        self.idle: list[asyncpg.Connection] = []
        self.xids: set[str] = set()
        self.noticed: set[UUID] = set()
        self.settling = False  # a fold has found such a row

    def holder(self, key: UUID) -> Transaction | None:
        return next((tx for tx in self.open if any(w.key == key for w in tx.writes)), None)

    def visible(self, tx: Transaction, key: UUID) -> int | None:
        mine = [w.shown for w in tx.writes if w.key == key]
        return mine[-1] if mine else self.rows.get(key)

    async def begin(self) -> Transaction:
        session = self.idle.pop() if self.idle else await self.site.session(lock_timeout="3s")
        await session.execute("begin")
        self.open.append(Transaction(session))
        return self.open[-1]

    def end(self, tx: Transaction) -> None:
        self.open.remove(tx)
        self.idle.append(tx.session)


def apart(one: Write, other: Write) -> bool:
    """Neither writer had seen the other's write."""
    return one.number not in other.seen and other.number not in one.seen


def lookup(state: State) -> Callable[[Dot], Frontier | None]:
    def contexts(dot: Dot) -> Frontier | None:
        return None if dot.cut is None else state.contexts.get((dot.node, dot.cut))

    return contexts


def as_text(key: UUID, value: int) -> bytes:
    """A row as text, as judge compares two implicit ones."""
    return f"({key},{value},)".encode()


def short(key: UUID) -> str:
    return key.hex[6:12] + key.hex[-4:]


def statement_of(kind: str, pairs: Sequence[tuple[UUID, int]]) -> str:
    values = ", ".join(f"('{key}'::uuid, {number})" for key, number in pairs)
    keys = ", ".join(f"'{key}'" for key, _ in pairs)
    key, number = pairs[0]
    return {
        "insert": f"insert into item values {values}",
        "vanish": f"insert into item select k, n, 'vanish' from (values {values}) v (k, n)",
        "upsert": f"insert into item values {values} on conflict (id) do update set value = excluded.value",
        "update": f"update item set value = n from (values {values}) v (k, n) where id = k",
        "delete": f"delete from item where id in ({keys})",
        "rekey": f"update item set id = '{pairs[-1][0]}', value = {pairs[-1][1]} where id = '{key}'",
        "reborn": f"with gone as (delete from item where id = '{key}' returning id)"
        f" insert into item select id, {number} from gone",
        "reborn nested": f"select set_config('app.reborn', '{number}', false); delete from item where id = '{key}';"
        " select set_config('app.reborn', '', false)",
    }[kind]


async def decode(shipment: Shipment) -> list[Shipped]:
    """The rows of a batch of this schema, from their COPY bytes."""
    rows: list[Shipped] = []
    for index, stream in enumerate(shipment.header.streams):
        if stream.form in BESIDE:
            continue
        assert stream.columns == ("id", "value", "note")
        async for data in shipment.spool.read(index):
            for fields in _tuples(data):
                head = fields if stream.form == "exact" else [None, None, b"\0", *fields]
                version, cut, deleted, key, value, _ = head
                assert key is not None
                rows.append(
                    Shipped(
                        UUID(bytes=key),
                        UUID(bytes=version) if version else None,
                        int.from_bytes(cut) if cut else None,
                        deleted == b"\1",
                        int.from_bytes(value) if value else None,
                    )
                )
    assert len({row.key for row in rows}) == len(rows), "a key twice in one batch"
    return rows


def _tuples(data: bytes) -> Iterator[list[bytes | None]]:
    """The tuples of a binary COPY."""
    at = 19
    while (width := int.from_bytes(data[at : at + 2], signed=True)) >= 0:
        at += 2
        fields: list[bytes | None] = []
        for _ in range(width):
            size = int.from_bytes(data[at : at + 4], signed=True)
            at += 4
            fields.append(data[at : at + size] if size >= 0 else None)
            at += max(size, 0)
        yield fields
