"""The five ways to cut elements out of scans. Nothing else in the loaders knows which one is at work.

* `elements` lists the elements of an epoch: for each the number of its scan and three ints that `box` understands.
* `box` says which voxels an element is.
* `cover` lists the boxes whose predictions together cover a whole scan.
* `depth_is_channel`: the box's D is the channel axis of the image, and the mask is that of the middle slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from attrs import frozen

from medsegpy_core.errors import ShapeError
from medsegpy_core.loading.order import ElementRng
from medsegpy_core.loading.padding import Box, centred_padding
from medsegpy_core.loading.plan import axis_starts, grid_starts

if TYPE_CHECKING:
    from medsegpy_core.loading.sources import Source
    from medsegpy_core.typing import Array

__all__ = ["GridWindows", "Locations", "RandomWindows", "SliceWindows", "VolumeWindows", "Windows"]

Shape3 = tuple[int, int, int]
# Flat indices of the voxels of each category that is present in a scan.
Locations = Callable[[], Sequence["Array"]]
# (number of the scan, three ints that the kind of window understands)
Planned = tuple[int, Shape3]


class Windows(Protocol):
    """See the module."""

    @property
    def depth_is_channel(self) -> bool:
        """Whether D is the channel axis."""

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List the elements."""

    def box(self, source: Source, planned: Shape3, rng: ElementRng, locations: Locations) -> Box:
        """Place an element."""

    def cover(self, source: Source) -> list[Box]:
        """Cover a scan."""


@frozen
class SliceWindows:
    """Every slice, with its neighbours.

    Attributes:
        depth: How many slices a window has, odd.
        in_plane: The H and W that slices are padded to, centred; None: as they are.
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
                "padded to IMG_SIZE, never cut: raise it, or crop them when you write the files."
            )
        return Box((-centred_padding(h, height), -centred_padding(w, width), planned[2]), (height, width, self.depth))

    def cover(self, source: Source) -> list[Box]:
        """One window for every slice, padded at the ends."""
        return [self.box(source, (0, 0, d - self.depth // 2), _NO_RNG, list) for d in range(source.geometry.shape[2])]


@frozen
class VolumeWindows(SliceWindows):
    """Windows along the last axis that lie inside the scan, padded by `pad` slices at each end.

    Attributes:
        pad: Slices of padding at each end.
        stride: Slices from one window to the next.
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
        stride: Voxels from one patch to the next, per axis.
    """

    patch: Shape3
    pad: Shape3
    stride: Shape3
    depth_is_channel = False

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List the patches of each scan in C order; those that reach into unlabelled slices are left out."""
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
        """The patch."""
        return Box(planned, self.patch)

    def cover(self, source: Source) -> list[Box]:
        """The grid, and patches flush with the end where it stops short."""
        starts = grid_starts(source.geometry.shape, self.patch, self.pad, self.stride, cover=True)
        return [Box(start, self.patch) for start in starts]


@frozen
class RandomWindows:
    """Random patches; the first `foreground` of each scan are centred on a voxel of a category.

    Attributes:
        patch: Voxels per axis.
        pad: Voxels of padding on each side that patches may reach into, per axis.
        per_scan: Patches a scan and epoch.
        foreground: How many of them are centred on foreground.
    """

    patch: Shape3
    pad: Shape3
    per_scan: int
    foreground: int
    depth_is_channel = False

    @classmethod
    def of(cls, patch: Shape3, pad: Shape3, per_scan: int, ratio: float) -> RandomWindows:
        """Turn the share of foreground patches into a number: ``ceil(per_scan * ratio)``."""
        # Rounded first, so that 1/3 of 3 patches is one, not two, whatever the last bit says.
        return cls(patch, pad, per_scan, math.ceil(round(per_scan * ratio, 9)))

    def elements(self, sources: Sequence[Source], keep_unlabelled: bool) -> list[Planned]:
        """List `per_scan` patches of each scan that is labelled throughout."""
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
            centre = np.unravel_index(int(voxels[int(draw.integers(len(voxels)))]), shape)
            wanted = [int(c) - patch // 2 for c, patch in zip(centre, self.patch, strict=True)]
            h, w, d = (min(max(start, low), high) for start, (low, high) in zip(wanted, bounds, strict=True))
        else:
            h, w, d = (int(draw.integers(low, high + 1)) for low, high in bounds)
        return Box((h, w, d), self.patch)

    def cover(self, source: Source) -> list[Box]:
        """A grid with a stride of half a patch."""
        stride = [max(1, patch // 2) for patch in self.patch]
        starts = grid_starts(source.geometry.shape, self.patch, self.pad, stride, cover=True)
        return [Box(start, self.patch) for start in starts]


# For boxes that draw nothing.
_NO_RNG = ElementRng(0, 0, 0)


def _bounds(size: int, patch: int, pad: int) -> tuple[int, int]:
    """Return the first and the last start of a patch along an axis."""
    if size + 2 * pad < patch:
        start = -centred_padding(size, patch)
        return start, start
    return -pad, size + pad - patch


def _all_labelled(source: Source, start: int, stop: int) -> bool:
    if source.scan.is_volume:
        return source.scan.labelled
    depth = source.geometry.shape[2]
    inside = range(min(max(start, 0), depth - 1), max(min(stop, depth), 1))
    return all(source.record_at(d).labelled for d in inside)
