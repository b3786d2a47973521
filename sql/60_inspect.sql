-- What people ask: views and functions that read, and never lock.
--
-- They are for a role that is not the agent's: `syncagent.grant_reader` gives it all of them and nothing
-- else. Functions that views call run as their owner, for a view checks its reader's right to call them.

create function syncagent._inspect_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.key_of_{id}(p_key text) returns uuid
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select {key_of_text} from {named} $$;

create function syncagent.row_of_{id}(p_key text) returns xid
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select t.xmin from {named} join {table} t on {t_eq_f} $$;

create function syncagent.holds_{id}(p_key text, p_columns jsonb) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select exists (select from {named} join {table} t on {t_eq_f} where to_jsonb(t.*) @> p_columns) $$;
$sql$ $template$;

-- The pieces ------------------------------------------------------------------------------------------------

create function syncagent._entries() returns table (relation integer, entries bigint)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    for relation in select r.id from syncagent.replicated r order by r.id loop
        execute format('select count(*) from syncagent.version_%s', relation) into entries;
        return next;
    end loop;
end
$$;
comment on function syncagent._entries is 'version entries of each attached table: rows that are unsettled';

create function syncagent._log_bytes() returns bigint
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$ select sum(pg_relation_size(i.inhrelid))::bigint from pg_inherits i where i.inhparent = 'syncagent.log'::regclass $$;
comment on function syncagent._log_bytes is 'size of the log of captured statements';

create function syncagent._kept_bytes() returns bigint
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    from pg_class c
    where c.relnamespace = 'syncagent'::regnamespace and c.relkind = 'r'
      and (c.relname in ('cut', 'cut_keys', 'context', 'settling', 'alias') or c.relname like 'version\_%' or c.relname like 'log\_%')
$$;
comment on function syncagent._kept_bytes is 'bytes of what is kept until every site has it: keys of cuts, versions, contexts, the log';

create function syncagent._agent_runs() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (
        select from pg_locks l
        where l.locktype = 'advisory' and l.classid = 1937337955 and l.objid = 2 and l.objsubid = 2 and l.granted
          and l.database = (select d.oid from pg_database d where d.datname = current_database()))
$$;
comment on function syncagent._agent_runs is 'whether an agent holds this site';

create function syncagent._site_name(p_node integer) returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$ select coalesce((select m.name from syncagent.member m where m.node = p_node), 'node ' || p_node) $$;
comment on function syncagent._site_name is 'name of a member; one that has left is known by its number';

