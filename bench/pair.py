"""Two servers, and a fresh copy of the seeded database on both for every run.

Invariant: all runs of one benchmark, whatever replicates, meet the same binaries, settings, rows and caches; what a
run leaves behind is dropped with its databases.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from uuid import UUID

import psycopg
from psycopg import sql

from bench import orders
from bench.waiting import until
from syncagent.embedded import Binaries, Server, Setting, scratch
from syncagent.errors import SyncagentError

_TEMPLATE = "seeded"
_POLL = 0.004
_LIMIT = 3600.0
_MEGABYTE = 1024 * 1024
_NONE: Mapping[str, Setting] = {}


def _settings() -> dict[str, Setting]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MEGABYTE
    return {
        "shared_buffers": f"{min(512, memory // 8)}MB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "30min",
        "wal_level": "logical",
        "autovacuum": False,
        "jit": False,
        "max_worker_processes": 16,
        "max_connections": 200,
        "log_min_messages": "error",
    }


class Diverged(SyncagentError):
    """The two sites are not equal after a run."""


class Stage:
    """One run's databases: a connection to each, in autocommit mode; `folder` is for its files."""

    def __init__(self, pair: "Pair", name: str, folder: Path) -> None:
        self.pair, self.name, self.folder = pair, name, folder
        self.dsns = pair.a.dsn(name), pair.b.dsn(name)
        self.a, self.b = (psycopg.connect(dsn, autocommit=True) for dsn in self.dsns)
        self.check: Callable[[], None] = lambda: None
        """Raises if what replicates has ended by itself."""

    def settle(self) -> None:
        """Nothing of what was written before is left for later."""
        self.a.execute("checkpoint")
        self.b.execute("checkpoint")
        os.sync()

    def mark(self, *, backwards: bool = False) -> UUID:
        """Write the last row at the origin; returns its key."""
        row = (self.b if backwards else self.a).execute(orders.MARK).fetchone()
        assert row is not None
        key: UUID = row[0]
        return key

    def arrived(self, key: UUID, *, backwards: bool = False) -> bool:
        """Whether the other site shows it."""
        return bool((self.a if backwards else self.b).execute(orders.SEEN, (key,)).rowcount)

    def await_row(self, key: UUID, *, backwards: bool = False) -> None:
        """Until the other site shows it."""

        def arrived() -> bool:
            self.check()
            return self.arrived(key, backwards=backwards)

        until(arrived, f"a row of {self.name} that arrives", _LIMIT, poll=_POLL)

    def compare(self) -> None:
        """Raise Diverged unless the two tables are equal."""
        here, there = (site.execute(orders.SUM).fetchone() for site in (self.a, self.b))
        if here != there:
            raise Diverged(f"{self.name}: the sites differ", detail=f"count and sum: {here} and {there}")

    def drop(self) -> None:
        """The databases. A worker that lingers is ended for it, and is back when its server has started again."""
        self.a.close()
        self.b.close()
        for server in (self.pair.a, self.pair.b):
            if self.pair.lingers:
                server.execute(
                    sql.SQL(
                        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where backend_type = {}"
                    ).format(sql.Literal(self.pair.lingers))
                )
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(self.name)))
            if self.pair.lingers:
                server.stop()
                server.start()


class Pair:
    """Two running servers, `a` the origin and `b` the receiver, with `seeds` rows in every fresh database."""

    def __init__(self, binaries: Binaries, folder: Path, seeds: int, settings: Mapping[str, Setting]) -> None:
        self.settings = {**_settings(), **settings}
        self.seeds = seeds
        self.lingers: str | None = None
        self._folder = folder
        self._runs = 0
        self.a, self.b = (
            Server(binaries, folder / name, settings=self.settings, durable=True) for name in "ab"
        )

    @classmethod
    @contextmanager
    def running(
        cls, binaries: Binaries, seeds: int, settings: Mapping[str, Setting] = _NONE
    ) -> Iterator[Self]:
        """`settings`: beside those of all pairs, or in their place."""
        with scratch("syncagent-bench-") as folder, ExitStack() as stack:
            pair = cls(binaries, folder, seeds, settings)
            for server in (pair.a, pair.b):
                stack.enter_context(server)
                pair._seed(server)
            yield pair

    @contextmanager
    def stage(self, what: str) -> Iterator[Stage]:
        """Fresh databases for one run."""
        self._runs += 1
        name = f"{what}_{self._runs}"
        folder = self._folder / name
        folder.mkdir()
        for server in (self.a, self.b):
            server.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(name), sql.Identifier(_TEMPLATE)
                )
            )
        stage = Stage(self, name, folder)
        try:
            yield stage
        finally:
            stage.drop()

    def _seed(self, server: Server) -> None:
        server.execute(sql.SQL("create database {}").format(sql.Identifier(_TEMPLATE)))
        with psycopg.connect(server.dsn(_TEMPLATE), autocommit=True) as connection:
            connection.execute(orders.schema(server.binaries.major, self.seeds).encode())
            connection.execute("vacuum (analyze) orders")
