"""Two rows that become one, through agents: kill -9 in the middle of it, a site that joins, and one that is set back and returns."""

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from syncagent.embedded import Server
from tests.support.backups import dumped, restored_dump
from tests.support.fleet import Member, fleet
from tests.support.waiting import until

SHOP = """create table customer (id uuid primary key, email text unique);
    create table sale (id uuid primary key, customer uuid not null references customer on delete cascade, email text)"""
MANY = """with c as (insert into customer select syncagent.uuid7(), '{0} ' || n from generate_series(1, 300) n returning *)
    insert into sale select syncagent.uuid7(), c.id, c.email from c"""


def apart(*sites: Member) -> None:
    for site in sites:
        site.ask("pause")


def together(*sites: Member) -> None:
    for site in sites:
        site.ask("resume")


def wait_equal(*sites: Member) -> None:
    """And each sale is with the customer whose address it has."""
    said = sites[0].verb("wait", "--converged", "--timeout", "60s")
    assert said.returncode == 0, said.stdout + said.stderr
    for look in ("select * from customer order by id", "select * from sale order by id"):
        assert all(site.execute(look) == sites[0].execute(look) for site in sites[1:]), look
    strays = "select s.email, c.email from sale s left join customer c on c.id = s.customer where c.email is distinct from s.email"
    assert [site.execute(strays) for site in sites] == [[]] * len(sites)


def merging(site: Member) -> bool:
    """Once it merges a batch; or it has nothing to merge for a while."""
    merges = "select count(*) from pg_stat_activity where datname = current_database() and state = 'active' and query like '%syncagent._merge(%' and pid <> pg_backend_pid()"
    with suppress(AssertionError):
        until(lambda: site.scalar(merges), "it merges", seconds=1)
        return True
    return False


@pytest.mark.soak
def test_rows_become_one_while_agents_are_killed(
    server18: Server, server15: Server, tmp_path: Path, seed: int, runs: Callable[[int, int], int]
) -> None:
    if not (rounds := runs(0, 6)):
        pytest.skip("half a minute: with --soak")
    sys.stdout.write(f"SEED={seed} ")
    chance, struck = random.Random(seed), 0
    with fleet(tmp_path, SHOP, server18, server15, server18) as (berlin, tokyo, lima):
        lima.execute("drop table sale, customer")
        berlin.init()
        berlin.start()
        berlin.ask("attach", "customer", "--on-unique", "customer_email_key=merge")
        berlin.ask("attach", "sale")
        tokyo.join(berlin)
        tokyo.start()
        for number in range(rounds):
            apart(berlin, tokyo)
            for site in (berlin, tokyo):
                site.execute(MANY.format(number))
            together(berlin, tokyo)
            for victim in chance.choices((berlin, tokyo), k=4):
                struck += merging(victim)
                victim.stop(kill=True)
                victim.start()
            wait_equal(berlin, tokyo)
            assert berlin.scalar("select count(*) from customer") == 300 * (number + 1)
            assert tokyo.scalar("select count(*) from sale") == 600 * (number + 1)
        assert struck, "no agent was killed in a merge"
        lima.join(tokyo)
        lima.start()
        wait_equal(berlin, tokyo, lima)


@pytest.mark.soak(only="a quarter of a minute")
def test_a_site_that_is_set_back_to_before_a_merge_returns(
    server18: Server, server15: Server, tmp_path: Path
) -> None:
    """It writes for the one that was merged away meanwhile: what it wrote follows."""
    with fleet(tmp_path, SHOP, server18, server15, server18) as (berlin, tokyo, lima):
        for site in (tokyo, lima):
            site.execute("drop table sale, customer")
        berlin.init()
        berlin.start()
        berlin.ask("attach", "customer", "--on-unique", "customer_email_key=merge")
        berlin.ask("attach", "sale")
        for site in (tokyo, lima):
            site.join(berlin)
            site.start()
        first, second = (f"01900000-0000-7000-8000-00000000000{n}" for n in (1, 2))
        lima.execute("insert into customer values (%s, 'old')", (second,))
        wait_equal(berlin, tokyo, lima)
        tokyo.stop()
        dumped(tokyo.database, tmp_path / "tokyo.dump")
        tokyo.execute("insert into customer values (syncagent.uuid7(), 'lost')")

        apart(berlin, lima)
        berlin.execute("insert into customer values (%s, 'ann')", (first,))
        lima.execute("update customer set email = 'ann' where id = %s", (second,))
        together(berlin, lima)
        customers = "select array_agg(id::text) from customer"
        until(lambda: [site.scalar(customers) for site in (berlin, lima)] == [[first]] * 2, "one is left")

        restored_dump(tokyo.database, tmp_path / "tokyo.dump")
        tokyo.execute("insert into sale values (syncagent.uuid7(), %s, 'ann')", (second,))
        tokyo.ask("rejoin", "--yes")
        assert tokyo.scalar("select count(*) from syncagent.alias") >= 1
        tokyo.start()
        wait_equal(berlin, tokyo, lima)
        assert lima.scalar("select customer::text from sale") == first
        until(
            lambda: not any(site.scalar("select count(*) from syncagent.alias") for site in (berlin, lima)),
            "and then it is forgotten",
        )
