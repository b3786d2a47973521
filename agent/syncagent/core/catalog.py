"""What the sites have agreed on, and what each agreed command makes of it.

It exists so that every site computes the same catalog from the same entries, and a test can try any order
of them. Raft brings the entries; the catalog never looks at a clock: a command carries the time it needs.

Invariants: a command that comes twice has the effect of one; a node number is given once, for ever; an
invitation admits one site; who is removed stays removed. A refused command changes nothing.

The catalog says who shall be a member; Raft's own membership follows it, one change at a time
(`quorum.next_change`), so that a refused command has never touched the quorum.
"""

from typing import Literal
from uuid import UUID

import msgspec
from msgspec.structs import replace

from syncagent.core import limits
from syncagent.core import schema as schemas
from syncagent.core.attachment import Attachment, Policy
from syncagent.core.batch import Table
from syncagent.core.membership import Peer
from syncagent.core.schema import Schema, SchemaCommand
from syncagent.errors import ProtocolError

State = Literal["joining", "member"]
FingerprintKind = Literal["hash", "sha256"]


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """A site that counts: for stability from its admission on, as a member once it has its copy.

    `sha256`: digests of its certificates, the one in use first, then one that is to replace it. `learner`:
    it never votes. `witness`: it votes and holds no rows. `admitted` is the entry that admitted it; `invitation` the one it used.
    """

    node: int
    name: str
    site: UUID
    incarnation: UUID
    address: str | None
    sha256: tuple[str, ...]
    state: State
    learner: bool = False
    witness: bool = False
    admitted: int = 0
    invitation: UUID | None = None


class Gone(msgspec.Struct, frozen=True):
    """Who was a site once: its number is not given again, its certificates open nothing.

    `lapsed`: the site as it was, if it was only away for too long: its certificate lets it come back under another number.
    `forgotten`: under this one nothing was kept for it any more. `void`: it has taken back what nobody had applied.
    """

    node: int
    name: str
    site: UUID
    sha256: tuple[str, ...]
    removed: int
    lapsed: Site | None = None
    forgotten: bool = False
    void: bool = False


class Invitation(msgspec.Struct, frozen=True):
    """A token that was printed, as far as the cluster needs to know it: `verifier` is a digest of its secret.
    `expires` is in milliseconds since 1970; `used_by` is the site it admitted."""

    id: UUID
    verifier: bytes
    expires: int
    learner: bool = False
    witness: bool = False
    used_by: UUID | None = None


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """Everything agreed. `epoch` is the index of the last entry that changed it; stamps up to `accepted` (hlc) are taken although
    no clock has come so far."""

    cluster: UUID
    epoch: int = 1
    next_node: int
    sites: dict[int, Site]
    gone: dict[int, Gone] = {}
    invitations: dict[UUID, Invitation] = {}
    attached: tuple[Attachment, ...] = ()
    fingerprint: FingerprintKind = "hash"
    accepted: int = 0
    schema: Schema = Schema()

    def peers_of(self, me: int) -> tuple[Peer, ...]:
        return tuple(
            Peer(site.name, site.node, site.address, site.sha256[0], site.sha256[1:], site.witness)
            for site in self.sites.values()
            if site.node != me
        )

    @property
    def lapsed(self) -> tuple[Site, ...]:
        """Sites that were away for too long, and may come back."""
        return tuple(gone.lapsed for gone in self.gone.values() if gone.lapsed is not None)

    def name(self, node: int) -> str:
        """Of whoever has, or had, this number."""
        known: Site | Gone | None = self.sites.get(node) or self.gone.get(node)
        return known.name if known else f"node {node}"

    @property
    def tables(self) -> dict[Table, Attachment]:
        return {attachment.table: attachment for attachment in self.attached}

    @property
    def holders(self) -> dict[int, str]:
        """Sites with rows, by number."""
        return {node: site.name for node, site in self.sites.items() if not site.witness}

    def named(self, name: str) -> Site | None:
        return next((site for site in self.sites.values() if site.name == name), None)


def founded(first: Site, cluster: UUID) -> Catalog:
    """A cluster of one site."""
    return Catalog(cluster=cluster, next_node=first.node + 1, sites={first.node: first})


