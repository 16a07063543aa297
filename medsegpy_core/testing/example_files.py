"""Small scans to test with, and files of them in the two HDF5 formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from medsegpy_core.typing import Array, DatasetDict

__all__ = ["Example", "example_scan", "write_slice_files", "write_volume_file"]


class Example(NamedTuple):
    """A file and what is in it.

    Attributes:
        dataset_dict: The dataset dict of a slice or of a volume.
        image: What `open_scan` must give: H x W for a slice, H x W x D for a volume, [x K]. None: not known.
        mask: H x W [x D] x C, 0 and 1. None: unlabelled, or not known.
    """

    dataset_dict: DatasetDict
    image: Array | None = None
    mask: Array | None = None


def example_scan(
    shape: Sequence[int] = (12, 10, 6), channels: int = 2, dtype: str = "float32", seed: int = 0
) -> tuple[Array, Array]:
    """Make an image of noise, and a mask with voxels of every class.

    Args:
        shape: H, W and D.
        channels: How many classes; they overlap nowhere, so that the mask can be stored as a label map.
        dtype: The type of the image.
        seed: Another seed, other values.

    Returns:
        The image, H x W x D, of whole numbers from 0 to 250; and the mask, H x W x D x C, uint8.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    image = rng.integers(0, 251, shape).astype(dtype)
    labels = rng.integers(0, channels + 1, shape)
    mask = labels[..., None] == np.arange(1, channels + 1)
    return image, mask.astype(np.uint8)


def write_slice_files(
    root: str | Path,
    *,
    shape: Sequence[int] = (12, 10, 6),
    channels: int = 2,
    subject_id: int = 1,
    time_point: int = 0,
    augmentation: int = 0,
    labelled: bool = True,
) -> list[DatasetDict]:
    """Write `example_scan`, with the subject as its seed, as 2D slices: ``.im`` and ``.seg`` files.

    Returns:
        The dataset dicts of the slices.
    """
    from medsegpy_core.hdf5 import write_slices

    image, mask = example_scan(shape, channels, seed=subject_id)
    return write_slices(
        root,
        image,
        mask if labelled else None,
        subject_id=subject_id,
        time_point=time_point,
        augmentation=augmentation,
    )


def write_volume_file(
    path: str | Path, *, shape: Sequence[int] = (12, 10, 6), channels: int = 2, seed: int = 1, labelled: bool = True
) -> DatasetDict:
    """Write `example_scan` as a volume: one file with ``volume`` and ``seg``.

    Returns:
        The dataset dict of the volume.
    """
    from medsegpy_core.hdf5 import write_volume

    image, mask = example_scan(shape, channels, seed=seed)
    written: dict[str, Any] = write_volume(path, image, mask if labelled else None)
    return written
