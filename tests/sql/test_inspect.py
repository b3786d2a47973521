"""What people ask in SQL, and a role that may look and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from syncagent.embedded import Server
from tests.support.databases import Database, fresh_database
from tests.support.lab import installation

VIEWS = ("site", "status", "lag", "replicated_table", "conflict", "parked")
TREE = "select * from syncagent.forest_of(%s, %s)"
ROW = "01900000-0000-7000-8000-000000000001"
OLD = "01900000-0000-7000-8000-000000000002"
SITE = """
    create table "T t" (id uuid primary key, v text);
    create table pairs (b text, a int, v text, primary key (a, b));
    insert into syncagent.local_site values (true, gen_random_uuid(), 'paris', 1, gen_random_uuid(), syncagent._tail(1, 5));
    insert into syncagent.member values (1, 'paris'), (2, 'tokyo'), (3, 'lima');
    insert into syncagent.peer_state (node, linked, frontier, parked, clock_offset) values
        (2, true, '{"1": 3, "2": 9}', 4, '250 ms'), (3, false, '{}', 0, null);
    insert into syncagent.frontier (node, cut, context) values
        (1, 5, '{"1": 5, "2": 8}'), (2, 8, '{"1": 2, "2": 8}'), (3, 1, '{"1": 4, "3": 1}');
    select syncagent._attach('"T t"', false, false), syncagent._attach('pairs', true, false);
"""


@pytest.fixture(scope="module")
def prepared() -> Iterator[Callable[[Server], Database]]:
    """Site paris with peers tokyo and lima, and two tables, to be copied: one on each server."""
    made: dict[str, Database] = {}
    with ExitStack() as stack:

        def prepare(server: Server) -> Database:
            if server.dsn() not in made:
                database = made[server.dsn()] = stack.enter_context(fresh_database(server))
                for text in (*installation(()), SITE):
                    database.execute(text)
            return made[server.dsn()]

        yield prepare


@pytest.fixture
def here(
    server: Server, prepared: Callable[[Server], Database], make_database: Callable[..., Database]
) -> Database:
    """A copy, where cuts were made just now."""
    database = make_database(server, prepared(server).name)
    database.execute(
        """
        insert into syncagent.cut (number, id, taken, rows, made_at) values
            (4, gen_random_uuid(), pg_current_snapshot(), 10, now() - interval '10 s'),
            (5, gen_random_uuid(), pg_current_snapshot(), 7, now() - interval '1 s')
        """
    )
    return database


def rows(
    database: Database, query: str, *parameters: object, role: str | None = None
) -> list[dict[str, Any]]:
    with database.connect(role=role) as connection:
        cursor = connection.execute(query.encode(), parameters)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def test_lag_is_known_both_ways(here: Database) -> None:
    lag = {(row["origin"], row["receiver"]): row for row in rows(here, "select * from syncagent.lag")}
    assert {pair: row["cuts"] for pair, row in lag.items()} == {
        ("paris", "tokyo"): 2,
        ("paris", "lima"): 1,
        ("tokyo", "paris"): 1,
        ("tokyo", "lima"): 9,
        ("lima", "paris"): 0,
        ("lima", "tokyo"): 1,
    }
    assert lag["paris", "tokyo"]["rows"] == 17
    assert lag["paris", "lima"]["rows"] == 7
    assert 10 <= lag["paris", "tokyo"]["seconds"] < 100
    assert lag["tokyo", "paris"]["rows"] is None


def test_status_has_a_line_for_every_site(here: Database) -> None:
    with here.agent():
        status = {row["name"]: row for row in rows(here, "select * from syncagent.status")}
    assert {name: row["state"] for name, row in status.items()} == {
        "paris": "running",
        "tokyo": "linked",
        "lima": "away",
    }
    assert (status["tokyo"]["behind_cuts"], status["tokyo"]["parked"]) == (2, 4)
    assert status["tokyo"]["clock_offset_seconds"] == 0.25
    assert status["tokyo"]["applied_cut"] == 8
    assert (status["paris"]["unsettled_rows"], status["paris"]["kept_cuts"]) == (0, 2)
    assert status["tokyo"]["unsettled_rows"] is None
    assert {row["state"] for row in rows(here, "select * from syncagent.site")} == {"no agent", "unknown"}


def test_attached_tables(here: Database) -> None:
    table, pairs = rows(here, "select * from syncagent.replicated_table order by 1 desc")
    assert (pairs["table_name"], pairs["key_columns"], pairs["derived"]) == ('public."T t"', ["id"], False)
    assert (table["key_columns"], table["columns"], table["dropped"]) == (["a", "b"], ["b", "a", "v"], False)


# ---- one row


def why(database: Database, table: str, key: str) -> list[tuple[Any, ...]]:
    found = rows(database, "select * from syncagent.why(%s, %s)", table, key)
    return [(row["what"], row["site"], row["detail"]) for row in found]


def test_a_row_nobody_knows(here: Database) -> None:
    ((what, site, detail),) = why(here, '"T t"', ROW)
    assert (what, site) == ("absent", None)
    assert "no site wrote it" in detail


def test_the_story_of_a_row(here: Database) -> None:
    here.execute('insert into "T t" values (%s, %s)', (ROW, "x"))
    ((what, site, detail),) = why(here, '"T t"', ROW)
    assert (what, site) == ("written", "paris")
    assert "inserted in transaction" in detail
    assert "in no cut yet" in detail

    here.execute("delete from syncagent.log")
    ((what, site, detail),) = why(here, '"T t"', ROW)
    assert (what, site) == ("settled", None)
    assert "every site has it; its key was made at 2024" in detail

    number = here.execute("select id from syncagent.replicated where table_name = 'T t'")[0][0]
    here.execute(
        f"insert into syncagent.version_{number} values (%s, syncagent.uuid7(), 2, 8, false)", (ROW,)
    )
    assert why(here, '"T t"', ROW) == [("written", "tokyo", "unsettled: not known yet to be at lima")]
    here.execute(f"update syncagent.version_{number} set node = 3, cut = 1")
    assert why(here, '"T t"', ROW) == [("written", "lima", "unsettled: not known yet to be at tokyo")]
    here.execute(f"update syncagent.version_{number} set node = 1, cut = null, deleted = true")
    assert why(here, '"T t"', ROW) == [("deleted", "paris", "in no cut yet")]
    here.execute(f"update syncagent.version_{number} set node = 9, cut = 2")
    assert why(here, '"T t"', ROW)[0][1] == "node 9"
    here.execute("insert into syncagent.settling values (%s, %s)", (number, ROW))
    assert why(here, '"T t"', ROW)[1][:2] == ("settling", "paris")


def test_keys_of_several_columns(here: Database) -> None:
    here.execute("insert into pairs values ('x, \"y\"', 1, 'v'), ('plain', 2, 'v')")
    assert why(here, "pairs", '(1,"x, ""y""")')[0][:2] == ("written", "paris")
    assert why(here, "pairs", "(2,plain)")[0][:2] == ("written", "paris")
    assert why(here, "pairs", "(2,other)")[0][0] == "absent"
    here.execute("delete from syncagent.log")
    assert why(here, "pairs", '(1,"x, ""y""")')[0][0] == "settled"


