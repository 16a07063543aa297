"""The compiled kernels of `medsegpy-native`, where it is installed; NumPy does the same without, slower.

They read boxes that lie in files as they are, and collate voxels, without Python's lock. What they leave undone,
because a file is not what it was or a mask is not binary, is done again without them, which says what is wrong.
"""

from __future__ import annotations

import functools
import os
import time
from array import array
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from medsegpy_core.hdf5.costs import current_costs
from medsegpy_core.hdf5.extents import Box, Place
from medsegpy_core.plugins.discovery import allow_list, is_allowed

if TYPE_CHECKING:
    from medsegpy_core.hdf5.extents import FileMap
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
DONE: Final = 0
MOST_CHANNELS: Final = 8
# A row of a table has at most 64 bytes, of float32.
MOST_CATEGORIES: Final = 16
_FLOAT32: Final = np.dtype(np.float32)


class Kernels(Protocol):
    """The compiled functions. Neither holds Python's lock while it works."""

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


def kernels() -> Kernels | None:
    """Return the kernels; None where they are not installed, not compiled, or not among `MEDSEGPY_LOAD_PLUGINS`."""
    return _kernels(allow_list())


@functools.lru_cache(maxsize=8)
def _kernels(allowed: str | None) -> Kernels | None:
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


def makes_float32(dtype: np.dtype[Any]) -> bool:
    """Say whether the kernels make float32 of a type as NumPy does."""
    return dtype.str in _TO_FLOAT32


class BoxReads:
    """Boxes of files that are to be read into one array, all at once.

    Args:
        table: What the voxels of masks become: 256 rows, one for each combination of channels. None: no masks.
    """

    def __init__(self, table: Array | None = None):
        self._table: Any = b"" if table is None else table
        self._jobs = array("q")
        self._texts: list[bytes] = []
        self._text_bytes = 0
        self._maps: list[FileMap] = []

    def __len__(self) -> int:
        return len(self._jobs) // _FIELDS

    def add_image(self, place: Place, out: int) -> None:
        """Read numbers as float32.

        Args:
            place: Where they are, of a type that `makes_float32` knows.
            out: Where they go in the output, in bytes from its beginning.
        """
        self._add(place, place.dtype.itemsize, _TO_FLOAT32[place.dtype.str], out)

    def add_mask(self, place: Place, channels: int | None, out: int) -> None:
        """Read a mask, and collate it.

        Args:
            place: Where it is: all channels of the voxels.
            channels: Its channels, a byte each, at most `MOST_CHANNELS`; None: the bits of one byte.
            out: Where the categories go in the output, in bytes from its beginning.
        """
        self._add(place, channels or 1, _BITS if channels is None else _PLANES, out)

    def _add(self, place: Place, item: int, kind: int, out: int) -> None:
        number = -1
        if place.mapped is not None:
            number = len(self._maps)
            self._maps.append(place.mapped)
        text = b"%b%b\0" % (place.stamp, os.fsencode(place.path))
        where = (self._text_bytes, -1, number, place.offset, *place.box[:4], place.box.run // item)
        self._jobs.extend((*where, item, kind, out, 0))
        self._texts.append(text)
        self._text_bytes += len(text)

    def read(self, out: Array) -> list[int]:
        """Read all of them.

        Returns:
            For each whether it is `DONE`; what is not has to be read otherwise.
        """
        found = kernels()
        if found is None or not self._jobs:
            return [-1] * len(self)
        texts, maps = b"".join(self._texts), tuple([mapped.data for mapped in self._maps])
        run_kernels(found, self._jobs, texts, maps, out, self._table)
        return self._jobs[_FIELDS - 1 :: _FIELDS].tolist()


def run_kernels(
    found: Kernels, jobs: Any, texts: bytes, maps: tuple[Any, ...], out: Array, table: Any
) -> tuple[float, float, float, int]:
    """Read boxes; return the seconds of opening, reading and converting, and the bytes that were read."""
    costs = current_costs()
    if costs is None:
        return found.read_boxes(jobs, texts, maps, out, table)
    began, on_processor = time.perf_counter(), time.thread_time()
    measured = found.read_boxes(jobs, texts, maps, out, table)
    busy = time.thread_time() - on_processor
    opening, reading, converting, size = measured
    costs.add_read(reading, size)
    if _is_batch(jobs):
        waiting = min(reading, max(0.0, time.perf_counter() - began - busy))
        costs.add_batch(opening, reading - waiting, converting, waiting)
    return measured


def _is_batch(jobs: array[int]) -> bool:
    """Say whether these are jobs of `BoxReads`, not the one of `read_box`."""
    return jobs[0] >= 0


def read_box(fd: int, offset: int, box: Box, dtype: np.dtype[Any], out: Array) -> bool:
    """Read a box of an open file into a C-contiguous array.

    Args:
        fd: The file.
        offset: The first byte.
        box: The rest of it.
        dtype: As stored.
        out: Of the stored type, or float32.

    Returns:
        False: there are no kernels, or they could not.
    """
    found = kernels()
    if found is None:
        return False
    kind, item = (_COPY, 1) if out.dtype == dtype else (_TO_FLOAT32.get(dtype.str), dtype.itemsize)
    if kind is None or out.dtype not in (dtype, _FLOAT32):
        return False
    jobs = array("q", (-1, fd, -1, offset, *box[:4], box.run // item, item, kind, 0, 0))
    run_kernels(found, jobs, b"", (), out, b"")
    return jobs[-1] == DONE


def inflate_kernel() -> Kernels | None:
    """Return the kernels, if they can inflate; None: they have not found libdeflate."""
    found: Any = kernels()
    return found if found is not None and found.INFLATES else None


def run_inflate(found: Kernels, *args: Any) -> tuple[int, float, float, int]:
    """Decode chunks, see `Kernels.inflate_chunks`."""
    measured = found.inflate_chunks(*args)
    costs = current_costs()
    if costs is not None:
        _, reading, decoding, size = measured
        costs.add_read(reading, size)
        costs.add_decoded(decoding, args[-1].nbytes)
    return measured


def collate_voxels(stored: Array, bits: bool, out: Array, table: Array) -> bool:
    """Collate voxels (... x bytes, C-contiguous) into `out` (... x categories, C-contiguous).

    Args:
        stored: The voxels: a byte a channel, or bits.
        bits: Which of the two.
        out: The categories.
        table: 256 rows of the output's type, one for each combination of channels.

    Returns:
        False: there are no kernels, or they could not; there may be values other than 0 and 1.
    """
    found = kernels()
    if found is None or stored.dtype.itemsize != 1 or stored.shape[-1] > (1 if bits else MOST_CHANNELS):
        return False
    if not (stored.flags.c_contiguous and out.flags.c_contiguous) or out.size == 0:
        return False
    return found.collate(stored.view(np.uint8), stored.shape[-1], bits, out, table)
