"""Random schemas, random data, random writes, on two sites of different versions: equal in the end."""

import random
import sys
from collections.abc import Callable

import asyncpg
import pytest

from tests.sql.conftest import Pair
from tests.sql.random_schema import STRIDE, TYPES, Table
from tests.support.lab import Laboratory, Site, exchange, same, ship


async def transaction(site: Site, tables: list[Table], chance: random.Random) -> None:
    """A few writes; one that breaks a key or a reference of its own site is the application's affair."""
    major = site.server.binaries.major
    statements = [chance.choice(tables).write(major) for _ in range(chance.randint(1, 4))]
    numbered = [table for table in tables if table.numbered]
    draws = [chance.choice(numbered).draw() for _ in range(chance.randint(0, 2)) if numbered]
    stays = chance.random() < 0.9
    work = site.app.transaction()
    await work.start()
    try:
        for statement in statements:
            await site.app.execute(statement)
        for draw in draws:
            number = await site.app.fetchval(draw)
            assert number % STRIDE == site.node, f"{site.node} drew {number}"
        await site.app.execute("set constraints all immediate")
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.CardinalityViolationError):
        await work.rollback()
    else:
        await (work.commit() if stays else work.rollback())


def design(chance: random.Random) -> tuple[list[Table], list[str]]:
    """Tables, some of which refer to others, and the statements that make them."""
    tables: list[Table] = []
    for number in range(chance.randint(1, 4)):
        tables.append(Table(chance, number, tables))
    statements = [statement for table in tables for statement in table.definition()]
    if chance.random() < 0.3 and (lowest := tables[-1]).parent is not None:
        statements.append(lowest.parent.ring(lowest))
    return tables, statements


async def build(site: Site, tables: list[Table], statements: list[str], chance: random.Random) -> None:
    await site.do(TYPES, *statements)
    for table in tables:
        await site.do(*table.gap(chance))  # numbers of columns differ from site to site
        await site.app.execute(
            "select syncagent._attach($1::text::regclass, true, true, $2)", table.name, STRIDE
        )


@pytest.mark.soak
async def test_random_schemas(
    laboratory: Laboratory, pair: Pair, runs: Callable[[int, int], int], seed: int
) -> None:
    rows = 0
    for number in range(runs(3, 200)):
        chance = random.Random(seed + number)
        tables, statements = design(chance)
        sys.stdout.write(f"SEED={seed + number}\n")  # shown if it fails
        async with laboratory.sites("select 1", *pair) as (a, b):
            for site in (a, b):
                await build(site, tables, statements, chance)
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
