"""What must hold for a reader, check by check. Each takes the reader and a record, and raises `CheckError`."""

from __future__ import annotations

import pickle
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core.errors import PluginError
from medsegpy_core.geometry import checked_affine, checked_spacing
from medsegpy_core.opening import open_record
from medsegpy_core.plugin_records import check_reader
from medsegpy_core.records import Record
from medsegpy_core.testing.array_checks import check_array, check_array_in_threads
from medsegpy_core.testing.files import arrays_of, copied, digest, files_of, open_descriptors, read_digest
from medsegpy_core.testing.outcome import CheckError, NotCheckableError, require
from medsegpy_core.testing.processes import in_fork, in_new_interpreter
from medsegpy_core.typing import LazyArray, OpenScan, Reader, StatesMaskGrid

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = [
    "LARGE",
    "check_arrays",
    "check_forked_process",
    "check_headers_only",
    "check_new_process",
    "check_partial_reads",
    "check_pickling",
    "check_protocol",
    "check_released_files",
    "check_threads",
    "check_values",
]

LARGE: Final = 256 << 10  # bytes of an image that is told from a header, and of a file


def check_protocol(reader: Reader) -> None:
    """Check that the object has what a reader must have."""
    try:
        check_reader(reader)
    except PluginError as error:
        raise CheckError(str(error)) from error
    require(isinstance(reader, Reader), f"{reader!r} is no Reader")


def check_arrays(reader: Reader, record: Record) -> None:
    """Check that shapes and types of image and mask are such as the core understands, and so are the metadata."""
    import numpy as np

    with reader.open(record) as scan:
        require(isinstance(scan, OpenScan), f"open() gives a {type(scan).__name__} that lacks image, mask or metadata")
        require(
            (scan.mask is None) == (record.sem_seg_file is None),
            f"the record's sem_seg_file is {record.sem_seg_file}, but the mask is {scan.mask!r}",
        )
        for what, array in arrays_of(scan):
            require(isinstance(array.shape, tuple), f"the shape of the {what} is {array.shape!r}, expected a tuple")
            require(isinstance(array.dtype, np.dtype), f"the dtype of the {what} is {array.dtype!r}, no numpy.dtype")
            require(array.dtype.isnative, f"the dtype of the {what} is {array.dtype.str!r}, expected native byte order")
            require(array.dtype.kind in "iufb", f"the dtype of the {what} is {array.dtype}, expected numbers")
        _check_metadata(scan.metadata, "metadata", record)
        if isinstance(scan, StatesMaskGrid):
            _check_metadata(scan.mask_metadata, "mask_metadata", record)
    with open_record(record, reader) as canonical:
        require(canonical.image.shape[:2], "the image has no shape")


def _check_metadata(metadata: Mapping[str, Any], name: str, record: Record) -> None:
    spacing = metadata.get("spacing")
    if spacing is not None:
        axes = (2, 3) if record.kind == "slice" else (3,)
        expected = f"{' or '.join(map(str, axes))} positive numbers of millimetres"
        require(checked_spacing(spacing, axes), f"{name}['spacing'] is {spacing!r}, expected {expected}")
    affine = metadata.get("affine")
    if affine is not None:
        expected = "an invertible 4 x 4 matrix, voxel index to RAS+ mm"
        require(checked_affine(affine), f"{name}['affine'] is {affine!r}, expected {expected}")


def check_values(reader: Reader, record: Record, image: Array | None, mask: Array | None) -> None:
    """Check that the arrays, with their axes in the canonical order, hold what was written.

    Args:
        reader: The reader.
        record: The record.
        image: H x W [x D] [x K]; None: not known.
        mask: H x W [x D] x C; None: not known.
    """
    with open_record(record, reader) as scan:
        for what, array, expected in (("image", scan.image, image), ("mask", scan.mask, mask)):
            if expected is not None:
                require(array is not None, f"the {what} is None, expected {_by(expected.shape)}")
                _check_equal(array, expected, what)  # type: ignore[arg-type]


def _check_equal(array: LazyArray, expected: Array, what: str) -> None:
    import numpy as np

    require(array.shape == expected.shape, f"the {what} is {_by(array.shape)}, expected {_by(expected.shape)}")
    different = np.argwhere(array[...] != expected)
    if len(different):
        at = tuple(map(int, different[0]))
        raise CheckError(
            f"the {what} differs from what was written in {len(different)} of {expected.size} voxels; at {at} it is "
            f"{array[at]}, expected {expected[at]}"
        )


