"""What was asked of a benchmark, and what stands beside its figure, as tables show them."""

from collections.abc import Iterator, Mapping
from typing import Any

_RATIOS = {
    ("drain-insert-txn", "native"): 2.5,
    ("drain-insert-txn", "COPY"): 0.6,
    ("drain-update-txn", "native"): 2.5,
    ("drain-hot-rows", "native"): 20,
    ("drain-insert-bulk", "native"): 2,
    ("drain-update-bulk", "native"): 2,
    ("capture-insert-txn", "none"): 0.6,
    ("capture-update-txn", "none"): 0.67,
    ("capture-insert-bulk", "none"): 0.8,
    ("capture-update-bulk", "none"): 0.6,
    ("capture-tps", "none"): 0.85,
    ("bytes-per-row", "native"): 2,
}
_OTHERS = {
    "lag": "p99 25, p50 10 ms",
    "lag-2000": "p99 25, p50 10 ms",
    "rest": "under 1 %",
    "memory": "under 150 MB",
}


def asked(name: str, peer: str | None, limit: float | None) -> str:
    """A number is a ratio, to be reached or passed."""
    if name in _OTHERS:
        return _OTHERS[name] if peer in (None, "native") else ""
    wanted = _RATIOS.get((name, peer or ""), limit)
    return "" if wanted is None else f"{wanted:.2g}"


def beside(env: Mapping[str, Any], ours: float | None, theirs: float | None) -> str:
    """Of processors, and of what a median does not say."""
    return "; ".join(_beside(env, ours, theirs))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _beside(env: Mapping[str, Any], ours: float | None, theirs: float | None) -> Iterator[str]:
    if costs := env.get("cpu_us_per_row"):
        yield (
            " to ".join(_short(sum(parts.values())) for parts in costs.values()) + " us of processors a row"
        )
    if halves := env.get("p50"):
        other = next(value for who, value in halves.items() if who != "syncagent")
        yield f"p50 {_short(halves['syncagent'])} to {_short(other)} ms; agents {_short(env['agents_percent'])} %"
    if native := env.get("native"):
        yield f"native {native['ratio']:.2f}"
    if ours and theirs and (none := env.get("none")):
        yield f"against none {none / ours:.2f}, theirs {none / theirs:.2f}"
    if later := env.get("afterwards", {}).get("syncagent"):
        yield f"{later:.2g} s more afterwards"
    if "server" in env:
        yield f"its server {env['server']:.2g} %"
