"""Whose row is right: by stamps, by the majority, or nobody knows."""

from uuid import UUID

from syncagent.core import forest, repair, stamp
from syncagent.core.batch import Table
from syncagent.core.comparison import Content, Difference, Outcome, Scope
from syncagent.core.questions import Standing, standing

TABLE = Table("public", "item")
KEY = stamp.pack(480_000 * forest.WIDTHS["hour"] + 5, 1, 7)
OLD, NEW = stamp.pack(2_000_000_000_000 * 4096, 1, 1), stamp.pack(2_000_000_000_001 * 4096, 2, 2)
MINE, OTHER, THIRD = (1, 1), (2, 2), (3, 3)
A, B, C = 2, 3, 4


def different(
    here: UUID | None = None, there: UUID | None = None, mine: Content = MINE, theirs: Content = OTHER
) -> Difference:
    return Difference(TABLE, KEY, "x", "different", here, there, mine, theirs)


def outcome(*differences: Difference, sealed: int = forest.END, more: bool = False) -> Outcome:
    nowhere: Standing = standing((), {}, True, {})
    scope = Scope((TABLE,), ((sealed, sealed),), whole=False)
    return Outcome(scope, nowhere, nowhere, {}, differences=list(differences), more=more)


def test_each_site_takes_what_it_lacks_and_what_is_newer() -> None:
    lacking, surplus = different(mine=None), different(theirs=None)
    older, newer = different(OLD, NEW), different(NEW, OLD)
    plan = repair.plan([lacking, surplus, older, newer])
    assert (plan.take, plan.theirs, plan.disputed) == ([lacking, older], [surplus, newer], [])


def test_what_nobody_has_newer_is_disputed() -> None:
    disputed = [different(), different(OLD, OLD), different(OLD, None), different(None, OLD)]
    assert repair.plan(disputed) == repair.Plan(disputed=disputed)


def test_more_than_half_of_all_sites_are_right() -> None:
    found = different()
    assert repair.vote([found], {A: outcome(found), B: outcome(found)}, 3).take == {A: [found]}
    assert repair.vote([found], {A: outcome(found), B: outcome()}, 3).here == [found]
    assert repair.vote([found], {A: outcome(found), B: outcome(different(theirs=THIRD))}, 3).open == [found]
    assert repair.vote([found], {A: outcome(found), B: outcome(found)}, 4).open == [found], (
        "half is no majority"
    )
    assert repair.vote([found], {A: outcome(found)}, 2).open == [found]


def test_without_a_majority_a_stamp_decides_that_only_one_has() -> None:
    theirs, mine = different(None, NEW), different(NEW, None)
    verdict = repair.vote([theirs, mine], {A: outcome(theirs)}, 2)
    assert (verdict.stamps, verdict.here, verdict.open) == ([theirs], [mine], [mine])


def test_a_voice_is_about_the_very_row_that_is_disputed() -> None:
    found, later = different(), different(mine=THIRD)
    assert repair.vote([found], {A: outcome(found), B: outcome(later)}, 3).open == [found]
    assert repair.vote([found], {A: outcome(found), B: outcome(sealed=5)}, 3).open == [found], "not compared"
    assert repair.vote([found], {A: outcome(found), B: outcome(more=True)}, 3).open == [found], (
        "not all of it"
    )
    hasty = outcome()
    hasty.unconfirmed = frozenset({(TABLE, KEY)})
    assert repair.vote([found], {A: outcome(found), B: hasty}, 3).open == [found], "it was seen once only"