create function syncagent._key_text(p_shown jsonb, p_keys name[]) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case cardinality(p_keys) when 1 then p_shown ->> p_keys[1]::text else
        '(' || string_agg(
            case when v ~ '[(),"\\[:space:]]' or v = '' then '"' || replace(replace(v, '\', '\\'), '"', '""') || '"' else coalesce(v, '') end,
            ',' order by n) || ')' end
    from unnest(p_keys) with ordinality as k (name, n) cross join lateral (select p_shown ->> k.name::text) as s (v)
$$;
comment on function syncagent._key_text is 'the key of a row shown as JSON, spelled as why() and conflicts_of() take it';

create function syncagent._commit_time(p_xid xid) returns timestamptz
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$ select case when current_setting('track_commit_timestamp')::boolean then pg_xact_commit_timestamp(p_xid) end $$;
comment on function syncagent._commit_time is 'when a transaction committed here, if this server keeps that';

create function syncagent._trees() returns table (relation integer, sealed_until timestamptz, open_buckets bigint)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select f.relation, case when f.built > 0 then to_timestamp(f.built * syncagent._width(f.bucket, true) / 4096000) end, count(d.relation)
    from syncagent.forest f left join (select distinct * from syncagent._forest_dirty()) d on d.relation = f.relation
    group by f.relation, f.built
$$;
comment on function syncagent._trees is 'how far the tree of each attached table is sealed, and how many of its buckets have a leaf that is to be computed anew';

create function syncagent._failure(p_relation integer, p_key uuid, p_column text) returns text
    language sql stable
    as $$ select m.reason from syncagent.merge_result m where (m.relation, m.key, m.column_name) = (p_relation, p_key, p_column::name) $$;
comment on function syncagent._failure is 'why the function that merges a column has failed for a row; null if it has not';

create function syncagent._open(p_conflict uuid) returns boolean
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table    syncagent.replicated;
    v_open     boolean;
    v_conflict syncagent.conflict_record;
begin
    select * into v_conflict from syncagent.conflict_record c where c.id = p_conflict;
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation
    where r.schema_name = v_conflict.schema_name and r.table_name = v_conflict.table_name;
    if v_conflict.strategy = 'merge' and v_conflict.constraint_name is null then   -- as long as both are siblings
        return v_table.strategy = 'merge' and exists (
            select from syncagent._parts_of(syncagent._registers(v_table.id, v_conflict.key)) as p
            where p.value ->> 0 in (v_conflict.winning_stamp::text, v_conflict.losing_stamp::text)
              and (coalesce(v_table.merges ->> p.key, 'latest') = 'latest' or syncagent._failure(v_table.id, v_conflict.key, p.key) is not null)
            group by p.key having count(*) = 2);
    elsif v_table.id is null or v_conflict.yielded is null then
        return false;
    end if;
    execute format('select syncagent.holds_%s($1, $2)', v_table.id) into v_open using v_conflict.key_text, v_conflict.yielded;
    return v_open;
exception when data_exception then
    return false;   -- the table has another key by now
end
$$;
comment on function syncagent._open is 'whether the row that had to yield a value still lives with what it was given instead';

create function syncagent._forget_conflicts(p_age interval, p_most integer) returns bigint
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    with old as (
        select c.id from syncagent.conflict_record c
        where c.noticed_at < clock_timestamp() - p_age and not ((c.yielded is not null or c.strategy = 'merge' and c.constraint_name is null) and syncagent._open(c.id))
        order by c.noticed_at limit p_most for update skip locked
    ), gone as (
        delete from syncagent.conflict_record c using old where c.id = old.id returning c.id
    ), steps as (
        delete from syncagent.conflict_step s using gone where s.conflict = gone.id
    ), late as (   -- of what is forgotten already
        delete from syncagent.conflict_step s
        where s.what <> 'noticed' and s.at < clock_timestamp() - p_age and not exists (select from syncagent.conflict_record c where c.id = s.conflict)
    )
    select count(*) from gone
$$;
comment on function syncagent._forget_conflicts is 'drop some conflicts that were noticed so long ago; open ones stay; returns how many went';

-- The views -------------------------------------------------------------------------------------------------

create view syncagent.schema_change as
select r.id, r.name, r.state, r.phase, r.asked_at, r.site as asked_at_site, r.steps, r.let_go as steps_let_go,
       greatest(r.let_go - greatest(r.upto - s.schema_epoch, 0), 0)::integer as steps_done_here, r.failures, r.sql
from syncagent.schema_record r cross join syncagent.local_site s
order by r.place;
comment on view syncagent.schema_change is 'changes of the schema, in their order: state is open, back, done or aborted; failures says which site cannot do its next step, and why';

create view syncagent.replicated_table as
select format('%I.%I', coalesce(n.nspname, r.schema_name), coalesce(c.relname, r.table_name)) as table_name,
       r.key_columns::text[] as key_columns, r.derived, r.strategy, r.bucket, r.columns::text[] as columns,
       case when syncagent._estimate(r.relation) >= 0 then syncagent._estimate(r.relation)::bigint end as estimated_rows,
       e.entries as unsettled_rows,
       (select count(*) from syncagent.parked_row p where p.relation = r.id) as parked_rows,
       r.attached_at, c.oid is null as dropped, t.sealed_until, t.open_buckets
from syncagent.replicated r
join syncagent._entries() e on e.relation = r.id
left join syncagent._trees() t on t.relation = r.id
left join pg_class c on c.oid = r.relation
left join pg_namespace n on n.oid = c.relnamespace;
comment on view syncagent.replicated_table is 'attached tables; unsettled rows are those that some site may not have yet; rows with keys made before sealed_until are in sealed buckets, of which some are open, being written';

create view syncagent.lag as
with said as (
    select s.node as receiver, f.node as origin, f.cut from syncagent.local_site s cross join syncagent.frontier f
    union all
    select f.node, c.key::integer, c.value::bigint from syncagent.frontier f cross join jsonb_each_text(f.context) as c
    union all
    select p.node, c.key::integer, c.value::bigint from syncagent.peer_state p cross join jsonb_each_text(p.frontier) as c
), has as (
    select receiver, origin, max(cut) as cut from said group by receiver, origin
)
select o.name as origin, r.name as receiver, o.node as origin_node, r.node as receiver_node,
       greatest(coalesce(made.cut, 0) - coalesce(has.cut, 0), 0) as cuts, ours.rows, ours.seconds
from syncagent.member o
join syncagent.member r on r.node <> o.node and not o.witness and not r.witness
left join has as made on made.origin = o.node and made.receiver = o.node
left join has on has.origin = o.node and has.receiver = r.node
left join lateral (
    select coalesce(sum(c.rows), 0)::bigint as rows,
           round(extract(epoch from coalesce(clock_timestamp() - min(c.made_at) filter (where c.rows > 0), '0'))::numeric, 3)::float8 as seconds
    from syncagent.cut c where c.number > coalesce(has.cut, 0)
) as ours on o.node = (select s.node from syncagent.local_site s);
comment on view syncagent.lag is 'what each site has not applied of each other, as far as it is known here; rows and seconds only of this site''s own cuts';

create view syncagent.site as
select m.name, m.node, m.node = s.node as is_self,
       case when m.node = s.node then case when syncagent._agent_runs() then 'running' else 'no agent' end
            when not syncagent._agent_runs() then 'unknown'
            when p.paused then 'paused' when p.linked then 'linked' when p.via is not null then 'relayed' else 'away' end as state,
       case when m.state = 'joining' then 'joining' when not m.votes then 'learner' when m.witness then 'witness' else 'voter' end as role,
       case when syncagent._agent_runs() then m.node = led.leader end as leads, m.address,
       case when m.node = s.node then s.site end as site,
       case when m.node = s.node then s.incarnation end as incarnation,
       case when m.node = s.node then a.version end as agent_version,
       case when m.node = s.node then a.started_at end as agent_started_at
from syncagent.local_site s
cross join syncagent.member m
left join syncagent.peer_state p on p.node = m.node
left join syncagent.agent_state a on m.node = s.node
left join syncagent.agent_state led on true;
comment on view syncagent.site is 'the sites of the cluster: this one, and those its agent knows; role is what they are to the group that agrees on members, leads who leads it';

create view syncagent.status as
select m.name, m.node, m.is_self, m.state, m.role, m.leads, coalesce(p.linked, false) as linked, coalesce(p.paused, false) as paused,
       l.cuts as behind_cuts, l.rows as behind_rows, l.seconds as behind_seconds,
       f.cut as applied_cut, f.applied_at,
       case when m.is_self then (select count(*) from syncagent.parked_row) else p.parked end as parked,
       case when m.is_self then a.waiting else p.waiting end as waiting,
       case when m.is_self then a.trouble else p.trouble end as trouble,
       (extract(epoch from p.rtt) * 1000)::float8 as rtt_ms,
       extract(epoch from p.clock_offset)::float8 as clock_offset_seconds,
       p.changed_at as known_since,
       case when m.is_self then syncagent._log_bytes() end as log_bytes,
       case when m.is_self then (select coalesce(sum(e.entries), 0)::bigint from syncagent._entries() e) end as unsettled_rows,
       case when m.is_self then (select count(*) from syncagent.cut) end as kept_cuts,
       case when m.is_self then (select count(*) from syncagent.conflict_record) end as conflicts,
       syncagent._site_name(p.via) as via,
       (select max(q.last_at) from syncagent.proof_record q where q.node = m.node and q.equal) as equal_at,
       case when m.is_self then array(select format('%I.%I: %s', t.schema_name, t.table_name, d.what) from syncagent.typed_record d
                                      join syncagent.replicated t on t.id = d.relation where d.epoch is null order by d.since, 1) end as typed
from syncagent.site m
left join syncagent.peer_state p on p.node = m.node
left join syncagent.frontier f on f.node = m.node
left join syncagent.agent_state a on m.is_self
left join syncagent.lag l on l.receiver_node = m.node and l.origin_node = (select s.node from syncagent.local_site s);
comment on view syncagent.status is 'every site: what it has not applied of this one (behind), what this one has applied of it, and what is the matter; equal_at is when it was last found equal to this one; typed is what somebody has made of attached tables by hand, see typed_change';

create view syncagent.conflict as
select c.id, format('%I.%I', c.schema_name, c.table_name) as table_name, c.key_text as key, c.kind, c.strategy,
       syncagent._site_name(c.winning_node) as winner, syncagent._site_name(c.losing_node) as loser,
       c.winning_image, c.losing_image, c.winning_stamp, c.losing_stamp,
       syncagent.stamp_time(c.winning_stamp) as winning_time, syncagent.stamp_time(c.losing_stamp) as losing_time,
       c.noticed_at, s.at as resolved_at, s.by_role::text as resolved_by, c.constraint_name::text as constraint_name, c.other_key_text as other_key, c.yielded,
       (c.yielded is not null or c.strategy = 'merge' and c.constraint_name is null) and syncagent._open(c.id) as open,
       array(select syncagent._site_name(n.node) from syncagent.conflict_step n where n.conflict = c.id and n.what = 'noticed' order by n.node) as noticed_by,
       syncagent._site_name(s.node) as resolved_site,
       (select string_agg(format('%I: %s', m.column_name, m.reason), '; ' order by m.column_name)
        from syncagent.replicated r join syncagent.merge_result m on m.relation = r.id and m.key = c.key and m.reason is not null
        where (r.schema_name, r.table_name) = (c.schema_name, c.table_name) and c.strategy = 'merge' and c.constraint_name is null) as failure,
       c.columns::text[] as columns
from syncagent.conflict_record c
left join lateral (select * from syncagent.conflict_step s where s.conflict = c.id and s.what <> 'noticed'
                   order by s.hlc desc, s.node desc limit 1) as s on s.what = 'resolved'
where has_table_privilege('syncagent.conflict_record', 'select') or syncagent._may_see(current_user, c.schema_name, c.table_name);
comment on view syncagent.conflict is 'every version that was overwritten unseen: who won, who lost, and both rows; an image is null where the row was deleted; columns are those that both wrote, where rows are not written whole. Of two rows with one value of a constraint that of other_key keeps it; it is open while the other lives with what it was given instead, or (a policy merge) the other was merged into it; of a table whose strategy is merge, as long as both are siblings, or a function of yours fails for them: failure says why. Others are settled by the rule: the newer stamp has won. Every site shows those of all sites: noticed_by are the sites that met both versions before they were told, resolved_site is where somebody has settled it. A role is shown those of tables of which it may read every row, the agent''s those of all';

create view syncagent.parked as
select format('%I.%I', r.schema_name, r.table_name) as table_name, syncagent._key_text(p.shown, r.key_columns) as key,
       syncagent._site_name(p.node) as origin, p.sqlstate, p.reason, p.shown as image, p.stamp,
       syncagent.stamp_time(p.stamp) as written_at, p.since
from syncagent.parked_row p join syncagent.replicated r on r.id = p.relation
where has_table_privilege('syncagent.parked_row', 'select') or syncagent._may_see(current_user, r.schema_name, r.table_name);
comment on view syncagent.parked is 'rows that arrived and break a constraint here; they are tried again after every batch. A role is shown those of tables that it may read';

create view syncagent.proof as
select p.last_at as at, syncagent._site_name(p.node) as site, p.equal, p.tables, p.rows, p.before, p.complete, p.open, p.root,
       p.here as frontier_here, p.there as frontier_there, p.found, p.first_at as since, p.times
from syncagent.proof_record p;
comment on view syncagent.proof is 'what was compared with each site: equal or not, how many rows of how many tables, those whose keys were made before when (null: all), buckets that were being written, the root, and what differs';

create view syncagent.repair as
select r.made_at as at, r.schema_name, r.table_name, r.key_text as key, r.cause, syncagent._site_name(r.node) as source,
       r.stamp_before, r.stamp_after, r.image_before, r.image_after
from syncagent.repair_record r
where has_table_privilege('syncagent.repair_record', 'select') or syncagent._may_see(current_user, r.schema_name, r.table_name);
comment on view syncagent.repair is 'rows that were repaired at this site: missing, lost (its entry says that it lives), older, or made like at most sites (majority) or at the one a person named (source); after whom, and what was there before and is now. A role is shown those of tables that it may read';

-- The story of a row ----------------------------------------------------------------------------------------

create function syncagent._row(p_table regclass, p_key text, out relation integer, out key uuid)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_variable
begin
    select r.id into relation from syncagent.replicated r where r.relation = p_table;
    if not found then
        raise exception 'table % is not attached', p_table
            using errcode = 'SA003', hint = format('syncagent attach %s; `syncagent tables` lists those that are', p_table);
    end if;
    begin
        execute format('select syncagent.key_of_%s($1)', relation) into strict key using p_key;
    exception when data_exception then
        raise exception 'the key % does not fit table %', quote_literal(p_key), p_table
            using errcode = 'SA004', detail = sqlerrm,
                  hint = (select format('its key is %s; several columns are written as (1,abc)', array_to_string(r.key_columns, ', '))
                          from syncagent.replicated r where r.id = relation);
    end;
end
$$;
comment on function syncagent._row is 'attached table and row key of a key given as text';

create function syncagent.conflicts_of(p_table regclass, p_key text) returns setof syncagent.conflict
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._must_be_allowed(r.schema_name, r.table_name, 'select') from syncagent.replicated r where r.relation = p_table;
    select c.*
    from syncagent._row(p_table, p_key) as w
    join syncagent.replicated r on r.id = w.relation
    join syncagent.conflict_record x on (x.schema_name, x.table_name, x.key) = (r.schema_name, r.table_name, w.key)
    join syncagent.conflict c on c.id = x.id
    order by x.noticed_at, x.id
$$;
comment on function syncagent.conflicts_of(regclass, text) is 'the conflicts of one row, oldest first; the key as text, several columns as (1,abc)';

create function syncagent.why(p_table regclass, p_key text)
    returns table (what text, site text, at timestamptz, stamp uuid, cut bigint, detail text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_row     record;
    v_here    xid;
    v_last    record := syncagent._last_cut();
    v_me      integer := (select s.node from syncagent.local_site s);
    v_known   boolean := false;
    v_version record;
begin
    select * into strict v_row from syncagent._row(p_table, p_key);
    perform syncagent._must_be_allowed(r.schema_name, r.table_name, 'select') from syncagent.replicated r where r.id = v_row.relation;
    execute format('select syncagent.row_of_%s($1)', v_row.relation) into v_here using p_key;
    execute format('select v.* from (select) as always left join syncagent.version_%s v on v.key = $1', v_row.relation)
        into v_version using v_row.key;

    return query
    select 'written', syncagent._site_name(v_me), to_timestamp(l.hlc / 4096000.0), null::uuid, null::bigint,
           format('%s%s in transaction %s, in no cut yet',
                  case l.op when 'I' then 'inserted' when 'U' then 'updated' else 'deleted' end, ' ' || array_to_string(l.columns, ', '), l.xid)
    from syncagent.log l
    where l.relation = v_row.relation and v_row.key = any (l.keys) and (l.xid >= v_last.xmax or l.xid = any (v_last.xip))
    order by l.hlc desc;
    v_known := found;

    if v_version.key is not null then
        v_known := true;
        return query
        select case when v_version.deleted then 'deleted' else 'written' end, syncagent._site_name(v_version.node),
               syncagent.stamp_time(v_version.stamp), v_version.stamp, v_version.cut,
               case when v_version.cut is null then 'in no cut yet'
                    when v_version.cut = 0 then 'before the table was attached, under a key ahead of the clock'
                    else coalesce('unsettled: not known yet to be at ' || string_agg(m.name, ', ' order by m.node),
                                  'every site has it') end
        from (select) as always
        left join syncagent.member m on not m.witness and v_version.cut > coalesce((
            select case when m.node = v_me then f.cut else (x.context ->> v_version.node::text)::bigint end
            from (select) as one
            left join syncagent.frontier f on f.node = v_version.node
            left join syncagent.frontier x on x.node = m.node), 0);
        return query   -- by column, if the table's strategy is
        select case e.key when '' then 'inserted' else format('column %s', e.key) end, syncagent._site_name(e.node),
               syncagent.stamp_time((e.value ->> 0)::uuid), (e.value ->> 0)::uuid, (e.value ->> 2)::bigint,
               case e.key when '' then 'what was written before is of a row that was deleted' else 'its newest write' end
        from syncagent._parts_of(to_jsonb(v_version) -> 'registers') as e
        order by 4 desc, 1;
    end if;

    if not v_known then
        return query
        select case when v_here is null then 'absent' else 'settled' end, null::text, syncagent._commit_time(v_here),
               case when v_here is not null then syncagent._implicit(v_row.key) end, null::bigint,
               case when v_here is null then 'no site wrote it, or every site knows that it was deleted'
                    else 'every site has it'
                      || coalesce('; its key was made at ' || syncagent.stamp_time(v_row.key)::text, '')
                      || case when syncagent._commit_time(v_here) is null
                              then '; when it was last written is forgotten (the server''s track_commit_timestamp would keep it)' else '' end end;
    end if;

    return query
    select 'settling', syncagent._site_name(v_me), null::timestamptz, null::uuid, null::bigint,
           'lives here under a newer delete; the agent writes it anew'
    from syncagent.settling s where s.relation = v_row.relation and s.key = v_row.key;

    return query
    select 'parked', syncagent._site_name(p.node), syncagent.stamp_time(p.stamp), p.stamp, p.cut,
           format('waits here since %s: %s (%s)', p.since, p.reason, p.sqlstate)
    from syncagent.parked_row p where p.relation = v_row.relation and p.key = v_row.key;

    return query
    select 'merged', syncagent._site_name(a.node), null::timestamptz, null::uuid, a.cut, format('rows that refer to it are given to row %s', a.winner)
    from syncagent.alias a where a.relation = v_row.relation and a.loser = v_row.key;

    return query
    select 'merged', c.winner, c.noticed_at, null::uuid, null::bigint, format('row %s was merged into this one; it was %s; conflict %s', c.key, c.losing_image, c.id)
    from syncagent.conflict_record x join syncagent.replicated t on t.id = v_row.relation join syncagent.conflict c on c.id = x.id
    where x.schema_name = t.schema_name and x.table_name = t.table_name and x.other_key = v_row.key and x.kind = 'unique' and x.strategy = 'merge'
    order by c.noticed_at desc;

    return query
    select 'conflict', c.winner, c.winning_time, c.winning_stamp, null::bigint,
           case when c.yielded is not null
                then format('%s: row %s keeps its value of %s; it was %s; conflict %s, %s', c.kind, c.other_key, c.constraint_name,
                            c.losing_image, c.id, case when c.open then 'open' else 'settled since' end)
                when c.kind = 'unique'
                then format('unique: merged into row %s, which has its value of %s; it was %s; conflict %s%s', c.other_key, c.constraint_name,
                            c.losing_image, c.id, case when c.resolved_at is not null then ', taken back' else '' end)
                when c.strategy = 'cascade'
                then format('foreign key: deleted with row %s, to which it referred by %s; it was %s; conflict %s', c.other_key, c.constraint_name, c.losing_image, c.id)
                else format('%s: won over %s (%s), which wrote %s; conflict %s', c.kind, c.loser,
                            coalesce(c.losing_time::text, 'no time'), coalesce(c.losing_image::text, 'a delete'), c.id) end
    from syncagent.conflicts_of(p_table, p_key) as c order by c.noticed_at desc;
end
$$;
comment on function syncagent.why(regclass, text) is
    'the story of one row, newest first: unsettled (which site, when, stamp, cut, and who may not have it yet) or settled, parked, merged, its conflicts';

create function syncagent.constraints_of(p_table regclass)
    returns table (constraint_name text, kind text, policy text, column_name text, becomes text)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select u.name::text, u.kind, u.policy, case when u.policy <> 'merge' then u.column_name::text end,
           case when u.policy = 'merge' then 'one row' when u.yields = 'null' then 'null' when u.yields = 'suffix' then 'marked text' end
    from syncagent.replicated r cross join lateral syncagent._rules(r.id) as u where r.relation = p_table
    union all
    select x.name::text, 'foreign key', x.policy, null, null
    from syncagent.replicated r
    cross join lateral (select distinct f.confrelid from pg_constraint f where f.conrelid = r.relation and f.contype = 'f') as f
    join syncagent.replicated p on p.relation = f.confrelid
    cross join lateral syncagent._references(p.id) as x
    where r.relation = p_table and x.relation = r.id
    order by 2 desc, 1
$$;
comment on function syncagent.constraints_of(regclass) is 'unique, exclusion and foreign key constraints of an attached table: what is done where rows of two sites collide, or one site deletes what a row of another refers to; and which column of the row of the larger key yields';

-- The tree of a table ---------------------------------------------------------------------------------------

create function syncagent.forest_of(p_table regclass, p_level text default 'day')
    returns table (begins timestamptz, rows bigint, buckets bigint, leaves bigint, open bigint, digest text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_relation integer := (select r.id from syncagent.replicated r where r.relation = p_table);
begin
    if v_relation is null then
        raise exception 'table % is not attached', p_table
            using errcode = 'SA003', hint = format('syncagent attach %s; `syncagent tables` lists those that are', p_table);
    elsif p_level not in ('year', 'month', 'day', 'hour', 'minute') then
        raise exception 'there is no level % in the tree of a table', quote_literal(p_level)
            using errcode = 'SA004', hint = 'one of year, month, day, hour, minute';
    end if;
    return query
        with bucket as (
            select b.timed, b.number, b.rows, cardinality(b.slices) as leaves, b.lane_0, b.lane_1, false as open
            from syncagent.bucket b where b.relation = v_relation
            union all
            select distinct d.timed, d.number, 0, 0, 0, 0, true from syncagent._forest_dirty() d where d.relation = v_relation
        ), dated as (
            select b.*, to_timestamp(b.number * syncagent._width(f.bucket, true) / 4096000) as time
            from bucket b join syncagent.forest f on f.relation = v_relation
        )
        select case when b.timed then date_trunc(p_level, b.time, 'UTC') end as begins, sum(b.rows)::bigint,
               count(*) filter (where b.rows > 0), sum(b.leaves)::bigint, count(*) filter (where b.open),
               encode(int8send(syncagent._modulo(sum(b.lane_0))) || int8send(syncagent._modulo(sum(b.lane_1))), 'hex')
        from dated b group by 1 order by 1;
end
$$;
comment on function syncagent.forest_of(regclass, text) is 'the sealed buckets of a table by year, month, day, hour or minute in which their keys were made (UTC; null: keys without a time), not finer than the buckets are: rows, leaves, how many buckets are open because a leaf is to be computed anew, and the digest, which is the same at sites that are equal';

-- Who may call what -----------------------------------------------------------------------------------------

create function syncagent.grant_reader(p_role regrole) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('grant usage on schema syncagent to %s', p_role);
    execute format('grant select on syncagent.site, syncagent.status, syncagent.lag, syncagent.replicated_table, syncagent.schema_change,'
                   ' syncagent.typed_change, syncagent.conflict, syncagent.parked, syncagent.proof, syncagent.repair, syncagent.app_version to %s', p_role);
    execute format('grant execute on function syncagent.why(regclass, text), syncagent.conflicts_of(regclass, text), syncagent.constraints_of(regclass), syncagent.forest_of(regclass, text), syncagent.version_users(name), syncagent.siblings(regclass, text),'
                   ' syncagent._entries(), syncagent._trees(), syncagent._estimate(regclass), syncagent._log_bytes(), syncagent._agent_runs(), syncagent._site_name(integer), syncagent._open(uuid), syncagent._may_see(name, name, name),'
                   ' syncagent.resolve(uuid, text), syncagent.resolve_with(uuid, jsonb), syncagent.undo(uuid), syncagent.drop_parked(regclass, text), syncagent._named(uuid), syncagent._still_keeps(uuid), syncagent._apart(uuid, jsonb), syncagent._is_merge(syncagent.conflict_record),'
                   ' syncagent._resolve(uuid, jsonb), syncagent._resolution(uuid, jsonb, boolean), syncagent._made(uuid), syncagent._settle_by_hand(syncagent.conflict_record, jsonb),'
                   ' syncagent._statement(name, name, text, jsonb, boolean), syncagent._yielding(syncagent.conflict_record), syncagent._marked(text, integer, uuid),'
                   ' syncagent.resolve_siblings(regclass, text, jsonb, text), syncagent._hold_row(regclass, text), syncagent._settled_columns(regclass, text, name[]), syncagent._columns_of(syncagent.conflict_record), syncagent._must_be_allowed(name, name, text),'
                   ' syncagent._key_text(jsonb, name[]), syncagent._typed_sql(integer, text, name, jsonb, jsonb, name), syncagent._watched() to %s', p_role);
    if to_regclass('syncagent.schema_version') is not null then   -- for the command line, which asks before it reads
        execute format('grant select on syncagent.schema_version to %s', p_role);
    end if;
end
$$;
comment on function syncagent.grant_reader(regrole) is 'let a role look: all views, why(), conflicts_of(), siblings(), constraints_of() and forest_of(); rows are shown of tables of which it may read every row';

revoke execute on all functions in schema syncagent from public;
grant usage on schema syncagent to public;
grant execute on function syncagent.uuid7(), syncagent.stamp_time(uuid), syncagent.stamp_node(uuid), syncagent.uuid7_floor(timestamptz),
    syncagent.truncate(regclass) to public;
