"""Route one read: byte ranges if the data can be located, else the HDF5 library, here or in the helper process."""

from __future__ import annotations

import itertools
import math
import os
import shlex
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core._util.stamps import Stamp, stamp_of
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.byte_ranges import read_contiguous
from medsegpy_core.hdf5.chunks import fill_value, read_chunked
from medsegpy_core.hdf5.dataset_info import PLUGIN_FILTERS, Vetted, uses_szip, vet
from medsegpy_core.hdf5.extents import SMALLEST_MAP, kept_map, map_file
from medsegpy_core.hdf5.files import open_dataset, open_file, regular_file
from medsegpy_core.hdf5.filters import DecodeError, check_size
from medsegpy_core.hdf5.layout import stored_chunk
from medsegpy_core.hdf5.options import current_access

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection


def read_box(path: str, layout: Layout, selection: Selection) -> Array:
    """Read a box of a dataset as a new array in its own type, native byte order; booleans as uint8.

    Raises:
        ReadError: It cannot be read, a chunk does not decode to its size, or the dataset is another one by now.
    """
    import h5py

    try:
        box = np.empty([s.stop - s.start for s in selection], layout.form.dtype)
    except MemoryError as error:
        raise ReadError("there is not enough memory to read it") from error
    with open_file(path) as file:
        dataset, key = open_dataset(file, path, (layout.key,))
        vetted = vet(dataset, path, key)
        if vetted != layout.form.vetted:
            raise ReadError("the file changed while it was read", path, key)
        if vetted.chunks is not None:
            _check_chunks(dataset, vetted, selection, os.stat(path).st_size)  # noqa: PTH116
        space = dataset.get_space()
        space.select_hyperslab(tuple(s.start for s in selection), box.shape)
        memory = h5py.h5s.create_simple((math.prod(box.shape),))
        dataset.read(memory, space, box, h5py.h5t.py_create(box.dtype))
    return box.view(np.uint8) if box.dtype.kind == "b" else box


def _check_chunks(dataset: Any, vetted: Vetted, selection: Selection, end: int) -> None:
    """Check that the chunks that a box touches decode to their size; the library does not look."""
    chunks = vetted.chunks or vetted.shape
    # In stored elements, whose size may differ from that of NumPy's.
    size = math.prod(chunks) * dataset.get_type().get_size()
    touched = (range(s.start // c, -(-s.stop // c)) for s, c in zip(selection, chunks, strict=True))
    for position in itertools.product(*touched):
        corner = tuple(i * c for i, c in zip(position, chunks, strict=True))
        info = dataset.get_chunk_info_by_coord(corner)
        if info.byte_offset is None:
            if not vetted.fill:
                raise ReadError("some of it was never written, and the file gives no value for that")
            continue  # fill values
        if info.byte_offset + info.size > end:
            raise ReadError(f"the chunk at {corner} lies beyond the end of the file ({end:,} bytes): it was cut short")
        mask, stored = stored_chunk(dataset, corner, info.size)
        try:
            check_size(stored, vetted.filters, mask, size)
        except DecodeError as error:
            raise ReadError(f"the chunk at {corner} decodes to {error}") from error


# Without O_NONBLOCK, opening a pipe that took the place of a file would wait for ever.
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class StaleError(Exception):
    """The file is not the one that was located, or has changed since the read began; what was read does not count."""


def refuse_szip(path: str, layout: Layout) -> None:
    """Refuse data that are compressed with szip, unless `Access.szip` allows them.

    Raises:
        ReadError: They are not allowed.
    """
    if uses_szip(layout.form.vetted) and not current_access().szip:
        name, ending = os.path.splitext(path)  # noqa: PTH122
        command = f"h5repack -f GZIP=4 {shlex.quote(path)} {shlex.quote(f'{name}-gzip{ending}')}"
        raise ReadError(
            "it is compressed with szip, and if such data were cut short, the HDF5 library gives other values and no "
            f"error. Compress it with gzip: {command}. Or read it anyway, if you trust the file: Access(szip=True)",
            path,
            layout.key,
        )


def read_located(path: str, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box into `out`; no axis of it is empty.

    Raises:
        StaleError: The file is another one by now, or changed while it was read.
        ReadError: It cannot be read.
    """
    access = current_access()
    try:
        if layout.form.route == "library":
            refuse_szip(path, layout)
        if access.isolate and _needs_c_code(layout):
            _read_elsewhere(path, layout, selection, out)
        elif layout.form.route == "ranges":
            mapped = access.mmap and layout.settled
            if not (mapped and _read_map(path, layout, selection, out)):
                _read_ranges(path, layout, selection, out, mapped)
        else:
            _check(regular_file(path), layout)
            out[...] = read_box(path, layout, selection)
            _check(regular_file(path), layout)
    except ReadError as error:
        if error.path is not None:
            raise
        raise ReadError(error.reason, path, layout.key) from error


def is_current(found: Stamp, located: Stamp, settled: bool) -> bool:
    """Say whether a file is the one that was located.

    Args:
        found: What it is now.
        located: What it was then.
        settled: Whether it had not been changed shortly before. If it had, other content may have the same stamp
            anyway, and whoever reads compares what two reads gave.
    """
    return found == located or (not settled and found.same_file(located))


def _check(status: os.stat_result, layout: Layout) -> None:
    if not is_current(stamp_of(status), layout.stamp, layout.settled):
        raise StaleError


def _read_from(file: int | Array, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box from an open file, or from its bytes where it is mapped into memory."""
    vetted = layout.form.vetted
    if layout.table is not None:
        read_chunked(file, layout, selection, out)
    elif layout.offset < 0:
        out[...] = fill_value(vetted)
    else:
        read_contiguous(file, layout.offset, vetted.shape, vetted.raw, selection, out)


def _needs_c_code(layout: Layout) -> bool:
    """Say whether reading runs code that a file can crash: the library, or a filter of hdf5plugin."""
    return layout.form.route == "library" or any(number in PLUGIN_FILTERS for number, _ in layout.form.vetted.filters)


def _read_elsewhere(path: str, layout: Layout, selection: Selection, out: Array) -> None:
    from medsegpy_core.hdf5.isolation import read_by_helper

    _check(regular_file(path), layout)
    if not read_by_helper(path, layout, selection, out):
        raise StaleError
    _check(regular_file(path), layout)


def _read_map(path: str, layout: Layout, selection: Selection, out: Array) -> bool:
    """Read from a map that is kept; False: there is none."""
    found = kept_map(path, layout.stamp)
    if found is None:
        return False
    _check(regular_file(path), layout)
    _read_from(found.data, layout, selection, out)
    _check(regular_file(path), layout)
    return True


def _read_ranges(path: str, layout: Layout, selection: Selection, out: Array, mapped: bool) -> None:
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        regular_file(path)  # says what is wrong with it, if anything is
        raise ReadError(f"the file cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        _check(status, layout)
        large = mapped and status.st_size >= SMALLEST_MAP
        found = map_file(path, fd, status.st_size, layout.stamp) if large else None
        _read_from(fd if found is None else found.data, layout, selection, out)
        _check(os.fstat(fd), layout)
    finally:
        os.close(fd)
