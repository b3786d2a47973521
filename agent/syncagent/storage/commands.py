"""A verb's connection to the site's database, and the border where psycopg's errors become ours.

Invariant: a message says where it tried to go and as whom, and never with what password; nothing is
written outside an explicit transaction, so that a verb that fails has done nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from psycopg.rows import dict_row

from syncagent.errors import DatabaseError, RefusedError, SyncagentError, Unreachable
from syncagent.storage import dsns
from syncagent.storage import session as agent_session
from syncagent.storage.borders import of_sqlstate
from syncagent.storage.migrations import require_current

Connection = psycopg.Connection[dict[str, Any]]

_CONNECT_SECONDS = 10
# libpq tells the reason of a refused connection only in words; those of the server come in its language.
_REASONS = (
    ("password authentication failed", "check user and password in the dsn, or use a password file"),
    ("no password supplied", "put the password into the dsn or into ~/.pgpass"),
    ("no pg_hba.conf entry", "allow this host, user and database in the server's pg_hba.conf"),
    ("does not exist", "create it first, or correct the dsn"),
    ("Connection refused", "is the server running there, and does it listen on that address?"),
    ("failed to resolve host", "correct the host in the dsn"),
    ("timeout", "is there a firewall between this host and the server?"),
    ("hot standby", "it is a standby: promote it, or name the primary in the dsn, too: host1,host2"),
)


@contextmanager
def border() -> Iterator[None]:
    """Everything that talks to psycopg runs inside."""
    try:
        yield
    except psycopg.Error as error:
        raise _ours(error) from error


def _ours(error: psycopg.Error) -> SyncagentError:
    if error.sqlstate is None:
        return Unreachable("the connection to the site's PostgreSQL was lost", detail=str(error))
    diagnosis = error.diag
    return of_sqlstate(
        error.sqlstate,
        diagnosis.message_primary or str(error),
        diagnosis.message_detail,
        diagnosis.message_hint or None,
    )


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """A connection in autocommit mode to a server that is new enough.

    Raises UsageError (the dsn), Unreachable, DatabaseError (login, database, version).
    """
    parameters = dsns.read(dsn)
    try:
        connection = psycopg.connect(
            dsn,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=_CONNECT_SECONDS,
            application_name="syncagent command",
            target_session_attrs="primary",
        )
    except psycopg.OperationalError as error:
        _refused(parameters, str(error))
    with border(), connection:
        version = connection.info.server_version
        if version < agent_session.OLDEST:
            raise DatabaseError(
                f"this server is PostgreSQL {version // 10000}; syncagent needs {agent_session.OLDEST // 10000} or newer",
                detail=where(parameters),
                hint="upgrade the server",
            )
        connection.execute("set statement_timeout = 0; set default_transaction_read_only = off")
        connection.execute("set syncagent.step = on")  # no person types here: see sql/48_shape.sql
        connection.execute(f"select {agent_session.NO_TIMEOUT}".encode())
        yield connection


@contextmanager
def site_of(dsn: str) -> Iterator[Connection]:
    """`connected`, where there is a site whose SQL side has exactly our version. RefusedError if not."""
    with connected(dsn) as connection:
        require_current(connection)
        if not connection.execute("select from syncagent.site").rowcount:
            raise RefusedError(
                "this database is no site yet: only the SQL side is installed", hint="syncagent init"
            )
        yield connection


def where(parameters: dict[str, Any]) -> str:
    """What was dialled, in words, without the password."""
    host, port = parameters.get("host") or "the local socket", parameters.get("port") or 5432
    place = f"{host}:{port}, database {parameters.get('dbname') or '(default)'}"
    return f"{place}, user {parameters['user']}" if parameters.get("user") else place


_NOT_READY = "the database system is "  # starting up, shutting down, in recovery mode


def _refused(parameters: dict[str, Any], said: str) -> NoReturn:
    hint = next((hint for text, hint in _REASONS if text in said), "check the dsn and the server")
    reason = (
        next((line for line in said.splitlines() if "failed: " in line), said)
        .rpartition("failed: ")[2]
        .strip()
    )
    if _NOT_READY in said:
        raise Unreachable(
            f"PostgreSQL at {where(parameters)} is not ready", detail=reason, hint="wait for it"
        )
    if "FATAL: " in said:  # the server itself said no
        raise DatabaseError(
            f"PostgreSQL refused the connection to {where(parameters)}", detail=reason, hint=hint
        )
    raise Unreachable(f"no PostgreSQL can be reached at {where(parameters)}", detail=reason, hint=hint)


def agent_runs(connection: Connection) -> bool:
    """Whether an agent holds this site."""
    row = connection.execute("select syncagent._agent_runs() as runs").fetchone()
    return bool(row and row["runs"])
