"""The memory of batches: fresh, kept for the next batch, or reused once its last reference is gone."""

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
    """Allocate an array that starts at a cache line."""
    return _aligned(np.empty(math.prod(shape) * np.dtype(dtype).itemsize + _CACHE_LINE, np.uint8), shape, dtype)


def _aligned(memory: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array that starts at a cache line; `memory` must be one cache line larger than the array."""
    first = -memory.ctypes.data % _CACHE_LINE
    array: Array = memory[first : len(memory) - _CACHE_LINE + first].view(dtype).reshape(shape)
    return array


class ReturnedBuffers:
    """Reuse the memory of a batch once its last reference is gone.

    The page faults of fresh memory cost more than filling it. A batch, and any view of it in any library, holds a
    reference to its memory. So a batch never changes while it can still be seen. Thread-safe.

    Args:
        most: How many arrays of each name are tracked.
    """

    def __init__(self, most: int):
        self._most = most
        self._memory: dict[str, list[Array]] = {}
        self._lock = ForkSafeLock()

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array of this shape in unreferenced memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize + _CACHE_LINE
        with self._lock:
            kept = self._memory.setdefault(name, [])
            # Index instead of iterating: a loop variable would be one more reference.
            for i in range(len(kept)):
                if kept[i].size == size and _references(kept, i) == _UNSHARED:
                    return _aligned(kept[i], shape, dtype)
            # All are in use: stop tracking the oldest, which stays valid for its holders.
            if len(kept) >= self._most:
                kept.pop(0)
            kept.append(np.empty(size, np.uint8))
            return _aligned(kept[-1], shape, dtype)


def _references(arrays: list[Array], i: int) -> int:
    """Return the reference count of an array in a list.

    The count includes references of the call itself, which differ between interpreters. Counts are comparable only if
    they come from this one place.
    """
    return sys.getrefcount(arrays[i])


# The count of an array that only a list refers to.
_UNSHARED: Final = _references([np.empty(0, np.uint8)], 0)


def returned_buffers(most: int) -> Buffers:
    """Return `ReturnedBuffers`, or fresh buffers if the interpreter runs without the GIL.

    Without the GIL, reference counts are deferred and do not show whether memory is still in use.
    """
    locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return ReturnedBuffers(most) if locked() else fresh_buffer


class KeptBuffers:
    """Reuse the same arrays for each batch, because fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array of this shape: a part of the kept array if that is large enough."""
        kept = self._arrays.get(name)
        if kept is None or kept.dtype != dtype or kept.shape[1:] != shape[1:] or len(kept) < shape[0]:
            kept = self._arrays[name] = fresh_buffer(name, shape, dtype)
        return kept[: shape[0]]


class BufferSets:
    """The buffers of one loader, used by one pass at a time; a second pass at the same time creates its own.

    They are not pickled.
    """

    def __init__(self) -> None:
        self._sets: list[Buffers] = []
        self._lock = ForkSafeLock()

    def __reduce__(self) -> tuple[type[BufferSets], tuple[()]]:
        return type(self), ()

    def take(self, count: int) -> list[Buffers]:
        """Return `count` sets, in the order in which a pass may use them: new sets first, then the kept ones."""
        with self._lock:
            sets, self._sets = self._sets, []
        return [KeptBuffers() for _ in range(count - len(sets))] + sets[-count:]

    def give_back(self, sets: list[Buffers]) -> None:
        """Keep the sets of a finished pass."""
        with self._lock:
            self._sets = sets
