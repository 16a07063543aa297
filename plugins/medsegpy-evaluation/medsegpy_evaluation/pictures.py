"""Overlay pictures: the slice of a scan with most wrong voxels, truth beside prediction."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medsegpy_evaluation.scoring import ScoreSettings, StructureScores

    Array: TypeAlias = NDArray[Any]

__all__ = ["category_colors", "picture_of"]

Color: TypeAlias = tuple[int, int, int]

# Told apart with every common form of colour vision (Okabe and Ito).
_PALETTE: Final[tuple[Color, ...]] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
# Pixels of the longer side of one panel: enough to see, small enough to embed.
_SIDE = 360
_GAP = 4
_OPACITY = 0.35


def category_colors(names: Sequence[str], given: Mapping[str, Any]) -> list[Color]:
    """Return a color per category: that of the metadata where there is one, else one of a palette.

    Args:
        names: The categories.
        given: Colors by name, as (R, G, B) of 0 to 255.
    """
    return [
        tuple(int(v) for v in given[name]) if name in given else _PALETTE[position % len(_PALETTE)]  # type: ignore[misc]
        for position, name in enumerate(names)
    ]


def picture_of(
    truth: Array,
    pred: Array,
    structures: Sequence[StructureScores],
    settings: ScoreSettings,
    image: Array | None,
    colors: Sequence[Color],
) -> bytes:
    """Draw the slice with most wrong voxels, and where none is wrong, the one with most of the truth.

    Args:
        truth: H x W [x D] x C.
        pred: The same shape; or without C: the number of the channel.
        structures: What was scored, with the wrong voxels of each slice.
        settings: How it was scored.
        image: H x W [x D], or None: black.
        colors: One per category.

    Returns:
        A PNG: truth on the left, prediction on the right.
    """
    from PIL import Image

    where = _slice_to_show(truth, structures)
    truth_slice, pred_slice = truth[where], pred[where]
    fits = image is not None and image.shape == truth.shape[:-1]
    gray = _gray(image[where] if fits and image is not None else np.zeros(truth_slice.shape[:2], np.float32))
    panels: list[NDArray[np.uint8]] = []
    for is_truth in (True, False):
        panel = np.repeat(gray[..., None], 3, axis=2).astype(np.float32)
        for category, color in enumerate(colors):
            channel = settings.channel(category)
            if is_truth:
                mask = truth_slice[..., channel] > 0
            elif pred_slice.ndim == truth_slice.ndim:
                mask = pred_slice[..., channel] > settings.binarization.thresholds[category]
            else:
                mask = pred_slice == channel
            _paint(panel, mask, color)
        panels.append(np.asarray(panel, np.uint8))
    size = _size(gray.shape)
    canvas = Image.new("RGB", (2 * size[0] + _GAP, size[1]), "white")
    filtered = Image.Resampling.NEAREST if max(gray.shape) < _SIDE else Image.Resampling.BOX
    for position, pixels in enumerate(panels):
        scaled = Image.fromarray(pixels).resize(size, filtered)
        canvas.paste(scaled, (position * (size[0] + _GAP), 0))
    buffer = io.BytesIO()
    # A palette of 128 colors: a third of the bytes, and no difference that an eye would see.
    canvas.quantize(128).save(buffer, "PNG")
    return buffer.getvalue()


def _slice_to_show(truth: Array, structures: Sequence[StructureScores]) -> tuple[Any, ...]:
    if truth.ndim == 3:
        return ()
    wrong = np.sum([structure.errors for structure in structures], axis=0)
    if not np.any(wrong):
        wrong = np.count_nonzero(truth, axis=(0, 1, 3))
    return (slice(None), slice(None), int(np.argmax(wrong)))


def _gray(image: Array) -> NDArray[np.uint8]:
    """Map the values between the 1st and the 99th percentile to 0 to 255."""
    finite = np.nan_to_num(image.astype(np.float32))
    low, high = np.percentile(finite, (1, 99))
    scaled = (finite - low) * (255 / (high - low) if high > low else 0)
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def _paint(panel: NDArray[np.float32], mask: NDArray[np.bool_], color: Color) -> None:
    """Lay a translucent color over a mask, in place, and draw its outline."""
    inner = np.pad(mask, 1)
    inner = inner[1:-1, 1:-1] & inner[2:, 1:-1] & inner[:-2, 1:-1] & inner[1:-1, 2:] & inner[1:-1, :-2]
    panel[inner] = (1 - _OPACITY) * panel[inner] + _OPACITY * np.array(color, np.float32)
    panel[mask & ~inner] = color


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """The width and height of a panel."""
    scale = _SIDE / max(shape)
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))
