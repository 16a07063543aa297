"""Bit-field masks: eight binary channels in a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["pack_bitfield", "unpack_bitfield"]


def pack_bitfield(mask: Array) -> Array:
    """Pack the channels of a binary mask into bits.

    Args:
        mask: ... x C, bool or integer, with 0 and 1.

    Returns:
        ... x ceil(C/8), uint8: channel c is bit c % 8, least significant first, of byte c // 8.

    Raises:
        ValueError: There are other values, which bits cannot hold.

    Example:
        >>> pack_bitfield(np.array([[1, 0, 0], [0, 1, 1]])).tolist()
        [[1], [6]]
    """
    values = np.asarray(mask)
    if values.dtype.kind not in "biu" or (values.size and (values.max() > 1 or values.min() < 0)):
        raise ValueError("Bits hold 0 and 1; this mask has other values, or is not of integers.")
    return np.packbits(values.astype(bool, copy=False), axis=-1, bitorder="little")


def unpack_bitfield(packed: Array, channels: int) -> Array:
    """Undo `pack_bitfield`.

    Args:
        packed: ... x ceil(C/8), uint8.
        channels: C.

    Returns:
        ... x C, uint8, with 0 and 1.

    Example:
        >>> unpack_bitfield(np.array([[1], [6]], np.uint8), 3).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    return np.unpackbits(packed, axis=-1, count=channels, bitorder="little")
