"""Reading the site's database for whoever asks over HTTP.

Invariant: two sessions at most, each question bounded in time, and nothing is written; a session that failed is not
used again.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import psycopg

from syncagent.errors import SyncagentError
from syncagent.storage.commands import Connection, border, connected

T = TypeVar("T")
_SESSIONS = 2
_MILLISECONDS = 3000
"""How long the server may think about one question."""


class Reader:
    """Sessions that are kept while they work."""

    def __init__(self, dsn: str) -> None:
        self._dsn, self._turns = dsn, asyncio.Semaphore(_SESSIONS)
        self._idle: list[tuple[ExitStack, Connection]] = []

    async def read(self, question: Callable[[Connection], T]) -> T:
        """Raises DatabaseError and its kin, RefusedError, UsageError."""
        async with self._turns:
            return await asyncio.to_thread(self._read, question)

    def _read(self, question: Callable[[Connection], T]) -> T:
        try:
            stack, connection = self._idle.pop()
        except IndexError:
            stack, connection = self._open()
        try:
            with border():
                answer = question(connection)
        except (SyncagentError, psycopg.Error):
            stack.close()
            raise
        self._idle.append((stack, connection))
        return answer

    def _open(self) -> tuple[ExitStack, Connection]:
        stack = ExitStack()
        connection = stack.enter_context(connected(self._dsn))
        with border():
            connection.execute(
                f"set statement_timeout = {_MILLISECONDS}; set default_transaction_read_only = on".encode()
            )
        return stack, connection

    async def close(self) -> None:
        while self._idle:
            await asyncio.to_thread(self._idle.pop()[0].close)
