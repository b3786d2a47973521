"""What a site that joins takes over of the past, beside the rows."""

import asyncpg

from syncagent.core import copying
from syncagent.core.copying import EndHead
from syncagent.core.ports import Spool


async def take(session: asyncpg.Connection, head: EndHead, spool: Spool) -> None:
    """Contexts, by which conflicts are judged, the conflicts so far, and what each cut up to the donor's frontier
    had changed, and which rows it had merged: this site may have to hand it on, and rows that come late follow here, too."""
    await session.execute(
        "create temp table context_stage on commit drop as select node, cut, context, newest from syncagent.context with no data;"
        " create temp table conflict_stage (like syncagent.conflict_record) on commit drop;"
        " create temp table step_stage (like syncagent.conflict_step) on commit drop;"
        " create temp table record_stage on commit drop as select null::name as schema_name, null::name as table_name,"
        " node, cut, implicit, keys from syncagent.cut_keys with no data;"
        " create temp table alias_stage on commit drop as select null::name as schema_name, null::name as table_name,"
        " loser, winner, node, cut from syncagent.alias with no data"
    )
    await session.copy_to_table("context_stage", source=spool.read(copying.CONTEXTS), format="binary")
    await session.copy_to_table("conflict_stage", source=spool.read(copying.CONFLICTS), format="binary")
    await session.copy_to_table("record_stage", source=spool.read(copying.RECORDS), format="binary")
    if head.aliases:
        await session.copy_to_table("alias_stage", source=spool.read(copying.ALIASES), format="binary")
    if head.steps:
        await session.copy_to_table("step_stage", source=spool.read(copying.STEPS), format="binary")
    await session.execute(
        "insert into syncagent.context (node, cut, context, newest, applied) select node, cut, context, newest, pg_current_snapshot()"
        " from pg_temp.context_stage on conflict (node, cut) do nothing;"
        " insert into syncagent.cut_keys (node, cut, relation, implicit, keys) select s.node, s.cut, r.id, s.implicit, s.keys"
        " from pg_temp.record_stage s join syncagent.replicated r using (schema_name, table_name)"
        " join syncagent.frontier f on f.node = s.node and s.cut <= f.cut;"
        " insert into syncagent.alias (relation, loser, winner, node, cut) select r.id, s.loser, s.winner, s.node, s.cut"
        " from pg_temp.alias_stage s join syncagent.replicated r using (schema_name, table_name)"
        " join syncagent.frontier f on f.node = s.node and s.cut <= f.cut on conflict do nothing;"
        " insert into syncagent.conflict_step select * from pg_temp.step_stage on conflict (conflict, node, hlc) do nothing;"
        " insert into syncagent.conflict_record select * from pg_temp.conflict_stage on conflict (id) do nothing"
    )
