-- The Merkle forest: digests of stretches of keys, so that two sites prove that they are equal without reading their rows.
--
-- A key has a position of 60 bits in one of two parts of its table's tree: its clock, if it has a time, else its first
-- bits. A bucket is a stretch of positions (an hour, if nothing else was chosen; without a time, all keys with one first
-- byte); its leaves are its slices, the bucket halved `depth` times, with a count and two fingerprint sums each (45), kept in arrays.
--
-- Buckets whose time has passed are *sealed*: one scan, once. `horizon` is the bucket that is not to be sealed yet, `built`
-- the first one that is not. Keys below `horizon`, and all keys without a time, are marked when they are written: local ones
-- by `cut_keys`, which is there anyway, those that arrive by `mark`. `_forest_reseal` recomputes the leaves of marked keys, and
-- forgets exactly the marks that its snapshot has seen. What holds at any time: a stored leaf whose keys are neither in
-- `mark`, nor in `cut_keys` beyond `consumed`, nor in the log beyond the last cut, equals the leaf computed from the rows.
-- Where a good part of a table is marked (a load of old keys), it is sealed again from the lowest marked bucket on.
--
-- Whoever writes here holds a lock on the table from before its snapshot: a table that is rewritten after it reads as empty.

create table syncagent.forest (
    relation integer primary key,
    horizon  bigint not null default 0,
    built    bigint not null default 0,
    prefixes integer not null default 0,
    consumed bigint not null,
    seal     bigint,
    shape    text not null,
    bucket   text not null,
    scrub_prefix integer not null default 0,
    scrub_bucket bigint not null default 0,
    scrubbed_at  timestamptz not null default clock_timestamp()
);
comment on table syncagent.forest is 'the tree of an attached table: the buckets to be sealed, those that are, and first bytes of keys without a time; consumed is the last of cut_keys that the leaves know of; seal is that of what was sealed last, also of hours without a row; shape is a hash of what fingerprints and buckets depend on; bucket is their width; scrub: what is computed from its rows next although nothing is marked, and when all was';

create table syncagent.bucket (
    relation integer not null,
    timed    boolean not null,
    number   bigint not null,
    depth    integer not null,
    seal     bigint not null,
    rows     bigint not null,
    lane_0   bigint not null,
    lane_1   bigint not null,
    slices   bigint[] not null,
    counts   integer[] not null,
    lanes_0  bigint[] not null,
    lanes_1  bigint[] not null,
    primary key (relation, timed, number)
);
alter table syncagent.bucket alter column slices set storage external, alter column counts set storage external,
    alter column lanes_0 set storage external, alter column lanes_1 set storage external;
comment on table syncagent.bucket is 'sealed buckets that hold rows: their sums, and the sums of their slices that hold rows; one that was emptied stays until every site is known to have got there';

create table syncagent.mark (
    id       bigint generated always as identity primary key,
    relation integer not null,
    keys     uuid[] not null
);
alter table syncagent.mark alter column keys set storage external;
comment on table syncagent.mark is 'keys that other sites wrote, and keys of forgotten cuts, whose leaves are to be recomputed; never deduplicated';

create table syncagent.seal (
    number   bigint generated always as identity primary key,
    frontier jsonb not null,
    made_at  timestamptz not null default clock_timestamp()
);
comment on table syncagent.seal is 'the frontier of this site when buckets were sealed, without cuts that held nothing, until every site is known to have got there, and some time longer';

-- Positions ------------------------------------------------------------------------------------------------------

create function syncagent._position(p_key uuid) returns bigint
    language sql immutable parallel safe
    as $$
    select case when syncagent._timed(p_key)
        then ('x' || substr(p_key::text, 1, 8) || substr(p_key::text, 10, 4))::bit(48)::bigint << 12 | ('x' || substr(p_key::text, 16, 3))::bit(12)::bigint
        else ('x' || substr(p_key::text, 1, 8) || substr(p_key::text, 10, 4) || substr(p_key::text, 15, 3))::bit(60)::bigint end
$$;
comment on function syncagent._position is 'where a key stands in its part of the tree';

create function syncagent._first_key(p_position bigint, p_timed boolean) returns uuid
    language sql immutable parallel safe
    as $$
    select case when p_timed then syncagent._stamp(p_position, 0)
                else pg_catalog.encode(pg_catalog.int8send(p_position << 4) || pg_catalog.int8send(0), 'hex')::uuid end
$$;
comment on function syncagent._first_key is 'no key at this position is below it';

create function syncagent._last_key(p_position bigint, p_timed boolean) returns uuid
    language sql immutable parallel safe
    as $$
    select case when p_timed then syncagent._stamp(p_position, -1)
                else pg_catalog.encode(pg_catalog.int8send(p_position << 4 | 15) || pg_catalog.int8send(-1), 'hex')::uuid end
$$;
comment on function syncagent._last_key is 'no key at this position is above it';

create function syncagent._width(p_bucket text, p_timed boolean) returns bigint
    language sql immutable parallel safe
    as $$
    select case when not p_timed then 4503599627370496
        else 4096000 * case p_bucket when 'minute' then 60 when 'hour' then 3600 when 'day' then 86400 end::bigint end
$$;
comment on function syncagent._width is 'positions in a bucket: a minute, an hour or a day; without a time, all keys with one first byte';

