"""Read voxels: from byte ranges of a plain file, from the start of a compressed file, or from the cache.

A NIfTI file stores its first axis fastest. A box is read in runs: the leading axes that it covers completely, and a
part of the next axis. Positions increase from run to run, so a compressed file is decompressed once per box.

A compressed file ends with a checksum of its content. A read that reaches the last voxel continues to the checksum.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from medsegpy_core import ReadError
from medsegpy_core.reading import read_settled
from medsegpy_nifti.files import ChangedError, opened_file, unpacking, whole_file_errors
from medsegpy_nifti.header import Header, current_header, fresh_header, same_kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["clear_cache", "read_box", "verify"]

Selection = tuple[slice, ...]
_PIECE: Final = 1 << 20  # bytes per read, in addition to the result
_SKIPPED: Final = 1 << 16  # bytes per read that are discarded
_MOST_BEHIND: Final = 1 << 20  # bytes allowed after the voxels in a compressed file


def read_box(header: Header, box: Selection, out: NDArray[Any], cache_bytes: int) -> None:
    """Read a box of the stored axes into `out`, with the scaling of the header.

    Args:
        header: The header of the file.
        box: One ``slice(start, stop)`` per stored axis, within bounds.
        out: An array of the shape of the box.
        cache_bytes: The size of the cache of decompressed files.

    Raises:
        ReadError: The file is truncated, damaged (by its checksum, if it is read to its end), was replaced, or changes
            while it is read.
    """
    if not out.size:
        return
    try:
        _read(current_header(header), box, out, cache_bytes)
    except ChangedError:
        read_settled(header.path, lambda: _read_fresh(header, box, out, cache_bytes), lambda found: found)


def verify(header: Header, cache_bytes: int) -> None:
    """Read a compressed file to its end and verify its checksum; a plain file has none.

    Raises:
        ReadError: The file is damaged.
    """

    def read(now: Header, fresh: bool) -> None:
        with whole_file_errors(now.path):
            if now.compressed and now.nbytes <= cache_bytes:
                _unpacked(now, cache_bytes, fresh)
            elif now.compressed:
                with _opened(now, fresh) as source:
                    source.finish()

    try:
        read(current_header(header), fresh=False)
    except ChangedError:
        read_settled(header.path, lambda: read(fresh_header(header.path), fresh=True), lambda _: None)


def _read_fresh(header: Header, box: Selection, out: NDArray[Any], cache_bytes: int) -> tuple[bytes, bytes]:
    """Read a file without using anything known about it; returns its header, and the hash of the data."""
    import numpy as np

    now = same_kind(header, fresh_header(header.path))
    _read(now, box, out, cache_bytes, fresh=True)
    return now.head, hashlib.blake2b(np.ascontiguousarray(out).reshape(-1).view(np.uint8).data).digest()


def _read(header: Header, box: Selection, out: NDArray[Any], cache_bytes: int, fresh: bool = False) -> None:
    """Read a box; raises `ChangedError` if the header is outdated or, unless `fresh`, the file may be changing."""
    with whole_file_errors(header.path):
        if header.compressed and header.nbytes <= cache_bytes:
            stored = _unpacked(header, cache_bytes, fresh).view(header.dtype).reshape(header.shape, order="F")
            _put(header, stored[box], out)
        else:
            with _opened(header, fresh) as source:
                _read_runs(header, box, out, source)


class _Source(Protocol):
    def read(self, position: int, count: int) -> bytes: ...

    def finish(self) -> None: ...


class _Plain:
    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def read(self, position: int, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = os.pread(self.descriptor, count - len(parts), position + len(parts))
            if not part:
                break
            parts = parts + part if parts else part
        return parts

    def finish(self) -> None:
        """Do nothing: a plain file has no checksum."""


class _Compressed:
    def __init__(self, file: Any, header: Header):
        self.file = file
        self.header = header

    def read(self, position: int, count: int) -> bytes:
        self.file.seek(position)
        data: bytes = self.file.read(count)
        return data

    def finish(self) -> None:
        _read_to_the_end(self.file, self.header)


@contextmanager
def _opened(header: Header, fresh: bool) -> Iterator[_Source]:
    """Open the file of a header.

    Raises:
        ChangedError: The file was replaced, or changes while it is open; unless `fresh`, also if it is so young that a
            change may not show in its stamp.
    """
    with opened_file(header.path) as file:
        if file.stamp != header.stamp or (file.young and not fresh):
            raise ChangedError.of(header.path)
        if not header.compressed:
            yield _Plain(file.descriptor)
            return
        with unpacking(file.descriptor) as unpacked:
            if unpacked.read(len(header.head)) != header.head:
                raise ChangedError.of(header.path)
            yield _Compressed(unpacked, header)


def _read_runs(header: Header, box: Selection, out: NDArray[Any], source: _Source) -> None:
    import numpy as np

    shape, size = header.shape, header.dtype.itemsize
    # A run extends along the first axis that is not covered completely, but at least along the second axis: otherwise,
    # runs would be very short.
    axis = next((i for i, part in enumerate(box) if part != slice(0, shape[i])), len(shape) - 1)
    axis = max(axis, min(1, len(shape) - 1))
    strides = [math.prod(shape[:i]) for i in range(len(shape))]
    rows = max(1, _PIECE // (strides[axis] * size))
    outer = range(len(shape) - 1, axis, -1)
    for index in itertools.product(*[range(box[i].start, box[i].stop) for i in outer]):
        base = sum(n * strides[i] for n, i in zip(index, outer, strict=True))
        behind = tuple(n - box[i].start for n, i in zip(index, outer, strict=True))[::-1]
        for start in range(box[axis].start, box[axis].stop, rows):
            stop = min(start + rows, box[axis].stop)
            count = (stop - start) * strides[axis] * size
            data = source.read(header.offset + (base + start * strides[axis]) * size, count)
            if len(data) < count:
                raise ReadError(f"expected {count} bytes, found {len(data)}: the file is truncated", header.path)
            run = np.frombuffer(data, header.dtype).reshape((*shape[:axis], stop - start), order="F")
            along = slice(start - box[axis].start, stop - box[axis].start)
            _put(header, run[box[:axis]], out[(*[slice(None)] * axis, along, *behind)])
    slowest = max((i for i, n in enumerate(shape) if n > 1), default=0)
    if box[slowest].stop == shape[slowest]:
        source.finish()  # at most a little data remains


def _put(header: Header, stored: NDArray[Any], out: NDArray[Any]) -> None:
    """Write stored values into `out`, scaled in double precision, as nibabel does."""
    import numpy as np

    if header.slope is None or header.inter is None:
        out[...] = stored
        return
    values = stored.astype(np.float64)
    values *= header.slope
    values += header.inter
    out[...] = values


# Decompressed files, in order of last use. A compressed file can only be read from its start, and each batch needs a
# different part of it.
_cache: OrderedDict[object, NDArray[np.uint8]] = OrderedDict()
_lock = threading.Lock()
_unpacking: dict[object, threading.Lock] = {}


def clear_cache() -> None:
    """Clear the cache of decompressed files. A fork also does this, because a missing thread may hold the lock."""
    global _lock  # noqa: PLW0603 -- the parent's lock may never be released
    _lock = threading.Lock()
    _unpacking.clear()
    _cache.clear()


os.register_at_fork(after_in_child=clear_cache)


def _unpacked(header: Header, cache_bytes: int, fresh: bool) -> NDArray[np.uint8]:
    """Return the stored data of a compressed file; of several threads, only the first decompresses it."""
    if fresh:
        return _unpack(header, fresh)  # not cached: the file may change again without a new stamp
    key = header.path, header.stamp
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
        own = _unpacking.setdefault(key, threading.Lock())
    with own:
        with _lock:
            if key in _cache:
                return _cache[key]
        try:
            with _lock:
                # Free memory first, so that the limit also holds during decompression.
                while _cache and sum(kept.nbytes for kept in _cache.values()) + header.nbytes > cache_bytes:
                    _cache.popitem(last=False)
            data = _unpack(header, fresh)
            with _lock:
                _cache[key] = data
        finally:
            with _lock:
                _unpacking.pop(key, None)
    return data


def _unpack(header: Header, fresh: bool) -> NDArray[np.uint8]:
    """Decompress a file and verify its checksum."""
    import numpy as np

    data = np.empty(header.nbytes, np.uint8)
    with _opened(header, fresh) as source:
        done = 0
        while done < data.nbytes:
            part = source.read(header.offset + done, min(_PIECE, data.nbytes - done))
            if not part:
                raise _cut_short(header, data.nbytes, done)
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        source.finish()
    data.flags.writeable = False
    return data


def _read_to_the_end(file: Any, header: Header) -> None:
    """Read the bytes after the voxels, because the checksum comes after them.

    Raises:
        ReadError: There are too many.
    """
    left = header.offset + header.nbytes - file.tell() + _MOST_BEHIND
    while part := file.read(min(_SKIPPED, left + 1)):
        left -= len(part)
        if left < 0:
            raise ReadError(
                f"more than {_MOST_BEHIND:,} bytes follow the {' x '.join(map(str, header.shape))} voxels of "
                f"{header.dtype} that its header declares: the header is damaged, or the file is not an image",
                header.path,
            )
    if left > _MOST_BEHIND:
        raise _cut_short(header, header.nbytes, header.nbytes - (left - _MOST_BEHIND))


def _cut_short(header: Header, expected: int, found: int) -> ReadError:
    return ReadError(f"expected {expected} bytes of voxels, found {found}: the file is truncated", header.path)
