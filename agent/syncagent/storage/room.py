"""What takes the server's disk, and how much of it is left where that can be seen.

A server does not tell how full its disk is. Only on its own host, and to a role that may read where its data lies, can
it be looked up; everywhere else this is silent.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from syncagent.storage.commands import Connection
from syncagent.storage.drift import Finding

_SLOT_BYTES = 1024 * 1024 * 1024
"""An unused replication slot that keeps more than this is forgotten, as it seems."""
_LOW, _OUT = 0.05, 0.01
"""Shares of a disk that are left: little, and next to nothing."""
_HERE = ("", "localhost", "127.0.0.1", "::1")


def room(connection: Connection) -> Iterator[Finding]:
    """Slots that hold back the removal of WAL, and the disk of a server on this host."""
    for row in connection.execute(
        """
        select quote_literal(slot_name) as name, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint as bytes
        from pg_replication_slots where not pg_is_in_recovery() and not active and restart_lsn is not null order by 1
        """
    ):
        if row["bytes"] >= _SLOT_BYTES:
            yield Finding(
                "warning",
                f"replication slot {row['name']} is not used, and keeps {row['bytes'] // 2**20} MB of WAL: the disk fills",
                f"select pg_drop_replication_slot({row['name']})",
            )
    data = connection.execute("select setting from pg_settings where name = 'data_directory'").fetchone()
    if data and (connection.info.host.startswith("/") or connection.info.host in _HERE):
        yield from disk(Path(data["setting"]), "PG_VERSION", "PostgreSQL stops writing when it is full")


def disk(folder: Path, sign: str, why: str) -> Iterator[Finding]:
    """How full the disk below a folder is; nothing if the file `sign` does not show that it is the one meant."""
    try:
        if not (folder / sign).exists():
            return
        usage = shutil.disk_usage(folder)
    except OSError:
        return  # not ours to look into
    share = usage.free / usage.total
    if share < _LOW:
        yield Finding(
            "error" if share < _OUT else "warning",
            f"{usage.free // 2**20} MB are free on the disk of {folder}: {why}",
            "free some space there",
        )
