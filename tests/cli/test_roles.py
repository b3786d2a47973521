"""The agent's role with the rights that `docs/managed_postgres.md` lists, and none more: no superuser from 15 on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest

from syncagent import settings
from syncagent.embedded import Server, free_port
from syncagent.transport.tls import Credentials
from tests.cli.conftest import Site
from tests.cli.test_agent import agent, stopped
from tests.cli.test_db import dump
from tests.support.databases import Database
from tests.support.founding import found_together
from tests.support.waiting import until

SCHEMA = """
create schema shop;
create type shop.state as enum ('new', 'paid');
create table shop.customer (id uuid primary key, name text unique, state shop.state default 'new');
create table shop.orders (n serial primary key, customer uuid references shop.customer, note text);
create table shop.event (day date, n int, primary key (day, n)) partition by range (day);
create table shop.event_all partition of shop.event default;
create function shop.note() returns trigger language plpgsql as 'begin new.note := coalesce(new.note, tg_op); return new; end';
create trigger note before insert on shop.orders for each row execute function shop.note();
alter table shop.customer enable row level security;
create policy everybody on shop.customer using (true);
"""

Make = Callable[[str, int], Site]


@pytest.fixture
def ordinary(
    matrix_server: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> Iterator[Make]:
    """Sites whose tables belong to the application's role, and whose agent's role has been granted no more than is listed."""
    made: list[tuple[Database, str, str]] = []

    def make(name: str, node: int) -> Site:
        database = make_database(matrix_server)
        owner, role = f"shop_{database.name}", f"agent_{database.name}"
        made.append((database, owner, role))
        for who in (owner, role):
            matrix_server.create_role(who)
        database.execute(f"grant create on database {database.name} to {owner}")
        with database.connect(role=owner) as application:
            application.execute(SCHEMA.encode())
        before = dump(database)
        database.execute(f"grant create on database {database.name} to {role}; grant {owner} to {role}")
        if matrix_server.binaries.major >= 15:
            database.execute(f"grant set on parameter session_replication_role to {role}")
        else:
            database.execute(f"alter role {role} superuser")
        options = ("--name", name, "--node", node, "--listen", f"127.0.0.1:{free_port()}")
        site = make_site(database, *options, "--dsn", database.dsn_of(role))
        (site.home / "before.sql").write_text(before)
        return site

    yield make
    for database, owner, role in made:
        if matrix_server.binaries.major >= 15:
            database.execute(f"revoke set on parameter session_replication_role from {role}")
        database.execute(f"drop owned by {owner}, {role} cascade")
        for who in (owner, role):
            database.execute(f"drop role {who}")


def meet(*sites: Site) -> None:
    """They are the first sites of one cluster."""
    known = []
    for site in sites:
        made = settings.load(site.home)
        known.append((site.database.dsn, made.address, Credentials.provide(site.home, made.name).sha256))
    found_together(known)


def application(site: Site) -> Site:
    """The same site, written to as the application's role does."""
    return replace(site, database=_As(site.database.server, site.database.name))


class _As(Database):
    """The database as the owner of the tables sees it."""

    @property
    def dsn(self) -> str:
        return self.dsn_of(f"shop_{self.name}")


def test_the_listed_grants_are_enough(ordinary: Make, matrix_server: Server) -> None:
    """init, attach with everything it has, run, new partitions, upgrade, detach, uninstall."""
    paris, tokyo = sites = ordinary("paris", 1), ordinary("tokyo", 2)
    for site in sites:
        said = site("attach", "--all", "--derive-key", "--stride", "8")
        assert said.code == 0, said.err
    meet(*sites)
    with agent(paris) as first, agent(tokyo) as second:
        for site in sites:
            app = application(site)
            app.sql("insert into shop.customer values (gen_random_uuid(), current_user)")
            app.sql("insert into shop.orders (customer) select id from shop.customer limit 1")
            app.sql(
                "create table shop.event_late partition of shop.event for values from ('2024-01-01') to ('2030-01-01')"
            )
            app.sql(f"insert into shop.event_late values ('2024-02-01', {site.database.name[1:]})")
        until(
            lambda: all(site.sql("select count(*) from syncagent._strays()") == [(0,)] for site in sites),
            "the new partitions have their triggers",
        )
        said = paris("wait", "--converged", "--timeout", "60")
        assert said.code == 0, said.out
        for table in ("customer", "orders", "event"):
            rows = [site.sql(f"select t::text from shop.{table} t order by 1") for site in sites]
            assert rows[0] == rows[1]
            assert len(rows[0]) == 2
        for site in sites:
            findings = json.loads(site("doctor", "--json").out)
            assert not [finding for finding in findings if finding["severity"] == "error"]
            told = [what["what"] for what in findings if "does not see what other roles" in what["what"]]
            assert len(told) == (1 if matrix_server.binaries.major >= 15 else 0)
        assert tokyo("detach", "shop.orders").code == 0
        assert paris.sql("select count(*) from syncagent.replicated") == [(2,)]
        assert stopped(first) == stopped(second) == 0
    tokyo.sql("drop function syncagent.judge_1")
    assert tokyo("db", "upgrade", "--json").answer["tables"] == 1
    application(tokyo).sql("drop table shop.event_late")
    assert tokyo("db", "uninstall", "--yes").code == 0
    assert without_grants(dump(tokyo.database)) == without_grants((tokyo.home / "before.sql").read_text())


