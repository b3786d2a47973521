-- A site that holds rows already: it was set back by a restore and returns, or it joins with tables that are filled.
--
-- Range by range it is compared with a donor, as for a copy (55). Of its rows some are *its own*: written here, and in no
-- cut that the donor has; the log names them, and they merge like any local write that meets a batch. About all others
-- the donor is right: its frontier covers all that this site had applied, so a row that the donor has not was deleted
-- there. Only the last transaction sets the frontier, as for any copy.

create function syncagent._unshipped(p_relation integer, p_cut bigint, p_newest bigint) returns setof uuid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- What was cut later than the donor knows, and what no cut here has. If the donor knows a later cut than this database,
    -- that one had what was written up to its newest clock.
    select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
    where c.node = (select s.node from syncagent.local_site s) and c.relation = p_relation and c.cut > p_cut
    union
    select k.key from syncagent.log e cross join syncagent._last_cut() l cross join lateral unnest(e.keys) as k (key)
    where e.relation = p_relation and (e.xid >= l.xmax or e.xid = any (l.xip))
      and (p_cut <= coalesce(l.number, 0) or e.hlc > p_newest)
$$;
comment on function syncagent._unshipped is 'keys of rows written here that are in no cut up to this one of this site, the last that others have, whose newest clock is given';

