"""The table of `docs/schema_changes.md`: each statement is planned, and what the page says of its phases and locks must be what the plan says.

`python -m tests.support.schema_page` writes it anew.
"""

import asyncio
import re
from pathlib import Path

from syncagent.embedded import scratch
from syncagent.storage.commands import connected
from syncagent.storage.schema import planning
from syncagent.storage.schema.planning import Plan
from tests.support.lab import Laboratory
from tests.support.postgres import Servers

PAGE = Path(__file__).parents[2] / "docs" / "schema_changes.md"
SCHEMA = """
    create table item (id uuid primary key, value int, note text, code varchar(20), x numeric(6, 2) default 1,
                       constraint known check (value < 1000));
    create table part (id uuid primary key, item uuid);
    create table log (year int, id uuid, primary key (year, id)) partition by list (year);
    create index item_note on item (note);
    create function twice(n int) returns int language sql immutable as 'select n * 2';
    create function stamp() returns trigger language plpgsql as 'begin return new; end';
    create view notes as select id, note from item;
    create type color as enum ('red', 'green');
"""
_ROW = re.compile(r"(?m)^\| `(?P<statement>[^`]+)` \| (?P<phases>[^|]*)\| (?P<locks>[^|]*)\|$")


def _said(plan: Plan, statement: str) -> str:
    assert not plan.refusals, (statement, plan.refusals)
    phases = dict.fromkeys(one.step.phase for one in plan.steps)
    locks = dict.fromkeys(one.step.locks for one in plan.steps)
    return f"| `{statement}` | {', then '.join(phases)} | {'; '.join(locks)} |"


async def perform(page: str, laboratory: Laboratory, servers: Servers) -> str:
    """The page with what is planned now."""
    async with laboratory.sites(SCHEMA, servers.of(18)) as (site,):
        before, begin, table = page.partition("<!-- statements -->")
        table, end, after = table.partition("<!-- end -->")
        return before + begin + await asyncio.to_thread(_planned, site.dsn, table) + end + after


def _planned(dsn: str, table: str) -> str:
    with connected(dsn) as connection:

        def row(found: re.Match[str]) -> str:
            statement = found["statement"]
            plan = planning.plan(
                connection,
                statement.replace(" ⏎ ", "\n"),
                "page",
                role=None,
                stride=None,
                bucket="hour",
                patience=5,
            )
            return _said(plan, statement)

        return _ROW.sub(row, table)


async def _write() -> None:
    with scratch("syncagent-page-") as folder:
        servers = Servers(folder)
        try:
            PAGE.write_text(await perform(PAGE.read_text(), Laboratory(), servers))
        finally:
            servers.stop()


if __name__ == "__main__":
    asyncio.run(_write())
