-- Strategy `lww-column`: every column of a row is a register of its own, within the row's life.
--
-- A row's *life* begins with its insert, or its re-insert after a delete. The version entry of such a table has, beside the
-- stamp and dot of the row's newest write, its *registers*: of each column that was changed in this life, and of the life
-- itself under the name '', the entry [stamp, node, cut]; cut is null while no cut has it. They travel with the row and are
-- dropped with it, once all their dots are stable. Two states of a row are joined: the newer life wins whole; within one
-- life a delete ends it, whatever the stamps of its columns; else each column is that of the larger stamp.
--
-- The small functions below are called for every row that meets another. They set no search_path, for such a one is not inlined and
-- costs more than what it does: their callers have set it.
--
-- tests/model/columns.py is this page as a program; docs/decisions/0017-strategies.md says what it found.

create function syncagent._registers_of(p_op "char", p_columns name[], p_stamp uuid, p_node integer, p_cut bigint) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_entry jsonb := jsonb_build_array(p_stamp, p_node, p_cut);
begin
    if p_op = 'D' then
        return null;
    elsif p_op = 'I' or p_columns is null then
        return jsonb_build_object('', v_entry);
    end if;
    -- Without a statement, and not one by one: a row may have hundreds. No name can be taken for a value: quotes in it are escaped.
    return replace(jsonb_object(p_columns::text[], array_fill(p_stamp::text, array[cardinality(p_columns)]))::text,
                   format(': "%s"', p_stamp), format(': %s', v_entry))::jsonb;
end
$$;
comment on function syncagent._registers_of is 'the registers that one log entry writes: those of its columns, or a new life';

create function syncagent._joined_registers(p_one jsonb, p_other jsonb) returns jsonb
    language plpgsql immutable strict
    as $$
declare
    v_name  text;
    v_entry jsonb;
    v_mine  jsonb;
begin
    for v_name, v_entry in select e.key, e.value from jsonb_each(p_other) as e loop
        v_mine := p_one -> v_name;
        if v_mine is null or (v_entry ->> 0)::uuid > (v_mine ->> 0)::uuid
           or v_entry -> 0 = v_mine -> 0 and v_mine ->> 2 is null then   -- of one write, the entry that knows its cut
            p_one := p_one || jsonb_build_object(v_name, v_entry);
        end if;
    end loop;
    return p_one;
end
$$;
comment on function syncagent._joined_registers is 'of each register the entry of the larger stamp';

create aggregate syncagent._joined(jsonb) (sfunc = syncagent._joined_registers, stype = jsonb);
comment on aggregate syncagent._joined(jsonb) is 'registers of several writes of one row';

create function syncagent._since(p_registers jsonb, p_life jsonb) returns jsonb
    language plpgsql immutable
    as $$
begin
    if p_life is null then
        return p_registers - '';
    end if;
    return (select coalesce(jsonb_object_agg(e.key, e.value), '{}') from jsonb_each(p_registers) as e
            where e.key <> '' and (e.value ->> 0)::uuid > (p_life ->> 0)::uuid);
end
$$;
comment on function syncagent._since is 'the columns that were written after a life began';

create function syncagent._life(p_registers jsonb) returns jsonb
    language sql immutable
    as $$ select case when p_registers ? '' then jsonb_build_object('', p_registers -> '') else '{}' end $$;
comment on function syncagent._life is 'the registers without those of columns';

