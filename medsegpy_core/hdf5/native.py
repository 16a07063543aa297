"""The compiled kernels of `medsegpy-native`, if it is installed, as a `Backend`; NumPy does the same, slower.

They read boxes that lie in files as they are, and collate voxels, without Python's lock. What they leave undone,
because a file is not what it was or a mask is not binary, is done again without them, which says what is wrong.
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

# The kinds of stored voxels, and what becomes of a job, as in the struct `Job` of the kernels.
_COPY, _PLANES, _BITS = 0, 1, 2
_TO_FLOAT32: Final = {
    "<f4": _COPY, "|i1": 3, "|u1": 4, "<i2": 5, "<u2": 6, "<i4": 7, "<u4": 8,
    ">i2": 9, ">u2": 10, ">i4": 11, ">u4": 12, ">f4": 13,
}  # fmt: skip
_DONE: Final = 0
_MOST_CHANNELS: Final = 8
# A row of a table has at most 64 bytes, of float32.
_MOST_CATEGORIES: Final = 16
# Which filters they undo, in the order in which they were applied.
_INFLATES: Final = frozenset({(DEFLATE,), (SHUFFLE, DEFLATE)})
_FLOAT32: Final = np.dtype(np.float32)


class Kernels(Protocol):
    """The compiled functions. None holds Python's lock while it works."""

    @property
    def INFLATES(self) -> int:  # noqa: N802 -- a constant of the module
        """Whether libdeflate was found, without which there is no `inflate_chunks`."""

    def read_boxes(
        self, jobs: Any, texts: bytes, maps: tuple[Any, ...], out: Any, table: Any
    ) -> tuple[float, float, float, int]:
        """Read boxes of files.

        Args:
            jobs: Rows of 13 int64, which the struct `Job` in ``_kernels.c`` explains; the last of each is set to what
                became of it: 0 done; 1 left undone; 2 the file is another one by now; 3 it changed while it was read;
                4 a mask holds other values than 0 and 1. What is in the output of a job that is not done is undefined.
            texts: Of each file its `Stamp`, and its path, which a zero byte ends.
            maps: The bytes of files that are mapped into memory.
            out: What is written to, C-contiguous.
            table: 256 rows: the categories of each combination of channels. Empty for images.

        Returns:
            The seconds that opening, reading and converting took, and the bytes that were read.

        Raises:
            ValueError: A job goes beyond `out`, or its numbers make no sense. Nothing was read then.
        """

    def inflate_chunks(
        self, fd: int, file: Any, first: int, chunks: Any, strides: Any, item: int, size: int, itemsize: int, out: Any
    ) -> tuple[int, float, float, int]:
        """Decode chunks of a file that are compressed with gzip, and put them, or the first part of each, in place.

        Args:
            fd: The open file; -1: its bytes are at hand.
            file: Its bytes, where they are at hand.
            first: Where in the file they begin.
            chunks: Rows of int64: where each chunk begins in the file, how many bytes are stored, where it goes in the
                output, and how large the part of it is along each axis.
            strides: Bytes from one item to the next along each axis, in a chunk; then in the output. Empty: chunks are
                put in place whole. Otherwise the output is 0, and stays so where a chunk is.
            item: Bytes of an item.
            size: What each chunk has to decode to, in bytes.
            itemsize: Bytes of an element, where chunks were shuffled; else 1.
            out: Where to.

        Returns:
            The number of the first chunk that cannot be read or does not decode to its size, -1 where all do; the
            seconds of reading and of decoding, and the bytes that were read.

        Raises:
            ValueError: The arguments do not fit together.
        """

    def collate(self, stored: Any, item: int, bits: bool, out: Any, table: Any) -> bool:
        """Collate voxels that are in memory.

        Args:
            stored: Voxels of `item` bytes, C-contiguous.
            item: Channels of a voxel, 1 to 8; 1 for bits.
            bits: Whether the byte of a voxel holds its channels as bits; else each channel is a byte, 0 or 1.
            out: The categories of all voxels.
            table: 256 rows: the categories of each combination of channels.

        Returns:
            False where a byte is neither 0 nor 1; what is in `out` is undefined then.

        Raises:
            ValueError: The sizes do not fit together.
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
    except ImportError:  # not installed, or compiled for another machine
        return None
    return _kernels


class NativeBackend:
    """The backend of compiled kernels, see `Backend`."""

    __slots__ = ("_by_name", "_kernels", "decodes")

    name: Final = "native"

    def __init__(self, found: Kernels, by_name: Callable[[str], object]):
        self._kernels = found
        self._by_name = by_name
        # Without libdeflate they cannot inflate.
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
        """Run jobs; return what became of each."""
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
        """See `Backend.read_box`: it reads arrays of the stored type, and of float32."""
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
        """See `Backend.decode`: it stops at the first chunk that it cannot decode."""
        wrong, reading, decoding, size = self._kernels.inflate_chunks(fd, data, first, chunks, strides, *sizes, out)
        costs = current_costs()
        if costs is not None:
            costs.add_read(reading, size)
            costs.add_decoded(decoding, out.nbytes)
        return range(wrong, len(chunks)) if wrong >= 0 else range(0)

    def collate(self, stored: Array, bits: bool, out: Array, table: Array) -> Sequence[int]:
        """See `Backend.collate`: it collates bytes of up to 8 channels to up to 16 categories."""
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
    """Boxes of files that are to be read into one array in one call, as the kernels take them."""

    __slots__ = ("_text_bytes", "maps", "rows", "texts")

    def __init__(self) -> None:
        self.rows = array("q")
        self.texts: list[bytes] = []
        self.maps: list[FileMap] = []
        self._text_bytes = 0

    def add(self, place: Place, item: int, kind: int, out: int) -> None:
        """Add a box.

        Args:
            place: Where it is.
            item: Bytes of a voxel.
            kind: What becomes of the voxels.
            out: Where they go in the output, in bytes from its beginning.
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
        """Return what became of each job."""
        return self.rows[_FIELDS - 1 :: _FIELDS].tolist()
