-- The shape of attached tables that was agreed on, and what somebody has made of it by hand.
--
-- `shape` is what attaching a table and steps of schema changes have led to. What a table is now and its shape is not, was typed here: it is in
-- `typed_record`, with role and statement where the event trigger saw it. A comparison finds it alone as well; so where no event trigger is
-- allowed, who typed it is not known, and nothing else is lost. What a schema change takes over of it bears the step's epoch until the change is
-- closed, and is of the shape then.
--
-- Compared are names, columns, constraints and indexes. Triggers, rights and comments are not, nor what an index is made with.

create table syncagent.shape (
    relation integer not null,
    kind     text not null check (kind in ('table', 'column', 'constraint', 'index')),
    name     name not null,
    place    smallint not null,
    made     jsonb not null,
    server   integer not null,
    primary key (relation, kind, name)
);
comment on table syncagent.shape is 'attached tables as agreed: what each part is made as, in the words of which major version of the server';

create table syncagent.typed_record (
    relation  integer not null,
    kind      text not null,
    name      name not null,
    agreed    jsonb,
    now       jsonb,
    became    name,
    what      text not null,
    role      name,
    statement text,
    since     timestamptz not null default clock_timestamp(),
    epoch     bigint,
    primary key (relation, kind, name)
);
comment on table syncagent.typed_record is 'what somebody has made of attached tables by hand: a part as agreed (null: there was none) and now (null: there is none), or another name for it; epoch is the step of a schema change that has taken it over';

create table syncagent.typed_rule (
    only_row boolean primary key default true check (only_row),
    refuse   boolean not null
);
comment on table syncagent.typed_rule is 'whether DDL that is typed by hand is refused here, as config.toml says';

create function syncagent._shape_now(p_relation integer default null)
    returns table (relation integer, kind text, name name, place smallint, made jsonb)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with attached as (
        select r.id, c.oid, n.nspname, c.relname
        from syncagent.replicated r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace
        where p_relation is null or r.id = p_relation
    )
    select t.id, 'table', ''::name, 0::smallint, jsonb_build_object('schema', t.nspname, 'table', t.relname) from attached t
    union all
    select t.id, 'column', a.attname, a.attnum, jsonb_strip_nulls(jsonb_build_object(
        'type', format_type(a.atttypid, a.atttypmod),
        'collation', case when a.attcollation <> y.typcollation then (select format('%I.%I', n.nspname, l.collname)
                         from pg_collation l join pg_namespace n on n.oid = l.collnamespace where l.oid = a.attcollation) end,
        'default', case when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end,
        'generated', case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) end,
        'virtual', case when a.attgenerated = 'v' then true end,
        'identity', case a.attidentity when 'a' then 'always' when 'd' then 'by default' end,
        'required', case when a.attnotnull then true end))
    from attached t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
    join pg_type y on y.oid = a.atttypid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all
    select t.id, 'constraint', k.conname, 0::smallint,
           jsonb_build_object('kind', k.contype, 'definition', regexp_replace(d.definition, ' NOT VALID$', ''))
    from attached t join pg_constraint k on k.conrelid = t.oid and k.contype in ('c', 'f', 'p', 'u', 'x')
    cross join lateral (select pg_get_constraintdef(k.oid)) as d (definition) where d.definition is not null
    union all
    select t.id, 'index', c.relname, 0::smallint,
           jsonb_strip_nulls(jsonb_build_object('definition', d.definition, 'invalid', case when not i.indisvalid then true end))
    from attached t join pg_index i on i.indrelid = t.oid join pg_class c on c.oid = i.indexrelid
    cross join lateral (select pg_get_indexdef(i.indexrelid)) as d (definition)
    where d.definition is not null
      and (i.indisvalid or not exists (   -- it is being made
          select from pg_stat_progress_create_index p where p.relid = t.oid and p.datname = current_database()))
      and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.conrelid = t.oid and k.contype in ('p', 'u', 'x'))
$$;
comment on function syncagent._shape_now is 'the parts of an attached table, or of all, as they are';

