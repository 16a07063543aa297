"""Putting the contents of several HDF5 files into one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medsegpy_core.hdf5.policy import list_links, open_file

if TYPE_CHECKING:
    import h5py

__all__ = ["copy_contents"]


def copy_contents(parts: Iterable[str], file: h5py.File) -> None:
    """Copy all that lies at the root of some files into another; chunks are copied as they are, not decoded.

    Args:
        parts: Files; no two have an object of one name.
        file: Where to, open for writing.

    Raises:
        ReadError: A part cannot be read.
    """
    import h5py

    for part in parts:
        with open_file(part) as source:
            for name, _ in list_links(source, part):
                h5py.h5o.copy(source, name.encode(), file.id, name.encode())
