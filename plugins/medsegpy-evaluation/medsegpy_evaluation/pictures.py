"""Overlay pictures: the slice of a scan with most wrong voxels, truth beside prediction."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medsegpy_core.drawing import Color, Upright, class_colors, overlay

if TYPE_CHECKING:
    from medsegpy_evaluation.scoring import ScoreSettings, StructureScores

    Array: TypeAlias = NDArray[Any]

__all__ = ["category_colors", "picture_of"]

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