create function syncagent._typed_now(p_relation integer default null)
    returns table (relation integer, kind text, name name, agreed jsonb, now jsonb, became name)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with was as (
        select s.* from syncagent.shape s join syncagent.replicated r on r.id = s.relation left join pg_class c on c.oid = r.relation
        where (p_relation is null or s.relation = p_relation) and (s.kind = 'table' or c.oid is not null)   -- of a table that is gone only that
    ), unlike as (
        select coalesce(w.relation, n.relation) as relation, coalesce(w.kind, n.kind) as kind, coalesce(w.name, n.name) as name,
               w.made as agreed, n.made as now, coalesce(w.place, n.place) as place
        from was w full join (
            select x.* from syncagent._shape_now(p_relation) x where exists (select from syncagent.shape s where s.relation = x.relation)
        ) as n on (n.relation, n.kind, n.name) = (w.relation, w.kind, w.name)
        where w.made is distinct from n.made
    ), renamed as (
        select u.relation, u.kind, u.name, u.agreed, v.now, v.name as became
        from unlike u join unlike v on v.relation = u.relation and u.kind = 'column' and v.kind = 'column' and v.place = u.place
            and v.agreed is null and u.now is null and u.agreed ->> 'type' = v.now ->> 'type'
    )
    select u.relation, u.kind, u.name, u.agreed, u.now, null from unlike u
    where not exists (select from renamed x where x.relation = u.relation and u.kind = 'column' and u.name in (x.name, x.became))
      and not (u.kind in ('constraint', 'index') and u.agreed is not null and u.now is not null   -- a name in it is another one
               and (exists (select from renamed x where x.relation = u.relation) or exists (select from unlike v where v.relation = u.relation and v.kind = 'table')))
    union all
    select x.relation, x.kind, x.name, x.agreed, x.now, x.became from renamed x
$$;
comment on function syncagent._typed_now is 'where an attached table, or any, is not what was agreed';

create function syncagent._shape_text(p_kind text, p_made jsonb) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case case when p_made is not null then p_kind end
        when 'column' then concat_ws(' ', p_made ->> 'type', 'collate ' || (p_made ->> 'collation'), 'default ' || (p_made ->> 'default'),
            'generated always as (' || (p_made ->> 'generated') || case when p_made ? 'virtual' then ') virtual' else ') stored' end,
            'generated ' || (p_made ->> 'identity') || ' as identity', case when p_made ? 'required' then 'not null' end)
        when 'table' then format('%I.%I', p_made ->> 'schema', p_made ->> 'table')
        else p_made ->> 'definition' end
$$;
comment on function syncagent._shape_text is 'a part of a table as SQL';

create function syncagent._typed_text(p_kind text, p_name name, p_agreed jsonb, p_now jsonb, p_became name) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case
        when p_kind = 'table' and p_now is null then 'the table was dropped'
        when p_kind = 'table' then format('the table is %s now', syncagent._shape_text(p_kind, p_now))
        when p_became is not null then format('column %I is %I now', p_name, p_became)
        when p_agreed is null then format('%s %I was added: %s%s', p_kind, p_name, syncagent._shape_text(p_kind, p_now),
                                          case when p_now ? 'invalid' then ', which is not valid' end)
        when p_now is null then format('%s %I was dropped', p_kind, p_name)
        when p_now ? 'invalid' then format('%s %I is not valid any more', p_kind, p_name)
        else format('%s %I is %s, and was %s', p_kind, p_name, syncagent._shape_text(p_kind, p_now), syncagent._shape_text(p_kind, p_agreed)) end
$$;
comment on function syncagent._typed_text is 'what somebody has made of a table, in words';

-- What is agreed ------------------------------------------------------------------------------------------------

create function syncagent._shape_take(p_relation integer default null) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    insert into syncagent.shape (relation, kind, name, place, made, server)
    select n.relation, n.kind, n.name, n.place, n.made, current_setting('server_version_num')::integer / 10000
    from syncagent._shape_now(p_relation) n
    where not exists (select from syncagent.shape s where s.relation = n.relation)
$$;
comment on function syncagent._shape_take is 'an attached table, or each, whose shape is not known is as it should be';

