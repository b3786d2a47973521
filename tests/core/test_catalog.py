"""The catalog: every site computes the same from the same entries, and a refused command changes nothing."""

import random
from uuid import UUID

import pytest
from msgspec.structs import replace

from syncagent.core import catalog as catalogs
from syncagent.core import limits
from syncagent.core.attachment import Attachment
from syncagent.core.batch import Table
from syncagent.core.catalog import (
    Admit,
    Attach,
    Catalog,
    Command,
    Confirm,
    Constrain,
    Describe,
    Detach,
    Invitation,
    Invite,
    Lapse,
    Outcome,
    Proposal,
    Remove,
    Return,
    Site,
    apply,
)
from syncagent.core.quorum import VOTERS, next_change
from syncagent.core.raft import quorum
from syncagent.core.raft.messages import Membership
from syncagent.errors import ProtocolError

CLUSTER = UUID(int=99)
LATER = 1_000_000


def digest(node: int) -> str:
    return f"{node:064x}"


def first() -> Catalog:
    berlin = Site(
        node=1,
        name="berlin",
        site=UUID(int=1),
        incarnation=UUID(int=101),
        address="berlin:7400",
        sha256=(digest(1),),
        state="member",
    )
    return catalogs.founded(berlin, CLUSTER)


def invite(
    number: int, *, expires: int = LATER, learner: bool = False, witness: bool = False, at: int = 0
) -> Invite:
    return Invite(Invitation(UUID(int=number), b"v", expires, learner, witness), at)


def admit(
    number: int, name: str, *, at: int = 1, sha256: str | None = None, site: int | None = None
) -> Admit:
    return Admit(
        invitation=UUID(int=number),
        at=at,
        name=name,
        site=UUID(int=site or number),
        incarnation=UUID(int=1000 + number),
        address=f"{name}:7400",
        sha256=sha256 or digest(number),
    )


def after(catalog: Catalog, *commands: Command) -> Catalog:
    """All of them accepted."""
    for command in commands:
        catalog, outcome = apply(catalog, catalog.epoch + 1, command)
        assert outcome.refused is None
    return catalog


def refusal(catalog: Catalog, command: Command) -> str:
    """Why it is refused; nothing has changed, and there is a way on."""
    same, outcome = apply(catalog, catalog.epoch + 1, command)
    assert same == catalog
    assert outcome.refused
    assert outcome.hint
    return outcome.refused


def test_a_site_is_admitted_once_per_token_and_becomes_a_member() -> None:
    catalog = after(first(), invite(10), admit(10, "tokyo"))
    tokyo = catalog.sites[2]
    assert (tokyo.name, tokyo.state, tokyo.admitted, catalog.next_node) == ("tokyo", "joining", 3, 3)
    assert "used already" in refusal(catalog, admit(10, "lima", site=11, sha256=digest(11)))
    catalog = after(catalog, Confirm(2))
    assert catalog.sites[2].state == "member"


def test_asking_twice_is_asking_once() -> None:
    catalog = after(first(), invite(10), admit(10, "tokyo"))
    again, outcome = apply(catalog, 50, admit(10, "tokyo"))
    assert (again, outcome) == (catalog, Outcome(2))


def test_a_site_returns_under_another_number() -> None:
    before = after(first(), invite(10), admit(10, "tokyo"), Confirm(2))
    catalog = after(before, Return(2, UUID(int=7)))
    tokyo = catalog.sites[3]
    assert (tokyo.name, tokyo.state, tokyo.site) == ("tokyo", "joining", before.sites[2].site)
    assert tokyo.sha256 == before.sites[2].sha256, "its certificate is still its own"
    assert 2 not in catalog.sites
    assert (catalog.gone[2].sha256, catalog.gone[2].void) == ((), False)
    assert after(before, Return(2, UUID(int=7), void=True)).gone[2].void, "it has taken back what is held"
    again, outcome = apply(catalog, 50, Return(3, UUID(int=7)))
    assert (again, outcome) == (catalog, Outcome(3)), "asking twice is asking once"
    twice = after(after(catalog, Confirm(3)), Return(3, UUID(int=8)))
    assert (sorted(twice.sites), sorted(twice.gone)) == ([1, 4], [2, 3])
    assert "was removed" in refusal(twice, Return(2, UUID(int=9)))


