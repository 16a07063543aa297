"""Rows of a batch that lie in files as they are, read all at once by compiled kernels, where those are installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsegpy_core.hdf5.kernels import DONE, BoxReads

if TYPE_CHECKING:
    from medsegpy_core.loading.sources import Places
    from medsegpy_core.typing import Array

__all__ = ["read_at_once"]


def read_at_once(places: Sequence[Places | None], images: Array, masks: Array | None, table: Array | None) -> list[int]:
    """Read the rows of a batch whose places are known.

    Args:
        places: Where image and mask of each row lie; None: they are not to be read here.
        images: N x ..., float32, C-contiguous.
        masks: N x ... x C, C-contiguous; None: no masks are wanted.
        table: What each combination of channels becomes, see `Collation.table`; None: no masks are wanted.

    Returns:
        The rows that are left to be read otherwise; what is in them is undefined.
    """
    image_reads, mask_reads = BoxReads(), BoxReads(table)
    rows = [(row, found) for row, found in enumerate(places) if found is not None]
    for row, found in rows:
        image_reads.add_image(found.image, row * images.strides[0])
        if masks is not None and found.mask is not None:
            mask_reads.add_mask(found.mask, found.channels, row * masks.strides[0])
    results = image_reads.read(images)
    mask_results = results if masks is None else mask_reads.read(masks)
    left = set(range(len(places)))
    for (row, _), result, mask_result in zip(rows, results, mask_results, strict=True):
        if result == mask_result == DONE:
            left.remove(row)
    return sorted(left)
