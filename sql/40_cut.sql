-- Cuts at the origin: fold the log into versions, ship what changed, forget what is settled.
--
-- One cut is one REPEATABLE READ transaction of the agent: it locks `merge_lock` and the attached tables (before
-- its snapshot exists, so that a table rewritten meanwhile is not read as empty), folds, and reads the rows
-- out with COPY. Its commit is flushed to disk; only then do bytes leave.

create function syncagent._last_cut(out number bigint, out id uuid, out taken pg_snapshot,
                                    out xmax xid8, out xip xid8[])
    language plpgsql stable   -- like what else each cut and merge calls: one in SQL is planned anew at every call
    set search_path = pg_catalog, pg_temp
    as $$
begin
    select c.number, c.id, c.taken, pg_snapshot_xmax(c.taken), array(select pg_snapshot_xip(c.taken)) into number, id, taken, xmax, xip
    from syncagent.cut c order by c.number desc limit 1;
    if not found then
        xmax := '0';
        xip := '{}';
    end if;
end
$$;
comment on function syncagent._last_cut is 'the newest cut, and the bounds that tell its unfolded log entries: xid >= xmax or xid in xip';

create function syncagent._pending() returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
begin
    return exists (select from syncagent.log where xid >= v_last.xmax or xid = any (v_last.xip))
        or exists (select from syncagent.settling) or syncagent._untold();
end
$$;
comment on function syncagent._pending is 'whether a cut would find something to fold, or to tell of conflicts';