def test_a_site_that_lapses_is_gone_and_may_come_back() -> None:
    before = after(first(), invite(10), admit(10, "tokyo"), Confirm(2))
    catalog = after(before, Lapse(2))
    assert 2 not in catalog.sites
    assert catalog.lapsed == (before.sites[2],)
    assert apply(catalog, 50, Lapse(2)) == (catalog, Outcome(2)), "two sites may find it at once"
    assert "has a site tokyo already" in refusal(after(catalog, invite(11)), admit(11, "tokyo")), (
        "its name is kept"
    )
    back = after(catalog, Return(2, UUID(int=7)))
    assert (back.sites[3].name, back.sites[3].state, back.lapsed) == ("tokyo", "joining", ())
    assert back.sites[3].sha256 == before.sites[2].sha256
    assert back.gone[2].sha256 == ()
    given_up = after(catalog, Remove(2))
    assert given_up.lapsed == ()
    assert "was removed" in refusal(given_up, Return(2, UUID(int=7)))
    assert after(given_up, invite(11), admit(11, "tokyo")).sites[3].name == "tokyo"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (Lapse(1), "is the last one that can vote"),
        (admit(77, "tokyo"), "not known here"),
        (admit(10, "tokyo", at=LATER), "has expired"),
        (admit(10, "berlin"), "has a site berlin already"),
        (admit(10, "tokyo", sha256=digest(1)), "has, or had, this certificate"),
        (Confirm(5), "no site has the number 5"),
        (Remove(1), "is the last one that can vote"),
        (Return(1, UUID(int=9)), "is the last one that can vote"),
        (Describe(5, None, ("x",)), "no site has the number 5"),
    ],
)
def test_what_is_refused(command: Command, why: str) -> None:
    assert why in refusal(after(first(), invite(10)), command)


def test_a_number_is_never_given_again() -> None:
    catalog = after(first(), invite(10), admit(10, "tokyo"), Confirm(2), Remove(2), invite(11))
    assert "was removed" in refusal(catalog, Confirm(2))
    assert "this certificate" in refusal(catalog, admit(11, "tokyo", sha256=digest(10)))
    catalog = after(catalog, admit(11, "tokyo"))
    assert catalog.sites[3].name == "tokyo"
    assert catalog.gone[2].sha256 == (digest(10),)
    assert catalog.name(2) == "tokyo"


def test_numbers_run_out() -> None:
    catalog = replace(after(first(), invite(10)), next_node=limits.MAX_NODE + 1)
    assert "all 65535" in refusal(catalog, admit(10, "tokyo"))


def test_a_certificate_is_replaced_in_two_steps_and_not_by_another_ones() -> None:
    catalog = after(first(), invite(10), admit(10, "tokyo"))
    catalog = after(catalog, Describe(2, "elsewhere:1", (digest(10), digest(20))))
    (peer,) = catalog.peers_of(1)
    assert (peer.address, peer.sha256, peer.also) == ("elsewhere:1", digest(10), (digest(20),))
    assert "site berlin has this certificate" in refusal(catalog, Describe(2, None, (digest(1),)))


def test_expired_invitations_are_forgotten() -> None:
    catalog = after(first(), invite(10, expires=5), invite(11, at=5))
    assert set(catalog.invitations) == {UUID(int=11)}


def test_tables_are_attached_once_and_detached() -> None:
    item, customer = Table("shop", "item"), Table("shop", "customer")
    catalog = after(first(), Attach((Attachment(item, stride=10), Attachment(customer))))
    assert after(catalog, Attach((Attachment(item, derive=True),))) == catalog
    assert set(catalog.tables) == {item, customer}
    assert catalog.tables[item].stride == 10
    assert set(after(catalog, Detach((item, Table("shop", "other")))).tables) == {customer}


def test_what_is_done_about_collisions_is_chosen_for_a_table() -> None:
    item, customer = Table("shop", "item"), Table("shop", "customer")
    catalog = after(first(), Attach((Attachment(item, stride=10), Attachment(customer))))
    changed = after(catalog, Constrain(item, (("item_name_key", "report"),)))
    assert changed.tables[item] == Attachment(item, stride=10, policies=(("item_name_key", "report"),))
    assert changed.tables[customer] == catalog.tables[customer]
    more = after(changed, Constrain(item, (("item_sku_key", "report"), ("item_name_key", "keep-both"))))
    assert more.tables[item].policies == (("item_name_key", "keep-both"), ("item_sku_key", "report"))
    assert "does not replicate" in refusal(catalog, Constrain(Table("shop", "other"), (("x", "report"),)))
    assert catalogs.decode(catalogs.encode(changed)) == changed


