"""A site joins a fleet that goes on writing: it ends with the same tables and the same rows, whatever dies meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from syncagent.embedded import Server
from tests.support.fleet import Member, fleet
from tests.support.waiting import until

SCHEMA = """
create type mood as enum ('glad', 'sad');
create table customer (id uuid primary key, name text not null unique, mood mood not null default 'glad', born timestamptz default now());
create table item (id bigint primary key, name text not null, stock integer not null check (stock >= 0));
create table line (customer uuid references customer, position integer, item bigint references item, text text,
                   primary key (customer, position));
create index line_item on line (item);
comment on table line is 'what was ordered';
"""
FILL = """
insert into customer (id, name) select syncagent.uuid7(), 'customer ' || i from generate_series(1, 3000) i;
insert into item select i, 'item ' || i, i from generate_series(1, 500) i;
insert into line select c.id, p, 1 + (p * 7 + length(c.name)) % 500, repeat(md5(c.name || p), 20)
from customer c cross join generate_series(1, 10) p;
"""
TABLES = ("customer", "item", "line")


def digest(site: Member) -> list[Any]:
    return [
        site.execute(
            f"select count(*), md5(string_agg(md5(t::text), '' order by t::text collate \"C\")) from {table} t"
        )
        for table in TABLES
    ]


@contextmanager
def writing(*sites: Member) -> Iterator[list[int]]:
    """Inserts, updates and deletes at each site, each in its own customers, and some rows that all of them write."""
    stop, done = threading.Event(), [0] * len(sites)

    def write(place: int, site: Member) -> None:
        with site.database.connect() as connection:
            while not stop.wait(0.02):
                name = f"{site.name} {done[place]}"
                (made,) = connection.execute(
                    "insert into customer (id, name) values (syncagent.uuid7(), %s) returning id", (name,)
                ).fetchall()
                connection.execute("insert into line values (%s, 1, 1, %s)", (made[0], name))
                connection.execute(
                    "update item set name = %s, stock = stock + 1 where id = %s", (name, done[place] % 20 + 1)
                )
                if done[place] % 5 == 4:
                    connection.execute("delete from line where customer = %s", made)
                    connection.execute("delete from customer where id = %s", made)
                done[place] += 1

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(sites)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_equal(*sites: Member) -> None:
    said = sites[0].verb("wait", "--converged", "--timeout", "60")
    assert said.returncode == 0, said.stdout + said.stderr
    seen = [digest(site) for site in sites]
    assert all(found == seen[0] for found in seen), seen


def test_a_site_joins_under_load(server18: Server, server15: Server, tmp_path: Path) -> None:
    with fleet(tmp_path, "", server18, server15, server18) as (berlin, tokyo, lima):
        berlin.init()
        berlin.execute(SCHEMA)
        berlin.execute(FILL)
        berlin.start()
        counted = ("--strategy", "merge", "--merge", "stock=counter")
        berlin.ask("attach", "item", "--derive-key", "--bucket", "day", *counted)
        berlin.ask("attach", "--all", "--derive-key", "--bucket", "day")
        tokyo.join(berlin)
        tokyo.start()
        with writing(berlin, tokyo) as done:
            until(lambda: min(done) > 20, "both write")
            before = list(done)
            lima.join(tokyo)
            assert all(now > then for now, then in zip(done, before, strict=True)), "nobody stood still"
            lima.start()
        wait_equal(berlin, tokyo, lima)
        for site in (tokyo, lima):
            assert site.scalar("select obj_description('line'::regclass)") == "what was ordered"
            assert (
                site.scalar(
                    "select count(*) from pg_constraint where conrelid = 'line'::regclass and contype = 'f'"
                )
                == 2
            )
            assert site.scalar("select count(*) from pg_indexes where tablename in ('customer', 'line')") == 4
            assert (
                site.scalar("select count(*) from syncagent.replicated where agreed and bucket = 'day'") == 3
            )
        with writing(lima) as more:
            pass
        lima.execute("insert into item values (1000, 'from lima', 3)")
        wait_equal(lima, berlin, tokyo)
        assert lima.scalar("select sum(stock) from item") == 500 * 501 // 2 + 3 + sum(done) + sum(more)


MANY = "".join(
    f"create table part_{n} (id uuid primary key, text text not null);"
    f"insert into part_{n} select syncagent.uuid7(), md5('{n} ' || i) from generate_series(1, 2000) i;"
    for n in range(12)
)
COPIED = "select coalesce(sum(rows), 0) from syncagent.copied_range"


def test_a_join_goes_on_after_kill_9_of_either_side(server18: Server, tmp_path: Path) -> None:
    with fleet(tmp_path, "", server18, server18) as (berlin, tokyo):
        berlin.init()
        berlin.execute(MANY)
        berlin.start()
        berlin.ask("attach", "--all")
        joining = slowly(tokyo, berlin, berlin.ask("invite")["token"])
        copied(tokyo, 0)
        os.kill(joining.pid, signal.SIGKILL)
        joining.wait()
        kept = tokyo.scalar(COPIED)

        joining = slowly(tokyo, berlin)  # it was admitted, and needs no token
        copied(tokyo, kept)
        berlin.stop(kill=True)
        assert joining.wait(60) == 1
        assert "is its agent running" in (tokyo.home / "join.err").read_text()
        assert kept < tokyo.scalar(COPIED) < 24000

        berlin.start()
        until(
            lambda: listens(berlin), "what is left of the agent that was killed is no agent that can be asked"
        )
        tokyo.ask(*tokyo.joining(berlin))
        tokyo.start()
        berlin.execute("delete from part_3 where text < 'a'")
        said = berlin.verb("wait", "--converged")
        assert said.returncode == 0, said.stdout
        for n in range(12):
            look = f"select count(*), md5(string_agg(t::text, '' order by id)) from part_{n} t"
            assert tokyo.execute(look) == berlin.execute(look)


def listens(site: Member) -> bool:
    host, _, port = site.address.rpartition(":")
    with socket.socket() as dialled:
        return dialled.connect_ex((host, int(port))) == 0


def copied(site: Member, more_than: int) -> None:
    """Wait for rows of a copy that is under way."""

    def look() -> bool:
        there = site.scalar("select to_regclass('syncagent.copied_range') is not null")
        return bool(there) and site.scalar(COPIED) > more_than

    until(look, "something was copied")


def slowly(site: Member, peer: Member, token: str = "") -> "subprocess.Popen[bytes]":
    """A join that takes some seconds, as a process."""
    site.home.mkdir(exist_ok=True)
    with (site.home / "join.err").open("wb") as file:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "syncagent", *site.joining(peer), "--home", str(site.home)),
                *("--max-rate", "150kB", "--timeout", "3s"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, **({"SYNCAGENT_TOKEN": token} if token else {})},
        )


@pytest.mark.soak(only="three agents, one of them held up")
def test_a_donor_that_is_a_step_behind(server18: Server, server15: Server, tmp_path: Path) -> None:
    """A strategy was changed while it was away, and somebody keeps it from its table: the joiner gets what it has, and both catch up."""
    table = "create table item (id uuid primary key, name text not null, price int not null)"
    how = "select strategy from syncagent.replicated"
    with fleet(tmp_path, table, server18, server15, server18) as (berlin, tokyo, lima):
        lima.execute("drop table item")
        berlin.init()
        berlin.start()
        berlin.ask("attach", "item")
        tokyo.join(berlin)
        tokyo.start()
        write = "insert into item select syncagent.uuid7(), %s, 1"
        for site in (berlin, tokyo):
            site.execute(write, (site.name,))
        assert berlin.ask("wait", "--converged")["converged"]
        tokyo.stop()
        assert berlin.ask("strategy", "item", "lww-column")["state"] == "done"
        assert berlin.scalar(how) == "lww-column"
        with tokyo.database.connect(autocommit=False) as reader:
            reader.execute("select from item")  # the step needs the table for a moment
            tokyo.start()
            until(
                lambda: berlin.scalar("select state from syncagent.site where name = 'tokyo'") == "linked",
                "it is back",
            )
            assert tokyo.scalar(how) == "lww"
            joining = threading.Thread(target=lima.join, args=(tokyo,))
            joining.start()
            until(lambda: "lima" in berlin.members(), "lima is admitted")
            assert tokyo.scalar(how) == "lww"
            reader.rollback()
        joining.join(60)
        assert not joining.is_alive()
        lima.start()
        until(
            lambda: {site.scalar(how) for site in (berlin, tokyo, lima)} == {"lww-column"}, "all have done it"
        )
        berlin.execute("update item set name = name || '!'")
        lima.execute("update item set price = price + 1")
        assert berlin.ask("wait", "--converged")["converged"]
        for site in (berlin, tokyo, lima):
            assert site.execute("select name, price from item order by name") == [
                ("berlin!", 2),
                ("tokyo!", 2),
            ]