create function syncagent._shape_agree(p_relation integer, p_kind text, p_name name, p_became name) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    delete from syncagent.shape s where (s.relation, s.kind) = (p_relation, p_kind) and s.name in (p_name, p_became);
    insert into syncagent.shape (relation, kind, name, place, made, server)
    select n.relation, n.kind, n.name, n.place, n.made, current_setting('server_version_num')::integer / 10000
    from syncagent._shape_now(p_relation) n where n.kind = p_kind and n.name in (p_name, p_became);
    update syncagent.shape s set made = n.made from syncagent._shape_now(p_relation) n
    where s.relation = p_relation and (n.relation, n.kind, n.name) = (s.relation, s.kind, s.name) and n.kind in ('constraint', 'index')
      and (p_became is not null or p_kind = 'table');
    delete from syncagent.typed_record t where (t.relation, t.kind, t.name) = (p_relation, p_kind, p_name);
$$;
comment on function syncagent._shape_agree is 'a part of a table is agreed to be as it is';

create function syncagent._shape_forget(p_relation integer) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    delete from syncagent.shape s where s.relation = p_relation;
    delete from syncagent.typed_record t where t.relation = p_relation;
$$;
comment on function syncagent._shape_forget is 'the table is not attached any more';

-- What was typed ------------------------------------------------------------------------------------------------

create function syncagent._note_typed(p_relation integer default null, p_role name default null, p_statement text default null)
    returns setof syncagent.typed_record
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_server integer := current_setting('server_version_num')::integer / 10000;
begin
    if exists (select from syncagent.replicated r where not exists (select from syncagent.shape s where s.relation = r.id)) then
        perform syncagent._shape_take();
    end if;
    if exists (select from syncagent.shape s where s.server <> v_server) then   -- another major version says the same in other words
        update syncagent.shape s set made = coalesce(n.made, s.made), server = v_server
        from syncagent.shape o left join syncagent._shape_now() n on (n.relation, n.kind, n.name) = (o.relation, o.kind, o.name)
        where s.server <> v_server and (o.relation, o.kind, o.name) = (s.relation, s.kind, s.name);
    end if;
    if not exists (select from syncagent.schema_record c cross join syncagent.local_site s
                   where c.state in ('open', 'back') or c.upto > s.schema_epoch) then
        perform syncagent._shape_agree(t.relation, t.kind, t.name, t.became) from syncagent.typed_record t where t.epoch is not null;
    end if;
    if exists (select from syncagent.typed_record t where p_relation is null or t.relation = p_relation) then
        delete from syncagent.typed_record t where (p_relation is null or t.relation = p_relation)
            and not exists (select from syncagent._typed_now(p_relation) d where (d.relation, d.kind, d.name) = (t.relation, t.kind, t.name));
    end if;
    return query
        insert into syncagent.typed_record as t (relation, kind, name, agreed, now, became, what, role, statement)
        select d.relation, d.kind, d.name, d.agreed, d.now, d.became, syncagent._typed_text(d.kind, d.name, d.agreed, d.now, d.became),
               p_role, case when p_statement !~* 'password' and btrim(p_statement, E' \n\r\t;') !~ ';' then left(p_statement, 10000) end   -- no script
        from syncagent._typed_now(p_relation) d
        left join syncagent.typed_record k on (k.relation, k.kind, k.name) = (d.relation, d.kind, d.name)
            and (k.agreed, k.now, k.became) is not distinct from (d.agreed, d.now, d.became)
        where k.name is null
        on conflict (relation, kind, name) do update set agreed = excluded.agreed, now = excluded.now, became = excluded.became,
            what = excluded.what, role = excluded.role, statement = excluded.statement, since = clock_timestamp(), epoch = null
        returning t.*;
end
$$;
comment on function syncagent._note_typed is 'note where an attached table, or any, is not what was agreed; returns what was not noted before';

create function syncagent._adopted(p_adopts jsonb) returns setof syncagent.typed_record
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select t.* from jsonb_to_recordset(p_adopts) as x (schema name, "table" name, kind text, name name, now jsonb, became name)
    join syncagent.replicated r on (r.schema_name, r.table_name) = (x.schema, x."table")
    join syncagent.typed_record t on (t.relation, t.kind, t.name) = (r.id, x.kind, x.name) and t.became is not distinct from x.became
        and coalesce(t.now, 'null') = coalesce(x.now, 'null')
$$;
comment on function syncagent._adopted is 'what a step adopts, where it was made by hand here';

