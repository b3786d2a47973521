"""Several sites on one machine, everybody linked with everybody, or all with one: what an agent costs as there are more of them.

Their application writes so many transactions a second over all sites, however many there are; half of the sites' databases are on each of the two
servers. Agents are looked at while it writes, as often as there are runs, for to make the sites takes longer than to look; then every site must
have everything, and be equal.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import mean
from typing import NamedTuple

import psycopg

from bench import orders
from bench.gauges import tree_seconds
from bench.lab import Lab
from bench.ours import Member, begun, ended
from bench.pair import Diverged, Stage
from bench.report import Line, alone, middle
from bench.waiting import until
from bench.workloads import finish, pgbench

_SIZES = (2, 4, 8)
SHAPES = ("mesh", "hub")
_RATE = 500
"""Transactions a second, over all sites: with eight of them two processors are full."""
_CALM_RATE = 2
"""Of each site: with eight of them they are not."""
_SECONDS = 5.0
_CALM_SECONDS = 30.0
_WARM_UP = 3.0
_POLL = 0.02
_GRACE = 120.0


class Fleet(NamedTuple):
    """The sites; the first is the hub, if there is one."""

    stages: Sequence[Stage]
    members: Sequence[Member]

    def connections(self) -> list[psycopg.Connection]:
        return [site for stage in self.stages for site in (stage.a, stage.b)]


class Cost(NamedTuple):
    """Percent of a processor that agents used: the first site's, and the mean of the others'. `reached`: transactions a second;
    `late`: seconds until all had everything; of all looks together."""

    first: float
    others: float
    servers: float
    reached: float
    late: float


def sites(lab: Lab, name: str) -> Iterator[Line]:
    """As many transactions over all sites, however many there are."""
    return _sites(lab, name, _SECONDS, lambda size: _RATE / size)


def calm(lab: Lab, name: str) -> Iterator[Line]:
    """As many transactions at each site, and so few that the machine is not full."""
    return _sites(lab, name, _CALM_SECONDS, lambda size: _CALM_RATE)


def _sites(lab: Lab, name: str, seconds: float, rate: Callable[[int], float]) -> Iterator[Line]:
    """For a mesh and for a hub: what the agent of a site costs for each of its peers, with most of them against with one."""
    look = max(3.0, seconds * min(lab.scale, 1.0))
    for shape in SHAPES:
        seen: dict[int, list[Cost]] = {}
        for size in _SIZES:
            seen[size] = _costs(lab, shape, size, rate(size), look)
            for run, cost in enumerate(seen[size]):
                lab.say(
                    f"{name}-{shape} {run + 1}/{lab.runs} {size} sites: agent {cost.first:.1f} % and {cost.others:.1f} %, equal after {cost.late:.1f} s"
                )
        growth = [
            _linked(shape, most) / (_SIZES[-1] - 1) / (_linked(shape, least) / (_SIZES[0] - 1))
            for most, least in zip(seen[_SIZES[-1]], seen[_SIZES[0]], strict=True)
        ]
        yield alone(
            lab, f"{name}-{shape}", "times a peer", growth, limit=1.0, by_sites={
                size: {"rate": rate(size) * size} | {part: middle([getattr(cost, part) for cost in some]) for part in Cost._fields}
                for size, some in seen.items()
            },
        )  # fmt: skip


def _linked(shape: str, cost: Cost) -> float:
    """What an agent costs that has a link with every other site."""
    return cost.first if shape == "hub" else mean((cost.first, cost.others))


def _costs(lab: Lab, shape: str, size: int, rate: float, seconds: float) -> list[Cost]:
    """One a run, each of so many seconds."""
    with _fleet(lab, shape, size) as fleet, ExitStack() as stack:
        pids = [member.agent.pid for member in fleet.members if member.agent]
        servers = [server.pid for server in (lab.pair.a, lab.pair.b) if server.pid]
        loads = [
            stack.enter_context(
                pgbench(
                    stage,
                    [orders.INSERT, orders.UPDATE],
                    *(f"--time={round(seconds * lab.runs + _WARM_UP + 1)}", f"--rate={rate}"),
                    commit="on",
                    clients=1,
                    site=site,
                )
            )
            for stage in fleet.stages
            for site in (0, 1)
        ]
        time.sleep(_WARM_UP)
        looks = [_used((*pids, *servers), seconds) for _ in range(lab.runs)]
        reached = sum(finish(load) for load in loads)
        ended_at = time.monotonic()
        _await_everything(fleet)
        late = time.monotonic() - ended_at
    many = len(pids)
    return [Cost(used[0], mean(used[1:many]), sum(used[many:]), reached, late) for used in looks]


def _used(pids: Sequence[int], seconds: float) -> list[float]:
    """Percent of a processor that each of these used meanwhile."""
    began, before = time.monotonic(), [tree_seconds(pid) for pid in pids]
    time.sleep(seconds)
    wall, after = time.monotonic() - began, [tree_seconds(pid) for pid in pids]
    return [100 * (now - then) / wall for now, then in zip(after, before, strict=True)]


@contextmanager
def _fleet(lab: Lab, shape: str, size: int) -> Iterator[Fleet]:
    with ExitStack() as stack:
        stages = [stack.enter_context(lab.pair.stage(f"{shape}_{size}")) for _ in range(size // 2)]
        dsns = [dsn for stage in stages for dsn in stage.dsns]
        members = [Member(stages[0].folder / f"s{n}", dsn, f"s{n}") for n, dsn in enumerate(dsns)]
        for member in members:
            stack.callback(member.stop)
        first = members[0]
        first.init()
        first.run()
        first.await_agent()
        for member in members[1:]:
            listen = "none" if shape == "hub" else member.address
            ended(
                begun(
                    member.home,
                    *("join", "--peer", first.address, "--dsn", member.dsn),
                    *("--name", member.name, "--listen", listen),
                    SYNCAGENT_TOKEN=first.verb("invite")["token"],
                )
            )
            member.run()
            member.await_agent()
        first.verb("attach", "orders", "--existing", "keep")
        fleet = Fleet(stages, members)
        _await_everything(fleet)
        yield fleet


def _await_everything(fleet: Fleet) -> None:
    """A last row of every site is at every other, and all are equal. Raises Diverged, SyncagentError."""
    connections = fleet.connections()
    marks = [row[0] for site in connections for row in site.execute(orders.MARK).fetchall()]

    def everywhere() -> bool:
        for member in fleet.members:
            member.check()
        there = "select from orders where id = any(%s)"
        return all(site.execute(there, (marks,)).rowcount == len(marks) for site in connections)

    until(everywhere, "everything at every site", _GRACE, poll=_POLL)
    sums = {tuple(row) for site in connections for row in site.execute(orders.SUM).fetchall()}
    if len(sums) > 1:
        raise Diverged(f"{len(connections)} sites differ", detail=f"counts and sums: {sums}")
