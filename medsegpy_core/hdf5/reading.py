"""Reading a box of a located dataset, by byte ranges or through the library; the file must still be the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.access import current_access
from medsegpy_core.hdf5.chunks import fill_value, read_chunked
from medsegpy_core.hdf5.library import read_box
from medsegpy_core.hdf5.maps import SMALLEST_MAP, kept_map, map_file
from medsegpy_core.hdf5.policy import regular_file, stamp_of
from medsegpy_core.hdf5.ranges import read_contiguous
from medsegpy_core.hdf5.vetting import PLUGIN_FILTERS

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection

__all__ = ["StaleError", "read_located"]

# Without O_NONBLOCK, opening a pipe that took the place of a file would wait for ever.
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class StaleError(Exception):
    """The file is not the one that was located; nothing was read."""


def read_located(path: str, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box into `out`; no axis of it is empty.

    Raises:
        StaleError: The file is another one by now.
        ReadError: It cannot be read, or changes while it is read.
    """
    access = current_access()
    try:
        if access.isolate and _needs_c_code(layout):
            _read_elsewhere(path, layout, selection, out)
        elif layout.form.route == "ranges":
            if not (access.mmap and _read_map(path, layout, selection, out)):
                _read_ranges(path, layout, selection, out, access.mmap)
        elif stamp_of(regular_file(path)) != layout.stamp:
            raise StaleError
        else:
            out[...] = read_box(path, layout, selection)
    except ReadError as error:
        if error.path is not None:
            raise
        raise ReadError(error.reason, path, layout.key) from error


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

    if stamp_of(regular_file(path)) != layout.stamp or not read_by_helper(path, layout, selection, out):
        raise StaleError


def _read_map(path: str, layout: Layout, selection: Selection, out: Array) -> bool:
    """Read from a map that is kept; False: there is none."""
    found = kept_map(path, layout.stamp)
    if found is None:
        return False
    if stamp_of(regular_file(path)) != layout.stamp:
        raise StaleError
    _read_from(found.data, layout, selection, out)
    if stamp_of(regular_file(path)) != layout.stamp:
        raise ReadError("the file changed while it was read")
    return True


def _read_ranges(path: str, layout: Layout, selection: Selection, out: Array, mapped: bool) -> None:
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        regular_file(path)  # says what is wrong with it, if anything is
        raise ReadError(f"the file cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if stamp_of(status) != layout.stamp:
            raise StaleError
        large = mapped and status.st_size >= SMALLEST_MAP
        found = map_file(path, fd, status.st_size, layout.stamp) if large else None
        _read_from(fd if found is None else found.data, layout, selection, out)
        if stamp_of(os.fstat(fd)) != layout.stamp:
            raise ReadError("the file changed while it was read")
    finally:
        os.close(fd)
