"""`syncagent doctor`: each thing that can be wrong, by its words and its remedy."""

from collections.abc import Callable

import pytest

from syncagent import settings
from syncagent.embedded import Server
from tests.cli.conftest import Cli, Site, on_each_version
from tests.support.databases import Database

TABLE = "create table {} (id uuid primary key default gen_random_uuid(), v text)"


def found(site: Site, *arguments: object) -> dict[str, tuple[str, str | None]]:
    import json

    said = site("doctor", "--json", *arguments)
    assert said.out, said.err
    findings = json.loads(said.out)
    assert said.code == int(any(finding["severity"] == "error" for finding in findings))
    return {finding["what"]: (finding["severity"], finding["mend"]) for finding in findings}


def one(findings: dict[str, tuple[str, str | None]], beginning: str) -> tuple[str, str | None]:
    (match,) = (verdict for what, verdict in findings.items() if what.startswith(beginning))
    return match


@on_each_version
def test_a_healthy_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncagent.storage import checks

    monkeypatch.delitem(checks._SETTINGS, "fsync")  # the tests' servers are not made to last
    site.sql(TABLE.format("t"))
    site("attach", "t")
    with site.database.agent():
        said = site("doctor")
        findings = found(site)
    assert said.code == 0
    assert "everything is as it should be" in said.err
    assert {severity for severity, _ in findings.values()} == {"note"}
    assert "this site's certificate has the SHA-256" in said.out


def test_what_the_server_does_to_data(site: Site) -> None:
    findings = found(site)
    assert one(findings, "fsync is off") == ("warning", "alter system set fsync = on")
    assert one(findings, "no agent is running") == ("error", "syncagent run")
    site.sql(f"alter database {site.database.name} set synchronous_commit = off")
    site.sql(f"alter database {site.database.name} set deadlock_timeout = 50")
    findings = found(site)
    assert one(findings, "synchronous_commit is off")[0] == "note"
    assert one(findings, "deadlock_timeout is 50 ms")[0] == "warning"


def test_the_home(site: Site, make_database: Callable[..., Database], make_site: Callable[..., Site]) -> None:
    (site.home / "key.pem").chmod(0o644)
    (site.home / "certificate.pem").unlink()
    other = make_site(make_database(site.database.server), "--name", "tokyo", "--node", 2)
    findings = found(site, "--dsn", other.database.dsn)
    assert one(findings, f"{site.home}/key.pem can be read by others") == (
        "error",
        f"chmod 600 {site.home}/key.pem",
    )
    assert one(findings, f"{site.home}/certificate.pem")[0] == "error"
    assert one(findings, "the database of this home's dsn is site tokyo")[0] == "error"


def test_without_a_home(site: Site) -> None:
    said = site.cli("doctor", "--dsn", site.database.dsn)
    assert "no agent is running" in said.out
    assert site.cli("doctor").code == 2


def test_a_database_that_is_not_installed(cli: Cli, database: Database) -> None:
    said = cli("doctor", "--dsn", database.dsn)
    assert said.code == 1
    assert "syncagent is not installed in this database" in said.out


def test_peers_and_clocks(site: Site) -> None:
    site.sql("insert into syncagent.member values (2, 'tokyo'), (3, 'lima')")
    site.sql(
        "insert into syncagent.peer_state (node, linked, paused, clock_offset, waiting, trouble) values"
        " (2, true, false, '-7 s', 'its table public.x is missing here', null),"
        " (3, false, true, '2 s', 'paused by the operator', 'no route to host')"
    )
    site.sql("select setval('syncagent.hlc', syncagent._wall() + 60 * 4096000)")
    with site.database.agent():
        findings = found(site)
    assert one(findings, "the clock of tokyo is -7.0 s from ours")[0] == "error"
    assert one(findings, "the clock of lima is +2.0 s from ours")[0] == "warning"
    assert one(findings, "tokyo: its table public.x is missing here")[0] == "warning"
    assert one(findings, "peer lima is paused") == ("warning", "syncagent resume lima")
    assert one(findings, "lima: no route to host")[0] == "warning"
    assert one(findings, "this site's stamps run ")[0] == "warning"
    assert not [what for what in findings if "paused by the operator" in what]
    assert not [what for what in findings if "of all its peers" in what]
    site.sql("update syncagent.peer_state set clock_offset = '8 s' where node = 2")
    with site.database.agent():
        assert one(found(site), "this site's clock is -2.0 s from those of all its peers")[0] == "warning"


def test_transactions_that_never_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncagent.storage import checks

    monkeypatch.setattr(checks, "_OPEN_SECONDS", 0)
    site.sql(TABLE.format("t"))
    with site.database.connect(autocommit=False) as writer:
        writer.execute("insert into t (v) values ('x')")
        findings = found(site)
        pid = writer.info.backend_pid
        writer.rollback()
    assert one(findings, f"pid {pid} ")[1] == f"select pg_terminate_backend({pid})"


