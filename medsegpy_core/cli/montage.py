"""Draw slices with colored overlays, captions and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen
from PIL import Image, ImageDraw, ImageFont

from medsegpy_core.categories import channels_of
from medsegpy_core.drawing import Color, Upright, overlay
from medsegpy_core.text import printable
from medsegpy_core.typing import CategoryId

if TYPE_CHECKING:
    from medsegpy_core.metadata import MetadataView
    from medsegpy_core.typing import Array

__all__ = ["Panel", "draw", "gray_window", "shown_classes", "spread_slices"]

_SOFT_TISSUE_HU: Final = (-160.0, 240.0)
_PANEL: Final = 288  # pixels of a panel's longer side
_MARGIN, _LINE = 8, 20  # pixels
_BACKGROUND, _INK, _FAINT = (18, 18, 18), (240, 240, 240), (165, 165, 165)


@frozen
class Panel:
    """One slice to draw.

    Attributes:
        image: H x W.
        mask: H x W x C, binary, or None: the image alone.
        caption: What is written above it.
        pixel: Height and width of a pixel (mm).
        window: The values that are drawn black and white.
        upright: How the slice is turned.
    """

    image: Array = field(eq=False)
    mask: Array | None = field(eq=False)
    caption: str
    pixel: tuple[float, float]
    window: tuple[float, float]
    upright: Upright = Upright()


def gray_window(image: Array, metadata: MetadataView) -> tuple[float, float]:
    """Return which values are drawn black and white: soft tissue for CT, else the 1st and 99th percentile."""
    if str(metadata.get("modality", "")).upper() == "CT":
        return _SOFT_TISSUE_HU
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def shown_classes(category_ids: Sequence[CategoryId]) -> list[int]:
    """Return the positions of the categories to draw: a superclass would hide its parts, where they are there.

    Example:
        >>> shown_classes([0, 3, 4, (3, 4), (1, 2)])
        [0, 1, 2, 4]
    """
    alone = {category_id for category_id in category_ids if isinstance(category_id, int)}
    return [i for i, c in enumerate(category_ids) if isinstance(c, int) or not set(channels_of(c)) <= alone]


def spread_slices(foreground: Array, count: int) -> list[int]:
    """Return `count` slices spread evenly over those with foreground, or over all where there is none.

    Args:
        foreground: One value for each slice: whether anything is segmented in it.
        count: How many.

    Example:
        >>> spread_slices(np.array([0, 1, 1, 1, 1, 1, 0]), 3)
        [1, 3, 5]
    """
    candidates = np.flatnonzero(foreground)
    if not len(candidates):
        candidates = np.arange(len(foreground))
    positions = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    return [int(candidates[round(position)]) for position in positions]


def draw(
    rows: Sequence[Sequence[Panel]],
    title: str,
    legend: Sequence[tuple[str, Color]],
    note: str = "",
    colors: Sequence[Color] | None = None,
) -> Any:
    """Draw panels in rows.

    Args:
        rows: The panels.
        title: Stands above.
        legend: Names and colors.
        note: Stands below.
        colors: The color of each channel of the masks; None: those of the legend, in order.

    Returns:
        A `PIL.Image.Image`.
    """
    legend = [(printable(name), color) for name, color in legend]
    colors = [color for _, color in legend] if colors is None else colors
    tiles = [[_tile(panel, colors) for panel in row] for row in rows]
    font = ImageFont.load_default(13)
    width = max(sum(tile.width + _MARGIN for tile in row) for row in tiles) + _MARGIN
    legend_lines = _wrap_legend(legend, font, width - 2 * _MARGIN)
    heights = [max(tile.height for tile in row) + _LINE + _MARGIN for row in tiles]
    height = 2 * _MARGIN + _LINE + sum(heights) + _LINE * (len(legend_lines) + bool(note))
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN), printable(title), _INK, ImageFont.load_default(15))
    y = _MARGIN + _LINE + 4
    for row, row_tiles, row_height in zip(rows, tiles, heights, strict=True):
        x = _MARGIN
        for panel, tile in zip(row, row_tiles, strict=True):
            pen.text((x, y), printable(panel.caption), _FAINT, font)
            canvas.paste(tile, (x, y + _LINE - 2))
            x += tile.width + _MARGIN
        y += row_height
    for line in legend_lines:
        for x, name, color in line:
            pen.rectangle((_MARGIN + x, y + 2, _MARGIN + x + 11, y + 13), color)
            pen.text((_MARGIN + x + 17, y), name, _INK, font)
        y += _LINE
    pen.text((_MARGIN, y), note, _FAINT, font)
    return canvas


def _tile(panel: Panel, colors: Sequence[Color]) -> Any:
    """Draw one slice, stretched so that millimetres are as long down as across."""
    image, (dh, dw) = panel.upright.turn(panel.image), panel.upright.sizes(panel.pixel)
    h, w = image.shape
    scale = _PANEL / max(h * dh, w * dw)
    size = (max(1, round(w * dw * scale)), max(1, round(h * dh * scale)))
    low, high = panel.window
    gray = np.nan_to_num((image.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255
    resized = Image.fromarray(gray.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.repeat(np.asarray(resized, np.float64)[..., None], 3, axis=2)
    if panel.mask is not None:
        mask = panel.upright.turn(panel.mask)
        for channel, color in enumerate(colors):
            stored = np.ascontiguousarray(mask[..., channel] == 1)
            if stored.any():
                scaled = Image.fromarray(stored.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
                overlay(pixels, np.asarray(scaled) > 0, color)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _wrap_legend(legend: Sequence[tuple[str, Color]], font: Any, width: int) -> list[list[tuple[int, str, Color]]]:
    """Place the entries in lines: x, name and color of each."""
    lines: list[list[tuple[int, str, Color]]] = [[]] if legend else []
    x = 0
    for name, color in legend:
        needed = 17 + round(font.getlength(name)) + 18
        if lines[-1] and x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((x, name, color))
        x += needed
    return lines
