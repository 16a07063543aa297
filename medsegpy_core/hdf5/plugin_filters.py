"""The filters of the package hdf5plugin, called directly.

The library calls a filter and does not look at how much it made of a chunk; we do. A filter is a C function of a few
arguments that the plugin's shared library hands out (``H5Z_class2_t`` in the HDF5 documentation of filter plugins).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any, Final

from medsegpy_core.hdf5.policy import library_lock
from medsegpy_core.hdf5.vetting import registered_filters

__all__ = ["undo"]

_REVERSE: Final = 0x0100
# These keep nothing between calls, or lock it themselves; the others run under the lock of the library.
_THREAD_SAFE: Final = frozenset({"blosc", "blosc2", "bshuf", "bzip2", "lz4", "zstd"})

# More than the largest chunk that is read, and room for what filters add.
_LARGEST: Final = (1 << 30) + (1 << 20)

_Filter = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_void_p),
)


class _FilterClass(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        ("filter", _Filter),
    )


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.restype = None
    libc.free.argtypes = [ctypes.c_void_p]
    return libc


@functools.cache
def _filter(name: str) -> Any:
    library = ctypes.CDLL(registered_filters()[name])
    library.H5PLget_plugin_info.restype = ctypes.POINTER(_FilterClass)
    return library.H5PLget_plugin_info().contents.filter


def _lz4_is_sound(data: bytes) -> bool:
    """Size (8 bytes) and block size (4), big-endian; then blocks, each behind its size (4)."""
    size, block = int.from_bytes(data[:8]), int.from_bytes(data[8:12])
    return len(data) >= 12 and 0 < block <= _LARGEST and size <= _LARGEST and _blocks_fit(data, -(-size // block))


def _bshuf_is_sound(data: bytes, values: tuple[int, ...]) -> bool:
    """As LZ4, where bitshuffle compresses; a rest of less than eight elements follows as it is."""
    if len(values) < 5 or values[4] == 0:
        return True
    size, block, itemsize = int.from_bytes(data[:8]), int.from_bytes(data[8:12]), values[2]
    if len(data) < 12 or not 0 < itemsize <= block or block % (8 * itemsize) or size > _LARGEST:
        return False
    whole, rest = divmod(size, block)
    return _blocks_fit(data, whole + (rest >= 8 * itemsize), rest % (8 * itemsize))


def _blocks_fit(data: bytes, count: int, rest: int = 0) -> bool:
    at = 12
    for _ in range(count):
        if at + 4 > len(data):
            return False
        at += 4 + int.from_bytes(data[at : at + 4])
    return at + rest <= len(data)


def _blosc_is_sound(data: bytes) -> bool:
    """Sizes of the data, of a block and of all of it, little-endian, in a header of 16 bytes."""
    size, block, whole = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
    return len(data) >= 16 and 0 < block <= max(size, 1) and whole == len(data)


def _is_sound(name: str, values: tuple[int, ...], data: bytes, expected: int | None) -> bool:
    """Say whether the sizes that the data of a filter begin with fit each other; not every filter looks."""
    if name in ("blosc", "blosc2") and expected is not None and len(values) > 3 and values[3] > 2 * expected + 4096:
        return False  # they take this much memory for a chunk, and seconds to do so
    if name == "lz4":
        return _lz4_is_sound(data)
    if name == "bshuf":
        return _bshuf_is_sound(data, values)
    return name != "blosc" or _blosc_is_sound(data)


def undo(name: str, values: tuple[int, ...], stored: Any, expected: int | None) -> tuple[int, bytes | None]:
    """Decompress with a filter of hdf5plugin.

    Args:
        name: As hdf5plugin calls it.
        values: The client values of the filter in the file.
        stored: Compressed bytes.
        expected: What they should decompress to; None: not known.

    Returns:
        How many bytes it says that it made, and these, or None where it cannot read what is stored, or made another
        number of bytes than expected.
    """
    data = bytes(stored)
    if not _is_sound(name, values, data, expected):
        return 0, None
    libc = _libc()
    function = _filter(name)
    client = (ctypes.c_uint * max(1, len(values)))(*values)
    # The filter frees the buffer that it is given, and puts its own in its place.
    buffer = ctypes.c_void_p(libc.malloc(max(1, len(data))))
    if buffer.value is None:
        raise MemoryError(f"{len(data):,} bytes")
    ctypes.memmove(buffer, data, len(data))
    room = ctypes.c_size_t(len(data))
    try:
        with contextlib.nullcontext() if name in _THREAD_SAFE else library_lock:
            size = function(_REVERSE, len(values), client, len(data), ctypes.byref(room), ctypes.byref(buffer))
        # A damaged file can make it claim more than it has memory for; then it is not what is expected either.
        sound = 0 < size <= room.value if expected is None else size == expected
        return size, ctypes.string_at(buffer, size) if sound and buffer.value is not None else None
    finally:
        libc.free(buffer)
