"""The proof: every row of every table at all sites, compared by plain SQL, and the conflicts looked at again.

Invariant: nothing here asks syncagent whether the sites are equal. A row counts as differing if its key is
missing at one site or any of its columns is not the same text; a conflict counts as resolved if every site
that recorded it names the same winner, and its row is equal everywhere now.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from syncagent.demo import shop

Rows = Mapping[str, str]
"""Key and content of every row of one table at one site, as text."""
Conflicts = Mapping[UUID, "Conflict"]

_PINNED = "-c timezone=UTC -c datestyle=ISO,YMD -c extra_float_digits=1"
"""Settings that shape the text of values."""


@dataclass(frozen=True)
class Conflict:
    """What one site recorded. Sites that met the same two versions recorded it under the same id."""

    table: str
    key: str
    winner: str
    stamp: UUID


@dataclass(frozen=True)
class Proof:
    """What was measured. `rows` is per site; `differing` are keys, by table."""

    sites: int
    rows: int
    recorded: int
    resolved: int
    differing: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def differ(self) -> int:
        return sum(map(len, self.differing.values()))

    @property
    def holds(self) -> bool:
        return self.differ == 0 and 0 < self.resolved == self.recorded

    def __str__(self) -> str:
        return (
            f"{'converged' if self.holds else 'not converged'}: {self.sites} sites, {self.rows} rows,"
            f" {self.resolved} conflicts resolved, {self.differ} rows differ"
        )

    def as_facts(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "converged": self.holds,
            "sites": self.sites,
            "rows": self.rows,
            "conflicts": self.recorded,
            "resolved": self.resolved,
            "differ": self.differ,
            "differing": self.differing,
        }


async def prove(dsns: Sequence[str]) -> Proof:
    """Look at all sites, each in one snapshot."""
    looked = await asyncio.gather(*map(_look, dsns))
    contents, conflicts = [one for one, _ in looked], [one for _, one in looked]
    differing = {table: differences([at_site[table] for at_site in contents]) for table in contents[0]}
    return Proof(
        sites=len(dsns),
        rows=sum(map(len, contents[0].values())),
        recorded=len({conflict for at_site in conflicts for conflict in at_site}),
        resolved=resolved(conflicts, differing),
        differing={table: keys for table, keys in differing.items() if keys},
    )


def differences(sites: Sequence[Rows]) -> list[str]:
    """Keys whose row is not the same at all sites, or missing at some."""
    keys: set[str] = set().union(*sites)
    return sorted(key for key in keys if len({rows.get(key) for rows in sites}) > 1)


def resolved(sites: Sequence[Conflicts], differing: Mapping[str, Sequence[str]]) -> int:
    """Distinct conflicts with one winner, whose row is equal at all sites."""
    records: dict[UUID, set[Conflict]] = {}
    for at_site in sites:
        for id_, conflict in at_site.items():
            records.setdefault(id_, set()).add(conflict)
    unequal = {(table, key) for table, keys in differing.items() for key in keys}
    agreed = (next(iter(said)) for said in records.values() if len(said) == 1)
    return sum((conflict.table, conflict.key) not in unequal for conflict in agreed)


async def _look(dsn: str) -> tuple[dict[str, Rows], Conflicts]:
    """Every row and every conflict of one site."""
    async with await psycopg.AsyncConnection.connect(dsn, options=_PINNED) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        tables: dict[str, Rows] = {}
        for table in shop.TABLES:
            query = sql.SQL("select {}, t::text from {} as t").format(table.key_text, table.quoted)
            found = await connection.execute(query)
            tables[f"shop.{table.name}"] = {row[0]: row[1] async for row in found}
        found = await connection.execute(
            "select id, table_name, key, winner, winning_stamp from syncagent.conflict"
        )
        return tables, {row[0]: Conflict(*row[1:]) async for row in found}
