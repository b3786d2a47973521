"""What a home keeps of its site: durable before anything leaves, whatever a crash does to the file."""

import asyncio
import os
from pathlib import Path
from uuid import UUID

import pytest
from msgspec.structs import replace

from syncagent.core.identity import Place, Standing
from syncagent.errors import HomeFailed, RefusedError
from syncagent.storage.high_water import FILE, HighWater

PLACE = Place(system=7_000_000_000_000_000_000, database=16384, timeline=1)
ONE, OTHER = UUID(int=1), UUID(int=2)


def known(home: Path, here: Standing, place: Place = PLACE, incarnation: UUID = ONE) -> HighWater:
    high_water = HighWater(home, incarnation)
    asyncio.run(high_water.recognise("berlin", place, here))
    return high_water


def ship(home: Path, cut: int, here: Standing) -> None:
    async def both() -> None:
        high_water = HighWater(home, ONE)
        await high_water.recognise("berlin", PLACE, here)
        await high_water.shipping(cut, UUID(int=cut))

    asyncio.run(both())


def test_a_database_that_was_set_back_is_refused(tmp_path: Path) -> None:
    known(tmp_path, Standing())
    ship(tmp_path, 5, Standing())
    known(tmp_path, Standing(cut=5, cut_id=UUID(int=5)), replace(PLACE, timeline=2))
    before = (tmp_path / FILE).read_bytes()
    for here, place, why in (
        (Standing(cut=4), PLACE, "shipped its cut 5"),
        (Standing(cut=6), replace(PLACE, system=1), "system identifier"),
    ):
        with pytest.raises(RefusedError, match=why) as caught:
            known(tmp_path, here, place)
        assert "syncagent rejoin" in str(caught.value.hint)
    assert (tmp_path / FILE).read_bytes() == before
    known(tmp_path, Standing(), incarnation=OTHER)  # after a rejoin


def test_a_write_that_was_torn_spoils_nothing_older(tmp_path: Path) -> None:
    known(tmp_path, Standing())
    ship(tmp_path, 5, Standing())
    ship(tmp_path, 6, Standing(cut=5, cut_id=UUID(int=5)))
    whole = (tmp_path / FILE).read_bytes()
    newer = 512 if b'"cut":6' in whole[512:] else 0
    for byte in range(newer, newer + 60, 7):
        torn = bytearray(whole)
        torn[byte] ^= 0x40
        (tmp_path / FILE).write_bytes(torn)
        with pytest.raises(RefusedError, match="shipped its cut 5"):
            known(tmp_path, Standing(cut=4))
    (tmp_path / FILE).write_bytes(b"x" * 1024)
    with pytest.raises(RefusedError, match="is damaged"):
        known(tmp_path, Standing(cut=4))


def test_calls_share_a_write_and_each_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushes.append)

    async def many() -> None:
        high_water = HighWater(tmp_path, ONE)
        await high_water.recognise("berlin", PLACE, Standing())
        async with asyncio.TaskGroup() as group:
            for cut in range(1, 21):
                group.create_task(high_water.shipping(cut, UUID(int=cut)))
            group.create_task(high_water.telling(3, 1, 2, 9))
        await high_water.shipping(20, UUID(int=20))
        await high_water.telling(3, 1, 2, 9)

    asyncio.run(many())
    assert len(flushes) <= 2, "one that was under way, and one for all that came meanwhile"
    with pytest.raises(RefusedError, match="shipped its cut 20"):
        known(tmp_path, Standing(cut=19, term=3, vote=1, last_term=2, last=9))
    with pytest.raises(RefusedError, match="ended at 9"):
        known(tmp_path, Standing(cut=20, cut_id=UUID(int=20), term=3, vote=1, last_term=2, last=8))


def test_a_home_that_cannot_be_written_ships_nothing(tmp_path: Path) -> None:
    home = tmp_path / "gone"
    with pytest.raises(HomeFailed, match="cannot be read or written"):
        known(home, Standing())
