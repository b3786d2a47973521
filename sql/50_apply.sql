-- Apply at the receiver: stage the bytes of a batch, then merge them in one READ COMMITTED transaction.
--
-- judge_N decides, in one statement that sees rows, versions and log alike; write_N moves the rows, and so locks
-- them; recheck_N finds in the log who wrote one of them in between. A merge that was refused takes the locks first
-- (lock_N), so that it cannot be for ever. Nothing here waits long: a lock that is not free within the session's
-- lock_timeout rolls the merge back, so the application never becomes a deadlock victim. Rows and frontier commit
-- together.
--
-- SA101 contended: try again          SA102 plain rows met metadata: ask for the exact form
-- SA103 another agent has moved on    SA104 the batch does not fit this site's tables: it waits

create function syncagent._conflict_id(p_title text, p_key uuid, p_one uuid, p_other uuid) returns uuid
    language sql stable
    as $$ select syncagent._name_uuid(pg_catalog.format('%s %s %s %s', p_title, p_key, least(p_one, p_other), greatest(p_one, p_other))) $$;
comment on function syncagent._conflict_id is 'of a table, named as in SQL: the same for every site that meets the same pair of versions';

create function syncagent._stage(p_schema name, p_table name, p_form text, p_columns name[], p_fresh boolean)
    returns table (relation integer, stage text, stage_columns text[], schema_name name, table_name name, whole boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan   -- before the size of the batch matters
    as $$
declare
    v_table syncagent.replicated;
begin
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation
    where r.schema_name = p_schema and r.table_name = p_table;
    if not found then
        raise exception 'table %.% is not attached here', quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA104', hint = format('syncagent attach %s', format('%I.%I', p_schema, p_table));
    end if;
    if p_form not in ('keys', 'aliases') and not syncagent._fits(v_table, p_columns) then
        raise exception 'table %.% has other columns here than at the origin', quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA104',
                  detail = format('here: %s; there: %s', array_to_string(v_table.columns, ', '), array_to_string(p_columns, ', ')),
                  hint = 'columns are changed with `syncagent schema apply`; else give both sites the same, then detach and attach the table';
    end if;
    if p_fresh then
        perform syncagent._fit_stage(v_table, p_columns);
    end if;
    return query
    select v_table.id, case when p_form in ('keys', 'aliases') then 'stage_' || p_form else format('stage_%s', v_table.id) end,
           case when p_form = 'keys' then '{cut,keys}'::text[] when p_form = 'aliases' then '{cut,loser,winner}' when p_form = 'exact' then '{_stamp,_cut,_deleted}'::text[] || case when v_table.strategy <> 'lww' then '{_node,_at,_registers}'::text[] else '{}' end
                else '{}' end
           || array(select 'c' || array_position(v_table.columns, u.c) from unnest(p_columns) with ordinality as u (c, n) order by n),
           n.nspname, c.relname, p_form in ('keys', 'aliases') or p_columns @> v_table.columns
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = v_table.relation;
end
$$;
comment on function syncagent._stage is 'make the staging table of a stream, emptied if fresh; its name, its columns in the order of the stream, the table, and whether no column is lacking';

create function syncagent._stage_all(p_streams jsonb)
    returns table (relation integer, stage text, stage_columns text[], schema_name name, table_name name, whole boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    perform syncagent._empty('pg_temp.stage_keys'), syncagent._empty('pg_temp.stage_aliases'), syncagent._empty('pg_temp.stage_conflicts');
    for r in
        select s.* from rows from (jsonb_to_recordset(p_streams) as (schema name, name name, form text, columns name[], fresh boolean)) with ordinality
            as s (schema, name, form, columns, fresh, n) order by s.n
    loop
        return query select s.* from syncagent._stage(r.schema, r.name, r.form, r.columns, r.fresh) as s;
    end loop;
end
$$;
comment on function syncagent._stage_all is 'the same for the streams of a batch, in their order; what comes beside the rows has an empty place, too';

create function syncagent._may_copy(p_relation integer, p_lowest uuid) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
    v_free boolean;
begin
    execute format('select not exists (select from syncagent.version_%s)', p_relation) into v_free;
    if not v_free then
        return false;
    end if;
    return not exists (select from syncagent.stride x where x.relation = p_relation)
        and not (select syncagent._deferrable(r.relation) from syncagent.replicated r where r.id = p_relation)
        and not exists (   -- whom one of them refers to may have been merged away
            select from syncagent.replicated r join pg_constraint f on f.conrelid = r.relation and f.contype = 'f'
            join syncagent.replicated p on p.relation = f.confrelid join syncagent.alias a on a.relation = p.id where r.id = p_relation)
        -- what the forest may have sealed must be marked, and only what is staged is
        and not exists (select from syncagent.forest f where f.relation = p_relation
                        and (p_lowest < syncagent._first_key(f.horizon * syncagent._width(f.bucket, true), true)) is not false)
        and not exists (
        select from syncagent.log l where l.relation = p_relation and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)));
