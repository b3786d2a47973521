"""The preflight: what goes, what stays and why, and SQL that mends it when it is run to the letter."""

import json
import shlex
from typing import Any

import pytest

from tests.cli.conftest import Cli, Said, Site, on_each_version
from tests.support.databases import Database

GOOD = "create table {} (id uuid primary key default gen_random_uuid(), v text)"


def verdicts(said: Said) -> dict[str, Any]:
    return {table["table"]: table for table in json.loads(said.out)}


def notes(said: Said) -> list[str]:
    return [note["what"] for table in verdicts(said).values() for note in table["notes"]]


def remains(database: Database) -> int:
    return int(database.execute("select count(*) from pg_class where oid >= 16384 and relname <> 't'")[0][0])


@on_each_version
def test_a_whole_database(site: Site) -> None:
    for statement in (
        GOOD.format("plain"),
        GOOD.format("done"),
        GOOD.format("worker_heartbeat"),
        "create table numbered (n int primary key)",
        "create table pairs (b text, a int, v text, primary key (a, b))",
        'create table "No Key [1]" (a int)',
        "create table parted (d date, n int, primary key (n, d)) partition by range (d)",
        "create table parted_all partition of parted default",
        "create table parent (id uuid primary key)",
        "create table child () inherits (parent)",
        "create foreign data wrapper w",
        "create server s foreign data wrapper w",
        "create foreign table far (id uuid) server s",
        "create view seen as select 1",
    ):
        site.sql(statement)
    site("attach", "done")
    said = site("adopt", "--exclude", "*_heartbeat", "--json")
    assert said.code == 1
    assert {name: table["verdict"] for name, table in verdicts(said).items()} == {
        "public.plain": "goes",
        "public.done": "attached",
        "public.worker_heartbeat": "excluded",
        "public.numbered": "goes",
        "public.pairs": "goes",
        'public."No Key [1]"': "stays",
        "public.parted": "goes",
        "public.parent": "stays",
        "public.child": "stays",
        "public.far": "stays",
    }
    assert verdicts(said)["public.pairs"]["key"] == ["a", "b"]
    shown = site("adopt", "--exclude", "*_heartbeat")
    assert "it has no primary key" in shown.out
    command = shown.err.partition("as the schema is now: ")[2].strip()
    assert command == (
        "syncagent attach --all --exclude '*_heartbeat' --exclude 'public.No Key [[]1]'"
        " --exclude public.child --exclude public.parent --derive-key"
    )
    assert site(*shlex.split(command)[1:]).code == 0
    assert {row["table_name"] for row in site("tables", "--json").answer} == {
        "public.done",
        "public.numbered",
        "public.pairs",
        "public.parted",
        "public.plain",
    }
    assert site("adopt", "--schema", "nonesuch").code == 2


def test_what_is_the_same_for_many_tables_is_said_once(site: Site) -> None:
    for name in "abcd":
        site.sql(f"create table {name} (id bigserial primary key)")
    assert len(notes(site("adopt", "--json"))) == 4
    shown = site("adopt").out
    assert shown.count("is numbered at each site") == 0
    assert "4 tables are numbered at each site for itself" in shown
    assert "public.a, public.b, public.c, public.d" in shown
    site.sql("drop table d")
    assert site("adopt").out.count("is numbered at each site") == 3


def test_a_database_that_is_no_site_is_left_as_it_was(cli: Cli, database: Database) -> None:
    database.execute(GOOD.format("t"))
    before = remains(database)
    said = cli("adopt", "--dsn", database.dsn, "--json")
    assert [(table["table"], table["verdict"]) for table in said.answer] == [("public.t", "goes")]
    assert database.execute("select to_regnamespace('syncagent')") == [(None,)]
    assert remains(database) == before


