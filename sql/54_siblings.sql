-- Siblings: what sites have written at once in a column whose strategy is `merge`, and nobody has read and replaced since.
--
-- To settle them is to write the column, by whatever statement; `resolve_siblings` does so only if they are still those that were read.

create function syncagent._registers(p_relation integer, p_key uuid) returns jsonb
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last    record := syncagent._last_cut();
    v_version record;
    v_log     record;
begin
    execute format('select v.* from (select) as always left join syncagent.version_%s v on v.key = $1', p_relation) into v_version using p_key;
    select jsonb_agg(syncagent._op(l.op, l.columns, l.deltas, syncagent._stamp(l.tx_hlc, s.tail)) order by l.hlc) as ops,
           syncagent._stamp(max(l.tx_hlc), min(s.tail)) as stamp, syncagent._stamp(min(l.tx_hlc), min(s.tail)) as first, min(s.node) as node
    into v_log
    from (select e.*, max(e.hlc) over (partition by e.xid) as tx_hlc from syncagent.log e where e.xid >= v_last.xmax or e.xid = any (v_last.xip)) as l
    cross join syncagent.local_site s
    where l.relation = p_relation and p_key = any (l.keys);
    return (select w.registers from syncagent._merge_written(v_version.stamp, v_version.node, v_version.cut, v_version.deleted, v_version.registers,
                                                             v_log.ops, v_log.stamp, v_log.first, v_log.node, null, true, false) as w);
end
$$;
comment on function syncagent._registers is 'what is known of the columns of a row whose strategy is merge, with what no cut has yet';

create function syncagent._must_be_merged(p_table regclass, p_attached syncagent.replicated) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_attached.strategy <> 'merge' then
        raise exception 'the strategy of table % is %: its rows have no siblings', p_table, p_attached.strategy
            using errcode = 'SA003', hint = 'of a table that is attached with --strategy merge both writes are kept; `syncagent conflicts list` shows what lost';
    end if;
end
$$;
comment on function syncagent._must_be_merged is 'an error unless the strategy of a table is merge';

