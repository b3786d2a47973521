"""`docs/conflicts.md` as a script: what is typed there is done at two sites, and what is answered must be what the page says.

`python -m tests.support.conflicts_page` writes the answers into the page. In a block of it a line is a statement at a site
(`berlin=> ...`), the moment at which the two meet, or an answer; a block that begins with `create table` has sites of its own.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from syncagent.embedded import scratch
from tests.support.lab import Laboratory, Site, cross
from tests.support.postgres import Servers

PAGE = Path(__file__).parents[2] / "docs" / "conflicts.md"
MEET = "-- the two meet"
_CHOSEN = re.compile(r"-- attached with --on-(?:unique|foreign-key) (\w+)=([\w-]+)")
_CHOOSE = """
    update syncagent.replicated r set policies = r.policies || jsonb_build_object($1::text, $2::text)
    where exists (select from pg_constraint c where c.conrelid = r.relation and c.conname = $1)
"""
_ATTACHED = re.compile(r"-- attached with --strategy (\S+)((?: --merge \w+=[\w:.]+)*)")
_BLOCK = re.compile(r"(?<=```text\n)(?:create|berlin=>|tokyo=>).*?(?=```)", re.DOTALL)
_TYPED = re.compile(r"(berlin|tokyo)=> (.*)")


def _shown(value: Any) -> str:
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.dumps(json.loads(value), ensure_ascii=False)
        except ValueError:
            return value
    if isinstance(value, bool):
        return "t" if value else "f"
    return "" if value is None else str(value)


async def _meet(berlin: Site, tokyo: Site) -> None:
    """Each gets what the other wrote before it knew of anything."""
    await cross(berlin, tokyo)
    for site in (berlin, tokyo):
        await site.store.replica.retry_parked()


async def _block(text: str, berlin: Site, tokyo: Site) -> list[str]:
    said = []
    for line in text.splitlines():
        typed = _TYPED.fullmatch(line)
        chosen = _CHOSEN.fullmatch(line)
        if line.startswith("create table") or _ATTACHED.fullmatch(line):
            said.append(line)
        elif chosen is not None:
            said.append(line)
            for site in (berlin, tokyo):
                await site.rows(_CHOOSE, *chosen.groups())
        elif line == MEET:
            said.append(line)
            await _meet(berlin, tokyo)
        elif typed is not None:
            said.append(line)
            site = berlin if typed[1] == "berlin" else tokyo
            for row in await site.rows(typed[2]):
                answer = " | ".join(_shown(value) for value in row)
                said += [f"  {answer}".rstrip()] if answer else []
    return said


async def perform(page: str, laboratory: Laboratory, servers: Servers) -> str:
    """The page with what its statements answer now."""
    pieces, last = [], 0
    for block in _BLOCK.finditer(page):
        schema = [line for line in block[0].splitlines() if line.startswith("create table")]
        if attached := _ATTACHED.search(block[0]):  # see the laboratory
            merges = dict(words.split("=") for words in attached[2].split() if "=" in words)
            schema.append(
                f"comment on table {schema[-1].split()[2]} is '{attached[1]} {json.dumps(merges)}';"
            )
        async with laboratory.sites("\n".join(schema), servers.of(18), servers.of(18)) as (berlin, tokyo):
            for site in (berlin, tokyo):
                await site.do(
                    "update syncagent.member set name = case node when 1 then 'berlin' else 'tokyo' end"
                )
            said = await _block(block[0], berlin, tokyo)
        pieces += [page[last : block.start()], "\n".join(said), "\n"]
        last = block.end()
    return "".join([*pieces, page[last:]])


async def _write() -> None:
    with scratch("syncagent-page-") as folder:
        servers = Servers(folder)
        try:
            PAGE.write_text(await perform(PAGE.read_text(), Laboratory(), servers))
        finally:
            servers.stop()


if __name__ == "__main__":
    asyncio.run(_write())
