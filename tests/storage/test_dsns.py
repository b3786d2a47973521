"""Whatever form of dsn the verbs take, the agent's driver takes as well."""

from collections.abc import Callable
from urllib.parse import quote

import pytest

from syncagent.embedded import Server
from syncagent.errors import UsageError
from syncagent.storage import commands
from syncagent.storage.session import connect

FORMS: dict[str, Callable[[Server], str]] = {
    "words": lambda server: (
        f"host=127.0.0.1 port={server.port} dbname=postgres user=postgres password='{server.password}'"
    ),
    "socket": lambda server: (
        f"postgresql://postgres:{server.password}@/postgres?host={quote(str(server.socket_dir), safe='')}&port={server.port}"
    ),
    "hosts": lambda server: (
        f"postgresql://postgres:{server.password}@127.0.0.1:1,127.0.0.1:{server.port}/postgres"
    ),
    # As providers hand them out: each of these is libpq's alone, and no setting of a server.
    "provider": lambda server: (
        server.dsn()
        + "?sslmode=prefer&channel_binding=prefer&connect_timeout=10&application_name=shop&keepalives=1"
    ),
    "options": lambda server: server.dsn() + "?options=-c%20geqo%3Doff",
}


@pytest.mark.parametrize("form", FORMS)
async def test_both_drivers_connect(server18: Server, form: str) -> None:
    dsn = FORMS[form](server18)
    with commands.connected(dsn) as verb:
        assert verb.execute("select 1 as one").fetchone() == {"one": 1}
    agent = await connect(dsn, "test")
    try:
        assert await agent.fetchval("select current_database()") == "postgres"
    finally:
        await agent.close()


async def test_what_cannot_be_read_is_not_shown() -> None:
    with pytest.raises(UsageError, match="the dsn cannot be read") as refused:
        await connect("postgresql://agent:secret@host/shop?unknown=1", "test")
    assert "secret" not in str(refused.value)
