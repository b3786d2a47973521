"""Several who hear what the agent does; and whether traces are asked for, by OpenTelemetry's own variables.

Invariant: what others have set in the environment never keeps an agent from running: what it cannot do of that, it says and leaves.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from syncagent.core.batch import BatchHeader
from syncagent.core.ports import Merged, Observer

if TYPE_CHECKING:
    from syncagent.web.traces import Traces

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLERS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}


class Both:
    """Two Observers as one."""

    def __init__(self, one: Observer, other: Observer) -> None:
        self._both = (one, other)

    def cut(self, number: int, cut_id: UUID, seconds: float, rows: int) -> None:
        for each in self._both:
            each.cut(number, cut_id, seconds, rows)

    def cut_failed(self, attempt: int, reason: str) -> None:
        for each in self._both:
            each.cut_failed(attempt, reason)

    def sent(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        for each in self._both:
            each.sent(peer, batch, seconds)

    def received(self, peer: str, batch: BatchHeader, seconds: float) -> None:
        for each in self._both:
            each.received(peer, batch, seconds)

    def applied(self, merged: Merged) -> None:
        for each in self._both:
            each.applied(merged)

    def refused(self, origin: str, batch: int, attempt: int, reason: str) -> None:
        for each in self._both:
            each.refused(origin, batch, attempt, reason)


def traces(site: str, environ: Mapping[str, str]) -> "Traces | None":
    """Who writes them; None, and nothing is imported, unless there is a collector to send them to."""
    if not any(environ.get(name) for name in _ENDPOINTS) or _is_off(environ):
        return None
    if (reason := _unable(environ)) is None:
        try:
            from syncagent.web.traces import Traces  # noqa: PLC0415 (it is an extra)

            return Traces(site, environ)
        except ImportError as error:
            reason = f"OpenTelemetry is not there, or another version ({error}); install syncagent[traces]"
        except (ValueError, OSError) as error:
            reason = f"one of OpenTelemetry's variables cannot be used: {error}"
    structlog.get_logger().warning("no traces", site=site, reason=reason)
    return None


def _is_off(environ: Mapping[str, str]) -> bool:
    return (
        environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none"
    )


def _unable(environ: Mapping[str, str]) -> str | None:
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER={exporter}: otlp is what there is"
    protocol = next((environ[name].strip() for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        return f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: http/protobuf is what there is, mostly at port 4318"
    return None


def share(environ: Mapping[str, str]) -> float:
    """Of the traces, how many are written: OTEL_TRACES_SAMPLER and its _ARG. All, if they say nothing that is known here."""
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().removeprefix("parentbased_") or "always_on"
    fixed = _SAMPLERS.get(name, 1.0)
    if fixed is not None:
        return fixed
    try:
        part = float(environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    except ValueError:
        return 1.0
    return part if 0 <= part <= 1 else 1.0
