"""Pictures for the report: overlays of scans, and charts as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from medsegpy_core.drawing import PALETTE, Color, Upright, class_colors, hex_color, overlay
from medsegpy_core.text import printable

if TYPE_CHECKING:
    from medsegpy_evaluation.scores import StructureScores
    from medsegpy_evaluation.settings import ScoreSettings

    Array: TypeAlias = NDArray[Any]

__all__ = ["Differences", "Point", "category_colors", "difference_chart", "distribution_chart", "html", "picture_of"]


_ROW: Final = 34
_LEFT: Final = 190
_WIDTH: Final = 620
_RIGHT: Final = 30
_MARKED: Final = hex_color(PALETTE[0])
_INTERVAL: Final = hex_color(PALETTE[1])


def html(text: str, lines: bool = False) -> str:
    """Return text as a page shows it: no markup, and characters that cannot be seen as escapes.

    Args:
        text: Any text, for example the name of a scan.
        lines: Keep line breaks.
    """
    return escape(printable(text, lines))


@frozen
class Point:
    """A dot of a distribution.

    Attributes:
        name: What it is called.
        value: Where it lies.
        marked: Whether it is drawn large and in orange.
        link: The id of what it leads to on the page.
    """

    name: str
    value: float
    marked: bool
    link: str


def distribution_chart(rows: Mapping[str, Sequence[Point]], colors: Sequence[Sequence[int]]) -> str:
    """Return an SVG with a row per category: a dot per scan over a box of the quartiles.

    Args:
        rows: The dots by category.
        colors: Of the boxes, as (R, G, B).
    """
    values = [point.value for row in rows.values() for point in row]
    if not values:
        return "<p>No value is defined.</p>"
    x, parts = _frame(values, list(rows))
    for position, (row, color) in enumerate(zip(rows.values(), colors, strict=True)):
        middle = _ROW * position + _ROW / 2
        if row:
            first, median, third = _quartiles([point.value for point in row])
            fill = f"rgb({', '.join(map(str, color))})"
            parts.append(
                f'<rect x="{x(first)}" y="{middle - 9}" width="{max(1, round(x(third) - x(first), 1))}" height="18" '
                f'fill="{fill}" fill-opacity=".45" stroke="#555"/>'
            )
            parts.append(
                f'<line x1="{x(median)}" x2="{x(median)}" y1="{middle - 9}" y2="{middle + 9}" stroke="#222" '
                'stroke-width="2"/>'
            )
        for number, point in enumerate(row):
            dot = _dot(number, x(point.value), middle, f"{point.name}: {point.value:.4g}", marked=point.marked)
            # The table leads there as well: thousands of dots are no stops of the tab key.
            parts.append(f'<a href="#{point.link}" tabindex="-1">{dot}</a>')
    return "".join([*parts, "</svg>"])


@frozen
class Differences:
    """A row of a chart of differences: dots, and an interval around their mean.

    Attributes:
        name: Stands beside it.
        dots: What each dot is called, and where it lies.
        mean: The mean; None: there is none.
        interval: Of the mean; None: there is none.
    """

    name: str
    dots: Sequence[tuple[str, float]]
    mean: float | None
    interval: tuple[float, float] | None


def difference_chart(rows: Sequence[Differences]) -> str:
    """Return an SVG of differences around zero: dots, and over them the interval of their mean."""
    ends = [end for row in rows for end in row.interval or ()]
    values = [*ends, *(value for row in rows for _, value in row.dots)]
    if not values:
        return "<p>No difference is defined.</p>"
    x, parts = _frame([0.0, *values], [row.name for row in rows])
    parts.append(f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="{_ROW * len(rows) + 4}" stroke="#333"/>')
    for position, row in enumerate(rows):
        middle = _ROW * position + _ROW / 2
        for number, (name, value) in enumerate(row.dots):
            parts.append(_dot(number, x(value), middle, f"{name}: {value:.4g}"))
        if row.interval is not None:
            low, high = map(x, row.interval)
            said = f"mean difference {row.mean:.4g}, 95 % interval {row.interval[0]:.4g} to {row.interval[1]:.4g}"
            parts.append(
                f'<line x1="{low}" x2="{high}" y1="{middle}" y2="{middle}" stroke="{_INTERVAL}" stroke-width="5" '
                f'stroke-opacity=".75" stroke-linecap="round"><title>{said}</title></line>'
            )
        if row.mean is not None:
            parts.append(
                f'<circle cx="{x(row.mean)}" cy="{middle}" r="5" fill="#fff" stroke="{_INTERVAL}" stroke-width="2.5">'
                f"<title>mean difference {row.mean:.4g}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def _frame(values: Sequence[float], names: Sequence[str]) -> tuple[Callable[[float], float], list[str]]:
    """Begin an SVG: return where a value lies, and the axis with the names of the rows."""
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * (value - low) / (high - low), 1)

    height = _ROW * len(names) + 26
    parts = [f'<svg role="img" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" width="100%">']
    for tick in ticks:
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="{height - 22}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    for position, name in enumerate(names):
        middle = _ROW * position + _ROW / 2
        parts.append(f'<text x="{_LEFT - 10}" y="{middle + 4}" text-anchor="end">{html(name)}</text>')
    return x, parts


def _dot(number: int, x: float, middle: float, title: str, *, marked: bool = False) -> str:
    # Dots of equal values are laid apart, the same way each time.
    y = middle + ((number * 5) % 13 - 6)
    color, radius = (_MARKED, 4) if marked else ("#333", 2.6)
    return (
        f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{color}" fill-opacity=".65">'
        f"<title>{html(title)}</title></circle>"
    )


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


# Pixels of the longer side of one panel: enough to see, small enough to embed.
_SIDE = 360
_GAP = 4


def category_colors(names: Sequence[str], given: Mapping[str, Any]) -> list[Color]:
    """Return a color per category: that of the metadata where there is one, else one of a palette.

    Args:
        names: The categories.
        given: Colors by name, as (R, G, B) of 0 to 255.
    """
    palette = class_colors(len(names))
    return [class_colors(1, [given.get(name, color)])[0] for name, color in zip(names, palette, strict=True)]


def picture_of(
    truth: Array,
    pred: Array,
    structures: Sequence[StructureScores],
    settings: ScoreSettings,
    image: Array | None,
    colors: Sequence[Color],
    spacing: Sequence[float] | None = None,
    affine: Any = None,
) -> bytes:
    """Draw the slice with most wrong voxels, and where none is wrong, the one with most of the truth.

    Args:
        truth: H x W [x D] x C.
        pred: The same shape; or without C: the number of the channel.
        structures: What was scored, with the wrong voxels of each slice.
        settings: How it was scored.
        image: H x W [x D]; with channels on a last axis, of which the first is drawn; None: black.
        colors: One per category.
        spacing: Millimeters per voxel along each axis; None: pixels are drawn square.
        affine: 4 x 4, voxel index to RAS+ mm: slices are turned upright; None: they are drawn as stored.

    Returns:
        A PNG: truth on the left, prediction on the right.
    """
    from PIL import Image

    if image is not None and image.ndim == truth.ndim:
        image = image[..., 0]
    where, upright = _slice_to_show(truth, structures), Upright.of(affine)
    truth_slice, pred_slice = truth[where], pred[where]
    fits = image is not None and image.shape == truth.shape[:-1]
    gray = _gray(image[where] if fits and image is not None else np.zeros(truth_slice.shape[:2], np.float32))
    panels: list[NDArray[np.uint8]] = []
    for is_truth in (True, False):
        panel = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
        for category, color in enumerate(colors):
            channel = settings.channel(category)
            if is_truth:
                mask = truth_slice[..., channel] == 1  # 255 is unknown
            elif pred_slice.ndim == truth_slice.ndim:
                mask = pred_slice[..., channel] > settings.binarization.thresholds[category]
            else:
                mask = pred_slice == channel
            overlay(panel, mask, color)
        panels.append(np.ascontiguousarray(upright.turn(np.asarray(panel, np.uint8))))
    pixel = (1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1]))
    size = _size(upright.turn(gray).shape, upright.sizes(pixel))
    canvas = Image.new("RGB", (2 * size[0] + _GAP, size[1]), "white")
    filtered = Image.Resampling.NEAREST if max(gray.shape) < _SIDE else Image.Resampling.BOX
    for position, pixels in enumerate(panels):
        scaled = Image.fromarray(pixels).resize(size, filtered)
        canvas.paste(scaled, (position * (size[0] + _GAP), 0))
    buffer = io.BytesIO()
    # A third of the bytes. An octree keeps the colors of small structures, which a median cut gives up.
    canvas.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _slice_to_show(truth: Array, structures: Sequence[StructureScores]) -> tuple[Any, ...]:
    if truth.ndim == 3:
        return ()
    wrong = np.sum([structure.errors for structure in structures if structure.errors], axis=0)
    if not np.any(wrong):
        wrong = np.count_nonzero(truth == 1, axis=(0, 1, 3))
    return (slice(None), slice(None), int(np.argmax(wrong)))


def _gray(image: Array) -> NDArray[np.uint8]:
    """Map the values between the 1st and the 99th percentile to 0 to 255."""
    finite = np.nan_to_num(image.astype(np.float32))
    low, high = np.percentile(finite, (1, 99))
    scaled = (finite - low) * (255 / (high - low) if high > low else 0)
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def _size(shape: Sequence[int], pixel: tuple[float, float]) -> tuple[int, int]:
    """The width and height of a panel, in which millimeters are as long down as across."""
    height, width = shape[0] * pixel[0], shape[1] * pixel[1]
    scale = _SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
