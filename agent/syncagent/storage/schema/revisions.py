"""Alembic revisions of the application: what each does to the schema, what it does to rows, and that in which order.

A revision is Python: nobody can tell what it does but by running it. So it is run in a transaction that is rolled back, and its
statements are listened to, each with the line of the revision that it comes from. What changes the schema is planned like any
other SQL; what writes rows is run at one site, by running the revision once more with everything else left out, and replicates.

Invariant: of a revision, rows are written in one stretch between what comes before and after it, or it is refused: a revision
whose data and schema take turns cannot be carried.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError

from syncagent.errors import DatabaseError, RefusedError, UsageError
from syncagent.storage.commands import Connection
from syncagent.storage.schema import reading
from syncagent.storage.schema.reading import Statement

_DATA = ("insert_stmt", "update_stmt", "delete_stmt", "merge_stmt")
_READING = ("select_stmt", "variable_show_stmt", "explain_stmt")
_NOTHING = "select 1"


@dataclass(frozen=True)
class Revision:
    """`before` and `after` are what it does to the schema before and after its data; `data` is the line of its first write of
    rows, None if it has none."""

    id: str
    down: str | None
    what: str
    file: str
    before: tuple[Statement, ...]
    data: int | None
    after: tuple[Statement, ...]


@dataclass(frozen=True)
class Heard:
    line: int
    text: str


def pending(connection: Connection, ini: Path) -> list[Script]:
    """The revisions that this database has not got, the oldest first. UsageError where alembic.ini is none."""
    if not ini.is_file():
        raise UsageError(
            f"there is no {ini}", hint="name it: syncagent schema apply --alembic path/to/alembic.ini"
        )
    try:
        scripts = ScriptDirectory.from_config(Config(str(ini)))
        heads = scripts.get_heads()
        if len(heads) > 1:
            raise RefusedError(
                f"there are {len(heads)} heads: {', '.join(heads)}",
                hint="merge them first: alembic merge heads",
            )
        found = list(scripts.iterate_revisions(heads[0] if heads else "base", current(connection) or "base"))
    except CommandError as error:
        raise UsageError(f"{ini}: {error}", hint="what does `alembic history` say?") from None
    return list(reversed(found))


def current(connection: Connection) -> str | None:
    """The revision that this database is at."""
    if not connection.execute("select from pg_class where oid = to_regclass('alembic_version')").rowcount:
        return None
    if connection.execute(
        "select from syncagent.replicated where relation = to_regclass('alembic_version')"
    ).rowcount:
        raise RefusedError(
            "alembic_version is attached, and every site must say of itself where it is",
            hint="syncagent detach alembic_version",
        )
    row = connection.execute("select version_num::text as version from alembic_version").fetchone()
    return None if row is None else str(row["version"])


def listened(dsn: str, script: Script) -> Revision:
    """What a revision does. RefusedError where its data and its schema take turns, or it cannot be run here."""
    heard: list[Heard] = []
    with opened(dsn) as engine:

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute", retval=True)
        def _listen(
            _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
        ) -> tuple[str, Any]:
            heard.append(Heard(_line(script.path), statement if parameters else statement.replace("%%", "%")))
            return (_NOTHING, ()) if "concurrently" in statement.lower() else (statement, parameters)

        with engine.connect() as connection, connection.begin() as transaction:
            _upgrade(connection, script)
            transaction.rollback()
    return _sorted(script, heard)


def run_data(dsn: str, script: Script) -> None:
    """What a revision does to rows, as one transaction of this site; once, whatever happens."""
    with opened(dsn) as engine:

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute", retval=True)
        def _leave_out(
            _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
        ) -> tuple[str, Any]:
            keep = _kind(statement) in (*_DATA, *_READING)
            return (statement, parameters) if keep else (_NOTHING, ())

        with engine.connect() as connection, connection.begin():
            done = connection.exec_driver_sql(
                "insert into syncagent.revision_data (revision) values (%s) on conflict do nothing",
                (script.revision,),
            )
            if done.rowcount:
                _upgrade(connection, script)


@contextmanager
def opened(dsn: str) -> Iterator[sqlalchemy.Engine]:
    """A database, by way of SQLAlchemy."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: _session(dsn), poolclass=sqlalchemy.pool.NullPool
    )
    try:
        yield engine
    finally:
        engine.dispose()


def _session(dsn: str) -> psycopg.Connection:
    """One whose DDL is no doing of a person: see sql/48_shape.sql."""
    session = psycopg.connect(dsn)
    session.execute("set syncagent.step = on")
    session.commit()
    return session


def _upgrade(connection: sqlalchemy.Connection, script: Script) -> None:
    context = MigrationContext.configure(connection)
    context.autocommit_block = contextmanager(lambda: iter([None]))  # type: ignore[method-assign]
    try:
        with Operations.context(context):
            script.module.upgrade()
    except sqlalchemy.exc.DBAPIError as error:
        raise DatabaseError(
            f"revision {script.revision} cannot be run here: {str(error.orig).splitlines()[0]}",
            detail=f"{script.path}, line {_failed(error, script.path)}",
            hint="mend the revision, or what is there; nothing was changed",
        ) from None


def _failed(error: Exception, path: str) -> int:
    lines = [
        frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path
    ]
    return lines[-1] if lines else 0


def _line(path: str) -> int:
    lines = [frame.lineno or 0 for frame in traceback.extract_stack() if frame.filename == path]
    return lines[-1] if lines else 0


def _kind(statement: str) -> str:
    """What a statement is, parameters and all."""
    bare = reading.statements(reading.unbound(statement), "a revision")
    return bare[0].kind if len(bare) == 1 else "several"


def _sorted(script: Script, heard: list[Heard]) -> Revision:
    before: list[Statement] = []
    after: list[Statement] = []
    data: int | None = None
    for one in heard:
        kind = _kind(one.text)
        if kind in _READING:
            continue
        if kind in _DATA:
            if after:
                raise RefusedError(
                    f"revision {script.revision}, line {one.line}: rows are written again after the schema has changed in line"
                    f" {after[0].line}",
                    hint=f"split it: everything up to line {after[0].line - 1} is one revision, the rest another",
                )
            data = data or one.line
            continue
        found = [
            Statement(one.line, each.text, each.kind, each.node, each.notes)
            for each in reading.statements(one.text, f"{script.path}, line {one.line}")
        ]
        (before if data is None else after).extend(found)
    return Revision(
        script.revision,
        script.down_revision if isinstance(script.down_revision, str) else None,
        script.doc,
        script.path,
        tuple(before),
        data,
        tuple(after),
    )
