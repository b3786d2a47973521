"""What is not well, for people: the headline of the console, of what its one query has found.

Invariant: pure; every finding names who it is about and what to type. Nothing found means that all is well.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from syncagent.core import limits

LATE_SECONDS = 60.0
"""A peer that lacks rows for longer is said to lag."""
UNPROVED_SECONDS = 3600.0
"""A table that was attached for longer should have been found equal."""
STALLED_SECONDS = 60.0
"""A site that joins and has taken no rows for longer is looked after."""


class Finding(NamedTuple):
    """`level`: bad, for what does not go on without somebody; warn. `about`: the part of the console that tells why."""

    level: str
    text: str
    why: str | None
    type: str
    about: str


def findings(state: Mapping[str, Any]) -> list[Finding]:
    """The worst first. `state` as of `live.asked`; `member` is whether the cluster counts this site, `joins` are those that join."""
    sites = state["sites"]
    me = next((site for site in sites if site["is_self"]), None)
    if me is None or not state["member"]:
        return [_no_member(None if me is None else me["name"])]
    given = {join["site"]: join["given"] for join in state["joins"]}
    found = [*_of_here(me, sites)]
    for site in sites:
        if site["role"] == "joining":
            found += _of_joiner(site, given.get(site["name"]))
        elif not site["is_self"]:
            found += _of_peer(site)
    found += _of_rows(me, state)
    found += _of_proof(state)
    return sorted(found, key=lambda finding: finding.level != "bad")


def unanswered(reason: str) -> Finding:
    return Finding("bad", "the database does not answer", reason, "syncagent doctor", "sites")


def _of_here(me: Mapping[str, Any], sites: list[Mapping[str, Any]]) -> Iterator[Finding]:
    if me["state"] != "running":
        yield Finding(
            "bad",
            f"the agent of {me['name']} does not hold its database",
            me["trouble"],
            "syncagent doctor",
            "sites",
        )
    elif not any(site["leads"] for site in sites):
        yield Finding(
            "warn",
            "no site leads",
            "members and schema cannot change; rows go on",
            "syncagent status",
            "sites",
        )
    if me["trouble"]:
        yield Finding("bad", f"trouble at {me['name']}", me["trouble"], "syncagent doctor", "sites")
    if me["waiting"]:
        yield Finding("warn", f"{me['name']} waits", me["waiting"], "syncagent status", "sites")


def _no_member(name: str | None) -> Finding:
    return Finding(
        "bad",
        f"{name or 'this site'} is no member",
        "it was removed, or has lapsed: nobody takes what is written here until it is back",
        "syncagent rejoin",
        "sites",
    )


def _of_joiner(site: Mapping[str, Any], given: Mapping[str, Any] | None) -> Iterator[Finding]:
    """While rows are copied it has no link; then its agent runs."""
    if site["state"] == "away" and (given is None or given["idle"] > STALLED_SECONDS):
        yield Finding(
            "warn",
            f"{site['name']} has begun to join, and takes no rows from here",
            "it has another donor, or was interrupted: then the same command goes on",
            f"syncagent join   # at {site['name']}",
            "sites",
        )
    if site["trouble"] and site["state"] != "away":
        yield Finding("bad", f"trouble with {site['name']}", site["trouble"], "syncagent doctor", "sites")


def _of_peer(peer: Mapping[str, Any]) -> Iterator[Finding]:
    name = peer["name"]
    if peer["state"] == "away":
        yield Finding(
            "bad",
            f"{name} is away",
            "no link; it gets what it lacks when it is back",
            f"syncagent run   # at {name}",
            "sites",
        )
    elif peer["state"] == "paused":
        yield Finding("warn", f"{name} is paused", None, f"syncagent resume {name}", "sites")
    if peer["trouble"]:
        yield Finding("bad", f"trouble with {name}", peer["trouble"], "syncagent doctor", "sites")
    if peer["waiting"]:
        yield Finding("warn", f"batches of {name} wait", peer["waiting"], "syncagent status", "sites")
    if peer["state"] != "away" and (peer["behind_seconds"] or 0) > LATE_SECONDS:
        rows = f"{peer['behind_rows']:,} rows since {peer['behind_seconds']:,.0f} s"
        yield Finding("warn", f"{name} lags", rows, "syncagent status --watch", "sites")
    if abs(peer["clock_offset_seconds"] or 0) > limits.CLOCK_OFFSET:
        off = f"{peer['clock_offset_seconds']:+.1f} s against this site"
        yield Finding("warn", f"the clock of {name} is off", off, "syncagent doctor", "sites")


def _of_rows(me: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[Finding]:
    for proof in state["unequal"]:
        yield Finding(
            "bad",
            f"{proof['site']} was found unequal",
            f"compared at {proof['at']}",
            "syncagent repair --dry-run",
            "sites",
        )
    for site in state["sites"]:
        if site["parked"]:
            where = "" if site["is_self"] else f"   # at {site['name']}"
            yield Finding(
                "warn",
                f"{_counted(site['parked'], 'row')} parked at {site['name']}",
                "they break a constraint there, and are tried again",
                f"syncagent parked list{where}",
                "parked" if site["is_self"] else "sites",
            )
    if state["open_conflicts"]:
        yield Finding(
            "warn",
            f"{_counted(state['open_conflicts'], 'conflict')} open at {me['name']}",
            "a row had to yield its value, or two values of one column are kept: somebody has to choose",
            "syncagent conflicts list --open",
            "conflicts",
        )
    for what in me["typed"]:
        text = f"a table was changed by hand at {me['name']}, and nowhere else"
        yield Finding("warn", text, what, "syncagent schema adopt", "schema")
    for change in state["schema_changes"]:
        for site, why in (change["failures"] or {}).items():
            text = f"{site} cannot do its step of {change['name']}"
            yield Finding("bad", text, str(why), "syncagent schema status", "schema")


def _of_proof(state: Mapping[str, Any]) -> Iterator[Finding]:
    """Who was never compared with success since a table was attached."""
    tables = [table["name"] for table in state["tables"]]
    lacking: dict[str, list[str]] = {}
    for one in state["unproved"]:
        for site in one["sites"]:
            lacking.setdefault(site, []).append(one["table"])
    why = "rows differ, or could not be compared since it was attached"
    for site, unproved in lacking.items():
        every = len(unproved) == len(tables)
        what = f"{site} was" if every else f"{_listed(unproved)} {'was' if len(unproved) == 1 else 'were'}"
        where = "" if every else f" with {site}"
        about = "sites" if every else "tables"
        yield Finding("warn", f"{what} never found equal{where}", why, "syncagent verify", about)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)
