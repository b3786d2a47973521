-- What a function of the application makes of siblings: `--merge COLUMN=function:SCHEMA.NAME`.
--
-- It takes two values of the column and returns one; of several siblings it is called again with what it has made so far. Siblings are joined
-- as those that show the latest, and that is what the row shows while the function fails. What it makes is shown, and not written: every site
-- makes the same of the same siblings. `merge_result` says which siblings that was done for; what it does not say yet is done anew, so
-- that no way on which a row comes need know of it. Entries are dropped only when that is said, too (`_are_made`).
--
-- What was agreed on is the function's name and a digest of its definition. It runs as the owner of the table, as its CHECKs could, under a time limit.
--
-- tests/model/merging.py has it in its siblings; docs/decisions/0017-strategies.md says why it is so.

create function syncagent._siblings_of(p_column jsonb) returns text
    language sql immutable
    as $$
    select string_agg(p.value ->> 0, ',' order by (p.value ->> 0) collate "C")
    from jsonb_each(case jsonb_typeof(p_column) when 'object' then p_column else '{}' end) as p having count(*) > 1
$$;
comment on function syncagent._siblings_of is 'the stamps of the siblings of a column; null if it has none';

create function syncagent._are_made(p_relation integer, p_key uuid, p_registers jsonb, p_columns text[]) returns boolean
    language sql stable
    as $$
    select not exists (
        select from unnest(p_columns) as c (name)
        where syncagent._siblings_of(p_registers -> c.name) is not null and not exists (
            select from syncagent.merge_result m
            where (m.relation, m.key, m.column_name, m.siblings) = (p_relation, p_key, c.name::name, syncagent._siblings_of(p_registers -> c.name)) and m.reason is null))
$$;
comment on function syncagent._are_made is 'whether a row shows what functions make of the siblings in these columns';

create function syncagent._takes_type(p_taken oid, p_type regtype) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select p_taken = p_type or p_type = 'varchar'::regtype and p_taken = 'text'::regtype or p_taken in ('anyelement'::regtype, 'anycompatible'::regtype)
        or case t.typtype when 'r' then p_taken in ('anyrange'::regtype, 'anycompatiblerange'::regtype) when 'e' then p_taken = 'anyenum'::regtype
                          when 'm' then p_taken in ('anymultirange'::regtype, 'anycompatiblemultirange'::regtype)
                          else t.typelem <> 0 and t.typsubscript = 'array_subscript_handler'::regproc and p_taken in ('anyarray'::regtype, 'anycompatiblearray'::regtype) end
    from pg_type t where t.oid = p_type
$$;
comment on function syncagent._takes_type is 'whether a function that takes this takes values of that type';

