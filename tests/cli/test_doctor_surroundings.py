"""`syncagent doctor` on what surrounds a site: poolers, ways round the triggers, grants, disk. Each by its words and remedy."""

import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from psycopg import sql

from syncagent import __version__
from syncagent.embedded import Server
from syncagent.storage import room
from syncagent.storage.session import POOLER_HINT
from tests.cli.conftest import Cli, Site, init, on_each_of_the_matrix
from tests.cli.test_doctor import TABLE, found, one
from tests.support.databases import Database
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer

# ---- between the agent and its server


@needs_pgbouncer
def test_a_pooler_that_shares_sessions(site: Site) -> None:
    database = site.database
    for mode in ("transaction", "statement"):
        with pgbouncer(database.server, mode) as pooler:
            verdict = one(found(site, "--dsn", pooler.dsn(database.name)), "a pooler between this host")
            assert verdict == ("error", POOLER_HINT)
    assert not [what for what in found(site) if "pooler" in what]


@needs_pgbouncer
def test_a_pooler_that_keeps_sessions(site: Site) -> None:
    with pgbouncer(site.database.server, "session") as pooler:
        verdict = one(
            found(site, "--dsn", pooler.dsn(site.database.name)),
            "a pooler or proxy answers in the server's place",
        )
    assert verdict[0] == "note"


@needs_pgbouncer
def test_no_agent_works_through_a_pooler(
    site: Site, cli: Cli, make_database: Callable[..., Database]
) -> None:
    """Whether it minds the agent's settings, drops them silently, or keeps them and shares sessions."""
    server, fresh = site.database.server, make_database(site.database.server)
    ignored = (
        "search_path,intervalstyle,extra_float_digits,bytea_output,lc_monetary,default_transaction_isolation"
    )
    ignored += ",default_transaction_read_only,statement_timeout,idle_in_transaction_session_timeout,idle_session_timeout"
    ignored += ",jit,work_mem,temp_buffers"
    with (
        pgbouncer(server, "transaction") as strict,
        pgbouncer(server, "transaction", ignore_startup_parameters=ignored) as careless,
    ):
        for pooler, why in (
            (strict, "unsupported startup parameter"),
            (careless, "it has not passed on the agent's settings"),
        ):
            for said in (
                site("run", "--dsn", pooler.dsn(site.database.name)),
                init(cli, fresh, site.home.parent / "other", "--dsn", pooler.dsn(fresh.name)),
            ):
                assert said.code == 1
                assert "the dsn leads to a connection pooler" in said.err
                assert why in said.err
        assert not (site.home.parent / "other").exists()
    site.sql(f"alter database {site.database.name} set search_path = pg_catalog, pg_temp")
    with pgbouncer(server, "transaction", ignore_startup_parameters=ignored) as careless:
        said = site("run", "--dsn", careless.dsn(site.database.name))
        assert said.code == 1
        assert "several of the agent's sessions are one at the server" in said.err


@on_each_of_the_matrix
def test_time_limits_of_the_server_are_not_the_agents(site: Site) -> None:
    """A session that is idle for long, or whose transaction takes long, is not ended: neither the agent's nor a verb's."""
    import asyncio

    from syncagent.storage.commands import connected
    from syncagent.storage.session import connect

    limits = ["statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout"]
    if site.database.server.binaries.major >= 17:
        limits.append("transaction_timeout")
    for limit in limits:
        site.sql(f"alter database {site.database.name} set {limit} = '1h'")

    async def of_the_agent() -> list[str]:
        session = await connect(site.database.dsn, "test")
        seen = [await session.fetchval(f"select current_setting('{limit}')") for limit in limits]
        await session.close()
        return seen

    assert asyncio.run(of_the_agent()) == ["0"] * len(limits)
    with connected(site.database.dsn) as verb:
        for limit in {"statement_timeout", "transaction_timeout"} & set(limits):
            row = verb.execute("select current_setting(%s) as value", (limit,)).fetchone()
            assert row == {"value": "0"}


# ---- round the triggers


@contextmanager
def role_of(site: Site) -> Iterator[str]:
    """A role of its own, gone afterwards with all it has been given."""
    role = f"r_{site.database.name}"
    site.database.server.create_role(role)
    try:
        yield role
    finally:
        site.sql(f"drop owned by {role}; drop role {role}")


@on_each_of_the_matrix
def test_writes_in_the_replica_role(site: Site) -> None:
    site.sql(TABLE.format("t"))
    site("attach", "t")
    name = site.database.name
    with role_of(site) as role:
        for what, mend in (
            (f"role {role}", f"alter role {role}"),
            (f"role {role} in database {name}", f"alter role {role} in database {name}"),
            (f"database {name}", f"alter database {name}"),
        ):
            site.sql(f"{mend} set session_replication_role = replica")
            verdict = one(found(site), f"session_replication_role is replica for {what}: ")
            assert verdict == ("error", f"{mend} reset session_replication_role")
            assert verdict[1] is not None
            site.sql(verdict[1])
            assert not [what for what in found(site) if "session_replication_role is replica" in what]
        site.sql(f"alter role {role} set session_replication_role = local")
        assert not [what for what in found(site) if "session_replication_role is replica" in what]
        if site.database.server.binaries.major >= 15:
            site.sql(f"grant set on parameter session_replication_role to {role}")
            severity, revoke = one(found(site), f"role {role} may set session_replication_role")
            assert severity == "note"
            assert revoke is not None
            site.sql(revoke.partition(",")[0])
            assert not [what for what in found(site) if f"role {role} may set" in what]


