"""Lazy arrays of NIfTI files: a subset of the stored axes or volumes, or several arrays as channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core import ReadError
from medsegpy_core.reading import basic_selection, environment_bytes
from medsegpy_nifti.data import read_box
from medsegpy_nifti.files import whole_file_errors
from medsegpy_nifti.header import Header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LazyNifti", "NiftiArray", "StackedArray"]

_MAX_READ: Final = 8 << 30


class LazyNifti:
    """The base class: implements ``array[selection]`` with `read_into`."""

    header: Header
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        import numpy as np

        box, rest = basic_selection(selection, self.shape)
        sizes = [part.stop - part.start for part in box]
        limit = environment_bytes("MEDSEGPY_MAX_READ", _MAX_READ)
        if math.prod(sizes) * self.dtype.itemsize > limit:
            raise ReadError(
                f"{' x '.join(map(str, sizes))} values of {self.dtype} are more than the {limit} bytes that "
                "MEDSEGPY_MAX_READ allows to be read at once",
                self.header.path,
            )
        with whole_file_errors(self.header.path):
            out = np.empty(sizes, self.dtype)
        self.read_into(box, out)
        return np.asarray(out[rest], order="C")

    def read_into(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Read a box: one ``slice(start, stop)`` per axis, into an array of that shape."""
        raise AssertionError("subclasses implement it")


class NiftiArray(LazyNifti):
    """A part of the array in a file.

    Args:
        header: The header of the file.
        window: One slice per stored axis.
        left_out: Stored axes to remove; they have size 1 in the window.
        cache_bytes: The size of the cache of decompressed files.
    """

    def __init__(self, header: Header, window: Sequence[slice], left_out: Sequence[int], cache_bytes: int):
        self.header = header
        self.dtype = header.value_dtype
        self._window = tuple(window)
        self._left_out = tuple(left_out)
        self._cache_bytes = cache_bytes
        self._kept = tuple(axis for axis in range(len(window)) if axis not in left_out)
        self.shape = tuple(window[axis].stop - window[axis].start for axis in self._kept)

    def read_into(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Read a box; see `LazyNifti.read_into`."""
        import numpy as np

        box = list(self._window)
        for axis, part in zip(self._kept, selection, strict=True):
            first = self._window[axis].start
            box[axis] = slice(first + part.start, first + part.stop)
        read_box(self.header, tuple(box), np.expand_dims(out, self._left_out), self._cache_bytes)


class StackedArray(LazyNifti):
    """Arrays with the same shape and type as channels on a new last axis."""

    def __init__(self, parts: Sequence[LazyNifti]):
        self.header = parts[0].header
        self.dtype = parts[0].dtype
        self._parts = tuple(parts)
        self.shape = (*parts[0].shape, len(parts))

    def read_into(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Read a box; see `LazyNifti.read_into`."""
        *box, channels = selection
        for position, part in enumerate(self._parts[channels]):
            part.read_into(tuple(box), out[..., position])
