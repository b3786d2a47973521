"""`syncagent run`, and the verbs that need a running agent."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncagent.embedded import Server, free_port
from tests.cli.conftest import Cli, Site
from tests.support.databases import Database
from tests.support.founding import found_together
from tests.support.waiting import until

TABLE = "create table t (id uuid primary key default gen_random_uuid(), v text, n int unique)"


@contextmanager
def agent(site: Site, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The site's agent as a process of its own, running when this begins."""
    log = site.home / "agent.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "syncagent", "run", "--home", site.home, *options],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "agent")},
        )
    with process:
        try:
            until(lambda: "running" in log.read_text() or process.poll() is not None, "the agent runs")
            yield process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


@pytest.fixture
def pair(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> tuple[Site, Site]:
    """Paris and tokyo, who know each other, with one table."""
    sites, known = [], []
    for node, name in enumerate(("paris", "tokyo"), 1):
        database = make_database(server18)
        listen = f"127.0.0.1:{free_port()}"
        site = make_site(database, "--name", name, "--node", node, "--listen", listen)
        site.sql(TABLE)
        assert site("attach", "t").code == 0
        digest = next(
            f["what"].rpartition(" ")[2]
            for f in json.loads(site("doctor", "--json").out)
            if "certificate" in f["what"]
        )
        sites.append(site)
        known.append((database.dsn, listen, digest))
    found_together(known)
    paris, tokyo = sites
    return paris, tokyo


# ---- run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_agent_cleanly(
    server18: Server,
    make_database: Callable[..., Database],
    make_site: Callable[..., Site],
    number: signal.Signals,
) -> None:
    site = make_site(make_database(server18), "--listen", "none")
    with agent(site, "--json") as process:
        assert site("status", "--json").answer[0]["state"] == "running"
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    events = [json.loads(line) for line in (site.home / "agent.log").read_text().splitlines()]
    assert {"running", "stopped"} <= {event["event"] for event in events}
    assert {event["level"] for event in events} == {"info"}
    assert site("status", "--json").answer[0]["state"] == "no agent"


