"""Reading byte ranges of a file straight into arrays, outside the HDF5 library and its lock.

A box of a contiguous array is a set of runs of bytes. Reading each run by itself costs a system call, reading all that
lies between the first and the last costs bytes that nobody asked for; `_split` weighs the two.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.decode import DecodeError, decode
from medsegpy_core.hdf5.sharing import keep_chunk, kept_chunk

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.hdf5.vetting import Vetted
    from medsegpy_core.typing import Array, Selection

__all__ = ["read_bytes", "read_ranges"]

_CALL_COST_BYTES: Final = 24 << 10  # one more system call costs what so many more bytes cost
_LARGEST_SPAN: Final = 256 << 20
_KEPT_SCRATCH: Final = 16 << 20
# Chunks of nothing but zeros are common in masks; those that were seen are known by their stored bytes.
_ZERO_RATIO: Final = 64
_MAX_ZEROS: Final = 1024
# So many chunks that it is quicker to set all of the output to zero at once than each chunk that is empty.
_WORTH_ZEROING: Final = 4

_scratch = threading.local()
_zeros: set[tuple[bytes, int, int, Any]] = set()


def read_ranges(file: int | Array, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box of a contiguous or chunked dataset.

    Args:
        file: The open file, or its bytes where it is mapped into memory.
        layout: Where the data lie.
        selection: One ``slice(start, stop)`` per axis, within bounds, none of them empty.
        out: An array of that shape; values are cast to its type.

    Raises:
        ReadError: The file ends early, the device fails, or a chunk does not decode to its size. Without path.
    """
    vetted = layout.form.vetted
    if layout.table is not None:
        _read_chunked(file, layout, selection, out)
    elif layout.offset < 0:
        out[...] = _fill_value(vetted)
    else:
        _read_contiguous(file, layout.offset, vetted.shape, vetted.raw, selection, out)


def _fill_value(vetted: Vetted) -> Any:
    """Return the value where nothing was written."""
    if not vetted.fill:
        raise ReadError("some of it was never written, and the file gives no value for that")
    return np.frombuffer(vetted.fill, vetted.raw)[0]


def read_bytes(fd: int, offset: int, buffer: Any) -> None:
    """Fill a buffer (contiguous, of any type) from a place in a file.

    Raises:
        ReadError: The file ends before, or the device fails.
    """
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
    """Return memory of this thread, good until it is asked for again."""
    kept: Array | None = getattr(_scratch, "bytes", None)
    if kept is None or kept.nbytes < size:
        kept = np.empty(size, np.uint8)
        if size <= _KEPT_SCRATCH:
            _scratch.bytes = kept
    return kept[:size]


def _mapped(file: Array, offset: int, size: int) -> Array:
    """Return a part of a file that is mapped."""
    if offset + size > len(file):
        raise ReadError(f"the file ends at byte {len(file):,}, in the middle of the data")
    return file[offset : offset + size]


def _read_contiguous(
    file: int | Array, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], selection: Selection, out: Array
) -> None:
    if isinstance(file, np.ndarray):
        stored = _mapped(file, offset, math.prod(shape) * dtype.itemsize)
        out[...] = np.ndarray(shape, dtype, stored)[selection]
        return
    sizes = out.shape
    rank = len(shape)
    # `whole` axes from here on are taken in full, so that a run covers them and the axis before.
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
    scratch = _scratch_bytes(span)
    box = np.ndarray(inner, dtype, scratch, strides=strides[split:])
    for index in outer:
        read_bytes(file, base + sum(map(int.__mul__, index, strides)), scratch)
        out[index] = box


def _read_run(fd: int, at: int, dtype: np.dtype[Any], out: Array, direct: bool) -> None:
    """Read as many elements as `out` has, which lie side by side."""
    if direct:
        read_bytes(fd, at, out)
        return
    scratch = _scratch_bytes(out.size * dtype.itemsize)
    read_bytes(fd, at, scratch)
    out[...] = scratch.view(dtype).reshape(out.shape)


def _split(sizes: tuple[int, ...], strides: tuple[int, ...], itemsize: int, whole: int) -> int:
    """Return the axis from which on everything is read in one go, for each position of the axes before it."""
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