create function syncagent._merge_function(p_table regclass, p_column name, p_how text,
                                          out called text, out type text, out is_strict boolean, out owner name, out digest text, out problem text, out hint text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_words text[];
    v_base  regtype;
    v_found record;
begin
    begin
        v_words := parse_ident(regexp_replace(substr(p_how, 10), '@[0-9a-f]{12}$', ''));
    exception when invalid_parameter_value then
        null;
    end;
    if cardinality(v_words) is distinct from 2 then
        problem := format('%L names no function with its schema', substr(p_how, 10)); hint := 'write function:SCHEMA.NAME, as in SQL';
        return;
    end if;
    select syncagent._base_type(a.atttypid), pg_get_userbyid(c.relowner) into v_base, owner
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = p_column and not a.attisdropped where c.oid = p_table;
    called := format('%I.%I', v_words[1], v_words[2]); type := format_type(v_base, -1);
    select p.oid, p.provolatile, p.proisstrict, p.proowner, p.proargtypes[0] as taken,
           left(md5(concat_ws(E'\n', l.lanname, p.prosrc, p.probin, pg_get_function_sqlbody(p.oid), p.provolatile, p.proisstrict, p.prosecdef, array_to_string(p.proconfig, ','), p.prorettype::regtype)), 12) as digest
    into v_found
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
    where n.nspname = v_words[1] and p.proname = v_words[2] and p.pronargs = 2 and p.prokind = 'f' and not p.proretset and p.provariadic = 0
      and p.proargtypes[0] = p.proargtypes[1] and p.prorettype = p.proargtypes[0] and syncagent._takes_type(p.prorettype, v_base)
    order by p.prorettype = v_base desc, p.prorettype limit 1;
    if not found then
        problem := format('there is no function %s(%s, %2$s) that returns %2$s', called, type); hint := 'create it, at every site alike';
        return;
    end if;
    is_strict := v_found.proisstrict; digest := v_found.digest;
    if v_found.provolatile <> 'i' then
        problem := format('function %s is not declared immutable: what it makes may differ from site to site', called);
        hint := format('if it is: alter function %s(%s, %2$s) immutable', called, format_type(v_found.taken, -1));
    elsif pg_get_userbyid(v_found.proowner) not in (owner, current_user) and not (select r.rolsuper from pg_roles r where r.oid = v_found.proowner) then
        problem := format('function %s belongs to %s, and not to the owner of the table, as whom it runs', called, pg_get_userbyid(v_found.proowner));
        hint := format('alter function %s(%s, %2$s) owner to %I', called, format_type(v_found.taken, -1), owner);
    elsif not has_function_privilege(owner, v_found.oid, 'execute') or not has_schema_privilege(owner, v_words[1], 'usage') then
        problem := format('the owner of the table, %s, may not call function %s', owner, called);
        hint := format('grant usage on schema %I to %I; grant execute on function %s(%s, %4$s) to %2$I', v_words[1], owner, called, format_type(v_found.taken, -1));
    elsif not pg_has_role(owner, 'member') then
        problem := format('function %s runs as the owner of the table, %s, whom %s cannot become', called, owner, current_user); hint := format('grant %I to %I', owner, current_user);
    elsif digest <> substring(p_how from '@([0-9a-f]{12})$') then
        problem := format('function %s is another one than was agreed on', called);
        hint := 'make it here as it is at the other sites; or, with the new one at every site: syncagent strategy TABLE merge --merge COLUMN=function:' || called;
    end if;
end
$$;
comment on function syncagent._merge_function is 'the function that merges a column, named function:SCHEMA.NAME, and @ with the digest that was agreed on; what is the matter with it, and what mends that';

create function syncagent._pinned(p_table regclass, p_merges jsonb) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(jsonb_object_agg(e.key, case when f.digest is null or e.value ~ '@[0-9a-f]{12}$' then e.value else format('function:%s@%s', f.called, f.digest) end), '{}')
    from jsonb_each_text(p_merges) as e left join lateral syncagent._merge_function(p_table, e.key::name, e.value) as f on e.value like 'function:%'
$$;
comment on function syncagent._pinned is 'how columns are merged, functions with their digests';

create function syncagent._asked(p_parts jsonb, p_function record, p_stopped text, out value text, out reason text, out tried_at timestamptz, out stopped boolean)
    language plpgsql volatile
    as $$
declare
    v_values text[] := array(select x.v from (select p.value ->> 2 as v, min((p.value ->> 0) collate "C") as stamp from jsonb_each(p_parts) as p group by 1) as x order by x.stamp);
    v_role   text := current_setting('role');
    v_call   text := format('select %s($1::%s, $2::%2$s)::text', p_function.called, p_function.type);
    v_value  text;
begin
    stopped := false;
    reason := coalesce(p_function.problem, p_stopped, nullif(current_setting('syncagent.merge_stopped', true), ''));
    if reason is not null then
        return;
    end if;
    tried_at := clock_timestamp();
    begin
        perform set_config('role', p_function.owner, true);
        for v_turn in 1..2 loop   -- in the order of the stamps, and in the other
            v_value := v_values[1];
            for v_next in 2..cardinality(v_values) loop
                if p_function.is_strict and (v_value is null or v_values[v_next] is null) then
                    v_value := coalesce(v_value, v_values[v_next]);
                else
                    execute v_call into v_value using v_value, v_values[v_next];
                end if;
            end loop;
            if v_turn = 2 and v_value is distinct from value then
                reason := format('%s makes %L of the values in one order, and %L in the other', p_function.called, coalesce(value, 'null'), coalesce(v_value, 'null'));
            end if;
            value := v_value;
            v_values := array(select u.v from unnest(v_values) with ordinality as u (v, n) order by u.n desc);
        end loop;
        perform set_config('role', v_role, true);
    exception
        when query_canceled then   -- the limit holds once in a statement: nothing is asked after this
            stopped := true;
            reason := format('%s was stopped: it took longer than %s', p_function.called, current_setting('statement_timeout'));
            perform set_config('syncagent.merge_stopped', reason, true);
        when others then
            reason := format('%s: %s', p_function.called, sqlerrm);
    end;
    if reason is not null then
        value := null;
    end if;
end
$$;
comment on function syncagent._asked is 'what a function makes of siblings, or why it makes nothing of them';

create function syncagent._make(p_relation integer, p_keys uuid[], p_again boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_table  syncagent.replicated;
    v_tokens jsonb := syncagent._tokens(p_relation);
    v_keys   uuid[];
    v_key    uuid;
    v_stopped text;
    r        record;
begin
    select * into strict v_table from syncagent.replicated where id = p_relation;
    for r in
        select e.key::name as name, f.* from jsonb_each_text(v_table.merges) as e
        cross join lateral syncagent._merge_function(v_table.relation, e.key::name, e.value) as f where e.value like 'function:%' order by e.key
    loop
        execute syncagent._render($sql$
            select array_agg(x.key) from (
                select v.key from syncagent.version_{id} v join {table} t on {t_eq_v}
                left join syncagent.merge_result m on (m.relation, m.key, m.column_name) = ({id}, v.key, $2)
                where not v.deleted and ($1 is null or v.key = any ($1)) and syncagent._siblings_of(v.registers -> $2::text) is not null
                  and (m.key is null or m.siblings <> syncagent._siblings_of(v.registers -> $2::text) or m.reason is not null and $3)
                  and not exists (select from syncagent.parked_row w where w.relation = {id} and w.key = v.key)
                order by m.tried_at nulls first, v.key limit case when $1 is null then 1000 end
                for no key update of t skip locked) as x $sql$, v_tokens) into v_keys using p_keys, r.name, p_again;
        continue when v_keys is null;
        if p_keys is not null then   -- one that was stopped holds up no batch until it has been tried again
            select min(m.reason) into v_stopped from syncagent.merge_result m where (m.relation, m.column_name) = (p_relation, r.name) and m.stopped;
        end if;
        execute syncagent._render($sql$
            insert into syncagent.merge_result as m (relation, key, column_name, siblings, value, reason, tried_at, stopped)
            select {id}, d.key, $2, syncagent._siblings_of(d.parts), a.*
            from (
                select v.key, case when n.key is null then v.registers else syncagent._registers({id}, v.key) end -> $2::text as parts
                from syncagent.version_{id} v
                left join (select distinct k.key from syncagent._last_cut() c join syncagent.log l on l.xid >= c.xmax or l.xid = any (c.xip)
                           cross join lateral unnest(l.keys) as k (key) where l.relation = {id}) as n on n.key = v.key
                where v.key = any ($1) offset 0
            ) as d cross join lateral syncagent._asked(d.parts, $3, $4) as a
            where syncagent._siblings_of(d.parts) is not null
            on conflict (relation, key, column_name) do update
                set siblings = excluded.siblings, value = excluded.value, reason = excluded.reason, tried_at = excluded.tried_at, stopped = excluded.stopped $sql$, v_tokens)
        using v_keys, r.name, r, v_stopped;
        begin
            perform syncagent._show_made(v_tokens, r.name, r.type, v_keys);
        exception when others then
            if not syncagent._may_park(sqlstate) then
                raise;
            end if;
            foreach v_key in array v_keys loop
                begin
                    perform syncagent._show_made(v_tokens, r.name, r.type, array[v_key]);
                exception when others then
                    update syncagent.merge_result m set value = null, reason = format('what %s makes of them does not fit the table: %s', r.called, sqlerrm)
                    where (m.relation, m.key, m.column_name) = (p_relation, v_key, r.name);
                end;
            end loop;
        end;
    end loop;
end
$$;
comment on function syncagent._make is 'rows of a table show what functions make of their siblings: of these keys, or all; again: also where it has failed. Rows that others hold are left for the next time';

create function syncagent._show_made(p_tokens jsonb, p_column name, p_type text, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute syncagent._render(replace(replace($sql$
        with shown as (
            update {table} t set $column = m.value::$type
            from syncagent.version_{id} v join syncagent.merge_result m on (m.relation, m.key, m.column_name) = ({id}, v.key, $2) and m.reason is null
            where v.key = any ($1) and {t_eq_v} and t.$column::text is distinct from m.value
            returning v.key
        )
        insert into syncagent.mark (relation, keys)
        select {id}, array_agg(s.key) from shown s join syncagent.forest f on f.relation = {id}
        where s.key < syncagent._first_key(f.horizon * syncagent._width(f.bucket, true), true) or not syncagent._timed(s.key) having count(*) > 0
        $sql$, '$column', quote_ident(p_column)), '$type', p_type), p_tokens) using p_keys, p_column;
end
$$;
comment on function syncagent._show_made is 'rows show what was made of their siblings: no write of this site';

create function syncagent._make_staged(p_relations integer[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id   integer;
    v_keys uuid[];
begin
    perform set_config('syncagent.merge_stopped', '', true);
    foreach v_id in array p_relations loop
        execute syncagent._render('select array_agg(s._key) from {stage} s join syncagent.version_{id} v on v.key = s._key where exists ('
            'select from jsonb_each(v.registers) as e where syncagent._siblings_of(e.value) is not null)', syncagent._tokens(v_id)) into v_keys;
        perform syncagent._make(v_id, v_keys, true) where v_keys is not null;
    end loop;
exception when query_canceled then
    null;   -- time was up elsewhere than in a function: the rows show the latest until they are tried again
end
$$;
comment on function syncagent._make_staged is 'the same, of rows that have just come';

create function syncagent._make_again(p_relation integer, p_again boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform set_config('syncagent.merge_stopped', '', true);
    execute format('delete from syncagent.merge_result m where m.relation = %1$s and not exists (select from syncagent.version_%1$s v'
                   ' where v.key = m.key and not v.deleted and syncagent._siblings_of(v.registers -> m.column_name::text) = m.siblings)', p_relation);
    perform syncagent._make(p_relation, null, p_again);
exception when query_canceled then
    null;
end
$$;
comment on function syncagent._make_again is 'the same, of all rows of a table of which it is not said';

create function syncagent._with_functions() returns integer[]
    language sql stable
    as $$ select array(select r.id from syncagent.replicated r where exists (select from jsonb_each_text(r.merges) as e where e.value like 'function:%') order by r.id) $$;
comment on function syncagent._with_functions is 'the tables of which columns are merged by functions of the application';

-- Is it fit to? `syncagent merge check` ------------------------------------------------------------------------

create function syncagent._tried(p_called text, p_type text, p_strict boolean, p_owner name, p_one text, p_other text, out value text, out reason text)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_role text := current_setting('role');
begin
    reason := nullif(current_setting('syncagent.merge_stopped', true), '');
    if reason is not null then
        return;
    elsif p_strict and (p_one is null or p_other is null) then
        value := coalesce(p_one, p_other);
        return;
    end if;
    perform set_config('role', p_owner, true);
    execute format('select %s($1::%s, $2::%2$s)::text', p_called, p_type) into value using p_one, p_other;
    perform set_config('role', v_role, true);
exception
    when query_canceled then
        perform set_config('syncagent.merge_stopped', 'not asked any more', true);
        reason := format('it was stopped: it took longer than %s', current_setting('statement_timeout'));
    when others then
        reason := sqlerrm;
end
$$;
comment on function syncagent._tried is 'what a function makes of two values, as _asked asks it; or what it says instead';
