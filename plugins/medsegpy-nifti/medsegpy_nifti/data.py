"""Where voxels come from: a plain file by byte ranges, a compressed one from its beginning, or from memory.

A NIfTI file stores its first axis fastest. A box is read in runs: as many whole leading axes as it covers, and
a part of the next. Positions only grow from run to run, so that a compressed file is unpacked once for a box.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from medsegpy_core import ReadError
from medsegpy_nifti.header import Header, same_file, whole_file_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["clear_cache", "read_box"]

Selection = tuple[slice, ...]
_PIECE: Final = 1 << 20  # bytes that are read at once beside the result


def read_box(header: Header, box: Selection, out: NDArray[Any], cache_bytes: int) -> None:
    """Read a box of the stored axes into `out`, scaled as the header says.

    Args:
        header: The header of the file.
        box: One ``slice(start, stop)`` per stored axis, within bounds.
        out: An array of the shape of the box.
        cache_bytes: How many bytes of unpacked files may be kept in memory, over all files.

    Raises:
        ReadError: The file is cut short, broken, or was replaced.
    """
    if not out.size:
        return
    with whole_file_errors(header.path):
        if header.compressed and header.nbytes <= cache_bytes:
            stored = _unpacked(header, cache_bytes).view(header.dtype).reshape(header.shape, order="F")
            _put(header, stored[box], out)
            return
        same_file(header)
        with _opened(header) as source:
            _read_runs(header, box, out, source)


class _Source(Protocol):
    def read(self, position: int, count: int) -> bytes: ...


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


class _Compressed:
    def __init__(self, file: gzip.GzipFile):
        self.file = file

    def read(self, position: int, count: int) -> bytes:
        self.file.seek(position)
        return self.file.read(count)


@contextmanager
def _opened(header: Header) -> Iterator[_Source]:
    if header.compressed:
        with gzip.open(header.path, "rb") as file:
            yield _Compressed(file)
        return
    descriptor = os.open(header.path, os.O_RDONLY)
    try:
        yield _Plain(descriptor)
    finally:
        os.close(descriptor)


def _read_runs(header: Header, box: Selection, out: NDArray[Any], source: _Source) -> None:
    import numpy as np

    shape, size = header.shape, header.dtype.itemsize
    # The axis along which a run extends: behind the whole ones; the second at least, lest runs be very short.
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
                raise ReadError(f"{count} bytes were expected, and {len(data)} are there; it is cut short", header.path)
            run = np.frombuffer(data, header.dtype).reshape((*shape[:axis], stop - start), order="F")
            along = slice(start - box[axis].start, stop - box[axis].start)
            _put(header, run[box[:axis]], out[(*[slice(None)] * axis, along, *behind)])


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


# Unpacked files, the one used last at the end. A compressed file can be read from its beginning only, and each batch
# wants another part of it.
_cache: OrderedDict[object, NDArray[np.uint8]] = OrderedDict()
_lock = threading.Lock()
_unpacking: dict[object, threading.Lock] = {}


def clear_cache() -> None:
    """Forget all unpacked files. A fork does it by itself: a thread that is gone may have held a lock."""
    global _lock  # noqa: PLW0603 -- the lock of the parent process may never be free
    _lock = threading.Lock()
    _unpacking.clear()
    _cache.clear()


os.register_at_fork(after_in_child=clear_cache)


def _unpacked(header: Header, cache_bytes: int) -> NDArray[np.uint8]:
    """Return the stored data of a compressed file; threads that want the same file wait for the first."""
    same_file(header)
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
                # Room is made first, so that the limit holds while the file is unpacked, too.
                while _cache and sum(kept.nbytes for kept in _cache.values()) + header.nbytes > cache_bytes:
                    _cache.popitem(last=False)
            data = _unpack(header)
            with _lock:
                _cache[key] = data
        finally:
            with _lock:
                _unpacking.pop(key, None)
    return data


def _unpack(header: Header) -> NDArray[np.uint8]:
    import numpy as np

    data = np.empty(header.nbytes, np.uint8)
    with gzip.open(header.path, "rb") as file:
        file.seek(header.offset)
        done = 0
        while done < data.nbytes:
            part = file.read(min(_PIECE, data.nbytes - done))
            if not part:
                raise ReadError(
                    f"{data.nbytes} bytes were expected, and {done} are there; it is cut short", header.path
                )
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
    data.flags.writeable = False
    return data
