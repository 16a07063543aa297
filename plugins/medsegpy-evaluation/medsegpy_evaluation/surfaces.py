"""Distances between the surfaces of two masks: one pass from which every surface metric is read off.

The surface of a mask is what MedPy 0.5.2 takes: its voxels of which at least one of the 2 n face neighbours
(6 in 3D) is outside the mask, and everything beyond the border of the array is outside. A distance is that
of a surface voxel's centre to the nearest centre on the other surface, in mm. Axes of length 1 do not count: a scan of
one slice is 2D, or every voxel of a mask would be on its surface.

How it is done: both masks are cropped to their joint bounding box. Most surface voxels of a usable prediction
lie within a few voxels of the other surface, so they look for it at neighbouring positions, nearest first. What
is left after that goes to a k-d tree of the other surface or to a distance transform of the box, whichever
costs less. Every way gives the same distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

if TYPE_CHECKING:
    Bool: TypeAlias = NDArray[np.bool_]
    Float: TypeAlias = NDArray[np.float64]
    Ints: TypeAlias = NDArray[np.intp]
    Marks: TypeAlias = NDArray[np.uint8]
    # In as few bytes as they fit into.
    Positions: TypeAlias = NDArray[np.signedinteger[Any]]

__all__ = ["Box", "SurfaceDistances", "extended_axes", "joint_box", "measure", "surface_distances"]

# A selection of voxels: one slice an axis.
Box: TypeAlias = tuple[slice, ...]

# How many neighbouring positions are tried: 2,000 is a ball of 7.8 voxels' radius where the spacing is isotropic.
_NEIGHBOURS = 2000
# How many are tried at first; then as many again, and so on.
_FIRST = 64
# Trials (points times positions) that are made in one call of NumPy: few enough to stay in the cache.
_TRIALS = 1 << 16
# Points, or voxels, that are worked on at once: a surface that fills the scan (noise) must not need many times its
# memory.
_POINTS = 1 << 17
# Points in a leaf of a tree: many, since the distances to points far away say little about which of them is nearest.
_LEAF = 64
# What things cost, in seconds, on an ordinary core; only their ratios matter, and only for the time it takes.
_TRIAL = 4e-9
_TREE_BUILD, _TREE_QUERY = 1.5e-7, 6e-6
_TRANSFORM = 8e-8
# Stands for a distance that is yet to be found.
_FAR = -1.0


@frozen(eq=False)
class SurfaceDistances:
    """The distances between two surfaces.

    Attributes:
        pred_to_truth: For each surface voxel of the prediction, the distance to the truth's surface, in mm, float64.
        truth_to_pred: For each surface voxel of the truth, the distance to the prediction's surface.
    """

    pred_to_truth: Float
    truth_to_pred: Float

    @property
    def pooled(self) -> Float:
        """The distances of both directions, one after the other."""
        return np.concatenate((self.pred_to_truth, self.truth_to_pred))

    def assd(self) -> float:
        """Average symmetric surface distance in mm: the mean of both directions' distances, pooled."""
        return float(self.pooled.mean())

    def hd95(self) -> float:
        """The linearly interpolated 95th percentile of both directions' distances, pooled, in mm."""
        return float(np.percentile(self.pooled, 95, overwrite_input=True))

    def hd(self) -> float:
        """Hausdorff distance in mm: the largest distance of either direction."""
        return float(max(self.pred_to_truth.max(), self.truth_to_pred.max()))

    def nsd(self, tolerance: float) -> float:
        """Normalized surface distance: the share of both surfaces' voxels within `tolerance` mm of the other one."""
        directions = (self.pred_to_truth, self.truth_to_pred)
        near = sum(int(np.count_nonzero(distances <= tolerance)) for distances in directions)
        return near / sum(distances.size for distances in directions)


def extended_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes along which a scan extends: those longer than 1; of a scan of one voxel, all.

    Example:
        >>> extended_axes((512, 512, 1)), extended_axes((1, 1))
        ((0, 1), (0, 1))
    """
    return tuple(axis for axis, n in enumerate(shape) if n != 1) or tuple(range(len(shape)))


def surface_distances(pred: Bool, truth: Bool, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks. Axes of length 1, and their spacing, do not count.

    Args:
        pred: A boolean mask of any number of axes, with at least one voxel.
        truth: Another of the same shape, with at least one voxel.
        spacing: The size of a voxel in mm, one per axis.

    Raises:
        ValueError: Shapes or spacing do not fit, or a mask is empty.

    Example:
        >>> mask = np.zeros((9, 9), bool)
        >>> mask[2:5, 2:5] = True
        >>> surface_distances(np.roll(mask, 3, axis=1), mask, (1.0, 0.5)).hd()
        1.5
    """
    if pred.shape != truth.shape or len(spacing) != pred.ndim:
        raise ValueError(
            f"Masks of one shape and a spacing per axis are needed, not a prediction of shape {pred.shape}, a truth "
            f"of shape {truth.shape} and a spacing of {len(spacing)} values."
        )
    if not all(0 < size < math.inf for size in spacing):
        raise ValueError(f"The spacing is {tuple(spacing)}: expected positive numbers of mm.")
    axes = extended_axes(pred.shape)
    thin = tuple(axis for axis in range(pred.ndim) if axis not in axes)
    return measure(pred.squeeze(thin), truth.squeeze(thin), [spacing[axis] for axis in axes])


