"""What a layout costs: how many bytes reading a slice or a patch goes through, and how many it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import frozen

from medsegpy_core.hdf5.observing import observed
from medsegpy_core.lazy import full_selection, read_into
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.masks import LabelMapView
from medsegpy_core.opening import CanonicalScan

if TYPE_CHECKING:
    from medsegpy_core.typing import LazyArray, Selection

__all__ = ["AccessCost", "access_costs"]

_PATCH: Final = (64, 64, 64)
# Where a better layout is worth telling of.
_WASTE: Final = 2.0
_BITS: Final = 8


@frozen
class AccessCost:
    """What one read of a kind costs.

    Attributes:
        what: ``"slice"`` or ``"patch"``.
        touched: Bytes that were read, or decoded, whichever is more.
        needed: Bytes that a better layout would take: those of the image's box, and of the mask's as bits.
    """

    what: str
    touched: int
    needed: int

    @property
    def wasteful(self) -> bool:
        """Whether it costs more than twice what a better layout would."""
        return self.touched > _WASTE * self.needed

    def advice(self, dataset: str) -> str:
        """Say what to do about it, in the dataset of this name."""
        layout = "slices" if self.what == "slice" else "patches"
        return (
            f"reading a {self.what} goes through {self.touched / self.needed:.1f} times the bytes that it needs; "
            f"medsegpy pack {dataset} --layout {layout} mends that"
        )


def access_costs(scan: Scan, opener: Opener) -> list[AccessCost]:
    """Read a slice and a patch of a scan, and return what that took; empty for files that are not HDF5.

    Raises:
        ReadError: The scan cannot be read.
    """
    record = scan.records[len(scan.records) // 2]
    with opener.open(record) as opened:
        shape = opened.image.shape[: 3 if scan.is_volume else 2]
        if not scan.is_volume:
            boxes = {"slice": full_selection(shape)}
        else:
            middle = shape[2] // 2
            boxes = {"slice": (*full_selection(shape[:2]), slice(middle, middle + 1)), "patch": _patch(shape)}
        costs = (_cost(what, opened, box) for what, box in boxes.items())
        return [cost for cost in costs if cost.touched]


def _patch(shape: Sequence[int]) -> Selection:
    sizes = [min(n, p) for n, p in zip(shape, _PATCH, strict=True)]
    # Not at the corner of a chunk: patches lie anywhere.
    return tuple(slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(shape, sizes, strict=True))


def _cost(what: str, opened: CanonicalScan, box: Selection) -> AccessCost:
    voxels = int(np.prod([part.stop - part.start for part in box]))
    channels = int(np.prod(opened.image.shape[len(box) :]))
    needed = voxels * channels * opened.image.dtype.itemsize
    with observed() as costs:
        _read(opened.image, box)
        if opened.mask is not None:
            if isinstance(opened.mask, LabelMapView):
                # It is not asked for its channels: to count them it may have to be read whole.
                _read(opened.mask.array, box)
                needed += voxels * opened.mask.array.dtype.itemsize
            else:
                _read(opened.mask, box)
                needed += voxels * -(-opened.mask.shape[-1] // _BITS)
    return AccessCost(what, costs.bytes_touched, needed)


def _read(array: LazyArray, box: Selection) -> None:
    selection = (*box, *full_selection(array.shape[len(box) :]))
    read_into(array, selection, np.empty([part.stop - part.start for part in selection], array.dtype))