@pytest.mark.parametrize(
    "definition",
    [
        "n int",
        "id int, v text",
        "code text not null unique",
        "a int not null, b int not null, u uuid not null, unique (a, b)",
        "d date not null, n int) partition by range (d",
    ],
)
@on_each_version
def test_the_sql_that_gives_a_key_does(site: Site, definition: str) -> None:
    site.sql(f'create table "Odd Table" ({definition})')
    if "partition" in definition:
        site.sql('create table leaf partition of "Odd Table" default')
    if "uuid" in definition:
        site.sql('create unique index "Given" on "Odd Table" (u)')
    else:
        site.sql(f'insert into "Odd Table" values ({"current_date" if "date" in definition else 1})')
    (hint,) = verdicts(site("adopt", "--json"))['public."Odd Table"']["hints"]
    assert ("concurrently" in hint) == ("date" not in definition and "uuid" not in definition)
    with site.database.connect() as psql:
        for line in hint.splitlines():
            psql.execute(line.encode())
    assert site("attach", "--all", "--derive-key").code == 0


@on_each_version
def test_what_lies_between_tables_that_go_and_tables_that_stay(site: Site) -> None:
    for statement in (
        GOOD.format("parent"),
        GOOD.format("queue"),
        "create table child (id uuid primary key, p uuid references parent, q uuid references queue, s uuid references child)",
        "create table job (id uuid primary key, p uuid references parent on delete cascade)",
    ):
        site.sql(statement)
    said = site("adopt", "--exclude", "queue", "--exclude", "job", "--json")
    assert said.code == 0
    found = verdicts(said)
    (outward,) = found["public.child"]["notes"]
    assert outward["what"].startswith("public.child refers to public.queue (child_q_fkey), which stays")
    assert outward["mend"].splitlines()[:2] == [
        "syncagent attach public.queue",
        "or, without the promise: alter table public.child drop constraint child_q_fkey;",
    ]
    (inward,) = found["public.parent"]["notes"]
    assert inward["what"].startswith("public.job, which stays, refers to public.parent (job_p_fkey)")
    assert "nor does its ON DELETE happen" in inward["what"]
    assert notes(site("adopt", "--json")) == []
    said = site("attach", "child")
    assert said.code == 0
    assert "warning: public.child refers to public.parent" in said.err


@on_each_version
def test_triggers_that_write_to_tables_that_stay(site: Site) -> None:
    function = "create function {} returns {} language {} as $${}$$"
    merge = (
        "merge  into other.totals t using lines on true when matched then do nothing"
        if site.database.server.binaries.major >= 15
        else "delete  from only other.totals"
    )
    for statement in (
        GOOD.format("orders"),
        GOOD.format("lines"),
        GOOD.format('"Audit"'),
        GOOD.format("totals"),
        "create schema other",
        GOOD.format("other.totals"),
        function.format("deep()", "void", "sql", 'insert into public."Audit" (v) values (1) '),
        function.format("one()", "trigger", "plpgsql", "begin perform deep(); return new; end"),
        function.format(
            "two()",
            "trigger",
            "plpgsql",
            "begin update only lines set v = 1; /* update totals */ return new; end",
        ),
        function.format(
            "three()",
            "trigger",
            "plpgsql",
            f"begin execute 'delete ' || 'from x'; {merge}; return new; end",
        ),
        "create trigger one after insert on orders for each row execute function one()",
        "create trigger two after insert on orders for each row execute function two()",
        "create trigger three after update on lines for each row execute function three()",
        "create trigger four after update on lines for each row execute function two()",
        "alter table lines enable replica trigger four",
    ):
        site.sql(statement)
    said = site("adopt", "--exclude", "*udit", "--exclude", "*totals", "--json")
    assert said.code == 0
    found = notes(said)
    assert [what.partition(":")[0] for what in found] == [
        "trigger four of public.lines is enabled for replicas",
        "trigger three of public.lines (three) writes to other.totals, which stays",
        "trigger three of public.lines (three) puts SQL together as it runs",
        'trigger one of public.orders (one) writes to public."Audit", which stays',
    ]
    site("attach", "--all")
    assert notes(site("adopt", "--json")) == []


def test_lists_everything_in_the_order_of_names(site: Site) -> None:
    for name in ("b", "a", "c"):
        site.sql(GOOD.format(name))
    assert [table["table"] for table in site("adopt", "--json").answer] == [
        "public.a",
        "public.b",
        "public.c",
    ]
