"""What an HDF5 file holds: for readers that are asked whether a file is theirs, or what lies in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.files import list_links, open_dataset, open_file, regular_file
from medsegpy_core.hdf5.options import current_access

_MOST_NAMES: Final = 4096
_LONGEST_NAME: Final = 4096
_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: str | Path) -> bool:
    """Say whether a file has the signature of HDF5, at its beginning or behind a user block. Never raises."""
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


def holds_dataset(path: str | Path, names: Iterable[str], in_groups: bool = False) -> bool:
    """Say whether an HDF5 file has a dataset of one of these names. Never raises for a file that exists.

    Args:
        path: The file.
        names: Names of datasets at the root.
        in_groups: Whether to look into the groups at the root as well.
    """
    if not is_hdf5(path):
        return False
    try:
        root, groups = root_and_groups(os.fspath(path), in_groups)
    except ReadError:
        return False
    return any(name in root or any(name in group for group in groups.values()) for name in names)


def root_and_groups(path: str, into_groups: bool = True) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the datasets at the root of a file, and of those in each group at the root, sorted.

    Only what hard links lead to counts.

    Raises:
        ReadError: The file cannot be read.
    """
    if current_access().isolate:
        from medsegpy_core.hdf5.isolation import groups_by_helper

        return groups_by_helper(path, into_groups)
    with open_file(path) as file:
        links = list_links(file, path)
        root = [name for name, kind in links if kind == "dataset"]
        groups: dict[str, list[str]] = {}
        for name, kind in links if into_groups else []:
            if kind == "group":
                groups[name] = [key for key, what in list_links(file, path, name) if what == "dataset"]
    return root, groups


def names_in(path: str, keys: Sequence[str], attribute: str) -> tuple[str, ...] | None:
    """Return the names that an attribute of a dataset lists, such as those of its channels; None: it has none.

    Args:
        path: The file.
        keys: The dataset; several: the first that is there.
        attribute: The name of the attribute.

    Raises:
        ReadError: The file cannot be read, or the attribute is not a list of names.
    """
    if current_access().isolate:
        from medsegpy_core.hdf5.isolation import names_by_helper

        return names_by_helper(path, keys, attribute)
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
