"""Traces: a real collector's endpoint hears of one write from every site that it passes, as one trace."""

import gzip
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from uuid import UUID, uuid4

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.sampling import Decision

from syncagent.core.ports import Merged
from syncagent.embedded import free_port
from syncagent.web import observing, traces
from tests.core.batches import batch
from tests.support.cluster import Cluster, Laboratory, Site
from tests.support.load import share
from tests.support.waiting import until


class Span(NamedTuple):
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    began: int
    ended: int
    service: str
    told: dict[str, str | int]

    @property
    def where(self) -> tuple[str, str | int]:
        """What, and at which site."""
        return self.name, self.told["syncagent.site"]


class Collector:
    """Takes what is sent to it over OTLP/HTTP."""

    def __init__(self) -> None:
        spans: list[Span] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.spans = spans
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def of(self, trace: str) -> list[Span]:
        return [span for span in list(self.spans) if span.trace == trace]


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                links = tuple(link.trace_id.hex() for link in span.links)
                yield Span(
                    *(span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), links),
                    *(span.start_time_unix_nano, span.end_time_unix_nano, service, told),
                )


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """One that agents which start now are told of."""
    collector = Collector()
    thread = threading.Thread(target=collector._server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    try:
        yield collector
    finally:
        collector._server.shutdown()
        collector._server.server_close()
        thread.join()


def traced(collector: Collector, cluster: Cluster, origin: Site, rows: int) -> list[Span]:
    """Of a write of so many rows. A few more are tried: if a cut comes in between, it is in the trace of that one at some site."""
    others = {site.name for site in cluster if site is not origin}
    for number in range(rows, rows + 8):
        origin.execute(
            "insert into customer select syncagent.uuid7(), 'traced', %s, null from generate_series(1, %s)",
            (number, number),
        )
        cut = merged(collector, number, others)
        if cut is not None:
            break
    else:
        raise AssertionError(f"no trace has a merge at {others}: {collector.spans}")
    made = "select id from syncagent.cut where number = %s"
    assert origin.execute(made, (cut.told["syncagent.batch"],)) == [(UUID(cut.trace),)]
    found = collector.of(cut.trace)
    assert {s.parent for s in found} == {"", cut.id}
    assert {s.told["syncagent.rows"] for s in found if s.name != "wait"} == {number}
    return found


def merged(collector: Collector, rows: int, others: set[str]) -> Span | None:
    """The cut of so many rows, whose trace has a merge at all of these, and who sent what each of them has received."""

    def cut() -> Span | None:
        cuts = [s for s in list(collector.spans) if s.name == "cut" and s.told["syncagent.rows"] == rows]
        return cuts[0] if cuts else None

    def complete() -> bool:
        spans = collector.of(one.trace) if (one := cut()) else []
        links = {
            name: {(s.told["syncagent.site"], s.told["syncagent.peer"]) for s in spans if s.name == name}
            for name in ("send", "receive")
        }
        merges = {s.told["syncagent.site"] for s in spans if s.name == "merge"}
        return merges == others and {(peer, site) for site, peer in links["receive"]} <= links["send"]

    try:
        until(complete, "its trace is complete", 5.0)
    except AssertionError:
        return None
    return cut()


def test_one_write_is_one_trace_with_a_merge_at_each_site_also_through_a_relay(
    laboratory: Laboratory, collector: Collector
) -> None:
    with laboratory.cluster(18, 18, 18) as cluster:
        a, b, c = cluster
        cluster.start()
        share(a)
        cluster.exchange()

        direct = traced(collector, cluster, a, 100)
        peers = {(span.where, span.told.get("syncagent.peer")) for span in direct if span.name != "wait"}
        assert peers == {
            (("cut", a.name), None),
            *((("send", a.name), other.name) for other in (b, c)),
            *(((what, other.name), a.name) for other in (b, c) for what in ("receive", "merge")),
        }
        for span in direct:
            assert span.service == "syncagent"
            assert span.began <= span.ended <= time.time_ns()
            assert "customer" not in str(span)
        assert all(s.told["syncagent.bytes"] for s in direct if s.name in ("send", "receive"))

        cluster.cut_off(a, b)
        until(lambda: a.peer(b)["via"] == c.node and b.peer(a)["via"] == c.node, "they ask each other at c")
        relayed = traced(collector, cluster, a, 200)
        peers = {(span.where, span.told.get("syncagent.peer")) for span in relayed}
        assert {
            (("send", a.name), c.name),
            (("receive", c.name), a.name),
            (("send", c.name), b.name),
            (("receive", b.name), c.name),
            (("merge", b.name), a.name),
        } <= peers
        assert (("send", a.name), b.name) not in peers
        assert {span.told["syncagent.origin_node"] for span in relayed if span.name != "cut"} == {a.node}


# ---- without sites


def test_nothing_is_imported_or_said_without_a_collector() -> None:
    program = (
        "import sys; from syncagent.cli import app, run; from syncagent.web import observing;"
        "assert observing.traces('berlin', {'OTEL_TRACES_EXPORTER': 'otlp'}) is None;"
        "found = {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:1'};"
        "assert observing.traces('berlin', found | {'OTEL_SDK_DISABLED': 'true'}) is None;"
        "assert observing.traces('berlin', found | {'OTEL_TRACES_EXPORTER': 'none'}) is None;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_cannot_be_done_is_told_and_the_agent_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with structlog.testing.capture_logs() as lines:
        assert observing.traces("berlin", found | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
        assert observing.traces("berlin", found | {"OTEL_TRACES_EXPORTER": "jaeger"}) is None
        monkeypatch.delitem(sys.modules, "syncagent.web.traces")
        monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
        assert observing.traces("berlin", found) is None
    assert {(line["event"], line["site"]) for line in lines} == {("no traces", "berlin")}
    told = ("http/protobuf", "otlp", "syncagent[traces]")
    assert all(word in line["reason"] for word, line in zip(told, lines, strict=True))


def test_a_collector_that_is_away_costs_spans_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}/?key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization secret")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setattr(traces, "_LAST_WORDS", 0.1)
    with structlog.testing.capture_logs() as lines:
        writing = traces.Traces("berlin", {})
        began = time.monotonic()
        for number in range(5000):
            writing.cut(number, uuid4(), 0.001, 1)
        assert time.monotonic() - began < 5
        until(lambda: any("while exporting" in line["reason"] for line in lines), "it is told")
        writing.stop()
        assert time.monotonic() - began < 8
    assert {line["event"] for line in lines} == {"trouble with traces"}
    assert len(lines) < 10
    assert any("Header format invalid" in line["reason"] for line in lines)
    assert "secret" not in str(lines)


def test_a_share_of_the_traces_is_the_same_at_every_site() -> None:
    ids = [uuid4() for _ in range(2000)]

    def drawn(name: str) -> set[UUID]:
        sampler = traces.Sampled(0.25)
        return {i for i in ids if sampler.should_sample(None, i.int, name).decision != Decision.DROP}

    assert 400 < len(drawn("cut")) < 600
    assert drawn("cut") == drawn("merge")
    for said, expected in (
        ({}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, 0.1),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "much"}, 1.0),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, 1.0),
    ):
        assert observing.share(said) == expected


def test_a_batch_of_several_cuts_has_them_as_links_and_its_wait_says_what_for(collector: Collector) -> None:
    """The trace is that of the last cut, though that one is empty; what was there before is found by its link."""
    writing = traces.Traces("berlin", {})
    header = batch(1, 0, 3)
    first, last = uuid4(), header.upto_id
    for number, cut_id, rows in ((1, first, 4), (2, uuid4(), 0), (3, last, 0)):
        writing.cut(number, cut_id, 0.001, rows)
    writing.sent("tokyo", header, 0.002)
    writing.received("tokyo", header, 0.002)
    until(lambda: collector.spans, "the first are there")
    writing.applied(Merged((("lima", header),), "waits for cut 7 of node 3", 2, 0.001, 4, 0, 0))
    writing.stop()
    found = {span.name: span for span in collector.of(last.hex)}
    assert set(found) == {"cut", "send", "receive", "wait", "merge"}
    assert found["send"].links == (first.hex,)
    assert found["wait"].told["syncagent.waited_for"] == "waits for cut 7 of node 3"
    assert found["merge"].told["syncagent.attempts"] == 2
    assert found["wait"].ended <= found["merge"].began + 1_000_000
    assert [span.name for span in collector.of(first.hex)] == ["cut"]
