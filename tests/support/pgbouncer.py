"""A connection pooler as people run it: PgBouncer, if it is installed. Nothing installs it for the tests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from syncagent.embedded import Server, free_port, scratch
from syncagent.embedded.account import launch, own
from tests.support.waiting import until

_PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")

needs_pgbouncer = pytest.mark.skipif(
    _PROGRAM is None, reason="PgBouncer is not installed: apt install pgbouncer"
)


class Pooler:
    """One PgBouncer in front of one server; every database and the superuser are let through."""

    def __init__(self, server: Server, port: int) -> None:
        self._server, self._port = server, port

    def dsn(self, dbname: str) -> str:
        return self._server.dsn(dbname).replace(f":{self._server.port}/", f":{self._port}/")


@contextmanager
def pgbouncer(server: Server, mode: str, **settings: str) -> Iterator[Pooler]:
    """Running in this pool mode; `settings` are further lines of its configuration."""
    assert _PROGRAM is not None
    with scratch("syncagent-pooler-") as folder:
        port = free_port()
        users, configuration, log = folder / "users", folder / "pgbouncer.ini", folder / "log"
        users.write_text(f'"postgres" "{server.password}"\n')
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "plain",
            "auth_file": str(users),
            "pool_mode": mode,
            **settings,
        }
        configuration.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        for path in (users, configuration):
            own(path)
        with log.open("wb") as output:
            process = launch([Path(_PROGRAM), configuration], output)
        pooler = Pooler(server, port)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                psycopg.connect(pooler.dsn("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            until(answers, "PgBouncer takes connections")
            yield pooler
        finally:
            process.terminate()
            process.wait(30)
