"""Which boxes of which scans are the elements of a loader: pure functions of shapes and settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from medsegpy_core.errors import ConfigError
from medsegpy_core.loading.padding import Box

if TYPE_CHECKING:
    from medsegpy_core.records import Record

__all__ = ["Element", "axis_starts", "compute_patches", "covering_starts", "grid_starts", "spatial_setting"]


@frozen
class Element:
    """What one row of a batch is.

    Attributes:
        record: The slice or the volume; for a window of several slices, the record of the middle one.
        window: One slice per axis (H, W, D) of the scan; a start may be negative and a stop beyond the end where
            the window is padded.
        number: The number of the element in the unshuffled list.
    """

    record: Record
    window: tuple[slice, slice, slice]
    number: int


def spatial_setting(
    name: str, value: Any, default: tuple[int, int, int] | None = None, minimum: int = 0
) -> tuple[int, int, int]:
    """Return a config value that has one int per axis (H, W, D) as three ints.

    A fourth entry (the channel axis of MedSegPy's configs) is dropped; of two, the third is `default`'s or 1.

    Raises:
        ConfigError: It has another length, or an entry below `minimum`.
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
    """Return where the patches of a grid start along one axis.

    They start at -pad, -pad + stride, ... while they end within size + pad. An axis that is shorter than the patch
    is padded to it, centred, and has one patch.

    Example:
        >>> axis_starts(10, 4, 0, 3), axis_starts(10, 5, 3, 5), axis_starts(3, 8, 0, 8)
        ([0, 3, 6], [-3, 2, 7], [-2])
    """
    if size + 2 * pad < patch:
        return [-((patch - size) // 2)]
    return list(range(-pad, size + pad - patch + 1, stride))


def covering_starts(size: int, patch: int, pad: int, stride: int) -> list[int]:
    """Return `axis_starts`, and where the grid stops short of the end one patch more, flush with it, so that every
    voxel is covered.

    A stride that is larger than the patch is taken as the patch, which leaves no gaps. Patches that lie in the padding
    altogether are left out.

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
    """Return the starts of a grid of patches in C order, last axis fastest; with `cover` every voxel is in one."""
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
        pad_size: Voxels that are padded on each side, for all axes or per axis; None: none.
        strides: For all axes or per axis; None: the patch size.

    Returns:
        For each patch, in C order, the slices that lie inside the scan, and what `numpy.pad` has to add to them
        (None: nothing).

    Raises:
        ValueError: The numbers of axes differ, or patches fit into the padding: those hold no voxel to pad from.

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