def measure(pred: Bool, truth: Bool, spacing: Sequence[float]) -> SurfaceDistances:
    """Do what `surface_distances` does, for arguments that fit; all axes count, those of length 1 as well.

    Raises:
        ValueError: A mask is empty.
    """
    box = joint_box(pred, truth)
    if box is None:
        raise ValueError("Both masks are empty: there is no surface to measure from.")
    offsets, lengths = _neighbours(tuple(float(size) for size in spacing))
    margin = np.abs(offsets).max(axis=0)
    flat, shape = _pad(truth, box, margin)
    truth_points = _surface(flat, shape)
    other, _ = _pad(pred, box, margin)
    pred_points = _surface(other, shape)
    if not truth_points.size or not pred_points.size:
        raise ValueError("One of the masks is empty: there is no surface to measure to.")
    search = _Search(shape, np.maximum(margin, 1), np.asarray(spacing, np.float64), offsets @ _strides(shape), lengths)
    return SurfaceDistances(search(pred_points, truth_points, flat), search(truth_points, pred_points, other))


def joint_box(*masks: Bool) -> Box | None:
    """Return the smallest box that holds every voxel of all the masks (of one shape), or None if all are empty."""
    boxes = [box for box in map(_box, masks) if box is not None]
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _box(mask: Bool) -> Box | None:
    if not mask.size:
        return None
    box: list[slice] = []
    # From the first axis on: each step looks only at what the steps before it left.
    for axis in range(mask.ndim):
        part = mask[tuple(box)].view(np.uint8)
        rest = tuple(i for i in range(mask.ndim) if i != axis)
        # A maximum over the outer axes first runs along memory, which an `any` over strides would not.
        hit = np.flatnonzero(np.bitwise_or.reduce(part, axis=rest))
        if not hit.size:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


@lru_cache(maxsize=64)
def _neighbours(spacing: tuple[float, ...]) -> tuple[Ints, Float]:
    """All offsets in a ball of about `_NEIGHBOURS` voxels, nearest first, and their lengths in mm."""
    n = len(spacing)
    unit_ball = math.pi ** (n / 2) / math.gamma(n / 2 + 1)
    radius = (_NEIGHBOURS * math.prod(spacing) / unit_ball) ** (1 / n)
    # Very flat voxels would make the ball a needle: 40 voxels of margin on either side are enough.
    radius = min(radius, 40 * min(spacing))
    reach = [int(radius / size) for size in spacing]
    grid = np.indices([2 * r + 1 for r in reach]).reshape(n, -1).T - np.array(reach)
    # Summed in the order of the axes, as SciPy does, so that the lengths are equal to its distances bit for bit.
    lengths = np.sqrt(np.add.reduce((grid * np.array(spacing)).T ** 2, axis=0))
    near = np.flatnonzero(lengths <= radius)
    near = near[np.argsort(lengths[near], kind="stable")]
    return grid[near].astype(np.intp), lengths[near]


def _pad(mask: Bool, box: Box, margin: NDArray[Any]) -> tuple[Marks, tuple[int, ...]]:
    """Copy a box of a mask into zeros, with a margin in which neighbours may be looked for without checking bounds."""
    margin = np.maximum(margin, 1)
    shape = tuple(int(s.stop - s.start + 2 * m) for s, m in zip(box, margin, strict=True))
    padded = np.zeros(shape, np.uint8)
    inside = tuple(slice(int(m), int(m) + s.stop - s.start) for s, m in zip(box, margin, strict=True))
    padded[inside] = mask[box]
    return padded.reshape(-1), shape


def _strides(shape: Sequence[int]) -> NDArray[np.intp]:
    return np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], np.intp)


def _surface(flat: Marks, shape: tuple[int, ...]) -> Positions:
    """Reduce a padded mask, in place, to its surface, and return the positions of that."""
    inner = flat.copy()
    for stride in _strides(shape).tolist():
        # The margin is zero, so that what wraps around at the ends of a row does no harm.
        np.bitwise_and(inner[stride:], flat[:-stride], out=inner[stride:])
        np.bitwise_and(inner[:-stride], flat[stride:], out=inner[:-stride])
    np.bitwise_xor(flat, inner, out=flat)
    # Of booleans: NumPy counts and finds those many times faster than bytes.
    marks = flat.view(np.bool_)
    kind = np.dtype(np.int32 if flat.size < 1 << 31 else np.intp)
    points: Positions = np.empty(np.count_nonzero(marks), kind)
    done = 0
    for start in range(0, flat.size, 32 * _POINTS):
        found = np.flatnonzero(marks[start : start + 32 * _POINTS])
        np.add(found, start, out=points[done : done + found.size], casting="unsafe")
        done += found.size
    return points


