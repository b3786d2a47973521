"""Rows on their way: out of the database into a spool, and into a table, where SQL looks at them before it takes them."""

from collections.abc import AsyncIterator, Sequence

import asyncpg

from syncagent.core.ports import Spool

LARGE = 1000
"""Rows beyond which the planner is told how many there are; as in syncagent._plan_for."""


async def fill(
    session: asyncpg.Connection,
    stage: str,
    columns: Sequence[str] | None,
    source: AsyncIterator[bytes],
    rows: int,
) -> None:
    """Put so many rows, as the bytes of a binary COPY, into a temporary table of this session."""
    await session.copy_to_table(stage, source=source, columns=columns, format="binary")
    if rows > LARGE:
        await session.execute(f"analyze pg_temp.{stage}")


async def read_out(session: asyncpg.Connection, query: str, spool: Spool, stream: int) -> int:
    """COPY a query into a stream; how many rows it had. An error of the spool is raised when the COPY is over:
    inside, it would cost the session."""
    failure: list[Exception] = []

    async def write(data: bytes) -> None:
        if not failure:
            try:
                await spool.write(stream, data)
            except Exception as error:  # noqa: BLE001 (raised below)
                failure.append(error)

    status = await session.copy_from_query(query, output=write, format="binary")
    if failure:
        raise failure[0]
    return int(status.split()[1])
