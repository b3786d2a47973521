-- Capture: what a write costs the application, and how a table is attached.
--
-- Everything per table is generated here from templates. `{name}` in a template is replaced, in one pass, by
-- values that are quoted already; the hash of all the text is kept, so that drift is visible.

create function syncagent._render(p_template text, p_values jsonb) returns text
    language sql immutable strict
    set search_path = pg_catalog, pg_temp
    as $$
    select string_agg(m[1] || case when p_values ? m[3] then p_values ->> m[3] else coalesce(m[2], '') end, '' order by n)
    from regexp_matches(p_template, '([^{]*)(\{([a-z_]*)\}?)?', 'g') with ordinality as r (m, n)
$$;
comment on function syncagent._render is 'fill {names} of a template; values are never looked at again';

create function syncagent._refuse_truncate() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not exists (select from syncagent.replicated r where r.relation in (tg_relid, pg_partition_root(tg_relid))) then
        return null;   -- a partition that was detached
    end if;
    raise exception 'table %.% is replicated: TRUNCATE would not reach the other sites',
            quote_ident(tg_table_schema), quote_ident(tg_table_name)
        using errcode = 'SA001',
              hint = format('select syncagent.truncate(%L)', format('%I.%I', tg_table_schema, tg_table_name));
end
$$;

create function syncagent.truncate(p_table regclass) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_rows bigint;
begin
    execute format('delete from %s', p_table);
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;
comment on function syncagent.truncate(regclass) is 'delete every row of a replicated table, here and at all sites; returns their number';

-- Templates ------------------------------------------------------------------------------------------------

create function syncagent._capture_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
declare
    v_keys  uuid[] := array(select {key} from changed t limit 10000);
    v_clock bigint;
begin
    {guard}
    if v_keys = '{}' then
        return null;
    end if;
    v_clock := nextval('syncagent.hlc');   -- _tick, without the call
    if v_clock < (date_part('epoch', clock_timestamp()) * 4096000)::bigint then
        v_clock := syncagent._tick();
    end if;
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    values (pg_current_xact_id(), {id}, tg_op::"char", v_clock, v_keys {odd_array});
    if cardinality(v_keys) = 10000 then   -- there may be more
        insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
        select pg_current_xact_id(), {id}, tg_op::"char", syncagent._tick(), array_agg(k.key) {odd_agg}
        from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from changed t) as k
        where k.chunk > 0
        group by k.chunk;
    end if;
    return null;
end
$$;
$sql$ $template$;

create function syncagent._key_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_key() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
declare
    t {table} := old;
begin
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    values (pg_current_xact_id(), {id}, 'D', syncagent._tick(), array[{key}] {odd_old});
    return null;
end
$$;
$sql$ $template$;

-- A partitioned table has no row triggers of ours: a row that an update moves to another partition fires those of an
-- insert and a delete, and a partition may have its columns in another order than the root.
create function syncagent._moved_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_key() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
begin
    {guard}
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    select pg_current_xact_id(), {id}, 'D', syncagent._tick(), array_agg(k.key) {odd_agg}
    from (
        select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk
        from (select {key_columns} from before t except select {key_columns} from changed t) as t
    ) as k
    group by k.chunk;
    return null;
end
$$;
$sql$ $template$;

-- The same names on every kind of table; `{node}` is the table, or one of the tables of a partitioned one.
create function syncagent._trigger_template(p_partitioned boolean, p_columns boolean) returns text
    language sql immutable
    as $template$ select $sql$
create or replace trigger syncagent_insert after insert on {node}
    referencing new table as changed for each statement execute function syncagent.capture_{id}();
$sql$ || case when p_columns then $sql$
create or replace trigger syncagent_update after update on {node}
    referencing old table as before new table as changed for each statement execute function syncagent.capture_{id}_columns();
$sql$ else $sql$
create or replace trigger syncagent_update after update on {node}
    referencing new table as changed for each statement execute function syncagent.capture_{id}();
$sql$ end || $sql$
create or replace trigger syncagent_delete after delete on {node}
    referencing old table as changed for each statement execute function syncagent.capture_{id}();
create or replace trigger syncagent_truncate before truncate on {node}
    for each statement execute function syncagent._refuse_truncate();
$sql$ || case when p_partitioned then $sql$
create or replace trigger syncagent_key after update on {node}
    referencing old table as before new table as changed for each statement execute function syncagent.capture_{id}_key();
$sql$ else $sql$
create or replace trigger syncagent_key after update {of_key} on {node}
    for each row when ({key_changed}) execute function syncagent.capture_{id}_key();
$sql$ end $template$;

