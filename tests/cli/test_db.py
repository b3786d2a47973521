"""`syncagent db`: versions, drift, and leaving without a trace."""

import subprocess
from collections.abc import Callable

import pytest

from syncagent.storage import migrations
from tests.cli.conftest import Cli, Site, on_each_version
from tests.support.databases import Database

TABLE = "create table {} (id uuid primary key default gen_random_uuid(), v text unique)"


def dump(database: Database) -> str:
    """The schema as pg_dump writes it, without its random token."""
    done = subprocess.run(
        [database.server.binaries.tool("pg_dump"), "--schema-only", "--dbname", database.dsn],
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(line for line in done.stdout.splitlines(keepends=True) if "restrict " not in line)


def test_install_and_upgrade(cli: Cli, database: Database) -> None:
    dsn = ("--dsn", database.dsn)
    said = cli("db", "upgrade", *dsn)
    assert said.code == 1
    assert "syncagent is not installed" in said.err
    newest = migrations.newest()
    assert cli("db", "install", *dsn, "--json").answer == {"before": None, "version": newest, "tables": 0}
    assert cli("db", "install", *dsn, "--json").answer == {"before": newest, "version": newest, "tables": 0}
    assert cli("db", "upgrade", *dsn).out.strip() == f"version {newest}"
    assert cli("db", "check", *dsn).code == 0


def test_sql_is_what_install_runs_and_needs_no_server(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket", None)
    monkeypatch.setattr("psycopg.connect", None)
    said = cli("db", "sql")
    monkeypatch.undo()
    assert said.code == 0
    assert said.out.startswith("begin;")
    assert said.out.endswith("commit;\n")
    assert migrations.script() in said.out
    database.execute(said.out)
    assert cli("db", "check", "--dsn", database.dsn).code == 0
    assert migrations.newest() not in cli("db", "sql", "--from", migrations.newest()).out
    assert cli("db", "sql", "--from", "9999").code == 1


def test_an_agent_older_than_the_sql_side_refuses(site: Site) -> None:
    site.sql("update syncagent.schema_version set version_num = '9999'")
    for verb in (("run",), ("status",), ("db", "upgrade"), ("db", "install")):
        said = site(*verb)
        assert said.code == 1
        assert "version 9999, newer than this agent" in said.err
        assert "hint: upgrade syncagent on this host" in said.err
    said = site("db", "check")
    assert (said.code, "newer than this agent" in said.out) == (1, True)


def test_an_agent_newer_than_the_sql_side_says_what_to_do(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "revisions", lambda: ("0001", "0002"))
    said = site("run")
    assert said.code == 1
    assert "is version 0001, this agent needs 0002" in said.err
    assert "hint: syncagent db upgrade" in said.err


# ---- drift

DRIFT = [
    ("drop function syncagent.why(regclass, text)", "function syncagent.why is missing", False),
    ("drop view syncagent.parked", "syncagent.parked is missing", False),
    (
        "create or replace function syncagent._wall() returns bigint language sql volatile as 'select 1::bigint'",
        "function syncagent._wall is not as this version has made it",
        False,
    ),
    (
        "drop trigger syncagent_update on t",
        "trigger syncagent_update of public.t is missing: writes are not replicated",
        True,
    ),
    (
        "alter table t disable trigger syncagent_insert",
        "trigger syncagent_insert of public.t is disabled",
        False,
    ),
    (
        "alter table t enable always trigger syncagent_delete",
        "trigger syncagent_delete of public.t is enabled always",
        False,
    ),
    (
        "create or replace function syncagent.stage_1() returns void language sql as ''",
        "function syncagent.stage_1 of public.t is not as this version has made it",
        True,
    ),
    ("drop function syncagent.judge_1", "function syncagent.judge_1 of public.t is missing", True),
    (
        "comment on function syncagent.judge_1 is 'mine'",
        "function syncagent.judge_1 of public.t is not as this version has made it",
        True,
    ),
    (
        "alter table t drop constraint t_v_key",
        "the functions of public.t were made for another version",
        True,
    ),
    ("drop table syncagent.version_1 cascade", "syncagent.version_1 of public.t is missing", False),
    ("drop table t", "public.t is attached, but the application has dropped it", False),
    ("alter table t rename to u", "public.t was renamed to public.u", False),
    ("alter table t drop column v", "column v of public.t was dropped after it was attached", False),
    (
        "alter table t add column w int",
        "column w of public.t was added after it was attached, and is not replicated",
        False,
    ),
    (
        "alter table t alter column v type varchar using v",
        "column v of public.t is character varying now, and was text",
        False,
    ),
    ("alter table t drop constraint t_pkey", "the primary key of public.t is () now, and was (id)", False),
]


@on_each_version
def test_drift_is_seen_and_what_is_generated_is_mended(
    make_database: Callable[..., Database], site: Site, cli: Cli
) -> None:
    site.sql(TABLE.format("t"))
    site("attach", "t")
    assert site("db", "check", "--json").answer["findings"] == []
    for statement, what, mended in DRIFT:
        copy = make_database(site.database.server, template=site.database.name)
        here = ("--dsn", copy.dsn)
        copy.execute(statement)
        said = cli("db", "check", *here)
        assert what in said.out, statement
        assert said.code == (0 if "was added" in what or "has dropped" in what else 1), statement
        if mended:
            assert cli("db", "upgrade", *here, "--json").answer["tables"] == 1
            assert cli("db", "check", *here, "--json").answer["findings"] == [], statement


def test_functions_made_anew_keep_what_is_unsettled(site: Site) -> None:
    site.sql(TABLE.format("t"))
    site.sql("insert into t (v) values ('x')")
    site("attach", "t", "--existing", "keep")
    site.sql("insert into syncagent.version_1 (key, stamp, node, deleted) select id, id, 1, false from t")
    site.sql("alter table t drop constraint t_v_key")
    assert site("db", "upgrade", "--json").answer["tables"] == 1
    assert site.sql("select count(*) from syncagent.version_1") == [(1,)]


# ---- leaving


@on_each_version
def test_uninstall_leaves_the_schema_as_it_was(site: Site, make_site: Callable[..., Site]) -> None:
    site("db", "uninstall", "--yes")
    for statement in (
        "create schema billing",
        TABLE.format("t"),
        TABLE.format('billing."B%d {x}"'),
        "create table pairs (a int, b text, primary key (a, b))",
        "create table counted (a serial primary key, b int generated always as identity)",
        "create table parted (a int, b text, primary key (a, b)) partition by list (a)",
        "create table parted_one partition of parted for values in (1)",
        "create table parted_rest partition of parted default partition by hash (b)",
        "create table parted_last partition of parted_rest for values with (modulus 1, remainder 0)",
        "create function f() returns trigger language plpgsql as 'begin return new; end'",
        "create trigger mine after insert on t for each row execute function f()",
        TABLE.format("dropped"),
    ):
        site.sql(statement)
    before = dump(site.database)
    make_site(site.database)
    assert site("attach", "--all", "--derive-key", "--stride", "8").code == 0
    site.sql("insert into t (v) values ('x')")
    assert site("detach", "pairs").code == 0
    assert site("attach", "pairs", "--derive-key").code == 0
    site.sql("drop table dropped")
    said = site("db", "uninstall", "--yes", "--json")
    assert set(said.answer["detached"]) >= {"public.t", "public.pairs", "public.dropped"}
    site.sql(TABLE.format("dropped"))
    assert dump(site.database) == before


@on_each_version
def test_a_dump_that_is_restored_is_whole(site: Site, make_database: Callable[..., Database]) -> None:
    for statement in (
        TABLE.format("t"),
        "create table counted (a serial primary key, b int)",
        "create table parted (a int, b text, primary key (a, b)) partition by list (a)",
        "create table parted_one partition of parted for values in (1)",
    ):
        site.sql(statement)
    assert site("attach", "--all", "--derive-key", "--stride", "8").code == 0
    site.sql(
        "insert into t (v) values ('x'); insert into parted values (1, 'x'); insert into counted (b) values (1)"
    )
    copy = make_database(site.database.server)
    binaries = site.database.server.binaries
    dumped = subprocess.run(
        [binaries.tool("pg_dump"), "--format=custom", "--dbname", site.database.dsn],
        capture_output=True,
        check=True,
    )
    subprocess.run(
        [binaries.tool("pg_restore"), "--exit-on-error", "--dbname", copy.dsn],
        input=dumped.stdout,
        capture_output=True,
        check=True,
    )
    said = site.cli("db", "check", "--dsn", copy.dsn)
    assert (said.code, said.err) == (0, ""), said.out
    copy.execute("insert into parted_one values (1, 'y'); insert into counted (b) values (2)")
    assert copy.execute("select count(*) from syncagent.log") == [(5,)]
    assert copy.execute("select a from counted order by 1") == [(1,), (9,)]
    assert site.cli("db", "uninstall", "--yes", "--dsn", copy.dsn).code == 0


def test_uninstall_asks_somebody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    said = site("db", "uninstall")
    assert said.code == 2
    assert "repeat it with --yes" in said.err
    assert site("status").code == 0
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda *_: "n\n", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    assert site("db", "uninstall").code == 1
    assert site("status").code == 0


def test_uninstall_leaves_a_running_agent_alone(site: Site) -> None:
    with site.database.agent():
        said = site("db", "uninstall", "--yes")
    assert said.code == 1
    assert "an agent is running for this site" in said.err
    assert "hint: stop it first" in said.err
    assert site("status").code == 0
