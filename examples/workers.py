"""People who work at a site's database until they are sent home, each in a thread of their own.

Invariant: an error of the database ends a worker, and is told; nothing is tried again that the application would not.
"""

import random
import threading
from abc import ABC, abstractmethod

import psycopg

PAUSE = 0.02


class Worker(threading.Thread, ABC):
    """`failed` is set if it ends by an error."""

    def __init__(self, dsn: str, name: str, seed: str, failed: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.error = ""
        self.chance = random.Random(seed)
        self._dsn, self._leaving, self._failed = dsn, threading.Event(), failed

    @abstractmethod
    def work(self, connection: psycopg.Connection) -> None:
        """One thing that the application does; the connection commits by itself."""

    def leave(self) -> None:
        """Finish what is begun."""
        self._leaving.set()
        self.join()

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self._leaving.wait(PAUSE):
                    self.work(connection)
        except psycopg.Error as error:
            self.error = f"{self.name}: {error}"
            self._failed.set()
