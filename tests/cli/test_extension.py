"""The SQL side as an extension: the same objects, raised, dumped and restored with their rows, and gone without a trace."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncagent import resources
from syncagent.embedded import Server, scratch
from syncagent.storage import migrations
from tests.cli.conftest import Cli, init
from tests.support import extension
from tests.support.databases import Database
from tests.support.postgres import binaries

TABLE = "create table t (id uuid primary key default gen_random_uuid(), v text)"
MORE = """create table counted (n serial primary key, v text);
    create table parted (a int, b text, primary key (a, b)) partition by list (a);
    create table parted_one partition of parted for values in (1)"""
ANYWHERE = 18
"""From this version on, an extension's files need not lie in the server's own folder."""

Make = Callable[[], Database]


@contextmanager
def placed(folder: Path) -> Iterator[None]:
    """The extension's files in a server's own folder, for a while."""
    made = [folder / name for name in extension.files()]
    if any(path.exists() for path in made):
        pytest.skip(f"{made[0]} is there already, and somebody else's")
    try:
        extension.write(folder)
    except OSError as error:
        pytest.skip(f"the extension's files cannot be written: {error}")
    try:
        yield
    finally:
        for path in folder.glob("syncagent*"):
            path.unlink()


@pytest.fixture
def files(matrix_server: Server) -> Iterator[Path]:
    """The folder in which the server looks for the extension."""
    if matrix_server.binaries.major >= ANYWHERE:
        with scratch("syncagent-extension-") as folder:
            extension.write(folder / "extension")
            yield folder / "extension"
        return
    with Database(matrix_server, "postgres").connect() as connection:
        (row,) = connection.execute("select setting from pg_config where name = 'SHAREDIR'").fetchall()
    folder = Path(row[0]) / "extension"
    with placed(folder):
        yield folder


@pytest.fixture
def make(matrix_server: Server, files: Path, make_database: Callable[..., Database]) -> Make:
    """Databases whose server finds the extension, on each version."""

    def make() -> Database:
        database = make_database(matrix_server)
        if matrix_server.binaries.major >= ANYWHERE:
            for path in (files.parent, files, *files.iterdir()):
                path.chmod(0o755)
            database.execute(
                f"alter database {database.name} set extension_control_path = '{files.parent}:$system'"
            )
            database.leave()  # sessions that are there do not see it
        return database

    return make


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Once called, this agent is of a version that has a table more."""
    folder = tmp_path / "migrations"

    def begin() -> None:
        shutil.copytree(resources.migrations(), folder)
        first = (folder / "versions" / "0001_first.py").read_text()
        (folder / "versions" / "0002_next.py").write_text(
            first.replace("down_revision = None", 'down_revision = "0001"').replace(
                'revision = "0001"\n', 'revision = "0002"\n', 1
            )
        )
        (folder / "versions" / "0002_next.sql").write_text(
            "create table syncagent.added (n integer primary key);\n"
            "create function syncagent._added() returns integer language sql as $$ select 1 $$;\n"
        )
        monkeypatch.setattr(resources, "migrations", lambda: folder)
        migrations.revisions.cache_clear()

    yield begin
    monkeypatch.undo()
    migrations.revisions.cache_clear()


def schema_of(database: Database) -> str:
    done = subprocess.run(
        [database.server.binaries.tool("pg_dump"), "--schema-only", "--dbname", database.dsn],
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line for line in done.stdout.splitlines(keepends=True) if "restrict " not in line)


def copy_by_dump(database: Database, copy: Database) -> None:
    """By the server's own pg_dump; that of 14 crashes where an extension's table has partitions, as its log has."""
    tools = binaries(max(database.server.binaries.major, 15))
    dumped = subprocess.run(
        [tools.tool("pg_dump"), "--format=custom", "--dbname", database.dsn],
        capture_output=True,
        check=True,
    )
    subprocess.run(
        [tools.tool("pg_restore"), "--exit-on-error", "--dbname", copy.dsn],
        input=dumped.stdout,
        capture_output=True,
        check=True,
    )


def version_of(database: Database) -> list[tuple[object, ...]]:
    return database.execute("select extversion from pg_extension where extname = 'syncagent'")


