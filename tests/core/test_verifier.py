"""The forest is tended table by table: one that cannot be read holds up no other, and is named."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from syncagent.core.inbox import Inbox
from syncagent.core.outbox import Outbox
from syncagent.core.store import Due
from syncagent.errors import Contended, DatabaseError, Unreachable
from syncagent.services.lifecycle import Desk
from syncagent.services.verifier import Verifier
from tests.support.waiting import eventually


class Clock:
    def now(self) -> float:
        return 0.0

    def wall(self) -> int:
        return 1 << 50

    def chance(self) -> float:
        return 0.5


class Forest:
    """Three tables: one is locked, one cannot be read, one can."""

    def __init__(self, worst: Exception) -> None:
        self.sealed: list[int] = []
        self.errors: dict[int, Exception] = {1: Contended("locked"), 2: worst}

    async def advance(self, horizon: int) -> None:
        pass

    async def due(self) -> list[Due]:
        return [Due(relation, marked=False, unsealed=True, unscrubbed=False) for relation in (1, 2, 3)]

    async def reseal(self, relation: int) -> int | None:
        raise AssertionError("nothing is marked")

    async def scrub(self, relation: int) -> int | None:
        raise AssertionError("nothing is due")

    async def seal(self, relation: int) -> int | None:
        if relation in self.errors:
            raise self.errors[relation]
        self.sealed.append(relation)
        return None


def verifier(forest: Any) -> Verifier:
    desk = Desk(1, Inbox(1), Outbox(1), Clock())
    return Verifier(desk, forest, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]


async def test_a_table_that_cannot_be_read_holds_up_no_other() -> None:
    forest = Forest(DatabaseError("page 7 is damaged"))
    made = verifier(forest)
    tending = asyncio.create_task(made.tend())

    async def told() -> bool:
        return bool(forest.sealed) and "page 7 is damaged" in str(made.trouble)

    try:
        await eventually(told, "it goes on, and says what is wrong")
        forest.errors.clear()

        async def healed() -> bool:
            return made.trouble is None

        await eventually(healed, "it says nothing any more")
    finally:
        tending.cancel()
    assert {1, 2, 3} <= set(forest.sealed)


async def test_without_a_database_it_ends() -> None:
    with pytest.raises(Unreachable):
        await verifier(Forest(Unreachable("gone"))).tend()
