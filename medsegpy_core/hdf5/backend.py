"""What moves voxels from files into arrays: NumPy alone, or the compiled kernels of `medsegpy-native`.

A backend is a fast path. It does what it can, and says what it left undone, which the caller then does with NumPy: so
both give the same arrays, and the caller is the one source of every error.
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

    Each method returns the numbers of the items that it left undone, in order; nothing is left if there are none. The
    output of those items is undefined. An item is left if the backend does not know such data, or if anything is wrong
    with it: no method raises an error about a file.

    A backend has no state, may be used from any thread, and pickles by its name.
    """

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def decodes(self) -> frozenset[tuple[int, ...]]:
        """The filters whose chunks `decode` decodes: each by their numbers, in the order in which they were applied."""

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
            count: How many rows there are.
            places: Where image and mask of each row lie; None: the row is to be left. It is iterated only by a backend
                that reads rows, so that a generator costs the others nothing.
            images: N x ..., float32, C-contiguous.
            masks: N x ... x C, C-contiguous; None: no masks are wanted.
            table: What each combination of up to 8 channels becomes, 256 x C, of the type of `masks`; None: no masks
                are wanted, or there is no such table.
        """

    def read_box(self, fd: int, offset: int, box: Box, dtype: np.dtype[Any], out: Array) -> Sequence[int]:
        """Read a box of an open file, the only item.

        Args:
            fd: The file.
            offset: The first byte.
            box: The rest of it.
            dtype: As stored.
            out: C-contiguous; values are cast to its type.
        """

    def decode(
        self, fd: int, data: Any, first: int, chunks: Array, strides: Array, sizes: tuple[int, int, int], out: Array
    ) -> Sequence[int]:
        """Decode chunks, and put them in place; an item is a chunk.

        Args:
            fd: The open file; -1: its bytes are at hand.
            data: Its bytes, if they are at hand.
            first: Where in the file they begin.
            chunks: Rows of int64: where each chunk begins in the file, how many bytes are stored, where it goes in the
                output, and how large the part of it is along each axis.
            strides: Bytes from one item to the next along each axis, in a chunk; then in the output. Empty: chunks are
                put in place whole. Otherwise `out` is 0.
            sizes: Bytes of an item; what each chunk decodes to, in bytes; bytes of an element if chunks are shuffled,
                else 1.
            out: Where to.
        """

    def collate(self, stored: Array, bits: bool, out: Array, table: Array) -> Sequence[int]:
        """Collate the voxels of an array, the only item.

        Args:
            stored: ... x bytes of a voxel, C-contiguous.
            bits: Whether the byte of a voxel holds its channels as bits; else each channel is a byte, 0 or 1.
            out: ... x categories.
            table: 256 rows: the categories of each combination of channels, of the type of `out`.
        """


class NumpyBackend:
    """Leaves everything to NumPy."""

    __slots__ = ()

    name: Final = "numpy"
    decodes: Final[frozenset[tuple[int, ...]]] = frozenset()

    def __reduce__(self) -> tuple[Any, ...]:
        return backend_named, (self.name,)

    def read_rows(
        self, count: int, places: Iterable[Places | None], images: Array, masks: Array | None, table: Array | None
    ) -> Sequence[int]:
        """Leave all rows."""
        del places, images, masks, table
        return range(count)

    def read_box(self, fd: int, offset: int, box: Box, dtype: np.dtype[Any], out: Array) -> Sequence[int]:
        """Leave the box."""
        del fd, offset, box, dtype, out
        return range(1)

    def decode(
        self, fd: int, data: Any, first: int, chunks: Array, strides: Array, sizes: tuple[int, int, int], out: Array
    ) -> Sequence[int]:
        """Leave all chunks."""
        del fd, data, first, strides, sizes, out
        return range(len(chunks))

    def collate(self, stored: Array, bits: bool, out: Array, table: Array) -> Sequence[int]:
        """Leave the array."""
        del stored, bits, out, table
        return range(1)


NUMPY: Final = NumpyBackend()

_chosen: ContextVar[Backend | None] = ContextVar("medsegpy_backend", default=None)


def current_backend() -> Backend:
    """Return the backend that reads here and now: what `using_backend` says; else the compiled kernels, if they are
    installed, compiled, and among `MEDSEGPY_LOAD_PLUGINS`; else NumPy."""
    return _chosen.get() or _installed(allow_list())


@functools.lru_cache(maxsize=8)
def _installed(allowed: str | None) -> Backend:
    found = kernels(allowed)
    return NUMPY if found is None else NativeBackend(found, backend_named)


def backend_named(name: str) -> Backend:
    """Return the backend of this name; if it is not there, as in another process with other plugins, NumPy."""
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
