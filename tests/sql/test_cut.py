"""Cuts: what they see of open transactions, rewritten tables and stalled writers, and what they forget."""

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from syncagent.errors import Contended, SpoolFull
from tests.sql.conftest import Pair, Sites
from tests.support.lab import ITEM, Site, exchange, key, same, ship, timeless

K = key(1)
T = timeless(1)


async def tombstone(*sites: Site) -> None:
    """A row that was here and there, and is deleted at the first site; nobody else knows yet."""
    await sites[0].do(f"insert into item values ('{T}', 0)")
    await exchange(*sites)
    await sites[0].do("delete from item")


# ---- a live row whose version says deleted


async def test_open_insert_meets_a_newer_tombstone(sites: Sites, pair: Pair) -> None:
    # A's insert has its clock, and nobody can see it, when B's tombstone of the same key is applied.
    a, b = await sites(ITEM, *pair)
    opened = await a.holding(f"insert into item values ('{T}', 1)")
    await b.clock_ahead(5)
    await b.do(f"insert into item values ('{T}', 2)", "delete from item")
    await ship(b, a)
    await opened.execute("commit")

    await exchange(a, b)

    assert await same("item", a, b) == [f"({T},1,)"]
    assert "insert/delete" in await a.conflicts()


async def test_open_insert_meets_an_older_tombstone(sites: Sites, pair: Pair) -> None:
    # The other way: the transaction's last clock, and so its stamp, is above the tombstone's.
    a, b = await sites(ITEM, *pair)
    opened = await a.holding(f"insert into item values ('{T}', 1)")
    await b.do(f"insert into item values ('{T}', 2)", "delete from item")
    await ship(b, a)
    await opened.execute(f"insert into item values ('{key(2)}', 2); commit")

    await exchange(a, b)

    assert await same("item", a, b) == [f"({T},1,)", f"({key(2)},2,)"]
    assert "insert/delete" in await a.conflicts()


async def test_insert_under_an_old_snapshot_meets_a_tombstone(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await tombstone(b, a)
    old = await a.holding("select * from item", isolation="repeatable read")
    await ship(b, a)

    await old.execute(f"insert into item values ('{T}', 1); commit")
    await exchange(a, b)

    assert await same("item", a, b) == [f"({T},1,)"]


async def test_row_under_a_tombstone_is_settled_once_its_lock_is_free(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    opened = await a.holding(f"insert into item values ('{T}', 1)")
    await b.clock_ahead(5)
    await b.do(f"insert into item values ('{T}', 2)", "delete from item")
    await ship(b, a)
    await opened.execute("commit")

    busy = await a.holding("select * from item for update")
    await ship(a, b)
    assert await a.one("select count(*) from syncagent.settling") == 1
    await busy.execute("commit")
    await exchange(a, b)

    assert await a.one("select count(*) from syncagent.settling") == 0
    assert await same("item", a, b) == [f"({T},1,)"]


# ---- tombstones are collected


async def test_tombstone_waits_for_transactions_that_ran_when_it_was_applied(
    sites: Sites, pair: Pair
) -> None:
    # C has not collected it yet; an insert that it beat there must not come to life here by a lower stamp.
    a, b, c = await sites(ITEM, *pair, pair[0])
    opened = await a.holding(f"insert into item values ('{T}', 1)")
    await b.clock_ahead(5)
    await b.do(f"insert into item values ('{T}', 2)", "delete from item")
    await exchange(a, b, c)
    await a.compact()
    await b.compact()

    await opened.execute("commit")
    await exchange(a, b, c)

    assert await same("item", a, b, c) == [f"({T},1,)"]


async def test_insert_below_the_collected_mark_is_not_implicit(sites: Sites, pair: Pair) -> None:
    # C still holds the tombstone, which would beat the implicit stamp of the row that comes after it.
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1)")
    await exchange(a, b, c)
    await a.do("delete from item")
    await exchange(a, b, c)
    assert await a.compact() == 1

    await a.do(f"insert into item values ('{K}', 2)")
    await exchange(a, b, c)

    assert await same("item", a, b, c) == [f"({K},2,)"]


async def test_metadata_goes_once_everybody_has_it(sites: Sites, pair: Pair) -> None:
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1), ('{T}', 1), ('{key(2)}', 1)")
    await exchange(a, b, c)
    await b.do(
        f"update item set value = 2 where id in ('{K}', '{T}')", f"delete from item where id = '{key(2)}'"
    )
    await ship(b, a)
    await a.compact()
    assert len(await a.versions("item")) == 3  # C does not have them

    await exchange(a, b, c)
    for site in (a, b, c):
        await site.compact()

    assert [await site.versions("item") for site in (a, b, c)] == [{}, {}, {}]
    assert await a.one("select count(*) from syncagent.cut_keys") == 0


# ---- tables rewritten around a cut


