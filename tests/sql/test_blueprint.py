"""Blueprints: what is built from one is what pg_dump sees at the donor."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import psycopg
import pytest
from psycopg.rows import dict_row

from syncagent.embedded import Server
from syncagent.errors import DatabaseError, RefusedError, UsageError
from syncagent.storage import blueprint as blueprints
from syncagent.storage.blueprint.parts import Blueprint, Name
from syncagent.storage.commands import Connection
from tests.sql.random_schema import TYPES, Table
from tests.sql.rich_schema import BEFORE_15, NOT_TAKEN, RICH, ROLES, SINCE_15, SINCE_18, statements
from tests.support.databases import Database
from tests.support.dumps import dumped
from tests.support.postgres import Servers

Make = Callable[..., Database]

_TABLES = """
    select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and not c.relispartition and n.nspname not in ('pg_catalog', 'information_schema', 'syncagent') order by 1, 2
"""


@contextmanager
def connected(database: Database, role: str | None = None) -> Iterator[Connection]:
    dsn = database.dsn_of(role) if role else database.dsn
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def take(database: Database, *names: str) -> Blueprint:
    """The blueprint of tables (`schema.name`), or of all; it has travelled."""
    tables = [tuple(name.split(".")) for name in names] or database.execute(_TABLES)
    with connected(database) as connection:
        taken = blueprints.take(connection, [(table[0], table[1]) for table in tables])
    return msgspec.msgpack.decode(msgspec.msgpack.encode(taken), type=Blueprint)


def build(database: Database, blueprint: Blueprint, rows: str = "") -> list[str]:
    with connected(database) as connection:
        notes = blueprints.build_before(connection, blueprint)
        if rows:
            database.execute(rows)
        notes += blueprints.build_keys(connection, blueprint)
        return notes + blueprints.build_after(connection, blueprint)


def differences(database: Database, blueprint: Blueprint) -> list[str]:
    with connected(database) as connection:
        return blueprints.differences(connection, blueprint)


def make_roles(*servers: Server) -> None:
    for server in servers:
        for role in ROLES:
            try:
                server.create_role(role)
            except psycopg.errors.DuplicateObject:
                pass


def check(donor: Database, target: Database) -> None:
    """What differs in the eyes of the newer server's pg_dump."""
    by = max((donor.server, target.server), key=lambda server: server.binaries.major)
    there, here = dumped(donor, by), dumped(target, by)
    assert not there ^ here, "\n".join(["---- donor", *sorted(there - here), "---- target", *sorted(here - there)])
    assert len(there) > 1


def rich(server: Server, make_database: Make, extra: str | None = None) -> Database:
    make_roles(server)
    donor = make_database(server)
    donor.execute(statements(server.binaries.major) if extra is None else RICH + BEFORE_15 + extra)
    return donor


def test_everything_is_brought_along(server: Server, make_database: Make) -> None:
    donor, target = rich(server, make_database), make_database(server)
    taken = take(donor)
    assert taken.notes == taken.needs == ()
    assert build(target, taken) == []
    donor.execute(NOT_TAKEN)
    check(donor, target)


def test_a_newer_server_can_have_it_too(
    server15: Server, server18: Server, make_database: Make
) -> None:
    donor, target = rich(server15, make_database), make_database(server18)
    make_roles(server18)
    assert build(target, take(donor)) == []
    donor.execute(NOT_TAKEN)
    check(donor, target)


def test_an_older_server_can_have_what_it_knows(
    server15: Server, server18: Server, make_database: Make
) -> None:
    donor, target = rich(server18, make_database, SINCE_15), make_database(server15)
    make_roles(server15)
    assert build(target, take(donor)) == []
    donor.execute(NOT_TAKEN)
    check(donor, target)


def test_what_an_older_server_cannot_have_is_refused(
    server15: Server, server18: Server, make_database: Make
) -> None:
    donor, target = rich(server18, make_database, SINCE_15 + SINCE_18), make_database(server15)
    make_roles(server15)
    taken = take(donor)
    before = dumped(target)
    with pytest.raises(RefusedError) as caught:
        build(target, taken)
    said = caught.value.detail or ""
    assert "table app.late needs a virtual generated column" in said
    assert "constraint unenforced of app.late needs NOT ENFORCED: PostgreSQL 18 can, this server is 15" in said
    assert dumped(target) == before


# ---- random schemas


@pytest.mark.soak
def test_random_schemas(
    servers: Servers, make_database: Make, runs: Callable[[int, int], int], seed: int
) -> None:
    for number in range(runs(3, 60)):
        sys.stdout.write(f"SEED={seed + number}\n")  # shown if it fails
        chance = random.Random(seed + number)
        majors = chance.choice([(15, 15), (18, 18), (15, 18), (18, 15)])
        donor, target = (make_database(servers.of(major)) for major in majors)
        for statement in [TYPES, *(s for n in range(3) for s in Table(chance, n).definition())]:
            donor.execute(statement)
        assert build(target, take(donor)) == []
        donor.execute("""
            do $$ declare r record; begin   -- types that no table uses
                for r in select t.oid::regtype as name from pg_type t where t.typnamespace = 'rnd'::regnamespace and t.typtype in ('e', 'd', 'c') order by t.typtype = 'e'
                loop begin execute format('drop type %s', r.name); exception when dependent_objects_still_exist then null; end; end loop;
                begin drop schema rnd; exception when dependent_objects_still_exist then null; end;
            end $$""")
        check(donor, target)