create function syncagent._written(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                   p_log jsonb, p_new uuid, p_first uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                   out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    set plan_cache_mode = force_generic_plan   -- called for each of many rows, where the session plans anew at each call
    as $$
declare
    v_life   jsonb := p_log -> '';
    v_newest record;
begin
    stamp := p_stamp; node := p_node; cut := p_cut; deleted := coalesce(p_deleted, false); registers := coalesce(p_registers, '{}');
    if p_new is null then
        return;   -- nothing was written here since
    elsif not p_alive then
        if p_gone and (stamp is null or p_new >= stamp or not deleted) then
            registers := syncagent._joined_registers(syncagent._life(registers), syncagent._life(coalesce(p_log, '{}')));
            stamp := p_new; node := p_me; cut := p_next; deleted := true;
        end if;
        return;
    elsif deleted then
        if p_new <= stamp then
            return;   -- it lives under a newer tombstone, and will be written anew
        end if;
        if v_life is null or (v_life ->> 0)::uuid <= stamp then
            v_life := jsonb_build_array(p_new, p_me, p_next);
        end if;
        deleted := false; registers := '{}';
    end if;
    if v_life ->> 0 = registers -> '' ->> 0 then
        registers := registers || jsonb_build_object('', v_life);   -- known before a cut had it
    end if;
    if v_life is not null and coalesce((v_life ->> 0)::uuid > (registers -> '' ->> 0)::uuid, true) then
        registers := jsonb_build_object('', v_life) || syncagent._since(p_log, v_life);
    elsif p_first > stamp or registers = '{}' then
        registers := registers || syncagent._since(p_log, registers -> '');
    else
        registers := syncagent._joined_registers(registers, syncagent._since(p_log, registers -> ''));
    end if;
    select e.value into v_newest from jsonb_each(registers) as e order by (e.value ->> 0) collate "C" desc, e.value ->> 2 is null limit 1;
    if found and coalesce((v_newest.value ->> 0)::uuid >= stamp, true) then
        stamp := (v_newest.value ->> 0)::uuid; node := (v_newest.value ->> 1)::integer; cut := (v_newest.value ->> 2)::bigint;
    end if;
end
$$;
comment on function syncagent._written is 'the version entry of a row after the writes of a window: p_log are their registers, p_new and p_first the stamps of the last and the first, p_me and p_next what will be their dot; p_alive: the row is there, p_gone: one of them deleted it';

create function syncagent._same_life(p_mine jsonb, p_theirs jsonb, p_context jsonb, p_settled jsonb) returns boolean
    language plpgsql immutable
    as $$
begin
    -- An entry that was dropped was stable: every site has had that life, and whoever dropped it can only mean that one.
    return case
        when p_mine is null and p_theirs is null or p_mine ->> 0 = p_theirs ->> 0 then true
        when p_mine is null then (p_theirs ->> 2)::bigint <= coalesce((p_settled ->> (p_theirs ->> 1))::bigint, 0)
        when p_theirs is null then coalesce((p_mine ->> 2)::bigint <= (p_context ->> (p_mine ->> 1))::bigint, false)
        else false end;
end
$$;
comment on function syncagent._same_life is 'whether the lives of two states are one: theirs is of a site that had seen p_context, p_settled is what entries were dropped of here';

create function syncagent._unstable(p_stable jsonb) returns jsonpath
    language sql immutable
    as $$
    -- What is not of this form is not known to be stable, so it is not.
    select coalesce((
        select format('strict $.* ? (!(%1$s) || (%1$s) is unknown)', string_agg(format('@[1] == %s && @[2] <= %s', s.key, s.value), ' || '))
        from jsonb_each_text(p_stable) as s having count(*) > 0), 'strict $.*')::jsonpath
$$;
comment on function syncagent._unstable is 'the registers that some site may not have: a path, which is made once, and asked of each row without a call';

create function syncagent._sides(p_key uuid, p_registers jsonb, p_ended boolean, p_stamp uuid, p_node integer, p_cut bigint)
    returns table (name text, stamp uuid, node integer, cut bigint)
    language sql immutable
    as $$
    select e.key, (e.value ->> 0)::uuid, (e.value ->> 1)::integer, (e.value ->> 2)::bigint from jsonb_each(p_registers) as e where not p_ended
    union all
    select null, p_stamp, p_node, p_cut where p_ended
$$;
comment on function syncagent._sides is 'the writes that a state of a row is made of: its registers, or, under no name, its delete';

-- Templates ------------------------------------------------------------------------------------------------

-- The names of the columns whose bytes an update has changed: not every type has an equality.
create function syncagent._column_capture_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_columns() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set enable_nestloop = off {pinned}
    as $$
begin
    {guard}
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column}, columns)
    select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key) {odd_agg}, k.columns
    from (
        select k.*, (row_number() over (partition by k.columns) - 1) / 10000 as chunk
        from (
            select {key} as key {odd_value}, case when {o_here} then array_remove(array[{changed_columns}]::name[], null) end as columns
            from changed t left join before o on {o_eq_t}
        ) as k
        where k.columns is distinct from '{}'   -- nothing was changed
    ) as k
    group by k.columns, k.chunk;
    return null;
end
$$;
$sql$ $template$;

create function syncagent._judge_columns_template() returns text
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
    v_context   jsonb := coalesce(nullif(current_setting('syncagent.context', true), '')::jsonb, '{}');
    v_frontier  jsonb := (select coalesce(jsonb_object_agg(f.node, f.cut), '{}') from syncagent.frontier f);
    v_part      integer := coalesce(nullif(current_setting('syncagent.knot', true), ''), '0')::integer;
    v_rows      bigint;
    v_conflicts bigint := 0;
    v_over      uuid[];
