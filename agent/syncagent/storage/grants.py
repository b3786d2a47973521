"""What the agent's role must be allowed, and is not.

Invariant: nothing here needs a superuser; `docs/managed_postgres.md` lists the same rights.
"""

from collections.abc import Iterator

from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding

_WRITES = ("select", "insert", "update", "delete")


def grants(connection: Connection) -> Iterator[Finding]:
    """Rights on the SQL side, on attached tables and their sequences; and on what `status` names people by."""
    row = connection.execute(
        """
        select quote_ident(current_user) as role, quote_ident(pg_get_userbyid(n.nspowner)) as owner,
               pg_has_role(current_user, n.nspowner, 'usage') as owns, pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees
        from pg_namespace n where n.nspname = 'syncagent'
        """
    ).fetchone()
    assert row is not None
    role = row["role"]
    if not row["owns"]:
        yield Finding(
            "error",
            f"schema syncagent belongs to {row['owner']}, and {role} is no member of that",
            f"grant {row['owner']} to {role}",
        )
    yield from _tables(connection, role)
    yield from _sequences(connection, role)
    yield from _hidden_rows(connection, role)
    if not row["sees"]:
        yield Finding(
            "note",
            f"{role} does not see what other roles' sessions do: transactions that stay open are not told of here",
            f"grant pg_read_all_stats to {role}",
        )


def _tables(connection: Connection, role: str) -> Iterator[Finding]:
    for row in connection.execute(
        """
        select r.relation::text as relation, quote_ident(n.nspname) as schema, quote_ident(pg_get_userbyid(c.relowner)) as owner,
               has_schema_privilege(n.oid, 'usage') as enters, pg_has_role(current_user, c.relowner, 'usage') as owns,
               array(select p from unnest(%s::text[]) with ordinality as u (p, o)
                     where not has_table_privilege(c.oid, p) order by o) as lacks
        from syncagent.replicated r join pg_class c on c.oid = r.relation join pg_namespace n on n.oid = c.relnamespace order by 1
        """,
        (list(_WRITES),),
    ).fetchall():
        if not row["enters"]:
            yield Finding(
                "error",
                f"{role} may not use schema {row['schema']}",
                f"grant usage on schema {row['schema']} to {role}",
            )
        if row["lacks"]:
            yield Finding(
                "error",
                f"{role} may not {', '.join(row['lacks'])} on {row['relation']}",
                f"grant {', '.join(row['lacks'])} on {row['relation']} to {role}",
            )
        if not row["owns"]:
            yield Finding(
                "warning",
                f"{row['relation']} belongs to {row['owner']}, and {role} is no member of that: it cannot mend or remove its triggers",
                f"grant {row['owner']} to {role}",
            )


def _sequences(connection: Connection, role: str) -> Iterator[Finding]:
    for row in connection.execute(
        """
        select s.sequence::text as sequence from syncagent.stride s
        where case when exists (select from pg_class c where c.oid = s.sequence)
                   then not (has_sequence_privilege(s.sequence, 'update') and has_sequence_privilege(s.sequence, 'select')) end
        order by 1
        """
    ):
        yield Finding(
            "error",
            f"{role} may not move {row['sequence']} above the numbers that arrive",
            f"grant select, update on sequence {row['sequence']} to {role}",
        )


def _hidden_rows(connection: Connection, role: str) -> Iterator[Finding]:
    for row in connection.execute(
        "select r.relation::regclass::text as relation from syncagent.replicated r join pg_class c on c.oid = r.relation"
        " where c.relrowsecurity and row_security_active(c.oid) order by 1"
    ):
        yield Finding(
            "error",
            f"row-level security hides rows of {row['relation']} from {role}",
            f"alter role {role} bypassrls",
        )
