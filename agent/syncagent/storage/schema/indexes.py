"""Indexes that are made while rows are written, and what a crash, or somebody else, has left of their name.

Invariant: an index that is there and valid is taken for the one that is to be made only if it is that one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

from syncagent.errors import RefusedError
from syncagent.storage.commands import Connection

Asked = Callable[..., AbstractContextManager[None]]
"""`asked(local=...)`: with the role and the search path of the change, in this transaction or until it is left."""

_TRIED = "syncagent_tried"
_LOOK = """
    select i.indrelid = to_regclass(%s) as tried, pg_get_indexdef(i.indexrelid) as text,
           row(i.indisunique, to_jsonb(i) ->> 'indnullsnotdistinct', c.relam, c.reloptions, i.indnkeyatts, i.indclass::text, i.indcollation::text,
               i.indoption::text, pg_get_expr(i.indpred, i.indrelid), array(
                   select pg_get_indexdef(i.indexrelid, k, false) from generate_series(1, i.indnatts::integer) as k order by k))::text as made
    from pg_index i join pg_class c on c.oid = i.indexrelid where i.indexrelid = to_regclass(%s) or i.indrelid = to_regclass(%s) order by 1
"""


def is_made(connection: Connection, index: str, statement: str, asked: Asked) -> bool:
    """Whether the index is there, as the statement makes it; one that a crash has left half made is taken away. RefusedError where it is
    another one."""
    row = connection.execute(
        "select i.indisvalid as valid from pg_index i where i.indexrelid = to_regclass(%s)", (index,)
    ).fetchone()
    if row is None:
        return False
    if not row["valid"]:
        drop_invalid(connection, index)
        return False
    _refuse_another(connection, index, statement, asked)
    return True


def drop_invalid(connection: Connection, index: str) -> None:
    if connection.execute(
        "select from pg_index i where i.indexrelid = to_regclass(%s) and not i.indisvalid", (index,)
    ).rowcount:
        connection.execute(f"drop index concurrently {index}".encode())


def _refuse_another(connection: Connection, index: str, statement: str, asked: Asked) -> None:
    """What the server says of the two is compared: the other one is made of an empty copy of the table, and gone again."""
    from syncagent.storage.schema import reading  # noqa: PLC0415 (a parser is large, and hardly ever needed where a step is done)

    table, tried = reading.index_elsewhere(statement, "pg_temp", _TRIED)
    with connection.transaction(force_rollback=True), asked(local=True):
        connection.execute(f"create temp table {_TRIED} (like {table})".encode())
        connection.execute(tried.encode())
        temporary = f"pg_temp.{_TRIED}"
        there, wanted = connection.execute(_LOOK.encode(), (temporary, index, temporary)).fetchall()
    if there["made"] != wanted["made"]:
        raise RefusedError(
            f"there is an index {index} already, and it is another one: {there['text']}",
            hint="drop it or give it another name, and it is tried again by itself; or `syncagent schema abort`",
        )