def test_a_server_that_is_all_replica(site: Site) -> None:
    server = site.database.server
    server.settings["session_replication_role"] = "replica"
    server.restart()
    try:
        verdict = one(found(site), "session_replication_role is replica for everybody (configuration file)")
        assert verdict[0] == "error"
    finally:
        del server.settings["session_replication_role"]
        server.restart()


@on_each_of_the_matrix
def test_a_subscription_writes_behind_the_triggers(site: Site) -> None:
    site.sql("create table t (id uuid primary key) partition by hash (id)")
    site.sql("create table leaf partition of t for values with (modulus 1, remainder 0)")
    site.sql("create table other (id uuid primary key)")
    site("attach", "t")
    site.sql(
        "create subscription \"from afar\" connection '' publication p with (connect = false, slot_name = none)"
    )
    written = (
        "set allow_system_table_mods = on; insert into pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " select oid, '{}'::regclass, 'r' from pg_subscription where subname = 'from afar'"
    )
    try:
        site.sql(written.format("other"))
        assert not [what for what in found(site) if what.startswith("subscription")]
        site.sql(written.format("leaf"))
        severity, mend = one(found(site), 'subscription "from afar" writes to leaf behind the triggers')
        assert severity == "error"
        assert mend is not None
        assert site(*mend.partition(",")[0].split()[1:]).code == 0
        assert not [what for what in found(site) if what.startswith("subscription")]
    finally:
        site.sql('drop subscription "from afar"')


@on_each_of_the_matrix
def test_rules_that_act_where_rows_are_applied(site: Site) -> None:
    site.sql(TABLE.format("t"))
    site.sql("create rule mine as on insert to t do also select 1")
    site("attach", "t")
    assert not [what for what in found(site) if what.startswith("rule")]
    site.sql("alter table t enable replica rule mine")
    verdict = one(found(site), "rule mine of t acts again where the agent applies rows")
    assert verdict == ("warning", "alter table t enable rule mine")


# ---- grants


@on_each_of_the_matrix
def test_grants_that_the_agents_role_lacks(site: Site) -> None:
    site.sql(
        "create schema shop; create table shop.t (n serial primary key); create table shop.seen (id uuid primary key)"
    )
    assert site("attach", "--all", "--derive-key", "--stride", "8").code == 0
    assert not [
        what for what in found(site) if "may not" in what or "belongs to" in what or "does not see" in what
    ]
    with role_of(site) as role:
        site.sql("alter table shop.seen enable row level security")
        expected = {
            f"schema syncagent belongs to postgres, and {role} is no member of that": "grant postgres to {role}",
            f"{role} may not use schema shop": "grant usage on schema shop to {role}",
            f"{role} may not select, insert, update, delete on shop.t": "grant select, insert, update, delete on shop.t to {role}",
            f"{role} may not move shop.t_n_seq": "grant select, update on sequence shop.t_n_seq to {role}",
            f"row-level security hides rows of shop.seen from {role}": "alter role {role} bypassrls",
            f"{role} does not see what other roles": "grant pg_read_all_stats to {role}",
            f"shop.t belongs to postgres, and {role} is no member of that": "grant postgres to {role}",
        }
        # what it needs to look at all
        site.sql(
            f"grant usage on schema syncagent to {role}; grant select on all tables in schema syncagent to {role}"
        )
        site.sql(
            f"grant execute on all functions in schema syncagent to {role}; grant select on all sequences in schema syncagent to {role}"
        )
        seen = found(site, "--dsn", site.database.dsn_of(role))
        assert {what: one(seen, what)[1] for what in expected} == {
            what: mend.format(role=role) for what, mend in expected.items()
        }
        site.sql(f"grant update on shop.t to {role}; grant usage on schema shop to {role}")
        seen = found(site, "--dsn", site.database.dsn_of(role))
        assert one(seen, f"{role} may not select, insert, delete on shop.t")[0] == "error"
        assert not [what for what in seen if "may not use schema" in what]


# ---- disk, versions

Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_fills(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [what for what in found(site) if "are free on the disk" in what]
    for free, severity in ((40 * 2**20, "warning"), (2**20, "error")):
        usage = Usage(1000 * 2**20, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        findings = found(site)
        mb, data = free // 2**20, site.database.server.data_dir
        for folder in (site.home, data):
            assert one(findings, f"{mb} MB are free on the disk of {folder}: ")[0] == severity


def test_a_replication_slot_that_nobody_uses(
    server18: Server, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server18.execute(sql.SQL("select pg_create_physical_replication_slot('left_behind', true)"))
    try:
        assert not [what for what in found(site) if what.startswith("replication slot")]
        monkeypatch.setattr(room, "_SLOT_BYTES", 0)
        verdict = one(found(site), "replication slot 'left_behind' is not used, and keeps ")
        assert verdict == ("warning", "select pg_drop_replication_slot('left_behind')")
    finally:
        server18.execute(sql.SQL("select pg_drop_replication_slot('left_behind')"))


def test_an_agent_of_another_version(site: Site) -> None:
    site.sql("insert into syncagent.agent_state (version, started_at) values ('0.0.1', now())")
    with site.database.agent():
        severity, mend = one(
            found(site), f"the agent that runs is version 0.0.1, and this command is {__version__}"
        )
    assert severity == "warning"
    assert mend is not None
    assert "syncagent run" in mend
