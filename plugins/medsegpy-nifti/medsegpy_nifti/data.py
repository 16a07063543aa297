"""Where voxels come from: a plain file by byte ranges, a compressed one from its beginning, or from memory.

A NIfTI file stores its first axis fastest. A box is read in runs: as many whole leading axes as it covers, and
a part of the next. Positions only grow from run to run, so that a compressed file is unpacked once for a box.

A compressed file ends with a checksum of its content. Whoever unpacks it to its last voxel reads on to the checksum.
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
_PIECE: Final = 1 << 20  # bytes that are read at once beside the result
_SKIPPED: Final = 1 << 16  # bytes that are read at once and let go
_MOST_BEHIND: Final = 1 << 20  # bytes that may follow the voxels in a compressed file


def read_box(header: Header, box: Selection, out: NDArray[Any], cache_bytes: int) -> None:
    """Read a box of the stored axes into `out`, scaled as the header says.

    Args:
        header: The header of the file.
        box: One ``slice(start, stop)`` per stored axis, within bounds.
        out: An array of the shape of the box.
        cache_bytes: How many bytes of unpacked files may be kept in memory, over all files.

    Raises:
        ReadError: The file is cut short, damaged (by its checksum, if all of it is unpacked), was replaced by another
            one, or changes while it is read.
    """
    if not out.size:
        return
    try:
        _read(current_header(header), box, out, cache_bytes)
    except ChangedError:
        read_settled(header.path, lambda: _read_fresh(header, box, out, cache_bytes), lambda found: found)


def verify(header: Header, cache_bytes: int) -> None:
    """Read a compressed file to its end and check it against its checksum; a plain one has none.

    Raises:
        ReadError: It is damaged.
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
    """Read a file of which nothing may be relied on; returns its header, and the hash of what was read."""
    import numpy as np

    now = same_kind(header, fresh_header(header.path))
    _read(now, box, out, cache_bytes, fresh=True)
    return now.head, hashlib.blake2b(np.ascontiguousarray(out).reshape(-1).view(np.uint8).data).digest()


def _read(header: Header, box: Selection, out: NDArray[Any], cache_bytes: int, fresh: bool = False) -> None:
    """Read a box; `ChangedError` if the file is not that of the header, or, unless that is `fresh`, is written."""
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
        """Nothing follows that says anything about what was read."""


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
        ChangedError: It is another one, or changes in the meantime, or may do so without another stamp; the latter only
            unless the header is `fresh`.
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
    slowest = max((i for i, n in enumerate(shape) if n > 1), default=0)
    if box[slowest].stop == shape[slowest]:
        source.finish()  # little is left, if anything


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


def _unpacked(header: Header, cache_bytes: int, fresh: bool) -> NDArray[np.uint8]:
    """Return the stored data of a compressed file; threads that want the same file wait for the first."""
    if fresh:
        return _unpack(header, fresh)  # for this once: it may change again without another stamp
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
            data = _unpack(header, fresh)
            with _lock:
                _cache[key] = data
        finally:
            with _lock:
                _unpacking.pop(key, None)
    return data


def _unpack(header: Header, fresh: bool) -> NDArray[np.uint8]:
    """Unpack a file and check it against its checksum."""
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
    """Read what follows, as the checksum is behind it.

    Raises:
        ReadError: There is more than a little.
    """
    left = header.offset + header.nbytes - file.tell() + _MOST_BEHIND
    while part := file.read(min(_SKIPPED, left + 1)):
        left -= len(part)
        if left < 0:
            raise ReadError(
                f"more than {_MOST_BEHIND:,} bytes follow the {' x '.join(map(str, header.shape))} voxels of "
                f"{header.dtype} that its header declares: the header is damaged, or the file is no image",
                header.path,
            )
    if left > _MOST_BEHIND:
        raise _cut_short(header, header.nbytes, header.nbytes - (left - _MOST_BEHIND))


def _cut_short(header: Header, expected: int, found: int) -> ReadError:
    return ReadError(f"{expected} bytes of voxels were expected, and {found} are there; it is cut short", header.path)