create function syncagent._depth(p_width bigint, p_gap bigint) returns integer
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
    as $$
    select case when p_gap is null then 0 else least(
        greatest(ceil(ln(p_width::float8 / greatest(p_gap, 1)) / ln(2.0::float8))::integer, 0),
        round(ln((p_width & -p_width)::float8) / ln(2.0::float8))::integer, 24) end
$$;
comment on function syncagent._depth is 'how often to halve a bucket so that a slice is not wider than the gap, as long as slices are whole';

-- Reading rows ---------------------------------------------------------------------------------------------------

create function syncagent._forest_rows(p_relation integer, p_shown text default '') returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- A derived key is in no index: then the table is read once for all ranges, which are in the order of their keys.
    select syncagent._render(case when r.derived then $sql$
            select x.n, q.key, {lanes} {passed}
            from (select {key} as key, {hashed} as row {shown} from {only} {table} t offset 0) as q
            join unnest($1::uuid[], $2::uuid[], $3::boolean[]) with ordinality as x (low, high, timed, n)
                on x.n = width_bucket(q.key, $1) and q.key <= x.high and syncagent._timed(q.key) = x.timed
        $sql$ else $sql$
            select x.n, q.key, {lanes} {passed}
            from unnest($1::uuid[], $2::uuid[], $3::boolean[]) with ordinality as x (low, high, timed, n)
            cross join lateral (
                select {key} as key, {hashed} as row {shown} from {only} {table} t
                where {key} between x.low and x.high and syncagent._timed({key}) = x.timed offset 0) as q
        $sql$ end,
        k.tokens || jsonb_build_object('lanes', syncagent._lanes('q.row'),
            'hashed', syncagent._hashed(coalesce(syncagent._fingerprint_text(r.relation, r.columns), '''''')),
            'only', case c.relkind when 'p' then '' else 'only' end,
            'shown', case p_shown when '' then '' else format(', %s as shown', k.tokens ->> p_shown) end,
            'passed', case p_shown when '' then '' else ', q.shown' end))
    from syncagent.replicated r join pg_class c on c.oid = r.relation cross join lateral syncagent._tokens(r.id) as k (tokens)
    where r.id = p_relation
$$;
comment on function syncagent._forest_rows is 'the query for keys and lanes of rows in ranges of keys: $1 first keys, in their order, $2 last keys, $3 whether keys with a time are meant';

create function syncagent._shape(p_table syncagent.replicated) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select md5(coalesce(syncagent._fingerprint_text(p_table.relation, p_table.columns), '')
               || string_agg(format_type(a.atttypid, a.atttypmod), ',' order by a.attname collate "C") || replace(syncagent._fingerprint_kind(), 'hash', '')
               || replace(p_table.bucket, 'hour', ''))
    from pg_attribute a where a.attrelid = p_table.relation and a.attname = any (p_table.columns)
$$;
comment on function syncagent._shape is 'a hash of what leaves of a table depend on: when it changes, every one is wrong';

-- Sealing --------------------------------------------------------------------------------------------------------

create function syncagent._forest_tidy() returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    with altered as (
        update syncagent.forest f
        set built = 0, prefixes = 0, scrub_prefix = 0, scrub_bucket = 0, shape = syncagent._shape(r), bucket = r.bucket,
            horizon = case when f.bucket = r.bucket then f.horizon else 0 end
        from syncagent.replicated r join pg_class c on c.oid = r.relation
        where r.id = f.relation and f.shape <> syncagent._shape(r)
        returning f.relation
    )
    delete from syncagent.bucket b using altered a where b.relation = a.relation;
    -- A peer that compares may still look at a moment before it got there.
    delete from syncagent.seal s
    where s.made_at < clock_timestamp() - interval '1 hour' and s.number < (select max(x.number) from syncagent.seal x)
      and not exists (
        select from jsonb_each_text(s.frontier) as e left join syncagent._stable() t on t.node = e.key::integer
        where e.value::bigint > coalesce(t.cut, 0));
    delete from syncagent.bucket b where b.rows = 0 and not exists (select from syncagent.seal s where s.number = b.seal);
$$;
comment on function syncagent._forest_tidy is 'give a table whose columns were altered a new tree; forget seals that every site has reached';

create function syncagent._forest_fell(p_schemas name[], p_tables name[]) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    with felled as (
        update syncagent.forest f set built = 0, prefixes = 0
        from syncagent.replicated r
        where r.id = f.relation
          and (p_tables is null or (r.schema_name, r.table_name) in (select x.s, x.t from unnest(p_schemas, p_tables) as x (s, t)))
        returning f.relation
    )
    delete from syncagent.bucket b using felled x where b.relation = x.relation;
$$;
comment on function syncagent._forest_fell is 'forget the trees of tables, or of all, so that they are computed from the rows again';

create function syncagent._forest_behind(p_horizon bigint) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (
        select from syncagent.replicated r join pg_class c on c.oid = r.relation left join syncagent.forest f on f.relation = r.id
        where coalesce(f.horizon < p_horizon / syncagent._width(f.bucket, true), true) and (select s.copied and not s.joining from syncagent.local_site s))
$$;
comment on function syncagent._forest_behind is 'whether a table has no tree yet, or a bucket could be sealed that ended before this clock';

