"""Steps of schema changes, done here.

Invariant: what a step does to the database and the epoch it leads to are one transaction. What cannot run in one (an index
that is made concurrently, a constraint that is validated) is done before it, and is done again, or found done, after a crash.
While it waits for a lock it holds none.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from syncagent.core.schema import Change, Filling, Move, Step
from syncagent.errors import Contended, RefusedError
from syncagent.storage import tables
from syncagent.storage.commands import Connection, border, site_of
from syncagent.storage.schema import versions
from syncagent.storage.schema.filling import fill
from syncagent.storage.schema.indexes import Asked, drop_invalid, is_made

_PATIENCE = 20.0
"""Seconds to try for a lock; then it is said who is in the way, and tried again."""
_SHOWN = 3
_CONCURRENTLY = "index concurrently"
"""What a plan writes where a statement waits for others and runs in no transaction."""

_SETTINGS = {
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "client_min_messages": "warning",
}
"""So that a constant is the same everywhere."""


class PostgresShapes:
    """The Shapes of the services: short connections of their own, in threads."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def standing(self) -> tuple[int, int]:
        return await asyncio.to_thread(self._standing)

    async def do(self, move: Move, floor: int, tell: Callable[[str], None]) -> None:
        await asyncio.to_thread(self._do, move, floor, tell)

    async def undelivered(self) -> str | None:
        return await asyncio.to_thread(self._undelivered)

    def _undelivered(self) -> str | None:
        with site_of(self._dsn) as connection:
            row = connection.execute("select syncagent._not_everywhere() as why").fetchone()
        assert row is not None
        why: str | None = row["why"]
        return why

    def _standing(self) -> tuple[int, int]:
        with site_of(self._dsn) as connection:
            row = connection.execute("select schema_epoch, schema_floor from syncagent.local_site").fetchone()
        assert row is not None
        return row["schema_epoch"], row["schema_floor"]

    def _do(self, move: Move, floor: int, tell: Callable[[str], None]) -> None:
        with site_of(self._dsn) as connection:
            do(connection, move, floor, tell)


def do(connection: Connection, move: Move, floor: int, tell: Callable[[str], None]) -> None:
    """See Shapes."""

    def work() -> None:
        connection.execute("lock table syncagent.merge_lock in exclusive mode")
        if move.step is not None:
            _run(connection, move.upto, move.step, move.change)
        connection.execute("select syncagent._schema_reached(%s, %s)", (move.upto, floor))

    with border():
        if move.step is not None and move.step.manner == "survey":
            _survey(connection, move.step, move.change)
        if move.step is not None and move.step.manner == "alone" and not _stays(connection, move.step):
            _alone(connection, move.step, move.change)
        if move.step is not None and move.step.data is not None and move.step.undoes is None:
            _await_data(connection, *move.step.data)
        if move.step is not None and move.step.filling is not None:
            filling = move.step.filling
            _filling(connection, filling, begins=True)
            asked = partial(_as_asked, connection, move.change, move.step, local=False)
            fill(connection, filling, tell, asked)
        _patiently(connection, work)


def _await_data(connection: Connection, revision: str, node: int) -> None:
    """At the site that writes them: until they are written."""
    row = connection.execute(
        "select s.node = %s and not exists (select from syncagent.revision_data d where d.revision = %s) as missing from syncagent.local_site s",
        (node, revision),
    ).fetchone()
    if row is not None and row["missing"]:
        raise Contended(
            f"the rows of revision {revision} are not written yet",
            hint="`syncagent schema apply --alembic` at this site writes them",
        )


def _filling(connection: Connection, filling: Filling, *, begins: bool) -> None:
    connection.execute(
        "select syncagent._filling(%s, %s, %s)", (filling.table.schema, filling.table.name, begins)
    )


def _patiently(connection: Connection, work: Callable[[], None]) -> None:
    merge_lock = tables.exactly(connection, "syncagent", "merge_lock")
    attached = connection.execute(
        "select relation::oid::bigint as oid from syncagent.replicated union all"
        " select c.oid::bigint from syncagent.app_version v join pg_namespace n on n.nspname = v.name join pg_class c on c.relnamespace = n.oid"
    ).fetchall()
    oids = [row["oid"] for row in attached] + ([merge_lock] if merge_lock else [])
    tables.patiently(connection, oids, (), work, _PATIENCE, lambda _held: None)


def _run(connection: Connection, epoch: int, step: Step, change: Change) -> None:
    """What a step does inside its transaction, but for the epoch."""
    connection.execute("select syncagent._note_typed()")
    found = _found_done(connection, epoch, step)
    if step.manner != "survey":
        for name in step.unmakes:
            connection.execute("select syncagent._drop_version(%s, %s)", (name, change.role))
    kept = versions.set_aside(connection) if step.aside else None
    for table in step.gone:
        connection.execute(
            "select syncagent._detach(r.relation) from syncagent.replicated r where (r.schema_name, r.table_name) = (%s, %s)",
            (table.schema, table.name),
        )
    if step.manner == "transaction" and not found:
        with _as_asked(connection, change, step, local=True):
            for statement in step.statements:
                connection.execute(statement.encode())
    if step.data is not None and step.undoes is not None:
        connection.execute("delete from syncagent.revision_data where revision = %s", (step.data[0],))
    if kept is not None:
        versions.put_back(connection, kept)
    for version in step.makes:
        versions.make(connection, version, change.role)
    connection.execute(
        "select syncagent._cover(s.relation, s.node) from syncagent._strays() as s where not s.gone"
    )
    _attach_and_merge(connection, step)
    if step.filling is not None:
        _filling(connection, step.filling, begins=False)
    renamed = [
        {"schema": table.schema, "table": table.name, "before": before, "after": after}
        for table, before, after in step.columns
    ]
    fills = [
        {"schema": fill.table.schema, "table": fill.table.name, "column": fill.column, "value": fill.value}
        for fill in step.fills
    ]
    connection.execute(
        "select syncagent._reshape(%s, %s, %s)", (Jsonb(renamed), Jsonb(fills), step.manner == "alone")
    )
    if found and step.undoes is None:
        for fill in step.fills:
            connection.execute(
                "select syncagent._log_unlike(%s, %s, %s, %s)",
                (fill.table.schema, fill.table.name, fill.column, fill.value),
            )
    connection.execute("select syncagent._shape_follow(%s)", (step.index,))


