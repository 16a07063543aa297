"""Chunks that are compressed with gzip, decoded many at a time by compiled kernels, where those are installed."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from medsegpy_core.hdf5.kernels import Kernels, inflate_kernel, run_inflate
from medsegpy_core.hdf5.ranges import Span
from medsegpy_core.hdf5.sharing import keep_chunk, kept_chunk
from medsegpy_core.hdf5.vetting import DEFLATE, SHUFFLE

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection

__all__ = ["Piece", "inflated"]

# The number of a chunk, the part of it that is wanted, and where that belongs in the output.
Piece = tuple[int, "Selection", "Selection"]

# Which filters are undone here, and whether the second of them put the bytes in another order.
_SHUFFLED: Final = {(DEFLATE,): False, (SHUFFLE, DEFLATE): True}
# Bytes that are decoded before they are put in place, in memory of their own.
_AT_ONCE: Final = 32 << 20


def inflated(file: int | Array | Span, layout: Layout, table: array[int], pieces: Sequence[Piece], out: Array) -> bool:
    """Read pieces of chunks.

    Args:
        file: The open file, or its bytes where it is mapped into memory or was read.
        layout: Where the chunks lie.
        table: Offset, stored size and filter mask of each.
        pieces: Those that are wanted.
        out: Where they belong.

    Returns:
        False: it is left to be done otherwise. Other filters, chunks that were never written, and whatever is wrong.
    """
    vetted = layout.form.vetted
    shuffled = _SHUFFLED.get(tuple([number for number, _ in vetted.filters]))
    found = inflate_kernel() if shuffled is not None else None
    if found is None:
        return False
    stored = np.frombuffer(table, np.int64).reshape(-1, 3)[[number for number, _, _ in pieces]]
    if not stored[:, 1].all() or stored[:, 2].any():
        return False
    chunks = _Chunks(found, file, layout, vetted.raw.itemsize if shuffled else 1)
    if out.shape == vetted.shape and (chunks.fit(out) or out.size * vetted.raw.itemsize <= _AT_ONCE):
        return chunks.read_whole(stored, out)
    return chunks.read_parts(pieces, stored, out)


class _Chunks:
    """The chunks of one read."""

    def __init__(self, found: Kernels, file: int | Array | Span, layout: Layout, itemsize: int):
        vetted = layout.form.vetted
        self._kernels = found
        self._fd = file if isinstance(file, int) else -1
        self._first, self._data = (file.first, file.data) if isinstance(file, Span) else (0, file)
        self._layout = layout
        self._shape, self._dtype = vetted.chunks or (), vetted.raw
        self._size, self._itemsize = math.prod(self._shape) * self._dtype.itemsize, itemsize

    def fit(self, out: Array) -> bool:
        """Say whether chunks can be put into an array as they are."""
        return out.dtype == self._dtype and out.flags.c_contiguous

    def read_whole(self, stored: Array, out: Array) -> bool:
        """Read all of a dataset; `stored` has a row of each chunk."""
        straight = self.fit(out)
        whole = out if straight else np.empty(out.shape, self._dtype)
        whole[...] = 0
        strides, item, places = _geometry(self._shape, out.shape, self._dtype.itemsize)
        if not self._run(np.concatenate([stored[:, :2], places], axis=1), strides, item, whole):
            return False
        if not straight:
            out[...] = whole
        return True

    def read_parts(self, pieces: Sequence[Piece], stored: Array, out: Array) -> bool:
        """Read some pieces; chunks of which the rest may be wanted as well are kept."""
        step = max(1, _AT_ONCE // self._size)
        left = [i for i, piece in enumerate(pieces) if not _put_kept(self._layout, piece, out)]
        for begin in range(0, len(left), step):
            some = left[begin : begin + step]
            chunks = np.empty((len(some), *self._shape), self._dtype)
            rows = stored[some]  # a copy, whose last column becomes the place in the output
            rows[:, 2] = np.arange(len(some)) * self._size
            if not self._run(rows, _NO_STRIDES, 1, chunks):
                return False
            for elements, (number, local, target) in zip(chunks, [pieces[i] for i in some], strict=True):
                part = out[target]
                part[...] = elements[local]
                if part.shape != self._shape:
                    keep_chunk(self._layout, number, elements)
        return True

    def _run(self, rows: Array, strides: Array, item: int, out: Array) -> bool:
        data = b"" if self._fd >= 0 else self._data
        sizes = (item, self._size, self._itemsize)
        return run_inflate(self._kernels, self._fd, data, self._first, rows, strides, *sizes, out)[0] < 0


_NO_STRIDES: Final = np.empty(0, np.int64)


@functools.lru_cache(maxsize=128)
def _geometry(chunk: tuple[int, ...], shape: tuple[int, ...], itemsize: int) -> tuple[Array, int, Array]:
    """Say how the chunks of a dataset make up the whole. The last axes along which a chunk is as long as the whole are
    taken as one item.

    Returns:
        The strides of a chunk, then of the whole; the bytes of an item; and for each chunk where it goes, and how much
        of it along each axis.
    """
    rank = len(chunk)
    while rank > 1 and chunk[rank - 1] == shape[rank - 1]:
        rank -= 1
    item = itemsize * math.prod(chunk[rank:])
    strides = [[item * math.prod(sizes[axis + 1 : rank]) for axis in range(rank)] for sizes in (chunk, shape)]
    grid = [-(-n // c) for n, c in zip(shape[:rank], chunk[:rank], strict=True)]
    corners = np.indices(grid).reshape(rank, -1).T * chunk[:rank]
    sizes = np.minimum(np.array(chunk[:rank]), np.array(shape[:rank]) - corners)
    places = np.column_stack([corners @ np.array(strides[1]), sizes]).astype(np.int64)
    return np.array(strides, np.int64).reshape(-1), item, places


def _put_kept(layout: Layout, piece: Piece, out: Array) -> bool:
    """Put a piece in place whose chunk another read has decoded; False: none has."""
    number, local, target = piece
    elements = kept_chunk(layout, number)
    if elements is not None:
        out[target] = elements[local]
    return elements is not None
