"""What reconciling would do, before it is done: every range is compared with the donor's, and nothing is changed.

Invariant: only rows of ranges that differ travel.
"""

from dataclasses import dataclass, field

from syncagent.core.copying import At, CopiedTable, CopyPlan, RangeAsked
from syncagent.core.ports import Donor
from syncagent.core.store import Copier, Differing


@dataclass
class TableSurvey:
    """Rows of one table, about: `equal` stay, `lacking` come, `changed` are replaced, `extra` are only here, `own` are
    this site's own writes, which nobody has."""

    table: str
    equal: int = 0
    lacking: int = 0
    changed: int = 0
    extra: int = 0
    own: int = 0
    missing: bool = False


@dataclass
class Survey:
    """`notes`: what else a person should know."""

    tables: list[TableSurvey] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


NOTHING_TOLD = At(0, None, {})


async def survey(donor: Donor, copier: Copier, plan: CopyPlan, told: At) -> list[TableSurvey]:
    """`told`: the last cut of this site that the donor has."""
    return [await _table(donor, copier, plan, table, told) for table in plan.tables]


async def _table(donor: Donor, copier: Copier, plan: CopyPlan, table: CopiedTable, told: At) -> TableSurvey:
    found, own = TableSurvey(str(table.table)), await copier.own(table.table, told)
    if own is None:
        found.missing, found.lacking = True, table.rows
        return found
    found.own = own
    for part in table.ranges:
        if part.node is None:
            continue
        held = await copier.held(part)
        head, spool = await donor.rows(RangeAsked(part, plan.taken, held), _free)
        try:
            differing = Differing() if head.same else await copier.differing(part, head, spool, told)
        finally:
            await spool.close()
        found.lacking += differing.lacking
        found.changed += differing.changed
        found.extra += differing.extra
        found.equal += max(head.rows - differing.lacking - differing.changed, 0)
    return found


async def _free(_size: int) -> None:
    return
