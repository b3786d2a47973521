"""`python -m tests.support.lost_rows [ROWS]`: three sites with so many rows (ten millions) lose three of them at one, behind the
triggers; what is typed, what is answered, how long it took, and how many bytes went over the links.

Its output is kept in `docs/proof/lost-rows.txt`.
"""

import re
import sys
import time

from syncagent.embedded import scratch
from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.waiting import until

ROWS = 10_000_000
_STEP = 500_000
_OLDEST = 200_000 * 14_745_600_000
"""A key's clock of long ago: hours since 1970. So many rows, 37 an hour, end before now, and are all in sealed buckets."""
_INSERT = """
insert into customer
select syncagent._stamp(%s + n * 400000000::bigint, -9223372036854775808 + n), 'customer ' || n, n, repeat('x', 100)
from generate_series(%s::bigint, %s::bigint) n
"""
_PATIENCE = 3600.0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def carried(cluster: Cluster) -> int:
    """Bytes that have gone over all links."""
    return sum(sum(proxy.forwarded.values()) for site in cluster for proxy in site.ways.values())


def fill(cluster: Cluster, rows: int) -> None:
    first = cluster.sites[0]
    for low in range(0, rows, _STEP):
        first.execute(_INSERT, (_OLDEST, low + 1, min(low + _STEP, rows)))
    cluster.exchange(_PATIENCE)


def typed(cluster: Cluster, site: Site, *words: str) -> str:
    """A verb: its answer, its time, its bytes."""
    say(f"{site.name}$ syncagent {' '.join(words)}")
    before, began = carried(cluster), time.monotonic()
    done = site.syncagent(*words, seconds=_PATIENCE)
    spent, bytes_ = time.monotonic() - began, carried(cluster) - before
    say(done.stdout.rstrip() + (f"\n{done.stderr.rstrip()}" if done.returncode not in (0, 1) else ""))
    say(f"[{spent:.1f} s, {bytes_:,} bytes on all links, exit code {done.returncode}]\n")
    return done.stdout


def tell(cluster: Cluster, rows: int) -> None:
    *_, lima = cluster
    say("Everything is sealed first, which is done once:")
    typed(cluster, lima, "verify", "customer")
    say("And from then on, whatever is there:")
    said = typed(cluster, lima, "verify", "customer")
    compared = [int(found.replace(",", "")) for found in re.findall(r": equal, ([\d,]+) rows", said)]
    if len(compared) != 2 or min(compared) < rows:
        raise SystemExit("not all rows were compared")

    keys = [
        key for (key,) in lima.execute("select id from customer order by id offset %s limit 3", (rows // 3,))
    ]
    say(
        "lima$ psql: set session_replication_role = replica; delete from customer where id in (...)   -- three rows"
    )
    with lima.connect() as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("delete from customer where id = any (%s)", (keys,))
    say("DELETE 3\n")
    say(
        "No trigger has seen it. All rows are read at once, at all sites, as the scrub does once a day in small steps:"
    )
    typed(cluster, lima, "verify", "--deep", "customer")
    say("Nobody does anything.")
    before, began = carried(cluster), time.monotonic()
    back = "select count(*) from customer where id = any (%s)"
    until(lambda: lima.scalar(back, (keys,)) == len(keys), "they are back", _PATIENCE)
    spent, bytes_ = time.monotonic() - began, carried(cluster) - before
    say(f"[the three rows are back {spent:.1f} s later, after {bytes_:,} bytes on all links]\n")
    say("lima$ psql: select table_name, key, cause, source, image_before, image_after from syncagent.repair")
    told = "select table_name, key, cause, source, image_before, image_after ->> 'name' from syncagent.repair"
    for row in lima.execute(told):
        say("  ".join(str(part) for part in row))
    say("")
    typed(cluster, lima, "verify", "customer")
    typed(cluster, lima, "verify", "--deep", "customer")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with scratch("syncagent-lost-") as folder:
        laboratory = Laboratory(folder, durable=True)
        try:
            with laboratory.cluster(18, 18, 18) as cluster:
                cluster.start()
                began = time.monotonic()
                fill(cluster, rows)
                spent = time.monotonic() - began
                size = cluster.sites[0].scalar("select pg_size_pretty(pg_table_size('customer'))")
                say(f"{rows:,} rows, {size}, at three sites; loaded and replicated in {spent:.0f} s\n")
                tell(cluster, rows)
        finally:
            laboratory.stop()


if __name__ == "__main__":
    main()
