"""Backends move voxels from files into arrays: NumPy, or the compiled kernels of `medsegpy-native`.

A backend is a fast path. It returns the items that it did not process, and the caller processes them with NumPy. So all
backends give the same arrays, and all errors come from the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from medsegpy_core.hdf5.native import NativeBackend, kernels
from medsegpy_core.plugins.discovery import allow_list

if TYPE_CHECKING:
    import numpy as np

    from medsegpy_core.hdf5.extents import Box, Places
    from medsegpy_core.typing import Array


class Backend(Protocol):
    """A fast path from files to arrays.

    Each method returns the numbers of the skipped items, in order; an empty sequence if all are done. The output of
    skipped items is undefined. An item is skipped if the backend does not support the data, or on any problem: no
    method raises an error about a file.

    A backend has no state, is thread-safe, and is pickled by name.
    """

    @property
    def name(self) -> str:
        """The name of the backend."""

    @property
    def decodes(self) -> frozenset[tuple[int, ...]]:
        """The combinations of filters that `decode` supports: filter numbers in the order of application."""

    def read_rows(
        self,
        count: int,
        places: Iterable[Places | None],
        images: Array,
        masks: Array | None,
        table: Array | None,
    ) -> Sequence[int]:
        """Read the rows of a batch; an item is a row.

        Args:
            count: The number of rows.
            places: The places of image and mask of each row; None: skip the row. Only a backend that reads rows
                iterates over it, so a generator costs nothing otherwise.
            images: N x ..., float32, C-contiguous.
            masks: N x ... x C, C-contiguous; None: no masks.
            table: The categories of each combination of up to 8 channels, 256 x C, of the type of `masks`; None: no
                masks, or no such table.
        """

    def read_box(self, fd: int, offset: int, box: Box, dtype: np.dtype[Any], out: Array) -> Sequence[int]:
        """Read a box of an open file, the only item.

        Args:
            fd: The file.
            offset: The offset of the first byte.
            box: The runs of bytes, from that offset.
            dtype: The stored type.
            out: C-contiguous; values are cast to its type.
        """

    def decode(
        self, fd: int, data: Any, first: int, chunks: Array, strides: Array, sizes: tuple[int, int, int], out: Array
    ) -> Sequence[int]:
        """Decode chunks and copy them into place; an item is a chunk.

        Args:
            fd: The open file; -1: use `data`.
            data: The bytes of the file, if `fd` is -1.
            first: The offset of these bytes in the file.
            chunks: Rows of int64: the offset of each chunk in the file, its stored size, its place in the output, and
                the size of its part along each axis.
            strides: Bytes between items along each axis, in a chunk, then in the output. Empty: copy whole chunks.
                Otherwise `out` must be 0.
            sizes: The size of an item, the decoded size of a chunk, and the size of an element if chunks are shuffled
                (else 1), in bytes.
            out: The output.
        """

    def collate(self, stored: Array, bits: bool, out: Array, table: Array) -> Sequence[int]:
        """Collate the voxels of an array, the only item.

        Args:
            stored: ... x bytes per voxel, C-contiguous.
            bits: Whether the channels of a voxel are the bits of one byte; else each channel is a byte, 0 or 1.
            out: ... x categories.
            table: 256 rows: the categories of each combination of channels, of the type of `out`.
        """


class NumpyBackend:
    """Skips all items, so that the caller processes them with NumPy."""

    __slots__ = ()

    name: Final = "numpy"
    decodes: Final[frozenset[tuple[int, ...]]] = frozenset()

    def __reduce__(self) -> tuple[Any, ...]:
        return backend_named, (self.name,)

    def read_rows(
        self, count: int, places: Iterable[Places | None], images: Array, masks: Array | None, table: Array | None
    ) -> Sequence[int]:
        """Skip all rows."""
        del places, images, masks, table
        return range(count)

    def read_box(self, fd: int, offset: int, box: Box, dtype: np.dtype[Any], out: Array) -> Sequence[int]:
        """Skip the box."""
        del fd, offset, box, dtype, out
        return range(1)

    def decode(
        self, fd: int, data: Any, first: int, chunks: Array, strides: Array, sizes: tuple[int, int, int], out: Array
    ) -> Sequence[int]:
        """Skip all chunks."""
        del fd, data, first, strides, sizes, out
        return range(len(chunks))

    def collate(self, stored: Array, bits: bool, out: Array, table: Array) -> Sequence[int]:
        """Skip the array."""
        del stored, bits, out, table
        return range(1)


NUMPY: Final = NumpyBackend()

_chosen: ContextVar[Backend | None] = ContextVar("medsegpy_backend", default=None)


def current_backend() -> Backend:
    """Return the backend of the active `using_backend`; without one, the compiled kernels if they are installed,
    compiled, and allowed by `MEDSEGPY_LOAD_PLUGINS`, else NumPy."""
    return _chosen.get() or _installed(allow_list())


@functools.lru_cache(maxsize=8)
def _installed(allowed: str | None) -> Backend:
    found = kernels(allowed)
    return NUMPY if found is None else NativeBackend(found, backend_named)


def backend_named(name: str) -> Backend:
    """Return the backend with this name, or NumPy if it is not available, as in a process with other plugins."""
    found = _installed(allow_list())
    return found if found.name == name else NUMPY


@contextmanager
def using_backend(backend: Backend) -> Iterator[None]:
    """Read with this backend within the ``with`` block, in this thread."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)
