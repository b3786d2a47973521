"""Alembic's environment: how an older SQL side becomes the present one.

Invariant: the version table lives in the schema that it describes, so that both come and go together.
`syncagent.storage.migrations` is who runs this; a program of its own may put a connection of SQLAlchemy
into `config.attributes["connection"]`, and owns the transaction then.
"""

from typing import Any

from alembic import context

SCHEMA = "syncagent"
MAKE_SCHEMA = f"create schema if not exists {SCHEMA}"
OPTIONS: dict[str, Any] = {
    "version_table": "schema_version",
    "version_table_schema": SCHEMA,
    "transactional_ddl": False,
}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", **OPTIONS)
    with context.begin_transaction():
        context.execute(MAKE_SCHEMA)
        context.run_migrations()
else:
    connection = context.config.attributes["connection"]
    connection.exec_driver_sql(MAKE_SCHEMA)
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
