-- Settling a conflict by hand: an ordinary write of whoever asks, with his rights, captured and shipped like any other.

create function syncagent._may_see(p_role name, p_schema name, p_table name) returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce((
        select has_table_privilege(p_role, c.oid, 'select')
           and (not c.relrowsecurity or r.rolsuper or r.rolbypassrls or pg_has_role(p_role, c.relowner, 'usage') and not c.relforcerowsecurity)
        from pg_class c cross join pg_roles r where c.oid = to_regclass(format('%I.%I', p_schema, p_table)) and r.rolname = p_role), false)
$$;
comment on function syncagent._may_see is 'whether a role may read every row of a table: images of rows are for nobody else';

create function syncagent._must_be_allowed(p_schema name, p_table name, p_what text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if to_regclass(format('%I.%I', p_schema, p_table)) is null then
        raise exception 'table %.% is not at this site', quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA003', hint = 'settle it at a site that has the table: every one shows the conflict';
    elsif not has_table_privilege(session_user, format('%I.%I', p_schema, p_table), p_what) then
        raise exception 'role % may not % table %.%', session_user, p_what, quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA006', hint = format('grant %s on %I.%I to %I', p_what, p_schema, p_table, session_user);
    elsif p_what = 'select' and not syncagent._may_see(session_user, p_schema, p_table) then
        raise exception 'policies of table %.% hide rows from role %', quote_ident(p_schema), quote_ident(p_table), session_user
            using errcode = 'SA006', hint = 'ask whoever sees all of them: its owner, or a role with bypassrls';
    end if;
end
$$;
comment on function syncagent._must_be_allowed is 'an error, which says what to grant, unless whoever is logged in may select, update or delete rows of a table; select means every row';

create function syncagent._attached(p_schema name, p_table name) returns syncagent.replicated
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
begin
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation
    where r.schema_name = p_schema and r.table_name = p_table;
    if not found then
        raise exception 'table %.% is attached no more', quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA003', hint = format('syncagent attach %s', format('%I.%I', p_schema, p_table));
    end if;
    return v_table;
end
$$;
comment on function syncagent._attached is 'an attached table by its name, or an error';

create function syncagent._statement(p_schema name, p_table name, p_key text, p_image jsonb, p_columns boolean) returns text
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id     integer := (syncagent._attached(p_schema, p_table)).id;
    v_tokens jsonb;
    v_held   boolean;
    v_set    text;
    v_insert text;
begin
    v_tokens := syncagent._tokens(v_id);
    v_tokens := v_tokens || jsonb_build_object('image', quote_literal(p_image) || '::jsonb',
        'named', syncagent._with_key(v_tokens ->> 'named', p_key));
    perform syncagent._must_be_allowed(p_schema, p_table, 'update');
    if p_image is null then
        return syncagent._render('delete from {table} t using {named} where {t_eq_f}', v_tokens);
    end if;
    execute format('select syncagent.holds_%s($1, $2)', v_id) into v_held using p_key, '{}'::jsonb;
    select string_agg(format('%I', u.c), ', ' order by u.n) filter (where u.c <> all (r.key_columns) and p_image ? u.c::text and a.attidentity <> 'a'),
           string_agg(format('%I', u.c), ', ' order by u.n) filter (where p_image ? u.c::text)
    into v_set, v_insert
    from syncagent.replicated r cross join lateral unnest(r.columns) with ordinality as u (c, n)
    join pg_attribute a on a.attrelid = r.relation and a.attname = u.c where r.id = v_id;
    v_tokens := v_tokens || jsonb_build_object('set', v_set, 'insert', v_insert);
    if v_set is null and p_columns then
        raise exception 'there is nothing to write: key and generated columns stay as they are'
            using errcode = 'SA004', hint = 'name a column that can be changed';
    elsif v_held and v_set is null then
        return null;   -- it is the key alone, and is there
    elsif v_held then
        return syncagent._render('update {table} t set ({set}) = (select {set} from jsonb_populate_record(t, {image})) from {named} where {t_eq_f}', v_tokens);
    elsif p_columns then
        raise exception 'row % of %.% is deleted', p_key, quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA005', hint = 'take one of the two versions instead';
    end if;
    return syncagent._render('insert into {table} ({insert}) overriding system value select {insert} from jsonb_populate_record(null::{table}, {image})', v_tokens);
end
$$;
comment on function syncagent._statement is 'the statement that makes a row what an image says, null for deleted; of an image with a few columns only those';

create function syncagent._with_key(p_named text, p_key text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    -- in one pass: what is put in is not looked at again
    select case when p_named like '(select p_key::%' then format('(select %L::text::', p_key) || substr(p_named, length('(select p_key::') + 1)
                when p_named like '(select (p_key::%' then format('(select (%L::text::', p_key) || substr(p_named, length('(select (p_key::') + 1) end
$$;
comment on function syncagent._with_key is 'what names a row by the parameter of a function, with the key itself';

create function syncagent._image(p_schema name, p_table name, p_key text) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex'
    as $$
declare
    v_tokens jsonb := syncagent._tokens((syncagent._attached(p_schema, p_table)).id);
    v_image  jsonb;
begin
    execute syncagent._render('select to_jsonb(t.*) from {named} join {table} t on {t_eq_f}', v_tokens || jsonb_build_object(
        'named', syncagent._with_key(v_tokens ->> 'named', p_key))) into v_image;
    return v_image;
end
$$;
comment on function syncagent._image is 'a row as it is here, or null';

create function syncagent._is_still(p_schema name, p_table name, p_key text, p_image jsonb) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when p_image is null then t.image is null
           else t.image is not null and not exists (
               select from unnest((syncagent._attached(p_schema, p_table)).columns) as u (name)
               where p_image ? u.name::text and t.image -> u.name::text is distinct from p_image -> u.name::text) end
    from (select syncagent._image(p_schema, p_table, p_key)) as t (image)
$$;
comment on function syncagent._is_still is 'whether a row is what an image says, null for deleted; of an image with a few columns only those';

create function syncagent._is_settled(p_conflict syncagent.conflict_record) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_conflict.yielded is not null then
        return not syncagent._open(p_conflict.id);
    elsif syncagent._is_merge(p_conflict) then
        return false;
    elsif p_conflict.strategy = 'merge' and p_conflict.columns is not null then
        return not syncagent._are_siblings(p_conflict);
    end if;
    return not syncagent._is_still(p_conflict.schema_name, p_conflict.table_name, p_conflict.key_text, case when p_conflict.columns is null then p_conflict.winning_image
        else (select jsonb_object_agg(u.name, p_conflict.winning_image -> u.name::text) from unnest(p_conflict.columns) as u (name)) end);
end
$$;
comment on function syncagent._is_settled is 'whether somebody has written, since, what a conflict is about';

create function syncagent._resolution(p_conflict uuid, p_writes jsonb, p_undone boolean, out noted syncagent.conflict_record, out writes jsonb)
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record;
    v_last     syncagent.conflict_step;
    v_changed  record;
begin
    select * into v_conflict from syncagent.conflict_record c where c.id = p_conflict for update;
    if not found then
        raise exception 'there is no conflict %', p_conflict using errcode = 'SA005', hint = '`syncagent conflicts list` shows them';
    end if;
    perform syncagent._must_be_allowed(v_conflict.schema_name, v_conflict.table_name, 'update');
    perform syncagent._must_be_allowed(w.schema_name, w.table_name, u.what)   -- what is there is kept, and seen by who sees the conflict
    from (select distinct coalesce(w ->> 'schema', v_conflict.schema_name)::name, coalesce(w ->> 'table', v_conflict.table_name)::name
          from jsonb_array_elements(p_writes) as w) as w (schema_name, table_name) cross join (values ('select'), ('update')) as u (what);
    v_last := syncagent._settlement(p_conflict);
    if p_undone and v_last.what is distinct from 'resolved' then
        raise exception 'conflict % is not resolved', p_conflict
            using errcode = 'SA005', hint = format('settle it: syncagent conflicts resolve %s', p_conflict);
    elsif not p_undone and v_last.what = 'resolved' then
        raise exception 'conflict % was resolved already, by % at %, %', p_conflict, v_last.by_role, syncagent._site_name(v_last.node), v_last.at
            using errcode = 'SA005', hint = format('to choose anew: syncagent conflicts undo %s', p_conflict);
    end if;
    perform syncagent._hold_row(format('%I.%I', a.schema_name, a.table_name)::regclass, w.key)   -- who has it now writes first
    from (select v_conflict.schema_name, v_conflict.table_name, v_conflict.key_text
          union
          select coalesce(w ->> 'schema', v_conflict.schema_name), coalesce(w ->> 'table', v_conflict.table_name), w ->> 'key'
          from jsonb_array_elements(case when p_undone then v_last.writes else p_writes end) as w) as w (schema_name, table_name, key)
    cross join lateral syncagent._attached(w.schema_name, w.table_name) as a;
    if not p_undone and syncagent._is_settled(v_conflict) then
        raise exception 'conflict % is settled: row % of %.% was written since', p_conflict, v_conflict.key_text, quote_ident(v_conflict.schema_name), quote_ident(v_conflict.table_name)
            using errcode = 'SA005', detail = 'to take a version of that time would take back what was written since',
                  hint = format('see select * from syncagent.why(%L, %L); whoever still wants it writes it to the table', format('%I.%I', v_conflict.schema_name, v_conflict.table_name), v_conflict.key_text);
    elsif p_undone then
        select coalesce(w ->> 'schema', v_conflict.schema_name) as schema_name, coalesce(w ->> 'table', v_conflict.table_name) as table_name, w ->> 'key' as key into v_changed
        from jsonb_array_elements(v_last.writes) as w
        where w ? 'made' and not syncagent._is_still(coalesce(w ->> 'schema', v_conflict.schema_name), coalesce(w ->> 'table', v_conflict.table_name), w ->> 'key', nullif(w -> 'made', 'null'))
        limit 1;
        if found then
            raise exception 'row % of %.% was written since conflict % was resolved', v_changed.key, quote_ident(v_changed.schema_name), quote_ident(v_changed.table_name), p_conflict
                using errcode = 'SA005', detail = 'to take the resolution back would take that back, too',
                      hint = format('see select * from syncagent.why(%L, %L); whoever wants it otherwise writes it to the table', format('%I.%I', v_changed.schema_name, v_changed.table_name), v_changed.key);
        end if;
    end if;
    writes := case when p_undone then v_last.writes else (
            -- what was there before, in the opposite order; of a few columns only these
            select jsonb_agg(jsonb_build_object('schema', w.write -> 'schema', 'table', w.write -> 'table', 'key', w.write ->> 'key', 'columns', w.write -> 'columns', 'image', case
                       when (w.write ->> 'columns')::boolean then (select jsonb_object_agg(k, b.image -> k) from jsonb_object_keys(w.write -> 'image') as k)
                       else b.image end) order by w.n desc)
            from jsonb_array_elements(p_writes) with ordinality as w (write, n)
            cross join lateral (
                select syncagent._image(coalesce(w.write ->> 'schema', v_conflict.schema_name), coalesce(w.write ->> 'table', v_conflict.table_name), w.write ->> 'key')) as b (image)) end;
    insert into syncagent.conflict_step (conflict, node, hlc, what, by_role, writes)
    select p_conflict, s.node, greatest(syncagent._tick(), coalesce(v_last.hlc, 0) + 1),   -- above what was known here
           case when p_undone then 'undone' else 'resolved' end, session_user, writes
    from syncagent.local_site s;
    noted := v_conflict;
end
$$;
comment on function syncagent._resolution is 'check that a conflict can be settled, or unsettled, by whoever asks, and note it; the conflict, and the writes that take a resolution back';

create function syncagent._settle_by_hand(p_conflict syncagent.conflict_record, p_writes jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_statement text;
    v_path      text := (select s.reset_val from pg_settings s where s.name = 'search_path');
    v_rows      bigint;
    r           record;
begin
    -- in this order: a value is given up before another row takes it
    for r in select coalesce(w.write ->> 'schema', p_conflict.schema_name) as schema_name, coalesce(w.write ->> 'table', p_conflict.table_name) as table_name,
                    w.write ->> 'key' as key, nullif(w.write -> 'image', 'null') as image, coalesce((w.write ->> 'columns')::boolean, false) as columns
             from jsonb_array_elements(p_writes) with ordinality as w (write, n) order by w.n
    loop
        v_statement := syncagent._statement(r.schema_name, r.table_name, r.key, r.image, r.columns);
        continue when v_statement is null;
        perform set_config('search_path', v_path, true);   -- triggers of the application find what is theirs
        execute v_statement;
        get diagnostics v_rows = row_count;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        if v_rows = 0 and r.image is not null then
            raise exception 'row % of %.% was not written', r.key, quote_ident(r.schema_name), quote_ident(r.table_name)
                using errcode = 'SA005', hint = 'a policy or a trigger of the table keeps it from being written';
        end if;
    end loop;
end
$$;
comment on function syncagent._settle_by_hand is 'write rows as they are to be, with the rights of whoever asks';

create function syncagent._made(p_conflict uuid) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record := syncagent._named(p_conflict);
    v_last     syncagent.conflict_step := syncagent._settlement(p_conflict);
begin
    perform syncagent._must_be_allowed(v_conflict.schema_name, v_conflict.table_name, 'update');
    update syncagent.conflict_step s
    set writes = (
        select jsonb_agg(w.write || jsonb_build_object('made', case
                   when (w.write ->> 'columns')::boolean then (select jsonb_object_agg(k, b.image -> k) from jsonb_object_keys(w.write -> 'image') as k)
                   else b.image end) order by w.n)
        from jsonb_array_elements(s.writes) with ordinality as w (write, n)
        cross join lateral (
            select syncagent._image(coalesce(w.write ->> 'schema', v_conflict.schema_name), coalesce(w.write ->> 'table', v_conflict.table_name), w.write ->> 'key')) as b (image))
    where s.conflict = p_conflict and s.node = (select l.node from syncagent.local_site l) and s.hlc = v_last.hlc and s.what = 'resolved' and s.cut is null;
end
$$;
comment on function syncagent._made is 'note what the rows of a resolution have become by it, before anybody is told of it: it can be taken back as long as they are that';

create function syncagent._resolve(p_conflict uuid, p_writes jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_done record := syncagent._resolution(p_conflict, p_writes, false);
begin
    perform syncagent._settle_by_hand(v_done.noted, p_writes);
    perform syncagent._made(p_conflict);
end
$$;
comment on function syncagent._resolve is 'settle a conflict by these writes, and remember what was there before';

create function syncagent._named(p_conflict uuid) returns syncagent.conflict_record
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record;
begin
    select * into v_conflict from syncagent.conflict_record c where c.id = p_conflict;
    if not found then
        raise exception 'there is no conflict %', p_conflict using errcode = 'SA005', hint = '`syncagent conflicts list` shows them';
    end if;
    perform syncagent._must_be_allowed(v_conflict.schema_name, v_conflict.table_name, 'select');
    return v_conflict;
end
$$;
comment on function syncagent._named is 'a conflict, for whoever may read its table';

create function syncagent.resolve(p_conflict uuid, p_take text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record := syncagent._named(p_conflict);
    v_winner   text := syncagent._site_name(v_conflict.winning_node);
    v_loser    text := syncagent._site_name(v_conflict.losing_node);
    v_loses    boolean;
    v_columns  name[];
begin
    if p_take in (v_winner, v_loser) and v_winner is distinct from v_loser then
        v_loses := p_take = v_loser;
    elsif p_take in ('winner', 'loser') then
        v_loses := p_take = 'loser';
    else
        raise exception '% is neither winner nor loser of conflict %', quote_literal(p_take), p_conflict
            using errcode = 'SA004', hint = format('take winner (%s) or loser (%s)', v_winner, v_loser);
    end if;
    v_columns := syncagent._columns_of(v_conflict);
    if syncagent._is_merge(v_conflict) then
        raise exception 'row % was merged into row %', v_conflict.key_text, v_conflict.other_key_text
            using errcode = 'SA004', hint = format('to have both again: syncagent conflicts undo %s, or resolve %1$s --value with a value of its own', p_conflict);
    elsif v_columns = '{}' and v_conflict.columns is not null then
        raise exception 'there is nothing to choose: % of %.% is merged by now, or is there no more', array_to_string(v_conflict.columns, ', '), quote_ident(v_conflict.schema_name), quote_ident(v_conflict.table_name)
            using errcode = 'SA004', hint = format('whoever wants a version writes it to the table: syncagent conflicts show %s', p_conflict);
    elsif v_columns <> '{}' then   -- what was written to other columns stays
        perform syncagent._resolve(p_conflict, jsonb_build_array(jsonb_build_object('key', v_conflict.key_text, 'columns', true, 'image', (
            select jsonb_object_agg(u.name, case when v_loses then v_conflict.losing_image else v_conflict.winning_image end -> u.name::text) from unnest(v_columns) as u (name)))));
        perform syncagent._settled_columns(format('%I.%I', v_conflict.schema_name, v_conflict.table_name)::regclass, v_conflict.key_text, v_columns) where v_conflict.strategy = 'merge';
    elsif v_conflict.yielded is null then
        perform syncagent._resolve(p_conflict, jsonb_build_array(jsonb_build_object('key', v_conflict.key_text,
            'image', case when v_loses then v_conflict.losing_image else v_conflict.winning_image end)));
    elsif v_loses then
        -- the other row gives the value up, as this one had to, if it still has it
        perform syncagent._resolve(p_conflict, case when not syncagent._still_keeps(p_conflict) then '[]' else jsonb_build_array(
            jsonb_build_object('key', v_conflict.other_key_text, 'columns', true, 'image', syncagent._yielding(v_conflict))) end || jsonb_build_array(
            jsonb_build_object('key', v_conflict.key_text, 'columns', true, 'image', (
                select jsonb_object_agg(k, v_conflict.losing_image -> k) from jsonb_object_keys(v_conflict.yielded) as k))));
    else
        raise exception 'row % has the value already', v_conflict.other_key_text
            using errcode = 'SA004', detail = format('it stays open as long as row %s has no value of its own', v_conflict.key_text),
                  hint = format('give it one: syncagent conflicts resolve %s --value ''{"column": value}''', p_conflict);
    end if;
end
$$;
comment on function syncagent.resolve(uuid, text) is 'settle a conflict: the row becomes what the winner, the loser, or a site wrote; of two rows with one value the loser gets it, and the other one yields';

create function syncagent._is_merge(p_conflict syncagent.conflict_record) returns boolean
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select p_conflict.kind = 'unique' and p_conflict.strategy = 'merge' $$;
comment on function syncagent._is_merge is 'whether a row was merged into another one';

create function syncagent._apart(p_conflict uuid, p_value jsonb) returns jsonb
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record := syncagent._named(p_conflict);
    v_id       integer;
    v_rule     record;
    v_held     boolean;
    v_value    jsonb := p_value;
    v_writes   jsonb;
    r          record;
begin
    select t.id into v_id from syncagent.replicated t where t.schema_name = v_conflict.schema_name and t.table_name = v_conflict.table_name;
    if v_value is null then   -- what it would have yielded
        select u.column_name, u.yields, syncagent._room(a.atttypid, a.atttypmod) as room into v_rule
        from syncagent._rules(v_id) as u join syncagent.replicated t on t.id = v_id
        join pg_attribute a on a.attrelid = t.relation and a.attname = u.column_name where u.name = v_conflict.constraint_name;
        if not found then
            raise exception 'row % needs a value of its own', v_conflict.key_text
                using errcode = 'SA004', detail = format('row %s has that of %s', v_conflict.other_key_text, v_conflict.constraint_name),
                      hint = format('syncagent conflicts resolve %s --value ''{"column": value}''', p_conflict);
        end if;
        v_value := jsonb_build_object(v_rule.column_name, case v_rule.yields when 'suffix'
            then syncagent._marked(v_conflict.losing_image ->> v_rule.column_name::text, v_rule.room, v_conflict.key) end);
    end if;
    v_writes := jsonb_build_array(jsonb_build_object('key', v_conflict.key_text, 'image', v_conflict.losing_image || v_value));
    for r in select f.value as row, t.id from jsonb_array_elements(v_conflict.followed) as f
             join syncagent.replicated t on t.schema_name = f.value ->> 'schema' and t.table_name = f.value ->> 'table'
    loop
        execute format('select syncagent.holds_%s($1, $2)', r.id) into v_held using r.row ->> 'key', r.row -> 'after';
        if v_held then   -- else it was given to somebody else since
            v_writes := v_writes || jsonb_build_object('schema', r.row -> 'schema', 'table', r.row -> 'table', 'key', r.row -> 'key', 'columns', true, 'image', r.row -> 'before');
        end if;
    end loop;
    return v_writes;
end
$$;
comment on function syncagent._apart is 'the writes that take a merge back: the loser as it was, but for these values, and the rows that followed here';

create function syncagent._still_keeps(p_conflict uuid) returns boolean
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record := syncagent._named(p_conflict);
    v_keeps    boolean;
begin
    execute format('select syncagent.holds_%s($1, $2)', (
            select r.id from syncagent.replicated r where r.schema_name = v_conflict.schema_name and r.table_name = v_conflict.table_name))
        into v_keeps using v_conflict.other_key_text,
            (select jsonb_object_agg(k, v_conflict.winning_image -> k) from jsonb_object_keys(v_conflict.yielded) as k);
    return coalesce(v_keeps, false);
end
$$;
comment on function syncagent._still_keeps is 'whether the other row of a collision still has the value';

create function syncagent._yielding(p_conflict syncagent.conflict_record) returns jsonb
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    -- null, or the mark of the other row
    select jsonb_object_agg(y.key, case when y.value = 'null' then 'null'::jsonb else to_jsonb(
        syncagent._marked(p_conflict.winning_image ->> y.key, length(y.value #>> '{}'), p_conflict.other_key)) end)
    from jsonb_each(p_conflict.yielded) as y
$$;
comment on function syncagent._yielding is 'what the column of the other row of a collision becomes if that one yields';

create function syncagent.resolve_with(p_conflict uuid, p_value jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record := syncagent._named(p_conflict);
    v_unknown  text;
begin
    if jsonb_typeof(p_value) is distinct from 'object' or p_value = '{}' then
        raise exception 'the value is no object of columns' using errcode = 'SA004', hint = 'write {"column": value, ...}';
    end if;
    select string_agg(quote_ident(k.name), ', ' order by k.name) into v_unknown
    from jsonb_object_keys(p_value) as k (name)
    where not coalesce(v_conflict.winning_image, v_conflict.losing_image) ? k.name;
    if v_unknown is not null then
        raise exception 'table %.% has no column %', quote_ident(v_conflict.schema_name), quote_ident(v_conflict.table_name), v_unknown
            using errcode = 'SA004', hint = format('its columns are %s', (
                select string_agg(quote_ident(k), ', ') from jsonb_object_keys(coalesce(v_conflict.winning_image, v_conflict.losing_image)) as k));
    end if;
    perform syncagent._resolve(p_conflict, case when syncagent._is_merge(v_conflict) then syncagent._apart(p_conflict, p_value)
        else jsonb_build_array(jsonb_build_object('key', v_conflict.key_text, 'columns', true, 'image', p_value)) end);
end
$$;
comment on function syncagent.resolve_with(uuid, jsonb) is 'settle a conflict: these columns of the row get these values; one that was merged into another comes back with them';

create function syncagent.drop_parked(p_table regclass, p_key text) returns uuid
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_row      record := syncagent._row(p_table, p_key);
    v_parked   syncagent.parked_row;
    v_site     syncagent.local_site;
    v_table    syncagent.replicated;
    v_hlc      bigint;
    v_image    jsonb;
    v_conflict uuid;
begin
    select * into strict v_table from syncagent.replicated r where r.id = v_row.relation;
    perform syncagent._must_be_allowed(v_table.schema_name, v_table.table_name, 'update');
    perform syncagent._must_be_allowed(v_table.schema_name, v_table.table_name, 'delete');
    delete from syncagent.parked_row p where p.relation = v_row.relation and p.key = v_row.key returning * into v_parked;
    if not found then
        raise exception 'row % of % is not parked', p_key, p_table using errcode = 'SA005', hint = '`syncagent parked list` shows those that are';
    end if;
    select * into strict v_site from syncagent.local_site;
    v_image := syncagent._image(v_table.schema_name, v_table.table_name, p_key);
    v_hlc := syncagent._tick();   -- above the parked version: applying it has lifted the clock
    insert into syncagent.log (xid, relation, op, hlc, keys, odd)
    select pg_current_xact_id(), v_table.id, case when v_image is null then 'D' else 'U' end::"char", v_hlc, array[v_row.key],
           case when v_table.derived then array[syncagent._odd_of(v_table, p_key)] end;
    v_conflict := syncagent._conflict_id(format('%I.%I', v_table.schema_name, v_table.table_name), v_row.key, syncagent._stamp(v_hlc, v_site.tail), v_parked.stamp);
    insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
        winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
    values (v_conflict, v_table.schema_name, v_table.table_name, v_row.key, p_key, 'parked', 'drop',
        syncagent._stamp(v_hlc, v_site.tail), v_parked.stamp, v_site.node, v_parked.node, v_image, v_parked.shown);
    return v_conflict;
end
$$;
comment on function syncagent.drop_parked(regclass, text) is 'give a parked version up: the row as it is here is written anew, or deleted, at every site; the version that was parked is kept as a conflict, whose id is returned';

create function syncagent._odd_of(p_table syncagent.replicated, p_key text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select case cardinality(p_table.key_columns) when 1 then row(p_key)::text else p_key end $$;
comment on function syncagent._odd_of is 'a derived key as the log has it';

create function syncagent.undo(p_conflict uuid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_conflict syncagent.conflict_record := syncagent._named(p_conflict);
    v_done     record;
begin
    if syncagent._is_merge(v_conflict) and (select c.resolved_at from syncagent.conflict c where c.id = p_conflict) is null then
        perform syncagent._resolve(p_conflict, syncagent._apart(p_conflict, null));
        return;
    end if;
    v_done := syncagent._resolution(p_conflict, null, true);
    perform syncagent._settle_by_hand(v_done.noted, v_done.writes);
end
$$;
comment on function syncagent.undo(uuid) is 'take a resolution back: its rows become what they were before it; or a merge that nobody has resolved: both rows live, and what followed goes back';
