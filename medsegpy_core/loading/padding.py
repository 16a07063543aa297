"""Boxes that reach beyond an array, as `numpy.pad` of the whole array would fill them, without padding the whole."""

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
        """Say whether the box lies inside an array of this shape."""
        return all(a >= 0 and a + n <= s for a, n, s in zip(self.start, self.size, shape, strict=True))


def centred_padding(size: int, wanted: int) -> int:
    """Return how many voxels go before an axis of `size` that is padded to `wanted`, centred (0: it is long
    enough). The odd one goes behind."""
    return max(0, wanted - size) // 2


@lru_cache(maxsize=4096)
def _index_map(size: int, before: int, after: int, mode: str) -> Array:
    """Return for each voxel of a padded axis the voxel that it repeats; -1 for a constant 0."""
    axis = np.arange(size)
    # numpy.pad's typing does not know a mode that comes in a variable.
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
        read: ``read(selection, out)`` reads a box that lies inside.
        shape: The spatial shape of the array.
        box: The box.
        mode: What the config's `IMG_PAD_MODE` may be.
        out: Of the size of the box, and further axes that are not padded.
        padding: What ``constant`` pads with, of a shape that broadcasts to that of `out`; None: 0.
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