create function syncagent._lock_adopted(p_adopts jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in select distinct c.oid::regclass as name from syncagent._adopted(p_adopts) x
             join syncagent.replicated t on t.id = x.relation join pg_class c on c.oid = t.relation
    loop
        execute format('lock table %s in access exclusive mode', r.name);
    end loop;
end
$$;
comment on function syncagent._lock_adopted is 'as if the step were done: nobody writes its tables meanwhile, and they are touched';

create function syncagent._take_over(p_adopts jsonb, p_epoch bigint) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if (select count(*) from syncagent._adopted(p_adopts)) < jsonb_array_length(p_adopts) then
        return false;
    end if;
    perform syncagent._lock_adopted(p_adopts);
    update syncagent.typed_record t set epoch = p_epoch from syncagent._adopted(p_adopts) x
    where (t.relation, t.kind, t.name) = (x.relation, x.kind, x.name) and t.epoch is null;
    return true;
end
$$;
comment on function syncagent._take_over is 'whether a step finds done here by hand what it is to do; it is the step''s then';

create function syncagent._is_taken_over(p_adopts jsonb, p_epoch bigint) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select exists (select from syncagent._adopted(p_adopts) x where x.epoch <= p_epoch) $$;
comment on function syncagent._is_taken_over is 'whether this step, or one before it, has found it done here by hand';

create function syncagent._give_back(p_adopts jsonb, p_epoch bigint) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_ours boolean := syncagent._is_taken_over(p_adopts, p_epoch);
begin
    perform syncagent._lock_adopted(p_adopts);
    update syncagent.typed_record t set epoch = null from syncagent._adopted(p_adopts) x
    where (t.relation, t.kind, t.name) = (x.relation, x.kind, x.name) and t.epoch = p_epoch;
    return v_ours;
end
$$;
comment on function syncagent._give_back is 'whether a step that is taken back was done by hand here: it stays, and is the step''s no more';

create function syncagent._log_unlike(p_schema name, p_table name, p_column name, p_value text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
    v_rows  bigint;
begin
    select * into strict v_table from syncagent.replicated r where (r.schema_name, r.table_name) = (p_schema, p_table);
    execute syncagent._render($sql$
        insert into syncagent.log (xid, relation, op, hlc, keys, columns {odd_column})
        select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key), {written} {odd_agg}
        from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from {table} t where {unlike}) as k
        group by k.chunk $sql$, syncagent._tokens(v_table.id) || jsonb_build_object(
            'unlike', case when p_value is null then format('t.%I is not null', p_column)
                           else format('row(t.%I)::record *<> row(%s)::record', p_column, p_value) end,
            'written', case v_table.strategy when 'lww' then 'null' else format('array[%L]::name[]', p_column) end));   -- null begins a new life
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;
comment on function syncagent._log_unlike is 'rows whose column holds something else than all other sites are given are written by this site, now; returns the log entries made';

-- The event trigger ---------------------------------------------------------------------------------------------

create function syncagent._typed() returns event_trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_role     name := coalesce(nullif(current_setting('role'), 'none'), session_user::text);
    v_relation integer;
    v_refused  text;