@frozen(eq=False)
class _Search:
    """Looks for the nearest point of a surface in a padded box.

    Attributes:
        shape: That of the padded box.
        margin: How many voxels of it, at either end of an axis, are padding.
        spacing: mm per voxel.
        steps: Neighbouring positions as differences of flat positions, nearest first.
        lengths: Their distances in mm.
    """

    shape: tuple[int, ...]
    margin: Ints
    spacing: Float
    steps: Ints
    lengths: Float

    def __call__(self, points: Positions, targets: Positions, target_map: Marks) -> Float:
        """Return the distance of each of the `points` to the nearest of the `targets`, which `target_map` marks."""
        distances = np.empty(points.size)
        parts = [slice(start, start + _POINTS) for start in range(0, points.size, _POINTS)]
        fixed = targets.size * _TREE_BUILD, math.prod(self.shape) * _TRANSFORM
        far = 0
        for part in parts:
            some = points[part].astype(np.intp)
            share = some.size / points.size
            distances[part] = 0
            left = self._near(some, target_map, distances[part], (fixed[0] * share, fixed[1] * share))
            distances[part][left] = _FAR
            far += left.size
        if far:
            nearest = self._nearest(far, targets, target_map)
            for part in parts:
                left = np.flatnonzero(distances[part] == _FAR)
                here = np.stack(np.unravel_index(points[part][left], self.shape))
                steps = (here - nearest(here)) * self.spacing[:, None]
                distances[part][left] = np.sqrt(np.add.reduce(steps**2, axis=0))
        return distances

    def _near(self, points: Ints, target_map: Marks, distances: Float, costs: tuple[float, float]) -> Ints:
        """Fill in the distances of points that have a target close by; return which of them have none.

        `costs` are what a tree and what a transform would cost beforehand.
        """
        left: Ints = np.flatnonzero(target_map.take(points) == 0)
        done, progress = 1, 1.0
        while left.size and done < self.steps.size:
            end, before = min(max(2 * done, _FIRST), self.steps.size), left.size
            # Worth it if trying as much again as has been tried costs less than the other ways, of which it spares the
            # less the fewer points were found last time.
            others = min(costs[0] + before * _TREE_QUERY, costs[1])
            if before * (end - done) * _TRIAL > progress * others:
                break
            while left.size and done < end:
                count = min(max(1, _TRIALS // left.size), end - done)
                left = self._try(points, left, slice(done, done + count), target_map, distances)
                done += count
            progress = max(0.1, 1 - left.size / before)
        return left

    def _try(self, points: Ints, left: Ints, which: slice, target_map: Marks, distances: Float) -> Ints:
        """Try some neighbouring positions of the points that are `left`; return those that are left after that."""
        steps = self.steps[which]
        if steps.size == 1:
            found: Bool = target_map.take(points[left] + steps[0]).view(np.bool_)
            distances[left[found]] = self.lengths[which.start]
            return np.compress(~found, left)
        hits = target_map.take(points[left][:, None] + steps)
        first = hits.argmax(axis=1)
        found = hits[np.arange(left.size), first].view(np.bool_)
        distances[left[found]] = self.lengths[which.start + first[found]]
        return np.compress(~found, left)

    def _nearest(self, points: int, targets: Positions, target_map: Marks) -> Callable[[Ints], Ints]:
        """Return a function from coordinates, one point a column, to those of the nearest target."""
        from scipy import ndimage, spatial

        if targets.size * _TREE_BUILD + points * _TREE_QUERY > math.prod(self.shape) * _TRANSFORM:
            inside = tuple(slice(int(m), n - int(m)) for n, m in zip(self.shape, self.margin, strict=True))
            indices = ndimage.distance_transform_edt(
                target_map.reshape(self.shape)[inside] == 0,
                sampling=self.spacing,
                return_distances=False,
                return_indices=True,
            )
            margin = self.margin[:, None]
            return lambda here: indices[(slice(None), *(here - margin))] + margin
        there = np.stack(np.unravel_index(targets, self.shape))
        # Neither balanced nor compact: such trees are built faster, and surfaces on a grid do not degenerate.
        tree = spatial.cKDTree(there.T * self.spacing, leafsize=_LEAF, balanced_tree=False, compact_nodes=False)
        return lambda here: there[:, tree.query(here.T * self.spacing)[1]]