def _read_chunked(file: int | Array, layout: Layout, selection: Selection, out: Array) -> None:
    vetted, table = layout.form.vetted, layout.table
    chunks = vetted.chunks
    if chunks is None or table is None:
        raise ReadError("a chunked dataset without chunks")
    axes = []
    numbers = math.prod(-(-n // c) for n, c in zip(vetted.shape, chunks, strict=True))
    for size, chunk, part in zip(vetted.shape, chunks, selection, strict=True):
        numbers //= -(-size // chunk)
        axes.append(_touched(chunk, part, numbers))
    zeroed = math.prod(map(len, axes)) >= _WORTH_ZEROING
    if zeroed:
        out[...] = 0
    whole = _read_ahead(file, table) if zeroed and vetted.filters and _in_full(selection, vetted.shape) else file
    for position in itertools.product(*axes):
        number, local, target = zip(*position, strict=True)
        _read_chunk(whole, layout, table, sum(number), local, out[target], zeroed)


def _in_full(selection: Selection, shape: tuple[int, ...]) -> bool:
    return all(part.stop - part.start == size for part, size in zip(selection, shape, strict=True))


def _read_ahead(file: int | Array, table: array[int]) -> int | Array | _Span:
    """Read all chunks at once where they lie close together; else, or from a map, return the file as it is."""
    sizes = table[1::3]
    written = [at for at, size in zip(table[::3], sizes, strict=True) if size]
    total = sum(sizes)
    if isinstance(file, np.ndarray) or not written or total > _KEPT_SCRATCH:
        return file
    first = min(written)
    length = max(at + size for at, size in zip(table[::3], sizes, strict=True) if size) - first
    if length > 2 * total:
        return file
    data = _scratch_bytes(length)
    read_bytes(file, first, data)
    return _Span(first, data)


class _Span(NamedTuple):
    """Bytes of a file that were read at once, and where they began."""

    first: int
    data: Array


def _touched(chunk: int, part: slice, numbers: int) -> list[tuple[int, slice, slice]]:
    """Return for each chunk along an axis that a part of it touches: what it adds to the number of a chunk, the part
    of the chunk that is wanted, and where that belongs in the output."""
    found = []
    for place in range(part.start // chunk, -(-part.stop // chunk)):
        first = place * chunk
        low, high = max(part.start, first), min(part.stop, first + chunk)
        found.append((place * numbers, slice(low - first, high - first), slice(low - part.start, high - part.start)))
    return found


def _read_chunk(
    file: int | Array | _Span,
    layout: Layout,
    table: array[int],
    number: int,
    local: Selection,
    out: Array,
    zeroed: bool,
) -> None:
    vetted = layout.form.vetted
    shape = vetted.chunks or ()
    offset, stored, mask = table[3 * number : 3 * number + 3]
    size = math.prod(shape) * vetted.raw.itemsize
    if stored == 0:
        out[...] = _fill_value(vetted)
        return
    unfiltered = (1 << len(vetted.filters)) - 1
    if mask & unfiltered == unfiltered:
        if stored != size:
            raise ReadError(f"chunk {number} has {stored:,} bytes instead of {size:,}")
        if isinstance(file, _Span):
            stored_bytes = _stored_bytes(file, offset, size)
            out[...] = np.ndarray(shape, vetted.raw, stored_bytes)[local]
        else:
            _read_contiguous(file, offset, shape, vetted.raw, local, out)
        return
    elements = kept_chunk(layout, number)
    if elements is None:
        raw = _stored_bytes(file, offset, stored)
        elements = _decoded(raw, layout, number, mask, size)
        if elements is None:
            if not zeroed:
                out[...] = 0
            return
        if elements.shape != out.shape:  # the rest of it may be wanted as well
            # A checksum alone, or a shuffle of single bytes, leaves the stored bytes: memory that the next read fills.
            keep_chunk(layout, number, elements.copy() if np.may_share_memory(elements, raw) else elements)
    out[...] = elements[local]


def _stored_bytes(file: int | Array | _Span, offset: int, size: int) -> Array:
    if isinstance(file, _Span):
        return file.data[offset - file.first : offset - file.first + size]
    if isinstance(file, np.ndarray):
        return _mapped(file, offset, size)
    raw = _scratch_bytes(size)
    read_bytes(file, offset, raw)
    return raw


def _decoded(raw: Array, layout: Layout, number: int, mask: int, size: int) -> Array | None:
    """Return the elements of a chunk; None: it is known to be nothing but zeros."""
    vetted = layout.form.vetted
    seen = (raw.tobytes(), mask, size, vetted.filters) if raw.nbytes * _ZERO_RATIO < size else None
    if seen in _zeros:
        return None
    try:
        elements = np.frombuffer(decode(raw, vetted.filters, mask, size), vetted.raw)
    except (DecodeError, MemoryError) as error:
        raise ReadError(f"chunk {number} decodes to {error}") from error
    if seen is not None and len(_zeros) < _MAX_ZEROS and not elements.view(np.uint8).any():
        _zeros.add(seen)
    return elements.reshape(vetted.chunks or ())