begin
    if coalesce(current_setting('syncagent.step', true), '') = 'on' then
        return;   -- the agent, or one of its verbs
    end if;
    begin
        for v_relation in
            select r.id from syncagent.replicated r
            where tg_event = 'sql_drop' and exists (
                select from pg_event_trigger_dropped_objects() d where d.classid = 'pg_class'::regclass and d.objid = r.relation
                   or (d.object_type, d.schema_name) = ('index', r.schema_name)
                   and exists (select from syncagent.shape s where (s.relation, s.kind, s.name) = (r.id, 'index', d.object_name::name))
                   or d.object_type = 'table constraint' and d.address_names[1:2] = array[r.schema_name, r.table_name]::text[])
            union
            select r.id from pg_event_trigger_ddl_commands() e
            left join pg_index i on e.classid = 'pg_class'::regclass and i.indexrelid = e.objid
            join syncagent.replicated r on r.relation = coalesce(pg_partition_root(coalesce(i.indrelid, e.objid)::regclass), coalesce(i.indrelid, e.objid))
            where tg_event = 'ddl_command_end' and e.classid = 'pg_class'::regclass
        loop
            if exists (select from syncagent.typed_rule u where u.refuse) then
                select format('%I.%I: %s', r.schema_name, r.table_name, string_agg(syncagent._typed_text(d.kind, d.name, d.agreed, d.now, d.became), '; '))
                into v_refused
                from syncagent._typed_now(v_relation) d join syncagent.replicated r on r.id = d.relation
                left join syncagent.typed_record k on (k.relation, k.kind, k.name) = (d.relation, d.kind, d.name)
                    and (k.now, k.became) is not distinct from (d.now, d.became)
                where k.name is null group by r.schema_name, r.table_name;
                exit when v_refused is not null;
            end if;
            perform syncagent._note_typed(v_relation, v_role, current_query());
        end loop;
    exception when others then
        raise log 'syncagent could not look at what was typed: %', sqlerrm;   -- the comparison finds it
    end;
    if v_refused is not null then
        raise exception '%', v_refused
            using errcode = 'SA005', detail = 'The table is replicated, and this site refuses DDL that only it would have.',
                  hint = 'write it into a file: `syncagent schema apply FILE` carries it through all sites'
                      || case when current_query() ~* '\yconcurrently\y' then '; what is left of the index, which is not valid, and how to drop it: `syncagent schema status`' else '' end;
    end if;
end
$$;
comment on function syncagent._typed is 'at the end of each DDL statement: note, or refuse, what it has made of attached tables; whatever goes wrong in here, the statement goes on';

