"""Reading a box of a located dataset, by byte ranges or through the library; the file must still be the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.library import read_box
from medsegpy_core.hdf5.policy import regular_file, stamp_of
from medsegpy_core.hdf5.ranges import read_ranges

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
    try:
        if layout.form.route == "ranges":
            _read_ranges(path, layout, selection, out)
        elif stamp_of(regular_file(path)) != layout.stamp:
            raise StaleError
        else:
            out[...] = read_box(path, layout, selection)
    except ReadError as error:
        if error.path is not None:
            raise
        raise ReadError(error.reason, path, layout.key) from error


def _read_ranges(path: str, layout: Layout, selection: Selection, out: Array) -> None:
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        regular_file(path)  # says what is wrong with it, if anything is
        raise ReadError(f"the file cannot be opened: {error.strerror}") from error
    try:
        if stamp_of(os.fstat(fd)) != layout.stamp:
            raise StaleError
        read_ranges(fd, layout, selection, out)
        if stamp_of(os.fstat(fd)) != layout.stamp:
            raise ReadError("the file changed while it was read")
    finally:
        os.close(fd)