create function syncagent._version_template() returns text
    language sql immutable
    as $template$ select $sql$
{key_type}
create type syncagent.row_{id} as ({stage_columns});
create table syncagent.version_{id} (
    key     uuid primary key,
    stamp   uuid not null,
    node    integer not null,
    cut     bigint,
    deleted boolean not null {version_key_types}
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
$sql$ $template$;

create function syncagent._nodes(p_table regclass) returns setof regclass
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select p_table union select t.relid from pg_partition_tree(p_table) as t $$;
comment on function syncagent._nodes is 'a table, and if it is partitioned all tables below it';

create function syncagent._key(p_table regclass, out names name[], out uuid boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select array_agg(a.attname order by u.o), count(*) = 1 and bool_and(a.atttypid = 'uuid'::regtype)
    from pg_index i cross join lateral unnest(i.indkey::smallint[]) with ordinality as u (n, o)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.n
    where i.indrelid = p_table and i.indisprimary and u.o <= i.indnkeyatts
$$;
comment on function syncagent._key is 'the columns of the primary key in its order, null if there is none; and whether it is one uuid';

create function syncagent._tokens(p_id integer) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_name    text;
    v_types   text[];  -- of the columns, as in the table
    v_bases   text[];  -- the same, domains replaced by what they are made of
    v_fixed   name[];  -- columns that UPDATE may not set
    v_spelled name[];  -- columns of the key whose equal values can look different
    v_unique  name[];  -- columns of unique and exclusion constraints beside the key
    v_n       integer;
    v_parts   boolean;
    v_by_column boolean;
begin
    select * into strict v_table from syncagent.replicated where id = p_id;
    v_by_column := v_table.strategy <> 'lww';
    select format('%I.%I', n.nspname, c.relname), c.relkind = 'p' into strict v_name, v_parts
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = v_table.relation;
    v_n := cardinality(v_table.columns);
    select array_agg(format_type(a.atttypid, -1) order by u.n),
           array_agg(format_type(syncagent._base_type(a.atttypid), -1) order by u.n),
           array_agg(a.attname) filter (where a.attidentity = 'a'),
           array_agg(a.attname) filter (where a.attname = any (v_table.key_columns)
               and syncagent._spelling(format_type(syncagent._base_type(a.atttypid), -1), '') <> '')
    into strict v_types, v_bases, v_fixed, v_spelled
    from unnest(v_table.columns) with ordinality as u (c, n)
    join pg_attribute a on a.attrelid = v_table.relation and a.attname = u.c;
    select array_agg(distinct a.attname) into v_unique
    from pg_index i
    join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refobjid = i.indrelid and d.refobjsubid > 0
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = d.refobjsubid
    where i.indrelid in (select syncagent._nodes(v_table.relation)) and (i.indisunique or i.indisexclusion) and not i.indisprimary;
    select array_agg(distinct a.attname) || v_unique into v_unique   -- constraints own their index: the columns hang on the constraint
    from pg_constraint c cross join lateral unnest(c.conkey) as k (n)
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.n
    where c.conrelid in (select syncagent._nodes(v_table.relation)) and c.contype in ('u', 'x');
    if exists (select from pg_attribute a where a.attrelid = v_table.relation and a.attname = any (v_unique) and a.attgenerated <> '') then
        v_unique := v_table.columns;   -- it may change with any of them
    end if;

    return (
        select jsonb_build_object(
            'id', p_id, 'table', v_name,
            'lift', coalesce((
                select string_agg(format('perform syncagent._lift_number(%s, %L, (select max(s.c%s) from pg_temp.stage_%1$s s where s._deleted is not true));',
                                         p_id, x.column_name, array_position(v_table.columns, x.column_name)), ' ' order by x.column_name)
                from syncagent.stride x where x.relation = p_id), ''),
            'check_deferrable', case when syncagent._deferrable(v_table.relation)
                then format('perform syncagent._check_deferrable(%s);', p_id) else '' end,
            'guard', case when v_parts then format('if pg_partition_root(tg_relid) is distinct from %L::regclass then return null; end if;', v_name) else '' end || syncagent._merge_guard(v_table),
            'title', quote_literal(v_name), 'stage_key', syncagent._stage_key(v_table),
            'schema_literal', quote_literal(v_table.schema_name) || '::name', 'table_literal', quote_literal(v_table.table_name) || '::name',
            'columns', string_agg(format('%I', c), ', ' order by n),
            'stage_columns', string_agg(format('c%s %s', n, v_bases[n]), ', ' order by n),   -- of a deleted row they are null, which a domain may refuse
            'stage_names', string_agg(format('c%s', n), ', ' order by n),
            'stage_as_table', string_agg(format('s.c%s as %I', n, c), ', ' order by n),
            't_columns', string_agg(format('t.%I', c), ', ' order by n),
            's_columns', string_agg(format('s.c%s', n), ', ' order by n),
            'v_columns', string_agg(case when k is null then format('t.%I', c) when v_table.derived then format('v.k%s', k) else 'v.key' end, ', ' order by n),
            't_absent', format('t.%I is null', v_table.key_columns[1]),
            't_eq_s', string_agg(format('t.%I = s.c%s', c, n), ' and ' order by k) filter (where k is not null),
            'key_columns', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null),
            'key_names', string_agg(quote_ident(c), ', ' order by k) filter (where k is not null),
            'key_changed', string_agg(format('old.%1$I is distinct from new.%1$I', c), ' or ' order by k) filter (where k is not null),
            'may_move', coalesce(bool_or(c = any (v_unique || v_fixed || v_spelled)), false)::text,
            -- byte by byte: not every type has an equality, and some equalities see no difference (boxes of one area)
            'moved', coalesce('row('
                || string_agg(format(case when v_types[n] = v_bases[n] then 't.%I' else 't.%I::%s' end, c, v_bases[n]), ', ' order by n)
                    filter (where c = any (v_unique || v_fixed || v_spelled)) || ')::record *<> row('
                || string_agg(format('s.c%s', n), ', ' order by n) filter (where c = any (v_unique || v_fixed || v_spelled)) || ')::record', 'false'),
            'update', coalesce('update ' || v_name || ' t set '
                || string_agg(format('%I = s.c%s', c, n), ', ' order by n) filter (where k is null and c <> all (coalesce(v_fixed, '{}')))
                || format(' from (select s.*, %s as _key from pg_temp.stage_%s s) s where ', syncagent._stage_key(v_table), p_id)
                || string_agg(format('t.%I = s.c%s', c, n), ' and ' order by k) filter (where k is not null)
                || ' and s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);'
                || ' get diagnostics v_rows = row_count;', ''),
            'stage', format('(select s.*, %s as _key from pg_temp.stage_%s s)', syncagent._stage_key(v_table), p_id)
        ) || case when v_by_column then jsonb_build_object(
            'entries', format('(select e.*, syncagent._registers_of(e.op, e.columns, syncagent._stamp(e.tx_hlc, p_tail), p_node, p_cut) as registers'
                              ' from pg_temp.window_entry e where e.relation = %s offset 0)', p_id),
            'e_registers', ', e.registers', 'folded_registers', 'syncagent._joined(e.registers)', 'unfolded_registers', 'syncagent._joined(x.registers)', 'written', '_written',
            'first', 'not f.registers ? '''' and f.registers <> ''{}''', 'first_registers', 'f.registers',
            'log_registers', 'syncagent._registers_of(l.op, l.columns, syncagent._stamp(l.tx_hlc, v_site.tail), v_site.node, null)',
            'newer', 'array(select e.key from jsonb_each(m.theirs) as e where e.key <> '''' and coalesce((e.value ->> 0)::uuid > (m.mine -> e.key ->> 0)::uuid, true))',
            'above', 'array(select e.key from jsonb_each(m.mine) as e where e.key <> '''' and coalesce((e.value ->> 0)::uuid > (m.waiting_registers -> e.key ->> 0)::uuid, true))',
            'sides', '_sides', 'at_odds', '', 'strategy', '''lww-column''',
            'join_registers', '(select syncagent._joined_registers(j.mine, j.theirs) as registers)', 'entries_of', 'jsonb_each', 'shipped_from', '', 'seen', 'null::jsonb', 'note_part', '',
            'more_typed', ', _node integer, _at bigint, _registers jsonb', 'more_names', ', _node, _at, _registers', 'more_null', ', null::integer, null::bigint, null::jsonb',
            'more_of_version', ', v.node, v.cut, v.registers', 'more_of_parked', ', p.node, p.cut, p.registers', 'more_of_staged', ', s._node, s._cut, s._registers',
            'version_node', 'coalesce(s._node, p_origin)', 'version_cut', 'case when s._node is null then s._cut else s._at end',
            'set_registers', ', registers = coalesce(s._registers, ''{}'')', 'excluded_registers', ', registers = excluded.registers',
            'parked_registers', 's._registers', 'v_registers', ', v.registers', 'v_registers_named', ', v.registers as _registers', 'l_registers', ', l.registers as _registers', 'null_registers', ', ''{}''::jsonb', 'own_deltas', 'null::jsonb',
            -- by write, not by row: of one that was deleted its end, else each life and the columns that were written at once
            'own_versions', format('(select v.key, v.deleted %2$s, r.stamp, r.node, r.cut, r.columns from syncagent.version_%1$s v cross join lateral ('
                'select x.stamp, x.node, x.cut, array_agg(x.name::name order by x.name) as columns from syncagent._sides(v.key, v.registers, v.deleted, v.stamp, v.node, v.cut) as x'
                ' group by x.stamp, x.node, x.cut, x.name = '''') as r)', p_id,
                case when v_table.derived then string_agg(format(', v.k%s', k), '' order by k) filter (where k is not null) else '' end),
            'all_stable', ' and not jsonb_path_exists(v.registers, (select syncagent._unstable(p_stable)))', 'forget_made', '',
            'changed_columns', coalesce(string_agg(format('case when row(o.%1$I)::record *<> row(t.%1$I)::record then %1$L end', c), ', ' order by n) filter (where k is null), ''),
            'o_eq_t', string_agg(format('o.%1$I = t.%1$I', c), ' and ' order by k) filter (where k is not null),
            'o_here', format('o.%I is not null', v_table.key_columns[1]),
            'combined_columns', coalesce(string_agg(format(
                ', c%1$s = case when m.newer is null and %2$L <> all (m.above) or %2$L = any (m.newer) then x.c%1$s'
                ' when m.waits and %2$L <> all (m.above) then m.q%1$s else m.t%1$s end', n, c), '' order by n) filter (where k is null), ''),
            't_columns_numbered', string_agg(format('t.%I as t%s', c, n), ', ' order by n),
            'q_columns_numbered', string_agg(format(', q.c%1$s as q%1$s', n), '' order by n),
            'trace_columns', case when v_table.derived then ', ' || string_agg(format('s.c%s', n), ', ' order by k) filter (where k is not null) else '' end || ', j.mine')
        else jsonb_build_object(
            'entries', 'pg_temp.window_entry', 'e_registers', '', 'folded_registers', 'null::jsonb',
            'more_typed', '', 'more_names', '', 'more_null', '', 'more_of_version', '', 'more_of_parked', '', 'more_of_staged', '',
            'version_node', 'p_origin', 'version_cut', 's._cut', 'set_registers', '', 'excluded_registers', '', 'parked_registers', 'null::jsonb',
            'v_registers', '', 'v_registers_named', '', 'own_versions', format('(select v.*, null::name[] as columns from syncagent.version_%s v)', p_id), 'l_registers', '', 'null_registers', '', 'all_stable', '', 'forget_made', '', 'own_deltas', 'null::jsonb')
        end || case when not v_table.derived then jsonb_build_object(
            'key', format('t.%I', v_table.key_columns[1]), 'pinned', '',
            't_eq_v', format('t.%I = v.key', v_table.key_columns[1]), 't_eq_f', format('t.%I = f.key', v_table.key_columns[1]),
            't_eq_k', format('t.%I = k.key', v_table.key_columns[1]),
            't_key_text', format('t.%I::text', v_table.key_columns[1]), 's_key_text', 's._key::text', 'v_key_text', 'v.key::text',
            'odd_column', '', 'odd_array', '', 'odd_agg', '', 'odd_value', '', 'odd_old', '', 'odd_of_version', '', 'odd_or_null', 'null::text',
            'max_odd', 'null', 'unnest_entry', 'unnest(e.keys) as k (key)', 'decode_odd', '', 'key_type', '',
            'version_key_types', case when v_by_column then ', registers jsonb not null default ''{}''' else '' end,
            'version_key_columns', case when v_by_column then ', registers' else '' end, 'folded_key_columns', case when v_by_column then ', n.registers' else '' end,
            's_key_columns', case when v_by_column then ', coalesce(s._registers, ''{}'')' else '' end,
            'may_be_implicit', 'syncagent._timed(f.key)', 'key_of_text', 'f.key', 'named', '(select p_key::uuid as key) as f')
        else jsonb_build_object(
            'key', format('syncagent._name_uuid(row(%s)::text)', string_agg(syncagent._spelling(v_bases[n], format('t.%I', c)), ', ' order by k) filter (where k is not null)),
            'pinned', E'\n    set datestyle = ''ISO, MDY'' set timezone = ''UTC'' set intervalstyle = ''postgres'' set extra_float_digits = 1 set bytea_output = ''hex''',
            't_eq_v', string_agg(format('t.%I = v.k%s', c, k), ' and ' order by k) filter (where k is not null),
            't_eq_f', string_agg(format('t.%I = o.k%s', c, k), ' and ' order by k) filter (where k is not null),
            't_eq_k', 'false',
            't_key_text', format(case count(k) when 1 then '%s::text' else 'row(%s)::text' end, string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            's_key_text', format(case count(k) when 1 then '%s::text' else 'row(%s)::text' end, string_agg(format('s.c%s', n), ', ' order by k) filter (where k is not null)),
            'v_key_text', format(case count(k) when 1 then '%s::text' else 'row(%s)::text' end, string_agg(format('v.k%s', k), ', ' order by k) filter (where k is not null)),
            'odd_column', ', odd', 'max_odd', 'max(e.odd)', 'unnest_entry', 'unnest(e.keys, e.odd) as k (key, odd)',
            'odd_array', format(', array(select row(%s)::text from changed t limit 10000)', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'odd_agg', ', array_agg(k.odd)',
            'odd_value', format(', row(%s)::text as odd', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'odd_old', format(', array[row(%s)::text]', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'odd_of_version', format(', array_agg(row(%s)::text)', string_agg(format('v.k%s', k), ', ' order by k) filter (where k is not null)),
            'odd_or_null', format('row(%s)::text', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'decode_odd', format('cross join lateral (select (f.odd::syncagent.key_%s).*) as o', p_id),
            'key_type', format('create type syncagent.key_%s as (%s);', p_id, string_agg(format('k%s %s', k, v_bases[n]), ', ' order by k) filter (where k is not null)),
            'version_key_types', ', ' || string_agg(format('k%s %s', k, v_bases[n]), ', ' order by k) filter (where k is not null)
                || case when v_by_column then ', registers jsonb not null default ''{}''' else '' end,
            'version_key_columns', ', ' || string_agg(format('k%s', k), ', ' order by k) filter (where k is not null) || case when v_by_column then ', registers' else '' end,
            'folded_key_columns', ', ' || string_agg(format('o.k%s', k), ', ' order by k) filter (where k is not null) || case when v_by_column then ', n.registers' else '' end,
            's_key_columns', ', ' || string_agg(format('s.c%s', n), ', ' order by k) filter (where k is not null) || case when v_by_column then ', coalesce(s._registers, ''{}'')' else '' end,
            'may_be_implicit', 'false',
            'key_of_text', format('syncagent._name_uuid(row(%s)::text)',
                string_agg(syncagent._spelling(v_bases[n], format('o.k%s', k)), ', ' order by k) filter (where k is not null)),
            'named', case count(k)
                when 1 then format('(select p_key::%s as k1) as o', max(v_bases[n]) filter (where k is not null))
                else format('(select (p_key::syncagent.key_%s).*) as o', p_id) end)
        end || case when v_table.strategy = 'merge' then syncagent._merge_tokens(v_table) - case when v_table.whole is null then '{}' else '{shipped_from,v_columns}'::text[] end else '{}' end
        || case when v_table.whole is null then '{}' else syncagent._whole_tokens(v_table) end
        from (select u.c, u.n::integer, array_position(v_table.key_columns, u.c) as k from unnest(v_table.columns) with ordinality as u (c, n)) as u
    );
end
$$;
comment on function syncagent._tokens is 'what the templates of one attached table are filled with: quoted names, lists and join conditions';

create function syncagent._base_type(p_type oid) returns oid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with recursive up (oid, base) as (
        select oid, typbasetype from pg_type where oid = p_type
        union all
        select t.oid, t.typbasetype from up join pg_type t on t.oid = up.base where up.base <> 0
    ) select oid from up where base = 0
$$;
comment on function syncagent._base_type is 'the type below a domain';

create function syncagent._made_of(p_type oid) returns setof oid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with recursive parts (oid) as (
        select p_type
        union
        select x.oid from parts p join pg_type t on t.oid = p.oid
        cross join lateral (
            select t.typbasetype where t.typtype = 'd'
            union all select t.typelem where t.typelem <> 0
            union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
            union all select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped
        ) as x (oid)
    ) select oid from parts
$$;
comment on function syncagent._made_of is 'a type and all types inside it';

create function syncagent._spelling(p_type text, p_value text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case p_type
        when 'numeric' then format('trim_scale(%s)', p_value)
        when 'real' then format('(%s + 0::real)', p_value)
        when 'double precision' then format('(%s + 0::float8)', p_value)
        when 'bpchar' then format('%s::text', p_value)
        when 'interval' then format('justify_interval(%s)', p_value)
        else p_value end
$$;
comment on function syncagent._spelling is 'the expression that writes equal values of a key column alike: 1.0 and 1.00, 0 and -0, 1 day and 24 hours';

create function syncagent._stage_key(p_table syncagent.replicated) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when p_table.derived then format('syncagent._name_uuid(row(%s)::text)', c.spelled) else c.list end
    from (
        select string_agg(format('s.c%s', u.n), ', ' order by u.k) as list,
               string_agg(syncagent._spelling(format_type(syncagent._base_type(a.atttypid), -1), format('s.c%s', u.n)), ', ' order by u.k) as spelled
        from (select k.name, array_position(p_table.columns, k.name) as n, k.n as k
              from unnest(p_table.key_columns) with ordinality as k (name, n)) as u
        join pg_attribute a on a.attrelid = p_table.relation and a.attname = u.name
    ) as c
$$;
comment on function syncagent._stage_key is 'the row key of a staged row';

-- Attach and detach ----------------------------------------------------------------------------------------

create function syncagent._key_mend(p_table regclass) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_name   text;
    v_schema text;
    v_kind   "char";
    v_parted text;
    v_column text := 'id';
    v_index  text;
    r        record;
begin
    select format('%I.%I', n.nspname, c.relname), n.nspname, c.relkind, quote_ident('key_of_' || c.relname)
    into strict v_name, v_schema, v_kind, v_index
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table;
    if exists (select from pg_attribute a where a.attrelid = p_table and a.attname = 'id' and not a.attisdropped) then
        v_column := 'row_id';
    end if;
    if v_kind = 'p' then   -- no index of a partitioned table can be made online
        select coalesce(string_agg(quote_ident(a.attname) || ', ', '' order by u.o), '') into v_parted
        from pg_partitioned_table p cross join lateral unnest(p.partattrs::smallint[]) with ordinality as u (n, o)
        join pg_attribute a on a.attrelid = p.partrelid and a.attnum = u.n where p.partrelid = p_table;
        return format(E'alter table %1$s add column %2$I uuid not null default gen_random_uuid();\nalter table %1$s add primary key (%3$s%2$I);',
                      v_name, v_column, v_parted);
    end if;
    -- What is a key already, if only in name; one that a constraint owns needs an index beside it.
    select x.columns, x.name, x.owned into r
    from (
        select string_agg(quote_ident(a.attname), ', ' order by u.o) as columns, bool_and(a.attnotnull) as given,
               count(*) = 1 and bool_and(a.atttypid = 'uuid'::regtype) as uuid, quote_ident(min(c.relname::text)) as name,
               exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('u', 'p', 'x')) as owned
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam and m.amname = 'btree'
        cross join lateral unnest(i.indkey::smallint[]) with ordinality as u (n, o)
        left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.n and u.n > 0
        where i.indrelid = p_table and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null
          and i.indexprs is null and i.indnkeyatts = i.indnatts
        group by i.indexrelid
    ) as x where x.given order by x.uuid desc, x.owned, x.name limit 1;
    if found and not r.owned then
        return format('alter table %s add primary key using index %s;', v_name, r.name);
    elsif found then
        return format(E'create unique index concurrently %2$s on %1$s (%3$s);\nalter table %1$s add primary key using index %2$s;',
                      v_name, v_index, r.columns);
    end if;
    return format(concat_ws(E'\n', 'alter table %1$s add column %2$I uuid;',
        'alter table %1$s alter column %2$I set default gen_random_uuid();',
        'update %1$s set %2$I = default where %2$I is null; -- in portions, if the table is large',
        'create unique index concurrently %3$s on %1$s (%2$I);',
        'alter table %1$s add constraint key_is_given check (%2$I is not null) not valid;',
        'alter table %1$s validate constraint key_is_given;',
        'alter table %1$s alter column %2$I set not null;',
        'alter table %1$s drop constraint key_is_given;',
        'alter table %1$s add primary key using index %3$s;'), v_name, v_column, v_index);
end
$$;
comment on function syncagent._key_mend is 'the SQL that gives a table a primary key, online where that can be';

create function syncagent._obstacles(p_table regclass, p_derive boolean)
    returns table (problem text, hint text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with c as (
        select c.*, n.nspname, format('%I.%I', n.nspname, c.relname) as name
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table
    ), k as (
        select coalesce(cardinality(k.names), 0) as columns, k.uuid from syncagent._key(p_table) as k
    )
    select case c.relkind when 'v' then 'it is a view' when 'm' then 'it is a materialized view' when 'f' then 'it is a foreign table'
                          else 'it is not a table' end,
           case c.relkind when 'v' then 'attach the tables below it' when 'm' then 'attach the tables below it'
                          else 'only ordinary tables can be attached' end
    from c where c.relkind not in ('r', 'p')
    union all
    select format('it is a partition of %s', pg_partition_root(p_table)), format('syncagent attach %s', pg_partition_root(p_table))
    from c where c.relispartition
    union all
    select format('its partition %s is a foreign table', x.oid::regclass), format('alter table %s detach partition %s', i.inhparent::regclass, x.oid::regclass)
    from c cross join lateral syncagent._nodes(p_table) as n (node) join pg_class x on x.oid = n.node join pg_inherits i on i.inhrelid = x.oid
    where c.relkind = 'p' and x.relkind = 'f'
    union all
    select format('its partition %s is %s', x.oid::regclass, case x.relpersistence when 't' then 'temporary' else 'unlogged: a crash empties it' end),
           case x.relpersistence when 't' then format('drop table %s', x.oid::regclass) else format('alter table %s set logged', x.oid::regclass) end
    from c cross join lateral syncagent._nodes(p_table) as n (node) join pg_class x on x.oid = n.node
    where c.relkind = 'p' and x.relkind = 'r' and x.relpersistence <> 'p'
    union all
    select 'it is a system table', 'only tables of the application can be attached'
    from c where c.nspname in ('pg_catalog', 'information_schema', 'syncagent')
    union all
    select case c.relpersistence when 't' then 'it is temporary' else 'it is unlogged: a crash empties it' end,
           case c.relpersistence when 't' then 'only permanent tables can be attached' else format('alter table %s set logged', c.name) end
    from c where c.relkind = 'r' and c.relpersistence <> 'p'
    union all
    select 'it inherits, or others inherit from it', 'plain inheritance cannot be replicated' from c
    where c.relkind = 'r' and not c.relispartition and exists (select from pg_inherits i where p_table in (i.inhrelid, i.inhparent))
    union all
    select 'it has no primary key', syncagent._key_mend(p_table)
    from c cross join k where c.relkind in ('r', 'p') and k.columns = 0
    union all
    select 'its primary key is not one uuid column', format('syncagent attach --derive-key %s', c.name)
    from c cross join k where c.relkind in ('r', 'p') and k.columns > 0 and not (k.columns = 1 and k.uuid) and not p_derive
    union all
    select format('key column %I is of type %s, whose equal values can be written in different ways', a.attname, format_type(a.atttypid, a.atttypmod)),
           format('alter table %s add column id uuid not null default gen_random_uuid(), and make it the primary key', c.name)
    from c cross join lateral syncagent._key(p_table) as k
    join pg_attribute a on a.attrelid = c.oid and a.attname = any (k.names)
    join pg_type t on t.oid = syncagent._base_type(a.atttypid)
    where c.relkind in ('r', 'p') and p_derive
      and not (t.typtype = 'e' or t.oid = any (array['int2', 'int4', 'int8', 'numeric', 'float4', 'float8', 'text', 'varchar', 'bpchar',
          'name', '"char"', 'uuid', 'bool', 'date', 'timestamp', 'timestamptz', 'time', 'timetz', 'interval', 'bytea', 'bit', 'varbit',
          'inet', 'cidr', 'macaddr', 'macaddr8']::regtype[]) and not exists (
              select from pg_collation l where l.oid = a.attcollation and not l.collisdeterministic))
    union all
    select format('key column %I is generated: what is not stored as it came cannot name a row', a.attname),
           format('alter table %s alter column %I drop expression', c.name, a.attname)
    from c cross join lateral syncagent._key(p_table) as k
    join pg_attribute a on a.attrelid = c.oid and a.attname = any (k.names)
    where c.relkind in ('r', 'p') and a.attgenerated <> ''
    union all
    select format('column %I is of type %s, which means something only inside this server', a.attname, format_type(a.atttypid, a.atttypmod)),
           format('alter table %s alter column %I type text', c.name, a.attname)
           || case when syncagent._base_type(a.atttypid) = 'oid'::regtype
                   then format(E'\nor, if it names large objects, which do not travel: alter table %s alter column %I type bytea using lo_get(%2$I)', c.name, a.attname)
                   else '' end
    from c join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    where c.relkind in ('r', 'p') and exists (
        select from syncagent._made_of(a.atttypid) as m (part) join pg_type t on t.oid = m.part
        where t.oid = any (array['oid', 'xid', 'cid', 'tid', 'xid8', 'pg_snapshot', 'txid_snapshot', 'pg_lsn']::regtype[])
           or t.typnamespace = 'pg_catalog'::regnamespace and t.typname like 'reg%')
    union all
    select format('column %I is of type %s, which has no binary form to travel in', a.attname, format_type(a.atttypid, a.atttypmod)),
           format('alter table %s alter column %I type text', c.name, a.attname)
    from c join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    where c.relkind in ('r', 'p') and exists (
        select from syncagent._made_of(a.atttypid) as m (part) join pg_type t on t.oid = m.part where 0 in (t.typsend::oid, t.typreceive::oid))
    union all
    select 'the name of the table, of its schema or of a column holds $syncagent$', 'rename it'
    from c where position('$syncagent$' in c.name) > 0
       or exists (select from pg_attribute a where a.attrelid = p_table and position('$syncagent$' in a.attname) > 0)
    union all
    select 'row-level security hides rows from the agent''s role', 'alter role the agent connects as: bypassrls'
    from c where c.relkind in ('r', 'p') and c.relrowsecurity and row_security_active(p_table)
    union all
    select 'it is attached already', '`syncagent tables` shows how, `syncagent strategy` changes how its rows are merged' from syncagent.replicated r where r.relation = p_table
    union all
    select format('%s was attached under this name, before it was renamed', r.relation::regclass),
           format('syncagent detach %s, or give it its name back', r.relation::regclass)
    from c join syncagent.replicated r on r.schema_name = c.nspname and r.table_name = c.relname
    where r.relation <> p_table and exists (select from pg_class x where x.oid = r.relation)
$$;
comment on function syncagent._obstacles is 'why a table cannot be attached, and what mends it; no row if it can';

create function syncagent._text(p_id integer, out version text, out functions text, out hash text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_id);
    v_by_column boolean := (select r.strategy <> 'lww' from syncagent.replicated r where r.id = p_id);
begin
    version := syncagent._render(syncagent._version_template(), v_tokens);
    functions := syncagent._render(replace(   -- no name may end a function's body: _obstacles keeps this quote from them
        syncagent._capture_template() || case (select r.strategy from syncagent.replicated r where r.id = p_id) when 'lww' then '' when 'merge' then syncagent._merge_capture_template() else syncagent._column_capture_template() end
        || case when exists (select from syncagent.replicated r join pg_class c on c.oid = r.relation where r.id = p_id and c.relkind = 'p')
                then syncagent._moved_template() else syncagent._key_template() end
        || syncagent._fold_template(v_by_column) || syncagent._ship_few_template() || syncagent._settle_template()
        || syncagent._compact_template() || syncagent._apply_template() || case when v_tokens ? 'whole_from' then syncagent._whole_template() else '' end
        || case when v_by_column then syncagent._judge_columns_template() else syncagent._judge_template() end || syncagent._write_template() || syncagent._bereave_template() || syncagent._inspect_template(),
        repeat('$', 2), '$syncagent$'), v_tokens);
    hash := md5(version || functions);
end
$$;
comment on function syncagent._text is 'all SQL of one attached table, as it is to be now';

create function syncagent._attach(p_table regclass, p_derive boolean, p_ship_existing boolean, p_stride integer default null, p_bucket text default 'hour', p_policies jsonb default '{}', p_strategy text default 'lww', p_merges jsonb default '{}') returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id      integer;
    v_problem record;
    v_tokens  jsonb;
    r         record;
begin
    select string_agg(problem, '; ') as problems, string_agg(o.hint, '; ') as hints into v_problem
    from (select * from syncagent._obstacles(p_table, p_derive) union all select * from syncagent._merge_obstacles(p_table, p_strategy, p_merges)) as o;
    if v_problem.problems is not null then
        raise exception 'table % cannot be attached: %', p_table, v_problem.problems
            using errcode = 'SA002', hint = coalesce(v_problem.hints, '');
    end if;
    for r in
        select x.relation from syncagent.replicated x
        join pg_class c on c.oid = p_table and c.relname = x.table_name
        join pg_namespace n on n.oid = c.relnamespace and n.nspname = x.schema_name
        where not exists (select from pg_class d where d.oid = x.relation)
    loop
        lock table syncagent.merge_lock in exclusive mode;
        perform syncagent._detach(r.relation);   -- an earlier table of this name, which the application has dropped
    end loop;
    insert into syncagent.replicated (relation, schema_name, table_name, shipped, stride, bucket, policies, strategy, merges, key_columns, derived, columns)
    select p_table, n.nspname, c.relname, p_ship_existing, p_stride, p_bucket, p_policies, p_strategy, syncagent._pinned(p_table, p_merges), k.names, not k.uuid,
           array(select a.attname from pg_attribute a
                 where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    cross join lateral syncagent._key(p_table) as k
    where c.oid = p_table
    returning id into v_id;
    if p_stride is not null then
        perform syncagent._stride(v_id, p_stride);
    end if;
    perform syncagent._generate(v_id);
    perform syncagent._shape_take(v_id);
    v_tokens := syncagent._tokens(v_id);
    if p_ship_existing then
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
            select pg_current_xact_id(), {id}, 'I', syncagent._tick(), array_agg(k.key) {odd_agg}
            from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from {table} t) as k
            group by k.chunk $sql$, v_tokens);
    elsif not (select derived from syncagent.replicated where id = v_id) then
        -- A key ahead of the clock is above the stamps of the writes to come: such a row needs an entry.
        execute syncagent._render($sql$
            insert into syncagent.version_{id} (key, stamp, node, cut, deleted)
            select {key}, '00000000-0000-0000-0000-000000000000', (select node from syncagent.local_site), 0, false
            from {table} t
            where syncagent._timed({key})
              and {key} >= (select syncagent._stamp(syncagent._tick(), tail) from syncagent.local_site) $sql$, v_tokens);
    end if;
    return v_id;
end
$$;
comment on function syncagent._attach is 'replicate a table from now on; its present rows are shipped too unless every site has them already';

create function syncagent._detach(p_table regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id integer;
begin
    delete from syncagent.replicated where relation = p_table returning id into v_id;
    if v_id is null then
        return false;
    end if;
    perform syncagent._drop_functions(v_id, p_table);
    perform syncagent._shape_forget(v_id);
    perform syncagent._unstride(v_id);
    execute format('drop table syncagent.version_%s', v_id);
    execute format('drop type if exists syncagent.key_%s, syncagent.row_%1$s', v_id);
    delete from syncagent.cut_keys where relation = v_id;
    delete from syncagent.settling where relation = v_id;
    delete from syncagent.parked_row where relation = v_id;
    delete from syncagent.merge_result where relation = v_id;
    delete from syncagent.alias where relation = v_id;
    delete from syncagent.forest where relation = v_id;
    delete from syncagent.bucket where relation = v_id;
    delete from syncagent.mark where relation = v_id;
    return true;
end
$$;
comment on function syncagent._detach is 'stop replicating a table here; its rows stay';
