"""What the console shows as it happens: one query a second, told to all who listen, as server-sent events.

Invariants: nobody listens, nothing is asked; the database is asked at most a tenth of the time; listeners are bounded, one that is slow
misses what is old and holds nobody up; when the agent stops, all end.
"""

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from syncagent.errors import SyncagentError
from syncagent.node import Window
from syncagent.storage.commands import Connection
from syncagent.web.database import Reader
from syncagent.web.findings import UNPROVED_SECONDS, findings, unanswered
from syncagent.web.metrics import Measured

LISTENERS = 32
_EVERY = 1.0
_SHARE = 10
"""The pause after a question is at least so many times as long as its answer took."""
_KEPT = 300
"""Seconds of the charts."""
_SLOW = 10.0
"""Seconds in which a listener must take what is sent."""

_QUERY = """
with s as materialized (select * from syncagent.status), t as materialized (select * from syncagent.replicated_table)
select jsonb_build_object(
    'sites', (select jsonb_agg(s order by not s.is_self, s.node) from s),
    'links', (select coalesce(jsonb_agg(jsonb_build_object('origin', l.origin, 'receiver', l.receiver, 'cuts', l.cuts,
                 'rows', l.rows, 'seconds', l.seconds)), '[]') from syncagent.lag l),
    'tables', (select coalesce(jsonb_agg(jsonb_build_object('name', t.table_name, 'rows', t.estimated_rows, 'unsettled', t.unsettled_rows,
                  'parked', t.parked_rows, 'strategy', t.strategy, 'bucket', t.bucket, 'sealed_until', t.sealed_until,
                  'open', t.open_buckets, 'dropped', t.dropped) order by t.table_name), '[]') from t),
    'unequal', (select coalesce(jsonb_agg(jsonb_build_object('site', p.site, 'at', p.at)), '[]')
                from (select distinct on (site) * from syncagent.proof order by site, at desc) p where not p.equal),
    'schema_changes', (select coalesce(jsonb_agg(jsonb_build_object('id', c.id, 'name', c.name, 'state', c.state, 'phase', c.phase,
                          'done', c.steps_done_here, 'steps', c.steps, 'failures', c.failures)), '[]')
                       from syncagent.schema_change c where c.state in ('open', 'back')),
    'unproved', (select coalesce(jsonb_agg(jsonb_build_object('table', u.table_name, 'sites', u.sites) order by u.table_name), '[]')
                 from (select t.table_name, jsonb_agg(s.name order by s.name) as sites
                       from s, t, syncagent.agent_state a
                       where greatest(t.attached_at, a.started_at) < now() - make_interval(secs => %s)
                         and s.linked and s.role not in ('witness', 'joining') and coalesce(s.equal_at < t.attached_at, true)
                       group by t.table_name) u),
    'newest_conflict', (select max(c.noticed_at) from syncagent.conflict_record c),
    'resolved_conflict', (select max(s.at) from syncagent.conflict_step s where s.what <> 'noticed'),
    'open_conflicts', (select count(*) from (select c.id from syncagent.conflict_record c where c.yielded is not null
                          order by c.noticed_at desc limit 200) y where syncagent._open(y.id))
) as state
"""


def asked(connection: Connection) -> dict[str, Any]:
    row = connection.execute(_QUERY.encode(), (UNPROVED_SECONDS,)).fetchone()
    assert row is not None
    state: dict[str, Any] = row["state"]
    return state


class Full(SyncagentError):
    """As many listen as may."""


class Live:
    def __init__(self, reader: Reader, measured: Measured, window: Window, site: str) -> None:
        self._reader, self._measured, self._window, self._site = reader, measured, window, site
        self._past: deque[tuple[float, int, int, float | None]] = deque(maxlen=_KEPT)
        self._news, self._frame, self._number = asyncio.Condition(), b"", 0
        self._listeners, self._ended = 0, False
        self._lag: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted = asyncio.Event()

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._count()), asyncio.create_task(self._look())]

    async def stop(self, _app: web.Application | None = None) -> None:
        self._ended = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._news:
            self._news.notify_all()

    async def _count(self) -> None:
        """What the charts begin with: counters, which cost the database nothing."""
        while True:
            written, applied = self._measured.rows
            self._past.append((round(time.time(), 1), written, applied, self._lag))
            await asyncio.sleep(_EVERY)

    async def _look(self) -> None:
        while True:
            await self._wanted.wait()
            began = time.monotonic()
            try:
                state = await self._reader.read(asked)
                state |= {"member": self._is_member(), "joins": self._joins(state["sites"])}
                lags = [
                    site["behind_seconds"] for site in state["sites"] if site["behind_seconds"] is not None
                ]
                self._lag = max(lags, default=0.0)
                told = {"database": True, "findings": [f._asdict() for f in findings(state)], **state}
            except SyncagentError as error:
                self._lag = None
                told = {"database": False, "findings": [unanswered(error.line)._asdict()]}
            written, applied = self._measured.rows
            told |= {"site": self._site, "at": datetime.now(UTC), "written": written, "applied": applied}
            self._frame = _event("state", told)
            async with self._news:
                self._number += 1
                self._news.notify_all()
            await asyncio.sleep(max(_EVERY, _SHARE * (time.monotonic() - began)))

    def _is_member(self) -> bool:
        """Whether the cluster counts this site, as far as the agent knows: it must hold its database for that."""
        return self._window.standing is None or self._window.is_member()

    def _joins(self, sites: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Sites that join, and what this one has given them."""
        joining = {site["node"]: site["name"] for site in sites if site["role"] == "joining"}
        self._window.handout.keep(set(joining))
        found = []
        for node, name in joining.items():
            given = self._window.handout.given(node, time.monotonic())
            found.append({"site": name, "given": None if given is None else given._asdict()})
        return found

    async def listen(self, request: web.Request) -> web.StreamResponse:
        if self._listeners >= LISTENERS or self._ended:
            raise Full(
                f"{LISTENERS} listen already", hint="close a console, or look with `syncagent status --watch`"
            )
        self._listeners += 1
        self._wanted.set()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            await self._tell(response)
        except (ConnectionError, TimeoutError):
            pass  # it went away, or takes nothing
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._wanted.clear()
                self._lag = None
        return response

    async def _tell(self, response: web.StreamResponse) -> None:
        await response.write(_event("past", list(self._past)))
        seen = self._number
        while not self._ended:
            if seen == self._number:
                async with self._news:
                    if seen == self._number and not self._ended:
                        await self._news.wait()
                continue
            seen = self._number
            async with asyncio.timeout(_SLOW):
                await response.write(self._frame)


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"
