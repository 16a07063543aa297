"""What the checks do with the files of a dataset dict: copy them, damage them, read them whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegpy_core import opening
from medsegpy_core.datasets import make_records
from medsegpy_core.records import Record
from medsegpy_core.typing import DatasetDict, LazyArray, OpenScan, Reader

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["arrays_of", "copied", "digest", "files_of", "open_descriptors", "read_all", "read_digest", "record_of"]


def record_of(d: DatasetDict, dataset: str = "") -> Record:
    """Return the record of a dataset dict, with absolute paths."""
    (record,) = make_records([d], [dataset])
    return record


def files_of(record: Record) -> list[Path]:
    """Return the files of a record, each once."""
    return list(dict.fromkeys(path for path in (record.file_name, record.sem_seg_file) if path is not None))


def copied(record: Record, folder: Path) -> Record:
    """Copy the files of a record into a new folder, under their own names, and return the record of the copies."""
    folder.mkdir(parents=True)
    copies: dict[Path, Path] = {}
    for number, path in enumerate(files_of(record)):
        # Image and mask may have one name in two folders.
        copies[path] = folder / str(number) / path.name
        copies[path].parent.mkdir()
        if path.is_dir():
            shutil.copytree(path, copies[path])
        else:
            shutil.copyfile(path, copies[path])
    d = {**record.to_dict(), "file_name": str(copies[record.file_name])}
    if record.sem_seg_file is not None:
        d["sem_seg_file"] = str(copies[record.sem_seg_file])
    return Record.from_dict(d, record.dataset, record.index)


def arrays_of(scan: OpenScan) -> Iterator[tuple[str, LazyArray]]:
    """Yield the arrays of an open scan, and what to call them."""
    yield "image", scan.image
    if scan.mask is not None:
        yield "mask", scan.mask


def read_all(reader: Reader, record: Record) -> dict[str, Array]:
    """Read the arrays of a record as the reader gives them."""
    with reader.open(record) as scan:
        return {name: array[...] for name, array in arrays_of(scan)}


def digest(scan: OpenScan) -> str:
    """Return a hash of all arrays of an open scan, their shapes and types."""
    found = hashlib.sha256()
    for name, array in arrays_of(scan):
        values: Any = array[...]
        found.update(f"{name} {values.shape} {values.dtype.str}".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def read_digest(reader: Reader, record: Record, canonical: bool = False) -> str:
    """Open a record and return its `digest`; `canonical`: as `open_scan` gives the arrays."""
    # Not by `open_record`, which makes ReadErrors of what a reader raises: here it is the reader that is looked at.
    with reader.open(record) as scan:
        return digest(opening.canonical(scan, record, None) if canonical else scan)


def open_descriptors(paths: list[Path]) -> list[str]:
    """Return which of the files this process has open; Linux only."""
    wanted = {os.path.realpath(path) for path in paths}
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # closed meanwhile
        if target in wanted:
            found.append(target)
    return found
