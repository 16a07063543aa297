"""How classes and slices are drawn, wherever that is: in `medsegpy view`, the demo, and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import frozen

from medsegpy_core.geometry import axis_codes, checked_affine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medsegpy_core.typing import Array

__all__ = ["PALETTE", "Color", "Upright", "class_colors", "hex_color", "overlay"]

Color: TypeAlias = tuple[int, int, int]

# Found by search: the first eight are at least 16 apart in CIEDE2000, also for people without red, green or blue cones
# (Machado, Oliveira and Fernandes, IEEE Trans. Vis. Comput. Graph. 2009); all thirty are at least 15 apart. None is
# gray, as images are. `tests/test_drawing.py` measures it.
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
_FILL: Final = 0.35  # opacity of an overlay; its outline is opaque


def class_colors(count: int, given: Sequence[Sequence[Any]] | None = None) -> list[Color]:
    """Return a color for each of `count` categories.

    Args:
        count: How many.
        given: The metadata's `category_colors`; used if there is one for each category.

    Returns:
        The given colors, else those of `PALETTE`, from the start again after thirty.
    """
    if given is not None and len(given) == count:
        return [(int(red), int(green), int(blue)) for red, green, blue in given]
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def hex_color(color: Color) -> str:
    """Return a color as HTML writes it.

    Example:
        >>> hex_color((240, 120, 0))
        '#f07800'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)


def overlay(pixels: NDArray[np.floating[Any]], mask: Array, color: Color) -> None:
    """Lay a light fill over what a mask covers, and draw its outline, in place.

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
    """How a slice of axes H and W is turned to be seen as radiologists see it.

    Superior is up; in axial slices anterior is up. The patient's right is on the left; in sagittal slices anterior is.
    Slices stay those that are stored: only their two axes are exchanged and flipped.

    Attributes:
        transposed: Whether W runs down and H across.
        flipped: Whether the slice is then flipped: top to bottom, left to right.
    """

    transposed: bool = False
    flipped: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, affine: Any) -> Upright:
        """Return how the slices of a scan are turned.

        Args:
            affine: 4 x 4, voxel index (h, w, d) to RAS+ mm; None, or what cannot be one: slices are shown as stored.
        """
        known = checked_affine(affine)
        if known is None:
            return cls()
        # The axis that runs closest to up and down is drawn so: S before A before R.
        codes = axis_codes(known)[:2]
        rank = ["SI", "AP", "RL"]
        places = [next(i for i, pair in enumerate(rank) if code in pair) for code in codes]
        transposed = places[0] > places[1]
        down, across = (codes[1], codes[0]) if transposed else codes
        return cls(transposed, (down not in "IP", across not in "LP"))

    def turn(self, plane: Array) -> Array:
        """Return a view of H x W [x ...] as it is drawn."""
        turned = plane.swapaxes(0, 1) if self.transposed else plane
        down, across = (slice(None, None, -1 if flipped else 1) for flipped in self.flipped)
        return turned[down, across]

    def sizes(self, pixel: tuple[float, float]) -> tuple[float, float]:
        """Return height and width, as drawn, of a pixel of the size dH x dW."""
        return (pixel[1], pixel[0]) if self.transposed else pixel
