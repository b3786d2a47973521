"""Versions of the SQL side beside the present one: databases as an older one has left them, and an agent as the next one would be.

    python -m tests.support.releases

keeps the dump of the newest revision, in the commit that releases it: `tests/upgrade/NNNN.sql.gz`, a database with that revision,
an attached table, rows, and writes that no agent has seen. Until then the test makes it anew.
"""

import gzip
import io
import shutil
import subprocess
from pathlib import Path

from alembic import command
from alembic.config import Config

from syncagent import resources
from syncagent.embedded import Server, scratch
from syncagent.storage import migrations
from tests.support.databases import Database, fresh_database
from tests.support.postgres import Servers

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "upgrade"
OLDEST = 15
"""The PostgreSQL that dumps are made with: newer ones read them, too."""
SITES = {1: "berlin", 2: "tokyo"}
ROWS = 200

_BEGUN = """
    insert into syncagent.local_site (site, name, node, incarnation, tail)
    values (gen_random_uuid(), '{name}', {node}, gen_random_uuid(), syncagent._tail({node}, {node}));
    create table item (id uuid primary key, name text not null unique, price integer);
    insert into item select md5(i::text)::uuid, 'item ' || i, i from generate_series(1, {rows}) i;
    select syncagent._attach('item', false, false);
    insert into item values (syncagent.uuid7(), 'from {name}', {node});
    update item set price = {node}000 where name = 'item 1';
    delete from item where name = 'item 1{node}';
"""
"""All sites have the same rows; each has written one row that is new, one that the other has written, too, and deleted one."""


def script(revision: str) -> str:
    """What makes that revision, from nothing."""
    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(resources.migrations()).replace("%", "%%"))
    command.upgrade(config, f"base:{revision}", sql=True)
    return output.getvalue()


def dump(server: Server, revision: str, node: int) -> str:
    """A site of that revision, as pg_dump writes it."""
    with fresh_database(server) as database:
        database.execute(script(revision))
        database.execute(_BEGUN.format(name=SITES[node], node=node, rows=ROWS))
        done = subprocess.run(
            [server.binaries.tool("pg_dump"), "--no-owner", "--no-privileges", "--dbname", database.dsn],
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout


def path(revision: str, node: int) -> Path:
    return KEPT / f"{revision}-{SITES[node]}.sql.gz"


def released() -> tuple[str, ...]:
    """Revisions that stay as they are: all but the newest one, and that if its dump is kept."""
    return tuple(one for one in migrations.revisions() if one != migrations.newest() or path(one, 1).exists())


def kept(servers: Servers, revision: str, node: int) -> str:
    """The dump of a site; made now if its revision is not released."""
    if path(revision, node).exists():
        return gzip.decompress(path(revision, node).read_bytes()).decode()
    assert revision not in released(), f"{path(revision, node)} is missing"
    return dump(servers.of(OLDEST), revision, node)


def restore(text: str, database: Database) -> None:
    subprocess.run(
        [
            database.server.binaries.tool("psql"),
            "--quiet",
            "--no-psqlrc",
            "--set=ON_ERROR_STOP=1",
            database.dsn,
        ],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )


# ---- the next version

_MARK = "-- of the next version\n"
_ADDED = """
create table syncagent.added (n integer primary key);
comment on table syncagent.added is 'of the next version';

create function syncagent._added() returns integer
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select 1 $$;
"""
_TEMPLATE = "create function syncagent._capture_template()"


def next_version(folder: Path) -> Path:
    """A copy of this one whose SQL side has a table and a function more, and other capture functions; for PYTHONPATH."""
    for name in ("sql", "migrations", "bench"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(ROOT / "agent", folder / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    begin = folder / "agent" / "syncagent" / "__init__.py"
    begin.write_text(begin.read_text().replace('__version__ = "', '__version__ = "99.'))
    changed = _other_capture(folder / "sql" / "30_capture.sql")
    (folder / "sql" / "52_added.sql").write_text(_ADDED)
    newest = migrations.newest()
    number = f"{int(newest) + 1:04}"
    module = f'''"""The next version."""

from syncagent.storage.migrations import run_script_beside

revision = "{number}"
down_revision = "{newest}"


def upgrade() -> None:
    run_script_beside(__file__)
'''
    (folder / "migrations" / "versions" / f"{number}_next.py").write_text(module)
    (folder / "migrations" / "versions" / f"{number}_next.sql").write_text(_ADDED + "\n" + changed)
    return folder / "agent"


def _other_capture(file: Path) -> str:
    """Mark the body that every capture function gets; the statement that replaces the template."""
    text = file.read_text()
    start = text.index(_TEMPLATE)
    end = text.index("\n\n", text.index("$template$;", start))
    statement = text[start:end]
    assert "\nbegin\n" in statement
    marked = statement.replace("\nbegin\n", f"\n{_MARK}begin\n")
    file.write_text(text.replace(statement, marked))
    return marked.replace("create function", "create or replace function", 1) + "\n"


def main() -> None:
    newest = migrations.newest()
    KEPT.mkdir(exist_ok=True)
    with scratch("syncagent-releases-") as folder:
        servers = Servers(folder)
        try:
            for node in SITES:
                text = dump(servers.of(OLDEST), newest, node)
                path(newest, node).write_bytes(gzip.compress(text.encode(), mtime=0))
        finally:
            servers.stop()


if __name__ == "__main__":
    main()
