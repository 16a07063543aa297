"""Whether packed files still hold what was written: every array against its hash in the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5 import open_array
from medsegpy_core.packing.manifest import read_manifest
from medsegpy_core.packing.scans import content_hash

__all__ = ["verify_arrays", "verify_packed"]

# A file, the key of an array in it, and the hash of its content.
Hashed = tuple[Path, str, str]


def verify_packed(
    path: str | os.PathLike[str],
    watch: Callable[[Iterable[Hashed], int], Iterable[Hashed]] = lambda arrays, _: arrays,
) -> list[str]:
    """Read all arrays of a packed dataset and compare them with the hashes that were taken when it was written.

    Args:
        path: The manifest, see `packed_dicts`.
        watch: Called with the arrays and how many there are, returns them; for a progress bar.

    Returns:
        What is wrong, a line each; empty: all is as it was written.

    Raises:
        ReadError: The manifest cannot be read.
    """
    arrays = read_manifest(path).arrays
    return verify_arrays(watch(arrays, len(arrays)))


def verify_arrays(arrays: Iterable[Hashed]) -> list[str]:
    """Compare arrays with their hashes; see `verify_packed`."""
    wrong = []
    for file, key, digest in arrays:
        try:
            if content_hash(open_array(file, key)[...]) != digest:
                wrong.append(f"{file}, dataset {key!r}: its content has changed since it was written")
        except ReadError as error:
            wrong.append(str(error))
    return wrong
