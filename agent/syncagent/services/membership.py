"""Who belongs to the cluster: what people and joiners ask of it, and what follows from its answers.

Invariant: links, streams and stability follow the catalog, never the other way round; a site that was
removed stops as soon as its removal does not need it any more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

from msgspec.structs import replace

from syncagent.core import stamp
from syncagent.core.catalog import Catalog, Confirm, Invitation, Invite, Remove, Site
from syncagent.core.membership import Peer
from syncagent.core.ports import Network
from syncagent.core.store import Request
from syncagent.errors import RefusedError, SyncagentError
from syncagent.services.elections import Elections
from syncagent.services.exchange import Exchange
from syncagent.services.lifecycle import Desk

_SECONDS = 10.0
"""The longest wait for the cluster to agree."""
_OUT = 10.0
"""Seconds a removed site goes on at most, so that Raft can let it go."""
_LOOK = 0.2
_CATCH_UP = 10.0
"""Seconds after which a site that joins asks its peers for newer cuts."""


class Departed(RefusedError):
    """This site has left the cluster because it was told to: its agent's work is done."""


class Membership:
    """See the module's docstring. `reach` gives an address of a peer that holds for this site alone."""

    def __init__(
        self,
        desk: Desk,
        elections: Elections,
        exchange: Exchange,
        network: Network,
        reach: Mapping[str, str],
    ) -> None:
        self._desk, self._reach = desk, reach
        self._elections, self._exchange, self._network = elections, exchange, network
        self._me = desk.me
        self._leaving = False
        self._lapsed: tuple[Peer, ...] = ()
        self.arrived = asyncio.Event()
        self.lacking: dict[str, str] = {}
        """What keeps a site that joins from being a member."""
        self.verbs: dict[str, Callable[[Request], Any]] = {
            "invite": self._invite,
            "remove": self._remove,
            "leave": self._leave,
        }

    # ---- what the catalog says, done

    async def follow(self, catalog: Catalog) -> None:
        """Whom to link with, whose streams to ask for, and what of them to take although no clock has come so far."""
        self._desk.inbox.accept(catalog.accepted)
        peers = peers_of(catalog, self._me, self._reach)
        roster = self._desk.roster
        changed = peers != roster.peers
        roster.peers = peers
        for peer in roster.origins:
            self._desk.inbox.meet(peer.node)
        for node in catalog.gone.keys() - {self._me}:
            for spool in self._desk.inbox.removed(node, void=catalog.gone[node].void):
                await spool.close()
            self._exchange.forget(node)
        lapsed = lapsed_of(catalog)
        if changed or lapsed != self._lapsed:
            await self._network.know((*peers, *lapsed), removed_from(catalog))
        self._lapsed = lapsed
        roster.epoch = catalog.epoch  # what is told of it is true: this site knows them
        self._desk.bells.ring()

    async def watch(self) -> None:
        """For ever; raises RefusedError once this site was removed and is not needed any more."""
        while self._me not in self._elections.catalog.gone:
            progress = self._exchange.progress
            self._elections.steady(frozenset(node for node, told in progress.items() if told.steady))
            await asyncio.sleep(_LOOK)
        with suppress(TimeoutError):
            async with asyncio.timeout(_OUT):
                await self._elections.removed.wait()
                await asyncio.sleep(_LOOK)  # whoever asked hears the answer
        if self._elections.catalog.gone[self._me].lapsed is not None:
            raise RefusedError(
                "this site was away for so long that the others keep nothing for it any more",
                hint="`syncagent rejoin` compares its rows with theirs, and sends what was written here",
            )
        raise (Departed if self._leaving else RefusedError)(
            "this site was removed from the cluster",
            hint="its rows stay as they are; `syncagent db uninstall` takes syncagent out of the database,"
            " and with a new --home the database can join again",
        )

    # ---- a site that joins

    async def arrive(self, caught_up: Callable[[float], Awaitable[dict[str, str]]]) -> None:
        """Notice when a site that joins has what was written while it was copied."""
        while not self.is_member and (lacking := await caught_up(_CATCH_UP)):
            self.lacking = lacking
        self.lacking = {}
        self.arrived.set()

    @property
    def is_member(self) -> bool:
        return self._elections.is_member

    async def confirm(self) -> None:
        """This site has everything, its constraints and indexes too."""
        if not self.is_member:
            await self._elections.submit(Confirm(self._me), uuid4(), seconds=_SECONDS)

    # ---- people

    async def _invite(self, request: Request) -> dict[str, Any]:
        given = request.arguments
        invitation = Invitation(
            id=UUID(given["id"]),
            verifier=bytes.fromhex(given["verifier"]),
            expires=self._now() + int(float(given["ttl"]) * 1000),
            learner=bool(given.get("learner")),
            witness=bool(given.get("witness")),
        )
        await self._elections.submit(Invite(invitation, self._now()), uuid4(), seconds=_SECONDS)
        site = self._elections.catalog.sites[self._me]
        return {"expires": invitation.expires, "address": site.address}

    async def _remove(self, request: Request) -> dict[str, Any]:
        site = self._named(str(request.arguments["site"]))
        if site.node == self._me:
            raise RefusedError(
                "this is the site itself", hint="`syncagent leave` takes it out of the cluster"
            )
        if (via := self._exchange.way(site.node)) is not None:
            through = "" if via.peer.node == site.node else f" {via.peer.name} has"
            raise RefusedError(
                f"site {site.name} is alive:{through or ' there is'} a link with it",
                hint=f"run `syncagent leave` at {site.name}; or stop its agent first",
            )
        force = bool(request.arguments.get("force"))
        if force:
            self._refuse_force(site)
        have = self._have(site.node)
        if request.arguments.get("sure") and force:
            await self._elections.take_over(site.node)
        elif request.arguments.get("sure"):
            await self._elections.submit(Remove(site.node), uuid4(), seconds=_SECONDS)
        return {"site": site.name, "node": site.node, "have": have}

    def _refuse_force(self, gone: Site) -> None:
        """Unless nobody can decide, and nobody who is left knows more than this site."""
        elections = self._elections
        if elections.leader:
            raise RefusedError(
                f"the cluster can decide: {elections.catalog.name(elections.leader)} leads it",
                hint=f"`syncagent remove {gone.name}` without --force",
            )
        if elections.is_witness:
            raise RefusedError("this site is a witness and has no rows", hint="do it at a site that has")
        known = self._exchange.epochs()
        newer = [elections.catalog.name(node) for node in known if known[node] > elections.catalog.epoch]
        if newer:
            raise RefusedError(
                f"{newer[0]} knows what was agreed after the last this site has heard of",
                hint=f"do it at {newer[0]}",
            )

    def _named(self, name: str) -> Site:
        catalog = self._elections.catalog
        site = catalog.named(name) or (catalog.sites.get(int(name)) if name.isdecimal() else None)
        site = site or next((one for one in catalog.lapsed if name in (one.name, str(one.node))), None)
        if site is None:
            known = ", ".join(site.name for site in catalog.sites.values())
            raise RefusedError(f"there is no site {name}", hint=f"sites are: {known}")
        return site

    def _have(self, node: int) -> dict[str, int | None]:
        """The last cut of a node that each other member is known to have applied; None: not known."""
        name = self._elections.catalog.name(self._me)
        return {name: self._desk.inbox.frontier.get(node, 0), **self._exchange.have(node)}

    async def _leave(self, request: Request) -> dict[str, Any]:
        """Everything written here is at every other site; then this one goes."""
        seconds = float(request.arguments.get("timeout") or 60.0)
        missing = [] if self._elections.is_witness else await self._shipped(seconds)
        if missing and not request.arguments.get("force"):
            raise RefusedError(
                f"not everything written here has reached {', '.join(missing)}",
                hint="bring them back, wait longer with --timeout, or leave all the same with --force",
            )
        self._leaving = True
        try:
            await self._elections.submit(Remove(self._me), uuid4(), seconds=_SECONDS)
        except SyncagentError:
            self._leaving = False
            raise
        return {"left": True, "missing": missing}

    async def _shipped(self, seconds: float) -> list[str]:
        """Who has not applied all that was committed here before; waits for them."""
        marked, until = uuid4(), self._desk.clock.now() + seconds
        self._exchange.mark(marked)
        while True:
            frontier = self._exchange.marked.get(marked)
            cut = frontier.get(self._me, 0) if frontier else None
            missing = [
                peer.name
                for peer in self._desk.roster.origins
                if cut is None or not self._reached(peer.node, cut)
            ]
            if not missing or self._desk.clock.now() >= until:
                self._exchange.marked.pop(marked, None)
                return missing
            await asyncio.sleep(_LOOK)

    def _reached(self, node: int, cut: int) -> bool:
        progress = self._exchange.progress.get(node)
        return progress is not None and progress.frontier.get(self._me, 0) >= cut

    def _now(self) -> int:
        return int(stamp.to_seconds(self._desk.clock.wall()) * 1000)


def peers_of(catalog: Catalog, me: int, reach: Mapping[str, str]) -> tuple[Peer, ...]:
    """The others, each with the address that this site dials."""
    return tuple(replace(peer, address=reach.get(peer.name, peer.address)) for peer in catalog.peers_of(me))


def removed_from(catalog: Catalog) -> dict[str, str]:
    """Names of those that were sites, by their certificates."""
    return {
        digest: gone.name for gone in catalog.gone.values() if gone.lapsed is None for digest in gone.sha256
    }


def lapsed_of(catalog: Catalog) -> tuple[Peer, ...]:
    """Those that may come back; nobody dials them."""
    return tuple(
        Peer(site.name, site.node, None, site.sha256[0], site.sha256[1:], site.witness, lapsed=True)
        for site in catalog.lapsed
    )
