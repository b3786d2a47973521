"""Memory does not grow with the batch."""

import sys

import pytest

from tests.support.cluster import Laboratory, has, mark
from tests.support.waiting import until

MIB = 1024 * 1024


@pytest.mark.soak
def test_many_rows_on_their_way(laboratory: Laboratory, request: pytest.FixtureRequest) -> None:
    rows = 1_000_000 if request.config.getoption("soak") else 300_000
    with laboratory.cluster(18, 18) as cluster:
        a, b = cluster
        a.fresh = b.fresh = True
        cluster.start()
        cluster.exchange()
        a.execute(
            """
            insert into customer
            select overlay(overlay(md5(i::text) placing lpad(to_hex(at), 12, '0') || '7' from 1) placing '8' from 17)::uuid,
                   'customer ' || i, i %% 1000, md5(i::text)
            from generate_series(1, %s) i, (values ((extract(epoch from now()) * 1000)::bigint)) as now (at)
            """,
            (rows,),
        )
        last = mark(a)
        peaks = {site.name: 0 for site in cluster}

        def arrived() -> bool:
            for site in cluster:
                peaks[site.name] = max(peaks[site.name], site.agent.memory_info().rss)
            return has(b, last)

        until(arrived, f"{rows:,} rows", 120)
        used = {name: peak // MIB for name, peak in peaks.items()}
        sys.stdout.write(f"resident memory of the agents at their peak, in MiB: {used}\n")
        assert b.scalar("select count(*) from customer") > rows
        assert max(used.values()) < 150
