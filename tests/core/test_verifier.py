"""The forest is tended table by table: one that cannot be read holds up no other, and is named."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from syncagent.core import questions
from syncagent.core.batch import Table
from syncagent.core.comparison import Difference, Outcome, Scope
from syncagent.core.forest import END
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


def found(*keys: int) -> Outcome:
    table, standing = Table("public", "one"), questions.standing((), {}, True, {})
    outcome = Outcome(Scope((table,), ((END, END),), False), standing, standing, {table: 10})
    outcome.differences = [Difference(table, UUID(int=key), "", "different", None, None) for key in keys]
    return outcome


async def looked(
    monkeypatch: pytest.MonkeyPatch, *looks: Outcome, thorough: bool = False
) -> tuple[Outcome, list[int]]:
    """What it makes of what it sees, and how many rows it looked at by themselves each time."""
    made, suspected, left = verifier(Forest(Contended("locked"))), list[int](), list(looks)

    async def compare(*arguments: Any, **_: Any) -> Outcome:
        suspected.append(len(arguments[4]))
        return left.pop(0)

    monkeypatch.setattr(made, "_compare", compare)
    monkeypatch.setattr("syncagent.services.verifier._AGAIN", 0)
    return await made.compare(2, None, thorough=thorough), suspected


async def test_a_difference_counts_if_it_is_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, suspected = await looked(monkeypatch, found(1, 2), found(2, 3))
    assert [row.key.int for row in outcome.differences] == [2]
    assert {key.int for _, key in outcome.unconfirmed} == {3}
    assert suspected == [0, 2]
    assert (await looked(monkeypatch, found(1), found(1), thorough=True))[1] == [0, 0], "all of it, twice"


async def test_sites_are_not_equal_as_long_as_something_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = await looked(monkeypatch, found(1), found(2), found())
    assert outcome.equal
    outcome, _ = await looked(monkeypatch, found(1), found(2), found(2))
    assert not outcome.equal
    with pytest.raises(Contended):
        await looked(monkeypatch, *(found(n) for n in range(9)))


async def pauses(monkeypatch: pytest.MonkeyPatch, *lasting: float, equal: bool) -> list[float]:
    """Seconds between the end of a comparison and the next one, if they take so long."""
    made, now, found, left = verifier(Forest(Contended("locked"))), [0.0], list[float](), list(lasting)
    monkeypatch.setattr(made._clock, "now", lambda: now[0], raising=False)
    made._exchange.links = {2: SimpleNamespace()}
    made._desk.roster.peers = (SimpleNamespace(node=2, witness=False),)  # type: ignore[assignment]

    async def watched(*_: object) -> bool:
        if not left:
            raise Unreachable("the test is over")
        now[0] += left.pop(0)
        return equal

    async def wait(seconds: float) -> None:
        found.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(made, "_watched", watched)
    monkeypatch.setattr(made._bell, "wait", wait)
    with pytest.raises(Unreachable):
        await made.watch()
    return found


async def test_what_takes_long_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pauses(monkeypatch, 0.5, 20, 1000, equal=True) == [10, 9.5, 100, 600]
    assert await pauses(monkeypatch, 20, 0.5, equal=False) == [10, 9.5], "what differs is looked at soon"


async def test_without_a_database_it_ends() -> None:
    with pytest.raises(Unreachable):
        await verifier(Forest(Unreachable("gone"))).tend()