create function syncagent._own(p_relation integer, p_cut bigint, p_newest bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_keys bigint;
begin
    create temp table if not exists own_key (key uuid primary key);
    perform syncagent._empty('pg_temp.own_key');
    insert into pg_temp.own_key select * from syncagent._unshipped(p_relation, p_cut, p_newest);
    get diagnostics v_keys = row_count;
    return v_keys;
end
$$;
comment on function syncagent._own is 'put the keys of this site''s own writes of a table into own_key; how many there are';

create function syncagent._return(p_node integer, p_incarnation uuid, p_seed bigint, p_cut bigint, p_newest bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_site syncagent.local_site;
    v_last record := syncagent._last_cut();
    v_before jsonb;
    v_kept bigint;
    r      record;
begin
    lock table syncagent.merge_lock in exclusive mode;
    select * into strict v_site from syncagent.local_site;
    select coalesce(jsonb_object_agg(f.node, f.cut), '{}') into v_before from syncagent.frontier f;
    delete from syncagent.log e
    where not (e.xid >= v_last.xmax or e.xid = any (v_last.xip)) or p_cut > coalesce(v_last.number, 0) and e.hlc <= p_newest;
    -- Transactions are told apart by xid. These have ended, so small numbers will do; their own may be of another server.
    update syncagent.log e set xid = (2 + k.number)::text::xid8
    from (select x.xid, row_number() over (order by x.xid) as number from (select distinct l.xid from syncagent.log l) as x) as k
    where k.xid = e.xid;
    select count(distinct e.xid) into v_kept from syncagent.log e;
    for r in select t.id from syncagent.replicated t join pg_class c on c.oid = t.relation order by t.id loop
        -- What was inserted again is no row that was born here: its key had an entry, which is forgotten below, or a tombstone.
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
            select f.xid, {id}, 'U', 0, array_agg(f.key) {odd_agg_f}
            from (select e.xid, k.* from syncagent.log e cross join lateral {unnest_entry} where e.relation = {id} and e.op = 'I') as f
            where exists (select from syncagent.version_{id} v where v.key = f.key)
               or {may_be_implicit} and f.key <= (select t.collected from syncagent.replicated t where t.id = {id})
            group by f.xid
            $sql$, syncagent._tokens(r.id) || jsonb_build_object('odd_agg_f', replace(syncagent._tokens(r.id) ->> 'odd_agg', 'k.odd', 'f.odd')));
        -- A cut that nobody has is undone: its writes are in the log again, each with its own clock. What was first of a key decides
        -- whether it was born here.
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys {odd_column}, columns, deltas)
            select (2 + $3 + dense_rank() over (order by v.stamp))::text::xid8, {id},
                   (case when v.deleted then 'D' when u.born or v.columns = '{""}' then 'I' else 'U' end)::"char",
                   syncagent._hlc(v.stamp), array_agg(v.key) {odd_of_version}, case when v.columns <> '{""}' and not v.deleted then v.columns end, {own_deltas}
            from {own_versions} v
            join (select k.key, (array_agg(c.born order by c.cut))[1] as born
                  from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
                  where c.node = $1 and c.relation = {id} and c.cut > $2 group by k.key) as u on u.key = v.key
            where v.node = $1 and v.cut > $2
            group by v.stamp, v.deleted, u.born, v.columns, {own_deltas}
            $sql$, syncagent._tokens(r.id)) using v_site.node, p_cut, v_kept;
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys)
            select pg_current_xact_id(), {id}, 'I', syncagent._tick(), array_agg(k.key)
            from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
            where c.node = $1 and c.relation = {id} and c.implicit and c.cut > $2
              and not exists (select from syncagent.version_{id} v where v.key = k.key)
            group by c.ctid
            $sql$, syncagent._tokens(r.id)) using v_site.node, p_cut;
        execute format('delete from syncagent.version_%s', r.id);
    end loop;
    for r in   -- its numbers are now others than before
        select x.sequence, x.every from syncagent.stride x join pg_sequence q on q.seqrelid = x.sequence and q.seqincrement = x.every
    loop
        if p_node >= r.every then
            raise exception 'sequence % draws every % numbers: node % has no share of them', r.sequence, r.every, p_node
                using errcode = 'SA002', hint = 'attach the table with a larger stride, at every site';
        end if;
        execute format('select setval(%1$L, s.last_value + 1 + (($1 - s.last_value - 1) %% $2 + $2) %% $2, false) from %1$s s', r.sequence)
            using p_node, r.every;
    end loop;
    delete from syncagent.cut;
    delete from syncagent.cut_keys;
    delete from syncagent.context;
    delete from syncagent.frontier;
    delete from syncagent.settling;
    delete from syncagent.parked_row;
    delete from syncagent.dropped_row;
    delete from syncagent.merge_result;
    delete from syncagent.alias a where a.node <> v_site.node or a.cut <= p_cut;
    update syncagent.alias set node = p_node, cut = null;
    update syncagent.conflict_step c set node = p_node, cut = null where c.node = v_site.node and coalesce(c.cut > p_cut, true);
    delete from syncagent.forest;
    delete from syncagent.bucket;
    delete from syncagent.mark;
    delete from syncagent.seal;
    delete from syncagent.peer_state;
    delete from syncagent.request;
    update syncagent.local_site
    set node = p_node, incarnation = p_incarnation, tail = syncagent._tail(p_node, p_seed), trimmed = 0, joining = true, copied = false,
        node_before = v_site.node, seen_before = v_before;
end
$$;
comment on function syncagent._return is 'take another number: own writes are in the log, everything else that was known of cuts and versions is forgotten, and will come from a donor';

create function syncagent._lead(p_accepted bigint) returns bigint
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select s.last_value - greatest(syncagent._wall(), p_accepted, (
        select max(f.newest) from syncagent.frontier f where f.node <> (select me.node from syncagent.local_site me)))
    from syncagent.hlc s
$$;
comment on function syncagent._lead is 'how far the clock of this site is ahead of time, of what was accepted, and of all that came from others';

create function syncagent._newest_up_to(p_cut bigint) returns bigint
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(max(c.newest), 0) from syncagent.context c, syncagent.local_site me where c.node = me.node and c.cut <= p_cut
$$;
comment on function syncagent._newest_up_to is 'the largest clock of the cuts of this site up to one, as far as they are remembered';

