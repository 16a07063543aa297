"""Calibration: whether probabilities are as large as the share of voxels that belong to the structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

if TYPE_CHECKING:
    Bool: TypeAlias = NDArray[np.bool_]

__all__ = ["Calibration", "calibration_of", "has_probabilities"]

# Voxels that are worked on at once.
_VOXELS = 1 << 18


@frozen
class Calibration:
    """How good the probabilities of one structure are.

    Attributes:
        ece: Expected calibration error.
        brier: Brier score.
    """

    ece: float
    brier: float


def has_probabilities(pred: NDArray[Any]) -> bool:
    """Say whether an array holds probabilities: floats of which at least one is neither 0 nor 1."""
    if pred.dtype.kind != "f" or not pred.size:
        return False
    step = max(1, _VOXELS * len(pred) // pred.size)
    slabs = (pred[start : start + step] for start in range(0, len(pred), step))
    return any(bool(((slab > 0) & (slab < 1)).any()) for slab in slabs)


def calibration_of(probabilities: NDArray[Any], truth: Bool, unknown: Bool | None, bins: int) -> Calibration:
    """Measure the calibration over all voxels that are known.

    Args:
        probabilities: That a voxel belongs to the structure; rounding beyond 0 and 1 is cut off.
        truth: Boolean, of the same shape.
        unknown: Where the truth is unknown; None: nowhere.
        bins: Bins of equal width for the expected calibration error; the first holds 0, and each its upper end.

    Raises:
        ValueError: No voxel is known.
    """
    # By bin: voxels, the sum of their probabilities, and how many belong to the structure.
    voxels, expected, real = np.zeros((3, bins))
    squares = 0.0
    step = max(1, _VOXELS * len(truth) // max(1, truth.size))
    for start in range(0, len(truth), step):
        part = slice(start, start + step)
        p, t = probabilities[part].astype(np.float64), truth[part]
        p, t = (p.reshape(-1), t.reshape(-1)) if unknown is None else (p[~unknown[part]], t[~unknown[part]])
        np.clip(p, 0, 1, out=p)
        places = np.clip(np.ceil(p * bins).astype(np.intp) - 1, 0, None)
        voxels += np.bincount(places, minlength=bins)
        expected += np.bincount(places, weights=p, minlength=bins)
        real += np.bincount(places, weights=t, minlength=bins)
        squares += float(np.square(p - t).sum())
    if not voxels.any():
        raise ValueError("No voxel is known: there is no calibration.")
    return Calibration(float(np.abs(expected - real).sum() / voxels.sum()), float(squares / voxels.sum()))
