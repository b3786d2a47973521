"""What a SQLAlchemy metadata says of the tables, as the change that leads there: Alembic's autogenerate compares, and writes SQL.

Invariant: nothing is changed, and nobody else's tables are dropped: what the metadata does not name is left alone unless it is attached.
"""

import importlib
import io
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import MigrateOperation, OpContainer

from syncagent.errors import UsageError
from syncagent.storage.commands import Connection
from syncagent.storage.schema.revisions import opened


def loaded(name: str) -> sqlalchemy.MetaData:
    """The metadata of this name, such as `shop.models:Base.metadata`; its module is looked for in the present folder, too."""
    module, _, path = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = attrgetter(path or "metadata")(importlib.import_module(module))
    except ImportError as error:
        raise UsageError(
            f"{module} cannot be imported: {error}",
            hint="name it as Python imports it from this folder: --metadata shop.models:Base.metadata",
        ) from error
    except AttributeError as error:
        raise UsageError(
            f"{name}: {error}", hint="MODULE:OBJECT, such as shop.models:Base.metadata"
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(found, sqlalchemy.MetaData):
        raise UsageError(f"{name} is no MetaData of SQLAlchemy", hint=f"is it {name}.metadata?")
    return found


def difference(connection: Connection, dsn: str, metadata: sqlalchemy.MetaData) -> str:
    """The statements that bring the database to the metadata; empty, if it is there."""
    options = {"include_object": _included(_attached(connection)), "compare_server_default": True}
    with opened(dsn) as engine, engine.connect() as session:
        context = MigrationContext.configure(session, opts=options)
        found = produce_migrations(context, metadata)
        session.rollback()
    text = io.StringIO()
    written = MigrationContext.configure(
        url="postgresql+psycopg://", opts={"as_sql": True, "output_buffer": text}
    )
    operations = Operations(written)
    assert found.upgrade_ops is not None
    _write(operations, found.upgrade_ops.ops)
    return text.getvalue()


def _write(operations: Operations, found: list[MigrateOperation]) -> None:
    for one in found:
        if isinstance(one, OpContainer):
            _write(operations, one.ops)
        else:
            operations.invoke(one)


def _attached(connection: Connection) -> set[str]:
    rows = connection.execute(
        "select r.table_name::text as name from syncagent.replicated r where r.schema_name = current_schema()"
    ).fetchall()
    return {row["name"] for row in rows}


def _included(attached: set[str]) -> Callable[[Any, str | None, str, bool, Any], bool]:
    """Whether autogenerate looks at an object: not at tables that only the database has and nobody replicates."""

    def include(_object: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        return not (kind == "table" and reflected and other is None and name not in attached)

    return include
