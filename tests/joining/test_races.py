"""What may happen between the pieces of a copy, one thing at a time; and what happens without the rule that is for it."""

from collections.abc import Awaitable, Callable

import pytest

from syncagent.core.copying import Range
from syncagent.embedded import Server
from tests.joining.conftest import MakeJoin
from tests.support.joining import Hook, Joining
from tests.support.lab import Change, Site, exchange, key, ship

TABLES = "create table item (id uuid not null, value int unique, note text); create table pair (a int not null, b text not null, n int)"
KEYS = "alter table item add primary key (id); alter table pair add primary key (a, b)"
REPORT = (
    """update syncagent.replicated set policies = '{"item_value_key": "report"}' where table_name = 'item'"""
)
"""Else one of two rows with one value would yield it."""
JOINER_TABLES = TABLES.replace("int unique", "int")


Race = Callable[[Joining], Awaitable[None]]
Later = Callable[[Joining, Site], Awaitable[None]]


def at(rest: bool, table: str, *statements: str, site: Site) -> Hook:
    """Run statements at the first range that is, or is not, the rest of a table."""
    left = list(statements)

    async def hook(part: Range) -> None:
        if (part.node is None) == rest and part.table.name == table:
            while left:
                await site.do(left.pop(0))

    return hook


async def differences(join: Joining, later: Later) -> list[str]:
    """What is wrong after the copy, once everything was exchanged."""
    await join.conclude()
    joiner = await join.site()
    await later(join, joiner)
    for _ in range(2):
        await exchange(*join.members, joiner)
        for site in (*join.members, joiner):
            await site.store.replica.retry_parked()
    wrong = []
    for name in ("item", "pair"):
        if await joiner.table(name) != await join.donor.table(name):
            wrong.append(f"rows of {name}")
        if await joiner.versions(name) != await join.donor.versions(name):
            wrong.append(f"versions of {name}")
    elsewhere = [kind for member in join.members for kind in await member.conflicts()]
    if set(await joiner.conflicts()) - set(elsewhere):
        wrong.append("conflicts")
    return wrong


# ---- one race each: prepares the join, and leaves hooks behind


async def updated_before_its_first_cut(join: Joining) -> None:
    """The range could hold an insert, the first cut that sees it holds the update, under the same stamp."""
    (donor, _) = join.members
    insert = f"insert into item values ('{key(1)}', 1, 'zzz'), ('{key(2)}', 2, 'aaa')"
    update = "update item set note = case note when 'zzz' then 'aaa' else 'zzz' end"
    join.before = at(False, "item", insert, site=donor)
    join.after = at(False, "item", update, site=donor)


async def an_update_without_its_cut_over_a_row_of_another_site(join: Joining) -> None:
    donor, other = join.members
    await other.do(f"insert into item values ('{key(1)}', 1, 'aaa')")

    async def hook(part: Range) -> None:
        if part.table.name == "item" and part.node is not None:
            await ship(other, donor)
            await donor.do(f"update item set note = 'bbb' where id = '{key(1)}'")

    join.before = hook


async def written_and_overwritten_by_what_was_applied_before_the_cut(join: Joining) -> None:
    """A local write that no cut holds, another site's newer one over it: the frontier covers what replaced it, unless a
    cut was made between."""
    donor, other = join.members
    await donor.do("insert into pair values (1, 'x', 1)")
    await exchange(donor, other)
    await donor.do("update pair set n = 2")
    await other.clock_ahead(1)
    await other.do("update pair set n = 3")
    await ship(other, donor)
    assert await donor.one("select n from pair") == 3


async def deleted_and_written_anew(join: Joining) -> None:
    """A tombstone with the entries, a row with the rows."""
    donor, other = join.members
    await donor.do(f"insert into item values ('{key(1)}', 1, 'old')", "insert into pair values (1, 'x', 1)")
    await exchange(donor, other)
    await donor.do("delete from item", "delete from pair")
    await donor.cut()

    async def hook(part: Range) -> None:
        if part.table.name == "item" and part.node is not None:
            await ship(donor, other)
            await other.do(
                f"insert into item values ('{key(1)}', 1, 'new')", "insert into pair values (1, 'x', 2)"
            )
            await ship(other, donor)

    join.before = hook


