-- What applying can run into: rows that refer to a row that another site has deleted.
--
-- Foreign keys are not checked while rows are applied. Where a delete comes in and a row that refers to the deleted one is here,
-- and stays once all of the batch, or knot, is there, the deleted row is written again as it was: a write of this site, newer
-- than the delete. Who made the referring row always sees that: it was there first, or its own constraint had refused it. Others may
-- see it, too, and write the same (tests/model/references.py shows what each of these rules prevents).

create function syncagent._references(p_relation integer)
    returns table (name name, relation integer, policy text, refers text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select f.conname, r.id, coalesce(r.policies ->> f.conname::text, 'restore-parent'),
           format('exists (select from %I.%I c where %s)', n.nspname, c.relname,
                  (select string_agg(format('t.%I operator(%I.%s) c.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k)
                   from generate_series(1, cardinality(f.conkey)) k
                   join pg_attribute p on p.attrelid = f.confrelid and p.attnum = f.confkey[k]
                   join pg_attribute a on a.attrelid = f.conrelid and a.attnum = f.conkey[k]
                   join pg_operator o on o.oid = f.conpfeqop[k] join pg_namespace s on s.oid = o.oprnamespace))
    from syncagent.replicated t
    join pg_constraint f on f.confrelid = t.relation and f.contype = 'f' and f.conparentid = 0
    join syncagent.replicated r on r.relation = f.conrelid   -- rows of one site alone hold nobody's parent
    join pg_class c on c.oid = f.conrelid join pg_namespace n on n.oid = c.relnamespace
    where t.id = p_relation
    order by f.conname, r.id
$$;
comment on function syncagent._references is 'foreign keys of attached tables that refer to one of them: what is done about a row whose parent was deleted, and whether a row t has such rows';

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
    select pg_current_xact_id(), {id}, s._key, (t.*)::text, {odd_or_null}
    from {stage} s join {table} t on {t_eq_s}
    where s._deleted and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
end
$$;
$sql$ $template$;

create function syncagent._restore_parents() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_more boolean := true;
    r      record;
begin
    if not exists (select from pg_temp.bereft) then
        return;
    end if;
    delete from pg_temp.bereft b where b.xid <> pg_current_xact_id() or (select s.joining from syncagent.local_site s);
    while v_more loop   -- who comes back may have a parent, too
        v_more := false;
        for r in
            select b.relation, x.name, x.policy, x.refers
            from (select distinct b.relation from pg_temp.bereft b) as b cross join lateral syncagent._references(b.relation) as x
            order by b.relation, x.name
        loop
            v_more := syncagent._restore(r.relation, r.name, r.policy, r.refers) > 0 and r.policy <> 'report' or v_more;
        end loop;
    end loop;
    delete from pg_temp.bereft;
end
$$;
comment on function syncagent._restore_parents is 'write rows again that were deleted by what has just been merged, and that rows which stay refer to';

create function syncagent._restore(p_relation integer, p_name name, p_policy text, p_refers text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_tokens jsonb := syncagent._tokens(p_relation) || jsonb_build_object('refers', p_refers, 'name', quote_literal(p_name) || '::name',
        'policy', quote_literal(p_policy));
    v_me     syncagent.local_site;
    v_keys   uuid[];
    v_back   uuid[] := '{}';
    v_state  text;
begin
    select * into strict v_me from syncagent.local_site;
    execute syncagent._render($sql$
        select array_agg(b.key) from pg_temp.bereft b cross join lateral (select (b.image::{table}).*) as t
        where b.relation = {id} and {refers} $sql$, v_tokens) into v_keys;
    if v_keys is null then
        return 0;
    end if;
    if p_policy <> 'report' then
        begin
            execute syncagent._render($sql$
                with back as (
                    insert into {table} as t ({columns}) overriding system value
                    select {t_columns} from pg_temp.bereft b cross join lateral (select (b.image::{table}).*) as t
                    where b.relation = {id} and b.key = any ($1)
                    on conflict do nothing returning {key} as key
                ) select coalesce(array_agg(b.key), '{}') from back b $sql$, v_tokens) into v_back using v_keys;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate;
            if not syncagent._may_park(v_state) then
                raise;
            end if;   -- a constraint of this site refuses it by now: the conflict says that it is missed
        end;
    end if;
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._name_uuid(format('%s %s %s %s', {title}, b.key, v.stamp, 'foreign key')), {schema_literal}, {table_literal}, b.key,
               {t_key_text}, 'foreign key', {policy}, {name},
               case when x.back then x.stamp else v.stamp end, case when x.back then v.stamp else syncagent._implicit(b.key) end,
               case when x.back then $2 else v.node end, case when x.back then v.node end,
               case when x.back then to_jsonb(t.*) end, case when not x.back then to_jsonb(t.*) end
        from pg_temp.bereft b cross join lateral (select (b.image::{table}).*) as t
        join syncagent.version_{id} v on v.key = b.key
        cross join lateral (select b.key = any ($1) as back, syncagent._stamp(syncagent._tick(), $3) as stamp) as x
        where b.relation = {id} and b.key = any ($4)
        on conflict (id) do nothing $sql$, v_tokens) using v_back, v_me.node, v_me.tail, v_keys;
    insert into pg_temp.yielded (relation, key, odd)
    select b.relation, b.key, b.odd from pg_temp.bereft b where b.relation = p_relation and b.key = any (v_back)
    on conflict do nothing;
    delete from pg_temp.bereft b where b.relation = p_relation and b.key = any (v_keys) and p_policy <> 'report';
    return cardinality(v_back);
end
$$;
comment on function syncagent._restore is 'of one foreign key: put parents back, or report them; returns how many came back';
