"""The version of the SQL side, and how it is raised: Alembic writes the script, PostgreSQL runs it.

Invariant: `syncagent db sql` prints what `init` and `syncagent db upgrade` run, to the letter, and never
connects. A raise is one transaction. An agent works only with the version it was made for.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

from psycopg import Connection
from psycopg.rows import scalar_row

from syncagent import resources
from syncagent.errors import RefusedError

_BASE = "base"
_UPGRADE_LOCK = (1937337955, 3)


@cache
def revisions() -> tuple[str, ...]:
    """Every version this agent knows, oldest first: the numbers in front of the files' names."""
    return tuple(
        sorted(
            path.name.partition("_")[0] for path in (resources.migrations() / "versions").glob("[0-9]*.py")
        )
    )


def newest() -> str:
    return revisions()[-1]


def script(since: str | None = None) -> str:
    """The SQL that leads from a version (None: from nothing) to the newest; made without a connection."""
    from alembic import command
    from alembic.config import Config

    if since is not None and since not in revisions():
        raise RefusedError(f"there is no version {since}", hint=f"known are {', '.join(revisions())}")
    if since == newest():
        return ""
    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(resources.migrations()).replace("%", "%%"))
    command.upgrade(config, f"{since or _BASE}:{newest()}", sql=True)
    return output.getvalue()


def run_script_beside(revision: str) -> None:
    """What a revision does: run the `.sql` beside its `.py`, as it stands there.

    Not by `op.execute`: it would read `{"a":1}` as a parameter and double every percent sign.
    """
    from alembic import op

    text = Path(revision).with_suffix(".sql").read_text(encoding="utf-8")
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(text)
    else:
        assert context.connection is not None
        context.connection.exec_driver_sql(text, execution_options={"no_parameters": True})


# ---- in a database, in the caller's transaction


def installed(connection: Connection[Any]) -> str | None:
    """The version of the SQL side here; None if there is none."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        cursor.execute("select to_regclass('syncagent.schema_version') is not null")
        if not cursor.fetchone():
            return None
        cursor.execute("select version_num from syncagent.schema_version")
        return cursor.fetchone()


def upgrade(connection: Connection[Any]) -> tuple[str | None, str]:
    """Install, or raise to the newest version; returns the versions before and after.

    What was made by `create extension` is raised by `alter extension`, so that what is new belongs to it, too.
    """
    connection.execute("select pg_advisory_xact_lock(%s, %s)", _UPGRADE_LOCK)
    before = installed(connection)
    _refuse_newer(before)
    if before == newest():
        return before, newest()
    if connection.execute("select from pg_extension where extname = 'syncagent'").rowcount:
        _update_extension(connection)
    else:
        connection.execute(script(before).encode())
    return before, newest()


def _update_extension(connection: Connection[Any]) -> None:
    if not connection.execute(
        "select from pg_available_extension_versions where name = 'syncagent' and version = %s", (newest(),)
    ).rowcount:
        raise RefusedError(
            f"syncagent is an extension in this database, and its server has no files of version {newest()}",
            detail="`make extension` writes them; they belong into the folder that pg_config --sharedir names, below extension/",
            hint="put them there, then: syncagent db upgrade",
        )
    connection.execute(f"alter extension syncagent update to '{newest()}'".encode())


def require_current(connection: Connection[Any]) -> None:
    """Raise RefusedError unless the SQL side has exactly the version this agent was made for."""
    found = installed(connection)
    if found is None:
        raise RefusedError("syncagent is not installed in this database", hint="syncagent init")
    _refuse_newer(found)
    if found != newest():
        raise RefusedError(
            f"the SQL side of this database is version {found}, this agent needs {newest()}",
            hint="syncagent db upgrade",
        )


def _refuse_newer(found: str | None) -> None:
    if found is not None and found not in revisions():
        raise RefusedError(
            f"the SQL side of this database is version {found}, newer than this agent, which knows up to {newest()}",
            hint="upgrade syncagent on this host",
        )
