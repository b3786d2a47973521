"""A session with PostgreSQL that ends under the agent is a lost connection, whatever asyncpg makes of it."""

import asyncio

import pytest

from syncagent.embedded import Server
from syncagent.errors import Unreachable
from syncagent.storage.borders import border
from syncagent.storage.session import connect
from tests.support.databases import Database
from tests.support.waiting import until


@pytest.mark.parametrize("turns", range(6))
async def test_a_session_ends_before_it_is_asked(server18: Server, turns: int) -> None:
    """So many turns of the loop after PostgreSQL has ended it: nothing heard of it, its last words, the end."""
    database = Database(server18, "postgres")
    session = await connect(database.dsn, "test")
    pid = session.get_server_pid()
    database.execute("select pg_terminate_backend(%s)", (pid,))
    left = "select from pg_stat_activity where pid = %s"
    until(lambda: not database.execute(left, (pid,)), "gone")
    for _ in range(turns):
        await asyncio.sleep(0)
    with pytest.raises(Unreachable), border():
        await session.execute("begin")
