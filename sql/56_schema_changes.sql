-- Schema changes: an attached table whose columns or name have changed goes on under its number.
--
-- The agent does a step of a change in one transaction: the application's DDL, `_reshape`, `_schema_reached`. It holds `merge_lock`
-- from its beginning, so no cut and no merge sees a table in one shape and its functions in another. Rows of the epoch before,
-- which lack a column, are given what `replicated.fills` says: the constant that every row got when the column was added. What
-- other sites write before they do the step comes to the same, for at those sites the same constant is put there.

create function syncagent._columns_now(p_table regclass) returns name[]
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select array(select a.attname from pg_attribute a
                 where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                   and not exists (select from syncagent.replicated r join syncagent.typed_record t on t.relation = r.id
                                   where r.relation = p_table and t.kind = 'column' and t.name = a.attname and t.agreed is null and t.epoch is null)
                 order by a.attnum)
$$;
comment on function syncagent._columns_now is 'the columns of a table that travel, as it is now; one that was added by hand, and that no other site has, does not';

create function syncagent._touched() returns setof integer
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select distinct r.id
    from pg_locks l join syncagent.replicated r on r.relation = coalesce(pg_partition_root(l.relation::regclass), l.relation)
    where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted
      and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
$$;
comment on function syncagent._touched is 'attached tables that this transaction has locked for more than rows';

create function syncagent._shape_follow(p_index text) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._shape_agree(d.relation, d.kind, d.name, d.became)
    from syncagent._typed_now() d join syncagent.replicated r on r.id = d.relation
    left join syncagent.typed_record t on (t.relation, t.kind, t.name) = (d.relation, d.kind, d.name)
        and (t.now - 'definition', t.became) is not distinct from (d.now - 'definition', d.became)
    where d.kind = 'index' and array[r.schema_name, d.name]::text[] = parse_ident(p_index)
       or t.name is null and (
           d.relation in (select syncagent._touched())
           or d.became is null and d.agreed - '{default,generated,definition}'::text[] = d.now - '{default,generated,definition}'::text[])
$$;
comment on function syncagent._shape_follow is 'the last of a step: what it has made of tables is agreed, and what was typed before stays typed, or meanwhile, in tables that it has not locked: there it changes no more than names in the words of others; index is what was made or dropped outside of its transaction, if anything was';

create function syncagent._reshape(p_renamed jsonb, p_fills jsonb, p_all boolean) returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_count  integer := 0;
    v_before name[];
    v_now    name[];
    v_made   boolean;
    r        record;
