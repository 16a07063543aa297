"""Read byte ranges of a file directly into arrays, without the HDF5 library and its lock.

A box of a contiguous array is a set of runs of bytes. Reading each run separately costs one system call per run;
reading everything between the first and the last run costs bytes that are not needed. `_split` chooses the cheaper.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.backend import current_backend
from medsegpy_core.hdf5.costs import current_costs
from medsegpy_core.hdf5.extents import box_of

if TYPE_CHECKING:
    from medsegpy_core.typing import Array, Selection


_CALL_COST_BYTES: Final = 24 << 10  # a system call costs as much as reading this many bytes
_LARGEST_SPAN: Final = 256 << 20
KEPT_SCRATCH: Final = 16 << 20

_scratch = threading.local()


def read_bytes(fd: int, offset: int, buffer: Any) -> None:
    """Fill a contiguous buffer of any type from an offset in a file, and count the cost.

    Raises:
        ReadError: The file ends early, or the device fails.
    """
    costs = current_costs()
    if costs is None:
        fill_buffer(fd, offset, buffer)
        return
    began = time.perf_counter()
    fill_buffer(fd, offset, buffer)
    costs.add_read(time.perf_counter() - began, buffer.nbytes)


def fill_buffer(fd: int, offset: int, buffer: Any) -> None:
    """Fill a buffer as `read_bytes` does, without counting."""
    wanted = buffer.nbytes
    try:
        done = _read_at(fd, buffer, offset)
        while 0 < done < wanted:
            more = _read_at(fd, memoryview(buffer).cast("B")[done:], offset + done)
            if more == 0:
                break
            done += more
    except OSError as error:
        raise ReadError(f"reading failed: {error.strerror} (at byte {offset:,})") from error
    if done < wanted:
        raise ReadError(f"the file ends at byte {offset + done:,}, in the middle of the data")


if hasattr(os, "preadv"):

    def _read_at(fd: int, buffer: Any, offset: int) -> int:
        return os.preadv(fd, (buffer,), offset)

else:

    def _read_at(fd: int, buffer: Any, offset: int) -> int:
        data = os.pread(fd, buffer.nbytes, offset)
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)


def _scratch_bytes(size: int) -> Array:
    """Return scratch memory of this thread, valid until the next call."""
    kept: Array | None = getattr(_scratch, "bytes", None)
    if kept is None or kept.nbytes < size:
        kept = np.empty(size, np.uint8)
        if size <= KEPT_SCRATCH:
            _scratch.bytes = kept
    return kept[:size]


class Span(NamedTuple):
    """Bytes of a file that were read at once, and their offset."""

    first: int
    data: Array


def read_span(fd: int, first: int, length: int) -> Span:
    """Read bytes into scratch memory of this thread, valid until its next read."""
    data = _scratch_bytes(length)
    read_bytes(fd, first, data)
    return Span(first, data)


def stored_bytes(file: int | Array | Span, offset: int, size: int) -> Array:
    """Return bytes of a file that is open, mapped, or already read; valid until this thread's next read.

    Raises:
        ReadError: The file ends early, or the device fails.
    """
    if isinstance(file, Span):
        return file.data[offset - file.first : offset - file.first + size]
    if isinstance(file, np.ndarray):
        return _mapped(file, offset, size)
    return read_span(file, offset, size).data


def _mapped(file: Array, offset: int, size: int) -> Array:
    """Return a part of a mapped file."""
    if offset + size > len(file):
        raise ReadError(f"the file ends at byte {len(file):,}, in the middle of the data")
    return file[offset : offset + size]


def read_contiguous(
    file: int | Array | Span,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    selection: Selection,
    out: Array,
) -> None:
    """Read a box of a contiguous array.

    Args:
        file: The open file, or its bytes if it is mapped or was read.
        offset: The offset of the array.
        shape: Its shape.
        dtype: The stored type.
        selection: One ``slice(start, stop)`` per axis, within bounds and not empty.
        out: An array of that shape; values are cast to its type.

    Raises:
        ReadError: The file ends early, or the device fails. Without a path.
    """
    # If the bytes are in memory, NumPy can index them directly.
    if not isinstance(file, int):
        stored = stored_bytes(file, offset, math.prod(shape) * dtype.itemsize)
        out[...] = np.ndarray(shape, dtype, stored)[selection]
        return
    if _read_by_backend(file, offset, shape, dtype, selection, out):
        return
    _read_runs(file, offset, shape, dtype, selection, out)


def _read_runs(
    file: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], selection: Selection, out: Array
) -> None:
    sizes = out.shape
    rank = len(shape)
    # The selection covers the axes from `whole` on completely, so a run spans them and the axis before.
    whole = rank
    while whole and sizes[whole - 1] == shape[whole - 1]:
        whole -= 1
    itemsize = dtype.itemsize
    direct = out.dtype == dtype and out.flags.c_contiguous
    if whole <= 1:
        start = selection[0].start * math.prod(shape[1:]) if whole else 0
        _read_run(file, offset + start * itemsize, dtype, out, direct)
        return
    strides = tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(rank))
    split = _split(sizes, strides, itemsize, whole)
    inner = sizes[split:]
    base = offset + sum(s.start * stride for s, stride in zip(selection, strides, strict=True))
    outer = itertools.product(*(range(n) for n in sizes[:split]))
    if split == whole - 1:
        for index in outer:
            _read_run(file, base + sum(map(int.__mul__, index, strides)), dtype, out[index], direct)
        return
    span = sum((n - 1) * stride for n, stride in zip(inner, strides[split:], strict=True)) + itemsize
    # Read each span into scratch memory, in which `box` is a view of the selected elements.
    scratch = _scratch_bytes(span)
    box = np.ndarray(inner, dtype, scratch, strides=strides[split:])
    for index in outer:
        read_bytes(file, base + sum(map(int.__mul__, index, strides)), scratch)
        out[index] = box


def _read_by_backend(
    fd: int, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], selection: Selection, out: Array
) -> bool:
    """Read a box of more than one run with the backend; returns whether it was read."""
    if not out.flags.c_contiguous:
        return False
    strides, box = box_of(shape, dtype.itemsize, out.shape)
    if box is None or box.count1 == 1:
        return False
    first = offset + sum([part.start * stride for part, stride in zip(selection, strides, strict=True)])
    return not current_backend().read_box(fd, first, box, dtype, out)


def _read_run(fd: int, at: int, dtype: np.dtype[Any], out: Array, direct: bool) -> None:
    """Read as many contiguous elements as `out` has."""
    if direct:
        read_bytes(fd, at, out)
        return
    scratch = _scratch_bytes(out.size * dtype.itemsize)
    read_bytes(fd, at, scratch)
    out[...] = scratch.view(dtype).reshape(out.shape)


def _split(sizes: tuple[int, ...], strides: tuple[int, ...], itemsize: int, whole: int) -> int:
    """Return the axis from which on everything is read at once, for each position of the axes before it."""
    best, least = whole - 1, math.inf
    span, calls = itemsize, math.prod(sizes)
    for axis in range(len(sizes) - 1, -1, -1):
        span += (sizes[axis] - 1) * strides[axis]
        calls //= sizes[axis]
        if axis < whole and (span <= _LARGEST_SPAN or axis == whole - 1):
            cost = calls * (_CALL_COST_BYTES + span)
            if cost < least:
                best, least = axis, cost
    return best