create function syncagent._unlog(p_relation integer, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.log e
    set keys = array(select u.key from unnest(e.keys) with ordinality as u (key, n) where u.key not in (select unnest(p_keys)) order by u.n),
        odd = case when e.odd is not null then array(
            select u.odd from unnest(e.keys, e.odd) with ordinality as u (key, odd, n) where u.key not in (select unnest(p_keys)) order by u.n) end
    where e.relation = p_relation and exists (select from unnest(e.keys) as k (key) where k.key in (select unnest(p_keys)));
    delete from syncagent.log e where e.relation = p_relation and e.keys = '{}';
end
$$;
comment on function syncagent._unlog is 'take from the log what was written of these keys: it came to nothing';

create function syncagent._prepare_session() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
begin
    create temp table if not exists window_entry (
        relation integer, xid xid8, op "char", hlc bigint, tx_hlc bigint, keys uuid[], odd text[], columns name[], deltas jsonb);
    alter table pg_temp.window_entry alter column keys set storage external;
    create temp table if not exists stage_keys (relation integer, cut bigint, keys uuid[]);
    alter table pg_temp.stage_keys alter column keys set storage external;
    create temp table if not exists stage_aliases (relation integer, cut bigint, loser uuid, winner uuid);
    create temp table if not exists stage_conflicts (conflict uuid, cut bigint, hlc bigint, what text, at timestamptz, by_role name, writes jsonb, record jsonb);
    create temp table if not exists folded (
        key uuid, hlc bigint, first bigint, implicit boolean, born boolean, gone boolean, odd text, registers jsonb);
    create temp table if not exists verdict (
        key uuid, loses boolean, conflict boolean, kind text, incoming uuid, mine uuid, my_node integer,
        absent boolean, trace boolean, unborn boolean, sqlstate text, reason text);
    create temp table if not exists collision (
        rule name, loser uuid, key_text text, odd text, losing_stamp uuid, losing_image jsonb, tid tid, leaf oid,
        winner uuid, winner_text text, winning_stamp uuid, winning_image jsonb, due boolean, held uuid);
    create temp table if not exists bereft (xid xid8, relation integer, key uuid, image text, odd text, deep boolean not null default false);
    create temp table if not exists joined (
        key uuid, plain boolean, entered boolean, fresh boolean, here boolean, waits boolean, above text[], inexact boolean, same boolean, newer text[],
        outcome text, my_stamp uuid, my_node integer, my_cut bigint, my_end boolean, mine jsonb,
        their_stamp uuid, their_node integer, their_cut bigint, their_end boolean, theirs jsonb, born_node integer, born_cut bigint, twice boolean, waiting jsonb, seen jsonb);
    create temp table if not exists knotted (relation integer, key uuid, part integer, seen jsonb, primary key (relation, key, part));
    create temp table if not exists yielded (relation integer, key uuid, odd text, columns name[], op "char" not null default 'U', primary key (relation, key));
    create temp table if not exists astray (relation integer, key uuid);
    create temp table if not exists heir (loser uuid, winner uuid);
    create temp table if not exists follower (
        key uuid, odd text, key_text text, image jsonb, tid tid, leaf oid, loser uuid, winner uuid, new_key uuid, new_text text, placed boolean not null default false);
end
$$;
comment on function syncagent._prepare_session is 'work tables of one session of the agent';

create function syncagent._emptied(p_table regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_size bigint := pg_relation_size(p_table);
begin
    -- a truncation makes every plan of the table anew; a small table is cheaper to delete from
    if v_size > 1048576 then
        execute format('truncate %s', p_table);
    end if;
    return v_size = 0 or v_size > 1048576;
end
$$;
comment on function syncagent._emptied is 'empty a work table that is large; false: it is small, and to be deleted from by who calls, for whose plan is kept';

create function syncagent._empty(p_table regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not syncagent._emptied(p_table) then
        execute format('delete from %s', p_table);
    end if;
end
$$;
comment on function syncagent._empty is 'empty a work table';

create function syncagent._estimate(p_table regclass) returns real
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    -- the server counts partitions only, unless somebody has analysed the root
    select case c.relkind when 'p' then (
            select sum(x.reltuples) filter (where x.reltuples >= 0) from syncagent._nodes(p_table) as n (node) join pg_class x on x.oid = n.node
            where x.relkind <> 'p')
        else c.reltuples end
    from pg_class c where c.oid = p_table
$$;
comment on function syncagent._estimate is 'about how many rows a table has; null or negative if that is not known';

create function syncagent._plan_for(p_table regclass, p_keys bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- A small batch costs less than planning for it: plans that are kept, and read nothing but indexes. A large one
    -- is planned for its size. (The planner takes every array for ten keys: for a good part of a table it is told
    -- that reading all of it once is cheaper.)
    if p_keys > 1000 then
        perform set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
            set_config('enable_nestloop', case when p_keys * 20 > syncagent._estimate(p_table) then 'off' else 'on' end, true);
    else
        perform set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
            set_config('enable_nestloop', 'on', true);
    end if;
end
$$;
comment on function syncagent._plan_for is 'until the end of the transaction, plan for so many keys of this table';

create function syncagent._lock_statement(p_relation integer default null) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    return (select 'lock table ' || string_agg(format(case c.relkind when 'p' then '%I.%I' else 'only %I.%I' end, n.nspname, c.relname), ', ' order by r.id)
           || ' in access share mode'
    from syncagent.replicated r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace
    where p_relation is null or r.id = p_relation);
end
$$;
comment on function syncagent._lock_statement is 'LOCK TABLE for all attached tables, or for one; null if there are none';

create function syncagent._fold(p_force boolean)
    returns table (number bigint, id uuid, rows bigint, settle bigint, told boolean, newest bigint, context jsonb)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_site   syncagent.local_site;
    v_last   record := syncagent._last_cut();
    v_number bigint := coalesce(v_last.number, 0) + 1;
    v_id     uuid := gen_random_uuid();
    v_rows   bigint := 0;
    v_told   boolean := syncagent._untold();
    v_count  bigint;
    v_newest bigint;
    v_needed bigint;
    v_context jsonb;
    r        record;
begin
    select * into strict v_site from syncagent.local_site;
    if not syncagent._emptied('pg_temp.window_entry') then
        delete from pg_temp.window_entry;
    end if;
    insert into pg_temp.window_entry
    select l.relation, l.xid, l.op, l.hlc, max(l.hlc) over (partition by l.xid), l.keys, l.odd, l.columns, l.deltas
    from syncagent.log l
    where l.xid >= v_last.xmax or l.xid = any (v_last.xip);
    get diagnostics v_count = row_count;
    if v_count = 0 and not v_told and not p_force then
        return;
    end if;
    v_needed := case when v_count > 0 or v_told then v_number else 0 end;
    if v_count > 1000 then
        analyze pg_temp.window_entry;
    end if;

    for r in
        select t.id, t.relation, t.collected, w.keys
        from (select w.relation, sum(cardinality(w.keys)) as keys from pg_temp.window_entry w group by w.relation) as w
        join syncagent.replicated t on t.id = w.relation
        where exists (select from pg_class c where c.oid = t.relation) order by t.id
    loop
        if not syncagent._emptied('pg_temp.folded') then
            delete from pg_temp.folded;
        end if;
        perform syncagent._plan_for(r.relation, r.keys);
        execute format('select syncagent.fold_%s($1, $2, $3, $4)', r.id)
            into v_count using v_number, v_site.node, v_site.tail, r.collected;
        v_rows := v_rows + v_count;
        insert into syncagent.cut_keys (node, cut, relation, implicit, born, keys)
        select v_site.node, v_number, r.id, k.implicit, k.born, array_agg(k.key order by k.key)
        from (select f.key, f.implicit, f.born, (row_number() over (order by f.key) - 1) / 10000 as chunk from pg_temp.folded f) as k
        group by k.implicit, k.born, k.chunk;
    end loop;

    perform syncagent._plan_for(null, v_rows);
    select coalesce(max(w.hlc), 0) into v_newest from pg_temp.window_entry w;
    select coalesce(jsonb_object_agg(f.node, f.cut), '{}') || jsonb_build_object(v_site.node, v_number)
    into v_context from syncagent.frontier f where f.node <> v_site.node;
    insert into syncagent.frontier as f (node, cut, cut_id, context, needed) values (v_site.node, v_number, v_id, v_context, v_needed)
        on conflict (node) do update
        set cut = excluded.cut, cut_id = excluded.cut_id, context = excluded.context, needed = greatest(f.needed, excluded.needed), applied_at = excluded.applied_at;
    insert into syncagent.context (node, cut, context, newest) values (v_site.node, v_number, v_context, v_newest);
    insert into syncagent.cut (number, id, previous, taken, rows)
        values (v_number, v_id, v_last.id, pg_current_snapshot(), v_rows);
    update syncagent.alias a set cut = v_number where a.cut is null;   -- the deletes that they go with are in this cut
    update syncagent.conflict_step c set cut = v_number where c.node = v_site.node and c.cut is null;
    return query select v_number, v_id, v_rows, (select count(*) from syncagent.settling), v_told, v_newest, v_context;
end
$$;
comment on function syncagent._fold is 'make a cut in the current snapshot; no row if nothing was written, nothing is to be told of conflicts, and it is not forced';

create function syncagent._fold_template(p_columns boolean) returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.fold_{id}(p_cut bigint, p_node integer, p_tail bigint, p_collected uuid) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_rows    bigint;
    v_first   bigint := (select min(e.tx_hlc) from pg_temp.window_entry e where e.relation = {id});
    v_least   uuid := syncagent._stamp(v_first, p_tail);
    v_entries boolean := exists (select from syncagent.version_{id});
begin
    -- A key's stamp is that of its last transaction. It was born here if its first entry is an insert and
    -- none is a delete: triggers nest, and then the inner statement logs first.
    insert into pg_temp.folded (key, hlc, first, implicit, born, gone, odd, registers)
    select f.key, f.hlc, f.first,
           f.new and {may_be_implicit}
               and (f.key < v_least or f.key < syncagent._stamp(f.hlc, p_tail)),   -- most need no stamp of their own
           f.new, f.gone, f.odd, f.registers
    from (
        select f.*, f.born and (f.key > p_collected or not {may_be_implicit})
                    and not (v_entries and exists (select from syncagent.version_{id} v where v.key = f.key)) as new
        from (
        select e.key, max(e.tx_hlc) as hlc, min(e.tx_hlc) as first, {folded_registers} as registers,
               coalesce(min(e.hlc) filter (where e.op = 'I') = min(e.hlc), false) and not bool_or(e.op = 'D') as born,
               bool_or(e.op = 'D') as gone, {max_odd} as odd
        from (select k.*, e.tx_hlc, e.hlc, e.op {e_registers} from {entries} e cross join lateral {unnest_entry}
              where e.relation = {id} order by k.key) as e
        group by e.key
        ) as f offset 0
    ) as f;
    get diagnostics v_rows = row_count;
    if v_rows > 1000 then
        analyze pg_temp.folded;
    end if;

    if v_entries and exists (select from pg_temp.folded f join syncagent.version_{id} v on v.key = f.key and v.deleted) then
        -- An insert that ran while a tombstone of its key was applied: neither had seen the other.
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._conflict_id({title}, f.key, w.stamp, v.stamp), {schema_literal}, {table_literal}, f.key,
               {t_key_text}, 'insert/delete', 'lww',
               greatest(w.stamp, v.stamp), least(w.stamp, v.stamp),
               case when w.stamp > v.stamp then p_node else v.node end, case when w.stamp > v.stamp then v.node else p_node end,
               case when w.stamp > v.stamp then to_jsonb(t.*) end, case when w.stamp > v.stamp then null else to_jsonb(t.*) end
        from pg_temp.folded f
        join syncagent.version_{id} v on v.key = f.key and v.deleted and v.node <> p_node
        join syncagent.context c on c.node = v.node and c.cut = v.cut
        join {table} t on {t_eq_v}
        cross join lateral (select syncagent._stamp(f.hlc, p_tail)) as w (stamp)
        where exists (
            select from pg_temp.window_entry e
            where e.relation = {id} and e.op = 'I' and f.key = any (e.keys)
              and e.xid < pg_snapshot_xmax(c.applied) and not pg_visible_in_snapshot(e.xid, c.applied))
        on conflict (id) do nothing;

        -- A row that lives under a newer tombstone is written anew, right after this cut.
        insert into syncagent.settling (relation, key)
        select {id}, f.key
        from pg_temp.folded f
        join syncagent.version_{id} v on v.key = f.key and v.deleted and v.stamp > syncagent._stamp(f.hlc, p_tail)
        join {table} t on {t_eq_v}
        on conflict do nothing;
    end if;

    -- An absence that no delete explains is a loss, not a write. (Two statements cost half of ON CONFLICT.)
    if v_entries then
$sql$ || case when p_columns then $sql$
        update syncagent.version_{id} v
        set stamp = n.stamp, node = n.node, cut = n.cut, deleted = n.deleted, registers = n.registers
        from (
            select f.key, n.*
            from pg_temp.folded f join syncagent.version_{id} v on v.key = f.key {decode_odd} left join {table} t on {t_eq_f}
            cross join lateral syncagent.{written}(v.stamp, v.node, v.cut, v.deleted, v.registers, f.registers,
                syncagent._stamp(f.hlc, p_tail), syncagent._stamp(f.first, p_tail), p_node, p_cut, not ({t_absent}), f.gone) as n
            where not f.implicit and (not ({t_absent}) or f.gone)
        ) as n
        where v.key = n.key;
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select f.key, n.stamp, n.node, n.cut, n.deleted {folded_key_columns}
    from pg_temp.folded f {decode_odd}
    left join {table} t on {t_eq_f}
    left join syncagent.version_{id} v on v.key = f.key
    cross join lateral (select not ({t_absent}) and not f.gone and coalesce({first}, false)) as w (first)   -- most are: nothing else is known of the row
    cross join lateral (
        select syncagent._stamp(f.hlc, p_tail) as stamp, p_node as node, p_cut as cut, false as deleted, {first_registers} as registers where w.first
        union all
        select * from syncagent.{written}(null, null, null, null, null, f.registers,
            syncagent._stamp(f.hlc, p_tail), syncagent._stamp(f.first, p_tail), p_node, p_cut, not ({t_absent}), f.gone) where not w.first
    ) as n
    where not f.implicit and v.key is null and (not ({t_absent}) or f.gone) and n.stamp is not null
    order by f.key;
$sql$ else $sql$
        update syncagent.version_{id} v
        set stamp = syncagent._stamp(f.hlc, p_tail), node = p_node, cut = p_cut, deleted = {t_absent}
        from pg_temp.folded f {decode_odd} left join {table} t on {t_eq_f}
        where v.key = f.key and not f.implicit and (not ({t_absent}) or f.gone) and syncagent._stamp(f.hlc, p_tail) >= v.stamp;
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select f.key, case when f.hlc = v_first then v_least else syncagent._stamp(f.hlc, p_tail) end, p_node, p_cut, {t_absent} {folded_key_columns}
    from pg_temp.folded f {decode_odd}
    left join {table} t on {t_eq_f}
    left join syncagent.version_{id} v on v.key = f.key
    where not f.implicit and v.key is null and (not ({t_absent}) or f.gone)
    order by f.key;
$sql$ end || $sql$
    return v_rows;
end
$$;

-- What is shipped of a node's cuts after one and up to another: of this site's own, or of another's that it has applied.
-- A row that is parked here goes on as it came.

-- Rows whose stamp is implicit: their columns and nothing else.
create function syncagent.ship_plain_{id}(bigint, bigint, integer) returns table ({stage_columns})
    language sql stable
    as $$
    select {t_columns}
    from (
        select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2
        group by k.key order by k.key
    ) as k
    join {table} t on {t_eq_k}
    where not exists (select from syncagent.version_{id} v where v.key = k.key)
    union all
    select (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p
    where p.relation = {id} and p.node = $3 and p.stamp = syncagent._implicit(p.key)
      and exists (select from syncagent.cut_keys c
                  where c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2 and p.key = any (c.keys))
$$;

-- Of the same rows, the keys by cut.
create function syncagent.ship_keys_{id}(bigint, bigint, integer) returns table (_cut bigint, _keys uuid[])
    language sql stable
    as $$
    select c.cut, case when exists (select from syncagent.version_{id})
                       then array(select k.key from unnest(c.keys) as k (key)
                                  where not exists (select from syncagent.version_{id} v where v.key = k.key) order by k.key)
                       else c.keys end
    from syncagent.cut_keys c
    where c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2
$$;

-- Rows whose newest version is that node's, with stamp and cut; a live version without its row is a loss.
create function syncagent.ship_exact_{id}(bigint, bigint, integer)
    returns table (_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns})
    language sql stable
    as $$
$sql$ || case when p_columns then $sql$
    -- A row goes with all its registers, whoever wrote them, in the batch of each who did; its cut is the newest of theirs.
    with k as materialized (
        select k.key, max(c.cut) as cut from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.cut > $1 and c.cut <= $2
          and (not c.implicit or $3 <> (select node from syncagent.local_site))
        group by k.key
    )
    select v.stamp, k.cut, v.deleted {more_of_version}, {v_columns}
    from k join syncagent.version_{id} v on v.key = k.key
    left join {table} t on {t_eq_v} and not v.deleted {shipped_from}
    where (v.deleted or not ({t_absent}))
      and not exists (select from syncagent.parked_row p where p.relation = {id} and p.key = v.key and p.stamp = v.stamp)
    union all
    select v.stamp, k.cut, false {more_of_version}, (p.image::syncagent.row_{id}).*
    from k join syncagent.version_{id} v on v.key = k.key
    join syncagent.parked_row p on p.relation = {id} and p.key = v.key and p.stamp = v.stamp
$sql$ else $sql$
    select v.stamp, v.cut, v.deleted, {v_columns}
    from (
        select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.cut > $1 and c.cut <= $2
          and (not c.implicit or $3 <> (select node from syncagent.local_site))   -- an insert may have left an entry here
        group by k.key order by k.key
    ) as k
    join syncagent.version_{id} v on v.key = k.key
    left join {table} t on {t_eq_v} and not v.deleted
    where v.node = $3 and (v.deleted or not ({t_absent}))
      and ($3 = (select node from syncagent.local_site)
           or not exists (select from syncagent.parked_row p where p.relation = {id} and p.key = v.key and p.stamp = v.stamp))
    union all
    select v.stamp, v.cut, false, (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p join syncagent.version_{id} v on v.key = p.key and v.stamp = p.stamp
    where p.relation = {id} and p.node = $3 and v.node = $3 and v.cut > $1 and v.cut <= $2
$sql$ end || $sql$
$$;

-- Both, for a receiver that must compare rows with implicit stamps as well: their _stamp is null.
create function syncagent.ship_whole_{id}(bigint, bigint, integer)
    returns table (_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns})
    language sql stable
    as $$
    select null::uuid, k.cut, false {more_null}, {t_columns}
    from (
        select k.key, max(c.cut) as cut, max(c.cut) filter (where c.implicit) as born
        from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.cut > $1 and c.cut <= $2
        group by k.key order by k.key
    ) as k
    join {table} t on {t_eq_k}
    where k.born = k.cut   -- else its version was dropped, so every site has it
      and not exists (select from syncagent.version_{id} v where v.key = k.key)
    union all
    select null, max(c.cut), false {more_null}, (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p
    join syncagent.cut_keys c on c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2 and p.key = any (c.keys)
    where p.relation = {id} and p.node = $3 and p.stamp = syncagent._implicit(p.key)
    group by p.relation, p.key
    union all
    select * from syncagent.ship_exact_{id}($1, $2, $3)
$$;
$sql$ $template$;

-- COPY plans its query anew each time, which takes longer than to read a small batch. The plans of these are kept; what they
-- return is held until it is whole, so they are for small batches only.
create function syncagent._ship_few_template() returns text
    language sql immutable
    as $template$
    select string_agg(replace(replace($sql$
create function syncagent.ship_few_{form}_{id}(bigint, bigint, integer) returns table ({returned})
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query select * from syncagent.ship_{form}_{id}($1, $2, $3);
end
$$;
$sql$, '{form}', f.form), '{returned}', f.returned), '' order by f.form)
    from (values ('plain', '{stage_columns}'), ('keys', '_cut bigint, _keys uuid[]'),
                 ('exact', '_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns}'),
                 ('whole', '_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns}')) as f (form, returned)
$template$;

create function syncagent._relays(p_origin integer) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    return (select count(*) > 1 from syncagent.member m where not m.witness and m.node <> p_origin);
end
$$;
comment on function syncagent._relays is 'whether one that has the batches of an origin may have to hand them on, also once the origin was removed';

create function syncagent._shipment(p_node integer, p_after bigint, p_upto bigint, p_plain boolean)
    returns table (schema_name name, table_name name, form text, columns name[], relation text, keys bigint, lowest uuid, query text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
    (select r.schema_name, r.table_name, f.form, r.columns, r.relation::text, k.keys, case f.form when 'plain' then k.lowest end,
            format('select * from syncagent.ship_%s_%s(%s, %s, %s)', case when k.keys > 1000 then f.function else 'few_' || f.function end, r.id, p_after, p_upto, p_node)
    from (
        select c.relation,
               count(*) filter (where c.implicit) > 0 as implicit,
               count(*) filter (where not c.implicit or p_node <> (select node from syncagent.local_site)) > 0 as stamped,
               sum(cardinality(c.keys)) as keys,
               (array_agg(c.keys[1] order by c.keys[1]) filter (where c.implicit))[1] as lowest   -- they are in order
        from syncagent.cut_keys c where c.node = p_node and c.cut > p_after and c.cut <= p_upto group by c.relation
    ) as k
    join syncagent.replicated r on r.id = k.relation join pg_class t on t.oid = r.relation
    -- a few rows of both kinds go together: two streams take longer than what is spared
    cross join lateral (select p_plain and not (k.implicit and k.stamped and k.keys <= 1000) as plain) as p
    cross join lateral (values
        ('keys', 'keys', p.plain and k.implicit and syncagent._relays(p_node)),
        ('plain', 'plain', p.plain and k.implicit), ('exact', 'exact', p.plain and k.stamped),
        ('exact', 'whole', not p.plain and (k.implicit or k.stamped))) as f (form, function, wanted)
    where f.wanted
    order by r.id, f.form desc)
    union all
    (select r.schema_name, r.table_name, 'aliases', r.columns, r.relation::text, a.keys, null,
            format('select a.cut, a.loser, a.winner from syncagent.alias a where a.relation = %s and a.node = %s and a.cut > %s and a.cut <= %s', r.id, p_node, p_after, p_upto)
    from (select a.relation, count(*) as keys from syncagent.alias a where a.node = p_node and a.cut > p_after and a.cut <= p_upto group by a.relation) as a
    join syncagent.replicated r on r.id = a.relation join pg_class t on t.oid = r.relation
    order by r.id)
    union all
    select 'syncagent', 'conflict_step', 'conflicts', '{}', 'syncagent.conflict_step', c.steps, null,
           format('select * from syncagent._told_conflicts(%s, %s, %s)', p_node, p_after, p_upto)
    from (select count(*) from syncagent.conflict_step s where s.node = p_node and s.cut > p_after and s.cut <= p_upto) as c (steps)
    where c.steps > 0;
end
$$;
comment on function syncagent._shipment is 'the COPY queries that read a node''s cuts after one and up to another; all in the snapshot of the newest cut here';

create function syncagent._contexts(p_node integer, p_after bigint, p_upto bigint)
    returns table (cut bigint, context jsonb, newest bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
    select c.cut, c.context, c.newest from syncagent.context c
    where c.node = p_node and c.cut > p_after and c.cut <= p_upto
    order by c.cut;
end
$$;
comment on function syncagent._contexts is 'context and largest clock of each cut of a range';

-- After a cut ----------------------------------------------------------------------------------------------

create function syncagent._settle() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_written bigint := 0;
    v_count   bigint;
    r         record;
begin
    for r in
        select t.id from syncagent.replicated t join pg_class c on c.oid = t.relation
        where t.id in (select s.relation from syncagent.settling s) order by t.id
    loop
        execute format('select syncagent.settle_%s()', r.id) into v_count;
        v_written := v_written + v_count;
    end loop;
    delete from syncagent.settling s where not exists (select from syncagent.replicated t where t.id = s.relation);
    return v_written;
end
$$;
comment on function syncagent._settle is 'write rows that live under a newer tombstone as writes of this site; returns how many';

create function syncagent._settle_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.settle_{id}() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_last record := syncagent._last_cut();
    v_keys uuid[];
    v_rows bigint;
begin
    -- First the rows' locks, then, in a new snapshot, a second look: whoever wrote them since has settled them.
    v_keys := array(
        select k.key from (
            select s.key from syncagent.settling s
            join syncagent.version_{id} v on v.key = s.key
            join {table} t on {t_eq_v}
            where s.relation = {id} order by s.key limit 10000 for no key update of t skip locked
        ) as k);
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(v.key) {odd_of_version}
    from syncagent.version_{id} v
    join {table} t on {t_eq_v}
    where v.key = any (v_keys) and v.deleted
      and not exists (
        select from syncagent.log l
        where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)) and v.key = any (l.keys))
    having count(*) > 0;
    get diagnostics v_rows = row_count;
    -- what no row lives of is settled, too
    delete from syncagent.settling s
    where s.relation = {id}
      and (s.key = any (v_keys)
           or not exists (select from syncagent.version_{id} v join {table} t on {t_eq_v} where v.key = s.key and v.deleted));
    return v_rows;
end
$$;
$sql$ $template$;

create function syncagent._stable() returns table (node integer, cut bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select o.node,
           min(case when p.node = s.node then coalesce(mine.cut, 0) else coalesce((theirs.context ->> o.node::text)::bigint, 0) end)
    from syncagent.local_site s
    cross join (select m.node from syncagent.member m union select f.node from syncagent.frontier f) as o   -- also who has left
    cross join syncagent.member p
    left join syncagent.frontier mine on mine.node = o.node
    left join syncagent.frontier theirs on theirs.node = p.node
    where not p.witness
    group by o.node
$$;
comment on function syncagent._stable is 'per origin, the last cut that every member has said, in its own stream, to have applied';

create function syncagent._greatest(p_one jsonb, p_other jsonb) returns jsonb
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(jsonb_object_agg(k.node, greatest((p_one ->> k.node)::bigint, (p_other ->> k.node)::bigint)), '{}')
    from jsonb_object_keys(p_one || p_other) as k (node)
$$;
comment on function syncagent._greatest is 'per node the larger of two cuts';

create function syncagent._compact(p_limit bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_dropped bigint := 0;
    v_count   bigint;
    v_oldest  xid8;
    v_full    boolean := false;
    v_stable  jsonb;
    r         record;
begin
    -- Below this all transactions have ended and are folded; at rest that is known without another cut.
    select case when exists (
                    select from syncagent.log e
                    where (e.xid >= l.xmax or e.xid = any (l.xip)) and e.xid < pg_snapshot_xmin(pg_current_snapshot()))
                then pg_snapshot_xmin(l.taken) else pg_snapshot_xmin(pg_current_snapshot()) end
    into v_oldest from syncagent._last_cut() l where l.taken is not null;
    if v_oldest is null then
        return 0;
    end if;
    select coalesce(jsonb_object_agg(s.node, s.cut), '{}') into v_stable from syncagent._stable() s;
    for r in select t.id from syncagent.replicated t order by t.id loop
        execute format('select syncagent.compact_%s($1, $2, $3)', r.id) into v_count using p_limit, v_oldest, v_stable;
        v_dropped := v_dropped + v_count;
        v_full := v_full or v_count >= p_limit;
    end loop;
    for r in select distinct a.relation as id from syncagent.alias a loop   -- with its tombstone, unless another one leads to it
        execute format('delete from syncagent.alias a where a.relation = %1$s and a.cut is not null'
                       ' and not exists (select from syncagent.version_%1$s v where v.key = a.loser and v.deleted)'
                       ' and not exists (select from syncagent.alias b where b.relation = a.relation and b.winner = a.loser)', r.id);
    end loop;
    if not v_full then
        delete from syncagent.context c using syncagent._stable() s
        where c.node = s.node and c.cut <= s.cut and (c.applied is null or pg_snapshot_xmax(c.applied) <= v_oldest);
        with gone as (
            delete from syncagent.cut_keys k using syncagent._stable() s
            where s.node = k.node and k.cut <= s.cut
            returning k.id, k.node, k.relation, k.keys
        )
        insert into syncagent.mark (relation, keys)
        select g.relation, g.keys from gone g
        join syncagent.local_site me on me.node = g.node
        join syncagent.forest f on f.relation = g.relation and f.consumed < g.id;
        -- the last stable cut itself stays: it is where a peer may stand
        delete from syncagent.cut c using syncagent._stable() s, syncagent.local_site me
        where s.node = me.node and c.number < s.cut;
        update syncagent.local_site me set trimmed = s.cut
        from syncagent._stable() s where s.node = me.node and s.cut > me.trimmed;
    end if;
    return v_dropped;
end
$$;
comment on function syncagent._compact is 'drop metadata that every member is known to have; at most p_limit entries of each table';

create function syncagent._compact_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.compact_{id}(p_limit bigint, p_oldest xid8, p_stable jsonb) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_last record := syncagent._last_cut();
    v_rows bigint;
begin
    with named as materialized (
        select k.key from syncagent.log l cross join lateral unnest(l.keys) as k (key)
        where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip))
    ), settled as (
        select v.key from syncagent.version_{id} v left join {table} t on {t_eq_v} and not v.deleted
        where v.cut <= (p_stable ->> v.node::text)::bigint {all_stable}
          and v.stamp >= syncagent._implicit(v.key)   -- else the mark, or what comes next, would be below the key
          and not (v.deleted and exists (
                select from syncagent.context c
                where c.node = v.node and c.cut = v.cut and pg_snapshot_xmax(c.applied) > p_oldest))
          and (v.deleted or not ({t_absent}))   -- else the row is lost, and nothing would say so
          and not exists (select from syncagent.settling x where x.relation = {id} and x.key = v.key)
          and not exists (select from syncagent.parked_row x where x.relation = {id} and x.key = v.key)
          and not exists (select from named n where n.key = v.key)
        limit p_limit
    ), dropped as (
        delete from syncagent.version_{id} v using settled s where v.key = s.key returning v.stamp, v.deleted
    ), mark as (
        update syncagent.replicated r set collected = greatest(r.collected, d.stamp)
        from (select stamp from dropped where deleted order by stamp desc limit 1) as d
        where r.id = {id}
    ), remembered as (   -- what is stable is less again when a site comes that knows nothing yet
        update syncagent.local_site me set compacted = syncagent._greatest(me.compacted, p_stable),
            collected = case when d.some_deleted then syncagent._greatest(me.collected, p_stable) else me.collected end
        from (select bool_or(x.deleted) as some_deleted from dropped x) as d
        where d.some_deleted is not null
    )
    select count(*) into v_rows from dropped;
    return v_rows;
end
$$;
$sql$ $template$;

create function syncagent._trim(p_slot integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_slot regclass := format('syncagent.log_%s', p_slot)::regclass;
    v_last record;
    v_left boolean;
begin
    if pg_relation_size(v_slot) = 0 or (syncagent._wall() >> 23) & 15 = p_slot then
        return false;
    end if;
    -- With this lock no transaction that wrote here is open, and the next statement sees all of them.
    execute format('lock table only %s in access exclusive mode nowait', v_slot);
    v_last := syncagent._last_cut();
    execute format('select exists (select from %s where xid >= $1 or xid = any ($2))', v_slot)
        into v_left using v_last.xmax, v_last.xip;
    if v_left then
        return false;
    end if;
    execute format('truncate only %s', v_slot);
    return true;
end
$$;
comment on function syncagent._trim is 'empty one slot of the log if everything in it is folded';
