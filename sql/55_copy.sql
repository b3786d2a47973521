-- The copy of the rows with which a site joins: what the donor reads out, and what the joiner keeps of it.
--
-- The donor states its frontier, then every range of keys is read in a snapshot of its own, later than the first cut
-- after that. What a range holds is what cuts hold: a row, and its version entry if there is one. A key with a write that
-- no cut has folded is left out, row and entry, for the cut that folds it comes after the stated frontier, and so reaches
-- the joiner by itself; half of it, under the older version, would be taken for another insert of the same key.
-- Entries without a row (tombstones, parked inserts) are read first, the `rest` of a table; where a row has come
-- since, the row's own entry counts. docs/decisions/0009-join-copy.md has the argument.

-- At the joiner ------------------------------------------------------------------------------------------------

create table syncagent.copy_state (
    only_row   boolean primary key default true check (only_row),
    donor      integer not null,
    taken      pg_snapshot not null,
    frontier   jsonb not null,
    started_at timestamptz not null default clock_timestamp()
);
comment on table syncagent.copy_state is 'the copy this site is made from, until it is complete: donor, and the frontier it stated';

create table syncagent.copied_table (
    id          integer primary key,
    schema_name name not null,
    table_name  name not null,
    key_columns name[] not null,
    derived     boolean not null,
    stride      integer,
    bucket      text not null,
    strategy    text not null,
    merges      jsonb not null default '{}',
    columns     name[] not null,
    filled      boolean not null default false,
    unique (schema_name, table_name)
);
comment on table syncagent.copied_table is 'tables of the copy, as the donor has them attached; filled: it held rows, which are compared instead';

create table syncagent.copied_range (
    relation    integer not null,
    number      integer not null,
    node_schema name,
    node_name   name,
    low         text[],
    high        text[],
    estimate    bigint not null,
    rows        bigint,
    lane_0      bigint,
    lane_1      bigint,
    versions    bigint,
    snapshot    pg_snapshot,
    done_at     timestamptz,
    primary key (relation, number)
);
comment on table syncagent.copied_range is 'key ranges of the copy, low <= key < high; rows is null until the range is here; without a table it is the rest, entries without a row';

create table syncagent.copied_parked (
    relation integer not null,
    key      uuid not null,
    stamp    uuid not null,
    node     integer not null,
    cut      bigint not null,
    image    text not null,
    registers jsonb,
    shown    jsonb not null,
    sqlstate text not null,
    reason   text not null,
    since    timestamptz not null
);
comment on table syncagent.copied_parked is 'parked rows of the donor, until the tables are attached here';

create table syncagent.dropped_row (
    relation integer not null,
    key      uuid not null,
    image    text not null,
    odd      text
);
comment on table syncagent.dropped_row is 'rows of a site that returns which the donor has not, and others refer to here: they come back with the end of the copy if one of those is left';