def strangers(database: Database) -> list[tuple[object, ...]]:
    """What of the SQL side does not belong to the extension, but for what belongs to attached tables."""
    return database.execute(
        """
        select x.name from (
            select c.relname as name, c.tableoid as kind, c.oid from pg_class c
            where c.relnamespace = 'syncagent'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition
            union all
            select p.proname, p.tableoid, p.oid from pg_proc p where p.pronamespace = 'syncagent'::regnamespace
        ) as x
        where not exists (select from pg_depend d where (d.classid, d.objid) = (x.kind, x.oid) and d.deptype in ('e', 'i'))
          and x.name !~ '_[0-9]+(_key)?$'
        """
    )


def test_created_attached_dumped_restored_dropped(make: Make, cli: Cli, tmp_path: Path) -> None:
    database, copy = make(), make()
    database.execute(f"{TABLE}; {MORE}")
    before = schema_of(database)
    database.execute("create extension syncagent")
    assert version_of(database) == [(migrations.newest(),)]
    assert strangers(database) == []
    home = tmp_path / "home"
    assert init(cli, database, home).code == 0
    assert cli("attach", "--all", "--derive-key", "--stride", "8", "--home", home).code == 0
    database.execute(
        "insert into t (v) values ('x'); insert into parted values (1, 'x'); insert into counted (v) values ('x')"
    )
    assert cli("db", "check", "--home", home).code == 0

    copy_by_dump(database, copy)
    said = cli("db", "check", "--dsn", copy.dsn)
    assert (said.code, said.err) == (0, ""), said.out
    copy.execute("insert into t (v) values ('y'); insert into parted_one values (1, 'y')")
    for query, rows in (
        ("select name, node from syncagent.local_site", [("paris", 1)]),
        ("select count(*) from syncagent.log", [(5,)]),
        ("select table_name from syncagent.replicated order by 1", [("counted",), ("parted",), ("t",)]),
        ("insert into counted (v) values ('y') returning n", [(9,)]),
    ):
        assert copy.execute(query) == rows
    copy.execute("create table u (id uuid primary key)")
    assert cli("attach", "u", "--dsn", copy.dsn).code == 0

    assert cli("db", "uninstall", "--yes", "--home", home).code == 0
    assert version_of(database) == []
    assert schema_of(database) == before


def test_it_holds_what_the_agent_installs(make: Make) -> None:
    created, installed = make(), make()
    created.execute("create extension syncagent")
    installed.execute(migrations.script())
    objects = (
        "select c.relname, c.relkind::text from pg_class c where c.relnamespace = 'syncagent'::regnamespace"
        " union all select p.proname, md5(p.prosrc) from pg_proc p where p.pronamespace = 'syncagent'::regnamespace order by 1, 2"
    )
    assert created.execute(objects) == installed.execute(objects)


def test_raised_to_the_next_version(
    make: Make, files: Path, cli: Cli, tmp_path: Path, next_version: Callable[[], None]
) -> None:
    """By `alter extension`, or by the verb alone: one way on even versions of the server, the other on odd ones."""
    database, copy = make(), make()
    database.execute(TABLE)
    before = schema_of(database)
    database.execute("create extension syncagent")
    home = tmp_path / "home"
    assert init(cli, database, home).code == 0
    assert cli("attach", "t", "--home", home).code == 0
    database.execute("insert into t (v) values ('x')")
    next_version()

    said = cli("db", "upgrade", "--home", home)
    assert said.code == 1
    assert "its server has no files of version 0002" in said.err
    assert version_of(database) == [("0001",)]
    extension.write(files)
    for path in files.glob("syncagent*"):
        path.chmod(0o644)
    if database.server.binaries.major % 2 == 0:
        database.execute("alter extension syncagent update")
    assert cli("db", "upgrade", "--home", home).code == 0

    assert version_of(database) == [("0002",)]
    assert strangers(database) == []
    assert cli("db", "check", "--home", home).code == 0
    assert database.execute("select count(*) from syncagent.log") == [(1,)]
    database.execute("insert into syncagent.added values (7)")
    copy_by_dump(database, copy)
    said = cli("db", "check", "--dsn", copy.dsn)
    assert (said.code, said.err) == (0, ""), said.out
    assert copy.execute("select n from syncagent.added") == [(7,)]
    assert cli("db", "uninstall", "--yes", "--home", home).code == 0
    assert schema_of(database) == before
