-- Repair: rows that differ from a peer's although nothing is on its way between the two.
--
-- The peer answers with a *listing*: rows and version entries of some keys, and its frontier, in one snapshot. A key that
-- it has written since its last cut is left out. It is taken like a batch, once this site's frontier covers the
-- listing's, and only if the listing's covers all that was collected here: an older one may hold a row whose delete is
-- forgotten. A key is left alone if its row is not what was compared, if somebody writes it, or if it is parked.
--
-- Then, row by row: a row that the entry here says must live is *lost*, and is taken from whoever had that version, too; of
-- which nothing is known here, is *missing*; the larger stamp wins (*older*), but an entry that was compacted here says
-- nothing new. Where nobody's row is newer, somebody has written behind the triggers, or a disk is damaged: what is right was
-- *decided* before, by most sites or by a person. tests/model has these rules, and shows what each prevents.

create table syncagent.repair_record (
    id           uuid primary key default gen_random_uuid(),
    schema_name  name not null,
    table_name   name not null,
    key          uuid not null,
    key_text     text not null,
    cause        text not null,
    node         integer not null,
    stamp_before uuid,
    stamp_after  uuid,
    image_before jsonb,
    image_after  jsonb,
    made_at      timestamptz not null default clock_timestamp()
);
create index repair_record_time on syncagent.repair_record (made_at);
comment on table syncagent.repair_record is 'rows that were repaired here: why, after whom, and what was there before';

create function syncagent._unsettled(p_relation integer, p_keys uuid[]) returns setof uuid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select k.key from syncagent.log e cross join syncagent._last_cut() l cross join lateral unnest(e.keys) as k (key)
    where e.relation = p_relation and (e.xid >= l.xmax or e.xid = any (l.xip)) and k.key = any (p_keys)
    union
    select s.key from syncagent.settling s where s.relation = p_relation and s.key = any (p_keys)
    union
    select p.key from syncagent.parked_row p where p.relation = p_relation and p.key = any (p_keys)
$$;
comment on function syncagent._unsettled is 'those of some keys of a table that are written and in no cut yet, or whose newest version is parked: the table does not have it';

create function syncagent._entry_columns(p_table syncagent.replicated) returns text[]
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select '{key,stamp,node,cut,deleted}'::text[]
        || case when p_table.derived then array(select format('k%s', k) from generate_subscripts(p_table.key_columns, 1) as k order by k) else '{}' end
        || case when p_table.strategy <> 'lww' then '{registers}'::text[] else '{}' end || '{rest}'::text[]
$$;
comment on function syncagent._entry_columns is 'what is sent of a table''s version entries, in this order';

create function syncagent._listing(p_schema name, p_table name, p_keys uuid[],
                                   out relation integer, out columns text[], out entries text[], out frontier jsonb, out needed jsonb, out rows text, out versions text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
begin
    select r.id, r.columns::text[], syncagent._entry_columns(r), syncagent._tokens(r.id)
        || jsonb_build_object('only', case c.relkind when 'p' then '' else 'only' end, 'wanted', quote_literal(p_keys::text) || '::uuid[]')
    into relation, columns, entries, v_tokens
    from syncagent.replicated r join pg_class c on c.oid = r.relation where r.schema_name = p_schema and r.table_name = p_table;
    if not found then
        raise exception 'table %.% is not attached here', quote_ident(p_schema), quote_ident(p_table) using errcode = 'SA104';
    elsif (select s.joining from syncagent.local_site s) then
        raise exception 'this site is not a member yet: its rows are of later moments than its frontier says' using errcode = 'SA101';
    end if;
    select coalesce(jsonb_object_agg(f.node, f.cut), '{}'), coalesce(jsonb_object_agg(f.node, f.needed), '{}') into frontier, needed from syncagent.frontier f;
    rows := syncagent._render($sql$
        select {t_columns} from {only} {table} t
        where {key} = any ({wanted}) and {key} not in (select syncagent._unsettled({id}, {wanted}))
          and not exists (select from syncagent.version_{id} v where v.key = {key} and v.deleted)   -- what is deleted here is no row to give
        $sql$, v_tokens);
    versions := syncagent._render($sql$
        select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns}, false as rest from syncagent.version_{id} v
        where v.key = any ({wanted}) and v.key not in (select syncagent._unsettled({id}, {wanted}))$sql$, v_tokens);
