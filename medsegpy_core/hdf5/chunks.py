"""Reading boxes of chunked datasets: which chunks a box touches, decoding them, and putting their parts in place."""

from __future__ import annotations

import functools
import itertools
import math
from array import array
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.decode import DecodeError, decode
from medsegpy_core.hdf5.inflating import Piece, inflated
from medsegpy_core.hdf5.ranges import KEPT_SCRATCH, Span, read_contiguous, read_span, stored_bytes
from medsegpy_core.hdf5.sharing import keep_chunk, kept_chunk

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.hdf5.vetting import Vetted
    from medsegpy_core.typing import Array, Selection

__all__ = ["fill_value", "read_chunked"]

# Chunks of nothing but zeros are common in masks; those that were seen are known by their stored bytes.
_ZERO_RATIO: Final = 64
_MAX_ZEROS: Final = 1024
# So many chunks that it is quicker to set all of the output to zero at once than each chunk that is empty.
_WORTH_ZEROING: Final = 4

_zeros: set[tuple[bytes, int, int, Any]] = set()


def read_chunked(file: int | Array, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box of a chunked dataset.

    Args:
        file: The open file, or its bytes where it is mapped into memory.
        layout: Where the chunks lie.
        selection: One ``slice(start, stop)`` per axis, within bounds, none of them empty.
        out: An array of that shape; values are cast to its type.

    Raises:
        ReadError: The file ends early, the device fails, or a chunk does not decode to its size. Without path.
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
    """Return the value where nothing was written.

    Raises:
        ReadError: There is none. Without path.
    """
    if not vetted.fill:
        raise ReadError("some of it was never written, and the file gives no value for that")
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
    """Return for each chunk along an axis that a part of it touches: what it adds to the number of a chunk, the part
    of the chunk that is wanted, and where that belongs in the output."""
    found = []
    for place in range(start // chunk, -(-stop // chunk)):
        first = place * chunk
        low, high = max(start, first), min(stop, first + chunk)
        found.append((place * numbers, slice(low - first, high - first), slice(low - start, high - start)))
    return found


def _read_ahead(file: int | Array, table: array[int]) -> int | Array | Span:
    """Read all chunks at once where they lie close together; else, or from a map, return the file as it is."""
    sizes = table[1::3]
    written = [at for at, size in zip(table[::3], sizes, strict=True) if size]
    total = sum(sizes)
    if not isinstance(file, int) or not written or total > KEPT_SCRATCH:
        return file
    first = min(written)
    length = max(at + size for at, size in zip(table[::3], sizes, strict=True) if size) - first
    return file if length > 2 * total else read_span(file, first, length)


class _Chunks:
    """The chunks of one read; what is the same for all of them is looked up once."""

    __slots__ = ("_chunk", "_file", "_layout", "_raw", "_shared", "_size", "_table", "_unfiltered", "_vetted")

    def __init__(
        self, file: int | Array | Span, layout: Layout, table: array[int], chunk: tuple[int, ...], shared: bool
    ):
        self._file = file
        self._layout = layout
        self._table = table
        self._chunk = chunk
        self._shared = shared  # whether another read may want the rest of a chunk
        self._vetted = layout.form.vetted
        self._raw = self._vetted.raw
        self._size = math.prod(chunk) * self._raw.itemsize
        self._unfiltered = (1 << len(self._vetted.filters)) - 1

    def read(self, number: int, local: Selection, out: Array, zeroed: bool) -> None:
        """Put a part of a chunk in place; `zeroed` says that `out` is 0 already."""
        at = 3 * number
        offset, stored, mask = self._table[at], self._table[at + 1], self._table[at + 2]
        if stored == 0:
            out[...] = fill_value(self._vetted)
            return
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
                # A checksum alone, or a shuffle of single bytes, leaves the stored bytes: memory that the next read
                # fills.
                copied = elements.copy() if np.may_share_memory(elements, raw) else elements
                keep_chunk(self._layout, number, copied)
        out[...] = elements[local]

    def _decoded(self, raw: Array, number: int, mask: int) -> Array | None:
        """Return the elements of a chunk; None: it is known to be nothing but zeros."""
        filters, size = self._vetted.filters, self._size
        seen = (raw.tobytes(), mask, size, filters) if len(raw) * _ZERO_RATIO < size else None
        if seen is not None and seen in _zeros:
            return None
        try:
            elements = np.frombuffer(decode(raw, filters, mask, size), self._raw)
        except (DecodeError, MemoryError) as error:
            raise ReadError(f"chunk {number} decodes to {error}") from error
        if seen is not None and len(_zeros) < _MAX_ZEROS and not elements.view(np.uint8).any():
            _zeros.add(seen)
        return elements.reshape(self._chunk)
