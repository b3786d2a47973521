"""What a verb asks of the running agent: a row in the site's database, answered in that row.

Invariant: nobody waits for an agent that is not there, and a request nobody waits for any more is gone.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from psycopg.types.json import Jsonb

from syncagent.errors import RefusedError
from syncagent.storage.commands import Connection, agent_runs

CHANNEL = "syncagent_request"
_PAUSES = (0.03, 0.2)
"""How often the answer is looked for: from often to seldom by doubling."""
_LOOK_AFTER = 1.0
"""Seconds after which it is asked whether the agent still runs."""
_MARGIN = 10.0
"""Seconds an agent may take beyond the time it was given."""


def require_agent(connection: Connection) -> None:
    if not agent_runs(connection):
        raise RefusedError("no agent is running for this site", hint="start it with `syncagent run`")


def ask(
    connection: Connection,
    verb: str,
    arguments: Mapping[str, Any],
    *,
    seconds: float,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The agent's answer. RefusedError if no agent runs, if it refuses, or if it says nothing in time."""
    require_agent(connection)
    request = uuid4()
    with connection.transaction():
        connection.execute(
            "insert into syncagent.request (id, verb, arguments) values (%s, %s, %s)",
            (request, verb, Jsonb(arguments)),
        )
        connection.execute(f"notify {CHANNEL}".encode())
    try:
        answer = _await(connection, request, seconds + _MARGIN, on_progress)
    finally:
        if not connection.closed:
            connection.execute("delete from syncagent.request where id = %s", (request,))
    if "error" in answer:
        raise RefusedError(str(answer["error"]), hint=answer.get("hint"))
    return answer


def _await(
    connection: Connection, request: object, seconds: float, on_progress: Callable[[str], None] | None
) -> dict[str, Any]:
    began = looked = time.monotonic()
    pause = _PAUSES[0]
    while True:
        row = connection.execute(
            "select answer::text as answer, progress, answered_at from syncagent.request where id = %s",
            (request,),
        ).fetchone()
        if row is not None and on_progress is not None and row["progress"]:
            on_progress(row["progress"])
        if row is not None and row["answered_at"] is not None:
            return msgspec.json.decode(row["answer"] or "{}", type=dict[str, Any])
        now = time.monotonic()
        if now - began > seconds:
            raise RefusedError("the agent did not answer in time", hint="see its log, and `syncagent status`")
        if now - looked > _LOOK_AFTER:
            require_agent(connection)
            looked = now
        time.sleep(pause)
        pause = min(pause * 2, _PAUSES[1])