create function syncagent._anew(p_node integer, p_incarnation uuid, p_seed bigint, p_cut bigint, p_newest bigint, p_accepted bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_floor bigint;
    v_count bigint;
begin
    select greatest(syncagent._wall(), p_accepted, p_newest, max(f.newest)) into v_floor
    from syncagent.frontier f where f.node <> (select me.node from syncagent.local_site me);
    -- Waits for whoever has drawn a clock and is still open; who comes later waits for us. Unlike setval it is undone with the rest.
    execute format('alter sequence syncagent.hlc restart with %s', v_floor);
    perform syncagent._return(p_node, p_incarnation, p_seed, p_cut, p_newest);
    update syncagent.log e set hlc = v_floor + k.place
    from (select x.hlc, row_number() over (order by x.hlc) as place from (select distinct l.hlc from syncagent.log l where l.hlc > 0) as x) as k
    where e.hlc = k.hlc;
    select count(distinct e.hlc) into v_count from syncagent.log e;
    execute format('alter sequence syncagent.hlc restart with %s', v_floor + v_count + 1);
    return v_count;
end
$$;
comment on function syncagent._anew is 'return, and stamp anew what nobody has applied, in its order: after all that stays, and from now on; the clock goes on from there. How many clocks were set';

create function syncagent._held(p_relation integer, p_node regclass, p_low text[], p_high text[],
                                out rows bigint, out lane_0 bigint, out lane_1 bigint)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute (select syncagent._fingerprint_query(p_node, r.columns, syncagent._copy_range(p_relation, p_node, p_low, p_high))
             from syncagent.replicated r where r.id = p_relation) into rows, lane_0, lane_1;
end
$$;
comment on function syncagent._held is 'count and lanes of what this site holds of a range';

create function syncagent._differing(p_relation integer, p_node regclass, p_low text[], p_high text[],
                                     out lacking bigint, out changed bigint, out extra bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute syncagent._render($sql$
        with here as materialized (select {key} as _row_key, t.* from only {node} t where {range})
        select count(*) filter (where h._row_key is null), count(*) filter (where h._row_key is not null and s._key is not null),
               count(*) filter (where s._key is null)
        from {stage} s full join here h on h._row_key = s._key
        cross join lateral (select row({h_columns})::text collate "C", row({s_columns})::text collate "C") as w (here, there)
        where (s._key is null or h._row_key is null or w.here <> w.there)
          and not exists (select from pg_temp.own_key o where o.key = coalesce(h._row_key, s._key))
        $sql$, syncagent._range_tokens(p_relation, p_node, p_low, p_high)) into lacking, changed, extra;
end
$$;
comment on function syncagent._differing is 'rows of a staged range that are not here, are different here, are only here; own ones are not counted';

create function syncagent._range_tokens(p_relation integer, p_node regclass, p_low text[], p_high text[]) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._tokens(p_relation) || jsonb_build_object(
        'range', syncagent._copy_range(p_relation, p_node, p_low, p_high),
        'node', coalesce((select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_node), ''),
        'same_row', syncagent._render('exists (select from {stage} s where {t_eq_s} and row({t_columns})::text collate "C" = row({s_columns})::text collate "C")',
                                      syncagent._tokens(p_relation)),
        'same_here', syncagent._render('exists (select from {table} t where {t_eq_s} and row({t_columns})::text collate "C" = row({s_columns})::text collate "C")',
                                       syncagent._tokens(p_relation)),
        'h_columns', (select string_agg(format('h.%I', u.c), ', ' order by u.n) from syncagent.replicated r
                      cross join lateral unnest(r.columns) with ordinality as u (c, n) where r.id = p_relation),
        'listed_key_columns', coalesce((select string_agg(format(', c%s', array_position(r.columns, u.k)), '' order by u.n) from syncagent.replicated r
                      cross join lateral unnest(r.key_columns) with ordinality as u (k, n) where r.id = p_relation), ''),
        'listed_keys', (select case when r.derived then string_agg(format(', v.k%s', u.n), '' order by u.n) else ', v.key' end from syncagent.replicated r
                      cross join lateral unnest(r.key_columns) with ordinality as u (k, n) where r.id = p_relation group by r.derived))
$$;
comment on function syncagent._range_tokens is 'what the statements about one range of a table are filled with';

create function syncagent._weigh(p_relation integer, p_tokens jsonb, p_rest boolean, p_donor integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_tokens jsonb := p_tokens || jsonb_build_object(
        'range', case when p_rest then 'true' else p_tokens ->> 'range' end,
        'rows', case when p_rest then p_tokens ->> 'table' else 'only ' || (p_tokens ->> 'node') end,
        'staged', case when p_rest then 'join' else 'left join' end,
        'staged_key', (select syncagent._stage_key(r) from syncagent.replicated r where r.id = p_relation));
    v_lost bigint;
begin
    -- No site has seen a row of one that joins. Where the donor's has no stamp of its own either, the larger content wins, as
    -- wherever one key is inserted twice; else the stamp does, which is above the key.
    execute syncagent._render($sql$
        create temp table met on commit drop as
        select m.*, m.there is null and not m.gone or m.stamp is null and m.here > m.there as wins
        from (select {key} as key {odd_value}, {t_key_text} as key_text, v.stamp, v.node, coalesce(v.deleted, false) as gone,
                     row({t_columns})::text collate "C" as here, case when s._key is not null and s._deleted is not true then row({s_columns})::text collate "C" end as there,
                     to_jsonb(t.*) as image,
                     case when s._key is not null and s._deleted is not true then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as other
              from {rows} t {staged} {stage} s on {t_eq_s} left join pg_temp.listed v on v.key = s._key
              where {range} and not exists (select from pg_temp.own_key o where o.key = {key})) as m
        where m.there is distinct from m.here
        $sql$, v_tokens);
    execute syncagent._render($sql$
        insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
        select pg_current_xact_id(), {id}, 'I', syncagent._tick(), array_agg(k.key) {odd_agg}
        from (select m.*, (row_number() over () - 1) / 10000 as chunk from pg_temp.met m where m.wins) as k
        group by k.chunk
        $sql$, v_tokens);
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._conflict_id({title}, m.key, syncagent._implicit(m.key), coalesce(m.stamp, syncagent._implicit(m.key))),
               {schema_literal}, {table_literal}, m.key, m.key_text,
               case when m.gone then 'update/delete' when m.stamp is null then 'insert/insert' else 'update/update' end, 'lww',
               coalesce(m.stamp, syncagent._implicit(m.key)), syncagent._implicit(m.key), coalesce(m.node, $1), (select s.node from syncagent.local_site s),
               m.other, m.image
        from pg_temp.met m where not m.wins
        on conflict (id) do nothing
        $sql$, v_tokens) using p_donor;
    get diagnostics v_lost = row_count;
    execute syncagent._render('delete from pg_temp.stage_{id} s using pg_temp.met m where m.wins and m.key = {staged_key}', v_tokens);
    execute 'insert into pg_temp.own_key select m.key from pg_temp.met m where m.wins on conflict do nothing';
    execute 'drop table pg_temp.met';
    return v_lost;
end
$$;
comment on function syncagent._weigh is 'for a site that joins: which of its rows win against those staged, and so are writes of its own; the others are kept as conflicts, which are counted';

create function syncagent._give_way(p_relation integer, p_tokens jsonb, p_donor integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_lost bigint;
begin
    execute syncagent._render($sql$
        create temp table beaten on commit drop as
        with written as materialized (
            select k.key, max(e.hlc) as hlc,
                   coalesce(min(e.hlc) filter (where e.op = 'I') = min(e.hlc), false) and not bool_or(e.op = 'D') as born
            from syncagent.log e cross join lateral unnest(e.keys) as k (key) where e.relation = {id} group by k.key
        ), here as materialized (
            select {key} as _row_key, {t_key_text} as _key_text, to_jsonb(t.*) as _image from only {node} t
            where {range} and {key} in (select w.key from written w where not w.born)
        )
        select w.key, w.hlc, h._image as image, coalesce(h._key_text, {s_key_text}) as key_text,
               case when s._key is not null then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as other
        from written w left join here h on h._row_key = w.key left join {stage} s on s._key = w.key
        where not w.born and not exists (select from pg_temp.listed v where v.key = w.key)
          and case when s._key is null then h._row_key is not null else w.key in (select c.key from pg_temp.changed c) end
        $sql$, p_tokens);
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._conflict_id({title}, b.key, syncagent._implicit(b.key), w.stamp), {schema_literal}, {table_literal}, b.key, b.key_text,
               'possible ' || case when b.other is null then 'update/delete' when b.image is null then 'delete/update' else 'update/update' end, 'lww',
               syncagent._implicit(b.key), w.stamp, $1, me.node, b.other, b.image
        from pg_temp.beaten b cross join syncagent.local_site me cross join lateral (select syncagent._stamp(b.hlc, me.tail)) as w (stamp)
        where b.image is distinct from b.other
        on conflict (id) do nothing
        $sql$, p_tokens) using p_donor;
    get diagnostics v_lost = row_count;
    perform syncagent._unlog(p_relation, array(select b.key from pg_temp.beaten b));
    delete from pg_temp.own_key o using pg_temp.beaten b where b.key = o.key;
    drop table pg_temp.beaten;
    return v_lost;
end
$$;
comment on function syncagent._give_way is 'for a site that lapsed: its writes of rows that the donor changed since, or deleted, and has forgotten the stamps of, are writes no more, but conflicts, which are counted; what was born here stays';

create function syncagent._reconcile(p_relation integer, p_node regclass, p_low text[], p_high text[], p_donor integer, p_same boolean, p_lapsed boolean)
    returns table (taken bigint, dropped bigint, conflicts bigint)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
#variable_conflict use_column
declare
    v_tokens jsonb := syncagent._range_tokens(p_relation, p_node, p_low, p_high);
    v_seen   pg_snapshot := pg_current_snapshot();
    v_before jsonb;
    v_taken  bigint := 0;
    v_dropped bigint := 0;
    v_conflicts bigint := 0;
    v_count  bigint;
    v_origin integer;
    v_again  boolean;
begin
    select s.seen_before into v_before from syncagent.local_site s;
    perform set_config('syncagent.context', coalesce((select c.frontier from syncagent.copy_state c), '{}')::text, true);
    perform syncagent._own(p_relation, 0, 0);
    create temp table if not exists dropped_key (key uuid);
    perform syncagent._empty('pg_temp.dropped_key');
    -- A row without a stamp in the listing was changed since this site was last heard of; whoever did it is forgotten.
    create temp table changed on commit drop as
    with unstamped as (delete from pg_temp.listed v where v.stamp is null returning v.key) select u.key from unstamped u;
    if p_lapsed and p_node is not null and not p_same then
        v_conflicts := syncagent._give_way(p_relation, v_tokens, p_donor);
    end if;
    drop table pg_temp.changed;
    -- What is known of rows that are the same, and of those that are not in the table: parked ones.
    execute syncagent._render($sql$
        insert into syncagent.version_{id} as w (key, stamp, node, cut, deleted {version_key_columns})
        select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns} from pg_temp.listed v
        where ($1 or v.rest and not v.deleted) and not exists (select from pg_temp.own_key o where o.key = v.key)
        on conflict (key) do update set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, deleted = excluded.deleted {excluded_registers}
        $sql$, v_tokens) using p_same;
    if p_same then
        return query select 0::bigint, 0::bigint, 0::bigint;
        return;
    end if;

    if p_node is null then
        execute syncagent._render('insert into pg_temp.stage_{id} (_deleted {listed_key_columns})'
                                  ' select true {listed_keys} from pg_temp.listed v where v.deleted', v_tokens);
    end if;
    if v_before is null then
        v_conflicts := v_conflicts + syncagent._weigh(p_relation, v_tokens, p_node is null, p_donor);
    end if;
    if p_node is not null then
        execute syncagent._render($sql$
            with gone as (
                delete from only {node} t
                where {range} and not exists (select from pg_temp.own_key o where o.key = {key}) and not {same_row}
                returning {key} as key, case when {missed} then row({t_columns})::text end as image, {odd_or_null} as odd
            ), missed as (
                insert into syncagent.dropped_row (relation, key, image, odd) select {id}, g.key, g.image, g.odd from gone g where g.image is not null
            ) insert into pg_temp.dropped_key select g.key from gone g
            $sql$, v_tokens || jsonb_build_object('missed', coalesce((select string_agg(x.refers, ' or ') from syncagent._references(p_relation) as x), 'false')));
        get diagnostics v_dropped = row_count;
    end if;

    -- What our own write has replaced, it had seen; an insert had seen nothing.
    execute syncagent._render($sql$
        create temp table staged on commit drop as
        select s._key, s._deleted, {s_columns}, v.stamp as _stamp, coalesce(v.cut, 0) as _cut, coalesce(v.node, $1) as _node {v_registers_named},
               o.key is null and {same_here} as _same
        from {stage} s left join pg_temp.listed v on v.key = s._key left join pg_temp.own_key o on o.key = s._key
        where o.key is null
           or case when v.key is not null then v.cut > coalesce(($2 ->> v.node::text)::bigint, 0)
                else exists (select from syncagent.log e where e.relation = {id} and e.op = 'I' and s._key = any (e.keys)) end
        $sql$, v_tokens) using p_donor, v_before;
    execute syncagent._render($sql$
        insert into syncagent.version_{id} as w (key, stamp, node, cut, deleted {version_key_columns})
        select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns} from pg_temp.listed v join pg_temp.staged s on s._key = v.key and s._same
        on conflict (key) do update set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, deleted = excluded.deleted {excluded_registers}
        $sql$, v_tokens);
    execute 'delete from pg_temp.staged s where s._same';
    -- Each origin's versions by themselves, as if they came in its batch.
    for v_origin in execute 'select distinct _node from pg_temp.staged order by 1' loop
        execute syncagent._render('truncate pg_temp.stage_{id}', v_tokens);
        execute syncagent._render('insert into pg_temp.stage_{id} (_stamp, _cut, _deleted {more_names}, {stage_names})'
                                  ' select s._stamp, s._cut, s._stamp is not null and coalesce(s._deleted, false) {more_of_staged}, {s_columns} from pg_temp.staged s where s._node = $1', v_tokens) using v_origin;
        perform syncagent._empty('pg_temp.verdict');
        execute format('select syncagent.judge_%s($1, false)', p_relation) into v_count using v_origin;
        v_conflicts := v_conflicts + v_count;
        v_taken := v_taken + syncagent._write_carefully(p_relation, v_origin, false);
        insert into syncagent.dropped_row (relation, key, image, odd)
        select b.relation, b.key, b.image, b.odd from pg_temp.bereft b where b.xid = pg_current_xact_id();
        perform syncagent._empty('pg_temp.bereft');
    end loop;
    execute syncagent._render($sql$
        select exists (
            select from syncagent.log l cross join lateral unnest(l.keys) as k (key)
            where l.relation = {id} and l.xid <> pg_current_xact_id() and not pg_visible_in_snapshot(l.xid, $1)
              and (exists (select from pg_temp.dropped_key d where d.key = k.key) or exists (select from pg_temp.staged s where s._key = k.key)))
        $sql$, v_tokens) into v_again using v_seen;
    drop table pg_temp.staged;
    if v_again then
        raise exception 'a row was written while it was compared' using errcode = 'SA101';
    end if;
    return query select v_taken, v_dropped, v_conflicts;
end
$$;
comment on function syncagent._reconcile is 'make a staged range of a donor, and what is listed of its versions, that of this site; same: its rows are what is here';

create function syncagent._bring_back() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into pg_temp.bereft (xid, relation, key, image, odd)
    select distinct on (d.relation, d.key) pg_current_xact_id(), d.relation, d.key, d.image, d.odd from syncagent.dropped_row d order by d.relation, d.key;
    delete from syncagent.dropped_row;
    perform syncagent._bring_together(true);
    return syncagent._log_yielded();
end
$$;
comment on function syncagent._bring_back is 'once all ranges are here: what this site has written, and refers to a row that the donor has not, brings that one back, as where a delete comes in a batch; returns how many rows were written';
