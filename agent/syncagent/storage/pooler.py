"""Whether something between us and the server hands its sessions round.

The agent keeps an advisory lock, settings, work tables and prepared statements in its sessions; where these
are somebody else's after the next commit, two agents would run, and rows would be lost.
"""

from typing import Literal

import psycopg

from syncagent.errors import SyncagentError
from syncagent.storage.commands import Connection, connected

Between = Literal["nothing", "keeps sessions", "shares sessions"]


def between(connection: Connection, dsn: str) -> Between:
    """What answers at the dsn, of which `connection` is one: a pooler never shows clients a server's pid."""
    here = _pid(connection)
    if here == connection.info.backend_pid:
        return "nothing"
    try:
        # While another client has a transaction open, whoever shares gives it our session, or us another.
        with connected(dsn) as other, other.transaction():
            shared = _pid(other) == here or _pid(connection) != here
    except (psycopg.Error, SyncagentError):
        return "shares sessions"  # not even a transaction keeps its session
    return "shares sessions" if shared else "keeps sessions"


def _pid(connection: Connection) -> int:
    row = connection.execute("select pg_backend_pid() as pid").fetchone()
    assert row is not None
    return int(row["pid"])
