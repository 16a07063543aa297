"""Plan the elements of a loader: which boxes of which scans. Pure functions of shapes and settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from attrs import frozen

from medsegpy_core.errors import ConfigError, ShapeError
from medsegpy_core.loading.order import ElementRng
from medsegpy_core.loading.padding import Box, centered_padding

if TYPE_CHECKING:
    from medsegpy_core.data.records import Record
    from medsegpy_core.loading.sources import Source
    from medsegpy_core.typing import Array


@frozen
class Element:
    """What one row of a batch is.

    Attributes:
        record: The slice or the volume; for a window of several slices, the record of the middle one.
        window: One slice per axis (H, W, D) of the scan. If the window is padded, a start may be negative and a stop
            may lie beyond the end.
        number: The number of the element in the unshuffled list.
    """

    record: Record
    window: tuple[slice, slice, slice]
    number: int


def spatial_setting(
    name: str, value: Any, default: tuple[int, int, int] | None = None, minimum: int = 0
) -> tuple[int, int, int]:
    """Return a config value with one int per axis (H, W, D) as three ints.

    A fourth entry (the channel axis in MedSegPy's configs) is dropped. If there are only two, the third comes from
    `default`, or is 1.

    Raises:
        ConfigError: The value has another length, or an entry below `minimum`.
    """
    if not value and default is not None:
        return default
    entries = tuple(0 if v is None else v for v in value) if isinstance(value, Sequence) else ()
    if len(entries) == 2:
        entries += default[2:] if default is not None else (1,)
    entries = entries[:3] if len(entries) == 4 else entries
    if len(entries) != 3 or not all(isinstance(v, int) and v >= minimum for v in entries):
        raise ConfigError(
            f"{name} is {value!r}, expected three ints >= {minimum}, one per axis (H, W, D), as in (64, 64, 32)."
        )
    h, w, d = entries
    return h, w, d


def axis_starts(size: int, patch: int, pad: int, stride: int) -> list[int]:
    """Return the starts of a grid of patches along one axis.

    Patches start at -pad, -pad + stride, ... as long as they end within size + pad. An axis shorter than the patch is
    padded on both sides and has one centered patch.

    Example:
        >>> axis_starts(10, 4, 0, 3), axis_starts(10, 5, 3, 5), axis_starts(3, 8, 0, 8)
        ([0, 3, 6], [-3, 2, 7], [-2])
    """
    if size + 2 * pad < patch:
        return [-((patch - size) // 2)]
    return list(range(-pad, size + pad - patch + 1, stride))


def covering_starts(size: int, patch: int, pad: int, stride: int) -> list[int]:
    """Return `axis_starts` such that every voxel is covered.

    If the grid stops short of the end, one more patch is added, flush with the end. The stride is at most the patch
    size, so there are no gaps. Patches that lie entirely in the padding are left out.

    Example:
        >>> covering_starts(10, 4, 0, 4)
        [0, 4, 6]
    """
    starts = [start for start in axis_starts(size, patch, pad, min(stride, patch)) if -patch < start < size]
    if starts[-1] + patch < size:
        starts.append(size - patch)
    return starts


def grid_starts(
    shape: Sequence[int], patch: Sequence[int], pad: Sequence[int], stride: Sequence[int], cover: bool = False
) -> list[tuple[int, ...]]:
    """Return the starts of a grid of patches in C order; with `cover`, the patches cover every voxel."""
    along = covering_starts if cover else axis_starts
    return list(itertools.product(*map(along, shape, patch, pad, stride)))


def compute_patches(
    img_size: Sequence[int],
    patch_size: Sequence[int | None],
    pad_size: int | Sequence[int | None] | None = None,
    strides: int | Sequence[int] | None = None,
) -> list[tuple[tuple[slice, ...], tuple[tuple[int, int], ...] | None]]:
    """List the patches of the grid that `PatchDataLoader` cuts.

    Args:
        img_size: The shape of the scan, any number of axes.
        patch_size: The shape of a patch; None: the whole axis.
        pad_size: Padding on each side in voxels, for all axes or per axis; None: no padding.
        strides: For all axes or per axis; None: the patch size.

    Returns:
        For each patch, in C order: the slices inside the scan, and the `pad_width` that `numpy.pad` needs to complete
        them (None: no padding).

    Raises:
        ValueError: The numbers of axes differ, or a patch fits into the padding and so would contain no voxel.

    Example:
        >>> compute_patches((8,), (4,), pad_size=1)
        [((slice(0, 3, None),), ((1, 0),)), ((slice(3, 7, None),), None)]
    """
    axes = len(img_size)
    patch = [size if p is None else p for p, size in zip(patch_size, img_size, strict=True)]
    pads = [pad_size or 0] * axes if pad_size is None or isinstance(pad_size, int) else [p or 0 for p in pad_size]
    steps = [strides] * axes if isinstance(strides, int) else list(strides or patch)
    if not len(pads) == len(steps) == axes:
        raise ValueError(
            f"img_size {img_size}, pad_size {pad_size} and strides {strides} differ in their number of axes."
        )
    if any(p >= n for p, n in zip(pads, patch, strict=True)):
        raise ValueError(f"pad_size {pad_size} must be smaller than patch_size {patch_size} on every axis.")
    patches = []
    for start in grid_starts(img_size, patch, pads, steps):
        box = Box(start, tuple(patch))
        inside = tuple(slice(max(0, w.start), min(n, w.stop)) for w, n in zip(box.window, img_size, strict=True))
        missing = tuple((max(0, -w.start), max(0, w.stop - n)) for w, n in zip(box.window, img_size, strict=True))
        patches.append((inside, missing if any(map(any, missing)) else None))
    return patches


Shape3 = tuple[int, int, int]
# Flat indices of the voxels of each category that is present in a scan.
Locations = Callable[[], Sequence["Array"]]
# (number of the scan, three ints whose meaning depends on the kind of window)
Planned = tuple[int, Shape3]


class Windows(Protocol):
    """How a loader cuts elements out of scans."""

    @property
    def depth_is_channel(self) -> bool:
        """Whether D is the channel axis."""

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List the elements of an epoch."""

    def box(self, source: Source, planned: Shape3, rng: ElementRng, locations: Locations) -> Box:
        """Return the box of one element."""

    def cover(self, source: Source) -> list[Box]:
        """Return the boxes that inference predicts; they cover the scan."""


@frozen
class SliceWindows:
    """Every slice, with its neighbors.

    Attributes:
        depth: Slices per window, odd.
        in_plane: The H and W to which slices are padded on both sides; None: no padding.
    """

    depth: int = 1
    in_plane: tuple[int, int] | None = None
    depth_is_channel = True

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List the slices in the order of the dataset dicts."""
        found: list[tuple[tuple[int, int], Planned]] = []
        for number, source in enumerate(sources):
            for record, position in zip(source.scan.records, source.scan.positions, strict=True):
                if record.labelled or keep_unlabelled:
                    depths = [record.slice_id - 1] if record.slice_id else range(source.geometry.shape[2])
                    found += [((position, d), (number, (0, 0, d - self.depth // 2))) for d in depths]
        return [planned for _, planned in sorted(found)]

    def box(self, source: Source, planned: Shape3, rng: ElementRng, locations: Locations) -> Box:
        """Place the window, padded in plane."""
        h, w, _ = source.geometry.shape
        height, width = self.in_plane or (h, w)
        if h > height or w > width:
            raise ShapeError(
                f"{source.scan.records[0].file_name} is {h} x {w}, larger than IMG_SIZE {height} x {width}. Slices are "
                "padded to IMG_SIZE, never cropped: increase IMG_SIZE, or crop the slices when you write the files."
            )
        return Box((-centered_padding(h, height), -centered_padding(w, width), planned[2]), (height, width, self.depth))

    def cover(self, source: Source) -> list[Box]:
        """Return one window per slice, padded at the ends."""
        return [self.box(source, (0, 0, d - self.depth // 2), _NO_RNG, list) for d in range(source.geometry.shape[2])]


@frozen
class VolumeWindows(SliceWindows):
    """Windows along the last axis that lie inside the scan after `pad` slices of padding at each end.

    Attributes:
        pad: Slices of padding at each end.
        stride: Slices between the starts of windows.
    """

    pad: int = 0
    stride: int = 1

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List the windows of each scan."""
        found = []
        for number, source in enumerate(sources):
            depth = source.geometry.shape[2]
            for start in axis_starts(depth, self.depth, self.pad, self.stride):
                middle = min(max(start + self.depth // 2, 0), depth - 1)
                if keep_unlabelled or source.record_at(middle).labelled:
                    found.append((number, (0, 0, start)))
        return found


@frozen
class GridWindows:
    """A grid of patches.

    Attributes:
        patch: Voxels per axis.
        pad: Voxels of padding on each side, per axis.
        stride: Voxels between the starts of patches, per axis.
    """

    patch: Shape3
    pad: Shape3
    stride: Shape3
    depth_is_channel = False

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List the patches of each scan in C order, without those that reach into unlabelled slices."""
        found = []
        for number, source in enumerate(sources):
            shape = source.geometry.shape
            wanted = {
                d: keep_unlabelled or _all_labelled(source, d, d + self.patch[2])
                for d in axis_starts(shape[2], self.patch[2], self.pad[2], self.stride[2])
            }
            starts = grid_starts(shape, self.patch, self.pad, self.stride)
            found += [(number, (h, w, d)) for h, w, d in starts if wanted[d]]
        return found

    def box(self, source: Source, planned: Shape3, rng: ElementRng, locations: Locations) -> Box:
        """Return the patch."""
        return Box(planned, self.patch)

    def cover(self, source: Source) -> list[Box]:
        """Return the grid, plus patches flush with the end of an axis if the grid stops short of it."""
        starts = grid_starts(source.geometry.shape, self.patch, self.pad, self.stride, cover=True)
        return [Box(start, self.patch) for start in starts]


@frozen
class RandomWindows:
    """Random patches; the first `foreground` of each scan are centered on a foreground voxel.

    Attributes:
        patch: Voxels per axis.
        pad: Voxels of padding on each side that patches may reach into, per axis.
        per_scan: Patches per scan and epoch.
        foreground: How many of them are centered on foreground.
    """

    patch: Shape3
    pad: Shape3
    per_scan: int
    foreground: int
    depth_is_channel = False

    @classmethod
    def of(cls, patch: Shape3, pad: Shape3, per_scan: int, ratio: float) -> RandomWindows:
        """Turn the share of foreground patches into a number: ``ceil(per_scan * ratio)``."""
        # Round first: a floating-point error must not turn 1/3 of 3 patches into 2.
        return cls(patch, pad, per_scan, math.ceil(round(per_scan * ratio, 9)))

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List `per_scan` patches of each completely labelled scan."""
        return [
            (number, (patch, 0, 0))
            for number, source in enumerate(sources)
            if keep_unlabelled or source.scan.labelled
            for patch in range(self.per_scan)
        ]

    def box(self, source: Source, planned: Shape3, rng: ElementRng, locations: Locations) -> Box:
        """Draw the patch."""
        shape = source.geometry.shape
        bounds = [_bounds(size, patch, pad) for size, patch, pad in zip(shape, self.patch, self.pad, strict=True)]
        draw = rng()
        if planned[0] < self.foreground and (present := locations()):
            voxels = present[int(draw.integers(len(present)))]
            center = np.unravel_index(int(voxels[int(draw.integers(len(voxels)))]), shape)
            wanted = [int(c) - patch // 2 for c, patch in zip(center, self.patch, strict=True)]
            h, w, d = (min(max(start, low), high) for start, (low, high) in zip(wanted, bounds, strict=True))
        else:
            h, w, d = (int(draw.integers(low, high + 1)) for low, high in bounds)
        return Box((h, w, d), self.patch)

    def cover(self, source: Source) -> list[Box]:
        """Return a grid with a stride of half a patch."""
        stride = [max(1, patch // 2) for patch in self.patch]
        starts = grid_starts(source.geometry.shape, self.patch, self.pad, stride, cover=True)
        return [Box(start, self.patch) for start in starts]


# For windows that draw no random numbers.
_NO_RNG = ElementRng(0, 0, 0)


def _bounds(size: int, patch: int, pad: int) -> tuple[int, int]:
    """Return the lowest and the highest start of a patch along an axis."""
    if size + 2 * pad < patch:
        start = -centered_padding(size, patch)
        return start, start
    return -pad, size + pad - patch


def _all_labelled(source: Source, start: int, stop: int) -> bool:
    if source.scan.is_volume:
        return source.scan.labelled
    depth = source.geometry.shape[2]
    inside = range(min(max(start, 0), depth - 1), max(min(stop, depth), 1))
    return all(source.record_at(d).labelled for d in inside)