def test_a_forgotten_prepared_transaction(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> None:
    server18.settings["max_prepared_transactions"] = 5
    server18.restart()
    try:
        site = make_site(make_database(server18))
        site.sql("begin; create table t (a int); prepare transaction 'it''s'")
        verdict = one(found(site), "transaction 'it''s' of postgres has been prepared")
        assert verdict == ("warning", "commit prepared 'it''s', or rollback prepared 'it''s'")
        site.sql("rollback prepared 'it''s'")
    finally:
        del server18.settings["max_prepared_transactions"]
        server18.restart()


@on_each_version
def test_what_attached_tables_refer_to(site: Site) -> None:
    site.sql(TABLE.format("parent"))
    site.sql("create table child (id uuid primary key, p uuid references parent)")
    site("attach", "child")
    verdict = one(found(site), "child refers to parent (child_p_fkey), and only child is attached")
    assert verdict == ("warning", "syncagent attach parent")
    site("detach", "child")
    site("attach", "parent")
    verdict = one(found(site), "child refers to parent (child_p_fkey), and only parent is attached")
    assert verdict == ("warning", "syncagent attach child")
    site("attach", "child")
    assert not [what for what in found(site) if "refers to" in what]


@on_each_version
def test_rows_whose_parent_is_not_here(site: Site) -> None:
    site.sql(TABLE.format('"Par ent"'))
    site.sql('create table child (id uuid primary key, "p q" uuid references "Par ent" on delete cascade)')
    site.sql('insert into "Par ent" select from generate_series(1, 5)')
    site.sql('insert into child select gen_random_uuid(), id from "Par ent"')
    site.sql("insert into child values (gen_random_uuid(), null)")
    site("attach", '"Par ent"', "child")
    assert not [what for what in found(site) if "not here" in what]
    site.sql(
        'set session_replication_role = replica; delete from "Par ent" where id in (select id from "Par ent" limit 2)'
    )
    severity, mend = one(
        found(site), '2 rows of child refer to rows of "Par ent" that are not here ("child_p q_fkey")'
    )
    assert severity == "warning"
    assert mend is not None
    assert len(site.sql(mend.partition(": ")[2])) == 2, "the remedy finds them"


@on_each_version
def test_triggers_and_numbers_of_the_application(site: Site) -> None:
    site.sql("create table t (id int generated always as identity primary key, v text)")
    site.sql("create table s (id serial primary key, v text)")
    site.sql("create function f() returns trigger language plpgsql as 'begin return new; end'")
    site.sql("create trigger mine after insert on t for each row execute function f()")
    site("attach", "s", "t", "--derive-key")
    assert not [what for what in found(site) if what.startswith("trigger")]
    site.sql("alter table t enable always trigger mine")
    findings = found(site)
    assert one(findings, "trigger mine of t fires again")[1] == "alter table t enable trigger mine"
    assert one(findings, "t.id is numbered here")[0] == "warning"
    severity, mend = one(findings, "s.id is numbered here")
    assert severity == "warning"
    assert mend is not None
    for command in mend.replace("--stride N", "--stride 16").split(" && "):
        assert site(*command.split()[1:]).code == 0
    assert not [what for what in found(site) if what.startswith("s.id")]
    site.sql("alter sequence s_id_seq increment by 3")
    assert one(found(site), "s_id_seq counts in steps of 3, and was set to 16") == (
        "error",
        "alter sequence s_id_seq increment by 16",
    )


@on_each_version
def test_a_partition_that_is_not_watched(site: Site) -> None:
    site.sql("create table t (d date, n int, primary key (d, n)) partition by range (d)")
    site.sql("create table t_all partition of t default")
    site("attach", "t", "--derive-key")
    assert not [what for what in found(site) if "t_" in what]
    site.sql("create table t_one partition of t for values from ('2024-01-01') to ('2025-01-01')")
    site.sql("insert into t_one values ('2024-01-02', 1)")
    site.sql("alter table t detach partition t_all")
    assert one(found(site), "trigger syncagent_insert of public.t_one is missing") == (
        "error",
        "syncagent db upgrade",
    )
    assert one(found(site), "t_all is no partition of t any more") == ("warning", "syncagent db upgrade")
    assert site("db", "check").code == 1
    assert site("db", "upgrade").code == 0
    assert not [what for what in found(site) if "t_" in what]
    assert site.sql("select op::text, odd from syncagent.log") == [("I", ["(2024-01-02,1)"])]
    site.sql("alter table t_one disable trigger syncagent_update")
    assert one(found(site), "trigger syncagent_update of public.t_one is disabled")[0] == "error"


def test_parked_rows_and_a_large_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from syncagent.storage import checks

    monkeypatch.setattr(checks, "_LOG_BYTES", 1)
    site.sql(TABLE.format("t"))
    site("attach", "t")
    site.sql("insert into t (v) values ('x')")
    site.sql(
        "insert into syncagent.parked_row values"
        " (1, gen_random_uuid(), gen_random_uuid(), 2, 1, '', '{}', '23505', 'taken')"
    )
    findings = found(site)
    assert one(findings, "the log of captured writes holds")[0] == "warning"
    assert one(findings, "1 rows are parked") == ("warning", "syncagent parked list")


def test_settings_of_the_home_decide_about_skew(site: Site) -> None:
    path = site.home / settings.FILE
    path.write_text(path.read_text().replace("max_clock_skew = 5.0", "max_clock_skew = 90"))
    site.sql("insert into syncagent.member values (2, 'tokyo')")
    site.sql("insert into syncagent.peer_state (node, linked, clock_offset) values (2, true, '60 s')")
    with site.database.agent():
        assert one(found(site), "the clock of tokyo")[0] == "warning"
