"""Clusters of several sites at once, without the minutes that joining one after the other would take.

Every site is given the same beginning, which is what Raft asks of its first members; `init` does it for one.
"""

from collections.abc import Sequence
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from syncagent.core.catalog import Catalog, Site
from syncagent.core.raft.messages import Membership
from syncagent.storage import registry

CLUSTER = UUID("01900000-0000-7000-8000-000000000000")


def found_together(sites: Sequence[tuple[str, str | None, str]], *, only: str | None = None) -> Catalog:
    """`sites`: dsn, address and certificate of databases that `init` has made sites. `only` one is told."""
    connections = [psycopg.connect(dsn, autocommit=True, row_factory=dict_row) for dsn, _, _ in sites]
    known = [
        connection.execute("select site, name, node, incarnation from syncagent.local_site").fetchone() or {}
        for connection in connections
    ]
    catalog = Catalog(
        cluster=CLUSTER,
        next_node=max(here["node"] for here in known) + 1,
        sites={
            here["node"]: Site(**here, address=address, sha256=(sha256,), state="member")
            for here, (_, address, sha256) in zip(known, sites, strict=True)
        },
    )
    nodes = sorted(catalog.sites)
    votes = len(nodes) - (len(nodes) + 1) % 2
    for connection, (dsn, _, _) in zip(connections, sites, strict=True):
        if only in (None, dsn):
            registry.found(connection, catalog, Membership(tuple(nodes[:votes]), tuple(nodes[votes:])))
        connection.close()
    return catalog
