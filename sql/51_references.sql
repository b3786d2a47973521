-- What applying can run into: rows that refer to a row that another site has deleted.
--
-- Foreign keys are not checked while rows are applied. Where a delete comes in and a row that refers to the deleted one is here,
-- and stays once all of the batch, or knot, is there, the deleted row is written again as it was: a write of this site, newer
-- than the delete. Who made the referring row always sees that: it was there first, or its own constraint had refused it. Others may
-- see it, too, and write the same (tests/model/references.py shows what each of these rules prevents). Or the rows that refer to it go,
-- too, and all that refers to them (the policy `cascade`).

create function syncagent._references(p_relation integer)
    returns table (name name, relation integer, policy text, refers text, same text, emptied name[])
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select f.conname, r.id, coalesce(r.policies ->> f.conname::text, 'restore-parent'),
           -- a row whose newer version is parked is not what it is here: who wrote that version sees what it refers to
           format('exists (select from (select t.*, %s as "$key" from %I.%I t) as c where %s'
                  ' and not exists (select from syncagent.parked_row p where p.relation = %s and p.key = c."$key"))',
                  syncagent._tokens(r.id) ->> 'key', n.nspname, c.relname,
                  k.same, r.id),
           k.mine, case when f.confdeltype = 'n' and not k.given then k.emptied end
    from syncagent.replicated t
    join pg_constraint f on f.confrelid = t.relation and f.contype = 'f' and f.conparentid = 0
    join syncagent.replicated r on r.relation = f.conrelid   -- rows of one site alone hold nobody's parent
    join pg_class c on c.oid = f.conrelid join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (
        select string_agg(format('t.%I operator(%I.%s) c.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k) as same,
               string_agg(format('p.%I operator(%I.%s) t.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k) as mine,
               array_agg(a.attname order by k) as emptied, bool_or(a.attnotnull) as given
        from generate_series(1, cardinality(f.conkey)) k
        join pg_attribute p on p.attrelid = f.confrelid and p.attnum = f.confkey[k]
        join pg_attribute a on a.attrelid = f.conrelid and a.attnum = f.conkey[k]
        join pg_operator o on o.oid = f.conpfeqop[k] join pg_namespace s on s.oid = o.oprnamespace
    ) as k
    where t.id = p_relation
      and not exists (select from pg_attribute p where p.attrelid = f.confrelid and p.attnum = any (f.confkey) and p.attname <> all (t.columns))
    order by f.conname, r.id
$$;
comment on function syncagent._references is 'foreign keys of attached tables that refer to one of them: what is done about a row whose parent was deleted, whether a row t has such rows, whether t is one of a row p, and the columns that an ON DELETE SET NULL empties';

create function syncagent._referred(p_relation integer) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (
        select from syncagent.replicated t join pg_constraint f on f.confrelid = t.relation and f.contype = 'f' and f.conparentid = 0
        join syncagent.replicated r on r.relation = f.conrelid where t.id = p_relation)
$$;
comment on function syncagent._referred is 'whether attached tables refer to one';

create function syncagent._bereave_template() returns text
    language sql immutable
    as $template$ select $sql$
-- Keeps the rows that are about to be deleted: others may refer to them.
create function syncagent.bereave_{id}() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
begin
    insert into pg_temp.bereft (xid, relation, key, image, odd)
    select pg_current_xact_id(), {id}, s._key, row({t_columns})::text, {odd_or_null}
    from {stage} s join {table} t on {t_eq_s}
    where s._deleted and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
end
$$;
$sql$ $template$;

create function syncagent._bring_together(p_joining boolean default false) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    if not exists (select from pg_temp.bereft) and not exists (select from pg_temp.astray) then
        return;
    end if;
    delete from pg_temp.bereft b where b.xid <> pg_current_xact_id() or (select s.joining from syncagent.local_site s) and not p_joining;
    delete from pg_temp.astray a where (select s.joining from syncagent.local_site s) and not p_joining;
    for r in select distinct b.relation from pg_temp.bereft b loop   -- a later part of a knot has brought it back
        execute syncagent._render($sql$
            delete from pg_temp.bereft b using (select {key} as key from {table} t, pg_temp.bereft x, lateral {row} as p where x.relation = {id} and {same}) as k
            where b.relation = {id} and b.key = k.key $sql$, syncagent._bereft_tokens(r.relation));
    end loop;
    loop   -- who comes back may have a parent, too, or be whom others wait for
        insert into pg_temp.astray (relation, key)
        select b.relation, b.key from pg_temp.bereft b where exists (select from syncagent.alias a where a.relation = b.relation and a.loser = b.key);
        perform syncagent._follow_winners();
        exit when not syncagent._restore_parents();
    end loop;
    perform syncagent._empty('pg_temp.bereft');
end
$$;
comment on function syncagent._bring_together is 'once all is there that comes at once: rows that refer to somebody who was merged away follow, and rows that were deleted, and to which others refer, are written again; joining: also while this site is no member yet';

create function syncagent._restore_parents() returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_merged boolean;
    v_more   boolean := false;
    r        record;
begin
    foreach v_merged in array array[false, true] loop   -- those who were merged away last: they may have somebody to follow then
        exit when v_more;
        for r in
            select b.relation, x.name, x.policy, x.refers, x.relation as child, x.same, x.emptied
            from (select distinct b.relation from pg_temp.bereft b) as b cross join lateral syncagent._references(b.relation) as x
            order by array_position('{restore-parent,cascade,report}', x.policy), b.relation, x.name
        loop
            v_more := syncagent._delete_orphans(r.relation, r.name, r.child, r.same, r.emptied, true, v_merged) > 0 or v_more;
            v_more := case r.policy when 'cascade' then syncagent._delete_orphans(r.relation, r.name, r.child, r.same, null, false, v_merged)
                                    else syncagent._restore(r.relation, r.name, r.policy, r.refers, v_merged) end > 0 or v_more;
        end loop;
    end loop;
    return v_more;
end
$$;
comment on function syncagent._restore_parents is 'write rows again that were deleted by what has just been merged, and that rows which stay refer to, or delete those; whether there were any';

create function syncagent._delete_orphans(p_relation integer, p_name name, p_child integer, p_same text, p_emptied name[], p_deep boolean, p_merged boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_child);
    v_parent jsonb := syncagent._bereft_tokens(p_relation);
    v_lww    boolean := (select r.strategy = 'lww' from syncagent.replicated r where r.id = p_child);
    v_me     syncagent.local_site;
    v_keys   uuid[];
    v_count  bigint;
    v_state  text;
begin
    if p_deep and not exists (select from pg_temp.bereft b where b.relation = p_relation and b.deep) then
        return 0;
    end if;
    select * into strict v_me from syncagent.local_site;
    v_tokens := v_tokens || jsonb_build_object('parent', p_relation, 'row', v_parent ->> 'row', 'same', p_same, 'name', quote_literal(p_name) || '::name',
        'gone', (p_emptied is null)::text, 'odd_value', coalesce(nullif(v_tokens ->> 'odd_value', ''), ', null::text as odd'));
    v_tokens := v_tokens || jsonb_build_object(
        'act', syncagent._render(case when p_emptied is null then 'delete from {table} t using'
            else format('update {table} t set %s from', (select string_agg(format('%I = null', c), ', ') from unnest(p_emptied) as c)) end, v_tokens),
        'parents', syncagent._render($sql$(
            select x.key as "$parent", q.* from pg_temp.bereft x cross join lateral {row} as q
            where x.relation = {parent} and x.deep = $1 and exists (select from syncagent.alias a where a.relation = {parent} and a.loser = x.key) = $2) as p$sql$, v_tokens));
    execute syncagent._render($sql$
        with orphan as (
            {act} {parents}
            where {same} and not exists (select from syncagent.parked_row w where w.relation = {id} and w.key = {key})
            returning {key} as key, {t_key_text} as key_text, to_jsonb(t.*) as image, row({t_columns})::text as line, p."$parent" as parent {odd_value}
        ), told as (
            insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name, other_key, other_key_text,
                winning_stamp, losing_stamp, winning_node, losing_node, losing_image)
            select syncagent._name_uuid(format('%s %s %s %s', {title}, o.key, o.stamp, 'foreign key')), {schema_literal}, {table_literal}, o.key, o.key_text,
                   'foreign key', 'cascade', {name}, o.parent, o.parent::text, syncagent._stamp(syncagent._tick(), $4), o.stamp, $3, o.node, o.image
            from (select o.*, coalesce(v.stamp, syncagent._implicit(o.key)) as stamp, v.node
                  from orphan o left join syncagent.version_{id} v on v.key = o.key) as o
            where {gone}
            on conflict (id) do nothing
        ), deeper as (
            insert into pg_temp.bereft (xid, relation, key, image, odd, deep)
            select pg_current_xact_id(), {id}, o.key, o.line, o.odd, true from orphan o where {gone}
        )
        insert into pg_temp.yielded as y (relation, key, odd, op, columns)
        select distinct on (o.key) {id}, o.key, o.odd, case when {gone} then 'D' else 'U' end::"char", $5::name[] from orphan o
        on conflict (relation, key) do update set op = excluded.op, columns = case when excluded.op = 'U' and y.columns is not null then y.columns || excluded.columns end $sql$,
        v_tokens) using p_deep, p_merged, v_me.node, v_me.tail, case when not v_lww then p_emptied end;
    get diagnostics v_count = row_count;
    return v_count;
exception when lock_not_available then
    execute syncagent._render('select array(select {key} from {table} t, {parents} where {same})', v_tokens) into v_keys using p_deep, p_merged;
    perform syncagent._contend(v_tokens, v_keys);
    return 0;
when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if p_emptied is null or not syncagent._may_park(v_state) then
        raise;
    end if;
    return syncagent._delete_orphans(p_relation, p_name, p_child, p_same, null, p_deep, p_merged);   -- it may not be null here
end
$$;
comment on function syncagent._delete_orphans is 'of one foreign key: rows whose parent is gone go, too; deep: below rows that went so, where ON DELETE SET NULL is heeded';

create function syncagent._bereft_tokens(p_relation integer) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select k.tokens || jsonb_build_object(
        -- in base types: a domain may mean something else by now
        'row', syncagent._render('(select {stage_as_table} from (select (x.image::syncagent.row_{id}).*) as s)', k.tokens),
        'same', (select string_agg(format('t.%1$I = p.%1$I', c), ' and ') from unnest(r.key_columns) as c))
    from syncagent.replicated r cross join lateral (select syncagent._tokens(r.id) as tokens) as k where r.id = p_relation
$$;
comment on function syncagent._bereft_tokens is 'tokens of a table, with the row that is kept of a deleted one';

create function syncagent._restore(p_relation integer, p_name name, p_policy text, p_refers text, p_merged boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_tokens jsonb := syncagent._bereft_tokens(p_relation) || jsonb_build_object('refers', p_refers, 'name', quote_literal(p_name) || '::name',
        'policy', quote_literal(p_policy));
    v_me     syncagent.local_site;
    v_keys   uuid[];
    v_back   uuid[] := '{}';
    v_merged uuid[] := '{}';
    v_first  uuid[];
    v_later  integer := 0;
    v_key    uuid;
begin
    select * into strict v_me from syncagent.local_site;
    execute syncagent._render($sql$
        select array_agg(x.key) from pg_temp.bereft x cross join lateral {row} as t where x.relation = {id} and not x.deep and {refers}
          and exists (select from syncagent.alias a where a.relation = {id} and a.loser = x.key) = $1 $sql$, v_tokens) into v_keys using p_merged;
    if v_keys is null then
        return 0;
    elsif p_merged then   -- one to whom another leads comes back first: that may follow
        v_first := array(
            select k from unnest(v_keys) as k where not exists (
                with recursive reach (winner) as (
                    select a.winner from syncagent.alias a where a.relation = p_relation and a.loser = k
                    union
                    select a.winner from reach r join syncagent.alias a on a.relation = p_relation and a.loser = r.winner
                ) select from reach r where r.winner = any (v_keys)));
        v_later := cardinality(v_keys) - cardinality(v_first);
        v_keys := v_first;
    end if;
    if p_policy <> 'report' then
        v_merged := syncagent._merge_restored(p_relation, v_keys);   -- somebody else has a value of theirs by now
        v_keys := array(select k from unnest(v_keys) as k where k <> all (v_merged));
        if syncagent._put_back(p_relation, v_keys, v_tokens) then
            v_back := v_keys;
        else   -- a constraint of this site refuses one by now: of that one the conflict says that it is missed
            foreach v_key in array v_keys loop
                if syncagent._put_back(p_relation, array[v_key], v_tokens) then
                    v_back := v_back || v_key;
                end if;
            end loop;
        end if;
    end if;
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._name_uuid(format('%s %s %s %s', {title}, x.key, d.stamp, 'foreign key')), {schema_literal}, {table_literal}, x.key,
               {t_key_text}, 'foreign key', {policy}, {name},
               case when o.back then o.stamp else d.stamp end, case when o.back then d.stamp else syncagent._implicit(x.key) end,
               case when o.back then $2 else v.node end, case when o.back then v.node end,
               case when o.back then to_jsonb(t.*) end, case when not o.back then to_jsonb(t.*) end
        from pg_temp.bereft x cross join lateral {row} as t
        left join syncagent.version_{id} v on v.key = x.key
        cross join lateral (select coalesce(v.stamp, syncagent._implicit(x.key)) as stamp) as d   -- a donor may have forgotten its delete
        cross join lateral (select x.key = any ($1) as back, syncagent._stamp(syncagent._tick(), $3) as stamp) as o
        where x.relation = {id} and x.key = any ($4)
        on conflict (id) do nothing $sql$, v_tokens) using v_back, v_me.node, v_me.tail, v_keys;
    insert into pg_temp.yielded (relation, key, odd)
    select b.relation, b.key, b.odd from pg_temp.bereft b where b.relation = p_relation and b.key = any (v_back)
    on conflict (relation, key) do update set columns = null;   -- it is all new
    delete from pg_temp.bereft b where b.relation = p_relation and b.key = any (v_keys || v_merged);
    return cardinality(v_back || v_merged) + v_later;
end
$$;
comment on function syncagent._restore is 'of one foreign key: put parents back, or report them; returns how many came back, or are to be asked again';

create function syncagent._put_back(p_relation integer, p_keys uuid[], p_tokens jsonb) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_state text;
begin
    execute syncagent._render($sql$
        insert into {table} ({columns}) overriding system value
        select {t_columns} from pg_temp.bereft x cross join lateral {row} as t where x.relation = {id} and x.key = any ($1) $sql$, p_tokens) using p_keys;
    perform syncagent._check_deferrable(p_relation, p_keys);
    return true;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    return false;
end
$$;
comment on function syncagent._put_back is 'insert rows again that were deleted; whether no constraint refuses them';
