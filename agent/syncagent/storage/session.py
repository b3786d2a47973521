"""Sessions of the agent: pinned settings, so that the same bytes come out of every site.

Invariant: a session that is handed out has its work tables, its settings, and the role of the agent.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from syncagent.core import limits
from syncagent.errors import DatabaseError, RefusedError
from syncagent.storage.borders import border
from syncagent.storage.dsns import as_url

PINNED = {
    "search_path": "pg_catalog, pg_temp",
    "datestyle": "ISO, MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
    "work_mem": "64MB",
    "temp_buffers": "64MB",
}
OLDEST = 140000
NO_TIMEOUT = (
    "case when current_setting('transaction_timeout', true) is not null"
    " then set_config('transaction_timeout', '0', false) end"
)
"""A setting that only 17 and newer know, so that it cannot be among those that are pinned."""
POOLER_HINT = "give the server's own address in the dsn, not the pooler's; applications may go on using that"


def pooled(detail: str) -> RefusedError:
    """Why the agent does not work there."""
    return RefusedError(
        "the dsn leads to a connection pooler, and the agent needs sessions of its own",
        detail=detail,
        hint=POOLER_HINT,
    )


async def connect(dsn: str, purpose: str) -> asyncpg.Connection:
    """A plain session. Raises UsageError (the dsn), Unreachable, DatabaseError (login, database, a server below 14), RefusedError (a pooler)."""
    with border():
        try:
            connection = await asyncpg.connect(
                as_url(dsn),
                timeout=10,
                server_settings={**PINNED, "application_name": f"syncagent {purpose}"},
                statement_cache_size=200,
                target_session_attrs="primary",  # of several hosts in the dsn; a standby alone is waited for
            )
        except (
            asyncpg.ProtocolViolationError
        ) as error:  # PgBouncer takes few settings, and says which one it minds
            raise pooled(str(error)) from error
    async with _closed_on_failure(connection):
        version, path, _ = await connection.fetchrow(
            "select current_setting('server_version_num')::int, current_setting('search_path'), " + NO_TIMEOUT
        )
        if path != PINNED["search_path"]:
            raise pooled(f"it has not passed on the agent's settings: search_path is {path}")
        if version < OLDEST:
            raise DatabaseError(
                f"this server is PostgreSQL {version // 10000}; syncagent needs 14 or newer",
                hint="upgrade the server",
            )
    return connection


async def working(dsn: str, purpose: str, *, replica: bool) -> asyncpg.Connection:
    """A session that moves rows: plans made for the sizes at hand, short lock waits, and, to apply,
    `session_replication_role = replica`, so that neither triggers nor foreign keys fire."""
    connection = await connect(dsn, purpose)
    milliseconds = int(limits.LOCK_TIMEOUT * 1000)
    async with _closed_on_failure(connection):
        await connection.execute(
            f"set plan_cache_mode = force_custom_plan; set lock_timeout = {milliseconds}; set synchronous_commit = "
            + ("off" if replica else "on")
        )
        if replica:
            await connection.execute("set session_replication_role = replica")
        await connection.execute("select syncagent._prepare_session()")
    return connection


async def within(session: asyncpg.Connection, rows: int, query: str, *arguments: object) -> None:
    """A statement of a transaction that calls functions of the application for so many rows: it is stopped if it takes too long."""
    milliseconds = int(limits.MERGE_FUNCTION * 1000) + rows
    await session.execute(f"set local statement_timeout = {milliseconds}")
    await session.fetchval(query, *arguments)
    await session.execute("set local statement_timeout = 0")


@asynccontextmanager
async def _closed_on_failure(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """A session that is not handed out is not left open."""
    try:
        with border():
            yield
    except BaseException:
        connection.terminate()
        raise
