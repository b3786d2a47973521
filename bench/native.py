"""PostgreSQL's own logical replication, as good as the version has it: both ways and `streaming = parallel` from 16 on,
one way before, where it could not tell what came from the other side."""

from collections.abc import Sequence

import psycopg
from psycopg import sql

from bench.pair import Stage
from bench.waiting import until

_ORIGINS_FROM = 16
_STOP_SECONDS = 60.0


class Native:
    name = "native"

    def __init__(self, port: int | None = None) -> None:
        """`port`: where the receiver finds the origin, if not at its own port."""
        self._port = port

    def start(self, stage: Stage) -> None:
        self._stage = stage
        self._both = stage.pair.a.binaries.major >= _ORIGINS_FROM
        self._subscribe(stage.a, stage.b, "there", self._port or stage.pair.a.port)
        if self._both:
            self._subscribe(stage.b, stage.a, "back", stage.pair.b.port)
            stage.await_row(stage.mark(backwards=True), backwards=True)
        stage.await_row(stage.mark())

    def _subscribe(
        self, origin: psycopg.Connection, receiver: psycopg.Connection, name: str, port: int
    ) -> None:
        info = origin.info
        where = psycopg.conninfo.make_conninfo(
            host=info.host, port=port, user=info.user, password=info.password, dbname=info.dbname
        )
        origin.execute("create publication bench for table orders")
        receiver.execute(
            sql.SQL(
                "create subscription {} connection {} publication bench with (copy_data = false{})"
            ).format(
                sql.Identifier(self._slot(name)),
                sql.Literal(where),
                sql.SQL(", origin = none, streaming = parallel" if self._both else ""),
            )
        )

    def _slot(self, name: str) -> str:
        """Slots belong to the server, so their names say which run they are of."""
        return f"{self._stage.name}_{name}"

    def pause(self) -> None:
        self._switch("disable")
        sender = "select from pg_stat_replication where application_name = %s"
        until(
            lambda: not self._stage.a.execute(sender, (self._slot("there"),)).rowcount,
            "the end of a subscription's sender",
            _STOP_SECONDS,
        )

    def resume(self) -> None:
        self._switch("enable")

    def _switch(self, word: str) -> None:
        self._stage.b.execute(f'alter subscription "{self._slot("there")}" {word}'.encode())

    def processes(self) -> Sequence[int]:
        return ()

    def stop(self) -> None:
        receivers = [(self._stage.b, "there"), *([(self._stage.a, "back")] if self._both else [])]
        for receiver, name in receivers:
            receiver.execute(f'drop subscription if exists "{self._slot(name)}"'.encode())
