"""Filters: decode the stored bytes of a chunk, with a limit on the decoded size.

The HDF5 library does not check how many bytes a filter produces. So this module decodes chunks itself: gzip, shuffle
and similar filters in Python, those of hdf5plugin by calling their C functions (``H5Z_class2_t`` in the HDF5
documentation). For filters that only the library can decode, it computes the decoded size first. A new filter is one
class and one entry in `FILTERS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core.hdf5.files import library_lock

if TYPE_CHECKING:
    from numpy.typing import NDArray


# The filters of a dataset in the order of application on write: (number, client values in the file).
Filters = tuple[tuple[int, tuple[int, ...]], ...]
Bytes = Any  # any contiguous buffer: bytes, memoryview, a NumPy array of uint8

DEFLATE, SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET, LZF = 1, 2, 3, 4, 5, 6, 32000

# The largest supported chunk, plus the bytes that filters may add.
_LARGEST: Final = (1 << 30) + (1 << 20)


class DecodeError(Exception):
    """The stored bytes of a chunk cannot be decoded to its size."""


class Filter:
    """An HDF5 filter.

    Attributes:
        number: The registered filter number.
        name: The name of the filter.
        foreign: Whether it runs C code of hdf5plugin, which a file can crash.
    """

    foreign = False

    def __init__(self, number: int, name: str):
        self.number = number
        self.name = name

    def can_decode(self, values: tuple[int, ...], itemsize: int) -> bool:
        """Return whether `decode` is supported; if not, only the library decodes, after a check of `decoded_size`.

        Args:
            values: The client values of the filter in the file.
            itemsize: Bytes per element.
        """
        del values, itemsize
        return True

    def encoded_size(self, size: int | None) -> int | None:
        """Return the encoded size of `size` bytes; None: unknown."""
        del size
        return None

    def decode(self, values: tuple[int, ...], data: Bytes, expected: int | None, size: int) -> Bytes:
        """Decode data.

        Args:
            values: The client values of the filter in the file.
            data: The encoded data.
            expected: The decoded size in bytes; None: unknown.
            size: The size of the chunk in bytes.

        Raises:
            DecodeError: The data are invalid, or decode to another size.
        """
        raise NotImplementedError


class LibraryFilter(Filter):
    """A filter that only the library decodes."""

    def can_decode(self, values: tuple[int, ...], itemsize: int) -> bool:
        """Return False, see `Filter.can_decode`."""
        del values, itemsize
        return False

    def decoded_size(self, values: tuple[int, ...], data: bytes) -> int:
        """Return the decoded size of data; 0: unknown.

        Raises:
            DecodeError: The data are truncated or invalid.
        """
        raise NotImplementedError


def can_decode(filters: Filters, itemsize: int) -> bool:
    """Return whether `decode` supports these filters."""
    return all(FILTERS[number].can_decode(values, itemsize) for number, values in filters)


def decode(stored: Bytes, filters: Filters, mask: int, size: int) -> Bytes:
    """Decode a chunk.

    Args:
        stored: The bytes in the file.
        filters: The filters in the order of application.
        mask: Bit i is set if filter i was skipped for this chunk.
        size: The size of the decoded chunk in bytes.

    Raises:
        DecodeError: The bytes are invalid, or decode to another size.
    """
    data = stored
    for applied, values, expected in _stages(filters, mask, size):
        data = applied.decode(values, data, expected, size)
    if len(data) != size:
        raise DecodeError(f"decodes to {len(data):,} bytes instead of {size:,}")
    return data


def check_size(stored: Bytes, filters: Filters, mask: int, size: int) -> None:
    """Check that a chunk decodes to its size, including filters that only the library decodes.

    Raises:
        DecodeError: The bytes are invalid, or decode to another size.
    """
    data = stored
    for applied, values, expected in _stages(filters, mask, size):
        if not isinstance(applied, LibraryFilter):
            data = applied.decode(values, data, expected, size)
            continue
        claimed = applied.decoded_size(values, bytes(data))
        if claimed != expected:
            # None: this filter was applied after another compression, whose output size is unknown.
            wanted = f"{expected:,}" if expected is not None else "a size that can be computed"
            raise DecodeError(f"decodes to {claimed:,} bytes instead of {wanted}")
        return
    if len(data) != size:
        raise DecodeError(f"decodes to {len(data):,} bytes instead of {size:,}")


@functools.lru_cache(maxsize=256)
def _stages(filters: Filters, mask: int, size: int) -> tuple[tuple[Filter, tuple[int, ...], int | None], ...]:
    """Return the applied filters in the order of decoding, each with its client values and decoded size (None:
    unknown)."""
    stages = []
    expected: int | None = size
    for i, (number, values) in enumerate(filters):
        if mask >> i & 1:
            continue
        # On write, this filter got `expected` bytes; the next one gets what this filter made of them.
        stages.append((FILTERS[number], values, expected))
        expected = FILTERS[number].encoded_size(expected)
    return tuple(reversed(stages))


@functools.cache
def _inflater() -> tuple[Any, type[Exception]]:
    """Return the fastest installed zlib: the function that creates a decompressor, and its error."""
    try:
        from isal import isal_zlib

        failure: Any = isal_zlib.error
        return isal_zlib.decompressobj, failure
    except ImportError:
        pass
    try:
        from zlib_ng import zlib_ng

        failure = zlib_ng.error
        return zlib_ng.decompressobj, failure
    except ImportError:
        import zlib

        return zlib.decompressobj, zlib.error


class Deflate(Filter):
    """gzip."""

    def decode(self, values: tuple[int, ...], data: Bytes, expected: int | None, size: int) -> Bytes:
        """See `Filter.decode`."""
        del values
        begin, failure = _inflater()
        inflater = begin()
        # Allow one byte more than expected: then zlib continues to the checksum at the end of the stream, and excess
        # data are detected. If the output is compressed data again, they are at most a little larger than the chunk.
        limit = expected if expected is not None else size + size // 64 + 4096
        try:
            inflated = inflater.decompress(data, limit + 1)
        except failure as error:
            raise DecodeError(f"invalid gzip data ({error})") from error
        if not inflater.eof or (expected is not None and len(inflated) != expected):
            found = f"more than {limit:,}" if len(inflated) > limit else f"{len(inflated):,}"
            raise DecodeError(
                f"decodes to {found} bytes instead of {limit:,}" if found != f"{limit:,}" else "truncated gzip data"
            )
        return inflated


class Bzip2(Filter):
    """bzip2 in Python, because the filter of hdf5plugin loops forever on truncated data."""

    foreign = True

    def decode(self, values: tuple[int, ...], data: Bytes, expected: int | None, size: int) -> Bytes:
        """See `Filter.decode`."""
        del values
        import bz2

        decompressor = bz2.BZ2Decompressor()
        limit = expected if expected is not None else size + size // 64 + 4096
        try:
            made = decompressor.decompress(data, limit + 1)
        except OSError as error:
            raise DecodeError(f"invalid bzip2 data ({error})") from error
        # All data may have been decoded, but not yet the end of the stream with its checksum.
        if not decompressor.eof and len(made) <= limit:
            made += decompressor.decompress(b"", 1)
        if not decompressor.eof or (expected is not None and len(made) != expected):
            raise DecodeError(
                f"decodes to {'more than ' if len(made) > limit else ''}{min(len(made), limit):,} bytes of bzip2 data"
            )
        return made


class Shuffle(Filter):
    """Stores the first bytes of all elements, then the second bytes, and so on."""

    def can_decode(self, values: tuple[int, ...], itemsize: int) -> bool:
        """Return whether the file declares the size of an element, see `Filter.can_decode`."""
        return values[:1] == (itemsize,)

    def encoded_size(self, size: int | None) -> int | None:
        """Return the same size, see `Filter.encoded_size`."""
        return size

    def decode(self, values: tuple[int, ...], data: Bytes, expected: int | None, size: int) -> Bytes:
        """See `Filter.decode`."""
        del expected, size
        itemsize = values[0] if values else 1
        if itemsize <= 1 or len(data) < 2 * itemsize:
            return data
        source = np.frombuffer(data, np.uint8)
        count = len(source) // itemsize
        result = np.empty(len(source), np.uint8)
        # The library does not shuffle bytes after the last whole element.
        whole = count * itemsize
        np.copyto(result[:whole].reshape(count, itemsize), source[:whole].reshape(itemsize, count).T)
        result[whole:] = source[whole:]
        return result


_CHECKSUM_BYTES: Final = 4
_WORDS_AT_ONCE: Final = 1 << 16


class Fletcher32(Filter):
    """A checksum at the end of the data."""

    def encoded_size(self, size: int | None) -> int | None:
        """Return the size with the checksum, see `Filter.encoded_size`."""
        return None if size is None else size + _CHECKSUM_BYTES

    def decode(self, values: tuple[int, ...], data: Bytes, expected: int | None, size: int) -> Bytes:
        """Verify the checksum and remove it, see `Filter.decode`."""
        del values, expected, size
        if len(data) < _CHECKSUM_BYTES:
            raise DecodeError("too few bytes for a checksum")
        body = memoryview(data)[:-_CHECKSUM_BYTES]
        found = bytes(memoryview(data)[-_CHECKSUM_BYTES:])
        sum1, sum2 = _fletcher32(np.frombuffer(body, np.uint8))
        computed = (sum2 << 16 | sum1).to_bytes(4, "little")
        # Old versions of the library stored the bytes of each half swapped, which the library still accepts.
        swapped = bytes((computed[1], computed[0], computed[3], computed[2]))
        if found not in (computed, swapped):
            raise DecodeError("its checksum (fletcher32) does not match: the file is damaged")
        return body


def _fletcher32(data: NDArray[np.uint8]) -> tuple[int, int]:
    """Return both sums of Fletcher's checksum over big-endian 16-bit words, modulo 65535.

    Source: J. Fletcher, "An arithmetic checksum for serial transmissions", IEEE Trans. Commun. 30 (1982). As in the
    library, a sum that is a multiple of 65535 is 65535, and 0 only if all words are 0.
    """
    words = data[: len(data) // 2 * 2].view(">u2")
    sum1 = sum2 = 0
    for start in range(0, len(words), _WORDS_AT_ONCE):
        block = words[start : start + _WORDS_AT_ONCE].astype(np.uint64)
        # Both sums of a block at once: the second sum adds up all intermediate values of the first. The blocks are so
        # small that uint64 cannot overflow; Python's ints take up the totals.
        running = np.cumsum(block)
        sum2 += len(block) * sum1 + int(running.sum())
        sum1 += int(running[-1])
    # An odd last byte is the high byte of a word.
    if len(data) % 2:
        sum1 += int(data[-1]) << 8
        sum2 += sum1
    return _folded(sum1), _folded(sum2)


def _folded(total: int) -> int:
    return (total - 1) % 65535 + 1 if total else 0


class Lzf(LibraryFilter):
    """The fast compression of h5py."""

    def decoded_size(self, values: tuple[int, ...], data: bytes) -> int:
        """Return the decoded size of LZF data, computed from their control bytes."""
        del values
        at = size = 0
        end = len(data)
        while at < end:
            control = data[at]
            if control < 32:  # a run of literals
                at += control + 2
                size += control + 1
            else:  # a back reference: two bytes, three if it is long
                length = control >> 5
                if length == 7 and at + 1 < end:
                    length += data[at + 1]
                    at += 1
                at += 2
                size += length + 2
        if at != end:
            raise DecodeError("truncated LZF data")
        return size


class Szip(LibraryFilter):
    """szip. The data start with their decoded size."""

    def decoded_size(self, values: tuple[int, ...], data: bytes) -> int:
        """See `LibraryFilter.decoded_size`."""
        del values
        return int.from_bytes(data[:4], "little")


# Kinds of types.
_ATOMIC, _UNTOUCHED = 1, 4


class Nbit(LibraryFilter):
    """Removes insignificant bits."""

    def decoded_size(self, values: tuple[int, ...], data: bytes) -> int:
        """Return the size from the client values, see `LibraryFilter.decoded_size`.

        The library reads past the end of data that are too short. The client values are: whether the data are not
        packed, the number of elements, the class of their type, its size and, if it is atomic, the byte order and the
        number of significant bits.
        """
        _, unpacked, count, kind, size = values[:5] if len(values) > 4 else (0,) * 5
        if unpacked:
            return len(data)
        bits = {_ATOMIC: values[6] if len(values) > 6 else 0, _UNTOUCHED: 8 * size}.get(kind, 0)
        if not bits:
            return 0
        _check_length(data, -(-count * bits // 8))
        return count * size


# The scale type for integers, and the size of the header before the packed bits.
_SCALED_INTEGERS: Final = 2
_SCALEOFFSET_HEADER: Final = 21


class ScaleOffset(LibraryFilter):
    """Subtracts the minimum, and removes bits that are not needed."""

    def decoded_size(self, values: tuple[int, ...], data: bytes) -> int:
        """Return the size from the client values, see `LibraryFilter.decoded_size`.

        The library reads past the end of data that are too short. The data start with the number of bits per element (4
        bytes, little-endian) and the minimum; the packed bits start at byte 21. Integers that need all bits are stored
        unchanged.
        """
        scale, factor, count, _, size = values[:5] if len(values) > 4 else (0,) * 5
        if scale == _SCALED_INTEGERS and factor == 8 * size:
            return len(data)
        _check_length(data, _SCALEOFFSET_HEADER)
        bits = int.from_bytes(data[:4], "little")
        if bits > 8 * size:
            raise DecodeError(f"declares {bits:,} bits per element, more than the {8 * size} of its type")
        _check_length(data, _SCALEOFFSET_HEADER + -(-count * bits // 8))
        return count * size


def _check_length(data: bytes, needed: int) -> None:
    if len(data) < needed:
        raise DecodeError(f"too short: {len(data):,} bytes are stored, but {needed:,} are needed")


_REVERSE: Final = 0x0100

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
def registered_filters() -> dict[str, str]:
    """Return the filters that hdf5plugin has registered with the library, name to path; none if it is not installed.

    Call it only while `files.open_file` keeps the library's plugin folders empty: hdf5plugin asks the library whether a
    filter is already available, and the library would search those folders.
    """
    if importlib.util.find_spec("hdf5plugin") is None:
        return {}
    import hdf5plugin

    there = hdf5plugin.get_config().registered_filters
    return {str(name): str(library) for name, library in there.items() if library != "unknown"}


@functools.cache
def _c_function(name: str) -> Any:
    library = ctypes.CDLL(registered_filters()[name])
    library.H5PLget_plugin_info.restype = ctypes.POINTER(_FilterClass)
    return library.H5PLget_plugin_info().contents.filter


class PluginFilter(Filter):
    """A filter of hdf5plugin. Its C function is called directly.

    Attributes:
        thread_safe: Whether the function is thread-safe; if not, it runs under the lock of the library.
    """

    foreign = True

    def __init__(self, number: int, name: str, thread_safe: bool = False):
        super().__init__(number, name)
        self.thread_safe = thread_safe

    def is_sound(self, values: tuple[int, ...], data: bytes, expected: int | None) -> bool:
        """Return whether the sizes in the header of the data are consistent, which not every filter checks."""
        del values, data, expected
        return True

    def decode(self, values: tuple[int, ...], data: Bytes, expected: int | None, size: int) -> Bytes:
        """See `Filter.decode`."""
        del size
        # Check first: some filters trust the sizes in the data, and read or write beyond their buffers.
        stored = bytes(data)
        found, decoded = self._undo(values, stored, expected) if self.is_sound(values, stored, expected) else (0, None)
        if decoded is None:
            wanted = f"to {found:,} bytes instead of {expected:,}" if found and expected is not None else "to nothing"
            raise DecodeError(f"decodes {wanted} with {self.name}")
        return decoded

    def _undo(self, values: tuple[int, ...], data: bytes, expected: int | None) -> tuple[int, bytes | None]:
        """Return the size that the C function reports, and the decoded bytes; None if it failed or the size is not the
        expected one."""
        libc = _libc()
        function = _c_function(self.name)
        client = (ctypes.c_uint * max(1, len(values)))(*values)
        # The filter frees the given buffer, and replaces it with its own; so allocate it as the library does.
        buffer = ctypes.c_void_p(libc.malloc(max(1, len(data))))
        if buffer.value is None:
            raise MemoryError(f"{len(data):,} bytes")
        ctypes.memmove(buffer, data, len(data))
        room = ctypes.c_size_t(len(data))
        try:
            with contextlib.nullcontext() if self.thread_safe else library_lock:
                size = function(_REVERSE, len(values), client, len(data), ctypes.byref(room), ctypes.byref(buffer))
            # For a damaged file, the function may report more bytes than it allocated; the size is then wrong as well.
            sound = 0 < size <= room.value if expected is None else size == expected
            return size, ctypes.string_at(buffer, size) if sound and buffer.value is not None else None
        finally:
            libc.free(buffer)


def _blocks_fit(data: bytes, count: int, rest: int = 0) -> bool:
    at = 12
    for _ in range(count):
        if at + 4 > len(data):
            return False
        at += 4 + int.from_bytes(data[at : at + 4])
    return at + rest <= len(data)


class Lz4(PluginFilter):
    """LZ4."""

    def is_sound(self, values: tuple[int, ...], data: bytes, expected: int | None) -> bool:
        """Check the size (8 bytes) and the block size (4), big-endian, and the size (4) before each block."""
        del values, expected
        # Limit the size as well: the filter allocates it before it decodes anything.
        size, block = int.from_bytes(data[:8]), int.from_bytes(data[8:12])
        return len(data) >= 12 and 0 < block <= _LARGEST and size <= _LARGEST and _blocks_fit(data, -(-size // block))


class Bitshuffle(PluginFilter):
    """bitshuffle."""

    def is_sound(self, values: tuple[int, ...], data: bytes, expected: int | None) -> bool:
        """Check as for LZ4 if bitshuffle compresses; fewer than 8 remaining elements follow uncompressed."""
        del expected
        if len(values) < 5 or values[4] == 0:
            return True
        size, block, itemsize = int.from_bytes(data[:8]), int.from_bytes(data[8:12]), values[2]
        if len(data) < 12 or not 0 < itemsize <= block or block % (8 * itemsize) or size > _LARGEST:
            return False
        whole, rest = divmod(size, block)
        return _blocks_fit(data, whole + (rest >= 8 * itemsize), rest % (8 * itemsize))


class Blosc2(PluginFilter):
    """Blosc2."""

    def is_sound(self, values: tuple[int, ...], data: bytes, expected: int | None) -> bool:
        """Check the client values, because the filter allocates as much memory as they declare."""
        del data
        return expected is None or len(values) <= 3 or values[3] <= 2 * expected + 4096


class Blosc(Blosc2):
    """Blosc."""

    def is_sound(self, values: tuple[int, ...], data: bytes, expected: int | None) -> bool:
        """Check the sizes of the data, of a block and of the whole, little-endian, in a header of 16 bytes."""
        if not super().is_sound(values, data, expected):
            return False
        size, block, whole = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
        return len(data) >= 16 and 0 < block <= max(size, 1) and whole == len(data)


# The names of hdf5plugin's filters are those that it uses.
FILTERS: Final = {
    known.number: known
    for known in (
        Deflate(DEFLATE, "gzip"),
        Shuffle(SHUFFLE, "shuffle"),
        Fletcher32(FLETCHER32, "fletcher32"),
        Szip(SZIP, "szip"),
        Nbit(NBIT, "nbit"),
        ScaleOffset(SCALEOFFSET, "scaleoffset"),
        Lzf(LZF, "lzf"),
        Bzip2(307, "bzip2"),
        Blosc(32001, "blosc", thread_safe=True),
        Lz4(32004, "lz4", thread_safe=True),
        Bitshuffle(32008, "bshuf", thread_safe=True),
        PluginFilter(32013, "zfp"),
        PluginFilter(32015, "zstd", thread_safe=True),
        PluginFilter(32017, "sz"),
        PluginFilter(32018, "fcidecomp"),
        PluginFilter(32024, "sz3"),
        Blosc2(32026, "blosc2", thread_safe=True),
        PluginFilter(32028, "sperr"),
        PluginFilter(32033, "htj2k"),
    )
}
