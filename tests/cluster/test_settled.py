"""A million updates, and what is left of them when all sites have them: nothing."""

import sys

import pytest

from tests.support.cluster import Laboratory, Site, has, mark
from tests.support.waiting import until

ROWS, AT_ONCE, UPDATES = 100_000, 10_000, 1_000_000
QUIET = 60


def rows(low: int, high: int) -> str:
    return f"('01900000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid from generate_series({low}, {high - 1}) as n"


def updates(site: Site, number: int) -> None:
    """So many rows in one statement, elsewhere each time."""
    low = number * 7919 % (ROWS - AT_ONCE + 1)
    site.execute(f"update customer set credit = credit + 1 where id in (select {rows(low, low + AT_ONCE)})")


@pytest.mark.soak(only="two minutes")
def test_of_a_million_updates_nothing_is_left(laboratory: Laboratory) -> None:
    """While one site is away they keep to what docs/operations.md says; with all of them there, version entries and log are gone."""
    with laboratory.cluster(18, 15, 18) as cluster:
        berlin, tokyo, lima = cluster
        cluster.start()
        berlin.execute(
            f"insert into customer select k, 'n', 0, null from (select {rows(0, ROWS)}) as key (k)"
        )
        cluster.exchange(120)
        for number in range(UPDATES // AT_ONCE // 2):
            updates(berlin if number % 3 else tokyo, number)
        cluster.exchange(120)
        cluster.settles(QUIET)

        cluster.cut_off(lima)
        for number in range(UPDATES // AT_ONCE // 2):
            updates(berlin if number % 3 else tokyo, number)
        marks = [mark(site) for site in (berlin, tokyo)]
        until(lambda: all(has(site, *marks) for site in (berlin, tokyo)), "the two go on", 120)
        for site in (berlin, tokyo):
            number = site.scalar("select id from syncagent.replicated where table_name = 'customer'")
            ((entries, size),) = site.execute(
                f"select count(*), pg_total_relation_size('syncagent.version_{number}') from syncagent.version_{number}"
            )
            keys = site.scalar("select coalesce(sum(cardinality(keys)), 0) from syncagent.cut_keys")
            log = site.scalar("select syncagent._log_bytes()")
            sys.stdout.write(
                f"{site}: {entries:,} entries, {size:,} bytes; {keys:,} keys of cuts; log {log:,} bytes\n"
            )
            assert entries <= ROWS + 2, "one a row, though each was changed five times"
            assert size <= 6 * 120 * entries, "itself, and what five changes leave for vacuum"
            assert keys <= UPDATES // 2 + 2, "one for each cut that changed a row, at most"
            assert log <= 1_000_000
        cluster.heal(lima)
        cluster.converges(120)
        cluster.settles(QUIET)
