"""`syncagent attach`, `detach`, `tables`: which tables, why not, and nothing half-done."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest

from syncagent.cli import render
from tests.cli.conftest import Said, Site, on_each_of_the_matrix, on_each_version
from tests.support.databases import Database

GOOD = "create table {} (id uuid primary key default gen_random_uuid(), v text)"
LONGEST = "t" * 63
NAMES = [
    ("plain", "plain"),
    ("Folded", "folded"),
    ('"Mixed Case"', '"Mixed Case"'),
    ("Mixed Case", '"Mixed Case"'),
    ('"wéird ☃ \'quote\' ""double"" %s {key} $$ ;--"', '"wéird ☃ \'quote\' ""double"" %s {key} $$ ;--"'),
    ("select", '"select"'),
    ("public.plain", "plain"),
    ('"some schema"."x.y"', '"some schema"."x.y"'),
    (LONGEST, LONGEST),
]


@contextmanager
def open_transaction(database: Database, *statements: str) -> Iterator[psycopg.Connection]:
    with database.connect(autocommit=False) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection
        connection.rollback()


def attached(site: Site) -> list[str]:
    return [row["table_name"] for row in site("tables", "--json").answer]


def refused(said: Said, what: str, hint: str = "") -> None:
    assert said.code == 1, said.err
    assert what in said.err
    assert f"hint: {hint}" in said.err
    assert not said.out


# ---- how columns are merged


def test_columns_are_merged_as_is_chosen_or_the_reason_is_said(site: Site) -> None:
    site.sql(
        "create table product (id uuid primary key, stock int, weight float8 not null, tags text[] not null, code text unique not null)"
    )
    refused(site("attach", "product", "--strategy", "merge", "--merge", "stock=counter"), "column stock may be null",
            "update public.product set stock = 0 where stock is null; alter table public.product alter column stock set not null")  # fmt: skip
    site.sql("alter table product alter column stock set not null")
    for choice, what, hint in (
        ("weight=counter", "column weight is of type double precision: it cannot be counter", "a counter is"),
        ("stock=set", "column stock is of type integer: it cannot be set", "a set is an array, or jsonb"),
        ("code=append", "column code is in a key, or a unique or foreign key constraint", "leave it out"),
        ("tags=union", "there is no way to merge a column that is called 'union'", "counter, set, append"),
        ("price=max", "has no column price", "a column is named as it is called"),
    ):
        refused(site("attach", "product", "--strategy", "merge", "--merge", choice), what, hint)
    said = site("attach", "product", "--merge", "stock=counter")
    assert said.code == 2
    assert "the strategy is not merge" in said.err
    assert attached(site) == []
    assert (
        site(
            "attach", "product", "--strategy", "merge", "--merge", "stock=counter", "--merge", "tags=set"
        ).code
        == 0
    )
    assert site.sql("select strategy, merges from syncagent.replicated") == [
        ("merge", {"stock": "counter", "tags": "set"})
    ]
    site.sql("insert into product values (gen_random_uuid(), 1, 1, '{a}', 'x')")
    site.sql("update product set stock = stock - 1, tags = '{b}'")
    assert site.sql("select deltas from syncagent.log where op = 'U'") == [
        ({"stock": -1, "tags": {"+": ["b"], "-": ["a"]}},)
    ]


def test_another_strategy_is_planned_or_the_reason_is_said(site: Site) -> None:
    site.sql("create table product (id uuid primary key, stock int not null, note text)")
    refused(site("strategy", "product"), "product is not attached")
    assert site("attach", "product").code == 0
    assert site("strategy", "product").out.strip() == "public.product: lww"
    assert "it is attached already" in site("attach", "product", "--strategy", "merge").err
    counted = ("strategy", "product", "merge", "--merge", "stock=counter")
    steps = site(*counted, "--dry-run", "--json").answer["steps"]
    assert [step["phase"] for step in steps] == ["expand", "expand"]
    refused(site(*counted), "no agent is running", "start it")
    refused(site(*counted, "--merge", "note=counter"), "cannot be merged so", "")
    assert site("strategy", "product", "newest").code == 2
    assert site("strategy", "product", "lww", "--merge", "stock=counter").code == 2
    assert site("strategy", "product", "lww").out.strip() == "public.product: lww"


# ---- names


@on_each_version
def test_any_name_can_be_attached_and_detached(site: Site) -> None:
    site.sql('create schema "some schema"')
    for name, quoted in NAMES:
        site.sql(GOOD.format(quoted))
        site.sql(f"insert into {quoted} (v) values ('here')")
        (answer,) = site("attach", name, "--json").answer
        assert (answer["key"], answer["derived"], answer["shipped"]) == (["id"], False, 1)
        site.sql(f"update {quoted} set v = 'changed'")
        assert site.sql("select op::text, cardinality(keys) from syncagent.log order by hlc") == [
            ("I", 1),
            ("U", 1),
        ]
        assert attached(site) == [answer["table"]]
        assert site("detach", answer["table"]).out.strip() == f"detached {answer['table']}"
        assert attached(site) == []
        site.sql(f"update {quoted} set v = 'unseen'")
        site.sql(f"drop table {quoted}")
        site.sql("delete from syncagent.log")


def test_the_longest_name_of_a_schema_and_a_table_in_bytes(site: Site) -> None:
    long = "é" * 31 + "x"
    assert len(long.encode()) == 63
    site.sql(f'create schema "{long}"')
    site.sql(GOOD.format(f'"{long}"."{long}"'))
    assert site("attach", f'"{long}"."{long}"').code == 0


def test_a_name_that_means_nothing(site: Site) -> None:
    site.sql(GOOD.format('"Flights"'))
    said = site("attach", "flights")
    assert said.code == 2
    assert "there is no table flights" in said.err
    assert 'do you mean public."Flights"?' in said.err
    assert "name it with its schema" in site("attach", "a.b.c.d").err
    assert site("attach", "").code == 2


def test_a_table_named_twice_is_attached_once(site: Site) -> None:
    site.sql(GOOD.format("t"))
    assert len(site("attach", "t", "public.t", "--json").answer) == 1


# ---- what cannot be attached


OBSTACLES = [
    ("create table a (n int)", "a", "it has no primary key", "alter table public.a add column id uuid"),
    (
        "create table b (n int primary key)",
        "b",
        "its primary key is not one uuid column",
        "syncagent attach --derive-key public.b",
    ),
    ("create view c as select 1 as n", "c", "it is a view", "attach the tables below it"),
    (
        "create materialized view d as select 1 as n",
        "d",
        "it is a materialized view",
        "attach the tables below it",
    ),
    (GOOD.format("e") + " partition by range (id)", "", "", ""),
    (
        "create table e_one partition of e default",
        "e_one",
        "it is a partition of public.e",
        "syncagent attach public.e",
    ),
    (
        "create unlogged table e_two partition of e for values from (minvalue) to ('1')".replace(
            "'1'", f"'{UUID(int=1)}'"
        ),
        "e",
        "its partition public.e_two is unlogged",
        "alter table public.e_two set logged",
    ),
    (
        GOOD.replace("table", "unlogged table").format("f"),
        "f",
        "it is unlogged",
        "alter table public.f set logged",
    ),
    (GOOD.format("g"), "", "", ""),
    (
        "create table h (primary key (id)) inherits (g)",
        "h",
        "it inherits, or others inherit from it",
        "plain inheritance",
    ),
    ("", "g", "it inherits, or others inherit from it", "plain inheritance"),
    (
        "create table i (id uuid primary key, o regclass)",
        "i",
        "column o is of type regclass",
        "alter table public.i alter column o type text",
    ),
    (
        "create table o (id uuid primary key, image oid)",
        "o",
        "column image is of type oid",
        "alter table public.o alter column image type text",
    ),
    (
        "create table q (id uuid primary key generated always as (md5(t)::uuid) stored, t text)",
        "q",
        "key column id is generated",
        "alter table public.q alter column id drop expression",
    ),
    ("create domain place as regproc", "", "", ""),
    ("create type spot as (n int, p place[])", "", "", ""),
    (
        "create table m (id uuid primary key, s spot)",
        "m",
        "column s is of type public.spot, which means something only inside this server",
        "alter table public.m alter column s type text",
    ),
    (
        "create table n (id uuid primary key, s aclitem[])",
        "n",
        "column s is of type aclitem[], which has no binary form to travel in",
        "alter table public.n alter column s type text",
    ),
    ("", "pg_class", "it is a system table", "only tables of the application"),
    ("", "syncagent.member", "it is a system table", "only tables of the application"),
    ('create table l (id uuid primary key, "$syncagent$" int)', "l", "holds $syncagent$", "rename it"),
    ("create sequence j", "j", "it is not a table", "only ordinary tables"),
    ("create foreign data wrapper w", "", "", ""),
    ("create server s foreign data wrapper w", "", "", ""),
    (
        "create foreign table k (id uuid not null) server s",
        "k",
        "it is a foreign table",
        "only ordinary tables",
    ),
]


@on_each_version
def test_what_cannot_be_attached_says_why(site: Site) -> None:
    for statement, name, what, hint in OBSTACLES:
        if statement:
            site.sql(statement)
        if name:
            refused(site("attach", name), what, hint)
    assert attached(site) == []


@on_each_of_the_matrix
def test_large_objects_become_values_by_the_sql_that_is_shown(site: Site) -> None:
    site.sql("create domain lo as oid; create table t (id uuid primary key, image lo)")
    site.sql("insert into t values (gen_random_uuid(), lo_from_bytea(0, 'picture'))")
    said = site("attach", "t")
    refused(said, "column image is of type public.lo, which means something only inside this server")
    site.sql(said.err.rpartition("which do not travel: ")[2].strip())
    assert site("attach", "t").code == 0
    assert site.sql("select convert_from(image, 'UTF8') from t") == [("picture",)]


@on_each_of_the_matrix
def test_a_temporary_table(site: Site) -> None:
    with open_transaction(site.database, "create temp table passing (id uuid primary key)") as session:
        session.commit()
        ((name,),) = session.execute(
            "select format('%I.%I', relnamespace::regnamespace, relname) from pg_class where relname = 'passing'"
        ).fetchall()
        refused(site("attach", name), "it is temporary", "only permanent tables can be attached")
        assert [table["table"] for table in site("attach", "--all", "--dry-run", "--json").answer] == []


def test_twice(site: Site) -> None:
    site.sql(GOOD.format("t"))
    assert site("attach", "t").code == 0
    refused(site("attach", "t"), "it is attached already")


def test_one_bad_table_leaves_all_out(site: Site) -> None:
    site.sql(GOOD.format("good"))
    site.sql("create table bad (a int)")
    site.sql("create table worse (a int primary key)")
    said = site("attach", "good", "bad", "worse")
    refused(said, "2 tables cannot be attached, so none was")
    assert "public.bad: it has no primary key" in said.err
    assert "public.worse: its primary key" in said.err
    assert attached(site) == []
    assert site.sql("select count(*) from pg_trigger where tgname ~ 'syncagent'") == [(0,)]


def test_truncate_says_what_to_do_instead(site: Site) -> None:
    site.sql(GOOD.format("t"))
    site.sql("insert into t (v) values ('a'), ('b')")
    site("attach", "t")
    with pytest.raises(psycopg.Error) as caught:
        site.sql("truncate t")
    assert caught.value.sqlstate == "SA001"
    assert "TRUNCATE would not reach the other sites" in str(caught.value)
    hint = caught.value.diag.message_hint
    assert hint is not None
    assert site.sql(hint) == [(2,)]
    assert site.sql("select count(*) from t") == [(0,)]


# ---- which ones


@pytest.fixture
def shop(site: Site) -> Site:
    site.sql("create schema billing")
    for name in ("orders", "audit_a", "audit_b", "billing.bills"):
        site.sql(GOOD.format(name))
    site.sql("create temp table temporary (a int)")
    return site


@on_each_version
def test_all_but_some(shop: Site) -> None:
    shop("attach", "--all", "--exclude", "audit_*", "--exclude", "billing.*")
    assert attached(shop) == ["public.orders"]
    shop("attach", "--all", "--schema", "billing")
    assert attached(shop) == ["billing.bills", "public.orders"]
    assert len(shop("attach", "--all", "--json").answer) == 2
    said = shop("attach", "--all")
    assert (said.code, said.out) == (0, "")
    assert "nothing to attach" in said.err


def test_all_leaves_out_what_an_extension_owns(shop: Site) -> None:
    shop.sql(GOOD.format("owned"))
    shop.sql("create extension hstore")
    shop.sql("alter extension hstore add table owned")
    assert "public.owned" not in [table["table"] for table in shop("attach", "--all", "--json").answer]


def test_a_dry_run_says_it_and_does_nothing(shop: Site) -> None:
    shop.sql("create table bad (a int)")
    said = shop("attach", "--all", "--dry-run")
    assert said.code == 1
    assert "it has no primary key" in said.out
    assert "can be attached" in said.out
    assert shop("attach", "orders", "--dry-run", "--json").answer == [
        {
            "table": "public.orders",
            "verdict": "goes",
            "key": ["id"],
            "derived": False,
            "problems": [],
            "hints": [],
            "notes": [],
        }
    ]
    assert attached(shop) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("orders", "--all"),
        ("orders", "--schema", "billing"),
        ("orders", "--exclude", "x"),
        ("--all", "--schema", "nonesuch"),
    ],
)
def test_what_makes_no_choice(shop: Site, arguments: tuple[str, ...]) -> None:
    assert shop("attach", *arguments).code == 2
    assert attached(shop) == []


# ---- rows that are there


def test_present_rows_are_shipped_or_kept(site: Site) -> None:
    for name in ("shipped", "kept"):
        site.sql(GOOD.format(name))
        site.sql(f"insert into {name} (v) select 'x' from generate_series(1, 25000)")
    assert site("attach", "shipped", "--json").answer[0]["shipped"] == 25000
    assert site("attach", "kept", "--existing", "keep", "--json").answer[0]["shipped"] is None
    assert site.sql("select sum(cardinality(keys)), max(cardinality(keys)) from syncagent.log") == [
        (25000, 10000)
    ]


def test_keys_of_other_kinds_are_derived(site: Site) -> None:
    site.sql("create table numbered (id int primary key, v text)")
    site.sql("create table pairs (b text, a int, v text, primary key (a, b))")
    site.sql("insert into pairs values ('x', 1, 'v')")
    answer = site("attach", "numbered", "pairs", "--derive-key", "--json").answer
    assert [(table["key"], table["derived"]) for table in answer] == [(["id"], True), (["a", "b"], True)]
    assert site.sql("select odd from syncagent.log") == [(["(1,x)"],)]


def test_buckets_of_its_own(site: Site) -> None:
    site.sql("create table a (id uuid primary key)")
    assert site("attach", "a", "--bucket", "day").code == 0
    assert [table["bucket"] for table in site("tables", "--json").answer] == ["day"]
    assert "each day of keys" in site("forest", "a").err
    assert "'day'" in site("attach", "a", "--bucket", "week").err


def test_numbers_of_its_own(site: Site) -> None:
    site.sql("create table a (id serial primary key, v text)")
    site.sql("create table b (id uuid primary key, n int generated always as identity unique)")
    said = site("adopt", "--json")
    assert [note["what"].partition(":")[0] for table in said.answer for note in table["notes"]] == [
        "public.a is numbered at each site for itself (id)",
        "public.b is numbered at each site for itself (n)",
    ]
    assert site("adopt").err.strip().endswith("syncagent attach --all --derive-key --stride 64")
    answer = site("attach", "--all", "--derive-key", "--stride", "64", "--json").answer
    assert [table["numbered"] for table in answer] == [["id"], ["n"]]
    site.sql("insert into a (v) values ('x'), ('y')")
    assert site.sql("select id from a order by 1") == [(1,), (65,)]
    assert site("attach", "a", "--stride", "1").code == 2


# ---- locks


@on_each_version
def test_who_is_in_the_way_is_named(site: Site) -> None:
    site.sql(GOOD.format("free"))
    site.sql(GOOD.format("held"))
    with open_transaction(
        site.database, "set application_name = 'till 7'", "insert into held (v) values ('x')"
    ) as till:
        said = site("attach", "free", "held", "--lock-timeout", "0")
        refused(said, "a lock was not to be had", "end that transaction")
        assert f"held is locked by pid {till.info.backend_pid} (till 7, idle in transaction, " in said.err
        assert attached(site) == []
    assert site("attach", "free", "held").code == 0
    with open_transaction(site.database, "select from held") as reader:
        said = site("detach", "free", "held", "--lock-timeout", "0s")
        refused(said, "a lock was not to be had")
        assert f"pid {reader.info.backend_pid}" in said.err
        assert attached(site) == ["public.free", "public.held"]
    assert site("detach", "free", "held").code == 0


def test_a_lock_that_others_hold_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for again and again, whoever holds it is named once, and in between nothing is held."""
    site.sql(GOOD.format("free"))
    site.sql(GOOD.format("held"))
    told: list[str] = []
    with open_transaction(site.database, "insert into held (v) values ('x')") as till:
        holder = f"waiting: held is locked by pid {till.info.backend_pid} "

        def say(text: str) -> None:
            told.append(text)
            if text.startswith("waiting: "):
                site.sql("begin; lock table free in access exclusive mode; commit")
                till.commit()

        monkeypatch.setattr(render, "say", say)
        assert site("attach", "free", "held").code == 0
    assert [text.startswith(holder) for text in told if text.startswith("waiting: ")] == [True]
    assert attached(site) == ["public.free", "public.held"]


