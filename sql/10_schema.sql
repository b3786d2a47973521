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