begin
    for r in
        select t.*, n.nspname, c.relname from syncagent.replicated t
        join pg_class c on c.oid = t.relation join pg_namespace n on n.oid = c.relnamespace
        where p_all or t.id in (select syncagent._touched()) order by t.id
    loop
        v_now := syncagent._columns_now(r.relation);
        select array_agg(coalesce(x.after, case when u.name <> all (v_now) or not exists (   -- dropped, and its name taken
                select from jsonb_to_recordset(p_renamed) as y (schema name, "table" name, after name)
                where (y.schema, y."table", y.after) = (r.nspname, r.relname, u.name)) then u.name end) order by u.n) into v_before
        from unnest(r.columns) with ordinality as u (name, n)
        left join jsonb_to_recordset(p_renamed) as x (schema name, "table" name, before name, after name)
            on (x.schema, x."table", x.before) = (r.nspname, r.relname, u.name);
        v_made := v_now <> r.columns or (r.nspname, r.relname) <> (r.schema_name, r.table_name) or exists (
            select from pg_attribute k join pg_attribute a on a.attrelid = r.relation and a.attname = r.columns[k.attnum]
            where k.attrelid = to_regclass(format('syncagent.row_%s', r.id)) and k.attnum > 0 and k.atttypid <> syncagent._base_type(a.atttypid));
        if v_made and exists (select from syncagent.typed_record t where t.relation = r.id and t.kind in ('table', 'column') and t.epoch is null
                              and (t.agreed ->> 'type', t.became, t.kind) is distinct from (t.now ->> 'type', null, 'column') and t.agreed is not null) then
            raise exception '%.% was changed by hand here, and cannot follow a schema change', quote_ident(r.schema_name), quote_ident(r.table_name)
                using errcode = 'SA005', hint = 'first `syncagent schema adopt`, or take it back: `syncagent schema status` says how';
        end if;
        if v_made then
            perform syncagent._rename(r.id, r.nspname, r.relname, p_renamed);
            update syncagent.replicated t set columns = v_now, fills = (
                select coalesce(jsonb_object_agg(f.name, f.value), '{}')
                from (
                    select coalesce(v_before[array_position(r.columns, e.key::name)], e.key) as name, e.value from jsonb_each(r.fills) as e
                    union all
                    select f."column", to_jsonb(f.value) from jsonb_to_recordset(p_fills) as f (schema name, "table" name, "column" text, value text)
                    where (f.schema, f."table") = (r.nspname, r.relname)
                ) as f where f.name = any (v_now))
            where t.id = r.id;
            perform syncagent._remake_row_type(r.id, v_before, v_now);
        end if;
        if v_made or (syncagent._text(r.id)).hash <> r.text_hash then
            perform syncagent._generate(r.id);
            v_count := v_count + 1;
        end if;
    end loop;
    return v_count;
end
$$;
comment on function syncagent._reshape is 'let what belongs to attached tables follow what this transaction has made of them, or to all tables; renamed are columns, fills what rows lack that come from sites before the change; returns how many tables were made anew';