begin
    select * into strict v_site from syncagent.local_site;
    {note_part}
    if not exists (select from syncagent.version_{id})
       and not exists (select from syncagent.log l
                       where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)))
       and not exists (select from syncagent._told(p_origin) t join syncagent.cut_keys k on k.node = t.node and k.cut > t.cut
                       where k.relation = {id} and k.implicit)
       and not exists (select from {stage} s where s._stamp is null or s._stamp <= syncagent._implicit(s._key)) then
        return 0;
    end if;
    perform syncagent._empty('pg_temp.joined');
    with unfolded as materialized (
        select k.key, {unfolded_registers} as registers, bool_or(x.op = 'D') as gone,
               syncagent._stamp(max(x.tx_hlc), v_site.tail) as stamp, syncagent._stamp(min(x.tx_hlc), v_site.tail) as first
        from (
            select l.keys, l.op, l.hlc, l.tx_hlc, {log_registers} as registers
            from (select l.*, max(l.hlc) over (partition by l.xid) as tx_hlc
                  from syncagent.log l where l.xid >= v_last.xmax or l.xid = any (v_last.xip)) as l
            where l.relation = {id} offset 0
        ) as x cross join lateral unnest(x.keys) as k (key)
        group by k.key
    ), born as materialized (
        select k.key, (array_agg(k.node order by k.node))[1] as node, (array_agg(k.cut order by k.node))[1] as cut
        from (
            select u.key, c.node, max(c.cut) as cut
            from syncagent._told(p_origin) t join syncagent.cut_keys c on c.node = t.node and c.cut > t.cut
            cross join lateral unnest(c.keys) as u (key)
            where c.relation = {id} and c.implicit
            group by u.key, c.node
        ) as k join {stage} s on s._key = k.key
        group by k.key
    ), met as (
        select s._key as key, s._cut, s._stamp is null as plain, v.key is not null as entered, u.key is not null as fresh,
               b.node as born_node, b.cut as born_cut, t.ctid is not null as here, p.key is not null as waits, p.stamp as waiting, p.registers as waiting_registers,
               w.stamp as my_stamp, w.node as my_node, w.cut as my_cut, w.deleted as my_end, w.registers as mine,
               coalesce(s._stamp, syncagent._implicit(s._key)) as their_stamp, coalesce(s._node, p_origin) as their_node,
               case when s._node is null then s._cut else s._at end as their_cut, coalesce(s._deleted, false) as their_end,
               coalesce(s._registers, '{}') as theirs,
               s._stamp is null and v.key is null and u.key is null and t.ctid is not null as twice, {seen} as seen
        from {stage} s
        left join {table} t on {t_eq_s}
        left join syncagent.version_{id} v on v.key = s._key
        left join unfolded u on u.key = s._key
        left join born b on b.key = s._key
        left join syncagent.parked_row p on p.relation = {id} and p.key = s._key
        cross join lateral syncagent.{written}(v.stamp, v.node, v.cut, v.deleted, v.registers,
            u.registers, u.stamp, u.first, v_site.node, null, t.ctid is not null, u.gone) as w
        where (v.key is not null or u.key is not null or t.ctid is not null)
          and (v.key is not null or u.key is not null or b.key is not null or s._stamp is null or s._stamp <= syncagent._implicit(s._key))
    ), lives as (
        select m.*, syncagent._same_life(m.mine -> '', m.theirs -> '', v_context, v_site.compacted) as same,
               coalesce((m.mine -> '' ->> 0)::uuid, syncagent._implicit(m.key)) as my_life,
               coalesce((m.theirs -> '' ->> 0)::uuid, syncagent._implicit(m.key)) as their_life,
               {newer} as newer,
               case when m.waits then {above} end as above   -- written here on top of a row that waits
        from met m
    )
    insert into pg_temp.joined
    select l.key, l.plain, l.entered, l.fresh, l.here, l.waits, l.above, l._cut is null and (l.entered or l.fresh), l.same, l.newer,
           case when l.twice then case when w.here < w.there then 'theirs' when w.here > w.there then 'clash' else 'mine' end
                when not l.same then case when l.my_life >= l.their_life then 'mine' else 'theirs' end
                when l.my_end and l.their_end then case when l.my_stamp >= l.their_stamp then 'mine' else 'theirs' end
                when l.my_end then 'mine'
                when l.their_end then 'theirs'
                when not (l.here or l.waits) then case when l.newer = '{}' then 'mine' else 'theirs' end   -- the row is lost
                when p_retry then 'both'
                when l.newer = '{}' then 'mine'
                else 'both' end,
           coalesce(l.my_stamp, syncagent._implicit(l.key)), l.my_node, l.my_cut, l.my_end, l.mine,
           l.their_stamp, l.their_node, l.their_cut, l.their_end, l.theirs, l.born_node, l.born_cut, l.twice, l.waiting_registers, l.seen
    from lives l
    left join {stage} s on l.twice and s._key = l.key
    cross join lateral (
        select case when l.twice then (select row({t_columns})::text collate "C" from {table} t where {t_eq_s}) end,
               case when l.twice then row({s_columns})::text collate "C" end) as w (here, there);
    get diagnostics v_rows = row_count;
    if v_rows = 0 then
        return 0;
    elsif v_rows > 1000 then
        analyze pg_temp.joined;
    end if;
    if exists (select from pg_temp.joined j where j.inexact) then
        raise exception 'plain rows of % met metadata', {title} using errcode = 'SA102';
    end if;

    -- Writes that had not seen each other: of one column, of a life and its end, or of two lives.
    with pair as materialized (
        select j.*, o.name, o.stamp as our_stamp, o.node as our_node, o.cut as our_cut, t.stamp as other_stamp, t.node as other_node
        from pg_temp.joined j
        cross join lateral (
            select * from syncagent.{sides}(j.key, j.mine, j.my_end, j.my_stamp, j.my_node, j.my_cut)
            union all   -- an insert, as it is here, that the origin had not seen
            select '', syncagent._implicit(j.key), j.born_node, j.born_cut where j.born_node is not null and not j.my_end and not j.mine ? '') as o
        join lateral syncagent.{sides}(j.key, j.theirs, j.their_end, j.their_stamp, j.their_node, j.their_cut) as t
            on case when not j.same then true
                    when j.my_end then o.name is null and t.name <> ''
                    when j.their_end then t.name is null and o.name <> ''
                    else o.name = t.name and o.name <> '' {at_odds} end
        left join syncagent.frontier f on f.node = t.node
        left join syncagent.context theirs on theirs.node = t.node and theirs.cut = t.cut
        left join syncagent.context ours on ours.node = o.node and ours.cut = o.cut
        where not j.twice and not (j.my_end and j.their_end and j.same) and o.stamp <> t.stamp and t.cut > coalesce(f.cut, 0)
          and not coalesce(o.cut <= (theirs.context ->> o.node::text)::bigint, false)
          and (o.cut is null or coalesce((ours.context ->> t.node::text)::bigint, 0) < t.cut)
    ), found as (
        select p.key, p.name, case when p.outcome = 'both' then p.our_stamp > p.other_stamp else p.outcome = 'mine' end as ours,
               p.our_stamp, p.other_stamp, p.our_node, p.other_node, p.my_end, p.their_end, p.outcome = 'both' as within
        from pair p where p.outcome = 'both'
        union all
        select * from (
            -- the newest write of each site that loses: who met fewer of them has an image without the others
            select distinct on (p.key, p.loser) p.key, null::text, p.outcome = 'mine', p.our_stamp, p.other_stamp, p.our_node, p.other_node, p.my_end, p.their_end, false
            from (select p.*, case when p.outcome = 'mine' then p.other_node else p.our_node end as loser from pair p where p.outcome <> 'both') as p
            order by p.key, p.loser, p.our_stamp desc, p.other_stamp desc) as x
        union all
        select j.key, null, j.outcome = 'clash', j.my_stamp, j.their_stamp, coalesce(j.born_node, v_site.node), p_origin, false, false, false
        from pg_temp.joined j where j.twice and j.outcome <> 'mine'
        union all
        select j.key, null, true, j.my_stamp, j.their_stamp, j.my_node, j.their_node, j.my_end, false, false
        from pg_temp.joined j where p_retry and j.outcome = 'mine'
    ), unborn as (
        -- these inserts are in a conflict now: they are not what the rows are any more
        update syncagent.cut_keys c
        set keys = array(select k.key from unnest(c.keys) as k (key)
                         where k.key not in (select j.key from pg_temp.joined j where j.born_node is not null and j.outcome = 'theirs') order by k.key)
        from syncagent._told(p_origin) t
        where c.node = t.node and c.cut > t.cut and c.relation = {id} and c.implicit
          and exists (select from unnest(c.keys) as k (key)
                      where k.key in (select j.key from pg_temp.joined j where j.born_node is not null and j.outcome = 'theirs'))
    )
    insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
        winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image, columns)
    select distinct on (1) syncagent._conflict_id({title}, i.key, i.our_stamp, i.other_stamp), {schema_literal}, {table_literal}, i.key, i.key_text,
           case when p_retry and not i.within then 'parked' when i.our_stamp = i.other_stamp then 'insert/insert'
                when i.ours then k.ours || '/' || k.theirs else k.theirs || '/' || k.ours end, {strategy},
           case when i.ours then i.our_stamp else i.other_stamp end, case when i.ours then i.other_stamp else i.our_stamp end,
           case when i.ours then i.our_node else i.other_node end, case when i.ours then i.other_node else i.our_node end,
           case when i.ours then i.here else i.there end, case when i.ours then i.there else i.here end,
           array_agg(i.name::name) filter (where i.within) over (partition by i.key, i.our_stamp, i.other_stamp order by i.name rows between unbounded preceding and unbounded following)
    from (
        select d.*, {s_key_text} as key_text, case when not d.my_end then to_jsonb(t.*) end as here,
               case when not d.their_end then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as there
        from found d
        join {stage} s on s._key = d.key
        left join {table} t on {t_eq_s}
        offset 0   -- an image is made once
    ) as i
    cross join lateral (select case when i.my_end then 'delete' else 'update' end, case when i.their_end then 'delete' else 'update' end) as k (ours, theirs)
    where not (i.within and i.here -> i.name = i.there -> i.name)   -- nothing is lost
      and not (not i.within and i.our_stamp <> i.other_stamp and not i.my_end and not i.their_end and i.here = i.there)
    order by 1, i.name
    on conflict (id) do nothing;
    get diagnostics v_conflicts = row_count;

    insert into pg_temp.verdict (key, loses, conflict, kind, incoming, mine, my_node, absent, trace, unborn)
    select j.key, true, j.outcome = 'clash' or j.plain and not j.same, case when p_retry then 'parked' else 'update/update' end, j.their_stamp, j.my_stamp, j.my_node, j.my_end, false, false
    from pg_temp.joined j where j.outcome in ('mine', 'clash');

    -- The fold must find what was decided about writes that it has not seen. Those of a life that is over would count as of the new
    -- one, where their clock is ahead of its.
    v_over := array(select j.key from pg_temp.joined j where j.outcome = 'theirs' and j.fresh and not j.same);
    if v_over <> '{}' then
        perform syncagent._unlog({id}, v_over);
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select j.key, j.my_stamp, j.my_node, j.my_cut, j.my_end {trace_columns}
    from pg_temp.joined j join {stage} s on s._key = j.key
    where j.outcome = 'mine' and j.fresh and not j.entered and j.my_node is not null
    on conflict do nothing;

    update pg_temp.stage_{id} x
    set _stamp = m.their_stamp, _deleted = false, _node = m.their_node, _at = m.their_cut, _registers = m.theirs
    from (select s.ctid as tid, j.* from pg_temp.stage_{id} s join pg_temp.joined j on j.key = {stage_key}
          where j.outcome = 'theirs' and j.plain and j.fresh) as m   -- as above
    where x.ctid = m.tid;
    update pg_temp.stage_{id} x
    set _stamp = (m.newest ->> 0)::uuid, _deleted = false, _node = (m.newest ->> 1)::integer, _at = (m.newest ->> 2)::bigint, _registers = m.registers {combined_columns}
    from (
        select s.ctid as tid, case when p_retry then null else j.newer end as newer, j.above, j.waits, r.*, n.newest, {t_columns_numbered} {q_columns_numbered}
        from pg_temp.stage_{id} s
        join pg_temp.joined j on j.key = {stage_key}
        left join {table} t on {t_eq_s}
        left join syncagent.parked_row p on p.relation = {id} and p.key = j.key
        cross join lateral (select (p.image::syncagent.row_{id}).*) as q
        cross join lateral {join_registers} as r
        cross join lateral (
            select e.value from (
                select e.value from {entries_of}(r.registers) as e
                union all select jsonb_build_array(j.my_stamp, j.my_node, j.my_cut) where j.my_node is not null
                union all select jsonb_build_array(j.their_stamp, j.their_node, j.their_cut)) as e
            order by (e.value ->> 0) collate "C" desc, e.value ->> 2 is null limit 1) as n (newest)
        where j.outcome = 'both'
    ) as m
    where x.ctid = m.tid;
    return v_conflicts;
end
$$;
$sql$ $template$;