def test_who_is_in_the_way_of_a_partition_is_named(site: Site) -> None:
    site.sql("create table t (id uuid primary key) partition by hash (id)")
    site.sql("create table leaf partition of t for values with (modulus 1, remainder 0)")
    with open_transaction(site.database, "insert into leaf values (gen_random_uuid())") as writer:
        said = site("attach", "t", "--lock-timeout", "0")
        refused(said, "a lock was not to be had", "end that transaction")
        assert f"leaf is locked by pid {writer.info.backend_pid} " in said.err
    assert site("attach", "t").code == 0


def test_readers_are_in_nobodys_way(site: Site) -> None:
    site.sql(GOOD.format("t"))
    with open_transaction(site.database, "select from t"):
        assert site("attach", "t", "--lock-timeout", "0").code == 0


def test_times_as_people_write_them(site: Site) -> None:
    site.sql(GOOD.format("t"))
    for text in ("5", "5s", "5m", "1h", "0.5s", "200ms"):
        assert site("attach", "t", "--dry-run", "--lock-timeout", text).code == 0
    for text in ("five", "5x", "-1", "inf", "nan"):
        assert site("attach", "t", "--dry-run", "--lock-timeout", text).code == 2


# ---- what the application does to attached tables


@on_each_version
def test_a_dropped_table_leaves_nothing_in_the_way(site: Site) -> None:
    site.sql(GOOD.format("t"))
    site("attach", "t")
    site.sql("insert into t (v) values ('lost')")
    site.sql("drop table t")
    (table,) = site("tables", "--json").answer
    assert table["dropped"]
    assert "(dropped)" in site("tables").out
    assert site("status").code == 0
    assert site.sql("select rows from syncagent._prepare_session() cross join syncagent._fold(true)") == [
        (0,)
    ]
    site.sql(GOOD.format("t"))
    assert site("attach", "t").code == 0
    assert [(row["table_name"], row["dropped"]) for row in site("tables", "--json").answer] == [
        ("public.t", False)
    ]
    assert site.sql("select count(*) from pg_class where relname ~ '^version_' and relkind = 'r'") == [(1,)]


