-- Made by `python -m tests.support.freeze` of 10_schema.sql, 15_catalog.sql, 20_clock.sql, 30_capture.sql, 31_triggers.sql, 35_numbers.sql, 40_cut.sql, 45_fingerprint.sql, 48_shape.sql, 50_apply.sql, 50_waiting.sql, 51_references.sql, 52_columns.sql, 52_functions.sql, 52_merge.sql, 53_aliases.sql, 53_constraints.sql, 54_history.sql, 54_resolve.sql, 54_siblings.sql, 55_copy.sql, 56_schema_changes.sql, 56_strategies.sql, 56_versions.sql, 57_return.sql, 58_forest.sql, 59_repair.sql, 60_inspect.sql. Frozen once released.

-- syncagent: the SQL side of one site.
--
-- The application writes its own tables. Statement triggers append the keys each statement touched to
-- `log` (30). The agent makes a *cut*: one REPEATABLE READ transaction that folds the log into version
-- tables and reads the changed rows out with COPY (40). At the other sites it stages those bytes and merges
-- them, set by set (50). What a person asks is answered by the views and functions of 60.
--
-- Names that start with an underscore are the agent's. One version table, one capture function and four
-- merge functions are generated per attached table, with its number in their names (30).

create schema if not exists syncagent; -- `migrations` makes it first, for its version table
comment on schema syncagent is 'syncagent: multi-master replication. Managed by `syncagent db`; see syncagent.status';

-- Who this database is -------------------------------------------------------------------------------------

create table syncagent.local_site (
    only_row    boolean primary key default true check (only_row),
    site        uuid not null,
    name        text not null,
    node        integer not null check (node between 1 and 65535),
    incarnation uuid not null,
    tail        bigint not null,
    trimmed     bigint not null default 0,
    joining     boolean not null default false,
    copied      boolean not null default true,
    fingerprint text not null default 'hash' check (fingerprint in ('hash', 'sha256')),
    node_before integer,
    seen_before jsonb,
    compacted   jsonb not null default '{}',
    collected   jsonb not null default '{}',
    schema_epoch bigint not null default 0,
    schema_floor bigint not null default 0
);
comment on table syncagent.local_site is 'this site; tail is the lower half of every stamp of this incarnation: variant, node, 46 bits of its hash; trimmed is the last cut whose keys are forgotten; joining until it is a member, copied once its rows are here; fingerprint is how rows are compared, as agreed; node_before and seen_before are its number and its frontier before it returned, until it has its rows; entries that are gone were of these cuts at most, tombstones among them of those collected; schema_epoch is the last step of a schema change done here, schema_floor the oldest whose rows can be read';

create table syncagent.replicated (
    id          integer generated always as identity primary key,
    relation    regclass not null unique,
    schema_name name not null,
    table_name  name not null,
    strategy    text not null default 'lww' check (strategy in ('lww', 'lww-column', 'merge')),
    merges      jsonb not null default '{}',
    whole       bigint,
    whole_cut   bigint,
    key_columns name[] not null,
    derived     boolean not null,
    columns     name[] not null,
    collected   uuid not null default '00000000-0000-0000-0000-000000000000',
    text_hash   text not null default '',
    shipped     boolean not null default true,
    stride      integer,
    bucket      text not null default 'hour' check (bucket in ('minute', 'hour', 'day')),
    policies   jsonb not null default '{}',
    fills       jsonb not null default '{}',
    filling     boolean not null default false,
    agreed      boolean not null default false,
    attached_at timestamptz not null default now(),
    unique (schema_name, table_name)
);
comment on table syncagent.replicated is 'attached tables; collected is the largest stamp of any tombstone collected here; shipped, stride, bucket, policies and merges (of columns, where the strategy is merge) are how it was attached; fills is what rows have in columns that a schema change has added, as SQL, where they come from a site before it; filling while rows get their value in such a column; whole while its rows are logged whole, before its strategy changes: the clock of that moment, and whole_cut the last cut with writes of before; agreed once the catalog has it';

create table syncagent.stride (
    relation    integer not null,
    column_name name not null,
    sequence    regclass not null,
    every       integer not null,
    before      bigint not null,
    primary key (relation, column_name)
);
comment on table syncagent.stride is 'sequences of attached tables that draw every so many numbers; before is the step they had';

-- Captured statements --------------------------------------------------------------------------------------
-- A ring of slots by the entry's own clock: two seconds each, sixteen of them. A slot is truncated once all it
-- holds is folded, so a cut scans seconds of entries, without an index that every write would pay for.

create table syncagent.log (
    xid      xid8 not null,
    relation integer not null,
    op       "char" not null,
    hlc      bigint not null,
    keys     uuid[] not null,
    odd      text[],
    columns  name[],
    deltas   jsonb
) partition by list (((hlc >> 23) & 15));
alter table syncagent.log alter column keys set storage external;  -- random bits: compressing them is time lost
comment on table syncagent.log is 'one entry per captured statement: I, U or D and the keys it touched; odd carries the key columns of derived keys; columns are those that an update changed, where the strategy is by column, null if all are new; deltas what it added to those that are counters or sets';

do $$
begin
    for v_slot in 0..15 loop
        execute format(
            'create table syncagent.log_%s partition of syncagent.log for values in (%s) with (autovacuum_enabled = off)',
            v_slot, v_slot);
    end loop;
end
$$;

-- What has been cut here -----------------------------------------------------------------------------------

create table syncagent.cut (
    number   bigint primary key,
    id       uuid not null unique,
    previous uuid,
    taken    pg_snapshot not null,
    rows     bigint not null,
    made_at  timestamptz not null default clock_timestamp()
);
comment on table syncagent.cut is 'cuts of this site that some member has not applied yet, and the last one';

create table syncagent.cut_keys (
    id       bigint generated always as identity,
    node     integer not null,
    cut      bigint not null,
    relation integer not null,
    implicit boolean not null,
    born     boolean not null default false,
    keys     uuid[] not null
);
alter table syncagent.cut_keys alter column keys set storage external;
create index cut_keys_cut on syncagent.cut_keys (node, cut, relation);
create index cut_keys_id on syncagent.cut_keys (node, relation, id);
comment on table syncagent.cut_keys is 'the keys each cut saw changed, in chunks; of cuts of other sites those that came from them, to be handed on. Until stable the only record of rows with implicit stamps: a key in it whose row has no entry is the very insert of that cut. The forest reads those of this site, by id. Born: inserted here, and unknown before, also where the key has no time';

create table syncagent.frontier (
    node    integer primary key,
    cut     bigint not null,
    cut_id  uuid,
    context jsonb not null default '{}',
    newest  bigint not null default 0,
    needed  bigint not null default 0,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table syncagent.frontier is 'the last cut applied of every origin, and what that origin had applied when it made it; newest is the largest clock of its writes up to then, needed the last of its cuts that held any: a site at rest may never hear of later ones';

create table syncagent.context (
    node    integer not null,
    cut     bigint not null,
    context jsonb not null,
    newest  bigint not null default 0,
    applied pg_snapshot,
    primary key (node, cut)
);
comment on table syncagent.context is 'frontier of an origin at each of its cuts, until stable; newest is no less than any clock in it; applied is the snapshot in which it was applied here';

-- What is unsettled ----------------------------------------------------------------------------------------

create table syncagent.settling (
    relation integer not null,
    key      uuid not null,
    primary key (relation, key)
);
comment on table syncagent.settling is 'rows found alive under a newer tombstone; the agent writes them anew';

create table syncagent.parked_row (
    relation integer not null,
    key      uuid not null,
    stamp    uuid not null,
    node     integer not null,
    cut      bigint not null,
    image    text not null,
    shown    jsonb not null,
    sqlstate text not null,
    reason   text not null,
    since    timestamptz not null default clock_timestamp(),
    registers jsonb,
    primary key (relation, key)
);
comment on table syncagent.parked_row is 'rows that arrived and break a constraint here; retried after every batch';

create table syncagent.merge_result (
    relation    integer not null,
    key         uuid not null,
    column_name name not null,
    siblings    text not null,
    value       text,
    reason      text,
    tried_at    timestamptz,
    stopped     boolean not null,
    primary key (relation, key, column_name)
);
comment on table syncagent.merge_result is 'what functions of the application have made of siblings, which are named by their stamps; or why one has failed: then the row shows the latest, and it is tried again; stopped: it took too long';

create table syncagent.alias (
    relation integer not null,
    loser    uuid not null,
    winner   uuid not null,
    node     integer not null,
    cut      bigint,
    primary key (relation, loser, node)
);
create index alias_winner on syncagent.alias (relation, winner);
comment on table syncagent.alias is 'rows that were merged into others, by a cut of a node (null: in no cut yet), as long as their tombstones: rows that refer to the loser are given to the winner';

create table syncagent.conflict_record (
    id            uuid primary key,
    schema_name   name not null,
    table_name    name not null,
    key           uuid not null,
    key_text      text not null,
    kind          text not null,
    strategy      text not null,
    constraint_name name,
    other_key     uuid,
    other_key_text text,
    winning_stamp uuid not null,
    losing_stamp  uuid not null,
    winning_node  integer,
    losing_node   integer,
    winning_image jsonb,
    losing_image  jsonb,
    columns       name[],
    yielded       jsonb,
    followed      jsonb,
    noticed_at    timestamptz not null default clock_timestamp()
);
create index conflict_record_key on syncagent.conflict_record (key);
create index conflict_record_time on syncagent.conflict_record (noticed_at);
comment on table syncagent.conflict_record is 'every version that was overwritten unseen, and every row that had to yield its value to another one, with both images; columns are those that both wrote, where rows are not written whole; yielded is the column that was changed then, and what it became; followed are rows that referred to one that was merged into another, and what was written in them where it was noticed; a node that is not known any more is null';

create table syncagent.conflict_step (
    conflict uuid not null,
    node     integer not null,
    hlc      bigint not null default 0,
    cut      bigint,
    what     text not null check (what in ('noticed', 'resolved', 'undone')),
    at       timestamptz not null default clock_timestamp(),
    by_role  name,
    writes   jsonb,
    primary key (conflict, node, hlc)
);
create index conflict_step_cut on syncagent.conflict_step (node, cut);
create index conflict_step_settled on syncagent.conflict_step (at) where what <> 'noticed';
comment on table syncagent.conflict_step is 'which sites have noticed a conflict before they were told of it, and who has settled it, or has taken that back, at which site: told to all by a cut of it (null: in no cut yet); the step of the largest clock, then node, holds; writes take a resolution back';

-- The agent and its verbs ----------------------------------------------------------------------------------

create table syncagent.merge_lock () with (autovacuum_enabled = off);
comment on table syncagent.merge_lock is 'locked by a cut, a merge and a compaction, so that they exclude each other; always empty';

create table syncagent.peer_state (
    node       integer primary key,
    linked     boolean not null default false,
    via        integer,
    paused     boolean not null default false,
    frontier   jsonb not null default '{}',
    parked     bigint not null default 0,
    rtt        interval,
    clock_offset interval,
    waiting    text,
    trouble    text,
    changed_at timestamptz not null default clock_timestamp()
);
comment on table syncagent.peer_state is 'what the agent last knew of each peer: for people, never for the protocol; via is the node that a peer without a link is reached through';

create table syncagent.agent_state (
    only_row   boolean primary key default true check (only_row),
    version    text not null,
    started_at timestamptz not null,
    waiting    text,
    trouble    text,
    leader     integer
);
comment on table syncagent.agent_state is 'what the agent last said of itself';

create table syncagent.request (
    id          uuid primary key,
    verb        text not null,
    arguments   jsonb not null default '{}',
    asked_at    timestamptz not null default clock_timestamp(),
    progress    text,
    answered_at timestamptz,
    answer      jsonb
);
comment on table syncagent.request is 'what a person asked the running agent to do, how far it is, and its answer';

-- What the sites have agreed on: Raft's log, and the catalog it led to.
--
-- The agent reads and writes these as bytes; what people and the rest of the SQL side need of the catalog is
-- in `member`, written in the same transaction.

create table syncagent.raft_state (
    only_row boolean primary key default true check (only_row),
    term     bigint not null,
    vote     integer not null,
    applied  bigint not null,
    snapshot bytea not null,
    catalog  bytea not null,
    told     bytea
);
comment on table syncagent.raft_state is 'what this site must not forget of Raft, the newest snapshot, and the catalog as of the entry applied last; told is the catalog that a site was admitted with, until its own is as new';

create table syncagent.raft_entry (
    number bigint primary key,
    entry  bytea not null
);
comment on table syncagent.raft_entry is 'Raft''s log after, and a little before, the snapshot';

create table syncagent.member (
    node     integer primary key,
    name     text not null unique deferrable initially deferred,
    address  text,
    sha256   text[] not null default '{}',
    state    text not null default 'member' check (state in ('joining', 'member')),
    votes    boolean not null default false,
    witness  boolean not null default false,
    admitted bigint not null default 0
);
create table syncagent.schema_record (
    place    integer primary key,
    id       uuid not null,
    name     text not null,
    state    text not null,
    phase    text,
    site     text not null,
    asked_at timestamptz not null,
    steps    integer not null,
    let_go   integer not null,
    upto     bigint not null,
    failures jsonb not null,
    sql      text not null
);
comment on table syncagent.schema_record is 'schema changes as agreed, in their order: upto is the step, of all changes, that the last one let go of it has; failures are sites that cannot do one, and why';

create table syncagent.revision_data (
    revision text primary key,
    done_at  timestamptz not null default clock_timestamp()
);
comment on table syncagent.revision_data is 'revisions of the application whose data was written at this site';

create table syncagent.lapsed (
    node    integer primary key,
    horizon xid8
);
comment on table syncagent.lapsed is 'sites that were away for too long: what was committed here by transactions below the horizon was known to have come to them, or, if there is none, nothing is known';

comment on table syncagent.member is 'every site of the cluster, this one included, as agreed; all of them count for stability, but for witnesses, which hold no rows';

-- The clock of the site and the stamps made of it.
--
-- One sequence in units of 1/4096 ms: strictly rising over all backends, never back with the wall clock,
-- surviving a crash. It runs at most two milliseconds ahead of the wall unless a larger stamp was seen, and
-- never behind it, so that a key made just before a write is always below that write's stamp.

create sequence syncagent.hlc as bigint minvalue 1 no cycle;
comment on sequence syncagent.hlc is 'hybrid logical clock of this site, in 1/4096 ms since 1970';

create function syncagent._wall() returns bigint
    language sql volatile parallel safe
    set search_path = pg_catalog, pg_temp
    as $$ select (date_part('epoch', clock_timestamp()) * 4096000)::bigint $$;

create function syncagent._raise_clock(p_floor bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- The block always rolls back, which releases the advisory lock even when the statement is cancelled
    -- inside it; what setval and nextval did stays.
    begin
        perform pg_advisory_xact_lock(1937337955, 1);
        if nextval('syncagent.hlc') < p_floor then
            perform setval('syncagent.hlc', p_floor + 8192);
        end if;
        raise exception using errcode = 'SA000';
    exception when sqlstate 'SA000' then
        null;
    end;
end
$$;
comment on function syncagent._raise_clock is 'bring the clock to at least the floor, plus two milliseconds if it was behind';

create function syncagent._tick() returns bigint
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_clock bigint := nextval('syncagent.hlc');
    v_wall  bigint := (date_part('epoch', clock_timestamp()) * 4096000)::bigint;
begin
    if v_clock < v_wall then
        perform syncagent._raise_clock(v_wall);
        v_clock := nextval('syncagent.hlc');
    end if;
    return v_clock;
end
$$;
comment on function syncagent._tick is 'the next clock value of this site';

create function syncagent._lift(p_seen bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_clock bigint := syncagent._tick();
begin
    if p_seen - v_clock >= 8192 then
        perform syncagent._raise_clock(p_seen + 1);
    else
        while v_clock <= p_seen loop
            v_clock := nextval('syncagent.hlc');
        end loop;
    end if;
end
$$;
comment on function syncagent._lift is 'after this every new clock value is larger than the one seen';

-- Stamps: 48 bits of milliseconds, version 7, 12 bits of fraction and counter, variant, 16 bits of node, 46 bits.

create function syncagent._tail(p_node integer, p_seed bigint) returns bigint
    language sql immutable parallel safe
    as $$ select (-9223372036854775808) | (p_node::bigint << 46) | (p_seed & 70368744177663) $$;
comment on function syncagent._tail is 'lower half of a stamp';

create function syncagent._stamp(p_hlc bigint, p_tail bigint) returns uuid
    language sql immutable parallel safe
    as $$ select pg_catalog.encode(pg_catalog.int8send(((p_hlc >> 12) << 16) | 28672 | (p_hlc & 4095)) || pg_catalog.int8send(p_tail), 'hex')::uuid $$;
comment on function syncagent._stamp is 'the stamp with this clock and this lower half';

create function syncagent._timed(p_key uuid) returns boolean
    language sql immutable parallel safe
    as $$ select (get_byte(uuid_send(p_key), 6) & 240) = 112 and (get_byte(uuid_send(p_key), 8) & 192) = 128 $$;
comment on function syncagent._timed is 'whether a key says when its row was born (UUID version 7)';

create function syncagent._implicit(p_key uuid) returns uuid
    language sql immutable parallel safe
    as $$ select case when syncagent._timed(p_key) then p_key else '00000000-0000-0000-0000-000000000000'::uuid end $$;
comment on function syncagent._implicit is 'stamp of a row without a version entry: its key, or zero if the key has no time';

create function syncagent._hlc(p_stamp uuid) returns bigint
    language sql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
    as $$
    select (('x' || substr(v, 1, 12))::bit(48)::bigint << 12) | ('x' || substr(v, 14, 3))::bit(12)::integer
    from (select replace(p_stamp::text, '-', '')) as t (v)
$$;
comment on function syncagent._hlc is 'clock of a stamp, in 1/4096 ms';

create function syncagent._name_uuid(p_name text) returns uuid
    language plpgsql immutable strict parallel safe   -- kept as a plan, and with no search_path of its own: called for each of many rows
    as $$
declare
    v bytea := pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(p_name, 'UTF8')), 1, 16);
begin
    v := pg_catalog.set_byte(v, 6, (pg_catalog.get_byte(v, 6) operator(pg_catalog.&) 15) operator(pg_catalog.|) 128);
    v := pg_catalog.set_byte(v, 8, (pg_catalog.get_byte(v, 8) operator(pg_catalog.&) 63) operator(pg_catalog.|) 128);
    return pg_catalog.encode(v, 'hex')::pg_catalog.uuid;
end
$$;
comment on function syncagent._name_uuid is 'name-based UUID (version 8) of a text: keys of derived rows, ids of conflicts';

create function syncagent.uuid7() returns uuid
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._stamp(syncagent._tick(), syncagent._tail(coalesce((select node from syncagent.local_site), 0),
        ('x' || left(replace(gen_random_uuid()::text, '-', ''), 12))::bit(48)::bigint))
$$;
comment on function syncagent.uuid7() is 'a new key: UUID version 7 that says when and at which site its row was born';

create function syncagent.stamp_time(p_stamp uuid) returns timestamptz
    language sql immutable strict parallel safe security definer
    set search_path = pg_catalog, pg_temp
    as $$ select case when syncagent._timed(p_stamp) then to_timestamp(syncagent._hlc(p_stamp) / 4096000.0) end $$;
comment on function syncagent.stamp_time(uuid) is 'when a stamp or a UUIDv7 key was made; null for a key without a time';

create function syncagent.stamp_node(p_stamp uuid) returns integer
    language sql immutable strict parallel safe security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select case when syncagent._timed(p_stamp)
        then (('x' || substr(replace(p_stamp::text, '-', ''), 17, 16))::bit(64)::bigint >> 46 & 65535)::integer end
$$;
comment on function syncagent.stamp_node(uuid) is 'node that made a stamp, or a key of syncagent.uuid7()';

create function syncagent.uuid7_floor(p_time timestamptz) returns uuid
    language sql immutable strict parallel safe security definer
    set search_path = pg_catalog, pg_temp
    as $$ select syncagent._stamp((date_part('epoch', p_time) * 4096000)::bigint, (-9223372036854775808)) $$;
comment on function syncagent.uuid7_floor(timestamptz) is 'the smallest UUIDv7 of a moment: where id >= syncagent.uuid7_floor(now() - interval ''1 day'')';

-- Capture: what a write costs the application, and how a table is attached.
--
-- Everything per table is generated here from templates. `{name}` in a template is replaced, in one pass, by
-- values that are quoted already; the hash of all the text is kept, so that drift is visible.

create function syncagent._render(p_template text, p_values jsonb) returns text
    language sql immutable strict
    set search_path = pg_catalog, pg_temp
    as $$
    select string_agg(m[1] || case when p_values ? m[3] then p_values ->> m[3] else coalesce(m[2], '') end, '' order by n)
    from regexp_matches(p_template, '([^{]*)(\{([a-z_]*)\}?)?', 'g') with ordinality as r (m, n)
$$;
comment on function syncagent._render is 'fill {names} of a template; values are never looked at again';

create function syncagent._refuse_truncate() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not exists (select from syncagent.replicated r where r.relation in (tg_relid, pg_partition_root(tg_relid))) then
        return null;   -- a partition that was detached
    end if;
    raise exception 'table %.% is replicated: TRUNCATE would not reach the other sites',
            quote_ident(tg_table_schema), quote_ident(tg_table_name)
        using errcode = 'SA001',
              hint = format('select syncagent.truncate(%L)', format('%I.%I', tg_table_schema, tg_table_name));
end
$$;

create function syncagent.truncate(p_table regclass) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_rows bigint;
begin
    execute format('delete from %s', p_table);
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;
comment on function syncagent.truncate(regclass) is 'delete every row of a replicated table, here and at all sites; returns their number';

-- Templates ------------------------------------------------------------------------------------------------

create function syncagent._capture_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
declare
    v_keys  uuid[] := array(select {key} from changed t limit 10000);
    v_clock bigint;
begin
    {guard}
    if v_keys = '{}' then
        return null;
    end if;
    v_clock := nextval('syncagent.hlc');   -- _tick, without the call
    if v_clock < (date_part('epoch', clock_timestamp()) * 4096000)::bigint then
        v_clock := syncagent._tick();
    end if;
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    values (pg_current_xact_id(), {id}, tg_op::"char", v_clock, v_keys {odd_array});
    if cardinality(v_keys) = 10000 then   -- there may be more
        insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
        select pg_current_xact_id(), {id}, tg_op::"char", syncagent._tick(), array_agg(k.key) {odd_agg}
        from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from changed t) as k
        where k.chunk > 0
        group by k.chunk;
    end if;
    return null;
end
$$;
$sql$ $template$;

create function syncagent._key_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_key() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
declare
    t {table} := old;
begin
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    values (pg_current_xact_id(), {id}, 'D', syncagent._tick(), array[{key}] {odd_old});
    return null;
end
$$;
$sql$ $template$;

-- A partitioned table has no row triggers of ours: a row that an update moves to another partition fires those of an
-- insert and a delete, and a partition may have its columns in another order than the root.
create function syncagent._moved_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_key() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
begin
    {guard}
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    select pg_current_xact_id(), {id}, 'D', syncagent._tick(), array_agg(k.key) {odd_agg}
    from (
        select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk
        from (select {key_columns} from before t except select {key_columns} from changed t) as t
    ) as k
    group by k.chunk;
    return null;
end
$$;
$sql$ $template$;

-- The same names on every kind of table; `{node}` is the table, or one of the tables of a partitioned one.
create function syncagent._trigger_template(p_partitioned boolean, p_columns boolean) returns text
    language sql immutable
    as $template$ select $sql$
create or replace trigger syncagent_insert after insert on {node}
    referencing new table as changed for each statement execute function syncagent.capture_{id}();
$sql$ || case when p_columns then $sql$
create or replace trigger syncagent_update after update on {node}
    referencing old table as before new table as changed for each statement execute function syncagent.capture_{id}_columns();
$sql$ else $sql$
create or replace trigger syncagent_update after update on {node}
    referencing new table as changed for each statement execute function syncagent.capture_{id}();
$sql$ end || $sql$
create or replace trigger syncagent_delete after delete on {node}
    referencing old table as changed for each statement execute function syncagent.capture_{id}();
create or replace trigger syncagent_truncate before truncate on {node}
    for each statement execute function syncagent._refuse_truncate();
$sql$ || case when p_partitioned then $sql$
create or replace trigger syncagent_key after update on {node}
    referencing old table as before new table as changed for each statement execute function syncagent.capture_{id}_key();
$sql$ else $sql$
create or replace trigger syncagent_key after update {of_key} on {node}
    for each row when ({key_changed}) execute function syncagent.capture_{id}_key();
$sql$ end $template$;

create function syncagent._version_template() returns text
    language sql immutable
    as $template$ select $sql$
{key_type}
create type syncagent.row_{id} as ({stage_columns});
create table syncagent.version_{id} (
    key     uuid primary key,
    stamp   uuid not null,
    node    integer not null,
    cut     bigint,
    deleted boolean not null {version_key_types}
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
$sql$ $template$;

create function syncagent._nodes(p_table regclass) returns setof regclass
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select p_table union select t.relid from pg_partition_tree(p_table) as t $$;
comment on function syncagent._nodes is 'a table, and if it is partitioned all tables below it';

create function syncagent._key(p_table regclass, out names name[], out uuid boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select array_agg(a.attname order by u.o), count(*) = 1 and bool_and(a.atttypid = 'uuid'::regtype)
    from pg_index i cross join lateral unnest(i.indkey::smallint[]) with ordinality as u (n, o)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.n
    where i.indrelid = p_table and i.indisprimary and u.o <= i.indnkeyatts
$$;
comment on function syncagent._key is 'the columns of the primary key in its order, null if there is none; and whether it is one uuid';

create function syncagent._tokens(p_id integer) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_name    text;
    v_types   text[];  -- of the columns, as in the table
    v_bases   text[];  -- the same, domains replaced by what they are made of
    v_fixed   name[];  -- columns that UPDATE may not set
    v_spelled name[];  -- columns of the key whose equal values can look different
    v_unique  name[];  -- columns of unique and exclusion constraints beside the key
    v_n       integer;
    v_parts   boolean;
    v_by_column boolean;
begin
    select * into strict v_table from syncagent.replicated where id = p_id;
    v_by_column := v_table.strategy <> 'lww';
    select format('%I.%I', n.nspname, c.relname), c.relkind = 'p' into strict v_name, v_parts
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = v_table.relation;
    v_n := cardinality(v_table.columns);
    select array_agg(format_type(a.atttypid, -1) order by u.n),
           array_agg(format_type(syncagent._base_type(a.atttypid), -1) order by u.n),
           array_agg(a.attname) filter (where a.attidentity = 'a'),
           array_agg(a.attname) filter (where a.attname = any (v_table.key_columns)
               and syncagent._spelling(format_type(syncagent._base_type(a.atttypid), -1), '') <> '')
    into strict v_types, v_bases, v_fixed, v_spelled
    from unnest(v_table.columns) with ordinality as u (c, n)
    join pg_attribute a on a.attrelid = v_table.relation and a.attname = u.c;
    select array_agg(distinct a.attname) into v_unique
    from pg_index i
    join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refobjid = i.indrelid and d.refobjsubid > 0
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = d.refobjsubid
    where i.indrelid in (select syncagent._nodes(v_table.relation)) and (i.indisunique or i.indisexclusion) and not i.indisprimary;
    select array_agg(distinct a.attname) || v_unique into v_unique   -- constraints own their index: the columns hang on the constraint
    from pg_constraint c cross join lateral unnest(c.conkey) as k (n)
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.n
    where c.conrelid in (select syncagent._nodes(v_table.relation)) and c.contype in ('u', 'x');
    if exists (select from pg_attribute a where a.attrelid = v_table.relation and a.attname = any (v_unique) and a.attgenerated <> '') then
        v_unique := v_table.columns;   -- it may change with any of them
    end if;

    return (
        select jsonb_build_object(
            'id', p_id, 'table', v_name,
            'lift', coalesce((
                select string_agg(format('perform syncagent._lift_number(%s, %L, (select max(s.c%s) from pg_temp.stage_%1$s s where s._deleted is not true));',
                                         p_id, x.column_name, array_position(v_table.columns, x.column_name)), ' ' order by x.column_name)
                from syncagent.stride x where x.relation = p_id), ''),
            'check_deferrable', case when syncagent._deferrable(v_table.relation)
                then format('perform syncagent._check_deferrable(%s);', p_id) else '' end,
            'guard', case when v_parts then format('if pg_partition_root(tg_relid) is distinct from %L::regclass then return null; end if;', v_name) else '' end || syncagent._merge_guard(v_table),
            'title', quote_literal(v_name), 'stage_key', syncagent._stage_key(v_table),
            'schema_literal', quote_literal(v_table.schema_name) || '::name', 'table_literal', quote_literal(v_table.table_name) || '::name',
            'columns', string_agg(format('%I', c), ', ' order by n),
            'stage_columns', string_agg(format('c%s %s', n, v_bases[n]), ', ' order by n),   -- of a deleted row they are null, which a domain may refuse
            'stage_names', string_agg(format('c%s', n), ', ' order by n),
            'stage_as_table', string_agg(format('s.c%s as %I', n, c), ', ' order by n),
            't_columns', string_agg(format('t.%I', c), ', ' order by n),
            's_columns', string_agg(format('s.c%s', n), ', ' order by n),
            'v_columns', string_agg(case when k is null then format('t.%I', c) when v_table.derived then format('v.k%s', k) else 'v.key' end, ', ' order by n),
            't_absent', format('t.%I is null', v_table.key_columns[1]),
            't_eq_s', string_agg(format('t.%I = s.c%s', c, n), ' and ' order by k) filter (where k is not null),
            'key_columns', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null),
            'key_names', string_agg(quote_ident(c), ', ' order by k) filter (where k is not null),
            'key_changed', string_agg(format('old.%1$I is distinct from new.%1$I', c), ' or ' order by k) filter (where k is not null),
            'may_move', coalesce(bool_or(c = any (v_unique || v_fixed || v_spelled)), false)::text,
            -- byte by byte: not every type has an equality, and some equalities see no difference (boxes of one area)
            'moved', coalesce('row('
                || string_agg(format(case when v_types[n] = v_bases[n] then 't.%I' else 't.%I::%s' end, c, v_bases[n]), ', ' order by n)
                    filter (where c = any (v_unique || v_fixed || v_spelled)) || ')::record *<> row('
                || string_agg(format('s.c%s', n), ', ' order by n) filter (where c = any (v_unique || v_fixed || v_spelled)) || ')::record', 'false'),
            'update', coalesce('update ' || v_name || ' t set '
                || string_agg(format('%I = s.c%s', c, n), ', ' order by n) filter (where k is null and c <> all (coalesce(v_fixed, '{}')))
                || format(' from (select s.*, %s as _key from pg_temp.stage_%s s) s where ', syncagent._stage_key(v_table), p_id)
                || string_agg(format('t.%I = s.c%s', c, n), ' and ' order by k) filter (where k is not null)
                || ' and s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);'
                || ' get diagnostics v_rows = row_count;', ''),
            'stage', format('(select s.*, %s as _key from pg_temp.stage_%s s)', syncagent._stage_key(v_table), p_id)
        ) || case when v_by_column then jsonb_build_object(
            'entries', format('(select e.*, syncagent._registers_of(e.op, e.columns, syncagent._stamp(e.tx_hlc, p_tail), p_node, p_cut) as registers'
                              ' from pg_temp.window_entry e where e.relation = %s offset 0)', p_id),
            'e_registers', ', e.registers', 'folded_registers', 'syncagent._joined(e.registers)', 'unfolded_registers', 'syncagent._joined(x.registers)', 'written', '_written',
            'first', 'not f.registers ? '''' and f.registers <> ''{}''', 'first_registers', 'f.registers',
            'log_registers', 'syncagent._registers_of(l.op, l.columns, syncagent._stamp(l.tx_hlc, v_site.tail), v_site.node, null)',
            'newer', 'array(select e.key from jsonb_each(m.theirs) as e where e.key <> '''' and coalesce((e.value ->> 0)::uuid > (m.mine -> e.key ->> 0)::uuid, true))',
            'above', 'array(select e.key from jsonb_each(m.mine) as e where e.key <> '''' and coalesce((e.value ->> 0)::uuid > (m.waiting_registers -> e.key ->> 0)::uuid, true))',
            'sides', '_sides', 'at_odds', '', 'strategy', '''lww-column''',
            'join_registers', '(select syncagent._joined_registers(j.mine, j.theirs) as registers)', 'entries_of', 'jsonb_each', 'shipped_from', '', 'seen', 'null::jsonb', 'note_part', '',
            'more_typed', ', _node integer, _at bigint, _registers jsonb', 'more_names', ', _node, _at, _registers', 'more_null', ', null::integer, null::bigint, null::jsonb',
            'more_of_version', ', v.node, v.cut, v.registers', 'more_of_parked', ', p.node, p.cut, p.registers', 'more_of_staged', ', s._node, s._cut, s._registers',
            'version_node', 'coalesce(s._node, p_origin)', 'version_cut', 'case when s._node is null then s._cut else s._at end',
            'set_registers', ', registers = coalesce(s._registers, ''{}'')', 'excluded_registers', ', registers = excluded.registers',
            'parked_registers', 's._registers', 'v_registers', ', v.registers', 'v_registers_named', ', v.registers as _registers', 'l_registers', ', l.registers as _registers', 'null_registers', ', ''{}''::jsonb', 'own_deltas', 'null::jsonb',
            -- by write, not by row: of one that was deleted its end, else each life and the columns that were written at once
            'own_versions', format('(select v.key, v.deleted %2$s, r.stamp, r.node, r.cut, r.columns from syncagent.version_%1$s v cross join lateral ('
                'select x.stamp, x.node, x.cut, array_agg(x.name::name order by x.name) as columns from syncagent._sides(v.key, v.registers, v.deleted, v.stamp, v.node, v.cut) as x'
                ' group by x.stamp, x.node, x.cut, x.name = '''') as r)', p_id,
                case when v_table.derived then string_agg(format(', v.k%s', k), '' order by k) filter (where k is not null) else '' end),
            'all_stable', ' and not jsonb_path_exists(v.registers, (select syncagent._unstable(p_stable)))', 'forget_made', '',
            'changed_columns', coalesce(string_agg(format('case when row(o.%1$I)::record *<> row(t.%1$I)::record then %1$L end', c), ', ' order by n) filter (where k is null), ''),
            'o_eq_t', string_agg(format('o.%1$I = t.%1$I', c), ' and ' order by k) filter (where k is not null),
            'o_here', format('o.%I is not null', v_table.key_columns[1]),
            'combined_columns', coalesce(string_agg(format(
                ', c%1$s = case when m.newer is null and %2$L <> all (m.above) or %2$L = any (m.newer) then x.c%1$s'
                ' when m.waits and %2$L <> all (m.above) then m.q%1$s else m.t%1$s end', n, c), '' order by n) filter (where k is null), ''),
            't_columns_numbered', string_agg(format('t.%I as t%s', c, n), ', ' order by n),
            'q_columns_numbered', string_agg(format(', q.c%1$s as q%1$s', n), '' order by n),
            'trace_columns', case when v_table.derived then ', ' || string_agg(format('s.c%s', n), ', ' order by k) filter (where k is not null) else '' end || ', j.mine')
        else jsonb_build_object(
            'entries', 'pg_temp.window_entry', 'e_registers', '', 'folded_registers', 'null::jsonb',
            'more_typed', '', 'more_names', '', 'more_null', '', 'more_of_version', '', 'more_of_parked', '', 'more_of_staged', '',
            'version_node', 'p_origin', 'version_cut', 's._cut', 'set_registers', '', 'excluded_registers', '', 'parked_registers', 'null::jsonb',
            'v_registers', '', 'v_registers_named', '', 'own_versions', format('(select v.*, null::name[] as columns from syncagent.version_%s v)', p_id), 'l_registers', '', 'null_registers', '', 'all_stable', '', 'forget_made', '', 'own_deltas', 'null::jsonb')
        end || case when not v_table.derived then jsonb_build_object(
            'key', format('t.%I', v_table.key_columns[1]), 'pinned', '',
            't_eq_v', format('t.%I = v.key', v_table.key_columns[1]), 't_eq_f', format('t.%I = f.key', v_table.key_columns[1]),
            't_eq_k', format('t.%I = k.key', v_table.key_columns[1]),
            't_key_text', format('t.%I::text', v_table.key_columns[1]), 's_key_text', 's._key::text', 'v_key_text', 'v.key::text',
            'odd_column', '', 'odd_array', '', 'odd_agg', '', 'odd_value', '', 'odd_old', '', 'odd_of_version', '', 'odd_or_null', 'null::text',
            'max_odd', 'null', 'unnest_entry', 'unnest(e.keys) as k (key)', 'decode_odd', '', 'key_type', '',
            'version_key_types', case when v_by_column then ', registers jsonb not null default ''{}''' else '' end,
            'version_key_columns', case when v_by_column then ', registers' else '' end, 'folded_key_columns', case when v_by_column then ', n.registers' else '' end,
            's_key_columns', case when v_by_column then ', coalesce(s._registers, ''{}'')' else '' end,
            'may_be_implicit', 'syncagent._timed(f.key)', 'key_of_text', 'f.key', 'named', '(select p_key::uuid as key) as f')
        else jsonb_build_object(
            'key', format('syncagent._name_uuid(row(%s)::text)', string_agg(syncagent._spelling(v_bases[n], format('t.%I', c)), ', ' order by k) filter (where k is not null)),
            'pinned', E'\n    set datestyle = ''ISO, MDY'' set timezone = ''UTC'' set intervalstyle = ''postgres'' set extra_float_digits = 1 set bytea_output = ''hex''',
            't_eq_v', string_agg(format('t.%I = v.k%s', c, k), ' and ' order by k) filter (where k is not null),
            't_eq_f', string_agg(format('t.%I = o.k%s', c, k), ' and ' order by k) filter (where k is not null),
            't_eq_k', 'false',
            't_key_text', format(case count(k) when 1 then '%s::text' else 'row(%s)::text' end, string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            's_key_text', format(case count(k) when 1 then '%s::text' else 'row(%s)::text' end, string_agg(format('s.c%s', n), ', ' order by k) filter (where k is not null)),
            'v_key_text', format(case count(k) when 1 then '%s::text' else 'row(%s)::text' end, string_agg(format('v.k%s', k), ', ' order by k) filter (where k is not null)),
            'odd_column', ', odd', 'max_odd', 'max(e.odd)', 'unnest_entry', 'unnest(e.keys, e.odd) as k (key, odd)',
            'odd_array', format(', array(select row(%s)::text from changed t limit 10000)', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'odd_agg', ', array_agg(k.odd)',
            'odd_value', format(', row(%s)::text as odd', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'odd_old', format(', array[row(%s)::text]', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'odd_of_version', format(', array_agg(row(%s)::text)', string_agg(format('v.k%s', k), ', ' order by k) filter (where k is not null)),
            'odd_or_null', format('row(%s)::text', string_agg(format('t.%I', c), ', ' order by k) filter (where k is not null)),
            'decode_odd', format('cross join lateral (select (f.odd::syncagent.key_%s).*) as o', p_id),
            'key_type', format('create type syncagent.key_%s as (%s);', p_id, string_agg(format('k%s %s', k, v_bases[n]), ', ' order by k) filter (where k is not null)),
            'version_key_types', ', ' || string_agg(format('k%s %s', k, v_bases[n]), ', ' order by k) filter (where k is not null)
                || case when v_by_column then ', registers jsonb not null default ''{}''' else '' end,
            'version_key_columns', ', ' || string_agg(format('k%s', k), ', ' order by k) filter (where k is not null) || case when v_by_column then ', registers' else '' end,
            'folded_key_columns', ', ' || string_agg(format('o.k%s', k), ', ' order by k) filter (where k is not null) || case when v_by_column then ', n.registers' else '' end,
            's_key_columns', ', ' || string_agg(format('s.c%s', n), ', ' order by k) filter (where k is not null) || case when v_by_column then ', coalesce(s._registers, ''{}'')' else '' end,
            'may_be_implicit', 'false',
            'key_of_text', format('syncagent._name_uuid(row(%s)::text)',
                string_agg(syncagent._spelling(v_bases[n], format('o.k%s', k)), ', ' order by k) filter (where k is not null)),
            'named', case count(k)
                when 1 then format('(select p_key::%s as k1) as o', max(v_bases[n]) filter (where k is not null))
                else format('(select (p_key::syncagent.key_%s).*) as o', p_id) end)
        end || case when v_table.strategy = 'merge' then syncagent._merge_tokens(v_table) - case when v_table.whole is null then '{}' else '{shipped_from,v_columns}'::text[] end else '{}' end
        || case when v_table.whole is null then '{}' else syncagent._whole_tokens(v_table) end
        from (select u.c, u.n::integer, array_position(v_table.key_columns, u.c) as k from unnest(v_table.columns) with ordinality as u (c, n)) as u
    );
end
$$;
comment on function syncagent._tokens is 'what the templates of one attached table are filled with: quoted names, lists and join conditions';

create function syncagent._base_type(p_type oid) returns oid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with recursive up (oid, base) as (
        select oid, typbasetype from pg_type where oid = p_type
        union all
        select t.oid, t.typbasetype from up join pg_type t on t.oid = up.base where up.base <> 0
    ) select oid from up where base = 0
$$;
comment on function syncagent._base_type is 'the type below a domain';

create function syncagent._made_of(p_type oid) returns setof oid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with recursive parts (oid) as (
        select p_type
        union
        select x.oid from parts p join pg_type t on t.oid = p.oid
        cross join lateral (
            select t.typbasetype where t.typtype = 'd'
            union all select t.typelem where t.typelem <> 0
            union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
            union all select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and t.typtype = 'c' and a.attnum > 0 and not a.attisdropped
        ) as x (oid)
    ) select oid from parts
$$;
comment on function syncagent._made_of is 'a type and all types inside it';

create function syncagent._spelling(p_type text, p_value text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case p_type
        when 'numeric' then format('trim_scale(%s)', p_value)
        when 'real' then format('(%s + 0::real)', p_value)
        when 'double precision' then format('(%s + 0::float8)', p_value)
        when 'bpchar' then format('%s::text', p_value)
        when 'interval' then format('justify_interval(%s)', p_value)
        else p_value end
$$;
comment on function syncagent._spelling is 'the expression that writes equal values of a key column alike: 1.0 and 1.00, 0 and -0, 1 day and 24 hours';

create function syncagent._stage_key(p_table syncagent.replicated) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when p_table.derived then format('syncagent._name_uuid(row(%s)::text)', c.spelled) else c.list end
    from (
        select string_agg(format('s.c%s', u.n), ', ' order by u.k) as list,
               string_agg(syncagent._spelling(format_type(syncagent._base_type(a.atttypid), -1), format('s.c%s', u.n)), ', ' order by u.k) as spelled
        from (select k.name, array_position(p_table.columns, k.name) as n, k.n as k
              from unnest(p_table.key_columns) with ordinality as k (name, n)) as u
        join pg_attribute a on a.attrelid = p_table.relation and a.attname = u.name
    ) as c
$$;
comment on function syncagent._stage_key is 'the row key of a staged row';

-- Attach and detach ----------------------------------------------------------------------------------------

create function syncagent._key_mend(p_table regclass) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_name   text;
    v_schema text;
    v_kind   "char";
    v_parted text;
    v_column text := 'id';
    v_index  text;
    r        record;
begin
    select format('%I.%I', n.nspname, c.relname), n.nspname, c.relkind, quote_ident('key_of_' || c.relname)
    into strict v_name, v_schema, v_kind, v_index
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table;
    if exists (select from pg_attribute a where a.attrelid = p_table and a.attname = 'id' and not a.attisdropped) then
        v_column := 'row_id';
    end if;
    if v_kind = 'p' then   -- no index of a partitioned table can be made online
        select coalesce(string_agg(quote_ident(a.attname) || ', ', '' order by u.o), '') into v_parted
        from pg_partitioned_table p cross join lateral unnest(p.partattrs::smallint[]) with ordinality as u (n, o)
        join pg_attribute a on a.attrelid = p.partrelid and a.attnum = u.n where p.partrelid = p_table;
        return format(E'alter table %1$s add column %2$I uuid not null default gen_random_uuid();\nalter table %1$s add primary key (%3$s%2$I);',
                      v_name, v_column, v_parted);
    end if;
    -- What is a key already, if only in name; one that a constraint owns needs an index beside it.
    select x.columns, x.name, x.owned into r
    from (
        select string_agg(quote_ident(a.attname), ', ' order by u.o) as columns, bool_and(a.attnotnull) as given,
               count(*) = 1 and bool_and(a.atttypid = 'uuid'::regtype) as uuid, quote_ident(min(c.relname::text)) as name,
               exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('u', 'p', 'x')) as owned
        from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam and m.amname = 'btree'
        cross join lateral unnest(i.indkey::smallint[]) with ordinality as u (n, o)
        left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.n and u.n > 0
        where i.indrelid = p_table and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null
          and i.indexprs is null and i.indnkeyatts = i.indnatts
        group by i.indexrelid
    ) as x where x.given order by x.uuid desc, x.owned, x.name limit 1;
    if found and not r.owned then
        return format('alter table %s add primary key using index %s;', v_name, r.name);
    elsif found then
        return format(E'create unique index concurrently %2$s on %1$s (%3$s);\nalter table %1$s add primary key using index %2$s;',
                      v_name, v_index, r.columns);
    end if;
    return format(concat_ws(E'\n', 'alter table %1$s add column %2$I uuid;',
        'alter table %1$s alter column %2$I set default gen_random_uuid();',
        'update %1$s set %2$I = default where %2$I is null; -- in portions, if the table is large',
        'create unique index concurrently %3$s on %1$s (%2$I);',
        'alter table %1$s add constraint key_is_given check (%2$I is not null) not valid;',
        'alter table %1$s validate constraint key_is_given;',
        'alter table %1$s alter column %2$I set not null;',
        'alter table %1$s drop constraint key_is_given;',
        'alter table %1$s add primary key using index %3$s;'), v_name, v_column, v_index);
end
$$;
comment on function syncagent._key_mend is 'the SQL that gives a table a primary key, online where that can be';

create function syncagent._obstacles(p_table regclass, p_derive boolean)
    returns table (problem text, hint text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with c as (
        select c.*, n.nspname, format('%I.%I', n.nspname, c.relname) as name
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table
    ), k as (
        select coalesce(cardinality(k.names), 0) as columns, k.uuid from syncagent._key(p_table) as k
    )
    select case c.relkind when 'v' then 'it is a view' when 'm' then 'it is a materialized view' when 'f' then 'it is a foreign table'
                          else 'it is not a table' end,
           case c.relkind when 'v' then 'attach the tables below it' when 'm' then 'attach the tables below it'
                          else 'only ordinary tables can be attached' end
    from c where c.relkind not in ('r', 'p')
    union all
    select format('it is a partition of %s', pg_partition_root(p_table)), format('syncagent attach %s', pg_partition_root(p_table))
    from c where c.relispartition
    union all
    select format('its partition %s is a foreign table', x.oid::regclass), format('alter table %s detach partition %s', i.inhparent::regclass, x.oid::regclass)
    from c cross join lateral syncagent._nodes(p_table) as n (node) join pg_class x on x.oid = n.node join pg_inherits i on i.inhrelid = x.oid
    where c.relkind = 'p' and x.relkind = 'f'
    union all
    select format('its partition %s is %s', x.oid::regclass, case x.relpersistence when 't' then 'temporary' else 'unlogged: a crash empties it' end),
           case x.relpersistence when 't' then format('drop table %s', x.oid::regclass) else format('alter table %s set logged', x.oid::regclass) end
    from c cross join lateral syncagent._nodes(p_table) as n (node) join pg_class x on x.oid = n.node
    where c.relkind = 'p' and x.relkind = 'r' and x.relpersistence <> 'p'
    union all
    select 'it is a system table', 'only tables of the application can be attached'
    from c where c.nspname in ('pg_catalog', 'information_schema', 'syncagent')
    union all
    select case c.relpersistence when 't' then 'it is temporary' else 'it is unlogged: a crash empties it' end,
           case c.relpersistence when 't' then 'only permanent tables can be attached' else format('alter table %s set logged', c.name) end
    from c where c.relkind = 'r' and c.relpersistence <> 'p'
    union all
    select 'it inherits, or others inherit from it', 'plain inheritance cannot be replicated' from c
    where c.relkind = 'r' and not c.relispartition and exists (select from pg_inherits i where p_table in (i.inhrelid, i.inhparent))
    union all
    select 'it has no primary key', syncagent._key_mend(p_table)
    from c cross join k where c.relkind in ('r', 'p') and k.columns = 0
    union all
    select 'its primary key is not one uuid column', format('syncagent attach --derive-key %s', c.name)
    from c cross join k where c.relkind in ('r', 'p') and k.columns > 0 and not (k.columns = 1 and k.uuid) and not p_derive
    union all
    select format('key column %I is of type %s, whose equal values can be written in different ways', a.attname, format_type(a.atttypid, a.atttypmod)),
           format('alter table %s add column id uuid not null default gen_random_uuid(), and make it the primary key', c.name)
    from c cross join lateral syncagent._key(p_table) as k
    join pg_attribute a on a.attrelid = c.oid and a.attname = any (k.names)
    join pg_type t on t.oid = syncagent._base_type(a.atttypid)
    where c.relkind in ('r', 'p') and p_derive
      and not (t.typtype = 'e' or t.oid = any (array['int2', 'int4', 'int8', 'numeric', 'float4', 'float8', 'text', 'varchar', 'bpchar',
          'name', '"char"', 'uuid', 'bool', 'date', 'timestamp', 'timestamptz', 'time', 'timetz', 'interval', 'bytea', 'bit', 'varbit',
          'inet', 'cidr', 'macaddr', 'macaddr8']::regtype[]) and not exists (
              select from pg_collation l where l.oid = a.attcollation and not l.collisdeterministic))
    union all
    select format('key column %I is generated: what is not stored as it came cannot name a row', a.attname),
           format('alter table %s alter column %I drop expression', c.name, a.attname)
    from c cross join lateral syncagent._key(p_table) as k
    join pg_attribute a on a.attrelid = c.oid and a.attname = any (k.names)
    where c.relkind in ('r', 'p') and a.attgenerated <> ''
    union all
    select format('column %I is of type %s, which means something only inside this server', a.attname, format_type(a.atttypid, a.atttypmod)),
           format('alter table %s alter column %I type text', c.name, a.attname)
           || case when syncagent._base_type(a.atttypid) = 'oid'::regtype
                   then format(E'\nor, if it names large objects, which do not travel: alter table %s alter column %I type bytea using lo_get(%2$I)', c.name, a.attname)
                   else '' end
    from c join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
    where c.relkind in ('r', 'p') and exists (
        select from syncagent._made_of(a.atttypid) as m (part) join pg_type t on t.oid = m.part
        where t.oid = any (array['oid', 'xid', 'cid', 'tid', 'xid8', 'pg_snapshot', 'txid_snapshot', 'pg_lsn']::regtype[])
           or t.typnamespace = 'pg_catalog'::regnamespace and t.typname like 'reg%')
    union all
    select format('column %I is of type %s, which has no binary form to travel in', a.attname, format_type(a.atttypid, a.atttypmod)),
           format('alter table %s alter column %I type text', c.name, a.attname)
    from c join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    where c.relkind in ('r', 'p') and exists (
        select from syncagent._made_of(a.atttypid) as m (part) join pg_type t on t.oid = m.part where 0 in (t.typsend::oid, t.typreceive::oid))
    union all
    select 'the name of the table, of its schema or of a column holds $syncagent$', 'rename it'
    from c where position('$syncagent$' in c.name) > 0
       or exists (select from pg_attribute a where a.attrelid = p_table and position('$syncagent$' in a.attname) > 0)
    union all
    select 'row-level security hides rows from the agent''s role', 'alter role the agent connects as: bypassrls'
    from c where c.relkind in ('r', 'p') and c.relrowsecurity and row_security_active(p_table)
    union all
    select 'it is attached already', '`syncagent tables` shows how, `syncagent strategy` changes how its rows are merged' from syncagent.replicated r where r.relation = p_table
    union all
    select format('%s was attached under this name, before it was renamed', r.relation::regclass),
           format('syncagent detach %s, or give it its name back', r.relation::regclass)
    from c join syncagent.replicated r on r.schema_name = c.nspname and r.table_name = c.relname
    where r.relation <> p_table and exists (select from pg_class x where x.oid = r.relation)
$$;
comment on function syncagent._obstacles is 'why a table cannot be attached, and what mends it; no row if it can';

create function syncagent._text(p_id integer, out version text, out functions text, out hash text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_id);
    v_by_column boolean := (select r.strategy <> 'lww' from syncagent.replicated r where r.id = p_id);
begin
    version := syncagent._render(syncagent._version_template(), v_tokens);
    functions := syncagent._render(replace(   -- no name may end a function's body: _obstacles keeps this quote from them
        syncagent._capture_template() || case (select r.strategy from syncagent.replicated r where r.id = p_id) when 'lww' then '' when 'merge' then syncagent._merge_capture_template() else syncagent._column_capture_template() end
        || case when exists (select from syncagent.replicated r join pg_class c on c.oid = r.relation where r.id = p_id and c.relkind = 'p')
                then syncagent._moved_template() else syncagent._key_template() end
        || syncagent._fold_template(v_by_column) || syncagent._ship_few_template() || syncagent._settle_template()
        || syncagent._compact_template() || syncagent._apply_template() || case when v_tokens ? 'whole_from' then syncagent._whole_template() else '' end
        || case when v_by_column then syncagent._judge_columns_template() else syncagent._judge_template() end || syncagent._write_template() || syncagent._bereave_template() || syncagent._inspect_template(),
        repeat('$', 2), '$syncagent$'), v_tokens);
    hash := md5(version || functions);
end
$$;
comment on function syncagent._text is 'all SQL of one attached table, as it is to be now';

create function syncagent._attach(p_table regclass, p_derive boolean, p_ship_existing boolean, p_stride integer default null, p_bucket text default 'hour', p_policies jsonb default '{}', p_strategy text default 'lww', p_merges jsonb default '{}') returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id      integer;
    v_problem record;
    v_tokens  jsonb;
    r         record;
begin
    select string_agg(problem, '; ') as problems, string_agg(o.hint, '; ') as hints into v_problem
    from (select * from syncagent._obstacles(p_table, p_derive) union all select * from syncagent._merge_obstacles(p_table, p_strategy, p_merges)) as o;
    if v_problem.problems is not null then
        raise exception 'table % cannot be attached: %', p_table, v_problem.problems
            using errcode = 'SA002', hint = coalesce(v_problem.hints, '');
    end if;
    for r in
        select x.relation from syncagent.replicated x
        join pg_class c on c.oid = p_table and c.relname = x.table_name
        join pg_namespace n on n.oid = c.relnamespace and n.nspname = x.schema_name
        where not exists (select from pg_class d where d.oid = x.relation)
    loop
        lock table syncagent.merge_lock in exclusive mode;
        perform syncagent._detach(r.relation);   -- an earlier table of this name, which the application has dropped
    end loop;
    insert into syncagent.replicated (relation, schema_name, table_name, shipped, stride, bucket, policies, strategy, merges, key_columns, derived, columns)
    select p_table, n.nspname, c.relname, p_ship_existing, p_stride, p_bucket, p_policies, p_strategy, syncagent._pinned(p_table, p_merges), k.names, not k.uuid,
           array(select a.attname from pg_attribute a
                 where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    cross join lateral syncagent._key(p_table) as k
    where c.oid = p_table
    returning id into v_id;
    if p_stride is not null then
        perform syncagent._stride(v_id, p_stride);
    end if;
    perform syncagent._generate(v_id);
    perform syncagent._shape_take(v_id);
    v_tokens := syncagent._tokens(v_id);
    if p_ship_existing then
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
            select pg_current_xact_id(), {id}, 'I', syncagent._tick(), array_agg(k.key) {odd_agg}
            from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from {table} t) as k
            group by k.chunk $sql$, v_tokens);
    elsif not (select derived from syncagent.replicated where id = v_id) then
        -- A key ahead of the clock is above the stamps of the writes to come: such a row needs an entry.
        execute syncagent._render($sql$
            insert into syncagent.version_{id} (key, stamp, node, cut, deleted)
            select {key}, '00000000-0000-0000-0000-000000000000', (select node from syncagent.local_site), 0, false
            from {table} t
            where syncagent._timed({key})
              and {key} >= (select syncagent._stamp(syncagent._tick(), tail) from syncagent.local_site) $sql$, v_tokens);
    end if;
    return v_id;
end
$$;
comment on function syncagent._attach is 'replicate a table from now on; its present rows are shipped too unless every site has them already';

create function syncagent._detach(p_table regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id integer;
begin
    delete from syncagent.replicated where relation = p_table returning id into v_id;
    if v_id is null then
        return false;
    end if;
    perform syncagent._drop_functions(v_id, p_table);
    perform syncagent._shape_forget(v_id);
    perform syncagent._unstride(v_id);
    execute format('drop table syncagent.version_%s', v_id);
    execute format('drop type if exists syncagent.key_%s, syncagent.row_%1$s', v_id);
    delete from syncagent.cut_keys where relation = v_id;
    delete from syncagent.settling where relation = v_id;
    delete from syncagent.parked_row where relation = v_id;
    delete from syncagent.merge_result where relation = v_id;
    delete from syncagent.alias where relation = v_id;
    delete from syncagent.forest where relation = v_id;
    delete from syncagent.bucket where relation = v_id;
    delete from syncagent.mark where relation = v_id;
    return true;
end
$$;
comment on function syncagent._detach is 'stop replicating a table here; its rows stay';

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

-- Numbers that every site draws for itself: serial and identity columns, made so that no two sites draw the same.
--
-- With a stride of N a site draws only numbers that leave its node's remainder when divided by N. Numbers that were drawn
-- before, here or at another site, are left behind: the sequence starts above them, and apply lifts it above what arrives.

create function syncagent._numbered(p_table regclass) returns table (column_name name, sequence regclass, counts boolean, is_unique boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select a.attname, d.sequence::regclass, syncagent._base_type(a.atttypid) = any (array['int2', 'int4', 'int8']::regtype[]),
           exists (select from pg_index i where i.indrelid = p_table and i.indisunique and a.attnum = any (i.indkey))
    from (
        select refobjsubid as number, objid as sequence from pg_depend   -- identity
        where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and refobjid = p_table and refobjsubid > 0 and deptype = 'i'
        union
        select f.adnum, e.refobjid from pg_attrdef f
        join pg_depend e on e.classid = 'pg_attrdef'::regclass and e.objid = f.oid and e.refclassid = 'pg_class'::regclass
        where f.adrelid = p_table
    ) as d
    join pg_class c on c.oid = d.sequence and c.relkind = 'S'
    join pg_attribute a on a.attrelid = p_table and a.attnum = d.number
    order by a.attnum
$$;
comment on function syncagent._numbered is 'columns that take their values from a sequence; those that count are integers';

create function syncagent._stride(p_id integer, p_every integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_node  integer := (select s.node from syncagent.local_site s);
    v_said  text := format('table %s cannot be attached with a stride of %s: ', (select r.relation from syncagent.replicated r where r.id = p_id), p_every);
    v_first bigint;
    v_most  bigint;
    r       record;
begin
    if v_node >= p_every then
        raise exception '%this site is node %', v_said, v_node
            using errcode = 'SA002', hint = 'choose a stride larger than the node of any site there will ever be, the same at every site';
    end if;
    for r in
        select n.*, t.relation, q.seqincrement, q.seqmin, q.seqcycle, format('%I.%I', sn.nspname, sc.relname) as name,
               least(q.seqmax, case syncagent._base_type(a.atttypid)
                   when 'int2'::regtype then 32767 when 'int4'::regtype then 2147483647 else 9223372036854775807 end) as seqmax,
               (select x.before from syncagent.stride x where x.sequence = n.sequence limit 1) as before,
               (select x.every from syncagent.stride x where x.sequence = n.sequence limit 1) as every
        from syncagent.replicated t cross join lateral syncagent._numbered(t.relation) as n
        join pg_sequence q on q.seqrelid = n.sequence join pg_class sc on sc.oid = n.sequence join pg_namespace sn on sn.oid = sc.relnamespace
        join pg_attribute a on a.attrelid = t.relation and a.attname = n.column_name
        where t.id = p_id and n.counts
    loop
        if r.every is distinct from p_every then
            if r.seqincrement <> 1 then
                raise exception '%sequence % counts in steps of % already', v_said, r.name, r.seqincrement
                    using errcode = 'SA002', hint = format('alter sequence %s increment by 1, or attach the table without --stride', r.name);
            elsif r.seqcycle then
                raise exception '%sequence % begins anew when it ends', v_said, r.name
                    using errcode = 'SA002', hint = format('alter sequence %s no cycle', r.name);
            end if;
        end if;
        execute format('select greatest(case when s.is_called then s.last_value + 1 else s.last_value end, m.most + 1, %s), m.most'
                       ' from %s s cross join (select max(t.%I)::bigint as most from %s t) as m', r.seqmin, r.name, r.column_name, r.relation)
            into v_first, v_most;
        v_first := v_first + ((v_node - v_first) % p_every + p_every) % p_every;
        if v_first > r.seqmax - p_every then
            raise exception '%the numbers of % end at %, and % comes next', v_said, r.name, r.seqmax, v_first
                using errcode = 'SA002', detail = format('the largest number in column %I is %s', r.column_name, coalesce(v_most::text, 'none')),
                      hint = format('make column %I and sequence %s bigint, or attach the table without --stride', r.column_name, r.name);
        end if;
        execute format('alter sequence %s increment by %s restart with %s', r.name, p_every, v_first);
        insert into syncagent.stride (relation, column_name, sequence, every, before)
        values (p_id, r.column_name, r.sequence, p_every, coalesce(r.before, r.seqincrement));
    end loop;
end
$$;
comment on function syncagent._stride is 'let the sequences of an attached table draw only this site''s share of the numbers';

create function syncagent._unstride(p_id integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in
        delete from syncagent.stride x where x.relation = p_id
        returning x.sequence, x.before
    loop
        if exists (select from pg_class c where c.oid = r.sequence)
           and not exists (select from syncagent.stride x where x.sequence = r.sequence) then
            execute format('alter sequence %s increment by %s', r.sequence, r.before);
        end if;
    end loop;
end
$$;
comment on function syncagent._unstride is 'let the sequences of a table count as they did before it was attached';

create function syncagent._lift_number(p_id integer, p_column name, p_number bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last bigint;
    v_next bigint;
    r      record;
begin
    if p_number is null then
        return;
    end if;
    for r in
        select x.sequence, x.every, q.seqmax, s.node
        from syncagent.stride x join pg_sequence q on q.seqrelid = x.sequence cross join syncagent.local_site s
        where x.relation = p_id and x.column_name = p_column and q.seqincrement = x.every
    loop
        execute format('select last_value from %s', r.sequence) into v_last;
        continue when p_number < v_last or p_number > r.seqmax - 2 * r.every;
        -- Writers draw meanwhile, and must not be set back: a short way is drawn, a long one nobody else goes at the same time.
        if (p_number - v_last) / r.every < 1000 then
            while v_last <= p_number loop
                v_last := nextval(r.sequence);
            end loop;
        else
            v_next := p_number + 1;
            perform setval(r.sequence, v_next + ((r.node - v_next) % r.every + r.every) % r.every, false);
        end if;
    end loop;
end
$$;
comment on function syncagent._lift_number is 'draw from now on above a number that has arrived';

-- Cuts at the origin: fold the log into versions, ship what changed, forget what is settled.
--
-- One cut is one REPEATABLE READ transaction of the agent: it locks `merge_lock` and the attached tables (before
-- its snapshot exists, so that a table rewritten meanwhile is not read as empty), folds, and reads the rows
-- out with COPY. Its commit is flushed to disk; only then do bytes leave.

create function syncagent._last_cut(out number bigint, out id uuid, out taken pg_snapshot,
                                    out xmax xid8, out xip xid8[])
    language plpgsql stable   -- like what else each cut and merge calls: one in SQL is planned anew at every call
    set search_path = pg_catalog, pg_temp
    as $$
begin
    select c.number, c.id, c.taken, pg_snapshot_xmax(c.taken), array(select pg_snapshot_xip(c.taken)) into number, id, taken, xmax, xip
    from syncagent.cut c order by c.number desc limit 1;
    if not found then
        xmax := '0';
        xip := '{}';
    end if;
end
$$;
comment on function syncagent._last_cut is 'the newest cut, and the bounds that tell its unfolded log entries: xid >= xmax or xid in xip';

create function syncagent._pending() returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
begin
    return exists (select from syncagent.log where xid >= v_last.xmax or xid = any (v_last.xip))
        or exists (select from syncagent.settling) or syncagent._untold();
end
$$;
comment on function syncagent._pending is 'whether a cut would find something to fold, or to tell of conflicts';

create function syncagent._unlog(p_relation integer, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.log e
    set keys = array(select u.key from unnest(e.keys) with ordinality as u (key, n) where u.key not in (select unnest(p_keys)) order by u.n),
        odd = case when e.odd is not null then array(
            select u.odd from unnest(e.keys, e.odd) with ordinality as u (key, odd, n) where u.key not in (select unnest(p_keys)) order by u.n) end
    where e.relation = p_relation and exists (select from unnest(e.keys) as k (key) where k.key in (select unnest(p_keys)));
    delete from syncagent.log e where e.relation = p_relation and e.keys = '{}';
end
$$;
comment on function syncagent._unlog is 'take from the log what was written of these keys: it came to nothing';

create function syncagent._prepare_session() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
begin
    create temp table if not exists window_entry (
        relation integer, xid xid8, op "char", hlc bigint, tx_hlc bigint, keys uuid[], odd text[], columns name[], deltas jsonb);
    alter table pg_temp.window_entry alter column keys set storage external;
    create temp table if not exists stage_keys (relation integer, cut bigint, keys uuid[]);
    alter table pg_temp.stage_keys alter column keys set storage external;
    create temp table if not exists stage_aliases (relation integer, cut bigint, loser uuid, winner uuid);
    create temp table if not exists stage_conflicts (conflict uuid, cut bigint, hlc bigint, what text, at timestamptz, by_role name, writes jsonb, record jsonb);
    create temp table if not exists folded (
        key uuid, hlc bigint, first bigint, implicit boolean, born boolean, gone boolean, odd text, registers jsonb);
    create temp table if not exists verdict (
        key uuid, loses boolean, conflict boolean, kind text, incoming uuid, mine uuid, my_node integer,
        absent boolean, trace boolean, unborn boolean, sqlstate text, reason text);
    create temp table if not exists collision (
        rule name, loser uuid, key_text text, odd text, losing_stamp uuid, losing_image jsonb, tid tid, leaf oid,
        winner uuid, winner_text text, winning_stamp uuid, winning_image jsonb, due boolean, held uuid);
    create temp table if not exists bereft (xid xid8, relation integer, key uuid, image text, odd text, deep boolean not null default false);
    create temp table if not exists joined (
        key uuid, plain boolean, entered boolean, fresh boolean, here boolean, waits boolean, above text[], inexact boolean, same boolean, newer text[],
        outcome text, my_stamp uuid, my_node integer, my_cut bigint, my_end boolean, mine jsonb,
        their_stamp uuid, their_node integer, their_cut bigint, their_end boolean, theirs jsonb, born_node integer, born_cut bigint, twice boolean, waiting jsonb, seen jsonb);
    create temp table if not exists knotted (relation integer, key uuid, part integer, seen jsonb, primary key (relation, key, part));
    create temp table if not exists yielded (relation integer, key uuid, odd text, columns name[], op "char" not null default 'U', primary key (relation, key));
    create temp table if not exists astray (relation integer, key uuid);
    create temp table if not exists heir (loser uuid, winner uuid);
    create temp table if not exists follower (
        key uuid, odd text, key_text text, image jsonb, tid tid, leaf oid, loser uuid, winner uuid, new_key uuid, new_text text, placed boolean not null default false);
end
$$;
comment on function syncagent._prepare_session is 'work tables of one session of the agent';

create function syncagent._emptied(p_table regclass) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_size bigint := pg_relation_size(p_table);
begin
    -- a truncation makes every plan of the table anew; a small table is cheaper to delete from
    if v_size > 1048576 then
        execute format('truncate %s', p_table);
    end if;
    return v_size = 0 or v_size > 1048576;
end
$$;
comment on function syncagent._emptied is 'empty a work table that is large; false: it is small, and to be deleted from by who calls, for whose plan is kept';

create function syncagent._empty(p_table regclass) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not syncagent._emptied(p_table) then
        execute format('delete from %s', p_table);
    end if;
end
$$;
comment on function syncagent._empty is 'empty a work table';

create function syncagent._estimate(p_table regclass) returns real
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    -- the server counts partitions only, unless somebody has analysed the root
    select case c.relkind when 'p' then (
            select sum(x.reltuples) filter (where x.reltuples >= 0) from syncagent._nodes(p_table) as n (node) join pg_class x on x.oid = n.node
            where x.relkind <> 'p')
        else c.reltuples end
    from pg_class c where c.oid = p_table
$$;
comment on function syncagent._estimate is 'about how many rows a table has; null or negative if that is not known';

create function syncagent._plan_for(p_table regclass, p_keys bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- A small batch costs less than planning for it: plans that are kept, and read nothing but indexes. A large one
    -- is planned for its size. (The planner takes every array for ten keys: for a good part of a table it is told
    -- that reading all of it once is cheaper.)
    if p_keys > 1000 then
        perform set_config('plan_cache_mode', 'force_custom_plan', true), set_config('enable_seqscan', 'on', true),
            set_config('enable_nestloop', case when p_keys * 20 > syncagent._estimate(p_table) then 'off' else 'on' end, true);
    else
        perform set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
            set_config('enable_nestloop', 'on', true);
    end if;
end
$$;
comment on function syncagent._plan_for is 'until the end of the transaction, plan for so many keys of this table';

create function syncagent._lock_statement(p_relation integer default null) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    return (select 'lock table ' || string_agg(format(case c.relkind when 'p' then '%I.%I' else 'only %I.%I' end, n.nspname, c.relname), ', ' order by r.id)
           || ' in access share mode'
    from syncagent.replicated r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace
    where p_relation is null or r.id = p_relation);
end
$$;
comment on function syncagent._lock_statement is 'LOCK TABLE for all attached tables, or for one; null if there are none';

create function syncagent._fold(p_force boolean)
    returns table (number bigint, id uuid, rows bigint, settle bigint, told boolean, newest bigint, context jsonb)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_site   syncagent.local_site;
    v_last   record := syncagent._last_cut();
    v_number bigint := coalesce(v_last.number, 0) + 1;
    v_id     uuid := gen_random_uuid();
    v_rows   bigint := 0;
    v_told   boolean := syncagent._untold();
    v_count  bigint;
    v_newest bigint;
    v_needed bigint;
    v_context jsonb;
    r        record;
begin
    select * into strict v_site from syncagent.local_site;
    if not syncagent._emptied('pg_temp.window_entry') then
        delete from pg_temp.window_entry;
    end if;
    insert into pg_temp.window_entry
    select l.relation, l.xid, l.op, l.hlc, max(l.hlc) over (partition by l.xid), l.keys, l.odd, l.columns, l.deltas
    from syncagent.log l
    where l.xid >= v_last.xmax or l.xid = any (v_last.xip);
    get diagnostics v_count = row_count;
    if v_count = 0 and not v_told and not p_force then
        return;
    end if;
    v_needed := case when v_count > 0 or v_told then v_number else 0 end;
    if v_count > 1000 then
        analyze pg_temp.window_entry;
    end if;

    for r in
        select t.id, t.relation, t.collected, w.keys
        from (select w.relation, sum(cardinality(w.keys)) as keys from pg_temp.window_entry w group by w.relation) as w
        join syncagent.replicated t on t.id = w.relation
        where exists (select from pg_class c where c.oid = t.relation) order by t.id
    loop
        if not syncagent._emptied('pg_temp.folded') then
            delete from pg_temp.folded;
        end if;
        perform syncagent._plan_for(r.relation, r.keys);
        execute format('select syncagent.fold_%s($1, $2, $3, $4)', r.id)
            into v_count using v_number, v_site.node, v_site.tail, r.collected;
        v_rows := v_rows + v_count;
        insert into syncagent.cut_keys (node, cut, relation, implicit, born, keys)
        select v_site.node, v_number, r.id, k.implicit, k.born, array_agg(k.key order by k.key)
        from (select f.key, f.implicit, f.born, (row_number() over (order by f.key) - 1) / 10000 as chunk from pg_temp.folded f) as k
        group by k.implicit, k.born, k.chunk;
    end loop;

    perform syncagent._plan_for(null, v_rows);
    select coalesce(max(w.hlc), 0) into v_newest from pg_temp.window_entry w;
    select coalesce(jsonb_object_agg(f.node, f.cut), '{}') || jsonb_build_object(v_site.node, v_number)
    into v_context from syncagent.frontier f where f.node <> v_site.node;
    insert into syncagent.frontier as f (node, cut, cut_id, context, needed) values (v_site.node, v_number, v_id, v_context, v_needed)
        on conflict (node) do update
        set cut = excluded.cut, cut_id = excluded.cut_id, context = excluded.context, needed = greatest(f.needed, excluded.needed), applied_at = excluded.applied_at;
    insert into syncagent.context (node, cut, context, newest) values (v_site.node, v_number, v_context, v_newest);
    insert into syncagent.cut (number, id, previous, taken, rows)
        values (v_number, v_id, v_last.id, pg_current_snapshot(), v_rows);
    update syncagent.alias a set cut = v_number where a.cut is null;   -- the deletes that they go with are in this cut
    update syncagent.conflict_step c set cut = v_number where c.node = v_site.node and c.cut is null;
    return query select v_number, v_id, v_rows, (select count(*) from syncagent.settling), v_told, v_newest, v_context;
end
$$;
comment on function syncagent._fold is 'make a cut in the current snapshot; no row if nothing was written, nothing is to be told of conflicts, and it is not forced';

create function syncagent._fold_template(p_columns boolean) returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.fold_{id}(p_cut bigint, p_node integer, p_tail bigint, p_collected uuid) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_rows    bigint;
    v_first   bigint := (select min(e.tx_hlc) from pg_temp.window_entry e where e.relation = {id});
    v_least   uuid := syncagent._stamp(v_first, p_tail);
    v_entries boolean := exists (select from syncagent.version_{id});
begin
    -- A key's stamp is that of its last transaction. It was born here if its first entry is an insert and
    -- none is a delete: triggers nest, and then the inner statement logs first.
    insert into pg_temp.folded (key, hlc, first, implicit, born, gone, odd, registers)
    select f.key, f.hlc, f.first,
           f.new and {may_be_implicit}
               and (f.key < v_least or f.key < syncagent._stamp(f.hlc, p_tail)),   -- most need no stamp of their own
           f.new, f.gone, f.odd, f.registers
    from (
        select f.*, f.born and (f.key > p_collected or not {may_be_implicit})
                    and not (v_entries and exists (select from syncagent.version_{id} v where v.key = f.key)) as new
        from (
        select e.key, max(e.tx_hlc) as hlc, min(e.tx_hlc) as first, {folded_registers} as registers,
               coalesce(min(e.hlc) filter (where e.op = 'I') = min(e.hlc), false) and not bool_or(e.op = 'D') as born,
               bool_or(e.op = 'D') as gone, {max_odd} as odd
        from (select k.*, e.tx_hlc, e.hlc, e.op {e_registers} from {entries} e cross join lateral {unnest_entry}
              where e.relation = {id} order by k.key) as e
        group by e.key
        ) as f offset 0
    ) as f;
    get diagnostics v_rows = row_count;
    if v_rows > 1000 then
        analyze pg_temp.folded;
    end if;

    if v_entries and exists (select from pg_temp.folded f join syncagent.version_{id} v on v.key = f.key and v.deleted) then
        -- An insert that ran while a tombstone of its key was applied: neither had seen the other.
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._conflict_id({title}, f.key, w.stamp, v.stamp), {schema_literal}, {table_literal}, f.key,
               {t_key_text}, 'insert/delete', 'lww',
               greatest(w.stamp, v.stamp), least(w.stamp, v.stamp),
               case when w.stamp > v.stamp then p_node else v.node end, case when w.stamp > v.stamp then v.node else p_node end,
               case when w.stamp > v.stamp then to_jsonb(t.*) end, case when w.stamp > v.stamp then null else to_jsonb(t.*) end
        from pg_temp.folded f
        join syncagent.version_{id} v on v.key = f.key and v.deleted and v.node <> p_node
        join syncagent.context c on c.node = v.node and c.cut = v.cut
        join {table} t on {t_eq_v}
        cross join lateral (select syncagent._stamp(f.hlc, p_tail)) as w (stamp)
        where exists (
            select from pg_temp.window_entry e
            where e.relation = {id} and e.op = 'I' and f.key = any (e.keys)
              and e.xid < pg_snapshot_xmax(c.applied) and not pg_visible_in_snapshot(e.xid, c.applied))
        on conflict (id) do nothing;

        -- A row that lives under a newer tombstone is written anew, right after this cut.
        insert into syncagent.settling (relation, key)
        select {id}, f.key
        from pg_temp.folded f
        join syncagent.version_{id} v on v.key = f.key and v.deleted and v.stamp > syncagent._stamp(f.hlc, p_tail)
        join {table} t on {t_eq_v}
        on conflict do nothing;
    end if;

    -- An absence that no delete explains is a loss, not a write. (Two statements cost half of ON CONFLICT.)
    if v_entries then
$sql$ || case when p_columns then $sql$
        update syncagent.version_{id} v
        set stamp = n.stamp, node = n.node, cut = n.cut, deleted = n.deleted, registers = n.registers
        from (
            select f.key, n.*
            from pg_temp.folded f join syncagent.version_{id} v on v.key = f.key {decode_odd} left join {table} t on {t_eq_f}
            cross join lateral syncagent.{written}(v.stamp, v.node, v.cut, v.deleted, v.registers, f.registers,
                syncagent._stamp(f.hlc, p_tail), syncagent._stamp(f.first, p_tail), p_node, p_cut, not ({t_absent}), f.gone) as n
            where not f.implicit and (not ({t_absent}) or f.gone)
        ) as n
        where v.key = n.key;
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select f.key, n.stamp, n.node, n.cut, n.deleted {folded_key_columns}
    from pg_temp.folded f {decode_odd}
    left join {table} t on {t_eq_f}
    left join syncagent.version_{id} v on v.key = f.key
    cross join lateral (select not ({t_absent}) and not f.gone and coalesce({first}, false)) as w (first)   -- most are: nothing else is known of the row
    cross join lateral (
        select syncagent._stamp(f.hlc, p_tail) as stamp, p_node as node, p_cut as cut, false as deleted, {first_registers} as registers where w.first
        union all
        select * from syncagent.{written}(null, null, null, null, null, f.registers,
            syncagent._stamp(f.hlc, p_tail), syncagent._stamp(f.first, p_tail), p_node, p_cut, not ({t_absent}), f.gone) where not w.first
    ) as n
    where not f.implicit and v.key is null and (not ({t_absent}) or f.gone) and n.stamp is not null
    order by f.key;
$sql$ else $sql$
        update syncagent.version_{id} v
        set stamp = syncagent._stamp(f.hlc, p_tail), node = p_node, cut = p_cut, deleted = {t_absent}
        from pg_temp.folded f {decode_odd} left join {table} t on {t_eq_f}
        where v.key = f.key and not f.implicit and (not ({t_absent}) or f.gone) and syncagent._stamp(f.hlc, p_tail) >= v.stamp;
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select f.key, case when f.hlc = v_first then v_least else syncagent._stamp(f.hlc, p_tail) end, p_node, p_cut, {t_absent} {folded_key_columns}
    from pg_temp.folded f {decode_odd}
    left join {table} t on {t_eq_f}
    left join syncagent.version_{id} v on v.key = f.key
    where not f.implicit and v.key is null and (not ({t_absent}) or f.gone)
    order by f.key;
$sql$ end || $sql$
    return v_rows;
end
$$;

-- What is shipped of a node's cuts after one and up to another: of this site's own, or of another's that it has applied.
-- A row that is parked here goes on as it came.

-- Rows whose stamp is implicit: their columns and nothing else.
create function syncagent.ship_plain_{id}(bigint, bigint, integer) returns table ({stage_columns})
    language sql stable
    as $$
    select {t_columns}
    from (
        select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2
        group by k.key order by k.key
    ) as k
    join {table} t on {t_eq_k}
    where not exists (select from syncagent.version_{id} v where v.key = k.key)
    union all
    select (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p
    where p.relation = {id} and p.node = $3 and p.stamp = syncagent._implicit(p.key)
      and exists (select from syncagent.cut_keys c
                  where c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2 and p.key = any (c.keys))
$$;

-- Of the same rows, the keys by cut.
create function syncagent.ship_keys_{id}(bigint, bigint, integer) returns table (_cut bigint, _keys uuid[])
    language sql stable
    as $$
    select c.cut, case when exists (select from syncagent.version_{id})
                       then array(select k.key from unnest(c.keys) as k (key)
                                  where not exists (select from syncagent.version_{id} v where v.key = k.key) order by k.key)
                       else c.keys end
    from syncagent.cut_keys c
    where c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2
$$;

-- Rows whose newest version is that node's, with stamp and cut; a live version without its row is a loss.
create function syncagent.ship_exact_{id}(bigint, bigint, integer)
    returns table (_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns})
    language sql stable
    as $$
$sql$ || case when p_columns then $sql$
    -- A row goes with all its registers, whoever wrote them, in the batch of each who did; its cut is the newest of theirs.
    with k as materialized (
        select k.key, max(c.cut) as cut from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.cut > $1 and c.cut <= $2
          and (not c.implicit or $3 <> (select node from syncagent.local_site))
        group by k.key
    )
    select v.stamp, k.cut, v.deleted {more_of_version}, {v_columns}
    from k join syncagent.version_{id} v on v.key = k.key
    left join {table} t on {t_eq_v} and not v.deleted {shipped_from}
    where (v.deleted or not ({t_absent}))
      and not exists (select from syncagent.parked_row p where p.relation = {id} and p.key = v.key and p.stamp = v.stamp)
    union all
    select v.stamp, k.cut, false {more_of_version}, (p.image::syncagent.row_{id}).*
    from k join syncagent.version_{id} v on v.key = k.key
    join syncagent.parked_row p on p.relation = {id} and p.key = v.key and p.stamp = v.stamp
$sql$ else $sql$
    select v.stamp, v.cut, v.deleted, {v_columns}
    from (
        select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.cut > $1 and c.cut <= $2
          and (not c.implicit or $3 <> (select node from syncagent.local_site))   -- an insert may have left an entry here
        group by k.key order by k.key
    ) as k
    join syncagent.version_{id} v on v.key = k.key
    left join {table} t on {t_eq_v} and not v.deleted
    where v.node = $3 and (v.deleted or not ({t_absent}))
      and ($3 = (select node from syncagent.local_site)
           or not exists (select from syncagent.parked_row p where p.relation = {id} and p.key = v.key and p.stamp = v.stamp))
    union all
    select v.stamp, v.cut, false, (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p join syncagent.version_{id} v on v.key = p.key and v.stamp = p.stamp
    where p.relation = {id} and p.node = $3 and v.node = $3 and v.cut > $1 and v.cut <= $2
$sql$ end || $sql$
$$;

-- Both, for a receiver that must compare rows with implicit stamps as well: their _stamp is null.
create function syncagent.ship_whole_{id}(bigint, bigint, integer)
    returns table (_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns})
    language sql stable
    as $$
    select null::uuid, k.cut, false {more_null}, {t_columns}
    from (
        select k.key, max(c.cut) as cut, max(c.cut) filter (where c.implicit) as born
        from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
        where c.node = $3 and c.relation = {id} and c.cut > $1 and c.cut <= $2
        group by k.key order by k.key
    ) as k
    join {table} t on {t_eq_k}
    where k.born = k.cut   -- else its version was dropped, so every site has it
      and not exists (select from syncagent.version_{id} v where v.key = k.key)
    union all
    select null, max(c.cut), false {more_null}, (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p
    join syncagent.cut_keys c on c.node = $3 and c.relation = {id} and c.implicit and c.cut > $1 and c.cut <= $2 and p.key = any (c.keys)
    where p.relation = {id} and p.node = $3 and p.stamp = syncagent._implicit(p.key)
    group by p.relation, p.key
    union all
    select * from syncagent.ship_exact_{id}($1, $2, $3)
$$;
$sql$ $template$;

-- COPY plans its query anew each time, which takes longer than to read a small batch. The plans of these are kept; what they
-- return is held until it is whole, so they are for small batches only.
create function syncagent._ship_few_template() returns text
    language sql immutable
    as $template$
    select string_agg(replace(replace($sql$
create function syncagent.ship_few_{form}_{id}(bigint, bigint, integer) returns table ({returned})
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query select * from syncagent.ship_{form}_{id}($1, $2, $3);
end
$$;
$sql$, '{form}', f.form), '{returned}', f.returned), '' order by f.form)
    from (values ('plain', '{stage_columns}'), ('keys', '_cut bigint, _keys uuid[]'),
                 ('exact', '_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns}'),
                 ('whole', '_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns}')) as f (form, returned)
$template$;

create function syncagent._relays(p_origin integer) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    return (select count(*) > 1 from syncagent.member m where not m.witness and m.node <> p_origin);
end
$$;
comment on function syncagent._relays is 'whether one that has the batches of an origin may have to hand them on, also once the origin was removed';

create function syncagent._shipment(p_node integer, p_after bigint, p_upto bigint, p_plain boolean)
    returns table (schema_name name, table_name name, form text, columns name[], relation text, keys bigint, lowest uuid, query text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
    (select r.schema_name, r.table_name, f.form, r.columns, r.relation::text, k.keys, case f.form when 'plain' then k.lowest end,
            format('select * from syncagent.ship_%s_%s(%s, %s, %s)', case when k.keys > 1000 then f.function else 'few_' || f.function end, r.id, p_after, p_upto, p_node)
    from (
        select c.relation,
               count(*) filter (where c.implicit) > 0 as implicit,
               count(*) filter (where not c.implicit or p_node <> (select node from syncagent.local_site)) > 0 as stamped,
               sum(cardinality(c.keys)) as keys,
               (array_agg(c.keys[1] order by c.keys[1]) filter (where c.implicit))[1] as lowest   -- they are in order
        from syncagent.cut_keys c where c.node = p_node and c.cut > p_after and c.cut <= p_upto group by c.relation
    ) as k
    join syncagent.replicated r on r.id = k.relation join pg_class t on t.oid = r.relation
    -- a few rows of both kinds go together: two streams take longer than what is spared
    cross join lateral (select p_plain and not (k.implicit and k.stamped and k.keys <= 1000) as plain) as p
    cross join lateral (values
        ('keys', 'keys', p.plain and k.implicit and syncagent._relays(p_node)),
        ('plain', 'plain', p.plain and k.implicit), ('exact', 'exact', p.plain and k.stamped),
        ('exact', 'whole', not p.plain and (k.implicit or k.stamped))) as f (form, function, wanted)
    where f.wanted
    order by r.id, f.form desc)
    union all
    (select r.schema_name, r.table_name, 'aliases', r.columns, r.relation::text, a.keys, null,
            format('select a.cut, a.loser, a.winner from syncagent.alias a where a.relation = %s and a.node = %s and a.cut > %s and a.cut <= %s', r.id, p_node, p_after, p_upto)
    from (select a.relation, count(*) as keys from syncagent.alias a where a.node = p_node and a.cut > p_after and a.cut <= p_upto group by a.relation) as a
    join syncagent.replicated r on r.id = a.relation join pg_class t on t.oid = r.relation
    order by r.id)
    union all
    select 'syncagent', 'conflict_step', 'conflicts', '{}', 'syncagent.conflict_step', c.steps, null,
           format('select * from syncagent._told_conflicts(%s, %s, %s)', p_node, p_after, p_upto)
    from (select count(*) from syncagent.conflict_step s where s.node = p_node and s.cut > p_after and s.cut <= p_upto) as c (steps)
    where c.steps > 0;
end
$$;
comment on function syncagent._shipment is 'the COPY queries that read a node''s cuts after one and up to another; all in the snapshot of the newest cut here';

create function syncagent._contexts(p_node integer, p_after bigint, p_upto bigint)
    returns table (cut bigint, context jsonb, newest bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
    select c.cut, c.context, c.newest from syncagent.context c
    where c.node = p_node and c.cut > p_after and c.cut <= p_upto
    order by c.cut;
end
$$;
comment on function syncagent._contexts is 'context and largest clock of each cut of a range';

-- After a cut ----------------------------------------------------------------------------------------------

create function syncagent._settle() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_written bigint := 0;
    v_count   bigint;
    r         record;
begin
    for r in
        select t.id from syncagent.replicated t join pg_class c on c.oid = t.relation
        where t.id in (select s.relation from syncagent.settling s) order by t.id
    loop
        execute format('select syncagent.settle_%s()', r.id) into v_count;
        v_written := v_written + v_count;
    end loop;
    delete from syncagent.settling s where not exists (select from syncagent.replicated t where t.id = s.relation);
    return v_written;
end
$$;
comment on function syncagent._settle is 'write rows that live under a newer tombstone as writes of this site; returns how many';

create function syncagent._settle_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.settle_{id}() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_last record := syncagent._last_cut();
    v_keys uuid[];
    v_rows bigint;
begin
    -- First the rows' locks, then, in a new snapshot, a second look: whoever wrote them since has settled them.
    v_keys := array(
        select k.key from (
            select s.key from syncagent.settling s
            join syncagent.version_{id} v on v.key = s.key
            join {table} t on {t_eq_v}
            where s.relation = {id} order by s.key limit 10000 for no key update of t skip locked
        ) as k);
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
    select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(v.key) {odd_of_version}
    from syncagent.version_{id} v
    join {table} t on {t_eq_v}
    where v.key = any (v_keys) and v.deleted
      and not exists (
        select from syncagent.log l
        where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)) and v.key = any (l.keys))
    having count(*) > 0;
    get diagnostics v_rows = row_count;
    -- what no row lives of is settled, too
    delete from syncagent.settling s
    where s.relation = {id}
      and (s.key = any (v_keys)
           or not exists (select from syncagent.version_{id} v join {table} t on {t_eq_v} where v.key = s.key and v.deleted));
    return v_rows;
end
$$;
$sql$ $template$;

create function syncagent._stable() returns table (node integer, cut bigint)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select o.node,
           min(case when p.node = s.node then coalesce(mine.cut, 0) else coalesce((theirs.context ->> o.node::text)::bigint, 0) end)
    from syncagent.local_site s
    cross join (select m.node from syncagent.member m union select f.node from syncagent.frontier f) as o   -- also who has left
    cross join syncagent.member p
    left join syncagent.frontier mine on mine.node = o.node
    left join syncagent.frontier theirs on theirs.node = p.node
    where not p.witness
    group by o.node
$$;
comment on function syncagent._stable is 'per origin, the last cut that every member has said, in its own stream, to have applied';

create function syncagent._greatest(p_one jsonb, p_other jsonb) returns jsonb
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(jsonb_object_agg(k.node, greatest((p_one ->> k.node)::bigint, (p_other ->> k.node)::bigint)), '{}')
    from jsonb_object_keys(p_one || p_other) as k (node)
$$;
comment on function syncagent._greatest is 'per node the larger of two cuts';

create function syncagent._compact(p_limit bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_dropped bigint := 0;
    v_count   bigint;
    v_oldest  xid8;
    v_full    boolean := false;
    v_stable  jsonb;
    r         record;
begin
    -- Below this all transactions have ended and are folded; at rest that is known without another cut.
    select case when exists (
                    select from syncagent.log e
                    where (e.xid >= l.xmax or e.xid = any (l.xip)) and e.xid < pg_snapshot_xmin(pg_current_snapshot()))
                then pg_snapshot_xmin(l.taken) else pg_snapshot_xmin(pg_current_snapshot()) end
    into v_oldest from syncagent._last_cut() l where l.taken is not null;
    if v_oldest is null then
        return 0;
    end if;
    select coalesce(jsonb_object_agg(s.node, s.cut), '{}') into v_stable from syncagent._stable() s;
    for r in select t.id from syncagent.replicated t order by t.id loop
        execute format('select syncagent.compact_%s($1, $2, $3)', r.id) into v_count using p_limit, v_oldest, v_stable;
        v_dropped := v_dropped + v_count;
        v_full := v_full or v_count >= p_limit;
    end loop;
    for r in select distinct a.relation as id from syncagent.alias a loop   -- with its tombstone, unless another one leads to it
        execute format('delete from syncagent.alias a where a.relation = %1$s and a.cut is not null'
                       ' and not exists (select from syncagent.version_%1$s v where v.key = a.loser and v.deleted)'
                       ' and not exists (select from syncagent.alias b where b.relation = a.relation and b.winner = a.loser)', r.id);
    end loop;
    if not v_full then
        delete from syncagent.context c using syncagent._stable() s
        where c.node = s.node and c.cut <= s.cut and (c.applied is null or pg_snapshot_xmax(c.applied) <= v_oldest);
        with gone as (
            delete from syncagent.cut_keys k using syncagent._stable() s
            where s.node = k.node and k.cut <= s.cut
            returning k.id, k.node, k.relation, k.keys
        )
        insert into syncagent.mark (relation, keys)
        select g.relation, g.keys from gone g
        join syncagent.local_site me on me.node = g.node
        join syncagent.forest f on f.relation = g.relation and f.consumed < g.id;
        -- the last stable cut itself stays: it is where a peer may stand
        delete from syncagent.cut c using syncagent._stable() s, syncagent.local_site me
        where s.node = me.node and c.number < s.cut;
        update syncagent.local_site me set trimmed = s.cut
        from syncagent._stable() s where s.node = me.node and s.cut > me.trimmed;
    end if;
    return v_dropped;
end
$$;
comment on function syncagent._compact is 'drop metadata that every member is known to have; at most p_limit entries of each table';

create function syncagent._compact_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.compact_{id}(p_limit bigint, p_oldest xid8, p_stable jsonb) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_last record := syncagent._last_cut();
    v_rows bigint;
begin
    with named as materialized (
        select k.key from syncagent.log l cross join lateral unnest(l.keys) as k (key)
        where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip))
    ), settled as (
        select v.key from syncagent.version_{id} v left join {table} t on {t_eq_v} and not v.deleted
        where v.cut <= (p_stable ->> v.node::text)::bigint {all_stable}
          and v.stamp >= syncagent._implicit(v.key)   -- else the mark, or what comes next, would be below the key
          and not (v.deleted and exists (
                select from syncagent.context c
                where c.node = v.node and c.cut = v.cut and pg_snapshot_xmax(c.applied) > p_oldest))
          and (v.deleted or not ({t_absent}))   -- else the row is lost, and nothing would say so
          and not exists (select from syncagent.settling x where x.relation = {id} and x.key = v.key)
          and not exists (select from syncagent.parked_row x where x.relation = {id} and x.key = v.key)
          and not exists (select from named n where n.key = v.key)
        limit p_limit
    ), dropped as (
        delete from syncagent.version_{id} v using settled s where v.key = s.key returning v.stamp, v.deleted
    ), mark as (
        update syncagent.replicated r set collected = greatest(r.collected, d.stamp)
        from (select stamp from dropped where deleted order by stamp desc limit 1) as d
        where r.id = {id}
    ), remembered as (   -- what is stable is less again when a site comes that knows nothing yet
        update syncagent.local_site me set compacted = syncagent._greatest(me.compacted, p_stable),
            collected = case when d.some_deleted then syncagent._greatest(me.collected, p_stable) else me.collected end
        from (select bool_or(x.deleted) as some_deleted from dropped x) as d
        where d.some_deleted is not null
    )
    select count(*) into v_rows from dropped;
    return v_rows;
end
$$;
$sql$ $template$;

create function syncagent._trim(p_slot integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_slot regclass := format('syncagent.log_%s', p_slot)::regclass;
    v_last record;
    v_left boolean;
begin
    if pg_relation_size(v_slot) = 0 or (syncagent._wall() >> 23) & 15 = p_slot then
        return false;
    end if;
    -- With this lock no transaction that wrote here is open, and the next statement sees all of them.
    execute format('lock table only %s in access exclusive mode nowait', v_slot);
    v_last := syncagent._last_cut();
    execute format('select exists (select from %s where xid >= $1 or xid = any ($2))', v_slot)
        into v_left using v_last.xmax, v_last.xip;
    if v_left then
        return false;
    end if;
    execute format('truncate only %s', v_slot);
    return true;
end
$$;
comment on function syncagent._trim is 'empty one slot of the log if everything in it is folded';

-- Fingerprints of rows: what two sites compare instead of the rows.
--
-- A row's fingerprint is two lanes of 64 bits: `hashtextextended` with two seeds over the row's text, or, where the cluster has
-- agreed on it, the first half of its sha256. Only columns that
-- are not null take part, each with its name, in the order of their names: so a new column that is null everywhere, or
-- another order of columns, changes no fingerprint. Text that can hold anything is quoted, so no two rows have one text.
-- Sets of rows have a count and the lanes' sums modulo 2^64, which add up: sums, not XOR, which cancels pairs.
--
-- The text is what output functions write, so it is the exact value: 1.0 is not 1.00, json is to the byte. It depends on
-- settings, which every session of the agent pins, and functions here set themselves.

create function syncagent._fingerprint_text(p_table regclass, p_columns name[]) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- concat takes a hundred arguments, and leaves out nulls
    select string_agg(format('concat(%s)', pieces), ' || ' order by chunk)
    from (
        select c.chunk, string_agg(
            format('case when t.%I is distinct from null then %L end, %s', c.name, ',' || quote_literal(c.name) || ':',
                   case when c.kind <> 'e' and c.type = any (array['int2', 'int4', 'int8', 'bool', 'uuid', 'float4', 'float8', 'numeric', 'date',
                            'timestamp', 'timestamptz', 'time', 'timetz', 'interval', 'bytea', 'bit', 'varbit', 'inet', 'cidr', 'macaddr', 'macaddr8']::regtype[])
                        then format('t.%I', c.name)
                        when c.type = any (array['bpchar', 'char', '"char"', 'name']::regtype[])   -- a cast would strip it
                        then format('case when t.%1$I is distinct from null then quote_literal(concat(t.%1$I)) end', c.name)
                        else format('quote_literal(t.%I::text)', c.name) end),
            ', ' order by c.n) as pieces
        from (
            select a.attname as name, syncagent._base_type(a.atttypid) as type, t.typtype as kind,
                   row_number() over (order by a.attname collate "C") as n,
                   (row_number() over (order by a.attname collate "C") - 1) / 40 as chunk
            from pg_attribute a join pg_type t on t.oid = syncagent._base_type(a.atttypid)
            where a.attrelid = p_table and a.attname = any (p_columns)
        ) as c
        group by c.chunk
    ) as g
$$;
comment on function syncagent._fingerprint_text is 'the expression for the text of a row t that is hashed; for a session with the agent''s settings';

create function syncagent._fingerprint_kind() returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select coalesce((select s.fingerprint from syncagent.local_site s), 'hash') $$;
comment on function syncagent._fingerprint_kind is 'what rows are compared by: hash, or sha256';

create function syncagent._hashed(p_text text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select format(case syncagent._fingerprint_kind() when 'sha256' then 'sha256(convert_to((%s), getdatabaseencoding()))' else '(%s) collate "C"' end, p_text)
$$;
comment on function syncagent._hashed is 'the expression that is computed once of the expression of a text; _lanes makes two numbers of it';

create function syncagent._lanes(p_hashed text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select format(case syncagent._fingerprint_kind()
        when 'sha256' then '(''x'' || encode(substr(%1$s, 1, 8), ''hex''))::bit(64)::bigint as lane_0, (''x'' || encode(substr(%1$s, 9, 8), ''hex''))::bit(64)::bigint as lane_1'
        else 'hashtextextended(%1$s, 0) as lane_0, hashtextextended(%1$s, 7640891576956012808) as lane_1' end, p_hashed)
$$;
comment on function syncagent._lanes is 'the expressions for the two lanes of what _hashed has computed';

create function syncagent._fingerprint_query(p_table regclass, p_columns name[], p_where text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select format('select count(*) as rows, syncagent._modulo(sum(s.lane_0)) as lane_0, syncagent._modulo(sum(s.lane_1)) as lane_1'
                  ' from (select %s from (select %s as row from %s%I.%I t where %s offset 0) as r) as s',
                  syncagent._lanes('r.row'), syncagent._hashed(coalesce(syncagent._fingerprint_text(p_table, p_columns), '''''')), case c.relkind when 'p' then '' else 'only ' end,
                  n.nspname, c.relname, p_where)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table
$$;
comment on function syncagent._fingerprint_query is 'the query for count and lanes of the rows t of a table for which a condition holds';

create function syncagent._modulo(p_sum numeric) returns bigint
    language sql immutable parallel safe
    as $$
    select (case when m >= 9223372036854775808 then m - 18446744073709551616 when m < -9223372036854775808 then m + 18446744073709551616 else m end)::bigint
    from (select pg_catalog.mod(coalesce(p_sum, 0), 18446744073709551616)) as x (m)
$$;
comment on function syncagent._modulo is 'a sum modulo 2^64, as a signed number';

create function syncagent._fingerprint(p_table regclass, p_columns name[], p_where text default 'true',
                                       out rows bigint, out lane_0 bigint, out lane_1 bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    as $$
begin
    execute syncagent._fingerprint_query(p_table, p_columns, p_where) into rows, lane_0, lane_1;
end
$$;
comment on function syncagent._fingerprint is 'count and lanes of the rows t of a table for which a condition holds';

-- The shape of attached tables that was agreed on, and what somebody has made of it by hand.
--
-- `shape` is what attaching a table and steps of schema changes have led to. What a table is now and its shape is not, was typed here: it is in
-- `typed_record`, with role and statement where the event trigger saw it. A comparison finds it alone as well; so where no event trigger is
-- allowed, who typed it is not known, and nothing else is lost. What a schema change takes over of it bears the step's epoch until the change is
-- closed, and is of the shape then.
--
-- Compared are names, columns, constraints and indexes. Triggers, rights and comments are not, nor what an index is made with.

create table syncagent.shape (
    relation integer not null,
    kind     text not null check (kind in ('table', 'column', 'constraint', 'index')),
    name     name not null,
    place    smallint not null,
    made     jsonb not null,
    server   integer not null,
    primary key (relation, kind, name)
);
comment on table syncagent.shape is 'attached tables as agreed: what each part is made as, in the words of which major version of the server';

create table syncagent.typed_record (
    relation  integer not null,
    kind      text not null,
    name      name not null,
    agreed    jsonb,
    now       jsonb,
    became    name,
    what      text not null,
    role      name,
    statement text,
    since     timestamptz not null default clock_timestamp(),
    epoch     bigint,
    primary key (relation, kind, name)
);
comment on table syncagent.typed_record is 'what somebody has made of attached tables by hand: a part as agreed (null: there was none) and now (null: there is none), or another name for it; epoch is the step of a schema change that has taken it over';

create table syncagent.typed_rule (
    only_row boolean primary key default true check (only_row),
    refuse   boolean not null
);
comment on table syncagent.typed_rule is 'whether DDL that is typed by hand is refused here, as config.toml says';

create function syncagent._shape_now(p_relation integer default null)
    returns table (relation integer, kind text, name name, place smallint, made jsonb)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with attached as (
        select r.id, c.oid, n.nspname, c.relname
        from syncagent.replicated r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace
        where p_relation is null or r.id = p_relation
    )
    select t.id, 'table', ''::name, 0::smallint, jsonb_build_object('schema', t.nspname, 'table', t.relname) from attached t
    union all
    select t.id, 'column', a.attname, a.attnum, jsonb_strip_nulls(jsonb_build_object(
        'type', format_type(a.atttypid, a.atttypmod),
        'collation', case when a.attcollation <> y.typcollation then (select format('%I.%I', n.nspname, l.collname)
                         from pg_collation l join pg_namespace n on n.oid = l.collnamespace where l.oid = a.attcollation) end,
        'default', case when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end,
        'generated', case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) end,
        'virtual', case when a.attgenerated = 'v' then true end,
        'identity', case a.attidentity when 'a' then 'always' when 'd' then 'by default' end,
        'required', case when a.attnotnull then true end))
    from attached t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
    join pg_type y on y.oid = a.atttypid left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all
    select t.id, 'constraint', k.conname, 0::smallint,
           jsonb_build_object('kind', k.contype, 'definition', regexp_replace(d.definition, ' NOT VALID$', ''))
    from attached t join pg_constraint k on k.conrelid = t.oid and k.contype in ('c', 'f', 'p', 'u', 'x')
    cross join lateral (select pg_get_constraintdef(k.oid)) as d (definition) where d.definition is not null
    union all
    select t.id, 'index', c.relname, 0::smallint,
           jsonb_strip_nulls(jsonb_build_object('definition', d.definition, 'invalid', case when not i.indisvalid then true end))
    from attached t join pg_index i on i.indrelid = t.oid join pg_class c on c.oid = i.indexrelid
    cross join lateral (select pg_get_indexdef(i.indexrelid)) as d (definition)
    where d.definition is not null
      and (i.indisvalid or not exists (   -- it is being made
          select from pg_stat_progress_create_index p where p.relid = t.oid and p.datname = current_database()))
      and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.conrelid = t.oid and k.contype in ('p', 'u', 'x'))
$$;
comment on function syncagent._shape_now is 'the parts of an attached table, or of all, as they are';

create function syncagent._typed_now(p_relation integer default null)
    returns table (relation integer, kind text, name name, agreed jsonb, now jsonb, became name)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with was as (
        select s.* from syncagent.shape s join syncagent.replicated r on r.id = s.relation left join pg_class c on c.oid = r.relation
        where (p_relation is null or s.relation = p_relation) and (s.kind = 'table' or c.oid is not null)   -- of a table that is gone only that
    ), unlike as (
        select coalesce(w.relation, n.relation) as relation, coalesce(w.kind, n.kind) as kind, coalesce(w.name, n.name) as name,
               w.made as agreed, n.made as now, coalesce(w.place, n.place) as place
        from was w full join (
            select x.* from syncagent._shape_now(p_relation) x where exists (select from syncagent.shape s where s.relation = x.relation)
        ) as n on (n.relation, n.kind, n.name) = (w.relation, w.kind, w.name)
        where w.made is distinct from n.made
    ), renamed as (
        select u.relation, u.kind, u.name, u.agreed, v.now, v.name as became
        from unlike u join unlike v on v.relation = u.relation and u.kind = 'column' and v.kind = 'column' and v.place = u.place
            and v.agreed is null and u.now is null and u.agreed ->> 'type' = v.now ->> 'type'
    )
    select u.relation, u.kind, u.name, u.agreed, u.now, null from unlike u
    where not exists (select from renamed x where x.relation = u.relation and u.kind = 'column' and u.name in (x.name, x.became))
      and not (u.kind in ('constraint', 'index') and u.agreed is not null and u.now is not null   -- a name in it is another one
               and (exists (select from renamed x where x.relation = u.relation) or exists (select from unlike v where v.relation = u.relation and v.kind = 'table')))
    union all
    select x.relation, x.kind, x.name, x.agreed, x.now, x.became from renamed x
$$;
comment on function syncagent._typed_now is 'where an attached table, or any, is not what was agreed';

create function syncagent._shape_text(p_kind text, p_made jsonb) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case case when p_made is not null then p_kind end
        when 'column' then concat_ws(' ', p_made ->> 'type', 'collate ' || (p_made ->> 'collation'), 'default ' || (p_made ->> 'default'),
            'generated always as (' || (p_made ->> 'generated') || case when p_made ? 'virtual' then ') virtual' else ') stored' end,
            'generated ' || (p_made ->> 'identity') || ' as identity', case when p_made ? 'required' then 'not null' end)
        when 'table' then format('%I.%I', p_made ->> 'schema', p_made ->> 'table')
        else p_made ->> 'definition' end
$$;
comment on function syncagent._shape_text is 'a part of a table as SQL';

create function syncagent._typed_text(p_kind text, p_name name, p_agreed jsonb, p_now jsonb, p_became name) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case
        when p_kind = 'table' and p_now is null then 'the table was dropped'
        when p_kind = 'table' then format('the table is %s now', syncagent._shape_text(p_kind, p_now))
        when p_became is not null then format('column %I is %I now', p_name, p_became)
        when p_agreed is null then format('%s %I was added: %s%s', p_kind, p_name, syncagent._shape_text(p_kind, p_now),
                                          case when p_now ? 'invalid' then ', which is not valid' end)
        when p_now is null then format('%s %I was dropped', p_kind, p_name)
        when p_now ? 'invalid' then format('%s %I is not valid any more', p_kind, p_name)
        else format('%s %I is %s, and was %s', p_kind, p_name, syncagent._shape_text(p_kind, p_now), syncagent._shape_text(p_kind, p_agreed)) end
$$;
comment on function syncagent._typed_text is 'what somebody has made of a table, in words';

-- What is agreed ------------------------------------------------------------------------------------------------

create function syncagent._shape_take(p_relation integer default null) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    insert into syncagent.shape (relation, kind, name, place, made, server)
    select n.relation, n.kind, n.name, n.place, n.made, current_setting('server_version_num')::integer / 10000
    from syncagent._shape_now(p_relation) n
    where not exists (select from syncagent.shape s where s.relation = n.relation)
$$;
comment on function syncagent._shape_take is 'an attached table, or each, whose shape is not known is as it should be';

create function syncagent._shape_agree(p_relation integer, p_kind text, p_name name, p_became name) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    delete from syncagent.shape s where (s.relation, s.kind) = (p_relation, p_kind) and s.name in (p_name, p_became);
    insert into syncagent.shape (relation, kind, name, place, made, server)
    select n.relation, n.kind, n.name, n.place, n.made, current_setting('server_version_num')::integer / 10000
    from syncagent._shape_now(p_relation) n where n.kind = p_kind and n.name in (p_name, p_became);
    update syncagent.shape s set made = n.made from syncagent._shape_now(p_relation) n
    where s.relation = p_relation and (n.relation, n.kind, n.name) = (s.relation, s.kind, s.name) and n.kind in ('constraint', 'index')
      and (p_became is not null or p_kind = 'table');
    delete from syncagent.typed_record t where (t.relation, t.kind, t.name) = (p_relation, p_kind, p_name);
$$;
comment on function syncagent._shape_agree is 'a part of a table is agreed to be as it is';

create function syncagent._shape_forget(p_relation integer) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    delete from syncagent.shape s where s.relation = p_relation;
    delete from syncagent.typed_record t where t.relation = p_relation;
$$;
comment on function syncagent._shape_forget is 'the table is not attached any more';

-- What was typed ------------------------------------------------------------------------------------------------

create function syncagent._note_typed(p_relation integer default null, p_role name default null, p_statement text default null)
    returns setof syncagent.typed_record
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_server integer := current_setting('server_version_num')::integer / 10000;
begin
    if exists (select from syncagent.replicated r where not exists (select from syncagent.shape s where s.relation = r.id)) then
        perform syncagent._shape_take();
    end if;
    if exists (select from syncagent.shape s where s.server <> v_server) then   -- another major version says the same in other words
        update syncagent.shape s set made = coalesce(n.made, s.made), server = v_server
        from syncagent.shape o left join syncagent._shape_now() n on (n.relation, n.kind, n.name) = (o.relation, o.kind, o.name)
        where s.server <> v_server and (o.relation, o.kind, o.name) = (s.relation, s.kind, s.name);
    end if;
    if not exists (select from syncagent.schema_record c cross join syncagent.local_site s
                   where c.state in ('open', 'back') or c.upto > s.schema_epoch) then
        perform syncagent._shape_agree(t.relation, t.kind, t.name, t.became) from syncagent.typed_record t where t.epoch is not null;
    end if;
    if exists (select from syncagent.typed_record t where p_relation is null or t.relation = p_relation) then
        delete from syncagent.typed_record t where (p_relation is null or t.relation = p_relation)
            and not exists (select from syncagent._typed_now(p_relation) d where (d.relation, d.kind, d.name) = (t.relation, t.kind, t.name));
    end if;
    return query
        insert into syncagent.typed_record as t (relation, kind, name, agreed, now, became, what, role, statement)
        select d.relation, d.kind, d.name, d.agreed, d.now, d.became, syncagent._typed_text(d.kind, d.name, d.agreed, d.now, d.became),
               p_role, case when p_statement !~* 'password' and btrim(p_statement, E' \n\r\t;') !~ ';' then left(p_statement, 10000) end   -- no script
        from syncagent._typed_now(p_relation) d
        left join syncagent.typed_record k on (k.relation, k.kind, k.name) = (d.relation, d.kind, d.name)
            and (k.agreed, k.now, k.became) is not distinct from (d.agreed, d.now, d.became)
        where k.name is null
        on conflict (relation, kind, name) do update set agreed = excluded.agreed, now = excluded.now, became = excluded.became,
            what = excluded.what, role = excluded.role, statement = excluded.statement, since = clock_timestamp(), epoch = null
        returning t.*;
end
$$;
comment on function syncagent._note_typed is 'note where an attached table, or any, is not what was agreed; returns what was not noted before';

create function syncagent._adopted(p_adopts jsonb) returns setof syncagent.typed_record
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select t.* from jsonb_to_recordset(p_adopts) as x (schema name, "table" name, kind text, name name, now jsonb, became name)
    join syncagent.replicated r on (r.schema_name, r.table_name) = (x.schema, x."table")
    join syncagent.typed_record t on (t.relation, t.kind, t.name) = (r.id, x.kind, x.name) and t.became is not distinct from x.became
        and coalesce(t.now, 'null') = coalesce(x.now, 'null')
$$;
comment on function syncagent._adopted is 'what a step adopts, where it was made by hand here';

create function syncagent._lock_adopted(p_adopts jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in select distinct c.oid::regclass as name from syncagent._adopted(p_adopts) x
             join syncagent.replicated t on t.id = x.relation join pg_class c on c.oid = t.relation
    loop
        execute format('lock table %s in access exclusive mode', r.name);
    end loop;
end
$$;
comment on function syncagent._lock_adopted is 'as if the step were done: nobody writes its tables meanwhile, and they are touched';

create function syncagent._take_over(p_adopts jsonb, p_epoch bigint) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if (select count(*) from syncagent._adopted(p_adopts)) < jsonb_array_length(p_adopts) then
        return false;
    end if;
    perform syncagent._lock_adopted(p_adopts);
    update syncagent.typed_record t set epoch = p_epoch from syncagent._adopted(p_adopts) x
    where (t.relation, t.kind, t.name) = (x.relation, x.kind, x.name) and t.epoch is null;
    return true;
end
$$;
comment on function syncagent._take_over is 'whether a step finds done here by hand what it is to do; it is the step''s then';

create function syncagent._is_taken_over(p_adopts jsonb, p_epoch bigint) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select exists (select from syncagent._adopted(p_adopts) x where x.epoch <= p_epoch) $$;
comment on function syncagent._is_taken_over is 'whether this step, or one before it, has found it done here by hand';

create function syncagent._give_back(p_adopts jsonb, p_epoch bigint) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_ours boolean := syncagent._is_taken_over(p_adopts, p_epoch);
begin
    perform syncagent._lock_adopted(p_adopts);
    update syncagent.typed_record t set epoch = null from syncagent._adopted(p_adopts) x
    where (t.relation, t.kind, t.name) = (x.relation, x.kind, x.name) and t.epoch = p_epoch;
    return v_ours;
end
$$;
comment on function syncagent._give_back is 'whether a step that is taken back was done by hand here: it stays, and is the step''s no more';

create function syncagent._log_unlike(p_schema name, p_table name, p_column name, p_value text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
    v_rows  bigint;
begin
    select * into strict v_table from syncagent.replicated r where (r.schema_name, r.table_name) = (p_schema, p_table);
    execute syncagent._render($sql$
        insert into syncagent.log (xid, relation, op, hlc, keys, columns {odd_column})
        select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key), {written} {odd_agg}
        from (select {key} as key {odd_value}, (row_number() over () - 1) / 10000 as chunk from {table} t where {unlike}) as k
        group by k.chunk $sql$, syncagent._tokens(v_table.id) || jsonb_build_object(
            'unlike', case when p_value is null then format('t.%I is not null', p_column)
                           else format('row(t.%I)::record *<> row(%s)::record', p_column, p_value) end,
            'written', case v_table.strategy when 'lww' then 'null' else format('array[%L]::name[]', p_column) end));   -- null begins a new life
    get diagnostics v_rows = row_count;
    return v_rows;
end
$$;
comment on function syncagent._log_unlike is 'rows whose column holds something else than all other sites are given are written by this site, now; returns the log entries made';

-- The event trigger ---------------------------------------------------------------------------------------------

create function syncagent._typed() returns event_trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_role     name := coalesce(nullif(current_setting('role'), 'none'), session_user::text);
    v_relation integer;
    v_refused  text;
begin
    if coalesce(current_setting('syncagent.step', true), '') = 'on' then
        return;   -- the agent, or one of its verbs
    end if;
    begin
        for v_relation in
            select r.id from syncagent.replicated r
            where tg_event = 'sql_drop' and exists (
                select from pg_event_trigger_dropped_objects() d where d.classid = 'pg_class'::regclass and d.objid = r.relation
                   or (d.object_type, d.schema_name) = ('index', r.schema_name)
                   and exists (select from syncagent.shape s where (s.relation, s.kind, s.name) = (r.id, 'index', d.object_name::name))
                   or d.object_type = 'table constraint' and d.address_names[1:2] = array[r.schema_name, r.table_name]::text[])
            union
            select r.id from pg_event_trigger_ddl_commands() e
            left join pg_index i on e.classid = 'pg_class'::regclass and i.indexrelid = e.objid
            join syncagent.replicated r on r.relation = coalesce(pg_partition_root(coalesce(i.indrelid, e.objid)::regclass), coalesce(i.indrelid, e.objid))
            where tg_event = 'ddl_command_end' and e.classid = 'pg_class'::regclass
        loop
            if exists (select from syncagent.typed_rule u where u.refuse) then
                select format('%I.%I: %s', r.schema_name, r.table_name, string_agg(syncagent._typed_text(d.kind, d.name, d.agreed, d.now, d.became), '; '))
                into v_refused
                from syncagent._typed_now(v_relation) d join syncagent.replicated r on r.id = d.relation
                left join syncagent.typed_record k on (k.relation, k.kind, k.name) = (d.relation, d.kind, d.name)
                    and (k.now, k.became) is not distinct from (d.now, d.became)
                where k.name is null group by r.schema_name, r.table_name;
                exit when v_refused is not null;
            end if;
            perform syncagent._note_typed(v_relation, v_role, current_query());
        end loop;
    exception when others then
        raise log 'syncagent could not look at what was typed: %', sqlerrm;   -- the comparison finds it
    end;
    if v_refused is not null then
        raise exception '%', v_refused
            using errcode = 'SA005', detail = 'The table is replicated, and this site refuses DDL that only it would have.',
                  hint = 'write it into a file: `syncagent schema apply FILE` carries it through all sites'
                      || case when current_query() ~* '\yconcurrently\y' then '; what is left of the index, which is not valid, and how to drop it: `syncagent schema status`' else '' end;
    end if;
end
$$;
comment on function syncagent._typed is 'at the end of each DDL statement: note, or refuse, what it has made of attached tables; whatever goes wrong in here, the statement goes on';

create function syncagent.watch_ddl() returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not exists (select from pg_event_trigger e where e.evtname = 'syncagent_ddl') then
        create event trigger syncagent_ddl on ddl_command_end
            when tag in ('ALTER TABLE', 'ALTER INDEX', 'CREATE INDEX') execute function syncagent._typed();
    end if;
    if not exists (select from pg_event_trigger e where e.evtname = 'syncagent_drop') then
        create event trigger syncagent_drop on sql_drop
            when tag in ('DROP TABLE', 'DROP INDEX', 'DROP SCHEMA', 'DROP TYPE', 'DROP DOMAIN', 'DROP FUNCTION', 'DROP SEQUENCE', 'DROP OWNED')
            execute function syncagent._typed();
    end if;
    return true;
exception when insufficient_privilege then
    return false;
end
$$;
comment on function syncagent.watch_ddl() is 'make the event triggers that see DDL typed by hand, if they are not there; whether they are: it takes a superuser, or what a provider has in its place';

create function syncagent._watched() returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when count(*) < 2 then 'missing' when bool_or(e.evtenabled in ('D', 'R')) then 'disabled' else 'there' end
    from pg_event_trigger e where e.evtname in ('syncagent_ddl', 'syncagent_drop')
$$;
comment on function syncagent._watched is 'whether the event triggers are there, missing or disabled';

create function syncagent._typed_sql(p_relation integer, p_kind text, p_name name, p_agreed jsonb, p_now jsonb, p_became name,
                                     out forth text[], out back text[], out rehearse text[])
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table text;   -- as agreed
    v_forth text;
    v_alter text;   -- as it is called here
    v_old   text := syncagent._shape_text(p_kind, p_agreed);
    v_new   text := syncagent._shape_text(p_kind, p_now);
begin
    select format('%I.%I', r.schema_name, r.table_name), format('alter table %s ', case when c.oid is null then '' else format('%I.%I', n.nspname, c.relname) end)
    into v_table, v_alter
    from syncagent.replicated r left join pg_class c on c.oid = r.relation left join pg_namespace n on n.oid = c.relnamespace where r.id = p_relation;
    v_forth := format('alter table %s ', v_table);
    case
        when p_kind = 'table' and p_now is null then
            forth := array[format('drop table %s', v_table)];
        when p_kind = 'table' and p_agreed ->> 'schema' = p_now ->> 'schema' then
            forth := array[format('alter table %s rename to %I', v_table, p_now ->> 'table')];
            back := array[v_alter || format('rename to %I', p_agreed ->> 'table')];
        when p_kind = 'table' then
            back := array[v_alter || format('set schema %I', p_agreed ->> 'schema')];
        when p_became is not null then
            forth := array[v_forth || format('rename column %I to %I', p_name, p_became)];
            back := array[v_alter || format('rename column %I to %I', p_became, p_name)];
        when p_kind = 'column' and p_agreed is null then
            forth := array[v_forth || format('add column %I %s', p_name, v_new)];
            back := array[v_alter || format('drop column %I', p_name)];
            rehearse := array[back[1] || ' cascade'];
        when p_kind = 'column' and p_now is null then
            forth := array[v_forth || format('drop column %I', p_name)];
            back := array[v_alter || format('add column %I %s', p_name, v_old)];
            rehearse := array[v_alter || format('add column %I %s', p_name, syncagent._shape_text('column', p_agreed - '{required,default,generated,identity}'::text[]))];
        when p_kind = 'column' and (p_agreed - '{type,default,required}'::text[]) = (p_now - '{type,default,required}'::text[]) then
            select array_agg(v_forth || format('alter column %I %s', p_name, x.forth) order by x.n),
                   array_agg(v_alter || format('alter column %I %s', p_name, x.back) order by x.n)
            into forth, back
            from (values
                (1, p_agreed -> 'type' <> p_now -> 'type', 'type ' || (p_now ->> 'type'), 'type ' || (p_agreed ->> 'type')),
                (2, p_agreed -> 'default' is distinct from p_now -> 'default', coalesce('set default ' || (p_now ->> 'default'), 'drop default'),
                    coalesce('set default ' || (p_agreed ->> 'default'), 'drop default')),
                (3, p_agreed ? 'required' <> (p_now ? 'required'), case when p_now ? 'required' then 'set not null' else 'drop not null' end,
                    case when p_agreed ? 'required' then 'set not null' else 'drop not null' end)) as x (n, differs, forth, back)
            where x.differs;
            if p_agreed -> 'type' <> p_now -> 'type' then   -- no row is written anew
                rehearse := array[v_alter || format('drop column %I cascade', p_name),
                                  v_alter || format('add column %I %s', p_name, syncagent._shape_text('column', p_agreed - 'required'))];
            end if;
        when p_kind = 'column' then
            rehearse := '{}';
        when p_kind = 'constraint' and p_agreed is null then
            forth := array[v_forth || format('add constraint %I %s', p_name, v_new)];
            back := array[v_alter || format('drop constraint %I', p_name)];
            rehearse := array[back[1] || ' cascade'];
        when p_kind = 'constraint' and p_now is null then
            forth := array[v_forth || format('drop constraint if exists %I', p_name)];
            back := array[v_alter || format('add constraint %I %s', p_name, v_old)];
            rehearse := '{}';
        when p_kind = 'index' and p_agreed is null then
            if not p_now ? 'invalid' then
                forth := array[v_new];
            end if;
            back := array[format('drop index %I.%I', (select r.schema_name from syncagent.replicated r where r.id = p_relation), p_name)];
        when p_kind = 'index' and p_now is null then
            forth := array[format('drop index concurrently if exists %I.%I', (select r.schema_name from syncagent.replicated r where r.id = p_relation), p_name)];
            back := array[v_old];
            rehearse := '{}';
        when p_kind = 'constraint' then
            back := array[v_alter || format('drop constraint %I', p_name), v_alter || format('add constraint %I %s', p_name, v_old)];
        else
            back := array[format('drop index %I.%I', (select r.schema_name from syncagent.replicated r where r.id = p_relation), p_name), v_old];
    end case;
    rehearse := coalesce(rehearse, back);
end
$$;
comment on function syncagent._typed_sql is 'what was typed as SQL: the same for other sites (null: nothing can carry it), what takes it back (null: nothing can), and what takes it back where rows do not matter';

-- What people ask -----------------------------------------------------------------------------------------------

create view syncagent.typed_change as
select format('%I.%I', r.schema_name, r.table_name) as table_name, t.what, t.role::text as role, t.since, t.statement,
       array_to_string(q.back, '; ') as take_back, t.kind, t.name::text as name, t.epoch is not null as taken_over
from syncagent.typed_record t join syncagent.replicated r on r.id = t.relation
cross join lateral syncagent._typed_sql(t.relation, t.kind, t.name, t.agreed, t.now, t.became) as q;
comment on view syncagent.typed_change is 'what somebody has made of attached tables by hand, here and nowhere else: who and how, if an event trigger saw it, and what takes it back; taken over while a schema change carries it through the other sites';

-- Apply at the receiver: stage the bytes of a batch, then merge them in one READ COMMITTED transaction.
--
-- judge_N decides, in one statement that sees rows, versions and log alike; write_N moves the rows, and so locks
-- them; recheck_N finds in the log who wrote one of them in between. A merge that was refused takes the locks first
-- (lock_N), so that it cannot be for ever. Nothing here waits long: a lock that is not free within the session's
-- lock_timeout rolls the merge back, so the application never becomes a deadlock victim. Rows and frontier commit
-- together.
--
-- SA101 contended: try again          SA102 plain rows met metadata: ask for the exact form
-- SA103 another agent has moved on    SA104 the batch does not fit this site's tables: it waits

create function syncagent._conflict_id(p_title text, p_key uuid, p_one uuid, p_other uuid) returns uuid
    language sql stable
    as $$ select syncagent._name_uuid(pg_catalog.format('%s %s %s %s', p_title, p_key, least(p_one, p_other), greatest(p_one, p_other))) $$;
comment on function syncagent._conflict_id is 'of a table, named as in SQL: the same for every site that meets the same pair of versions';

create function syncagent._stage(p_schema name, p_table name, p_form text, p_columns name[], p_fresh boolean)
    returns table (relation integer, stage text, stage_columns text[], schema_name name, table_name name, whole boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set plan_cache_mode = force_generic_plan   -- before the size of the batch matters
    as $$
declare
    v_table syncagent.replicated;
begin
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation
    where r.schema_name = p_schema and r.table_name = p_table;
    if not found then
        raise exception 'table %.% is not attached here', quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA104', hint = format('syncagent attach %s', format('%I.%I', p_schema, p_table));
    end if;
    if p_form not in ('keys', 'aliases') and not syncagent._fits(v_table, p_columns) then
        raise exception 'table %.% has other columns here than at the origin', quote_ident(p_schema), quote_ident(p_table)
            using errcode = 'SA104',
                  detail = format('here: %s; there: %s', array_to_string(v_table.columns, ', '), array_to_string(p_columns, ', ')),
                  hint = 'columns are changed with `syncagent schema apply`; else give both sites the same, then detach and attach the table';
    end if;
    if p_fresh then
        perform syncagent._fit_stage(v_table, p_columns);
    end if;
    return query
    select v_table.id, case when p_form in ('keys', 'aliases') then 'stage_' || p_form else format('stage_%s', v_table.id) end,
           case when p_form = 'keys' then '{cut,keys}'::text[] when p_form = 'aliases' then '{cut,loser,winner}' when p_form = 'exact' then '{_stamp,_cut,_deleted}'::text[] || case when v_table.strategy <> 'lww' then '{_node,_at,_registers}'::text[] else '{}' end
                else '{}' end
           || array(select 'c' || array_position(v_table.columns, u.c) from unnest(p_columns) with ordinality as u (c, n) order by n),
           n.nspname, c.relname, p_form in ('keys', 'aliases') or p_columns @> v_table.columns
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = v_table.relation;
end
$$;
comment on function syncagent._stage is 'make the staging table of a stream, emptied if fresh; its name, its columns in the order of the stream, the table, and whether no column is lacking';

create function syncagent._stage_all(p_streams jsonb)
    returns table (relation integer, stage text, stage_columns text[], schema_name name, table_name name, whole boolean)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    perform syncagent._empty('pg_temp.stage_keys'), syncagent._empty('pg_temp.stage_aliases'), syncagent._empty('pg_temp.stage_conflicts');
    for r in
        select s.* from rows from (jsonb_to_recordset(p_streams) as (schema name, name name, form text, columns name[], fresh boolean)) with ordinality
            as s (schema, name, form, columns, fresh, n) order by s.n
    loop
        return query select s.* from syncagent._stage(r.schema, r.name, r.form, r.columns, r.fresh) as s;
    end loop;
end
$$;
comment on function syncagent._stage_all is 'the same for the streams of a batch, in their order; what comes beside the rows has an empty place, too';

create function syncagent._may_copy(p_relation integer, p_lowest uuid) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
    v_free boolean;
begin
    execute format('select not exists (select from syncagent.version_%s)', p_relation) into v_free;
    if not v_free then
        return false;
    end if;
    return not exists (select from syncagent.stride x where x.relation = p_relation)
        and not (select syncagent._deferrable(r.relation) from syncagent.replicated r where r.id = p_relation)
        and not exists (   -- whom one of them refers to may have been merged away
            select from syncagent.replicated r join pg_constraint f on f.conrelid = r.relation and f.contype = 'f'
            join syncagent.replicated p on p.relation = f.confrelid join syncagent.alias a on a.relation = p.id where r.id = p_relation)
        -- what the forest may have sealed must be marked, and only what is staged is
        and not exists (select from syncagent.forest f where f.relation = p_relation
                        and (p_lowest < syncagent._first_key(f.horizon * syncagent._width(f.bucket, true), true)) is not false)
        and not exists (
        select from syncagent.log l where l.relation = p_relation and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)));
end
$$;
comment on function syncagent._may_copy is 'whether plain rows, of keys not below the lowest, can go straight into the table: nothing here is unsettled that they could meet, and no leaf knows of their keys';

create function syncagent._foretell(p_origin integer, p_contexts jsonb, p_newest bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into syncagent.context (node, cut, context, newest)
    select p_origin, (c ->> 'cut')::bigint, c -> 'frontier', p_newest from jsonb_array_elements(p_contexts) as c
    on conflict (node, cut) do nothing;
    -- what all of this transaction comes from had seen: of a knot, that is more than each of its parts' origins had
    perform set_config('syncagent.context', syncagent._greatest(
        coalesce(nullif(current_setting('syncagent.context', true), ''), '{}')::jsonb, p_contexts -> -1 -> 'frontier')::text, true);
end
$$;
comment on function syncagent._foretell is 'make the contexts of a batch known, before it, or another part of its knot, is merged';

create function syncagent._tie(p_part integer, p_context jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_part = 1 then
        perform syncagent._empty('pg_temp.knotted');
    end if;
    perform set_config('syncagent.knot', p_part::text, true), set_config('syncagent.context', p_context::text, true);
end
$$;
comment on function syncagent._tie is 'next of a knot comes this part, the state of a site that had seen this';

create function syncagent._apply_begin(p_origin integer, p_contexts jsonb, p_newest bigint, p_after bigint, p_rows bigint, p_epoch bigint,
                                       p_relations integer[], p_lowest uuid[])
    returns table (recorded boolean, copied boolean[])
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_cut bigint;
begin
    lock table syncagent.merge_lock in exclusive mode;
    perform syncagent._plan_for(null, p_rows);
    if p_epoch <> (select s.schema_epoch from syncagent.local_site s) then
        raise exception 'the schema was changed while the rows of this batch were staged' using errcode = 'SA101';
    end if;
    select cut into v_cut from syncagent.frontier where node = p_origin;
    if coalesce(v_cut, 0) <> p_after then
        raise exception 'the frontier of node % is at cut %, the batch starts after cut %', p_origin, coalesce(v_cut, 0), p_after
            using errcode = 'SA103';
    end if;
    perform syncagent._lift(p_newest);
    perform syncagent._foretell(p_origin, p_contexts, p_newest);
    return query select syncagent._relays(p_origin),
        array(select syncagent._may_copy(u.id, u.lowest) from unnest(p_relations, p_lowest) with ordinality as u (id, lowest, n) order by u.n);
end
$$;
comment on function syncagent._apply_begin is 'first step of a merge: alone, right place, clock lifted, contexts known; whether its keys are to be recorded, and plain rows of which of these tables can go straight into them';

create function syncagent._apply_end(p_origin integer, p_after bigint, p_upto bigint, p_upto_id uuid, p_newest bigint, p_needed bigint, p_recorded boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if not p_recorded then
        lock table syncagent.member in share mode;   -- a third site that comes now comes after this merge
        if syncagent._relays(p_origin) then
            raise exception 'a third site has come, to which this batch may have to be handed on' using errcode = 'SA101';
        end if;
    end if;
    update syncagent.context set applied = pg_current_snapshot()
    where node = p_origin and cut > p_after and cut <= p_upto;
    insert into syncagent.frontier as f (node, cut, cut_id, context, newest, needed)
    select p_origin, p_upto, p_upto_id, c.context, p_newest, least(coalesce(nullif(p_needed, 0), p_upto), p_upto) from syncagent.context c where c.node = p_origin and c.cut = p_upto
    on conflict (node) do update
        set cut = excluded.cut, cut_id = excluded.cut_id, context = excluded.context, newest = greatest(f.newest, excluded.newest),
            needed = greatest(f.needed, excluded.needed),
            applied_at = clock_timestamp()
        where f.cut = p_after;
    if not found then
        raise exception 'the frontier of node % moved meanwhile', p_origin using errcode = 'SA103';
    end if;
end
$$;
comment on function syncagent._apply_end is 'last step of a merge: the frontier moves with the rows, or not at all';

create function syncagent._merge(p_relations integer[], p_origin integer, p_after bigint, p_locked boolean, p_careful boolean, p_settle boolean, p_record boolean)
    returns table (taken bigint, conflicts bigint, parked bigint, functions integer[])
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_taken bigint := 0;
    v_conflicts bigint := 0;
    v_parked bigint := 0;
    v_count bigint;
    v_id integer;
    v_seen pg_snapshot;
begin
    if exists (select from pg_temp.stage_aliases) then
        perform syncagent._take_aliases(p_origin);
    end if;
    if exists (select from pg_temp.stage_conflicts) then
        perform syncagent._take_conflicts(p_origin);   -- before this site notices them itself
    end if;
    foreach v_id in array p_relations loop
        if not syncagent._emptied('pg_temp.verdict') then
            delete from pg_temp.verdict;
        end if;
        if p_locked then
            execute format('select syncagent.lock_%s()', v_id);
        end if;
        v_seen := pg_current_snapshot();
        execute format('select syncagent.judge_%s($1, false)', v_id) into v_count using p_origin;
        v_conflicts := v_conflicts + v_count;
        if p_careful then
            v_count := syncagent._write_carefully(v_id, p_origin, p_settle);
        else
            execute format('select syncagent.write_%s($1)', v_id) into v_count using p_origin;
        end if;
        execute format('select syncagent.recheck_%s($1)', v_id) using v_seen;
        if p_record then
            execute format('select syncagent.record_%s($1, $2)', v_id) using p_origin, p_after;
        end if;
        if exists (select from syncagent.alias) then
            perform syncagent._note_astray(v_id);
        end if;
        v_taken := v_taken + v_count;
        v_parked := v_parked + (select count(*) from pg_temp.verdict d where d.reason is not null and d.kind = 'parked');
    end loop;
    if p_settle then
        perform syncagent._bring_together();
    end if;
    v_conflicts := v_conflicts + syncagent._log_yielded();
    if p_settle then
        perform syncagent._try_held();
    end if;
    return query select v_taken, v_conflicts, v_parked, array(select f.id from unnest(syncagent._with_functions()) as f (id) where f.id = any (p_relations));
end
$$;
comment on function syncagent._merge is 'merge what is staged of these tables; locked: take the row locks first; careful: park rows that break a constraint; settle: this is all that comes at once, so what collides, or misses its parent, does; record: remember what came, to hand it on. Functions: the tables for which _make_staged is to be called';

create function syncagent._skip(p_relations integer[], p_after bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_id integer;
begin
    -- Merged again it could stand against a write that was made here on top of it, and that no cut has folded. Plain
    -- rows do not say their cut: if they meet such a write, they are asked for in the exact form.
    foreach v_id in array p_relations loop
        execute format('delete from pg_temp.stage_%s where _cut <= $1', v_id) using p_after;
    end loop;
end
$$;
comment on function syncagent._skip is 'leave out what has come by another way meanwhile: rows of cuts up to this one';

create function syncagent._told(p_origin integer) returns table (node integer, cut bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    return query
    select n.node, coalesce((first.context ->> n.node::text)::bigint, 0)
    from (
        select c.context from syncagent.context c
        where c.node = p_origin and c.cut > coalesce((select f.cut from syncagent.frontier f where f.node = p_origin), 0)
        order by c.cut limit 1
    ) as first
    cross join syncagent.frontier n where n.node <> p_origin;
end
$$;
comment on function syncagent._told is 'per node, the last cut that the origin had applied when it made the first cut of the batch being merged';

create function syncagent._apply_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.stage_{id}() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
begin
    create temp table stage_{id} (_stamp uuid, _cut bigint, _deleted boolean {more_typed}, {stage_columns});
end
$$;

create function syncagent.lock_{id}() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
begin
    perform from {stage} s join {table} t on {t_eq_s} order by s._key for no key update of t nowait;
end
$$;

$sql$ $template$;

create function syncagent._judge_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.judge_{id}(p_origin integer, p_retry boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_last      record := syncagent._last_cut();
    v_site      syncagent.local_site;
    v_rows      bigint;
    v_conflicts bigint := 0;
begin
    select * into strict v_site from syncagent.local_site;
    -- Rows that meet nothing of their own kind here are simply taken; the others are compared.
    if not exists (select from syncagent.version_{id})
       and not exists (select from syncagent.log l
                       where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)))
       and not exists (select from syncagent._told(p_origin) t join syncagent.cut_keys k on k.node = t.node and k.cut > t.cut
                       where k.relation = {id} and k.implicit)
       and not exists (select from {stage} s where s._stamp is null or s._stamp <= syncagent._implicit(s._key)) then
        return 0;
    end if;
    -- Whether a few rows meet anything takes a third of comparing them.
    if (select count(*) from (select from {stage} s limit 1001) as few) <= 1000
       and not exists (
            select from {stage} s left join syncagent.version_{id} v on v.key = s._key
            left join {table} t on {t_eq_s} and (s._stamp is null or s._stamp <= syncagent._implicit(s._key))
            where v.key is not null or t.ctid is not null)
       and not exists (
            select from syncagent.log l cross join lateral unnest(l.keys) as k (key) join {stage} s on s._key = k.key
            where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)))
       and not exists (
            select from syncagent._told(p_origin) t join syncagent.cut_keys c on c.node = t.node and c.cut > t.cut
            cross join lateral unnest(c.keys) as k (key) join {stage} s on s._key = k.key where c.relation = {id} and c.implicit) then
        return 0;
    end if;
    with unfolded as materialized (
        select k.key, syncagent._stamp(max(x.tx_hlc), v_site.tail) as stamp
        from (
            select l.relation, l.keys, max(l.hlc) over (partition by l.xid) as tx_hlc
            from syncagent.log l where l.xid >= v_last.xmax or l.xid = any (v_last.xip)
        ) as x cross join lateral unnest(x.keys) as k (key)
        where x.relation = {id}
        group by k.key
    ), born as materialized (
        -- inserts, as they are here, that the origin had not seen at its oldest cut in this batch: node -> cut
        select k.key, jsonb_object_agg(k.node, k.cut) as cuts
        from (
            select u.key, c.node, max(c.cut) as cut
            from syncagent._told(p_origin) t join syncagent.cut_keys c on c.node = t.node and c.cut > t.cut
            cross join lateral unnest(c.keys) as u (key)
            where c.relation = {id} and c.implicit
            group by u.key, c.node
        ) as k join {stage} s on s._key = k.key
        group by k.key
    ), known as (
        select s.*, v.node, v.cut, v.stamp as settled, v.deleted as gone, u.stamp as fresh, b.cuts as born
        from {stage} s
        left join syncagent.version_{id} v on v.key = s._key
        left join unfolded u on u.key = s._key
        left join born b on b.key = s._key
        where v.key is not null or u.key is not null or b.key is not null
           or s._stamp is null or s._stamp <= syncagent._implicit(s._key)
    ), met as (
        select s._key, s._cut, s._deleted, s._stamp is null as plain, s.node, s.cut, s.settled, s.gone, s.fresh, s.born, t.ctid as tid,
               coalesce(s._stamp, syncagent._implicit(s._key)) as incoming,
               coalesce(greatest(s.settled, s.fresh), case when t.ctid is not null then syncagent._implicit(s._key) end) as mine
        from known s left join {table} t on {t_eq_s}
    ), judged as (
        select m.*,
               m.incoming = m.mine and m.settled is null and m.fresh is null and m.plain as twice,
               m._cut is null and (m.settled is not null or m.fresh is not null) as inexact,
               coalesce(m.gone, false) and m.tid is not null and m.fresh is not null as beneath,
               m.incoming <> m.mine and case
                   when m.fresh is not null and (m.settled is null or m.fresh >= m.settled or m.gone and m.tid is not null) then true
                   when m.settled is null then exists (
                       select from jsonb_each_text(m.born) as b (node, cut)
                       where b.cut::bigint > coalesce((theirs.context ->> b.node)::bigint, 0))
                   when m.cut is null then true
                   when m.cut <= coalesce((theirs.context ->> m.node::text)::bigint, 0) then false
                   else coalesce((ours.context ->> p_origin::text)::bigint, 0) < m._cut
               end as concurrent
        from met m
        left join syncagent.context theirs on theirs.node = p_origin and theirs.cut = m._cut
        left join syncagent.context ours on ours.node = m.node and ours.cut = m.cut
    ), compared as (
        select j.*, case when j.twice and w.here < w.there then 1 when j.twice and w.here > w.there then -1 else 0 end as larger
        from judged j
        left join {stage} s on j.twice and s._key = j._key
        cross join lateral (
            select case when j.twice then (select row({t_columns})::text collate "C" from {table} t where {t_eq_s}) end,
                   row({s_columns})::text collate "C") as w (here, there)
        where j.concurrent or j.mine >= j.incoming or j.inexact or (j.plain and j.fresh is not null)
    )
    insert into pg_temp.verdict (key, loses, conflict, kind, incoming, mine, my_node, absent, trace, unborn, sqlstate)
    select c._key,
           case when c.twice then c.larger <= 0
                when p_retry then c.mine > c.incoming
                else c.mine >= c.incoming end,
           (c.concurrent and not (c._deleted is true and c.tid is null)) or (c.twice and c.larger <> 0)
               or (p_retry and c.mine > c.incoming),
           case when p_retry and c.mine > c.incoming then 'parked'
                when c.twice then 'insert/insert'
                when c.incoming > c.mine then case when c._deleted then 'delete/update' when c.tid is null then 'update/delete' else 'update/update' end
                else case when c.tid is null then 'delete/update' when c._deleted then 'update/delete' else 'update/update' end end,
           -- under a newer tombstone an insert may live that neither had seen: what was met is the insert
           c.incoming, case when c.beneath then c.fresh else c.mine end,
           case when c.settled is null and c.fresh is null and c.born is not null
                    then (select min(b.node::integer) from jsonb_object_keys(c.born) as b (node))
                when c.settled is null or c.fresh >= c.settled or c.beneath then v_site.node else c.node end,
           c.tid is null, c.fresh is not null and (c.mine > c.incoming and c.settled is null or c.incoming > c.mine and c.plain),
           c.born is not null and (case when c.twice then c.larger > 0 else c.concurrent and c.incoming > c.mine end),
           case when c.inexact then 'SA102' end
    from compared c;
    get diagnostics v_rows = row_count;
    if v_rows = 0 then
        return 0;
    end if;
    if exists (select from pg_temp.verdict d where d.sqlstate = 'SA102') then
        raise exception 'plain rows of % met metadata', {title} using errcode = 'SA102';
    end if;
    if exists (select from pg_temp.verdict d where d.unborn) then
        -- these inserts are in a conflict now: they are not what the rows are any more
        update syncagent.cut_keys c
        set keys = array(select k.key from unnest(c.keys) as k (key)
                         where k.key not in (select d.key from pg_temp.verdict d where d.unborn) order by k.key)
        from syncagent._told(p_origin) t
        where c.node = t.node and c.cut > t.cut and c.relation = {id} and c.implicit
          and exists (select from unnest(c.keys) as k (key) where k.key in (select d.key from pg_temp.verdict d where d.unborn));
    end if;

    insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
        winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
    select syncagent._conflict_id({title}, i.key, i.mine, i.incoming), {schema_literal}, {table_literal}, i.key, i.key_text, i.kind, 'lww',
           case when i.loses then i.mine else i.incoming end, case when i.loses then i.incoming else i.mine end,
           case when i.loses then i.my_node else p_origin end, case when i.loses then p_origin else i.my_node end,
           case when i.loses then i.here else i.there end, case when i.loses then i.there else i.here end
    from (
        select d.*, {s_key_text} as key_text, case when v.key is null then to_jsonb(t.*) end as here,
               case when s._deleted is not true then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as there
        from pg_temp.verdict d
        join {stage} s on s._key = d.key
        left join {table} t on {t_eq_s}
        left join syncagent.version_{id} v on v.key = d.key and v.deleted and v.stamp = d.mine
        where d.conflict offset 0   -- an image is made once
    ) as i
    where not (i.kind = 'update/update' and i.here = i.there)   -- as when several sites settle one collision: nothing is lost
    on conflict (id) do nothing;
    get diagnostics v_conflicts = row_count;
    return v_conflicts;
end
$$;

$sql$ $template$;

create function syncagent._write_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.refused_{id}(p_of uuid default null) returns uuid
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_free uuid[];
begin
    begin
        v_free := array(select k._key from (
            select s._key from {stage} s join {table} t on {t_eq_s} where p_of is null or s._key = p_of for no key update of t skip locked) as k);
        raise exception using errcode = 'SA000';   -- and hold nothing
    exception when sqlstate 'SA000' then
        null;
    end;
    return (select min(s._key::text)::uuid from {stage} s join {table} t on {t_eq_s} where (p_of is null or s._key = p_of) and s._key <> all (v_free));
end
$$;

create function syncagent.await_{id}(p_milliseconds integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_refused uuid := syncagent.refused_{id}();
begin
    if v_refused is null then
        return false;
    end if;
    perform set_config('lock_timeout', p_milliseconds::text, true);
    perform from {stage} s join {table} t on {t_eq_s} where s._key = v_refused for no key update of t;
    return true;
end
$$;

create function syncagent.in_turn_{id}(p_milliseconds integer) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_until   timestamptz := clock_timestamp() + p_milliseconds * interval '1 ms';
    v_refused uuid := syncagent.refused_{id}();
    v_was     xid;
    v_is      xid;
begin
    if v_refused is null then
        return false;
    end if;
    loop
        select t.xmin into v_is from {stage} s join {table} t on {t_eq_s} where s._key = v_refused;
        if v_is is distinct from coalesce(v_was, v_is) or syncagent.refused_{id}(v_refused) is null then
            return true;
        elsif clock_timestamp() >= v_until then
            return false;
        end if;
        v_was := v_is;
        perform pg_sleep(0.02);
    end loop;
end
$$;

create function syncagent.unpark_{id}(p_node integer, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into pg_temp.stage_{id} (_stamp, _cut, _deleted {more_names}, {stage_names})
    select nullif(p.stamp, syncagent._implicit(p.key)), p.cut, false {more_of_parked}, (p.image::syncagent.row_{id}).*
    from syncagent.parked_row p where p.relation = {id} and p.node = p_node and p.key = any (p_keys);
end
$$;

-- Whoever wrote a key of the batch since it was judged has committed by now, and from here on our uncommitted rows are
-- in the way of the next.
create function syncagent.recheck_{id}(p_seen pg_snapshot) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
    v_keys uuid[];
begin
    select array_agg(k.key) into v_keys
    from syncagent.log l cross join lateral unnest(l.keys) as k (key)
    where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)) and not pg_visible_in_snapshot(l.xid, p_seen);
    if v_keys is not null and exists (select from {stage} s where s._key = any (v_keys)) then
        raise exception 'a row of % was written while it was merged', {title} using errcode = 'SA101';
    end if;
end
$$;

-- What came, by cut. An insert that has lost, in a conflict, is not what the row is here.
create function syncagent.record_{id}(p_origin integer, p_after bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into syncagent.cut_keys (node, cut, relation, implicit, keys)
    select p_origin, k.cut, {id}, k.implicit, array_agg(k.key order by k.key)
    from (
        select s._cut as cut, s._key as key, s._stamp is null as implicit,
               (row_number() over (partition by s._cut, s._stamp is null order by s._key) - 1) / 10000 as chunk
        from {stage} s
        where s._cut > p_after
          and not (s._stamp is null and exists (select from pg_temp.verdict d where d.key = s._key and d.loses and d.conflict))
    ) as k
    group by k.cut, k.implicit, k.chunk;
    insert into syncagent.cut_keys (node, cut, relation, implicit, keys)
    select p_origin, k.cut, {id}, true,
           case when exists (select from pg_temp.verdict d where d.loses and d.conflict)
                then array(select u.key from unnest(k.keys) as u (key)
                           where not exists (select from pg_temp.verdict d where d.key = u.key and d.loses and d.conflict) order by u.key)
                else k.keys end
    from pg_temp.stage_keys k where k.relation = {id} and k.cut > p_after;
end
$$;

create function syncagent.write_{id}(p_origin integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_staged  bigint;
    v_deleted bigint;
    v_plain   bigint;
    v_rows    bigint := 0;
    v_taken   bigint := 0;
    v_judged  boolean := exists (select from pg_temp.verdict);   -- most batches meet nothing
    v_horizon uuid := (select syncagent._first_key(f.horizon * syncagent._width(f.bucket, true), true) from syncagent.forest f where f.relation = {id});
begin
    {lift}
    -- One look at what there is to do spares the statements that would find nothing.
    select count(*), count(*) filter (where s._deleted), count(*) filter (where s._stamp is null)
    into v_staged, v_deleted, v_plain from pg_temp.stage_{id} s;
    if v_deleted > 0 and syncagent._referred({id}) then
        perform syncagent.bereave_{id}();
    end if;
    if v_deleted > 0 or {may_move} then
        delete from {table} t using {stage} s
        where {t_eq_s} and (s._deleted or {moved})
          and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
        get diagnostics v_taken = row_count;
    end if;
    if v_deleted < v_staged then
        {update}
        v_taken := v_taken + v_rows;
    end if;
    if v_rows < v_staged - v_deleted - (case when not v_judged then 0 else (
            select count(*) from pg_temp.verdict d join {stage} s on s._key = d.key where d.loses and s._deleted is not true) end) then
        insert into {table} ({columns}) overriding system value
        select {s_columns} from {stage} s left join {table} t on {t_eq_s}
        where s._deleted is not true and {t_absent}
          and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
        get diagnostics v_rows = row_count;
        v_taken := v_taken + v_rows;
    end if;

    {check_deferrable}

    if v_plain < v_staged and exists (select from syncagent.version_{id}) then
        update syncagent.version_{id} v set stamp = s._stamp, node = {version_node}, cut = {version_cut}, deleted = s._deleted {set_registers}
        from {stage} s left join pg_temp.verdict d on d.key = s._key and d.loses
        where v.key = s._key and s._stamp is not null and (d.key is null or d.reason is not null);
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select s._key, s._stamp, {version_node}, {version_cut}, s._deleted {s_key_columns}
    from {stage} s
    left join syncagent.version_{id} v on v.key = s._key
    left join pg_temp.verdict d on d.key = s._key and d.loses
    where s._stamp is not null and v.key is null and (d.key is null or d.reason is not null)
    order by s._key;
    if v_plain > 0 then
        delete from syncagent.version_{id} v using {stage} s
        where s._stamp is null and v.key = s._key and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses);
    end if;

    {forget_made}
    if v_horizon is not null then
        insert into syncagent.mark (relation, keys)
        select {id}, array_agg(m._key)
        from (select s._key, (row_number() over () - 1) / 10000 as chunk from {stage} s
              where s._key < v_horizon or not syncagent._timed(s._key)) as m
        group by m.chunk;
    end if;

    -- Forgotten is what was replaced, what was written at last, and what a retry found superseded, and recorded.
    if exists (select from syncagent.parked_row p where p.relation = {id}) then
        delete from syncagent.parked_row p using {stage} s
        where p.relation = {id} and p.key = s._key
          and not exists (
            select from pg_temp.verdict d where d.key = s._key and d.loses and (d.kind <> 'parked' or d.reason is not null));
    end if;
    if v_judged then
        -- The fold must find what was decided: that an unfolded write won by its logged stamp, or lost to an implicit row.
        insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
        select d.key, greatest(d.mine, d.incoming), case when d.loses then d.my_node else p_origin end,
               case when d.loses then null else s._cut end, d.loses and d.absent {s_key_columns}
        from pg_temp.verdict d join {stage} s on s._key = d.key
        where d.trace;
        insert into syncagent.parked_row as p (relation, key, stamp, node, cut, image, registers, shown, sqlstate, reason)
        select {id}, s._key, coalesce(s._stamp, syncagent._implicit(s._key)), {version_node}, coalesce({version_cut}, 0),
               (select (x.*)::text from (select {stage_as_table}) as x), {parked_registers}, (select to_jsonb(x.*) from (select {stage_as_table}) as x),
               d.sqlstate, d.reason
        from pg_temp.verdict d join {stage} s on s._key = d.key
        where d.reason is not null and d.kind = 'parked'
        on conflict (relation, key) do update
            set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, image = excluded.image, registers = excluded.registers, shown = excluded.shown,
                sqlstate = excluded.sqlstate, reason = excluded.reason;
    end if;
    return v_taken;
end
$$;
$sql$ $template$;

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

-- Strategy `lww-column`: every column of a row is a register of its own, within the row's life.
--
-- A row's *life* begins with its insert, or its re-insert after a delete. The version entry of such a table has, beside the
-- stamp and dot of the row's newest write, its *registers*: of each column that was changed in this life, and of the life
-- itself under the name '', the entry [stamp, node, cut]; cut is null while no cut has it. They travel with the row and are
-- dropped with it, once all their dots are stable. Two states of a row are joined: the newer life wins whole; within one
-- life a delete ends it, whatever the stamps of its columns; else each column is that of the larger stamp.
--
-- The small functions below are called for every row that meets another. They set no search_path, for such a one is not inlined and
-- costs more than what it does: their callers have set it.
--
-- tests/model/columns.py is this page as a program; docs/decisions/0017-strategies.md says what it found.

create function syncagent._registers_of(p_op "char", p_columns name[], p_stamp uuid, p_node integer, p_cut bigint) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_entry jsonb := jsonb_build_array(p_stamp, p_node, p_cut);
begin
    if p_op = 'D' then
        return null;
    elsif p_op = 'I' or p_columns is null then
        return jsonb_build_object('', v_entry);
    end if;
    -- Without a statement, and not one by one: a row may have hundreds. No name can be taken for a value: quotes in it are escaped.
    return replace(jsonb_object(p_columns::text[], array_fill(p_stamp::text, array[cardinality(p_columns)]))::text,
                   format(': "%s"', p_stamp), format(': %s', v_entry))::jsonb;
end
$$;
comment on function syncagent._registers_of is 'the registers that one log entry writes: those of its columns, or a new life';

create function syncagent._joined_registers(p_one jsonb, p_other jsonb) returns jsonb
    language plpgsql immutable strict
    as $$
declare
    v_name  text;
    v_entry jsonb;
    v_mine  jsonb;
begin
    for v_name, v_entry in select e.key, e.value from jsonb_each(p_other) as e loop
        v_mine := p_one -> v_name;
        if v_mine is null or (v_entry ->> 0)::uuid > (v_mine ->> 0)::uuid
           or v_entry -> 0 = v_mine -> 0 and v_mine ->> 2 is null then   -- of one write, the entry that knows its cut
            p_one := p_one || jsonb_build_object(v_name, v_entry);
        end if;
    end loop;
    return p_one;
end
$$;
comment on function syncagent._joined_registers is 'of each register the entry of the larger stamp';

create aggregate syncagent._joined(jsonb) (sfunc = syncagent._joined_registers, stype = jsonb);
comment on aggregate syncagent._joined(jsonb) is 'registers of several writes of one row';

create function syncagent._since(p_registers jsonb, p_life jsonb) returns jsonb
    language plpgsql immutable
    as $$
begin
    if p_life is null then
        return p_registers - '';
    end if;
    return (select coalesce(jsonb_object_agg(e.key, e.value), '{}') from jsonb_each(p_registers) as e
            where e.key <> '' and (e.value ->> 0)::uuid > (p_life ->> 0)::uuid);
end
$$;
comment on function syncagent._since is 'the columns that were written after a life began';

create function syncagent._life(p_registers jsonb) returns jsonb
    language sql immutable
    as $$ select case when p_registers ? '' then jsonb_build_object('', p_registers -> '') else '{}' end $$;
comment on function syncagent._life is 'the registers without those of columns';

create function syncagent._written(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                   p_log jsonb, p_new uuid, p_first uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                   out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    set plan_cache_mode = force_generic_plan   -- called for each of many rows, where the session plans anew at each call
    as $$
declare
    v_life   jsonb := p_log -> '';
    v_newest record;
begin
    stamp := p_stamp; node := p_node; cut := p_cut; deleted := coalesce(p_deleted, false); registers := coalesce(p_registers, '{}');
    if p_new is null then
        return;   -- nothing was written here since
    elsif not p_alive then
        if p_gone and (stamp is null or p_new >= stamp or not deleted) then
            registers := syncagent._joined_registers(syncagent._life(registers), syncagent._life(coalesce(p_log, '{}')));
            stamp := p_new; node := p_me; cut := p_next; deleted := true;
        end if;
        return;
    elsif deleted then
        if p_new <= stamp then
            return;   -- it lives under a newer tombstone, and will be written anew
        end if;
        if v_life is null or (v_life ->> 0)::uuid <= stamp then
            v_life := jsonb_build_array(p_new, p_me, p_next);
        end if;
        deleted := false; registers := '{}';
    end if;
    if v_life ->> 0 = registers -> '' ->> 0 then
        registers := registers || jsonb_build_object('', v_life);   -- known before a cut had it
    end if;
    if v_life is not null and coalesce((v_life ->> 0)::uuid > (registers -> '' ->> 0)::uuid, true) then
        registers := jsonb_build_object('', v_life) || syncagent._since(p_log, v_life);
    elsif p_first > stamp or registers = '{}' then
        registers := registers || syncagent._since(p_log, registers -> '');
    else
        registers := syncagent._joined_registers(registers, syncagent._since(p_log, registers -> ''));
    end if;
    select e.value into v_newest from jsonb_each(registers) as e order by (e.value ->> 0) collate "C" desc, e.value ->> 2 is null limit 1;
    if found and coalesce((v_newest.value ->> 0)::uuid >= stamp, true) then
        stamp := (v_newest.value ->> 0)::uuid; node := (v_newest.value ->> 1)::integer; cut := (v_newest.value ->> 2)::bigint;
    end if;
end
$$;
comment on function syncagent._written is 'the version entry of a row after the writes of a window: p_log are their registers, p_new and p_first the stamps of the last and the first, p_me and p_next what will be their dot; p_alive: the row is there, p_gone: one of them deleted it';

create function syncagent._same_life(p_mine jsonb, p_theirs jsonb, p_context jsonb, p_settled jsonb) returns boolean
    language plpgsql immutable
    as $$
begin
    -- An entry that was dropped was stable: every site has had that life, and whoever dropped it can only mean that one.
    return case
        when p_mine is null and p_theirs is null or p_mine ->> 0 = p_theirs ->> 0 then true
        when p_mine is null then (p_theirs ->> 2)::bigint <= coalesce((p_settled ->> (p_theirs ->> 1))::bigint, 0)
        when p_theirs is null then coalesce((p_mine ->> 2)::bigint <= (p_context ->> (p_mine ->> 1))::bigint, false)
        else false end;
end
$$;
comment on function syncagent._same_life is 'whether the lives of two states are one: theirs is of a site that had seen p_context, p_settled is what entries were dropped of here';

create function syncagent._unstable(p_stable jsonb) returns jsonpath
    language sql immutable
    as $$
    -- What is not of this form is not known to be stable, so it is not.
    select coalesce((
        select format('strict $.* ? (!(%1$s) || (%1$s) is unknown)', string_agg(format('@[1] == %s && @[2] <= %s', s.key, s.value), ' || '))
        from jsonb_each_text(p_stable) as s having count(*) > 0), 'strict $.*')::jsonpath
$$;
comment on function syncagent._unstable is 'the registers that some site may not have: a path, which is made once, and asked of each row without a call';

create function syncagent._sides(p_key uuid, p_registers jsonb, p_ended boolean, p_stamp uuid, p_node integer, p_cut bigint)
    returns table (name text, stamp uuid, node integer, cut bigint)
    language sql immutable
    as $$
    select e.key, (e.value ->> 0)::uuid, (e.value ->> 1)::integer, (e.value ->> 2)::bigint from jsonb_each(p_registers) as e where not p_ended
    union all
    select null, p_stamp, p_node, p_cut where p_ended
$$;
comment on function syncagent._sides is 'the writes that a state of a row is made of: its registers, or, under no name, its delete';

-- Templates ------------------------------------------------------------------------------------------------

-- The names of the columns whose bytes an update has changed: not every type has an equality.
create function syncagent._column_capture_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_columns() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set enable_nestloop = off {pinned}
    as $$
begin
    {guard}
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column}, columns)
    select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key) {odd_agg}, k.columns
    from (
        select k.*, (row_number() over (partition by k.columns) - 1) / 10000 as chunk
        from (
            select {key} as key {odd_value}, case when {o_here} then array_remove(array[{changed_columns}]::name[], null) end as columns
            from changed t left join before o on {o_eq_t}
        ) as k
        where k.columns is distinct from '{}'   -- nothing was changed
    ) as k
    group by k.columns, k.chunk;
    return null;
end
$$;
$sql$ $template$;

create function syncagent._judge_columns_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.judge_{id}(p_origin integer, p_retry boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp {pinned}
    as $$
#variable_conflict use_column
declare
    v_last      record := syncagent._last_cut();
    v_site      syncagent.local_site;
    v_context   jsonb := coalesce(nullif(current_setting('syncagent.context', true), '')::jsonb, '{}');
    v_frontier  jsonb := (select coalesce(jsonb_object_agg(f.node, f.cut), '{}') from syncagent.frontier f);
    v_part      integer := coalesce(nullif(current_setting('syncagent.knot', true), ''), '0')::integer;
    v_rows      bigint;
    v_conflicts bigint := 0;
    v_over      uuid[];
begin
    select * into strict v_site from syncagent.local_site;
    {note_part}
    if not exists (select from syncagent.version_{id})
       and not exists (select from syncagent.log l
                       where l.relation = {id} and (l.xid >= v_last.xmax or l.xid = any (v_last.xip)))
       and not exists (select from syncagent._told(p_origin) t join syncagent.cut_keys k on k.node = t.node and k.cut > t.cut
                       where k.relation = {id} and k.implicit)
       and not exists (select from {stage} s where s._stamp is null or s._stamp <= syncagent._implicit(s._key)) then
        return 0;
    end if;
    perform syncagent._empty('pg_temp.joined');
    with unfolded as materialized (
        select k.key, {unfolded_registers} as registers, bool_or(x.op = 'D') as gone,
               syncagent._stamp(max(x.tx_hlc), v_site.tail) as stamp, syncagent._stamp(min(x.tx_hlc), v_site.tail) as first
        from (
            select l.keys, l.op, l.hlc, l.tx_hlc, {log_registers} as registers
            from (select l.*, max(l.hlc) over (partition by l.xid) as tx_hlc
                  from syncagent.log l where l.xid >= v_last.xmax or l.xid = any (v_last.xip)) as l
            where l.relation = {id} offset 0
        ) as x cross join lateral unnest(x.keys) as k (key)
        group by k.key
    ), born as materialized (
        select k.key, (array_agg(k.node order by k.node))[1] as node, (array_agg(k.cut order by k.node))[1] as cut
        from (
            select u.key, c.node, max(c.cut) as cut
            from syncagent._told(p_origin) t join syncagent.cut_keys c on c.node = t.node and c.cut > t.cut
            cross join lateral unnest(c.keys) as u (key)
            where c.relation = {id} and c.implicit
            group by u.key, c.node
        ) as k join {stage} s on s._key = k.key
        group by k.key
    ), met as (
        select s._key as key, s._cut, s._stamp is null as plain, v.key is not null as entered, u.key is not null as fresh,
               b.node as born_node, b.cut as born_cut, t.ctid is not null as here, p.key is not null as waits, p.stamp as waiting, p.registers as waiting_registers,
               w.stamp as my_stamp, w.node as my_node, w.cut as my_cut, w.deleted as my_end, w.registers as mine,
               coalesce(s._stamp, syncagent._implicit(s._key)) as their_stamp, coalesce(s._node, p_origin) as their_node,
               case when s._node is null then s._cut else s._at end as their_cut, coalesce(s._deleted, false) as their_end,
               coalesce(s._registers, '{}') as theirs,
               s._stamp is null and v.key is null and u.key is null and t.ctid is not null as twice, {seen} as seen
        from {stage} s
        left join {table} t on {t_eq_s}
        left join syncagent.version_{id} v on v.key = s._key
        left join unfolded u on u.key = s._key
        left join born b on b.key = s._key
        left join syncagent.parked_row p on p.relation = {id} and p.key = s._key
        cross join lateral syncagent.{written}(v.stamp, v.node, v.cut, v.deleted, v.registers,
            u.registers, u.stamp, u.first, v_site.node, null, t.ctid is not null, u.gone) as w
        where (v.key is not null or u.key is not null or t.ctid is not null)
          and (v.key is not null or u.key is not null or b.key is not null or s._stamp is null or s._stamp <= syncagent._implicit(s._key))
    ), lives as (
        select m.*, syncagent._same_life(m.mine -> '', m.theirs -> '', v_context, v_site.compacted) as same,
               coalesce((m.mine -> '' ->> 0)::uuid, syncagent._implicit(m.key)) as my_life,
               coalesce((m.theirs -> '' ->> 0)::uuid, syncagent._implicit(m.key)) as their_life,
               {newer} as newer,
               case when m.waits then {above} end as above   -- written here on top of a row that waits
        from met m
    )
    insert into pg_temp.joined
    select l.key, l.plain, l.entered, l.fresh, l.here, l.waits, l.above, l._cut is null and (l.entered or l.fresh), l.same, l.newer,
           case when l.twice then case when w.here < w.there then 'theirs' when w.here > w.there then 'clash' else 'mine' end
                when not l.same then case when l.my_life >= l.their_life then 'mine' else 'theirs' end
                when l.my_end and l.their_end then case when l.my_stamp >= l.their_stamp then 'mine' else 'theirs' end
                when l.my_end then 'mine'
                when l.their_end then 'theirs'
                when not (l.here or l.waits) then case when l.newer = '{}' then 'mine' else 'theirs' end   -- the row is lost
                when p_retry then 'both'
                when l.newer = '{}' then 'mine'
                else 'both' end,
           coalesce(l.my_stamp, syncagent._implicit(l.key)), l.my_node, l.my_cut, l.my_end, l.mine,
           l.their_stamp, l.their_node, l.their_cut, l.their_end, l.theirs, l.born_node, l.born_cut, l.twice, l.waiting_registers, l.seen
    from lives l
    left join {stage} s on l.twice and s._key = l.key
    cross join lateral (
        select case when l.twice then (select row({t_columns})::text collate "C" from {table} t where {t_eq_s}) end,
               case when l.twice then row({s_columns})::text collate "C" end) as w (here, there);
    get diagnostics v_rows = row_count;
    if v_rows = 0 then
        return 0;
    elsif v_rows > 1000 then
        analyze pg_temp.joined;
    end if;
    if exists (select from pg_temp.joined j where j.inexact) then
        raise exception 'plain rows of % met metadata', {title} using errcode = 'SA102';
    end if;

    -- Writes that had not seen each other: of one column, of a life and its end, or of two lives.
    with pair as materialized (
        select j.*, o.name, o.stamp as our_stamp, o.node as our_node, o.cut as our_cut, t.stamp as other_stamp, t.node as other_node
        from pg_temp.joined j
        cross join lateral (
            select * from syncagent.{sides}(j.key, j.mine, j.my_end, j.my_stamp, j.my_node, j.my_cut)
            union all   -- an insert, as it is here, that the origin had not seen
            select '', syncagent._implicit(j.key), j.born_node, j.born_cut where j.born_node is not null and not j.my_end and not j.mine ? '') as o
        join lateral syncagent.{sides}(j.key, j.theirs, j.their_end, j.their_stamp, j.their_node, j.their_cut) as t
            on case when not j.same then true
                    when j.my_end then o.name is null and t.name <> ''
                    when j.their_end then t.name is null and o.name <> ''
                    else o.name = t.name and o.name <> '' {at_odds} end
        left join syncagent.frontier f on f.node = t.node
        left join syncagent.context theirs on theirs.node = t.node and theirs.cut = t.cut
        left join syncagent.context ours on ours.node = o.node and ours.cut = o.cut
        where not j.twice and not (j.my_end and j.their_end and j.same) and o.stamp <> t.stamp and t.cut > coalesce(f.cut, 0)
          and not coalesce(o.cut <= (theirs.context ->> o.node::text)::bigint, false)
          and (o.cut is null or coalesce((ours.context ->> t.node::text)::bigint, 0) < t.cut)
    ), found as (
        select p.key, p.name, case when p.outcome = 'both' then p.our_stamp > p.other_stamp else p.outcome = 'mine' end as ours,
               p.our_stamp, p.other_stamp, p.our_node, p.other_node, p.my_end, p.their_end, p.outcome = 'both' as within
        from pair p where p.outcome = 'both'
        union all
        select * from (
            -- the newest write of each site that loses: who met fewer of them has an image without the others
            select distinct on (p.key, p.loser) p.key, null::text, p.outcome = 'mine', p.our_stamp, p.other_stamp, p.our_node, p.other_node, p.my_end, p.their_end, false
            from (select p.*, case when p.outcome = 'mine' then p.other_node else p.our_node end as loser from pair p where p.outcome <> 'both') as p
            order by p.key, p.loser, p.our_stamp desc, p.other_stamp desc) as x
        union all
        select j.key, null, j.outcome = 'clash', j.my_stamp, j.their_stamp, coalesce(j.born_node, v_site.node), p_origin, false, false, false
        from pg_temp.joined j where j.twice and j.outcome <> 'mine'
        union all
        select j.key, null, true, j.my_stamp, j.their_stamp, j.my_node, j.their_node, j.my_end, false, false
        from pg_temp.joined j where p_retry and j.outcome = 'mine'
    ), unborn as (
        -- these inserts are in a conflict now: they are not what the rows are any more
        update syncagent.cut_keys c
        set keys = array(select k.key from unnest(c.keys) as k (key)
                         where k.key not in (select j.key from pg_temp.joined j where j.born_node is not null and j.outcome = 'theirs') order by k.key)
        from syncagent._told(p_origin) t
        where c.node = t.node and c.cut > t.cut and c.relation = {id} and c.implicit
          and exists (select from unnest(c.keys) as k (key)
                      where k.key in (select j.key from pg_temp.joined j where j.born_node is not null and j.outcome = 'theirs'))
    )
    insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
        winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image, columns)
    select distinct on (1) syncagent._conflict_id({title}, i.key, i.our_stamp, i.other_stamp), {schema_literal}, {table_literal}, i.key, i.key_text,
           case when p_retry and not i.within then 'parked' when i.our_stamp = i.other_stamp then 'insert/insert'
                when i.ours then k.ours || '/' || k.theirs else k.theirs || '/' || k.ours end, {strategy},
           case when i.ours then i.our_stamp else i.other_stamp end, case when i.ours then i.other_stamp else i.our_stamp end,
           case when i.ours then i.our_node else i.other_node end, case when i.ours then i.other_node else i.our_node end,
           case when i.ours then i.here else i.there end, case when i.ours then i.there else i.here end,
           array_agg(i.name::name) filter (where i.within) over (partition by i.key, i.our_stamp, i.other_stamp order by i.name rows between unbounded preceding and unbounded following)
    from (
        select d.*, {s_key_text} as key_text, case when not d.my_end then to_jsonb(t.*) end as here,
               case when not d.their_end then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as there
        from found d
        join {stage} s on s._key = d.key
        left join {table} t on {t_eq_s}
        offset 0   -- an image is made once
    ) as i
    cross join lateral (select case when i.my_end then 'delete' else 'update' end, case when i.their_end then 'delete' else 'update' end) as k (ours, theirs)
    where not (i.within and i.here -> i.name = i.there -> i.name)   -- nothing is lost
      and not (not i.within and i.our_stamp <> i.other_stamp and not i.my_end and not i.their_end and i.here = i.there)
    order by 1, i.name
    on conflict (id) do nothing;
    get diagnostics v_conflicts = row_count;

    insert into pg_temp.verdict (key, loses, conflict, kind, incoming, mine, my_node, absent, trace, unborn)
    select j.key, true, j.outcome = 'clash' or j.plain and not j.same, case when p_retry then 'parked' else 'update/update' end, j.their_stamp, j.my_stamp, j.my_node, j.my_end, false, false
    from pg_temp.joined j where j.outcome in ('mine', 'clash');

    -- The fold must find what was decided about writes that it has not seen. Those of a life that is over would count as of the new
    -- one, where their clock is ahead of its.
    v_over := array(select j.key from pg_temp.joined j where j.outcome = 'theirs' and j.fresh and not j.same);
    if v_over <> '{}' then
        perform syncagent._unlog({id}, v_over);
    end if;
    insert into syncagent.version_{id} (key, stamp, node, cut, deleted {version_key_columns})
    select j.key, j.my_stamp, j.my_node, j.my_cut, j.my_end {trace_columns}
    from pg_temp.joined j join {stage} s on s._key = j.key
    where j.outcome = 'mine' and j.fresh and not j.entered and j.my_node is not null
    on conflict do nothing;

    update pg_temp.stage_{id} x
    set _stamp = m.their_stamp, _deleted = false, _node = m.their_node, _at = m.their_cut, _registers = m.theirs
    from (select s.ctid as tid, j.* from pg_temp.stage_{id} s join pg_temp.joined j on j.key = {stage_key}
          where j.outcome = 'theirs' and j.plain and j.fresh) as m   -- as above
    where x.ctid = m.tid;
    update pg_temp.stage_{id} x
    set _stamp = (m.newest ->> 0)::uuid, _deleted = false, _node = (m.newest ->> 1)::integer, _at = (m.newest ->> 2)::bigint, _registers = m.registers {combined_columns}
    from (
        select s.ctid as tid, case when p_retry then null else j.newer end as newer, j.above, j.waits, r.*, n.newest, {t_columns_numbered} {q_columns_numbered}
        from pg_temp.stage_{id} s
        join pg_temp.joined j on j.key = {stage_key}
        left join {table} t on {t_eq_s}
        left join syncagent.parked_row p on p.relation = {id} and p.key = j.key
        cross join lateral (select (p.image::syncagent.row_{id}).*) as q
        cross join lateral {join_registers} as r
        cross join lateral (
            select e.value from (
                select e.value from {entries_of}(r.registers) as e
                union all select jsonb_build_array(j.my_stamp, j.my_node, j.my_cut) where j.my_node is not null
                union all select jsonb_build_array(j.their_stamp, j.their_node, j.their_cut)) as e
            order by (e.value ->> 0) collate "C" desc, e.value ->> 2 is null limit 1) as n (newest)
        where j.outcome = 'both'
    ) as m
    where x.ctid = m.tid;
    return v_conflicts;
end
$$;
$sql$ $template$;

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

-- Strategy `merge`: by column (52_columns), and what two sites write at once in one column is not decided, but joined.
--
-- How is chosen for each column: a `counter` keeps what each site has added, a `set` what was added and not seen by who removed it, `append` every
-- piece that was appended; of any
-- other column the writes that no other has read stay, as its *siblings*, and the table shows the newest of them, their `max` or
-- `min`, or what a function of the application makes of them (52_functions). To show is not to write: every site that has the same siblings shows the same.
--
-- Instead of one entry the register of a column has one for each node that wrote it: {"node": [stamp, cut, ...]}, the newest write,
-- and behind it
--   of a counter   since, total: what the node has added in its cuts since < .. <= cut, an unbroken stretch
--   of a set       {"element": cut of its add, ...}: what the node added and nobody has removed
--   of what is appended to   {"stamp": [cut, length], ...}: its pieces, of which the value ends with those of all nodes, in the order of
--                  their stamps; and whether it has done more than append, which replaces all that it had read
--   of a sibling   its value as text, if there are several
-- A cut is null while there is none. Two states of a column are joined by what each side has seen: what comes, its context; this
-- site, its frontier, and all that it wrote. A column of which one side has seen all is the other side's, to the byte. Else an
-- element's add, a piece, or a sibling, stays if both have it, or if the side that lacks it has not seen it; to one side's count is added what
-- that side has not seen of the other's. A stretch that goes on at its writer may have been dropped elsewhere: then it is what
-- the other side has not seen of ours that is told, for entries are dropped all together only.
--
-- The parts of a knot are states of different sites: a row that came in one has, for the next, seen what that part had (`knotted`).
--
-- tests/model/merging.py and appended.py are this page as programs; docs/decisions/0017-strategies.md says what it found.

-- Values: sets and what is appended to, as members -------------------------------------------------------------

create function syncagent._members(p_value text, p_of text) returns text[]
    language plpgsql immutable
    as $$
begin
    if p_value is null then
        return '{}';
    elsif p_of = 'array' then
        return array(select u.m from unnest(p_value::text[]) with ordinality as u (m, n) where u.m is not null order by u.n);
    elsif p_of = 'text' then
        return string_to_array(p_value, null);
    elsif jsonb_typeof(p_value::jsonb) <> 'array' then
        return array[p_value];
    end if;
    return array(select e.m::text from jsonb_array_elements(p_value::jsonb) with ordinality as e (m, n) order by e.n);
end
$$;
comment on function syncagent._members is 'the members of an array, of a JSON array, or the characters of a text, as text; one that is null is none';

create function syncagent._of_members(p_members text[], p_of text) returns text
    language sql immutable
    as $$
    select case p_of when 'array' then p_members::text when 'text' then array_to_string(p_members, '')
                     else (select coalesce(jsonb_agg(u.m::jsonb order by u.n), '[]')::text from unnest(p_members) with ordinality as u (m, n)) end
$$;
comment on function syncagent._of_members is 'the value that has these members, in this order';

create function syncagent._in_order(p_members text[]) returns text[]
    language sql immutable
    as $$
    -- the same at every site, whatever its collation; whole numbers as people count
    select array(select distinct_member.m from (select distinct u.m from unnest(p_members) as u (m)) as distinct_member
                 order by case when m ~ '^-?\d{1,18}$' then m::bigint end nulls last, m collate "C")
$$;
comment on function syncagent._in_order is 'the members of a set that was joined';

create function syncagent._set_delta(p_old text, p_new text, p_of text) returns jsonb
    language sql immutable
    as $$
    select jsonb_build_object('+', to_jsonb(array(select unnest(v.new) except select unnest(v.old))), '-', to_jsonb(array(select unnest(v.old) except select unnest(v.new))))
    from (select syncagent._members(p_old, p_of), syncagent._members(p_new, p_of)) as v (old, new)
$$;
comment on function syncagent._set_delta is 'what a write has added to a set, and removed';

create function syncagent._appended(p_old text, p_new text, p_of text) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_old text[];
    v_new text[];
begin
    if p_of = 'text' then
        return case when left(p_new, length(p_old)) collate "C" = p_old then jsonb_build_object('whole', false, 'added', length(p_new) - length(p_old))
                    else jsonb_build_object('whole', true, 'added', length(p_new)) end;
    end if;
    v_old := syncagent._members(p_old, p_of);
    v_new := syncagent._members(p_new, p_of);
    return case when v_new[:cardinality(v_old)] = v_old then jsonb_build_object('whole', false, 'added', cardinality(v_new) - cardinality(v_old))
                else jsonb_build_object('whole', true, 'added', cardinality(v_new)) end;
end
$$;
comment on function syncagent._appended is 'how much a write has appended; or, if it did something else, that it has replaced the whole, and how long that is';

create function syncagent._counted(p_value numeric) returns numeric
    language sql immutable
    as $$ select case p_value when 'NaN' then 0 else p_value end $$;
comment on function syncagent._counted is 'what a value is worth where counts are added: NaN, which nobody can add to, nothing';

create function syncagent._added_here(p_old numeric, p_new numeric, p_column name) returns numeric
    language plpgsql immutable
    as $$
begin
    if p_new = 'NaN' then
        raise exception 'column % cannot be NaN: it is a counter', quote_ident(p_column)
            using errcode = 'SA004', hint = 'write a number; of a column that must be able to hold NaN, choose another way to merge it';
    end if;
    return p_new - syncagent._counted(p_old);
end
$$;
comment on function syncagent._added_here is 'what a write adds to a counter; an error if the sum is not a number';

create function syncagent._wrapped(p_value numeric, p_how jsonb) returns numeric
    language sql immutable
    as $$
    -- Each site adds in its own order: what the type cannot hold wraps around, and is right again once the sum fits.
    select x.shifted - floor(x.shifted / x.size) * x.size + x.low
    from (select p_value - (p_how ->> 'low')::numeric, (p_how ->> 'size')::numeric, (p_how ->> 'low')::numeric) as x (shifted, size, low)
$$;
comment on function syncagent._wrapped is 'a count as its type holds it';

-- Registers ----------------------------------------------------------------------------------------------------

create function syncagent._parts_of(p_registers jsonb) returns table (key text, node integer, value jsonb)
    language sql immutable
    as $$
    select e.key, (e.value ->> 1)::integer, e.value from jsonb_each(p_registers) as e where jsonb_typeof(e.value) = 'array'
    union all
    select e.key, p.key::integer, jsonb_build_array(p.value -> 0, p.key::integer, p.value -> 1)
    from jsonb_each(p_registers) as e cross join lateral jsonb_each(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end) as p
$$;
comment on function syncagent._parts_of is 'what registers are made of, by name: each an entry [stamp, node, cut]';

create function syncagent._part_sides(p_key uuid, p_registers jsonb, p_ended boolean, p_stamp uuid, p_node integer, p_cut bigint)
    returns table (name text, stamp uuid, node integer, cut bigint)
    language sql immutable
    as $$
    select e.key, (e.value ->> 0)::uuid, e.node, (e.value ->> 2)::bigint from syncagent._parts_of(p_registers) as e where not p_ended
    union all
    select null, p_stamp, p_node, p_cut where p_ended
$$;
comment on function syncagent._part_sides is 'as _sides, where the strategy is merge';

create function syncagent._parts_stable(p_registers jsonb, p_stable jsonb, p_plan jsonb) returns boolean
    language plpgsql immutable
    as $$
begin
    return not exists (select from syncagent._parts_of(p_registers) as e
                       where not coalesce((e.value ->> 2)::bigint <= (p_stable ->> e.node::text)::bigint, false))
       and not exists (select from jsonb_each(p_registers) as e   -- siblings stay until somebody has read them, and written
                       where coalesce(p_plan -> e.key ->> 'kind', 'latest') = 'latest'
                         and (select count(*) from jsonb_object_keys(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end)) > 1);
end
$$;
comment on function syncagent._parts_stable is 'whether every site has all of these registers, and nothing is left to be settled in them';

create function syncagent._op(p_op "char", p_columns name[], p_deltas jsonb, p_stamp uuid) returns jsonb
    language sql immutable
    as $$ select jsonb_build_array(p_stamp, p_op, to_jsonb(p_columns::text[]), p_deltas) $$;
comment on function syncagent._op is 'what one log entry says of its rows';

create function syncagent._with_pieces(p_pieces jsonb, p_added jsonb, p_cut jsonb) returns jsonb
    language sql immutable
    as $$
    select p_pieces || coalesce((
        select jsonb_object_agg(a.key, jsonb_build_array(p_cut, a.value::integer + coalesce((p_pieces -> a.key ->> 1)::integer, 0))) from jsonb_each(p_added) as a), '{}')
$$;
comment on function syncagent._with_pieces is 'the pieces of a node with what it has appended since: {"stamp": length}; what a transaction appends is one piece';

create function syncagent._with_op(p_registers jsonb, p_op jsonb, p_known jsonb, p_me integer, p_next bigint) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_me     text := p_me::text;
    v_cut    jsonb := coalesce(to_jsonb(p_next), 'null');
    v_name   text;
    v_delta  jsonb;
    v_column jsonb;
    v_own    jsonb;
begin
    for v_number in 0 .. coalesce(jsonb_array_length(p_op -> 2), 0) - 1 loop   -- no statement: called for each of many rows
        v_name := p_op -> 2 ->> v_number;
        v_column := coalesce(p_registers -> v_name, '{}');
        v_own := v_column -> v_me;
        continue when (p_known -> v_name -> v_me ->> 0)::uuid >= (p_op ->> 0)::uuid;   -- known already, before a cut had it
        v_delta := p_op -> 3 -> v_name;
        case
            when v_delta is null or v_delta = 'null' then
                v_column := jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut));
            when v_delta ? 'whole' then
                if (v_delta ->> 'whole')::boolean then
                    select jsonb_object_agg(p.key, jsonb_set(p.value, '{2}', '{}')) into v_column from jsonb_each(v_column) as p;
                end if;
                v_column := coalesce(v_column, '{}') || jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut, syncagent._with_pieces(
                    coalesce(v_column -> v_me -> 2, '{}'), coalesce(v_delta -> 'pieces', jsonb_build_object(p_op ->> 0, v_delta -> 'added')), v_cut),
                    (v_delta ->> 'whole')::boolean or coalesce((v_own ->> 3)::boolean, false)));
            when jsonb_typeof(v_delta) = 'object' then
                select jsonb_object_agg(p.key, case when p.value -> 2 ?| g.gone then jsonb_set(p.value, '{2}', (p.value -> 2) - g.gone) else p.value end) into v_column
                from jsonb_each(v_column || jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut, coalesce(v_own -> 2, '{}')))) as p
                cross join (select array(select jsonb_array_elements_text(v_delta -> '-'))) as g (gone);
                v_column := jsonb_set(v_column, array[v_me, '2'], v_column -> v_me -> 2
                    || coalesce((select jsonb_object_agg(e.m, v_cut) from jsonb_array_elements_text(v_delta -> '+') as e (m)), '{}'));
            else
                v_column := v_column || jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut,
                    case when v_own is null then p_next - 1 else (v_own ->> 2)::bigint end, coalesce((v_own ->> 3)::numeric, 0) + case when jsonb_typeof(v_delta) = 'number' then v_delta::numeric else 0 end));
        end case;
        p_registers := p_registers || jsonb_build_object(v_name, v_column);
    end loop;
    return p_registers;
end
$$;
comment on function syncagent._with_op is 'registers after one write of this site, unless they had it as they were known: all writes of a transaction have one stamp';

create function syncagent._cut_parts(p_registers jsonb, p_me integer, p_next bigint) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_me   text := p_me::text;
    v_name text;
    v_own  jsonb;
begin
    for v_name, v_own in
        select e.key, e.value -> v_me from jsonb_each(p_registers) as e where jsonb_typeof(e.value) = 'object' and e.value -> v_me -> 1 = 'null'
    loop
        v_own := jsonb_set(v_own, '{1}', to_jsonb(p_next));
        if jsonb_array_length(v_own) = 4 and v_own -> 2 = 'null' and jsonb_typeof(v_own -> 3) = 'number' then
            v_own := jsonb_set(v_own, '{2}', to_jsonb(p_next - 1));
        elsif jsonb_typeof(v_own -> 2) = 'object' then
            v_own := jsonb_set(v_own, '{2}', (
                select coalesce(jsonb_object_agg(m.key, case when m.value = 'null' then to_jsonb(p_next)
                           when m.value -> 0 = 'null' then jsonb_set(m.value, '{0}', to_jsonb(p_next)) else m.value end), '{}')
                from jsonb_each(v_own -> 2) as m));
        end if;
        p_registers := jsonb_set(p_registers, array[v_name, v_me], v_own);
    end loop;
    return p_registers;
end
$$;
comment on function syncagent._cut_parts is 'registers once this site''s next cut has what it wrote';

create function syncagent._merge_written(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                         p_log jsonb, p_new uuid, p_first uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                         out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    set plan_cache_mode = force_generic_plan   -- called for each of many rows, where the session plans anew at each call
    as $$
declare
    v_life   jsonb;
    v_newest record;
    v_known  jsonb;
    v_op     jsonb;
begin
    stamp := p_stamp; node := p_node; cut := p_cut; deleted := coalesce(p_deleted, false); registers := coalesce(p_registers, '{}');
    if p_new is null then
        return;   -- nothing was written here since
    end if;
    select jsonb_build_array(o.op -> 0, p_me, p_next) into v_life from jsonb_array_elements(p_log) with ordinality as o (op, n)
    where o.op ->> 1 = 'I' or o.op ->> 1 = 'U' and o.op -> 2 = 'null' order by o.n desc limit 1;
    if not p_alive then
        if p_gone and (stamp is null or p_new >= stamp or not deleted) then
            registers := syncagent._joined_registers(syncagent._life(registers), case when v_life is null then '{}' else jsonb_build_object('', v_life) end);
            stamp := p_new; node := p_me; cut := p_next; deleted := true;
        end if;
        return;
    elsif deleted then
        if p_new <= stamp then
            return;   -- it lives under a newer tombstone, and will be written anew
        end if;
        if v_life is null or (v_life ->> 0)::uuid <= stamp then
            v_life := jsonb_build_array(p_new, p_me, p_next);
        end if;
        deleted := false; registers := '{}';
    end if;
    if v_life ->> 0 = registers -> '' ->> 0 then
        registers := registers || jsonb_build_object('', v_life);   -- known before a cut had it
    elsif v_life is not null and coalesce((v_life ->> 0)::uuid > (registers -> '' ->> 0)::uuid, true) then
        registers := jsonb_build_object('', v_life);
    end if;
    if p_next is not null then
        registers := syncagent._cut_parts(registers, p_me, p_next);   -- first: what is written on top of it goes on in the same cut
    end if;
    v_known := registers;
    for v_op in
        select o.op from jsonb_array_elements(p_log) with ordinality as o (op, n)
        where o.op ->> 1 = 'U' and o.op -> 2 <> 'null' and coalesce((o.op ->> 0)::uuid > (registers -> '' ->> 0)::uuid, true) order by o.n
    loop
        registers := syncagent._with_op(registers, v_op, v_known, p_me, p_next);
    end loop;
    select e.value into v_newest from syncagent._parts_of(registers) as e order by (e.value ->> 0) collate "C" desc, e.value ->> 2 is null limit 1;
    if found and coalesce((v_newest.value ->> 0)::uuid >= stamp, true) then
        stamp := (v_newest.value ->> 0)::uuid; node := (v_newest.value ->> 1)::integer; cut := (v_newest.value ->> 2)::bigint;
    end if;
end
$$;
comment on function syncagent._merge_written is 'as _written, where the strategy is merge: p_log are the log entries in their order, as _op says them';

-- Joining ------------------------------------------------------------------------------------------------------

create function syncagent._unseen(p_parts jsonb, p_seen jsonb, p_me integer) returns boolean
    language sql immutable
    as $$
    select exists (select from jsonb_each(p_parts) as p
                   where p.value -> 1 = 'null' or p.key::integer is distinct from p_me and (p.value ->> 1)::bigint > coalesce((p_seen ->> p.key)::bigint, 0))
$$;
comment on function syncagent._unseen is 'whether a side that has seen these cuts, and all of a node of its own, has not seen all of the writes in a column';

create function syncagent._parts_newer(p_theirs jsonb, p_mine jsonb, p_seen jsonb, p_me integer) returns text[]
    language sql immutable
    as $$
    select array(
        select e.key from jsonb_each(p_theirs) as e
        where jsonb_typeof(e.value) = 'object' and exists (
            select from jsonb_each(e.value) as p
            where p.key::integer <> p_me and (p.value ->> 1)::bigint > coalesce((p_seen ->> p.key)::bigint, 0)
              and not coalesce((p_mine -> e.key -> p.key ->> 1)::bigint >= (p.value ->> 1)::bigint, false)))
$$;
comment on function syncagent._parts_newer is 'the columns of a state that hold writes which this site has not seen';

create function syncagent._own_newer(p_mine jsonb, p_waiting jsonb, p_me integer) returns text[]
    language sql immutable
    as $$
    select array(select e.key from jsonb_each(p_mine) as e
                 where jsonb_typeof(e.value) = 'object' and (e.value -> p_me::text) is not null
                   and coalesce((e.value -> p_me::text ->> 0)::uuid > (p_waiting -> e.key -> p_me::text ->> 0)::uuid, true))
$$;
comment on function syncagent._own_newer is 'the columns that were written here on top of a row that waits';

create function syncagent._added(p_parts jsonb, p_other jsonb, p_seen jsonb, p_me integer) returns numeric
    language plpgsql immutable
    as $$
declare
    v_total numeric := 0;
    v_seen  bigint;
    r       record;
begin
    for r in select p.key, (p.value ->> 1)::bigint as cut, (p.value ->> 2)::bigint as since, (p.value ->> 3)::numeric as total, p_other -> p.key as other
             from jsonb_each(p_parts) as p
    loop
        continue when r.key::integer = p_me;
        v_seen := coalesce((p_seen ->> r.key)::bigint, 0);
        continue when r.cut <= v_seen;
        if (r.other ->> 2)::bigint = r.since then
            continue when (r.other ->> 1)::bigint >= r.cut;
            v_total := v_total + r.total - (r.other ->> 3)::numeric;
        elsif coalesce(r.since >= v_seen, true) then
            v_total := v_total + r.total;
        else
            return null;
        end if;
    end loop;
    return v_total;
end
$$;
comment on function syncagent._added is 'what one side has added to a counter and the other, which has these entries and has seen these cuts, not seen; null if that is not told';

create function syncagent._newest_parts(p_one jsonb, p_other jsonb) returns jsonb
    language sql immutable
    as $$
    select coalesce(jsonb_object_agg(k.node, case when p_one -> k.node -> 1 = 'null' or coalesce((p_one -> k.node ->> 1)::bigint >= (p_other -> k.node ->> 1)::bigint, p_one ? k.node)
                                                  then p_one -> k.node else p_other -> k.node end), '{}')
    from jsonb_object_keys(p_one || p_other) as k (node)
$$;
comment on function syncagent._newest_parts is 'of each node the newer entry';

create function syncagent._adds(p_parts jsonb) returns table (member text, node integer, cut bigint)
    language sql immutable
    as $$ select m.key, p.key::integer, m.value::text::bigint from (select x.key, x.value -> 2 as adds from jsonb_each(p_parts) as x) as p
          cross join lateral (select a.key, nullif(a.value, 'null') as value from jsonb_each(p.adds) as a) as m $$;
comment on function syncagent._adds is 'the adds of a set';

create function syncagent._join_set(p_mine jsonb, p_theirs jsonb, p_here text[], p_there text[], p_seen jsonb, p_context jsonb, p_me integer, p_returns boolean,
                                    out parts jsonb, out members text[])
    language plpgsql immutable
    as $$
#variable_conflict use_column
declare
    v_live jsonb;   -- node -> {member: cut}
begin
    with ours as materialized (select * from syncagent._adds(p_mine)), theirs as materialized (select * from syncagent._adds(p_theirs)),
    live as materialized (
        select o.* from ours o
        where o.cut is null or o.cut > coalesce((p_context ->> o.node::text)::bigint, 0) or exists (select from theirs t where (t.member, t.node, t.cut) = (o.member, o.node, o.cut))
        union
        select t.* from theirs t
        where t.node <> p_me and t.cut > coalesce((p_seen ->> t.node::text)::bigint, 0) or exists (select from ours o where (t.member, t.node, t.cut) = (o.member, o.node, o.cut))
    ), base as (
        select h.member from unnest(p_here) as h (member)
        where h.member = any (p_there)
          and (not exists (select from ours o where o.member = h.member) or not exists (select from theirs t where t.member = h.member))
        union
        select t.member from unnest(p_there) as t (member) where p_returns   -- what is here is older than all that was forgotten there
    )
    select syncagent._in_order(array(select l.member from live l union select b.member from base b)),
           (select jsonb_object_agg(n.node, n.adds) from (select l.node, jsonb_object_agg(l.member, l.cut) as adds from live l group by l.node) as n)
    into members, v_live;
    select jsonb_object_agg(p.key, jsonb_set(p.value, '{2}', coalesce(v_live -> p.key, '{}'))) into parts
    from jsonb_each(syncagent._newest_parts(p_mine, p_theirs)) as p;
end
$$;
comment on function syncagent._join_set is 'two states of a set: entries, and the members that are here and there';

create function syncagent._pieces(p_parts jsonb, p_members text[]) returns table (stamp text, node text, cut bigint, length integer, members text[])
    language sql immutable
    as $$
    select x.stamp, x.node, x.cut, x.length, p_members[cardinality(p_members) - x.rest + 1:cardinality(p_members) - x.rest + x.length]
    from (select m.key as stamp, p.key as node, (m.value ->> 0)::bigint as cut, (m.value ->> 1)::integer as length,
                 sum((m.value ->> 1)::integer) over (order by m.key collate "C" desc, p.key desc)::integer as rest
          from jsonb_each(p_parts) as p cross join lateral jsonb_each(p.value -> 2) as m) as x
$$;
comment on function syncagent._pieces is 'what was appended to a column, and nobody has replaced: a value ends with all of it, in the order of the stamps';

create function syncagent._join_pieces(p_mine jsonb, p_theirs jsonb, p_here text[], p_there text[], p_seen jsonb, p_context jsonb, p_me integer, p_returns boolean,
                                       out parts jsonb, out members text[])
    language plpgsql immutable
    as $$
#variable_conflict use_column
declare
    v_whole_here  boolean := exists (select from jsonb_each(p_mine) as p where (p.value ->> 3)::boolean);
    v_whole_there boolean := exists (select from jsonb_each(p_theirs) as p where (p.value ->> 3)::boolean);
    v_live        jsonb;   -- node -> {stamp: [cut, length]}
begin
    with ours as materialized (select * from syncagent._pieces(p_mine, p_here)), theirs as materialized (select * from syncagent._pieces(p_theirs, p_there)),
    live as materialized (   -- what the other side has seen, and lacks, was replaced, or is in its beginning by now
        select o.stamp, o.node, coalesce(o.cut, t.cut) as cut, o.length, o.members, false as dropped
        from ours o left join theirs t on (t.stamp, t.node) = (o.stamp, o.node)
        where t.stamp is not null or o.cut is null or o.cut > coalesce((p_context ->> o.node)::bigint, 0) or not (v_whole_there or p_returns)
        union all
        select t.stamp, t.node, t.cut, t.length, t.members, not n.unseen
        from theirs t cross join lateral (select t.node::integer <> p_me and t.cut > coalesce((p_seen ->> t.node)::bigint, 0) as unseen) as n
        where not exists (select from ours o where (o.stamp, o.node) = (t.stamp, t.node)) and (n.unseen or p_returns or not v_whole_here)
    )
    select array(select u.m from (
               select '' as stamp, '' as node, b.m, b.n
               from unnest(case when v_whole_here or v_whole_there then '{}'
                                when p_returns or exists (select from live l where l.dropped) then p_there[:cardinality(p_there) - (select coalesce(sum(t.length), 0)::integer from theirs t)]
                                else p_here[:cardinality(p_here) - (select coalesce(sum(o.length), 0)::integer from ours o)] end) with ordinality as b (m, n)
               union all
               select l.stamp, l.node, e.m, e.n from live l cross join lateral unnest(l.members) with ordinality as e (m, n)) as u
               order by u.stamp collate "C", u.node, u.n),
           (select jsonb_object_agg(n.node, n.pieces) from (select l.node, jsonb_object_agg(l.stamp, jsonb_build_array(l.cut, l.length)) as pieces from live l group by l.node) as n)
    into members, v_live;
    select jsonb_object_agg(p.key, jsonb_build_array(p.value -> 0, p.value -> 1, coalesce(v_live -> p.key, '{}'),
               coalesce((p_mine -> p.key ->> 3)::boolean, false) or coalesce((p_theirs -> p.key ->> 3)::boolean, false))) into parts
    from jsonb_each(syncagent._newest_parts(p_mine, p_theirs)) as p;
end
$$;
comment on function syncagent._join_pieces is 'two states of a column that is appended to: entries, and the members that are here and there';

create function syncagent._gone_on(p_waiting text, p_here text, p_registers jsonb, p_waited jsonb, p_me integer, p_of text) returns text
    language sql immutable
    as $$
    -- of a row that waits nothing is in the table but what it was before, and what was appended here since
    select case when (own.part ->> 3)::boolean and not coalesce((own.waited ->> 3)::boolean, false) then p_here
                else syncagent._of_members(syncagent._members(p_waiting, p_of) || coalesce((
                    select array_agg(e.m order by x.stamp collate "C", e.n)
                    from syncagent._pieces(p_registers, syncagent._members(p_here, p_of)) as x cross join lateral unnest(x.members) with ordinality as e (m, n)
                    where x.node = p_me::text and x.stamp > coalesce(own.waited ->> 0, '')), '{}'), p_of) end
    from (select p_registers -> p_me::text, p_waited -> p_me::text) as own (part, waited)
$$;
comment on function syncagent._gone_on is 'what is appended to, of a row that waits, with what was appended here on top of it';

create function syncagent._join_siblings(p_mine jsonb, p_theirs jsonb, p_here text, p_there text, p_seen jsonb, p_context jsonb, p_me integer) returns jsonb
    language sql immutable
    as $$
    with ours as materialized (
        select p.key, case when s.single then jsonb_build_array(p.value -> 0, p.value -> 1, p_here, p.value -> 3) else p.value end as part
        from jsonb_each(p_mine) as p cross join (select count(*) = 1 from jsonb_object_keys(p_mine)) as s (single)
    ), theirs as materialized (
        select p.key, case when s.single then jsonb_build_array(p.value -> 0, p.value -> 1, p_there, p.value -> 3) else p.value end as part
        from jsonb_each(p_theirs) as p cross join (select count(*) = 1 from jsonb_object_keys(p_theirs)) as s (single)
    )
    select jsonb_object_agg(k.key, k.part) from (
        select o.key, o.part from ours o left join theirs t on t.key = o.key
        where o.part -> 1 = 'null' or (o.part ->> 1)::bigint > coalesce((p_context ->> o.key)::bigint, 0) or o.part -> 1 = t.part -> 1
        union all
        select t.key, t.part from theirs t left join ours o on o.key = t.key
        where t.key::integer <> p_me and (t.part ->> 1)::bigint > coalesce((p_seen ->> t.key)::bigint, 0) and t.part -> 1 is distinct from o.part -> 1
    ) as k
$$;
comment on function syncagent._join_siblings is 'the siblings that stay of two states of a column, with their values';

create function syncagent._shown(p_siblings jsonb, p_how jsonb) returns text
    language plpgsql stable
    as $$
declare
    v_values text[];
    v_value  text;
begin
    v_values := array(select p.value ->> 2 from jsonb_each(p_siblings) as p order by (p.value ->> 0) collate "C");
    case p_how ->> 'kind'
        when 'max', 'min' then
            execute format('select v from unnest($1) with ordinality as u (v, n) order by %s %s nulls last, n desc limit 1', p_how ->> 'by',
                           case p_how ->> 'kind' when 'max' then 'desc' else 'asc' end) into v_value using v_values;
            return v_value;
        else
            return v_values[cardinality(v_values)];
    end case;
end
$$;
comment on function syncagent._shown is 'what the table shows of several siblings';

create function syncagent._join_columns(p_plan jsonb, p_me integer, p_mine jsonb, p_theirs jsonb, p_newer text[], p_here jsonb, p_there jsonb,
                                        p_seen jsonb, p_context jsonb, p_returns boolean,
                                        out registers jsonb, out taken text[], out shown jsonb)
    language plpgsql stable
    set plan_cache_mode = force_generic_plan   -- called for each of many rows, where the session plans anew at each call
    as $$
declare
    v_name   text;
    v_how    jsonb;
    v_mine   jsonb;
    v_theirs jsonb;
    v_value  text;
    v_amount numeric;
    v_set    record;
begin
    registers := p_mine || syncagent._joined_registers(syncagent._life(p_mine), syncagent._life(p_theirs)); taken := '{}'; shown := '{}';
    foreach v_name in array p_newer loop
        v_how := coalesce(p_plan -> v_name, '{"kind": "latest"}');
        v_mine := coalesce(p_mine -> v_name, '{}');
        v_theirs := p_theirs -> v_name;
        if not syncagent._unseen(v_mine, p_context, null) then
            taken := taken || v_name;
            case v_how ->> 'kind'   -- nothing of these that the other side has dropped is dropped here but with all the rest
                when 'counter' then v_theirs := syncagent._newest_parts(v_theirs, v_mine);
                when 'append' then
                    v_theirs := (syncagent._join_pieces(v_mine, v_theirs, syncagent._members(p_here ->> v_name, v_how ->> 'of'),
                        syncagent._members(p_there ->> v_name, v_how ->> 'of'), p_seen, p_context, p_me, p_returns)).parts;
                when 'set' then
                    select jsonb_object_agg(p.key, case when v_theirs ? p.key then p.value else jsonb_set(p.value, '{2}', (
                               select coalesce(jsonb_object_agg(m.key, m.value), '{}') from jsonb_each(p.value -> 2) as m
                               where m.key = any (syncagent._members(p_there ->> v_name, v_how ->> 'of')))) end) into v_theirs
                    from jsonb_each(v_mine || v_theirs) as p;
                else null;
            end case;
            registers := registers || jsonb_build_object(v_name, v_theirs);
            continue;
        end if;
        case v_how ->> 'kind'
            when 'counter' then
                v_amount := case when not p_returns then syncagent._counted((p_here ->> v_name)::numeric) + syncagent._added(v_theirs, v_mine, p_seen, p_me) end;
                if v_amount is null then
                    v_amount := syncagent._counted((p_there ->> v_name)::numeric) + syncagent._added(v_mine, v_theirs, p_context, null);
                end if;
                v_value := syncagent._wrapped(v_amount, v_how)::text;
                v_mine := syncagent._newest_parts(v_mine, v_theirs);
            when 'set' then
                v_set := syncagent._join_set(v_mine, v_theirs, syncagent._members(p_here ->> v_name, v_how ->> 'of'), syncagent._members(p_there ->> v_name, v_how ->> 'of'),
                                             p_seen, p_context, p_me, p_returns);
                v_mine := v_set.parts;
                v_value := syncagent._of_members(v_set.members, v_how ->> 'of');
            when 'append' then
                v_set := syncagent._join_pieces(v_mine, v_theirs, syncagent._members(p_here ->> v_name, v_how ->> 'of'), syncagent._members(p_there ->> v_name, v_how ->> 'of'),
                                                p_seen, p_context, p_me, p_returns);
                v_mine := v_set.parts;
                v_value := syncagent._of_members(v_set.members, v_how ->> 'of');
            else
                v_mine := syncagent._join_siblings(v_mine, v_theirs, p_here ->> v_name, p_there ->> v_name, p_seen, p_context, p_me);
                v_value := syncagent._shown(v_mine, v_how);
                if (select count(*) = 1 from jsonb_object_keys(v_mine)) then   -- its value is the column's
                    select jsonb_object_agg(p.key, jsonb_build_array(p.value -> 0, p.value -> 1)) into v_mine from jsonb_each(v_mine) as p;
                end if;
        end case;
        registers := registers || jsonb_build_object(v_name, v_mine);
        shown := shown || jsonb_build_object(v_name, v_value);
    end loop;
end
$$;
comment on function syncagent._join_columns is 'two states of one life of a row: its registers; columns that are taken as they came; and what others show now. p_newer: columns with writes that this site has not seen; p_here and p_there: the values as text; p_seen and p_context: what this site, and who sent the row, had seen; p_returns: this site returns, and its rows are older than what it has seen';

-- Per table ----------------------------------------------------------------------------------------------------

create function syncagent._merge_capture_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_columns() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set enable_nestloop = off {pinned}
    as $$
begin
    {guard}
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column}, columns, deltas)
    select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key) {odd_agg}, k.columns, k.deltas
    from (
        select k.*, (row_number() over (partition by k.columns, k.deltas) - 1) / 10000 as chunk
        from (
            select {key} as key {odd_value}, case when {o_here} then array_remove(array[{changed_columns}]::name[], null) end as columns,
                   case when {o_here} then {deltas} end as deltas
            from changed t left join before o on {o_eq_t}
        ) as k
        where k.columns is distinct from '{}'   -- nothing was changed
    ) as k
    group by k.columns, k.deltas, k.chunk;
    return null;
end
$$;
$sql$ $template$;

create function syncagent._merge_how(p_table regclass, p_column name, p_kind text) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_base regtype;
    v_mod  integer;
    v_of   text;
    v_size numeric;
    v_unit numeric;
begin
    if p_kind like 'function:%' then
        return '{"kind": "function"}';   -- what it is may change, or be gone: what is made of the table's functions does not
    end if;
    select syncagent._base_type(a.atttypid), case when t.typtype = 'd' then t.typtypmod else a.atttypmod end into v_base, v_mod
    from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = p_table and a.attname = p_column and not a.attisdropped;
    v_of := case when v_base = 'jsonb'::regtype then 'jsonb' when v_base in ('text'::regtype, 'varchar'::regtype) then 'text'
                 when (select t.typelem <> 0 and t.typsubscript = 'array_subscript_handler'::regproc and t.typdelim = ',' from pg_type t where t.oid = v_base) then 'array' end;
    case p_kind
        when 'counter' then
            v_size := case v_base when 'smallint'::regtype then 65536 when 'integer'::regtype then 4294967296 when 'bigint'::regtype then 18446744073709551616 end;
            if v_size is not null then
                return jsonb_build_object('kind', p_kind, 'low', -trunc(v_size / 2), 'size', v_size);
            elsif v_base = 'numeric'::regtype and v_mod >= 4 then
                v_unit := power(10::numeric, -((((v_mod - 4) & 2047) # 1024) - 1024));   -- a scale may be negative
                v_size := power(10::numeric, (v_mod - 4) >> 16 & 65535) * v_unit;
                return jsonb_build_object('kind', p_kind, 'low', v_unit - v_size, 'size', 2 * v_size - v_unit);
            end if;
        when 'set' then
            if v_of in ('array', 'jsonb') then
                return jsonb_build_object('kind', p_kind, 'of', v_of);
            end if;
        when 'append' then
            if v_of is not null then
                return jsonb_build_object('kind', p_kind, 'of', v_of);
            end if;
        when 'max', 'min' then
            if exists (select from pg_opclass o join pg_am m on m.oid = o.opcmethod and m.amname = 'btree' and o.opcdefault
                       where o.opcintype = v_base or v_base = 'varchar'::regtype and o.opcintype = 'text'::regtype)
               or (select t.typtype = 'e' from pg_type t where t.oid = v_base) then
                return jsonb_build_object('kind', p_kind, 'by', format('v::%s%s', format_type(v_base, -1),
                    case when (select t.typcollation <> 0 from pg_type t where t.oid = v_base) then ' collate "C"' else '' end));
            end if;
        when 'latest' then
            return jsonb_build_object('kind', p_kind);
        else null;
    end case;
    return null;
end
$$;
comment on function syncagent._merge_how is 'how a column is joined, as _join_columns takes it; null if its type does not go with that';

create function syncagent._merge_obstacles(p_table regclass, p_strategy text, p_merges jsonb) returns table (problem text, hint text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with m as (
        select e.key as name, e.value #>> '{}' as kind, a.attnum, a.attnotnull, a.attgenerated <> '' as generated, format_type(a.atttypid, a.atttypmod) as type,
               exists (select from pg_constraint c where c.conrelid = p_table and c.contype in ('p', 'u', 'x', 'f') and a.attnum = any (c.conkey))
               or exists (select from pg_index i where i.indrelid = p_table and (i.indisunique or i.indisexclusion) and a.attnum = any (i.indkey)) as bound
        from jsonb_each(p_merges) as e
        left join pg_attribute a on a.attrelid = p_table and a.attname = e.key and a.attnum > 0 and not a.attisdropped
    )
    select 'how its columns are merged is said, and its strategy is not merge', 'attach it with --strategy merge' from (select) as always
    where p_strategy <> 'merge' and p_merges <> '{}'
    union all
    select format('it has no column %I', m.name), 'see its columns with \d in psql' from m where m.attnum is null
    union all
    select format('column %I is computed: what it is computed from is merged, and it follows', m.name), 'leave it out' from m where m.generated
    union all
    select format('there is no way to merge a column that is called %L', m.kind), 'counter, set, append, max, min, latest, or function:SCHEMA.NAME'
    from m where m.kind not in ('counter', 'set', 'append', 'max', 'min', 'latest') and m.kind not like 'function:%'
    union all
    select format('column %I is in a key, or a unique or foreign key constraint: it cannot be %s', m.name, m.kind), 'leave it out'
    from m where m.bound and (m.kind in ('counter', 'set', 'append', 'max', 'min') or m.kind like 'function:%')
    union all
    select format('column %I: %s', m.name, f.problem), f.hint
    from m cross join lateral syncagent._merge_function(p_table, m.name::name, m.kind) as f
    where m.attnum is not null and not m.generated and m.kind like 'function:%' and f.problem is not null
    union all
    select format('column %I may be null: it cannot be %s', m.name, m.kind),
           format('update %1$s set %2$I = %3$s where %2$I is null; alter table %1$s alter column %2$I set not null', p_table, m.name,
                  case when m.kind = 'counter' then '0' when m.type = 'jsonb' then '''[]''' when m.type ~ '\[\]$' then '''{}''' else '''''' end)
    from m where m.attnotnull is false and m.kind in ('counter', 'set', 'append')
    union all
    select format('column %I is of type %s: it cannot be %s', m.name, m.type, m.kind),
           case m.kind when 'counter' then 'a counter is smallint, integer, bigint, or numeric with a scale, as numeric(12, 2)'
                       when 'set' then 'a set is an array, or jsonb' when 'append' then 'text, arrays and jsonb are appended to'
                       else 'its type has no order' end
    from m where m.attnum is not null and not m.generated and m.kind in ('counter', 'set', 'append', 'max', 'min') and syncagent._merge_how(p_table, m.name, m.kind) is null
$$;
comment on function syncagent._merge_obstacles is 'why columns of a table cannot be merged as is asked, and what mends it; no row if they can';

create function syncagent._told_again(p_registers jsonb, p_name text, p_node integer, p_cut bigint) returns jsonb
    language sql immutable
    as $$
    select case jsonb_typeof(r.part -> 2)
        when 'object' then case when jsonb_array_length(r.part) = 4 then jsonb_build_object('whole', r.part -> 3, 'pieces', (
            select coalesce(jsonb_object_agg(m.key, m.value -> 1), '{}') from jsonb_each(r.part -> 2) as m where (m.value ->> 0)::bigint > p_cut))
        else jsonb_build_object('-', '[]'::jsonb, '+', (
            select coalesce(jsonb_agg(m.key), '[]') from jsonb_each(r.part -> 2) as m where m.value::text::bigint > p_cut)) end
        when 'number' then case when (r.part ->> 2)::bigint >= p_cut then r.part -> 3 else '0' end
        else null end
    from (select p_registers -> p_name -> p_node::text as part) as r
$$;
comment on function syncagent._told_again is 'what a node wrote of a column after a cut that is undone, as the log says it: of a count only a stretch that began after it';

create function syncagent._merge_guard(p_table syncagent.replicated) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(string_agg(format('if tg_op = ''INSERT'' then perform syncagent._added_here(0, t.%1$I, %1$L) from changed t where t.%1$I = ''NaN''; end if;', a.attname), ' ' order by a.attnum), '')
    from jsonb_each_text(p_table.merges) as e join pg_attribute a on a.attrelid = p_table.relation and a.attname = e.key
    where p_table.strategy = 'merge' and e.value = 'counter' and syncagent._base_type(a.atttypid) = 'numeric'::regtype
$$;
comment on function syncagent._merge_guard is 'what refuses rows whose counters are not numbers: others cannot be added up';

create function syncagent._merge_tokens(p_table syncagent.replicated) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_plan   jsonb;
    v_tokens jsonb;
    v_count  text := 'q.c%2$s + coalesce((v.registers -> %3$L -> me.node::text ->> 3)::numeric, 0)'
                     ' - coalesce((w.registers -> %3$L -> me.node::text ->> 3)::numeric, 0)';   -- of a row that waits, with what was added here since
    v_functions text[] := array(select e.key from jsonb_each_text(p_table.merges) as e where e.value like 'function:%' order by e.key);
    v_append text  := 'syncagent._gone_on(q.c%2$s::text, t.%1$I::text, v.registers -> %3$L, w.registers -> %3$L, me.node, %5$L)';
begin
    select coalesce(jsonb_object_agg(e.key, syncagent._merge_how(p_table.relation, e.key, e.value)), '{}') into v_plan
    from jsonb_each_text(p_table.merges) as e where e.value <> 'latest';
    select jsonb_build_object(
        -- of a row that waits, and was written on since: what the write made of it
        'shipped_from', format('left join syncagent.parked_row w on w.relation = %1$s and w.key = v.key and not v.deleted'
            ' cross join lateral (select (w.image::syncagent.row_%1$s).*) as q cross join (select s.node from syncagent.local_site s) as me', p_table.id),
        'v_columns', string_agg(case when u.key is not null then case when p_table.derived then format('v.k%s', u.key) else 'v.key' end else format(
            'case when w.key is null then t.%1$I' || case when u.how ->> 'kind' = 'counter' then ' when w.key is not null then (' || v_count || ')::%4$s'
                                                          else ' when %3$L <> all (syncagent._own_newer(v.registers, w.registers, me.node)) then q.c%2$s'
                || case when u.how ->> 'kind' = 'append' then ' when w.key is not null then ' || v_append || '::%4$s' else '' end end
            || ' else t.%1$I end', u.name, u.n, u.name, format_type(syncagent._base_type(a.atttypid), -1), u.how ->> 'of') end, ', ' order by u.n),
        'seen', format('(select k.seen from pg_temp.knotted k where v_part > 1 and k.relation = %s and k.key = s._key and k.part < v_part order by k.part desc limit 1)', p_table.id),
        'plan', quote_literal(v_plan) || '::jsonb',
        'deltas', coalesce(string_agg(format('case when row(o.%1$I)::record *<> row(t.%1$I)::record then jsonb_build_object(%2$L, '
            || case u.how ->> 'kind' when 'counter' then case when syncagent._base_type(a.atttypid) = 'numeric'::regtype then 'syncagent._added_here(o.%1$I, t.%1$I, %2$L)' else 't.%1$I::numeric - o.%1$I::numeric' end when 'set' then 'syncagent._set_delta(o.%1$I::text, t.%1$I::text, %3$L)'
                                     else 'syncagent._appended(o.%1$I::text, t.%1$I::text, %3$L)' end || ') else ''{}'' end',
            u.name, u.name, u.how ->> 'of'), ' || ' order by u.n) filter (where u.how ->> 'kind' in ('counter', 'set', 'append')), 'null::jsonb'),
        'here', format('jsonb_object(array[%s]::text[], array[%s]::text[])',
            string_agg(format('%L', u.name), ', ' order by u.n) filter (where u.key is null), string_agg(format(
                case when u.how ->> 'kind' = 'counter'
                     then 'case when j.waits then (' || replace(replace(replace(v_count, 'v.registers', 'j.mine'), 'w.registers', 'j.waiting'), 'me.node', 'v_site.node') || ')::text else t.%1$I::text end'
                     else 'case when j.waits and %3$L <> all (j.above) then q.c%2$s::text'
                         || case when u.how ->> 'kind' = 'append' then ' when j.waits then ' || replace(replace(replace(v_append, 'v.registers', 'j.mine'), 'w.registers', 'j.waiting'), 'me.node', 'v_site.node') else '' end
                         || ' else t.%1$I::text end' end, u.name, u.n, u.name, '', u.how ->> 'of'), ', ' order by u.n) filter (where u.key is null)),
        'there', format('jsonb_object(array[%s]::text[], array[%s]::text[])',
            string_agg(format('%L', u.name), ', ' order by u.n) filter (where u.key is null), string_agg(format('s.c%s::text', u.n), ', ' order by u.n) filter (where u.key is null)),
        'combined_columns', coalesce(string_agg(format(', c%1$s = case when %2$L = any (m.taken) then x.c%1$s when m.shown ? %2$L then (m.shown ->> %2$L)::%3$s'
            || case when u.how ->> 'kind' = 'append' then ' when m.waits then (m.here ->> %2$L)::%3$s' when u.how ->> 'kind' = 'counter' then ' when m.waits then (m.here ->> %2$L)::numeric::%3$s' else ' when m.waits and %2$L <> all (m.above) then m.q%1$s' end
            || ' else m.t%1$s end', u.n, u.name, format_type(syncagent._base_type(a.atttypid), -1)), '' order by u.n) filter (where u.key is null), ''),
        'at_odds', format('and o.name <> all (%L::text[])', array(select e.key from jsonb_each(v_plan) as e where e.value ->> 'kind' not in ('latest', 'function'))::text)
    ) into v_tokens
    from (select u.name, u.n, v_plan -> u.name::text as how, array_position(p_table.key_columns, u.name) as key from unnest(p_table.columns) with ordinality as u (name, n)) as u
    join pg_attribute a on a.attrelid = p_table.relation and a.attname = u.name;
    return v_tokens || jsonb_build_object(
        'written', '_merge_written', 'sides', '_part_sides', 'entries_of', 'syncagent._parts_of', 'strategy', '''merge''',
        'pinned', E'\n    set datestyle = ''ISO, MDY'' set timezone = ''UTC'' set intervalstyle = ''postgres'' set extra_float_digits = 1 set bytea_output = ''hex''',
        -- behind each op what it comes to where nothing else is known, made once for all of its rows
        'entries', format('(select e.*, o.said || case when e.op = ''U'' and e.columns is not null'
                          ' then jsonb_build_array(syncagent._with_op(''{}'', o.said, ''{}'', p_node, p_cut)) else ''[]'' end as registers'
                          ' from pg_temp.window_entry e cross join lateral (select syncagent._op(e.op, e.columns, e.deltas, syncagent._stamp(e.tx_hlc, p_tail)) offset 0) as o (said)'
                          ' where e.relation = %s offset 0)', p_table.id),
        'first', 'jsonb_array_length(f.registers) = 1 and f.registers -> 0 -> 4 <> ''{}''', 'first_registers', 'f.registers -> 0 -> 4',
        'folded_registers', 'jsonb_agg(e.registers order by e.hlc)', 'unfolded_registers', 'jsonb_agg(x.registers order by x.hlc)',
        'log_registers', 'syncagent._op(l.op, l.columns, l.deltas, syncagent._stamp(l.tx_hlc, v_site.tail))',
        'newer', 'syncagent._parts_newer(m.theirs, m.mine, coalesce(m.seen, v_frontier), v_site.node)', 'above', 'syncagent._own_newer(m.mine, m.waiting_registers, v_site.node)',
        'join_registers', format('(select v.here, r.* from (select %s as here, %s as there) as v cross join lateral syncagent._join_columns(%s, v_site.node, j.mine, j.theirs,'
            ' case when p_retry then ''{}'' else j.newer end, v.here, v.there, coalesce(j.seen, v_frontier), v_context, not v_site.copied) as r)', v_tokens ->> 'here', v_tokens ->> 'there', v_tokens ->> 'plan'),
        'seen', v_tokens ->> 'seen', 'note_part', format(   -- what comes in the parts that follow meets rows that have seen what this part had
            'if v_part > 0 then insert into pg_temp.knotted select %1$s, s._key, v_part, syncagent._greatest(coalesce(%2$s, v_frontier), v_context) from (select s.*, %3$s as _key from pg_temp.stage_%1$s s) s; end if;', p_table.id, v_tokens ->> 'seen', syncagent._stage_key(p_table)),
        'all_stable', format(' and syncagent._parts_stable(v.registers, p_stable, %s)', v_tokens ->> 'plan')
            || case when v_functions <> '{}' then format(' and syncagent._are_made(%s, v.key, v.registers, %L)', p_table.id, v_functions) else '' end,
        'forget_made', case when v_functions <> '{}' then format('delete from syncagent.merge_result m using %s s where m.relation = %s and m.key = s._key;',
            format('(select s.*, %s as _key from pg_temp.stage_%s s)', syncagent._stage_key(p_table), p_table.id), p_table.id) else '' end,
        'own_versions', replace(format('(select v.key, v.deleted {keys}, r.stamp, r.node, r.cut, r.columns, r.deltas from syncagent.version_%1$s v cross join lateral ('
            'select x.stamp, x.node, x.cut, array_agg(x.name::name order by x.name) as columns,'
            ' nullif(jsonb_strip_nulls(jsonb_object_agg(x.name, syncagent._told_again(v.registers, x.name, x.node, $2))), ''{}'') as deltas'
            ' from syncagent._part_sides(v.key, v.registers, v.deleted, v.stamp, v.node, v.cut) as x where x.name is not null group by x.stamp, x.node, x.cut, x.name = '''''
            ' union all select v.stamp, v.node, v.cut, array[null::name], null where v.deleted) as r)', p_table.id), '{keys}',
            case when p_table.derived then (select string_agg(format(', v.k%s', k), '' order by k) from generate_subscripts(p_table.key_columns, 1) as k) else '' end),
        'own_deltas', 'v.deltas');
end
$$;
comment on function syncagent._merge_tokens is 'what the templates of a table are filled with where its strategy is merge';

-- What applying can run into: two rows with one value that are to become one, the policy `merge` of a unique constraint.
--
-- Of two rows that collide (53_constraints) the one of the larger key, the *loser*, is deleted, and rows that refer to it are given
-- to the *winner*: writes of the site that sees the collision. Another site may hold rows that refer to the loser and never meet
-- both. So an *alias*, loser -> winner, goes with the cut that has the delete, and is kept as long as its tombstone. Rows that refer
-- to the loser follow it: those that are here when the delete comes, and those that come later. Of two rows that would have one
-- place with the winner then, the larger key is merged into the other, too (tests/model/aliases.py).

create function syncagent._refer_by_key(p_table regclass)
    returns table (relation integer, name name, refers name, columns name[], named name[], moves boolean, derived boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select r.id, f.conname, max(a.attname::text) filter (where p.attname = k.names[1])::name, array_agg(a.attname order by u.n), array_agg(p.attname order by u.n),
           bool_or(a.attname = any (r.key_columns)), r.derived
    from syncagent._key(p_table) as k
    join pg_constraint f on f.confrelid = p_table and f.contype = 'f' and f.conparentid = 0
    join syncagent.replicated r on r.relation = f.conrelid
    cross join lateral unnest(f.conkey, f.confkey) with ordinality as u (child, parent, n)
    join pg_attribute a on a.attrelid = f.conrelid and a.attnum = u.child
    join pg_attribute p on p.attrelid = f.confrelid and p.attnum = u.parent
    group by r.id, f.oid, f.conname, k.names
    having bool_or(p.attname = k.names[1])
    order by r.id, f.conname
$$;
comment on function syncagent._refer_by_key is 'foreign keys of attached tables that refer to a table by its key: the column that names the key, all columns and what they refer to, whether they are part of the key of the table that refers, and whether that one is derived';

-- Who is merged ---------------------------------------------------------------------------------------------

create function syncagent._bury(p_relation integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_node    integer := (select s.node from syncagent.local_site s);
    v_derived boolean := (select r.derived from syncagent.replicated r where r.id = p_relation);
begin
    insert into pg_temp.yielded (relation, key, odd, op)
    select distinct on (c.loser) p_relation, c.loser, c.odd, 'D' from pg_temp.collision c where c.due order by c.loser
    on conflict (relation, key) do update set op = 'D', columns = null;
    if not v_derived then   -- nobody refers to others
        insert into syncagent.alias as a (relation, loser, winner, node)
        select distinct on (c.loser) p_relation, c.loser, c.winner, v_node from pg_temp.collision c where c.due order by c.loser, c.winner
        on conflict (relation, loser, node) do update set winner = excluded.winner, cut = null;
        insert into pg_temp.astray (relation, key) select distinct p_relation, c.loser from pg_temp.collision c where c.due;
    end if;
    update pg_temp.collision c set due = false where c.due;
end
$$;
comment on function syncagent._bury is 'losers that are gone from their table: deleted by this site, with an alias';

create function syncagent._merge_due(p_relation integer, p_tokens jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform syncagent._change(p_tokens, 'delete from {table} t using pg_temp.collision c where c.due and t.ctid = c.tid and t.tableoid = c.leaf',
        array(select c.loser from pg_temp.collision c where c.due and c.tid is not null));
    -- of one that has just come its version is entered, and an older one that is here goes
    execute syncagent._render('delete from {table} t using pg_temp.collision c where c.due and c.tid is null and {key} = c.loser', p_tokens);
    insert into pg_temp.verdict (key, loses, conflict, kind, reason)
    select distinct c.loser, true, false, 'merged', 'merged' from pg_temp.collision c where c.due and c.tid is null;
    delete from syncagent.parked_row p using pg_temp.collision c where c.due and p.relation = p_relation and p.key = c.loser;
    perform syncagent._bury(p_relation);
end
$$;
comment on function syncagent._merge_due is 'losers of collisions, staged or here, go; their conflicts are recorded already';

-- Who follows -----------------------------------------------------------------------------------------------

create function syncagent._take_aliases(p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into syncagent.alias as a (relation, loser, winner, node, cut)
    select distinct on (s.relation, s.loser) s.relation, s.loser, s.winner, p_origin, s.cut from pg_temp.stage_aliases s order by s.relation, s.loser, s.cut desc
    on conflict (relation, loser, node) do update set winner = excluded.winner, cut = excluded.cut;
    insert into pg_temp.astray (relation, key) select distinct s.relation, s.loser from pg_temp.stage_aliases s;   -- it may be gone here already
end
$$;
comment on function syncagent._take_aliases is 'keep the aliases that came with a batch: who waits for one of their losers may follow now';

create function syncagent._note_astray(p_relation integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    r        record;
begin
    for r in
        select p.id, array_position(c.columns, x.refers) as n
        from syncagent.replicated p cross join lateral syncagent._refer_by_key(p.relation) as x
        join syncagent.replicated c on c.id = x.relation
        where x.relation = p_relation and exists (select from syncagent.alias a where a.relation = p.id)
    loop
        v_tokens := coalesce(v_tokens, syncagent._tokens(p_relation));
        execute syncagent._render($sql$
            insert into pg_temp.astray (relation, key)
            select distinct {parent}, a.loser from {stage} s join syncagent.alias a on a.relation = {parent} and a.loser = s.c{n}
            where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses) $sql$,
            v_tokens || jsonb_build_object('parent', r.id, 'n', r.n));
    end loop;
end
$$;
comment on function syncagent._note_astray is 'losers to which rows refer that have just come';

create function syncagent._follow_winners() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_round integer[];
    v_id    integer;
    r       record;
begin
    perform syncagent._empty('pg_temp.collision');
    while exists (select from pg_temp.astray) loop   -- who is given to another may be merged itself
        v_round := array(select distinct a.relation from pg_temp.astray a order by 1);
        foreach v_id in array v_round loop
            perform syncagent._empty('pg_temp.heir');
            execute syncagent._render($sql$
                insert into pg_temp.heir (loser, winner)
                with recursive reach (loser, winner) as (
                    select a.loser, a.winner from syncagent.alias a where a.relation = {id} and a.loser in (select s.key from pg_temp.astray s where s.relation = {id})
                    union
                    select r.loser, a.winner from reach r join syncagent.alias a on a.relation = {id} and a.loser = r.winner
                )
                select distinct on (r.loser) r.loser, r.winner from reach r join {table} t on {key} = r.winner
                where not exists (select from {table} t where {key} = r.loser)   -- it may live again
                order by r.loser, r.winner $sql$, syncagent._tokens(v_id));
            delete from pg_temp.astray a where a.relation = v_id;
            continue when not exists (select from pg_temp.heir);
            for r in
                select x.*, t.relation as parent from syncagent.replicated t cross join lateral syncagent._refer_by_key(t.relation) as x where t.id = v_id
                order by cardinality(x.columns) desc, x.relation, x.name   -- one over more columns may have all of another
            loop
                perform syncagent._follow(r.relation, r.parent, r.name, r.refers, r.columns, r.named, r.moves);
            end loop;
        end loop;
    end loop;
end
$$;
comment on function syncagent._follow_winners is 'give rows that refer to somebody who was merged away to the one that is left: the lowest key that is here of those that the aliases lead to';

create function syncagent._follow(p_relation integer, p_parent regclass, p_name name, p_refers name, p_columns name[], p_named name[], p_moves boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table  syncagent.replicated;
    v_tokens jsonb := syncagent._tokens(p_relation);
    v_key    uuid;
begin
    select * into strict v_table from syncagent.replicated r where r.id = p_relation;
    v_tokens := v_tokens || jsonb_build_object(
        'odd_value', coalesce(nullif(v_tokens ->> 'odd_value', ''), ', null::text as odd'),
        'refers', quote_ident(p_refers), 'refers_literal', quote_literal(p_refers), 'name', quote_literal(p_name) || '::name',
        'parent', (select format('%I.%I w on w.%I = f.winner', n.nspname, c.relname, k.names[1])
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace cross join lateral syncagent._key(c.oid) as k where c.oid = p_parent),
        'set', (select string_agg(format('%I = w.%I', p_columns[n], p_named[n]), ', ') from generate_subscripts(p_columns, 1) as n),
        'given', (select format('jsonb_build_object(%s)', string_agg(format('%L, w.%I', p_columns[n], p_named[n]), ', ')) from generate_subscripts(p_columns, 1) as n));
    v_tokens := v_tokens || jsonb_build_object('followed', (
        select string_agg(case when u.c = any (p_columns) then format('w.%I as %I', p_named[array_position(p_columns, u.c)], u.c) else format('t.%I', u.c) end, ', ' order by u.n)
        from unnest(v_table.columns) with ordinality as u (c, n)));
    perform syncagent._empty('pg_temp.follower');
    perform syncagent._hold(v_tokens, '{table} t join pg_temp.heir h on t.{refers} = h.loser', case when p_moves then 'update' else 'no key update' end);
    execute syncagent._render($sql$
        insert into pg_temp.follower (key, odd, key_text, image, tid, leaf, loser, winner)
        select f.key, f.odd, f.key_text, f.image, f.tid, f.leaf, f.loser, f.winner
        from (select {key} as key, {t_key_text} as key_text, to_jsonb(t.*) as image, t.ctid as tid, t.tableoid as leaf, h.loser, h.winner {odd_value}
              from {table} t join pg_temp.heir h on t.{refers} = h.loser) as f $sql$, v_tokens);
    if not exists (select from pg_temp.follower) then
        return;
    elsif p_moves then
        perform syncagent._follow_with_key(p_relation, v_tokens);
        return;
    end if;
    perform syncagent._settle_followers(p_relation, v_tokens);
    if not syncagent._give(v_tokens, array(select f.key from pg_temp.follower f)) then
        for v_key in select f.key from pg_temp.follower f order by f.key loop   -- a constraint of this site refuses one: it stays as it is, and the conflict says so
            if not syncagent._give(v_tokens, array[v_key]) then
                perform syncagent._report_stray(v_tokens, v_key);
                delete from pg_temp.follower f where f.key = v_key;
            end if;
        end loop;
    end if;
    execute syncagent._render($sql$
        update syncagent.conflict_record c set followed = coalesce(c.followed, '[]') || n.rows
        from (select p.schema_name, p.table_name, f.loser, f.winner, jsonb_agg(jsonb_build_object('schema', {schema_literal}, 'table', {table_literal}, 'key', f.key_text,
                     'before', (select jsonb_object_agg(k, f.image -> k) from unnest($1) as k), 'after', {given})) as rows
              from pg_temp.follower f join {parent} cross join syncagent.replicated p where p.relation = $2
              group by 1, 2, 3, 4) as n
        where c.schema_name = n.schema_name and c.table_name = n.table_name and c.key = n.loser and c.other_key = n.winner
          and c.kind = 'unique' and c.strategy = 'merge' and (syncagent._settlement(c.id)).what is distinct from 'resolved' $sql$, v_tokens) using p_columns::text[], p_parent;
    insert into pg_temp.yielded as y (relation, key, odd, columns)
    select p_relation, f.key, f.odd, case when v_table.strategy <> 'lww' then p_columns end from pg_temp.follower f
    on conflict (relation, key) do update set columns = case when y.columns is not null then y.columns || excluded.columns end;   -- else it is all new
end
$$;
comment on function syncagent._follow is 'of one foreign key: rows that refer to losers refer to the winners';

create function syncagent._give(p_tokens jsonb, p_keys uuid[]) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_state text;
begin
    perform syncagent._change(p_tokens, 'update {table} t set {set} from pg_temp.follower f join {parent} where t.ctid = f.tid and t.tableoid = f.leaf and f.key = any ($1)', p_keys);
    perform syncagent._check_deferrable((p_tokens ->> 'id')::integer, p_keys);
    return true;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    return false;
end
$$;
comment on function syncagent._give is 'let these rows refer to the winner; whether no constraint refuses one';

create function syncagent._report_stray(p_tokens jsonb, p_key uuid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name,
            winning_stamp, losing_stamp, winning_node, losing_image)
        select syncagent._name_uuid(format('%s %s %s %s', {title}, f.key, f.winner, 'foreign key')), {schema_literal}, {table_literal}, f.key, f.key_text,
               'foreign key', 'merge', {name}, syncagent._stamp(syncagent._tick(), s.tail), syncagent._implicit(f.key), s.node, f.image
        from pg_temp.follower f cross join syncagent.local_site s where f.key = $1
        on conflict (id) do nothing $sql$, p_tokens) using p_key;
end
$$;
comment on function syncagent._report_stray is 'a conflict for a row that refers to somebody who is gone, and that cannot be written';

create function syncagent._settle_followers(p_relation integer, p_tokens jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    v_count  bigint;
    r        record;
begin
    for r in   -- nothing refers to a row whose key is not one uuid: it can go, too, unless something else was chosen
        select u.*, k.does from syncagent._rules(p_relation) as u join syncagent.replicated t on t.id = p_relation
        cross join lateral (select case when u.kind = 'unique' and coalesce(t.policies ->> u.name::text, 'merge') = 'merge' then 'merge' else u.policy end as does) as k
        where k.does in ('keep-both', 'merge') order by u.name
    loop
        v_tokens := p_tokens || jsonb_build_object('rule', quote_literal(r.name) || '::name', 'kind', quote_literal(r.kind), 'strategy', quote_literal(r.does),
            'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal) || syncagent._yield_tokens(p_relation, r.does, r.column_name, r.yields);
        execute syncagent._render($sql$
            with came as materialized (
                select {expressions}, t."$key" as key, t."$odd" as odd, t."$text" as key_text, t."$image" as image, t."$tid" as tid, t."$leaf" as leaf
                from (select {followed}, f.key as "$key", f.odd as "$odd", f.key_text as "$text", f.image as "$image", f.tid as "$tid", f.leaf as "$leaf"
                      from pg_temp.follower f join {table} t on t.ctid = f.tid and t.tableoid = f.leaf join {parent}) as t {predicate}
            ), here as not materialized (
                select {expressions}, t."$key" as key, t."$image" as image, {t_key_text} as key_text {odd_value}, t."$tid" as tid, t."$leaf" as leaf
                from (select t.*, {key} as "$key", to_jsonb(t.*) as "$image", t.ctid as "$tid", t.tableoid as "$leaf" from {table} t) as t {predicate}
            ), pair as (
                select x.key as loser, x.key_text, x.odd, x.image, x.tid, x.leaf, y.key as winner, y.key_text as winner_text, y.image as winning_image
                from came x join here y on {equal} where x.key > y.key and y.key not in (select f.key from pg_temp.follower f)
                union all
                select y.key, y.key_text, y.odd, y.image, y.tid, y.leaf, x.key, x.key_text, x.image
                from came x join here y on {equal} where x.key < y.key and y.key not in (select f.key from pg_temp.follower f)
                union all
                select x.key, x.key_text, x.odd, x.image, x.tid, x.leaf, y.key, y.key_text, y.image
                from came x join came y on {equal} where x.key > y.key
            )
            insert into pg_temp.collision (rule, loser, key_text, odd, losing_image, tid, leaf, winner, winner_text, winning_image, due)
            select distinct on (p.loser) {rule}, p.loser, p.key_text, p.odd, p.image, p.tid, p.leaf, p.winner, p.winner_text, p.winning_image, true
            from pair p order by p.loser, p.winner $sql$, v_tokens);
        get diagnostics v_count = row_count;
        continue when v_count = 0;
        if r.does = 'keep-both' then
            perform syncagent._yield_place(p_relation, v_tokens, r.column_name);
            continue;
        end if;
        perform syncagent._record_collisions(v_tokens, 0);
        delete from pg_temp.follower f using pg_temp.collision c where c.due and f.key = c.loser;
        perform syncagent._merge_due(p_relation, v_tokens);
    end loop;
end
$$;
comment on function syncagent._settle_followers is 'of rows that would have one place with the winner only the lowest key is left, or the others yield it, as is chosen for their constraint; where nothing can be done, what comes to one that is taken is refused';

create function syncagent._yield_place(p_relation integer, p_tokens jsonb, p_column name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_lww   boolean := (select r.strategy = 'lww' from syncagent.replicated r where r.id = p_relation);
    v_state text;
begin
    perform syncagent._record_collisions(p_tokens, 0);
    perform syncagent._change(p_tokens, $sql$
        with yielding as (
            update {table} t set {column} = {yielded}
            from pg_temp.collision c cross join lateral (select c.losing_image ->> {column_literal} as value) as f
            where c.due and c.loser = any ($1) and t.ctid = c.tid and t.tableoid = c.leaf
            returning c.loser, t.ctid as tid, t.tableoid as leaf
        ), moved as (
            update pg_temp.follower f set tid = y.tid, leaf = y.leaf from yielding y where f.key = y.loser
        )
        select from yielding $sql$, array(select c.loser from pg_temp.collision c where c.due));
    insert into pg_temp.yielded as y (relation, key, odd, columns)
    select p_relation, c.loser, c.odd, case when not v_lww then array[p_column] end from pg_temp.collision c where c.due
    on conflict (relation, key) do update set columns = case when y.columns is not null then y.columns || excluded.columns end;
    update pg_temp.collision c set due = false where c.due;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    delete from pg_temp.collision c where c.due;   -- one may not be without its value here: who comes to its place is refused
end
$$;
comment on function syncagent._yield_place is 'rows that follow, or are with the winner already, yield the value that gives them one place';

create function syncagent._follow_with_key(p_relation integer, p_tokens jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    v_key    uuid;
begin
    select p_tokens || jsonb_build_object('primary', quote_literal(c.conname))
    into strict v_tokens
    from syncagent.replicated r join pg_constraint c on c.conrelid = r.relation and c.contype = 'p' where r.id = p_relation;
    execute syncagent._render($sql$
        update pg_temp.follower g set new_key = n.key, new_text = n.key_text
        from (select t."$key", {key} as key, {t_key_text} as key_text
              from (select {followed}, f.key as "$key" from pg_temp.follower f join {table} t on t.ctid = f.tid and t.tableoid = f.leaf join {parent}) as t) as n
        where g.key = n."$key" $sql$, v_tokens);
    if not syncagent._place(p_relation, v_tokens, array(select distinct f.new_key from pg_temp.follower f)) then
        for v_key in select distinct f.new_key from pg_temp.follower f order by 1 loop   -- those of one key stay as they are, and conflicts say so
            if not syncagent._place(p_relation, v_tokens, array[v_key]) then
                perform syncagent._report_stray(v_tokens, f.key) from pg_temp.follower f where f.new_key = v_key;
            end if;
        end loop;
    end if;
end
$$;
comment on function syncagent._follow_with_key is 'rows whose key names the loser are deleted, and written again under a key that names the winner, unless there is one';

create function syncagent._place(p_relation integer, p_tokens jsonb, p_keys uuid[]) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_state text;
begin
    -- Where there is a row of that name, that one stays.
    execute syncagent._render($sql$
        with gone as materialized (
            delete from {table} t using pg_temp.follower f where f.new_key = any ($1) and t.ctid = f.tid and t.tableoid = f.leaf
            returning {t_columns}, f.key as "$key", f.new_key as "$new", f.winner as "$winner"
        ), placed as (
            insert into {table} as t ({columns}) overriding system value
            select {t_columns} from (
                select distinct on (t."$new") {followed} from gone t cross join lateral (select t."$winner" as winner) as f join {parent}
                order by t."$new", t."$key") as t
            on conflict ({key_names}) do nothing
            returning {key} as key {odd_value}
        ), logged as (
            insert into pg_temp.yielded as y (relation, key, odd, op)
            select {id}, p.key, p.odd, 'U' from placed p
            on conflict (relation, key) do update set op = 'U', columns = null
            returning key
        )
        update pg_temp.follower f set placed = f.key = (
            select min(o.key::text)::uuid from pg_temp.follower o where o.new_key = f.new_key)
        from gone g where g."$key" = f.key and f.new_key in (select l.key from logged l) $sql$, p_tokens) using p_keys;
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name, other_key, other_key_text,
            winning_stamp, losing_stamp, winning_node, winning_image, losing_image)
        select syncagent._name_uuid(format('%s %s %s %s', {title}, f.new_key, f.key, {primary})), {schema_literal}, {table_literal}, f.key, f.key_text,
               'unique', 'merge', {primary}::name, f.new_key, f.new_text,
               syncagent._stamp(syncagent._tick(), s.tail), coalesce(v.stamp, syncagent._implicit(f.key)), s.node, to_jsonb(t.*), f.image
        from pg_temp.follower f cross join syncagent.local_site s
        left join syncagent.version_{id} v on v.key = f.key
        left join {table} t on t.{refers} = f.winner and {key} = f.new_key
        where not f.placed and f.new_key = any ($1)
        on conflict (id) do nothing $sql$, p_tokens) using p_keys;
    insert into pg_temp.yielded as y (relation, key, odd, op)
    select p_relation, f.key, f.odd, 'D' from pg_temp.follower f where f.new_key = any (p_keys)
    on conflict (relation, key) do update set op = 'D', columns = null;
    return true;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    return false;
end
$$;
comment on function syncagent._place is 'let these rows go, and write them under these keys; whether no constraint refuses one';

create function syncagent._merge_restored(p_relation integer, p_keys uuid[]) returns uuid[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    v_merged uuid[] := '{}';
    v_count  bigint;
    r        record;
begin
    for r in select * from syncagent._rules(p_relation) as u where u.policy = 'merge' order by u.name loop
        v_tokens := coalesce(v_tokens, syncagent._bereft_tokens(p_relation)) || jsonb_build_object('rule', quote_literal(r.name) || '::name',
            'kind', quote_literal(r.kind), 'strategy', quote_literal('merge'), 'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal,
            'column_literal', 'null::text', 'yielded_image', 'null::jsonb');
        execute syncagent._render($sql$
            with back as materialized (
                select {expressions}, t."$key" as key, {t_key_text} as key_text, t."$image" as image
                from (select t.*, x.key as "$key", to_jsonb(t.*) as "$image" from pg_temp.bereft x cross join lateral {row} as t
                      where x.relation = {id} and x.key = any ($1)) as t {predicate}
            ), here as not materialized (
                select {expressions}, t."$key" as key, t."$image" as image, {t_key_text} as key_text, t."$tid" as tid, t."$leaf" as leaf
                from (select t.*, {key} as "$key", to_jsonb(t.*) as "$image", t.ctid as "$tid", t.tableoid as "$leaf" from {table} t) as t {predicate}
            ), pair as (
                select x.key as loser, x.key_text, x.image, null::tid as tid, null::oid as leaf, y.key as winner, y.key_text as winner_text, y.image as winning_image
                from back x join here y on {equal} where x.key > y.key
                union all
                select y.key, y.key_text, y.image, y.tid, y.leaf, x.key, x.key_text, x.image
                from back x join here y on {equal} where x.key < y.key
                union all
                select x.key, x.key_text, x.image, null, null, y.key, y.key_text, y.image
                from back x join back y on {equal} where x.key > y.key
            )
            insert into pg_temp.collision (rule, loser, key_text, losing_image, tid, leaf, winner, winner_text, winning_image, due)
            select distinct on (p.loser) {rule}, p.loser, p.key_text, p.image, p.tid, p.leaf, p.winner, p.winner_text, p.winning_image, true
            from pair p order by p.loser, p.winner $sql$, v_tokens) using p_keys;
        get diagnostics v_count = row_count;
        continue when v_count = 0;
        perform syncagent._record_collisions(v_tokens, 0);
        v_merged := v_merged || array(select c.loser from pg_temp.collision c where c.due and c.loser = any (p_keys));
        perform syncagent._merge_due(p_relation, v_tokens);
    end loop;
    return v_merged;
end
$$;
comment on function syncagent._merge_restored is 'of rows that are to come back those that are merged into one that is here; those that are here, and are to be merged into one that comes back, go';

-- What applying can run into: rows that break a constraint here.
--
-- A constraint holds at every site, and no site can refuse what another has committed. Two rows with one value of a unique
-- or exclusion constraint are a *collision*: of the two the row of the larger key yields, everywhere, whichever came first.
-- Its value is taken from it, which is a write of the site that sees the collision: logged, cut and shipped. Others may do
-- the same at once; what they write is equal. Only what remains once all of a batch, or knot, is there is a collision:
-- values pass between rows inside of it (tests/model/unique.py shows what each of these rules prevents).
--
-- A row that breaks anything else is *parked*: it waits here, alone, and is tried again after every batch. So does one that collides
-- while the row that would yield refers to one that is not here: written by this site it could win against a delete of it, and
-- nobody need have the other one any more (tests/model/references.py --unique).

create function syncagent._room(p_type oid, p_modifier integer) returns integer
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with recursive up (type, modifier) as (
        select p_type, p_modifier
        union all
        select t.typbasetype, t.typtypmod from up join pg_type t on t.oid = up.type where t.typbasetype <> 0
    ) select coalesce(min(modifier - 4) filter (where modifier >= 4), 10485760) from up
$$;
comment on function syncagent._room is 'how many characters a column of text holds';

create function syncagent._marked(p_value text, p_room integer, p_key uuid) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select left(coalesce(p_value, ''), p_room - 13) || '~' || left(md5(p_key::text), 12) $$;
comment on function syncagent._marked is 'what a text becomes in a row that yields it: what there is room for, and a mark that the key alone decides';

create function syncagent._merge_problem(p_table regclass, p_index regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case
        when not i.indisunique or i.indisexclusion then 'it is no unique constraint'
        when not k.uuid then 'the key of its table is not one uuid column'
        else (
            select case
                when k.names[1] <> all (x.named) and not x.within
                    then format('%s of %s refers to %s, of which the other row has other values', x.name, x.child, array_to_string(x.named, ', '))
                when x.moves and exists (select from pg_constraint g join syncagent.replicated o on o.relation = g.conrelid where g.confrelid = x.child and g.contype = 'f')
                    then format('%s is part of the key of %s, to which other rows refer', x.name, x.child) end
            from (
                select f.conname as name, r.relation as child, array_agg(p.attname order by p.attname) as named,
                       bool_and(p.attnum = any (i.indkey::smallint[])) as within, bool_or(a.attname = any (r.key_columns)) as moves
                from pg_constraint f join syncagent.replicated r on r.relation = f.conrelid
                cross join lateral unnest(f.conkey, f.confkey) as u (child, parent)
                join pg_attribute a on a.attrelid = f.conrelid and a.attnum = u.child
                join pg_attribute p on p.attrelid = f.confrelid and p.attnum = u.parent
                where f.confrelid = p_table and f.contype = 'f' and f.conparentid = 0
                group by f.oid, f.conname, r.relation
            ) as x
            where k.names[1] <> all (x.named) and not x.within
               or x.moves and exists (select from pg_constraint g join syncagent.replicated o on o.relation = g.conrelid where g.confrelid = x.child and g.contype = 'f')
            order by x.name limit 1) end
    from pg_index i cross join lateral syncagent._key(p_table) as k where i.indexrelid = p_index
$$;
comment on function syncagent._merge_problem is 'why two rows that collide cannot become one, or null';

create function syncagent._over_merged(p_table regclass, p_index regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (
        select from pg_index i join pg_constraint f on f.conrelid = i.indrelid and f.contype = 'f' and f.conkey && i.indkey::smallint[]
        join syncagent.replicated p on p.relation = f.confrelid
        where i.indexrelid = p_index and i.indrelid = p_table
          and exists (select from jsonb_each_text(p.policies) as c where c.value = 'merge'))
$$;
comment on function syncagent._over_merged is 'whether a unique constraint has a column that refers to rows that are merged: what it keeps apart can become one then';

create function syncagent._bereaved(p_relation integer) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(string_agg(format('(%s and not exists (select from %I.%I p where %s))', k.given, n.nspname, c.relname, k.mine)
        || case when f.confrelid = f.conrelid then format(' and (%s) is not true', k.itself) else '' end
        || case when x.refers is null then '' else format(
            ' and not exists (with recursive reach (winner) as ('
            'select a.winner from syncagent.alias a where a.relation = %1$s and a.loser = t.%2$I union '
            'select a.winner from reach r join syncagent.alias a on a.relation = %1$s and a.loser = r.winner) '
            'select from reach r join %3$I.%4$I p on p.%5$I = r.winner)', q.id, x.refers, n.nspname, c.relname, q.key_columns[1]) end, ' or '), 'false')
    from syncagent.replicated r
    join pg_constraint f on f.conrelid = r.relation and f.contype = 'f' and f.conparentid = 0
    join syncagent.replicated q on q.relation = f.confrelid
    join pg_class c on c.oid = f.confrelid join pg_namespace n on n.oid = c.relnamespace
    left join lateral (
        select m.refers from syncagent._refer_by_key(q.relation) as m
        where m.relation = r.id and m.name = f.conname and exists (select from syncagent.alias a where a.relation = q.id)) as x on true
    cross join lateral (
        select string_agg(format('t.%I is not null', a.attname), ' and ' order by k) as given,
               string_agg(format('p.%I operator(%I.%s) t.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k) as mine,
               string_agg(format('t.%I operator(%I.%s) t.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k) as itself
        from generate_series(1, cardinality(f.conkey)) k
        join pg_attribute p on p.attrelid = f.confrelid and p.attnum = f.confkey[k]
        join pg_attribute a on a.attrelid = f.conrelid and a.attnum = f.conkey[k]
        join pg_operator o on o.oid = f.conpfeqop[k] join pg_namespace s on s.oid = o.oprnamespace
    ) as k
    where r.id = p_relation and coalesce(r.policies ->> f.conname::text, 'restore-parent') <> 'report'   -- else nobody brings it back
$$;
comment on function syncagent._bereaved is 'whether a row t of an attached table refers to one that is not here, nor whom it was merged into: what this site writes of it could win against a delete, and nobody else need have that row';

create function syncagent._rules(p_relation integer)
    returns table (name name, kind text, policy text, is_deferrable boolean, predicate text, expressions text, equal text,
                   column_name name, yields text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select c.relname, case when i.indisexclusion then 'exclusion' else 'unique' end,
           case when coalesce(t.policies ->> c.relname::text, case when m.over then 'merge' end) = 'merge' and m.problem is null then 'merge'
                when y.attname is null or t.policies ->> c.relname::text = 'merge' then 'report' else coalesce(t.policies ->> c.relname::text, 'keep-both') end,
           exists (select from pg_constraint d where d.conindid = i.indexrelid and d.condeferrable),
           coalesce(' where ' || pg_get_expr(i.indpred, i.indrelid, true), ''),
           (select string_agg(format(case when l.oid is null then '%s as e%s' else '(%s) collate %3$I.%4$I as e%2$s' end,
                                     pg_get_indexdef(i.indexrelid, k, true), k, s.nspname, l.collname), ', ' order by k)
            from generate_series(1, i.indnkeyatts) k
            left join pg_collation l on l.oid = nullif(i.indcollation[k - 1], 'pg_catalog.default'::regcollation) left join pg_namespace s on s.oid = l.collnamespace),
           (select string_agg(format(case when w.nulls_too then '(x.e%1$s operator(%2$I.%3$s) y.e%1$s or x.e%1$s is null and y.e%1$s is null)'
                                          else 'x.e%1$s operator(%2$I.%3$s) y.e%1$s' end, k, n.nspname, o.oprname), ' and ' order by k)
            from generate_series(1, i.indnkeyatts) k
            join pg_operator o on o.oid = coalesce(x.conexclop[k], (
                select a.amopopr from pg_opclass b join pg_amop a on a.amopfamily = b.opcfamily and a.amopstrategy = 3
                    and a.amoplefttype = b.opcintype and a.amoprighttype = b.opcintype
                where b.oid = i.indclass[k - 1]))
            join pg_namespace n on n.oid = o.oprnamespace),
           y.attname, y.yields
    from syncagent.replicated t join pg_index i on i.indrelid = t.relation join pg_class c on c.oid = i.indexrelid
    cross join lateral (select coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) as nulls_too) as w   -- from 15 on
    cross join lateral (select syncagent._merge_problem(i.indrelid::regclass, i.indexrelid::regclass) as problem, syncagent._over_merged(i.indrelid::regclass, i.indexrelid::regclass) as over) as m
    left join pg_constraint x on x.conindid = i.indexrelid and x.conexclop is not null
    left join lateral (
        select a.attname, case when v.nullable then 'null' else 'suffix' end as yields
        from (
            select u.n, u.o from unnest(i.indkey::smallint[]) with ordinality as u (n, o) where u.n > 0 and u.o <= i.indnkeyatts
            union all
            select d.refobjsubid, 0 from pg_depend d   -- inside an expression
            where i.indexprs is not null and i.indpred is null and d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
              and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid > 0
        ) as k
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.n
        join pg_type b on b.oid = a.atttypid
        cross join lateral (
            select not (a.attnotnull or b.typnotnull or w.nulls_too) as nullable,
                   not i.indisexclusion and syncagent._base_type(a.atttypid) in ('text'::regtype, 'varchar'::regtype)
                   and syncagent._room(a.atttypid, a.atttypmod) >= 24 as spelled
        ) as v
        where (v.nullable or v.spelled) and a.attname <> all (t.key_columns) and a.attgenerated = '' and a.attidentity = ''
          and not exists (
            select from pg_constraint f
            where f.contype = 'f' and (f.conrelid = i.indrelid and a.attnum = any (f.conkey) or f.confrelid = i.indrelid and a.attnum = any (f.confkey)))
        order by k.o desc, a.attnum desc limit 1
    ) as y on true
    where t.id = p_relation and (i.indisunique or i.indisexclusion) and not i.indisprimary
      and i.indislive and i.indisready and (i.indisvalid or c.relkind <> 'I')   -- of a partitioned table: on all partitions
      -- what does not travel (a generated column, or one that was added since) is not there to be compared before it is written
      and not exists (
        select from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid
          and a.attname <> all (t.columns))
      and not exists (
        select from unnest(i.indkey::smallint[]) as u (n) join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.n
        where a.attname <> all (t.columns))
$$;
comment on function syncagent._rules is 'unique and exclusion constraints of an attached table that can be compared before rows are written: what they compare, what is done about a collision, and which column of the row that yields becomes null or gets a suffix; one of a foreign key, or of the key, is left alone';

create function syncagent._record_collisions(p_tokens jsonb, p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
    v_me   syncagent.local_site;
begin
    select * into strict v_me from syncagent.local_site;
    execute syncagent._render($sql$
        with unfolded as materialized (
            select k.key, syncagent._stamp(max(x.tx_hlc), $1) as stamp
            from (select l.relation, l.keys, max(l.hlc) over (partition by l.xid) as tx_hlc
                  from syncagent.log l where l.xid >= $3 or l.xid = any ($4)) as x cross join lateral unnest(x.keys) as k (key)
            where x.relation = {id} group by k.key
        ), known as (
            select k.key, coalesce(greatest(v.stamp, u.stamp), syncagent._implicit(k.key)) as stamp,
                   case when u.stamp is not null and (v.stamp is null or u.stamp >= v.stamp) then $2
                        else coalesce(v.node, (select e.node from syncagent.cut_keys e
                                               where e.relation = {id} and e.implicit and k.key = any (e.keys) limit 1)) end as node
            from (select c.loser as key from pg_temp.collision c where c.due and c.losing_stamp is null
                  union select c.winner from pg_temp.collision c where c.due and c.winning_stamp is null) as k
            left join syncagent.version_{id} v on v.key = k.key left join unfolded u on u.key = k.key
        )
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name, other_key, other_key_text,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image, yielded)
        select syncagent._name_uuid(format('%s %s %s %s %s', {title}, c.rule, c.winner, c.loser, coalesce(c.losing_stamp, l.stamp))),
               {schema_literal}, {table_literal}, c.loser, c.key_text, {kind}, {strategy}, c.rule, c.winner, c.winner_text,
               coalesce(c.winning_stamp, w.stamp), coalesce(c.losing_stamp, l.stamp),
               case when c.winning_stamp is null then w.node else $5 end, case when c.losing_stamp is null then l.node else $5 end,
               c.winning_image, c.losing_image, {yielded_image}
        from pg_temp.collision c cross join lateral (select c.losing_image ->> {column_literal} as value) as f
        left join known l on l.key = c.loser left join known w on w.key = c.winner
        where c.due
        on conflict (id) do nothing
        $sql$, p_tokens) using v_me.tail, v_me.node, v_last.xmax, v_last.xip, p_origin;
end
$$;
comment on function syncagent._record_collisions is 'a conflict for each collision that is due, with both rows';

create function syncagent._yield_tokens(p_relation integer, p_policy text, p_column name, p_yields text) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when p_policy = 'keep-both' then (
        select k.tokens || jsonb_build_object('yielded_image', syncagent._render('jsonb_build_object({column_literal}, {yielded})', k.tokens))
        from syncagent.replicated r join pg_attribute a on a.attrelid = r.relation and a.attname = p_column
        cross join lateral (select jsonb_build_object('column', quote_ident(p_column), 'column_literal', quote_literal(p_column) || '::text',
            'stage_column', 'c' || array_position(r.columns, p_column),
            'yielded', case p_yields when 'null' then 'null' else format('syncagent._marked(f.value::text, %s, c.loser)', syncagent._room(a.atttypid, a.atttypmod)) end) as tokens) as k
        where r.id = p_relation)
    else '{"column_literal": "null::text", "yielded_image": "null::jsonb"}' end
$$;
comment on function syncagent._yield_tokens is 'how the row of a collision that yields does so; of one that is merged there is nothing to say';

create function syncagent._put_off(p_relation integer, p_tokens jsonb, p_merged boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_free uuid[];
    r      record;
begin
    execute syncagent._render($sql$
        select array(select k.key from (
            select {key} as key from {table} t where {key} in (select c.loser from pg_temp.collision c where c.due) for update of t skip locked) as k) $sql$, p_tokens)
        into v_free;
    update pg_temp.collision c set held = c.winner where c.due and c.tid is not null and c.loser <> all (v_free);
    for r in select x.relation, x.refers from syncagent.replicated t cross join lateral syncagent._refer_by_key(t.relation) as x where t.id = p_relation and p_merged loop
        execute syncagent._render($sql$
            with free as materialized (
                select t.tableoid as leaf, t.ctid as tid from {table} t where t.{refers} in (select c.loser from pg_temp.collision c where c.due) for update of t skip locked
            )
            update pg_temp.collision c set held = case when c.tid is null then c.loser else c.winner end
            from {table} t where c.due and t.{refers} = c.loser and (t.tableoid, t.ctid) not in (select f.leaf, f.tid from free f) $sql$,
            syncagent._tokens(r.relation) || jsonb_build_object('refers', quote_ident(r.refers)));
    end loop;
end
$$;
comment on function syncagent._put_off is 'of collisions that are due hold those back of which the row that yields, or one that would follow, is written by others';

create function syncagent._hold_back(p_state text, p_reason text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_left bigint;
begin
    insert into pg_temp.verdict (key, loses, conflict, kind, sqlstate, reason)
    select distinct c.held, true, false, 'parked', p_state, p_reason
    from pg_temp.collision c where c.held is not null;
    delete from pg_temp.collision c using pg_temp.collision h where c.due and h.held in (c.held, c.loser, c.winner);
    select count(*) into v_left from pg_temp.collision c where c.due;
    return v_left;
end
$$;
comment on function syncagent._hold_back is 'rows that came, and collide with one that may not be written, or are it, are to wait, parked; how many collisions are left';

create function syncagent._settle_collisions(p_relation integer, p_origin integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_tokens  jsonb;
    v_settled bigint := 0;
    v_count   bigint;
    r         record;
begin
    select * into strict v_table from syncagent.replicated where id = p_relation;
    v_tokens := syncagent._tokens(p_relation);
    v_tokens := v_tokens || (   -- most tables refer to nothing
        select jsonb_build_object('bereaved', b.bereaved, 'losing_row', case when b.bereaved = 'false' then ''
            else format('cross join lateral jsonb_populate_record(null::%s, p.losing_image) as t', v_tokens ->> 'table') end)
        from (select syncagent._bereaved(p_relation) as bereaved) as b);
    if v_tokens ->> 'odd_value' = '' then
        v_tokens := v_tokens || jsonb_build_object('odd_value', ', null::text as odd');
    end if;
    for r in select * from syncagent._rules(p_relation) as u where u.policy in ('keep-both', 'merge') order by u.name loop
        v_tokens := v_tokens || jsonb_build_object('rule', quote_literal(r.name) || '::name', 'kind', quote_literal(r.kind),
            'strategy', quote_literal(r.policy), 'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal)
            || syncagent._yield_tokens(p_relation, r.policy, r.column_name, r.yields);

        -- Which rows collide: one that came with one that is here and stays as it is, or with another that came.
        execute syncagent._render($sql$
            with incoming as materialized (
                select {expressions}, t."$key" as key, t."$stamp" as stamp, t."$image" as image, {t_key_text} as key_text {odd_value}
                from (select {stage_as_table}, s._key as "$key", coalesce(s._stamp, syncagent._implicit(s._key)) as "$stamp",
                             (select to_jsonb(x.*) from (select {stage_as_table}) as x) as "$image"
                      from {stage} s
                      where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses)) as t {predicate}
            ), here as not materialized (
                select {expressions}, t."$key" as key, t."$image" as image, {t_key_text} as key_text {odd_value}, t."$tid" as tid, t."$leaf" as leaf
                from (select t.*, {key} as "$key", to_jsonb(t.*) as "$image", t.ctid as "$tid", t.tableoid as "$leaf" from {table} t) as t {predicate}
            ), pair as (
                select x.key as came, x.key as loser, x.key_text, x.odd, x.stamp as losing_stamp, x.image as losing_image, null::tid as tid, null::oid as leaf,
                       y.key as winner, y.key_text as winner_text, null::uuid as winning_stamp, y.image as winning_image
                from incoming x join here y on {equal} where x.key > y.key and y.key not in (select i.key from {elsewhere} i)
                union all
                select x.key, y.key, y.key_text, y.odd, null, y.image, y.tid, y.leaf, x.key, x.key_text, x.stamp, x.image
                from incoming x join here y on {equal} where x.key < y.key and y.key not in (select i.key from {elsewhere} i)
                union all
                select x.key, x.key, x.key_text, x.odd, x.stamp, x.image, null, null, y.key, y.key_text, y.stamp, y.image
                from incoming x join incoming y on {equal} where x.key > y.key
            )
            insert into pg_temp.collision (rule, loser, key_text, odd, losing_stamp, losing_image, tid, leaf, winner, winner_text, winning_stamp, winning_image, due, held)
            select distinct on (p.loser) {rule}, p.loser, p.key_text, p.odd, p.losing_stamp, p.losing_image, p.tid, p.leaf,
                   p.winner, p.winner_text, p.winning_stamp, p.winning_image, true, case when {bereaved} then p.came end
            from pair p {losing_row} where not exists (select from pg_temp.collision c where c.rule = {rule} and c.loser = p.loser)
            order by p.loser, p.winner
            $sql$, v_tokens || jsonb_build_object('elsewhere', syncagent._render($sql$(
                -- rows that will not be what they are here: the batch has, or a parked version is, something newer
                select s._key as key from {stage} s where s._deleted is true
                    or not exists (select from pg_temp.verdict d where d.key = s._key and d.loses)
                union all select p.key from syncagent.parked_row p where p.relation = {id})$sql$, v_tokens)));
        get diagnostics v_count = row_count;
        v_settled := v_settled + v_count;
        if exists (select from pg_temp.collision c where c.held is not null) then
            v_count := syncagent._hold_back('23503', format('another row has the value of %s, and the one that would yield refers to a row that is not here', r.name));
        end if;
        if v_count > 0 and current_setting('syncagent.put_off', true) = 'on' then
            perform syncagent._put_off(p_relation, v_tokens, r.policy = 'merge');
            v_count := syncagent._hold_back('55P03', format('another row has the value of %s, and others are writing that one, or one that refers to it', r.name));
        end if;
        continue when v_count = 0;

        perform syncagent._record_collisions(v_tokens, p_origin);
        if r.policy = 'merge' then
            perform syncagent._merge_due(p_relation, v_tokens);
            continue;
        end if;
        execute syncagent._render($sql$
            update pg_temp.stage_{id} s set {stage_column} = {yielded}
            from pg_temp.collision c
            join (select s.ctid as tid, {stage_key} as key, s.{stage_column} as value from pg_temp.stage_{id} s) as f on f.key = c.loser
            where c.due and c.tid is null and s.ctid = f.tid
            $sql$, v_tokens || jsonb_build_object('stage_key', syncagent._stage_key(v_table)));
        perform syncagent._change(v_tokens, $sql$
            update {table} t set {column} = {yielded}
            from pg_temp.collision c cross join lateral (select c.losing_image ->> {column_literal} as value) as f
            where c.due and t.ctid = c.tid and t.tableoid = c.leaf
            $sql$, array(select c.loser from pg_temp.collision c where c.due and c.tid is not null));
        insert into pg_temp.yielded as y (relation, key, odd, columns)
        select distinct on (c.loser) p_relation, c.loser, c.odd, case when v_table.strategy <> 'lww' then array[r.column_name] end from pg_temp.collision c where c.due order by c.loser
        on conflict (relation, key) do update set columns = y.columns || excluded.columns;
        update pg_temp.collision c set due = false where c.due;
    end loop;
    return v_settled;
end
$$;
comment on function syncagent._settle_collisions is 'take from rows that yield, staged or here, the value that another one has; recorded as conflicts; returns how many';

create function syncagent._log_yielded() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_rows bigint;
begin
    if not exists (select from pg_temp.yielded) then
        return 0;
    end if;
    insert into syncagent.log (xid, relation, op, hlc, keys, odd, columns)
    select pg_current_xact_id(), y.relation, y.op, syncagent._tick(), array_agg(y.key), case when count(y.odd) > 0 then array_agg(y.odd) end, y.columns
    from (select y.*, (row_number() over (partition by y.relation, y.op, y.columns order by y.key) - 1) / 10000 as chunk from pg_temp.yielded y) as y
    group by y.relation, y.op, y.columns, y.chunk;
    select count(*) into v_rows from pg_temp.yielded;
    perform syncagent._empty('pg_temp.yielded');
    return v_rows;
end
$$;
comment on function syncagent._log_yielded is 'rows that have yielded are written by this site: the next cut ships them; returns how many';

create function syncagent._deferrable(p_table regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select exists (select from pg_constraint c where c.conrelid = p_table and c.contype in ('u', 'x') and c.condeferrable) $$;
comment on function syncagent._deferrable is 'whether a table has constraints that the server does not check while a batch is applied';

create function syncagent._check_deferrable(p_relation integer, p_keys uuid[] default null) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_found boolean;
    r       record;
begin
    -- The server checks these by triggers, and those do not fire while a batch is applied.
    for r in select * from syncagent._rules(p_relation) as u where u.is_deferrable loop
        execute (select syncagent._render($sql$
            select exists (
                select from (select {expressions}, t."$key" as key from {came} as t {predicate}) as x
                join (select {expressions}, t."$key" as key from (select t.*, {key} as "$key" from {table} t) as t {predicate}) as y on {equal}
                where x.key <> y.key)
            $sql$, k.tokens || jsonb_build_object('predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal,
                'came', syncagent._render(case when p_keys is null then '(select t.*, s._key as "$key" from {stage} s join {table} t on {t_eq_s})'
                    else '(select t.*, {key} as "$key" from {table} t where {key} = any ($1))' end, k.tokens)))
            from (select syncagent._tokens(p_relation) as tokens) as k) into v_found using p_keys;
        if v_found then
            if r.kind = 'unique' then
                raise unique_violation using message = format('another row has the value of %s', r.name), constraint = r.name;
            end if;
            raise exclusion_violation using message = format('another row has the value of %s', r.name), constraint = r.name;
        end if;
    end loop;
end
$$;
comment on function syncagent._check_deferrable is 'raise what a deferrable unique or exclusion constraint would say of the rows that came, or of these';

-- Parked rows -----------------------------------------------------------------------------------------------

create function syncagent._parked_groups() returns table (relation integer, node integer, keys uuid[], stuck uuid[])
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select p.relation, p.node, array_agg(p.key),
           -- those that collide with a row that is here: one of them may be what keeps the others from yielding
           coalesce(case when count(*) > 1 then (array_agg(p.key order by random()) filter (where p.sqlstate in ('23505', '23P01')))[:20] end, '{}')
    from syncagent.parked_row p
    join syncagent.replicated t on t.id = p.relation join pg_class c on c.oid = t.relation
    group by 1, 2 order by 1, 2
$$;
comment on function syncagent._parked_groups is 'parked rows of each table and origin, which are tried together, and some that are then to be tried alone';

create function syncagent._retry(p_relation integer, p_node integer, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_seen pg_snapshot;
begin
    perform syncagent._empty('pg_temp.verdict');
    perform syncagent._fit_stage(r, r.columns) from syncagent.replicated r where r.id = p_relation;
    execute format('select syncagent.unpark_%s($1, $2)', p_relation) using p_node, p_keys;
    v_seen := pg_current_snapshot();
    execute format('select syncagent.judge_%s($1, true)', p_relation) using p_node;
    perform syncagent._write_carefully(p_relation, p_node, true);
    execute format('select syncagent.recheck_%s($1)', p_relation) using v_seen;
    if exists (select from syncagent.alias) then
        perform syncagent._note_astray(p_relation);
    end if;
    perform syncagent._bring_together();
    perform syncagent._log_yielded();
    execute format('truncate pg_temp.stage_%s', p_relation);
end
$$;
comment on function syncagent._retry is 'try parked rows of one table and origin again, together';

create function syncagent._try_held() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in
        select p.relation, p.node, array_agg(p.key) as keys
        from syncagent.parked_row p join syncagent.replicated t on t.id = p.relation join pg_class c on c.oid = t.relation
        where p.sqlstate in ('23503', '55P03') group by 1, 2 order by 1, 2
    loop
        perform set_config('syncagent.knot', '', true), set_config('syncagent.context', '', true),   -- these are of other cuts
            set_config('syncagent.put_off', 'on', true);
        begin
            perform syncagent._retry(r.relation, r.node, r.keys);
        exception when sqlstate 'SA101' or lock_not_available then
            null;   -- others are at one of the rows: after this batch again
        end;
    end loop;
end
$$;
comment on function syncagent._try_held is 'once all is there that comes at once: rows that wait for others are tried again, and come with them';

create function syncagent._may_park(p_state text) returns boolean
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select left(p_state, 2) in ('22', '23', '38', '39', 'P0') or p_state = '42883' $$;
comment on function syncagent._may_park is 'whether an error is one row''s doing: it breaks a constraint, or a function that a CHECK calls raises or does not find what it calls';

create function syncagent._write_carefully(p_relation integer, p_origin integer, p_settle boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_count bigint;
    v_state text;
    v_said  text;
    v_constraint text;
    v_parked bigint;
    -- until this site is a member its rows are of several moments: one value may be at two rows that never had it at once
    v_settle boolean := p_settle and not (select s.joining from syncagent.local_site s);
begin
    loop
        begin
            execute format('select syncagent.write_%s($1)', p_relation) into v_count using p_origin;
            return v_count;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate, v_said = message_text, v_constraint = constraint_name;
            if not syncagent._may_park(v_state) then
                raise;
            end if;
            if exists (select from syncagent.replicated t cross join lateral syncagent._nodes(t.relation) as x (node)
                       join pg_constraint c on c.conrelid = x.node
                       where t.id = p_relation and c.contype = 'p' and c.conname = v_constraint) then
                raise exception 'a row with a key of the batch appeared meanwhile' using errcode = 'SA101';
            end if;
        end;
        if v_settle then
            v_count := syncagent._write_settled(p_relation, p_origin);
            if v_count is not null then
                return v_count;
            end if;
            v_settle := false;   -- one that cannot yield keeps the others from it: each is tried alone once it is parked
        end if;
        -- Rows that collide with rows outside the batch first: exact, whatever passes between rows inside it.
        continue when syncagent._park_collisions(p_relation) > 0;
        select count(*) into v_parked from pg_temp.verdict d where d.reason is not null;
        perform syncagent._park_breakers(p_relation, p_origin);
        if v_parked = (select count(*) from pg_temp.verdict d where d.reason is not null) then
            raise exception 'the batch cannot be written, and no row of it is at fault: %', v_said using errcode = 'SA104';
        end if;
    end loop;
end
$$;
comment on function syncagent._write_carefully is 'write_N, settling collisions, or parking the rows that a constraint refuses; ends because every round parks at least one, or it is given up';

create function syncagent._write_settled(p_relation integer, p_origin integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_count bigint;
    v_state text;
begin
    perform syncagent._empty('pg_temp.collision');
    loop
        if syncagent._settle_collisions(p_relation, p_origin) = 0 then
            raise exception using errcode = 'SA000';   -- what is still refused is something else
        end if;
        begin
            execute format('select syncagent.write_%s($1)', p_relation) into v_count using p_origin;
            return v_count;
        exception when unique_violation or exclusion_violation then
            null;   -- no row yields twice to one constraint, so this ends
        end;
    end loop;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if v_state = 'SA000' or syncagent._may_park(v_state) then
        return null;
    end if;
    raise;
end
$$;
comment on function syncagent._write_settled is 'write_N once all collisions are settled, or null, and nothing has happened';

create function syncagent._park_collisions(p_relation integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_relation);
    v_parked bigint := 0;
    v_count  bigint;
    v_state  text;
    r        record;
begin
    for r in select * from syncagent._rules(p_relation) as u order by u.name loop
        begin
            execute syncagent._render($sql$
                insert into pg_temp.verdict (key, loses, conflict, kind, incoming, sqlstate, reason)
                select distinct on (x.key) x.key, true, false, 'parked', x.stamp, {state}, format('another row has the value of %s', {name})
                from (select {expressions}, t."$key" as key, t."$stamp" as stamp from (
                        select {stage_as_table}, s._key as "$key", s._stamp as "$stamp" from {stage} s
                        where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses)
                     ) as t {predicate}) as x
                join (select {expressions}, t."$key" as key from (select t.*, {key} as "$key" from {table} t) as t {predicate}) as y on {equal}
                where x.key <> y.key
                  and not exists (
                    select from {stage} s where s._key = y.key
                    and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses))
                $sql$,
                v_tokens || jsonb_build_object('name', quote_literal(r.name), 'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal,
                    'state', case r.kind when 'unique' then quote_literal('23505') else quote_literal('23P01') end));
            get diagnostics v_count = row_count;
            v_parked := v_parked + v_count;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate;
            if not syncagent._may_park(v_state) then
                raise;
            end if;
            continue;   -- a value that the index's own expression refuses: found row by row
        end;
    end loop;
    return v_parked;
end
$$;
comment on function syncagent._park_collisions is 'mark staged rows whose unique values are held by rows outside the batch';

create function syncagent._park_breakers(p_relation integer, p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_keys  uuid[];
    v_low   integer := 1;
    v_size  integer;
    v_state text;
    v_said  text;
begin
    -- Halve what is left until one row alone is refused beside all those accepted so far.
    execute syncagent._render(
        'select array(select s._key from {stage} s where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses) order by s._key)',
        syncagent._tokens(p_relation)) into v_keys;
    v_size := greatest(cardinality(v_keys), 1);
    while v_low <= cardinality(v_keys) loop
        begin
            insert into pg_temp.verdict (key, loses, kind) select k, true, 'later' from unnest(v_keys[v_low + v_size :]) as k;
            execute format('select syncagent.write_%s($1)', p_relation) using p_origin;
            raise exception using errcode = 'SA000';
        exception
            when sqlstate 'SA000' then
                v_low := v_low + v_size;
                v_size := v_size * 2;
                continue;
            when others then
                get stacked diagnostics v_state = returned_sqlstate, v_said = message_text;
                if not syncagent._may_park(v_state) then
                    raise;
                end if;
        end;
        if v_size > 1 then
            v_size := (v_size + 1) / 2;
        else
            insert into pg_temp.verdict (key, loses, conflict, kind, sqlstate, reason)
            values (v_keys[v_low], true, false, 'parked', v_state, v_said);
            v_low := v_low + 1;
        end if;
    end loop;
end
$$;
comment on function syncagent._park_breakers is 'mark staged rows that any other constraint refuses';


-- The history of conflicts, at every site: what was noticed and settled anywhere travels in the cuts, beside the rows.
--
-- A step is never changed but for the number of its cut, and a site writes only its own; what another one tells is added, once.
-- So nothing waits here for anybody, a batch that comes twice adds nothing, and all sites come to the same, in whatever order.

create function syncagent._note_noticed() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off   -- planned when there are few steps, or none, for when there are many
    as $$
begin
    insert into syncagent.conflict_step (conflict, node, what, at)
    select n.id, s.node, 'noticed', n.noticed_at
    from fresh n cross join syncagent.local_site s
    -- else it was told; asked one by one, by the index: a join would read all of them each time
    where (select x.node from syncagent.conflict_step x where x.conflict = n.id and x.what = 'noticed' limit 1) is null;
    return null;
end
$$;
comment on function syncagent._note_noticed is 'a conflict of which no site has told was noticed here, and is told in the next cut';

create trigger noticed after insert on syncagent.conflict_record referencing new table as fresh
    for each statement execute function syncagent._note_noticed();
alter table syncagent.conflict_record enable always trigger noticed;   -- merges are made as a replica

create function syncagent._settlement(p_conflict uuid) returns syncagent.conflict_step
    language sql stable
    as $$
    select s from syncagent.conflict_step s where s.conflict = p_conflict and s.what <> 'noticed' order by s.hlc desc, s.node desc limit 1
$$;
comment on function syncagent._settlement is 'the newest step by which somebody has settled a conflict, or has taken that back, at whatever site; null if nobody has';

create function syncagent._untold() returns boolean
    language sql stable
    as $$
    select exists (select from syncagent.conflict_step c where c.node = (select s.node from syncagent.local_site s) and c.cut is null)
$$;
comment on function syncagent._untold is 'whether this site has steps of conflicts that are in no cut yet';

create function syncagent._told_conflicts(p_node integer, p_after bigint, p_upto bigint)
    returns table (conflict uuid, cut bigint, hlc bigint, what text, at timestamptz, by_role name, writes jsonb, record jsonb)
    language sql stable
    as $$
    select t.*
    from (
        select s.conflict, s.cut, s.hlc, s.what, s.at, s.by_role, s.writes,
               case s.what when 'noticed' then (select to_jsonb(c) from syncagent.conflict_record c where c.id = s.conflict) end as record   -- one by one, as above
        from syncagent.conflict_step s
        where s.node = p_node and s.cut > p_after and s.cut <= p_upto
        offset 0
    ) as t
    where t.what <> 'noticed' or t.record is not null
    order by t.conflict
$$;
comment on function syncagent._told_conflicts is 'what the cuts of a node tell of conflicts: a step, and the conflict with the first of them; what is forgotten here is told no more';

create function syncagent._take_conflicts(p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off   -- as above
    as $$
begin
    -- The steps first: by them it is known that a conflict was told. One that settles it may come before it, in another part of a knot.
    insert into syncagent.conflict_step (conflict, node, hlc, cut, what, at, by_role, writes)
    select s.conflict, p_origin, s.hlc, s.cut, s.what, s.at, s.by_role, s.writes
    from pg_temp.stage_conflicts s
    order by s.conflict
    on conflict (conflict, node, hlc) do update set cut = excluded.cut;
    insert into syncagent.conflict_record
    select c.*
    from pg_temp.stage_conflicts s cross join lateral jsonb_populate_record(null::syncagent.conflict_record, s.record) as c
    -- mostly both have noticed it, and made the record themselves
    where s.record is not null and (select r.kind from syncagent.conflict_record r where r.id = s.conflict limit 1) is null
    order by c.id
    on conflict (id) do nothing;
end
$$;
comment on function syncagent._take_conflicts is 'add what a batch tells of conflicts to what is known of them here';

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

-- Siblings: what sites have written at once in a column whose strategy is `merge`, and nobody has read and replaced since.
--
-- To settle them is to write the column, by whatever statement; `resolve_siblings` does so only if they are still those that were read.

create function syncagent._registers(p_relation integer, p_key uuid) returns jsonb
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last    record := syncagent._last_cut();
    v_version record;
    v_log     record;
begin
    execute format('select v.* from (select) as always left join syncagent.version_%s v on v.key = $1', p_relation) into v_version using p_key;
    select jsonb_agg(syncagent._op(l.op, l.columns, l.deltas, syncagent._stamp(l.tx_hlc, s.tail)) order by l.hlc) as ops,
           syncagent._stamp(max(l.tx_hlc), min(s.tail)) as stamp, syncagent._stamp(min(l.tx_hlc), min(s.tail)) as first, min(s.node) as node
    into v_log
    from (select e.*, max(e.hlc) over (partition by e.xid) as tx_hlc from syncagent.log e where e.xid >= v_last.xmax or e.xid = any (v_last.xip)) as l
    cross join syncagent.local_site s
    where l.relation = p_relation and p_key = any (l.keys);
    return (select w.registers from syncagent._merge_written(v_version.stamp, v_version.node, v_version.cut, v_version.deleted, v_version.registers,
                                                             v_log.ops, v_log.stamp, v_log.first, v_log.node, null, true, false) as w);
end
$$;
comment on function syncagent._registers is 'what is known of the columns of a row whose strategy is merge, with what no cut has yet';

create function syncagent._must_be_merged(p_table regclass, p_attached syncagent.replicated) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_attached.strategy <> 'merge' then
        raise exception 'the strategy of table % is %: its rows have no siblings', p_table, p_attached.strategy
            using errcode = 'SA003', hint = 'of a table that is attached with --strategy merge both writes are kept; `syncagent conflicts list` shows what lost';
    end if;
end
$$;
comment on function syncagent._must_be_merged is 'an error unless the strategy of a table is merge';

create function syncagent.siblings(p_table regclass, p_key text)
    returns table (column_name text, site text, at timestamptz, stamp uuid, value text, context text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_row   record := syncagent._row(p_table, p_key);
    v_table syncagent.replicated;
begin
    select * into strict v_table from syncagent.replicated r where r.id = v_row.relation;
    perform syncagent._must_be_allowed(v_table.schema_name, v_table.table_name, 'select');
    perform syncagent._must_be_merged(p_table, v_table);
    return query
    with sibling as (
        select e.key as name, p.key::integer as node, p.value as part
        from jsonb_each(syncagent._registers(v_row.relation, v_row.key)) as e
        cross join lateral jsonb_each(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end) as p
        where coalesce(v_table.merges ->> e.key, 'latest') not in ('counter', 'set', 'append') and (select count(*) from jsonb_object_keys(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end)) > 1
    )
    select s.name, syncagent._site_name(s.node), syncagent.stamp_time((s.part ->> 0)::uuid), (s.part ->> 0)::uuid, s.part ->> 2,
           (select md5(string_agg(format('%s %s', x.name, x.part ->> 0), ',' order by x.name, x.node)) from sibling x)
    from sibling s order by s.name, 4 desc;
end
$$;
comment on function syncagent.siblings(regclass, text) is 'what sites have written at once in columns of a row, the newest first, until somebody who has read it writes the column: value as text, and the context to settle it with; the key as text';

create function syncagent._settled_columns(p_table regclass, p_key text, p_columns name[]) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_row     record := syncagent._row(p_table, p_key);
    v_table   syncagent.replicated;
    v_unknown text;
    v_held    boolean;
begin
    select * into strict v_table from syncagent.replicated r where r.id = v_row.relation;
    perform syncagent._must_be_allowed(v_table.schema_name, v_table.table_name, 'update');
    perform syncagent._must_be_merged(p_table, v_table);
    select string_agg(quote_ident(u.name), ', ' order by u.name) into v_unknown from unnest(p_columns) as u (name)
    where u.name is null or u.name <> all (v_table.columns) or u.name = any (v_table.key_columns) or coalesce(v_table.merges ->> u.name::text, 'latest') in ('counter', 'set', 'append');
    if v_unknown is not null or coalesce(cardinality(p_columns), 0) = 0 then
        raise exception 'column % of % has no siblings', coalesce(v_unknown, '(none)'), p_table
            using errcode = 'SA004', hint = 'columns of the key, counters, sets, and what is appended to have none; syncagent.siblings() says of which columns there are some';
    end if;
    execute format('select syncagent.holds_%s($1, $2)', v_table.id) into v_held using p_key, '{}'::jsonb;
    if not coalesce(v_held, false) then
        raise exception 'there is no row % of %', p_key, p_table
            using errcode = 'SA005', hint = format('select * from syncagent.why(%L, %L)', p_table, p_key);
    end if;
    -- also where they are what they were: a value that is chosen is a write
    insert into syncagent.log (xid, relation, op, hlc, keys, odd, columns)
    select pg_current_xact_id(), v_table.id, 'U', syncagent._tick(), array[v_row.key],
           case when v_table.derived then array[syncagent._odd_of(v_table, p_key)] end, p_columns;
end
$$;
comment on function syncagent._settled_columns is 'columns of a row are written by whoever asks';

create function syncagent.resolve_siblings(p_table regclass, p_key text, p_value jsonb, p_context text) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_schema  name;
    v_name    name;
    v_path    text := (select s.reset_val from pg_settings s where s.name = 'search_path');
    v_context text;
    v_columns name[];
    v_unknown text;
    v_rows    bigint;
begin
    if jsonb_typeof(p_value) is distinct from 'object' or p_value = '{}' then
        raise exception 'the value is no object of columns' using errcode = 'SA004', hint = 'write {"column": value, ...}';
    end if;
    select n.nspname, c.relname into v_schema, v_name from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table;
    perform syncagent._must_be_allowed(v_schema, v_name, 'update');
    perform syncagent._hold_row(p_table, p_key);   -- who has it now writes first
    select min(s.context), array_agg(distinct s.column_name)::name[] into v_context, v_columns from syncagent.siblings(p_table, p_key) as s;
    if v_context is null then
        raise exception 'row % of % has no siblings: it is settled', p_key, p_table
            using errcode = 'SA005', hint = format('select * from syncagent.why(%L, %L)', p_table, p_key);
    elsif v_context is distinct from p_context then
        raise exception 'the siblings of row % of % are others by now', p_key, p_table
            using errcode = 'SA005', hint = format('read them again: select * from syncagent.siblings(%L, %L)', p_table, p_key);
    end if;
    select string_agg(quote_ident(k.name), ', ' order by k.name) into v_unknown from jsonb_object_keys(p_value) as k (name) where k.name <> all (v_columns);
    if v_unknown is not null then
        raise exception 'there are no siblings of %', v_unknown
            using errcode = 'SA004', hint = format('there are of %s', (select string_agg(quote_ident(c), ', ') from unnest(v_columns) as c));
    end if;
    perform set_config('search_path', v_path, true);   -- triggers of the application find what is theirs
    execute syncagent._statement(v_schema, v_name, p_key, p_value, true);
    get diagnostics v_rows = row_count;
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if v_rows = 0 then
        raise exception 'row % of % was not written', p_key, p_table
            using errcode = 'SA005', hint = 'a policy or a trigger of the table keeps it from being written';
    end if;
    perform syncagent._settled_columns(p_table, p_key, array(select jsonb_object_keys(p_value)::name));
end
$$;
comment on function syncagent.resolve_siblings(regclass, text, jsonb, text) is 'settle siblings: these columns of the row get these values, everywhere; context is what siblings() said with what was read, and an error tells if they are others by now';

create function syncagent._columns_of(p_conflict syncagent.conflict_record) returns name[]
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select array(select k.name from syncagent.replicated r cross join lateral unnest(p_conflict.columns) as k (name)
                 where (r.schema_name, r.table_name) = (p_conflict.schema_name, p_conflict.table_name) and k.name = any (r.columns) and k.name <> all (r.key_columns)
                   and (p_conflict.strategy = 'lww-column' or r.strategy = 'merge'
                       and (coalesce(r.merges ->> k.name::text, 'latest') = 'latest' or r.merges ->> k.name::text like 'function:%')) order by k.name)
$$;
comment on function syncagent._columns_of is 'the columns that both versions of a conflict wrote, and one can be chosen for, where rows are not written whole';

create function syncagent._are_siblings(p_conflict syncagent.conflict_record) returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (select from syncagent.replicated r
                   cross join lateral syncagent._parts_of(syncagent._registers(r.id, p_conflict.key)) as p
                   where (r.schema_name, r.table_name) = (p_conflict.schema_name, p_conflict.table_name) and r.strategy = 'merge'
                     and p.value ->> 0 in (p_conflict.winning_stamp::text, p_conflict.losing_stamp::text)
                   group by p.key having count(*) = 2)
$$;
comment on function syncagent._are_siblings is 'whether both versions of a conflict are still there, in some column: nobody who had read them has written it';

create function syncagent._hold_row(p_table regclass, p_key text) returns void
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_row    record := syncagent._row(p_table, p_key);
    v_tokens jsonb := syncagent._tokens(v_row.relation);
begin
    perform syncagent._must_be_allowed(r.schema_name, r.table_name, 'update') from syncagent.replicated r where r.id = v_row.relation;
    execute syncagent._render('select from {named} join {table} t on {t_eq_f} for no key update of t',
                              v_tokens || jsonb_build_object('named', syncagent._with_key(v_tokens ->> 'named', p_key)));
end
$$;
comment on function syncagent._hold_row is 'lock a row until the end of the transaction';

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

-- Schema changes: an attached table whose columns or name have changed goes on under its number.
--
-- The agent does a step of a change in one transaction: the application's DDL, `_reshape`, `_schema_reached`. It holds `merge_lock`
-- from its beginning, so no cut and no merge sees a table in one shape and its functions in another. Rows of the epoch before,
-- which lack a column, are given what `replicated.fills` says: the constant that every row got when the column was added. What
-- other sites write before they do the step comes to the same, for at those sites the same constant is put there.

create function syncagent._columns_now(p_table regclass) returns name[]
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select array(select a.attname from pg_attribute a
                 where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                   and not exists (select from syncagent.replicated r join syncagent.typed_record t on t.relation = r.id
                                   where r.relation = p_table and t.kind = 'column' and t.name = a.attname and t.agreed is null and t.epoch is null)
                 order by a.attnum)
$$;
comment on function syncagent._columns_now is 'the columns of a table that travel, as it is now; one that was added by hand, and that no other site has, does not';

create function syncagent._touched() returns setof integer
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select distinct r.id
    from pg_locks l join syncagent.replicated r on r.relation = coalesce(pg_partition_root(l.relation::regclass), l.relation)
    where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted
      and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
$$;
comment on function syncagent._touched is 'attached tables that this transaction has locked for more than rows';

create function syncagent._shape_follow(p_index text) returns void
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._shape_agree(d.relation, d.kind, d.name, d.became)
    from syncagent._typed_now() d join syncagent.replicated r on r.id = d.relation
    left join syncagent.typed_record t on (t.relation, t.kind, t.name) = (d.relation, d.kind, d.name)
        and (t.now - 'definition', t.became) is not distinct from (d.now - 'definition', d.became)
    where d.kind = 'index' and array[r.schema_name, d.name]::text[] = parse_ident(p_index)
       or t.name is null and (
           d.relation in (select syncagent._touched())
           or d.became is null and d.agreed - '{default,generated,definition}'::text[] = d.now - '{default,generated,definition}'::text[])
$$;
comment on function syncagent._shape_follow is 'the last of a step: what it has made of tables is agreed, and what was typed before stays typed, or meanwhile, in tables that it has not locked: there it changes no more than names in the words of others; index is what was made or dropped outside of its transaction, if anything was';

create function syncagent._reshape(p_renamed jsonb, p_fills jsonb, p_all boolean) returns integer
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_count  integer := 0;
    v_before name[];
    v_now    name[];
    v_made   boolean;
    r        record;
begin
    for r in
        select t.*, n.nspname, c.relname from syncagent.replicated t
        join pg_class c on c.oid = t.relation join pg_namespace n on n.oid = c.relnamespace
        where p_all or t.id in (select syncagent._touched()) order by t.id
    loop
        v_now := syncagent._columns_now(r.relation);
        select array_agg(coalesce(x.after, case when u.name <> all (v_now) or not exists (   -- dropped, and its name taken
                select from jsonb_to_recordset(p_renamed) as y (schema name, "table" name, after name)
                where (y.schema, y."table", y.after) = (r.nspname, r.relname, u.name)) then u.name end) order by u.n) into v_before
        from unnest(r.columns) with ordinality as u (name, n)
        left join jsonb_to_recordset(p_renamed) as x (schema name, "table" name, before name, after name)
            on (x.schema, x."table", x.before) = (r.nspname, r.relname, u.name);
        v_made := v_now <> r.columns or (r.nspname, r.relname) <> (r.schema_name, r.table_name) or exists (
            select from pg_attribute k join pg_attribute a on a.attrelid = r.relation and a.attname = r.columns[k.attnum]
            where k.attrelid = to_regclass(format('syncagent.row_%s', r.id)) and k.attnum > 0 and k.atttypid <> syncagent._base_type(a.atttypid));
        if v_made and exists (select from syncagent.typed_record t where t.relation = r.id and t.kind in ('table', 'column') and t.epoch is null
                              and (t.agreed ->> 'type', t.became, t.kind) is distinct from (t.now ->> 'type', null, 'column') and t.agreed is not null) then
            raise exception '%.% was changed by hand here, and cannot follow a schema change', quote_ident(r.schema_name), quote_ident(r.table_name)
                using errcode = 'SA005', hint = 'first `syncagent schema adopt`, or take it back: `syncagent schema status` says how';
        end if;
        if v_made then
            perform syncagent._rename(r.id, r.nspname, r.relname, p_renamed);
            update syncagent.replicated t set columns = v_now, fills = (
                select coalesce(jsonb_object_agg(f.name, f.value), '{}')
                from (
                    select coalesce(v_before[array_position(r.columns, e.key::name)], e.key) as name, e.value from jsonb_each(r.fills) as e
                    union all
                    select f."column", to_jsonb(f.value) from jsonb_to_recordset(p_fills) as f (schema name, "table" name, "column" text, value text)
                    where (f.schema, f."table") = (r.nspname, r.relname)
                ) as f where f.name = any (v_now))
            where t.id = r.id;
            perform syncagent._remake_row_type(r.id, v_before, v_now);
        end if;
        if v_made or (syncagent._text(r.id)).hash <> r.text_hash then
            perform syncagent._generate(r.id);
            v_count := v_count + 1;
        end if;
    end loop;
    return v_count;
end
$$;
comment on function syncagent._reshape is 'let what belongs to attached tables follow what this transaction has made of them, or to all tables; renamed are columns, fills what rows lack that come from sites before the change; returns how many tables were made anew';

create function syncagent._rename(p_id integer, p_schema name, p_table name, p_renamed jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
begin
    select * into strict v_table from syncagent.replicated where id = p_id;
    update syncagent.replicated t set schema_name = p_schema, table_name = p_table,
        key_columns = (select array_agg(coalesce(x.after, k.name) order by k.n)
                       from unnest(t.key_columns) with ordinality as k (name, n)
                       left join jsonb_to_recordset(p_renamed) as x (schema name, "table" name, before name, after name)
                           on (x.schema, x."table", x.before) = (p_schema, p_table, k.name))
    where t.id = p_id;
    update syncagent.conflict_record c set schema_name = p_schema, table_name = p_table
    where (c.schema_name, c.table_name) = (v_table.schema_name, v_table.table_name) and (p_schema, p_table) <> (c.schema_name, c.table_name);
    update syncagent.stride s set column_name = x.after
    from jsonb_to_recordset(p_renamed) as x (schema name, "table" name, before name, after name)
    where s.relation = p_id and (x.schema, x."table", x.before) = (p_schema, p_table, s.column_name);
end
$$;
comment on function syncagent._rename is 'an attached table or some of its columns have other names now';

create function syncagent._remake_row_type(p_id integer, p_before name[], p_now name[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_id);
    v_fills  jsonb := (select fills from syncagent.replicated where id = p_id);
    v_values text[];   -- of the new columns, from the image o of the old ones
begin
    select array_agg(case when array_position(p_before, u.name) is not null then format('o.c%s', array_position(p_before, u.name))
                          else format('(%s)', coalesce(v_fills ->> u.name::text, 'null')) end order by u.n)
    into v_values from unnest(p_now) with ordinality as u (name, n);
    execute format('alter type syncagent.row_%s rename to row_%1$s_before', p_id);
    execute syncagent._render('create type syncagent.row_{id} as ({stage_columns})', v_tokens);
    execute format('update syncagent.parked_row p set'
                   ' image = (select row(%2$s)::syncagent.row_%1$s::text from (select (p.image::syncagent.row_%1$s_before).*) as o),'
                   ' shown = (select to_jsonb(x.*) from (select %3$s from (select (p.image::syncagent.row_%1$s_before).*) as o) as x)'
                   ' where p.relation = %1$s',
                   p_id, array_to_string(v_values, ', '),
                   (select string_agg(format('%s as %I', v_values[u.n], u.name), ', ' order by u.n) from unnest(p_now) with ordinality as u (name, n)));
    execute format('drop type syncagent.row_%s_before', p_id);
end
$$;
comment on function syncagent._remake_row_type is 'the type of a row of an attached table, for its columns of now; parked rows are brought to it';

create function syncagent._filling(p_schema name, p_table name, p_begins boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.replicated r set filling = p_begins where (r.schema_name, r.table_name) = (p_schema, p_table) and r.filling <> p_begins;
    if found and not p_begins then
        perform syncagent._forest_fell(array[p_schema], array[p_table]);   -- no mark says which rows were filled
    end if;
end
$$;
comment on function syncagent._filling is 'rows of a table are about to be filled, or are all filled: its tree is computed from the rows again';

create function syncagent._schema_reached(p_epoch bigint, p_floor bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    update syncagent.local_site s set schema_epoch = p_epoch, schema_floor = p_floor where s.schema_epoch < p_epoch;
    if not found then
        raise exception 'this site has done step % of the schema''s changes already', p_epoch
            using errcode = 'SA103', hint = 'another agent may have run for this site';
    end if;
end
$$;
comment on function syncagent._schema_reached is 'the last statement of a step: this site is at this epoch, and reads batches no older than the floor';

-- Batches of the epoch before --------------------------------------------------------------------------------------

create function syncagent._fits(p_table syncagent.replicated, p_columns name[]) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    if p_columns = p_table.columns then
        return true;
    end if;
    return p_columns <@ p_table.columns
        and not exists (select from unnest(p_table.columns) as u (name) where u.name <> all (p_columns) and not p_table.fills ? u.name::text);
end
$$;
comment on function syncagent._fits is 'whether rows with these columns can be taken: they lack none but those that were added by a schema change';

create function syncagent._fit_stage(p_table syncagent.replicated, p_columns name[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_stage  regclass := to_regclass(format('pg_temp.stage_%s', p_table.id));
    r        record;
begin
    -- a session that was there before the table changed
    if v_stage is not null and ((select array_agg(format_type(a.atttypid, -1) order by a.attnum) from pg_attribute a
                                where a.attrelid = v_stage and a.attname !~ '^_' and a.attnum > 0 and not a.attisdropped)
            is distinct from (select array_agg(format_type(a.atttypid, -1) order by a.attnum) from pg_attribute a
                              where a.attrelid = to_regclass(format('syncagent.row_%s', p_table.id)) and a.attnum > 0)
            or (p_table.strategy <> 'lww') <> exists (select from pg_attribute a where a.attrelid = v_stage and a.attname = '_registers')) then
        execute format('drop table pg_temp.stage_%s', p_table.id);
        v_stage := null;
    end if;
    if v_stage is null then
        execute format('select syncagent.stage_%s()', p_table.id);
    else
        perform syncagent._empty(v_stage);
    end if;
    if p_table.fills = '{}' then
        return;
    end if;
    for r in
        select e.key, coalesce(e.value #>> '{}', 'null') as value, array_position(p_table.columns, e.key::name) as n,
               e.key::name <> all (p_columns) as lacking, a.atthasdef as filled
        from jsonb_each(p_table.fills) as e
        join pg_attribute a on a.attrelid = to_regclass(format('pg_temp.stage_%s', p_table.id))
            and a.attname = format('c%s', array_position(p_table.columns, e.key::name))
    loop
        if r.lacking then
            execute format('alter table pg_temp.stage_%s alter column c%s set default %s', p_table.id, r.n, r.value);
        elsif r.filled then
            execute format('alter table pg_temp.stage_%s alter column c%s drop default', p_table.id, r.n);
        end if;
    end loop;
end
$$;
comment on function syncagent._fit_stage is 'empty the staging table of an attached table, made anew where that has changed; columns that are lacking get what all rows got then';

-- A table's strategy is changed while sites write: by steps of a schema change, each one transaction with its epoch.
--
-- The version of a row that wins whole (`lww`), and its tombstone, are a life that began with that write: of two lives the newer one wins,
-- as of two versions. So from `lww` one step is enough. From a strategy by column it takes two. First rows are logged *whole*: each write
-- begins a life, a delete one that has ended, while all sites still join by column (`replicated.whole`). When all do so, and what
-- each had written by column has come everywhere, the registers of columns are dropped. What they say is known to all by then, so with
-- them goes the stamp of the newest of them: a row's stamp is its life's. A site that wrote it whole meanwhile, without having
-- seen a column of it, has begun a newer life; that wins, whether it comes before the registers are dropped or after.
--
-- tests/model/strategies.py is this page as a program; docs/decisions/0017-strategies.md says what it found.

create function syncagent._whole_written(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                         p_new uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                         out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    as $$
begin
    stamp := p_stamp; node := p_node; cut := p_cut; deleted := coalesce(p_deleted, false); registers := coalesce(p_registers, '{}');
    if not p_alive and not p_gone or p_alive and deleted and p_new <= stamp   -- or it lives under a newer tombstone
       or p_new < (case when deleted then stamp else (registers -> '' ->> 0)::uuid end) then
        return;
    end if;
    stamp := p_new; node := p_me; cut := p_next; deleted := not p_alive;
    registers := jsonb_build_object('', jsonb_build_array(p_new, p_me, p_next));
end
$$;
comment on function syncagent._whole_written is 'the version entry of a row after the writes of a window of which the last was whole: it is a life, or the end of one that began with it';

-- As _written, or _merge_written: what was written before rows were logged whole is by column.
create function syncagent._whole_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.written_{id}(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                       p_log jsonb, p_new uuid, p_first uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                       out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    as $$
begin
    if p_new >= {whole_from} then
        select w.* into stamp, node, cut, deleted, registers
        from syncagent._whole_written(p_stamp, p_node, p_cut, p_deleted, p_registers, p_new, p_me, p_next, p_alive, p_gone) as w;
    else
        select w.* into stamp, node, cut, deleted, registers
        from syncagent.{by_column}(p_stamp, p_node, p_cut, p_deleted, p_registers, p_log, p_new, p_first, p_me, p_next, p_alive, p_gone) as w;
    end if;
end
$$;
$sql$ $template$;

create function syncagent._whole_tokens(p_table syncagent.replicated) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select jsonb_build_object('written', format('written_%s', p_table.id), 'first', 'false', 'whole_from', quote_literal(syncagent._stamp(p_table.whole, 0)) || '::uuid',
                              'by_column', case p_table.strategy when 'merge' then '_merge_written' else '_written' end)
$$;
comment on function syncagent._whole_tokens is 'what the templates of a table are filled with while its rows are logged whole';

create function syncagent._open_siblings(p_relation integer) returns bigint
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
    v_count bigint;
begin
    select * into strict v_table from syncagent.replicated where id = p_relation;
    if v_table.strategy <> 'merge' then
        return 0;
    end if;
    execute format($sql$
        select count(*) from syncagent.version_%1$s v where not v.deleted and exists (
            select from jsonb_each(v.registers) as e where (coalesce($1 ->> e.key, 'latest') = 'latest' or not syncagent._are_made(%1$s, v.key, v.registers, array[e.key]) and $1 ->> e.key like 'function:%%') and jsonb_typeof(e.value) = 'object'
            and (select count(*) from jsonb_object_keys(e.value)) > 1) $sql$, p_relation) into v_count using v_table.merges;
    return v_count;
end
$$;
comment on function syncagent._open_siblings is 'how many rows of a table have siblings that a person is to settle';

create function syncagent._not_everywhere() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last   bigint := coalesce((select max(c.number) from syncagent.cut c), 0);
    v_whole  bigint;
    v_count  bigint;
    r        record;
begin
    for r in select t.id, format('%I.%I', t.schema_name, t.table_name) as name from syncagent.replicated t where t.whole is not null order by t.id loop
        v_count := syncagent._open_siblings(r.id);
        if v_count > 0 then
            return format('%s row(s) of %s have siblings that nobody has settled: `syncagent conflicts list --open`', v_count, r.name);
        end if;
    end loop;
    select max(t.whole_cut) into v_whole from syncagent.replicated t where t.whole is not null;
    if v_last < v_whole and syncagent._pending() or exists (
            select from syncagent._stable() s join syncagent.frontier f on f.node = s.node
            where s.cut < case when s.node = (select me.node from syncagent.local_site me) then least(v_whole, f.needed)
                               when s.node not in (select m.node from syncagent.member m) then f.needed else 0 end) then
        return 'what was written here by column has not come to every site yet';
    end if;
    return null;
end
$$;
comment on function syncagent._not_everywhere is 'what keeps writes by column, made here before rows were logged whole, from being known everywhere; null if nothing does';

create function syncagent._strategize(p_schema name, p_table name, p_strategy text, p_merges jsonb, p_whole boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_problem record;
begin
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation where (r.schema_name, r.table_name) = (p_schema, p_table);
    if not found then
        return;   -- detached meanwhile, or not attached here yet: then it is attached as the catalog says
    end if;
    select string_agg(o.problem, '; ') as problems, string_agg(o.hint, '; ') as hints into v_problem
    from syncagent._merge_obstacles(v_table.relation, p_strategy, p_merges) as o where (v_table.strategy, v_table.merges) <> (p_strategy, p_merges);
    if v_problem.problems is not null then
        raise exception 'table %.% cannot be merged so: %', quote_ident(p_schema), quote_ident(p_table), v_problem.problems
            using errcode = 'SA002', hint = coalesce(v_problem.hints, '');
    end if;
    execute format('lock table %s in access exclusive mode', v_table.relation);   -- whoever has written has ended, and who writes next comes after this
    if (v_table.strategy, v_table.merges) <> (p_strategy, p_merges) then
        if v_table.strategy = 'lww' then
            execute format('alter table syncagent.version_%s add column registers jsonb not null default ''{}''', v_table.id);
            perform syncagent._rows_to_lives(v_table.id);
        else
            perform syncagent._columns_to_lives(v_table.id, p_strategy = 'lww');
        end if;
        if p_strategy = 'lww' then
            execute format('alter table syncagent.version_%s drop column registers', v_table.id);
        end if;
    elsif p_whole then   -- a key ahead of the clock, which an attached row may have, is above the lives to come
        execute format('update syncagent.version_%s v set registers = jsonb_build_object('''', jsonb_build_array(v.stamp, v.node, v.cut))'
                       ' where v.registers = ''{}'' and v.stamp < syncagent._implicit(v.key)', v_table.id);
    end if;
    if p_strategy <> 'lww' and not p_whole then
        perform syncagent._uncut_to_lives(v_table);
    end if;
    update syncagent.replicated r set strategy = p_strategy, merges = p_merges, whole = case when p_whole then syncagent._tick() end,
        whole_cut = case when p_whole then coalesce((select max(c.number) from syncagent.cut c), 0) + 1 end
    where r.id = v_table.id;
    perform syncagent._generate(v_table.id);
end
$$;
comment on function syncagent._strategize is 'from here on a table is merged like this; whole: and its rows are logged whole, until the cuts that have columns have come everywhere';

create function syncagent._rows_to_lives(p_relation integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('update syncagent.version_%s v set registers = jsonb_build_object('''', jsonb_build_array(v.stamp, v.node, v.cut))', p_relation);
    update syncagent.parked_row p
    set registers = case when p.stamp = syncagent._implicit(p.key) then '{}' else jsonb_build_object('', jsonb_build_array(p.stamp, p.node, p.cut)) end
    where p.relation = p_relation;
end
$$;
comment on function syncagent._rows_to_lives is 'a version of a row that wins whole is a life that began with it';

create function syncagent._columns_to_lives(p_relation integer, p_whole boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    delete from syncagent.merge_result where relation = p_relation;
    -- of a life that has no entry nothing is left to be known: the row is as all have it
    execute format('delete from syncagent.version_%s v where not v.deleted and not v.registers ? '''' and v.registers <> ''{}''', p_relation);
    execute format('update syncagent.version_%s v set stamp = l.stamp, node = l.node, cut = l.cut, registers = syncagent._life(v.registers)'
                   ' from (select x.key, (x.registers -> '''' ->> 0)::uuid as stamp, (x.registers -> '''' ->> 1)::integer as node, (x.registers -> '''' ->> 2)::bigint as cut'
                   '       from syncagent.version_%1$s x where not x.deleted and x.registers ? '''') as l where v.key = l.key', p_relation);
    if p_whole then   -- a life that has ended: what begins anew is newer than the life, whatever the stamp of its end
        execute format('update syncagent.version_%s v set stamp = coalesce((v.registers -> '''' ->> 0)::uuid, syncagent._implicit(v.key)) where v.deleted', p_relation);
    end if;
    update syncagent.parked_row p
    set stamp = coalesce((p.registers -> '' ->> 0)::uuid, syncagent._implicit(p.key)), node = coalesce((p.registers -> '' ->> 1)::integer, p.node),
        cut = coalesce((p.registers -> '' ->> 2)::bigint, p.cut), registers = case when not p_whole then syncagent._life(p.registers) end
    where p.relation = p_relation;
end
$$;
comment on function syncagent._columns_to_lives is 'drop what is known of columns; whole: what stays are versions of rows that win whole';

create function syncagent._uncut_to_lives(p_table syncagent.replicated) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
begin
    -- what was written whole stays so, however rows are joined when the next cut has it
    update syncagent.log l set columns = null, deltas = null
    where l.relation = p_table.id and l.columns is not null and l.hlc >= p_table.whole and (l.xid >= v_last.xmax or l.xid = any (v_last.xip));
    execute format($sql$
        update syncagent.version_%s v set registers = jsonb_set(v.registers, array['', '2'], to_jsonb($1))
        where v.registers -> '' -> 2 = 'null' and (v.registers -> '' ->> 1)::integer = (select s.node from syncagent.local_site s) $sql$, p_table.id)
    using coalesce(v_last.number, 0) + 1;
end
$$;
comment on function syncagent._uncut_to_lives is 'writes that no cut has, and that were whole, are lives of the next cut';

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

-- A site that holds rows already: it was set back by a restore and returns, or it joins with tables that are filled.
--
-- Range by range it is compared with a donor, as for a copy (55). Of its rows some are *its own*: written here, and in no
-- cut that the donor has; the log names them, and they merge like any local write that meets a batch. About all others
-- the donor is right: its frontier covers all that this site had applied, so a row that the donor has not was deleted
-- there. Only the last transaction sets the frontier, as for any copy.

create function syncagent._unshipped(p_relation integer, p_cut bigint, p_newest bigint) returns setof uuid
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- What was cut later than the donor knows, and what no cut here has. If the donor knows a later cut than this database,
    -- that one had what was written up to its newest clock.
    select k.key from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
    where c.node = (select s.node from syncagent.local_site s) and c.relation = p_relation and c.cut > p_cut
    union
    select k.key from syncagent.log e cross join syncagent._last_cut() l cross join lateral unnest(e.keys) as k (key)
    where e.relation = p_relation and (e.xid >= l.xmax or e.xid = any (l.xip))
      and (p_cut <= coalesce(l.number, 0) or e.hlc > p_newest)
$$;
comment on function syncagent._unshipped is 'keys of rows written here that are in no cut up to this one of this site, the last that others have, whose newest clock is given';

create function syncagent._own(p_relation integer, p_cut bigint, p_newest bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_keys bigint;
begin
    create temp table if not exists own_key (key uuid primary key);
    perform syncagent._empty('pg_temp.own_key');
    insert into pg_temp.own_key select * from syncagent._unshipped(p_relation, p_cut, p_newest);
    get diagnostics v_keys = row_count;
    return v_keys;
end
$$;
comment on function syncagent._own is 'put the keys of this site''s own writes of a table into own_key; how many there are';

create function syncagent._return(p_node integer, p_incarnation uuid, p_seed bigint, p_cut bigint, p_newest bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_site syncagent.local_site;
    v_last record := syncagent._last_cut();
    v_before jsonb;
    v_kept bigint;
    r      record;
begin
    lock table syncagent.merge_lock in exclusive mode;
    select * into strict v_site from syncagent.local_site;
    select coalesce(jsonb_object_agg(f.node, f.cut), '{}') into v_before from syncagent.frontier f;
    delete from syncagent.log e
    where not (e.xid >= v_last.xmax or e.xid = any (v_last.xip)) or p_cut > coalesce(v_last.number, 0) and e.hlc <= p_newest;
    -- Transactions are told apart by xid. These have ended, so small numbers will do; their own may be of another server.
    update syncagent.log e set xid = (2 + k.number)::text::xid8
    from (select x.xid, row_number() over (order by x.xid) as number from (select distinct l.xid from syncagent.log l) as x) as k
    where k.xid = e.xid;
    select count(distinct e.xid) into v_kept from syncagent.log e;
    for r in select t.id from syncagent.replicated t join pg_class c on c.oid = t.relation order by t.id loop
        -- What was inserted again is no row that was born here: its key had an entry, which is forgotten below, or a tombstone.
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
            select f.xid, {id}, 'U', 0, array_agg(f.key) {odd_agg_f}
            from (select e.xid, k.* from syncagent.log e cross join lateral {unnest_entry} where e.relation = {id} and e.op = 'I') as f
            where exists (select from syncagent.version_{id} v where v.key = f.key)
               or {may_be_implicit} and f.key <= (select t.collected from syncagent.replicated t where t.id = {id})
            group by f.xid
            $sql$, syncagent._tokens(r.id) || jsonb_build_object('odd_agg_f', replace(syncagent._tokens(r.id) ->> 'odd_agg', 'k.odd', 'f.odd')));
        -- A cut that nobody has is undone: its writes are in the log again, each with its own clock. What was first of a key decides
        -- whether it was born here.
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys {odd_column}, columns, deltas)
            select (2 + $3 + dense_rank() over (order by v.stamp))::text::xid8, {id},
                   (case when v.deleted then 'D' when u.born or v.columns = '{""}' then 'I' else 'U' end)::"char",
                   syncagent._hlc(v.stamp), array_agg(v.key) {odd_of_version}, case when v.columns <> '{""}' and not v.deleted then v.columns end, {own_deltas}
            from {own_versions} v
            join (select k.key, (array_agg(c.born order by c.cut))[1] as born
                  from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
                  where c.node = $1 and c.relation = {id} and c.cut > $2 group by k.key) as u on u.key = v.key
            where v.node = $1 and v.cut > $2
            group by v.stamp, v.deleted, u.born, v.columns, {own_deltas}
            $sql$, syncagent._tokens(r.id)) using v_site.node, p_cut, v_kept;
        execute syncagent._render($sql$
            insert into syncagent.log (xid, relation, op, hlc, keys)
            select pg_current_xact_id(), {id}, 'I', syncagent._tick(), array_agg(k.key)
            from syncagent.cut_keys c cross join lateral unnest(c.keys) as k (key)
            where c.node = $1 and c.relation = {id} and c.implicit and c.cut > $2
              and not exists (select from syncagent.version_{id} v where v.key = k.key)
            group by c.ctid
            $sql$, syncagent._tokens(r.id)) using v_site.node, p_cut;
        execute format('delete from syncagent.version_%s', r.id);
    end loop;
    for r in   -- its numbers are now others than before
        select x.sequence, x.every from syncagent.stride x join pg_sequence q on q.seqrelid = x.sequence and q.seqincrement = x.every
    loop
        if p_node >= r.every then
            raise exception 'sequence % draws every % numbers: node % has no share of them', r.sequence, r.every, p_node
                using errcode = 'SA002', hint = 'attach the table with a larger stride, at every site';
        end if;
        execute format('select setval(%1$L, s.last_value + 1 + (($1 - s.last_value - 1) %% $2 + $2) %% $2, false) from %1$s s', r.sequence)
            using p_node, r.every;
    end loop;
    delete from syncagent.cut;
    delete from syncagent.cut_keys;
    delete from syncagent.context;
    delete from syncagent.frontier;
    delete from syncagent.settling;
    delete from syncagent.parked_row;
    delete from syncagent.dropped_row;
    delete from syncagent.merge_result;
    delete from syncagent.alias a where a.node <> v_site.node or a.cut <= p_cut;
    update syncagent.alias set node = p_node, cut = null;
    update syncagent.conflict_step c set node = p_node, cut = null where c.node = v_site.node and coalesce(c.cut > p_cut, true);
    delete from syncagent.forest;
    delete from syncagent.bucket;
    delete from syncagent.mark;
    delete from syncagent.seal;
    delete from syncagent.peer_state;
    delete from syncagent.request;
    update syncagent.local_site
    set node = p_node, incarnation = p_incarnation, tail = syncagent._tail(p_node, p_seed), trimmed = 0, joining = true, copied = false,
        node_before = v_site.node, seen_before = v_before;
end
$$;
comment on function syncagent._return is 'take another number: own writes are in the log, everything else that was known of cuts and versions is forgotten, and will come from a donor';

create function syncagent._lead(p_accepted bigint) returns bigint
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    select s.last_value - greatest(syncagent._wall(), p_accepted, (
        select max(f.newest) from syncagent.frontier f where f.node <> (select me.node from syncagent.local_site me)))
    from syncagent.hlc s
$$;
comment on function syncagent._lead is 'how far the clock of this site is ahead of time, of what was accepted, and of all that came from others';

create function syncagent._newest_up_to(p_cut bigint) returns bigint
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(max(c.newest), 0) from syncagent.context c, syncagent.local_site me where c.node = me.node and c.cut <= p_cut
$$;
comment on function syncagent._newest_up_to is 'the largest clock of the cuts of this site up to one, as far as they are remembered';

create function syncagent._anew(p_node integer, p_incarnation uuid, p_seed bigint, p_cut bigint, p_newest bigint, p_accepted bigint) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_floor bigint;
    v_count bigint;
begin
    select greatest(syncagent._wall(), p_accepted, p_newest, max(f.newest)) into v_floor
    from syncagent.frontier f where f.node <> (select me.node from syncagent.local_site me);
    -- Waits for whoever has drawn a clock and is still open; who comes later waits for us. Unlike setval it is undone with the rest.
    execute format('alter sequence syncagent.hlc restart with %s', v_floor);
    perform syncagent._return(p_node, p_incarnation, p_seed, p_cut, p_newest);
    update syncagent.log e set hlc = v_floor + k.place
    from (select x.hlc, row_number() over (order by x.hlc) as place from (select distinct l.hlc from syncagent.log l where l.hlc > 0) as x) as k
    where e.hlc = k.hlc;
    select count(distinct e.hlc) into v_count from syncagent.log e;
    execute format('alter sequence syncagent.hlc restart with %s', v_floor + v_count + 1);
    return v_count;
end
$$;
comment on function syncagent._anew is 'return, and stamp anew what nobody has applied, in its order: after all that stays, and from now on; the clock goes on from there. How many clocks were set';

create function syncagent._held(p_relation integer, p_node regclass, p_low text[], p_high text[],
                                out rows bigint, out lane_0 bigint, out lane_1 bigint)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute (select syncagent._fingerprint_query(p_node, r.columns, syncagent._copy_range(p_relation, p_node, p_low, p_high))
             from syncagent.replicated r where r.id = p_relation) into rows, lane_0, lane_1;
end
$$;
comment on function syncagent._held is 'count and lanes of what this site holds of a range';

create function syncagent._differing(p_relation integer, p_node regclass, p_low text[], p_high text[],
                                     out lacking bigint, out changed bigint, out extra bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute syncagent._render($sql$
        with here as materialized (select {key} as _row_key, t.* from only {node} t where {range})
        select count(*) filter (where h._row_key is null), count(*) filter (where h._row_key is not null and s._key is not null),
               count(*) filter (where s._key is null)
        from {stage} s full join here h on h._row_key = s._key
        cross join lateral (select row({h_columns})::text collate "C", row({s_columns})::text collate "C") as w (here, there)
        where (s._key is null or h._row_key is null or w.here <> w.there)
          and not exists (select from pg_temp.own_key o where o.key = coalesce(h._row_key, s._key))
        $sql$, syncagent._range_tokens(p_relation, p_node, p_low, p_high)) into lacking, changed, extra;
end
$$;
comment on function syncagent._differing is 'rows of a staged range that are not here, are different here, are only here; own ones are not counted';

create function syncagent._range_tokens(p_relation integer, p_node regclass, p_low text[], p_high text[]) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._tokens(p_relation) || jsonb_build_object(
        'range', syncagent._copy_range(p_relation, p_node, p_low, p_high),
        'node', coalesce((select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_node), ''),
        'same_row', syncagent._render('exists (select from {stage} s where {t_eq_s} and row({t_columns})::text collate "C" = row({s_columns})::text collate "C")',
                                      syncagent._tokens(p_relation)),
        'same_here', syncagent._render('exists (select from {table} t where {t_eq_s} and row({t_columns})::text collate "C" = row({s_columns})::text collate "C")',
                                       syncagent._tokens(p_relation)),
        'h_columns', (select string_agg(format('h.%I', u.c), ', ' order by u.n) from syncagent.replicated r
                      cross join lateral unnest(r.columns) with ordinality as u (c, n) where r.id = p_relation),
        'listed_key_columns', coalesce((select string_agg(format(', c%s', array_position(r.columns, u.k)), '' order by u.n) from syncagent.replicated r
                      cross join lateral unnest(r.key_columns) with ordinality as u (k, n) where r.id = p_relation), ''),
        'listed_keys', (select case when r.derived then string_agg(format(', v.k%s', u.n), '' order by u.n) else ', v.key' end from syncagent.replicated r
                      cross join lateral unnest(r.key_columns) with ordinality as u (k, n) where r.id = p_relation group by r.derived))
$$;
comment on function syncagent._range_tokens is 'what the statements about one range of a table are filled with';

create function syncagent._weigh(p_relation integer, p_tokens jsonb, p_rest boolean, p_donor integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_tokens jsonb := p_tokens || jsonb_build_object(
        'range', case when p_rest then 'true' else p_tokens ->> 'range' end,
        'rows', case when p_rest then p_tokens ->> 'table' else 'only ' || (p_tokens ->> 'node') end,
        'staged', case when p_rest then 'join' else 'left join' end,
        'staged_key', (select syncagent._stage_key(r) from syncagent.replicated r where r.id = p_relation));
    v_lost bigint;
begin
    -- No site has seen a row of one that joins. Where the donor's has no stamp of its own either, the larger content wins, as
    -- wherever one key is inserted twice; else the stamp does, which is above the key.
    execute syncagent._render($sql$
        create temp table met on commit drop as
        select m.*, m.there is null and not m.gone or m.stamp is null and m.here > m.there as wins
        from (select {key} as key {odd_value}, {t_key_text} as key_text, v.stamp, v.node, coalesce(v.deleted, false) as gone,
                     row({t_columns})::text collate "C" as here, case when s._key is not null and s._deleted is not true then row({s_columns})::text collate "C" end as there,
                     to_jsonb(t.*) as image,
                     case when s._key is not null and s._deleted is not true then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as other
              from {rows} t {staged} {stage} s on {t_eq_s} left join pg_temp.listed v on v.key = s._key
              where {range} and not exists (select from pg_temp.own_key o where o.key = {key})) as m
        where m.there is distinct from m.here
        $sql$, v_tokens);
    execute syncagent._render($sql$
        insert into syncagent.log (xid, relation, op, hlc, keys {odd_column})
        select pg_current_xact_id(), {id}, 'I', syncagent._tick(), array_agg(k.key) {odd_agg}
        from (select m.*, (row_number() over () - 1) / 10000 as chunk from pg_temp.met m where m.wins) as k
        group by k.chunk
        $sql$, v_tokens);
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._conflict_id({title}, m.key, syncagent._implicit(m.key), coalesce(m.stamp, syncagent._implicit(m.key))),
               {schema_literal}, {table_literal}, m.key, m.key_text,
               case when m.gone then 'update/delete' when m.stamp is null then 'insert/insert' else 'update/update' end, 'lww',
               coalesce(m.stamp, syncagent._implicit(m.key)), syncagent._implicit(m.key), coalesce(m.node, $1), (select s.node from syncagent.local_site s),
               m.other, m.image
        from pg_temp.met m where not m.wins
        on conflict (id) do nothing
        $sql$, v_tokens) using p_donor;
    get diagnostics v_lost = row_count;
    execute syncagent._render('delete from pg_temp.stage_{id} s using pg_temp.met m where m.wins and m.key = {staged_key}', v_tokens);
    execute 'insert into pg_temp.own_key select m.key from pg_temp.met m where m.wins on conflict do nothing';
    execute 'drop table pg_temp.met';
    return v_lost;
end
$$;
comment on function syncagent._weigh is 'for a site that joins: which of its rows win against those staged, and so are writes of its own; the others are kept as conflicts, which are counted';

create function syncagent._give_way(p_relation integer, p_tokens jsonb, p_donor integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
declare
    v_lost bigint;
begin
    execute syncagent._render($sql$
        create temp table beaten on commit drop as
        with written as materialized (
            select k.key, max(e.hlc) as hlc,
                   coalesce(min(e.hlc) filter (where e.op = 'I') = min(e.hlc), false) and not bool_or(e.op = 'D') as born
            from syncagent.log e cross join lateral unnest(e.keys) as k (key) where e.relation = {id} group by k.key
        ), here as materialized (
            select {key} as _row_key, {t_key_text} as _key_text, to_jsonb(t.*) as _image from only {node} t
            where {range} and {key} in (select w.key from written w where not w.born)
        )
        select w.key, w.hlc, h._image as image, coalesce(h._key_text, {s_key_text}) as key_text,
               case when s._key is not null then (select to_jsonb(x.*) from (select {stage_as_table}) as x) end as other
        from written w left join here h on h._row_key = w.key left join {stage} s on s._key = w.key
        where not w.born and not exists (select from pg_temp.listed v where v.key = w.key)
          and case when s._key is null then h._row_key is not null else w.key in (select c.key from pg_temp.changed c) end
        $sql$, p_tokens);
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image)
        select syncagent._conflict_id({title}, b.key, syncagent._implicit(b.key), w.stamp), {schema_literal}, {table_literal}, b.key, b.key_text,
               'possible ' || case when b.other is null then 'update/delete' when b.image is null then 'delete/update' else 'update/update' end, 'lww',
               syncagent._implicit(b.key), w.stamp, $1, me.node, b.other, b.image
        from pg_temp.beaten b cross join syncagent.local_site me cross join lateral (select syncagent._stamp(b.hlc, me.tail)) as w (stamp)
        where b.image is distinct from b.other
        on conflict (id) do nothing
        $sql$, p_tokens) using p_donor;
    get diagnostics v_lost = row_count;
    perform syncagent._unlog(p_relation, array(select b.key from pg_temp.beaten b));
    delete from pg_temp.own_key o using pg_temp.beaten b where b.key = o.key;
    drop table pg_temp.beaten;
    return v_lost;
end
$$;
comment on function syncagent._give_way is 'for a site that lapsed: its writes of rows that the donor changed since, or deleted, and has forgotten the stamps of, are writes no more, but conflicts, which are counted; what was born here stays';

create function syncagent._reconcile(p_relation integer, p_node regclass, p_low text[], p_high text[], p_donor integer, p_same boolean, p_lapsed boolean)
    returns table (taken bigint, dropped bigint, conflicts bigint)
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    as $$
#variable_conflict use_column
declare
    v_tokens jsonb := syncagent._range_tokens(p_relation, p_node, p_low, p_high);
    v_seen   pg_snapshot := pg_current_snapshot();
    v_before jsonb;
    v_taken  bigint := 0;
    v_dropped bigint := 0;
    v_conflicts bigint := 0;
    v_count  bigint;
    v_origin integer;
    v_again  boolean;
begin
    select s.seen_before into v_before from syncagent.local_site s;
    perform set_config('syncagent.context', coalesce((select c.frontier from syncagent.copy_state c), '{}')::text, true);
    perform syncagent._own(p_relation, 0, 0);
    create temp table if not exists dropped_key (key uuid);
    perform syncagent._empty('pg_temp.dropped_key');
    -- A row without a stamp in the listing was changed since this site was last heard of; whoever did it is forgotten.
    create temp table changed on commit drop as
    with unstamped as (delete from pg_temp.listed v where v.stamp is null returning v.key) select u.key from unstamped u;
    if p_lapsed and p_node is not null and not p_same then
        v_conflicts := syncagent._give_way(p_relation, v_tokens, p_donor);
    end if;
    drop table pg_temp.changed;
    -- What is known of rows that are the same, and of those that are not in the table: parked ones.
    execute syncagent._render($sql$
        insert into syncagent.version_{id} as w (key, stamp, node, cut, deleted {version_key_columns})
        select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns} from pg_temp.listed v
        where ($1 or v.rest and not v.deleted) and not exists (select from pg_temp.own_key o where o.key = v.key)
        on conflict (key) do update set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, deleted = excluded.deleted {excluded_registers}
        $sql$, v_tokens) using p_same;
    if p_same then
        return query select 0::bigint, 0::bigint, 0::bigint;
        return;
    end if;

    if p_node is null then
        execute syncagent._render('insert into pg_temp.stage_{id} (_deleted {listed_key_columns})'
                                  ' select true {listed_keys} from pg_temp.listed v where v.deleted', v_tokens);
    end if;
    if v_before is null then
        v_conflicts := v_conflicts + syncagent._weigh(p_relation, v_tokens, p_node is null, p_donor);
    end if;
    if p_node is not null then
        execute syncagent._render($sql$
            with gone as (
                delete from only {node} t
                where {range} and not exists (select from pg_temp.own_key o where o.key = {key}) and not {same_row}
                returning {key} as key, case when {missed} then row({t_columns})::text end as image, {odd_or_null} as odd
            ), missed as (
                insert into syncagent.dropped_row (relation, key, image, odd) select {id}, g.key, g.image, g.odd from gone g where g.image is not null
            ) insert into pg_temp.dropped_key select g.key from gone g
            $sql$, v_tokens || jsonb_build_object('missed', coalesce((select string_agg(x.refers, ' or ') from syncagent._references(p_relation) as x), 'false')));
        get diagnostics v_dropped = row_count;
    end if;

    -- What our own write has replaced, it had seen; an insert had seen nothing.
    execute syncagent._render($sql$
        create temp table staged on commit drop as
        select s._key, s._deleted, {s_columns}, v.stamp as _stamp, coalesce(v.cut, 0) as _cut, coalesce(v.node, $1) as _node {v_registers_named},
               o.key is null and {same_here} as _same
        from {stage} s left join pg_temp.listed v on v.key = s._key left join pg_temp.own_key o on o.key = s._key
        where o.key is null
           or case when v.key is not null then v.cut > coalesce(($2 ->> v.node::text)::bigint, 0)
                else exists (select from syncagent.log e where e.relation = {id} and e.op = 'I' and s._key = any (e.keys)) end
        $sql$, v_tokens) using p_donor, v_before;
    execute syncagent._render($sql$
        insert into syncagent.version_{id} as w (key, stamp, node, cut, deleted {version_key_columns})
        select v.key, v.stamp, v.node, v.cut, v.deleted {version_key_columns} from pg_temp.listed v join pg_temp.staged s on s._key = v.key and s._same
        on conflict (key) do update set stamp = excluded.stamp, node = excluded.node, cut = excluded.cut, deleted = excluded.deleted {excluded_registers}
        $sql$, v_tokens);
    execute 'delete from pg_temp.staged s where s._same';
    -- Each origin's versions by themselves, as if they came in its batch.
    for v_origin in execute 'select distinct _node from pg_temp.staged order by 1' loop
        execute syncagent._render('truncate pg_temp.stage_{id}', v_tokens);
        execute syncagent._render('insert into pg_temp.stage_{id} (_stamp, _cut, _deleted {more_names}, {stage_names})'
                                  ' select s._stamp, s._cut, s._stamp is not null and coalesce(s._deleted, false) {more_of_staged}, {s_columns} from pg_temp.staged s where s._node = $1', v_tokens) using v_origin;
        perform syncagent._empty('pg_temp.verdict');
        execute format('select syncagent.judge_%s($1, false)', p_relation) into v_count using v_origin;
        v_conflicts := v_conflicts + v_count;
        v_taken := v_taken + syncagent._write_carefully(p_relation, v_origin, false);
        insert into syncagent.dropped_row (relation, key, image, odd)
        select b.relation, b.key, b.image, b.odd from pg_temp.bereft b where b.xid = pg_current_xact_id();
        perform syncagent._empty('pg_temp.bereft');
    end loop;
    execute syncagent._render($sql$
        select exists (
            select from syncagent.log l cross join lateral unnest(l.keys) as k (key)
            where l.relation = {id} and l.xid <> pg_current_xact_id() and not pg_visible_in_snapshot(l.xid, $1)
              and (exists (select from pg_temp.dropped_key d where d.key = k.key) or exists (select from pg_temp.staged s where s._key = k.key)))
        $sql$, v_tokens) into v_again using v_seen;
    drop table pg_temp.staged;
    if v_again then
        raise exception 'a row was written while it was compared' using errcode = 'SA101';
    end if;
    return query select v_taken, v_dropped, v_conflicts;
end
$$;
comment on function syncagent._reconcile is 'make a staged range of a donor, and what is listed of its versions, that of this site; same: its rows are what is here';

create function syncagent._bring_back() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into pg_temp.bereft (xid, relation, key, image, odd)
    select distinct on (d.relation, d.key) pg_current_xact_id(), d.relation, d.key, d.image, d.odd from syncagent.dropped_row d order by d.relation, d.key;
    delete from syncagent.dropped_row;
    perform syncagent._bring_together(true);
    return syncagent._log_yielded();
end
$$;
comment on function syncagent._bring_back is 'once all ranges are here: what this site has written, and refers to a row that the donor has not, brings that one back, as where a delete comes in a batch; returns how many rows were written';

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

-- What people ask: views and functions that read, and never lock.
--
-- They are for a role that is not the agent's: `syncagent.grant_reader` gives it all of them and nothing
-- else. Functions that views call run as their owner, for a view checks its reader's right to call them.

create function syncagent._inspect_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.key_of_{id}(p_key text) returns uuid
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select {key_of_text} from {named} $$;

create function syncagent.row_of_{id}(p_key text) returns xid
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select t.xmin from {named} join {table} t on {t_eq_f} $$;

create function syncagent.holds_{id}(p_key text, p_columns jsonb) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select exists (select from {named} join {table} t on {t_eq_f} where to_jsonb(t.*) @> p_columns) $$;
$sql$ $template$;

-- The pieces ------------------------------------------------------------------------------------------------

create function syncagent._entries() returns table (relation integer, entries bigint)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
begin
    for relation in select r.id from syncagent.replicated r order by r.id loop
        execute format('select count(*) from syncagent.version_%s', relation) into entries;
        return next;
    end loop;
end
$$;
comment on function syncagent._entries is 'version entries of each attached table: rows that are unsettled';

create function syncagent._log_bytes() returns bigint
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$ select sum(pg_relation_size(i.inhrelid))::bigint from pg_inherits i where i.inhparent = 'syncagent.log'::regclass $$;
comment on function syncagent._log_bytes is 'size of the log of captured statements';

create function syncagent._kept_bytes() returns bigint
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    from pg_class c
    where c.relnamespace = 'syncagent'::regnamespace and c.relkind = 'r'
      and (c.relname in ('cut', 'cut_keys', 'context', 'settling', 'alias') or c.relname like 'version\_%' or c.relname like 'log\_%')
$$;
comment on function syncagent._kept_bytes is 'bytes of what is kept until every site has it: keys of cuts, versions, contexts, the log';

create function syncagent._agent_runs() returns boolean
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (
        select from pg_locks l
        where l.locktype = 'advisory' and l.classid = 1937337955 and l.objid = 2 and l.objsubid = 2 and l.granted
          and l.database = (select d.oid from pg_database d where d.datname = current_database()))
$$;
comment on function syncagent._agent_runs is 'whether an agent holds this site';

create function syncagent._site_name(p_node integer) returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$ select coalesce((select m.name from syncagent.member m where m.node = p_node), 'node ' || p_node) $$;
comment on function syncagent._site_name is 'name of a member; one that has left is known by its number';

create function syncagent._key_text(p_shown jsonb, p_keys name[]) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$
    select case cardinality(p_keys) when 1 then p_shown ->> p_keys[1]::text else
        '(' || string_agg(
            case when v ~ '[(),"\\[:space:]]' or v = '' then '"' || replace(replace(v, '\', '\\'), '"', '""') || '"' else coalesce(v, '') end,
            ',' order by n) || ')' end
    from unnest(p_keys) with ordinality as k (name, n) cross join lateral (select p_shown ->> k.name::text) as s (v)
$$;
comment on function syncagent._key_text is 'the key of a row shown as JSON, spelled as why() and conflicts_of() take it';

create function syncagent._commit_time(p_xid xid) returns timestamptz
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$ select case when current_setting('track_commit_timestamp')::boolean then pg_xact_commit_timestamp(p_xid) end $$;
comment on function syncagent._commit_time is 'when a transaction committed here, if this server keeps that';

create function syncagent._trees() returns table (relation integer, sealed_until timestamptz, open_buckets bigint)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select f.relation, case when f.built > 0 then to_timestamp(f.built * syncagent._width(f.bucket, true) / 4096000) end, count(d.relation)
    from syncagent.forest f left join (select distinct * from syncagent._forest_dirty()) d on d.relation = f.relation
    group by f.relation, f.built
$$;
comment on function syncagent._trees is 'how far the tree of each attached table is sealed, and how many of its buckets have a leaf that is to be computed anew';

create function syncagent._failure(p_relation integer, p_key uuid, p_column text) returns text
    language sql stable
    as $$ select m.reason from syncagent.merge_result m where (m.relation, m.key, m.column_name) = (p_relation, p_key, p_column::name) $$;
comment on function syncagent._failure is 'why the function that merges a column has failed for a row; null if it has not';

create function syncagent._open(p_conflict uuid) returns boolean
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table    syncagent.replicated;
    v_open     boolean;
    v_conflict syncagent.conflict_record;
begin
    select * into v_conflict from syncagent.conflict_record c where c.id = p_conflict;
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation
    where r.schema_name = v_conflict.schema_name and r.table_name = v_conflict.table_name;
    if v_conflict.strategy = 'merge' and v_conflict.constraint_name is null then   -- as long as both are siblings
        return v_table.strategy = 'merge' and exists (
            select from syncagent._parts_of(syncagent._registers(v_table.id, v_conflict.key)) as p
            where p.value ->> 0 in (v_conflict.winning_stamp::text, v_conflict.losing_stamp::text)
              and (coalesce(v_table.merges ->> p.key, 'latest') = 'latest' or syncagent._failure(v_table.id, v_conflict.key, p.key) is not null)
            group by p.key having count(*) = 2);
    elsif v_table.id is null or v_conflict.yielded is null then
        return false;
    end if;
    execute format('select syncagent.holds_%s($1, $2)', v_table.id) into v_open using v_conflict.key_text, v_conflict.yielded;
    return v_open;
exception when data_exception then
    return false;   -- the table has another key by now
end
$$;
comment on function syncagent._open is 'whether the row that had to yield a value still lives with what it was given instead';

create function syncagent._forget_conflicts(p_age interval, p_most integer) returns bigint
    language sql volatile
    set search_path = pg_catalog, pg_temp
    as $$
    with old as (
        select c.id from syncagent.conflict_record c
        where c.noticed_at < clock_timestamp() - p_age and not ((c.yielded is not null or c.strategy = 'merge' and c.constraint_name is null) and syncagent._open(c.id))
        order by c.noticed_at limit p_most for update skip locked
    ), gone as (
        delete from syncagent.conflict_record c using old where c.id = old.id returning c.id
    ), steps as (
        delete from syncagent.conflict_step s using gone where s.conflict = gone.id
    ), late as (   -- of what is forgotten already
        delete from syncagent.conflict_step s
        where s.what <> 'noticed' and s.at < clock_timestamp() - p_age and not exists (select from syncagent.conflict_record c where c.id = s.conflict)
    )
    select count(*) from gone
$$;
comment on function syncagent._forget_conflicts is 'drop some conflicts that were noticed so long ago; open ones stay; returns how many went';

-- The views -------------------------------------------------------------------------------------------------

create view syncagent.schema_change as
select r.id, r.name, r.state, r.phase, r.asked_at, r.site as asked_at_site, r.steps, r.let_go as steps_let_go,
       greatest(r.let_go - greatest(r.upto - s.schema_epoch, 0), 0)::integer as steps_done_here, r.failures, r.sql
from syncagent.schema_record r cross join syncagent.local_site s
order by r.place;
comment on view syncagent.schema_change is 'changes of the schema, in their order: state is open, back, done or aborted; failures says which site cannot do its next step, and why';

create view syncagent.replicated_table as
select format('%I.%I', coalesce(n.nspname, r.schema_name), coalesce(c.relname, r.table_name)) as table_name,
       r.key_columns::text[] as key_columns, r.derived, r.strategy, r.bucket, r.columns::text[] as columns,
       case when syncagent._estimate(r.relation) >= 0 then syncagent._estimate(r.relation)::bigint end as estimated_rows,
       e.entries as unsettled_rows,
       (select count(*) from syncagent.parked_row p where p.relation = r.id) as parked_rows,
       r.attached_at, c.oid is null as dropped, t.sealed_until, t.open_buckets
from syncagent.replicated r
join syncagent._entries() e on e.relation = r.id
left join syncagent._trees() t on t.relation = r.id
left join pg_class c on c.oid = r.relation
left join pg_namespace n on n.oid = c.relnamespace;
comment on view syncagent.replicated_table is 'attached tables; unsettled rows are those that some site may not have yet; rows with keys made before sealed_until are in sealed buckets, of which some are open, being written';

create view syncagent.lag as
with said as (
    select s.node as receiver, f.node as origin, f.cut from syncagent.local_site s cross join syncagent.frontier f
    union all
    select f.node, c.key::integer, c.value::bigint from syncagent.frontier f cross join jsonb_each_text(f.context) as c
    union all
    select p.node, c.key::integer, c.value::bigint from syncagent.peer_state p cross join jsonb_each_text(p.frontier) as c
), has as (
    select receiver, origin, max(cut) as cut from said group by receiver, origin
)
select o.name as origin, r.name as receiver, o.node as origin_node, r.node as receiver_node,
       greatest(coalesce(made.cut, 0) - coalesce(has.cut, 0), 0) as cuts, ours.rows, ours.seconds
from syncagent.member o
join syncagent.member r on r.node <> o.node and not o.witness and not r.witness
left join has as made on made.origin = o.node and made.receiver = o.node
left join has on has.origin = o.node and has.receiver = r.node
left join lateral (
    select coalesce(sum(c.rows), 0)::bigint as rows,
           round(extract(epoch from coalesce(clock_timestamp() - min(c.made_at) filter (where c.rows > 0), '0'))::numeric, 3)::float8 as seconds
    from syncagent.cut c where c.number > coalesce(has.cut, 0)
) as ours on o.node = (select s.node from syncagent.local_site s);
comment on view syncagent.lag is 'what each site has not applied of each other, as far as it is known here; rows and seconds only of this site''s own cuts';

create view syncagent.site as
select m.name, m.node, m.node = s.node as is_self,
       case when m.node = s.node then case when syncagent._agent_runs() then 'running' else 'no agent' end
            when not syncagent._agent_runs() then 'unknown'
            when p.paused then 'paused' when p.linked then 'linked' when p.via is not null then 'relayed' else 'away' end as state,
       case when m.state = 'joining' then 'joining' when not m.votes then 'learner' when m.witness then 'witness' else 'voter' end as role,
       case when syncagent._agent_runs() then m.node = led.leader end as leads, m.address,
       case when m.node = s.node then s.site end as site,
       case when m.node = s.node then s.incarnation end as incarnation,
       case when m.node = s.node then a.version end as agent_version,
       case when m.node = s.node then a.started_at end as agent_started_at
from syncagent.local_site s
cross join syncagent.member m
left join syncagent.peer_state p on p.node = m.node
left join syncagent.agent_state a on m.node = s.node
left join syncagent.agent_state led on true;
comment on view syncagent.site is 'the sites of the cluster: this one, and those its agent knows; role is what they are to the group that agrees on members, leads who leads it';

create view syncagent.status as
select m.name, m.node, m.is_self, m.state, m.role, m.leads, coalesce(p.linked, false) as linked, coalesce(p.paused, false) as paused,
       l.cuts as behind_cuts, l.rows as behind_rows, l.seconds as behind_seconds,
       f.cut as applied_cut, f.applied_at,
       case when m.is_self then (select count(*) from syncagent.parked_row) else p.parked end as parked,
       case when m.is_self then a.waiting else p.waiting end as waiting,
       case when m.is_self then a.trouble else p.trouble end as trouble,
       (extract(epoch from p.rtt) * 1000)::float8 as rtt_ms,
       extract(epoch from p.clock_offset)::float8 as clock_offset_seconds,
       p.changed_at as known_since,
       case when m.is_self then syncagent._log_bytes() end as log_bytes,
       case when m.is_self then (select coalesce(sum(e.entries), 0)::bigint from syncagent._entries() e) end as unsettled_rows,
       case when m.is_self then (select count(*) from syncagent.cut) end as kept_cuts,
       case when m.is_self then (select count(*) from syncagent.conflict_record) end as conflicts,
       syncagent._site_name(p.via) as via,
       (select max(q.last_at) from syncagent.proof_record q where q.node = m.node and q.equal) as equal_at,
       case when m.is_self then array(select format('%I.%I: %s', t.schema_name, t.table_name, d.what) from syncagent.typed_record d
                                      join syncagent.replicated t on t.id = d.relation where d.epoch is null order by d.since, 1) end as typed
from syncagent.site m
left join syncagent.peer_state p on p.node = m.node
left join syncagent.frontier f on f.node = m.node
left join syncagent.agent_state a on m.is_self
left join syncagent.lag l on l.receiver_node = m.node and l.origin_node = (select s.node from syncagent.local_site s);
comment on view syncagent.status is 'every site: what it has not applied of this one (behind), what this one has applied of it, and what is the matter; equal_at is when it was last found equal to this one; typed is what somebody has made of attached tables by hand, see typed_change';

create view syncagent.conflict as
select c.id, format('%I.%I', c.schema_name, c.table_name) as table_name, c.key_text as key, c.kind, c.strategy,
       syncagent._site_name(c.winning_node) as winner, syncagent._site_name(c.losing_node) as loser,
       c.winning_image, c.losing_image, c.winning_stamp, c.losing_stamp,
       syncagent.stamp_time(c.winning_stamp) as winning_time, syncagent.stamp_time(c.losing_stamp) as losing_time,
       c.noticed_at, s.at as resolved_at, s.by_role::text as resolved_by, c.constraint_name::text as constraint_name, c.other_key_text as other_key, c.yielded,
       (c.yielded is not null or c.strategy = 'merge' and c.constraint_name is null) and syncagent._open(c.id) as open,
       array(select syncagent._site_name(n.node) from syncagent.conflict_step n where n.conflict = c.id and n.what = 'noticed' order by n.node) as noticed_by,
       syncagent._site_name(s.node) as resolved_site,
       (select string_agg(format('%I: %s', m.column_name, m.reason), '; ' order by m.column_name)
        from syncagent.replicated r join syncagent.merge_result m on m.relation = r.id and m.key = c.key and m.reason is not null
        where (r.schema_name, r.table_name) = (c.schema_name, c.table_name) and c.strategy = 'merge' and c.constraint_name is null) as failure,
       c.columns::text[] as columns
from syncagent.conflict_record c
left join lateral (select * from syncagent.conflict_step s where s.conflict = c.id and s.what <> 'noticed'
                   order by s.hlc desc, s.node desc limit 1) as s on s.what = 'resolved'
where has_table_privilege('syncagent.conflict_record', 'select') or syncagent._may_see(current_user, c.schema_name, c.table_name);
comment on view syncagent.conflict is 'every version that was overwritten unseen: who won, who lost, and both rows; an image is null where the row was deleted; columns are those that both wrote, where rows are not written whole. Of two rows with one value of a constraint that of other_key keeps it; it is open while the other lives with what it was given instead, or (a policy merge) the other was merged into it; of a table whose strategy is merge, as long as both are siblings, or a function of yours fails for them: failure says why. Others are settled by the rule: the newer stamp has won. Every site shows those of all sites: noticed_by are the sites that met both versions before they were told, resolved_site is where somebody has settled it. A role is shown those of tables of which it may read every row, the agent''s those of all';

create view syncagent.parked as
select format('%I.%I', r.schema_name, r.table_name) as table_name, syncagent._key_text(p.shown, r.key_columns) as key,
       syncagent._site_name(p.node) as origin, p.sqlstate, p.reason, p.shown as image, p.stamp,
       syncagent.stamp_time(p.stamp) as written_at, p.since
from syncagent.parked_row p join syncagent.replicated r on r.id = p.relation
where has_table_privilege('syncagent.parked_row', 'select') or syncagent._may_see(current_user, r.schema_name, r.table_name);
comment on view syncagent.parked is 'rows that arrived and break a constraint here; they are tried again after every batch. A role is shown those of tables that it may read';

create view syncagent.proof as
select p.last_at as at, syncagent._site_name(p.node) as site, p.equal, p.tables, p.rows, p.before, p.complete, p.open, p.root,
       p.here as frontier_here, p.there as frontier_there, p.found, p.first_at as since, p.times
from syncagent.proof_record p;
comment on view syncagent.proof is 'what was compared with each site: equal or not, how many rows of how many tables, those whose keys were made before when (null: all), buckets that were being written, the root, and what differs';

create view syncagent.repair as
select r.made_at as at, r.schema_name, r.table_name, r.key_text as key, r.cause, syncagent._site_name(r.node) as source,
       r.stamp_before, r.stamp_after, r.image_before, r.image_after
from syncagent.repair_record r
where has_table_privilege('syncagent.repair_record', 'select') or syncagent._may_see(current_user, r.schema_name, r.table_name);
comment on view syncagent.repair is 'rows that were repaired at this site: missing, lost (its entry says that it lives), older, or made like at most sites (majority) or at the one a person named (source); after whom, and what was there before and is now. A role is shown those of tables that it may read';

-- The story of a row ----------------------------------------------------------------------------------------

create function syncagent._row(p_table regclass, p_key text, out relation integer, out key uuid)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_variable
begin
    select r.id into relation from syncagent.replicated r where r.relation = p_table;
    if not found then
        raise exception 'table % is not attached', p_table
            using errcode = 'SA003', hint = format('syncagent attach %s; `syncagent tables` lists those that are', p_table);
    end if;
    begin
        execute format('select syncagent.key_of_%s($1)', relation) into strict key using p_key;
    exception when data_exception then
        raise exception 'the key % does not fit table %', quote_literal(p_key), p_table
            using errcode = 'SA004', detail = sqlerrm,
                  hint = (select format('its key is %s; several columns are written as (1,abc)', array_to_string(r.key_columns, ', '))
                          from syncagent.replicated r where r.id = relation);
    end;
end
$$;
comment on function syncagent._row is 'attached table and row key of a key given as text';

create function syncagent.conflicts_of(p_table regclass, p_key text) returns setof syncagent.conflict
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._must_be_allowed(r.schema_name, r.table_name, 'select') from syncagent.replicated r where r.relation = p_table;
    select c.*
    from syncagent._row(p_table, p_key) as w
    join syncagent.replicated r on r.id = w.relation
    join syncagent.conflict_record x on (x.schema_name, x.table_name, x.key) = (r.schema_name, r.table_name, w.key)
    join syncagent.conflict c on c.id = x.id
    order by x.noticed_at, x.id
$$;
comment on function syncagent.conflicts_of(regclass, text) is 'the conflicts of one row, oldest first; the key as text, several columns as (1,abc)';

create function syncagent.why(p_table regclass, p_key text)
    returns table (what text, site text, at timestamptz, stamp uuid, cut bigint, detail text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_row     record;
    v_here    xid;
    v_last    record := syncagent._last_cut();
    v_me      integer := (select s.node from syncagent.local_site s);
    v_known   boolean := false;
    v_version record;
begin
    select * into strict v_row from syncagent._row(p_table, p_key);
    perform syncagent._must_be_allowed(r.schema_name, r.table_name, 'select') from syncagent.replicated r where r.id = v_row.relation;
    execute format('select syncagent.row_of_%s($1)', v_row.relation) into v_here using p_key;
    execute format('select v.* from (select) as always left join syncagent.version_%s v on v.key = $1', v_row.relation)
        into v_version using v_row.key;

    return query
    select 'written', syncagent._site_name(v_me), to_timestamp(l.hlc / 4096000.0), null::uuid, null::bigint,
           format('%s%s in transaction %s, in no cut yet',
                  case l.op when 'I' then 'inserted' when 'U' then 'updated' else 'deleted' end, ' ' || array_to_string(l.columns, ', '), l.xid)
    from syncagent.log l
    where l.relation = v_row.relation and v_row.key = any (l.keys) and (l.xid >= v_last.xmax or l.xid = any (v_last.xip))
    order by l.hlc desc;
    v_known := found;

    if v_version.key is not null then
        v_known := true;
        return query
        select case when v_version.deleted then 'deleted' else 'written' end, syncagent._site_name(v_version.node),
               syncagent.stamp_time(v_version.stamp), v_version.stamp, v_version.cut,
               case when v_version.cut is null then 'in no cut yet'
                    when v_version.cut = 0 then 'before the table was attached, under a key ahead of the clock'
                    else coalesce('unsettled: not known yet to be at ' || string_agg(m.name, ', ' order by m.node),
                                  'every site has it') end
        from (select) as always
        left join syncagent.member m on not m.witness and v_version.cut > coalesce((
            select case when m.node = v_me then f.cut else (x.context ->> v_version.node::text)::bigint end
            from (select) as one
            left join syncagent.frontier f on f.node = v_version.node
            left join syncagent.frontier x on x.node = m.node), 0);
        return query   -- by column, if the table's strategy is
        select case e.key when '' then 'inserted' else format('column %s', e.key) end, syncagent._site_name(e.node),
               syncagent.stamp_time((e.value ->> 0)::uuid), (e.value ->> 0)::uuid, (e.value ->> 2)::bigint,
               case e.key when '' then 'what was written before is of a row that was deleted' else 'its newest write' end
        from syncagent._parts_of(to_jsonb(v_version) -> 'registers') as e
        order by 4 desc, 1;
    end if;

    if not v_known then
        return query
        select case when v_here is null then 'absent' else 'settled' end, null::text, syncagent._commit_time(v_here),
               case when v_here is not null then syncagent._implicit(v_row.key) end, null::bigint,
               case when v_here is null then 'no site wrote it, or every site knows that it was deleted'
                    else 'every site has it'
                      || coalesce('; its key was made at ' || syncagent.stamp_time(v_row.key)::text, '')
                      || case when syncagent._commit_time(v_here) is null
                              then '; when it was last written is forgotten (the server''s track_commit_timestamp would keep it)' else '' end end;
    end if;

    return query
    select 'settling', syncagent._site_name(v_me), null::timestamptz, null::uuid, null::bigint,
           'lives here under a newer delete; the agent writes it anew'
    from syncagent.settling s where s.relation = v_row.relation and s.key = v_row.key;

    return query
    select 'parked', syncagent._site_name(p.node), syncagent.stamp_time(p.stamp), p.stamp, p.cut,
           format('waits here since %s: %s (%s)', p.since, p.reason, p.sqlstate)
    from syncagent.parked_row p where p.relation = v_row.relation and p.key = v_row.key;

    return query
    select 'merged', syncagent._site_name(a.node), null::timestamptz, null::uuid, a.cut, format('rows that refer to it are given to row %s', a.winner)
    from syncagent.alias a where a.relation = v_row.relation and a.loser = v_row.key;

    return query
    select 'merged', c.winner, c.noticed_at, null::uuid, null::bigint, format('row %s was merged into this one; it was %s; conflict %s', c.key, c.losing_image, c.id)
    from syncagent.conflict_record x join syncagent.replicated t on t.id = v_row.relation join syncagent.conflict c on c.id = x.id
    where x.schema_name = t.schema_name and x.table_name = t.table_name and x.other_key = v_row.key and x.kind = 'unique' and x.strategy = 'merge'
    order by c.noticed_at desc;

    return query
    select 'conflict', c.winner, c.winning_time, c.winning_stamp, null::bigint,
           case when c.yielded is not null
                then format('%s: row %s keeps its value of %s; it was %s; conflict %s, %s', c.kind, c.other_key, c.constraint_name,
                            c.losing_image, c.id, case when c.open then 'open' else 'settled since' end)
                when c.kind = 'unique'
                then format('unique: merged into row %s, which has its value of %s; it was %s; conflict %s%s', c.other_key, c.constraint_name,
                            c.losing_image, c.id, case when c.resolved_at is not null then ', taken back' else '' end)
                when c.strategy = 'cascade'
                then format('foreign key: deleted with row %s, to which it referred by %s; it was %s; conflict %s', c.other_key, c.constraint_name, c.losing_image, c.id)
                else format('%s: won over %s (%s), which wrote %s; conflict %s', c.kind, c.loser,
                            coalesce(c.losing_time::text, 'no time'), coalesce(c.losing_image::text, 'a delete'), c.id) end
    from syncagent.conflicts_of(p_table, p_key) as c order by c.noticed_at desc;
end
$$;
comment on function syncagent.why(regclass, text) is
    'the story of one row, newest first: unsettled (which site, when, stamp, cut, and who may not have it yet) or settled, parked, merged, its conflicts';

create function syncagent.constraints_of(p_table regclass)
    returns table (constraint_name text, kind text, policy text, column_name text, becomes text)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select u.name::text, u.kind, u.policy, case when u.policy <> 'merge' then u.column_name::text end,
           case when u.policy = 'merge' then 'one row' when u.yields = 'null' then 'null' when u.yields = 'suffix' then 'marked text' end
    from syncagent.replicated r cross join lateral syncagent._rules(r.id) as u where r.relation = p_table
    union all
    select x.name::text, 'foreign key', x.policy, null, null
    from syncagent.replicated r
    cross join lateral (select distinct f.confrelid from pg_constraint f where f.conrelid = r.relation and f.contype = 'f') as f
    join syncagent.replicated p on p.relation = f.confrelid
    cross join lateral syncagent._references(p.id) as x
    where r.relation = p_table and x.relation = r.id
    order by 2 desc, 1
$$;
comment on function syncagent.constraints_of(regclass) is 'unique, exclusion and foreign key constraints of an attached table: what is done where rows of two sites collide, or one site deletes what a row of another refers to; and which column of the row of the larger key yields';

-- The tree of a table ---------------------------------------------------------------------------------------

create function syncagent.forest_of(p_table regclass, p_level text default 'day')
    returns table (begins timestamptz, rows bigint, buckets bigint, leaves bigint, open bigint, digest text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_relation integer := (select r.id from syncagent.replicated r where r.relation = p_table);
begin
    if v_relation is null then
        raise exception 'table % is not attached', p_table
            using errcode = 'SA003', hint = format('syncagent attach %s; `syncagent tables` lists those that are', p_table);
    elsif p_level not in ('year', 'month', 'day', 'hour', 'minute') then
        raise exception 'there is no level % in the tree of a table', quote_literal(p_level)
            using errcode = 'SA004', hint = 'one of year, month, day, hour, minute';
    end if;
    return query
        with bucket as (
            select b.timed, b.number, b.rows, cardinality(b.slices) as leaves, b.lane_0, b.lane_1, false as open
            from syncagent.bucket b where b.relation = v_relation
            union all
            select distinct d.timed, d.number, 0, 0, 0, 0, true from syncagent._forest_dirty() d where d.relation = v_relation
        ), dated as (
            select b.*, to_timestamp(b.number * syncagent._width(f.bucket, true) / 4096000) as time
            from bucket b join syncagent.forest f on f.relation = v_relation
        )
        select case when b.timed then date_trunc(p_level, b.time, 'UTC') end as begins, sum(b.rows)::bigint,
               count(*) filter (where b.rows > 0), sum(b.leaves)::bigint, count(*) filter (where b.open),
               encode(int8send(syncagent._modulo(sum(b.lane_0))) || int8send(syncagent._modulo(sum(b.lane_1))), 'hex')
        from dated b group by 1 order by 1;
end
$$;
comment on function syncagent.forest_of(regclass, text) is 'the sealed buckets of a table by year, month, day, hour or minute in which their keys were made (UTC; null: keys without a time), not finer than the buckets are: rows, leaves, how many buckets are open because a leaf is to be computed anew, and the digest, which is the same at sites that are equal';

-- Who may call what -----------------------------------------------------------------------------------------

create function syncagent.grant_reader(p_role regrole) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('grant usage on schema syncagent to %s', p_role);
    execute format('grant select on syncagent.site, syncagent.status, syncagent.lag, syncagent.replicated_table, syncagent.schema_change,'
                   ' syncagent.typed_change, syncagent.conflict, syncagent.parked, syncagent.proof, syncagent.repair, syncagent.app_version to %s', p_role);
    execute format('grant execute on function syncagent.why(regclass, text), syncagent.conflicts_of(regclass, text), syncagent.constraints_of(regclass), syncagent.forest_of(regclass, text), syncagent.version_users(name), syncagent.siblings(regclass, text),'
                   ' syncagent._entries(), syncagent._trees(), syncagent._estimate(regclass), syncagent._log_bytes(), syncagent._agent_runs(), syncagent._site_name(integer), syncagent._open(uuid), syncagent._may_see(name, name, name),'
                   ' syncagent.resolve(uuid, text), syncagent.resolve_with(uuid, jsonb), syncagent.undo(uuid), syncagent.drop_parked(regclass, text), syncagent._named(uuid), syncagent._still_keeps(uuid), syncagent._apart(uuid, jsonb), syncagent._is_merge(syncagent.conflict_record),'
                   ' syncagent._resolve(uuid, jsonb), syncagent._resolution(uuid, jsonb, boolean), syncagent._made(uuid), syncagent._settle_by_hand(syncagent.conflict_record, jsonb),'
                   ' syncagent._statement(name, name, text, jsonb, boolean), syncagent._yielding(syncagent.conflict_record), syncagent._marked(text, integer, uuid),'
                   ' syncagent.resolve_siblings(regclass, text, jsonb, text), syncagent._hold_row(regclass, text), syncagent._settled_columns(regclass, text, name[]), syncagent._columns_of(syncagent.conflict_record), syncagent._must_be_allowed(name, name, text),'
                   ' syncagent._key_text(jsonb, name[]), syncagent._typed_sql(integer, text, name, jsonb, jsonb, name), syncagent._watched() to %s', p_role);
    if to_regclass('syncagent.schema_version') is not null then   -- for the command line, which asks before it reads
        execute format('grant select on syncagent.schema_version to %s', p_role);
    end if;
end
$$;
comment on function syncagent.grant_reader(regrole) is 'let a role look: all views, why(), conflicts_of(), siblings(), constraints_of() and forest_of(); rows are shown of tables of which it may read every row';

revoke execute on all functions in schema syncagent from public;
grant usage on schema syncagent to public;
grant execute on function syncagent.uuid7(), syncagent.stamp_time(uuid), syncagent.stamp_node(uuid), syncagent.uuid7_floor(timestamptz),
    syncagent.truncate(regclass) to public;
