"""Memory does not grow with the batch."""

import sys

from tests.support.cluster import Laboratory
from tests.support.waiting import until

MIB = 1024 * 1024
ROWS = 1_000_000


def test_a_million_rows_on_their_way(laboratory: Laboratory) -> None:
    with laboratory.cluster(18, 18) as cluster:
        a, b = cluster
        cluster.start()
        cluster.exchange()
        peaks = {site.name: 0 for site in cluster}
        a.execute(
            """
            insert into customer
            select overlay(overlay(md5(i::text) placing lpad(to_hex(at), 12, '0') || '7' from 1) placing '8' from 17)::uuid,
                   'customer ' || i, i % 1000, md5(i::text)
            from generate_series(1, %s) i, (values ((extract(epoch from now()) * 1000)::bigint)) as now (at)
            """,
            (ROWS,),
        )

        def arrived() -> bool:
            for site in cluster:
                peaks[site.name] = max(peaks[site.name], site.agent.memory_info().rss)
            return bool(
                b.scalar("select reltuples from pg_class where relname = 'customer'") is not None
            ) and (b.scalar("select count(*) from (select from customer limit %s) as t", (ROWS,)) == ROWS)

        until(arrived, "a million rows", 120)
        used = {name: peak // MIB for name, peak in peaks.items()}
        sys.stdout.write(f"resident memory of the agents at their peak, in MiB: {used}\n")
        cluster.exchange()
        assert max(used.values()) < 150
