"""Steps of schema changes in any order of sites that are away, fail, take over or hear everything twice."""

import random
from uuid import UUID

import pytest

from syncagent.core import schema as schemas
from syncagent.core.attachment import Attachment
from syncagent.core.batch import Table
from syncagent.core.schema import (
    Abort,
    Advance,
    Approve,
    Change,
    Close,
    Exclude,
    Open,
    Phase,
    Reached,
    Remerged,
    Schema,
    SchemaCommand,
    Step,
)
from syncagent.errors import ProtocolError

MEMBERS = {1: "berlin", 2: "tokyo", 3: "lima"}
ALL = frozenset(MEMBERS)


def step(phase: Phase = "expand", what: str = "add", **how: object) -> Step:
    return Step(phase=phase, what=what, locks="", **how)  # type: ignore[arg-type]


def change(number: int, *steps: Step, auto: bool = True) -> Change:
    return Change(
        id=UUID(int=number),
        name=f"change {number}",
        text="",
        at=0,
        site="berlin",
        role=None,
        path="",
        auto=auto,
        ahead=steps,
    )


def after(schema: Schema, *commands: SchemaCommand) -> Schema:
    for command in commands:
        result = schemas.apply(schema, command, MEMBERS)
        assert result.refused is None, result.refused
        schema = result.schema
    return schema


def refused(schema: Schema, command: SchemaCommand, joining: tuple[str, ...] = ()) -> str:
    result = schemas.apply(schema, command, MEMBERS, joining)
    assert result.schema == schema
    assert result.refused is not None
    assert result.hint
    return result.refused


def all_reached(schema: Schema) -> Schema:
    return after(schema, *(Reached(node, schema.epoch) for node in MEMBERS))


def test_one_change_at_a_time_and_none_while_a_site_joins() -> None:
    schema = after(Schema(), Open(change(1, step())))
    assert "another schema change" in refused(schema, Open(change(2, step())))
    assert after(schema, Open(change(1, step()))) == schema
    assert "is joining" in refused(Schema(), Open(change(1, step())), ("oslo",))


def test_a_step_is_let_go_once_and_by_place() -> None:
    schema = after(Schema(), Open(change(1, step(), step())), Advance(UUID(int=1), 0))
    assert schema.epoch == 1
    assert after(schema, Advance(UUID(int=1), 0), Advance(UUID(int=1), 5), Close(UUID(int=1))) == schema
    assert schemas.due(schema, MEMBERS, ALL) is None
    schema = all_reached(schema)
    assert schemas.due(schema, MEMBERS, ALL) == Advance(UUID(int=1), 1)


def test_who_is_away_is_passed_by_what_adds_and_waited_for_by_what_drops() -> None:
    near = frozenset({1, 2})
    schema = after(
        Schema(), Open(change(1, step(), step(), step("contract", "drop"))), Advance(UUID(int=1), 0)
    )
    schema = after(schema, Reached(1, 1), Reached(2, 1))
    assert schemas.due(schema, MEMBERS, near) == Advance(UUID(int=1), 1)
    schema = after(schema, Advance(UUID(int=1), 1), Reached(1, 2), Reached(2, 2))
    assert schemas.due(schema, MEMBERS, near) is None
    assert list(schemas.waited_for(schema, MEMBERS, near)) == [3]
    excluded = after(schema, Exclude(UUID(int=1), 3))
    assert schemas.due(excluded, MEMBERS, near) == Advance(UUID(int=1), 2)
    assert schemas.due(all_reached(schema), MEMBERS, near) is None, "it may still use what is dropped"
    assert schemas.due(all_reached(schema), MEMBERS, ALL) == Advance(UUID(int=1), 2)


def test_the_old_shape_is_dropped_when_somebody_says_so() -> None:
    schema = after(Schema(), Open(change(1, step("contract", "drop"), auto=False)))
    assert schemas.due(schema, MEMBERS, ALL) is None
    schema = after(schema, Approve(UUID(int=1)))
    assert schemas.due(schema, MEMBERS, ALL) == Advance(UUID(int=1), 0)
    schema = after(schema, Advance(UUID(int=1), 0))
    assert "cannot be taken back" in refused(schema, Abort(UUID(int=1)))
    done = after(all_reached(schema), Close(UUID(int=1)))
    assert done.open is None
    assert "it is done" in refused(done, Abort(UUID(int=1)))


