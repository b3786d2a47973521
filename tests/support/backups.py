"""Copies of a server's data directory: a standby that follows it, or a base backup to go back to."""

import shutil
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from syncagent.embedded import Server
from syncagent.embedded.account import launch, own
from syncagent.embedded.binaries import within_reach
from tests.support.databases import Database


def base_backup(server: Server, folder: Path, *, standby: bool = False) -> Server:
    """A server on a copy of a running one. It was not started; a standby follows the other until it is promoted."""
    folder.mkdir(mode=0o700)
    own(folder)
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        own(Path(log.name))
        copying = launch(
            [
                *(within_reach(server.binaries).folder / "pg_basebackup", "-D", folder, "-d", server.dsn()),
                *("-X", "stream", "-c", "fast", "--no-sync", *(["-R"] if standby else [])),
            ],
            log,
        )
        assert copying.wait(60) == 0, Path(log.name).read_text()
    return Server(server.binaries, folder, settings=server.settings)


def restored(server: Server, backup: Server) -> None:
    """What was there is gone: the server starts from the copy, at its own address."""
    server.kill()
    lost = server.data_dir.with_name(f"{server.data_dir.name}.lost")
    server.data_dir.rename(lost)
    backup.data_dir.rename(server.data_dir)
    shutil.rmtree(lost)
    server.start()


def dumped(database: Database, file: Path) -> None:
    """What pg_dump makes of it."""
    _program(database.server, "pg_dump", "-Fc", "-f", file, database.dsn)


def restored_dump(database: Database, file: Path) -> None:
    """Another database of the same name, with what pg_restore makes of a dump."""
    database.leave()
    name = sql.Identifier(database.name)
    database.server.execute(sql.SQL("drop database {} with (force)").format(name))
    database.server.execute(sql.SQL("create database {} template template0").format(name))
    _program(database.server, "pg_restore", "--exit-on-error", "-d", database.dsn, file)


def _program(server: Server, name: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [server.binaries.folder / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def caught_up(server: Server, standby: Server) -> bool:
    """Whether the standby has all that was flushed when this is called."""
    with psycopg.connect(server.dsn()) as here, psycopg.connect(standby.dsn()) as there:
        (flushed,) = here.execute("select pg_current_wal_flush_lsn()").fetchone() or (None,)
        row = there.execute("select pg_last_wal_replay_lsn() >= %s", (flushed,)).fetchone()
    return bool(row and row[0])
