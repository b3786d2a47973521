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
