"""Distances between the surfaces of two masks: one pass from which every surface metric is read off.

The surface of a mask is what MedPy 0.5.2 takes: its voxels of which at least one of the 2 n face neighbors
(6 in 3D) is outside the mask, and everything beyond the border of the array is outside. A distance is that
of a surface voxel's center to the nearest center on the other surface, in mm. Axes of length 1 do not count: a scan of
one slice is 2D, or every voxel of a mask would be on its surface.

How it is done: both masks are cropped to their joint bounding box. Most surface voxels of a usable prediction
lie within a few voxels of the other surface, so they look for it at neighboring positions, nearest first. What
is left after that goes to a k-d tree of the other surface or to a distance transform of the box, whichever
costs less. A surface that fills the scan (noise) is never listed as a whole: its points are found, measured and
tallied part by part, and a transform of the box that would take too much memory is made plane by plane. Every way
gives the same distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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

__all__ = [
    "Box",
    "DistanceTally",
    "SurfaceDistances",
    "extended_axes",
    "joint_box",
    "measure",
    "surface_distances",
    "surface_of",
    "tally",
]

# A selection of voxels: one slice an axis.
Box: TypeAlias = tuple[slice, ...]

# How many neighboring positions are tried: 2,000 is a ball of 7.8 voxels' radius where the spacing is isotropic.
_NEIGHBORS = 2000
# How many are tried at first; then as many again, and so on.
_FIRST = 64
# Trials (points times positions) that are made in one call of NumPy: few enough to stay in the cache.
_TRIALS = 1 << 16
# Points that are worked on at once: a surface that fills the scan (noise) must not need many times its memory.
_POINTS = 1 << 15
# Voxels that are looked through at once, and of which the surface is found at once.
_VOXELS, _SLAB = 1 << 22, 1 << 19
# Surfaces of more points than this, and than this share of the voxels, are tallied and not listed.
_LISTED, _LISTED_SHARE = 1 << 16, 1 / 16
# What may be allocated, over the memory of the masks; and what a voxel of the box takes in SciPy's transform, and a
# target in a tree, in bytes.
_MEMORY = 3
_TRANSFORM_BYTES, _TREE_BYTES = 16, 96
# Voxels of the planes that are transformed at once, and of the pieces of them that stay in the cache.
_STEP, _PLANES, _PIECE = 8, 1 << 16, 1 << 14
# Points in a leaf of a tree: many, since the distances to points far away say little about which of them is nearest.
_LEAF = 64
# What things cost, in seconds, on an ordinary core; only their ratios matter, and only for the time it takes.
_TRIAL = 4e-9
_TREE_BUILD, _TREE_QUERY = 1.5e-7, 6e-6
_TRANSFORM = 8e-8
_SHIFT = 1.5e-9
# Stands for a distance that is yet to be found, and for a point of a map of which that holds.
_FAR = -1.0
_FAR_MARK = 2


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


class DistanceTally:
    """What `SurfaceDistances` says, kept while distances pass by: their sum, the largest of them, and two counts.

    Args:
        total: How many distances will be added, of both directions together.
        tolerance: That of the normalized surface distance, in mm.
    """

    def __init__(self, total: int, tolerance: float) -> None:
        self._total, self._tolerance = total, tolerance
        self._sums: list[float] = []
        self._near, self._highest = 0, 0.0
        # The percentile lies between the values of two ranks: those from the lower one on are kept.
        self._rank = (total - 1) * (95 / 100)
        self._kept = total - math.floor(self._rank)
        # Negative, so that the largest are the first; and how many there are.
        self._top = np.empty(self._kept + max(self._kept // 4, _POINTS // 2))
        self._filled = 0
        self._least = -1.0  # of those that are kept for certain

    def add(self, distances: Float) -> None:
        """Add some of the distances."""
        if not distances.size:
            return
        self._sums.append(float(distances.sum()))
        self._near += int(np.count_nonzero(distances <= self._tolerance))
        self._highest = max(self._highest, float(distances.max()))
        # Of many equal values only some are needed; all of them would make the partition slow.
        distances, done = distances[distances > self._least], 0
        while done < distances.size:
            if self._filled == self._top.size:
                self._top.partition(self._kept - 1)
                self._filled, self._least = self._kept, -float(self._top[self._kept - 1])
            part = distances[done : done + self._top.size - self._filled]
            np.negative(part, out=self._top[self._filled : self._filled + part.size])
            self._filled += part.size
            done += part.size

    def assd(self) -> float:
        """Average symmetric surface distance in mm."""
        return math.fsum(self._sums) / self._total

    def hd95(self) -> float:
        """The linearly interpolated 95th percentile in mm."""
        top, second = self._top[: self._filled], max(self._kept - 2, 0)
        top.partition((second, self._kept - 1))
        low, high = -float(top[self._kept - 1]), -float(top[second])
        share = self._rank - math.floor(self._rank)
        # As NumPy does it, so that values are the same bit for bit.
        return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share

    def hd(self) -> float:
        """Hausdorff distance in mm."""
        return self._highest

    def nsd(self, tolerance: float) -> float:
        """The share of distances within the tolerance, which has to be the one that was given at first."""
        if tolerance != self._tolerance:
            raise ValueError(f"Distances within {self._tolerance} mm were counted, not within {tolerance} mm.")
        return self._near / self._total


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
    search, pred_map, truth_map = _prepared(pred, truth, spacing, pred.size + truth.size)
    return SurfaceDistances(search.listed(pred_map, truth_map), search.listed(truth_map, pred_map))


def tally(
    pred: Bool, truth: Bool, spacing: Sequence[float], tolerance: float, memory: int
) -> SurfaceDistances | DistanceTally:
    """Measure as `measure` does, without listing the distances if both surfaces fill much of the scan.

    Args:
        pred: As for `measure`.
        truth: As for `measure`.
        spacing: As for `measure`.
        tolerance: That of the normalized surface distance, in mm.
        memory: Bytes of the two masks of which `pred` and `truth` are a part: about three times as much is allocated
            at most.
    """
    search, pred_map, truth_map = _prepared(pred, truth, spacing, memory)
    points = pred_map.count + truth_map.count
    if points <= max(_LISTED, _LISTED_SHARE * memory / 2):
        return SurfaceDistances(search.listed(pred_map, truth_map), search.listed(truth_map, pred_map))
    result = DistanceTally(points, tolerance)
    for own, other in ((pred_map, truth_map), (truth_map, pred_map)):
        for distances in search.parts(own, other):
            result.add(distances)
    return result


def _prepared(pred: Bool, truth: Bool, spacing: Sequence[float], memory: int) -> tuple[_Search, _Map, _Map]:
    """Return the search, and the padded maps of both surfaces."""
    box = joint_box(pred, truth)
    if box is None:
        raise ValueError("Both masks are empty: there is no surface to measure from.")
    offsets, lengths = _neighbors(tuple(float(size) for size in spacing))
    margin = np.abs(offsets).max(axis=0)
    truth_map = _surface(truth, box, margin)
    pred_map = _surface(pred, box, margin)
    shape = truth_map.shape
    if not truth_map.count or not pred_map.count:
        raise ValueError("One of the masks is empty: there is no surface to measure to.")
    sizes = np.asarray(spacing, np.float64)
    room = _MEMORY * memory - 2 * math.prod(shape)
    steps = (offsets @ _strides(shape)).astype(np.int64)
    return _Search(shape, np.maximum(margin, 1), sizes, steps, lengths, room), pred_map, truth_map


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
def _neighbors(spacing: tuple[float, ...]) -> tuple[Ints, Float]:
    """All offsets in a ball of about `_NEIGHBORS` voxels, nearest first, and their lengths in mm."""
    n = len(spacing)
    unit_ball = math.pi ** (n / 2) / math.gamma(n / 2 + 1)
    radius = (_NEIGHBORS * math.prod(spacing) / unit_ball) ** (1 / n)
    # Very flat voxels would make the ball a needle: 40 voxels of margin on either side are enough.
    radius = min(radius, 40 * min(spacing))
    reach = [int(radius / size) for size in spacing]
    grid = np.indices([2 * r + 1 for r in reach]).reshape(n, -1).T - np.array(reach)
    # Summed in the order of the axes, as SciPy does, so that the lengths are equal to its distances bit for bit.
    lengths = np.sqrt(np.add.reduce((grid * np.array(spacing)).T ** 2, axis=0))
    near = np.flatnonzero(lengths <= radius)
    near = near[np.argsort(lengths[near], kind="stable")]
    return grid[near].astype(np.intp), lengths[near]


def _strides(shape: Sequence[int]) -> NDArray[np.intp]:
    return np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], np.intp)


def surface_of(mask: Bool) -> Bool:
    """Return the surface of a mask: its voxels with a face neighbor outside, beyond the array included."""
    found = _surface(mask, tuple(slice(0, n) for n in mask.shape), np.ones(mask.ndim, np.intp))
    return found.marks.reshape(found.shape)[(slice(1, -1),) * mask.ndim].view(np.bool_)


@frozen(eq=False)
class _Map:
    """The surface of a mask in a padded box.

    Attributes:
        marks: Flat; 1 for voxels of the surface.
        shape: That of the padded box.
        count: How many voxels the surface has.
    """

    marks: Marks
    shape: tuple[int, ...]
    count: int

    def listed(self) -> Positions:
        """Return the positions of the surface."""
        kind = np.dtype(np.int32 if self.marks.size < 1 << 31 else np.intp)
        points: Positions = np.empty(self.count, kind)
        done = 0
        for start in range(0, self.marks.size, _VOXELS):
            # Of booleans: NumPy finds those many times faster than bytes.
            found = np.flatnonzero(self.marks[start : start + _VOXELS].view(np.bool_))
            np.add(found, start, out=points[done : done + found.size], casting="unsafe")
            done += found.size
        return points


def _surface(mask: Bool, box: Box, margin: NDArray[Any]) -> _Map:
    """Find the surface of a mask, in its box with a margin in which neighbors are sought without checking bounds."""
    margin = np.maximum(margin, 1)
    sizes = [s.stop - s.start for s in box]
    padded = np.zeros([n + 2 * int(m) for n, m in zip(sizes, margin, strict=True)], np.uint8)
    inside = padded[tuple(slice(int(m), int(m) + n) for n, m in zip(sizes, margin, strict=True))]
    cropped, count = mask[box], 0
    step = max(1, _SLAB // math.prod(sizes[1:]))
    for start in range(0, sizes[0], step):
        stop = min(start + step, sizes[0])
        # With the planes before and after, and one of zeros around.
        part = cropped[max(start - 1, 0) : stop + 1]
        first = 1 - (start - max(start - 1, 0))
        slab = np.zeros((stop - start + 2, *(n + 2 for n in sizes[1:])), np.uint8)
        slab[(slice(first, first + len(part)), *(slice(1, -1) for _ in sizes[1:]))] = part
        flat, inner = slab.reshape(-1), slab.reshape(-1).copy()
        for stride in _strides(slab.shape).tolist():
            # The frame is zero, so that what wraps around at the ends of a row does no harm.
            np.bitwise_and(inner[stride:], flat[:-stride], out=inner[stride:])
            np.bitwise_and(inner[:-stride], flat[stride:], out=inner[:-stride])
        np.bitwise_xor(flat, inner, out=flat)
        inside[start:stop] = slab[tuple(slice(1, -1) for _ in sizes)]
        count += int(np.count_nonzero(slab[1:-1].view(np.bool_)))
    return _Map(padded.reshape(-1), padded.shape, count)


@frozen(eq=False)
class _Search:
    """Looks for the nearest point of a surface in a padded box.

    Attributes:
        shape: That of the padded box.
        margin: How many voxels of it, at either end of an axis, are padding.
        spacing: mm per voxel.
        steps: Neighboring positions as differences of flat positions, nearest first.
        lengths: Their distances in mm.
        room: How many bytes the search may allocate, roughly.
    """

    shape: tuple[int, ...]
    margin: Ints
    spacing: Float
    steps: Ints
    lengths: Float
    room: int

    def listed(self, own: _Map, targets: _Map) -> Float:
        """Return the distance of each point of `own`, in order, to the nearest of the `targets`."""
        points = own.listed()
        distances = np.empty(points.size)
        parts = [slice(start, start + 4 * _POINTS) for start in range(0, points.size, 4 * _POINTS)]
        far = 0
        for part in parts:
            far += self._near_of(points[part].astype(np.intp), targets, distances[part], points.size).size
        if far:
            nearest = self._nearest(far, targets)
            for part in parts:
                left = np.flatnonzero(distances[part] == _FAR)
                for start in range(0, left.size, _POINTS // 2):
                    some = left[start : start + _POINTS // 2]
                    distances[part][some] = nearest(points[part][some].astype(np.intp))
        return distances

    def parts(self, own: _Map, targets: _Map) -> Iterator[Float]:
        """Yield the same distances part by part, in any order, without listing the points."""
        marks, far = own.marks, 0
        for start in range(0, marks.size, _POINTS):
            points = np.flatnonzero(marks[start : start + _POINTS].view(np.bool_))
            points += start
            distances = np.empty(points.size)
            left = self._near_of(points, targets, distances, own.count)
            if left.size:
                marks[points[left]] = _FAR_MARK
                far += left.size
                distances = distances[distances != _FAR]
            yield distances
        if far:
            nearest = self._nearest(far, targets)
            for start in range(0, marks.size, _POINTS):
                points = np.flatnonzero(marks[start : start + _POINTS] == _FAR_MARK)
                if points.size:
                    points += start
                    marks[points] = 1
                    yield nearest(points)

    def _near_of(self, points: Ints, targets: _Map, distances: Float, total: int) -> Ints:
        """Fill in the distances of points with a target close by; mark and return those without, by their number."""
        distances[:] = 0
        share = points.size / total
        costs = targets.count * _TREE_BUILD * share, math.prod(self.shape) * _TRANSFORM * share
        left = self._near(points, targets.marks, distances, costs)
        distances[left] = _FAR
        return left

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
        """Try some neighboring positions of the points that are `left`; return those that are left after that."""
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

    def _nearest(self, points: int, targets: _Map) -> Callable[[Ints], Float]:
        """Return a function from positions, in order, to the distances of the nearest targets.

        `points` is how many there will be.
        """
        voxels = math.prod(n - 2 * int(m) for n, m in zip(self.shape, self.margin, strict=True))
        in_one = len(self.shape) == 1 or voxels * _TRANSFORM_BYTES <= self.room
        tree = targets.count * _TREE_BUILD + points * _TREE_QUERY
        transform = voxels * (_TRANSFORM if in_one else _SHIFT * sum(self.shape[1:]))
        if tree <= transform and targets.count * _TREE_BYTES <= max(self.room, 1 << 20):
            return self._tree(targets)
        return self._transform(targets) if in_one else _Planes(self, targets)

    def _tree(self, targets: _Map) -> Callable[[Ints], Float]:
        from scipy import spatial

        there = np.stack(np.unravel_index(targets.listed(), self.shape))
        # Neither balanced nor compact: such trees are built faster, and surfaces on a grid do not degenerate.
        tree = spatial.cKDTree(there.T * self.spacing, leafsize=_LEAF, balanced_tree=False, compact_nodes=False)

        def distances(points: Ints) -> Float:
            here = np.stack(np.unravel_index(points, self.shape))
            return self._between(here, there[:, tree.query(here.T * self.spacing)[1]])

        return distances

    def _transform(self, targets: _Map) -> Callable[[Ints], Float]:
        from scipy import ndimage

        inside = tuple(slice(int(m), n - int(m)) for n, m in zip(self.shape, self.margin, strict=True))
        indices = ndimage.distance_transform_edt(
            targets.marks.reshape(self.shape)[inside] == 0,
            sampling=self.spacing,
            return_distances=False,
            return_indices=True,
        )

        def distances(points: Ints) -> Float:
            here = np.stack(np.unravel_index(points, self.shape)) - self.margin[:, None]
            return self._between(here, indices[(slice(None), *here)])

        return distances

    def _between(self, here: Ints, there: Positions) -> Float:
        """The distances between points, one a column."""
        steps = (here - there) * self.spacing[:, None]
        distances: Float = np.sqrt(np.add.reduce(steps**2, axis=0))
        return distances


class _Planes:
    """A distance transform that holds a few planes at a time, for boxes of which SciPy's would take too much memory.

    The squared distance is separable: along the first axis it is that to the nearest target of the column, and along
    each further axis the least, over all shifts, of what the axes before it gave plus the square of the shift. Shifts
    are tried in order and end when the square of one exceeds all that was found.

    Args:
        search: What it is for: shape, margin and spacing.
        targets: The targets.
    """

    def __init__(self, search: _Search, targets: _Map) -> None:
        self._margin = search.margin[:, None]
        inside = tuple(slice(int(m), n - int(m)) for n, m in zip(search.shape, search.margin, strict=True))
        self._targets = targets.marks.reshape(search.shape)[inside].view(np.bool_)
        self._box_shape, self._padded, self._spacing = self._targets.shape, search.shape, search.spacing.tolist()
        n, self._plane = self._box_shape[0], self._box_shape[1:]
        self._step = min(n, max(_STEP, _PLANES // math.prod(self._plane)))
        # For the end of each step: in each column, the first target of the planes from there on; n: there is none.
        self._next = np.empty((math.ceil(n / self._step), *self._plane), np.min_scalar_type(n))
        first = np.full(self._plane, n, self._next.dtype)
        for number in range(len(self._next) - 1, -1, -1):
            self._next[number] = first
            for x in reversed(self._planes_of(number)):
                first[self._targets[x]] = x
        self._last = np.full(self._plane, -np.inf)
        self._number = -1  # of the step of which the squared distances are at hand
        self._squares: Float = np.empty(0)

    def __call__(self, points: Ints) -> Float:
        """Return the distances of points, by position in the padded box; those of later calls lie in later planes."""
        here = np.stack(np.unravel_index(points, self._padded)) - self._margin
        numbers = here[0] // self._step
        distances = np.empty(points.size)
        for number in np.unique(numbers).tolist():
            self._go_to(number)
            some = np.flatnonzero(numbers == number)
            first, *others = here[:, some]
            distances[some] = np.sqrt(self._squares[(first - number * self._step, *others)])
        return distances

    def _planes_of(self, number: int) -> range:
        return range(number * self._step, min((number + 1) * self._step, self._box_shape[0]))

    def _go_to(self, number: int) -> None:
        if number == self._number:
            return
        for between in range(self._number + 1, number):
            for x in self._planes_of(between):
                self._last[self._targets[x]] = x
        self._number = number
        self._squares = self._along_first(number)
        for axis in range(1, len(self._box_shape)):
            turned = np.moveaxis(self._squares, axis, 0)
            planes = [turned] if turned.ndim < 3 else [turned[:, k] for k in range(turned.shape[1])]
            for plane in planes:
                width = max(1, _PIECE * plane.shape[-1] // plane.size)
                for start in range(0, plane.shape[-1], width):
                    _take_shifts(plane[..., start : start + width], self._spacing[axis])

    def _along_first(self, number: int) -> Float:
        """The squared distances to the nearest target of the same column, for the planes of a step."""
        planes, n = self._planes_of(number), self._box_shape[0]
        result = np.empty((len(planes), *self._plane))
        ahead = self._next[number].astype(np.float64)
        ahead[ahead == n] = np.inf
        for k, x in reversed(list(enumerate(planes))):
            ahead[self._targets[x]] = x
            np.subtract(ahead, x, out=result[k])
        for k, x in enumerate(planes):
            self._last[self._targets[x]] = x
            np.minimum(result[k], x - self._last, out=result[k])
        result *= self._spacing[0]
        result *= result
        return result


def _take_shifts(squares: Float, size: float) -> None:
    """Replace squared distances, in place, by the least over all shifts along their first axis."""
    before = np.ascontiguousarray(squares)
    if before.min() == np.inf:
        return
    best = before.copy()
    for shift in range(1, len(before)):
        cost = (shift * size) ** 2
        if cost >= best.max():
            break
        np.minimum(best[shift:], before[:-shift] + cost, out=best[shift:])
        np.minimum(best[:-shift], before[shift:] + cost, out=best[:-shift])
    squares[...] = best
