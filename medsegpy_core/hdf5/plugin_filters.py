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


def undo(name: str, values: tuple[int, ...], stored: Any) -> bytes | None:
    """Decompress with a filter of hdf5plugin.

    Args:
        name: As hdf5plugin calls it.
        values: The client values of the filter in the file.
        stored: Compressed bytes.

    Returns:
        What it makes of them, whatever its size; None: it cannot read them.
    """
    libc = _libc()
    function = _filter(name)
    data = bytes(stored)
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
        return ctypes.string_at(buffer, size) if size and buffer.value is not None else None
    finally:
        libc.free(buffer)
