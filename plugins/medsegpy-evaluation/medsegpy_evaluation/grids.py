"""Where the voxels of a prediction lie, compared with those of the scan.

Axes that are permuted or flipped are put right exactly. Any other grid is an error: nothing is resampled here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsegpy_core.data import Alignment, Grid, alignment, describe, same_spacing

__all__ = ["placed"]


def placed(
    prediction: Grid, file: Mapping[str, Any], resolved: Mapping[str, Any], shape: Sequence[int], *, trusted: bool
) -> tuple[Alignment, list[str]]:
    """Return how to bring a prediction onto the grid of a scan.

    Affines are compared if both have one. Otherwise voxels are compared by index, and spacings that both state must
    agree within 1 %: a spacing says how large voxels are, often rounded, and not where they lie.

    Args:
        prediction: Its grid.
        file: What the file of the scan says of ``spacing`` and ``affine``.
        resolved: What holds for the scan, by the dataset dict and the metadata. A prediction may be on either grid.
        shape: Of the scan, spatial.
        trusted: Whether the dataset says that voxels correspond by index whatever the files say (`trust_geometry`).

    Returns:
        The alignment (nothing moves if there is none), and what is wrong.
    """
    unmoved = Alignment(tuple(range(len(shape))), ())
    grids = _grids_of_scan(prediction, file, resolved, shape)
    found = {how for grid in grids if (how := _alignment(prediction, grid)) is not None}
    if len(found) == 1:
        return found.pop(), []
    if sorted(prediction.shape) != sorted(shape) or trusted:
        return unmoved, []  # the shape is looked at next
    known = " or ".join(dict.fromkeys(map(describe, grids)))
    if found:
        return unmoved, [f"the prediction, {describe(prediction)}, fits two grids of the scan in two ways: {known}"]
    if prediction.affine is None and prediction.shape != tuple(shape):
        return unmoved, []
    problem = f"the prediction is on another grid than the scan: {describe(prediction)}, not {known}"
    return unmoved, [f"{problem}. Resample it to the scan, or write the affine that holds"]


def _alignment(prediction: Grid, grid: Grid) -> Alignment | None:
    if prediction.affine is not None and grid.affine is not None:
        return alignment(prediction, grid)
    if prediction.shape != grid.shape:
        return None
    # The thickness of a single slice does not matter.
    axes = [axis for axis, n in enumerate(grid.shape) if n > 1]
    sizes = [[s.spacing[a] for a in axes if a < len(s.spacing)] for s in (prediction, grid) if s.spacing is not None]
    agree = len(sizes) < 2 or same_spacing(*sizes)
    return Alignment(tuple(range(len(grid.shape))), ()) if agree else None


def _grids_of_scan(
    prediction: Grid, file: Mapping[str, Any], resolved: Mapping[str, Any], shape: Sequence[int]
) -> list[Grid]:
    """Return the grids that a prediction may be on, with as much as can be compared."""
    stated = [Grid.of(shape, file), Grid.of(shape, resolved)]
    exact = [grid for grid in stated if grid.affine is not None]
    if prediction.affine is not None and exact:
        return exact
    # A spacing in the dataset dict holds, whatever the columns of the file's affine say.
    spacings = [*(grid.spacing for grid in stated), Grid.of(shape, {"spacing": resolved.get("spacing")}).spacing]
    known = dict.fromkeys(spacing for spacing in spacings if spacing is not None)
    return [Grid(shape, None, spacing) for spacing in known] or [Grid(shape)]
