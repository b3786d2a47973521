"""Rows that refer to a row that is not here: for a moment while batches are on their way, or for good after a site that wrote one has died.

A foreign key is not checked while batches are applied. Whoever made the referring row brings its parent back; if that site is gone, nobody does.
"""

from collections.abc import Iterator

import psycopg

from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding

_PATIENCE_MS = 10_000
"""For each foreign key: all rows of the table are read."""
_MOST = 1000
"""Rows that are counted."""
_KEYS = """
select quote_ident(x.name) as name, c.relation::regclass::text as child, p.relation::regclass::text as parent, x.same,
       (select string_agg(format('t.%%I is not null', a.attname), ' and ') from pg_constraint f join pg_attribute a on a.attrelid = f.conrelid and a.attnum = any (f.conkey)
        where f.conrelid = c.relation and f.conname = x.name and f.contype = 'f') as given
from syncagent.replicated p join pg_class k on k.oid = p.relation
cross join lateral syncagent._references(p.id) as x join syncagent.replicated c on c.id = x.relation
where x.policy <> %s order by 2, 1
"""


def orphans(connection: Connection) -> Iterator[Finding]:
    """Of each foreign key between attached tables; those of the policy `report` are in conflicts already."""
    for row in connection.execute(_KEYS, ("report",)).fetchall():
        what = f"from {row['child']} t where {row['given']} and not exists (select from {row['parent']} p where {row['same']})"
        try:
            with connection.transaction():
                connection.execute(f"set local statement_timeout = {_PATIENCE_MS}")
                counted = connection.execute(
                    f"select count(*) as rows from (select {what} limit {_MOST}) as o".encode()
                ).fetchone()
        except psycopg.errors.QueryCanceled:
            yield Finding(
                "note",
                f"{row['child']} was not looked through for rows whose {row['parent']} is not here ({row['name']}): it takes too long",
                f"select t.* {what}",
            )
            continue
        if counted is not None and counted["rows"]:
            many = "at least " if counted["rows"] == _MOST else ""
            yield Finding(
                "warning",
                f"{many}{counted['rows']} rows of {row['child']} refer to rows of {row['parent']} that are not here ({row['name']});"
                " in a moment they may be, unless a site has died that wrote them",
                f"give them a parent, or delete them: select t.* {what}",
            )
