"""`open_array`: a dataset in an HDF5 file as a lazy array."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsegpy_core._util.stamps import read_settled
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.extents import Place, box_of
from medsegpy_core.hdf5.files import max_read, regular_file
from medsegpy_core.hdf5.read import StaleError, locate, read_located, refuse_szip
from medsegpy_core.reading.lazy_arrays import basic_selection

if TYPE_CHECKING:
    from medsegpy_core.hdf5.dataset_info import Said
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection


class LazyReads:
    """The base class of all lazy arrays of this package: implements indexing with `read_into`."""

    __slots__ = ()

    path: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements, in native byte order."""
        raise NotImplementedError

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, cast to its type.

        Args:
            selection: One ``slice(start, stop)`` per axis, within bounds.
            out: An array with the shape of the box; it may be strided.

        Raises:
            ReadError: The file cannot be read, or has changed.
        """
        raise NotImplementedError

    def place(self, selection: Selection) -> Place | None:
        """Return the place of a box in a file; None if no bytes of the file can be used unchanged.

        Args:
            selection: As for `read_into`, without empty axes.
        """
        del selection
        return None

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, selection: Any) -> Array:
        box, rest = basic_selection(selection, self.shape)
        out = _empty([s.stop - s.start for s in box], self.dtype, self.path)
        if out.size:
            self.read_into(box, out)
        return np.asarray(out[rest], order="C")  # not ascontiguousarray, which adds an axis to a scalar

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("A lazy array has no memory to share; reading it makes a copy.")
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' x '.join(map(str, self.shape))} {self.dtype}>"


class H5Array(LazyReads):
    """A dataset in an HDF5 file.

    It keeps no file open, is thread-safe, and is pickled as path and key. If the file is modified or replaced, the
    dataset is located again; a different shape or type is an error. No read mixes two versions of a file: if the file
    changes during a read, or changed within the last 50 ms, it is read until two reads agree.

    Attributes:
        path: The file.
        key: The path inside the file.
    """

    __slots__ = ("_layout", "path")

    def __init__(self, path: str, layout: Layout):
        self.path = path
        self._layout = layout

    @property
    def key(self) -> str:
        """The path inside the file."""
        return self._layout.key

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis, as stored."""
        return self._layout.form.vetted.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements, in native byte order."""
        return self._layout.form.dtype

    @property
    def said(self) -> Said:
        """The metadata from the attributes of the dataset and of the file."""
        return self._layout.form.said

    def __reduce__(self) -> tuple[Any, ...]:
        return open_array, (self.path, self.key)

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        self._check(selection, out)
        if out.size == 0:
            return
        if self.dtype.kind != "b":
            self._read(selection, out)
            return
        # Bytes other than 0 and 1 would create invalid booleans.
        values = np.empty(out.shape, np.uint8)
        self._read(selection, values)
        if values.max() > 1:
            raise ReadError(f"booleans must be 0 or 1, but a byte is {values.max()}", self.path, self.key)
        out[...] = values

    def place(self, selection: Selection) -> Place | None:
        """Return the place of a box in the file, see `LazyReads.place`."""
        layout = self._layout
        vetted = layout.form.vetted
        found = layout.block(selection)
        sizes = tuple([part.stop - part.start for part in selection])
        if found is None or not layout.settled or math.prod(sizes) * vetted.dtype.itemsize > max_read():
            return None
        offset, first, shape = found
        strides, box = box_of(shape, vetted.dtype.itemsize, sizes)
        if box is None:
            return None
        offset += sum([start * stride for start, stride in zip(first, strides, strict=True)])
        return Place(self.path, layout.stamp, offset, box, vetted.dtype)

    def _read(self, selection: Selection, out: Array) -> None:
        # The error may be due to a file that was changing: the other way of reading raises real errors again.
        with suppress(StaleError, ReadError):
            if self._layout.settled:
                read_located(self.path, self._layout, selection, out)
                return
        regular_file(self.path)
        read_settled(self.path, lambda: self._locate_and_read(selection, out), lambda _: _digest(out))

    def _locate_and_read(self, selection: Selection, out: Array) -> None:
        self._locate_again()
        try:
            read_located(self.path, self._layout, selection, out)
        except StaleError:
            raise ReadError("the file changes all the time; wait until it is complete", self.path, self.key) from None

    def _locate_again(self) -> None:
        old, new = self._layout.form, locate(self.path, (self.key,))
        if (old.vetted.shape, old.dtype, old.said) != (new.form.vetted.shape, new.form.dtype, new.form.said):
            raise ReadError(
                f"the file changed since it was opened: the array was {old.dtype} of shape {old.vetted.shape} and is "
                f"now {new.form.dtype} of shape {new.form.vetted.shape}",
                self.path,
                self.key,
            )
        self._layout = new

    def _check(self, selection: Selection, out: Array) -> None:
        sizes = tuple(s.stop - s.start for s in selection)
        shape = self.shape
        if len(sizes) != len(shape) or out.shape != sizes:
            raise ValueError(f"The selection {selection} of {shape} does not match an output of {out.shape}.")
        if any(s.start < 0 or s.stop > n for s, n in zip(selection, shape, strict=True)):
            raise IndexError(f"The selection {selection} exceeds the shape {shape}.")
        _check_budget(math.prod(sizes) * self.dtype.itemsize, self.path)


def _digest(out: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(out).reshape(-1).view(np.uint8).data).digest()


def _check_budget(wanted: int, path: str) -> None:
    if wanted > (limit := max_read()):
        raise ReadError(
            f"a read of {wanted:,} bytes exceeds the limit of {limit:,}. Read a part, or increase the limit with the "
            "environment variable MEDSEGPY_MAX_READ (as in 16GiB)",
            path,
        )


def _empty(sizes: Sequence[int], dtype: np.dtype[Any], path: str) -> Array:
    _check_budget(math.prod(sizes) * dtype.itemsize, path)
    try:
        return np.empty(sizes, dtype)
    except (MemoryError, ValueError) as error:
        raise ReadError(f"there is not enough memory for {' x '.join(map(str, sizes))} of {dtype}", path) from error


def open_array(path: str | Path, key: str | Sequence[str]) -> H5Array:
    """Open a dataset in an HDF5 file; data are read when it is indexed.

    Args:
        path: The file.
        key: The path inside the file, or alternative paths, of which the first that exists is used.

    Raises:
        ReadError: The file or the dataset is missing, damaged, or not supported (see docs).

    Example:
        ```python
        array = open_array("0000001_V00.h5", "volume")
        window = array[100:228, 100:228, 40:104]
        ```
    """
    name = os.fspath(path)
    layout = locate(name, (key,) if isinstance(key, str) else tuple(key))
    refuse_szip(name, layout)
    return H5Array(name, layout)