async def parked_and_freed(join: Joining) -> None:
    """A row that the donor could not take, and takes between two ranges: no later batch brings it."""
    donor, other = join.members
    await donor.do(REPORT)
    await donor.do(f"insert into item values ('{key(1)}', 1, 'first')")
    await donor.cut()
    await other.do(f"insert into item values ('{key(2)}', 1, 'second')")
    await ship(other, donor)
    assert len(await donor.parked()) == 1
    await donor.do(f"update item set value = 5 where id = '{key(1)}'")
    await donor.cut()

    async def hook(part: Range) -> None:
        if part.table.name == "item" and part.node is not None:
            await donor.store.replica.retry_parked()

    join.before = hook


async def parked(join: Joining) -> None:
    donor, other = join.members
    await donor.do(REPORT)
    await donor.do(f"insert into item values ('{key(1)}', 1, 'first')")
    await donor.cut()
    await other.do(f"insert into item values ('{key(2)}', 1, 'second')")
    await ship(other, donor)
    assert len(await donor.parked()) == 1


async def freed_later(join: Joining, _joiner: Site) -> None:
    await join.donor.do(f"update item set value = 5 where id = '{key(1)}'")


async def the_other_sends_first(join: Joining, joiner: Site) -> None:
    """What it wrote, before it hears of what came of it."""
    await ship(join.members[1], joiner)


async def nothing_more(_join: Joining, _joiner: Site) -> None:
    return


RACES = [
    (parked, freed_later),
    (updated_before_its_first_cut, nothing_more),
    (an_update_without_its_cut_over_a_row_of_another_site, the_other_sends_first),
    (written_and_overwritten_by_what_was_applied_before_the_cut, nothing_more),
    (deleted_and_written_anew, nothing_more),
    (parked_and_freed, nothing_more),
]


@pytest.mark.parametrize(("race", "later"), RACES, ids=[race.__name__ for race, _ in RACES])
async def test_race(
    make_join: MakeJoin, server15: Server, server18: Server, race: Race, later: Later
) -> None:
    assert await _raced(make_join, server15, server18, race, later) == []


async def _raced(
    make_join: MakeJoin, one: Server, other: Server, race: Race, later: Later, *changes: Change
) -> list[str]:
    async with make_join(
        TABLES, KEYS, one, other, other, changes=changes, joiner_tables=JOINER_TABLES
    ) as join:
        await race(join)
        await join.listen()
        await join.copy(workers=1)
        return await differences(join, later)


# ---- rules left out

_COPY = "55_copy.sql"
_UNCUT: Change = (_COPY, "'not exists (select from doubt {alias} where {t_eq_f})'", "'true'")
BROKEN: dict[str, tuple[Race, Later, Change]] = {
    "rows without their cut travel": (updated_before_its_first_cut, nothing_more, _UNCUT),
    "rows without their cut travel, and meet another site's insert": (
        an_update_without_its_cut_over_a_row_of_another_site,
        the_other_sends_first,
        _UNCUT,
    ),
    "no cut is waited for": (
        written_and_overwritten_by_what_was_applied_before_the_cut,
        nothing_more,
        (_COPY, "and pg_visible_in_snapshot(e.xid, p_taken))", "and false)"),
    ),
    "parked rows stay behind": (
        parked,
        freed_later,
        (
            _COPY,
            "where p.relation = {id} and not exists (select from {table} t where {t_eq_p})",
            "where false and p.relation = {id}",
        ),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
async def test_without_a_rule_it_goes_wrong(
    make_join: MakeJoin, server15: Server, server18: Server, rule: str
) -> None:
    assert await _raced(make_join, server15, server18, *BROKEN[rule])
