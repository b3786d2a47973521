-- Versions of the application's schema: schemas of plain views, one for each attached table of another schema, with the
-- columns and names that a version of the application knows. It sets its search path, and changes nothing else.
--
-- The views are updatable by themselves, and name their columns, so they stay what they are while columns are added and renamed below
-- them. They are the application's objects: capture, cuts and merges know the tables only. From PostgreSQL 15 on they act with
-- the rights of whoever uses them, row security included; before, with those of their owner, so a table with row security is refused there.

create table syncagent.app_version (
    name    name primary key,
    base    name not null,
    made_at timestamptz not null default now()
);
comment on table syncagent.app_version is 'versions of the application''s schema that are here: schemas of views over the tables of base';

create function syncagent._make_version(p_name name, p_base name, p_views jsonb, p_role name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_role text := current_setting('role');
    r      record;
begin
    insert into syncagent.app_version (name, base) values (p_name, p_base);
    if p_role is not null then
        perform set_config('role', p_role, true);
    end if;
    execute format('create schema %I', p_name);
    execute format('comment on schema %I is %L', p_name, format('tables of %s as a version of the application knows them', p_base));
    for r in
        select format('grant usage on schema %I to %s%s', p_name, case e.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(e.grantee)) end,
                      case when e.is_grantable then ' with grant option' else '' end) as text
        from pg_namespace n cross join aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as e
        where n.nspname = p_base and e.privilege_type = 'USAGE' and e.grantee <> (select oid from pg_roles where rolname = current_user)
        order by 1
    loop
        execute r.text;
    end loop;
    -- by pg_catalog alone from here on: a role that was asked for may call nothing of ours
    for r in
        with v as (
            select x.number, format('%I.%I', p_name, x.view) as view, c.oid, coalesce(c.relacl, acldefault('r', c.relowner)) as rights, c.relrowsecurity,
                   format('%I.%I', x.schema, x."table") as table_name, x.columns
            from rows from (jsonb_to_recordset(p_views) as (view name, schema name, "table" name, columns jsonb)) with ordinality
                as x (view, schema, "table", columns, number)
            left join (pg_class c join pg_namespace n on n.oid = c.relnamespace) on (n.nspname, c.relname) = (x.schema, x."table")
        ), k as (
            select v.number, v.view, v.oid, e.value ->> 0 as shown, e.value ->> 1 as column_name, e.n, a.attnum, a.attacl
            from v cross join lateral jsonb_array_elements(v.columns) with ordinality as e (value, n)
            left join pg_attribute a on a.attrelid = v.oid and a.attname = e.value ->> 1
        ), right_of as (
            select v.number, 1 as part, v.view, '' as column_name, e.privilege_type, e.grantee, e.is_grantable
            from v cross join aclexplode(v.rights) as e
            union all
            select k.number, 2, k.view, format(' (%I)', k.shown), e.privilege_type, e.grantee, e.is_grantable
            from k cross join aclexplode(k.attacl) as e
        )
        select s.text from (
            select v.number, 0 as part, format('create view %s as select %s from %s', v.view,
                   (select string_agg(format('%I as %I', k.column_name, k.shown), ', ' order by k.n) from k where k.number = v.number), v.table_name) as text
            from v
            union all
            select v.number, 1, case when current_setting('server_version_num')::integer >= 150000 then format('alter view %s set (security_invoker = true)', v.view)
                                     when v.relrowsecurity then 'row security ' || v.table_name end
            from v where current_setting('server_version_num')::integer >= 150000 or v.relrowsecurity
            union all
            select v.number, 2, format('comment on view %s is %L', v.view, d.description)
            from v join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = v.oid and d.objsubid = 0
            union all
            select k.number, 2, format('comment on column %s.%I is %L', k.view, k.shown, d.description)
            from k join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = k.oid and d.objsubid = k.attnum
            union all
            select o.number, 3, format('grant %s%s on %s to %s%s', o.privilege_type, o.column_name, o.view,
                                       case o.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(o.grantee)) end,
                                       case when o.is_grantable then ' with grant option' else '' end)
            from right_of o where o.grantee <> (select oid from pg_roles where rolname = current_user)
                and o.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        ) as s order by s.number, s.part, s.text
    loop
        if r.text like 'row security %' then
            raise exception '% has row security, which views of a server before PostgreSQL 15 do not keep', substr(r.text, 14)
                using errcode = 'SA002', hint = 'PostgreSQL 15 or newer at every site, or a change without versions';
        end if;
        execute r.text;
    end loop;
    perform set_config('role', v_role, true);
end
$$;
comment on function syncagent._make_version is 'a schema with a view for each of these tables, its columns as [name in the view, name in the table]; rights and comments are those of the tables';

