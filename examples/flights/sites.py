"""A site of the flights application: its server, its roles and tables, and connections to work with."""

from pathlib import Path

from sqlalchemy import Engine

from syncagent.embedded import Binaries

from .. import sites
from ..sites import SiteError
from . import database


class Site(sites.Site):
    def __init__(self, number: int, folder: Path, binaries: Binaries) -> None:
        super().__init__(number, folder, binaries, "flights")
        self._engines: list[Engine] = []

    def start(self) -> None:
        """A running server with the empty tables of the application, made by the application."""
        super().start()
        for role in (database.OWNER, database.APP):
            self.server.create_role(role)
        administrator = database.engine(self.dsn, "administrator")
        database.create(administrator)
        administrator.dispose()

    def engine(self, office: str, isolation: str = "READ COMMITTED") -> Engine:
        """Connections of the application's role."""
        engine = database.engine(self.server.dsn(self.database, database.APP), office, isolation)
        self._engines.append(engine)
        return engine

    def stop(self) -> None:
        for engine in self._engines:
            engine.dispose()
        super().stop()


__all__ = ["Site", "SiteError"]