def test_a_site_that_cannot_is_named_and_leaves_it_out_when_it_is_taken_back() -> None:
    schema = after(
        Schema(),
        Open(change(1, step(undo=("drop",)), step(what="fails", undo=("drop too",)))),
        Advance(UUID(int=1), 0),
    )
    schema = after(
        all_reached(schema),
        Advance(UUID(int=1), 1),
        Reached(1, 2),
        Reached(3, 2),
        Reached(2, 1, "it is there"),
    )
    assert schemas.waited_for(schema, MEMBERS, ALL) == {2: "it is there"}
    assert schemas.due(schema, MEMBERS, ALL) is None
    back = after(schema, Abort(UUID(int=1)))
    back = after(back, Reached(2, 1, "it is still there"))
    while (command := schemas.due(back, MEMBERS, ALL)) is not None and back.epoch < 3:
        back = after(back, command, Reached(1, back.epoch + 1), Reached(3, back.epoch + 1))
    assert list(schemas.waited_for(back, MEMBERS, ALL)) == [2], "it has nothing to do but to say so"
    while (command := schemas.due(back, MEMBERS, ALL - {2})) is not None:
        back = after(back, command)
        back = after(back, Reached(1, back.epoch), Reached(3, back.epoch))
    assert back.changes[0].state == "aborted"
    assert [one.statements for one in back.changes[0].track[2:]] == [("drop too",), ("drop",)]
    move = schemas.next_move(back, 1)
    assert move is not None
    assert (move.upto, move.step) == (3, None)
    last = schemas.next_move(back, 3)
    assert last is not None
    assert last.step is not None
    assert last.step.statements == ("drop",)
    nothing = schemas.next_move(back, 0)
    assert nothing is not None
    assert (nothing.upto, nothing.step) == (4, None)


def test_a_failure_is_forgotten_when_the_step_is_done() -> None:
    schema = after(Schema(), Open(change(1, step())), Advance(UUID(int=1), 0), Reached(2, 0, "a lock"))
    assert after(schema, Reached(2, 1)).changes[0].failures == {}
    assert after(schema, Reached(2, 1), Reached(2, 0, "late")).changes[0].failures == {}


def test_attached_tables_follow_the_steps() -> None:
    item, part, new = (Attachment(Table("public", name)) for name in ("item", "part", "new"))
    changed = step(attach=(new,), gone=(part.table,), renamed=((item.table, Table("public", "thing")),))
    assert [str(known.table) for known in schemas.attached_after(changed, (item, part))] == [
        "public.new",
        "public.thing",
    ]
    back = schemas.inverse(step(attach=(new,), renamed=((item.table, Table("public", "thing")),)), 1)
    assert back.gone == (new.table,)
    assert back.renamed == ((Table("public", "thing"), item.table),)


def test_a_strategy_changes_when_what_was_written_before_is_everywhere() -> None:
    item = Table("public", "item")
    whole = step("write-dual", remerges=Remerged(item, "merge", (("n", "counter"),), whole=True))
    switch = step("contract", remerges=Remerged(item, "lww"), delivered=True, strict=True)
    schema = all_reached(after(Schema(), Open(change(1, whole, switch)), Advance(UUID(int=1), 0)))
    assert schemas.is_to_deliver(schema, 1)
    assert set(schemas.waited_for(schema, MEMBERS, ALL)) == {1, 2, 3}
    schema = after(schema, Reached(1, 1, None, True), Reached(2, 1, None, True))
    assert schemas.waited_for(schema, MEMBERS, ALL) == {3: "has written what has not come everywhere yet"}
    assert "must have come to all others" in refused(schema, Exclude(UUID(int=1), 3))
    back = after(schema, Abort(UUID(int=1)))
    assert back.changes[0].ahead[0].remerges == Remerged(item, "merge", (("n", "counter"),))
    schema = after(schema, Reached(3, 1, None, True))
    assert list(schemas.waited_for(schema, MEMBERS, ALL - {2})) == [2], "from columns it waits for everybody"
    assert schemas.due(schema, MEMBERS, ALL) == Advance(UUID(int=1), 1)
    gone = after(schema, Advance(UUID(int=1), 1))
    assert "cannot be taken back" in refused(gone, Abort(UUID(int=1)))
    again = all_reached(after(gone, Reached(1, 2), Reached(2, 2), Reached(3, 2), Close(UUID(int=1))))
    again = all_reached(after(again, Open(change(2, whole, switch)), Advance(UUID(int=2), 0)))
    assert schemas.is_to_deliver(again, 1), "what was said was of the change before"


