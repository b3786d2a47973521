"""DDL that somebody has typed by hand at this site: noticed, and shown.

Invariant: what is compared is in `sql/48_shape.sql`; nothing is decided here, and nothing of the application's is changed.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

from syncagent.core.store import Typed
from syncagent.storage.commands import Connection, site_of
from syncagent.storage.drift import Finding
from syncagent.storage.keeper import PostgresKeeper

_NOTE = "select syncagent._note_typed()"
_LISTED = "select table_name, what, role, since, statement, take_back from syncagent.typed_change where not taken_over order by since, table_name, what"


class PostgresTyped:
    """The Watch of the services: it looks on the keeper's session, whose locks do not wait long. Who types just now holds what is
    noted of it; the next look finds it."""

    def __init__(self, dsn: str, keeper: PostgresKeeper) -> None:
        self._dsn, self._keeper = dsn, keeper

    async def begin(self, *, refuse: bool) -> bool:
        return await asyncio.to_thread(self._begin, refuse)

    async def look(self) -> list[Typed]:
        async with self._keeper.talking() as session, session.transaction():
            await session.execute(_NOTE)
            rows = await session.fetch(_LISTED)
        return [Typed(row["table_name"], row["what"], row["role"]) for row in rows]

    def _begin(self, refuse: bool) -> bool:
        with site_of(self._dsn) as connection:
            connection.execute(
                "insert into syncagent.typed_rule (refuse) values (%s) on conflict (only_row) do update set refuse = excluded.refuse",
                (refuse,),
            )
            row = connection.execute("select syncagent.watch_ddl() as watched").fetchone()
        return bool(row and row["watched"])


def note(connection: Connection) -> None:
    """Look at what is here by hand."""
    connection.execute(_NOTE)


def listed(connection: Connection) -> list[dict[str, Any]]:
    """What is here by hand, for people; what is being carried belongs to that change."""
    return connection.execute(_LISTED).fetchall()


def findings(connection: Connection) -> Iterator[Finding]:
    """For `doctor`: whether DDL is seen as it is typed, and refused if it is to be."""
    row = connection.execute(
        "select syncagent._watched() as watched, exists (select from syncagent.typed_rule r where r.refuse) as refuse,"
        " (select count(*) from syncagent.replicated) as tables"
    ).fetchone()
    assert row is not None
    if row["watched"] == "disabled":
        yield Finding(
            "warning",
            "the event triggers that see DDL typed by hand are disabled",
            "alter event trigger syncagent_ddl enable; alter event trigger syncagent_drop enable",
        )
    elif row["watched"] == "missing" and row["tables"]:
        what = "DDL typed by hand is found by comparing catalogs: who typed what is not known"
        if row["refuse"]:
            what = 'DDL typed by hand cannot be refused, although config.toml says typed = "refuse": there are no event triggers'
        yield Finding(
            "warning" if row["refuse"] else "note", what, "as a superuser: select syncagent.watch_ddl()"
        )
