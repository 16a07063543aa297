"""Where boxes lie in files as they are: not compressed, so that anybody can read their bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medsegpy_core.hdf5.maps import SMALLEST_MAP, FileMap, kept_map
from medsegpy_core.lazy import full_selection

if TYPE_CHECKING:
    from medsegpy_core.stamps import Stamp
    from medsegpy_core.typing import LazyArray, Selection

__all__ = ["Box", "Place", "box_of", "place_of"]


class Box(NamedTuple):
    """A box of an array in C order, as runs of bytes: two axes of runs, and how long a run is.

    Attributes:
        count0, stride0: How many rows, and how many bytes from one to the next.
        count1, stride1: How many runs in a row, and how many bytes from one to the next.
        run: Bytes that lie side by side.
    """

    count0: int
    stride0: int
    count1: int
    stride1: int
    run: int


class Place(NamedTuple):
    """Where a box lies in a file, in the type in which it is stored; nothing is compressed.

    Attributes:
        path: The file.
        stamp: What identified its content when it was located.
        offset: The first byte of the box.
        box: The rest of it.
        dtype: As stored.
        mapped: The file in memory; None: it is read.
    """

    path: str
    stamp: Stamp
    offset: int
    box: Box
    dtype: np.dtype[Any]
    mapped: FileMap | None = None

    def in_memory(self) -> Place | None:
        """Return the place in the map of its file; the place as it is, where the file is too small to be mapped; None:
        it has not been mapped yet."""
        if self.stamp.size < SMALLEST_MAP:
            return self
        mapped = kept_map(self.path, self.stamp)
        return None if mapped is None else self._replace(mapped=mapped)


@functools.lru_cache(maxsize=1024)
def box_of(shape: tuple[int, ...], itemsize: int, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], Box | None]:
    """Return the strides of an array in C order, and a box of these sizes as runs; None: it has more than two axes
    of runs."""
    strides = tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    run, axis = itemsize, len(shape) - 1
    while axis >= 0 and strides[axis] == run:
        run *= sizes[axis]
        axis -= 1
    outer: list[tuple[int, int]] = []
    for size, stride in zip(sizes[: axis + 1], strides[: axis + 1], strict=True):
        if size > 1 and outer and outer[-1][1] == size * stride:
            outer[-1] = (outer[-1][0] * size, stride)
        elif size > 1:
            outer.append((size, stride))
    if len(outer) > 2:
        return strides, None
    (count0, stride0), (count1, stride1) = [(1, 0)] * (2 - len(outer)) + outer
    return strides, Box(count0, stride0, count1, stride1, run)


def place_of(array: LazyArray, selection: Selection) -> Place | None:
    """Say where a box of a lazy array, and all of its further axes, lies in a file; None: nowhere as it is."""
    asked: Callable[[Selection], Place | None] | None = getattr(array, "place", None)
    return None if asked is None else asked((*selection, *full_selection(array.shape[len(selection) :])))
