"""Ranges of tables that hold rows already: what this site has of one, and how it becomes what the donor has.

Invariant: a range is reconciled in one transaction, under the lock that cuts and merges take, too; a write of the
application that comes between is found, and the range is done again.
"""

import asyncpg

from syncagent.core import copying
from syncagent.core.copying import Held, Range, RangeHead
from syncagent.core.ports import Spool
from syncagent.core.store import Differing, Put
from syncagent.errors import CopyDiffers
from syncagent.storage import staging

_NODE = "to_regclass(quote_ident($2::text) || '.' || quote_ident($3::text))"


async def held(session: asyncpg.Connection, relation: int, part: Range) -> Held | None:
    """What is here of a range; None of entries without a row."""
    if part.node is None:
        return None
    row = await session.fetchrow(
        f"select * from syncagent._held($1, {_NODE}, $4, $5)",
        relation,
        part.node.schema,
        part.node.name,
        part.low,
        part.high,
    )
    return Held(row["rows"], (row["lane_0"], row["lane_1"]))


async def stage(
    session: asyncpg.Connection, relation: int, part: Range, head: RangeHead, spool: Spool
) -> None:
    """The donor's rows of a range, into the staging table."""
    target = await session.fetchrow(
        "select * from syncagent._stage($1, $2, 'plain', $3, true)",
        part.table.schema,
        part.table.name,
        list(head.columns),
    )
    assert target is not None
    assert target["relation"] == relation
    if head.rows and not head.same:
        await staging.fill(
            session, target["stage"], target["stage_columns"], spool.read(copying.ROWS), head.rows
        )


async def differing(session: asyncpg.Connection, relation: int, part: Range) -> Differing:
    """What of a staged range is not as here; own writes are in `own_key`."""
    assert part.node is not None
    row = await session.fetchrow(
        f"select * from syncagent._differing($1, {_NODE}, $4, $5)",
        relation,
        part.node.schema,
        part.node.name,
        part.low,
        part.high,
    )
    return Differing(row["lacking"], row["changed"], row["extra"])


async def reconcile(
    session: asyncpg.Connection, relation: int, part: Range, head: RangeHead, spool: Spool, donor: int
) -> Put:
    """Inside the caller's transaction. Raises Contended if the application wrote in between."""
    await session.execute("lock table syncagent.merge_lock in exclusive mode")
    await stage(session, relation, part, head, spool)
    await session.execute("drop table if exists pg_temp.listed")
    await session.execute(
        f"create temp table listed on commit drop as select v.*, false as rest from syncagent.version_{relation} v with no data"
    )
    if head.versions:
        await session.copy_to_table(
            "listed",
            source=spool.read(copying.VERSIONS),
            columns=list(head.entries),
            format="binary",
        )
    row = await session.fetchrow(
        f"select * from syncagent._reconcile($1, {_NODE}, $4, $5, $6, $7, $8)",
        relation,
        part.node.schema if part.node else None,
        part.node.name if part.node else None,
        part.low,
        part.high,
        donor,
        head.same,
        head.lapsed,
    )
    await _compare(session, relation, part, head)
    return Put(
        0 if head.same else row["taken"], row["dropped"], row["conflicts"], head.rows if head.same else 0
    )


async def _compare(session: asyncpg.Connection, relation: int, part: Range, head: RangeHead) -> None:
    """Where this site has written nothing itself, and nothing is parked, it must now hold what the donor has read."""
    if part.node is None or head.same:
        return
    if await session.fetchval(
        "select exists (select from pg_temp.own_key) or exists (select from syncagent.parked_row where relation = $1)",
        relation,
    ):
        return
    here = await held(session, relation, part)
    if here != Held(head.rows, head.lanes):
        raise CopyDiffers(
            f"{part}: it is not what the donor has read",
            detail=f"here {here}; there {Held(head.rows, head.lanes)}",
            hint="do types and settings of this server write the values otherwise? is a disk or memory damaged?",
        )