def test_one_agent_per_site(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> None:
    site = make_site(make_database(server18), "--listen", "none")
    with site.database.agent():
        said = site("run")
    assert said.code == 1
    assert "another agent runs for this site" in said.err
    assert "hint: " in said.err


def test_an_agent_that_cannot_listen_says_that_and_no_more(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        site = make_site(make_database(server18), "--listen", address)
        with agent(site) as process:
            assert process.wait(20) == 2
    said = (site.home / "agent.log").read_text()
    assert f"cannot listen on {address}" in said
    assert "hint: " in said
    assert "Warning" not in said


def test_an_agent_refuses_a_database_that_is_not_its_own(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> None:
    paris = make_site(make_database(server18), "--listen", "none")
    tokyo = make_site(make_database(server18), "--listen", "none", "--name", "tokyo", "--node", 2)
    said = paris("run", "--dsn", tokyo.database.dsn)
    assert said.code == 1
    assert "does not belong to the home of site paris" in said.err


def test_a_broken_configuration_is_a_matter_of_usage(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> None:
    site = make_site(make_database(server18))
    with (site.home / "config.toml").open("a") as file:
        file.write("[adresses]\n")
    said = site("run")
    assert said.code == 2
    assert "'adresses' is not a setting" in said.err
    assert "hint: write addresses" in said.err
    assert site.cli("run", "--home", site.home / "missing").code == 2


@pytest.mark.parametrize("verb", [("wait", "--converged"), ("pause",), ("resume",)])
def test_without_an_agent_nobody_waits(
    server18: Server,
    make_database: Callable[..., Database],
    make_site: Callable[..., Site],
    verb: tuple[str, ...],
) -> None:
    site = make_site(make_database(server18))
    said = site(*verb)
    assert said.code == 1
    assert "no agent is running for this site" in said.err
    assert "hint: start it with `syncagent run`" in said.err
    assert site.sql("select * from syncagent.request") == []


def test_a_reader_may_look_from_anywhere(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site], cli: Cli
) -> None:
    site = make_site(make_database(server18))
    site.sql(TABLE)
    site("attach", "t")
    role = f"reader_{site.database.name}"
    server18.create_role(role)
    site.sql("select syncagent.grant_reader(%s)", role)
    here = ("--dsn", site.database.dsn_of(role))
    for verb in ("status", "tables", "conflicts list", "parked list"):
        assert cli(*verb.split(), *here, "--json").answer is not None
    row = ("why", "t", "01900000-0000-7000-8000-000000000001", *here)
    assert f"hint: grant select on public.t to {role}" in cli(*row).err, "its rows are not for everybody"
    site.sql(f"grant select on t to {role}")
    assert cli(*row).code == 0
    said = cli("detach", "t", *here)
    assert said.code == 1
    assert "hint: " in said.err
    site.sql(f"drop owned by {role}")


def test_what_to_wait_for_must_be_said(cli: Cli) -> None:
    said = cli("wait")
    assert said.code == 2
    assert "syncagent wait --converged" in said.err


def test_an_agent_that_dies_is_not_waited_for(
    server18: Server, make_database: Callable[..., Database], make_site: Callable[..., Site]
) -> None:
    site = make_site(make_database(server18))
    with site.database.connect() as pretender:
        pretender.execute("select pg_advisory_lock(1937337955, 2)")
        end = f"'begin perform pg_terminate_backend({pretender.info.backend_pid}); return null; end'"
        pretender.execute(f"create function give_up() returns trigger language plpgsql as {end}".encode())
        pretender.execute("create trigger dies after insert on syncagent.request execute function give_up()")
        said = site("wait", "--converged", "--timeout", "1h")
    assert said.code == 1
    assert "no agent is running" in said.err
    assert site.sql("select * from syncagent.request") == []


# ---- two sites


def collided(paris: Site, tokyo: Site) -> None:
    """Both have written a 77: one row has yielded it, at both sites, and is given a value of its own."""
    mine = ("conflicts", "list", "--table", "t", "--open")
    (found,) = until(lambda: paris(*mine, "--json").answer or tokyo(*mine, "--json").answer, "a collision")
    site = paris if paris(*mine, "--json").answer else tokyo
    assert (found["kind"], found["constraint_name"], found["yielded"]) == ("unique", "t_n_key", {"n": None})
    for choice in (
        ("--key", found["key"]),
        ("--site", found["loser"]),
        ("--since", "1h"),
        ("--kind", "unique"),
    ):
        assert [c["id"] for c in site(*mine, *choice, "--json").answer] == [found["id"]]
    assert site(*mine, "--key", found["other_key"]).err.strip() == "no conflicts"
    header, line = site(*mine, "--csv").out.splitlines()
    assert header.startswith("id,noticed_at,table_name,key,kind")
    assert line.startswith(found["id"])
    assert "until the row is given a value" in site("conflicts", "show", found["id"]).out
    settle = ("conflicts", "resolve", found["id"][:13])
    assert site(*settle).code == site(*settle, "--take", "loser", "--value", "{}").code == 2
    assert site(*settle, "--value", "{").code == site(*settle, "--value", "[]").code == 2
    assert "has no column m" in site(*settle, "--value", '{"m": 1}').err
    assert site(*settle, "--take", "loser", "--json").answer["open"] is False
    assert "was resolved already" in site(*settle, "--take", "loser").err
    assert site("conflicts", "undo", found["id"], "--json").answer["open"] is True
    assert "resolved" in site(*settle, "--value", '{"n": 770}').out
    until(
        lambda: (
            [s.sql("select n from t where n >= 77 order by n") for s in (paris, tokyo)]
            == [[(77,), (770,)]] * 2
        ),
        "both",
    )
    assert site(*mine).err.strip() == "no conflicts"


def test_two_sites_and_everything_one_asks_of_them(pair: tuple[Site, Site]) -> None:
    paris, tokyo = pair
    paris.sql("insert into t (v, n) select 'x', i from generate_series(1, 3) as i")
    with agent(paris) as first, agent(tokyo) as second:
        assert paris("wait", "--converged", "--timeout", "60").out.startswith("converged")
        assert tokyo.sql("select count(*) from t") == [(3,)]
        assert paris("wait", "--converged", "--json").answer["converged"] is True

        # both apply nothing, and write
        assert paris("pause", "--json").answer == {"paused": [2]}
        assert tokyo("pause", "paris").out.strip() == "paused: paris"
        assert paris("pause", "lima").code == 2
        ((key,),) = paris.sql("select id from t where n = 1")
        for site, name in ((paris, "paris"), (tokyo, "tokyo")):
            site.sql("update t set v = %s where n = 1", name)
            site.sql("insert into t (v, n) values (%s, 77)", name)
        said = paris("wait", "--converged", "--timeout", "200ms")
        assert said.code == 1
        assert "not converged within 0.2 s" in said.out
        assert "tokyo" in said.out
        me, other = paris("status", "--json").answer
        assert (me["name"], me["state"], other["name"], other["state"]) == (
            "paris",
            "running",
            "tokyo",
            "paused",
        )
        story = paris("why", "t", key, "--json").answer
        assert [(line["what"], line["site"]) for line in story] == [("written", "paris")]
        assert "tokyo" in story[0]["detail"] or "in no cut yet" in story[0]["detail"]

        # and go on
        assert paris("resume", "tokyo", "--json").answer == {"paused": []}
        assert tokyo("resume").out.strip() == "paused: nobody"
        shown = paris("constraints", "t", "--json").answer
        assert [(c["constraint_name"], c["policy"], c["becomes"]) for c in shown] == [
            ("t_n_key", "keep-both", "null")
        ]
        collided(paris, tokyo)
        found = until(
            lambda: paris("conflicts", "list", "--kind", "update/update", "--json").answer, "a conflict"
        )
        assert [(c["kind"], c["table_name"], c["key"]) for c in found] == [
            ("update/update", "public.t", str(key))
        ]
        assert {found[0]["winner"], found[0]["loser"]} == {"paris", "tokyo"}
        assert found[0]["winning_image"]["v"] == found[0]["winner"]
        shown = paris("conflicts", "show", found[0]["id"][:8])
        assert found[0]["losing_image"]["v"] in shown.out
        with pytest.MonkeyPatch.context() as terminal:
            terminal.setenv("FORCE_COLOR", "1")
            terminal.setenv("TERM", "xterm")
            terminal.delenv("NO_COLOR", raising=False)
            coloured = paris("conflicts", "show", found[0]["id"]).out.splitlines()
        (differs,) = (line for line in coloured if "\x1b[1;33m" in line)
        assert differs.count("\x1b[1;33m") == 3, "the name of the column, and both values"
        assert {"paris", "tokyo"} <= set(re.sub(r"\x1b\[[\d;]*m", " ", differs).split())
        assert (
            paris("conflicts", "list", "--table", "t", "--kind", "update/delete").err.strip()
            == "no conflicts"
        )

        # from now on the second one waits for a person
        policy = ("constraints", "t", "--on-unique")
        assert "no constraint x that" in paris(*policy, "x=report").err
        assert paris(*policy, "t_n_key=both").code == 2
        (chosen,) = paris(*policy, "t_n_key=merge", "--json").answer
        assert (chosen["policy"], chosen["column_name"], chosen["becomes"]) == ("merge", None, "one row")
        assert [c["policy"] for c in paris(*policy, "t_n_key=report", "--json").answer] == ["report"]
        assert "report" in tokyo("constraints", "t").out
        for site in (paris, tokyo):
            assert site("pause").code == 0
        for site in (paris, tokyo):
            site.sql("insert into t (v, n) values ('second', 78)")
        for site in (paris, tokyo):
            assert site("resume").code == 0
        until(lambda: paris("parked", "list", "--json").answer, "the second 78 is parked")
        (waiting,) = paris("parked", "list", "--json").answer
        assert "t_n_key" in paris("parked", "show", "t", waiting["key"]).out
        assert paris("parked", "retry", "--json").answer == {"parked": 1}
        assert "--yes" in paris("parked", "drop", "t", waiting["key"]).err
        assert paris("parked", "show", "t", key).code == 1
        said = paris("wait", "--converged", "--timeout", "300ms")
        assert (said.code, "parked" in said.out) == (1, True)
        for verb in ("status", "tables", "doctor"):
            assert paris(verb).code == 0
        assert "kept as conflict" in paris("parked", "drop", "t", waiting["key"], "--yes").out
        assert "no row is parked" in paris("parked", "retry").out
        until(lambda: tokyo("parked", "retry", "--json").answer == {"parked": 0}, "it is deleted there, too")
        assert paris("wait", "--converged").code == 0
        assert stopped(first) == stopped(second) == 0
