"""Pictures of figures, as SVG: bars of ratios, and curves over sizes. Both axes of a curve are logarithmic, and so are ratios.

Pure: numbers in, text out, the same text for the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_COLOURS = ("#3b6fb6", "#c8692b", "#4a8f4a", "#8a5aa8")
_INK, _LINE, _PAPER = "#333333", "#d0d0d0", "#ffffff"
_WIDTH, _LEFT, _RIGHT, _TOP = 720, 220, 40, 44
_ROW, _BAR = 24, 13
_HEIGHT, _CURVE_LEFT, _BOTTOM = 340, 76, 48


class Point(NamedTuple):
    """A figure with its spread."""

    x: float
    y: float
    least: float
    most: float


class Bar(NamedTuple):
    label: str
    value: float
    least: float
    most: float


def bars(title: str, rows: Sequence[Bar], note: str) -> str:
    """One bar a ratio, from 1: to the right is better, to the left is worse."""
    reach = max(2.0, *(max(bar.most, 1 / bar.least) for bar in rows))
    span = _WIDTH - _LEFT - _RIGHT

    def place(value: float) -> float:
        return _LEFT + span * (0.5 + math.log(value) / (2 * math.log(reach)))

    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = [_text(_LEFT, 22, title, size=15)]
    for tick in _ticks(1 / reach, reach):
        parts += [
            _line(place(tick), _TOP, place(tick), height - _BOTTOM, _INK if tick == 1 else _LINE),
            _text(place(tick), height - _BOTTOM + 16, f"{tick:g}", anchor="middle"),
        ]
    for number, bar in enumerate(rows):
        top = _TOP + _ROW * number + (_ROW - _BAR) / 2
        left, right = sorted((place(1), place(bar.value)))
        middle = top + _BAR / 2
        parts += [
            _text(_LEFT - 8, middle + 4, bar.label, anchor="end"),
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" height="{_BAR}" fill="{_COLOURS[bar.value < 1]}"/>',
            _line(place(bar.least), middle, place(bar.most), middle, _INK),
        ]
    parts.append(_text(_LEFT + span / 2, height - 12, note, anchor="middle"))
    return _drawing(height, title, parts)


def curves(title: str, across: str, up: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Lines through points, with their spread."""
    points = [point for some in series.values() for point in some]
    low, high = _around([point.x for point in points])
    least, most = _around([value for point in points for value in (point.least, point.most)])

    def x(value: float) -> float:
        return _CURVE_LEFT + (_WIDTH - _CURVE_LEFT - _RIGHT) * _share(value, low, high)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * _share(value, least, most)

    parts = [_text(_CURVE_LEFT, 22, title, size=15)]
    for tick in sorted({point.x for point in points}):
        parts += [
            _line(x(tick), _TOP, x(tick), _HEIGHT - _BOTTOM, _LINE),
            _text(x(tick), _HEIGHT - _BOTTOM + 16, f"{tick:,g}", anchor="middle"),
        ]
    for tick in _ticks(least, most):
        parts += [
            _line(_CURVE_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), _LINE),
            _text(_CURVE_LEFT - 6, y(tick) + 4, f"{tick:,g}", anchor="end"),
        ]
    for number, (name, some) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in some)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point in some:
            parts += [
                _line(x(point.x), y(point.least), x(point.x), y(point.most), colour),
                f'<circle cx="{x(point.x):.1f}" cy="{y(point.y):.1f}" r="3.5" fill="{colour}"/>',
            ]
        if len(series) > 1:
            parts.append(_text(_CURVE_LEFT + 8, _TOP + 16 * (number + 1), name, colour=colour))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 12, across, anchor="middle"))
    parts.append(_text(_CURVE_LEFT, _TOP - 8, up))
    return _drawing(_HEIGHT, title, parts)


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _around(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: what is shown, with a margin, and half a decade at least."""
    low, high = min(values), max(values)
    if high / low < 3:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(3), middle * math.sqrt(3)
    return low / 1.15, high * 1.15


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between, or 1 alone of many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    found = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
    return [tick for tick in found if low <= tick <= high]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


def _drawing(height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" font-family="sans-serif">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="{_PAPER}"/>\n{body}\n</svg>\n'
    )
