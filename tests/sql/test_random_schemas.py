"""Random schemas, random data, random writes, on two sites of different versions: equal in the end."""

import random
import sys
from collections.abc import Callable

import asyncpg
import pytest

from tests.sql.conftest import Pair
from tests.sql.random_schema import TYPES, Table
from tests.support.lab import Laboratory, Site, exchange, same, ship


async def transaction(site: Site, tables: list[Table], chance: random.Random) -> None:
    """A few writes; one that breaks a key or a reference of its own site is the application's affair."""
    major = site.server.binaries.major
    statements = [chance.choice(tables).write(major) for _ in range(chance.randint(1, 4))]
    work = site.app.transaction()
    await work.start()
    try:
        for statement in statements:
            await site.app.execute(statement)
        await site.app.execute("set constraints all immediate")
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.CardinalityViolationError):
        await work.rollback()
    else:
        await (work.rollback() if chance.random() < 0.1 else work.commit())


async def build(site: Site, tables: list[Table], definitions: list[list[str]], chance: random.Random) -> None:
    await site.do(TYPES)
    for table, definition in zip(tables, definitions, strict=True):
        # numbers of columns differ from site to site
        await site.do(*(s for s in definition if " gap" not in s), *table.gap(chance))
        await site.app.execute("select syncagent._attach($1::text::regclass, true, true)", table.name)


@pytest.mark.soak
async def test_random_schemas(
    laboratory: Laboratory, pair: Pair, runs: Callable[[int, int], int], seed: int
) -> None:
    rows = 0
    for number in range(runs(4, 200)):
        chance = random.Random(seed + number)
        tables = [Table(chance, n) for n in range(chance.randint(1, 3))]
        definitions = [table.definition() for table in tables]
        sys.stdout.write(f"SEED={seed + number}\n")  # shown if it fails
        async with laboratory.sites("select 1", *pair) as (a, b):
            for site in (a, b):
                await build(site, tables, definitions, chance)
            for _ in range(chance.randint(10, 40)):
                await transaction(chance.choice((a, b)), tables, chance)
                match chance.randint(0, 9):
                    case 0:
                        await exchange(a, b)
                    case 1:
                        await ship(a, b)
                    case 2:
                        await ship(b, a)
                    case 3:
                        await chance.choice((a, b)).compact()
                    case _:
                        pass
            await exchange(a, b)
            rows += sum([len(await same(table.name, a, b)) for table in tables])
            assert await a.parked() == await b.parked() == []
    assert rows > 0
