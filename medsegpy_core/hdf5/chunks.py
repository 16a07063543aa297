"""Chunked datasets: find the chunks that a box touches, decode them, and copy their parts into place.

Decoded chunks are shared between reads, because the patches of one batch, or the slices of one volume, touch the same
chunks. The `Backend` decodes chunks with filters that it supports, many per call.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.backend import Backend, current_backend
from medsegpy_core.hdf5.byte_ranges import KEPT_SCRATCH, Span, read_contiguous, read_span, stored_bytes
from medsegpy_core.hdf5.costs import current_costs
from medsegpy_core.hdf5.filters import SHUFFLE, DecodeError, decode

if TYPE_CHECKING:
    from medsegpy_core.hdf5.dataset_info import Vetted
    from medsegpy_core.hdf5.filters import Bytes, Filters
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection


# The memory for decoded chunks of one batch in one thread; enough for many 512 x 512 slices of a few channels.
_KEPT_BYTES: Final = 128 << 20

_local = threading.local()


class _KeptChunks:
    """The most recently decoded chunks, up to a number of bytes."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[Layout, int], Array] = {}
        self.size = 0

    def put(self, key: tuple[Layout, int], elements: Array) -> None:
        while self.chunks and self.size + elements.nbytes > _KEPT_BYTES:
            # Dicts keep their order: the first chunk is the oldest.
            self.size -= self.chunks.pop(next(iter(self.chunks))).nbytes
        if elements.nbytes <= _KEPT_BYTES:
            self.chunks[key] = elements
            self.size += elements.nbytes


@contextmanager
def sharing_chunks() -> Iterator[None]:
    """Keep decoded chunks for the reads of this thread, until the context ends.

    A changed file gets a new layout, so its old chunks are not used.
    """
    before: Any = getattr(_local, "chunks", None)
    _local.chunks = before or _KeptChunks()
    try:
        yield
    finally:
        _local.chunks = before


def kept_chunk(layout: Layout, number: int) -> Array | None:
    """Return the elements of a kept chunk, or None."""
    kept: _KeptChunks | None = getattr(_local, "chunks", None)
    return None if kept is None else kept.chunks.get((layout, number))


def keep_chunk(layout: Layout, number: int, elements: Array) -> None:
    """Keep the elements of a chunk if `sharing_chunks` is active."""
    kept: _KeptChunks | None = getattr(_local, "chunks", None)
    if kept is not None:
        kept.put((layout, number), elements)


# The number of a chunk, the part of it to read, and the place of that part in the output.
Piece = tuple[int, "Selection", "Selection"]

# The number of bytes to decode into a temporary buffer before they are copied into place.
_AT_ONCE: Final = 32 << 20


def inflated(file: int | Array | Span, layout: Layout, table: array[int], pieces: Sequence[Piece], out: Array) -> bool:
    """Read pieces of chunks with the backend.

    Args:
        file: The open file, or its bytes if it is mapped or was read.
        layout: The layout of the dataset.
        table: Offset, stored size and filter mask of each chunk.
        pieces: The pieces to read.
        out: The output.

    Returns:
        Whether all pieces were read. False for unsupported filters, unwritten chunks, and any error.
    """
    vetted = layout.form.vetted
    backend, filters = current_backend(), tuple([number for number, _ in vetted.filters])
    if filters not in backend.decodes:
        return False
    stored = np.frombuffer(table, np.int64).reshape(-1, 3)[[number for number, _, _ in pieces]]
    if not stored[:, 1].all() or stored[:, 2].any():
        return False
    chunks = _InflatedChunks(backend, file, layout, vetted.raw.itemsize if SHUFFLE in filters else 1)
    if out.shape == vetted.shape and (chunks.fit(out) or out.size * vetted.raw.itemsize <= _AT_ONCE):
        return chunks.read_whole(stored, out)
    return chunks.read_parts(pieces, stored, out)


