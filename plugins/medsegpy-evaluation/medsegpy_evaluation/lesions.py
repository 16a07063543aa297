"""Lesions: the connected components of two masks, matched by overlap.

A mask is taken apart into its runs along the last axis, which few and small structures have few of. Runs that touch are
joined, sizes and overlaps are sums over runs, and no voxel is looked at twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

if TYPE_CHECKING:
    Bool: TypeAlias = NDArray[np.bool_]
    Ints: TypeAlias = NDArray[np.intp]

__all__ = ["CONNECTIVITIES", "Lesions", "match_lesions"]

# By name, whether voxels that share only an edge or a corner are connected: by the number of axes.
CONNECTIVITIES: Final = {"auto": (False, False, False, True), "full": (True,) * 4, "face": (False,) * 4}
# More runs than this share of the voxels, and voxels are labelled instead.
_MANY: Final = 1 / 24


@frozen
class Lesions:
    """What became of the lesions of one structure.

    Attributes:
        predicted: How many the prediction has.
        true: How many the truth has.
        dsc: The Dice similarity coefficient of each matched pair.
    """

    predicted: int
    true: int
    dsc: Sequence[float]

    @property
    def tp(self) -> int:
        """True positives: matched pairs."""
        return len(self.dsc)

    @property
    def fp(self) -> int:
        """False positives: predicted lesions without a match."""
        return self.predicted - self.tp

    @property
    def fn(self) -> int:
        """False negatives: true lesions without a match."""
        return self.true - self.tp


def match_lesions(pred: Bool, truth: Bool, threshold: float = 0.5, connectivity: str = "auto") -> Lesions:
    """Find the lesions of two masks and match them one to one.

    All pairs that overlap with an intersection over union of at least `threshold` are tried, the largest overlap first;
    a pair is matched if neither lesion has a match. Above 0.5 at most one pair is possible for each lesion.

    Args:
        pred: Boolean.
        truth: Boolean, of the same shape.
        threshold: Intersection over union; a pair without a common voxel is never matched.
        connectivity: ``"full"``: voxels that share a corner are connected (26 neighbors in 3D, 8 in 2D). ``"face"``:
            only those that share a face (6, 4). ``"auto"``: full in 3D, face in 2D, as in panoptica 2.1.

    Example:
        >>> match_lesions(np.array([1, 1, 0, 1, 0], bool), np.array([1, 1, 1, 0, 1], bool))
        Lesions(predicted=2, true=2, dsc=(0.8,))
    """
    known = CONNECTIVITIES[connectivity]
    full = known[min(pred.ndim, len(known) - 1)]
    found, real = _Runs.of(pred, full), _Runs.of(truth, full)
    first, second = _overlapping(found.starts, found.stops, real)
    common = np.minimum(found.stops[first], real.stops[second]) - np.maximum(found.starts[first], real.starts[second])
    a, b, shared = _summed(found.labels[first], real.labels[second], common, (found.count, real.count))
    total = found.sizes[a] + real.sizes[b]
    overlap = shared / (total - shared)
    dsc = 2 * shared / total
    good = np.flatnonzero(overlap >= threshold)
    # The order among equals is that of the labels, prediction first.
    good = good[np.lexsort((b[good], a[good], -overlap[good]))]
    taken: tuple[set[int], set[int]] = set(), set()
    matched = []
    for pair, i, j in zip(good.tolist(), a[good].tolist(), b[good].tolist(), strict=True):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            matched.append(float(dsc[pair]))
    return Lesions(found.count, real.count, tuple(matched))


def _summed(rows: Ints, columns: Ints, values: Ints, shape: tuple[int, int]) -> tuple[Ints, Ints, Ints]:
    """Add up the values of each pair of row and column; return the pairs and their sums."""
    from scipy import sparse

    # A sparse matrix does it without sorting.
    table: Any = sparse.coo_matrix((values, (rows, columns)), shape=shape).tocsr().tocoo()
    return table.row.astype(np.intp), table.col.astype(np.intp), table.data


@frozen(eq=False)
class _Runs:
    """The runs of a mask along its last axis, and which component each belongs to.

    Attributes:
        starts: Flat positions in the mask with one voxel of padding at the end of each axis, in order.
        stops: The same, behind the last voxel.
        labels: The component of each run, from 0.
        count: How many components there are.
        sizes: Their voxels.
    """

    starts: Ints
    stops: Ints
    labels: Ints
    count: int
    sizes: NDArray[np.float64]

    @classmethod
    def of(cls, mask: Bool, full: bool) -> _Runs:
        """Return the runs of a mask; `full`: whether voxels that share a corner are connected."""
        shape = tuple(n + 1 for n in mask.shape)
        buffer = np.zeros(math.prod(shape) + 1, np.bool_)
        padded = buffer[1:].reshape(shape)
        padded[tuple(slice(n) for n in mask.shape)] = mask
        changes = np.flatnonzero(buffer[1:] != buffer[:-1])
        starts, stops = np.ascontiguousarray(changes[::2]), np.ascontiguousarray(changes[1::2])
        if starts.size > _MANY * mask.size:
            count, labels = _labelled(padded, starts, full)
        else:
            count, labels = _joined(starts, stops, shape, full)
        sizes = np.bincount(labels, weights=stops - starts, minlength=count).astype(np.float64)
        return cls(starts, stops, labels, count, sizes)


def _labelled(padded: Bool, starts: Ints, full: bool) -> tuple[int, Ints]:
    """Label the voxels of a mask, and look up the labels of its runs."""
    from scipy import ndimage

    neighbors = ndimage.generate_binary_structure(padded.ndim, padded.ndim if full else 1)
    voxels, count = ndimage.label(padded, neighbors)
    return int(count), voxels.reshape(-1)[starts].astype(np.intp) - 1


def _joined(starts: Ints, stops: Ints, shape: tuple[int, ...], full: bool) -> tuple[int, Ints]:
    """Join the runs that touch."""
    from scipy import sparse

    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape) - 1)]
    reach = int(full)
    edges: list[tuple[Ints, Ints]] = []
    for steps in product((-1, 0, 1), repeat=len(strides)):
        # Each pair of neighboring rows once; rows that share no face touch with full connectivity only.
        if steps > (0,) * len(strides) and (full or sum(map(abs, steps)) == 1):
            offset = sum(step * stride for step, stride in zip(steps, strides, strict=True))
            # What reaches beyond the end of a row comes into the padding, where no run is.
            others = _Runs(starts, stops, starts, 0, np.empty(0))
            edges.append(_overlapping(starts + offset - reach, stops + offset + reach, others))
    rows = np.concatenate([first for first, _ in edges] or [np.empty(0, np.intp)])
    columns = np.concatenate([second for _, second in edges] or [np.empty(0, np.intp)])
    graph: Any = sparse.coo_matrix((np.ones(rows.size, np.bool_), (rows, columns)), shape=(starts.size,) * 2)
    count, labels = sparse.csgraph.connected_components(graph, directed=False)
    return int(count), labels.astype(np.intp)


def _overlapping(starts: Ints, stops: Ints, runs: _Runs) -> tuple[Ints, Ints]:
    """Return all pairs of one of the given intervals and one of the runs that have a position in common."""
    low = np.searchsorted(runs.stops, starts, "right")
    counts = np.maximum(np.searchsorted(runs.starts, stops, "left") - low, 0)
    first = np.repeat(np.arange(starts.size), counts)
    second = np.arange(first.size) - np.repeat(np.cumsum(counts) - counts - low, counts)
    return first, second
