"""Places of boxes in files, as offsets and runs of bytes that need no library to read; and memory-mapped files."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medsegpy_core._util.locks import ForkSafeLock

if TYPE_CHECKING:
    from medsegpy_core._util.stamps import Stamp
    from medsegpy_core.typing import Array


# For small files that are read once per epoch, mapping and page faults cost more than reading.
SMALLEST_MAP: Final = 4 << 20
_MAX_MAPS: Final = 1024

_maps: dict[str, FileMap] = {}
_lock = ForkSafeLock()


class FileMap:
    """A read-only memory map of a file. It is unmapped once its last reference is gone.

    Python's `mmap` keeps a file descriptor as long as the map exists (always, before 3.13); hundreds of volumes would
    exceed the limit of a process.

    Attributes:
        stamp: The stamp of the file when it was mapped.
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
    """Return the map of a file, if there is one with this stamp."""
    with _lock:
        found = _maps.pop(path, None)
        if found is not None and found.stamp == stamp:
            _maps[path] = found  # move it to the end: the dict is in order of last use
            return found
    return None


def map_file(path: str, fd: int, size: int, stamp: Stamp) -> FileMap | None:
    """Map an open file and keep the map; None if the system cannot map it."""
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
    """A box of an array in C order, as two axes of runs of bytes.

    Attributes:
        count0, stride0: The number of rows, and the bytes between their starts.
        count1, stride1: The number of runs per row, and the bytes between their starts.
        run: The length of a run in bytes.
    """

    count0: int
    stride0: int
    count1: int
    stride1: int
    run: int


class Place(NamedTuple):
    """The place of an uncompressed box in a file.

    Attributes:
        path: The file.
        stamp: The stamp of the file when the box was located.
        offset: The offset of the first byte of the box.
        box: The runs of bytes, from that offset.
        dtype: The stored type.
        mapped: The map of the file; None: it is read.
    """

    path: str
    stamp: Stamp
    offset: int
    box: Box
    dtype: np.dtype[Any]
    mapped: FileMap | None = None

    def in_memory(self) -> Place | None:
        """Return the place in the map of its file; unchanged if the file is too small to map; None if it has not been
        mapped yet."""
        if self.stamp.size < SMALLEST_MAP:
            return self
        mapped = kept_map(self.path, self.stamp)
        return None if mapped is None else self._replace(mapped=mapped)


class Places(NamedTuple):
    """The places of a box of one record in files.

    Attributes:
        image: The place of the image.
        mask: The mask with all its channels; None: not requested.
        channels: The number of mask channels of one byte each; None: the channels are the bits of one byte.
    """

    image: Place
    mask: Place | None
    channels: int | None


@functools.lru_cache(maxsize=1024)
def box_of(shape: tuple[int, ...], itemsize: int, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], Box | None]:
    """Return the strides of an array in C order, and a box of these sizes as runs; None if the box has more than two
    axes of runs."""
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