class _InflatedChunks:
    """The chunks of one read."""

    def __init__(self, backend: Backend, file: int | Array | Span, layout: Layout, itemsize: int):
        vetted = layout.form.vetted
        self._backend = backend
        self._fd = file if isinstance(file, int) else -1
        self._first, self._data = (file.first, file.data) if isinstance(file, Span) else (0, file)
        self._layout = layout
        self._shape, self._dtype = vetted.chunks or (), vetted.raw
        self._size, self._itemsize = math.prod(self._shape) * self._dtype.itemsize, itemsize

    def fit(self, out: Array) -> bool:
        """Return whether chunks can be copied into an array without conversion."""
        return out.dtype == self._dtype and out.flags.c_contiguous

    def read_whole(self, stored: Array, out: Array) -> bool:
        """Read a whole dataset; `stored` has one row per chunk."""
        straight = self.fit(out)
        # Zero the output, because the backend does not write all-zero chunks.
        whole = out if straight else np.empty(out.shape, self._dtype)
        whole[...] = 0
        strides, item, places = _geometry(self._shape, out.shape, self._dtype.itemsize)
        if not self._run(np.concatenate([stored[:, :2], places], axis=1), strides, item, whole):
            return False
        if not straight:
            out[...] = whole
        return True

    def read_parts(self, pieces: Sequence[Piece], stored: Array, out: Array) -> bool:
        """Read some pieces; keep chunks whose remaining parts may be needed later."""
        step = max(1, _AT_ONCE // self._size)
        left = [i for i, piece in enumerate(pieces) if not _put_kept(self._layout, piece, out)]
        for begin in range(0, len(left), step):
            some = left[begin : begin + step]
            chunks = np.empty((len(some), *self._shape), self._dtype)
            rows = stored[some]  # a copy; its last column becomes the place in the output
            rows[:, 2] = np.arange(len(some)) * self._size
            if not self._run(rows, _NO_STRIDES, 1, chunks):
                return False
            for elements, (number, local, target) in zip(chunks, [pieces[i] for i in some], strict=True):
                part = out[target]
                part[...] = elements[local]
                # A chunk that was used completely will not be needed again.
                if part.shape != self._shape:
                    keep_chunk(self._layout, number, elements)
        return True

    def _run(self, rows: Array, strides: Array, item: int, out: Array) -> bool:
        data = b"" if self._fd >= 0 else self._data
        sizes = (item, self._size, self._itemsize)
        return not self._backend.decode(self._fd, data, self._first, rows, strides, sizes, out)


_NO_STRIDES: Final = np.empty(0, np.int64)


@functools.lru_cache(maxsize=128)
def _geometry(chunk: tuple[int, ...], shape: tuple[int, ...], itemsize: int) -> tuple[Array, int, Array]:
    """Return how the chunks of a dataset form the whole array. The last axes are merged into one item if a chunk covers
    them completely.

    Returns:
        The strides of a chunk, then of the whole array; the size of an item in bytes; and for each chunk its place, and
        the size of its part along each axis.
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
    """Copy a piece from a kept chunk; returns whether there is one."""
    number, local, target = piece
    elements = kept_chunk(layout, number)
    if elements is not None:
        out[target] = elements[local]
    return elements is not None


# All-zero chunks are common in masks; they are recognized by their stored bytes once one has been decoded.
_ZERO_RATIO: Final = 64
_MAX_ZEROS: Final = 1024
# From this number of chunks on, it is faster to zero the whole output at once than each empty chunk.
_WORTH_ZEROING: Final = 4

_zeros: set[tuple[bytes, int, int, Any]] = set()


def read_chunked(file: int | Array, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box of a chunked dataset.

    Args:
        file: The open file, or its bytes if it is mapped.
        layout: The layout of the dataset.
        selection: One ``slice(start, stop)`` per axis, within bounds and not empty.
        out: An array of that shape; values are cast to its type.

    Raises:
        ReadError: The file ends early, the device fails, or a chunk does not decode to its size. Without a path.
    """
    vetted, table = layout.form.vetted, layout.table
    if vetted.chunks is None or table is None:
        raise ReadError("a chunked dataset without chunks")
    pieces = _pieces(vetted.shape, vetted.chunks, tuple([(part.start, part.stop) for part in selection]))
    in_full = out.shape == vetted.shape
    zeroed = len(pieces) >= _WORTH_ZEROING
    whole = _read_ahead(file, table) if zeroed and in_full and vetted.filters else file
    if inflated(whole, layout, table, pieces, out):
        return
    if zeroed:
        out[...] = 0
    chunks = _Chunks(whole, layout, table, vetted.chunks, shared=not in_full)
    for number, local, target in pieces:
        chunks.read(number, local, out[target], zeroed)


def fill_value(vetted: Vetted) -> Any:
    """Return the fill value of a dataset.

    Raises:
        ReadError: There is none. Without a path.
    """
    if not vetted.fill:
        raise ReadError("a part of it was never written, and the file has no fill value")
    return np.frombuffer(vetted.fill, vetted.raw)[0]


@functools.lru_cache(maxsize=128)
def _pieces(shape: tuple[int, ...], chunks: tuple[int, ...], box: tuple[tuple[int, int], ...]) -> tuple[Piece, ...]:
    """Return the pieces of all chunks that a box touches, in C order."""
    axes = []
    numbers = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    for size, chunk, bounds in zip(shape, chunks, box, strict=True):
        numbers //= -(-size // chunk)
        axes.append(_touched(chunk, *bounds, numbers))
    parts = (zip(*position, strict=True) for position in itertools.product(*axes))
    return tuple((sum(number), local, target) for number, local, target in parts)


def _touched(chunk: int, start: int, stop: int, numbers: int) -> list[tuple[int, slice, slice]]:
    """Return, for each chunk that a range touches along an axis: its contribution to the chunk number, the part of the
    chunk, and the place of that part in the output."""
    found = []
    for place in range(start // chunk, -(-stop // chunk)):
        first = place * chunk
        low, high = max(start, first), min(stop, first + chunk)
        found.append((place * numbers, slice(low - first, high - first), slice(low - start, high - start)))
    return found


def _read_ahead(file: int | Array, table: array[int]) -> int | Array | Span:
    """Read all chunks at once if they are close together; otherwise, or if it is a map, return the file unchanged."""
    sizes = table[1::3]
    written = [at for at, size in zip(table[::3], sizes, strict=True) if size]
    total = sum(sizes)
    if not isinstance(file, int) or not written or total > KEPT_SCRATCH:
        return file
    first = min(written)
    length = max(at + size for at, size in zip(table[::3], sizes, strict=True) if size) - first
    # One large read is faster than many small ones, unless more than half of it are gaps.
    return file if length > 2 * total else read_span(file, first, length)


def _decode(stored: Array, filters: Filters, mask: int, size: int) -> Bytes:
    costs = current_costs()
    if costs is None:
        return decode(stored, filters, mask, size)
    began = time.perf_counter()
    found = decode(stored, filters, mask, size)
    costs.add_decoded(time.perf_counter() - began, size)
    return found


class _Chunks:
    """The chunks of one read. Looks up once what all of them have in common."""

    __slots__ = ("_chunk", "_file", "_layout", "_raw", "_shared", "_size", "_table", "_unfiltered", "_vetted")

    def __init__(
        self, file: int | Array | Span, layout: Layout, table: array[int], chunk: tuple[int, ...], shared: bool
    ):
        self._file = file
        self._layout = layout
        self._table = table
        self._chunk = chunk
        self._shared = shared  # whether another read may need the rest of a chunk
        self._vetted = layout.form.vetted
        self._raw = self._vetted.raw
        self._size = math.prod(chunk) * self._raw.itemsize
        self._unfiltered = (1 << len(self._vetted.filters)) - 1

    def read(self, number: int, local: Selection, out: Array, zeroed: bool) -> None:
        """Copy a part of a chunk into `out`; `zeroed`: `out` is 0 already."""
        at = 3 * number
        offset, stored, mask = self._table[at], self._table[at + 1], self._table[at + 2]
        if stored == 0:
            out[...] = fill_value(self._vetted)
            return
        # If all filters were skipped for this chunk, it is a contiguous array.
        if mask & self._unfiltered == self._unfiltered:
            if stored != self._size:
                raise ReadError(f"chunk {number} has {stored:,} bytes instead of {self._size:,}")
            read_contiguous(self._file, offset, self._chunk, self._raw, local, out)
            return
        elements = kept_chunk(self._layout, number) if self._shared else None
        if elements is None:
            raw = stored_bytes(self._file, offset, stored)
            elements = self._decoded(raw, number, mask)
            if elements is None:
                if not zeroed:
                    out[...] = 0
                return
            if self._shared and elements.shape != out.shape:
                # If there is only a checksum, or a shuffle of single bytes, the elements may share the memory of the
                # stored bytes, which the next read overwrites.
                copied = elements.copy() if np.may_share_memory(elements, raw) else elements
                keep_chunk(self._layout, number, copied)
        out[...] = elements[local]

    def _decoded(self, raw: Array, number: int, mask: int) -> Array | None:
        """Return the elements of a chunk; None: it is known to be all zeros."""
        filters, size = self._vetted.filters, self._size
        # Only an extreme compression ratio suggests zeros; hashing the bytes of other chunks would cost time.
        seen = (raw.tobytes(), mask, size, filters) if len(raw) * _ZERO_RATIO < size else None
        if seen is not None and seen in _zeros:
            return None
        try:
            elements = np.frombuffer(_decode(raw, filters, mask, size), self._raw)
        except (DecodeError, MemoryError) as error:
            raise ReadError(f"chunk {number}: {error}") from error
        if seen is not None and len(_zeros) < _MAX_ZEROS and not elements.view(np.uint8).any():
            _zeros.add(seen)
        return elements.reshape(self._chunk)