end
$$;
comment on function syncagent._listing is 'what is read of some keys of a table for a peer that repairs: rows, version entries, the frontier, and the last cuts in it that held anything';

create function syncagent._repair(p_relation integer, p_node integer, p_context jsonb, p_needed jsonb,
                                  p_keys uuid[], p_lanes_0 bigint[], p_lanes_1 bigint[], p_cause text)
    returns table (repaired bigint, parked bigint)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    set client_min_messages = warning
    as $$
#variable_conflict use_column
declare
    v_tokens jsonb := syncagent._range_tokens(p_relation, null, null, null);
    v_me     integer;
    v_seen   pg_snapshot := pg_current_snapshot();
    v_free   uuid[];
    v_placed text;
    v_repaired bigint;
    v_parked bigint := 0;
    v_origin integer;
begin
    select s.node into strict v_me from syncagent.local_site s;
    if exists (select from jsonb_each_text(p_needed) as e left join syncagent.frontier f on f.node = e.key::integer
                  where e.key::integer <> v_me and e.value::bigint > coalesce(f.cut, 0)) then
        raise exception 'the listing holds what has not come here yet' using errcode = 'SA101';
    elsif exists (select from syncagent.local_site s cross join lateral jsonb_each_text(s.collected) as e
                  where e.value::bigint > coalesce((p_context ->> e.key)::bigint, 0)) then
        raise exception 'the listing is older than what was collected here' using errcode = 'SA101';
    end if;

    -- a tombstone there has no row: it is staged by its key
    execute syncagent._render('insert into pg_temp.stage_{id} (_deleted {listed_key_columns}) select true {listed_keys}'
                              ' from pg_temp.listed v where v.deleted', v_tokens);
    -- Rows that others hold are left for another time; nobody waits for them while holding the rest.
    execute syncagent._render('select array(select s._key from {stage} s join {table} t on {t_eq_s} for no key update of t skip locked)', v_tokens) into v_free;
    -- A partition that this site has detached it does not miss.
    select string_agg(format('(%s)', coalesce(pg_get_partition_constraintdef(c.oid), 'true')), ' or ') into v_placed
    from syncagent.replicated r cross join lateral syncagent._nodes(r.relation) as n (node) join pg_class c on c.oid = n.node
    where r.id = p_relation and c.relkind <> 'p' and pg_get_expr(c.relpartbound, c.oid) is distinct from 'DEFAULT';
    v_tokens := v_tokens || jsonb_build_object('placed', coalesce(v_placed, 'true'));
    execute syncagent._render($sql$
        create temp table mending on commit drop as
        select q.*, case
            when q.alive and q.there and $5 <> 'stamps' then $5
            when not q.alive and q.deleted is false then case when (q.there or q.gone and q.theirs >= q.mine) and q.cut <= coalesce(($2 ->> q.node::text)::bigint, 0) then 'lost' end
            when q.mine is null then case when q.there and q.placed then 'missing' end
            when q.theirs > q.mine and (q.deleted is not null or q.gone or not q.settled) then 'older' end as cause
        from (
            select k.key, v.node, v.cut, v.deleted, not ({t_absent}) as alive, s._key is not null and s._deleted is not true as there, coalesce(l.deleted, false) as gone,
                   coalesce(v.stamp, case when not ({t_absent}) then syncagent._implicit(k.key) end) as mine,
                   coalesce(l.stamp, case when s._key is not null then syncagent._implicit(k.key) end) as theirs,
                   l.cut <= coalesce((select (x.compacted ->> l.node::text)::bigint from syncagent.local_site x), 0) as settled,
                   exists (select from (select {stage_as_table}) as x where {placed}) as placed,
                   case when not ({t_absent}) then {t_key_text} else {s_key_text} end as key_text, case when not ({t_absent}) then to_jsonb(t.*) end as image,
                   row({t_columns})::text collate "C" as text_here, row({s_columns})::text collate "C" as text_there
            from unnest($1::uuid[], $3::bigint[], $4::bigint[]) as k (key, lane_0, lane_1)
            left join syncagent.version_{id} v on v.key = k.key
            left join pg_temp.listed l on l.key = k.key
            left join {stage} s on s._key = k.key
            left join {table} t on {t_eq_s}
            left join lateral (
                select {lanes} from (select {hashed} as row offset 0) as x where not ({t_absent})) as f on true
            where (f.lane_0, f.lane_1) is not distinct from (k.lane_0, k.lane_1)
              and ({t_absent} or k.key = any ($6))
              and k.key not in (select syncagent._unsettled({id}, $1))) as q
        where not (q.alive and q.there and q.text_here = q.text_there)
        $sql$, v_tokens || jsonb_build_object('lanes', syncagent._lanes('x.row'), 'hashed', (
            select syncagent._hashed(coalesce(syncagent._fingerprint_text(r.relation, r.columns), '''''')) from syncagent.replicated r where r.id = p_relation)))
    using p_keys, p_context, p_lanes_0, p_lanes_1, p_cause, v_free;
    delete from pg_temp.mending m where m.cause is null;
    delete from syncagent.repair_record r where r.made_at < clock_timestamp() - interval '90 days';
    select count(*) into v_repaired from pg_temp.mending;

    execute syncagent._render($sql$
        create temp table staged on commit drop as
        select s._key, s._deleted, {s_columns}, l.stamp as _stamp, coalesce(l.cut, 0) as _cut, coalesce(l.node, $1) as _node {l_registers}
        from {stage} s join pg_temp.mending m on m.key = s._key left join pg_temp.listed l on l.key = s._key
        $sql$, v_tokens) using p_node;
    execute syncagent._render($sql$
        insert into syncagent.repair_record (schema_name, table_name, key, key_text, cause, node, stamp_before, stamp_after, image_before, image_after)
        select {schema_literal}, {table_literal}, m.key, m.key_text, m.cause, $1, m.mine, m.theirs, m.image,
               case when m.there then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end
        from pg_temp.mending m join pg_temp.staged s on s._key = m.key
        $sql$, v_tokens) using p_node;
    -- Each origin's versions by themselves, as if they came in its batch.
    for v_origin in select distinct s._node from pg_temp.staged s order by 1 loop
        execute syncagent._render('truncate pg_temp.stage_{id}', v_tokens);
        execute syncagent._render('insert into pg_temp.stage_{id} (_stamp, _cut, _deleted {more_names}, {stage_names})'
                                  ' select s._stamp, s._cut, s._stamp is not null and coalesce(s._deleted, false) {more_of_staged}, {s_columns} from pg_temp.staged s where s._node = $1', v_tokens) using v_origin;
        perform syncagent._empty('pg_temp.verdict');
        perform syncagent._write_carefully(p_relation, v_origin, false);
        v_parked := v_parked + (select count(*) from pg_temp.verdict d where d.reason is not null);
        execute format('select syncagent.recheck_%s($1)', p_relation) using v_seen;
    end loop;
    -- A range that was read here while the row was lost had to leave it out, and its reader counts as having it: it is sent again.
    execute syncagent._render($sql$
        insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
        select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key) {odd_agg}
        from (select m.key {odd_value} from pg_temp.mending m join pg_temp.staged s on s._key = m.key join {table} t on {t_eq_s}
              where m.cause = 'lost' and m.theirs <= m.mine) as k
        having count(*) > 0
        $sql$, v_tokens);
    execute syncagent._render('truncate pg_temp.stage_{id}', v_tokens);
    return query select v_repaired, v_parked;
end
$$;
comment on function syncagent._repair is 'take of a staged listing, and what is listed of its versions, the rows that are wrong here; lanes are the fingerprints of the rows as they were compared, null if there was none; cause: stamps, or why the rows there are right whatever their stamps';
