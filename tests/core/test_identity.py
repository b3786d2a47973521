"""A database that was set back is told from one that only lost what nobody was told."""

from uuid import UUID

import pytest
from msgspec.structs import replace

from syncagent.core.identity import Place, Standing, gone_back, moved

KNOWN = Standing(cut=7, cut_id=UUID(int=7), term=3, vote=2, last_term=3, last=40)
PLACE = Place(system=1, database=16384, timeline=1)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"cut": 9, "cut_id": UUID(int=9)},
        {"term": 4, "vote": 0},
        {"last": 41},
        {"last_term": 4, "last": 38, "term": 4, "vote": 0},  # a later leader has cut the log short
    ],
)
def test_it_goes_on(change: dict[str, object]) -> None:
    assert gone_back(KNOWN, replace(KNOWN, **change)) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cut": 6, "cut_id": UUID(int=6)}, "shipped its cut 7"),
        ({"cut_id": UUID(int=8)}, "not the one"),  # set back, and then somebody cut there again
        ({"term": 2}, "has been in term 3"),
        ({"vote": 0}, "does not know the site's vote"),
        ({"vote": 1}, "does not know the site's vote"),
        ({"last": 39}, "ended at 40"),
        ({"last_term": 2, "last": 50}, "ended at 40"),
    ],
)
def test_it_was_set_back(change: dict[str, object], why: str) -> None:
    assert why in str(gone_back(KNOWN, replace(KNOWN, **change)))


def test_what_nobody_was_told_may_be_lost() -> None:
    assert gone_back(Standing(), Standing()) is None
    assert gone_back(Standing(term=3), Standing(term=3, vote=1)) is None


def test_it_is_another_database() -> None:
    assert moved(PLACE, replace(PLACE, timeline=2)) is None
    assert "system identifier 5" in str(moved(PLACE, replace(PLACE, system=5)))
    assert "oid 5" in str(moved(PLACE, replace(PLACE, database=5)))
