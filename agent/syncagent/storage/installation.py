"""Making a database a site, and making it what it was before.

Invariant: what the role may not do is found before anything is written, and everything that is written
belongs to the caller's transaction.
"""

import secrets
import time
from uuid import UUID, uuid4

from psycopg.errors import InsufficientPrivilege, LockNotAvailable

from syncagent.core import stamp
from syncagent.core.copying import At
from syncagent.core.raft.messages import NOBODY
from syncagent.errors import LacksPrivilege, RefusedError
from syncagent.storage import migrations
from syncagent.storage.commands import Connection, agent_runs

_GRANT_EXISTS_FROM = 150000


def preflight(connection: Connection) -> None:
    """Raise unless this database can become a site. Changes nothing."""
    if migrations.installed(connection) and (here := site(connection)):
        raise RefusedError(
            f"this database is the site {here['name']} already",
            detail=f"node {here['node']}, site {here['site']}",
            hint="use its home, or choose another database; `syncagent db uninstall --dsn ...` removes syncagent from it",
        )
    role = connection.execute(
        "select current_user as name, quote_ident(current_user) as quoted, quote_ident(current_database()) as database,"
        " has_database_privilege(current_database(), 'create') as creates"
    ).fetchone()
    assert role is not None
    if not role["creates"] and not migrations.installed(connection):
        raise LacksPrivilege(
            f"role {role['name']} may not create a schema in this database",
            hint=f"as its owner: grant create on database {role['database']} to {role['quoted']}",
        )
    if not may_apply(connection):
        exists = connection.info.server_version >= _GRANT_EXISTS_FROM
        raise LacksPrivilege(
            f"role {role['name']} may not set session_replication_role",
            detail="The agent needs it to apply rows without firing triggers and foreign keys a second time.",
            hint=("as a superuser: " if exists else "PostgreSQL 14 knows no grant for it: ")
            + apply_grant(connection),
        )


def apply_grant(connection: Connection) -> str:
    """What gives this role the right to apply."""
    row = connection.execute("select quote_ident(current_user) as role").fetchone()
    assert row is not None
    if connection.info.server_version >= _GRANT_EXISTS_FROM:
        return f"grant set on parameter session_replication_role to {row['role']}"
    return f"alter role {row['role']} superuser"


def may_apply(connection: Connection) -> bool:
    """Whether the role can be the agent's: tried, for who may differs from provider to provider."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("set local session_replication_role = replica")
    except InsufficientPrivilege:
        return False
    return True


def site(connection: Connection) -> dict[str, object] | None:
    """Who this database is; the SQL side must be there."""
    return connection.execute("select name, node, site, incarnation from syncagent.local_site").fetchone()


def settle(connection: Connection, name: str, node: int) -> tuple[UUID, UUID]:
    """Install the SQL side and make this database a site; returns its site and incarnation."""
    site, incarnation = new_uuid(), uuid4()
    settle_as(connection, name, node, site, incarnation)
    return site, incarnation


def new_uuid() -> UUID:
    """A UUIDv7 of no site."""
    return stamp.pack(stamp.from_seconds(time.time()), NOBODY, secrets.randbits(46))


def settle_as(
    connection: Connection,
    name: str,
    node: int,
    site: UUID,
    incarnation: UUID,
    *,
    joining: bool = False,
    copied: bool = True,
) -> None:
    """Install the SQL side and make this database the site; one that joins may have no copy yet."""
    migrations.upgrade(connection)
    connection.execute(
        "insert into syncagent.local_site (site, name, node, incarnation, tail, joining, copied)"
        " values (%s, %s, %s, %s, syncagent._tail(%s, %s), %s, %s)",
        (site, name, node, incarnation, node, secrets.randbits(46), joining, copied),
    )


def stands(connection: Connection) -> dict[int, int]:
    """The frontier of this site, its own last cut included."""
    return {
        row["node"]: row["cut"]
        for row in connection.execute("select node, cut from syncagent.frontier").fetchall()
    }


def return_as(connection: Connection, node: int, incarnation: UUID, told: At) -> None:
    """Take another number; what this site wrote after its cut `told` becomes its own writes, everything else may be old."""
    connection.execute(
        "select syncagent._return(%s, %s, %s, %s, %s)",
        (node, incarnation, secrets.randbits(46), told.cut, told.newest),
    )


def return_anew(
    connection: Connection, node: int, incarnation: UUID, told: At, accepted: int, seconds: float
) -> None:
    """The same, of a site whose clock was ahead: what becomes its own writes is stamped anew, and its clock set back. Waits so
    long for transactions that are open."""
    connection.execute("select set_config('lock_timeout', %s, true)", (f"{int(seconds * 1000)}ms",))
    try:
        connection.execute(
            "select syncagent._anew(%s, %s, %s, %s, %s, %s)",
            (node, incarnation, secrets.randbits(46), told.cut, told.newest, accepted),
        )
    except LockNotAvailable as error:
        raise RefusedError(
            "a transaction that has written here is still open",
            detail=str(error).strip(),
            hint="let it end, or `select pg_terminate_backend(...)` it, and run the same command again: it goes on",
        ) from error
    connection.execute("set local lock_timeout to default")


def lead(connection: Connection, accepted: int) -> int:
    """How far the clock of this site is ahead, in hlc units: of time, of what was accepted, of what came from others."""
    row = connection.execute("select syncagent._lead(%s) as lead", (accepted,)).fetchone()
    assert row is not None
    return int(row["lead"])


def newest_up_to(connection: Connection, cut: int) -> int:
    """The largest clock of this site's cuts up to one."""
    row = connection.execute("select syncagent._newest_up_to(%s) as newest", (cut,)).fetchone()
    assert row is not None
    return int(row["newest"])


def is_copied(connection: Connection) -> bool:
    """Whether the rows with which this site begins are here."""
    row = connection.execute("select copied from syncagent.local_site").fetchone()
    return bool(row and row["copied"])


def joined(connection: Connection) -> None:
    """This site is a member like any other."""
    with connection.transaction():
        connection.execute("select syncagent._shape_forget(r.id) from syncagent.replicated r")
        connection.execute("select syncagent._shape_take()")
        connection.execute("update syncagent.local_site set joining = false")


def remove(connection: Connection) -> list[str]:
    """Detach every table and drop the SQL side; returns the tables."""
    if agent_runs(connection):
        raise RefusedError("an agent is running for this site", hint="stop it first")
    connection.execute("lock table syncagent.merge_lock in access exclusive mode")
    tables = connection.execute(
        "select relation::oid::bigint as oid, format('%I.%I', schema_name, table_name) as name from syncagent.replicated order by id"
    ).fetchall()
    for table in tables:
        connection.execute("select syncagent._detach(%s::bigint::oid::regclass)", (table["oid"],))
    if connection.execute("select from pg_extension where extname = 'syncagent'").rowcount:
        connection.execute("drop extension syncagent cascade")
    else:
        connection.execute("drop schema syncagent cascade")
    return [table["name"] for table in tables]