create function syncagent.watch_ddl() returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not exists (select from pg_event_trigger e where e.evtname = 'syncagent_ddl') then
        create event trigger syncagent_ddl on ddl_command_end
            when tag in ('ALTER TABLE', 'ALTER INDEX', 'CREATE INDEX') execute function syncagent._typed();
    end if;
    if not exists (select from pg_event_trigger e where e.evtname = 'syncagent_drop') then
        create event trigger syncagent_drop on sql_drop
            when tag in ('DROP TABLE', 'DROP INDEX', 'DROP SCHEMA', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION', 'DROP SEQUENCE', 'DROP OWNED')
            execute function syncagent._typed();
    end if;
    return true;
exception when insufficient_privilege then
    return false;
end
$$;
comment on function syncagent.watch_ddl() is 'make the event triggers that see DDL typed by hand, if they are not there; whether they are: it takes a superuser, or what a provider has in its place';

create function syncagent._watched() returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when count(*) < 2 then 'missing' when bool_or(e.evtenabled in ('D', 'R')) then 'disabled' else 'there' end
    from pg_event_trigger e where e.evtname in ('syncagent_ddl', 'syncagent_drop')
$$;
comment on function syncagent._watched is 'whether the event triggers are there, missing or disabled';

create function syncagent._typed_sql(p_relation integer, p_kind text, p_name name, p_agreed jsonb, p_now jsonb, p_became name,
                                     out forth text[], out back text[], out rehearse text[])
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table text;   -- as agreed
    v_forth text;
    v_alter text;   -- as it is called here
    v_old   text := syncagent._shape_text(p_kind, p_agreed);
    v_new   text := syncagent._shape_text(p_kind, p_now);
begin
    select format('%I.%I', r.schema_name, r.table_name), format('alter table %s ', case when c.oid is null then '' else format('%I.%I', n.nspname, c.relname) end)
    into v_table, v_alter
    from syncagent.replicated r left join pg_class c on c.oid = r.relation left join pg_namespace n on n.oid = c.relnamespace where r.id = p_relation;
    v_forth := format('alter table %s ', v_table);
    case
        when p_kind = 'table' and p_now is null then
            forth := array[format('drop table %s', v_table)];
        when p_kind = 'table' and p_agreed ->> 'schema' = p_now ->> 'schema' then
            forth := array[format('alter table %s rename to %I', v_table, p_now ->> 'table')];
            back := array[v_alter || format('rename to %I', p_agreed ->> 'table')];
        when p_kind = 'table' then
            back := array[v_alter || format('set schema %I', p_agreed ->> 'schema')];
        when p_became is not null then
            forth := array[v_forth || format('rename column %I to %I', p_name, p_became)];
            back := array[v_alter || format('rename column %I to %I', p_became, p_name)];
        when p_kind = 'column' and p_agreed is null then
            forth := array[v_forth || format('add column %I %s', p_name, v_new)];
            back := array[v_alter || format('drop column %I', p_name)];
            rehearse := array[back[1] || ' cascade'];
        when p_kind = 'column' and p_now is null then
            forth := array[v_forth || format('drop column %I', p_name)];
            back := array[v_alter || format('add column %I %s', p_name, v_old)];
            rehearse := array[v_alter || format('add column %I %s', p_name, syncagent._shape_text('column', p_agreed - '{required,default,generated,identity}'::text[]))];
        when p_kind = 'column' and (p_agreed - '{type,default,required}'::text[]) = (p_now - '{type,default,required}'::text[]) then
            select array_agg(v_forth || format('alter column %I %s', p_name, x.forth) order by x.n),
                   array_agg(v_alter || format('alter column %I %s', p_name, x.back) order by x.n)
            into forth, back
            from (values
                (1, p_agreed -> 'type' <> p_now -> 'type', 'type ' || (p_now ->> 'type'), 'type ' || (p_agreed ->> 'type')),
                (2, p_agreed -> 'default' is distinct from p_now -> 'default', coalesce('set default ' || (p_now ->> 'default'), 'drop default'),
                    coalesce('set default ' || (p_agreed ->> 'default'), 'drop default')),
                (3, p_agreed ? 'required' <> (p_now ? 'required'), case when p_now ? 'required' then 'set not null' else 'drop not null' end,
                    case when p_agreed ? 'required' then 'set not null' else 'drop not null' end)) as x (n, differs, forth, back)
            where x.differs;
            if p_agreed -> 'type' <> p_now -> 'type' then   -- no row is written anew
                rehearse := array[v_alter || format('drop column %I cascade', p_name),
                                  v_alter || format('add column %I %s', p_name, syncagent._shape_text('column', p_agreed - 'required'))];
            end if;
        when p_kind = 'column' then
            rehearse := '{}';
        when p_kind = 'constraint' and p_agreed is null then
            forth := array[v_forth || format('add constraint %I %s', p_name, v_new)];
            back := array[v_alter || format('drop constraint %I', p_name)];
            rehearse := array[back[1] || ' cascade'];
        when p_kind = 'constraint' and p_now is null then
            forth := array[v_forth || format('drop constraint if exists %I', p_name)];
            back := array[v_alter || format('add constraint %I %s', p_name, v_old)];
            rehearse := '{}';
        when p_kind = 'index' and p_agreed is null then
            if not p_now ? 'invalid' then
                forth := array[v_new];
            end if;
            back := array[format('drop index %I.%I', (select r.schema_name from syncagent.replicated r where r.id = p_relation), p_name)];
        when p_kind = 'index' and p_now is null then
            forth := array[format('drop index concurrently if exists %I.%I', (select r.schema_name from syncagent.replicated r where r.id = p_relation), p_name)];
            back := array[v_old];
            rehearse := '{}';
        when p_kind = 'constraint' then
            back := array[v_alter || format('drop constraint %I', p_name), v_alter || format('add constraint %I %s', p_name, v_old)];
        else
            back := array[format('drop index %I.%I', (select r.schema_name from syncagent.replicated r where r.id = p_relation), p_name), v_old];
    end case;
    rehearse := coalesce(rehearse, back);
end
$$;
comment on function syncagent._typed_sql is 'what was typed as SQL: the same for other sites (null: nothing can carry it), what takes it back (null: nothing can), and what takes it back where rows do not matter';

-- What people ask -----------------------------------------------------------------------------------------------

create view syncagent.typed_change as
select format('%I.%I', r.schema_name, r.table_name) as table_name, t.what, t.role::text as role, t.since, t.statement,
       array_to_string(q.back, '; ') as take_back, t.kind, t.name::text as name, t.epoch is not null as taken_over
from syncagent.typed_record t join syncagent.replicated r on r.id = t.relation
cross join lateral syncagent._typed_sql(t.relation, t.kind, t.name, t.agreed, t.now, t.became) as q;
comment on view syncagent.typed_change is 'what somebody has made of attached tables by hand, here and nowhere else: who and how, if an event trigger saw it, and what takes it back; taken over while a schema change carries it through the other sites';
