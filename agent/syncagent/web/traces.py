"""Batches on their way as traces of OpenTelemetry, for who has a collector: see decision 22.

Invariants: a trace's id is the id of the cut that ends its batch, so sites that have told each other nothing write the same trace; a
collector that is away, or slow, costs spans and never a batch. This module is imported only where traces are asked for.
"""

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar
from uuid import UUID

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from syncagent import __version__
from syncagent.core.batch import BatchHeader
from syncagent.core.ports import Merged
from syncagent.web.observing import share

K = TypeVar("K")
V = TypeVar("V")
_KEPT = 1024
"""Cuts and arrivals that are remembered; who waits for longer has no span of its wait."""
_WAIT = 1_000_000
"""Nanoseconds; less is no wait."""
_LAST_WORDS = 2.0
"""Seconds in which a collector must take what is left when the agent stops."""


class _Cut(NamedTuple):
    """A cut of this site, and when it was made, in nanoseconds."""

    id: UUID
    began: int
    ended: int
    rows: int


def root_of(cut: UUID) -> int:
    """The id of the span of a cut, which every site knows without being told."""
    return int.from_bytes(hashlib.sha256(b"cut" + cut.bytes).digest()[:8]) or 1


def context_of(cut: UUID) -> SpanContext:
    return SpanContext(cut.int, root_of(cut), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class Sampled(Sampler):
    """A share of the traces, the same at every site. By a hash: half of the bits that OpenTelemetry's own would look at are the same in every UUID."""

    def __init__(self, part: float) -> None:
        self._part = part

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        drawn = int.from_bytes(hashlib.sha256(trace_id.to_bytes(16)).digest()[:8]) / 2**64
        return SamplingResult(Decision.RECORD_AND_SAMPLE if drawn < self._part else Decision.DROP, attributes)

    def get_description(self) -> str:
        return f"Sampled({self._part:g})"


class _Ids(RandomIdGenerator):
    """Random ones, but for a root: its ids are those of its cut."""

    root: UUID | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.root is None else self.root.int

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.root is None else root_of(self.root)


class _Trouble(logging.Handler):
    """What OpenTelemetry has to say goes to the agent's log, each thing once until another one comes."""

    def __init__(self, site: str) -> None:
        super().__init__(logging.WARNING)
        self._log, self._last = structlog.get_logger().bind(site=site), ""

    def emit(self, record: logging.LogRecord) -> None:
        kind = str(record.msg)
        if kind != self._last:
            self._last = kind
            # What follows in an address, and a header that is no header, may be a key.
            told = kind if "eader" in kind else re.sub(r"\?\S*", "?…", record.getMessage())
            self._log.warning("trouble with traces", reason=told)


class Traces:
    """An Observer that writes spans. Its methods only put them into a bounded queue, which a thread empties."""

    def __init__(self, site: str, environ: Mapping[str, str]) -> None:
        self._site = site
        self._ids = _Ids()
        self._trouble = _Trouble(site)
        talk = logging.getLogger("opentelemetry")
        talk.addHandler(self._trouble)
        talk.propagate = False
        resource = Resource.create({
            "service.name": "syncagent", "service.version": __version__, "service.instance.id": site,
        }).merge(OTELResourceDetector().detect())  # fmt: skip
        self._provider = TracerProvider(
            sampler=Sampled(share(environ)),
            resource=resource,
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("syncagent", __version__)
        self._cuts: OrderedDict[int, _Cut] = OrderedDict()
        self._arrived: OrderedDict[UUID, int] = OrderedDict()

    def stop(self) -> None:
        """Send what is left, and wait for that a moment at most."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_LAST_WORDS)
        logging.getLogger("opentelemetry").removeHandler(self._trouble)

    # ---- what happens

    def cut(self, number: int, cut_id: UUID, seconds: float, rows: int) -> None:
        ended = time.time_ns()
        cut = _Cut(cut_id, ended - _ns(seconds), ended, rows)
        if rows:
            self._root(number, cut)
        _remember(self._cuts, number, cut)

    def cut_failed(self, attempt: int, reason: str) -> None: ...

    def sent(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        if batch.rows:
            self._ended(
                "send", batch, _ns(seconds), SpanKind.PRODUCER, self._cuts_before(batch),
                peer=peer, rows=batch.rows, bytes=batch.size,
            )  # fmt: skip

    def received(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        if batch.rows:
            _remember(self._arrived, batch.upto_id, time.time_ns())
            self._ended(
                "receive", batch, _ns(seconds), SpanKind.CONSUMER,
                peer=peer, rows=batch.rows, bytes=batch.size,
            )  # fmt: skip

    def applied(self, merged: Merged) -> None:
        batches = [(origin, batch) for origin, batch in merged.batches if batch.rows]
        for origin, batch in batches:
            arrived = self._arrived.pop(batch.upto_id, None)
            took = _ns(merged.seconds)
            waited = time.time_ns() - took - arrived if arrived is not None else 0
            if waited >= _WAIT:
                self._ended(
                    "wait",
                    batch,
                    waited,
                    before=took,
                    peer=origin,
                    waited_for=merged.waited_for or "its turn",
                )
            together = [Link(context_of(other.upto_id)) for _, other in batches if other is not batch]
            self._ended(
                "merge", batch, took, SpanKind.INTERNAL, together,
                peer=origin, attempts=merged.attempts, rows=merged.rows, conflicts=merged.conflicts, parked=merged.parked,
            )  # fmt: skip

    def refused(self, origin: str, batch: int, attempt: int, reason: str) -> None: ...

    # ---- spans

    def _cuts_before(self, batch: BatchHeader) -> list[Link]:
        """Of a batch of this site: it is in the trace of its last cut, whose span there must be, and has the others as links."""
        last = self._cuts.get(batch.upto)
        if last is None or last.id != batch.upto_id:
            return []  # of another site, or before this agent began
        if not last.rows:
            self._root(batch.upto, last)
            self._cuts[batch.upto] = last._replace(rows=batch.rows)
        before = (self._cuts.get(number) for number in range(batch.after + 1, batch.upto))
        return [Link(context_of(cut.id)) for cut in before if cut is not None and cut.rows]

    def _root(self, number: int, cut: _Cut) -> None:
        self._ids.root = cut.id
        try:
            span = self._tracer.start_span(
                "cut", Context(), SpanKind.INTERNAL, self._attributes(number, rows=cut.rows), start_time=cut.began
            )  # fmt: skip
        finally:
            self._ids.root = None
        span.end(cut.ended)

    def _ended(
        self,
        name: str,
        batch: BatchHeader,
        took: int,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        *,
        before: int = 0,
        **attributes: str | int,
    ) -> None:
        """A span that took so many nanoseconds, until so many `before` now."""
        ended = time.time_ns() - before
        parent = set_span_in_context(NonRecordingSpan(context_of(batch.upto_id)), Context())
        told = self._attributes(batch.upto, origin_node=batch.origin, **attributes)
        self._tracer.start_span(name, parent, kind, told, links, ended - took).end(ended)

    def _attributes(self, batch: int, **more: str | int) -> dict[str, str | int]:
        return {
            f"syncagent.{name}": value for name, value in {"site": self._site, "batch": batch, **more}.items()
        }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _remember(where: OrderedDict[K, V], key: K, value: V) -> None:
    where[key] = value
    if len(where) > _KEPT:
        where.popitem(last=False)