def test_a_dropped_table_can_be_detached(site: Site) -> None:
    for name in ("t", "public.t", '"t"', "Public.T"):
        site.sql(GOOD.format("t"))
        site("attach", "t")
        site.sql("drop table t")
        assert site("detach", name).code == 0
        refused(site("detach", name), f"table {name} is not attached", "`syncagent tables`")
    refused(site("detach", "no name"), "table no name is not attached")


def test_a_name_that_was_given_on_is_refused(site: Site) -> None:
    site.sql(GOOD.format("t"))
    site("attach", "t")
    site.sql("alter table t rename to old")
    site.sql(GOOD.format("t"))
    refused(site("attach", "t"), "public.old was attached under this name", "syncagent detach public.old")


def test_an_ordinary_role_writes_as_before(site: Site) -> None:
    role = f"app_{site.database.name}"
    site.database.server.create_role(role)
    site.sql(GOOD.format("t"))
    site("attach", "t")
    site.sql(f"grant select, insert, update, delete on t to {role}")
    with site.database.connect(role=role) as connection:
        connection.execute("insert into t (id) values (syncagent.uuid7())")
        connection.execute("update t set v = 'x' where syncagent.stamp_time(id) > now() - interval '1 hour'")
        connection.execute(
            "update t set v = 'y' where id >= syncagent.uuid7_floor(now() - interval '1 hour')"
        )
        assert connection.execute("select syncagent.stamp_node(id), v from t").fetchall() == [(1, "y")]
        assert connection.execute("select syncagent.truncate('t')").fetchall() == [(1,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select * from syncagent.log")
    site.sql(f"drop owned by {role}")