create function syncagent._copied_columns(p_table regclass) returns table (name name, type text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a
    where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum
$$;
comment on function syncagent._copied_columns is 'columns of a table that travel, and their types';

create function syncagent._copied_stage(p_id integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_keys text;
begin
    select string_agg(format(', k%s %s', k.n, format_type(syncagent._base_type(a.atttypid), -1)), '' order by k.n) into v_keys
    from syncagent.copied_table c cross join lateral unnest(c.key_columns) with ordinality as k (name, n)
    join pg_attribute a on a.attrelid = format('%I.%I', c.schema_name, c.table_name)::regclass and a.attname = k.name
    where c.id = p_id and c.derived;
    v_keys := coalesce(v_keys, '') || (select case c.strategy when 'lww' then '' else ', registers jsonb' end from syncagent.copied_table c where c.id = p_id);
    execute format('create table syncagent.copied_version_%s (key uuid not null, stamp uuid not null, node integer not null, cut bigint,'
                   ' deleted boolean not null%s, rest boolean not null)', p_id, coalesce(v_keys, ''));
end
$$;
comment on function syncagent._copied_stage is 'make the table that keeps the version entries of a copied table until it is attached';

create function syncagent._copied_sums(p_node regclass, p_columns name[], p_from bigint, out rows bigint, out lane_0 bigint, out lane_1 bigint)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- What this transaction wrote lies behind what was there when it began, but for pages that others had made ready.
    execute syncagent._fingerprint_query(p_node, p_columns,
            format('t.xmin = pg_current_xact_id()::xid and t.ctid >= ''(%s,0)''::tid', p_from)) into rows, lane_0, lane_1;
end
$$;
comment on function syncagent._copied_sums is 'count and lanes of the rows that this transaction put into a table, from a page on';

create function syncagent._copied_entries(p_id integer, p_relation integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_rows bigint;
begin
    execute syncagent._render($sql$
        insert into syncagent.version_{id} as w (key, stamp, node, cut, deleted {version_key_columns})
        select distinct on (v.key) v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns}
        from syncagent.copied_version_{copied} v
        where not v.rest or not exists (select from {table} t where {t_eq_v})
        order by v.key, v.rest
        on conflict (key) do update set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, deleted = excluded.deleted {excluded_registers}
        $sql$, syncagent._tokens(p_relation) || jsonb_build_object('copied', p_id));
    get diagnostics v_rows = row_count;
    insert into syncagent.parked_row (relation, key, stamp, node, cut, image, registers, shown, sqlstate, reason, since)
    select distinct on (c.key) p_relation, c.key, c.stamp, c.node, c.cut, c.image, c.registers, c.shown, c.sqlstate, c.reason, c.since
    from syncagent.copied_parked c where c.relation = p_id order by c.key, c.stamp desc
    on conflict do nothing;
    return v_rows;
end
$$;
comment on function syncagent._copied_entries is 'give an attached table the version entries and parked rows that came with its rows';

-- At the donor -------------------------------------------------------------------------------------------------

create function syncagent._all_cut(p_taken pg_snapshot) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select not exists (
        select from syncagent.log e cross join syncagent._last_cut() l
        where (e.xid >= l.xmax or e.xid = any (l.xip)) and pg_visible_in_snapshot(e.xid, p_taken))
$$;
comment on function syncagent._all_cut is 'whether cuts hold all that was committed at a snapshot';

create function syncagent._copy_bounds(p_node regclass, p_keys name[], p_ranges integer) returns setof text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_pages bigint := greatest(pg_relation_size(p_node) / current_setting('block_size')::bigint, 1);
begin
    -- Fifty pages a range are enough to cut it well, and a sample needs no sort of the table. A bound is an index entry
    -- at most; one that is very long is no good to travel.
    return query execute format(
        'select b from (select %s as b, row_number() over (order by %s) as n, count(*) over () as c from only %s t tablesample system (%s)) as s'
        ' where s.n %% greatest(s.c / %s, 1) = 0 and s.n < s.c and octet_length(s.b::text) < 2000 order by s.n limit %s',
        (select format('array[%s]', string_agg(format('t.%I::text', k), ', ' order by n)) from unnest(p_keys) with ordinality as u (k, n)),
        (select string_agg(format('t.%I', k), ', ' order by n) from unnest(p_keys) with ordinality as u (k, n)),
        p_node, least(100, 100.0 * p_ranges * 50 / v_pages)::numeric, p_ranges, p_ranges - 1);
end
$$;
comment on function syncagent._copy_bounds is 'keys that cut a table into about so many ranges of about the same size';

create function syncagent._copy_nodes(p_relation integer) returns table (node_schema name, node_name name, node regclass, rows bigint, bytes bigint, scattered boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select n.nspname, c.relname, c.oid::regclass,
           case when c.reltuples >= 0 and c.relpages > 0 then (c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::bigint))::bigint
                else pg_relation_size(c.oid) / 100 end,
           pg_table_size(c.oid),
           coalesce(abs(s.correlation) < 0.5, false)
    from syncagent.replicated r cross join lateral syncagent._nodes(r.relation) as x (node)
    join pg_class c on c.oid = x.node and c.relkind = 'r' join pg_namespace n on n.oid = c.relnamespace
    left join pg_stats s on s.schemaname = n.nspname and s.tablename = c.relname and s.attname = r.key_columns[1] and not s.inherited
    where r.id = p_relation order by n.nspname, c.relname
$$;
comment on function syncagent._copy_nodes is 'the tables that hold the rows of an attached one, with their sizes; scattered: not in the order of the key';

create function syncagent._copy_range(p_relation integer, p_node regclass, p_low text[], p_high text[]) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- the bounds are made literals by the server itself: COPY takes no parameters
    select coalesce(string_agg(format('(%s) %s (%s)', k.names, b.op, (
            select string_agg(format('%L::%s', v.value, format_type(a.atttypid, -1)), ', ' order by v.n)
            from unnest(b.bound) with ordinality as v (value, n)
            join pg_attribute a on a.attrelid = p_node and a.attname = r.key_columns[v.n])), ' and '), 'true')
    from syncagent.replicated r
    cross join lateral (select string_agg(format('t.%I', x.name), ', ' order by x.n) from unnest(r.key_columns) with ordinality as x (name, n)) as k (names)
    cross join (values ('>=', p_low), ('<', p_high)) as b (op, bound)
    where r.id = p_relation and b.bound is not null
$$;
comment on function syncagent._copy_range is 'the condition that a row t of an attached table lies in a range of keys';

create function syncagent._written_since(p_horizon xid8) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- A row's xmin is the lower half of its transaction's number. A transaction may have been given to the other site although it is
    -- above the horizon, never the other way round.
    select case when p_horizon is null or pg_snapshot_xmax(pg_current_snapshot())::text::bigint - p_horizon::text::bigint >= 1::bigint << 31 then 'true'
                else format('(t.xmin::text::bigint - %s + (1::bigint << 33)) %% (1::bigint << 32) < 1::bigint << 31', p_horizon::text::bigint % (1::bigint << 32)) end
$$;
comment on function syncagent._written_since is 'the condition that a row t was written by a transaction that is not below a horizon';

create function syncagent._copy_queries(p_relation integer, p_node regclass, p_low text[], p_high text[], p_before integer)
    returns table (sums text, rows text, versions text, parked text, lapsed boolean)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_tokens  jsonb := syncagent._tokens(p_relation);
    v_doubt   text;
    v_outside text;
    v_horizon xid8;
begin
    select * into strict v_table from syncagent.replicated where id = p_relation;
    select true, l.horizon into lapsed, v_horizon from syncagent.lapsed l where l.node = p_before;
    lapsed := coalesce(lapsed, false);
    v_tokens := v_tokens || jsonb_build_object('t_eq_p', case when v_table.derived then v_tokens ->> 't_eq_v'
                                                              else format('t.%I = p.key', v_table.key_columns[1]) end);
    -- keys that the next cut ships: written since the last one, or about to be written anew
    v_doubt := syncagent._render($sql$
        with doubt as materialized (
            select f.* {doubt_columns} from (
                select {doubt_entry} from syncagent.log e cross join syncagent._last_cut() l cross join lateral {unnest_entry}
                where e.relation = {id} and (e.xid >= l.xmax or e.xid = any (l.xip))
            ) as f {decode_odd}
            union all
            select v.key {doubt_null} {doubt_keys} from syncagent.settling s join syncagent.version_{id} v on v.key = s.key where s.relation = {id}
        )$sql$, v_tokens || case when v_table.derived
            then jsonb_build_object('doubt_entry', 'k.key, k.odd', 'doubt_columns', ', o.*', 'doubt_null', ', null',
                'doubt_keys', (select string_agg(format(', v.k%s', k), '' order by k) from generate_subscripts(v_table.key_columns, 1) as k))
            else jsonb_build_object('doubt_entry', 'k.key', 'doubt_columns', '', 'doubt_null', '', 'doubt_keys', '') end);
    v_outside := syncagent._render('not exists (select from doubt {alias} where {t_eq_f})',
        v_tokens || jsonb_build_object('alias', case when v_table.derived then 'o' else 'f' end));
    if p_node is null then
        versions := v_doubt || syncagent._render($sql$
            select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns}, true as rest from syncagent.version_{id} v
            where not exists (select from {table} t where {t_eq_v}) and not exists (select from doubt d where d.key = v.key)$sql$, v_tokens);
        parked := v_doubt || syncagent._render($sql$
            select {id}, p.key, p.stamp, p.node, p.cut, p.image, p.registers, p.shown, p.sqlstate, p.reason, p.since from syncagent.parked_row p
            left join syncagent.version_{id} v on v.key = p.key
            where p.relation = {id} and not exists (select from {table} t where {t_eq_p}) and not exists (select from doubt d where d.key = p.key)$sql$, v_tokens);
        return next;
        return;
    end if;
    v_tokens := v_tokens || jsonb_build_object('outside', v_outside, 'range', syncagent._copy_range(p_relation, p_node, p_low, p_high),
        'node', (select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_node));
    sums := v_doubt || syncagent._fingerprint_query(p_node, v_table.columns, syncagent._render('{range} and {outside}', v_tokens));
    rows := v_doubt || syncagent._render('select {t_columns} from only {node} t where {range} and {outside}', v_tokens);
    versions := v_doubt || syncagent._render($sql$
        select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns_v}, false as rest
        from syncagent.version_{id} v join only {node} t on {t_eq_v} where {range} and {outside}$sql$,
        v_tokens || jsonb_build_object('version_key_columns_v', coalesce((select string_agg(format(', v.k%s', k), '' order by k)
            from generate_subscripts(v_table.key_columns, 1) as k where v_table.derived), '') || (v_tokens ->> 'v_registers')));
    if lapsed then
        versions := versions || syncagent._render($sql$
            union all
            select {key}, null, null, null, false {key_columns_t} {null_registers}, false from only {node} t
            where {range} and {outside} and {since} and not exists (select from syncagent.version_{id} v where {t_eq_v})$sql$,
            v_tokens || jsonb_build_object('since', syncagent._written_since(v_horizon),
                                           'key_columns_t', case when v_table.derived then ', ' || (v_tokens ->> 'key_columns') else '' end));
    end if;
    parked := v_doubt || syncagent._render($sql$
        select {id}, p.key, p.stamp, p.node, p.cut, p.image, p.registers, p.shown, p.sqlstate, p.reason, p.since from syncagent.parked_row p
        left join syncagent.version_{id} v on v.key = p.key join only {node} t on {t_eq_p} where p.relation = {id} and {range} and {outside}$sql$, v_tokens);
    return next;