def check_partial_reads(reader: Reader, record: Record) -> None:
    """Check that any part of an array is that part of the whole, in type and memory layout too."""
    with reader.open(record) as scan:
        for what, array in arrays_of(scan):
            check_array(array, what)


def check_headers_only(reader: Reader, record: Record, folder: Path) -> None:
    """Check that shape and type are known without reading data: memory, and on Linux what is read from files.

    Args:
        reader: The reader.
        record: Its image has at least 256 KiB.
        folder: A new folder for copies, so that nothing is remembered of the files.

    Raises:
        CheckError: Opening takes memory, or reads, as if for data.
        NotCheckableError: The image is too small.
    """
    _open_only(reader, copied(record, folder / "first"))  # imports what it needs
    fresh = copied(record, folder / "second")
    tracemalloc.start()
    try:
        before = _bytes_read()
        size = _open_only(reader, fresh)
        read, (_, peak) = _bytes_read() - before, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if size < LARGE:
        raise NotCheckableError(f"the image has {size} bytes; to tell data from headers it needs {LARGE}")
    advice = "read the header in open(), and data in __getitem__"
    # Reading all takes `size`; the rest is room for the buffers of a decompressor (in Python 3.12 those of gzip grew).
    require(peak < size * 3 / 4, f"opening takes {peak} bytes of memory, and the image has {size}: {advice}")
    stored = sum(path.stat().st_size for path in files_of(fresh))
    if stored >= LARGE:
        require(read < stored * 3 / 4, f"opening reads {read} bytes of files that have {stored}: {advice}")


def _open_only(reader: Reader, record: Record) -> int:
    with reader.open(record) as scan:
        sizes = {what: array.dtype.itemsize for what, array in arrays_of(scan)}
        for n in scan.image.shape:
            sizes["image"] *= n
        return sizes["image"]


def _bytes_read() -> int:
    if sys.platform != "linux":
        return 0
    line = Path("/proc/self/io").read_text(encoding="ascii").partition("\n")[0]
    return int(line.removeprefix("rchar: "))


def check_released_files(reader: Reader, record: Record) -> None:
    """Check that no file stays open when its scan is closed. Linux only.

    Raises:
        NotCheckableError: This is another operating system.
    """
    if sys.platform != "linux":
        raise NotCheckableError("which files are open can be seen on Linux only")
    for _ in range(3):
        read_digest(reader, record)
    left = open_descriptors(files_of(record))
    require(not left, f"{len(left)} files are still open when their scans are closed: {', '.join(sorted(set(left)))}")


def check_threads(reader: Reader, record: Record) -> None:
    """Check that eight threads may read from one open scan at once."""
    with reader.open(record) as scan:
        for what, array in arrays_of(scan):
            check_array_in_threads(array, what)


def check_pickling(reader: Reader, record: Record | None = None) -> None:
    """Check that the reader can be pickled, also after it was used."""
    expected = None if record is None else read_digest(reader, record)
    try:
        again: Any = pickle.loads(pickle.dumps(reader))  # noqa: S301 -- pickled in the line itself
    except Exception as error:
        raise CheckError(f"the reader cannot be pickled: {type(error).__name__}: {error}") from error
    check_protocol(again)
    agree = (again.name, again.suffixes) == (reader.name, reader.suffixes)
    require(agree, "the name or the suffixes of the reader are others after pickling")
    if record is not None:
        require(read_digest(again, record) == expected, "after pickling the reader reads other values")


def check_new_process(reader: Reader, record: Record) -> None:
    """Check that a new process, which gets reader and record pickled, reads the same."""
    found = in_new_interpreter(read_digest, reader, record)
    require(found == read_digest(reader, record), "a new process reads other values")


def check_forked_process(reader: Reader, record: Record) -> None:
    """Check that a fork reads the same while this process has the scan open, and that this process goes on reading."""
    with reader.open(record) as scan:
        expected = digest(scan)
        require(in_fork(lambda: read_digest(reader, record)) == expected, "a forked process reads other values")
        require(in_fork(lambda: digest(scan)) == expected, "a fork reads other values from a scan opened before it")
        require(digest(scan) == expected, "after a fork has read, this process reads other values")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
