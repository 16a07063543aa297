"""The memory of batches: fresh, kept for the next batch, or taken again when nobody holds it any more."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core._util.locks import ForkSafeLock

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


_CACHE_LINE: Final = 64  # bytes

# buffers(name, shape, dtype) -> array
Buffers = Callable[[str, tuple[int, ...], Any], "Array"]


def fresh_buffer(_name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Allocate, at the border of a line of the cache; `Buffers` that keep arrays for the next batch have the same
    signature."""
    return _aligned(np.empty(math.prod(shape) * np.dtype(dtype).itemsize + _CACHE_LINE, np.uint8), shape, dtype)


def _aligned(memory: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array in memory that is larger by a line of the cache, which begins at the border of one."""
    first = -memory.ctypes.data % _CACHE_LINE
    array: Array = memory[first : len(memory) - _CACHE_LINE + first].view(dtype).reshape(shape)
    return array


class ReturnedBuffers:
    """Fresh memory for each batch, but memory that nobody holds any more is taken again: fresh memory costs page
    faults, more than filling it.

    Whoever holds a batch, or any view of it, in whatever library, holds a reference to its memory; so a batch stays
    what it is for as long as anybody can look at it. Threads may use it side by side.

    Args:
        most: How many arrays are kept in mind, of each name.
    """

    def __init__(self, most: int):
        self._most = most
        self._memory: dict[str, list[Array]] = {}
        self._lock = ForkSafeLock()

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array of this shape in memory that nobody holds."""
        size = math.prod(shape) * np.dtype(dtype).itemsize + _CACHE_LINE
        with self._lock:
            kept = self._memory.setdefault(name, [])
            for i in range(len(kept)):
                if kept[i].size == size and _references(kept, i) == _UNSHARED:
                    return _aligned(kept[i], shape, dtype)
            if len(kept) >= self._most:
                kept.pop(0)
            kept.append(np.empty(size, np.uint8))
            return _aligned(kept[-1], shape, dtype)


def _references(arrays: list[Array], i: int) -> int:
    """Return what the interpreter says of an array in a list. Asked in one place, so that answers can be compared."""
    return sys.getrefcount(arrays[i])


# Its answer for an array that only a list holds.
_UNSHARED: Final = _references([np.empty(0, np.uint8)], 0)


def returned_buffers(most: int) -> Buffers:
    """Return `ReturnedBuffers`; fresh ones where an interpreter without its lock counts references otherwise."""
    locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return ReturnedBuffers(most) if locked() else fresh_buffer


class KeptBuffers:
    """Buffers that serve one batch after the other: fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array of this shape, a part of the kept one where that is large enough."""
        kept = self._arrays.get(name)
        if kept is None or kept.dtype != dtype or kept.shape[1:] != shape[1:] or len(kept) < shape[0]:
            kept = self._arrays[name] = fresh_buffer(name, shape, dtype)
        return kept[: shape[0]]


class BufferSets:
    """The buffers that the passes of one loader use, one pass at a time; a second pass at once makes its own.

    They do not go to another process.
    """

    def __init__(self) -> None:
        self._sets: list[Buffers] = []
        self._lock = ForkSafeLock()

    def __reduce__(self) -> tuple[type[BufferSets], tuple[()]]:
        return type(self), ()

    def take(self, count: int) -> list[Buffers]:
        """Return `count` sets: those that lie here, in the order in which they may be used, and new ones behind."""
        with self._lock:
            sets, self._sets = self._sets, []
        return [KeptBuffers() for _ in range(count - len(sets))] + sets[-count:]

    def give_back(self, sets: list[Buffers]) -> None:
        """Keep the sets of a pass that has ended."""
        with self._lock:
            self._sets = sets
