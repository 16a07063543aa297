"""Bit-field masks: eight binary channels in a byte; with unknown voxels, eight channels in two bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["expand_bits", "pack_bitfield", "unpack_bitfield"]

_UNKNOWN: Final = 255


def pack_bitfield(mask: Array, unknown: bool = False) -> Array:
    """Pack the channels of a binary mask into bits.

    Args:
        mask: ... x C, bool or integer, with 0 and 1; with `unknown`, also 255.
        unknown: Whether a channel may be unknown. As many bytes again then follow, with a bit set where it is
            (``medsegpy_format`` 2).

    Returns:
        ... x ceil(C/8), uint8: channel c is bit c % 8, least significant first, of byte c // 8. With `unknown`, twice
        as many.

    Raises:
        ValueError: There are other values, which bits cannot hold.

    Example:
        >>> pack_bitfield(np.array([[1, 0, 0], [0, 1, 1]])).tolist()
        [[1], [6]]
    """
    values = np.asarray(mask)
    if unknown:
        not_known = values == _UNKNOWN
        return np.concatenate([pack_bitfield(np.where(not_known, 0, values)), pack_bitfield(not_known)], axis=-1)
    if values.dtype.kind not in "biu" or (values.size and (values.max() > 1 or values.min() < 0)):
        raise ValueError("Bits hold 0 and 1; this mask has other values, or is not of integers.")
    return np.packbits(values.astype(bool, copy=False), axis=-1, bitorder="little")


def unpack_bitfield(packed: Array, channels: int) -> Array:
    """Undo `pack_bitfield`.

    Args:
        packed: ... x ceil(C/8), uint8; or twice as many, where channels may be unknown.
        channels: C.

    Returns:
        ... x C, uint8, with 0 and 1, and 255 where a channel is unknown.

    Example:
        >>> unpack_bitfield(np.array([[1], [6]], np.uint8), 3).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    size = -(-channels // 8)
    if packed.shape[-1] == size:
        return np.unpackbits(packed, axis=-1, count=channels, bitorder="little")
    return expand_bits(packed[..., :size], packed[..., size:])[..., :channels]


def expand_bits(packed: Array, unknown: Array) -> Array:
    """Return the channels of bytes (... x n) and of those that say which are unknown: ... x 8 n with 0, 1 and 255."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    bits[np.unpackbits(unknown, axis=-1, bitorder="little").view(np.bool_)] = _UNKNOWN
    return bits
