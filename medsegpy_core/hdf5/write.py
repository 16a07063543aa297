"""Write HDF5 files atomically, in the two file formats: one file per slice, or one per volume.

A file is written under a temporary name in the same folder, flushed, read back, and renamed.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core._util.atomic import Staging
from medsegpy_core.data.geometry import given_geometry
from medsegpy_core.data.naming import SliceName, parse_identity
from medsegpy_core.errors import ReadError, ShapeError
from medsegpy_core.hdf5.array import open_array
from medsegpy_core.hdf5.files import open_file
from medsegpy_core.text import some

if TYPE_CHECKING:
    import h5py

    from medsegpy_core.typing import Array, DatasetDict


class _Disk:
    """The file object that h5py needs, on a file descriptor. It keeps the first error instead of raising it.

    After an error it ignores further writes, so that the library, which cannot handle failures, still closes the file.

    Attributes:
        error: The first error; None: no error.
    """

    def __init__(self, fd: int):
        self.error: OSError | None = None
        self._fd = fd
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (os.fstat(self._fd).st_size if base is None else base)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += os.pwrite(self._fd, view[done:], self._at + done)
        except OSError as error:
            self.error = error
        self._at += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = os.pread(self._fd, len(view), self._at)
        except OSError as error:
            self.error = self.error or error
            data = b""
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._fd, size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""


@contextmanager
def create_h5(staging: Staging, path: str) -> Iterator[h5py.File]:
    """Open a new file for writing with h5py; it gets the name `path` when the staging ends."""
    import h5py

    with staging.create(path) as fd:
        disk = _Disk(fd)
        try:
            with h5py.File(disk, "w") as file:
                yield file
        finally:
            if disk.error is not None:
                raise OSError(disk.error.errno, os.strerror(disk.error.errno or 0), path) from disk.error
    with open_file(staging.temporary(path)):
        pass  # a truncated file would not open


@contextmanager
def atomic_h5(path: str | Path, overwrite: bool = False) -> Iterator[h5py.File]:
    """Write an HDF5 file that appears complete or not at all.

    Args:
        path: The file; its folder must exist.
        overwrite: Whether to replace an existing file.

    Yields:
        An ``h5py.File`` under a temporary name in the same folder, which is renamed when the block ends without an
        error.

    Raises:
        FileExistsError: The file exists, and `overwrite` is False.
        OSError: The disk is full or fails; the temporary file is removed.

    Example:
        ```python
        with atomic_h5("0000001_V00.h5") as file:
            file["volume"] = volume
        ```
    """
    with Staging(overwrite) as staging, create_h5(staging, os.path.abspath(path)) as file:  # noqa: PTH100
        yield file


_CHECKED_BYTES: Final = 32 << 20
_OTHER: Final = "the data read back differ from the data written; check the disk"


def write_slices(
    root: str | Path,
    image: Array,
    mask: Array | None = None,
    *,
    subject_id: int,
    time_point: int = 0,
    augmentation: int = 0,
    compression: str | int | None = None,
    overwrite: bool = False,
    spacing: Sequence[float] | None = None,
    affine: Any = None,
) -> list[DatasetDict]:
    """Write a scan as 2D slices: an ``.im`` file per slice and, if there is a mask, a ``.seg`` file.

    All files appear together, after all of them have been written and read back; on failure none does.

    Args:
        root: The folder; it is created if necessary.
        image: H x W x D, or H x W x D x K for K channels, which are stored as H x W x 1 x K; any real number type.
        mask: H x W x D x C with 0 and 1; stored as uint8.
        subject_id: The person, a number: names of slice files cannot contain text.
        time_point: The visit, a number.
        augmentation: The number of the augmentation, 0 for an original.
        compression: None, ``"gzip"``, ``"lzf"``, or the level of gzip (0 to 9).
        overwrite: Whether to replace existing files.
        spacing: Millimeters, dH, dW and dD, stored with each slice; None: unknown, or taken from the affine.
        affine: 4 x 4, from voxel index (h, w, d) of the scan to RAS+ millimeters, stored per slice; None: unknown.

    Returns:
        The dataset dicts of the slices. With K channels they have ``image_axes="HWDC"``, because the files do not
        store it.

    Raises:
        FileExistsError: A file exists, and `overwrite` is False. No file is written.
        ShapeError: The arrays have other axes, or do not fit together.
        TypeError: The elements are not real numbers.
        ValueError: The mask is not binary, the compression is unknown, an id is text, or spacing and affine are invalid
            or contradict each other.

    Example:
        ```python
        dicts = write_slices("train", image, mask, subject_id=42)
        ```
    """
    image, mask = _checked(image, mask)
    options, geometry = _options(compression), given_geometry(spacing, affine)
    depth = image.shape[2]
    subject, visit, tag = (
        _number("subject_id", subject_id),
        _number("time_point", time_point),
        operator.index(augmentation),
    )
    names = [SliceName(subject, visit, tag, k) for k in range(1, depth + 1)]
    folder = os.path.abspath(root)  # noqa: PTH100
    stems = [f"{folder}{os.sep}{name.stem}" for name in names]
    with Staging(overwrite) as staging:
        suffixes = (".im",) if mask is None else (".im", ".seg")
        staging.refuse_existing(stem + suffix for stem in stems for suffix in suffixes)
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        for k, stem in enumerate(stems):
            _write(staging, stem + ".im", {"data": image[:, :, k : k + 1]}, options, geometry)
            if mask is not None:
                _write(staging, stem + ".seg", {"data": mask[:, :, k : k + 1]}, options, {})
    labelled, axes = mask is not None, _axes(image)
    return [_slice_dict(stem, name, depth, labelled) | axes for stem, name in zip(stems, names, strict=True)]


def write_volume(
    path: str | Path,
    image: Array,
    mask: Array | None = None,
    *,
    compression: str | int | None = None,
    overwrite: bool = False,
    spacing: Sequence[float] | None = None,
    affine: Any = None,
) -> DatasetDict:
    """Write a scan as one file with the datasets ``volume`` and, if there is a mask, ``seg``.

    Args:
        path: The file; its folder is created if necessary.
        image: H x W x D, or H x W x D x K for K channels; any real number type.
        mask: H x W x D x C with 0 and 1; stored as uint8.
        compression: None, ``"gzip"``, ``"lzf"``, or the level of gzip (0 to 9); chunks are whole slices.
        overwrite: Whether to replace an existing file.
        spacing: Millimeters, dH, dW and dD; None: unknown, or taken from the affine.
        affine: 4 x 4, from voxel index (h, w, d) to RAS+ millimeters; None: unknown.

    Returns:
        The dataset dict of the volume. `scan_id` is the name of the file without its suffix. With K channels it has
        ``image_axes="HWDC"``, because the file does not store it.

    Raises:
        FileExistsError: The file exists, and `overwrite` is False.
        ShapeError: The arrays have other axes, or do not fit together.
        TypeError: The elements are not real numbers.
        ValueError: The mask is not binary, the compression is unknown, or spacing and affine are invalid or contradict
            each other.

    Example:
        ```python
        record = write_volume("train/0000042_V00.h5", image, mask, compression="gzip")
        ```
    """
    image, mask = _checked(image, mask)
    options, geometry = _options(compression), given_geometry(spacing, affine)
    file_name = os.path.abspath(path)  # noqa: PTH100
    with Staging(overwrite) as staging:
        staging.refuse_existing([file_name])
        os.makedirs(os.path.dirname(file_name), exist_ok=True)  # noqa: PTH103, PTH120
        _write(staging, file_name, {"volume": image} | ({} if mask is None else {"seg": mask}), options, geometry)
    stem = os.path.splitext(os.path.basename(file_name))[0]  # noqa: PTH122
    labels = {} if mask is None else {"sem_seg_file": file_name}
    return {"file_name": file_name, **labels, "scan_id": stem, **parse_identity(stem), **_axes(image)}


def _number(key: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        if not isinstance(value, str):
            raise
        raise ValueError(
            f"write_slices({key}={value!r}): names of slice files contain numbers, not text. Assign numbers and keep "
            "the table, or use convert, which numbers subjects and stores the table. write_volume, and "
            f"{key} in the dataset dict, accept text."
        ) from None


def _slice_dict(stem: str, name: SliceName, depth: int, labelled: bool) -> DatasetDict:
    return {
        "file_name": stem + ".im",
        **({"sem_seg_file": stem + ".seg"} if labelled else {}),
        "scan_id": name.scan_id,
        "slice_id": name.slice_id,
        "scan_num_slices": depth,
        "subject_id": name.subject_id,
        "time_point": name.time_point,
        "augmentation": name.augmentation,
    }


def _axes(image: Array) -> DatasetDict:
    """Return the ``image_axes`` of a dict; without them, readers reject a fourth axis as ambiguous."""
    return {} if image.ndim == 3 else {"image_axes": "HWDC"}


def _checked(image: Array, mask: Array | None) -> tuple[Array, Array | None]:
    image = np.asarray(image)
    _check_numbers(image, "image")
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise ShapeError(
            f"The image must be H x W x D or H x W x D x K, without axes of size 0, but its shape is {image.shape}."
        )
    if mask is None:
        return image, None
    mask = np.asarray(mask)
    _check_numbers(mask, "mask")
    if mask.ndim != 4 or mask.shape[:3] != image.shape[:3] or mask.shape[3] == 0:
        hint = " One class needs its own axis: mask[..., None]." if mask.shape == image.shape[:3] else ""
        raise ShapeError(
            f"The mask must be H x W x D x C on the image's {image.shape[:3]}, but its shape is {mask.shape}.{hint}"
        )
    binary = np.equal(mask, 1)
    if not np.array_equal(binary, mask):
        values = np.unique(mask)
        hint = " Divide it by 255." if values.tolist() == [0, 255] else ""
        raise ValueError(f"The mask must contain only 0 and 1, but it contains {some(values)}.{hint}")
    return image, binary.view(np.uint8)


def _check_numbers(array: Array, what: str) -> None:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"The {what} must have real numbers or booleans, but its dtype is {array.dtype}.")


def _options(compression: str | int | None) -> dict[str, Any]:
    if compression is None:
        return {}
    if compression in ("gzip", "lzf") and isinstance(compression, str):
        return {"compression": compression}
    if isinstance(compression, int) and not isinstance(compression, bool) and 0 <= compression <= 9:
        return {"compression": "gzip", "compression_opts": compression}
    raise ValueError(f"compression is {compression!r}: expected None, 'gzip', 'lzf', or a level of gzip from 0 to 9.")


def _write(
    staging: Staging, path: str, arrays: dict[str, Array], options: dict[str, Any], geometry: Mapping[str, Any]
) -> None:
    """Write the arrays of a file and read them back; `geometry` belongs to the first array, the image."""
    image = next(iter(arrays))
    with create_h5(staging, path) as file:
        for key, array in arrays.items():
            _put(file, key, array, options)
        for name, value in geometry.items():
            file[image].attrs[name] = np.array(value, np.float64)
    for key, array in arrays.items():
        _read_back(staging.temporary(path), path, key, array, geometry if key == image else {})


def _put(file: h5py.File, key: str, array: Array, options: dict[str, Any]) -> None:
    # A chunk is a whole slice, so reading a slice never decompresses its neighbors.
    chunks = (*array.shape[:2], 1, *array.shape[3:]) if options else None
    file.create_dataset(key, data=array, chunks=chunks, **options)


def _read_back(temporary: str, path: str, key: str, array: Array, geometry: Mapping[str, Any]) -> None:
    stored = open_array(temporary, key)
    if (stored.said.spacing, stored.said.affine) != (geometry.get("spacing"), geometry.get("affine")):
        raise ReadError(_OTHER, path, key)
    rows = max(1, _CHECKED_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        wanted = np.ascontiguousarray(array[start : start + rows])
        found = stored[start : start + rows]
        if found.tobytes() != wanted.astype(stored.dtype, copy=False).tobytes():
            raise ReadError(_OTHER, path, key)