def test_a_strategy_that_becomes_one_by_column_passes_who_is_away_and_stays() -> None:
    item = Table("public", "item")
    attached = Attachment(item)
    switch = step(remerges=Remerged(item, "merge", (("n", "counter"),)), strict=True)
    schema = after(Schema(), Open(change(1, switch)))
    assert schemas.due(schema, MEMBERS, frozenset({1, 2})) == Advance(UUID(int=1), 0)
    (changed,) = schemas.attached_after(switch, (attached,))
    assert changed.merged == "merge n=counter"
    assert schemas.attached_after(step(remerges=Remerged(item, "lww", whole=True)), (changed,)) == (changed,)
    assert "cannot be taken back" in refused(after(schema, Advance(UUID(int=1), 0)), Abort(UUID(int=1)))
    for known in ((changed,), ()):
        late = schemas.apply(Schema(), Open(change(1, switch)), MEMBERS, (), known)
        assert late.refused is not None, "a site that is behind planned it from a strategy that was"
        assert "in another way by now" in late.refused
    assert schemas.apply(Schema(), Open(change(1, switch)), MEMBERS, (), (attached,)).refused is None


def test_what_is_forgotten_cannot_be_done() -> None:
    schema = Schema()
    for number in range(1, 80):
        schema = after(schema, Open(change(number, step())), Advance(UUID(int=number), 0))
        schema = after(all_reached(schema), Close(UUID(int=number)))
    assert len(schema.changes) < 60
    with pytest.raises(ProtocolError, match="not known any more"):
        schemas.next_move(schema, 0)


def test_the_floor_follows_what_cannot_be_read() -> None:
    one = change(1, step())
    assert schemas.floor_after(schemas.Move(5, step(), one), 0) == 4
    assert schemas.floor_after(schemas.Move(5, step(strict=True), one), 0) == 5
    assert schemas.floor_after(schemas.Move(6, step(), one), 5) == 5
    assert schemas.floor_after(schemas.Move(9, None, one), 5) == 9


def test_any_order_of_events_ends_with_all_sites_at_one_epoch(seed: int) -> None:
    for number in range(seed, seed + 150):
        _play(random.Random(f"schema {number}"))


class _Fleet:
    """Sites that do steps, and a leader whose proposals come late, twice, or after another one's."""

    def __init__(self, rnd: random.Random) -> None:
        self.rnd, self.schema, self.number = rnd, Schema(), 0
        self.at, self.near, self.catching = dict.fromkeys(MEMBERS, 0), set(MEMBERS), set[int]()
        self.pending: list[SchemaCommand] = []

    def work(self) -> None:
        node = self.rnd.choice(list(MEMBERS))
        if node not in self.near:
            return
        if (move := schemas.next_move(self.schema, self.at[node])) is None:
            self.catching.discard(node)
        else:
            self.at[node] = move.upto
            self.pending.append(Reached(node, self.at[node]))

    def shape(self, node: int) -> int:
        """The epoch whose shape a site has: what it leaves out changes nothing."""
        at = self.at[node]
        while (move := schemas.next_move(self.schema, at)) is not None and move.step is None:
            at = move.upto
        return at

    def lead(self) -> None:
        if (command := schemas.due(self.schema, MEMBERS, frozenset(self.near))) is not None:
            self.pending += [command] * self.rnd.choice([1, 1, 2])

    def agree(self) -> None:
        if self.pending:
            self.tell(self.pending.pop(self.rnd.randrange(len(self.pending))))

    def tell(self, command: SchemaCommand) -> None:
        self.schema = schemas.apply(self.schema, command, MEMBERS).schema

    def ask(self) -> None:
        self.number += 1
        steps = [step() for _ in range(self.rnd.randint(1, 3))] + [
            step("contract", "drop")
        ] * self.rnd.randint(0, 1)
        self.tell(Open(change(self.number, *steps)))

    def take_back(self) -> None:
        if self.schema.open is not None:
            self.tell(Abort(self.schema.open.id))

    def come_and_go(self) -> None:
        node = self.rnd.choice(list(MEMBERS))
        self.near ^= {node}
        self.catching |= {node} & self.near

    def rest(self) -> None:
        for _ in range(40):
            for node in MEMBERS:
                while (move := schemas.next_move(self.schema, self.at[node])) is not None:
                    self.at[node] = move.upto
                self.tell(Reached(node, self.at[node]))
            if (command := schemas.due(self.schema, MEMBERS, ALL)) is not None:
                self.tell(command)


def _play(rnd: random.Random) -> None:
    fleet = _Fleet(rnd)
    for _ in range(300):
        (act,) = rnd.choices(
            [fleet.work, fleet.lead, fleet.agree, fleet.ask, fleet.take_back, fleet.come_and_go],
            [30, 30, 20, 5, 2, 5],
        )
        act()
        steady = [fleet.shape(one) for one in fleet.near - fleet.catching]
        assert max(steady, default=0) - min(steady, default=0) <= 1
    fleet.rest()
    assert fleet.schema.open is None
    assert set(fleet.at.values()) == {fleet.schema.epoch}