def without_grants(schema: str) -> str:
    return "".join(line for line in schema.splitlines(keepends=True) if not line.startswith(("GRANT", "--")))


def test_an_agent_that_does_not_own_the_tables(ordinary: Make) -> None:
    """With rights on the rows and their triggers it replicates; what needs the owner says so, and nothing is half-done."""
    site = ordinary("paris", 1)
    owner, role = f"shop_{site.database.name}", f"agent_{site.database.name}"
    if site.database.server.binaries.major < 15:
        pytest.skip("the agent's role is a superuser on 14")
    site.sql(f"revoke {owner} from {role}; grant usage on schema shop to {role}")
    site.sql(f"alter table shop.customer disable row level security; grant select on shop.orders to {role}")
    said = site("attach", "shop.customer")
    assert (said.code, "permission denied for table customer" in said.err) == (1, True)
    site.sql(f"grant select, insert, update, delete, trigger on shop.customer to {role}")
    assert site("attach", "shop.customer").code == 0
    application(site).sql("insert into shop.customer values (gen_random_uuid(), 'x')")
    assert site.sql("select op::text from syncagent.log") == [("I",)]
    findings = {finding["what"]: finding for finding in json.loads(site("doctor", "--json").out)}
    (warned,) = (found for what, found in findings.items() if what.startswith("shop.customer belongs to"))
    assert (warned["severity"], warned["mend"]) == ("warning", f"grant {owner} to {role}")

    said = site("detach", "shop.customer")
    assert said.code == 1
    assert "must be owner of" in said.err
    assert "see `syncagent doctor`" in said.err
    assert site("tables", "--json").answer[0]["table_name"] == "shop.customer"
    site.sql(warned["mend"])
    assert site("detach", "shop.customer").code == 0

    site.sql(f"revoke {owner} from {role}")
    assert site("attach", "shop.customer").code == 0
    application(site).sql(
        "create function shop.same() returns trigger language plpgsql as 'begin return new; end';"
        " create trigger same before update on shop.customer for each row execute function shop.same()"
    )
    assert site.sql("select count(*) from syncagent._strays()") == [(1,)]
    with agent(site):
        until(
            lambda: site.sql("select count(*) from syncagent._strays()") == [(0,)],
            "the trigger that looks at keys is made for all updates",
        )


def test_on_14_the_role_must_be_a_superuser(ordinary: Make) -> None:
    """PostgreSQL 14 has no grant for session_replication_role: an agent that has lost it says so, and applies nothing."""
    site = ordinary("paris", 1)
    role = f"agent_{site.database.name}"
    if site.database.server.binaries.major < 15:
        site.sql(f"alter role {role} nosuperuser")
    else:
        site.sql(f"revoke set on parameter session_replication_role from {role}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), site.database.connect(role=role) as session:
        session.execute("set session_replication_role = replica")
    findings = {finding["what"]: finding for finding in json.loads(site("doctor", "--json").out)}
    lost = findings["the role may not set session_replication_role: nothing can be applied"]
    assert lost["severity"] == "error"
    said = site("run")
    assert said.code == 1
    assert "session_replication_role" in said.err
    if site.database.server.binaries.major >= 15:
        assert lost["mend"] == f"grant set on parameter session_replication_role to {role}"
        site.sql(lost["mend"])  # so that it can be taken away again
    else:
        assert lost["mend"] == f"alter role {role} superuser"
