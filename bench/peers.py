"""The same workloads and gauges against other ways to replicate PostgreSQL: on the version for which all of them can be had, each peer
on a pair of servers with the settings that it asks for, in turn with ours on the same.

A peer that is not there, or fails, is a line that says so: the others are measured all the same.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import psycopg

from bench.bucardo import Bucardo
from bench.capture import capture_against
from bench.drain import drain_against
from bench.lab import Lab
from bench.lag import RATE, lag
from bench.londiste import Londiste
from bench.packages import Package, Root
from bench.pair import Pair
from bench.pglogical import Pglogical
from bench.report import Line, missing
from bench.systems import System
from bench.workloads import Workload
from syncagent.embedded import Setting
from syncagent.errors import SyncagentError, UsageError


class Peer(Protocol):
    """How a system that has to be installed is made."""

    name: str
    package: Package
    lingers: str | None
    """A kind of worker that never answers whoever drops a database, who would wait for ever."""

    def __call__(self, root: Root) -> System: ...

    def settings(self, root: Root) -> dict[str, Setting]:
        """What it asks of the servers."""


PEERS: Mapping[str, Peer] = {peer.name: peer for peer in (Pglogical, Bucardo, Londiste)}


def against(
    peers: Mapping[str, Peer],
    drained: Mapping[str, Workload],
    captured: Mapping[str, Workload],
    lab: Lab,
    name: str,
) -> Iterator[Line]:
    for peer in peers.values():
        try:
            root = peer.package.root(lab.peers)
            binaries = root.binaries()
        except UsageError as error:
            yield missing(lab, name, peer.name, error)
            continue
        with Pair.running(binaries, lab.pair.seeds, peer.settings(root)) as pair:
            pair.lingers = peer.lingers
            inner, make = replace(lab, pair=pair), partial(peer, root)
            lab.say(f"{peer.name}: two servers, PostgreSQL {pair.a.binaries.version}")
            for what, workload in drained.items():
                yield _tried(inner, f"drain-{what}", peer, partial(drain_against, make), workload)
            for what, workload in captured.items():
                yield _tried(inner, f"capture-{what}", peer, partial(capture_against, make), workload)
            yield _tried(inner, "lag", peer, lambda lab, name, rate: lag(lab, name, rate, make), RATE)  # noqa: B023  (called at once)


def _tried(lab: Lab, name: str, peer: Peer, measure: Callable[..., Line], what: object) -> Line:
    try:
        return measure(lab, name, what)
    except (SyncagentError, psycopg.Error, TimeoutError) as error:
        lab.say(f"{name} {peer.name}: {error}")
        return missing(lab, name, peer.name, error)
