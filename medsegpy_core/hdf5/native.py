"""The compiled kernels of `medsegpy-native`, if it is installed, as a `Backend`. NumPy gives the same results, slower.

The kernels read uncompressed boxes of files, and collate voxels, without the GIL. They skip changed files and masks
that are not binary; the caller then reads them without the kernels, and raises the error.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from medsegpy_core.hdf5.costs import current_costs
from medsegpy_core.hdf5.filters import DEFLATE, SHUFFLE
from medsegpy_core.plugins.discovery import is_allowed

if TYPE_CHECKING:
    from medsegpy_core.hdf5.extents import Box, FileMap, Place, Places
    from medsegpy_core.typing import Array


_DISTRIBUTION: Final = "medsegpy-native"
_INTERFACE: Final = 2
_FIELDS: Final = 13

# The kinds of stored voxels and the statuses of jobs, as in the struct `Job` of the kernels.
_COPY, _PLANES, _BITS = 0, 1, 2
_TO_FLOAT32: Final = {
    "<f4": _COPY, "|i1": 3, "|u1": 4, "<i2": 5, "<u2": 6, "<i4": 7, "<u4": 8,
    ">i2": 9, ">u2": 10, ">i4": 11, ">u4": 12, ">f4": 13,
}  # fmt: skip
_DONE: Final = 0
_MOST_CHANNELS: Final = 8
# A row of a table has at most 64 bytes, of float32.
_MOST_CATEGORIES: Final = 16
# The filters that the kernels decode, in the order of application.
_INFLATES: Final = frozenset({(DEFLATE,), (SHUFFLE, DEFLATE)})
_FLOAT32: Final = np.dtype(np.float32)


class Kernels(Protocol):
    """The compiled functions. They release the GIL."""

    @property
    def INFLATES(self) -> int:  # noqa: N802 -- a constant of the module
        """Whether libdeflate was found; `inflate_chunks` needs it."""

    def read_boxes(
        self, jobs: Any, texts: bytes, maps: tuple[Any, ...], out: Any, table: Any
    ) -> tuple[float, float, float, int]:
        """Read boxes of files.

        Args:
            jobs: Rows of 13 int64, see the struct `Job` in ``boxes.h``. The last value of each row receives the status:
                0 done; 1 not done; 2 the file was replaced or modified; 3 it changed while it was read; 4 a mask has
                values other than 0 and 1. The output of a job that is not done is undefined.
            texts: The `Stamp` of each file, followed by its path and a zero byte.
            maps: The bytes of mapped files.
            out: The output, C-contiguous.
            table: 256 rows: the categories of each combination of channels. Empty for images.

        Returns:
            The seconds of opening, reading and converting, and the number of bytes read.

        Raises:
            ValueError: A job exceeds `out`, or its numbers are invalid. Nothing has been read.
        """

    def inflate_chunks(
        self, fd: int, file: Any, first: int, chunks: Any, strides: Any, item: int, size: int, itemsize: int, out: Any
    ) -> tuple[int, float, float, int]:
        """Decode chunks of a file that are compressed with gzip, and copy them, or the first part of each, into place.

        Args:
            fd: The open file; -1: use `file`.
            file: The bytes of the file, if `fd` is -1.
            first: The offset of these bytes in the file.
            chunks: Rows of int64: the offset of each chunk in the file, its stored size, its place in the output, and
                the size of its part along each axis.
            strides: Bytes between items along each axis, in a chunk, then in the output. Empty: copy whole chunks.
                Otherwise the output must be 0; parts of all-zero chunks are not written.
            item: The size of an item in bytes.
            size: The decoded size of each chunk in bytes.
            itemsize: The size of an element in bytes if chunks are shuffled, else 1.
            out: The output.

        Returns:
            The number of the first chunk that cannot be read or does not decode to its size, -1 if there is none; the
            seconds of reading and of decoding, and the number of bytes read.

        Raises:
            ValueError: The arguments are inconsistent.
        """

    def collate(self, stored: Any, item: int, bits: bool, out: Any, table: Any) -> bool:
        """Collate voxels in memory.

        Args:
            stored: Voxels of `item` bytes, C-contiguous.
            item: Channels per voxel, 1 to 8; 1 for bits.
            bits: Whether the channels of a voxel are the bits of one byte; else each channel is a byte, 0 or 1.
            out: The categories of all voxels.
            table: 256 rows: the categories of each combination of channels.

        Returns:
            False if a byte is neither 0 nor 1; `out` is then undefined.

        Raises:
            ValueError: The sizes are inconsistent.
        """


def kernels(allowed: str | None) -> Kernels | None:
    """Return the kernels; None if they are not installed, not compiled, or not allowed.

    Args:
        allowed: See `allow_list`.
    """
    if not is_allowed(_DISTRIBUTION, allowed):
        return None
    try:
        import medsegpy_native

        if not medsegpy_native.COMPILED or medsegpy_native.INTERFACE != _INTERFACE:
            return None
        from medsegpy_native import _kernels
    except ImportError:  # not installed, or compiled for another platform
        return None
    return _kernels


class NativeBackend:
    """The backend of compiled kernels, see `Backend`."""

    __slots__ = ("_by_name", "_kernels", "decodes")

    name: Final = "native"

    def __init__(self, found: Kernels, by_name: Callable[[str], object]):
        self._kernels = found
        self._by_name = by_name
        # Decompression needs libdeflate.
        self.decodes: frozenset[tuple[int, ...]] = _INFLATES if found.INFLATES else frozenset()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._by_name, (self.name,)

    def read_rows(
        self, count: int, places: Iterable[Places | None], images: Array, masks: Array | None, table: Array | None
    ) -> Sequence[int]:
        """See `Backend.read_rows`."""
        if masks is not None and (table is None or table.shape[1] > _MOST_CATEGORIES):
            return range(count)
        image_jobs, mask_jobs = _Jobs(), _Jobs()
        rows = []
        for row, found in enumerate(places):
            if found is None or (kind := _TO_FLOAT32.get(found.image.dtype.str)) is None:
                continue
            if masks is not None:
                if found.mask is None:
                    continue
                mask_kind = _BITS if found.channels is None else _PLANES
                mask_jobs.add(found.mask, found.channels or 1, mask_kind, row * masks.strides[0])
            image_jobs.add(found.image, found.image.dtype.itemsize, kind, row * images.strides[0])
            rows.append(row)
        results = self._run(image_jobs, images, b"")
        mask_results = results if masks is None else self._run(mask_jobs, masks, table)
        left = set(range(count))
        for row, result, mask_result in zip(rows, results, mask_results, strict=True):
            if result == mask_result == _DONE:
                left.remove(row)
        return sorted(left)

    def _run(self, jobs: _Jobs, out: Array, table: Any) -> list[int]:
        """Run jobs; return their statuses."""
        if not jobs.rows:
            return []
        texts, maps = b"".join(jobs.texts), tuple([mapped.data for mapped in jobs.maps])
        costs = current_costs()
        if costs is None:
            self._kernels.read_boxes(jobs.rows, texts, maps, out, table)
            return jobs.results()
        began, on_processor = time.perf_counter(), time.thread_time()
        opening, reading, converting, size = self._kernels.read_boxes(jobs.rows, texts, maps, out, table)
        busy = time.thread_time() - on_processor
        waiting = min(reading, max(0.0, time.perf_counter() - began - busy))
        costs.add_read(reading, size)
        costs.add_batch(opening, reading - waiting, converting, waiting)
        return jobs.results()

    def read_box(self, fd: int, offset: int, box: Box, dtype: np.dtype[Any], out: Array) -> Sequence[int]:
        """See `Backend.read_box`. Supports outputs of the stored type and of float32."""
        kind, item = (_COPY, 1) if out.dtype == dtype else (_TO_FLOAT32.get(dtype.str), dtype.itemsize)
        if kind is None or out.dtype not in (dtype, _FLOAT32):
            return range(1)
        job = array("q", (-1, fd, -1, offset, *box[:4], box.run // item, item, kind, 0, 0))
        _, reading, _, size = self._kernels.read_boxes(job, b"", (), out, b"")
        costs = current_costs()
        if costs is not None:
            costs.add_read(reading, size)
        return range(int(job[-1] != _DONE))

    def decode(
        self, fd: int, data: Any, first: int, chunks: Array, strides: Array, sizes: tuple[int, int, int], out: Array
    ) -> Sequence[int]:
        """See `Backend.decode`. Stops at the first chunk that it cannot decode."""
        wrong, reading, decoding, size = self._kernels.inflate_chunks(fd, data, first, chunks, strides, *sizes, out)
        costs = current_costs()
        if costs is not None:
            costs.add_read(reading, size)
            costs.add_decoded(decoding, out.nbytes)
        return range(wrong, len(chunks)) if wrong >= 0 else range(0)

    def collate(self, stored: Array, bits: bool, out: Array, table: Array) -> Sequence[int]:
        """See `Backend.collate`. Supports up to 8 channels and 16 categories."""
        done = (
            stored.dtype.itemsize == 1
            and stored.shape[-1] <= (1 if bits else _MOST_CHANNELS)
            and out.shape[-1] <= _MOST_CATEGORIES
            and stored.flags.c_contiguous
            and out.flags.c_contiguous
            and out.size > 0
            and self._kernels.collate(stored.view(np.uint8), stored.shape[-1], bits, out, table)
        )
        return range(int(not done))


class _Jobs:
    """Boxes of files to read into one array in one call, in the format of the kernels."""

    __slots__ = ("_text_bytes", "maps", "rows", "texts")

    def __init__(self) -> None:
        self.rows = array("q")
        self.texts: list[bytes] = []
        self.maps: list[FileMap] = []
        self._text_bytes = 0

    def add(self, place: Place, item: int, kind: int, out: int) -> None:
        """Add a box.

        Args:
            place: The place of the box.
            item: Bytes per voxel.
            kind: The kind of stored voxels.
            out: The offset in the output, in bytes.
        """
        number = -1
        if place.mapped is not None:
            number = len(self.maps)
            self.maps.append(place.mapped)
        text = b"%b%b\0" % (place.stamp, os.fsencode(place.path))
        where = (self._text_bytes, -1, number, place.offset, *place.box[:4], place.box.run // item)
        self.rows.extend((*where, item, kind, out, 0))
        self.texts.append(text)
        self._text_bytes += len(text)

    def results(self) -> list[int]:
        """Return the status of each job."""
        return self.rows[_FIELDS - 1 :: _FIELDS].tolist()