end
$$;
comment on function syncagent._copy_queries is 'what is read of a range in one snapshot: count and lanes, rows, their version entries, parked rows; without a table, of the rest; for a site that returns the number that it had: if that lapsed, also which rows without an entry were changed since';

create function syncagent._copy_sequences() returns table (schema_name name, table_name name, column_name name, last_value bigint, is_called boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    r record;
begin
    for r in
        select t.schema_name, t.table_name, n.column_name, n.sequence from syncagent.replicated t
        cross join lateral syncagent._numbered(t.relation) as n where n.counts order by 1, 2, 3
    loop
        schema_name := r.schema_name; table_name := r.table_name; column_name := r.column_name;
        execute format('select s.last_value, s.is_called from %s s', r.sequence) into last_value, is_called;
        return next;
    end loop;
end
$$;
comment on function syncagent._copy_sequences is 'where the sequences of attached tables stand';

create function syncagent._copied_sequence(p_relation integer, p_column name, p_last bigint, p_called boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_here record;
    r      record;
begin
    if exists (select from syncagent.stride x where x.relation = p_relation and x.column_name = p_column) then
        perform syncagent._lift_number(p_relation, p_column, case when p_called then p_last else p_last - 1 end);
        return;
    end if;
    for r in
        select n.sequence, q.seqincrement from syncagent.replicated t cross join lateral syncagent._numbered(t.relation) as n
        join pg_sequence q on q.seqrelid = n.sequence where t.id = p_relation and n.column_name = p_column and n.counts
    loop
        execute format('select s.last_value, s.is_called from %s s', r.sequence) into v_here;
        if (p_last - v_here.last_value) * sign(r.seqincrement) > 0 or p_last = v_here.last_value and p_called then
            perform setval(r.sequence, p_last, p_called);
        end if;
    end loop;
end
$$;
comment on function syncagent._copied_sequence is 'let a sequence here go on where the donor''s stands, with this site''s own share of the numbers';
