"""Boundary intersection over union: overlap of what lies close to the surfaces, in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medsegpy_evaluation.surfaces import surface_of

if TYPE_CHECKING:
    Bool: TypeAlias = NDArray[np.bool_]

__all__ = ["boundary_iou", "boundary_region"]

# Planes that are worked on at once, at least: a distance transform takes many times the memory of a mask.
_PLANES = 16


def boundary_iou(pred: Bool, truth: Bool, spacing: Sequence[float], width: float) -> float:
    """Return the intersection over union of the boundary regions of two masks.

    Args:
        pred: Boolean, with at least one voxel; everything beyond the array is outside.
        truth: The same.
        spacing: mm, one per axis.
        width: That of the regions in mm.

    Example:
        >>> truth = np.zeros((9, 9), bool)
        >>> truth[2:7, 2:7] = True
        >>> boundary_iou(truth[:, ::-1], truth, (1.0, 1.0), 1.0)
        1.0
    """
    first, second = (boundary_region(mask, spacing, width) for mask in (pred, truth))
    return int(np.count_nonzero(first & second)) / int(np.count_nonzero(first | second))


def boundary_region(mask: Bool, spacing: Sequence[float], width: float) -> Bool:
    """Return the voxels of a mask whose centers lie within `width` mm of the center of a voxel of its surface.

    Args:
        mask: Boolean.
        spacing: mm, one per axis.
        width: In mm; 0 is the surface itself.
    """
    from scipy import ndimage

    surface = surface_of(mask)
    region: Bool = np.zeros(mask.shape, np.bool_)
    # What is farther away than this along the first axis is too far away.
    reach = math.floor(min(width / spacing[0], len(mask))) + 1
    step = max(_PLANES, 2 * reach)
    for start in range(0, len(mask), step):
        first = max(start - reach, 0)
        there = surface[first : start + step + reach]
        if there.any():
            near = ndimage.distance_transform_edt(~there, sampling=spacing) <= width
            region[start : start + step] = near[start - first : start - first + step]
    return region & mask
