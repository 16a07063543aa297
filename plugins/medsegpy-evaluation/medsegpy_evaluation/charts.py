"""Distributions as SVG, drawn with nothing but strings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from medsegpy_core.drawing import PALETTE, hex_color
from medsegpy_core.text import printable

__all__ = ["distribution_chart", "html"]

_ROW: Final = 34
_LEFT: Final = 190
_WIDTH: Final = 620
_RIGHT: Final = 30
_MARKED: Final = hex_color(PALETTE[0])


def html(text: str, lines: bool = False) -> str:
    """Return text as a page shows it: no markup, and characters that cannot be seen as escapes.

    Args:
        text: Any text, for example the name of a scan.
        lines: Keep line breaks.
    """
    return escape(printable(text, lines))


def distribution_chart(points: Mapping[str, Sequence[tuple[str, float, bool]]]) -> str:
    """Return an SVG with a row per category: a dot per scan over a box of the quartiles.

    Args:
        points: By category: the scan, its value, and whether it is to be marked.
    """
    values = [value for row in points.values() for _, value, _ in row]
    if not values:
        return "<p>No value is defined.</p>"
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * (value - low) / (high - low), 1)

    height = _ROW * len(points) + 26
    parts = [f'<svg role="img" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" width="100%">']
    for tick in ticks:
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="{height - 22}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    for position, (name, row) in enumerate(points.items()):
        middle = _ROW * position + _ROW / 2
        parts.append(f'<text x="{_LEFT - 10}" y="{middle + 4}" text-anchor="end">{html(name)}</text>')
        if row:
            first, median, third = _quartiles([value for _, value, _ in row])
            parts.append(
                f'<rect x="{x(first)}" y="{middle - 9}" width="{max(1, round(x(third) - x(first), 1))}" height="18" '
                'fill="#cfe3f3" stroke="#5b8db8"/>'
            )
            parts.append(
                f'<line x1="{x(median)}" x2="{x(median)}" y1="{middle - 9}" y2="{middle + 9}" stroke="#1c4f7c" '
                'stroke-width="2"/>'
            )
        for number, (scan, value, marked) in enumerate(row):
            # Dots of equal values are laid apart, the same way each time.
            y = middle + ((number * 5) % 13 - 6)
            color, radius = (_MARKED, 4) if marked else ("#333", 2.6)
            parts.append(
                f'<circle cx="{x(value)}" cy="{y}" r="{radius}" fill="{color}" fill-opacity=".65">'
                f"<title>{html(scan)}: {value:.4g}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return at(0.25), at(0.5), at(0.75)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]
