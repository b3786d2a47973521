"""Attached tables as the agent handles them: what the verbs do, done for the catalog.

Invariant: the agent attaches exactly as a person would, with the same preflight, the same locks and the same
refusals; its own sessions are not blocked meanwhile.
"""

import asyncio
from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from syncagent.core.attachment import Attachment, Inspected
from syncagent.core.batch import Table
from syncagent.errors import RefusedError, UsageError
from syncagent.storage import merges, tables
from syncagent.storage.commands import Connection, site_of

_PATIENCE = 10.0
"""Seconds to try for a lock; then the others have their turn, and it is tried again."""


class PostgresTables:
    """The Tables of the services: short connections of their own, in threads."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def attached(self) -> dict[Attachment, bool]:
        return await asyncio.to_thread(self._attached)

    async def attach(self, attachment: Attachment) -> None:
        await asyncio.to_thread(self._attach, attachment)

    async def detach(self, table: Table) -> None:
        await asyncio.to_thread(self._detach, table)

    async def agree(self, attachment: Attachment) -> None:
        await asyncio.to_thread(self._agree, attachment)

    async def inspect(self, attachments: Sequence[Attachment]) -> list[Inspected]:
        return await asyncio.to_thread(self._inspect, attachments)

    # ---- in threads

    def _attached(self) -> dict[Attachment, bool]:
        with site_of(self._dsn) as connection:
            rows = connection.execute(
                "select schema_name::text as schema, table_name::text as name, derived, shipped, stride, bucket, strategy, agreed,"
                " (select jsonb_agg(jsonb_build_array(key, value) order by key) from jsonb_each_text(policies)) as policies,"
                ' (select jsonb_agg(jsonb_build_array(key, value) order by key collate "C") from jsonb_each_text(merges)) as merges'
                " from syncagent.replicated order by id"
            ).fetchall()
        return {
            Attachment(
                Table(row["schema"], row["name"]),
                row["derived"],
                row["shipped"],
                row["stride"],
                row["bucket"],
                tuple((name, policy) for name, policy in row["policies"] or ()),
                row["strategy"],
                tuple((name, how) for name, how in row["merges"] or ()),
            ): row["agreed"]
            for row in rows
        }

    def _attach(self, attachment: Attachment) -> None:
        with site_of(self._dsn) as connection:
            chosen = [_candidate(connection, attachment)]
            tables.refuse_obstacles(chosen)
            tables.attach(
                connection,
                chosen,
                tables.Terms(
                    derive=attachment.derive,
                    ship=attachment.ship,
                    stride=attachment.stride,
                    bucket=attachment.bucket,
                    policies=attachment.policies,
                    strategy=attachment.strategy,
                    merges=attachment.merges,
                ),
                patience=_PATIENCE,
                on_wait=_nobody_listens,
            )

    def _detach(self, table: Table) -> None:
        with site_of(self._dsn) as connection:
            row = connection.execute(
                "select relation::oid::bigint as oid from syncagent.replicated where schema_name = %s and table_name = %s",
                (table.schema, table.name),
            ).fetchone()
            if row is not None:
                tables.detach(
                    connection, {row["oid"]: str(table)}, patience=_PATIENCE, on_wait=_nobody_listens
                )

    def _agree(self, attachment: Attachment) -> None:
        with site_of(self._dsn) as connection:
            connection.execute(
                "update syncagent.replicated set agreed = true, policies = %s where schema_name = %s and table_name = %s",
                (Jsonb(dict(attachment.policies)), attachment.table.schema, attachment.table.name),
            )

    def _inspect(self, attachments: Sequence[Attachment]) -> list[Inspected]:
        with site_of(self._dsn) as connection:
            return [_inspected(connection, attachment) for attachment in attachments]


def _candidate(connection: Connection, attachment: Attachment) -> tables.Candidate:
    oid = tables.exactly(connection, attachment.table.schema, attachment.table.name)
    if oid is None:
        raise RefusedError(
            f"table {attachment.table} is attached in the cluster, and is not here",
            hint="create it here as it is at the other sites",
        )
    return _judged(connection, tables.candidate(connection, oid, derive=attachment.derive), attachment)


def _judged(connection: Connection, candidate: tables.Candidate, attachment: Attachment) -> tables.Candidate:
    """Also with what stands against merging its columns."""
    if attachment.strategy != "merge":
        return candidate
    return merges.judged(connection, [candidate], attachment.merges)[0]


def _inspected(connection: Connection, attachment: Attachment) -> Inspected:
    """What stands against attaching it here, and how many rows it has, about."""
    oid = tables.exactly(connection, attachment.table.schema, attachment.table.name)
    if oid is None:
        return Inspected(attachment.table, ("the table is not there",), ("create it as it is here",), None)
    known = connection.execute(
        "select strategy, merges from syncagent.replicated where relation = %s::bigint::oid", (oid,)
    ).fetchone()
    if known is not None and (
        known["strategy"] != attachment.strategy or known["merges"] != dict(attachment.merges)
    ):
        chosen = " ".join(f"--merge {name}={how}" for name, how in sorted(known["merges"].items()))
        there = f"--strategy {known['strategy']} {chosen}".rstrip()
        return Inspected(
            attachment.table, (f"it is attached there with {there}",), (f"attach it with {there}",), None
        )
    if known is not None:
        return Inspected(attachment.table, (), (), None)
    candidate = _judged(connection, tables.candidate(connection, oid, derive=attachment.derive), attachment)
    row = connection.execute(
        f"select count(*) as rows from (select from {candidate.name} limit {_COUNTED}) as t".encode()
    ).fetchone()
    assert row is not None
    return Inspected(attachment.table, candidate.problems, candidate.hints, row["rows"])


_COUNTED = 1000
"""Rows that are counted; more are many."""


def _nobody_listens(_held: str) -> None:
    """Status shows who is in the way once it is given up."""


def named(connection: Connection, names: Sequence[str]) -> list[Table]:
    """Schema and name of attached tables, as the cluster knows them. RefusedError for one that is not attached."""
    oids = tables.attached(connection, names)
    rows = connection.execute(
        "select schema_name::text as schema, table_name::text as name from syncagent.replicated"
        " where relation = any (%s::bigint[]::oid[])",
        (list(oids),),
    ).fetchall()
    if not rows:
        raise UsageError("name tables", hint="`syncagent tables` lists those that are attached")
    return [Table(row["schema"], row["name"]) for row in rows]


def refuse_agreed(connection: Connection, chosen: Mapping[int, str]) -> None:
    """Without an agent, only what the cluster does not know of can be detached."""
    agreed = connection.execute(
        "select from syncagent.replicated where relation = any (%s::bigint[]::oid[]) and agreed",
        (list(chosen),),
    ).rowcount
    if agreed:
        raise RefusedError(
            "the whole cluster replicates this, and no agent is running for this site to tell it",
            hint="start it with `syncagent run`; `syncagent db uninstall` takes this site's SQL side away as a whole",
        )
