#!/bin/sh
# Run once by the PostgreSQL image in an empty data directory: a database, the owner of its tables, and the agent's role with
# the rights that docs/managed_postgres.md lists, no superuser. SITE_NAME and AGENT_PASSWORD_FILE are given.

run() { psql --set ON_ERROR_STOP=1 --no-psqlrc --quiet --username "${POSTGRES_USER:-postgres}" --dbname "$1"; }

# A subshell: the image may read this file into its own shell.
make_database() (
  set -eu
  # psql reads the password from its file: it is in no command line.
  run "${POSTGRES_DB:-postgres}" <<'SQL'
\set password `cat "$AGENT_PASSWORD_FILE"`
create role shop_owner nologin;
create role syncagent login password :'password';
grant shop_owner to syncagent;
grant set on parameter session_replication_role to syncagent;
grant pg_read_all_stats to syncagent;
create database shop owner shop_owner;
grant create on database shop to syncagent;
SQL
  run shop <<'SQL'
set role shop_owner;
create schema shop;
alter database shop set search_path = shop, public;
SQL
  # The first site brings the table; the others get it as they join.
  if [ "$SITE_NAME" = berlin ]; then
    run shop <<'SQL'
set role shop_owner;
create table shop.item (
    id uuid primary key,
    name text not null,
    price numeric(10, 2) not null check (price >= 0)
);
SQL
  fi
)

make_database
