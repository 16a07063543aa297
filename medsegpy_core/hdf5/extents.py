"""Where boxes lie in files that anybody can read: offsets and runs of bytes, and files mapped into memory."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.reading.lazy_arrays import full_selection

if TYPE_CHECKING:
    from medsegpy_core._util.stamps import Stamp
    from medsegpy_core.typing import Array, LazyArray, Selection


# Mapping a file and taking page faults costs more than reading it, where the file is small and read once an epoch.
SMALLEST_MAP: Final = 4 << 20
_MAX_MAPS: Final = 1024

_maps: dict[str, FileMap] = {}
_lock = ForkSafeLock()


class FileMap:
    """A file in memory, read only. It is unmapped when nobody refers to it any more.

    Python's own `mmap` keeps a file descriptor for as long as the map lives (before 3.13 always); hundreds of volumes
    would use up what a process may have.

    Attributes:
        stamp: What identified the content of the file when it was mapped.
        data: Its bytes. An array that shares this memory must not outlive the map.
    """

    __slots__ = ("_address", "data", "stamp")

    def __init__(self, fd: int, size: int, stamp: Stamp):
        self._address: int | None = None
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._address, self.stamp = address, stamp
        self.data: Array = np.frombuffer(memoryview((ctypes.c_ubyte * size).from_address(address)), np.uint8)

    def __del__(self) -> None:
        if self._address is not None:
            _libc().munmap(self._address, self.data.size)


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.restype = ctypes.c_int
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def kept_map(path: str, stamp: Stamp) -> FileMap | None:
    """Return the map of a file, if there is one of this content."""
    with _lock:
        found = _maps.pop(path, None)
        if found is not None and found.stamp == stamp:
            _maps[path] = found  # the last in the dict is the one that was used last
            return found
    return None


def map_file(path: str, fd: int, size: int, stamp: Stamp) -> FileMap | None:
    """Map an open file and keep the map; None where the system has none to give."""
    try:
        made = FileMap(fd, size, stamp)
    except OSError:
        return None
    with _lock:
        _maps.pop(path, None)
        while len(_maps) >= _MAX_MAPS:
            del _maps[next(iter(_maps))]
        _maps[path] = made
    return made


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


class Places(NamedTuple):
    """Where a box of one record lies in files.

    Attributes:
        image: The image.
        mask: The mask with all its channels; None: it is not wanted.
        channels: The channels of the mask, a byte each; None: they are the bits of one byte.
    """

    image: Place
    mask: Place | None
    channels: int | None


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