def test_keys_of_one_other_column(here: Database) -> None:
    here.execute("create table days (d date primary key)")
    here.execute("select syncagent._attach('days', true, false)")
    here.execute("insert into days values ('2024-02-29')")
    assert why(here, "days", "2024-02-29")[0][:2] == ("written", "paris")
    here.execute("delete from syncagent.log")
    assert why(here, "days", "29 Feb 2024")[0][0] == "settled"


def conflict(database: Database, table: str, key: str, uuid: str) -> None:
    database.execute(
        "insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, winning_stamp,"
        " losing_stamp, winning_node, losing_node, winning_image, losing_image) values"
        " (gen_random_uuid(), 'public', %s, %s, %s, 'update/update', 'lww', %s, %s, 2, 9, '{\"v\": \"new\"}', '{\"v\": \"old\"}')",
        (table, uuid, key, ROW, OLD),
    )


def test_conflicts_belong_to_their_rows(here: Database) -> None:
    conflict(here, "T t", ROW, ROW)
    conflict(here, "pairs", "(1,b)", here.execute("select syncagent._name_uuid('(1,b)')::text")[0][0])
    (found,) = rows(here, "select * from syncagent.conflicts_of(%s, %s)", '"T t"', ROW)
    assert (found["table_name"], found["winner"], found["loser"]) == ('public."T t"', "tokyo", "node 9")
    assert (found["winning_image"], found["losing_image"]) == ({"v": "new"}, {"v": "old"})
    assert found["winning_time"].year == 2024
    assert len(rows(here, "select * from syncagent.conflicts_of('pairs', '(1,b)')")) == 1
    assert rows(here, "select * from syncagent.conflicts_of('pairs', '(2,b)')") == []
    what, site, detail = why(here, '"T t"', ROW)[1]
    assert (what, site) == ("conflict", "tokyo")
    assert "won over node 9" in detail
    assert '{"v": "old"}' in detail


@pytest.mark.parametrize(
    ("shown", "key"),
    [
        ('{"a": 1, "b": "x", "v": null}', "(1,x)"),
        ('{"a": 1, "b": "x, \\"y\\" \\\\", "v": "z"}', '(1,"x, ""y"" \\\\")'),
        ('{"a": 1, "b": ""}', '(1,"")'),
    ],
)
def test_keys_of_parked_rows_can_be_asked_for(here: Database, shown: str, key: str) -> None:
    here.execute(
        "insert into syncagent.parked_row select r.id, syncagent.key_of_2(%s), %s, 2, 8, '', %s, '23505', 'taken'"
        " from syncagent.replicated r where r.table_name = 'pairs'",
        (key, ROW, shown),
    )
    (found,) = rows(here, "select * from syncagent.parked")
    assert (found["key"], found["origin"], found["table_name"]) == (key, "tokyo", "public.pairs")
    assert why(here, "pairs", found["key"])[-1][:2] == ("parked", "tokyo")