create function syncagent._drop_version(p_name name, p_role name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_role  text := current_setting('role');
    v_views text;
begin
    delete from syncagent.app_version v where v.name = p_name;
    if not found then
        return;
    end if;
    if p_role is not null then
        perform set_config('role', p_role, true);
    end if;
    select string_agg(format('%I.%I', p_name, c.relname), ', ' order by c.relname) into v_views
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = p_name and c.relkind = 'v';
    if v_views is not null then
        execute 'drop view ' || v_views;
    end if;
    execute format('drop schema if exists %I', p_name);   -- without cascade: what somebody else has put there is said
    perform set_config('role', v_role, true);
end
$$;
comment on function syncagent._drop_version is 'drop a version''s views and their schema; nothing, if it is not here';

create function syncagent._views_aside() returns jsonb
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_kept jsonb;
    v_text text;
begin
    select coalesce(jsonb_agg(jsonb_build_array(pg_get_userbyid(c.relowner), m.text) order by c.oid, m.part, m.text), '[]'),
           'drop view ' || string_agg(distinct format('%I.%I', n.nspname, c.relname), ', ') into v_kept, v_text
    from syncagent.app_version v join pg_namespace n on n.nspname = v.name join pg_class c on c.relnamespace = n.oid and c.relkind = 'v'
    cross join lateral (
        select 0 as part, format('create view %I.%I%s as %s', n.nspname, c.relname, ' with (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(c.oid)) as text
        union all
        select 1, format('comment on %s %s is %L', i.type, i.identity, d.description)
        from pg_description d cross join lateral pg_identify_object('pg_class'::regclass, c.oid, 0) as i
        where d.classoid = 'pg_class'::regclass and d.objoid = c.oid and d.objsubid = 0
        union all
        select 1, format('comment on column %I.%I.%I is %L', n.nspname, c.relname, a.attname, d.description)
        from pg_description d join pg_attribute a on a.attrelid = c.oid and a.attnum = d.objsubid
        where d.classoid = 'pg_class'::regclass and d.objoid = c.oid
        union all
        select 2, format('grant %s%s on %I.%I to %s%s', e.privilege_type, e.part, n.nspname, c.relname,
                         case e.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(e.grantee)) end, case when e.is_grantable then ' with grant option' else '' end)
        from (
            select x.*, '' as part from aclexplode(c.relacl) as x
            union all
            select x.*, format(' (%I)', a.attname) from pg_attribute a cross join aclexplode(a.attacl) as x where a.attrelid = c.oid
        ) as e where e.grantee <> c.relowner
    ) as m;
    if v_text is not null then
        execute v_text;
    end if;
    return v_kept;
end
$$;
comment on function syncagent._views_aside is 'drop the views of all versions; returns what makes them again, each statement with its owner';

create function syncagent._views_back(p_kept jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_role text := current_setting('role');
    r      record;
begin
    for r in select e.value ->> 0 as owner, e.value ->> 1 as text from jsonb_array_elements(p_kept) with ordinality as e (value, n) order by e.n loop
        if r.owner <> current_user then
            perform set_config('role', r.owner, true);
        end if;
        execute r.text;
    end loop;
    perform set_config('role', v_role, true);
end
$$;
comment on function syncagent._views_back is 'make the views again that were set aside';

create function syncagent.version_users(p_name name) returns table (who text, how text)
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    with n as (select n.oid, n.nspname from pg_namespace n where n.nspname = p_name)
    select distinct coalesce('role ' || a.usename, 'a backend'),
           format('has used %s in its transaction (session %s%s, %s)', c.relname, l.pid, coalesce(' of ' || nullif(a.application_name, ''), ''), coalesce(a.state, 'not shown'))
    from n join pg_class c on c.relnamespace = n.oid join pg_locks l on l.locktype = 'relation' and l.relation = c.oid and l.granted
    join pg_stat_activity a on a.pid = l.pid
    where l.pid <> pg_backend_pid() and l.database = (select d.oid from pg_database d where d.datname = current_database())
    union all
    select case when s.setrole = 0 then 'database ' || coalesce(d.datname, '') else 'role ' || pg_get_userbyid(s.setrole) end, 'has it in its search_path, by ' ||
           case when s.setrole = 0 then 'alter database' else 'alter role' end
    from n join pg_db_role_setting s on true left join pg_database d on d.oid = s.setdatabase
    where (s.setdatabase = 0 or d.datname = current_database())
        and exists (select from unnest(s.setconfig) as x (setting) cross join regexp_split_to_table(substr(x.setting, 13), '\s*,\s*') as y (part)
                    where x.setting like 'search_path=%' and btrim(y.part, ' "') = n.nspname)
    union all
    select p.oid::regprocedure::text, 'has it in its search_path'
    from n join pg_proc p on exists (
        select from unnest(p.proconfig) as x (setting) cross join regexp_split_to_table(substr(x.setting, 13), '\s*,\s*') as y (part)
        where x.setting like 'search_path=%' and btrim(y.part, ' "') = n.nspname)
    union all
    select distinct pg_describe_object('pg_class'::regclass, o.oid, 0), 'reads ' || c.relname
    from n join pg_class c on c.relnamespace = n.oid join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid
    join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
    join pg_class o on o.oid = w.ev_class and o.relnamespace <> n.oid
$$;
comment on function syncagent.version_users(name) is 'who still uses a version of the application''s schema, as far as a server tells: transactions open right now, roles, databases and functions whose search path names it, other views';
