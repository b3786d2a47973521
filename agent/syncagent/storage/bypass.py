"""Ways of writing that no trigger sees: what is set up so, for what was written so cannot be told from here.

A settled row has no metadata, and neither has a row that was written behind the triggers: only a comparison of the
sites finds it. What can be seen is who is set up to do it, before it is done.
"""

from collections.abc import Iterator

from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding

_GRANT_EXISTS_FROM = 150000


def bypass(connection: Connection) -> Iterator[Finding]:
    """Settings, subscriptions and roles that write rows which are not captured."""
    yield from _settings(connection)
    yield from _subscriptions(connection)
    if connection.info.server_version >= _GRANT_EXISTS_FROM:
        yield from _roles(connection)


def _settings(connection: Connection) -> Iterator[Finding]:
    row = connection.execute(
        "select source from pg_settings where name = 'session_replication_role' and reset_val = 'replica'"
        " and source not in ('database', 'user', 'database user')"
    ).fetchone()
    if row:
        yield Finding(
            "error",
            f"session_replication_role is replica for everybody ({row['source']}): writes are not replicated",
            "alter system reset session_replication_role, then select pg_reload_conf()",
        )
    for row in connection.execute(
        """
        select quote_ident(r.rolname) as role, quote_ident(d.datname) as database
        from pg_db_role_setting s cross join lateral unnest(s.setconfig) as c (setting)
        left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase
        where c.setting ~* '^session_replication_role=replica$' and (d.oid is null or d.datname = current_database())
        order by 1, 2
        """
    ):
        where = f" in database {row['database']}" if row["database"] else ""
        if row["role"]:
            who, mend = f"role {row['role']}{where}", f"alter role {row['role']}{where}"
        else:
            who = f"database {row['database']}" if row["database"] else "all roles"
            mend = f"alter {who.replace('all roles', 'role all')}"
        yield Finding(
            "error",
            f"session_replication_role is replica for {who}: what it writes is not replicated",
            f"{mend} reset session_replication_role",
        )


def _subscriptions(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute(
        """
        select quote_ident(s.subname) as name, x.srrelid::regclass::text as written, r.relation::text as relation
        from pg_subscription_rel x join pg_subscription s on s.oid = x.srsubid
        join syncagent.replicated r on r.relation in (x.srrelid, pg_partition_root(x.srrelid)) order by 1, 2
        """
    ):
        yield Finding(
            "error",
            f"subscription {row['name']} writes to {row['written']} behind the triggers: its rows stay at this site",
            f"syncagent detach {row['relation']}, or take the table out of what {row['name']} subscribes to",
        )


def _roles(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute(
        """
        select quote_ident(r.rolname) as role from pg_roles r
        where r.rolcanlogin and not r.rolsuper and r.rolname <> current_user
          and has_parameter_privilege(r.oid, 'session_replication_role', 'set') order by 1
        """
    ):
        yield Finding(
            "note",
            f"role {row['role']} may set session_replication_role, and then writes what is not replicated",
            f"revoke set on parameter session_replication_role from {row['role']}, unless it is an agent's",
        )