# ---- commands


class Invite(msgspec.Struct, frozen=True, tag=True):
    """`at`: now, to forget what has expired."""

    invitation: Invitation
    at: int


class Admit(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Whoever showed an invitation's secret becomes a site that joins. `at`: when it was shown."""

    invitation: UUID
    at: int
    name: str
    site: UUID
    incarnation: UUID
    address: str | None
    sha256: str


class Confirm(msgspec.Struct, frozen=True, tag=True):
    """It has its copy, compared: the site is a member."""

    node: int


class Describe(msgspec.Struct, frozen=True, tag=True):
    """A site says where it is dialled, and with which certificates: the one in use first."""

    node: int
    address: str | None
    sha256: tuple[str, ...]


class Return(msgspec.Struct, frozen=True, tag=True):
    """A site comes back under another number, and joins once more. `void`: what it had sent, and nobody has applied, it takes back."""

    node: int
    incarnation: UUID
    void: bool = False


class Remove(msgspec.Struct, frozen=True, tag=True):
    """It has left, or is dead."""

    node: int


class Lapse(msgspec.Struct, frozen=True, tag=True):
    """It was away for so long that nothing is kept for it any more."""

    node: int


class Attach(msgspec.Struct, frozen=True, tag=True):
    """Every site replicates these tables. One that is attached already stays as it is."""

    attachments: tuple[Attachment, ...]


class Detach(msgspec.Struct, frozen=True, tag=True):
    """No site replicates these tables any more."""

    tables: tuple[Table, ...]


class Constrain(msgspec.Struct, frozen=True, tag=True):
    """What is done where rows of two sites break these constraints of a table; of others it stays as it is."""

    table: Table
    policies: tuple[tuple[str, Policy], ...]


class Fingerprint(msgspec.Struct, frozen=True, tag=True):
    """What rows are compared by."""

    kind: FingerprintKind


class Accept(msgspec.Struct, frozen=True, tag=True):
    """Take stamps up to this clock, which ran ahead of all others."""

    clock: int


Command = (
    Invite
    | Admit
    | Return
    | Confirm
    | Describe
    | Remove
    | Lapse
    | Attach
    | Detach
    | Constrain
    | Fingerprint
    | Accept
    | SchemaCommand
)


class Proposal(msgspec.Struct, frozen=True):
    """`id` is how whoever proposed knows its entry again."""

    id: UUID
    command: Command


class Outcome(msgspec.Struct, frozen=True):
    """What a command did: the node it was about, or why it was refused."""

    node: int = 0
    refused: str | None = None
    hint: str | None = None


# ---- what they do


def apply(catalog: Catalog, index: int, command: Command) -> tuple[Catalog, Outcome]:
    """The catalog after the command of entry `index`."""
    after, outcome = _applied(catalog, index, command)
    return (after if after == catalog else replace(after, epoch=index)), outcome


def _applied(catalog: Catalog, index: int, command: Command) -> tuple[Catalog, Outcome]:
    match command:
        case Invite():
            return _invite(catalog, command)
        case Admit():
            return _admit(catalog, index, command)
        case Return():
            return _return(catalog, index, command)
        case Confirm():
            return _change(catalog, command.node, state="member")
        case Describe():
            return _describe(catalog, command)
        case Remove():
            return _remove(catalog, index, command)
        case Lapse():
            return _lapse(catalog, index, command)
        case Constrain() if command.table not in catalog.tables:
            return catalog, Outcome(
                refused=f"the cluster does not replicate {command.table}", hint="attach it first"
            )
        case Attach() | Detach() | Constrain():
            return replace(catalog, attached=_attached(catalog, command)), Outcome()
        case Fingerprint():
            return replace(catalog, fingerprint=command.kind), Outcome()
        case Accept():
            return replace(catalog, accepted=max(catalog.accepted, command.clock)), Outcome()
        case _:
            return _schema(catalog, command)


def _schema(catalog: Catalog, command: SchemaCommand) -> tuple[Catalog, Outcome]:
    joining = [site.name for site in catalog.sites.values() if site.state == "joining"]
    result = schemas.apply(catalog.schema, command, catalog.holders, joining, catalog.attached)
    if result.refused is not None:
        return catalog, Outcome(refused=result.refused, hint=result.hint)
    after = replace(catalog, schema=result.schema)
    if (step := result.released) is not None:
        after = replace(after, attached=schemas.attached_after(step, catalog.attached))
    return after, Outcome()


def _attached(catalog: Catalog, command: Attach | Detach | Constrain) -> tuple[Attachment, ...]:
    match command:
        case Attach():
            given = {attachment.table: attachment for attachment in command.attachments}
            return tuple(sorted((given | catalog.tables).values()))
        case Detach():
            return tuple(known for known in catalog.attached if known.table not in command.tables)
        case Constrain():
            changed = catalog.tables[command.table].under(command.policies)
            return tuple(sorted((catalog.tables | {command.table: changed}).values()))


def _invite(catalog: Catalog, command: Invite) -> tuple[Catalog, Outcome]:
    kept = {known: one for known, one in catalog.invitations.items() if one.expires > command.at}
    kept[command.invitation.id] = command.invitation
    return replace(catalog, invitations=kept), Outcome()


def _admit(catalog: Catalog, index: int, command: Admit) -> tuple[Catalog, Outcome]:
    for site in catalog.sites.values():
        if site.site == command.site and site.invitation == command.invitation:
            return catalog, Outcome(site.node)  # it asked again
    refusal = _refusal(catalog, command)
    if refusal is not None:
        return catalog, refusal
    node = catalog.next_node
    site = Site(
        node=node,
        name=command.name,
        site=command.site,
        incarnation=command.incarnation,
        address=command.address,
        sha256=(command.sha256,),
        state="joining",
        learner=catalog.invitations[command.invitation].learner,
        witness=catalog.invitations[command.invitation].witness,
        admitted=index,
        invitation=command.invitation,
    )
    used = replace(catalog.invitations[command.invitation], used_by=command.site)
    invitations = {**catalog.invitations, used.id: used}
    sites = {**catalog.sites, node: site}
    return replace(catalog, sites=sites, invitations=invitations, next_node=node + 1), Outcome(node)


def _refusal(catalog: Catalog, command: Admit) -> Outcome | None:
    invitation = catalog.invitations.get(command.invitation)
    if invitation is None or invitation.used_by is not None:
        return Outcome(
            refused="this token is not known here, or was used already",
            hint="each token admits one site; get a new one with `syncagent invite` at a member",
        )
    if invitation.expires <= command.at:
        return Outcome(
            refused="this token has expired", hint="get a new one with `syncagent invite` at a member"
        )
    if catalog.named(command.name) or any(site.name == command.name for site in catalog.lapsed):
        return Outcome(
            refused=f"the cluster has a site {command.name} already",
            hint="choose another --name; if that site is gone for good: `syncagent remove` it first",
        )
    if catalog.schema.open is not None:
        return _CHANGING
    if catalog.next_node > limits.MAX_NODE:
        return _NO_NUMBER
    everybody: list[Site | Gone] = [*catalog.sites.values(), *catalog.gone.values()]
    taken = {digest for known in everybody for digest in known.sha256}
    if command.sha256 in taken:
        return Outcome(
            refused="another site has, or had, this certificate",
            hint="a copied home is no new site: join with an empty --home",
        )
    return None


_CHANGING = Outcome(
    refused="a schema change is under way", hint="when it is over: `syncagent schema status` at a member"
)
_NO_NUMBER = Outcome(
    refused=f"all {limits.MAX_NODE} node numbers have been given",
    hint="a cluster that has had so many sites must be set up anew",
)


def _return(catalog: Catalog, index: int, command: Return) -> tuple[Catalog, Outcome]:
    """The old number is gone; the certificate goes with the site."""
    for site in catalog.sites.values():
        if site.incarnation == command.incarnation:
            return catalog, Outcome(site.node)  # it asked again
    if catalog.schema.open is not None:
        return catalog, _CHANGING
    gone = catalog.gone.get(command.node)
    before = gone.lapsed if gone else catalog.sites.get(command.node)
    left, outcome = _remove(catalog, index, Remove(command.node))
    if outcome.refused or before is None:
        return catalog, outcome
    if catalog.next_node > limits.MAX_NODE:
        return catalog, _NO_NUMBER
    node = catalog.next_node
    site = replace(before, node=node, incarnation=command.incarnation, state="joining", admitted=index)
    gone = replace(left.gone[before.node], sha256=(), void=command.void)
    sites, left_behind = {**left.sites, node: site}, {**left.gone, gone.node: gone}
    return replace(left, sites=sites, gone=left_behind, next_node=node + 1), Outcome(node)


def _describe(catalog: Catalog, command: Describe) -> tuple[Catalog, Outcome]:
    for site in catalog.sites.values():
        if site.node != command.node and set(site.sha256) & set(command.sha256):
            return catalog, Outcome(
                command.node, refused=f"site {site.name} has this certificate", hint="each site makes its own"
            )
    return _change(catalog, command.node, address=command.address, sha256=command.sha256)


def _remove(catalog: Catalog, index: int, command: Remove) -> tuple[Catalog, Outcome]:
    site = catalog.sites.get(command.node)
    if site is None and (gone := catalog.gone.get(command.node)) and gone.lapsed:
        return replace(catalog, gone={**catalog.gone, gone.node: replace(gone, lapsed=None)}), Outcome(
            gone.node
        )
    if site is None:
        return catalog, _unknown(catalog, command.node)
    if not any(
        other.state == "member" and not other.learner and not other.witness
        for other in _others(catalog, site.node)
    ):
        return catalog, Outcome(
            site.node,
            refused=f"site {site.name} is the last one that can vote and has rows",
            hint="a cluster of one site ends with `syncagent db uninstall`",
        )
    gone = Gone(site.node, site.name, site.site, site.sha256, index)
    return (
        replace(
            catalog,
            sites={other.node: other for other in _others(catalog, site.node)},
            gone={**catalog.gone, site.node: gone},
        ),
        Outcome(site.node),
    )


def _lapse(catalog: Catalog, index: int, command: Lapse) -> tuple[Catalog, Outcome]:
    site = catalog.sites.get(command.node)
    if site is None and command.node in catalog.gone:
        return catalog, Outcome(command.node)  # two sites have found it at once
    left, outcome = _remove(catalog, index, Remove(command.node))
    if outcome.refused:
        return catalog, outcome
    gone = {**left.gone, command.node: replace(left.gone[command.node], lapsed=site, forgotten=True)}
    return replace(left, gone=gone), outcome


def _others(catalog: Catalog, node: int) -> list[Site]:
    return [site for site in catalog.sites.values() if site.node != node]


def _change(catalog: Catalog, node: int, **values: object) -> tuple[Catalog, Outcome]:
    site = catalog.sites.get(node)
    if site is None:
        return catalog, _unknown(catalog, node)
    return replace(catalog, sites={**catalog.sites, node: replace(site, **values)}), Outcome(node)


def _unknown(catalog: Catalog, node: int) -> Outcome:
    if node in catalog.gone:
        return Outcome(
            node,
            refused=f"site {catalog.name(node)} was removed from the cluster",
            hint="it comes back as a new site: `syncagent invite` at a member, `syncagent join` there",
        )
    return Outcome(node, refused=f"no site has the number {node}", hint="see `syncagent status`")


# ---- as bytes

_encoder = msgspec.msgpack.Encoder()
_catalogs: msgspec.msgpack.Decoder[Catalog] = msgspec.msgpack.Decoder(Catalog)
_proposals: msgspec.msgpack.Decoder[Proposal] = msgspec.msgpack.Decoder(Proposal)


def encode(value: Catalog | Proposal) -> bytes:
    return _encoder.encode(value)


def decode(data: bytes) -> Catalog:
    try:
        return _catalogs.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("a catalog is malformed", detail=str(error), hint=_OLD_AGENT) from error


def decode_proposal(data: bytes) -> Proposal:
    try:
        return _proposals.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            "an entry of the catalog is malformed", detail=str(error), hint=_OLD_AGENT
        ) from error


_OLD_AGENT = "this agent may be older than the others: upgrade it"
