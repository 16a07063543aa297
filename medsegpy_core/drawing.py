"""Drawing: the colors of classes, upright slices, overlays, and the panels that `view`, the demo and reports use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import field, frozen

from medsegpy_core.data.categories import channels_of
from medsegpy_core.data.geometry import axis_codes, checked_affine
from medsegpy_core.text import printable
from medsegpy_core.typing import CategoryId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsegpy_core.data.metadata import MetadataView
    from medsegpy_core.typing import Array

__all__ = [
    "PALETTE",
    "Color",
    "Panel",
    "Upright",
    "class_colors",
    "draw",
    "gray_window",
    "hex_color",
    "overlay",
    "shown_classes",
    "spread_slices",
]


Color: TypeAlias = tuple[int, int, int]

# Found by search: the first eight are at least 16 apart in CIEDE2000, also for people without red, green or blue cones
# (Machado, Oliveira and Fernandes, IEEE Trans. Vis. Comput. Graph. 2009); all thirty are at least 15 apart. None is
# gray, because images are. `tests/test_drawing.py` checks this.
PALETTE: Final[tuple[Color, ...]] = (
    (240, 120, 0),
    (20, 80, 255),
    (80, 255, 240),
    (240, 240, 140),
    (180, 160, 255),
    (140, 80, 120),
    (120, 180, 140),
    (200, 20, 40),
    (120, 100, 0),
    (255, 140, 140),
    (20, 120, 100),
    (255, 0, 255),
    (255, 200, 160),
    (40, 160, 255),
    (120, 255, 0),
    (160, 160, 0),
    (120, 220, 255),
    (120, 120, 180),
    (240, 180, 20),
    (60, 120, 0),
    (160, 0, 220),
    (0, 120, 160),
    (0, 180, 180),
    (255, 20, 100),
    (160, 80, 20),
    (0, 180, 0),
    (40, 240, 160),
    (255, 200, 255),
    (240, 120, 180),
    (255, 60, 20),
)
_FILL: Final = 0.35  # opacity of the fill; the outline is opaque


def class_colors(count: int, given: Sequence[Sequence[Any]] | None = None) -> list[Color]:
    """Return a color for each of `count` categories.

    Args:
        count: The number of categories.
        given: The metadata's `category_colors`; used if there is one for each category.

    Returns:
        The given colors, else those of `PALETTE`, repeated after thirty.
    """
    if given is not None and len(given) == count:
        return [(int(red), int(green), int(blue)) for red, green, blue in given]
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def hex_color(color: Color) -> str:
    """Return a color in HTML notation.

    Example:
        >>> hex_color((240, 120, 0))
        '#f07800'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)


def overlay(pixels: NDArray[np.floating[Any]], mask: Array, color: Color) -> None:
    """Fill the area of a mask with a light color and draw its outline, in place.

    Args:
        pixels: H x W x 3, floats of 0 to 255.
        mask: H x W, bool.
        color: The color of fill and outline.
    """
    import numpy as np

    padded: Array = np.pad(mask, 1, mode="edge")
    inner: Array = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask
    pixels[inner] = (1 - _FILL) * pixels[inner] + _FILL * np.array(color)
    pixels[mask & ~inner] = color


@frozen
class Upright:
    """The transformation of a slice with axes H and W into radiological orientation.

    Superior is up; in axial slices anterior is up. The patient's right is on the left; in sagittal slices anterior is.
    Slices are those stored: only their two axes are exchanged and flipped.

    Attributes:
        transposed: Whether W runs down and H across.
        flipped: Whether the slice is then flipped: top to bottom, left to right.
    """

    transposed: bool = False
    flipped: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, affine: Any) -> Upright:
        """Return the transformation for the slices of a scan.

        Args:
            affine: 4 x 4, voxel index (h, w, d) to RAS+ mm; None or an invalid value: slices are shown as stored.
        """
        known = checked_affine(affine)
        if known is None:
            return cls()
        # The axis that is closest to the first of these directions is drawn vertically: S before A before R.
        codes = axis_codes(known)[:2]
        rank = ["SI", "AP", "RL"]
        places = [next(i for i, pair in enumerate(rank) if code in pair) for code in codes]
        transposed = places[0] > places[1]
        down, across = (codes[1], codes[0]) if transposed else codes
        return cls(transposed, (down not in "IP", across not in "LP"))

    def turn(self, plane: Array) -> Array:
        """Return a view of H x W [x ...] in drawn orientation."""
        turned = plane.swapaxes(0, 1) if self.transposed else plane
        down, across = (slice(None, None, -1 if flipped else 1) for flipped in self.flipped)
        return turned[down, across]

    def sizes(self, pixel: tuple[float, float]) -> tuple[float, float]:
        """Return the drawn height and width of a pixel of size dH x dW."""
        return (pixel[1], pixel[0]) if self.transposed else pixel


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
        caption: The text above it.
        pixel: Height and width of a pixel (mm).
        window: The values drawn as black and white.
        upright: The orientation of the slice.
    """

    image: Array = field(eq=False)
    mask: Array | None = field(eq=False)
    caption: str
    pixel: tuple[float, float]
    window: tuple[float, float]
    upright: Upright = Upright()


def gray_window(image: Array, metadata: MetadataView) -> tuple[float, float]:
    """Return the values to draw as black and white: soft tissue for CT, else the 1st and 99th percentile."""
    import numpy as np

    if str(metadata.get("modality", "")).upper() == "CT":
        return _SOFT_TISSUE_HU
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def shown_classes(category_ids: Sequence[CategoryId]) -> list[int]:
    """Return the positions of the categories to draw. Superclasses are left out if they would hide their parts.

    Example:
        >>> shown_classes([0, 3, 4, (3, 4), (1, 2)])
        [0, 1, 2, 4]
    """
    alone = {category_id for category_id in category_ids if isinstance(category_id, int)}
    return [i for i, c in enumerate(category_ids) if isinstance(c, int) or not set(channels_of(c)) <= alone]


def spread_slices(foreground: Array, count: int) -> list[int]:
    """Return `count` slices spread evenly over those with foreground, or over all if there is none.

    Args:
        foreground: For each slice, whether it has foreground.
        count: The number of slices.

    Example:
        >>> import numpy as np
        >>> spread_slices(np.array([0, 1, 1, 1, 1, 1, 0]), 3)
        [1, 3, 5]
    """
    import numpy as np

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
        title: The text above.
        legend: Names and colors.
        note: The text below.
        colors: The color of each channel of the masks; None: those of the legend, in order.

    Returns:
        A `PIL.Image.Image`.
    """
    from PIL import Image, ImageDraw, ImageFont

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
    """Draw one slice, stretched so that a millimeter has the same length in both directions."""
    import numpy as np
    from PIL import Image

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
    """Lay out the legend in lines: x, name and color of each entry."""
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
