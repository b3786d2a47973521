"""Through whom each origin is asked for that is not near: it has no link, or its clock is ahead.

Invariants: whoever is near is asked itself; a relay stays the one until its link ends, or it has nothing more and
another one has.
"""

from collections.abc import Collection, Mapping

from syncagent.core import frontier, limits


class Routes:
    """`choose` decides, from what linked peers have `told` and from since when an origin is away."""

    def __init__(self) -> None:
        self._relays: dict[int, int] = {}  # by origins that are not near
        self._told: dict[int, dict[int, int]] = {}  # what linked peers have applied
        # By peer and origin: the cut after which its batches are not whole there.
        self._cannot: dict[tuple[int, int], int] = {}
        self._away: dict[int, float] = {}  # since when, as the last choice saw it

    def unlinked(self, node: int) -> None:
        self._told.pop(node, None)
        self._cannot = {way: after for way, after in self._cannot.items() if way[0] != node}

    def told(self, peer: int, have: Mapping[int, int]) -> None:
        """What a linked peer says that it has applied."""
        self._told[peer] = frontier.join(self._told.get(peer, {}), have)

    def unable(self, peer: int, after: Mapping[int, int]) -> None:
        """It was asked for what follows these cuts, and has said that it is not whole there: later it may be, from a later one on."""
        self._cannot |= {(peer, origin): cut for origin, cut in after.items()}

    def choose(
        self, near: Mapping[int, bool], linked: Collection[int], here: Mapping[int, int], now: float
    ) -> None:
        """`near`: every origin, and whether it is; `here`: what is applied, or held and waits for no clock."""
        before, self._relays = self._relays, {}
        for node, is_near in near.items():
            if is_near:
                self._away.pop(node, None)
                continue
            have = here.get(node, 0)
            able = [peer for peer in linked if peer != node and self._cannot.get((peer, node), -1) < have]
            # What comes with the batches of a clock that is ahead waits for it, too.
            able = [peer for peer in able if near[peer]] or able
            if now < self._away.setdefault(node, now) + limits.RELAY_AFTER or not able:
                continue
            best, kept = max(able, key=lambda peer: (self._has(peer, node), -peer)), before.get(node)
            if kept in able and (self._has(kept, node) > have or self._has(best, node) <= have):
                best = kept
            self._relays[node] = best

    def _has(self, peer: int, node: int) -> int:
        return self._told.get(peer, {}).get(node, 0)

    def relay(self, node: int) -> int | None:
        """Whom this origin is asked for at, if not itself."""
        return self._relays.get(node)

    def of(self, peer: int) -> list[int]:
        """The origins that this peer is asked for."""
        return [node for node, relay in self._relays.items() if relay == peer]

    def waits(self, now: float) -> list[float]:
        """Seconds until each origin that is away may be asked for at another."""
        return [since + limits.RELAY_AFTER - now for since in self._away.values()]
