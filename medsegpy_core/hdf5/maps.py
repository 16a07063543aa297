"""Files mapped into memory: a bounded number for each process, none of them with an open file descriptor."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core.locks import ForkSafeLock

if TYPE_CHECKING:
    from medsegpy_core.stamps import Stamp
    from medsegpy_core.typing import Array

__all__ = ["SMALLEST_MAP", "FileMap", "kept_map", "map_file"]

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
