"""Two roads to one SQL side, and who may use it."""

import re
import subprocess
from collections.abc import Callable

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from syncagent import resources
from syncagent.storage import migrations
from tests.support import freeze
from tests.support.databases import Database
from tests.support.releases import released

PUBLIC = {"uuid7", "stamp_time", "stamp_node", "uuid7_floor", "truncate"}


def from_sql(database: Database) -> None:
    for path in sorted(resources.sql().glob("*.sql")):
        database.execute(path.read_text())


def from_migrations(database: Database) -> None:
    database.execute(migrations.script())


def dump(database: Database) -> str:
    """The schema, without the version table and what pg_dump makes up."""
    done = subprocess.run(
        [
            database.server.binaries.tool("pg_dump"),
            *("--schema-only", "--exclude-table", "syncagent.schema_version", "--dbname", database.dsn),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line for line in done.stdout.splitlines(keepends=True) if "restrict " not in line)


@pytest.fixture
def installed(database: Database) -> Database:
    from_sql(database)
    return database


def test_sql_and_migrations_lead_to_the_same(
    installed: Database, make_database: Callable[..., Database]
) -> None:
    migrated = make_database(installed.server)
    from_migrations(migrated)
    assert dump(migrated) == dump(installed)
    assert migrated.execute("select version_num from syncagent.schema_version") == [(migrations.newest(),)]


def test_the_first_revision_holds_the_present_sql_until_it_is_released() -> None:
    if not released():
        assert freeze.first().read_text() == freeze.present(), "run: python -m tests.support.freeze"


def test_what_is_released_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = freeze.first().read_bytes()
    monkeypatch.setattr(freeze, "released", lambda: ("0001",))
    monkeypatch.setattr(freeze, "present", lambda: "something else")
    with pytest.raises(SystemExit, match="is released"):
        freeze.main()
    assert freeze.first().read_bytes() == before


def test_alembic_can_do_it_in_a_transaction_of_ours(
    database: Database, make_database: Callable[..., Database]
) -> None:
    engine = create_engine(database.dsn.replace("postgresql://", "postgresql+psycopg://"))
    config = Config()
    config.set_main_option("script_location", str(resources.migrations()))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.rollback()
        assert database.execute("select to_regnamespace('syncagent')") == [(None,)]
        command.upgrade(config, "head")
        connection.commit()
    engine.dispose()
    other = make_database(database.server)
    from_migrations(other)
    assert dump(database) == dump(other)


def test_the_public_may_call_what_is_meant_for_it_and_nothing_else(installed: Database) -> None:
    installed.execute("create table t (id uuid primary key)")
    installed.execute(
        "insert into syncagent.local_site values (true, gen_random_uuid(), 'a', 1, gen_random_uuid(), 1)"
    )
    installed.execute("select syncagent._attach('t', false, true)")
    callable_ = installed.execute(
        "select distinct proname from pg_proc where pronamespace = 'syncagent'::regnamespace"
        " and has_function_privilege('public', oid, 'execute')"
    )
    assert {name for (name,) in callable_} == PUBLIC
    readable = installed.execute(
        "select relname from pg_class where relnamespace = 'syncagent'::regnamespace and relkind in ('r', 'p', 'v', 'S')"
        " and (case relkind when 'S' then has_sequence_privilege('public', oid, 'usage')"
        " else has_table_privilege('public', oid, 'select, insert, update, delete') end)"
    )
    assert readable == []


def test_functions_say_what_they_are_for_and_trust_no_search_path(installed: Database) -> None:
    silent = installed.execute(
        "select proname from pg_proc where pronamespace = 'syncagent'::regnamespace and proname !~ '^_'"
        " and obj_description(oid, 'pg_proc') is null"
    )
    assert silent == []
    trusting = installed.execute(
        "select proname from pg_proc where pronamespace = 'syncagent'::regnamespace and (prosecdef or proname !~ '^_')"
        " and not coalesce(proconfig, '{}') @> '{\"search_path=pg_catalog, pg_temp\"}'"
    )
    assert trusting == []
    views = installed.execute(
        "select relname from pg_class where relnamespace = 'syncagent'::regnamespace and relkind = 'v'"
        " and obj_description(oid, 'pg_class') is null"
    )
    assert views == []


def test_errors_that_people_meet_have_a_state_of_ours_and_a_hint() -> None:
    text = "".join(path.read_text() for path in sorted(resources.sql().glob("*.sql")))
    for statement in re.findall(r"raise exception '.*?;\n", text, re.DOTALL):
        assert re.search(r"errcode = 'SA\d\d\d'", statement), statement
        if re.search(r"errcode = 'SA00\d'", statement):
            assert "hint" in statement, statement
