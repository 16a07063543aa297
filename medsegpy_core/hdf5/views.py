"""Views of HDF5 arrays: one position of an axis, several arrays as channels, bit fields as channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medsegpy_core.hdf5.array import LazyReads
from medsegpy_core.hdf5.bitfield import expand_bits

if TYPE_CHECKING:
    from medsegpy_core.hdf5.places import Place
    from medsegpy_core.typing import Array, LazyArray, Selection

__all__ = ["AtIndex", "Bitfield", "Stacked"]


class AtIndex(LazyReads):
    """An array with one axis taken at one position, and left out.

    Args:
        array: The array.
        axis: The axis, from the front.
        index: The position on it.
    """

    __slots__ = ("_at", "_axis", "_base", "_expand", "path")

    def __init__(self, array: LazyReads, axis: int, index: int = 0):
        self._base = array
        self._axis = axis
        self._at = slice(index, index + 1)
        self._expand = (*(slice(None),) * axis, None)
        self.path = array.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each remaining axis."""
        shape = self._base.shape
        return shape[: self._axis] + shape[self._axis + 1 :]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self._base.dtype

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        axis = self._axis
        self._base.read_into((*selection[:axis], self._at, *selection[axis:]), out[self._expand])

    def place(self, selection: Selection) -> Place | None:
        """Say where a box lies in the file, see `LazyReads.place`."""
        axis = self._axis
        return self._base.place((*selection[:axis], self._at, *selection[axis:]))

    @property
    def packed(self) -> LazyArray | None:
        """The bit field behind a packed mask; None for other arrays."""
        packed = getattr(self._base, "packed", None)
        return None if packed is None else AtIndex(packed, self._axis, self._at.start)

    @property
    def packed_unknown(self) -> LazyArray | None:
        """The bit field behind a packed mask with unknown voxels; None for other arrays."""
        packed = getattr(self._base, "packed_unknown", None)
        return None if packed is None else AtIndex(packed, self._axis, self._at.start)

    @property
    def channels(self) -> int:
        """The size of the last axis."""
        return self.shape[-1]


class Stacked(LazyReads):
    """Arrays of one shape as channels, on a new last axis; the type is one that holds all of theirs.

    Args:
        arrays: At least one.
    """

    __slots__ = ("_arrays", "_dtype", "path")

    def __init__(self, arrays: Sequence[LazyReads]):
        self._arrays = tuple(arrays)
        self._dtype = np.result_type(*(a.dtype for a in arrays))
        self.path = arrays[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one, and their number."""
        return (*self._arrays[0].shape, len(self._arrays))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The common type."""
        return self._dtype

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        channels = selection[-1]
        for k in range(channels.start, channels.stop):
            self._arrays[k].read_into(selection[:-1], out[..., k - channels.start])


def _bytes_of(channels: int) -> int:
    return -(-channels // 8)


class Bitfield(LazyReads):
    """A packed mask, expanded: channel c is bit c % 8, least significant first, of byte c // 8 of the last axis.

    Where channels may be unknown, as many bytes again follow, with a bit set where a channel is unknown.

    Args:
        stored: The bytes.
        channels: How many channels they hold.

    Attributes:
        packed: The bytes; None: channels may be unknown.
        packed_unknown: The bytes, where channels may be unknown; else None.
        channels: How many channels they hold.
    """

    __slots__ = ("_stored", "channels", "packed", "packed_unknown", "path")

    def __init__(self, stored: LazyReads, channels: int):
        self._stored = stored
        twice = stored.shape[-1] == 2 * _bytes_of(channels)
        self.packed = None if twice else stored
        self.packed_unknown = stored if twice else None
        self.channels = channels
        self.path = stored.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with one element per channel on the last axis."""
        return (*self._stored.shape[:-1], self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, with 0 and 1, and 255 where a channel is unknown."""
        return np.dtype(np.uint8)

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box into `out`, see `LazyReads.read_into`."""
        channels = selection[-1]
        first, stop, size = channels.start // 8, _bytes_of(channels.stop), _bytes_of(self.channels)
        if self.packed is not None:
            packed = self.packed[(*selection[:-1], slice(first, stop))]
            bits = np.unpackbits(packed, axis=-1, bitorder="little")
        else:
            stored = self._stored[(*selection[:-1], slice(0, 2 * size))]
            bits = expand_bits(stored[..., first:stop], stored[..., size + first : size + stop])
        out[...] = bits[..., channels.start - 8 * first : channels.stop - 8 * first]