def _attach_and_merge(connection: Connection, step: Step) -> None:
    """Tables that are replicated from here on, or merged in another way."""
    for attachment in step.attach:
        oid = tables.exactly(connection, attachment.table.schema, attachment.table.name)
        connection.execute(
            "select syncagent._attach(%s::bigint::oid::regclass, %s, %s, %s, %s, '{}', %s, %s)",
            (
                oid,
                attachment.derive,
                attachment.ship,
                attachment.stride,
                attachment.bucket,
                attachment.strategy,
                Jsonb(dict(attachment.merges)),
            ),
        )
        connection.execute(
            "update syncagent.replicated set agreed = true where relation = %s::bigint::oid", (oid,)
        )
    if (how := step.remerges) is not None:
        connection.execute(
            "select syncagent._strategize(%s, %s, %s, %s, %s)",
            (how.table.schema, how.table.name, how.strategy, Jsonb(dict(how.merges)), how.whole),
        )


def _found_done(connection: Connection, epoch: int, step: Step) -> bool:
    """Whether somebody has done by hand here what the step is to do, so that it is left out; or has, and it is taken back elsewhere."""
    if not step.adopts:
        return False
    verb = "take_over" if step.undoes is None else "give_back"
    row = connection.execute(
        f"select syncagent._{verb}(%s, %s) as done".encode(), (_adopted(step), step.undoes or epoch)
    ).fetchone()
    again = step.undoes is None and any(adopted.again for adopted in step.adopts)
    return bool(row and row["done"]) and not again


def _adopted(step: Step) -> Jsonb:
    return Jsonb(
        [
            {
                "schema": one.table.schema,
                "table": one.table.name,
                "kind": one.kind,
                "name": one.name,
                "now": None if one.now is None else json.loads(one.now),
                "became": one.became,
            }
            for one in step.adopts
        ]
    )


def _stays(connection: Connection, step: Step) -> bool:
    """Whether what the step is to take back was made by hand here."""
    if not step.adopts or step.undoes is None:
        return False
    row = connection.execute(
        "select syncagent._is_taken_over(%s, %s) as stays", (_adopted(step), step.undoes)
    ).fetchone()
    return bool(row and row["stays"])


@contextmanager
def _as_asked(connection: Connection, change: Change, step: Step, *, local: bool) -> Iterator[None]:
    """With the search path and the role of whoever asked for the change, or the role that owns what the step is about."""
    before = connection.execute("select current_setting('search_path') as path").fetchone()
    assert before is not None
    for name, value in {**_SETTINGS, "search_path": change.path}.items():
        connection.execute("select set_config(%s, %s, %s)", (name, value, local))
    role = change.role or _owner(connection, step)
    if role is not None:
        connection.execute(
            sql.SQL("set {} role {}").format(sql.SQL("local" if local else ""), sql.Identifier(role))
        )
    try:
        yield
    finally:
        if connection.info.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
            if role is not None:
                connection.execute("reset role")
            connection.execute("select set_config('search_path', %s, %s)", (before["path"], local))


def _owner(connection: Connection, step: Step) -> str | None:
    """Who owns the table of the step here, if it is said to run so."""
    if step.owner is None:
        return None
    row = connection.execute(
        "select pg_get_userbyid(c.relowner)::text as name from syncagent.replicated r join pg_class c on c.oid = r.relation"
        " where (r.schema_name, r.table_name) = (%s, %s)",
        (step.owner.schema, step.owner.name),
    ).fetchone()
    return None if row is None else str(row["name"])


def _survey(connection: Connection, step: Step, change: Change) -> None:
    """Raises RefusedError if rows stand against what is to hold for all of them; or somebody uses a version that is to go."""
    if step.unmakes:
        versions.refuse_users(connection, step.unmakes)
    found: list[str] = []
    with _as_asked(connection, change, step, local=False):
        for statement in step.statements:
            rows = connection.execute(
                f"select * from ({statement}) as s limit {_SHOWN + 1}".encode()
            ).fetchall()
            found += [", ".join(f"{name} {value}" for name, value in row.items()) for row in rows]
    if found:
        more = " and more" if len(found) > _SHOWN else ""
        raise RefusedError(
            f"rows stand against it: {'; '.join(found[:_SHOWN])}{more}",
            hint="mend them, and it is tried again by itself; or `syncagent schema abort`",
        )


def _alone(connection: Connection, step: Step, change: Change) -> None:
    """Statements that wait for others without being in their way, each by itself."""
    asked = partial(_as_asked, connection, change, step)
    for statement in step.statements:
        made = step.index if statement.lower().startswith("create ") else None
        if made is not None and is_made(connection, made, statement, asked):
            continue
        try:
            if _CONCURRENTLY in statement.lower():
                with asked(local=False):
                    connection.execute(statement.encode())
            else:
                _patiently(connection, partial(_execute, connection, statement, asked))
        except psycopg.Error:
            if made is not None and not connection.closed:
                drop_invalid(connection, made)
            raise


def _execute(connection: Connection, statement: str, asked: Asked) -> None:
    with asked(local=True):
        connection.execute(statement.encode())