def test_bytes() -> None:
    catalog = after(first(), invite(10), admit(10, "tokyo"), invite(11), Remove(2))
    assert catalogs.decode(catalogs.encode(catalog)) == catalog
    proposal = Proposal(UUID(int=5), admit(10, "tokyo"))
    assert catalogs.decode_proposal(catalogs.encode(proposal)) == proposal
    for decode in (catalogs.decode, catalogs.decode_proposal):
        with pytest.raises(ProtocolError, match="malformed"):
            decode(b"\x93nothing")


# ---- Raft's membership


def settled(catalog: Catalog, membership: Membership, steady: frozenset[int]) -> Membership:
    """Where the steps lead."""
    for _ in range(50):
        change = next_change(catalog, membership, 1, steady)
        if change is None:
            return membership
        membership = quorum.changed(membership, change)
        assert 1 in membership.voters
    raise AssertionError("it never comes to rest")


@pytest.mark.parametrize(("sites", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)])
def test_an_odd_number_votes(sites: int, voters: int) -> None:
    catalog = members(sites)
    membership = settled(catalog, Membership((1,)), frozenset(catalog.sites))
    assert len(membership.voters) == voters
    assert sorted(membership.nodes) == sorted(catalog.sites)


def members(sites: int) -> Catalog:
    catalog = first()
    for node in range(2, sites + 1):
        catalog = after(catalog, invite(10 + node), admit(10 + node, f"site{node}"), Confirm(node))
    return catalog


def test_the_only_voter_leaves_when_another_one_votes() -> None:
    catalog = after(members(2), Remove(1))
    steps, membership = [], Membership((1,), (2,))
    while change := next_change(catalog, membership, 1, frozenset({2})):
        steps.append((change.kind, change.node))
        membership = quorum.changed(membership, change)
    assert steps == [("voter", 2), ("remove", 1)]
    assert next_change(catalog, Membership((1,), (2,)), 1, frozenset()) is None


def test_who_is_not_steady_or_a_learner_gets_no_vote() -> None:
    catalog = after(members(3), invite(50, learner=True), admit(50, "shop"), Confirm(4))
    assert settled(catalog, Membership((1,)), frozenset({1, 2})).voters == (1,)
    assert settled(catalog, Membership((1,)), frozenset({1, 2, 4})).voters == (1,)
    assert settled(catalog, Membership((1,)), frozenset({1, 2, 3, 4})).voters == (1, 2, 3)


def test_a_witness_is_the_third_vote_of_two_sites_and_the_first_to_go() -> None:
    two = after(members(2), invite(50, witness=True), admit(50, "witness"), Confirm(3))
    membership = settled(two, Membership((1,)), frozenset({1, 2, 3}))
    assert membership.voters == (1, 2, 3)
    assert [peer.witness for peer in two.peers_of(1)] == [False, True]
    three = after(two, invite(60), admit(60, "lima"), Confirm(4))
    assert settled(three, membership, frozenset(three.sites)).voters == (1, 2, 3), (
        "a vote is not taken for nothing"
    )
    assert settled(three, Membership((1,)), frozenset(three.sites)).voters == (1, 2, 4)
    one = after(two, Remove(2))
    assert settled(one, membership, frozenset(one.sites)).voters == (1,)
    assert "last one that can vote and has rows" in refusal(one, Remove(1))


def test_any_history_comes_to_rest(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        catalog, membership, number = first(), Membership((1,)), 100
        for _ in range(rng.randrange(30)):
            number += 1
            known = sorted(catalog.sites)
            commands: list[Command] = [
                invite(number, learner=rng.random() < 0.2),
                admit(rng.randint(100, number), f"s{rng.randrange(8)}", site=number, sha256=digest(number)),
                Confirm(rng.choice(known)),
                Remove(rng.choice([node for node in known if node != 1] or [2])),
            ]
            catalog, _ = apply(catalog, catalog.epoch + 1, rng.choice(commands))
            steady = frozenset(node for node in catalog.sites if rng.random() < 0.8)
            if change := next_change(catalog, membership, 1, steady):
                membership = quorum.changed(membership, change)
        membership = settled(catalog, membership, frozenset(catalog.sites))
        assert sorted(membership.nodes) == sorted(catalog.sites)
        assert len(membership.voters) % 2 == 1
        assert len(membership.voters) <= VOTERS