create function syncagent._forest_advance(p_horizon bigint) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    -- The caller holds `merge_lock`: every merge after this one marks what is below the new horizon, and every one
    -- before it is seen by whoever seals.
    insert into syncagent.forest (relation, consumed, shape, bucket)
    select r.id, (select coalesce(max(k.id), 0) from syncagent.cut_keys k), syncagent._shape(r), r.bucket
    from syncagent.replicated r join pg_class c on c.oid = r.relation
    where (select s.copied and not s.joining from syncagent.local_site s)   -- a copy leaves no marks, and until the site is a member its rows are of later moments than its frontier says
    on conflict (relation) do nothing;
    update syncagent.forest f set horizon = p_horizon / syncagent._width(f.bucket, true)
    where f.horizon < p_horizon / syncagent._width(f.bucket, true);
$$;
comment on function syncagent._forest_advance is 'let buckets be sealed whose time ended before this clock; give tables that were attached since their trees';

create function syncagent._seal_number() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_frontier jsonb := (select coalesce(jsonb_object_agg(f.node, f.needed), '{}') from syncagent.frontier f);
    v_number   bigint;
begin
    select s.number into v_number from syncagent.seal s
    where s.number = (select max(x.number) from syncagent.seal x) and s.frontier = v_frontier;
    if not found then
        insert into syncagent.seal (frontier) values (v_frontier) returning number into v_number;
    end if;
    return v_number;
end
$$;
comment on function syncagent._seal_number is 'the seal that stands for the frontier of this snapshot';

create function syncagent._forest_emptied(p_relation integer, p_timed boolean, p_numbers bigint[], p_seal bigint) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    insert into syncagent.bucket (relation, timed, number, depth, seal, rows, lane_0, lane_1, slices, counts, lanes_0, lanes_1)
    select distinct p_relation, p_timed, n.number, 0, p_seal, 0, 0, 0, '{}'::bigint[], '{}'::integer[], '{}'::bigint[], '{}'::bigint[]
    from unnest(p_numbers) as n (number)
    on conflict (relation, timed, number) do nothing
$$;
comment on function syncagent._forest_emptied is 'keep a seal for buckets that hold nothing any more: what was written and deleted there the other site may have seen only in part';

