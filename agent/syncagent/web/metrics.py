"""Metrics in Prometheus' format: what the services have done, counted here, and what the database says, asked at each scrape.

Invariant: labels are sites of the cluster and kinds of conflicts, never tables, keys or what a stranger sends; a database that
does not answer costs its own values only.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncagent import __version__
from syncagent.core.batch import BatchHeader
from syncagent.core.ports import Merged
from syncagent.errors import TrustError
from syncagent.settings import Settings
from syncagent.storage.commands import Connection
from syncagent.transport.tls import CERTIFICATE, end_of_pem

ROLES = ("follower", "precandidate", "candidate", "leader")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, to say when the agent was started

_OF_PEERS = {
    "behind_rows": ("lag_rows", "Rows of this site that a peer has not applied."),
    "behind_seconds": ("lag_seconds", "Age of the oldest of them."),
    "parked": ("parked_rows", "Rows that break a constraint, and wait: at this site, and at peers."),
    "rtt_seconds": ("rtt_seconds", "A message there and back."),
    "clock_offset_seconds": ("clock_offset_seconds", "How far a peer's clock is ahead of ours."),
    "applied_at_seconds": ("applied_at_seconds", "When a batch of a peer was last merged; Unix time."),
    "equal_at_seconds": ("equal_at_seconds", "When a peer was last found equal to this site; Unix time."),
}
_OF_HERE = {
    "log_bytes": ("log_bytes", "Log of captured statements."),
    "unsettled_rows": ("unsettled_rows", "Rows that some site may not have yet."),
    "kept_cuts": ("kept_cuts", "Cuts that some member has not applied."),
    "kept_bytes": ("kept_bytes", "What is kept until every member has it, the log included."),
}


class Measured:
    """What the services have done. See `core.ports.Observer`."""

    def __init__(self, site: str) -> None:
        self.registry = CollectorRegistry()
        self._site = site
        self.rows = (0, 0)
        """Written here and in a cut; of other sites and applied here."""
        ProcessCollector(registry=self.registry)
        of_peer, here = ("site", "peer"), ("site",)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"syncagent_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(
                f"syncagent_{name}_seconds", text, here, registry=self.registry, buckets=_SECONDS
            )

        self._cut, self._apply = seconds("cut", "Making one cut."), seconds("apply", "Merging one batch.")
        self._cut_rows = counter("cut_rows", "Rows in cuts of this site.", here)
        self._cut_failures = counter(
            "cut_failures", "Cuts that could not be made, and were tried again.", here
        )
        self._sent = counter("sent_batches", "Batches sent to a peer.", of_peer)
        self._sent_bytes = counter("sent_bytes", "Bytes of their rows, before compression.", of_peer)
        self._received = counter("received_batches", "Batches that came from a peer.", of_peer)
        self._received_bytes = counter("received_bytes", "Bytes of their rows, before compression.", of_peer)
        self._rows = counter("applied_rows", "Rows of other sites that were written here.", here)
        self._conflicts = counter("noticed_conflicts", "Conflicts noticed while batches were merged.", here)
        self._refusals = counter(
            "refused_batches", "Batches that could not be merged, and are tried again.", of_peer
        )
        for each in (self._cut, self._apply, self._cut_rows, self._cut_failures, self._rows, self._conflicts):
            each.labels(site)

    def meet(self, peer: str) -> None:
        """What is counted of this peer begins at zero, not with the first that happens: a rate misses that."""
        for each in (
            *(self._sent, self._sent_bytes, self._received, self._received_bytes),
            self._refusals,
        ):
            each.labels(self._site, peer)

    def cut(self, number: int, cut_id: UUID, seconds: float, rows: int) -> None:
        self._cut.labels(self._site).observe(seconds)
        self._cut_rows.labels(self._site).inc(rows)
        self.rows = (self.rows[0] + rows, self.rows[1])

    def cut_failed(self, attempt: int, reason: str) -> None:
        self._cut_failures.labels(self._site).inc()

    def sent(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        self._sent.labels(self._site, peer).inc()
        self._sent_bytes.labels(self._site, peer).inc(batch.size)

    def received(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        self._received.labels(self._site, peer).inc()
        self._received_bytes.labels(self._site, peer).inc(batch.size)

    def applied(self, merged: Merged) -> None:
        self._apply.labels(self._site).observe(merged.seconds)
        self._rows.labels(self._site).inc(merged.rows)
        self.rows = (self.rows[0], self.rows[1] + merged.rows)
        self._conflicts.labels(self._site).inc(merged.conflicts)

    def refused(self, origin: str, batch: int, attempt: int, reason: str) -> None:
        self._refusals.labels(self._site, origin).inc()


def asked(connection: Connection) -> list[dict[str, Any]]:
    """What a scrape asks of the database, in one query: a row for each site, with totals in that of this one."""
    return connection.execute(
        "select s.*, s.rtt_ms / 1000 as rtt_seconds,"
        " extract(epoch from s.applied_at)::float8 as applied_at_seconds, extract(epoch from s.equal_at)::float8 as equal_at_seconds,"
        " case when s.is_self then syncagent._kept_bytes() end as kept_bytes, f.open_buckets, f.sealed_until, c.kinds"
        " from syncagent.status s"
        " left join (select sum(t.open_buckets)::bigint as open_buckets,"
        "  extract(epoch from min(t.sealed_until))::float8 as sealed_until from syncagent.replicated_table t) f on s.is_self"
        " left join (select jsonb_object_agg(k.kind, k.count) as kinds from"
        "  (select kind, count(*) from syncagent.conflict_record group by kind) k) c on s.is_self"
    ).fetchall()


class _Now(Collector):
    """What holds at the moment of one scrape."""

    def __init__(
        self, settings: Settings, rows: list[dict[str, Any]] | None, standing: tuple[str, int] | None
    ) -> None:
        self._settings, self._rows, self._standing = settings, rows, standing
        self._site = settings.name

    def collect(self) -> Iterator[Metric]:
        yield self._gauge("info", "Version of the agent.", ("version",), [((__version__,), 1)])
        yield self._here(
            "database_up", "Whether the site's database answered this scrape.", self._rows is not None
        )
        yield self._here("running", "Whether the agent holds its site.", self._standing is not None)
        if self._standing is not None:
            role, term = self._standing
            yield self._here("raft_term", "Term of the group that agrees on members and schema.", term)
            yield self._gauge(
                "raft_role", "1 for this site's role in it.", ("role",), [((r,), r == role) for r in ROLES]
            )
        if self._rows:
            yield from self._told(self._rows)
        bounds = self._settings.bounds
        yield self._here("kept_limit_bytes", "Past so much kept, who is away lapses.", bounds.kept)
        yield self._here("away_limit_seconds", "Past so long a lag, who is away lapses.", bounds.away)
        if (until := _certificate_until(self._settings.home)) is not None:
            yield self._here(
                "certificate_expires_seconds", "When the site's certificate should have been renewed; Unix time.",
                until,
            )  # fmt: skip

    def _told(self, rows: list[dict[str, Any]]) -> Iterator[Metric]:
        peers, me = [row for row in rows if not row["is_self"]], next(row for row in rows if row["is_self"])
        for column, (name, text) in _OF_PEERS.items():
            known = rows if column == "parked" else peers
            values = [((row["name"],), row[column]) for row in known if row[column] is not None]
            yield self._gauge(name, text, ("peer",), values)
        yield self._gauge(
            "linked", "Whether there is a way to a peer.", ("peer",),
            [((row["name"],), row["state"] in ("linked", "relayed", "paused")) for row in peers],
        )  # fmt: skip
        yield self._gauge(
            "held", "Whether batches of a peer wait for something.", ("peer",),
            [((row["name"],), row["waiting"] is not None) for row in peers],
        )  # fmt: skip
        yield self._here("leader_known", "Whether somebody leads.", any(row["leads"] for row in rows))
        for column, (name, text) in _OF_HERE.items():
            yield self._here(name, text, me[column] or 0)
        yield self._here(
            "typed_changes", "Parts of attached tables that were changed by hand here.", len(me["typed"])
        )
        yield self._here(
            "forest_open_buckets", "Buckets of the forest to be computed anew.", me["open_buckets"] or 0
        )
        sealed = [] if me["sealed_until"] is None else [((), me["sealed_until"])]
        yield self._gauge("forest_sealed_until_seconds", "Up to when the forest is sealed, of the table that is last; Unix time.", (), sealed)  # fmt: skip
        kinds = (me["kinds"] or {}).items()
        yield self._gauge("conflicts", "Conflicts that are kept: those of all sites, at every site. Do not add sites up: `max by (kind)`.", ("kind",), [((k,), n) for k, n in kinds])  # fmt: skip

    def _here(self, name: str, text: str, value: float) -> Metric:
        return self._gauge(name, text, (), [((), value)])

    def _gauge(
        self, name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
    ) -> Metric:
        family = GaugeMetricFamily(f"syncagent_{name}", text, labels=("site", *labels))
        for label, value in values:
            family.add_metric((self._site, *label), float(value))
        return family


def _certificate_until(home: Path) -> float | None:
    try:
        return end_of_pem((home / CERTIFICATE).read_text(encoding="ascii", errors="replace")).timestamp()
    except (OSError, TrustError):
        return None  # the handshakes say so


def written(
    measured: Measured,
    settings: Settings,
    rows: list[dict[str, Any]] | None,
    standing: tuple[str, int] | None,
) -> bytes:
    """The page of one scrape. `rows` as of `asked`; None if the database did not answer."""
    for row in rows or ():
        if not row["is_self"]:
            measured.meet(row["name"])
    moment = CollectorRegistry()
    moment.register(_Now(settings, rows, standing))
    return generate_latest(measured.registry) + generate_latest(moment)