create function syncagent._rename(p_id integer, p_schema name, p_table name, p_renamed jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
begin
    select * into strict v_table from syncagent.replicated where id = p_id;
    update syncagent.replicated t set schema_name = p_schema, table_name = p_table,
        key_columns = (select array_agg(coalesce(x.after, k.name) order by k.n)
                       from unnest(t.key_columns) with ordinality as k (name, n)
                       left join jsonb_to_recordset(p_renamed) as x (schema name, "table" name, before name, after name)
                           on (x.schema, x."table", x.before) = (p_schema, p_table, k.name))
    where t.id = p_id;
    update syncagent.conflict_record c set schema_name = p_schema, table_name = p_table
    where (c.schema_name, c.table_name) = (v_table.schema_name, v_table.table_name) and (p_schema, p_table) <> (c.schema_name, c.table_name);
    update syncagent.stride s set column_name = x.after
    from jsonb_to_recordset(p_renamed) as x (schema name, "table" name, before name, after name)
    where s.relation = p_id and (x.schema, x."table", x.before) = (p_schema, p_table, s.column_name);
end
$$;
comment on function syncagent._rename is 'an attached table or some of its columns have other names now';

create function syncagent._remake_row_type(p_id integer, p_before name[], p_now name[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_id);
    v_fills  jsonb := (select fills from syncagent.replicated where id = p_id);
    v_values text[];   -- of the new columns, from the image o of the old ones
begin
    select array_agg(case when array_position(p_before, u.name) is not null then format('o.c%s', array_position(p_before, u.name))
                          else format('(%s)', coalesce(v_fills ->> u.name::text, 'null')) end order by u.n)
    into v_values from unnest(p_now) with ordinality as u (name, n);
    execute format('alter type syncagent.row_%s rename to row_%1$s_before', p_id);
    execute syncagent._render('create type syncagent.row_{id} as ({stage_columns})', v_tokens);
    execute format('update syncagent.parked_row p set'
                   ' image = (select row(%2$s)::syncagent.row_%1$s::text from (select (p.image::syncagent.row_%1$s_before).*) as o),'
                   ' shown = (select to_jsonb(x.*) from (select %3$s from (select (p.image::syncagent.row_%1$s_before).*) as o) as x)'
                   ' where p.relation = %1$s',
                   p_id, array_to_string(v_values, ', '),
                   (select string_agg(format('%s as %I', v_values[u.n], u.name), ', ' order by u.n) from unnest(p_now) with ordinality as u (name, n)));
    execute format('drop type syncagent.row_%s_before', p_id);
end
$$;
comment on function syncagent._remake_row_type is 'the type of a row of an attached table, for its columns of now; parked rows are brought to it';

create function syncagent._filling(p_schema name, p_table name, p_begins boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.replicated r set filling = p_begins where (r.schema_name, r.table_name) = (p_schema, p_table) and r.filling <> p_begins;
    if found and not p_begins then
        perform syncagent._forest_fell(array[p_schema], array[p_table]);   -- no mark says which rows were filled
    end if;
end
$$;
comment on function syncagent._filling is 'rows of a table are about to be filled, or are all filled: its tree is computed from the rows again';

create function syncagent._schema_reached(p_epoch bigint, p_floor bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.local_site s set schema_epoch = p_epoch, schema_floor = p_floor where s.schema_epoch < p_epoch;
    if not found then
        raise exception 'this site has done step % of the schema''s changes already', p_epoch
            using errcode = 'SA103', hint = 'another agent may have run for this site';
    end if;
end
$$;
comment on function syncagent._schema_reached is 'the last statement of a step: this site is at this epoch, and reads batches no older than the floor';

-- Batches of the epoch before --------------------------------------------------------------------------------------

create function syncagent._fits(p_table syncagent.replicated, p_columns name[]) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_columns = p_table.columns then
        return true;
    end if;
    return p_columns <@ p_table.columns
        and not exists (select from unnest(p_table.columns) as u (name) where u.name <> all (p_columns) and not p_table.fills ? u.name::text);
end
$$;
comment on function syncagent._fits is 'whether rows with these columns can be taken: they lack none but those that were added by a schema change';

create function syncagent._fit_stage(p_table syncagent.replicated, p_columns name[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_stage  regclass := to_regclass(format('pg_temp.stage_%s', p_table.id));
    r        record;
begin
    -- a session that was there before the table changed
    if v_stage is not null and ((select array_agg(format_type(a.atttypid, -1) order by a.attnum) from pg_attribute a
                                where a.attrelid = v_stage and a.attname !~ '^_' and a.attnum > 0 and not a.attisdropped)
            is distinct from (select array_agg(format_type(a.atttypid, -1) order by a.attnum) from pg_attribute a
                              where a.attrelid = to_regclass(format('syncagent.row_%s', p_table.id)) and a.attnum > 0)
            or (p_table.strategy <> 'lww') <> exists (select from pg_attribute a where a.attrelid = v_stage and a.attname = '_registers')) then
        execute format('drop table pg_temp.stage_%s', p_table.id);
        v_stage := null;
    end if;
    if v_stage is null then
        execute format('select syncagent.stage_%s()', p_table.id);
    else
        perform syncagent._empty(v_stage);
    end if;
    if p_table.fills = '{}' then
        return;
    end if;
    for r in
        select e.key, coalesce(e.value #>> '{}', 'null') as value, array_position(p_table.columns, e.key::name) as n,
               e.key::name <> all (p_columns) as lacking, a.atthasdef as filled
        from jsonb_each(p_table.fills) as e
        join pg_attribute a on a.attrelid = to_regclass(format('pg_temp.stage_%s', p_table.id))
            and a.attname = format('c%s', array_position(p_table.columns, e.key::name))
    loop
        if r.lacking then
            execute format('alter table pg_temp.stage_%s alter column c%s set default %s', p_table.id, r.n, r.value);
        elsif r.filled then
            execute format('alter table pg_temp.stage_%s alter column c%s drop default', p_table.id, r.n);
        end if;
    end loop;
end
$$;
comment on function syncagent._fit_stage is 'empty the staging table of an attached table, made anew where that has changed; columns that are lacking get what all rows got then';
