-- Triggers and functions of attached tables: made, looked after, taken away. Their text comes from the templates of 30_capture.

create function syncagent._disarm(p_node regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in
        select t.tgname, n.nspname, c.relname from pg_trigger t
        join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
        where t.tgrelid = p_node and not t.tgisinternal
          and t.tgname in ('syncagent_insert', 'syncagent_update', 'syncagent_delete', 'syncagent_key', 'syncagent_truncate')
    loop
        execute format('drop trigger %I on %I.%I', r.tgname, r.nspname, r.relname);
    end loop;
end
$$;
comment on function syncagent._disarm is 'drop our triggers on a table';

create function syncagent._drop_functions(p_id integer, p_table regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    perform syncagent._disarm(x.node) from (   -- partitions that were detached still have theirs
        select p_table as node union
        select t.tgrelid from pg_trigger t join pg_proc p on p.oid = t.tgfoid
        where p.pronamespace = 'syncagent'::regnamespace and p.proname in (format('capture_%s', p_id), format('capture_%s_key', p_id), format('capture_%s_columns', p_id))) as x;
    for r in
        select p.oid::regprocedure::text as name from pg_proc p
        where p.pronamespace = 'syncagent'::regnamespace and p.proname ~ format('_%s(_key|_columns)?$', p_id)
    loop
        execute format('drop function %s', r.name);
    end loop;
end
$$;
comment on function syncagent._drop_functions is 'drop triggers and generated functions of an attached table';

-- Who else sets a key than who names it? A trigger before the write, and nobody else. Where there is none, the key is
-- not compared at each update: that is a sixth of what capture costs.
create function syncagent._rewritten(p_node regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select exists (select from pg_trigger where tgrelid = p_node and tgtype::integer & 19 = 19) $$;
comment on function syncagent._rewritten is 'whether a table has row triggers before an update';

create function syncagent._arm(p_id integer, p_node regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_id);
    v_node   text;
    v_partitioned boolean;
    v_by_column boolean;
begin
    select format('%I.%I', n.nspname, c.relname) into strict v_node
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_node;
    select c.relkind = 'p', r.strategy <> 'lww' into strict v_partitioned, v_by_column
    from syncagent.replicated r join pg_class c on c.oid = r.relation where r.id = p_id;
    execute syncagent._render(syncagent._trigger_template(v_partitioned, v_by_column), v_tokens || jsonb_build_object(
        'node', v_node, 'of_key', case when syncagent._rewritten(p_node) then '' else 'of ' || (v_tokens ->> 'key_names') end));
end
$$;
comment on function syncagent._arm is 'make the triggers of an attached table on it, or on one of its partitions';

create function syncagent._generate(p_id integer) returns text
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_text record := syncagent._text(p_id);
    r      record;
begin
    perform syncagent._drop_functions(p_id, t.relation) from syncagent.replicated t where t.id = p_id;
    if to_regclass(format('syncagent.version_%s', p_id)) is null then
        execute v_text.version;
    end if;
    execute v_text.functions;
    perform syncagent._arm(p_id, x.node) from syncagent.replicated t cross join lateral syncagent._nodes(t.relation) as x (node)
    where t.id = p_id order by x.node::oid;
    for r in
        select p.oid::regprocedure::text as name from pg_proc p
        where p.pronamespace = 'syncagent'::regnamespace and p.proname ~ format('_%s(_key|_columns)?$', p_id)
    loop
        execute format('revoke all on function %s from public', r.name);
        execute format('comment on function %s is %L', r.name, 'syncagent ' || v_text.hash);
    end loop;
    update syncagent.replicated set text_hash = v_text.hash where id = p_id;
    return v_text.hash;
end
$$;
comment on function syncagent._generate is 'make the triggers and functions of an attached table, anew if they are there, and its version table if it is not; returns the hash of their text';

-- Partitions come and go without asking, and so do triggers of others. What goes through the root of a partitioned table
-- is captured from the first row; the agent looks every second whether there is a table that lacks triggers of its own,
-- or has those of another kind of table.

create function syncagent._strays() returns table (relation integer, node regclass, gone boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with parted as (
        select r.id, r.relation, to_regproc(format('syncagent.capture_%s', r.id)) as capture
        from syncagent.replicated r join pg_class c on c.oid = r.relation where c.relkind = 'p'
    )
    select p.id, n.node, false
    from parted p cross join lateral syncagent._nodes(p.relation) as n (node) join pg_class c on c.oid = n.node
    where c.relkind in ('r', 'p')
      and not exists (select from pg_trigger t where t.tgrelid = n.node and t.tgname = 'syncagent_insert' and t.tgfoid = p.capture)
    union all
    select p.id, t.tgrelid, true
    from parted p join pg_trigger t on t.tgfoid = p.capture and t.tgname = 'syncagent_insert'
    where t.tgrelid <> p.relation and pg_partition_root(t.tgrelid) is distinct from p.relation
    union all
    select r.id, r.relation, false
    from syncagent.replicated r join pg_trigger t on t.tgrelid = r.relation and t.tgname = 'syncagent_key' and t.tgattr::text <> ''
    where syncagent._rewritten(r.relation)
      and r.key_columns <@ array(select a.attname from pg_attribute a where a.attrelid = r.relation and not a.attisdropped)   -- else it is attached anew
$$;
comment on function syncagent._strays is 'partitions of attached tables without triggers of their own, and former ones that still have them; tables whose key somebody may set now who does not name it';

create function syncagent._cover(p_id integer, p_node regclass) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_node  text;
    v_made  boolean;
    v_armed boolean;
    v_last  record := syncagent._last_cut();
    v_rows  bigint;
begin
    select format('%I.%I', n.nspname, c.relname) into v_node
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_node;
    if not found then
        return 0;
    end if;
    execute format('lock table only %s in share row exclusive mode', v_node);
    v_armed := exists (select from pg_trigger where tgrelid = p_node and tgname = 'syncagent_insert' and tgfoid = to_regproc(format('syncagent.capture_%s', p_id)));
    if not exists (select from syncagent.replicated x where x.id = p_id and p_node in (select syncagent._nodes(x.relation))) then
        if v_armed then   -- it has left, and nobody else has it
            perform syncagent._disarm(p_node);
        end if;
        return 0;
    end if;
    perform syncagent._arm(p_id, p_node);
    -- Made as a partition, it holds what came through the root and was logged, and what came straight into it: only that is
    -- entered. Attached as a table that was there before, all it holds is what this site writes now. Of any other, all is known.
    select t.xmin = i.xmin into v_made
    from pg_class c join pg_type t on t.oid = c.reltype join pg_inherits i on i.inhrelid = c.oid where c.oid = p_node;
    if v_armed or v_made is null then
        return 0;
    end if;
    execute syncagent._render($sql$
        with known as materialized (
            select v.key from syncagent.version_{id} v where not v.deleted
            union all select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key) where c.relation = {id} and c.implicit
            union all select k.key from syncagent.log l cross join lateral unnest(l.keys) as k (key)
            where l.relation = {id} and (l.xid >= $2 or l.xid = any ($3))
        )
        insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
        select pg_current_xact_id(), {id}, case when $1 then 'I' else 'U' end::"char", syncagent._tick(), array_agg(k.key) {odd_agg}
        from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from only {node} t
              where not ($1 and exists (select from known n where n.key = {key}))) as k
        group by k.chunk $sql$, syncagent._tokens(p_id) || jsonb_build_object('node', v_node))
        using v_made, v_last.xmax, v_last.xip;
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;
comment on function syncagent._cover is 'give a new partition its triggers and enter the rows that nobody has logged; take them from one that has left; give a table those that it needs now; returns the log entries made';
