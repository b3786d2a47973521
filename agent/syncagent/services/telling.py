"""Lines of the log about batches and cuts that do not succeed, between the services and whoever measures them.

Invariant: what is tried again for long costs a line each time that it has taken twice as long, with site, peer and batch, and one when it
is over; what succeeds, or soon does, is no line: the metrics count it.
"""

from uuid import UUID

import structlog

from syncagent.core.batch import BatchHeader
from syncagent.core.ports import Merged, Observer
from syncagent.core.store import Typed

_SOON = 8
"""Tries; by then a second or two have passed. Who holds a row is mostly done before."""


class Telling:
    """An Observer before another one. `log` is bound to the site."""

    def __init__(self, observer: Observer, log: structlog.stdlib.BoundLogger) -> None:
        self._observer, self._log = observer, log
        self._refused: dict[str, int] = {}
        self._cuts_failed = False

    def cut(self, number: int, cut_id: UUID, seconds: float, rows: int) -> None:
        if self._cuts_failed:
            self._cuts_failed = False
            self._log.info("cuts are made again")
        self._observer.cut(number, cut_id, seconds, rows)

    def cut_failed(self, attempt: int, reason: str) -> None:
        if _is_news(attempt):
            self._cuts_failed = True
            self._log.warning("no cut", attempt=attempt, reason=reason)
        self._observer.cut_failed(attempt, reason)

    def sent(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        self._observer.sent(peer, batch, seconds)

    def received(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        self._observer.received(peer, batch, seconds)

    def applied(self, merged: Merged) -> None:
        for origin, _ in merged.batches:
            if (batch := self._refused.pop(origin, None)) is not None:
                self._log.info("batch merged", peer=origin, batch=batch)
        self._observer.applied(merged)

    def typed(self, typed: Typed) -> None:
        self._log.warning("table changed by hand", table=typed.table, what=typed.what, role=typed.role)

    def refused(self, origin: str, batch: int, attempt: int, reason: str) -> None:
        if _is_news(attempt):
            self._refused[origin] = batch
            self._log.warning("batch refused", peer=origin, batch=batch, attempt=attempt, reason=reason)
        self._observer.refused(origin, batch, attempt, reason)


def _is_news(attempt: int) -> bool:
    return attempt >= _SOON and attempt & (attempt - 1) == 0
