"""Read boxes that reach beyond an array, with the result of `numpy.pad` but without padding the whole array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


@frozen
class Box:
    """A box of voxels: `start` may be negative and `start + size` beyond the array.

    Attributes:
        start: First voxel per axis.
        size: Voxels per axis.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def window(self) -> tuple[slice, ...]:
        """One slice per axis, in the array's coordinates."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

    def inside(self, shape: Sequence[int]) -> bool:
        """Return whether the box lies inside an array of this shape."""
        return all(a >= 0 and a + n <= s for a, n, s in zip(self.start, self.size, shape, strict=True))


def centered_padding(size: int, wanted: int) -> int:
    """Return how many voxels to add before an axis of `size` to center it in `wanted`; 0 if it is long enough.

    An odd voxel is added after the axis.
    """
    return max(0, wanted - size) // 2


@lru_cache(maxsize=4096)
def _index_map(size: int, before: int, after: int, mode: str) -> Array:
    """Return, for each voxel of a padded axis, the index of the voxel that it repeats; -1 for a constant."""
    axis = np.arange(size)
    # The overloads of numpy.pad accept literal modes only.
    padded: Array = (
        np.pad(axis, (before, after), mode, constant_values=-1)  # type: ignore[call-overload]
        if mode == "constant"
        else np.pad(axis, (before, after), mode)  # type: ignore[call-overload]
    )
    padded.setflags(write=False)
    return padded


def read_padded(
    read: Callable[[tuple[slice, ...], Array], None],
    shape: Sequence[int],
    box: Box,
    mode: str,
    out: Array,
    padding: Array | None = None,
) -> None:
    """Read a box that may reach beyond the array.

    Args:
        read: ``read(selection, out)`` reads a box inside the array.
        shape: The spatial shape of the array.
        box: The box.
        mode: One of the values of the config's `IMG_PAD_MODE`.
        out: An array of the size of the box; further axes are not padded.
        padding: The values for mode ``constant``, in a shape that broadcasts to `out`; None: 0.
    """
    if box.inside(shape):
        read(box.window, out)
        return
    constant, gather, source = [], [], []
    for start, n, size in zip(box.start, box.size, shape, strict=True):
        before, after = max(0, -start), max(0, start + n - size)
        index = _index_map(size, before, after, mode)[start + before : start + before + n]
        real = index[index >= 0]
        first, last = (int(real.min()), int(real.max())) if real.size else (0, 0)
        source.append(slice(first, last + 1))
        constant.append(index < 0)
        gather.append((np.clip(np.arange(start, start + n), first, last) if mode == "constant" else index) - first)
    block = np.empty([s.stop - s.start for s in source] + list(out.shape[len(source) :]), out.dtype)
    read(tuple(source), block)
    out[...] = block[np.ix_(*gather)]
    if mode == "constant":
        values = np.broadcast_to(0 if padding is None else padding, out.shape)
        for axis, index in enumerate(constant):
            padded = (slice(None),) * axis + (index,)
            out[padded] = values[padded]
