"""Small scans for tests, files with them in the two HDF5 formats, and file helpers for checks."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from medsegpy_core.data.records import Record
from medsegpy_core.datasets import make_records
from medsegpy_core.reading import canonical_scan
from medsegpy_core.typing import DatasetDict, LazyArray, OpenScan, Reader

if TYPE_CHECKING:
    from medsegpy_core.typing import Array, DatasetDict


class Example(NamedTuple):
    """A file and its expected content.

    Attributes:
        dataset_dict: The dataset dict of a slice or of a volume.
        image: The expected image of `open_scan`: H x W for a slice, H x W x D for a volume, [x K]. None: unknown.
        mask: H x W [x D] x C, 0 and 1. None: unlabelled or unknown.
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
        channels: The number of classes. They do not overlap, so that the mask can be stored as a label map.
        dtype: The type of the image.
        seed: A different seed gives different values.

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


def record_of(d: DatasetDict, dataset: str = "") -> Record:
    """Return the record of a dataset dict, with absolute paths."""
    (record,) = make_records([d], [dataset])
    return record


def files_of(record: Record) -> list[Path]:
    """Return the files of a record, each once."""
    return list(dict.fromkeys(path for path in (record.file_name, record.sem_seg_file) if path is not None))


def copied(record: Record, folder: Path) -> Record:
    """Copy the files of a record into a new folder, with the same names, and return the record of the copies."""
    folder.mkdir(parents=True)
    copies: dict[Path, Path] = {}
    for number, path in enumerate(files_of(record)):
        # Image and mask may have the same name in two folders.
        copies[path] = folder / str(number) / path.name
        copies[path].parent.mkdir()
        if path.is_dir():
            shutil.copytree(path, copies[path])
        else:
            shutil.copyfile(path, copies[path])
    d = {**record.to_dict(), "file_name": str(copies[record.file_name])}
    if record.sem_seg_file is not None:
        d["sem_seg_file"] = str(copies[record.sem_seg_file])
    return Record.from_dict(d, record.dataset, record.index)


def arrays_of(scan: OpenScan) -> Iterator[tuple[str, LazyArray]]:
    """Yield the arrays of an open scan with their names."""
    yield "image", scan.image
    if scan.mask is not None:
        yield "mask", scan.mask


def read_all(reader: Reader, record: Record) -> dict[str, Array]:
    """Read the arrays of a record as the reader returns them."""
    with reader.open(record) as scan:
        return {name: array[...] for name, array in arrays_of(scan)}


def digest(scan: OpenScan) -> str:
    """Return a hash of all arrays of an open scan, their shapes and types."""
    found = hashlib.sha256()
    for name, array in arrays_of(scan):
        values: Any = array[...]
        found.update(f"{name} {values.shape} {values.dtype.str}".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def read_digest(reader: Reader, record: Record, canonical: bool = False) -> str:
    """Open a record and return its `digest`; with `canonical`, that of the arrays of `open_scan`."""
    # Not `open_record`, which turns the reader's exceptions into ReadErrors: the checks are about the reader itself.
    with reader.open(record) as scan:
        return digest(canonical_scan.canonical(scan, record, None) if canonical else scan)


def open_descriptors(paths: list[Path]) -> list[str]:
    """Return the files that this process has open. Linux only."""
    wanted = {os.path.realpath(path) for path in paths}
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # closed in the meantime
        if target in wanted:
            found.append(target)
    return found
