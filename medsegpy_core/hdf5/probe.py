"""The contents of an HDF5 file: its signature, its datasets, and lists of names. Runs the library in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.files import list_links, open_dataset, open_file, regular_file

_MOST_NAMES: Final = 4096
_LONGEST_NAME: Final = 4096
_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: str | Path) -> bool:
    """Return whether a file has the HDF5 signature, at its start or after a user block. Never raises."""
    try:
        size = regular_file(os.fspath(path)).st_size
        with open(path, "rb") as file:  # noqa: PTH123
            at = 0
            while at + len(_SIGNATURE) <= size:
                file.seek(at)
                if file.read(len(_SIGNATURE)) == _SIGNATURE:
                    return True
                at = max(512, 2 * at)
    except (ReadError, OSError):
        pass
    return False


def list_groups(path: str, into_groups: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Implement `read.root_and_groups` with the library in this process."""
    with open_file(path) as file:
        links = list_links(file, path)
        root = [name for name, kind in links if kind == "dataset"]
        groups: dict[str, list[str]] = {}
        for name, kind in links if into_groups else []:
            if kind == "group":
                groups[name] = [key for key, what in list_links(file, path, name) if what == "dataset"]
    return root, groups


def list_names(path: str, keys: Sequence[str], attribute: str) -> tuple[str, ...] | None:
    """Implement `read.names_in` with the library in this process."""
    import h5py
    import numpy as np

    with open_file(path) as file:
        dataset, key = open_dataset(file, path, keys)
        if not h5py.h5a.exists(dataset, attribute.encode()):
            return None
        found = h5py.h5a.open(dataset, attribute.encode())
        shape, kind = found.shape, found.get_type()
        if (
            kind.get_class() != h5py.h5t.STRING
            or found.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE
            or len(shape) != 1
            or shape[0] > _MOST_NAMES
            or (not kind.is_variable_str() and kind.get_size() > _LONGEST_NAME)
        ):
            raise ReadError(f"the attribute {attribute!r} is not a list of names", path, key)
        values = np.empty(shape, found.dtype)
        found.read(values)
    return tuple(v.decode(errors="surrogateescape") if isinstance(v, bytes) else str(v) for v in values.tolist())