async def test_cut_waits_for_a_rewriting_alter(sites: Sites, pair: Pair) -> None:
    # Under a snapshot older than the rewrite the table would read as empty.
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 1)")
    altering = await a.holding("alter table item alter value type int using value + 0")

    with pytest.raises(Contended):
        await a.cut()
    await altering.execute("commit")
    await exchange(a, b)

    assert await same("item", a, b) == [f"({K},1,)"]


async def test_table_cannot_be_rewritten_between_fold_and_copy(sites: Sites, pair: Pair) -> None:
    a, b = await sites(f"{ITEM}; create table other (id uuid primary key, value int)", *pair)
    await a.do(f"insert into item values ('{K}', 1)", f"insert into other values ('{K}', 1)")
    altering = await a.session(lock_timeout="20")

    async def alter() -> None:
        with pytest.raises(asyncpg.LockNotAvailableError):
            await altering.execute("alter table other alter value type int using value + 0")

    cut = await a.cut(b, during=alter)
    assert cut is not None
    await b.apply(cut.shipments[0])

    assert len(await same("item", a, b)) == len(await same("other", a, b)) == 1


OTHER = (
    "create table other (id uuid primary key, value int)",
    "select syncagent._attach('other', true, false)",
)


async def test_nor_can_one_that_was_attached_since_the_last_cut(sites: Sites, pair: Pair) -> None:
    # Which tables are to be locked is known from that cut.
    a, b = await sites(ITEM, *pair)
    await exchange(a, b)
    for site in (a, b):
        await site.do(*OTHER, f"insert into item values ('{key(site.node)}', 1)")
    await a.do(f"insert into other values ('{K}', 1)")
    altering = await a.session(lock_timeout="20")

    async def alter() -> None:
        with pytest.raises(asyncpg.LockNotAvailableError):
            await altering.execute("alter table other alter value type int using value + 0")

    cut = await a.cut(b, during=alter)
    assert cut is not None
    await b.apply(cut.shipments[0])

    assert await same("other", a, b) == [f"({K},1)"]


async def test_table_that_is_gone_since_the_last_cut_holds_up_nothing(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    for site in (a, b):
        await site.do(*OTHER)
    await exchange(a, b)
    await a.do("drop table other", f"insert into item values ('{K}', 1)")

    await exchange(a, b)

    assert await same("item", a, b) == [f"({K},1,)"]


REWRITES = {
    "vacuum full": "vacuum full item",
    "freeze": "vacuum freeze item",
    "cluster": "cluster item using item_pkey",
    "dump and restore": "set session_replication_role = replica; create table dump as table item;"
    " delete from item; insert into item table dump; drop table dump; reset session_replication_role",
}


@pytest.mark.parametrize("rewrite", REWRITES)
async def test_rewritten_row_keeps_its_version(sites: Sites, pair: Pair, rewrite: str) -> None:
    # Who wins does not depend on what the server knows of the transaction that wrote the row.
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0)")
    await exchange(a, b)
    await a.do("update item set value = 1")
    await b.do("update item set value = 2")  # later: it wins

    await b.do(REWRITES[rewrite])
    await a.do(REWRITES[rewrite])
    await exchange(a, b)

    assert await same("item", a, b) == [f"({K},2,)"]


# ---- a cut and what runs beside it


async def test_writes_go_on_while_a_cut_reads(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1), ('{key(2)}', 2)")

    async def write() -> None:
        await a.do(
            f"update item set value = 10 where id = '{key(1)}'", f"delete from item where id = '{key(2)}'"
        )
        await a.do(f"insert into item values ('{key(3)}', 3)")

    cut = await a.cut(b, during=write)
    assert cut is not None
    await b.apply(cut.shipments[0])
    assert [row[0] for row in await b.rows("select value from item order by id")] == [1, 2]

    await exchange(a, b)
    assert [row[0] for row in await b.rows("select value from item order by id")] == [10, 3]


async def test_failed_cut_changes_nothing(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 1)")

    async def fail() -> None:
        raise SpoolFull("no space left")

    with pytest.raises(SpoolFull):
        await a.cut(b, during=fail)

    assert await a.frontier() == {}
    await exchange(a, b)
    assert len(await same("item", a, b)) == 1


async def stalled(a: Site) -> asyncpg.Connection:
    """A writer that drew its clock four seconds ago, and places its entry only now."""
    return await a.holding(
        f"insert into item values ('{K}', 1)",
        "update syncagent.log set hlc = hlc - (2 << 23) where xid = pg_current_xact_id()",
    )


async def test_slot_of_a_stalled_writer_is_kept(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(2)}', 2)")
    writer = await stalled(a)
    await exchange(a, b)

    await a.store.keeper.trim()  # it is open
    await writer.execute("commit")
    await a.store.keeper.trim()  # it has committed, and is not folded
    await exchange(a, b)
    assert len(await same("item", a, b)) == 2

    await a.store.keeper.trim()
    assert await a.one("select count(*) from syncagent.log where hlc < syncagent._wall() - (1 << 23)") == 0


