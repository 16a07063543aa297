"""Views of lazy arrays, for other axis orders."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from medsegpy_core.typing import LazyArray, Selection

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from medsegpy_core.hdf5.extents import Place
    from medsegpy_core.typing import Array


def read_into(array: LazyArray, selection: Selection, out: Array) -> None:
    """Read a box of `array` into `out`, with conversion to its type.

    Args:
        array: A lazy array. Its own `read_into` is used if it has one.
        selection: One ``slice(start, stop)`` per axis, within bounds.
        out: An array of the shape of the box, perhaps strided.
    """
    fast = getattr(array, "read_into", None)
    if fast is not None:
        fast(selection, out)
    else:
        out[...] = array[selection]


# Only these functions look up the optional attributes of lazy arrays (see `typing`), without isinstance checks of the
# protocols, which would take 20 microseconds for each slice of a batch.


def place_of(array: LazyArray, selection: Selection) -> Place | None:
    """Return the location in a file of a box of a lazy array, with the whole of its further axes, or None if it is
    unknown; see `HasPlace`."""
    asked: Callable[[Selection], Place | None] | None = getattr(array, "place", None)
    return None if asked is None else asked((*selection, *full_selection(array.shape[len(selection) :])))


def packed_bits(mask: LazyArray) -> LazyArray | None:
    """Return the bit field of a mask, or None if it is not packed; see `PackedMask.packed`."""
    found: LazyArray | None = getattr(mask, "packed", None)
    return found


def packed_unknown_bits(mask: LazyArray) -> LazyArray | None:
    """Return the bit field of a mask with its unknown voxels, or None if it is not packed; see
    `PackedMask.packed_unknown`."""
    found: LazyArray | None = getattr(mask, "packed_unknown", None)
    return found


def full_selection(shape: tuple[int, ...]) -> Selection:
    """Return the selection of a whole array."""
    return tuple(slice(0, n) for n in shape)


def basic_selection(selection: Any, shape: tuple[int, ...]) -> tuple[Selection, tuple[Any, ...]]:
    """Split NumPy's basic indexing into a box to read and an index to apply to that box.

    Args:
        selection: Ints, slices of any positive step, and one ``...``.
        shape: The shape of the array.

    Returns:
        One ``slice(start, stop)`` per axis, and the index to apply to that box (steps, dropped axes).

    Raises:
        IndexError: Too many indices, an int out of range, or an index of another kind.
    """
    items = list(selection) if isinstance(selection, tuple) else [selection]
    ellipses = [i for i, item in enumerate(items) if item is Ellipsis]
    missing = len(shape) - (len(items) - len(ellipses))
    if len(ellipses) > 1 or missing < 0:
        raise IndexError(f"Index {selection!r} does not fit an array of rank {len(shape)}.")
    at = ellipses[0] if ellipses else len(items)
    # Without an ellipsis, missing indices are appended: NumPy selects the whole of the last axes.
    items[at : at + len(ellipses)] = [slice(None)] * missing
    box, rest = zip(*map(_axis_selection, items, shape), strict=True) if items else ((), ())
    return tuple(box), tuple(rest)


def _axis_selection(item: Any, size: int) -> tuple[slice, Any]:
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        if step < 0:
            raise IndexError(f"A lazy array takes slices with positive steps only, not {item!r}.")
        return slice(start, max(start, stop)), slice(None, None, step)
    try:
        index = operator.index(item)
    except TypeError:
        raise IndexError(f"A lazy array takes ints, slices and '...', not {item!r}.") from None
    if not -size <= index < size:
        raise IndexError(f"Index {index} is out of bounds for an axis of size {size}.")
    # A box has no negative bounds; an int drops its axis, which the index 0 does afterwards.
    index %= size
    return slice(index, index + 1), 0


class View:
    """Base class of views: `__getitem__` in terms of `read_into`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, selection: Any) -> Array:
        import numpy as np

        box, rest = basic_selection(selection, self.shape)
        out = np.empty([s.stop - s.start for s in box], self.dtype)
        if out.size:
            self.read_into(box, out)
        return np.asarray(out[rest], order="C")  # ascontiguousarray would give a scalar an axis

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box; see `read_into`."""
        raise AssertionError("subclasses implement it")


class AxesView(View):
    """A lazy array with permuted axes. Axes may be dropped at a fixed position, or unit axes inserted.

    Args:
        array: The array as stored.
        order: For each axis of the view, the axis of `array`, or None for a new axis of size 1. Axes of `array`
            that are not listed are dropped.
        index: The position on the dropped axes.
    """

    def __init__(self, array: LazyArray, order: tuple[int | None, ...], index: int = 0):
        self._array = array
        self._order = order
        self._at = slice(index, index + 1)
        self._named = tuple(axis for axis in order if axis is not None)
        self._left_out = tuple(axis for axis in range(len(array.shape)) if axis not in order)
        self._put_in = tuple(i for i, axis in enumerate(order) if axis is None)
        self.shape = tuple(1 if axis is None else array.shape[axis] for axis in order)
        self.dtype = array.dtype

    def read_into(self, selection: Selection, out: Array) -> None:
        """Read a box; see `read_into`."""
        import numpy as np

        # View `out` with the stored axes: the inverse permutation, then the dropped axes as unit axes.
        view = out.squeeze(self._put_in).transpose(np.argsort(self._named))
        read_into(self._array, self._stored(selection), np.expand_dims(view, self._left_out))

    def _stored(self, selection: Selection) -> Selection:
        """Return the selection on the stored array."""
        stored = [self._at] * len(self._array.shape)
        for axis, part in zip(self._order, selection, strict=True):
            if axis is not None:
                stored[axis] = part
        return tuple(stored)

    def place(self, selection: Selection) -> Place | None:
        """Return the location of a box in a file, or None if the array does not know it, or if the axes along which the
        box is longer than 1 are stored in another order."""
        # Along axes of length 1 the order does not matter, because they do not contribute to the strides of the box.
        parts = zip(self._order, selection, strict=True)
        long = [axis for axis, part in parts if axis is not None and part.stop - part.start > 1]
        return place_of(self._array, self._stored(selection)) if long == sorted(long) else None

    @property
    def packed(self) -> LazyArray | None:
        """The bit field of a packed mask, in the same axis order; None for other masks."""
        packed = packed_bits(self._array)
        return None if packed is None else AxesView(packed, self._order, self._at.start)

    @property
    def packed_unknown(self) -> LazyArray | None:
        """The bit field of the unknown voxels of a packed mask, in the same axis order; None for other masks."""
        packed = packed_unknown_bits(self._array)
        return None if packed is None else AxesView(packed, self._order, self._at.start)
