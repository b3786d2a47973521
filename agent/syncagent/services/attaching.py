"""Which tables are replicated is agreed: what is attached at one site goes to all, and so does its end.

Invariant: a table that a person attached here is in the catalog before anything else is done about it; one
that the catalog has is attached here as soon as that can be; one that it had, and has no more, is detached.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import msgspec

from syncagent.core.attachment import Attachment, Inspected, Policy
from syncagent.core.batch import Table
from syncagent.core.catalog import Attach, Catalog, Constrain, Detach
from syncagent.core.store import Request, Tables
from syncagent.core.wire import Inspect, Report
from syncagent.errors import SyncagentError, Undecided, Unreachable
from syncagent.services.elections import Elections
from syncagent.services.evolving import Evolving
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Bell, Desk

_SECONDS = 10.0
_INSPECT = 15.0
"""Seconds a peer may take to look at tables."""
_AGAIN = 5.0
"""Seconds after which a table that could not be attached is tried again."""
_LOOK = 0.1
_AWAY = "no link: it follows when it comes back"


class Attaching:
    """`trouble` says what keeps a table from being attached here; `epoch` is the catalog whose tables are."""

    def __init__(
        self, desk: Desk, tables: Tables, elections: Elections, exchange: Exchange, evolving: Evolving
    ) -> None:
        self._desk, self._tables, self.evolving = desk, tables, evolving
        self._elections, self._exchange = elections, exchange
        self._reports: dict[UUID, asyncio.Future[Report]] = {}
        self.bell = Bell()
        evolving.on_done = self.bell.ring
        self.trouble: str | None = None
        self.epoch = 0
        exchange.on_report = self._reported
        exchange.on_inspect = self._inspected
        self.verbs = {
            "inspect": self._inspect,
            "attached": self._attached,
            "detach": self._detach,
            "constrain": self._constrain,
            **evolving.verbs,
        }
        self.loops: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self.run,
            evolving.run,
            evolving.lead,
        )

    def changed(self) -> None:
        """The catalog has."""
        self.bell.ring()
        self.evolving.changed()

    async def run(self) -> None:
        """For ever: what is here follows the catalog."""
        while True:
            try:
                await self._follow()
            except Unreachable:
                raise
            except SyncagentError as error:
                self._say(error.line)
            await self.bell.wait(_AGAIN if self.trouble else None)

    async def _follow(self) -> None:
        if self._elections.is_witness:
            self._done(self._elections.catalog)
            return
        if self.evolving.is_behind:
            return  # a step that was let go does to tables here what the catalog says of them already
        here = await self._tables.attached()
        new = [attachment for attachment, agreed in here.items() if not agreed]
        if missing := [known for known in new if known.table not in self._elections.catalog.tables]:
            with suppress(Undecided):
                await self._elections.submit(Attach(tuple(missing)), uuid4(), seconds=_SECONDS)
        catalog = self._elections.catalog
        trouble = []
        local = {attachment.table: agreed for attachment, agreed in here.items()}
        ours = {attachment.table: attachment for attachment in here}
        for attachment in catalog.attached:
            if attachment.table not in local:
                trouble += await self._try(attachment)
            elif ours[attachment.table].merged != attachment.merged:
                trouble.append(
                    f"table {attachment.table} has the strategy {ours[attachment.table].merged} here,"
                    f" and {attachment.merged} in the cluster: detach it here, and it is attached anew"
                )
            elif not local[attachment.table] or ours[attachment.table].policies != attachment.policies:
                await self._tables.agree(attachment)
        for table, agreed in local.items():
            if agreed and table not in catalog.tables:
                await self._tables.detach(table)
        if any(known.table not in catalog.tables for known in new):
            trouble.append("the cluster has not agreed yet on the tables that were attached here")
        self._say("; ".join(trouble) or None)
        if not trouble:
            self._done(catalog)

    def _done(self, catalog: Catalog) -> None:
        self.epoch = catalog.epoch
        self._desk.bells.news.ring()

    async def _try(self, attachment: Attachment) -> list[str]:
        try:
            await self._tables.attach(attachment)
        except Unreachable:
            raise
        except SyncagentError as error:
            return [error.line]
        await self._tables.agree(attachment)
        return []

    def _say(self, trouble: str | None) -> None:
        self.trouble = trouble
        self._desk.bells.news.ring()

    # ---- what peers ask

    async def _inspected(self, asker: int, question: Inspect) -> None:
        try:
            report = Report(question.request, tuple(await self._tables.inspect(question.attachments)))
        except SyncagentError as error:
            report = Report(question.request, error=error.line)
        await self._exchange.send(asker, report)

    def _reported(self, report: Report) -> None:
        if (future := self._reports.get(report.request)) is not None and not future.done():
            future.set_result(report)

    # ---- people

    async def _inspect(self, request: Request) -> dict[str, Any]:
        """What every other site says about tables that are to be attached."""
        attachments = tuple(
            Attachment(
                Table(*given["table"]),
                given["derive"],
                given["ship"],
                given["stride"],
                given["bucket"],
                strategy=given["strategy"],
                merges=tuple((name, how) for name, how in given["merges"]),
            )
            for given in request.arguments["tables"]
        )
        peers = self._desk.roster.origins
        reports = await asyncio.gather(*(self._ask(peer.node, attachments) for peer in peers))
        return {
            "sites": [
                {
                    "site": peer.name,
                    "error": report.error,
                    "tables": [_told(found) for found in report.found],
                }
                for peer, report in zip(peers, reports, strict=True)
            ]
        }

    async def _ask(self, node: int, attachments: tuple[Attachment, ...]) -> Report:
        question = uuid4()
        if self._exchange.way(node) is None:
            return Report(question, error="no link: it attaches them when it comes back")
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._reports[question] = future
        try:
            async with asyncio.timeout(_INSPECT):
                await self._exchange.send(node, Inspect(question, attachments))
                return await future
        except TimeoutError:
            return Report(question, error=f"no answer within {_INSPECT:g} s")
        except SyncagentError as error:
            return Report(question, error=error.line)
        finally:
            del self._reports[question]

    async def _attached(self, request: Request) -> dict[str, Any]:
        """Tables were attached here: until all sites that can be reached have them, too."""
        seconds = float(request.arguments.get("timeout") or 30.0)
        self.bell.ring()
        wanted = {Table(*given) for given in request.arguments["tables"]}
        return {"missing": await self._until_done(wanted, seconds)}

    async def _detach(self, request: Request) -> dict[str, Any]:
        """From all sites."""
        tables = tuple(Table(*given) for given in request.arguments["tables"])
        await self._elections.submit(Detach(tables), uuid4(), seconds=_SECONDS)
        self.bell.ring()
        seconds = float(request.arguments.get("timeout") or 30.0)
        return {"missing": await self._until_done(set(), seconds)}

    async def _constrain(self, request: Request) -> dict[str, Any]:
        """At all sites."""
        policies = msgspec.convert(request.arguments["policies"], tuple[tuple[str, Policy], ...])
        command = Constrain(Table(*request.arguments["table"]), policies)
        await self._elections.submit(command, uuid4(), seconds=_SECONDS)
        self.bell.ring()
        return {"missing": await self._until_done(set(), float(request.arguments["timeout"]))}

    async def _until_done(self, wanted: set[Table], seconds: float) -> dict[str, str]:
        """Who does not do yet what the catalog says, and why, after so many seconds at most; who is away is not
        waited for."""
        until = self._desk.clock.now() + seconds
        while True:
            missing = self._missing(wanted)
            if set(missing.values()) <= {_AWAY} or self._desk.clock.now() >= until:
                return missing
            await asyncio.sleep(_LOOK)

    def _missing(self, wanted: set[Table]) -> dict[str, str]:
        catalog = self._elections.catalog
        if not wanted <= catalog.tables.keys():
            return {"the cluster": "has not agreed yet"}
        missing = {} if self.epoch >= catalog.epoch else {"this site": self.trouble or "not yet"}
        for peer in self._desk.roster.origins:
            told = self._exchange.progress.get(peer.node)
            if told is None:
                missing[peer.name] = _AWAY
            elif told.attached < catalog.epoch:
                missing[peer.name] = told.trouble or "not yet"
        return missing


def _told(found: Inspected) -> dict[str, Any]:
    return {
        "table": [found.table.schema, found.table.name],
        "problems": found.problems,
        "hints": found.hints,
        "rows": found.rows,
    }
