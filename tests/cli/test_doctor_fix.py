"""`syncagent doctor --fix`: what has one right state is put there; what is a decision stays."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import Cli, Site
from tests.cli.test_doctor import TABLE, found, one
from tests.support.databases import Database

MENDED = [
    ("drop trigger syncagent_update on t", "trigger syncagent_update of public.t is missing", "made anew"),
    (
        "alter table t disable trigger syncagent_insert",
        "trigger syncagent_insert of public.t is disabled",
        "fires",
    ),
    (
        "alter table t enable always trigger syncagent_delete",
        "trigger syncagent_delete of public.t is",
        "fires",
    ),
    ("drop function syncagent.judge_1", "function syncagent.judge_1 of public.t is missing", "made anew"),
    (
        "create or replace function syncagent._wall() returns bigint language sql volatile as 'select 1::bigint'",
        "function syncagent._wall is not as this version",
        "made as this version has it",
    ),
]
DECISIONS = [
    ("drop table t", "public.t is attached, but the application has dropped it"),
    ("alter table t rename to u", "public.t was renamed to public.u"),
    ("alter table t add column w int", "public.t was changed by hand"),
    ("drop view syncagent.parked cascade", "syncagent.parked is missing"),
]


def fixed(site: Site) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(site("doctor", "--fix", "--json").out)
    return answer


@pytest.fixture
def attached(site: Site) -> Site:
    site.sql("create table t (id uuid primary key default gen_random_uuid(), v text unique)")
    assert site("attach", "t").code == 0
    return site


def test_what_has_one_right_state_is_mended_once(attached: Site) -> None:
    for statement, what, _ in MENDED:
        attached.sql(statement)
        assert one(found(attached), what)[0] == "error"
    answer = fixed(attached)
    assert len(answer["mended"]) == len(MENDED)
    for _, what, done in MENDED:
        (mended,) = (mended for mended in answer["mended"] if mended["what"].startswith(what))
        assert done in mended["done"]
        assert mended["failed"] is None
    assert not [finding for finding in answer["findings"] if finding["fix"]]
    assert fixed(attached)["mended"] == []
    assert attached("db", "check").code == 0
    attached.sql("insert into t (v) values ('x'); update t set v = 'y'; delete from t")
    assert attached.sql("select op::text from syncagent.log order by hlc") == [("I",), ("U",), ("D",)]


def test_a_trigger_that_may_set_keys_has_come(attached: Site) -> None:
    attached.sql(
        "create function other() returns trigger language plpgsql as"
        " 'begin new.id := gen_random_uuid(); return new; end';"
        " create trigger other before update on t for each row execute function other()"
    )
    what = "public.t has got a trigger before updates"
    assert one(found(attached), what)[0] == "warning"
    (mended,) = fixed(attached)["mended"]
    assert mended["what"].startswith(what)
    attached.sql("insert into t (v) values ('x'); update t set v = 'y'")
    assert attached.sql("select op::text from syncagent.log order by hlc") == [("I",), ("D",), ("U",)]


def test_what_is_a_decision_stays(attached: Site, cli: Cli, make_database: Callable[..., Database]) -> None:
    for statement, what in DECISIONS:
        copy = make_database(attached.database.server, template=attached.database.name)
        copy.execute(statement)
        said = cli("doctor", "--fix", "--dsn", copy.dsn)
        assert what in said.out, statement
        assert "doctor --fix" not in said.err


def test_files_of_the_home_are_made_private(attached: Site) -> None:
    for name in ("config.toml", "key.pem"):
        (attached.home / name).chmod(0o644)
    with attached.database.agent():
        said = attached("doctor")
        assert said.code == 1
        assert "mended by: syncagent doctor --fix" in said.err
        said = attached("doctor", "--fix")
    assert said.code == 0
    assert f"{attached.home}/key.pem can be read by others: only its owner can read it now" in said.err
    assert (attached.home / "key.pem").stat().st_mode & 0o077 == 0


def test_what_cannot_be_mended_now_is_said_and_the_rest_is_done(
    attached: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncagent.cli.doctor._PATIENCE", 0.1)
    attached.sql("alter table t disable trigger syncagent_insert")
    (attached.home / "key.pem").chmod(0o644)
    with attached.database.connect(autocommit=False) as writer:
        writer.execute("lock table t in exclusive mode")
        answer = fixed(attached)
        writer.rollback()
    by = {mended["done"]: mended["failed"] for mended in answer["mended"]}
    assert by["only its owner can read it now"] is None
    assert by["could not enable"].startswith("a lock was not to be had")
    assert fixed(attached)["mended"][0]["done"] == "it fires again"


# ---- what else doctor sees of certificates and peers


def test_a_certificate_that_the_cluster_does_not_list(site: Site) -> None:
    site.sql("update syncagent.member set sha256 = array[repeat('0', 64)]")
    severity, mend = one(found(site), "the cluster lists another certificate of this site")
    assert severity == "error"
    assert mend is not None
    assert "restore key.pem" in mend


def test_who_lacks_what_and_who_differs(site: Site) -> None:
    site.sql(TABLE.format("t"))
    site("attach", "t")
    site.sql("insert into syncagent.member (node, name) values (2, 'tokyo')")
    site.sql("insert into syncagent.peer_state (node, linked, frontier) values (2, true, '{\"1\": 0}')")
    site.sql(
        "select syncagent._prove(2, false, true, 1, 5, 0, null, 'x', '{}', '{}', '[]');"
        " select syncagent._prove(2, true, true, 1, 5, 0, null, 'y', '{}', '{}', '[]')"
    )
    with site.database.agent():
        assert not [what for what in found(site) if "not equal" in what]
        site.sql("select syncagent._prove(2, false, true, 1, 5, 0, null, 'z', '{}', '{}', '[]')")
        severity, mend = one(found(site), "tokyo and this site were not equal")
    assert (severity, mend) == ("warning", "syncagent verify, and then syncagent repair --dry-run")
    site.sql(
        "insert into syncagent.cut (number, id, taken, rows, made_at)"
        " values (1, gen_random_uuid(), pg_current_snapshot(), 12345, now() - interval '11 min')"
    )
    with site.database.agent():
        verdict = one(found(site), "tokyo lacks 12,345 rows of this site, and has for 11 min")
    assert verdict == ("warning", "syncagent doctor, at tokyo")
