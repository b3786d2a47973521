"""Versions beside the present one: sites as an older one has left them, and an agent as the next one would be.

    make release

keeps, in the commit that releases a version, what is upgraded from for ever (`tests/upgrade/`): of each of two sites `NNNN-SITE.sql.gz`, the dump of
a database with the newest revision, an attached table, rows, and writes that no agent has seen, and `NNNN-SITE.toml`, its `config.toml`; and a line
in `releases.txt`: version, revision, and the SHA-256 of the revision's SQL, which stays as it is from then on. A version that brings no
revision of its own adds its line alone. Until the first release the test keeps one for itself.
"""

import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from alembic import command
from alembic.config import Config

from syncagent import __version__, resources
from syncagent import settings as configuration
from syncagent.embedded import Server, scratch
from syncagent.settings import Settings
from syncagent.storage import migrations
from tests.support.databases import Database, fresh_database
from tests.support.postgres import Servers

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "upgrade"
LIST = "releases.txt"
DSN, LISTEN = "postgresql://agent@localhost/shop", "127.0.0.1:7400"
"""What stands in settings that are kept; the test puts its own there."""
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


class Release(NamedTuple):
    version: str
    revision: str
    sha256: str


def releases(folder: Path = KEPT) -> list[Release]:
    """Every version that was released, oldest first."""
    file = folder / LIST
    return [Release(*line.split()) for line in file.read_text().splitlines()] if file.exists() else []


def released(folder: Path = KEPT) -> tuple[str, ...]:
    """Revisions that stay as they are, oldest first."""
    return tuple(sorted({release.revision for release in releases(folder)}))


def published() -> set[str]:
    """Versions that CHANGELOG.md has a heading for."""
    return set(re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))


def digest(revision: str) -> str:
    (file,) = (resources.migrations() / "versions").glob(f"{revision}_*.sql")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def dump_of(folder: Path, revision: str, node: int) -> Path:
    return folder / f"{revision}-{SITES[node]}.sql.gz"


def config_of(folder: Path, revision: str, node: int) -> Path:
    return folder / f"{revision}-{SITES[node]}.toml"


def keep(folder: Path, version: str, server: Server) -> Release:
    """The newest revision is released with a version."""
    made = Release(version, migrations.newest(), digest(migrations.newest()))
    if made.revision not in released(folder):
        for node in SITES:
            _keep(folder, made.revision, node, server)
    (folder / LIST).write_text("".join(" ".join(one) + "\n" for one in [*releases(folder), made]))
    return made


def _keep(folder: Path, revision: str, node: int, server: Server) -> None:
    """A site of that revision: its database as pg_dump writes it, and its settings."""
    with fresh_database(server) as database:
        database.execute(script(revision))
        database.execute(_BEGUN.format(name=SITES[node], node=node, rows=ROWS))
        ((site, incarnation),) = database.execute("select site, incarnation from syncagent.local_site")
        done = subprocess.run(
            [server.binaries.tool("pg_dump"), "--no-owner", "--no-privileges", "--dbname", database.dsn],
            capture_output=True,
            check=True,
        )
    dump_of(folder, revision, node).write_bytes(gzip.compress(done.stdout, mtime=0))
    with scratch("syncagent-home-") as home:
        written = configuration.write(_settings(home, node, site, incarnation))
        shutil.copyfile(written, config_of(folder, revision, node))


def _settings(home: Path, node: int, site: UUID, incarnation: UUID) -> Settings:
    return Settings(
        home=home,
        name=SITES[node],
        node=node,
        site=site,
        incarnation=incarnation,
        dsn=DSN,
        listen=LISTEN,
    )


def restore(kept: Path, database: Database) -> None:
    subprocess.run(
        [
            database.server.binaries.tool("psql"),
            "--quiet",
            "--no-psqlrc",
            "--set=ON_ERROR_STOP=1",
            database.dsn,
        ],
        input=gzip.decompress(kept.read_bytes()),
        capture_output=True,
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
    if __version__ not in published():
        sys.exit(
            f"CHANGELOG.md has no heading [{__version__}], which is the version of agent/syncagent/__init__.py"
        )
    if __version__ in {release.version for release in releases()}:
        sys.exit(f"{__version__} is released: raise the version in agent/syncagent/__init__.py")
    KEPT.mkdir(exist_ok=True)
    with scratch("syncagent-releases-") as folder:
        servers = Servers(folder)
        try:
            made = keep(KEPT, __version__, servers.of(OLDEST))
        finally:
            servers.stop()
    sys.stdout.write(f"kept {made.version}, revision {made.revision}: commit tests/upgrade, then git tag\n")


if __name__ == "__main__":
    main()