async def test_slot_trimmed_under_an_open_snapshot(sites: Sites, pair: Pair) -> None:
    # TRUNCATE is not MVCC: an older snapshot must have nothing to miss in what is truncated.
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{key(1)}', 1)")
    await exchange(a, b)
    await a.do(f"insert into item values ('{key(2)}', 2)")

    async def trim() -> None:
        trimming = await a.session(lock_timeout="20")
        for slot in range(16):
            await attempt(trimming.execute, f"select syncagent._trim({slot})")

    cut = await a.cut(b, during=trim)
    assert cut is not None
    await b.apply(cut.shipments[0])
    await exchange(a, b)

    assert len(await same("item", a, b)) == 2


async def attempt(do: Callable[[str], Awaitable[object]], statement: str) -> None:
    try:
        await do(statement)
    except asyncpg.LockNotAvailableError:
        pass


# ---- what a batch says


async def test_coalesced_batch_keeps_the_dot_of_each_cut(sites: Sites, pair: Pair) -> None:
    # With one dot for all of it, B's write would look as if it had not seen A's.
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1)")
    await exchange(a, b, c)
    await a.do("update item set value = 2")
    await ship(a, b)
    await b.do("update item set value = 3")
    batch = await b.batch(c)
    for number in range(5, 8):
        await a.do(f"insert into item values ('{key(number)}', {number})")
        await a.cut()

    coalesced = await a.batch(c)
    assert len(coalesced.header.contexts) > 3
    await c.apply(coalesced)
    await c.apply(batch)

    assert await c.one("select value from item where id = $1", K) == 3
    assert await c.conflicts() == []


async def test_coalesced_batch_keeps_the_context_of_each_cut(sites: Sites, pair: Pair) -> None:
    # A wrote without having seen B's write, and learned of that later, in the same batch for C.
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1)")
    await exchange(a, b, c)
    await b.do("update item set value = 2")
    await a.clock_ahead(5)
    await a.do("update item set value = 3")
    await a.cut()
    await ship(b, a)
    await a.do("delete from syncagent.conflict_step")  # it tells nobody: C has to see for itself
    await ship(b, c)
    await a.do(f"insert into item values ('{T}', 4)")

    await ship(a, c)

    assert await c.one("select value from item where id = $1", K) == 3
    assert await c.conflicts() == ["update/update"]


async def test_resend_skips_what_was_dropped(sites: Sites, pair: Pair) -> None:
    # A's write was replaced by B's, which everybody has by now: it is neither A's row nor without a stamp.
    a, b, c = await sites(ITEM, *pair, pair[0])
    await a.do(f"insert into item values ('{K}', 1)")
    await exchange(a, b, c)
    await b.clock_ahead(3)
    await a.do("update item set value = 2")
    await b.do("update item set value = 3")
    await a.cut()
    before = (await c.frontier())[a.node]
    await ship(b, a)
    table = await a.one("select id from syncagent.replicated")
    await a.do(f"delete from syncagent.version_{table}")  # as compaction does

    batch = await a.batch(c, plain=False)

    assert batch.header.after == before
    assert batch.header.rows == 0


async def test_key_written_twice_travels_once(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 1)")
    await a.cut()
    await a.do("update item set value = 2")

    batch = await a.batch(b)

    assert [(stream.form, stream.rows) for stream in batch.header.streams] == [("exact", 1)]


async def test_replaced_version_travels_with_its_own_origin(sites: Sites, pair: Pair) -> None:
    a, b = await sites(ITEM, *pair)
    await a.do(f"insert into item values ('{K}', 0)")
    await exchange(a, b)
    await a.do("update item set value = 1")
    await a.cut()
    await b.do("update item set value = 2")
    await ship(b, a)

    assert (await a.batch(b)).header.rows == 0


async def test_empty_window_is_no_cut(sites: Sites, pair: Pair) -> None:
    (a,) = await sites(ITEM, pair[0])
    assert await a.cut(force=False) is None
    assert await a.frontier() == {}


async def test_tombstone_below_the_time_in_its_key_is_kept(sites: Sites, pair: Pair) -> None:
    # Collected, it would raise the mark to less than the key: inserted again, the row could be implicit, and
    # what is implicit counts as seen by everybody.
    a, b = await sites(ITEM, *pair)
    ahead = await a.one("select syncagent.uuid7_floor(clock_timestamp() + interval '1 second')")
    await a.do(f"insert into item values ('{ahead}', 0)", "delete from item")
    await exchange(a, b)
    await b.compact()
    await a.clock_ahead(5)
    await b.clock_ahead(6)

    await b.do(f"insert into item values ('{ahead}', 2)")
    await b.cut()
    await a.do(f"insert into item values ('{ahead}', 1)")
    await exchange(a, b)

    assert await same("item", a, b) == [f"({ahead},2,)"]
    assert await a.conflicts() or await b.conflicts()