@pytest.mark.parametrize(
    ("table", "key", "state", "hint"),
    [
        ("pg_class", "1", "SA003", "syncagent attach pg_class"),
        ('"T t"', "nonsense", "SA004", "its key is id"),
        ("pairs", "1", "SA004", "its key is a, b"),
        ("pairs", "(1)", "SA004", "its key is a, b"),
        ("pairs", "(x,y)", "SA004", "its key is a, b"),
    ],
)
@pytest.mark.parametrize("function", ["why", "conflicts_of"])
def test_questions_that_make_no_sense(
    here: Database, function: str, table: str, key: str, state: str, hint: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        rows(here, f"select * from syncagent.{function}(%s, %s)", table, key)
    assert caught.value.sqlstate == state
    assert hint in (caught.value.diag.message_hint or "")


# ---- a role that looks


@pytest.fixture
def reader(here: Database) -> str:
    role = f"reader_{here.name}"
    here.server.create_role(role)
    here.execute("select syncagent.grant_reader(%s)", (role,))
    return role


def test_a_reader_sees_everything_and_touches_nothing(here: Database, reader: str) -> None:
    here.execute(f'grant select on "T t", pairs to {reader}')
    conflict(here, "T t", ROW, ROW)
    here.execute(
        "insert into syncagent.parked_row values (1, %s, %s, 2, 8, '', '{}', '23505', 'taken')", (ROW, ROW)
    )
    for view in VIEWS:
        assert rows(here, f"select * from syncagent.{view}", role=reader)
    assert rows(here, "select * from syncagent.why(%s, %s)", '"T t"', ROW, role=reader)
    assert rows(here, "select * from syncagent.conflicts_of(%s, %s)", '"T t"', ROW, role=reader)
    assert rows(here, TREE, '"T t"', "day", role=reader) == []
    for statement in (
        "select * from syncagent.conflict_record",
        "select * from syncagent.log",
        "delete from syncagent.conflict_record",
        "delete from syncagent.conflict_step",
        "select syncagent._fold(true)",
        "select nextval('syncagent.hlc')",
        "select syncagent.grant_reader('postgres')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            rows(here, statement, role=reader)
    here.execute(f"drop owned by {reader}")


def test_a_reader_sees_rows_of_tables_that_it_may_read(here: Database, reader: str) -> None:
    """And of those of which it may read every row: policies hide some from it, images would show them."""
    conflict(here, "T t", ROW, ROW)
    here.execute(
        "insert into syncagent.parked_row values (1, %s, %s, 2, 8, '', '{}', '23505', 'taken')", (ROW, ROW)
    )
    here.execute(
        "insert into syncagent.repair_record (schema_name, table_name, key, key_text, cause, node)"
        " values ('public', 'T t', %s, %s, 'missing', 2)",
        (ROW, ROW),
    )
    shown = [f"select * from syncagent.{view}" for view in ("conflict", "parked", "repair")]
    asked = [f"select * from syncagent.{f}(%s, %s)" for f in ("why", "conflicts_of", "siblings")]

    def hidden() -> None:
        for statement in shown:
            assert rows(here, statement, role=reader) == []
            assert rows(here, statement), "whoever owns the site sees all"

    hidden()
    for statement in asked:
        with pytest.raises(psycopg.errors.Error, match="may not select table public") as told:
            rows(here, statement, '"T t"', ROW, role=reader)
        assert told.value.diag.message_hint == f'grant select on public."T t" to {reader}'
    here.execute(f'grant select on "T t" to {reader}; alter table "T t" enable row level security')
    hidden()
    for statement in asked:
        with pytest.raises(psycopg.errors.Error, match="hide rows from role"):
            rows(here, statement, '"T t"', ROW, role=reader)
    here.execute('alter table "T t" disable row level security')
    for statement in shown:
        assert len(rows(here, statement, role=reader)) == 1
    assert rows(here, asked[0], '"T t"', ROW, role=reader)
    here.execute(f"drop owned by {reader}")


def test_others_see_nothing(here: Database) -> None:
    role = f"other_{here.name}"
    here.server.create_role(role)
    for view in VIEWS:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            rows(here, f"select * from syncagent.{view}", role=role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(here, "select * from syncagent.why('pairs', '(1,x)')", role=role)


def test_a_tree_of_what_is_not_there_says_so(here: Database) -> None:
    for table, level, code in (("pg_class", "day", "SA003"), ('"T t"', "week", "SA004")):
        with pytest.raises(psycopg.Error) as told:
            rows(here, TREE, table, level)
        assert told.value.sqlstate == code
        assert told.value.diag.message_hint


def test_looking_waits_for_nobody(here: Database, make_database: Callable[..., Database]) -> None:
    with here.connect(autocommit=False) as merge:
        merge.execute("lock table syncagent.merge_lock in exclusive mode")
        merge.execute('lock table "T t" in row exclusive mode')
        with here.connect() as person:
            person.execute("set lock_timeout = '1s'")
            for view in VIEWS:
                person.execute(f"select * from syncagent.{view}".encode())
            person.execute("select * from syncagent.why('pairs', '(1,x)')")