end
$$;
comment on function syncagent._may_copy is 'whether plain rows, of keys not below the lowest, can go straight into the table: nothing here is unsettled that they could meet, and no leaf knows of their keys';

create function syncagent._foretell(p_origin integer, p_contexts jsonb, p_newest bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into syncagent.context (node, cut, context, newest)
    select p_origin, (c ->> 'cut')::bigint, c -> 'frontier', p_newest from jsonb_array_elements(p_contexts) as c
    on conflict (node, cut) do nothing;
    -- what all of this transaction comes from had seen: of a knot, that is more than each of its parts' origins had
    perform set_config('syncagent.context', syncagent._greatest(
        coalesce(nullif(current_setting('syncagent.context', true), ''), '{}')::jsonb, p_contexts -> -1 -> 'frontier')::text, true);
end
$$;
comment on function syncagent._foretell is 'make the contexts of a batch known, before it, or another part of its knot, is merged';

create function syncagent._tie(p_part integer, p_context jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_part = 1 then
        perform syncagent._empty('pg_temp.knotted');
    end if;
    perform set_config('syncagent.knot', p_part::text, true), set_config('syncagent.context', p_context::text, true);
end
$$;
comment on function syncagent._tie is 'next of a knot comes this part, the state of a site that had seen this';

create function syncagent._apply_begin(p_origin integer, p_contexts jsonb, p_newest bigint, p_after bigint, p_rows bigint, p_epoch bigint,
                                       p_relations integer[], p_lowest uuid[])
    returns table (recorded boolean, copied boolean[])
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_cut bigint;
begin
    lock table syncagent.merge_lock in exclusive mode;
    perform syncagent._plan_for(null, p_rows);
    if p_epoch <> (select s.schema_epoch from syncagent.local_site s) then
        raise exception 'the schema was changed while the rows of this batch were staged' using errcode = 'SA101';
    end if;
    select cut into v_cut from syncagent.frontier where node = p_origin;
    if coalesce(v_cut, 0) <> p_after then
        raise exception 'the frontier of node % is at cut %, the batch starts after cut %', p_origin, coalesce(v_cut, 0), p_after
            using errcode = 'SA103';
    end if;
    perform syncagent._lift(p_newest);
    perform syncagent._foretell(p_origin, p_contexts, p_newest);
    return query select syncagent._relays(p_origin),
        array(select syncagent._may_copy(u.id, u.lowest) from unnest(p_relations, p_lowest) with ordinality as u (id, lowest, n) order by u.n);
end
$$;
comment on function syncagent._apply_begin is 'first step of a merge: alone, right place, clock lifted, contexts known; whether its keys are to be recorded, and plain rows of which of these tables can go straight into them';

create function syncagent._apply_end(p_origin integer, p_after bigint, p_upto bigint, p_upto_id uuid, p_newest bigint, p_needed bigint, p_recorded boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not p_recorded then
        lock table syncagent.member in share mode;   -- a third site that comes now comes after this merge
        if syncagent._relays(p_origin) then
            raise exception 'a third site has come, to which this batch may have to be handed on' using errcode = 'SA101';
        end if;
    end if;
    update syncagent.context set applied = pg_current_snapshot()
    where node = p_origin and cut > p_after and cut <= p_upto;
    insert into syncagent.frontier as f (node, cut, cut_id, context, newest, needed)
    select p_origin, p_upto, p_upto_id, c.context, p_newest, least(coalesce(nullif(p_needed, 0), p_upto), p_upto) from syncagent.context c where c.node = p_origin and c.cut = p_upto
    on conflict (node) do update
        set cut = excluded.cut, cut_id = excluded.cut_id, context = excluded.context, newest = greatest(f.newest, excluded.newest),
            needed = greatest(f.needed, excluded.needed),
            applied_at = clock_timestamp()
        where f.cut = p_after;
    if not found then
        raise exception 'the frontier of node % moved meanwhile', p_origin using errcode = 'SA103';
    end if;
end
$$;
comment on function syncagent._apply_end is 'last step of a merge: the frontier moves with the rows, or not at all';

create function syncagent._merge(p_relations integer[], p_origin integer, p_after bigint, p_locked boolean, p_careful boolean, p_settle boolean, p_record boolean)
    returns table (taken bigint, conflicts bigint, parked bigint, functions integer[])
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_taken bigint := 0;
    v_conflicts bigint := 0;
    v_parked bigint := 0;
    v_count bigint;
    v_id integer;
    v_seen pg_snapshot;
begin
    if exists (select from pg_temp.stage_aliases) then
        perform syncagent._take_aliases(p_origin);
    end if;
    if exists (select from pg_temp.stage_conflicts) then
        perform syncagent._take_conflicts(p_origin);   -- before this site notices them itself
    end if;
    foreach v_id in array p_relations loop
        if not syncagent._emptied('pg_temp.verdict') then
            delete from pg_temp.verdict;
        end if;
        if p_locked then
            execute format('select syncagent.lock_%s()', v_id);
        end if;
        v_seen := pg_current_snapshot();
        execute format('select syncagent.judge_%s($1, false)', v_id) into v_count using p_origin;
        v_conflicts := v_conflicts + v_count;
        if p_careful then
            v_count := syncagent._write_carefully(v_id, p_origin, p_settle);
        else
            execute format('select syncagent.write_%s($1)', v_id) into v_count using p_origin;
        end if;
        execute format('select syncagent.recheck_%s($1)', v_id) using v_seen;
        if p_record then
            execute format('select syncagent.record_%s($1, $2)', v_id) using p_origin, p_after;
        end if;
        if exists (select from syncagent.alias) then
            perform syncagent._note_astray(v_id);
        end if;
        v_taken := v_taken + v_count;
        v_parked := v_parked + (select count(*) from pg_temp.verdict d where d.reason is not null and d.kind = 'parked');
    end loop;
    if p_settle then
        perform syncagent._bring_together();
    end if;
    v_conflicts := v_conflicts + syncagent._log_yielded();
    if p_settle then
        perform syncagent._try_held();
    end if;
    return query select v_taken, v_conflicts, v_parked, array(select f.id from unnest(syncagent._with_functions()) as f (id) where f.id = any (p_relations));
end
$$;
comment on function syncagent._merge is 'merge what is staged of these tables; locked: take the row locks first; careful: park rows that break a constraint; settle: this is all that comes at once, so what collides, or misses its parent, does; record: remember what came, to hand it on. Functions: the tables for which _make_staged is to be called';

create function syncagent._skip(p_relations integer[], p_after bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id integer;
begin
    -- Merged again it could stand against a write that was made here on top of it, and that no cut has folded. Plain
    -- rows do not say their cut: if they meet such a write, they are asked for in the exact form.
    foreach v_id in array p_relations loop
        execute format('delete from pg_temp.stage_%s where _cut <= $1', v_id) using p_after;
    end loop;
end
$$;
comment on function syncagent._skip is 'leave out what has come by another way meanwhile: rows of cuts up to this one';

create function syncagent._told(p_origin integer) returns table (node integer, cut bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
    select n.node, coalesce((first.context ->> n.node::text)::bigint, 0)
    from (
        select c.context from syncagent.context c
        where c.node = p_origin and c.cut > coalesce((select f.cut from syncagent.frontier f where f.node = p_origin), 0)
        order by c.cut limit 1
    ) as first
    cross join syncagent.frontier n where n.node <> p_origin;
end
$$;
comment on function syncagent._told is 'per node, the last cut that the origin had applied when it made the first cut of the batch being merged';

create function syncagent._apply_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.stage_{id}() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
begin
    create temp table stage_{id} (_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns});
end
$$;

create function syncagent.lock_{id}() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
begin
    perform from {stage} s join {table} t on {t_eq_s} order by s._key for no key update of t nowait;
end
$$;

$sql$ $template$;

create function syncagent._judge_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.judge_{id}(p_origin integer, p_retry boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_last      record := syncagent._last_cut();
    v_site      syncagent.local_site;
    v_rows      bigint;
    v_conflicts bigint := 0;
begin
    select * into strict v_site from syncagent.local_site;
    -- Rows that meet nothing of their own kind here are simply taken; the others are compared.
    if not exists (select from syncagent.version_{id})
       and not exists (select from syncagent.log l
                       where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)))
       and not exists (select from syncagent._told(p_origin) t join syncagent.cut_keys k on k.node = t.node and k.cut > t.cut
                       where k.relation = {id} and k.implicit)
       and not exists (select from {stage} s where s._stamp is null or s._stamp <= syncagent._implicit(s._key)) then
        return 0;
    end if;
    -- Whether a few rows meet anything takes a third of comparing them.
    if (select count(*) from (select from {stage} s limit 1001) as few) <= 1000
       and not exists (
            select from {stage} s left join syncagent.version_{id} v on v.key = s._key
            left join {table} t on {t_eq_s} and (s._stamp is null or s._stamp <= syncagent._implicit(s._key))
            where v.key is not null or t.ctid is not null)
       and not exists (
            select from syncagent.log l cross join lateral unnest(l.keys) as k (key) join {stage} s on s._key = k.key
            where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)))
       and not exists (
            select from syncagent._told(p_origin) t join syncagent.cut_keys c on c.node = t.node and c.cut > t.cut
            cross join lateral unnest(c.keys) as k (key) join {stage} s on s._key = k.key where c.relation = {id} and c.implicit) then
        return 0;
    end if;
    with unfolded as materialized (
        select k.key, syncagent._stamp(max(x.tx_hlc), v_site.tail) as stamp
        from (
            select l.relation, l.keys, max(l.hlc) over (partition by l.xid) as tx_hlc
            from syncagent.log l where l.xid >= v_last.xmax or l.xid = any (v_last.xip)
        ) as x cross join lateral unnest(x.keys) as k (key)
        where x.relation = {id}
        group by k.key
    ), born as materialized (
        -- inserts, as they are here, that the origin had not seen at its oldest cut in this batch: node -> cut
        select k.key, jsonb_object_agg(k.node, k.cut) as cuts
        from (
            select u.key, c.node, max(c.cut) as cut
            from syncagent._told(p_origin) t join syncagent.cut_keys c on c.node = t.node and c.cut > t.cut
            cross join lateral unnest(c.keys) as u (key)
            where c.relation = {id} and c.implicit
            group by u.key, c.node
        ) as k join {stage} s on s._key = k.key
        group by k.key
    ), known as (
        select s.*, v.node, v.cut, v.stamp as settled, v.deleted as gone, u.stamp as fresh, b.cuts as born
        from {stage} s
        left join syncagent.version_{id} v on v.key = s._key
        left join unfolded u on u.key = s._key
        left join born b on b.key = s._key
        where v.key is not null or u.key is not null or b.key is not null
           or s._stamp is null or s._stamp <= syncagent._implicit(s._key)
    ), met as (
        select s._key, s._cut, s._deleted, s._stamp is null as plain, s.node, s.cut, s.settled, s.gone, s.fresh, s.born, t.ctid as tid,
               coalesce(s._stamp, syncagent._implicit(s._key)) as incoming,
               coalesce(greatest(s.settled, s.fresh), case when t.ctid is not null then syncagent._implicit(s._key) end) as mine
        from known s left join {table} t on {t_eq_s}
    ), judged as (
        select m.*,
               m.incoming = m.mine and m.settled is null and m.fresh is null and m.plain as twice,
               m._cut is null and (m.settled is not null or m.fresh is not null) as inexact,
               coalesce(m.gone, false) and m.tid is not null and m.fresh is not null as beneath,
               m.incoming <> m.mine and case
                   when m.fresh is not null and (m.settled is null or m.fresh >= m.settled or m.gone and m.tid is not null) then true
                   when m.settled is null then exists (
                       select from jsonb_each_text(m.born) as b (node, cut)
                       where b.cut::bigint > coalesce((theirs.context ->> b.node)::bigint, 0))
                   when m.cut is null then true
                   when m.cut <= coalesce((theirs.context ->> m.node::text)::bigint, 0) then false
                   else coalesce((ours.context ->> p_origin::text)::bigint, 0) < m._cut
               end as concurrent
        from met m
        left join syncagent.context theirs on theirs.node = p_origin and theirs.cut = m._cut
        left join syncagent.context ours on ours.node = m.node and ours.cut = m.cut
    ), compared as (
        select j.*, case when j.twice and w.here < w.there then 1 when j.twice and w.here > w.there then -1 else 0 end as larger
        from judged j
        left join {stage} s on j.twice and s._key = j._key
        cross join lateral (
            select case when j.twice then (select row({t_columns})::text collate "C" from {table} t where {t_eq_s}) end,
                   row({s_columns})::text collate "C") as w (here, there)
        where j.concurrent or j.mine >= j.incoming or j.inexact or (j.plain and j.fresh is not null)
    )
    insert into pg_temp.verdict (key, loses, conflict, kind, incoming, mine, my_node, absent, trace, unborn, sqlstate)
    select c._key,
           case when c.twice then c.larger <= 0
                when p_retry then c.mine > c.incoming
                else c.mine >= c.incoming end,
           (c.concurrent and not (c._deleted is true and c.tid is null)) or (c.twice and c.larger <> 0)
               or (p_retry and c.mine > c.incoming),
           case when p_retry and c.mine > c.incoming then 'parked'
                when c.twice then 'insert/insert'
                when c.incoming > c.mine then case when c._deleted then 'delete/update' when c.tid is null then 'update/delete' else 'update/update' end
                else case when c.tid is null then 'delete/update' when c._deleted then 'update/delete' else 'update/update' end end,
           -- under a newer tombstone an insert may live that neither had seen: what was met is the insert
           c.incoming, case when c.beneath then c.fresh else c.mine end,
           case when c.settled is null and c.fresh is null and c.born is not null
                    then (select min(b.node::integer) from jsonb_object_keys(c.born) as b (node))
                when c.settled is null or c.fresh >= c.settled or c.beneath then v_site.node else c.node end,
           c.tid is null, c.fresh is not null and (c.mine > c.incoming and c.settled is null or c.incoming > c.mine and c.plain),
           c.born is not null and (case when c.twice then c.larger > 0 else c.concurrent and c.incoming > c.mine end),
           case when c.inexact then 'SA102' end
    from compared c;
    get diagnostics v_rows = row_count;
    if v_rows = 0 then
        return 0;
    end if;
    if exists (select from pg_temp.verdict d where d.sqlstate = 'SA102') then
        raise exception 'plain rows of % met metadata', {title} using errcode = 'SA102';
    end if;
    if exists (select from pg_temp.verdict d where d.unborn) then
        -- these inserts are in a conflict now: they are not what the rows are any more
        update syncagent.cut_keys c
        set keys = array(select k.key from unnest(c.keys) as k (key)
                         where k.key not in (select d.key from pg_temp.verdict d where d.unborn) order by k.key)
        from syncagent._told(p_origin) t
        where c.node = t.node and c.cut > t.cut and c.relation = {id} and c.implicit
          and exists (select from unnest(c.keys) as k (key) where k.key in (select d.key from pg_temp.verdict d where d.unborn));
    end if;

    insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
        winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
    select syncagent._conflict_id({title}, i.key, i.mine, i.incoming), {schema_literal}, {table_literal}, i.key, i.key_text, i.kind, 'lww',
           case when i.loses then i.mine else i.incoming end, case when i.loses then i.incoming else i.mine end,
           case when i.loses then i.my_node else p_origin end, case when i.loses then p_origin else i.my_node end,
           case when i.loses then i.here else i.there end, case when i.loses then i.there else i.here end
    from (
        select d.*, {s_key_text} as key_text, case when v.key is null then to_jsonb(t.*) end as here,
               case when s._deleted is not true then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as there
        from pg_temp.verdict d
        join {stage} s on s._key = d.key
        left join {table} t on {t_eq_s}
        left join syncagent.version_{id} v on v.key = d.key and v.deleted and v.stamp = d.mine
        where d.conflict offset 0   -- an image is made once
    ) as i
    where not (i.kind = 'update/update' and i.here = i.there)   -- as when several sites settle one collision: nothing is lost
    on conflict (id) do nothing;
    get diagnostics v_conflicts = row_count;
    return v_conflicts;
end
$$;

$sql$ $template$;

create function syncagent._write_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.refused_{id}(p_of uuid default null) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_free uuid[];
begin
    begin
        v_free := array(select k._key from (
            select s._key from {stage} s join {table} t on {t_eq_s} where p_of is null or s._key = p_of for no key update of t skip locked) as k);
        raise exception using errcode = 'SA000';   -- and hold nothing
    exception when sqlstate 'SA000' then
        null;
    end;
    return (select min(s._key::text)::uuid from {stage} s join {table} t on {t_eq_s} where (p_of is null or s._key = p_of) and s._key <> all (v_free));
end
$$;

create function syncagent.await_{id}(p_milliseconds integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_refused uuid := syncagent.refused_{id}();
begin
    if v_refused is null then
        return false;
    end if;
    perform set_config('lock_timeout', p_milliseconds::text, true);
    perform from {stage} s join {table} t on {t_eq_s} where s._key = v_refused for no key update of t;
    return true;
end
$$;

create function syncagent.in_turn_{id}(p_milliseconds integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_until   timestamptz := clock_timestamp() + p_milliseconds * interval '1 ms';
    v_refused uuid := syncagent.refused_{id}();
    v_was     xid;
    v_is      xid;
begin
    if v_refused is null then
        return false;
    end if;
    loop
        select t.xmin into v_is from {stage} s join {table} t on {t_eq_s} where s._key = v_refused;
        if v_is is distinct from coalesce(v_was, v_is) or syncagent.refused_{id}(v_refused) is null then
            return true;
        elsif clock_timestamp() >= v_until then
            return false;
        end if;
        v_was := v_is;
        perform pg_sleep(0.02);
    end loop;
end
$$;

create function syncagent.unpark_{id}(p_node integer, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into pg_temp.stage_{id} (_stamp, _cut, _deleted {more_names}, {stage_names})
    select nullif(p.stamp, syncagent._implicit(p.key)), p.cut, false {more_of_parked}, (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p where p.relation = {id} and p.node = p_node and p.key = any (p_keys);
end
$$;

-- Whoever wrote a key of the batch since it was judged has committed by now, and from here on our uncommitted rows are
-- in the way of the next.
create function syncagent.recheck_{id}(p_seen pg_snapshot) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
    v_keys uuid[];
begin
    select array_agg(k.key) into v_keys
    from syncagent.log l cross join lateral unnest(l.keys) as k (key)
    where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)) and not pg_visible_in_snapshot(l.xid, p_seen);
    if v_keys is not null and exists (select from {stage} s where s._key = any (v_keys)) then
        raise exception 'a row of % was written while it was merged', {title} using errcode = 'SA101';
    end if;
end
$$;

-- What came, by cut. An insert that has lost, in a conflict, is not what the row is here.
create function syncagent.record_{id}(p_origin integer, p_after bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into syncagent.cut_keys (node, cut, relation, implicit, keys)
    select p_origin, k.cut, {id}, k.implicit, array_agg(k.key order by k.key)
    from (
        select s._cut as cut, s._key as key, s._stamp is null as implicit,
               (row_number() over (partition by s._cut, s._stamp is null order by s._key) - 1) / 10000 as chunk
        from {stage} s
        where s._cut > p_after
          and not (s._stamp is null and exists (select from pg_temp.verdict d where d.key = s._key and d.loses and d.conflict))
    ) as k
    group by k.cut, k.implicit, k.chunk;
    insert into syncagent.cut_keys (node, cut, relation, implicit, keys)
    select p_origin, k.cut, {id}, true,
           case when exists (select from pg_temp.verdict d where d.loses and d.conflict)
                then array(select u.key from unnest(k.keys) as u (key)
                           where not exists (select from pg_temp.verdict d where d.key = u.key and d.loses and d.conflict) order by u.key)
                else k.keys end
    from pg_temp.stage_keys k where k.relation = {id} and k.cut > p_after;
end
$$;

create function syncagent.write_{id}(p_origin integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_staged  bigint;
    v_deleted bigint;
    v_plain   bigint;
    v_rows    bigint := 0;
    v_taken   bigint := 0;
    v_judged  boolean := exists (select from pg_temp.verdict);   -- most batches meet nothing
    v_horizon uuid := (select syncagent._first_key(f.horizon * syncagent._width(f.bucket, true), true) from syncagent.forest f where f.relation = {id});
begin
    {lift}
    -- One look at what there is to do spares the statements that would find nothing.
    select count(*), count(*) filter (where s._deleted), count(*) filter (where s._stamp is null)
    into v_staged, v_deleted, v_plain from pg_temp.stage_{id} s;
    if v_deleted > 0 and syncagent._referred({id}) then
        perform syncagent.bereave_{id}();
    end if;
    if v_deleted > 0 or {may_move} then
        delete from {table} t using {stage} s
        where {t_eq_s} and (s._deleted or {moved})
          and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
        get diagnostics v_taken = row_count;
    end if;
    if v_deleted < v_staged then
        {update}
        v_taken := v_taken + v_rows;
    end if;
    if v_rows < v_staged - v_deleted - (case when not v_judged then 0 else (
            select count(*) from pg_temp.verdict d join {stage} s on s._key = d.key where d.loses and s._deleted is not true) end) then
        insert into {table} ({columns}) overriding system value
        select {s_columns} from {stage} s left join {table} t on {t_eq_s}
        where s._deleted is not true and {t_absent}
          and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
        get diagnostics v_rows = row_count;
        v_taken := v_taken + v_rows;
    end if;

    {check_deferrable}

    if v_plain < v_staged and exists (select from syncagent.version_{id}) then
        update syncagent.version_{id} v set stamp = s._stamp, node = {version_node}, cut = {version_cut}, deleted = s._deleted {set_registers}
        from {stage} s left join pg_temp.verdict d on d.key = s._key and d.loses
        where v.key = s._key and s._stamp is not null and (d.key is null or d.reason is not null);
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select s._key, s._stamp, {version_node}, {version_cut}, s._deleted {s_key_columns}
    from {stage} s
    left join syncagent.version_{id} v on v.key = s._key
    left join pg_temp.verdict d on d.key = s._key and d.loses
    where s._stamp is not null and v.key is null and (d.key is null or d.reason is not null)
    order by s._key;
    if v_plain > 0 then
        delete from syncagent.version_{id} v using {stage} s
        where s._stamp is null and v.key = s._key and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
    end if;

    {forget_made}
    if v_horizon is not null then
        insert into syncagent.mark (relation, keys)
        select {id}, array_agg(m._key)
        from (select s._key, (row_number() over () - 1) / 10000 as chunk from {stage} s
              where s._key < v_horizon or not syncagent._timed(s._key)) as m
        group by m.chunk;
    end if;

    -- Forgotten is what was replaced, what was written at last, and what a retry found superseded, and recorded.
    if exists (select from syncagent.parked_row p where p.relation = {id}) then
        delete from syncagent.parked_row p using {stage} s
        where p.relation = {id} and p.key = s._key
          and not exists (
            select from pg_temp.verdict d where d.key = s._key and d.loses and (d.kind <> 'parked' or d.reason is not null));
    end if;
    if v_judged then
        -- The fold must find what was decided: that an unfolded write won by its logged stamp, or lost to an implicit row.
        insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
        select d.key, greatest(d.mine, d.incoming), case when d.loses then d.my_node else p_origin end,
               case when d.loses then null else s._cut end, d.loses and d.absent {s_key_columns}
        from pg_temp.verdict d join {stage} s on s._key = d.key
        where d.trace;
        insert into syncagent.parked_row as p (relation, key, stamp, node, cut, image, registers, shown, sqlstate, reason)
        select {id}, s._key, coalesce(s._stamp, syncagent._implicit(s._key)), {version_node}, coalesce({version_cut}, 0),
               (select (x.*)::text from (select {stage_as_table}) as x), {parked_registers}, (select to_jsonb(x.*) from (select {stage_as_table}) as x),
               d.sqlstate, d.reason
        from pg_temp.verdict d join {stage} s on s._key = d.key
        where d.reason is not null and d.kind = 'parked'
        on conflict (relation, key) do update
            set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, image = excluded.image, registers = excluded.registers, shown = excluded.shown,
                sqlstate = excluded.sqlstate, reason = excluded.reason;
    end if;
    return v_taken;
end
$$;
$sql$ $template$;
