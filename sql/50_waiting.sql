-- How a merge waits for rows and tables that others hold: in front of them, holding nothing, and never for long.
--
-- Whoever waits for a row is waited for, so what is only to be known is looked at, and a refusal says which row it was.

create function syncagent._await_refused(p_relations integer[], p_milliseconds integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_waited boolean := false;
    v_id     integer;
begin
    foreach v_id in array p_relations loop
        execute format('select syncagent.await_%s($1)', v_id) into v_waited using p_milliseconds;
        exit when v_waited;
    end loop;
    return v_waited;
end
$$;
comment on function syncagent._await_refused is 'wait for one row that others hold, holding nothing else; the first step of a merge that was refused twice';

-- Rows of which some are always in somebody's hands are never to be had all at once, one by one. In front of the table they are: who has
-- begun to write there comes to his end, for he waits for nobody who waits here, and who comes then waits for as long as the merge takes.
-- Whose row does not come free by itself would only keep all others out: such a row is waited for, and its table is not.
create function syncagent._lock_tables(p_relations integer[], p_milliseconds integer) returns table (relation integer)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_name text;
begin
    perform set_config('lock_timeout', p_milliseconds::text, true);
    for relation, v_name in
        select t.id, format('%I.%I', n.nspname, c.relname)
        from syncagent.replicated t join pg_class c on c.oid = t.relation join pg_namespace n on n.oid = c.relnamespace
        where t.id = any (p_relations) order by t.id
    loop
        execute format('lock table %s in exclusive mode', v_name);
        -- who wants the first by now may hold the next: all others together are waited for much shorter than until he looks for a deadlock
        perform set_config('lock_timeout', greatest(10, least(p_milliseconds, 300) / cardinality(p_relations))::text, true);
        return next;
    end loop;
end
$$;
comment on function syncagent._lock_tables is 'wait until nobody writes these tables, holding nothing else; the first step of a merge for which that was needed lately';

create function syncagent._not_free(p_relations integer[]) returns setof integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_refused uuid;
    v_id      integer;
begin
    foreach v_id in array p_relations loop
        execute format('select syncagent.refused_%s()', v_id) into v_refused;
        if v_refused is not null then
            return next v_id;
        end if;
    end loop;
end
$$;
comment on function syncagent._not_free is 'those of these tables of which a row of the batch is held by others';

create function syncagent._in_turn(p_relations integer[], p_milliseconds integer) returns setof integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_found boolean;
    v_id    integer;
begin
    foreach v_id in array p_relations loop
        execute format('select syncagent.in_turn_%s($1)', v_id) into v_found using p_milliseconds;
        if v_found then
            return next v_id;
        end if;
    end loop;
end
$$;
comment on function syncagent._in_turn is 'those of these tables of which a row of the batch is held, and within so long comes free, or was written: all of them may be had by who waits for the table. Nobody waits for who only looks';

-- Rows that do not come with the batch, but must be written because of it (they yield, follow, or go): nobody sees beforehand which
-- they are, so a refusal says it.
create function syncagent._contend(p_tokens jsonb, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_here uuid[];
    v_free uuid[];
begin
    execute syncagent._render('select array(select {key} from {table} t where {key} = any ($1))', p_tokens) into v_here using p_keys;
    execute syncagent._render('select array(select k.key from (select {key} as key from {table} t where {key} = any ($1) for update of t skip locked) as k)', p_tokens)
        into v_free using p_keys;
    raise exception 'a row of % that is to be written with the batch is written by others', p_tokens ->> 'title' using errcode = 'SA101', table = p_tokens ->> 'id',
        detail = coalesce((select k from unnest(v_here) as k order by k = any (v_free), k limit 1)::text, '');
end
$$;
comment on function syncagent._contend is 'say that others are at one of these rows, and which one';

create function syncagent._hold(p_tokens jsonb, p_rows text, p_lock text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_keys uuid[];
begin
    execute syncagent._render(format('select from %s order by {key} for %s of t', p_rows, p_lock), p_tokens);
exception when lock_not_available then
    execute syncagent._render(format('select array(select {key} from %s)', p_rows), p_tokens) into v_keys;
    perform syncagent._contend(p_tokens, v_keys);
end
$$;
comment on function syncagent._hold is 'lock rows that are to be written: from here on they stay where they are';

create function syncagent._change(p_tokens jsonb, p_statement text, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_count bigint;
begin
    execute syncagent._render(p_statement, p_tokens) using p_keys;
    get diagnostics v_count = row_count;
    if v_count < cardinality(p_keys) then
        perform syncagent._contend(p_tokens, p_keys);
    end if;
exception when lock_not_available then
    perform syncagent._contend(p_tokens, p_keys);
end
$$;
comment on function syncagent._change is 'a statement that writes these rows, all of them, as they were found';

create function syncagent._await_row(p_relation integer, p_key uuid, p_milliseconds integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform set_config('lock_timeout', p_milliseconds::text, true);
    execute (select syncagent._render('select from {table} t where {key} = $1 for update of t', syncagent._tokens(r.id))
             from syncagent.replicated r where r.id = p_relation) using p_key;
end
$$;
comment on function syncagent._await_row is 'wait for the row that a merge was refused for, holding nothing else';
