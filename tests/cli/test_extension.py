"""The SQL side as an extension: the same objects, dumped and restored with their rows, and gone without a trace."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncagent.embedded import Server, scratch
from syncagent.storage import migrations
from tests.cli.conftest import Cli, init
from tests.support import extension
from tests.support.databases import Database

TABLE = "create table t (id uuid primary key default gen_random_uuid(), v text)"


@pytest.fixture
def make(server18: Server, make_database: Callable[..., Database]) -> Iterator[Callable[[], Database]]:
    """Databases that find the extension's files: from 18 on these need not lie in the server's own folder."""
    with scratch("syncagent-extension-") as folder:
        extension.write(folder / "extension")
        for path in (folder, folder / "extension", *(folder / "extension").iterdir()):
            path.chmod(0o755)

        def make() -> Database:
            database = make_database(server18)
            database.execute(
                f"alter database {database.name} set extension_control_path = '{folder}:$system'"
            )
            return database

        yield make


def schema_of(database: Database) -> str:
    done = subprocess.run(
        [database.server.binaries.tool("pg_dump"), "--schema-only", "--dbname", database.dsn],
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line for line in done.stdout.splitlines(keepends=True) if "restrict " not in line)


def test_created_attached_dumped_restored_dropped(
    make: Callable[[], Database], cli: Cli, tmp_path: Path
) -> None:
    database, copy = make(), make()
    database.execute(TABLE)
    before = schema_of(database)
    database.execute("create extension syncagent")
    assert database.execute("select extversion from pg_extension where extname = 'syncagent'") == [
        (migrations.newest(),)
    ]
    home = tmp_path / "home"
    assert init(cli, database, home).code == 0
    assert cli("attach", "t", "--home", home).code == 0
    database.execute("insert into t (v) values ('x')")
    assert cli("db", "check", "--home", home).code == 0

    dumped = subprocess.run(
        [database.server.binaries.tool("pg_dump"), "--format=custom", "--dbname", database.dsn],
        capture_output=True,
        check=True,
    )
    subprocess.run(
        [database.server.binaries.tool("pg_restore"), "--exit-on-error", "--dbname", copy.dsn],
        input=dumped.stdout,
        capture_output=True,
        check=True,
    )
    said = cli("db", "check", "--dsn", copy.dsn)
    assert (said.code, said.err) == (0, ""), said.out
    copy.execute("insert into t (v) values ('y')")
    for query, rows in (
        ("select name, node from syncagent.local_site", [("paris", 1)]),
        ("select count(*) from syncagent.log", [(2,)]),
        ("select schema_name, table_name from syncagent.replicated", [("public", "t")]),
    ):
        assert copy.execute(query) == rows
    copy.execute("create table u (id uuid primary key)")
    assert cli("attach", "u", "--dsn", copy.dsn).code == 0

    assert cli("db", "uninstall", "--yes", "--home", home).code == 0
    assert database.execute("select count(*) from pg_extension where extname = 'syncagent'") == [(0,)]
    assert schema_of(database) == before


def test_it_holds_what_the_agent_installs(make: Callable[[], Database]) -> None:
    created, installed = make(), make()
    created.execute("create extension syncagent")
    installed.execute(migrations.script())
    objects = (
        "select c.relname, c.relkind::text from pg_class c where c.relnamespace = 'syncagent'::regnamespace"
        " union all select p.proname, md5(p.prosrc) from pg_proc p where p.pronamespace = 'syncagent'::regnamespace order by 1, 2"
    )
    assert created.execute(objects) == installed.execute(objects)
