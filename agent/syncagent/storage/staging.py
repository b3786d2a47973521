"""Rows on their way into a table, where SQL looks at them before it takes them."""

from collections.abc import AsyncIterator, Sequence

import asyncpg

_LARGE = 1000
"""Staged rows from which on the planner is told how many there are."""


async def fill(
    session: asyncpg.Connection, stage: str, columns: Sequence[str], source: AsyncIterator[bytes], rows: int
) -> None:
    """Put so many rows, as the bytes of a binary COPY, into a temporary table of this session."""
    await session.copy_to_table(stage, source=source, columns=columns, format="binary")
    if rows > _LARGE:
        await session.execute(f"analyze pg_temp.{stage}")