create function syncagent.siblings(p_table regclass, p_key text)
    returns table (column_name text, site text, at timestamptz, stamp uuid, value text, context text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_row   record := syncagent._row(p_table, p_key);
    v_table syncagent.replicated;
begin
    select * into strict v_table from syncagent.replicated r where r.id = v_row.relation;
    perform syncagent._must_be_allowed(v_table.schema_name, v_table.table_name, 'select');
    perform syncagent._must_be_merged(p_table, v_table);
    return query
    with sibling as (
        select e.key as name, p.key::integer as node, p.value as part
        from jsonb_each(syncagent._registers(v_row.relation, v_row.key)) as e
        cross join lateral jsonb_each(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end) as p
        where coalesce(v_table.merges ->> e.key, 'latest') not in ('counter', 'set', 'append') and (select count(*) from jsonb_object_keys(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end)) > 1
    )
    select s.name, syncagent._site_name(s.node), syncagent.stamp_time((s.part ->> 0)::uuid), (s.part ->> 0)::uuid, s.part ->> 2,
           (select md5(string_agg(format('%s %s', x.name, x.part ->> 0), ',' order by x.name, x.node)) from sibling x)
    from sibling s order by s.name, 4 desc;
end
$$;
comment on function syncagent.siblings(regclass, text) is 'what sites have written at once in columns of a row, the newest first, until somebody who has read it writes the column: value as text, and the context to settle it with; the key as text';

create function syncagent._settled_columns(p_table regclass, p_key text, p_columns name[]) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_row     record := syncagent._row(p_table, p_key);
    v_table   syncagent.replicated;
    v_unknown text;
    v_held    boolean;
begin
    select * into strict v_table from syncagent.replicated r where r.id = v_row.relation;
    perform syncagent._must_be_allowed(v_table.schema_name, v_table.table_name, 'update');
    perform syncagent._must_be_merged(p_table, v_table);
    select string_agg(quote_ident(u.name), ', ' order by u.name) into v_unknown from unnest(p_columns) as u (name)
    where u.name is null or u.name <> all (v_table.columns) or u.name = any (v_table.key_columns) or coalesce(v_table.merges ->> u.name::text, 'latest') in ('counter', 'set', 'append');
    if v_unknown is not null or coalesce(cardinality(p_columns), 0) = 0 then
        raise exception 'column % of % has no siblings', coalesce(v_unknown, '(none)'), p_table
            using errcode = 'SA004', hint = 'columns of the key, counters, sets, and what is appended to have none; syncagent.siblings() says of which columns there are some';
    end if;
    execute format('select syncagent.holds_%s($1, $2)', v_table.id) into v_held using p_key, '{}'::jsonb;
    if not coalesce(v_held, false) then
        raise exception 'there is no row % of %', p_key, p_table
            using errcode = 'SA005', hint = format('select * from syncagent.why(%L, %L)', p_table, p_key);
    end if;
    -- also where they are what they were: a value that is chosen is a write
    insert into syncagent.log (xid, relation, op, hlc, keys, odd, columns)
    select pg_current_xact_id(), v_table.id, 'U', syncagent._tick(), array[v_row.key],
           case when v_table.derived then array[syncagent._odd_of(v_table, p_key)] end, p_columns;
end
$$;
comment on function syncagent._settled_columns is 'columns of a row are written by whoever asks';

create function syncagent.resolve_siblings(p_table regclass, p_key text, p_value jsonb, p_context text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_schema  name;
    v_name    name;
    v_path    text := (select s.reset_val from pg_settings s where s.name = 'search_path');
    v_context text;
    v_columns name[];
    v_unknown text;
    v_rows    bigint;
begin
    if jsonb_typeof(p_value) is distinct from 'object' or p_value = '{}' then
        raise exception 'the value is no object of columns' using errcode = 'SA004', hint = 'write {"column": value, ...}';
    end if;
    select n.nspname, c.relname into v_schema, v_name from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table;
    perform syncagent._must_be_allowed(v_schema, v_name, 'update');
    perform syncagent._hold_row(p_table, p_key);   -- who has it now writes first
    select min(s.context), array_agg(distinct s.column_name)::name[] into v_context, v_columns from syncagent.siblings(p_table, p_key) as s;
    if v_context is null then
        raise exception 'row % of % has no siblings: it is settled', p_key, p_table
            using errcode = 'SA005', hint = format('select * from syncagent.why(%L, %L)', p_table, p_key);
    elsif v_context is distinct from p_context then
        raise exception 'the siblings of row % of % are others by now', p_key, p_table
            using errcode = 'SA005', hint = format('read them again: select * from syncagent.siblings(%L, %L)', p_table, p_key);
    end if;
    select string_agg(quote_ident(k.name), ', ' order by k.name) into v_unknown from jsonb_object_keys(p_value) as k (name) where k.name <> all (v_columns);
    if v_unknown is not null then
        raise exception 'there are no siblings of %', v_unknown
            using errcode = 'SA004', hint = format('there are of %s', (select string_agg(quote_ident(c), ', ') from unnest(v_columns) as c));
    end if;
    perform set_config('search_path', v_path, true);   -- triggers of the application find what is theirs
    execute syncagent._statement(v_schema, v_name, p_key, p_value, true);
    get diagnostics v_rows = row_count;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if v_rows = 0 then
        raise exception 'row % of % was not written', p_key, p_table
            using errcode = 'SA005', hint = 'a policy or a trigger of the table keeps it from being written';
    end if;
    perform syncagent._settled_columns(p_table, p_key, array(select jsonb_object_keys(p_value)::name));
end
$$;
comment on function syncagent.resolve_siblings(regclass, text, jsonb, text) is 'settle siblings: these columns of the row get these values, everywhere; context is what siblings() said with what was read, and an error tells if they are others by now';

create function syncagent._columns_of(p_conflict syncagent.conflict_record) returns name[]
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select array(select k.name from syncagent.replicated r cross join lateral unnest(p_conflict.columns) as k (name)
                 where (r.schema_name, r.table_name) = (p_conflict.schema_name, p_conflict.table_name) and k.name = any (r.columns) and k.name <> all (r.key_columns)
                   and (p_conflict.strategy = 'lww-column' or r.strategy = 'merge'
                       and (coalesce(r.merges ->> k.name::text, 'latest') = 'latest' or r.merges ->> k.name::text like 'function:%')) order by k.name)
$$;
comment on function syncagent._columns_of is 'the columns that both versions of a conflict wrote, and one can be chosen for, where rows are not written whole';

create function syncagent._are_siblings(p_conflict syncagent.conflict_record) returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (select from syncagent.replicated r
                   cross join lateral syncagent._parts_of(syncagent._registers(r.id, p_conflict.key)) as p
                   where (r.schema_name, r.table_name) = (p_conflict.schema_name, p_conflict.table_name) and r.strategy = 'merge'
                     and p.value ->> 0 in (p_conflict.winning_stamp::text, p_conflict.losing_stamp::text)
                   group by p.key having count(*) = 2)
$$;
comment on function syncagent._are_siblings is 'whether both versions of a conflict are still there, in some column: nobody who had read them has written it';

create function syncagent._hold_row(p_table regclass, p_key text) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_row    record := syncagent._row(p_table, p_key);
    v_tokens jsonb := syncagent._tokens(v_row.relation);
begin
    perform syncagent._must_be_allowed(r.schema_name, r.table_name, 'update') from syncagent.replicated r where r.id = v_row.relation;
    execute syncagent._render('select from {named} join {table} t on {t_eq_f} for no key update of t',
                              v_tokens || jsonb_build_object('named', syncagent._with_key(v_tokens ->> 'named', p_key)));
end
$$;
comment on function syncagent._hold_row is 'lock a row until the end of the transaction';