create function syncagent._forest_build(p_relation integer, p_timed boolean, p_lows bigint[], p_highs bigint[], p_seal bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    set enable_seqscan = off set enable_sort = off
    as $$
declare
    v_width bigint := (select syncagent._width(f.bucket, p_timed) from syncagent.forest f where f.relation = p_relation);
    v_before bigint[] := array(
        select b.number from syncagent.bucket b join unnest(p_lows, p_highs) as x (low, high) on b.number >= x.low and b.number < x.high
        where b.relation = p_relation and b.timed = p_timed);
    v_rows   bigint;
begin
    delete from syncagent.bucket b using unnest(p_lows, p_highs) as x (low, high)
    where b.relation = p_relation and b.timed = p_timed and b.number >= x.low and b.number < x.high;
    execute format($sql$
        with found as materialized (
            -- `_position` of the key, of which there is one kind here
            select case when $6 then (((r.head >> 16) & 281474976710655) << 12) | (r.head & 4095) else (r.head >> 4) & 1152921504606846975 end as position,
                   r.lane_0, r.lane_1
            from (select ('x' || encode(substr(uuid_send(s.key), 1, 8), 'hex'))::bit(64)::bigint as head, s.lane_0, s.lane_1 from (%s) as s offset 0) as r
        ), halved as (
            -- every 128th row, whichever: as deep as makes half of the stretches between two of these wider than a slice
            select g.number, syncagent._depth($4, percentile_disc(0.5) within group (order by g.gap)) as depth
            from (select f.position / $4 as number, f.position - lag(f.position) over (partition by f.position / $4 order by f.position) as gap
                  from found f where f.lane_0 & 127 = 0) as g
            group by g.number
        ), leaf as (
            select f.position / $4 as number, coalesce(h.depth, 0) as depth, f.position %% $4 / ($4 >> coalesce(h.depth, 0)) as slice,
                   count(*)::integer as rows, syncagent._modulo(sum(f.lane_0)) as lane_0, syncagent._modulo(sum(f.lane_1)) as lane_1
            from found f left join halved h on h.number = f.position / $4
            group by 1, 2, 3
        ), made as (
            insert into syncagent.bucket (relation, timed, number, depth, seal, rows, lane_0, lane_1, slices, counts, lanes_0, lanes_1)
            select $5, $6, l.number, l.depth, $7, sum(l.rows), syncagent._modulo(sum(l.lane_0)), syncagent._modulo(sum(l.lane_1)),
                   array_agg(l.slice order by l.slice), array_agg(l.rows order by l.slice),
                   array_agg(l.lane_0 order by l.slice), array_agg(l.lane_1 order by l.slice)
            from leaf l group by l.number, l.depth
            returning rows
        )
        select coalesce(sum(m.rows), 0)::bigint from made m $sql$, syncagent._forest_rows(p_relation))
    into v_rows
    using array(select syncagent._first_key(x.low * v_width, p_timed) from unnest(p_lows) as x (low) order by x.low),
          array(select syncagent._last_key(x.high * v_width - 1, p_timed) from unnest(p_highs) as x (high) order by x.high),
          array(select p_timed from unnest(p_lows)), v_width, p_relation, p_timed, p_seal;
    perform syncagent._forest_emptied(p_relation, p_timed, v_before, p_seal);
    return v_rows;
end
$$;
comment on function syncagent._forest_build is 'compute whole buckets, those of disjoint ranges of numbers, from the rows; returns how many rows they hold';

create function syncagent._forest_reach(p_relation integer, p_timed boolean, p_from bigint, p_upto bigint, p_rows bigint) returns bigint
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
declare
    v_width bigint := (select syncagent._width(f.bucket, p_timed) from syncagent.forest f where f.relation = p_relation);
    v_key    uuid;
begin
    if (select r.derived from syncagent.replicated r where r.id = p_relation) then
        return p_upto;
    end if;
    execute syncagent._render(
        'select {key} from {table} t where {key} between $1 and $2 order by {key} offset $3 limit 1', syncagent._tokens(p_relation))
    into v_key
    using syncagent._first_key(p_from * v_width, p_timed), syncagent._last_key(p_upto * v_width - 1, p_timed), p_rows;
    -- Keys of the other kind count, too, and one may be where it ends: only the index is read.
    return case when v_key is null then p_upto
                when p_timed then (('x' || encode(substr(uuid_send(v_key), 1, 6), 'hex'))::bit(48)::bigint << 12) / v_width + 1
                else get_byte(uuid_send(v_key), 0) + 1 end;
end
$$;
comment on function syncagent._forest_reach is 'the bucket up to which there are about so many rows; a derived key is in no order, so then all are taken';

create function syncagent._forest_seal(p_relation integer, p_rows bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_forest syncagent.forest;
    v_seal   bigint;
    v_upto   bigint;
    v_rows   bigint;
begin
    select * into strict v_forest from syncagent.forest where relation = p_relation;
    if v_forest.prefixes < 256 or v_forest.built < v_forest.horizon then
        v_seal := syncagent._seal_number();
    end if;
    if v_forest.prefixes < 256 then
        v_upto := syncagent._forest_reach(p_relation, false, v_forest.prefixes, 256, p_rows);
        v_rows := syncagent._forest_build(p_relation, false, array[v_forest.prefixes], array[v_upto], v_seal);
        update syncagent.forest set prefixes = v_upto, seal = v_seal where relation = p_relation;
    elsif v_forest.built < v_forest.horizon and (select r.derived from syncagent.replicated r where r.id = p_relation) then
        update syncagent.forest set built = horizon where relation = p_relation;   -- derived keys have no time
        v_rows := 0;
    elsif v_forest.built < v_forest.horizon then
        v_upto := syncagent._forest_reach(p_relation, true, v_forest.built, v_forest.horizon, p_rows);
        v_rows := syncagent._forest_build(p_relation, true, array[v_forest.built], array[v_upto], v_seal);
        update syncagent.forest set built = v_upto, seal = v_seal where relation = p_relation;
    end if;
    return v_rows;
end
$$;
comment on function syncagent._forest_seal is 'seal the next buckets of a table, about so many rows; returns how many, null if there is nothing to seal';

create function syncagent._forest_lower(p_relation integer, p_many bigint) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_forest   syncagent.forest;
    v_consumed bigint;
    v_marks    bigint;
    v_keys     bigint;
    v_low      bigint;
    v_untimed  boolean;
begin
    -- Arrays are not compressed: their size says how many keys there are, without reading them.
    select max(w.cut), max(w.mark), sum(w.bytes) / 16 into v_consumed, v_marks, v_keys
    from (
        select c.id as cut, null::bigint as mark, pg_column_size(c.keys) as bytes
        from syncagent.forest f join syncagent.cut_keys c on c.relation = f.relation and c.id > f.consumed
        join syncagent.local_site me on me.node = c.node where f.relation = p_relation
        union all
        select null, m.id, pg_column_size(m.keys) from syncagent.mark m where m.relation = p_relation
    ) as w;
    if v_keys is null or v_keys < greatest(p_many, syncagent._estimate((select r.relation from syncagent.replicated r where r.id = p_relation)) / 8) then
        return false;
    end if;
    select * into strict v_forest from syncagent.forest where relation = p_relation;
    select min(syncagent._position(k.key)) filter (where syncagent._timed(k.key)) / syncagent._width(v_forest.bucket, true),
           coalesce(bool_or(not syncagent._timed(k.key)), false)
    into v_low, v_untimed
    from (
        select c.keys from syncagent.cut_keys c join syncagent.local_site me on me.node = c.node
        where c.relation = p_relation and c.id > v_forest.consumed and c.id <= v_consumed
        union all
        select m.keys from syncagent.mark m where m.relation = p_relation and m.id <= v_marks
    ) as w cross join lateral unnest(w.keys) as k (key);
    delete from syncagent.bucket b
    where b.relation = p_relation and case when b.timed then b.number >= v_low else v_untimed end;
    update syncagent.forest f
    set built = least(f.built, v_low), prefixes = case when v_untimed then 0 else f.prefixes end, consumed = coalesce(v_consumed, f.consumed)
    where f.relation = p_relation;
    delete from syncagent.mark m where m.relation = p_relation and m.id <= v_marks;
    return true;
end
$$;
comment on function syncagent._forest_lower is 'where so many keys are marked that to compute all anew is less work, forget what is sealed from the lowest of them on, and the marks; whether that was so';

create function syncagent._forest_reseal(p_relation integer, p_keys bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    set enable_seqscan = off set client_min_messages = warning
    as $$
declare
    v_forest   syncagent.forest;
    v_seal     bigint;
    v_consumed bigint;
    v_keys     uuid[];
    v_arrived  uuid[];
    v_marks    bigint[];
    r          record;
begin
    if syncagent._forest_lower(p_relation, p_keys * 20) then
        return 0;
    end if;
    select * into strict v_forest from syncagent.forest where relation = p_relation;
    select max(c.id), array_agg(k.key) into v_consumed, v_keys
    from (
        select c.id, c.keys, sum(cardinality(c.keys)) over (order by c.id) - cardinality(c.keys) as before
        from syncagent.cut_keys c join syncagent.local_site me on me.node = c.node
        where c.relation = p_relation and c.id > v_forest.consumed
    ) as c left join lateral unnest(c.keys) as k (key) on true
    where c.before < p_keys;
    select array_agg(distinct m.id), array_agg(k.key) into v_marks, v_arrived
    from (
        select m.id, m.keys, sum(cardinality(m.keys)) over (order by m.id) - cardinality(m.keys) as before
        from syncagent.mark m where m.relation = p_relation
    ) as m left join lateral unnest(m.keys) as k (key) on true
    where m.before < p_keys;
    if v_consumed is null and v_marks is null then
        return null;
    end if;
    v_keys := v_keys || v_arrived;

    -- A bucket that held nothing is computed as a whole, and in the end one whose slices have become too full.
    create temp table if not exists marked (timed boolean, number bigint, slice bigint, whole boolean);
    delete from pg_temp.marked;
    insert into pg_temp.marked (timed, number, slice, whole)
    select distinct p.timed, p.number,
           (p.position - p.number * p.width) / (p.width >> b.depth), b.depth is null
    from (
        select k.timed, k.position, w.width, k.position / w.width as number
        from (select syncagent._timed(u.key) as timed, syncagent._position(u.key) as position from unnest(v_keys) as u (key) where u.key is not null) as k
        cross join lateral (select syncagent._width(v_forest.bucket, k.timed)) as w (width)
    ) as p
    left join syncagent.bucket b on b.relation = p_relation and b.timed = p.timed and b.number = p.number
    where p.number < case when p.timed then v_forest.built else v_forest.prefixes end;

    if exists (select from pg_temp.marked) then
        v_seal := syncagent._seal_number();
        if exists (select from pg_temp.marked m where not m.whole) then
            perform syncagent._forest_leaves_anew(p_relation, v_seal);
        end if;
        for r in
            select x.timed, array_agg(x.number order by x.number) as lows, array_agg(x.number + 1 order by x.number) as highs
            from (select distinct m.timed, m.number
                  from pg_temp.marked m left join syncagent.bucket b on b.relation = p_relation and b.timed = m.timed and b.number = m.number
                  where m.whole or b.rows > 256 * cardinality(b.slices) and b.depth < syncagent._depth(syncagent._width(v_forest.bucket, b.timed), 1)) as x
            group by x.timed
        loop
            perform syncagent._forest_build(p_relation, r.timed, r.lows, r.highs, v_seal);
        end loop;
        perform syncagent._forest_emptied(p_relation, m.timed, array_agg(m.number), v_seal) from pg_temp.marked m where m.whole group by m.timed;
    end if;
    update syncagent.forest set consumed = coalesce(v_consumed, consumed) where relation = p_relation;
    delete from syncagent.mark where id = any (v_marks);
    return coalesce(cardinality(v_keys), 0);
end
$$;
comment on function syncagent._forest_reseal is 'recompute the leaves of about so many marked keys, and forget the marks; returns how many keys, null if there were no marks';

create function syncagent._forest_leaves_anew(p_relation integer, p_seal bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    as $$
declare
    v_dirty  record;
begin
    select array_agg(d.low order by d.low) as lows, array_agg(d.high order by d.low) as highs, array_agg(d.timed order by d.low) as timed,
           array_agg(d.number order by d.low) as numbers, array_agg(d.slice order by d.low) as slices into v_dirty
    from (
        select m.timed, m.number, m.slice, syncagent._first_key(s.low, m.timed) as low, syncagent._last_key(s.low + s.size - 1, m.timed) as high
        from pg_temp.marked m
        join syncagent.bucket b on b.relation = p_relation and b.timed = m.timed and b.number = m.number
        join syncagent.forest f on f.relation = p_relation
        cross join lateral (select syncagent._width(f.bucket, m.timed)) as w (width)
        cross join lateral (select m.number * w.width + m.slice * (w.width >> b.depth), w.width >> b.depth) as s (low, size)
        where not m.whole
    ) as d;
    execute format($sql$
        with fresh as materialized (
            select r.n, count(*)::integer as rows, syncagent._modulo(sum(r.lane_0)) as lane_0, syncagent._modulo(sum(r.lane_1)) as lane_1
            from (%s) as r group by r.n
        ), dirty as materialized (
            select d.* from unnest($3::boolean[], $4::bigint[], $5::bigint[]) with ordinality as d (timed, number, slice, n)
        ), hit as materialized (
            select distinct d.timed, d.number from dirty d
        ), leaf as (
            select b.timed, b.number, u.slice, u.rows, u.lane_0, u.lane_1
            from hit h
            join syncagent.bucket b on b.relation = $6 and b.timed = h.timed and b.number = h.number
            cross join lateral unnest(b.slices, b.counts, b.lanes_0, b.lanes_1) as u (slice, rows, lane_0, lane_1)
            where not exists (select from dirty d where d.timed = b.timed and d.number = b.number and d.slice = u.slice)
            union all
            select d.timed, d.number, d.slice, f.rows, f.lane_0, f.lane_1 from dirty d join fresh f on f.n = d.n
        ), made as (
            select h.timed, h.number, coalesce(sum(l.rows), 0) as rows,
                   syncagent._modulo(sum(l.lane_0)) as lane_0, syncagent._modulo(sum(l.lane_1)) as lane_1,
                   array_agg(l.slice order by l.slice) filter (where l.rows > 0) as slices, array_agg(l.rows order by l.slice) filter (where l.rows > 0) as counts,
                   array_agg(l.lane_0 order by l.slice) filter (where l.rows > 0) as lanes_0, array_agg(l.lane_1 order by l.slice) filter (where l.rows > 0) as lanes_1
            from hit h left join leaf l on l.timed = h.timed and l.number = h.number
            group by h.timed, h.number
        )
        update syncagent.bucket b
        set seal = $7, rows = m.rows, lane_0 = m.lane_0, lane_1 = m.lane_1, slices = coalesce(m.slices, '{}'),
            counts = coalesce(m.counts, '{}'), lanes_0 = coalesce(m.lanes_0, '{}'), lanes_1 = coalesce(m.lanes_1, '{}')
        from made m
        where b.relation = $6 and b.timed = m.timed and b.number = m.number $sql$, syncagent._forest_rows(p_relation))
    using v_dirty.lows, v_dirty.highs, v_dirty.timed, v_dirty.numbers, v_dirty.slices, p_relation, p_seal;
end
$$;
comment on function syncagent._forest_leaves_anew is 'compute the marked slices of stored buckets from the rows, one range scan each';

create function syncagent._forest_anew(p_relation integer, p_timed boolean, p_numbers bigint[]) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_numbers bigint[] := array(
        select distinct n.number from unnest(p_numbers) as n (number) join syncagent.forest f on f.relation = p_relation
        where n.number < case when p_timed then f.built else f.prefixes end order by 1);
begin
    return syncagent._forest_build(p_relation, p_timed, v_numbers, array(select n.number + 1 from unnest(v_numbers) as n (number) order by 1), syncagent._seal_number());
end
$$;
comment on function syncagent._forest_anew is 'compute sealed buckets from their rows, although nothing is marked in them; returns how many rows they hold';

create function syncagent._forest_scrub(p_relation integer, p_rows bigint, p_period interval) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_forest syncagent.forest;
    v_upto   bigint;
begin
    select * into strict v_forest from syncagent.forest where relation = p_relation;
    if v_forest.scrubbed_at > clock_timestamp() - p_period then
        return null;
    elsif v_forest.scrub_prefix < v_forest.prefixes then
        v_upto := syncagent._forest_reach(p_relation, false, v_forest.scrub_prefix, v_forest.prefixes, p_rows);
        update syncagent.forest set scrub_prefix = v_upto where relation = p_relation;
        return syncagent._forest_build(p_relation, false, array[v_forest.scrub_prefix], array[v_upto], syncagent._seal_number());
    elsif v_forest.scrub_bucket < v_forest.built and not (select r.derived from syncagent.replicated r where r.id = p_relation) then
        v_upto := syncagent._forest_reach(p_relation, true, v_forest.scrub_bucket, v_forest.built, p_rows);
        update syncagent.forest set scrub_bucket = v_upto where relation = p_relation;
        return syncagent._forest_build(p_relation, true, array[v_forest.scrub_bucket], array[v_upto], syncagent._seal_number());
    end if;
    update syncagent.forest set scrub_prefix = 0, scrub_bucket = 0, scrubbed_at = clock_timestamp() where relation = p_relation;
    return null;
end
$$;
comment on function syncagent._forest_scrub is 'compute the next sealed buckets from their rows, about so many rows, if that was not done for such a time; returns how many, null if it is not due';

create function syncagent._forest_dirty() returns table (relation integer, timed boolean, number bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select distinct f.relation, p.timed, p.number
    from (
        select c.relation, c.keys from syncagent.local_site me join syncagent.cut_keys c on c.node = me.node
        join syncagent.forest f on f.relation = c.relation where c.id > f.consumed
        union all
        select m.relation, m.keys from syncagent.mark m
        union all
        select l.relation, l.keys from syncagent.log l cross join syncagent._last_cut() as c where l.xid >= c.xmax or l.xid = any (c.xip)
        union all
        select s.relation, array[s.key] from syncagent.settling s
    ) as w
    join syncagent.forest f on f.relation = w.relation
    cross join lateral (select syncagent._first_key(f.built * syncagent._width(f.bucket, true), true) offset 0) as b (beyond)
    cross join lateral (
        select syncagent._timed(k.key), syncagent._position(k.key) / syncagent._width(f.bucket, syncagent._timed(k.key)) from unnest(w.keys) as k (key)
        where k.key < b.beyond or not syncagent._timed(k.key)   -- what is new is in no sealed bucket, and its place takes ten times as long to compute
        offset 0
    ) as p (timed, number)
    where p.number < case when p.timed then f.built else f.prefixes end
$$;
comment on function syncagent._forest_dirty is 'sealed buckets with a leaf that may differ from its rows: of marked keys, and of keys in no cut yet';

create function syncagent._forest_due(p_period interval) returns table (relation integer, marked boolean, unsealed boolean, unscrubbed boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select f.relation,
           exists (select from syncagent.mark m where m.relation = f.relation)
               or exists (select from syncagent.cut_keys c join syncagent.local_site me on me.node = c.node
                          where c.relation = f.relation and c.id > f.consumed),
           f.prefixes < 256 or f.built < f.horizon, f.scrubbed_at < clock_timestamp() - p_period
    from syncagent.forest f join syncagent.replicated r on r.id = f.relation join pg_class c on c.oid = r.relation
    order by f.relation
$$;
comment on function syncagent._forest_due is 'what there is to do: tables with marked leaves, with buckets to be sealed, and those that were not scrubbed for such a time';

-- Comparing ------------------------------------------------------------------------------------------------------
-- All of it in one snapshot, which the agent keeps while it talks with a peer.

create function syncagent._known_answers() returns bigint[]
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case syncagent._fingerprint_kind()
        when 'sha256' then array[('x' || encode(substr(sha256(convert_to(repeat('0123456789', 100), getdatabaseencoding())), 1, 8), 'hex'))::bit(64)::bigint]
        else array[hashtextextended('syncagent' collate "C", 0), hashtextextended(repeat('0123456789', 100) collate "C", 7640891576956012808)] end
$$;
comment on function syncagent._known_answers is 'equal at two servers if their fingerprints can be compared';

create function syncagent._forest_standing() returns table (relation integer, schema_name name, table_name name, shape text, bucket text, prefix bigint, built bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- while a schema change is carried out, rows are equal only where it has got equally far, and not while they are filled
    select r.id, r.schema_name, r.table_name, concat_ws('/', f.shape, s.schema_epoch, case when r.filling then s.node end), f.bucket,
           f.prefixes * syncagent._width(f.bucket, false), f.built * syncagent._width(f.bucket, true)
    from syncagent.forest f join syncagent.replicated r on r.id = f.relation join pg_class c on c.oid = r.relation cross join syncagent.local_site s
$$;
comment on function syncagent._forest_standing is 'tables that have a tree, and below which positions its buckets are sealed, without a time and with one';

create function syncagent._forest_left_out(p_frontier jsonb, p_most bigint default 20000) returns table (relation integer, timed boolean, number bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with ahead as materialized (
        select s.number from syncagent.seal s
        where exists (select from jsonb_each_text(s.frontier) as e where e.value::bigint > coalesce((p_frontier ->> e.key)::bigint, 0))
    ), every as (
        select d.relation, d.timed, d.number from syncagent._forest_dirty() as d
        union
        select b.relation, b.timed, b.number
        from ahead a join syncagent.bucket b on b.seal = a.number
        union
        select f.relation, t.timed, null from ahead a join syncagent.forest f on f.seal = a.number cross join (values (false), (true)) as t (timed)
    )
    -- Of so many the list would be longer than what it is about is worth: another time.
    select distinct e.relation, e.timed, case when m.few then e.number end
    from every e join (select x.relation, x.timed, count(*) <= p_most as few from every x group by x.relation, x.timed) as m
        on m.relation = e.relation and m.timed = e.timed
$$;
comment on function syncagent._forest_left_out is 'sealed buckets that cannot be compared with a site at this frontier: it may lack what they hold, or they are not true now; without a number the whole part of a table, where hours without a row were sealed, too, or where they are too many';

create function syncagent._forest_sums(p_level text, p_relations integer[], p_timed boolean[], p_lows bigint[], p_highs bigint[],
                                       p_out_relations integer[], p_out_timed boolean[], p_out_numbers bigint[])
    returns table (n bigint, start bigint, rows bigint, lane_0 bigint, lane_1 bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select s.n, p.start, sum(b.rows)::bigint, syncagent._modulo(sum(b.lane_0)), syncagent._modulo(sum(b.lane_1))
    from unnest(p_relations, p_timed, p_lows, p_highs) with ordinality as s (relation, timed, low, high, n)
    join syncagent.forest f on f.relation = s.relation
    cross join lateral (select syncagent._width(f.bucket, s.timed)) as w (width)
    join syncagent.bucket b on b.relation = s.relation and b.timed = s.timed and b.number >= s.low / w.width and b.number < (s.high + w.width - 1) / w.width
    cross join lateral (
        select case p_level when 'table' then s.low when 'bucket' then b.number * w.width
            else (extract(epoch from date_trunc(p_level, to_timestamp(b.number * w.width / 4096000) at time zone 'UTC')) * 4096000)::bigint end) as p (start)
    where not exists (
        select from unnest(p_out_relations, p_out_timed, p_out_numbers) as o (relation, timed, number)
        where o.relation = b.relation and o.timed = b.timed and o.number = b.number)
    group by s.n, p.start
$$;
comment on function syncagent._forest_sums is 'sums of the sealed buckets of each span, without those left out, by year, month, day, bucket or all together (table)';

create function syncagent._forest_leaves(p_depth integer, p_relations integer[], p_timed boolean[], p_lows bigint[], p_highs bigint[])
    returns table (n bigint, depth integer, slice bigint, rows bigint, lane_0 bigint, lane_1 bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select s.n, d.depth, u.slice >> (b.depth - d.depth), sum(u.rows)::bigint, syncagent._modulo(sum(u.lane_0)), syncagent._modulo(sum(u.lane_1))
    from unnest(p_relations, p_timed, p_lows, p_highs) with ordinality as s (relation, timed, low, high, n)
    join syncagent.forest f on f.relation = s.relation
    cross join lateral (select syncagent._width(f.bucket, s.timed)) as w (width)
    join syncagent.bucket b on b.relation = s.relation and b.timed = s.timed and b.number = s.low / w.width
    cross join lateral (select least(b.depth, p_depth)) as d (depth)
    cross join lateral unnest(b.slices, b.counts, b.lanes_0, b.lanes_1) as u (slice, rows, lane_0, lane_1)
    where b.number * w.width + u.slice * (w.width >> b.depth) >= s.low and b.number * w.width + u.slice * (w.width >> b.depth) < s.high
    group by s.n, d.depth, u.slice >> (b.depth - d.depth)
$$;
comment on function syncagent._forest_leaves is 'leaves of the bucket of each span, at this depth or its own if that is less';

create function syncagent._forest_count(p_relation integer, p_timed boolean[], p_lows bigint[], p_highs bigint[])
    returns table (n bigint, rows bigint, lane_0 bigint, lane_1 bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    set enable_seqscan = off
    as $$
begin
    return query execute format('select r.n, count(*), syncagent._modulo(sum(r.lane_0)), syncagent._modulo(sum(r.lane_1)) from (%s) as r group by r.n',
                                syncagent._forest_rows(p_relation))
    using array(select syncagent._first_key(s.low, s.timed) from unnest(p_timed, p_lows) with ordinality as s (timed, low, n) order by s.n),
          array(select syncagent._last_key(s.high - 1, s.timed) from unnest(p_timed, p_highs) with ordinality as s (timed, high, n) order by s.n), p_timed;
end
$$;
comment on function syncagent._forest_count is 'digests of spans of one table, from the rows; the spans are in the order of their keys';

create function syncagent._forest_list(p_relation integer, p_timed boolean[], p_lows bigint[], p_highs bigint[], p_limit bigint)
    returns table (n bigint, key uuid, shown text, stamp uuid, lane_0 bigint, lane_1 bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    set enable_seqscan = off
    as $$
begin
    return query execute format('select r.n, r.key, case when r.shown = r.key::text then '''' else r.shown end, v.stamp, r.lane_0, r.lane_1 from (%s) as r left join syncagent.version_%s v on v.key = r.key limit $4',
                                syncagent._forest_rows(p_relation, 't_key_text'), p_relation)
    using array(select syncagent._first_key(s.low, s.timed) from unnest(p_timed, p_lows) with ordinality as s (timed, low, n) order by s.n),
          array(select syncagent._last_key(s.high - 1, s.timed) from unnest(p_timed, p_highs) with ordinality as s (timed, high, n) order by s.n), p_timed, p_limit;
end
$$;
comment on function syncagent._forest_list is 'rows of spans of one table: keys, stamps that are not implicit, fingerprints; the spans are in the order of their keys';

create table syncagent.proof_record (
    id         uuid primary key default gen_random_uuid(),
    node       integer not null,
    equal      boolean not null,
    complete   boolean not null,
    tables     integer not null,
    rows       bigint not null,
    open       integer not null,
    before     timestamptz,
    root       text not null,
    here       jsonb not null,
    there      jsonb not null,
    found      jsonb not null,
    first_at   timestamptz not null default clock_timestamp(),
    last_at    timestamptz not null default clock_timestamp(),
    times      bigint not null default 1
);
create index proof_record_time on syncagent.proof_record (last_at);
comment on table syncagent.proof_record is 'comparisons with peers; one that found the same again is counted at the same line';

create function syncagent._prove(p_node integer, p_equal boolean, p_complete boolean, p_tables integer, p_rows bigint, p_open integer, p_before bigint,
                                 p_root text, p_here jsonb, p_there jsonb, p_found jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.proof_record r set last_at = clock_timestamp(), times = times + 1, open = p_open, here = p_here, there = p_there
    where r.id = (select x.id from syncagent.proof_record x where x.node = p_node order by x.last_at desc limit 1)
      and (r.equal, r.complete, r.tables, r.rows, r.root, r.found) = (p_equal, p_complete, p_tables, p_rows, p_root, p_found);
    if not found then
        insert into syncagent.proof_record (node, equal, complete, tables, rows, open, before, root, here, there, found)
        values (p_node, p_equal, p_complete, p_tables, p_rows, p_open, to_timestamp(p_before / 4096000.0), p_root, p_here, p_there, p_found);
    end if;
    delete from syncagent.proof_record r where r.last_at < clock_timestamp() - interval '30 days';
end
$$;
comment on function syncagent._prove is 'note what a comparison has found';
